//! Notifications: what changed in a namespace, as it happens.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

use nix::libc;
use socket2::SockFilter;

use super::{
    decode::{self, msg},
    error::NetlinkError,
    rtnl::inside,
    socket::{Frame, Frames, Limit, NlSocket},
    types::{Addr, Link, Route},
};
use crate::netns::NetNs;

/// Bursts of 10,000 link events fit.
const RCVBUF: usize = 8 << 20;
/// Datagrams thrown away at once after an overrun.
const DRAIN: usize = 1 << 16;

/// What to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Links,
    AddrsV4,
    AddrsV6,
    RoutesV4,
    RoutesV6,
}

impl Group {
    /// `RTNLGRP_*`.
    const fn number(self) -> u32 {
        match self {
            Self::Links => 1,
            Self::AddrsV4 => 5,
            Self::RoutesV4 => 7,
            Self::AddrsV6 => 9,
            Self::RoutesV6 => 11,
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// New or changed.
    Link(Link),
    LinkGone(Link),
    Addr(Addr),
    AddrGone(Addr),
    Route(Route),
    RouteGone(Route),
}

/// A listening socket.
pub struct Monitor {
    sock: NlSocket,
    wake: UnixStream,
    waker: Waker,
    ignored: Vec<u32>,
    /// Events are being lost, and the kernel does not say so again before all that waits has been taken.
    losing: bool,
}

/// Ends a [`Monitor::next`] from another thread.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// A waker that calls `f`.
    pub fn new(f: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// Makes the running `next`, or the following one, return no events. Repeated calls merge.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl Monitor {
    /// In the namespace of the calling thread.
    pub fn open(groups: &[Group]) -> Result<Self, NetlinkError> {
        let mut sock = NlSocket::open(RCVBUF)?;
        for g in groups {
            sock.join(g.number())?;
        }
        let (wake, far) = pair().map_err(|e| NetlinkError::Socket {
            what: "create wake-up socket".into(),
            errno: e.raw_os_error().unwrap_or(0),
        })?;
        let waker = Waker::new(move || {
            // Fails only when the buffer is full: then the reader is woken already.
            let _ = (&far).write(&[1]);
        });
        Ok(Self { sock, wake, waker, ignored: Vec::new(), losing: false })
    }

    /// In another namespace.
    pub fn open_in(ns: &NetNs, groups: &[Group]) -> Result<Self, NetlinkError> {
        inside(ns, || Self::open(groups))
    }

    /// Keeps quiet about route changes that were requested through these sockets ([`super::Rtnl::port`],
    /// [`super::RouteBatcher::port`]): whoever made them knows. The kernel leaves them out by itself, so that they wake
    /// nobody and take no room from what others do; where it does not, they are read and dropped here.
    pub fn ignore(&mut self, ports: &[u32]) {
        self.ignored.extend(ports.iter().filter(|p| **p != 0));
        if let Err(e) = self.sock.filter(&without(&self.ignored)) {
            tracing::debug!("own route changes are read and dropped: {e}");
        }
    }

    /// How many octets of events may wait for [`Self::next`], as far as the kernel goes along (its least is a few
    /// events); more than that is an overrun.
    pub fn set_buffer(&mut self, octets: usize) -> Result<(), NetlinkError> {
        self.sock.set_rcvbuf(octets)
    }

    /// A handle that interrupts [`Self::next`].
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Waits for the next events (`limit` none: for ever). An empty answer means woken or time over. `Overrun` means
    /// events were lost: read everything again and go on listening; the socket stays usable.
    pub fn next(&mut self, limit: Option<Duration>) -> Result<Vec<Event>, NetlinkError> {
        let limit = limit.map(Limit::after);
        while !self.losing {
            match self.datagram(limit) {
                Ok(Some(events)) if events.is_empty() => {}
                Ok(Some(events)) => return Ok(events),
                Ok(None) => return Ok(Vec::new()),
                Err(NetlinkError::Overrun { .. }) => self.losing = true,
                Err(e) => return Err(e),
            }
        }
        self.drain()
    }

    /// The kernel tells of an overrun once, and of what is lost from then on only after the queue has been empty: whoever
    /// read everything before that would miss it. What is thrown away here is in what is read then.
    fn drain(&mut self) -> Result<Vec<Event>, NetlinkError> {
        let what = "wait for netlink events";
        for _ in 0..DRAIN {
            match self.sock.recv(Some(Limit::after(Duration::ZERO)), None, what) {
                Ok(_) | Err(NetlinkError::Overrun { .. }) => {}
                Err(NetlinkError::Timeout { .. }) => {
                    self.losing = false;
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        // Under a flood without end it is said again and again.
        Err(NetlinkError::Overrun { what: what.to_owned() })
    }

    /// The events of one datagram; none when woken or out of time.
    fn datagram(&mut self, limit: Option<Limit>) -> Result<Option<Vec<Event>>, NetlinkError> {
        let what = "wait for netlink events";
        let datagram = match self.sock.recv(limit, Some(self.wake.as_fd()), what) {
            Ok(Some(d)) => d,
            Ok(None) => {
                let _ = (&self.wake).read(&mut [0; 64]);
                return Ok(None);
            }
            Err(NetlinkError::Timeout { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut events = Vec::new();
        for frame in Frames(datagram) {
            let own = |f: &Frame<'_>| {
                matches!(f.kind, msg::NEWROUTE | msg::DELROUTE) && self.ignored.contains(&f.port)
            };
            let event = frame.and_then(|f| if own(&f) { Ok(None) } else { read(&f) });
            match event {
                Ok(e) => events.extend(e),
                Err(reason) => return Err(NetlinkError::Garbled { what: what.to_owned(), reason }),
            }
        }
        Ok(Some(events))
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sock.as_fd()
    }
}

/// A filter (classic BPF) that lets everything through but route changes these ports asked for.
fn without(ports: &[u32]) -> Vec<SockFilter> {
    // Loads are big-endian, the header (type at 4, port at 12) has the order of the machine.
    let half = |n: u16| u32::from(u16::from_be_bytes(n.to_ne_bytes()));
    let word = |n: u32| u32::from_be_bytes(n.to_ne_bytes());
    let load = |size: u32, at: u32| op(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at);
    let jump =
        |value: u32, same: u8, other: u8| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, same, other, value);
    // Jumps are short; more ports than there are of ours would be left to the reader.
    let ports = &ports[..ports.len().min(100)];
    let count = u8::try_from(ports.len()).unwrap_or(0);
    let mut all = vec![
        load(libc::BPF_H, 4),
        jump(half(msg::NEWROUTE), 1, 0),
        jump(half(msg::DELROUTE), 0, count + 1),
        load(libc::BPF_W, 12),
    ];
    all.extend((1..=count).rev().zip(ports).map(|(left, port)| jump(word(*port), left, 0)));
    all.extend([op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX), op(libc::BPF_RET | libc::BPF_K, 0, 0, 0)]);
    all
}

fn op(code: u32, same: u8, other: u8, k: u32) -> SockFilter {
    SockFilter::new(u16::try_from(code).unwrap_or(0), same, other, k)
}

fn pair() -> std::io::Result<(UnixStream, UnixStream)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((near, far))
}

/// Reads every message of a datagram as each of the kinds there are; returns how many there were. For fuzzing.
#[doc(hidden)]
pub fn read_any(datagram: &[u8]) -> usize {
    let frames = Frames(datagram).flatten();
    let all = frames.inspect(|f| {
        let _ =
            (read(f), decode::neigh(f.payload), decode::error(f.payload, f.flags), decode::done(f.payload));
    });
    all.count()
}

fn read(f: &Frame<'_>) -> Result<Option<Event>, String> {
    Ok(match f.kind {
        msg::NEWLINK => Some(Event::Link(decode::link(f.payload)?)),
        msg::DELLINK => Some(Event::LinkGone(decode::link(f.payload)?)),
        msg::NEWADDR => decode::addr(f.payload)?.map(Event::Addr),
        msg::DELADDR => decode::addr(f.payload)?.map(Event::AddrGone),
        msg::NEWROUTE => decode::route(f.payload)?.map(Event::Route),
        msg::DELROUTE => decode::route(f.payload)?.map(Event::RouteGone),
        _ => None,
    })
}
