//! Host devices: deleting them without making anybody wait, and looking at what the kernel has.
//!
//! Deleting a veth takes the kernel a millisecond to take it from the lists and then some tens more to be sure that
//! nobody uses it. The second part is waited for on a thread of its own.

use std::{cell::RefCell, sync::Arc};

use brindle_cni::{error::code, fail, proto::HostDevice};
use brindle_kernel::{
    netlink::{NetlinkError, Rtnl},
    sysctl,
};
use tokio::sync::{Semaphore, oneshot};

use super::{dataplane::Expected, refused::Refused};

/// Deletions under way at a time; their waits overlap.
const MAX_DELETIONS: usize = 32;
/// Kind of every pod device; nothing else is ever deleted.
const VETH: &str = "veth";

/// Deletes devices in the background.
pub(super) struct Deletions {
    slots: Arc<Semaphore>,
}

impl Deletions {
    pub(super) fn new() -> Self {
        Self { slots: Arc::new(Semaphore::new(MAX_DELETIONS)) }
    }

    /// Starts the deletion. The returned future completes when the device has been looked up and is about to go; it
    /// is named by number and name, so that one made anew meanwhile stays.
    pub(super) async fn start(&self, device: HostDevice) {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
        let (begun, wait) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("delete-device".into()).spawn(move || {
            if let Err(e) = delete(&device, begun)
                && !e.is_not_found()
            {
                tracing::warn!(device = %device.name, "cannot delete it: {e}");
            }
            drop(slot);
        });
        match spawned {
            // A dropped sender says the same: it has been looked at.
            Ok(_) => drop(wait.await),
            Err(e) => tracing::warn!("cannot start a thread to delete a device: {e}; the plugin will do it"),
        }
    }
}

/// Deletes a device, and waits until it is gone.
pub(super) async fn remove(device: HostDevice) -> Result<(), Refused> {
    let (begun, _nobody) = oneshot::channel();
    let name = device.name.clone();
    let deletion = move || match delete(&device, begun) {
        Err(e) if !e.is_not_found() => Err(e.to_string()),
        _ => Ok(()),
    };
    let done = if fail::refuses("device.remove") {
        Err("BRINDLE_FAILPOINT says so".to_owned())
    } else {
        tokio::task::spawn_blocking(deletion).await.unwrap_or_else(|e| Err(e.to_string()))
    };
    let Err(why) = done else { return Ok(()) };
    let msg = format!("cannot delete device {name}: {why}");
    Err(Refused::new(code::TRY_AGAIN, msg, "it is tried again with the next GC; see what keeps the device"))
}

fn delete(device: &HostDevice, begun: oneshot::Sender<()>) -> Result<(), NetlinkError> {
    let mut kernel = Rtnl::open()?;
    let found = kernel.link_by_index(device.index)?;
    if found.is_none_or(|l| l.name != device.name || l.kind.as_deref() != Some(VETH)) {
        return Ok(());
    }
    let _ = begun.send(());
    kernel.del_link(device.index)
}

thread_local! {
    /// The socket of this thread's last look; calls come in bursts.
    static KERNEL: RefCell<Option<Rtnl>> = const { RefCell::new(None) };
}

/// Looks, with a socket that is kept unless something went wrong: an answer may still be on its way then.
fn look<T>(f: impl FnOnce(&mut Rtnl) -> Result<T, NetlinkError>) -> Result<T, NetlinkError> {
    KERNEL.with_borrow_mut(|kept| {
        let mut kernel = match kept.take() {
            Some(kernel) => kernel,
            None => Rtnl::open()?,
        };
        let found = f(&mut kernel)?;
        *kept = Some(kernel);
        Ok(found)
    })
}

/// Whether a device of this name exists.
pub(super) async fn exists(name: String) -> bool {
    let look = move || look(|k| k.link_by_name(&name));
    // Not knowing counts as existing: the careful answer for whoever asks.
    !matches!(tokio::task::spawn_blocking(look).await, Ok(Ok(None)))
}

/// The host device of this name, as a deletion names it.
pub(super) async fn find(name: String) -> Option<HostDevice> {
    let look = move || look(|k| k.link_by_name(&name));
    let link = tokio::task::spawn_blocking(look).await.ok()?.ok()??;
    Some(HostDevice { index: link.index, name: link.name })
}

/// What the kernel lacks of an endpoint; none when all is there.
pub(super) async fn missing(endpoint: &Expected) -> Result<Option<String>, String> {
    let endpoint = endpoint.clone();
    let look = move || look(|k| look_for_missing(k, &endpoint)).map_err(|e| e.to_string());
    tokio::task::spawn_blocking(look).await.map_err(|e| e.to_string())?
}

fn look_for_missing(kernel: &mut Rtnl, endpoint: &Expected) -> Result<Option<String>, NetlinkError> {
    let Some(link) = kernel.link_by_name(&endpoint.device)? else {
        return Ok(Some(format!("there is no device {}", endpoint.device)));
    };
    for net in &endpoint.addresses {
        let route = kernel.route_to(net.addr())?;
        let here = route.as_ref().is_some_and(|r| r.dst == net.trunc() && r.only_dev() == Some(link.index));
        if !here {
            return Ok(Some(format!("no route to {net} through {}", endpoint.device)));
        }
    }
    if endpoint.addresses.iter().any(|n| n.addr().is_ipv4()) {
        let key = format!("net/ipv4/conf/{}/proxy_arp", endpoint.device);
        if sysctl::get(&key).is_ok_and(|v| v != "1") {
            return Ok(Some(format!("{key} is off")));
        }
    }
    Ok(None)
}
