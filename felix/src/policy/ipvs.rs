//! Whether kube-proxy is in IPVS mode, and what policy cannot do beside it. Looks; changes nothing. The rules for it are
//! felix-core's (`rules::ipvs`).

use brindle_felix_core::rules::{layout::Surroundings, model::Model};
use brindle_kernel::netlink::Rtnl;

/// The device on which kube-proxy keeps the addresses of services in that mode.
pub(super) const DEVICE: &str = "kube-ipvs0";

/// The index of that device, where it is.
pub(super) fn device() -> Option<u32> {
    let link = Rtnl::open().and_then(|mut rtnl| rtnl.link_by_name(DEVICE)).ok()??;
    Some(link.index)
}

/// What does not hold, with the way out.
pub(super) fn problem(model: &Model, around: &Surroundings) -> Option<String> {
    if around.marks.through.is_none() {
        return Some(format!(
            "kube-proxy is in IPVS mode ({DEVICE} exists): policy of pods of this node does not hold for what reaches them \
             through a service: iptablesMarkMask has no two bits left for it; widen it, for example 0xffff0000"
        ));
    }
    let forward = model.endpoints.values().any(|e| e.host.as_ref().is_some_and(|h| !h.forward.is_empty()));
    forward.then(|| {
        format!(
            "kube-proxy is in IPVS mode ({DEVICE} exists): policy with applyOnForward sees what comes in for a service with \
             the service's address and port, not the pod's"
        )
    })
}
