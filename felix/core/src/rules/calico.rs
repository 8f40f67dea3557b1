//! What a Calico has left in the packet filter of a node it is gone from, and the input that removes it: its chains hold
//! pods to its last policies for ever and drop what new ones send ("Unknown interface").
//!
//! Calico's are chains with its prefixes, rules elsewhere that carry its tag or lead to such chains, its sets, and the
//! nftables table `calico`. Everything else is left alone.

use std::{
    fmt::Write as _,
    ops::{Add, AddAssign},
};

/// What names of its chains begin with, of old releases too.
const CHAINS: [&str; 8] =
    ["cali-", "califw-", "calitw-", "califh-", "calith-", "calipi-", "calipo-", "felix-"];
/// What names of its sets begin with: those in use, those being built, those of old releases.
const SETS: [&str; 6] = ["cali40", "cali60", "cali4t", "cali6t", "felix-4-", "felix-6-"];
/// What the first comment of its rules begins with.
const COMMENT: &str = "cali:";
/// Its nftables table, of both families.
pub const TABLE: &str = "calico";

/// So much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Rules in chains of others.
    pub rules: usize,
    pub chains: usize,
    pub sets: usize,
    /// nftables tables.
    pub tables: usize,
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rules: self.rules + other.rules,
            chains: self.chains + other.chains,
            sets: self.sets + other.sets,
            tables: self.tables + other.tables,
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Input for a tool, and how much it removes. Empty: nothing was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    pub input: String,
    pub count: Count,
}

/// Whether a chain is Calico's.
pub fn is_chain(name: &str) -> bool {
    CHAINS.iter().any(|p| name.starts_with(p))
}

/// Whether a set is Calico's.
pub fn is_set(name: &str) -> bool {
    SETS.iter().any(|p| name.starts_with(p))
}

/// The words of a rule as iptables-save prints it, without their quotes.
fn words(rule: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = rule.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut escaped = false;
                let end = quoted.char_indices().find(|(_, c)| {
                    let ends = *c == '"' && !escaped;
                    escaped = *c == '\\' && !escaped;
                    ends
                });
                end.and_then(|(i, _)| Some((quoted.get(..i)?, quoted.get(i + 1..)?))).unwrap_or((quoted, ""))
            }
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        out.push(word);
        rest = after.trim_start();
    }
    out
}

/// Whether a rule in somebody else's chain, without that chain's name, is Calico's.
fn is_rule(rule: &str) -> bool {
    words(rule).windows(2).any(|pair| match pair {
        ["--comment", comment] => comment.starts_with(COMMENT),
        ["-j" | "-g", target] => is_chain(target),
        _ => false,
    })
}

/// Chain and rule of a line of iptables-save.
fn rule_of(line: &str) -> Option<(&str, &str)> {
    let rule = line.strip_prefix("-A ")?;
    Some(rule.split_once(' ').unwrap_or((rule, "")))
}

/// Whether a line of iptables-save is one of its rules.
pub fn is_line(line: &str) -> bool {
    rule_of(line).is_some_and(|(chain, rule)| is_chain(chain) || is_rule(rule))
}

/// Whether iptables-save shows anything of it. Looked at with every reading, so without a look at every word.
pub fn in_rules(save: &str) -> bool {
    save.lines().any(|line| match line.strip_prefix(':') {
        Some(chain) => is_chain(chain),
        None => line.contains("--comment \"cali:") || line.contains("--comment cali:"),
    })
}

/// Whether ipset save shows anything of it.
pub fn in_sets(save: &str) -> bool {
    save.lines().any(|line| line.strip_prefix("create ").is_some_and(is_set))
}

/// Removes its rules and chains of what iptables-save shows: of each table at once, first the rules that lead to the
/// chains.
pub fn rules(save: &str) -> Removal {
    let mut out = Removal::default();
    let mut table = "";
    let (mut rules, mut flush, mut delete) = (String::new(), String::new(), String::new());
    // Writing to a String cannot fail.
    for line in save.lines().map(str::trim_end) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':').and_then(|d| d.split(' ').next()) {
            if is_chain(chain) {
                out.count.chains += 1;
                let _ = writeln!(flush, "-F {chain}");
                let _ = writeln!(delete, "-X {chain}");
            }
        } else if let Some((chain, rule)) = rule_of(line) {
            if !is_chain(chain) && is_rule(rule) {
                out.count.rules += 1;
                let _ = writeln!(rules, "-D {chain} {rule}");
            }
        } else if line == "COMMIT" {
            if !(rules.is_empty() && flush.is_empty()) {
                let _ = write!(out.input, "*{table}\n{rules}{flush}{delete}COMMIT\n");
            }
            [&mut rules, &mut flush, &mut delete].into_iter().for_each(String::clear);
        }
    }
    out
}

