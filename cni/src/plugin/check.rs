//! CHECK: a real one. The pair, the pod's addresses and routes, the host's route, and the agent's records.

use std::net::IpAddr;

use brindle_kernel::netlink::Rtnl;
use ipnet::IpNet;
use serde_json::Value;

use super::{Invocation, delegate};
use crate::{
    client::Agent,
    error::{CniError, code},
    names,
    proto::{Call, Reply},
    result::Interface,
    veth::{self, Said, Wiring},
};

pub(super) fn check(call: &Invocation) -> Result<(), CniError> {
    let result = call.conf.prev_answer()?.ok_or_else(|| {
        CniError::config("prevResult: is missing").hint("CHECK compares with the result of ADD")
    })?;
    let (ifname, sandbox) = (&call.runtime.ifname, &call.attachment.netns);
    let ours = result.interfaces.iter().position(|i| i.name == *ifname && i.sandbox == *sandbox);
    let (container, host) = ours
        .and_then(|at| Some((result.interfaces.get(at)?, result.interfaces.get(at.checked_sub(1)?)?)))
        .filter(|(_, host)| host.sandbox.is_empty())
        .ok_or_else(|| {
            CniError::config(format!(
                "prevResult.interfaces: no {ifname} in {sandbox} behind its host device"
            ))
        })?;
    let addresses = result.addresses_of(ifname, sandbox);
    if addresses.is_empty() {
        return Err(CniError::config(format!("prevResult.ips: no address of {ifname} in {sandbox}")));
    }
    let said = [said(container)?, said(host)?];
    let wiring = Wiring {
        host_ifname: host.name.clone(),
        ifname: ifname.clone(),
        mac: names::container_mac(&call.runtime.container_id, ifname),
        mtu: None,
        addresses: addresses.clone(),
        routes: through_gateway(&result.routes),
        forwarding: false,
    };
    let pod = call.pod()?;
    let wrong = wiring.differences(said, &mut Rtnl::open()?, &pod)?;
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

/// The routes of a result that an ADD of this plugin made.
fn through_gateway(routes: &[Value]) -> Vec<IpNet> {
    let gateway = |route: &Value| route.get("gw")?.as_str()?.parse::<IpAddr>().ok();
    let ours = routes.iter().filter(|r| gateway(r).is_some_and(veth::is_gateway)).cloned();
    delegate::destinations(&ours.collect::<Vec<_>>()).unwrap_or_default()
}

/// What a result says of a device, as far as its version of the specification has words for it.
fn said(device: &Interface) -> Result<Said, CniError> {
    let Interface { name, mac, mtu, .. } = device;
    let wrong = |_| CniError::config(format!("prevResult.interfaces: {name}: {mac:?} is not a MAC address"));
    let mac = if mac.is_empty() { None } else { Some(mac.parse().map_err(wrong)?) };
    Ok(Said { mac, mtu: Some(*mtu).filter(|m| *m != 0) })
}
