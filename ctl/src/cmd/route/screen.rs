//! One way as text: each hop with its route, who taught it, direct or tunnel and why, and what is not as intended.

use std::fmt::Write as _;

use brindle_config_core::status::{bgp::BgpPath, path::PathAnswer};

use super::walk::{Fate, Hop, Way};
use crate::{
    lab::progress::wrap,
    out::{Mood, WIDTH, paint},
};

/// Where the text of a hop begins.
const INDENT: usize = 10;

/// Writes a hop's lines under each other, broken at spaces.
fn say(text: &mut String, label: &str, line: &str) {
    for (i, part) in wrap(line, WIDTH - INDENT - 2).into_iter().enumerate() {
        let label = if i == 0 { label } else { "" };
        let more = if i == 0 { "" } else { "  " };
        let _ = writeln!(text, "  {label:<8}{more}{part}");
    }
}

/// The way as text.
pub(super) fn render(way: &Way, flag: &str, colours: bool) -> String {
    let mut text = format!("{} {} -> {} {}\n", way.from.name, way.source, way.to.name, way.destination);
    match (&way.from.device, &way.from.node) {
        (Some(dev), Some(node)) => say(&mut text, "pod", &format!("{} by {dev} to {node}", way.source)),
        (None, Some(_)) => {}
        (_, None) => {
            say(&mut text, "outside", "enters where the outside world sends it; seen from the node it is for")
        }
    }
    for hop in &way.hops {
        let label = if hop.node.chars().count() < INDENT - 2 { hop.node.as_str() } else { "node" };
        if label != hop.node {
            let _ = writeln!(text, "  {}", hop.node);
        }
        one(&mut text, hop, if label == hop.node { label } else { "" }, way, flag, colours);
    }
    let mtu = way.mtu.map(|m| format!(", MTU {m}")).unwrap_or_default();
    let (word, mood) = match way.fate {
        Fate::Delivered => (format!("delivered{mtu}"), Mood::Good),
        Fate::Leaves => (format!("leaves the cluster{mtu}"), Mood::Good),
        Fate::Dropped => ("DROPPED".to_owned(), Mood::Bad),
        Fate::Loop => ("LOOP".to_owned(), Mood::Bad),
        Fate::Unknown => ("UNKNOWN from here on".to_owned(), Mood::Bad),
    };
    let odd = if way.as_intended { "" } else { ", not as intended" };
    let mood = if way.as_intended { mood } else { Mood::Bad };
    let _ = writeln!(text, "  => {}", paint(&format!("{word}{odd}"), mood, colours));
    text
}

fn one(text: &mut String, hop: &Hop, label: &str, way: &Way, flag: &str, colours: bool) {
    let Some(a) = &hop.answer else {
        let why = hop.silence.as_deref().unwrap_or("says nothing");
        say(text, label, &format!("NO ANSWER: {why}"));
        let _ = writeln!(text, "{:INDENT$}next: brindlectl status{flag}", "");
        return;
    };
    match &a.kernel {
        Some(k) => say(text, label, &k.text),
        None => say(text, label, &format!("the kernel has no route to {}", way.destination)),
    }
    if let (Some(_), Some(wanted)) = (&a.difference, &a.wanted) {
        say(text, "", &format!("intended: {wanted}"));
    }
    for line in reasons(a, hop) {
        say(text, "", &line);
    }
    match &a.difference {
        None => {}
        Some(d) => {
            // Broken into lines first: what colours are made of has no width.
            for (i, part) in wrap(&format!("DIFFERS: {d}"), WIDTH - INDENT - 2).into_iter().enumerate() {
                let more = if i == 0 { "" } else { "  " };
                let _ = writeln!(text, "{:INDENT$}{more}{}", "", paint(&part, Mood::Bad, colours));
            }
            let _ = writeln!(text, "{:INDENT$}next: brindlectl status{flag} --node {}", "", hop.node);
        }
    }
}

/// Who taught it, how it was decided, direct or tunnel and why, MTU.
fn reasons(a: &PathAnswer, hop: &Hop) -> Vec<String> {
    let mut lines = Vec::new();
    match (&a.here, &a.wanted) {
        (Some(here), _) if here == "this node" => lines.push("an address of this node".into()),
        (Some(here), _) => lines.push(format!("here is {here}")),
        (None, Some(_)) => lines.extend(taught(&a.paths)),
        (None, None) => lines.push(match a.kernel.as_ref().map(|k| k.protocol) {
            Some(2) => "a subnet of this node (the kernel's own route)".to_owned(),
            Some(p) => format!("not the agent's business: route of protocol {p}"),
            None => "nobody has taught a route".to_owned(),
        }),
    }
    for way in &a.ways {
        let by = if way.mode == "ipip" { format!("ipip by {}", a.tunnel) } else { "direct".to_owned() };
        lines.push(format!("{by} to {}: {}", way.via, way.why));
    }
    if let Some(router) = hop.router {
        lines.push(format!("by the router {router}, which is no node of this cluster"));
    }
    if let Some(k) = &a.kernel {
        let down: Vec<&str> = k.hops.iter().filter(|h| !h.up).map(|h| h.dev.as_str()).collect();
        if !down.is_empty() {
            lines.push(format!("device {} is down", down.join(", ")));
        }
        if let Some(mtu) = k.hops.iter().map(|h| h.mtu).filter(|m| *m > 0).min()
            && k.kind == "unicast"
        {
            let kept = if a.difference.is_none() && a.wanted.is_some() { "; kernel as intended" } else { "" };
            lines.push(format!("mtu {mtu}{kept}"));
        }
    }
    lines
}

/// The speaker's side: from whom, and the step that decided.
fn taught(paths: &[BgpPath]) -> Option<String> {
    let best = paths.iter().find(|p| p.best)?;
    let from = match &best.peer {
        None => "our own block".to_owned(),
        Some(peer) if best.as_path.trim().is_empty() => format!("taught by {peer}"),
        Some(peer) => format!("taught by {peer}, AS path {}", best.as_path),
    };
    let others: Vec<&BgpPath> = paths.iter().filter(|p| !p.best).collect();
    let decided = match others.as_slice() {
        [] => "the only path".to_owned(),
        [other, ..] => {
            let whose = other.peer.as_deref().unwrap_or("our own");
            format!("best of {}: {whose}'s lost by {}", paths.len(), other.why)
        }
    };
    Some(format!("{from}; {decided}{}", if best.stale { "; kept over its restart" } else { "" }))
}
