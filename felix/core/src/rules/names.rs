//! Names of chains and sets: how a restarted agent recognises what is ours.

use sha2::{Digest, Sha256};

use super::ir::Family;

/// Longest chain name of iptables (XT_EXTENSION_MAXNAMELEN − 1).
pub const MAX_CHAIN: usize = 28;
/// Longest set name of ipset (IPSET_MAXNAMELEN − 1).
pub const MAX_SET: usize = 31;
/// Every chain of ours begins with it.
pub const CHAIN: &str = "brindle-";
/// Every set of ours begins with it, followed by 4 or 6.
pub const SET: &str = "brindle";
/// The comment of every rule begins with it.
pub const COMMENT: &str = "bri:";

/// Hexadecimal digits of a digest of `text`; `digits` ≤ 64.
pub fn digest(text: &str, digits: usize) -> String {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |n: u8| HEX.get(usize::from(n)).copied().unwrap_or_default();
    let hash = Sha256::digest(text.as_bytes());
    let mut out = String::with_capacity(digits);
    out.extend(hash.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).take(digits));
    out
}

/// `prefix` and `id`, or a digest of the id when that is too long or not in iptables' letters. An id that looks like
/// the digest of another is digested itself.
pub fn chain(prefix: &str, id: &str) -> String {
    let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) && !id.starts_with('_');
    if plain && prefix.len() + id.len() <= MAX_CHAIN {
        return format!("{prefix}{id}");
    }
    let room = MAX_CHAIN.saturating_sub(prefix.len() + 1);
    format!("{prefix}_{}", digest(id, room))
}

/// Name of a set in a family: 8 + at most 20 letters, so that `t` for its temporary twin still fits.
pub fn set(family: Family, id: &str) -> String {
    let plain = id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && id.len() <= 20;
    if plain {
        format!("{SET}{}-{id}", family.digit())
    } else {
        format!("{SET}{}-{}", family.digit(), digest(id, 20))
    }
}

/// The twin a set is built under before the two are swapped.
pub fn temporary(set: &str) -> String {
    format!("{set}-t")
}

/// The set that a twin becomes; any other name is its own.
pub fn lasting(set: &str) -> &str {
    set.strip_suffix("-t").unwrap_or(set)
}

/// Whether a set is ours in this family.
pub fn is_our_set(family: Family, name: &str) -> bool {
    name.strip_prefix(SET).and_then(|r| r.strip_prefix(family.digit())).is_some_and(|r| r.starts_with('-'))
}

/// The filter of kernel ipip has its own owner ([`crate::ipip_filter`]).
pub const NOT_OURS: &str = crate::ipip_filter::CHAIN;

/// Whether a chain is ours.
pub fn is_our_chain(name: &str) -> bool {
    name.starts_with(CHAIN) && name != NOT_OURS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_odd_names_become_digests_that_fit() {
        assert_eq!(chain("brindle-fw-", "cali0123456789a"), "brindle-fw-cali0123456789a");
        for id in ["np/default/allow", "_abc", &"n".repeat(300)] {
            let name = chain("brindle-pi-", id);
            assert!(name.starts_with("brindle-pi-_") && name.len() == MAX_CHAIN, "{name}");
        }
        assert_ne!(chain("brindle-pi-", &"n".repeat(300)), chain("brindle-pi-", &"n".repeat(299)));
    }

    #[test]
    fn sets_are_recognised_by_family() {
        let s = set(Family::V4, "s:abc");
        assert!(is_our_set(Family::V4, &s) && !is_our_set(Family::V6, &s));
        assert!(temporary(&s).len() <= MAX_SET);
        assert_eq!(set(Family::V6, "pools"), "brindle6-pools");
        assert!(!is_our_set(Family::V4, "cali40s:x") && !is_our_set(Family::V4, "brindle42"));
    }
}
