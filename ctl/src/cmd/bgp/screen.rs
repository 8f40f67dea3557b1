//! Answers as screens of 80 columns.

use std::{fmt::Write as _, net::SocketAddr};

use brindle_config_core::status::bgp::{
    BgpEvent, BgpPath, Cleared, Finding, Neighbor, ServiceRoute, SpeakerFacts, Topic,
};

use crate::out::{Mood, Table, WIDTH, paint};

/// The speaker in one line.
pub(super) fn speaker(s: &SpeakerFacts) -> String {
    if s.asn == 0 {
        return "no identity yet: the node is not registered, or has no address\n".into();
    }
    let cluster = s.cluster_id.as_ref().map(|id| format!(", cluster id {id}")).unwrap_or_default();
    format!(
        "AS {}, router id {}{cluster}, {}\n{} of {} sessions established, {} prefixes\n",
        s.asn,
        s.router_id,
        if s.listen.is_empty() { "not listening".to_owned() } else { format!("listens on {}", s.listen) },
        s.established,
        s.peers,
        s.prefixes
    )
}

/// One line per peer.
pub(super) fn summary(peers: &[Neighbor], terminal: bool) -> String {
    let mut table = Table::new(&["PEER", "AS", "STATE", "SINCE", "RCVD", "ACC", "ADV", "LAST ERROR"]);
    for p in peers {
        // A node has a session for each family, and several speakers may be at one address.
        let namesakes: Vec<&Neighbor> = peers.iter().filter(|o| o.name == p.name).collect();
        let who = match (p.address, namesakes.iter().filter(|o| o.address == p.address).count()) {
            (Some(address), 1) if namesakes.len() > 1 => format!("{} {address}", p.name),
            (Some(address), 2..) => format!("{} {}", p.name, SocketAddr::new(address, p.port)),
            _ => p.name.clone(),
        };
        table.row([
            who,
            p.asn.to_string(),
            p.state.clone(),
            age(p.since_ms),
            p.received.to_string(),
            p.accepted.to_string(),
            p.advertised.to_string(),
            // A session that is up and carries nothing is worse than one that ended some time.
            p.note.clone().or_else(|| p.last_error.clone()).unwrap_or_default(),
        ]);
    }
    let mut text = String::new();
    for line in table.render().lines() {
        // A program that reads on has no margin.
        let line = if terminal { cut(line, WIDTH) } else { line.trim_end().to_owned() };
        let line = match line.find("Established") {
            Some(_) => line.replacen("Established", &paint("Established", Mood::Good, terminal), 1),
            None => ["Active", "Connect", "Idle", "OpenSent", "OpenConfirm"].iter().fold(line, |l, s| {
                l.replacen(&format!("  {s} "), &format!("  {} ", paint(s, Mood::Bad, terminal)), 1)
            }),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// A label and words, broken at the right margin.
pub(super) fn field(text: &mut String, label: &str, words: &str) {
    wrapped(text, &format!("  {label:<10} "), words);
}

/// Words behind a head, broken at the right margin and indented under their beginning.
fn wrapped(text: &mut String, head: &str, words: &str) {
    let indent = head.chars().count();
    let mut line = head.to_owned();
    let mut used = indent;
    for word in words.split(' ') {
        let len = word.chars().count();
        if used > indent && used + 1 + len > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(indent);
            used = indent;
        }
        if used > indent {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += len;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Routes as a table; the headings only where they are wanted, so that a long table can be shown in pieces.
pub(super) fn routes(paths: &[BgpPath], headings: bool, decided: bool) -> String {
    let mut table = Table::new(&["", "PREFIX", "NEXT HOP", "FROM", "PREF", "MED", "AS PATH, WHY NOT"]);
    let number = |n: Option<u32>| n.map_or_else(|| "-".into(), |n| n.to_string());
    for p in paths {
        let path = [p.as_path.as_str(), p.origin.get(..1).unwrap_or("?")].join(" ");
        let why = if decided && !p.best { format!(" ({})", p.why) } else { String::new() };
        table.row([
            mark(p),
            p.prefix.to_string(),
            p.next_hop.map_or_else(|| "-".into(), |h| h.to_string()),
            p.peer.clone().unwrap_or_else(|| "own".into()),
            number(p.local_pref),
            number(p.med),
            format!("{}{why}", path.trim()),
        ]);
    }
    let all = table.render();
    let lines = all.lines().skip(usize::from(!headings));
    lines.map(|l| cut(l, WIDTH) + "\n").collect()
}

/// What the marks mean.
pub(super) const MARKS: &str = "* best, = equal cost, s kept over a restart\n";

fn mark(p: &BgpPath) -> String {
    let is = |yes: bool, c: &'static str| if yes { c } else { "" };
    [is(p.best, "*"), is(p.multipath && !p.best, "="), is(p.stale, "s")].concat()
}

/// Every path to one prefix, in detail.
pub(super) fn candidates(paths: &[BgpPath]) -> String {
    let Some(first) = paths.first() else { return "no such route\n".into() };
    let mut text = format!("{}, {}\n", first.prefix, count(paths.len(), "path"));
    for p in paths {
        let via = p.next_hop.map_or_else(|| "our address".into(), |h| h.to_string());
        let from = p.peer.as_deref().unwrap_or("our own configuration");
        let _ = writeln!(text, "{:<3}via {via} from {from}", mark(p));
        let path = if p.as_path.is_empty() { "empty".to_owned() } else { p.as_path.clone() };
        let mut facts = vec![format!("AS path {path}"), format!("origin {}", p.origin)];
        facts.extend(p.local_pref.map(|n| format!("LOCAL_PREF {n}")));
        facts.extend(p.med.map(|n| format!("MED {n}")));
        facts.extend((p.path_id != 0).then(|| format!("path id {}", p.path_id)));
        facts.extend(p.originator_id.as_ref().map(|id| format!("originator {id}")));
        if !p.cluster_list.is_empty() {
            facts.push(format!("clusters {}", p.cluster_list.join(" ")));
        }
        wrapped(&mut text, "     ", &facts.join(", "));
        let communities: Vec<&str> = p
            .communities
            .iter()
            .chain(&p.large_communities)
            .chain(&p.ext_communities)
            .map(String::as_str)
            .collect();
        if !communities.is_empty() {
            wrapped(&mut text, "     communities ", &communities.join(" "));
        }
        let stale = if p.stale { ", kept over a restart of the peer" } else { "" };
        let lost = if p.best { "" } else { "not chosen: " };
        wrapped(&mut text, "     ", &format!("{lost}{}{stale}", p.why));
    }
    text
}

/// `explain`.
pub(super) fn findings(prefix: &str, all: &[Finding]) -> String {
    let mut text = format!("{prefix}\n");
    let mut last = None;
    for f in all {
        let topic = match f.topic {
            Topic::Received => "received",
            Topic::Service => "service",
            Topic::Chosen => "chosen",
            Topic::Installed => "installed",
            Topic::Kernel => "kernel",
            Topic::Advertised => "advertised",
        };
        if last != Some(f.topic) {
            let _ = writeln!(text, "{topic}");
            last = Some(f.topic);
        }
        let yes = if f.yes { "yes" } else { "no" };
        let who = match (&f.peer, f.topic) {
            (Some(p), Topic::Advertised) => format!("to {p}: "),
            (Some(p), Topic::Received | Topic::Chosen) => format!("from {p}: "),
            (Some(p), Topic::Installed | Topic::Service | Topic::Kernel) => format!("{p}: "),
            (None, _) => String::new(),
        };
        wrapped(&mut text, &format!("  {yes:<4} "), &format!("{who}{}", f.why));
    }
    text
}

/// `services`.
pub(super) fn services(all: &[ServiceRoute], headings: bool) -> String {
    let mut table = Table::new(&["PREFIX", "SERVICE", "ANNOUNCED", "WHY"]);
    for s in all {
        let whose = s.service.as_deref().map_or_else(|| format!("({})", s.source), str::to_owned);
        let yes = if s.announced { "yes" } else { "no" };
        table.row([s.prefix.to_string(), whose, yes.to_owned(), s.why.clone()]);
    }
    let all = table.render();
    all.lines().skip(usize::from(!headings)).map(|l| l.trim_end().to_owned() + "\n").collect()
}

/// One event.
pub(super) fn event(e: &BgpEvent) -> String {
    let of_day = e.at_ms / 1000 % 86_400;
    let time =
        format!("{:02}:{:02}:{:02}.{:03}", of_day / 3600, of_day / 60 % 60, of_day % 60, e.at_ms % 1000);
    format!("{time}  {:<8} {:<18} {}\n", e.kind, e.subject, e.what)
}

/// `clear`.
pub(super) fn cleared(all: &[Cleared]) -> String {
    let mut text = String::new();
    for c in all {
        wrapped(
            &mut text,
            &format!("{:<16} {:<7} ", c.peer, if c.done { "cleared" } else { "NOT" }),
            &c.what,
        );
    }
    if all.is_empty() {
        text.push_str("no peers\n");
    }
    text
}

/// `1 path`, `2 paths`.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width - 1).collect::<String>() + "…"
}

/// `1d02h`, `3h04m`, `5m06s`, `7s`.
pub(super) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_one_name_are_told_apart_by_address_and_by_port() {
        let peer = |name: &str, address: &str, port| Neighbor {
            name: name.into(),
            address: address.parse().ok(),
            port,
            state: "Active".into(),
            ..Neighbor::default()
        };
        let all = [
            peer("node-b", "10.0.0.2", 179),
            peer("node-b", "fd00::2", 179),
            peer("rack", "10.0.0.3", 179),
            peer("rack", "10.0.0.3", 1790),
            peer("alone", "10.0.0.4", 179),
        ];
        let text = summary(&all, false);
        let names: Vec<&str> = text.lines().skip(1).filter_map(|l| l.split("  ").next()).collect();
        assert_eq!(
            names,
            ["node-b 10.0.0.2", "node-b fd00::2", "rack 10.0.0.3:179", "rack 10.0.0.3:1790", "alone"]
        );
    }
}
