//! Rules as iptables-restore reads them. Every rule carries a tag in its comment: a digest of the chain's name and of all
//! rules up to and including it, so that equal tags mean equal chains. Rules whose order means nothing have a digest of
//! the chain's name and themselves.

use std::fmt::Write as _;

use brindle_config_core::validate;

use super::{
    ir::{Action, Chain, Dispatch, Family, Hook, Iface, Match, Ports, Rule, Way},
    names::{COMMENT, digest},
};

/// Places of one multiport match.
pub const MULTIPORT: usize = 15;
/// Digits of a tag.
pub const TAG: usize = 16;
/// Room for the matches and the target of most rules.
pub(super) const BODY: usize = 96;
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
    /// The first so many may stand in any order; each of their tags speaks of its own rule alone.
    pub loose: usize,
}

/// The tag and the words of a comment, in letters both tools take.
pub(super) fn comment(tag: &str, text: Option<&str>) -> String {
    let mut out = String::with_capacity(COMMENT.len() + TAG + text.map_or(0, |t| t.len().min(MAX_TEXT) + 2));
    out.push_str(COMMENT);
    out.push_str(tag);
    if let Some(text) = text {
        let allowed = |c: char| c.is_ascii_alphanumeric() || " _@%+=:,./-".contains(c);
        out.push_str("; ");
        out.extend(text.chars().map(|c| if allowed(c) { c } else { '_' }).take(MAX_TEXT));
    }
    out
}

/// Renders rules with a tag chained from `seed`; those of the first `loose` hang on `seed` alone.
pub(super) fn tagged(
    seed: &str,
    rules: &[Rule],
    loose: usize,
    body: impl Fn(&Rule) -> String,
    line: impl Fn(&str, String) -> String,
) -> (Vec<String>, Vec<String>) {
    // There are tens of thousands of rules: one room for all that is digested.
    let mut input = String::new();
    let (mut lines, mut tags) = (Vec::with_capacity(rules.len()), Vec::with_capacity(rules.len()));
    for (i, rule) in rules.iter().enumerate() {
        let body = body(rule);
        let text = rule.comment.as_deref();
        let last = if i > loose { tags.last().map_or(seed, String::as_str) } else { seed };
        input.clear();
        // Writing to a String cannot fail.
        let _ = write!(input, "{last}\n{}\n{body}", text.unwrap_or_default());
        let tag = digest(&input, TAG);
        lines.push(line(&comment(&tag, text), body));
        tags.push(tag);
    }
    (lines, tags)
}

/// A chain.
pub fn chain(family: Family, chain: &Chain) -> Text {
    let (lines, tags) = tagged(&chain.name, &chain.rules, chain.loose, |r| body(family, r), line);
    Text { name: chain.name.clone(), lines, tags, loose: chain.loose }
}

/// Our rules in a chain of the kernel.
pub fn hook(family: Family, hook: &Hook) -> Text {
    let seed = format!("{} {:?}", hook.chain, hook.place);
    let (lines, tags) = tagged(&seed, &hook.rules, 0, |r| body(family, r), line);
    Text { name: hook.chain.to_owned(), lines, tags, loose: 0 }
}

/// A dispatch as a tree of chains: at each level the next letter chooses, so that a packet meets a few rules per level
/// whatever the number of pods. Behind a stem there is always a level by letter, with one device or with hundreds: adding
/// a device adds rules and chains and rewrites none (the kernel waits for a grace period when rules go, not when they
/// come).
pub fn dispatch(dispatch: &Dispatch) -> Vec<Chain> {
    let mut out = Vec::new();
    let entries: Vec<(&str, &str)> = dispatch.entries.iter().map(|(d, c)| (&**d, &**c)).collect();
    let stem = |device: &str| dispatch.stems.iter().find(|s| device.starts_with(s.as_str())).map(String::len);
    // Sorted, so that devices of one stem stand together.
    let mut rules = Vec::new();
    for group in entries.chunk_by(|(a, _), (b, _)| stem(a) == stem(b)) {
        match group.first().and_then(|(first, _)| stem(first)) {
            Some(at) => branches(dispatch, at, group, &mut rules, &mut out),
            // A branch of theirs might catch devices of a stem.
            None if !dispatch.stems.is_empty() => leaves(dispatch, group, usize::MAX, &mut rules, &mut out),
            None => leaves(dispatch, group, LEAVES, &mut rules, &mut out),
        }
    }
    out.push(Chain::choosing(&*dispatch.name, rules, &dispatch.otherwise));
    out
}

/// Octets of a device's name, which leave no room for the mark of a prefix.
const LONGEST: usize = 15;
/// Up to so many devices without a stem stand side by side.
const LEAVES: usize = 4;
/// Up to so many devices stand side by side behind a stem and a letter: two levels serve a thousand pods.
const BRANCH: usize = 64;

