//! Rules as iptables-restore reads them. Every rule carries a tag in its comment: a digest of the chain's name and of all
//! rules up to and including it, so that equal tags mean equal chains.

use std::fmt::Write as _;

use super::{
    ir::{Action, Chain, Dispatch, Family, Hook, Iface, Match, Ports, Rule, Way},
    names::{COMMENT, digest},
};

/// Places of one multiport match.
pub const MULTIPORT: usize = 15;
/// Digits of a tag.
pub const TAG: usize = 16;
/// Longest comment, octets (nftables has room for 128 with the tag).
const MAX_TEXT: usize = 96;

/// A chain in the words of a back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub name: String,
    /// Rules without the chain's name.
    pub lines: Vec<String>,
    /// Their tags.
    pub tags: Vec<String>,
}

/// The tag and the words of a comment, in letters both tools take.
pub(super) fn comment(tag: &str, text: Option<&str>) -> String {
    let mut out = format!("{COMMENT}{tag}");
    if let Some(text) = text {
        let allowed = |c: char| c.is_ascii_alphanumeric() || " _@%+=:,./-".contains(c);
        let clean: String = text.chars().map(|c| if allowed(c) { c } else { '_' }).take(MAX_TEXT).collect();
        let _ = write!(out, "; {clean}");
    }
    out
}

/// Renders rules with a tag chained from `seed`.
pub(super) fn tagged(
    seed: &str,
    rules: &[Rule],
    body: impl Fn(&Rule) -> String,
    line: impl Fn(&str, String) -> String,
) -> (Vec<String>, Vec<String>) {
    let mut last = seed.to_owned();
    let (mut lines, mut tags) = (Vec::with_capacity(rules.len()), Vec::with_capacity(rules.len()));
    for rule in rules {
        let body = body(rule);
        let text = rule.comment.as_deref();
        let tag = digest(&format!("{last}\n{}\n{body}", text.unwrap_or_default()), TAG);
        lines.push(line(&comment(&tag, text), body));
        last.clone_from(&tag);
        tags.push(tag);
    }
    (lines, tags)
}

/// A chain.
pub fn chain(family: Family, chain: &Chain) -> Text {
    let (lines, tags) = tagged(&chain.name, &chain.rules, |r| body(family, r), line);
    Text { name: chain.name.clone(), lines, tags }
}

/// Our rules in a chain of the kernel.
pub fn hook(family: Family, hook: &Hook) -> Text {
    let seed = format!("{} {:?}", hook.chain, hook.place);
    let (lines, tags) = tagged(&seed, &hook.rules, |r| body(family, r), line);
    Text { name: hook.chain.to_owned(), lines, tags }
}

/// A dispatch as a tree of chains: at each level the next letter chooses, so that a packet meets a few rules per level
/// whatever the number of pods.
pub fn dispatch(dispatch: &Dispatch) -> Vec<Chain> {
    let mut out = Vec::new();
    let entries: Vec<(&str, &str)> = dispatch.entries.iter().map(|(d, c)| (&**d, &**c)).collect();
    tree(dispatch, &dispatch.name, &entries, &mut out);
    out
}

/// Up to so many devices stand side by side.
const LEAVES: usize = 4;

fn tree(of: &Dispatch, name: &str, entries: &[(&str, &str)], out: &mut Vec<Chain>) {
    let device = |iface: Iface| match of.way {
        Way::In => Match::In { iface, not: false },
        Way::Out => Match::Out { iface, not: false },
    };
    let exact = |(dev, chain): &(&str, &str)| {
        Rule::new(vec![device(Iface::Exact((*dev).to_owned()))], Action::Goto((*chain).to_owned()))
    };
    let mut rules = Vec::new();
    if entries.len() <= LEAVES {
        rules.extend(entries.iter().map(exact));
    } else {
        let common = common_prefix(entries);
        let mut rest = entries;
        while let Some((first, _)) = rest.first() {
            // Device names are ASCII; one that is not is compared octet by octet all the same.
            let letter = first.as_bytes().get(common).copied();
            let n = rest.iter().take_while(|(d, _)| d.as_bytes().get(common).copied() == letter).count();
            let (group, after) = rest.split_at(n);
            rest = after;
            match (group, letter) {
                ([one], _) => rules.push(exact(one)),
                (_, Some(_)) if first.is_char_boundary(common + 1) => {
                    let prefix = first[..=common].to_owned();
                    let child = super::names::chain(&format!("{}-", of.name), &prefix);
                    rules.push(Rule::new(vec![device(Iface::Prefix(prefix))], Action::Goto(child.clone())));
                    tree(of, &child, group, out);
                }
                (group, _) => rules.extend(group.iter().map(exact)),
            }
        }
    }
    rules.extend(of.otherwise.iter().cloned());
    out.push(Chain::new(name, rules));
}

