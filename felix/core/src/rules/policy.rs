//! A policy's or profile's rules in one direction as one chain, shared by every endpoint they apply to.
//!
//! What a rule may say and netfilter cannot say in one rule is unfolded: lists of networks become sets, alternatives of
//! ports become several rules. Accepting and passing is a `goto` to a chain that sets the mark and ends, so that each
//! rule of a policy is one rule of the kernel.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use super::{
    iptables,
    ir::{Action, Chain, Family, Match, Ports, Rule},
    names,
    sets::{Member, SetKind, WantedSet, WantedSets, holdable},
};
use crate::policy::active::{self, IpVersion, PortRange, Side};

/// Sets the accept mark.
pub const ALLOW: &str = "brindle-allow";
/// Sets the pass mark.
pub const PASS: &str = "brindle-pass";

/// How rules are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// Places of one match of ports; `usize::MAX` for nftables.
    pub places: usize,
    pub deny: Action,
    pub log_prefix: String,
}

impl Style {
    /// iptables' limits and Felix's defaults.
    pub fn iptables() -> Self {
        Self { places: iptables::MULTIPORT, deny: Action::Drop, log_prefix: "calico-packet: ".into() }
    }
}

impl Style {
    /// The same, with the words of `logPrefix` filled in: `%t` the tier, `%k` the short kind, `%p` namespace and name, `%n` the
    /// name; `%%` is a `%`, and what else begins with one stays.
    #[must_use]
    pub fn naming(&self, tier: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let mut log_prefix = String::new();
        let mut rest = self.log_prefix.chars();
        while let Some(c) = rest.next() {
            let mut ahead = rest.clone();
            let word = match (c, ahead.next()) {
                ('%', Some('t')) => tier,
                ('%', Some('k')) => kind,
                ('%', Some('n')) => name,
                ('%', Some('p')) => {
                    if !namespace.is_empty() {
                        log_prefix.push_str(namespace);
                        log_prefix.push('/');
                    }
                    name
                }
                ('%', Some('%')) => "%",
                _ => {
                    log_prefix.push(c);
                    continue;
                }
            };
            rest = ahead;
            log_prefix.push_str(word);
        }
        Self { log_prefix, ..self.clone() }
    }
}

/// Sets that rules brought with them: name → set.
pub type Anonymous = WantedSets;

pub(super) fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

/// The chain of these rules. `title` stands in the first rule's comment.
pub fn chain(
    family: Family,
    style: &Style,
    name: &str,
    title: &str,
    rules: &[active::Rule],
    sets: &mut Anonymous,
) -> Chain {
    let mut out = Vec::new();
    for rule in rules.iter().filter(|r| r.applies_to(version(family))) {
        unfold(family, style, rule, sets, &mut out);
    }
    match out.first_mut() {
        Some(first) => first.comment = Some(title.to_owned()),
        // So that `iptables -L` says what it is.
        None => out.push(Rule::new(Vec::new(), Action::Return).because(title)),
    }
    Chain::new(name, out)
}

