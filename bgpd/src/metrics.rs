//! Prometheus metrics of the speaker. docs/metrics.md describes every name; a test compares.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use brindle_admin::{
    http::{self, Answer},
    metrics::{Metric, Text, process},
};
use brindle_bgpd_core::af::Family;
use brindle_config_core::status::bgp::{Messages, Neighbor};
use tokio::net::TcpListener;

use crate::{
    ask, fault,
    handle::{Handle, Unanswered},
};

/// Every metric of the speaker, in the order of the text.
pub const METRICS: [Metric; 22] = [
    ("brindle_bgp_info", "gauge", "1, with version, AS and router identifier as labels."),
    ("brindle_bgp_peer_state", "gauge", "1 for the state the session is in, 0 for the others."),
    ("brindle_bgp_peer_up", "gauge", "1 if the session is established."),
    ("brindle_bgp_peer_state_seconds", "gauge", "Time in the present state."),
    ("brindle_bgp_peer_sessions_total", "counter", "Sessions that were established."),
    ("brindle_bgp_peer_flaps_total", "counter", "Established sessions that ended."),
    ("brindle_bgp_peer_received_routes", "gauge", "Paths in the Adj-RIB-In."),
    ("brindle_bgp_peer_accepted_routes", "gauge", "Of these, those that may be used."),
    ("brindle_bgp_peer_stale_routes", "gauge", "Of these, those kept over a restart of the peer."),
    ("brindle_bgp_peer_advertised_routes", "gauge", "Routes the peer was told."),
    ("brindle_bgp_peer_waiting_routes", "gauge", "Changes that wait for room in the peer's socket."),
    ("brindle_bgp_peer_messages_total", "counter", "Messages by direction and type."),
    ("brindle_bgp_peer_notifications_total", "counter", "NOTIFICATION messages by direction."),
    ("brindle_bgp_peer_faulty_updates_total", "counter", "UPDATEs with faults, dealt with as RFC 7606 says."),
    ("brindle_bgp_rib_prefixes", "gauge", "Prefixes in the RIB."),
    (
        "brindle_bgp_refused_connections_total",
        "counter",
        "Connections that are no peer's, or without its key.",
    ),
    (
        "brindle_bgp_defects_total",
        "counter",
        "Panics that were outlived: of a session, a question, an archive.",
    ),
    (
        "brindle_bgp_mrt_writing",
        "gauge",
        "1 if the archive of updates is written; absent if none is asked for.",
    ),
    ("brindle_bgp_mrt_lost_records_total", "counter", "Records that are missing in the archive of updates."),
    ("brindle_bgp_loop_turns_total", "counter", "Turns of the speaker task."),
    ("brindle_bgp_loop_busy_seconds_total", "counter", "Time spent in turns of the speaker task."),
    (
        "brindle_bgp_loop_lag_seconds",
        "gauge",
        "Longest turn of the last one to two minutes: the wait of others.",
    ),
];

const STATES: [&str; 6] = ["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"];

