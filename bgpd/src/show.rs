//! Answers of the admin socket as tables for people.

use std::fmt::Write as _;

use brindle_config_core::status::NodeStatus;

use crate::view::RibPath;

/// `brindle-bgpd status`.
pub fn status(s: &NodeStatus) -> String {
    let mut out = format!(
        "brindle-bgpd {}, pid {}, up {}, {} KiB\n",
        s.version,
        s.pid,
        duration(s.uptime_ms),
        s.rss_kib
    );
    if s.ready {
        out.push_str("ready\n");
    }
    for reason in &s.reasons {
        let _ = writeln!(out, "not ready: {reason}");
    }
    let bgp = &s.bgp;
    if bgp.asn == 0 {
        out.push_str("no identity yet: the node is not registered, or has no address\n");
        return out;
    }
    let listen = if bgp.listen.is_empty() { "not listening" } else { &bgp.listen };
    let _ = writeln!(
        out,
        "local AS {}, router id {}, {listen}\n{} prefixes, {} peers\n",
        bgp.asn,
        bgp.router_id,
        bgp.loc_rib,
        bgp.peers.len()
    );
    let mut rows =
        vec![["PEER", "NAME", "AS", "STATE", "SINCE", "RECEIVED", "SENT", "LAST ERROR"].map(String::from)];
    rows.extend(bgp.peers.iter().map(|p| {
        [
            p.address.to_string(),
            p.name.clone(),
            p.asn.to_string(),
            p.state.clone(),
            duration(p.since_ms),
            p.received.to_string(),
            p.advertised.to_string(),
            p.last_error.clone().unwrap_or_default(),
        ]
    }));
    table(&mut out, &rows);
    out
}

/// `brindle-bgpd rib`.
pub fn rib(paths: &[RibPath]) -> String {
    if paths.is_empty() {
        return "no routes\n".into();
    }
    let mut out = String::from("* best, + equal-cost, s stale\n\n");
    let mut rows =
        vec![["", "PREFIX", "NEXT HOP", "FROM", "PREF", "MED", "AS PATH", "WHY"].map(String::from)];
    let number = |n: Option<u32>| n.map_or_else(|| "-".into(), |n| n.to_string());
    rows.extend(paths.iter().map(|p| {
        let mark = |is: bool, c: &'static str| if is { c } else { "" };
        [
            [mark(p.best, "*"), mark(p.multipath && !p.best, "+"), mark(p.stale, "s")].concat(),
            p.prefix.to_string(),
            p.next_hop.map_or_else(|| "-".into(), |h| h.to_string()),
            p.peer.clone().unwrap_or_else(|| "own".into()),
            number(p.local_pref),
            number(p.med),
            [p.as_path.as_str(), p.origin.get(..1).unwrap_or("?")].join(" ").trim().into(),
            p.why.clone(),
        ]
    }));
    table(&mut out, &rows);
    out
}

/// Columns as wide as their widest cell; nothing behind the last.
fn table<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|c| width(c).unwrap_or(0)).collect();
    for row in rows {
        let line =
            row.iter().zip(&widths).map(|(cell, w)| format!("{cell:w$}")).collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// `1d02h`, `3h04m`, `5m06s`, `7.8s`.
fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::status::{BgpStatus, PeerStatus};

    use super::*;

    #[test]
    fn status_is_a_table_with_one_line_per_peer() {
        let peer = |address: &str, state: &str, error: Option<&str>| PeerStatus {
            address: address.parse().unwrap(),
            name: "tor-1".into(),
            kind: "static".into(),
            asn: 64601,
            state: state.into(),
            since_ms: 65_000,
            received: 12,
            advertised: 3,
            last_error: error.map(String::from),
        };
        let text = status(&NodeStatus {
            version: "0.1.0".into(),
            pid: 7,
            uptime_ms: 3_700_000,
            rss_kib: 4096,
            bgp: BgpStatus {
                asn: 64512,
                router_id: "192.0.2.10".into(),
                listen: "0.0.0.0:179".into(),
                peers: vec![
                    peer("192.0.2.1", "Established", None),
                    peer("2001:db8::1", "Active", Some("connection refused")),
                ],
                loc_rib: 12,
            },
            ..NodeStatus::default()
        });
        insta::assert_snapshot!(text, @r"
        brindle-bgpd 0.1.0, pid 7, up 1h01m, 4096 KiB
        local AS 64512, router id 192.0.2.10, 0.0.0.0:179
        12 prefixes, 2 peers

        PEER         NAME   AS     STATE        SINCE  RECEIVED  SENT  LAST ERROR
        192.0.2.1    tor-1  64601  Established  1m05s  12        3
        2001:db8::1  tor-1  64601  Active       1m05s  12        3     connection refused
        ");
    }

    #[test]
    fn routes_show_what_decided() {
        let path = |prefix: &str, peer: Option<&str>, best: bool, why: &str| RibPath {
            prefix: prefix.parse().unwrap(),
            peer: peer.map(String::from),
            next_hop: peer.map(|_| "192.0.2.1".parse().unwrap()),
            best,
            multipath: best,
            stale: false,
            why: why.into(),
            origin: "igp".into(),
            as_path: if peer.is_some() { "64601 1" } else { "" }.into(),
            local_pref: Some(100),
            med: None,
            communities: vec![],
            large_communities: vec![],
            path_id: 0,
            ext_communities: vec![],
            originator_id: None,
            cluster_list: vec![],
        };
        let text = rib(&[
            path("203.0.113.0/24", None, true, "best"),
            path("203.0.113.0/24", Some("tor-1"), false, "an own route is preferred"),
        ]);
        insta::assert_snapshot!(text, @r"
        * best, + equal-cost, s stale

           PREFIX          NEXT HOP   FROM   PREF  MED  AS PATH    WHY
        *  203.0.113.0/24  -          own    100   -    i          best
           203.0.113.0/24  192.0.2.1  tor-1  100   -    64601 1 i  an own route is preferred
        ");
        assert_eq!(rib(&[]), "no routes\n");
    }
}
