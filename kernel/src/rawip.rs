//! Raw IPv4 sockets for one IP protocol, with batched system calls. The kernel makes the IPv4
//! header of what is sent (and fragments nothing: DF is always set) and hands in whole packets,
//! reassembled, header included. Mechanism only: nothing here looks into a packet.
#![expect(unsafe_code, reason = "sendmmsg and recvmmsg with ancillary data need raw message headers")]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Datagrams handed over by one system call.
pub const SEND_BATCH: usize = 64;
/// Room for the largest IPv4 packet.
const SLOT: usize = 65_536;
/// `IP_PMTUDISC_DO` of `linux/in.h`: DF set, over-size refused with `EMSGSIZE`.
const PMTUDISC_DO: libc::c_int = 2;

/// A datagram to send: `head` and `body` are ranges of the two buffers given to
/// [`RawIp::send`], sent one after the other behind an IPv4 header of the kernel's making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Outer destination.
    pub to: Ipv4Addr,
    /// Outer TOS byte.
    pub tos: u8,
    /// Bytes of the heads buffer; may be empty.
    pub head: Range<usize>,
    /// Bytes of the bodies buffer.
    pub body: Range<usize>,
}

impl Datagram {
    /// Payload bytes behind the outer header.
    pub fn len(&self) -> usize {
        self.head.len().saturating_add(self.body.len())
    }

    /// Whether there is no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Buffers for one batch of received packets. Untouched pages cost no memory.
#[derive(Debug)]
pub struct RecvBatch {
    slots: Vec<u8>,
    lengths: Vec<usize>,
    filled: usize,
}

impl RecvBatch {
    /// Room for `count` packets, at least one.
    pub fn new(count: usize) -> RecvBatch {
        let count = count.max(1);
        RecvBatch { slots: vec![0; count * SLOT], lengths: vec![0; count], filled: 0 }
    }

    /// Packets of the last [`RawIp::receive`].
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether the last receive brought nothing.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Packet `i`, outer header included.
    pub fn packet(&self, i: usize) -> Option<&[u8]> {
        let length = *self.lengths.get(..self.filled)?.get(i)?;
        self.slots.chunks_exact(SLOT).nth(i)?.get(..length)
    }

    /// Packet `i`, to be changed in place.
    pub fn packet_mut(&mut self, i: usize) -> Option<&mut [u8]> {
        let length = *self.lengths.get(..self.filled)?.get(i)?;
        self.slots.chunks_exact_mut(SLOT).nth(i)?.get_mut(..length)
    }
}

/// Ancillary data of one message: room for one `IP_TOS`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct TosControl {
    header: libc::cmsghdr,
    tos: libc::c_int,
    padding: [u8; 4],
}

/// A raw socket bound to one local address and one IP protocol.
#[derive(Debug)]
pub struct RawIp {
    socket: Socket,
    local: Ipv4Addr,
}

