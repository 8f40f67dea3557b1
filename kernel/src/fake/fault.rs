//! Scripted failures: the next call of a kind fails in a given way.

use std::collections::VecDeque;

use nix::libc;

use crate::netlink::NetlinkError;

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Links,
    Addrs,
    Routes,
    /// One route of a bulk.
    WriteRoute,
    /// A bulk as a whole: it ends before its first route.
    WriteBulk,
    AddLink,
    SetLink,
    AddAddr,
    SetNeigh,
    Sysctl,
    /// The next wait for events.
    Events,
}

/// How they fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The kernel says no, with this errno (EEXIST, ENETDOWN, EPERM, …). EINTR during a dump is repeated, as on Linux.
    Errno(i32),
    /// ENOBUFS: messages were dropped.
    Overrun,
    /// No answer.
    Timeout,
    /// A truncated answer.
    Garbled,
    /// The table changed during every attempt to dump it.
    Unstable,
}

impl Fault {
    pub(super) fn error(self, what: &str) -> NetlinkError {
        let what = what.to_owned();
        match self {
            Self::Errno(errno) => NetlinkError::Refused { what, errno, ext: None },
            Self::Overrun => NetlinkError::Overrun { what },
            Self::Timeout => NetlinkError::Timeout { what, after: std::time::Duration::from_secs(10) },
            Self::Garbled => NetlinkError::Garbled { what, reason: "truncated".into() },
            Self::Unstable => NetlinkError::Unstable { what, attempts: 20 },
        }
    }
}

/// What is going to fail.
#[derive(Debug, Default)]
pub(super) struct Script(VecDeque<(Call, Fault)>);

impl Script {
    pub(super) fn push(&mut self, call: Call, fault: Fault) {
        self.0.push_back((call, fault));
    }

    /// Takes the first failure meant for this call.
    pub(super) fn take(&mut self, call: Call) -> Option<Fault> {
        let at = self.0.iter().position(|(c, _)| *c == call)?;
        self.0.remove(at).map(|(_, f)| f)
    }

    /// As [`Self::take`] for a dump, which repeats itself on EINTR.
    pub(super) fn take_dump(&mut self, call: Call) -> Option<Fault> {
        loop {
            match self.take(call) {
                Some(Fault::Errno(libc::EINTR)) => {}
                other => return other,
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
