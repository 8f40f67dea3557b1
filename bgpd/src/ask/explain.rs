//! `explain PREFIX [to PEER]`: why a prefix is, or is not, received, chosen, installed, in the kernel and advertised.

use std::collections::HashSet;

use brindle_bgpd_core::{
    af::Family,
    rib::Export,
    speaker::{PeerId, PeerStatus, Speaker},
};
use brindle_config_core::status::bgp::{Finding, Topic};
use ipnet::IpNet;

use super::{Trouble, find};
use crate::{
    handle::{Handle, Seen},
    view,
};

/// The findings, in the order in which a route makes its way.
pub(super) async fn explain(
    handle: &Handle,
    prefix: IpNet,
    peer: Option<String>,
) -> Result<Vec<Finding>, Trouble> {
    let to = match peer {
        Some(name) => Some(find(handle, &name).await?),
        None => None,
    };
    // Bounded by the number of neighbors and of paths to one prefix.
    let found = handle.look(move |s| s.speaker.map(|speaker| all(s, speaker, prefix, to.as_deref()))).await?;
    let none = || Trouble::Other("the speaker has no identity yet: no AS, no router id".into());
    let mut found: Vec<Finding> = found.ok_or_else(none)?;
    if let Some(ask) = handle.kernel.0.get() {
        let facts = ask(prefix).await.into_iter();
        let at = found.iter().position(|f| f.topic == Topic::Advertised).unwrap_or(found.len());
        drop(found.splice(at..at, facts.map(|(yes, why)| finding(Topic::Kernel, None, yes, why))));
    }
    Ok(found)
}

fn all(s: &Seen<'_>, speaker: &Speaker, prefix: IpNet, to: Option<&[PeerId]>) -> Vec<Finding> {
    let mut out = received(speaker, prefix);
    out.extend(services(s, prefix));
    out.extend(chosen(speaker, prefix));
    out.extend(installed(s, speaker, prefix));
    let asked: Vec<PeerStatus> =
        speaker.peers().filter(|p| to.is_none_or(|ids| ids.contains(&p.id))).collect();
    let family = Family::of(&prefix);
    // A node has a session for each family: only the one that could tell it is worth a word.
    let able: HashSet<&str> =
        asked.iter().filter(|p| carries(speaker, p, family)).map(|p| p.name.as_str()).collect();
    for p in asked.iter().filter(|p| !able.contains(p.name.as_str()) || carries(speaker, p, family)) {
        out.push(advertised(speaker, prefix, p));
    }
    out
}

/// Whether routes of a family are told on a session; while there is none, whether they would be.
fn carries(speaker: &Speaker, p: &PeerStatus, family: Family) -> bool {
    match &p.session {
        Some(session) => session.families[family],
        None => speaker.peer_config(p.id).is_some_and(|c| c.families.contains(&family)),
    }
}

fn finding(topic: Topic, peer: Option<&str>, yes: bool, why: impl Into<String>) -> Finding {
    Finding { topic, peer: peer.map(String::from), yes, why: why.into() }
}

/// Who has sent it; and who could not have.
fn received(speaker: &Speaker, prefix: IpNet) -> Vec<Finding> {
    let names = view::names(speaker);
    let mut out = Vec::new();
    for path in speaker.rib(Some(prefix)) {
        let from = path.from.map(|id| names.get(&id).map_or("removed peer", String::as_str));
        let hop = path.next_hop.map_or_else(String::new, |h| format!(" via {h}"));
        match (from, path.invalid) {
            (None, _) => out.push(finding(Topic::Received, None, true, "our own route")),
            (Some(name), None) => {
                let stale = if path.stale { ", kept from before its restart" } else { "" };
                out.push(finding(Topic::Received, Some(name), true, format!("accepted{hop}{stale}")));
            }
            (Some(name), Some(_)) => {
                let why = format!("rejected{hop}: {}", path.why());
                out.push(finding(Topic::Received, Some(name), false, why));
            }
        }
    }
    if out.is_empty() {
        out.push(finding(Topic::Received, None, false, "no peer has sent it, and it is no route of our own"));
        // An address of ours is announced as part of its block.
        if let Some((net, from)) = speaker.covering(prefix).first() {
            let why = match from {
                None => format!("it is inside {net}, which we announce as one (aggregation)"),
                Some(id) => {
                    let name = names.get(id).map_or("a removed peer", String::as_str);
                    format!("packets follow {net}, the longest prefix around it, from {name}")
                }
            };
            out.push(finding(Topic::Received, None, false, why));
        }
        for p in speaker.peers().filter(|p| p.session.is_none()) {
            out.push(finding(Topic::Received, Some(&p.name), false, down(&p)));
        }
    }
    out
}

