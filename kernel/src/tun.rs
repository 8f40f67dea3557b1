//! TUN devices: attach, offloads, persistence, and frames with their virtio header.
//! Mechanism only: what a frame means is decided elsewhere (`brindle-felix-core::ipip`).
//! ABI: Linux `Documentation/networking/tuntap.rst`, `linux/if_tun.h`, `linux/virtio_net.h`.
#![expect(unsafe_code, reason = "the TUN ioctls have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

const DEVICE_NODE: &str = "/dev/net/tun";

/// Bytes of the virtio header in front of every frame (`struct virtio_net_hdr`, legacy form).
pub const VNET_HEADER_LEN: usize = 10;
/// The longest frame a TUN device hands out or takes: header plus the largest IPv4 packet.
pub const MAX_FRAME_LEN: usize = VNET_HEADER_LEN + 65_535;

const VNET_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Why a TUN device could not be had.
#[derive(Debug, Error)]
pub enum TunError {
    /// The name does not fit `IFNAMSIZ` or has a character the kernel refuses.
    #[error("device name {0:?} is not usable: 1 to 15 characters without '/' or spaces")]
    BadName(String),
    /// The clone device is missing or closed to us.
    #[error(
        "cannot open {DEVICE_NODE} (is the tun module there, are we root, does the container have the /dev/net of its host?)"
    )]
    Open(#[source] io::Error),
    /// Another process holds the device's only queue.
    #[error("device {0} is in use by another process")]
    Busy(String),
    /// A device of this name exists and is of another kind (kernel ipip, say).
    #[error("device {0} exists and is not a TUN device of ours: choose another name or remove it")]
    Foreign(String),
    /// An ioctl failed for another reason.
    #[error("cannot {what} device {name}")]
    Ioctl {
        /// What was tried.
        what: &'static str,
        /// The device.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Segmentation work the kernel leaves to the reader of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Checksums, TCP and UDP segmentation (Linux 6.2 and later).
    TcpAndUdp,
    /// Checksums and TCP segmentation.
    Tcp,
}

/// The kind of a frame that stands for several packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// UDP: every segment is a datagram of its own.
    Udp,
}

/// What the virtio header says of a frame. Offsets count from the first byte of the IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameMeta {
    /// `(start, offset)`: the checksum of the bytes from `start` belongs at `start + offset`.
    pub partial_checksum: Option<(u16, u16)>,
    /// The frame is to be cut into segments of this many payload bytes.
    pub gso: Option<(GsoKind, u16)>,
    /// Length of all headers; the kernel's own value is a hint only.
    pub header_len: u16,
}

impl FrameMeta {
    /// Reads the header; `None` for a segmentation kind that was never asked for.
    pub fn decode(b: &[u8; VNET_HEADER_LEN]) -> Option<FrameMeta> {
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1] = *b;
        let gso_size = u16::from_ne_bytes([s0, s1]);
        let gso = match gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some((GsoKind::Tcp4, gso_size)),
            GSO_UDP_L4 => Some((GsoKind::Udp, gso_size)),
            _ => return None,
        };
        let partial_checksum = (flags & VNET_NEEDS_CSUM != 0)
            .then(|| (u16::from_ne_bytes([c0, c1]), u16::from_ne_bytes([o0, o1])));
        Some(FrameMeta { partial_checksum, gso, header_len: u16::from_ne_bytes([h0, h1]) })
    }

    /// The header to put in front of a frame.
    pub fn encode(&self) -> [u8; VNET_HEADER_LEN] {
        let (flags, start, offset) =
            self.partial_checksum.map_or((0, 0, 0), |(start, offset)| (VNET_NEEDS_CSUM, start, offset));
        let (gso_type, size) = match self.gso {
            None => (GSO_NONE, 0),
            Some((GsoKind::Tcp4, size)) => (GSO_TCPV4, size),
            Some((GsoKind::Udp, size)) => (GSO_UDP_L4, size),
        };
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [s0, s1] = size.to_ne_bytes();
        let [c0, c1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

/// One attached queue of a TUN device, non-blocking, each frame led by a virtio header.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
}

impl Tun {
    /// Attaches to device `name` in the calling thread's network namespace; makes the device when
    /// it is not there. The device goes with the last attached process unless
    /// [`set_persistent`](Self::set_persistent) says otherwise.
    pub fn attach(name: &str) -> Result<Tun, TunError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', ' ', '\0', '%', ':']) {
            return Err(TunError::BadName(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE_NODE)
            .map_err(TunError::Open)?;
        let tun = Tun { file, name: name.to_owned() };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("TUN flags fit a short");
        // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
        let rc = unsafe { libc::ioctl(tun.file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if rc < 0 {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::EBUSY) => TunError::Busy(tun.name),
                Some(libc::EINVAL) => TunError::Foreign(tun.name),
                _ => TunError::Ioctl { what: "attach to", name: tun.name, source },
            });
        }
        let header = i32::try_from(VNET_HEADER_LEN).expect("ten fits");
        // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer.
        let rc = unsafe { libc::ioctl(tun.file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
        tun.checked(rc, "set the header size of")?;
        Ok(tun)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes over checksums and segmentation from the kernel: frames of up to 64 KiB come in one
    /// read. Asks for UDP too and does without where the kernel is too old for it.
    pub fn enable_offloads(&self) -> Result<Offloads, TunError> {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
        // The kernel ties UDP segmentation of both families together: one bit without the other is refused.
        let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        if self.set_offload(tcp | udp).is_ok() {
            return Ok(Offloads::TcpAndUdp);
        }
        let rc = self.set_offload(tcp);
        match rc {
            Ok(()) => Ok(Offloads::Tcp),
            Err(source) => {
                Err(TunError::Ioctl { what: "enable offloads on", name: self.name.clone(), source })
            }
        }
    }

    fn set_offload(&self, bits: libc::c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its bits as the argument itself; no memory is touched.
        let rc =
            unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether the device outlives the processes attached to it.
    pub fn set_persistent(&self, keep: bool) -> Result<(), TunError> {
        // SAFETY: TUNSETPERSIST takes its flag as the argument itself; no memory is touched.
        let rc =
            unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(keep)) };
        self.checked(rc, "change the persistence of")
    }

    /// Waits until a frame can be read, or the device is gone.
    pub fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads one frame (virtio header included) into `buffer`; `None` when none is waiting.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes one frame given in pieces, the virtio header first.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(pieces).map(|_| ())
    }

    fn checked(&self, rc: libc::c_int, what: &'static str) -> Result<(), TunError> {
        if rc < 0 {
            let source = io::Error::last_os_error();
            return Err(TunError::Ioctl { what, name: self.name.clone(), source });
        }
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_header_survives_the_round_trip() {
        for meta in [
            FrameMeta::default(),
            FrameMeta { partial_checksum: Some((20, 16)), gso: None, header_len: 40 },
            FrameMeta { partial_checksum: Some((20, 16)), gso: Some((GsoKind::Tcp4, 1440)), header_len: 40 },
            FrameMeta { partial_checksum: Some((20, 6)), gso: Some((GsoKind::Udp, 1200)), header_len: 28 },
        ] {
            assert_eq!(FrameMeta::decode(&meta.encode()), Some(meta));
        }
    }

    #[test]
    fn a_segmentation_kind_never_asked_for_is_refused() {
        assert_eq!(FrameMeta::decode(&[0, 4, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_name_the_kernel_would_mangle_is_refused() {
        for name in ["", "sixteen-chars-xx", "a/b", "a b", "tun%d"] {
            assert!(matches!(Tun::attach(name), Err(TunError::BadName(_))), "{name}");
        }
    }
}