fn unfold(family: Family, style: &Style, rule: &active::Rule, sets: &mut Anonymous, out: &mut Vec<Rule>) {
    let mut common = Vec::new();
    if let Some(p) = rule.protocol {
        common.push(Match::Proto { number: p.0, not: false });
    }
    if let Some(p) = rule.not_protocol {
        common.push(Match::Proto { number: p.0, not: true });
    }
    if !end(family, &rule.src, End::Src, &mut common, sets)
        || !end(family, &rule.dst, End::Dst, &mut common, sets)
    {
        return;
    }
    for (icmp, not) in [(rule.icmp, false), (rule.not_icmp, true)] {
        if let Some(icmp) = icmp {
            if rule.protocol.is_none() {
                common.push(Match::Proto { number: family.icmp(), not: false });
            }
            common.push(Match::Icmp { kind: icmp.kind, code: icmp.code, not });
        }
    }
    let action = match rule.action {
        active::Action::Allow => Action::Goto(ALLOW.into()),
        active::Action::Pass => Action::Goto(PASS.into()),
        active::Action::Deny => style.deny.clone(),
        active::Action::Log => Action::Log { prefix: style.log_prefix.clone() },
    };
    let comment = rule.why.annotations.first().map(|(k, v)| format!("{k}={v}"));
    for src in alternatives(family, style, &rule.src, End::Src) {
        for dst in alternatives(family, style, &rule.dst, End::Dst) {
            let matches = common.iter().cloned().chain(src.clone()).chain(dst).collect();
            out.push(Rule { matches, action: action.clone(), comment: comment.clone() });
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Src,
    Dst,
}

impl End {
    fn net(self, net: IpNet, not: bool) -> Match {
        match self {
            Self::Src => Match::Src { net, not },
            Self::Dst => Match::Dst { net, not },
        }
    }

    fn set(self, set: String, not: bool) -> Match {
        match self {
            Self::Src => Match::SrcSet { set, not },
            Self::Dst => Match::DstSet { set, not },
        }
    }

    fn port_set(self, set: String, not: bool) -> Match {
        match self {
            Self::Src => Match::SrcPortSet { set, not },
            Self::Dst => Match::DstPortSet { set, not },
        }
    }

    fn ports(self, ports: Vec<Ports>, not: bool) -> Match {
        match self {
            Self::Src => Match::SrcPorts { ports, not },
            Self::Dst => Match::DstPorts { ports, not },
        }
    }
}

/// Conditions on one end that need no alternatives. `false`: nothing can match.
fn end(family: Family, side: &Side, end: End, out: &mut Vec<Match>, sets: &mut Anonymous) -> bool {
    let of = |nets: &[IpNet]| -> BTreeSet<IpNet> {
        nets.iter().filter(|n| family.has(n)).map(IpNet::trunc).collect()
    };
    let (yes, no) = (of(&side.nets), of(&side.not_nets));
    if yes.is_empty() && !side.nets.is_empty() {
        return false;
    }
    // iptables takes one network per end and rule.
    let mut free = true;
    for (nets, not) in [(yes, false), (no, true)] {
        match nets.first() {
            None => {}
            Some(net) if nets.len() == 1 && free => {
                free = false;
                out.push(end.net(*net, not));
            }
            Some(_) => out.push(end.set(anonymous(family, &nets, sets), not)),
        }
    }
    let name = |id: &active::IpSetId| names::set(family, &id.0);
    out.extend(side.sets.iter().map(|s| end.set(name(s), false)));
    out.extend(side.not_sets.iter().map(|s| end.set(name(s), true)));
    out.extend(side.ip_port_sets.iter().map(|s| end.port_set(name(s), false)));
    if !side.not_ports.is_empty() {
        out.push(end.ports(ports(&side.not_ports), true));
    }
    out.extend(side.not_named_ports.iter().map(|s| end.port_set(name(s), true)));
    true
}

fn anonymous(family: Family, nets: &BTreeSet<IpNet>, sets: &mut Anonymous) -> String {
    let text: Vec<String> = nets.iter().map(ToString::to_string).collect();
    let name = names::set(family, &format!("nets:{}", text.join(",")));
    let members = holdable(nets.iter().map(|n| Member::Net(*n)), family);
    sets.entry(name.clone()).or_insert_with(|| Arc::new(WantedSet { kind: SetKind::Net, members }));
    name
}

fn ports(ranges: &[PortRange]) -> Vec<Ports> {
    ranges.iter().map(|r| Ports { first: r.first, last: r.last }).collect()
}

/// The ways in which an end's ports can be right, one match each.
fn alternatives(family: Family, style: &Style, side: &Side, end: End) -> Vec<Option<Match>> {
    if side.ports.is_empty() && side.named_ports.is_empty() {
        return vec![None];
    }
    let numbers = iptables::split(&ports(&side.ports), style.places).into_iter().map(|g| end.ports(g, false));
    let named = side.named_ports.iter().map(|s| end.port_set(names::set(family, &s.0), false));
    numbers.chain(named).map(Some).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_of_logs_names_the_policy() {
        let of = |prefix: &str, namespace: &str| {
            let style = Style { log_prefix: prefix.into(), ..Style::iptables() };
            style.naming("security", "np", namespace, "web").log_prefix
        };
        assert_eq!(of("%t %k %p: ", "shop"), "security np shop/web: ");
        assert_eq!(of("%n|%p: ", ""), "web|web: ");
        assert_eq!(of("calico-packet: ", "shop"), "calico-packet: ");
        assert_eq!(of("100%% %x %", "shop"), "100% %x %");
    }
}