/// What one scrape looks at.
struct Scrape {
    neighbors: Vec<Neighbor>,
    asn: u32,
    router_id: String,
    prefixes: [(&'static str, usize); 2],
    refused: u64,
    defects: u64,
    /// Whether it is written, and how many records are missing.
    archive: Option<(bool, u64)>,
    turns: u64,
    busy: Duration,
    lag: Duration,
}

/// Every metric of the speaker and of its process.
///
/// # Errors
/// [`Unanswered`].
pub async fn text(handle: &Handle) -> Result<String, Unanswered> {
    let unusable = ask::unusable(handle).await?;
    let scrape = handle
        .look(move |s| Scrape {
            neighbors: ask::neighbors(s, &unusable),
            asn: s.speaker.map_or(0, |s| s.config().asn),
            router_id: s.speaker.map(|s| s.config().router_id.to_string()).unwrap_or_default(),
            prefixes: Family::ALL
                .map(|f| (ask::family_name(f), s.speaker.map_or(0, |speaker| speaker.prefixes(f)))),
            refused: s.refused,
            defects: s.defects,
            archive: s.archive,
            turns: s.tally.turns.count,
            busy: s.tally.turns.busy,
            lag: s.tally.turns.longest(),
        })
        .await?;
    Ok(render(&scrape))
}

fn render(s: &Scrape) -> String {
    fault::point("bgp.metrics");
    let mut t = Text::new(&METRICS);
    t.metric("brindle_bgp_info");
    let asn = s.asn.to_string();
    t.value(&[("version", env!("CARGO_PKG_VERSION")), ("asn", &asn), ("router_id", &s.router_id)], 1);
    let mut times: HashMap<(&str, Option<IpAddr>), usize> = HashMap::new();
    s.neighbors.iter().for_each(|n| *times.entry((n.name.as_str(), n.address)).or_default() += 1);
    // A series has one value: several speakers at one address are told apart by their ports.
    let address = |n: &Neighbor| match n.address {
        Some(a) if times.get(&(n.name.as_str(), n.address)).is_some_and(|n| *n > 1) => {
            SocketAddr::new(a, n.port).to_string()
        }
        Some(a) => a.to_string(),
        None => String::new(),
    };
    let peers: Vec<(String, &Neighbor)> = s.neighbors.iter().map(|n| (address(n), n)).collect();
    let each = |t: &mut Text, name: &str, value: &dyn Fn(&Neighbor) -> f64| {
        t.metric(name);
        for (address, n) in &peers {
            t.value(&[("peer", &n.name), ("address", address)], value(n));
        }
    };
    t.metric("brindle_bgp_peer_state");
    for (address, n) in &peers {
        for state in STATES {
            t.value(&[("peer", &n.name), ("address", address), ("state", state)], u8::from(n.state == state));
        }
    }
    let up = |n: &Neighbor| n.state == "Established";
    each(&mut t, "brindle_bgp_peer_up", &|n| f64::from(u8::from(up(n))));
    each(&mut t, "brindle_bgp_peer_state_seconds", &|n| Duration::from_millis(n.since_ms).as_secs_f64());
    each(&mut t, "brindle_bgp_peer_sessions_total", &|n| f64::from(n.sessions));
    each(&mut t, "brindle_bgp_peer_flaps_total", &|n| f64::from(n.sessions.saturating_sub(u32::from(up(n)))));
    let by_family = |t: &mut Text, name: &str, value: &dyn Fn(usize, &Neighbor) -> usize| {
        t.metric(name);
        for (address, n) in &peers {
            for (i, f) in n.families.iter().enumerate() {
                t.value(&[("peer", &n.name), ("address", address), ("family", &f.family)], value(i, n));
            }
        }
    };
    let of = |n: &Neighbor, i: usize| n.families.get(i).cloned().unwrap_or_default();
    by_family(&mut t, "brindle_bgp_peer_received_routes", &|i, n| of(n, i).received);
    by_family(&mut t, "brindle_bgp_peer_accepted_routes", &|i, n| of(n, i).accepted);
    by_family(&mut t, "brindle_bgp_peer_stale_routes", &|i, n| of(n, i).stale);
    by_family(&mut t, "brindle_bgp_peer_advertised_routes", &|i, n| of(n, i).advertised);
    by_family(&mut t, "brindle_bgp_peer_waiting_routes", &|i, n| of(n, i).waiting);
    t.metric("brindle_bgp_peer_messages_total");
    for (address, n) in &peers {
        for (direction, m) in [("received", &n.messages_received), ("sent", &n.messages_sent)] {
            for (kind, count) in kinds(m) {
                t.value(
                    &[("peer", &n.name), ("address", address), ("direction", direction), ("type", kind)],
                    count,
                );
            }
        }
    }
    t.metric("brindle_bgp_peer_notifications_total");
    for (address, n) in &peers {
        for (direction, m) in [("received", &n.messages_received), ("sent", &n.messages_sent)] {
            t.value(&[("peer", &n.name), ("address", address), ("direction", direction)], m.notification);
        }
    }
    t.metric("brindle_bgp_peer_faulty_updates_total");
    for (address, n) in &peers {
        t.value(&[("peer", &n.name), ("address", address)], n.faulty_updates);
    }
    t.metric("brindle_bgp_rib_prefixes");
    for (family, n) in s.prefixes {
        t.value(&[("family", family)], n);
    }
    t.metric("brindle_bgp_refused_connections_total");
    t.value(&[], s.refused);
    t.metric("brindle_bgp_defects_total");
    t.value(&[], s.defects);
    t.metric("brindle_bgp_mrt_writing");
    s.archive.iter().for_each(|(writing, _)| t.value(&[], u8::from(*writing)));
    t.metric("brindle_bgp_mrt_lost_records_total");
    s.archive.iter().for_each(|(_, lost)| t.value(&[], lost));
    t.metric("brindle_bgp_loop_turns_total");
    t.value(&[], s.turns);
    t.metric("brindle_bgp_loop_busy_seconds_total");
    t.value(&[], s.busy.as_secs_f64());
    t.metric("brindle_bgp_loop_lag_seconds");
    t.value(&[], s.lag.as_secs_f64());
    t.done() + &process()
}

const fn kinds(m: &Messages) -> [(&'static str, u64); 5] {
    [
        ("open", m.open),
        ("update", m.update),
        ("notification", m.notification),
        ("keepalive", m.keepalive),
        ("route-refresh", m.route_refresh),
    ]
}

/// Listens for scrapes.
///
/// # Errors
/// The system's words, with the address.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    http::listen("--metrics", address).await
}

/// Serves `GET /metrics` until dropped.
pub async fn serve(listener: TcpListener, handle: Handle) {
    let answer = move |path: String| {
        let handle = handle.clone();
        async move {
            (path == "/metrics").then_some(())?;
            Some(match text(&handle).await {
                Ok(text) => Answer::metrics(text),
                Err(e) => Answer::text(false, format!("{e}\n")),
            })
        }
    };
    http::serve(listener, "/metrics", answer).await;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use brindle_admin::metrics::PROCESS;

    use super::*;

    fn scrape() -> Scrape {
        let neighbor = Neighbor {
            address: "192.0.2.1".parse().ok(),
            name: "tor \"1\"\\".into(),
            state: "Established".into(),
            sessions: 3,
            families: vec![brindle_config_core::status::bgp::FamilyState {
                family: "ipv4".into(),
                received: 7,
                accepted: 6,
                ..Default::default()
            }],
            ..Neighbor::default()
        };
        Scrape {
            neighbors: vec![neighbor],
            asn: 64512,
            router_id: "192.0.2.10".into(),
            prefixes: [("ipv4", 7), ("ipv6", 0)],
            refused: 1,
            defects: 0,
            archive: Some((true, 0)),
            turns: 2,
            busy: Duration::from_millis(1500),
            lag: Duration::from_millis(2),
        }
    }

    #[test]
    fn every_documented_metric_exists_and_every_metric_is_documented() {
        let text = render(&scrape());
        let written: BTreeSet<&str> =
            text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
        let documented: BTreeSet<&str> = include_str!("../../docs/metrics.md")
            // What follows are those of other programs.
            .split("\n## ")
            .take(1)
            .flat_map(str::lines)
            .filter_map(|l| l.strip_prefix("| `brindle_"))
            .filter_map(|l| l.split('`').next())
            .collect();
        let written: BTreeSet<&str> = written.iter().filter_map(|n| n.strip_prefix("brindle_")).collect();
        assert_eq!(written, documented);
        assert_eq!(written.len(), METRICS.len() + PROCESS.len());
    }

    #[test]
    fn speakers_at_one_address_have_series_of_their_own() {
        let mut s = scrape();
        let first = &s.neighbors[0];
        let second = Neighbor { port: 1179, ..first.clone() };
        let elsewhere = Neighbor { address: "192.0.2.2".parse().ok(), ..first.clone() };
        s.neighbors.extend([second, elsewhere]);
        let text = render(&s);
        let series: Vec<&str> = text
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.rsplit_once(' '))
            .map(|(s, _)| s)
            .collect();
        let each: BTreeSet<&str> = series.iter().copied().collect();
        assert_eq!(each.len(), series.len());
        assert!(
            text.contains("address=\"192.0.2.1:1179\"} ") && text.contains("address=\"192.0.2.2\"} "),
            "{text}"
        );
    }

    #[test]
    fn labels_are_escaped_and_flaps_are_sessions_that_ended() {
        let text = render(&scrape());
        let line = r#"brindle_bgp_peer_flaps_total{peer="tor \"1\"\\",address="192.0.2.1"} 2"#;
        assert!(text.lines().any(|l| l == line), "{text}");
        assert!(text.contains("brindle_bgp_loop_busy_seconds_total 1.5\n"), "{text}");
        assert!(text.contains(r#"state="Established"} 1"#) && text.contains(r#"state="Idle"} 0"#));
    }
}