fn common_prefix(entries: &[(&str, &str)]) -> usize {
    let (Some((a, _)), Some((b, _))) = (entries.first(), entries.last()) else { return 0 };
    // Sorted: what first and last have in common all have.
    a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count()
}

fn line(comment: &str, body: String) -> String {
    format!("-m comment --comment \"{comment}\"{body}")
}

fn body(family: Family, rule: &Rule) -> String {
    let mut out = String::new();
    for m in &rule.matches {
        write_match(&mut out, family, m);
    }
    write_action(&mut out, &rule.action);
    out
}

fn no(not: bool) -> &'static str {
    if not { " !" } else { "" }
}

fn device(iface: &Iface) -> String {
    match iface {
        Iface::Exact(name) => name.clone(),
        Iface::Prefix(prefix) => format!("{prefix}+"),
    }
}

fn port_list(ports: &[Ports]) -> String {
    let text = |p: &Ports| {
        if p.first == p.last { p.first.to_string() } else { format!("{}:{}", p.first, p.last) }
    };
    ports.iter().map(text).collect::<Vec<_>>().join(",")
}

/// A name where iptables has one, since matches of ports want it.
fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "ipv6-icmp".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        n => n.to_string(),
    }
}

fn write_match(out: &mut String, family: Family, m: &Match) {
    // Writing to a String cannot fail.
    let _ = match m {
        Match::In { iface, not } => write!(out, "{} -i {}", no(*not), device(iface)),
        Match::Out { iface, not } => write!(out, "{} -o {}", no(*not), device(iface)),
        Match::Proto { number, not } => write!(out, "{} -p {}", no(*not), protocol(*number)),
        Match::Src { net, not } => write!(out, "{} -s {net}", no(*not)),
        Match::Dst { net, not } => write!(out, "{} -d {net}", no(*not)),
        Match::SrcSet { set, not } => write!(out, " -m set{} --match-set {set} src", no(*not)),
        Match::DstSet { set, not } => write!(out, " -m set{} --match-set {set} dst", no(*not)),
        Match::SrcPortSet { set, not } => write!(out, " -m set{} --match-set {set} src,src", no(*not)),
        Match::DstPortSet { set, not } => write!(out, " -m set{} --match-set {set} dst,dst", no(*not)),
        Match::SrcPorts { ports, not } => {
            let groups = split(ports, MULTIPORT);
            groups.iter().try_for_each(|g| write!(out, " -m multiport{} --sports {}", no(*not), port_list(g)))
        }
        Match::DstPorts { ports, not } => {
            let groups = split(ports, MULTIPORT);
            groups.iter().try_for_each(|g| write!(out, " -m multiport{} --dports {}", no(*not), port_list(g)))
        }
        Match::Icmp { kind, code, not } => {
            let code = code.map(|c| format!("/{c}")).unwrap_or_default();
            match family {
                Family::V4 => write!(out, " -m icmp{} --icmp-type {kind}{code}", no(*not)),
                Family::V6 => write!(out, " -m icmp6{} --icmpv6-type {kind}{code}", no(*not)),
            }
        }
        Match::Mark { value, mask } => write!(out, " -m mark --mark {value:#x}/{mask:#x}"),
        Match::Known => write!(out, " -m conntrack --ctstate RELATED,ESTABLISHED"),
        Match::Invalid => write!(out, " -m conntrack --ctstate INVALID"),
        Match::Dnat { not } => write!(out, " -m conntrack{} --ctstate DNAT", no(*not)),
        Match::ReverseFails => write!(out, " -m rpfilter --validmark --invert"),
        Match::SrcLocal => write!(out, " -m addrtype --src-type LOCAL"),
        Match::DstLocal => write!(out, " -m addrtype --dst-type LOCAL"),
        Match::SrcOfOtherDevice => {
            write!(out, " -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL")
        }
        Match::Rate { count, unit, burst } => {
            write!(out, " -m limit --limit {count}/{unit} --limit-burst {burst}")
        }
    };
}

/// Groups of ports that fit one match each.
pub fn split(ports: &[Ports], places: usize) -> Vec<Vec<Ports>> {
    let mut groups: Vec<Vec<Ports>> = Vec::new();
    let mut free = 0;
    for p in ports {
        match groups.last_mut() {
            Some(group) if p.places() <= free => group.push(*p),
            _ => {
                groups.push(vec![*p]);
                free = places;
            }
        }
        free = free.saturating_sub(p.places());
    }
    groups
}

