//! The fleet for people: aligned columns, no decoration that a terminal or a `grep` would trip over.

use std::fmt::Write;
use std::time::Duration;

use crate::types::Timestamp;
use crate::types::status::{
    EndpointStatus, Explanation, FleetStatus, InstanceStatus, PolicyStatus, VariantStatus,
};

/// Endpoints, pools and instances, each as a table, then what capacity is waited for.
pub(super) fn status(status: &FleetStatus, now: Timestamp) -> String {
    if status.endpoints.is_empty() {
        return "no endpoints".into();
    }
    let mut parts = vec![variants(status), pools(status), instances(status, now)];
    if status.proxies.iter().any(|proxy| proxy.draining_until.is_some()) {
        parts.push(draining(status, now));
    }
    if each_variant(status).any(|(_, variant)| !variant.scaling.is_empty()) {
        parts.push(policies(status));
    }
    if !status.capacity_holds.is_empty() {
        parts.push(holds(status, now));
    }
    parts.join("\n\n")
}

/// The summary, then the decisions with their times, oldest first.
pub(super) fn explanation(explanation: &Explanation) -> String {
    let mut text = format!("{}\n", explanation.endpoint);
    for line in &explanation.summary {
        let _ = writeln!(text, "  {line}");
    }
    let rows: Vec<_> = explanation
        .events
        .iter()
        .map(|event| {
            let about = match (&event.instance, &event.variant) {
                (Some(instance), _) => instance.to_string(),
                (None, Some(variant)) => variant.to_string(),
                (None, None) => "-".into(),
            };
            vec![event.at.to_string(), event.kind.clone(), about, event.message.clone()]
        })
        .collect();
    if rows.is_empty() {
        text.push_str("\nnothing has been decided yet");
    } else {
        let _ = write!(text, "\n{}", table(&["TIME", "WHAT", "ABOUT", "WHY"], rows));
    }
    text
}

fn each_variant(status: &FleetStatus) -> impl Iterator<Item = (&EndpointStatus, &VariantStatus)> {
    status.endpoints.iter().flat_map(|e| e.variants.iter().map(move |v| (e, v)))
}

fn variants(status: &FleetStatus) -> String {
    let rows = each_variant(status)
        .map(|(endpoint, variant)| {
            vec![
                endpoint.name.to_string(),
                variant.name.to_string(),
                endpoint.status.clone(),
                variant.desired_instance_count.to_string(),
                variant.in_service_instance_count.to_string(),
                variant.queued.to_string(),
                variant.price_per_hour.map_or("-".into(), |price| format!("{price:.2}")),
                variant.waiting_for.clone().unwrap_or("-".into()),
            ]
        })
        .collect();
    let heads = [
        "ENDPOINT",
        "VARIANT",
        "STATUS",
        "DESIRED",
        "IN-SERVICE",
        "QUEUED",
        "PRICE/HOUR",
        "WAITING-FOR",
    ];
    table(&heads, rows)
}

fn policies(status: &FleetStatus) -> String {
    let rows = each_variant(status)
        .flat_map(|(endpoint, variant)| {
            variant.scaling.iter().map(move |policy| {
                vec![
                    policy.name.clone(),
                    format!("{}/{}", endpoint.name, variant.name),
                    policy.value.map_or("-".into(), |value| format!("{value:.2}")),
                    policy.wants.map_or("-".into(), |size| size.to_string()),
                    because(policy),
                ]
            })
        })
        .collect();
    table(&["POLICY", "OF", "VALUE", "WANTS", "BECAUSE"], rows)
}

fn because(policy: &PolicyStatus) -> String {
    match &policy.held_back {
        Some(why) => format!("{}; {why}", policy.because),
        None => policy.because.clone(),
    }
}

fn pools(status: &FleetStatus) -> String {
    let rows = each_variant(status)
        .flat_map(|(endpoint, variant)| {
            variant.pools.iter().map(move |pool| {
                vec![
                    format!("{}/{}", endpoint.name, variant.name),
                    pool.priority.to_string(),
                    pool.instance_type.to_string(),
                    pool.current_instance_count.to_string(),
                    pool.in_service_instance_count.to_string(),
                ]
            })
        })
        .collect();
    table(&["POOL-OF", "PRIORITY", "INSTANCE-TYPE", "INSTANCES", "IN-SERVICE"], rows)
}

fn instances(status: &FleetStatus, now: Timestamp) -> String {
    let rows: Vec<_> = each_variant(status)
        .flat_map(|(endpoint, variant)| {
            variant.instances.iter().map(move |instance| {
                let of = format!("{}/{}", endpoint.name, variant.name);
                instance_row(of, instance, now)
            })
        })
        .collect();
    if rows.is_empty() {
        return "no instances".into();
    }
    let heads = [
        "INSTANCE",
        "OF",
        "INSTANCE-TYPE",
        "STATE",
        "AGE",
        "OUTSTANDING",
        "COPIES",
        "ADDRESS",
        "LEAVING-BECAUSE",
    ];
    table(&heads, rows)
}

