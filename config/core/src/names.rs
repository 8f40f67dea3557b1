//! Names that must be the same in every program that shares a cluster: IPAM objects (Calico's
//! `ipam_affinity.go`, `ipam_block.go`, `ipam_handle.go`) and the labels by which affinities are found.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;

/// Longest name of a Kubernetes object.
const MAX_NAME: usize = 253;

/// Hex digits of the hash in a shortened affinity name.
const HASH_DIGITS: usize = 11;

/// Label of a BlockAffinity: [`hostname_hash`] of its node.
pub const LABEL_HOSTNAME_HASH: &str = "projectcalico.org/hostname-hash";
/// Label of a BlockAffinity: `host` or `virtual`.
pub const LABEL_AFFINITY_TYPE: &str = "projectcalico.org/affinity-type";
/// Label of a BlockAffinity: `4` or `6`.
pub const LABEL_IP_VERSION: &str = "projectcalico.org/ip-version";

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
pub(crate) const BASE64_URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Name of the IPAMBlock of a prefix: `10.244.1.0/26` is `10-244-1-0-26`.
pub fn block_name(cidr: &IpNet) -> String {
    cidr.to_string().replace(['.', ':', '/'], "-")
}

/// Name of the BlockAffinity of a host and a block: `node-1-10-244-1-0-26`. Names that would be too long for
/// Kubernetes lose the end of the host and gain a hash.
pub fn affinity_name(host: &str, cidr: &IpNet) -> String {
    let block = block_name(cidr);
    let name = format!("{host}-{block}");
    if name.len() < MAX_NAME {
        return name;
    }
    let room = MAX_NAME - 1 - block.len() - HASH_DIGITS - 2;
    // Cut at a character boundary; host names are ASCII, but this one may come from anywhere.
    let end = (0..=room).rev().find(|n| host.is_char_boundary(*n)).unwrap_or(0);
    let (kept, _) = host.split_at(end);
    let hash = hex(&Sha256::digest(format!("{host}+{block}")));
    let (digits, _) = hash.split_at(HASH_DIGITS);
    format!("{kept}-{block}-{digits}")
}

/// Name of the HostEndpoint that follows from a node, and from a template and an interface where there are such:
/// `node-1-auto-hep`, `node-1-TEMPLATE-eth0-auto-hep`. One that would be too long for Kubernetes is a hash.
pub fn auto_host_endpoint_name(node: &str, template: &str, interface: &str) -> String {
    const END: &str = "auto-hep";
    let parts = [node, template, interface, END].into_iter().filter(|p| !p.is_empty());
    let name = parts.collect::<Vec<_>>().join("-");
    if name.len() <= MAX_NAME {
        return name;
    }
    let mut hash = base_n::<6>(&Sha256::digest(&name), BASE64_URL);
    hash.retain(|c| c.is_ascii_alphanumeric());
    format!("{}-{END}", hash.to_lowercase())
}

/// The labels without which newer Calico does not find an affinity. `affinity_type` is `host` or `virtual`.
pub fn affinity_labels(host: &str, affinity_type: &str, cidr: &IpNet) -> BTreeMap<String, String> {
    let version = match cidr {
        IpNet::V4(_) => "4",
        IpNet::V6(_) => "6",
    };
    BTreeMap::from([
        (LABEL_HOSTNAME_HASH.to_owned(), hostname_hash(host)),
        (LABEL_AFFINITY_TYPE.to_owned(), affinity_type.to_owned()),
        (LABEL_IP_VERSION.to_owned(), version.to_owned()),
    ])
}

/// Base32 without padding of SHA3-256 of the host's name: 52 characters, so that it fits a label.
pub fn hostname_hash(host: &str) -> String {
    base_n::<5>(&Sha3_256::digest(host), BASE32)
}

/// Name of the IPAMHandle with this id: the id in lower case. The id itself is in `spec.handleID`.
pub fn handle_name(handle_id: &str) -> String {
    handle_id.to_lowercase()
}

/// Handle under which a LoadBalancer service holds its addresses: `lb-` and a hash of name, namespace and uid (Calico's
/// kube-controllers), so that a service made anew does not inherit those of the old one.
pub fn load_balancer_handle(name: &str, namespace: &str, uid: &str) -> String {
    let hash = Sha256::digest(format!("{name}-{namespace}-{uid}").to_lowercase());
    format!("lb-{}", base_n::<6>(&hash, BASE64_URL).replace(['-', '_'], ""))
}

