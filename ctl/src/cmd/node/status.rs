//! `node status`, as calicoctl draws it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use brindle_config_core::{
    status::{AdminRequest, NodeStatus, PeerStatus},
    time::Now,
};
use serde_json::json;

use super::LIMIT;
use crate::{
    Outcome,
    args::Format,
    cluster::{Silence, Where},
    out::{self, Grid, put, say},
};

/// Asks the agent and shows its sessions.
pub(super) fn status(place: &Where, format: Format) -> Result<Outcome> {
    let answer: Result<NodeStatus, Silence> = place.one(&AdminRequest::Status, LIMIT);
    let status = match answer {
        Ok(status) => status,
        Err(silence) => {
            match format {
                Format::Json => out::json(&json!({ "running": false, "error": silence.to_string() })),
                Format::Table => match silence {
                    Silence::Absent { at, why } => say!(
                        "brindle-node is not running: nobody answers at {at}: {why}; start it, or name its socket with \
                         --socket"
                    ),
                    other => say!("brindle-node does not answer: {other}"),
                },
            }
            return Ok(Outcome::Degraded);
        }
    };
    match format {
        Format::Json => out::json(&json!({ "running": true, "node": status.node, "bgp": status.bgp })),
        Format::Table => {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            put!("{}", render(&status, since_1970));
        }
    }
    let up = status.bgp.peers.iter().all(|p| p.state == "Established");
    Ok(if up { Outcome::Ok } else { Outcome::Degraded })
}

/// The screen. `now`: since 1970.
fn render(s: &NodeStatus, now: Duration) -> String {
    let mut text = format!("brindle-node process is running (pid {}).\n", s.pid);
    if s.bgp.asn == 0 {
        text += "\nThe BGP backend has no identity yet, or is switched off.\n";
        return text;
    }
    for (family, v4) in [("IPv4", true), ("IPv6", false)] {
        let peers: Vec<&PeerStatus> = s.bgp.peers.iter().filter(|p| p.address.is_ipv4() == v4).collect();
        text += &format!("\n{family} BGP status\n");
        if peers.is_empty() {
            text += &format!("No {family} peers found.\n");
            continue;
        }
        let mut grid = Grid::new(&["PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"]);
        for p in peers {
            let kind = match p.kind.as_str() {
                "mesh" => "node-to-node mesh",
                "node" => "node specific",
                other => other,
            };
            let state = match p.state.as_str() {
                "Established" => "up",
                "Idle" => "down",
                _ => "start",
            };
            let error = p.last_error.as_ref().filter(|_| state != "up");
            let info = error.map_or_else(|| p.state.clone(), |e| format!("{} {e}", p.state));
            grid.row([p.address.to_string(), kind.into(), state.into(), clock(p.since_ms, now), info]);
        }
        text += &grid.render();
    }
    text
}

/// When it was, in UTC: the time within a day, else the date, as BIRD writes it.
fn clock(since_ms: u64, now: Duration) -> String {
    let at = now.saturating_sub(Duration::from_millis(since_ms)).as_secs();
    let (y, mo, d, h, mi, s) = Now::from_secs(at).civil();
    if since_ms < 86_400_000 { format!("{h:02}:{mi:02}:{s:02}") } else { format!("{y:04}-{mo:02}-{d:02}") }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::status::BgpStatus;

    use super::*;

    fn peer(address: &str, kind: &str, state: &str, since_ms: u64) -> PeerStatus {
        PeerStatus {
            address: address.parse().unwrap(),
            name: "x".into(),
            kind: kind.into(),
            asn: 64512,
            state: state.into(),
            since_ms,
            received: 0,
            advertised: 0,
            last_error: Some("connection refused".into()),
        }
    }

    #[test]
    fn tables_are_those_of_calicoctl() {
        let peers = vec![
            peer("10.77.1.2", "mesh", "Established", 5_000),
            peer("10.77.1.254", "global", "Active", 7_000),
            peer("10.77.1.9", "node", "Idle", 3 * 86_400_000),
        ];
        let bgp = BgpStatus { asn: 64512, peers, ..BgpStatus::default() };
        let s = NodeStatus { pid: 42, bgp, ..NodeStatus::default() };
        insta::assert_snapshot!(render(&s, Duration::from_secs(1_764_000_000)));
        assert!(render(&NodeStatus::default(), Duration::ZERO).contains("no identity"));
    }

    #[test]
    fn days_have_their_dates() {
        let long_ago = |days: u64| clock(days * 86_400_000, Duration::from_secs(20_090 * 86_400));
        assert_eq!(long_ago(20_090), "1970-01-01");
        assert_eq!(long_ago(20_090 - 19_782), "2024-02-29");
        assert_eq!(long_ago(1), "2025-01-01");
    }
}