impl RawIp {
    /// Opens the socket in the calling thread's network namespace. `buffer_bytes` is asked for in
    /// both directions, beyond the system's limit if we may. Errors: no privilege, or `local` is
    /// no address of this namespace.
    pub fn open(protocol: u8, local: Ipv4Addr, ttl: u8, buffer_bytes: usize) -> io::Result<RawIp> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
        socket.set_ttl_v4(u32::from(ttl))?;
        let discover = PMTUDISC_DO;
        // SAFETY: the option value is one int that lives until the call returns.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                ptr::from_ref(&discover).cast(),
                socklen(mem::size_of::<libc::c_int>()),
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        // Without the privilege to exceed the limit, as much as the limit allows.
        if setsockopt(&socket, sockopt::RcvBufForce, &buffer_bytes).is_err() {
            socket.set_recv_buffer_size(buffer_bytes)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &buffer_bytes).is_err() {
            socket.set_send_buffer_size(buffer_bytes)?;
        }
        socket.bind(&SocketAddrV4::new(local, 0).into())?;
        Ok(RawIp { socket, local })
    }

    /// The address the socket is bound to.
    pub fn local(&self) -> Ipv4Addr {
        self.local
    }

    /// Sends as many of `datagrams` as one system call takes (at most [`SEND_BATCH`]) and says how
    /// many that were. An error concerns the first datagram alone, or is one that arrived earlier
    /// by ICMP. A datagram whose ranges are outside the buffers is refused with `InvalidInput`.
    pub fn send(&self, heads: &[u8], bodies: &[u8], datagrams: &[Datagram]) -> io::Result<usize> {
        let count = datagrams.len().min(SEND_BATCH);
        // SAFETY: all-zero values are valid for these plain C structs.
        let (mut addresses, mut vectors, mut messages, mut controls) = unsafe {
            (
                mem::zeroed::<[libc::sockaddr_in; SEND_BATCH]>(),
                mem::zeroed::<[[libc::iovec; 2]; SEND_BATCH]>(),
                mem::zeroed::<[libc::mmsghdr; SEND_BATCH]>(),
                mem::zeroed::<[TosControl; SEND_BATCH]>(),
            )
        };
        let parts = addresses.iter_mut().zip(vectors.iter_mut()).zip(controls.iter_mut());
        for ((datagram, message), ((address, vector), control)) in
            datagrams.iter().zip(messages.iter_mut()).zip(parts)
        {
            let (Some(head), Some(body)) =
                (heads.get(datagram.head.clone()), bodies.get(datagram.body.clone()))
            else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "datagram outside its buffers"));
            };
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_addr.s_addr = u32::from(datagram.to).to_be();
            let [first, second] = vector;
            *first = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
            *second = libc::iovec { iov_base: body.as_ptr().cast_mut().cast(), iov_len: body.len() };
            let hdr = &mut message.msg_hdr;
            hdr.msg_name = ptr::from_mut(address).cast();
            hdr.msg_namelen = socklen(mem::size_of::<libc::sockaddr_in>());
            if head.is_empty() {
                hdr.msg_iov = ptr::from_mut(second);
                hdr.msg_iovlen = 1;
            } else {
                hdr.msg_iov = vector.as_mut_ptr();
                hdr.msg_iovlen = 2;
            }
            if datagram.tos != 0 {
                control.header.cmsg_len = mem::offset_of!(TosControl, padding) as _;
                control.header.cmsg_level = libc::IPPROTO_IP;
                control.header.cmsg_type = libc::IP_TOS;
                control.tos = libc::c_int::from(datagram.tos);
                hdr.msg_control = ptr::from_mut(control).cast();
                hdr.msg_controllen = mem::size_of::<TosControl>() as _;
            }
        }
        // SAFETY: every pointer in the first `count` messages leads into `addresses`, `vectors`,
        // `controls` or the two borrowed buffers, all alive until the call returns; the kernel
        // only reads the payload.
        let rc = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, 0)
        };
        usize::try_from(rc).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for packets and takes all that are there, up to the batch's room. An error may be one
    /// that arrived earlier by ICMP; the socket stays usable.
    pub fn receive(&self, batch: &mut RecvBatch) -> io::Result<()> {
        batch.filled = 0;
        let count = batch.lengths.len().min(SEND_BATCH);
        // SAFETY: all-zero values are valid for these plain C structs.
        let (mut vectors, mut messages) = unsafe {
            (mem::zeroed::<[libc::iovec; SEND_BATCH]>(), mem::zeroed::<[libc::mmsghdr; SEND_BATCH]>())
        };
        let slots = batch.slots.chunks_exact_mut(SLOT);
        for ((slot, vector), message) in slots.zip(vectors.iter_mut()).zip(messages.iter_mut()).take(count) {
            *vector = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            message.msg_hdr.msg_iov = ptr::from_mut(vector);
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every pointer in the first `count` messages leads into `vectors` or the slots of
        // `batch`, borrowed exclusively until the call returns.
        let rc = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        let received = usize::try_from(rc).map_err(|_| io::Error::last_os_error())?;
        for (length, message) in batch.lengths.iter_mut().zip(&messages).take(received) {
            *length = (message.msg_len as usize).min(SLOT);
        }
        batch.filled = received.min(count);
        Ok(())
    }

    /// The path MTU towards `to` as the kernel knows it now (route, device, ICMP learnt), outer
    /// header included.
    pub fn path_mtu(&self, to: Ipv4Addr) -> io::Result<u32> {
        // Connecting a UDP socket resolves the route and sends nothing.
        let probe = UdpSocket::bind((self.local, 0))?;
        probe.connect((to, 9))?;
        let mtu = getsockopt(&probe, sockopt::IpMtu)?;
        u32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }
}

impl AsFd for RawIp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What an error of [`RawIp::send`] or [`RawIp::receive`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The datagram does not fit the path, or ICMP said so of an earlier one.
    TooBig,
    /// ICMP reported it, most likely of an earlier datagram; trying again tells.
    Reported,
    /// This datagram cannot go now: no room, no route, forbidden, device down.
    Refused,
    /// The socket is of no use any more.
    Fatal,
}

/// Sorts an error by what can be done about it.
pub fn trouble(error: &io::Error) -> Trouble {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => Trouble::TooBig,
        Some(
            libc::ECONNREFUSED
            | libc::ENOPROTOOPT
            | libc::EHOSTUNREACH
            | libc::EHOSTDOWN
            | libc::ENETUNREACH
            | libc::EPROTO
            | libc::EOPNOTSUPP
            | libc::EINTR,
        ) => Trouble::Reported,
        Some(
            libc::ENOBUFS
            | libc::ENOMEM
            | libc::EPERM
            | libc::EACCES
            | libc::EINVAL
            | libc::ENETDOWN
            | libc::ENODEV
            | libc::ENXIO
            | libc::EADDRNOTAVAIL
            | libc::EAGAIN,
        ) => Trouble::Refused,
        _ => Trouble::Fatal,
    }
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).expect("a C struct is smaller than 4 GiB")
}

#[cfg(test)]
mod tests;