fn write_action(out: &mut String, action: &Action) {
    let _ = match action {
        Action::Accept => write!(out, " -j ACCEPT"),
        Action::Drop => write!(out, " -j DROP"),
        Action::Reject => write!(out, " -j REJECT"),
        Action::Return => write!(out, " -j RETURN"),
        Action::Jump(chain) => write!(out, " -j {chain}"),
        Action::Goto(chain) => write!(out, " -g {chain}"),
        Action::SetMark { value, mask } => write!(out, " -j MARK --set-xmark {value:#x}/{mask:#x}"),
        Action::Log { prefix } => {
            write!(out, " -j LOG --log-prefix \"{}\" --log-level 5", log_prefix(prefix))
        }
        Action::NoTrack => write!(out, " -j NOTRACK"),
        Action::Masquerade { ports } => {
            write!(out, " -j MASQUERADE{} --random-fully", to_ports(*ports))
        }
        Action::Snat { to, ports } => {
            let ports = ports.map(|p| format!(":{}-{}", p.first, p.last)).unwrap_or_default();
            let to = if to.is_ipv6() && !ports.is_empty() { format!("[{to}]") } else { to.to_string() };
            write!(out, " -j SNAT --to-source {to}{ports} --random-fully")
        }
    };
}

fn to_ports(ports: Option<Ports>) -> String {
    ports.map(|p| format!(" --to-ports {}-{}", p.first, p.last)).unwrap_or_default()
}

/// At most 29 letters (the kernel's limit), none that would end the quotes.
pub(super) fn log_prefix(prefix: &str) -> String {
    prefix
        .chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .filter(|c| !"\"\\".contains(*c))
        .take(29)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(list: &[(u16, u16)]) -> Vec<Ports> {
        list.iter().map(|&(first, last)| Ports { first, last }).collect()
    }

    #[test]
    fn sixteen_ports_take_two_matches_and_a_range_two_places() {
        let sixteen: Vec<Ports> = (1..=16).map(|p| Ports { first: p, last: p }).collect();
        assert_eq!(split(&sixteen, MULTIPORT).iter().map(Vec::len).collect::<Vec<_>>(), [15, 1]);
        let ranges = ports(&[(1, 2); 8]);
        assert_eq!(split(&ranges, MULTIPORT).iter().map(Vec::len).collect::<Vec<_>>(), [7, 1]);
        assert_eq!(split(&[], MULTIPORT).len(), 0);
    }

    #[test]
    fn a_tag_depends_on_every_rule_before_it() {
        let drop = Rule::new(vec![], Action::Drop);
        let known = Rule::new(vec![Match::Known], Action::Accept);
        let a = chain(Family::V4, &Chain::new("x", vec![known.clone(), drop.clone()]));
        let b = chain(Family::V4, &Chain::new("x", vec![known.because("why"), drop]));
        assert_ne!(a.tags[1], b.tags[1]);
        assert!(a.lines[0].ends_with("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"), "{a:?}");
        assert!(b.lines[0].contains("; why\""), "{b:?}");
    }

    #[test]
    fn a_tree_leads_every_device_to_its_chain_in_few_steps() {
        let entries: Vec<(String, String)> =
            (0..1000u64).map(|i| (format!("cali{:011x}", i * 7_919_993_001), format!("fw-{i}"))).collect();
        let mut entries = entries;
        entries.sort();
        let d = Dispatch {
            name: "brindle-from-wl".into(),
            way: Way::In,
            entries: entries.clone(),
            otherwise: vec![],
        };
        let chains = dispatch(&d);
        for (device, target) in entries {
            let (mut at, mut met) = (d.name.clone(), 0);
            let found = loop {
                let chain = chains.iter().find(|c| c.name == at).expect("the chain exists");
                let next = chain.rules.iter().find_map(|r| {
                    met += 1;
                    let Some(Match::In { iface, .. }) = r.matches.first() else { return None };
                    let hit = match iface {
                        Iface::Exact(n) => *n == device,
                        Iface::Prefix(p) => device.starts_with(p.as_str()),
                    };
                    let Action::Goto(to) = &r.action else { return None };
                    hit.then(|| to.clone())
                });
                match next {
                    Some(to) if to.starts_with("fw-") => break to,
                    Some(to) => at = to,
                    None => panic!("{device} leads nowhere"),
                }
            };
            assert_eq!(found, target);
            assert!(met <= 80, "{device}: {met} rules");
        }
    }

    #[test]
    fn what_a_user_wrote_cannot_end_a_quote() {
        assert_eq!(log_prefix("a\"b\\\nc"), "abc");
        assert_eq!(comment("0", Some("x\" -j ACCEPT\n")), "bri:0; x_ -j ACCEPT_");
    }
}
