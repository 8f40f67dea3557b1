//! One agent in full.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use brindle_config_core::status::{AdminRequest, NodeStatus};

use crate::{
    Outcome,
    cluster::Where,
    out::{Mood, Table, paint},
};

/// Asks it.
pub(super) fn ask(place: &Where, limit: Duration) -> Result<Box<NodeStatus>> {
    Ok(Box::new(place.one::<NodeStatus>(&AdminRequest::Status, limit)?))
}

/// Whether it is well.
pub(super) fn outcome(status: &NodeStatus) -> Outcome {
    let established = status.bgp.peers.iter().all(|p| p.state == "Established");
    let healthy = status.ready && status.reasons.is_empty() && established && status.routes.failed.is_empty();
    if healthy { Outcome::Ok } else { Outcome::Degraded }
}

/// The screen.
pub(super) fn render(s: &NodeStatus, colours: bool) -> String {
    let ready =
        if s.ready { paint("ready", Mood::Good, colours) } else { paint("NOT READY", Mood::Bad, colours) };
    let mut text = format!(
        "{} {} pid {}, up {}, {} KiB resident: {ready}\n",
        s.node,
        s.version,
        s.pid,
        age(s.uptime_ms),
        s.rss_kib
    );
    for reason in &s.reasons {
        let _ = writeln!(text, "  {reason}");
    }
    let blocks: Vec<_> = s.blocks.iter().map(ToString::to_string).collect();
    let _ =
        writeln!(text, "blocks  {}", if blocks.is_empty() { "none".to_owned() } else { blocks.join(" ") });
    let _ = writeln!(
        text,
        "routes  {} wanted, {}, {} writes, {} repairs",
        s.routes.desired,
        if s.routes.in_sync { "in sync" } else { "not in sync yet" },
        s.routes.writes,
        s.routes.repairs
    );
    for failed in &s.routes.failed {
        let _ = writeln!(text, "  refused: {failed}");
    }
    let mtu = if s.encap.mtu == 0 { String::new() } else { format!(", mtu {}", s.encap.mtu) };
    let _ = writeln!(text, "encap   {} ({}){mtu}", s.encap.device, s.encap.why);
    if s.encap.refused > 0 {
        let _ = writeln!(text, "  {} packets refused: outer source is no known node", s.encap.refused);
    }
    let policy = &s.policy;
    if !policy.back_end.is_empty() {
        let _ = writeln!(
            text,
            "policy  {} by {}: {} policies, {} sets",
            if policy.in_sync { "in force" } else { "not in force yet" },
            policy.back_end,
            policy.policies,
            policy.sets
        );
    }
    for problem in policy.problems.iter().chain(&policy.resources) {
        let _ = writeln!(text, "  {problem}");
    }
    let _ = writeln!(
        text,
        "bgp     AS {} id {} listens on {}; {} prefixes",
        s.bgp.asn, s.bgp.router_id, s.bgp.listen, s.bgp.loc_rib
    );
    if !s.bgp.peers.is_empty() {
        let mut table = Table::new(&["PEER", "AS", "STATE", "SINCE", "RCVD", "SENT", "NAME"]);
        for p in &s.bgp.peers {
            table.row([
                p.address.to_string(),
                p.asn.to_string(),
                p.state.clone(),
                age(p.since_ms),
                p.received.to_string(),
                p.advertised.to_string(),
                p.name.clone(),
            ]);
        }
        text += &table.render();
        for p in s.bgp.peers.iter().filter(|p| p.state != "Established") {
            if let Some(error) = &p.last_error {
                let _ = writeln!(text, "{}: {error}", p.name);
            }
        }
    }
    if !s.pods.is_empty() {
        let mut table = Table::new(&["POD", "ADDRESS", "DEVICE", "READY"]);
        for p in &s.pods {
            let addresses: Vec<_> = p.addresses.iter().map(|a| a.addr().to_string()).collect();
            table.row([
                format!("{}/{}", p.namespace, p.name),
                addresses.join(" "),
                p.interface.clone(),
                if p.ready { "yes" } else { "no" }.to_owned(),
            ]);
        }
        text += &table.render();
    }
    text
}

/// A duration at a glance.
pub(super) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=119 => format!("{s}s"),
        120..=7199 => format!("{}m", s / 60),
        7200..=172_799 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::out;

    #[test]
    fn the_screen_of_a_healthy_and_of_an_ill_agent() {
        let text = r#"{"node":"node1","version":"0.1.0","pid":42,"rss_kib":9000,"uptime_ms":61000,"ready":false,
            "reasons":["session with node2 is down; look: brindlectl bgp"],
            "bgp":{"asn":64512,"router_id":"10.77.1.1","listen":"0.0.0.0:179","loc_rib":3,"peers":[
              {"address":"10.77.1.2","name":"node2","kind":"mesh","asn":64512,"state":"Active","since_ms":3000,
               "received":0,"advertised":0,"last_error":"connection refused"},
              {"address":"10.77.2.3","name":"node3","kind":"mesh","asn":64512,"state":"Established",
               "since_ms":7300000,"received":1,"advertised":1,"last_error":null}]},
            "routes":{"in_sync":true,"desired":4,"failed":["add route 1.2.3.0/26: EINVAL"],"writes":4,"repairs":1},
            "encap":{"device":"carrier","why":"kernel has no ipip","mtu":1480,"refused":2},
            "pods":[{"namespace":"default","name":"p1-1","container_id":"c","addresses":["192.168.0.1/32"],
              "interface":"cali123","ready":true}],
            "blocks":["192.168.0.0/26"]}"#;
        let status: NodeStatus = serde_json::from_str(text).unwrap();
        insta::assert_snapshot!(render(&status, false));
        let empty = render(&NodeStatus::default(), false);
        assert!(empty.lines().all(|l| l.chars().count() <= out::WIDTH));
    }
}
