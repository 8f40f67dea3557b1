//! Rules as `nft -f` reads them. All four tables of iptables become chains of one table `brindle` per family, with the
//! old table's name in front.

use std::fmt::Write as _;

use super::{
    iptables::{BODY, Text, log_prefix, tagged},
    ir::{Action, Chain, Dispatch, Family, Hook, Iface, Match, Place, Ports, Rule, Table, Way},
};

/// Our table, in `ip` and in `ip6`.
pub const TABLE: &str = "brindle";

/// `ip` or `ip6`.
pub fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// A chain's name in our table.
pub fn name(table: Table, chain: &str) -> String {
    format!("{table}-{chain}")
}

/// Type, hook and priority of the chain that stands for one of the kernel's.
pub fn base(table: Table, chain: &str) -> String {
    let kind = if table == Table::Nat { "nat" } else { "filter" };
    // The values of iptables; nat after kube-proxy's, as iptables' appended rules are.
    let priority = match (table, chain) {
        (Table::Raw, _) => -300,
        (Table::Mangle, _) => -150,
        (Table::Nat, "PREROUTING" | "OUTPUT") => -90,
        (Table::Nat, _) => 110,
        (Table::Filter, _) => 0,
    };
    format!("type {kind} hook {} priority {priority};", chain.to_ascii_lowercase())
}

/// A chain.
pub fn chain(fam: Family, table: Table, chain: &Chain) -> Text {
    let name = name(table, &chain.name);
    let (lines, tags) = tagged(&name, &chain.rules, 0, |r| body(fam, table, r), line);
    Text { name, lines, tags, loose: 0 }
}

/// The chain that stands for one of the kernel's: what is inserted first, then what is appended.
pub fn hooks(fam: Family, table: Table, chain: &str, hooks: &[&Hook]) -> Text {
    let of = |place| hooks.iter().filter(move |h| h.place == place).flat_map(|h| h.rules.iter().cloned());
    let rules: Vec<Rule> = of(Place::First).chain(of(Place::Last)).collect();
    let name = name(table, chain);
    let (lines, tags) = tagged(&name, &rules, 0, |r| body(fam, table, r), line);
    Text { name, lines, tags, loose: 0 }
}

/// A dispatch: a verdict map and the chain that asks it.
pub fn dispatch(fam: Family, table: Table, d: &Dispatch) -> (VerdictMap, Text) {
    let own = name(table, &d.name);
    let map = VerdictMap {
        name: format!("{own}-map"),
        elements: d.entries.iter().map(|(dev, chain)| (dev.clone(), name(table, chain))).collect(),
    };
    let mut text = self::chain(fam, table, &Chain::new(&*d.name, d.otherwise.clone()));
    let key = match d.way {
        Way::In => "iifname",
        Way::Out => "oifname",
    };
    // Without a tag: it never changes, and stands before the others.
    text.lines.insert(0, format!("{key} vmap @{} comment \"bri:map\"", map.name));
    text.tags.insert(0, "map".into());
    (map, text)
}

/// A verdict map by device name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerdictMap {
    pub name: String,
    /// Device → chain.
    pub elements: std::collections::BTreeMap<String, String>,
}

fn line(comment: &str, body: String) -> String {
    format!("{} comment \"{comment}\"", body.trim_start())
}

fn body(fam: Family, table: Table, rule: &Rule) -> String {
    let mut out = String::with_capacity(BODY);
    for m in &rule.matches {
        write_match(&mut out, fam, m);
    }
    write_action(&mut out, table, &rule.action);
    out
}

fn ne(not: bool) -> &'static str {
    if not { "!= " } else { "" }
}

fn device(iface: &Iface) -> String {
    match iface {
        Iface::Exact(name) => format!("\"{name}\""),
        Iface::Prefix(prefix) => format!("\"{prefix}*\""),
    }
}

fn port_set(ports: &[Ports]) -> String {
    // Overlapping ranges are refused in a set: merge them.
    let mut sorted: Vec<Ports> = ports.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<Ports> = Vec::new();
    for p in sorted {
        match merged.last_mut() {
            Some(last) if u32::from(p.first) <= u32::from(last.last) + 1 => last.last = last.last.max(p.last),
            _ => merged.push(p),
        }
    }
    let text = |p: &Ports| {
        if p.first == p.last { p.first.to_string() } else { format!("{}-{}", p.first, p.last) }
    };
    format!("{{ {} }}", merged.iter().map(text).collect::<Vec<_>>().join(", "))
}

