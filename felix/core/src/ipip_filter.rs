//! The filter of kernel ipip: packets of IP protocol 4 whose outer source is no known node are dropped and counted. The
//! kernel's tunnel takes packets from anybody; the carrier filters by itself.
//!
//! Text in, text out: what `iptables-save` and `ipset save` said decides whether anything is to be written, and what.
//! Ours are the chain [`CHAIN`], the rules that jump to it, and the set [`SET`] with its [`SHADOW`]; nothing else is
//! looked at or touched.

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr};

use ipnet::Ipv4Net;

/// The chain, in the filter table.
pub const CHAIN: &str = "brindle-ipip";
/// The set of addresses packets are taken from.
pub const SET: &str = "brindle-ipip-nodes";
/// Where a new content is prepared, to be put in force at once.
pub const SHADOW: &str = "brindle-ipip-next";

/// The chain's rules as `iptables-save` prints them: known nodes first, then the drop that counts the others.
fn rules() -> [String; 2] {
    [
        format!("-A {CHAIN} -m set --match-set {SET} src -j ACCEPT"),
        format!("-A {CHAIN} -m comment --comment \"outer source is no known node\" -j DROP"),
    ]
}

/// Without counters (`-c` puts them in front, in brackets).
fn bare(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
        Some((_, rest)) => rest,
        None => line,
    }
}

/// Jumps to the chain in `iptables-save`'s words.
fn jumps(saved: &str) -> Vec<&str> {
    let to = format!(" -j {CHAIN}");
    saved.lines().map(bare).filter(|l| l.starts_with("-A ") && l.ends_with(&to)).collect()
}

fn in_chain(saved: &str) -> Vec<&str> {
    let of = format!("-A {CHAIN} ");
    saved.lines().map(bare).filter(|l| l.starts_with(&of)).collect()
}

fn exists(saved: &str) -> bool {
    let declared = format!(":{CHAIN} ");
    saved.lines().any(|l| l.starts_with(&declared))
}

/// What `iptables-restore --noflush` is to be told so that the filter is in place; none when it is. `saved` is what
/// `iptables-save -t filter` said.
pub fn install(saved: &str) -> Option<String> {
    let jumps = jumps(saved);
    let [jump] = jumps.as_slice() else { return Some(script(&jumps)) };
    let right = in_chain(saved) == rules() && jump.starts_with("-A INPUT ") && jump.contains(" -p ");
    (!right).then(|| script(&[jump]))
}

fn script(jumps: &[&str]) -> String {
    // Naming the chain empties it; all of this takes force at once.
    let mut text = format!("*filter\n:{CHAIN} - [0:0]\n");
    remove_jumps(jumps, &mut text);
    for rule in rules() {
        text += &rule;
        text.push('\n');
    }
    text += &format!("-I INPUT 1 -p 4 -j {CHAIN}\nCOMMIT\n");
    text
}

fn remove_jumps(jumps: &[&str], text: &mut String) {
    for jump in jumps {
        let _ = writeln!(text, "-D {}", jump.trim_start_matches("-A "));
    }
}

/// What `iptables-restore --noflush` is to be told so that nothing of the filter is left; none when nothing is.
pub fn remove(saved: &str) -> Option<String> {
    let jumps = jumps(saved);
    if jumps.is_empty() && !exists(saved) {
        return None;
    }
    let mut text = format!("*filter\n:{CHAIN} - [0:0]\n");
    remove_jumps(&jumps, &mut text);
    text += &format!("-X {CHAIN}\nCOMMIT\n");
    Some(text)
}

/// What `ipset restore` is to be told so that the sets are gone that `ipset save` said are there; nothing when none is.
pub fn forget(saved: &str) -> String {
    let there = |set: &str| saved.lines().any(|l| l.split(' ').take(2).eq(["create", set]));
    [SET, SHADOW].into_iter().filter(|set| there(set)).map(|set| format!("destroy {set}\n")).collect()
}

/// Packets dropped, in what `iptables-save -c -t filter` said.
pub fn dropped(saved: &str) -> Option<u64> {
    let drop = rules();
    let line = saved.lines().find(|l| bare(l) == drop[1])?;
    line.trim().strip_prefix('[')?.split_once(':')?.0.parse().ok()
}

/// A set of everything cannot be one entry (`hash:net` has no /0).
fn entries(sources: &BTreeSet<Ipv4Net>) -> BTreeSet<Ipv4Net> {
    let halves = |n: &Ipv4Net| match n.prefix_len() {
        0 => [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(128, 0, 0, 0)].map(|a| Ipv4Net::new_assert(a, 1)).to_vec(),
        _ => vec![n.trunc()],
    };
    sources.iter().flat_map(halves).collect()
}

/// The members of the set in what `ipset save` said.
fn members(saved: &str) -> BTreeSet<Ipv4Net> {
    let add = format!("add {SET} ");
    let of = |line: &str| -> Option<Ipv4Net> {
        let text = line.strip_prefix(&add)?.split_whitespace().next()?;
        text.parse().ok().or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
    };
    saved.lines().filter_map(of).collect()
}

