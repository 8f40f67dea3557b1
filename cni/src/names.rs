//! MAC addresses, and digests for file names. Device names and handles are in [`crate::proto`]: the agent decides them.

use brindle_kernel::netlink::Mac;
use sha1::{Digest, Sha1};

use crate::proto::Attachment;

/// MAC of every host side device; proxy ARP answers with it.
pub const HOST_MAC: Mac = Mac([0xee; 6]);
/// Longest device name (IFNAMSIZ − 1).
pub const MAX_IFNAME: usize = 15;

/// MAC of the container side: locally administered, the same for the same container and interface, so that a
/// repeated ADD changes nothing.
pub fn container_mac(container_id: &str, ifname: &str) -> Mac {
    let hash = Sha1::digest(format!("{container_id}.{ifname}"));
    let mut mac = [0x02, 0, 0, 0, 0, 0];
    for (to, from) in mac.iter_mut().skip(1).zip(hash.iter()) {
        *to = *from;
    }
    Mac(mac)
}

/// Whether a host device of this name is the attachment's, whatever prefix the agent was told to give such names, be it of
/// an earlier version.
pub fn is_device_of(attachment: &Attachment, device: &str) -> bool {
    // Fewer digits of the hash than these five would fit by chance.
    (0..=MAX_IFNAME - 5).filter_map(|n| device.get(..n)).any(|prefix| {
        attachment.host_ifname(prefix) == device
            || attachment.former_host_ifname(prefix).is_some_and(|n| n == device)
    })
}

/// SHA-1 of the bytes, in hex.
pub fn sha1_hex(bytes: &[u8]) -> String {
    Sha1::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_attachment_under_any_prefix() {
        let of = |id: &str| Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
            netns: String::new(),
            netns_id: String::new(),
            network: "n".into(),
            pod: None,
        };
        for prefix in ["cali", "", "c", "tenant-a-"] {
            let device = of("c1").host_ifname(prefix);
            assert!(is_device_of(&of("c1"), &device), "{device}");
            assert!(!is_device_of(&of("c2"), &device), "{device}");
            let device = of("c1").former_host_ifname(prefix).unwrap();
            assert!(is_device_of(&of("c1"), &device), "{device}");
        }
        assert!(!is_device_of(&of("c1"), "veth4f1d2a3b"));
        assert!(!is_device_of(&of("c1"), ""));
    }

    #[test]
    fn macs_are_local_unicast_and_repeat() {
        let mac = container_mac("abc", "eth0");
        assert_eq!(mac, container_mac("abc", "eth0"));
        assert_ne!(mac, container_mac("abc", "eth1"));
        assert_eq!(mac.0[0] & 0b11, 0b10);
    }
}
