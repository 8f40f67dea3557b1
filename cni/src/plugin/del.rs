//! DEL: always succeeds when things are gone already, however often it is repeated. The device is deleted by the agent,
//! which can wait for the kernel to tear it down (some tens of milliseconds) while the runtime goes on; this call
//! returns when the device is no longer to be seen. Without an agent the device is deleted here, and what the agent
//! must do is written down for it.

use std::{
    thread,
    time::{Duration, Instant},
};

use brindle_kernel::netlink::{Link, Rtnl};

use super::{DEL_PATIENCE, Invocation, open_netns};
use crate::{
    aside,
    client::{Agent, CallError},
    error::{CniError, code},
    fail,
    journal::{self, Record},
    names,
    proto::{Attachment, Call, HostDevice, Reply},
    veth::{self, Pair},
};

/// The agent has begun to delete the device when it answers; taking it from the lists is a matter of a millisecond.
const GONE_WITHIN: Duration = Duration::from_millis(200);

pub(super) fn del(call: &Invocation) -> Result<(), CniError> {
    fail::point("del.begin");
    let mut host = Rtnl::open()?;
    let device = device(call, &mut host)?;
    fail::point("del.found");
    let ask = Call::Del { attachment: call.attachment.clone(), device: device.clone() };
    let told = tell(call, ask, false);
    fail::point("del.told");
    if let Some(device) = device {
        let by_agent = told.as_ref().is_ok_and(|by_agent| *by_agent);
        vanish(&mut host, &device, by_agent)?;
    }
    fail::point("del.gone");
    if let Some(delegate) = &call.delegate {
        delegate.del()?;
    }
    told.map(drop)
}

/// The host end of the container's interface, if it is there to be found.
fn device(call: &Invocation, host: &mut Rtnl) -> Result<Option<HostDevice>, CniError> {
    let Some(path) = call.runtime.netns.as_deref() else { return Ok(None) };
    let pod = match open_netns(path) {
        Ok(pod) => pod,
        // Gone, and the interface with it.
        Err(e) if e.code == code::CONTAINER => return Ok(None),
        // No ADD made anything there.
        Err(e) if e.code == code::ENVIRONMENT => {
            aside::say(format_args!("brindle: {}; left alone", e.message));
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    match veth::find(host, &pod, &call.runtime.ifname) {
        Ok(Some(Pair { host, .. })) if is_ours(call, &host) => {
            Ok(Some(HostDevice { index: host.index, name: host.name }))
        }
        // Another plugin's, or another attachment's: runtimes send a DEL also after an ADD that was refused for it.
        Ok(Some(Pair { host, .. })) => {
            let Attachment { ifname, .. } = &call.attachment;
            aside::say(format_args!(
                "brindle: {ifname} in {pod} behind {} is not of this attachment; left alone",
                host.name
            ));
            Ok(None)
        }
        Ok(None) => Ok(None),
        Err(e) if e.code == code::ATTACHED => {
            aside::say(format_args!("brindle: {e}; left alone"));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Whether the host end was made for this attachment. A DEL may come without the arguments that named the pod; then the MAC
/// decides, which other plugins do not use.
fn is_ours(call: &Invocation, host: &Link) -> bool {
    names::is_device_of(&call.attachment, &host.name)
        || (call.attachment.pod.is_none() && host.mac == Some(names::HOST_MAC))
}

/// Tells the agent, or the journal. True when the agent deletes the device.
pub(super) fn tell(call: &Invocation, ask: Call, addresses_only: bool) -> Result<bool, CniError> {
    let lost = match Agent::connect(&call.conf.sockets, DEL_PATIENCE) {
        Err(e) => e.error(),
        Ok(mut agent) => match agent.call(ask) {
            Ok(Reply::Deleted) => return Ok(true),
            Ok(other) => return Err(Agent::unexpected(&other)),
            Err(CallError::Refused(e)) => return Err(e),
            Err(CallError::Lost(e)) => e,
        },
    };
    // Without root nothing of this can be right.
    if lost.code == code::IO {
        return Err(lost);
    }
    write_down(call, &call.attachment, addresses_only, &lost)?;
    Ok(false)
}

fn write_down(
    call: &Invocation,
    a: &Attachment,
    addresses_only: bool,
    why: &CniError,
) -> Result<(), CniError> {
    let folder = call.conf.state_dir.join(journal::FOLDER);
    match journal::write(&folder, &Record { attachment: a.clone(), addresses_only }) {
        Ok(path) => {
            aside::say(format_args!(
                "brindle: {}; the agent will release the addresses: {}",
                why.message,
                path.display()
            ));
            Ok(())
        }
        Err(e) => {
            let what = format!("{}, and cannot write to {}: {e}", why.message, folder.display());
            Err(CniError::new(code::IO, what).hint(
                "start brindle-node or make the folder writable, then delete again; no address is lost",
            ))
        }
    }
}

/// Makes sure the device is no longer there.
fn vanish(host: &mut Rtnl, device: &HostDevice, by_agent: bool) -> Result<(), CniError> {
    let deadline = Instant::now() + GONE_WITHIN;
    while by_agent && Instant::now() < deadline {
        match host.link_by_index(device.index)? {
            Some(link) if link.name == device.name => thread::sleep(Duration::from_micros(300)),
            _ => return Ok(()),
        }
    }
    match host.link_by_index(device.index)? {
        Some(link) if link.name == device.name => match host.del_link(device.index) {
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}