/// What `ipset restore` is to be told so that the set has these members; none when it has. `saved` is what
/// `ipset save` said of it, none if there is no such set.
pub fn fill(saved: Option<&str>, sources: &BTreeSet<Ipv4Net>) -> Option<String> {
    let wanted = entries(sources);
    if saved.is_some_and(|s| members(s) == wanted) {
        return None;
    }
    let mut text = String::new();
    for set in [SET, SHADOW] {
        let _ = writeln!(text, "create {set} hash:net family inet maxelem 1048576 -exist");
    }
    let _ = writeln!(text, "flush {SHADOW}");
    for net in wanted {
        let _ = writeln!(text, "add {SHADOW} {net}");
    }
    let _ = writeln!(text, "swap {SHADOW} {SET}\ndestroy {SHADOW}");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "*filter\n:INPUT ACCEPT [10:100]\n:FORWARD ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n";
    const OURS: &str = "*filter\n:INPUT ACCEPT [10:100]\n:brindle-ipip - [0:0]\n\
        [7:700] -A INPUT -p ipencap -j brindle-ipip\n\
        [1:2] -A INPUT -i lo -j ACCEPT\n\
        [5:420] -A brindle-ipip -m set --match-set brindle-ipip-nodes src -j ACCEPT\n\
        [2:280] -A brindle-ipip -m comment --comment \"outer source is no known node\" -j DROP\nCOMMIT\n";

    fn nets(all: &[&str]) -> BTreeSet<Ipv4Net> {
        all.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn the_filter_is_written_once() {
        insta::assert_snapshot!(install(OTHERS).unwrap(), @r#"
        *filter
        :brindle-ipip - [0:0]
        -A brindle-ipip -m set --match-set brindle-ipip-nodes src -j ACCEPT
        -A brindle-ipip -m comment --comment "outer source is no known node" -j DROP
        -I INPUT 1 -p 4 -j brindle-ipip
        COMMIT
        "#);
        assert_eq!(install(OURS), None);
        assert_eq!(dropped(OURS), Some(2));
        assert_eq!(dropped(OTHERS), None);
    }

    #[test]
    fn what_somebody_changed_is_put_right() {
        let no_drop: String =
            OURS.lines().filter(|l| !l.contains("-j DROP")).map(|l| format!("{l}\n")).collect();
        assert!(install(&no_drop).unwrap().contains("-D INPUT -p ipencap -j brindle-ipip\n"));
        let no_jump: String =
            OURS.lines().filter(|l| !l.contains("-p ipencap")).map(|l| format!("{l}\n")).collect();
        assert!(install(&no_jump).is_some());
        let twice = OURS.replace(
            "-A INPUT -p ipencap -j brindle-ipip",
            "-A FORWARD -j brindle-ipip\n-A INPUT -p 4 -j brindle-ipip",
        );
        let script = install(&twice).unwrap();
        assert!(script.contains("-D FORWARD -j brindle-ipip\n-D INPUT -p 4 -j brindle-ipip\n"), "{script}");
    }

    #[test]
    fn it_goes_without_a_trace_and_touches_nothing_else() {
        insta::assert_snapshot!(remove(OURS).unwrap(), @r"
        *filter
        :brindle-ipip - [0:0]
        -D INPUT -p ipencap -j brindle-ipip
        -X brindle-ipip
        COMMIT
        ");
        assert_eq!(remove(OTHERS), None);
        let sets = "create brindle-ipip-nodes hash:net family inet\ncreate brindle-ipip-nodes2 hash:net family inet\n\
            add brindle-ipip-nodes 10.0.0.1\n";
        assert_eq!(
            (&*forget(sets), &*forget("create other hash:net\n")),
            ("destroy brindle-ipip-nodes\n", "")
        );
    }

    #[test]
    fn the_set_changes_as_a_whole_and_only_when_it_differs() {
        let want = nets(&["10.0.0.1/32", "10.9.0.0/16"]);
        insta::assert_snapshot!(fill(None, &want).unwrap(), @r"
        create brindle-ipip-nodes hash:net family inet maxelem 1048576 -exist
        create brindle-ipip-next hash:net family inet maxelem 1048576 -exist
        flush brindle-ipip-next
        add brindle-ipip-next 10.0.0.1/32
        add brindle-ipip-next 10.9.0.0/16
        swap brindle-ipip-next brindle-ipip-nodes
        destroy brindle-ipip-next
        ");
        let saved = "create brindle-ipip-nodes hash:net family inet hashsize 1024 maxelem 65536\n\
            add brindle-ipip-nodes 10.9.0.0/16\nadd brindle-ipip-nodes 10.0.0.1\n";
        assert_eq!(fill(Some(saved), &want), None);
        assert!(fill(Some(saved), &nets(&["10.0.0.1/32"])).is_some());
        let all = fill(None, &nets(&["0.0.0.0/0"])).unwrap();
        assert!(all.contains("0.0.0.0/1") && all.contains("128.0.0.0/1"), "{all}");
        assert!(fill(Some("create brindle-ipip-nodes hash:net"), &nets(&[])).is_none());
    }
}