fn write_match(out: &mut String, fam: Family, m: &Match) {
    let ip = family(fam);
    // Writing to a String cannot fail.
    let _ = match m {
        Match::In { iface, not } => write!(out, " iifname {}{}", ne(*not), device(iface)),
        Match::Out { iface, not } => write!(out, " oifname {}{}", ne(*not), device(iface)),
        Match::Proto { number, not } => write!(out, " meta l4proto {}{number}", ne(*not)),
        Match::Src { net, not } => write!(out, " {ip} saddr {}{net}", ne(*not)),
        Match::Dst { net, not } => write!(out, " {ip} daddr {}{net}", ne(*not)),
        Match::SrcSet { set, not } => write!(out, " {ip} saddr {}@{set}", ne(*not)),
        Match::DstSet { set, not } => write!(out, " {ip} daddr {}@{set}", ne(*not)),
        Match::SrcPortSet { set, not } => {
            write!(out, " {ip} saddr . meta l4proto . th sport {}@{set}", ne(*not))
        }
        Match::DstPortSet { set, not } => {
            write!(out, " {ip} daddr . meta l4proto . th dport {}@{set}", ne(*not))
        }
        Match::SrcPorts { ports, not } => write!(out, " th sport {}{}", ne(*not), port_set(ports)),
        Match::DstPorts { ports, not } => write!(out, " th dport {}{}", ne(*not), port_set(ports)),
        Match::Icmp { kind, code, not } => {
            let icmp = if fam == Family::V4 { "icmp" } else { "icmpv6" };
            match code {
                None => write!(out, " {icmp} type {}{kind}", ne(*not)),
                Some(code) => {
                    write!(out, " {icmp} type . {icmp} code {}{{ {kind} . {code} }}", ne(*not))
                }
            }
        }
        Match::Mark { value, mask } => write!(out, " meta mark & {mask:#x} == {value:#x}"),
        Match::Known => write!(out, " ct state established,related"),
        Match::Invalid => write!(out, " ct state invalid"),
        Match::FlowMark { value, mask } => write!(out, " ct mark & {mask:#x} == {value:#x}"),
        Match::Related => write!(out, " ct state related"),
        Match::Dnat => write!(out, " ct status dnat"),
        Match::ReverseFails => write!(out, " fib saddr . mark . iif oif 0"),
        Match::SrcLocal => write!(out, " fib saddr type local"),
        Match::DstLocal => write!(out, " fib daddr type local"),
        Match::SrcOfOtherDevice => write!(out, " fib saddr . oif type != local fib saddr type local"),
        Match::OnLink => write!(out, " ip6 hoplimit 255"),
        Match::Rate { count, unit, burst } => {
            write!(out, " limit rate {count}/{unit} burst {burst} packets")
        }
    };
}

fn write_action(out: &mut String, table: Table, action: &Action) {
    let _ = match action {
        Action::Accept => write!(out, " accept"),
        Action::Drop => write!(out, " drop"),
        Action::Reject => write!(out, " reject"),
        Action::Return => write!(out, " return"),
        Action::Jump(chain) => write!(out, " jump {}", name(table, chain)),
        Action::Goto(chain) => write!(out, " goto {}", name(table, chain)),
        Action::SetMark { value, mask } => {
            write!(out, " meta mark set meta mark & {:#010x} ^ {value:#010x}", !mask)
        }
        Action::Log { prefix } => write!(out, " log prefix \"{}\" level notice", log_prefix(prefix)),
        Action::NoTrack => write!(out, " notrack"),
        Action::Masquerade { ports } => {
            let ports = ports.map(|p| format!(" to :{}-{}", p.first, p.last)).unwrap_or_default();
            write!(out, " masquerade{ports} fully-random")
        }
        Action::Dnat { to } => write!(out, " dnat to {to}"),
        Action::Snat { to, ports } => {
            let ports = ports.map(|p| format!(":{}-{}", p.first, p.last)).unwrap_or_default();
            let to = if to.is_ipv6() && !ports.is_empty() { format!("[{to}]") } else { to.to_string() };
            write!(out, " snat to {to}{ports} fully-random")
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ports_become_one_range() {
        let ports = [(80, 90), (85, 95), (96, 96), (1, 1)].map(|(first, last)| Ports { first, last });
        assert_eq!(port_set(&ports), "{ 1, 80-96 }");
    }
}