/// Whether Calico of this version (`v3.31.7`) stores policies of the default tier as `default.NAME`, as it did before
/// 3.32. A version that cannot be read is a new one.
pub fn old_policy_names(calico_version: &str) -> bool {
    let mut numbers = calico_version.trim_start_matches('v').split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (3, 32),
        _ => false,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Digits of `BITS` bits each, most significant first, the last one filled up with zeros (RFC 4648 without padding).
pub(crate) fn base_n<const BITS: u32>(bytes: &[u8], alphabet: &[u8]) -> String {
    let mut out = String::new();
    let (mut held, mut count) = (0u32, 0u32);
    let digit = |n: u32| alphabet.get(n as usize).map_or('?', |b| char::from(*b));
    for byte in bytes {
        held = (held << 8 | u32::from(*byte)) & 0xffff;
        count += 8;
        while count >= BITS {
            count -= BITS;
            out.push(digit(held >> count & ((1 << BITS) - 1)));
        }
    }
    if count > 0 {
        out.push(digit(held << (BITS - count) & ((1 << BITS) - 1)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().expect(s)
    }

    #[test]
    fn block_names_replace_what_dns_refuses() {
        assert_eq!(block_name(&net("10.244.1.0/26")), "10-244-1-0-26");
        assert_eq!(block_name(&net("fd00:1::/122")), "fd00-1---122");
        assert_eq!(block_name(&net("fd00:1:2:3:4:5:6:40/122")), "fd00-1-2-3-4-5-6-40-122");
    }

    #[test]
    fn handles_of_services_are_calicos() {
        // printf '%s' web-shop-0d1c | sha256sum, in URL-safe base64 without - and _.
        assert_eq!(load_balancer_handle("web", "shop", "0D1C"), load_balancer_handle("web", "shop", "0d1c"));
        assert_eq!(
            load_balancer_handle("web", "shop", "0d1c"),
            "lb-SbzEFmLOSw9K21F7eUA6Aobmlvy0kBHH0qO5z3l0"
        );
    }

    #[test]
    fn affinity_names_are_host_and_block() {
        assert_eq!(affinity_name("node-1", &net("10.244.1.0/26")), "node-1-10-244-1-0-26");
    }

    #[test]
    fn long_affinity_names_are_cut_and_hashed() {
        let block = net("10.244.1.0/26");
        let fits = "n".repeat(238);
        assert_eq!(affinity_name(&fits, &block), format!("{fits}-10-244-1-0-26"));
        let host = "n".repeat(240);
        let name = affinity_name(&host, &block);
        assert_eq!(name, format!("{}-10-244-1-0-26-{}", "n".repeat(226), "c71d8f7e48d"));
        assert_eq!(name.len(), 252);
        assert!(affinity_name(&"ü".repeat(200), &block).len() < MAX_NAME);
    }

    #[test]
    fn versions_are_compared_by_number() {
        for (version, old) in [
            ("v3.31.7", true),
            ("v3.9.0", true),
            ("v3.32.0", false),
            ("v4.0", false),
            ("", false),
            ("master", false),
        ] {
            assert_eq!(old_policy_names(version), old, "{version}");
        }
    }

    #[test]
    fn host_endpoints_of_nodes_are_named_after_them() {
        assert_eq!(auto_host_endpoint_name("a", "", ""), "a-auto-hep");
        assert_eq!(auto_host_endpoint_name("a", "front", ""), "a-front-auto-hep");
        assert_eq!(auto_host_endpoint_name("a", "front", "eth0"), "a-front-eth0-auto-hep");
        let long = auto_host_endpoint_name(&"n".repeat(250), "", "");
        assert!(long.len() < 60 && long.ends_with("-auto-hep"), "{long}");
        assert_ne!(long, auto_host_endpoint_name(&"n".repeat(251), "", ""));
    }

    #[test]
    fn the_hash_of_a_host_is_unpadded_upper_case_base32() {
        assert_eq!(hostname_hash("node-a"), "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA");
    }

    #[test]
    fn affinity_labels_tell_host_type_and_family() {
        let labels = affinity_labels("node-a", "host", &net("fd00::/122"));
        assert_eq!(
            labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            [
                "projectcalico.org/affinity-type=host",
                "projectcalico.org/hostname-hash=PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA",
                "projectcalico.org/ip-version=6",
            ]
        );
    }

    #[test]
    fn handles_are_named_in_lower_case() {
        assert_eq!(handle_name("k8s-pod-network.9F3A"), "k8s-pod-network.9f3a");
    }
}
