//! CHECK: a real one. The pair, the pod's addresses and routes, the host's route, and the agent's records.

use brindle_kernel::netlink::Rtnl;

use super::Invocation;
use crate::{
    client::Agent,
    error::{CniError, code},
    names,
    proto::{Call, Reply},
    veth::Wiring,
};

pub(super) fn check(call: &Invocation) -> Result<(), CniError> {
    let result = call.conf.prev_answer()?.ok_or_else(|| {
        CniError::config("prevResult: is missing").hint("CHECK compares with the result of ADD")
    })?;
    let (ifname, sandbox) = (&call.runtime.ifname, &call.attachment.netns);
    let ours = result.interfaces.iter().position(|i| i.name == *ifname && i.sandbox == *sandbox);
    let host_ifname = ours
        .and_then(|at| at.checked_sub(1))
        .and_then(|at| result.interfaces.get(at))
        .filter(|host| host.sandbox.is_empty())
        .map(|host| host.name.clone())
        .ok_or_else(|| {
            CniError::config(format!(
                "prevResult.interfaces: no {ifname} in {sandbox} behind its host device"
            ))
        })?;
    let addresses = result.addresses_of(ifname, sandbox);
    if addresses.is_empty() {
        return Err(CniError::config(format!("prevResult.ips: no address of {ifname} in {sandbox}")));
    }
    let wiring = Wiring {
        host_ifname,
        ifname: ifname.clone(),
        mac: names::container_mac(&call.runtime.container_id, ifname),
        mtu: None,
        addresses: addresses.clone(),
        forwarding: false,
    };
    let pod = call.pod()?;
    let wrong = wiring.differences(&mut Rtnl::open()?, &pod)?;
    if !wrong.is_empty() {
        return Err(
            CniError::new(code::FAILED, wrong.join("; ")).hint("delete the pod; it will be made anew")
        );
    }
    if let Some(delegate) = &call.delegate {
        delegate.check()?;
    }
    let foreign = call.foreign();
    match call.agent()?.call(Call::Check { attachment: call.attachment.clone(), addresses, foreign })? {
        Reply::Checked => Ok(()),
        other => Err(Agent::unexpected(&other)),
    }
}