/// What service the prefix belongs to, and why we announce it or not.
fn services(s: &Seen<'_>, prefix: IpNet) -> Vec<Finding> {
    let first = s.services.partition_point(|v| v.prefix < prefix);
    let of = s.services.iter().skip(first).take_while(|v| v.prefix == prefix);
    of.map(|v| {
        let whose = v.service.as_ref().map_or_else(String::new, |k| format!("{} of {k}: ", v.source));
        finding(Topic::Service, None, v.why.announces(), format!("{whose}{v}"))
    })
    .collect()
}

/// Why there is no session.
fn down(p: &PeerStatus) -> String {
    let error = p.last_error.as_ref().unwrap_or(&p.cause);
    format!("peer down: {}, {error}", p.state)
}

fn chosen(speaker: &Speaker, prefix: IpNet) -> Vec<Finding> {
    let names = view::names(speaker);
    let name = |id: Option<PeerId>| match id {
        None => "own".to_owned(),
        Some(id) => names.get(&id).cloned().unwrap_or_else(|| "removed peer".into()),
    };
    let paths: Vec<_> = speaker.rib(Some(prefix)).collect();
    paths
        .iter()
        .map(|p| {
            let why = match (p.best, p.multipath) {
                (true, _) if paths.len() == 1 => "best: the only path".to_owned(),
                (true, _) => format!("best of {} paths", paths.len()),
                (false, true) => format!("equal cost, used beside the best; {}", p.why()),
                (false, false) => p.why(),
            };
            finding(Topic::Chosen, Some(&name(p.from)), p.best, why)
        })
        .collect()
}

fn installed(s: &Seen<'_>, speaker: &Speaker, prefix: IpNet) -> Vec<Finding> {
    let paths: Vec<_> = speaker.rib(Some(prefix)).collect();
    if paths.is_empty() {
        return Vec::new();
    }
    let (yes, why) = match paths.iter().find(|p| p.best) {
        Some(p) if p.from.is_none() => {
            (false, "our own route leads to this machine, not to a next hop".into())
        }
        Some(_) if let Some(v) = s.services.iter().find(|v| v.covers(&prefix)) => (
            false,
            format!(
                "inside {} of {}: packets for services are this node's own business (kube-proxy)",
                v.prefix,
                v.source.field()
            ),
        ),
        Some(_) => {
            let hops: Vec<String> =
                paths.iter().filter(|p| p.multipath).filter_map(|p| Some(p.next_hop?.to_string())).collect();
            let hops = hops.join(" and ");
            if s.programs {
                (true, format!("handed to route programming via {hops}"))
            } else {
                (false, format!("this speaker programs no kernel routes; it would be via {hops}"))
            }
        }
        None if speaker.deferred() => (false, "selection waits for the other peers after our restart".into()),
        None => (false, "no path may be used".into()),
    };
    vec![finding(Topic::Installed, None, yes, why)]
}

fn advertised(speaker: &Speaker, prefix: IpNet, p: &PeerStatus) -> Finding {
    let (yes, why) = match speaker.export(p.id, prefix) {
        None => (false, down(p)),
        Some(Export::Told(set, hop)) => {
            let path = view::as_path(&set.as_path);
            let path = if path.is_empty() { "empty AS path".to_owned() } else { format!("AS path {path}") };
            (true, format!("with next hop {}, {path}", hop.map_or_else(|| "ours".into(), |h| h.to_string())))
        }
        Some(Export::Waiting) => (false, "it is queued: the peer's socket has no room yet".into()),
        Some(Export::Withheld(why)) => (false, why.to_string()),
    };
    finding(Topic::Advertised, Some(&p.name), yes, why)
}
