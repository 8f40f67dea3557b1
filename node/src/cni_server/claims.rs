//! Which connection an unfinished ADD belongs to. A plugin may be killed with its registration already sent, and the
//! runtime's DEL may be served before that frame is read; a new ADD may come before the dead plugin's is taken back.
//! Whoever comes late finds here that the attachment is no longer theirs. Nothing here acts on an attachment.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use brindle_cni::{error::code, proto::Attachment};
use ipnet::IpNet;

use super::{leaks::handles_of, refused::Refused};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Number of the connection, never used twice.
    pub(super) connection: u64,
    /// This connection was given the attachment that the call is about.
    pub(super) was_given: bool,
}

/// Container, interface and network: a DEL need not name the namespace or the pod.
type Name = (String, String, String);

/// Attachments given and not registered, each with the connection it was given to last, and the addresses they are about to
/// have. An attachment's own are asked and changed in the container's turn only.
#[derive(Default)]
pub(super) struct Claims(Mutex<UnderWay>);

#[derive(Default)]
struct UnderWay {
    given: BTreeMap<Name, u64>,
    /// Whose, and whether another IPAM plugin gave it.
    addresses: BTreeMap<IpAddr, (Name, bool)>,
}

impl UnderWay {
    fn end(&mut self, name: &Name) {
        self.given.remove(name);
        self.addresses.retain(|_, (whose, _)| whose != name);
    }
}

/// An ADD at work. Whatever ends it, a defect too, nothing stays reserved for it unless it gave the attachment.
pub(super) struct Attempt<'a> {
    claims: &'a Claims,
    attachment: &'a Attachment,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.claims.unreserve(self.attachment);
    }
}

fn name(a: &Attachment) -> Name {
    (a.container_id.clone(), a.ifname.clone(), a.network.clone())
}

impl Claims {
    /// Poisoned only if inserting a key panicked, which leaves the maps usable.
    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An ADD begins.
    pub(super) fn attempt<'a>(&'a self, attachment: &'a Attachment) -> Attempt<'a> {
        Attempt { claims: self, attachment }
    }

    /// The attachment was given to this connection.
    pub(super) fn give(&self, a: &Attachment, connection: u64) {
        self.lock().given.insert(name(a), connection);
    }

    /// The attachment is deleted, whoever had it.
    pub(super) fn end(&self, a: &Attachment) {
        self.lock().end(&name(a));
    }

    /// Ends this connection's claim. Says whether there was one.
    pub(super) fn take(&self, a: &Attachment, connection: u64) -> bool {
        let (mut all, name) = (self.lock(), name(a));
        let mine = all.given.get(&name) == Some(&connection);
        if mine {
            all.end(&name);
        }
        mine
    }

    /// Keeps addresses for an ADD that begins, all or none, until its attachment is registered or given up. Fails with the
    /// address another ADD under way is to have, and that one's container. `foreign`: another IPAM plugin gave them. Of
    /// addresses of the pools the records say who has them.
    pub(super) fn reserve(
        &self,
        a: &Attachment,
        addresses: &[IpNet],
        foreign: bool,
    ) -> Result<(), (IpAddr, String)> {
        let (mut all, name) = (self.lock(), name(a));
        let others = |net: &IpNet| {
            let found = all.addresses.get(&net.addr());
            found.filter(|(whose, theirs)| *whose != name && (foreign || *theirs))
        };
        if let Some((net, (whose, _))) = addresses.iter().find_map(|n| Some((n, others(n)?))) {
            return Err((net.addr(), whose.0.clone()));
        }
        all.addresses.extend(addresses.iter().map(|n| (n.addr(), (name.clone(), foreign))));
        Ok(())
    }

    /// After an ADD. What it or an earlier one of the same attachment was given stays its own.
    fn unreserve(&self, a: &Attachment) {
        let (mut all, name) = (self.lock(), name(a));
        if !all.given.contains_key(&name) {
            all.end(&name);
        }
    }

    /// Whether this is the handle of an attachment that is not registered yet.
    pub(super) fn hold(&self, handle: &str) -> bool {
        self.lock().given.keys().any(|(container, ifname, network)| {
            handles_of(network, container, ifname).any(|h| h.eq_ignore_ascii_case(handle))
        })
    }

    /// Refuses a registration of what this caller was given once and somebody deleted or was given since.
    pub(super) fn still(&self, a: &Attachment, caller: Caller) -> Result<(), Refused> {
        let holder = self.lock().given.get(&name(a)).copied();
        if !caller.was_given || holder == Some(caller.connection) {
            return Ok(());
        }
        let what = if holder.is_some() { "added anew" } else { "deleted" };
        Err(Refused::new(
            code::TRY_AGAIN,
            format!("container {} was {what} before this ADD was done", a.container_id),
            "nothing is left of this ADD",
        ))
    }
}