/// Removes its sets of what `ipset save` shows, once no rule asks them any more.
pub fn sets(save: &str) -> Removal {
    let mut out = Removal::default();
    let created = save.lines().filter_map(|l| l.strip_prefix("create ")?.split(' ').next());
    for name in created.filter(|n| is_set(n)) {
        out.count.sets += 1;
        // Writing to a String cannot fail.
        let _ = writeln!(out.input, "destroy {name}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Calico leaves it, between rules of kube-proxy, of a user and of ours.
    const SAVE: &str = r#"# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
:cali-POSTROUTING - [0:0]
:cali-nat-outgoing - [0:0]
-A PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
-A POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A cali-POSTROUTING -m comment --comment "cali:Z-c7XtVd2Bq7s_hA" -j cali-nat-outgoing
-A cali-nat-outgoing -m comment --comment "cali:flqWnvo8yq4ULQLa" -m set --match-set cali40masq-ipam-pools src -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:brindle-FORWARD - [0:0]
:cali-FORWARD - [0:0]
:califw-tap1 - [0:0]
:my-calico - [0:0]
-A FORWARD -m comment --comment "bri:0123456789ab" -j brindle-FORWARD
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly accepted packet." -m mark --mark 0x10000/0x10000 -j ACCEPT
-A FORWARD -m comment --comment "not \"-j cali-x\"" -j ACCEPT
-A FORWARD -m comment --comment "no cali: tag" -j my-calico
-A INPUT -g cali-INPUT
-A my-calico -i cali0123456789a -j ACCEPT
-A cali-FORWARD -m comment --comment "cali:vjrMJCRpqwy5oRoX" -j DROP
COMMIT
*security
:INPUT ACCEPT [0:0]
COMMIT
"#;

    #[test]
    fn rules_go_before_the_chains_they_lead_to_and_strangers_stay() {
        let removal = rules(SAVE);
        insta::assert_snapshot!(removal.input, @r#"
        *nat
        -D PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
        -D POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING
        -F cali-POSTROUTING
        -F cali-nat-outgoing
        -X cali-POSTROUTING
        -X cali-nat-outgoing
        COMMIT
        *filter
        -D FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
        -D FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly accepted packet." -m mark --mark 0x10000/0x10000 -j ACCEPT
        -D INPUT -g cali-INPUT
        -F cali-FORWARD
        -F califw-tap1
        -X cali-FORWARD
        -X califw-tap1
        COMMIT
        "#);
        assert_eq!(removal.count, Count { rules: 5, chains: 4, ..Count::default() });
        assert!(in_rules(SAVE));
        let lines = SAVE.lines().filter(|l| l.starts_with("-A "));
        assert_eq!(lines.filter(|l| !is_line(l)).count(), 5, "these are others'");
    }

    #[test]
    fn where_no_calico_was_there_is_nothing_to_do() {
        let others = "*filter\n:INPUT ACCEPT [0:0]\n:my-cali-chain - [0:0]\n:brindle-fw-cali1 - [0:0]\n\
            -A INPUT -i cali1 -m comment --comment \"see cali: x\" -j my-cali-chain\nCOMMIT\n";
        assert_eq!(rules(others), Removal::default());
        assert!(!in_rules(others));
    }

    #[test]
    fn its_sets_are_told_from_others() {
        let save = "create cali40s:5y5I3VdRZfDU01O--xXAPx2 hash:net family inet\nadd cali40s:x 10.0.0.1\n\
            create cali6t12 hash:ip family inet6\ncreate california hash:ip family inet\n\
            create brindle4-pools hash:net family inet\ncreate KUBE-CLUSTER-IP hash:ip,port family inet\n";
        let removal = sets(save);
        assert_eq!(removal.input, "destroy cali40s:5y5I3VdRZfDU01O--xXAPx2\ndestroy cali6t12\n");
        assert_eq!(removal.count.sets, 2);
        assert!(in_sets(save) && !in_sets("create california hash:ip\nadd x cali40\n"));
    }
}
