//! Bulk route changes: many messages per `sendmsg`, one acknowledgement per batch, every refusal mapped to its route.
//!
//! Why not one request at a time: the kernel needs about 3 µs for a route, the round trip of a system call and its
//! acknowledgement costs as much again. Why acknowledge only the last: refusals are always sent, so an
//! acknowledgement of the last message, after the refusals of the others in the same queue, settles all of them. The
//! receive buffer (8 MiB) holds the refusals of a whole batch many times over, so none can be lost; if the kernel
//! says that some were (ENOBUFS) or the deadline passes, the batch ends with an error and the caller reads back.

use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};

use super::{
    decode::{self, msg},
    encode,
    error::NetlinkError,
    rtnl::inside,
    socket::{Frames, Limit, NlSocket},
    types::Route,
};
use crate::netns::NetNs;

const RCVBUF: usize = 8 << 20;
const PER_SEND: usize = 128;
const TIMEOUT: Duration = Duration::from_secs(10);

/// One change of a bulk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// Refused with EEXIST if destination and metric are taken.
    Add(Route),
    /// Add or put in place of what has this destination and metric, without a gap.
    Replace(Route),
    /// Refused with ESRCH if no such route is there. The protocol must match: foreign routes are never hit.
    Delete(Route),
}

impl RouteChange {
    pub fn route(&self) -> &Route {
        match self {
            Self::Add(r) | Self::Replace(r) | Self::Delete(r) => r,
        }
    }

    fn verb(&self) -> &'static str {
        match self {
            Self::Add(_) => "add",
            Self::Replace(_) => "replace",
            Self::Delete(_) => "delete",
        }
    }
}

/// A change the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRefusal {
    /// Position in the changes handed in.
    pub index: usize,
    pub error: NetlinkError,
}

/// What became of a bulk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchReport {
    /// Changes the kernel carried out.
    pub done: usize,
    /// Changes it refused, in order.
    pub refused: Vec<RouteRefusal>,
    /// Set when the bulk ended early (overrun, time over, socket failure): changes from `sent_to` on were not sent,
    /// and of those before it an unknown part took effect.
    pub broken: Option<NetlinkError>,
    /// How many changes were handed to the kernel.
    pub sent_to: usize,
}

/// A socket for bulk route changes.
pub struct RouteBatcher {
    sock: NlSocket,
    timeout: Duration,
    bytes: Vec<u8>,
}

impl RouteBatcher {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { sock: NlSocket::open(RCVBUF)?, timeout: TIMEOUT, bytes: Vec::with_capacity(16 << 10) })
    }

    /// In another namespace.
    pub fn open_in(ns: &NetNs) -> Result<Self, NetlinkError> {
        inside(ns, Self::open)
    }

    /// The socket's port: what [`super::Monitor::ignore`] takes.
    pub fn port(&self) -> u32 {
        self.sock.port()
    }

    /// Deadline of each batch of 128 (10 s at first).
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Applies the changes in order. A refused change does not stop the others.
    pub fn apply(&mut self, changes: &[RouteChange]) -> BatchReport {
        let mut report = BatchReport::default();
        for (n, chunk) in changes.chunks(PER_SEND).enumerate() {
            let base = n * PER_SEND;
            if let Err(e) = self.batch(base, chunk, &mut report) {
                report.broken = Some(e);
                break;
            }
        }
        report
    }

    fn batch(
        &mut self,
        base: usize,
        chunk: &[RouteChange],
        report: &mut BatchReport,
    ) -> Result<(), NetlinkError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut first = 0;
        for (i, change) in chunk.iter().enumerate() {
            let seq = self.sock.next_seq();
            if i == 0 {
                first = seq;
            }
            let ack = if i + 1 == chunk.len() { NLM_F_ACK } else { 0 };
            let (kind, flags, body) = match change {
                RouteChange::Add(r) => (msg::NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, encode::route(r)),
                RouteChange::Replace(r) => (msg::NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, encode::route(r)),
                RouteChange::Delete(r) => (msg::DELROUTE, 0, encode::route_del(r)),
            };
            encode::message(&mut bytes, kind, NLM_F_REQUEST | flags | ack, seq, &body);
        }
        let sent = self.sock.send(&bytes, "send routes");
        self.bytes = bytes;
        sent?;
        report.sent_to = base + chunk.len();
        let limit = Limit::after(self.timeout);
        let mut refused = 0;
        loop {
            let datagram = self.sock.recv(Some(limit), None, "program routes")?.unwrap_or_default();
            for frame in Frames(datagram) {
                let garbled = |reason| NetlinkError::Garbled { what: "program routes".into(), reason };
                let f = frame.map_err(garbled)?;
                if f.kind != msg::ERROR {
                    continue;
                }
                // The sequence may wrap; the distance from the first tells the change, stale answers are far away.
                let at = (f.seq.wrapping_sub(first)) as usize;
                let Some(change) = chunk.get(at) else { continue };
                let (errno, ext) = decode::error(f.payload, f.flags).map_err(garbled)?;
                if errno != 0 {
                    refused += 1;
                    let what = format!("{} route {}", change.verb(), change.route());
                    let error = NetlinkError::Refused { what, errno, ext };
                    report.refused.push(RouteRefusal { index: base + at, error });
                }
                if at + 1 == chunk.len() {
                    report.done += chunk.len() - refused;
                    return Ok(());
                }
            }
        }
    }
}
