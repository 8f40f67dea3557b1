//! Which connection an unfinished ADD belongs to. A plugin may be killed with its registration already sent, and the
//! runtime's DEL may be served before that frame is read; a new ADD may come before the dead plugin's is taken back.
//! Whoever comes late finds here that the attachment is no longer theirs. Nothing here acts on an attachment.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use brindle_cni::{error::code, proto::Attachment};

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

/// Attachments given and not registered, each with the connection it was given to last. Asked and changed in the
/// container's turn only.
#[derive(Default)]
pub(super) struct Claims(Mutex<BTreeMap<Name, u64>>);

fn name(a: &Attachment) -> Name {
    (a.container_id.clone(), a.ifname.clone(), a.network.clone())
}

impl Claims {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Name, u64>) -> T) -> T {
        // Poisoned only if inserting a key panicked, which leaves the map usable.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The attachment was given to this connection.
    pub(super) fn give(&self, a: &Attachment, connection: u64) {
        self.with(|all| all.insert(name(a), connection));
    }

    /// The attachment is deleted, whoever had it.
    pub(super) fn end(&self, a: &Attachment) {
        self.with(|all| all.remove(&name(a)));
    }

    /// Ends this connection's claim. Says whether there was one.
    pub(super) fn take(&self, a: &Attachment, connection: u64) -> bool {
        self.with(|all| {
            let mine = all.get(&name(a)) == Some(&connection);
            if mine {
                all.remove(&name(a));
            }
            mine
        })
    }

    /// Whether this is the handle of an attachment that is not registered yet.
    pub(super) fn hold(&self, handle: &str) -> bool {
        self.with(|all| {
            all.keys().any(|(container, ifname, network)| {
                handles_of(network, container, ifname).any(|h| h.eq_ignore_ascii_case(handle))
            })
        })
    }

    /// Refuses a registration of what this caller was given once and somebody deleted or was given since.
    pub(super) fn still(&self, a: &Attachment, caller: Caller) -> Result<(), Refused> {
        let holder = self.with(|all| all.get(&name(a)).copied());
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