fn instance_row(of: String, instance: &InstanceStatus, now: Timestamp) -> Vec<String> {
    vec![
        instance.id.to_string(),
        of,
        instance.instance_type.to_string(),
        instance.state.to_string(),
        seconds(now.since(instance.asked_at)),
        instance.outstanding.to_string(),
        instance.copies.to_string(),
        instance.address.as_ref().map_or("-".into(), ToString::to_string),
        instance.reason.clone().unwrap_or("-".into()),
    ]
}

/// Generations whose successor has taken over.
fn draining(status: &FleetStatus, now: Timestamp) -> String {
    let rows = status
        .proxies
        .iter()
        .filter_map(|proxy| {
            Some(vec![
                proxy.id.to_string(),
                proxy.outstanding.to_string(),
                seconds(now.until(proxy.draining_until?)),
            ])
        })
        .collect();
    table(&["DRAINING-PROXY", "OUTSTANDING", "ENDS-WITHIN"], rows)
}

fn holds(status: &FleetStatus, now: Timestamp) -> String {
    let rows = status
        .capacity_holds
        .iter()
        .map(|hold| {
            vec![
                hold.instance_type.to_string(),
                hold.provider.to_string(),
                hold.refusals.to_string(),
                seconds(now.until(hold.next_try_at)),
                hold.reason.clone(),
            ]
        })
        .collect();
    table(&["NO-CAPACITY-OF", "PROVIDER", "REFUSALS", "NEXT-TRY-IN", "REASON"], rows)
}

fn seconds(span: Duration) -> String {
    humantime::format_duration(Duration::from_secs(span.as_secs())).to_string().replace(' ', "")
}

/// Rows under heads, each column as wide as its widest cell, two blanks between, none at the end.
fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let heads = heads.iter().map(|&head| head.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heads).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_shown_in_aligned_tables() {
        let fleet: FleetStatus = serde_json::from_str(
            r#"{"endpoints":[{"name":"my-endpoint","status":"Updating","variants":[{"name":"primary",
            "desired_instance_count":3,"in_service_instance_count":1,"queued":4,
            "waiting_for":"capacity of ml.p5.48xlarge","price_per_hour":98.3,
            "scaling":[{"name":"busy","value":0.885,"wants":4,"because":"0.89 is above 0.77 for 3 periods"},
            {"name":"queue","value":9.0,"wants":6,"because":"9.00 is above 5 for 3 periods",
            "held_back":"it wants 6, but 3 is the maximum"}],
            "pools":[{"instance_type":"ml.p5.48xlarge","priority":1,"current_instance_count":1,
            "in_service_instance_count":1},{"instance_type":"ml.g6","priority":2,
            "current_instance_count":1,"in_service_instance_count":0}],
            "instances":[{"id":"i-1","generation":1,"instance_type":"ml.p5.48xlarge","provider":"local",
            "state":"InService","address":"http://127.0.0.1:9001","outstanding":17,"copies":1,"model":"m",
            "asked_at":1000,"reason":null},{"id":"i-2","generation":2,"instance_type":"ml.g6",
            "provider":"local","state":"Draining","address":null,"outstanding":0,"copies":2,"model":"m",
            "asked_at":90061000,"reason":"scale in to 3"}]}]}],
            "capacity_holds":[{"provider":"local","instance_type":"ml.p5.48xlarge","refusals":2,
            "next_try_at":90100000,"reason":"all 1 are taken"}],
            "proxies":[{"id":"p-1","applied":{"epoch":1,"revision":2},"reported_at":90061000},
            {"id":"p-0","applied":{"epoch":1,"revision":2},"reported_at":90061000,"outstanding":3,"draining_until":90122000}]}"#,
        )
        .expect("a status");
        insta::assert_snapshot!("fleet", status(&fleet, Timestamp(90_062_000)));
        insta::assert_snapshot!("empty_fleet", status(&FleetStatus::default(), Timestamp(0)));
    }

    #[test]
    fn an_explanation_shows_times_and_reasons() {
        let mut why: Explanation = serde_json::from_str(
            r#"{"endpoint":"my-endpoint","summary":["primary: 1 of 3 in service"],"events":[
            {"at":1500,"endpoint":"my-endpoint","variant":"primary","instance":"i-2",
            "kind":"launch_refused","message":"insufficient capacity: all 1 are taken"},
            {"at":2500,"endpoint":"my-endpoint","variant":"primary","kind":"scaled","message":"2 to 3"}]}"#,
        )
        .expect("an explanation");
        insta::assert_snapshot!("explanation", explanation(&why));
        why.events.clear();
        insta::assert_snapshot!("empty_explanation", explanation(&why));
    }
}
