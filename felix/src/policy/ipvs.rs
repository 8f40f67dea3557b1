//! Whether kube-proxy is in IPVS mode, which policy for pods does not go together with. Looks; changes nothing.

use brindle_kernel::netlink::Rtnl;

/// The device on which kube-proxy keeps the addresses of services in that mode.
const DEVICE: &str = "kube-ipvs0";

/// What does not hold, with the way out. IPVS takes packets for a service in at INPUT and sends them to the pod through
/// OUTPUT, where they look like the host's own, which is never kept from its pods.
pub(super) fn problem() -> Option<String> {
    let there = Rtnl::open().and_then(|mut rtnl| rtnl.link_by_name(DEVICE)).is_ok_and(|link| link.is_some());
    there.then(|| {
        format!(
            "kube-proxy is in IPVS mode ({DEVICE} exists): ingress policy of pods of this node does not hold for what \
             reaches them through a service; set kube-proxy to mode iptables or nftables and delete {DEVICE}"
        )
    })
}