fn device_match(way: Way, iface: Iface) -> Match {
    match way {
        Way::In => Match::In { iface, not: false },
        Way::Out => Match::Out { iface, not: false },
    }
}

/// Rules for devices side by side, or, when they are too many, a level by the first letter in which they differ.
fn leaves(of: &Dispatch, entries: &[(&str, &str)], most: usize, rules: &mut Vec<Rule>, out: &mut Vec<Chain>) {
    if entries.len() <= most {
        rules.extend(entries.iter().map(|(dev, chain)| {
            let device = device_match(of.way, Iface::Exact((*dev).to_owned()));
            Rule::new(vec![device], Action::Goto((*chain).to_owned()))
        }));
    } else {
        branches(of, common_prefix(entries), entries, rules, out);
    }
}

/// A chain for each letter at a place of the names.
fn branches(of: &Dispatch, at: usize, entries: &[(&str, &str)], rules: &mut Vec<Rule>, out: &mut Vec<Chain>) {
    // Device names are ASCII; one that is not is compared octet by octet all the same.
    let letter = |device: &str| device.as_bytes().get(at).copied();
    for group in entries.chunk_by(|(a, _), (b, _)| letter(a) == letter(b)) {
        let Some((first, _)) = group.first() else { continue };
        let prefix = first.get(..=at).filter(|p| letter(first).is_some() && p.len() < LONGEST);
        let Some(prefix) = prefix else {
            leaves(of, group, usize::MAX, rules, out);
            continue;
        };
        let child = super::names::chain(&format!("{}-", of.name), prefix);
        let device = device_match(of.way, Iface::Prefix(prefix.to_owned()));
        rules.push(Rule::new(vec![device], Action::Goto(child.clone())));
        let mut inner = Vec::new();
        leaves(of, group, BRANCH, &mut inner, out);
        out.push(Chain::choosing(child, inner, &of.otherwise));
    }
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
    let mut out = String::with_capacity(BODY);
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
        Match::FlowMark { value, mask } => write!(out, " -m connmark --mark {value:#x}/{mask:#x}"),
        Match::Related => write!(out, " -m conntrack --ctstate RELATED"),
        Match::Dnat => write!(out, " -m conntrack --ctstate DNAT"),
        Match::ReverseFails => write!(out, " -m rpfilter --validmark --invert"),
        Match::SrcLocal => write!(out, " -m addrtype --src-type LOCAL"),
        Match::DstLocal => write!(out, " -m addrtype --dst-type LOCAL"),
        Match::SrcOfOtherDevice => {
            write!(out, " -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL")
        }
        Match::OnLink => Ok(()),
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
        Action::Dnat { to } => write!(out, " -j DNAT --to-destination {to}"),
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

/// At most 29 letters (the kernel's limit), none that would end the quotes or that nft takes for a variable in them.
pub(super) fn log_prefix(prefix: &str) -> String {
    prefix.chars().filter(|c| validate::logged(*c)).take(29).collect()
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
            stems: vec!["cali".into()],
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
            assert!(met <= 100, "{device}: {met} rules");
        }
    }

    #[test]
    fn one_more_device_rewrites_no_rule_of_the_others() {
        // Names of pods' devices end in a digest.
        let digest = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let all: Vec<(String, String)> =
            (0..200).map(|i| (format!("cali{:011x}", digest(i)), format!("fw-{i}"))).collect();
        let texts = |n: usize| -> Vec<Text> {
            let mut entries = all.get(..n).unwrap_or_default().to_vec();
            // One whose name has no stem, and one that is nothing but the stem.
            entries.extend([("zz0".to_owned(), "fw-z".to_owned()), ("cali".to_owned(), "fw-c".to_owned())]);
            entries.sort();
            let otherwise = vec![Rule::new(vec![], Action::Drop)];
            let d = Dispatch {
                name: "brindle-from-wl".into(),
                way: Way::In,
                stems: vec!["cali".into()],
                entries,
                otherwise,
            };
            dispatch(&d).iter().map(|c| chain(Family::V4, c)).collect()
        };
        for n in 0..all.len() {
            let after = texts(n + 1);
            for old in texts(n) {
                let new = after.iter().find(|t| t.name == old.name).expect("no chain goes");
                assert!(old.tags.iter().all(|t| new.tags.contains(t)), "{n}: {old:?} {new:?}");
                let end = |t: &Text| t.tags.get(t.loose..).map(<[String]>::to_vec);
                assert_eq!(end(&old), end(new), "what stands behind the choices stays");
            }
        }
    }

    #[test]
    fn what_a_user_wrote_cannot_end_a_quote() {
        assert_eq!(log_prefix("a\"b\\\n$c"), "abc");
        assert_eq!(comment("0", Some("x\" -j ACCEPT\n")), "bri:0; x_ -j ACCEPT_");
    }
}
