//! Whether packets that stay on a bridge of workloads meet the rules at all. Looks; changes nothing.

use brindle_felix_core::{policy::active::Interface, rules::ir::Family, rules::model::Model};
use brindle_kernel::{netlink::Rtnl, sysctl};

/// What the kernel must do for each family.
fn parameter(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/bridge/bridge-nf-call-iptables",
        Family::V6 => "net/bridge/bridge-nf-call-ip6tables",
    }
}

/// What is wrong, with the way out. Looked for only where devices of workloads are somebody else's: ours are no ports.
pub(super) fn problem(model: &Model, prefixes: &[String], families: &[Family]) -> Option<String> {
    let ours = |device: &String| prefixes.iter().any(|p| device.starts_with(p.as_str()));
    let others = model.endpoints.values().any(|e| match &e.interface {
        Interface::Name(device) => e.host.is_none() && !ours(device),
        _ => false,
    });
    if !others {
        return None;
    }
    let off =
        families.iter().map(|f| parameter(*f)).find(|p| !sysctl::get(p).is_ok_and(|v| v.trim() == "1"))?;
    // One that cannot be asked for is one of no bridge.
    let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).unwrap_or_default();
    let mut bridges = links.iter().filter(|l| l.kind.as_deref() == Some("bridge") && ours(&l.name));
    let bridge = &bridges.next()?.name;
    Some(format!(
        "policy does not hold between pods on the bridge {bridge}: {} is not 1; load br_netfilter and set it",
        off.replace('/', ".")
    ))
}
