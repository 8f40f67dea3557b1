//! Ports of Kubernetes rules: grouped by protocol, adjoining ones joined to ranges.

use std::collections::BTreeMap;

use crate::policy::IntOrString;

/// A port or range of one protocol, not yet joined with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum One {
    All,
    Range(u16, u16),
    Named(String),
}

/// Ports by protocol. `None` = any protocol (named ports of ClusterNetworkPolicy).
pub(super) type ByProtocol = BTreeMap<Option<String>, Vec<One>>;

/// `first..=last` out of what a resource holds.
pub(super) fn range(first: i64, last: i64) -> Result<One, String> {
    match (u16::try_from(first), u16::try_from(last)) {
        (Ok(a), Ok(b)) if a >= 1 && a <= b => Ok(One::Range(a, b)),
        (Ok(a), Ok(b)) if a >= 1 => Err(format!("port range {a} to {b} ends before it begins")),
        _ => {
            Err(format!("port {}: expected 1 to 65535", if first == last { first } else { first.min(last) }))
        }
    }
}

/// The ports of one protocol in Calico's form; an empty list = all ports.
pub(super) fn joined(ports: &[One]) -> Vec<IntOrString> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    let mut names: Vec<&String> = Vec::new();
    for p in ports {
        match p {
            One::All => return Vec::new(),
            One::Range(a, b) => ranges.push((*a, *b)),
            One::Named(n) if names.contains(&n) => {}
            One::Named(n) => names.push(n),
        }
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (a, b) in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(a) <= u32::from(last.1) + 1 => last.1 = last.1.max(b),
            _ => merged.push((a, b)),
        }
    }
    let numbers = merged.into_iter().map(|(a, b)| match a == b {
        true => IntOrString::from(a),
        false => IntOrString::Text(format!("{a}:{b}")),
    });
    numbers.chain(names.into_iter().map(|n| IntOrString::Text(n.clone()))).collect()
}
