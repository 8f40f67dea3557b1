//! Names of handles: `<network>.<container>` (Calico's), with `.IFNAME` for all but eth0 so that each interface is released
//! alone. Their records are found without regard to case, and a name of CNI may have capitals and dots; so a part that is not
//! made of small letters, digits, `-` and `_` alone gives way to a digest of it. Then no two attachments have one handle, and
//! a handle can be taken apart again.

use std::borrow::Cow;

use crate::names::sha1_hex;

const DIGEST: &str = "sha1-";
/// Digits of a digest.
const DIGITS: usize = 20;
/// The interface that is not named.
const FIRST: &str = "eth0";
/// Longest name of an interface.
const MAX_IFNAME: usize = 15;

/// The handle of an attachment.
pub fn handle(network: &str, container_id: &str, ifname: &str) -> String {
    join(&part(network), &part(container_id), ifname, &part(ifname))
}

/// The handle earlier agents gave it, where that is another one. It may be that of other attachments, too.
pub fn former(network: &str, container_id: &str, ifname: &str) -> Option<String> {
    let former = join(network, container_id, ifname, ifname);
    (former != handle(network, container_id, ifname)).then_some(former)
}

fn join(network: &str, container: &str, ifname: &str, written: &str) -> String {
    if ifname == FIRST {
        format!("{network}.{container}")
    } else {
        format!("{network}.{container}.{written}")
    }
}

/// A name as it stands in a handle.
pub fn part(name: &str) -> Cow<'_, str> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    if !name.is_empty() && name.bytes().all(plain) && !is_digest(name) {
        return Cow::Borrowed(name);
    }
    let digits = sha1_hex(name.as_bytes());
    Cow::Owned(format!("{DIGEST}{}", digits.get(..DIGITS).unwrap_or(&digits)))
}

fn is_digest(part: &str) -> bool {
    let digits = part.strip_prefix(DIGEST);
    digits.is_some_and(|d| d.len() == DIGITS && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Network and container of a handle, as they stand in it. `None`: not written by [`handle`].
pub fn parts(handle: &str) -> Option<(&str, &str)> {
    let mut all = handle.split('.');
    let (network, container, ifname) = (all.next()?, all.next()?, all.next());
    let known = |p: &str| is_digest(p) || part(p) == p;
    // What is too long for an interface is a container, of a network with a dot.
    let interface = ifname.is_none_or(|i| known(i) && (is_digest(i) || i.len() <= MAX_IFNAME));
    (all.next().is_none() && interface && known(network) && known(container)).then_some((network, container))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_runtimes_use_is_named_as_calico_names_it() {
        let id = "0f3c9d".repeat(10);
        assert_eq!(handle("k8s-pod-network", &id, "eth0"), format!("k8s-pod-network.{id}"));
        assert_eq!(handle("cbr_0", &id, "net1"), format!("cbr_0.{id}.net1"));
        assert_eq!(former("k8s-pod-network", &id, "net1"), None);
        assert_eq!(parts(&format!("k8s-pod-network.{id}.net1")), Some(("k8s-pod-network", &*id)));
    }

    #[test]
    fn what_could_be_mistaken_is_not() {
        assert_ne!(handle("net", "x", "net1"), handle("net.x", "net1", "eth0"));
        assert_ne!(handle("net", "ABC", "eth0").to_lowercase(), handle("net", "abc", "eth0"));
        assert_eq!(former("net.x", "net1", "eth0").as_deref(), Some("net.x.net1"));
        // Somebody who knows the digest of another's name gains nothing.
        assert_ne!(handle("net", &part("ABC"), "eth0"), handle("net", "ABC", "eth0"));
        assert_eq!(parts(&format!("net.v2.{}", "a".repeat(64))), None, "of network net.v2");
        for foreign in ["by-hand", "net.", "net.A", "a.b.c.d"] {
            assert_eq!(parts(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn no_two_attachments_have_one_handle(
            a in ("[aB1.][aA.-]{0,3}", "[aB1.][aA._-]{0,3}", "(eth0|[aA.0]{1,3})"),
            b in ("[aB1.][aA.-]{0,3}", "[aB1.][aA._-]{0,3}", "(eth0|[aA.0]{1,3})"),
        ) {
            let (one, other) = (handle(&a.0, &a.1, &a.2), handle(&b.0, &b.1, &b.2));
            prop_assert_eq!(one.to_lowercase() == other.to_lowercase(), a == b);
            let (network, container) = (part(&a.0), part(&a.1));
            prop_assert_eq!(parts(&one), Some((&*network, &*container)));
        }
    }
}
