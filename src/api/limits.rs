//! The bounds on requests: how large, how many at once, how long; and that a page in somebody's browser
//! cannot command the manager.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::ApiState;
use super::error::ApiError;

/// Bytes of a command.
const BODY: usize = 1024 * 1024;
/// Bytes of a proxy's report: a few hundred for each of its instances.
const REPORT_BODY: usize = 8 * 1024 * 1024;
/// Requests at once, apart from the feed.
const REQUESTS: usize = 128;
/// Requests of the feed at once: each proxy has one that waits and one that reports.
const FEED_REQUESTS: usize = 2048;
/// How long a request may take.
const TIME: Duration = Duration::from_secs(30);
/// How long a request of the feed may take; above the longest wait that can be asked for.
const FEED_TIME: Duration = Duration::from_secs(90);

#[derive(Clone)]
struct Bounds {
    slots: Arc<Semaphore>,
    time: Duration,
}

/// Bounds the routes that people and scrapers use.
pub(super) fn requests(routes: Router<ApiState>) -> Router<ApiState> {
    bounded(routes, REQUESTS, TIME).layer(DefaultBodyLimit::max(BODY))
}

/// Bounds the routes that proxies use.
pub(super) fn feed(routes: Router<ApiState>) -> Router<ApiState> {
    if routes.has_routes() {
        bounded(routes, FEED_REQUESTS, FEED_TIME).layer(DefaultBodyLimit::max(REPORT_BODY))
    } else {
        routes
    }
}

fn bounded(routes: Router<ApiState>, at_once: usize, time: Duration) -> Router<ApiState> {
    let bounds = Bounds { slots: Arc::new(Semaphore::new(at_once)), time };
    routes.route_layer(from_fn_with_state(bounds, bound)).route_layer(from_fn(same_origin))
}

async fn bound(State(bounds): State<Bounds>, request: Request, next: Next) -> Response {
    let Ok(_slot) = bounds.slots.try_acquire() else {
        return ApiError::busy().into_response();
    };
    match timeout(bounds.time, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => ApiError::timed_out(bounds.time).into_response(),
    }
}

/// Refuses commands that a page from elsewhere makes a browser send. Other clients send no `Origin`.
async fn same_origin(request: Request, next: Next) -> Response {
    if request.method() != Method::GET && !is_same_origin(request.headers()) {
        let message = "commands from other sites' pages are refused; use this address's own page or another client";
        return ApiError::new(StatusCode::FORBIDDEN, "cross_origin", message).into_response();
    }
    next.run(request).await
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match (origin.as_ref().and_then(|origin| origin.authority()), host) {
        (Some(authority), Some(host)) => authority.as_str() == host,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_page_or_no_page_may_command() {
        for (origin, same) in [
            (None, true),
            (Some("http://127.0.0.1:8081"), true),
            (Some("http://evil.example"), false),
            (Some("http://127.0.0.1:9999"), false),
            (Some("null"), false),
            (Some(""), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:8081".parse().expect("valid"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().expect("valid"));
            }
            assert_eq!(is_same_origin(&headers), same, "{origin:?}");
        }
    }
}
