//! Who may use the management API: whoever sends one of its tokens, or has shown a certificate that is vouched for;
//! everybody, where it asks for neither.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use super::ApiState;
use super::error::ApiError;
use crate::runtime::tokens::Token;
use crate::types::access::Digest;

/// Goes with the requests of a connection whose client has shown a certificate that is vouched for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vouched;

/// The tokens in force; `None`: everybody may. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Guard(Arc<ArcSwapOption<Vec<Digest>>>);

impl Guard {
    /// From now on one of these is needed, or a certificate.
    pub fn admit(&self, tokens: &[Token]) {
        self.0.store(Some(Arc::new(tokens.iter().map(Token::digest).collect())));
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let known = self.0.load();
        let Some(known) = known.as_ref() else { return true };
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| Digest::of(token.trim_ascii()))
        });
        // Digests are compared: how long that takes tells nothing of a token.
        sent.is_some_and(|sent| known.contains(&sent))
    }
}

/// Behind the guard.
pub(super) fn guarded(routes: Router<ApiState>, guard: &Guard) -> Router<ApiState> {
    if routes.has_routes() {
        routes.route_layer(from_fn_with_state(guard.clone(), ask))
    } else {
        routes
    }
}

async fn ask(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if request.extensions().get::<Vouched>().is_some() || guard.admits(request.headers()) {
        next.run(request).await
    } else {
        ApiError::unauthenticated().into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_tokens_lets_in_and_nothing_else_does() {
        let guard = Guard::default();
        let admits = |guard: &Guard, value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().expect("valid"));
            }
            guard.admits(&headers)
        };
        assert!(admits(&guard, None), "there is no token");
        let (new, old) = ("new-token-0123456789", "old-token-0123456789");
        guard.admit(&[Token::new(new).expect("a token"), Token::new(old).expect("a token")]);
        for (value, lets_in) in [
            (Some("Bearer new-token-0123456789"), true),
            (Some("bearer  old-token-0123456789"), true),
            (Some("Bearer new-token-012345678"), false),
            (Some("Bearer new-token-01234567890"), false),
            (Some("Basic new-token-0123456789"), false),
            (Some("new-token-0123456789"), false),
            (Some("Bearer "), false),
            (Some(""), false),
            (None, false),
        ] {
            assert_eq!(admits(&guard, value), lets_in, "{value:?}");
        }
        guard.admit(&[Token::new(new).expect("a token")]);
        assert!(!admits(&guard, Some("Bearer old-token-0123456789")), "it was taken away");
    }
}
