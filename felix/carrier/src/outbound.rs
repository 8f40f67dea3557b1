//! The outbound thread: device → raw socket. Reads all frames that wait, finds the node each goes
//! to, cuts what must be cut, sends the lot in as few system calls as possible, and tells the
//! sender of a packet that does not fit or has nowhere to go.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Instant;

use brindle_felix_core::ipip::encap::{is_loop, outer_tos};
use brindle_felix_core::ipip::flow::flow_hash;
use brindle_felix_core::ipip::fragment::{Fragment, fragment};
use brindle_felix_core::ipip::icmp::{self, Limiter};
use brindle_felix_core::ipip::ipv4::{Flaw, Header};
use brindle_felix_core::ipip::segment::{Kind, complete_checksum, headers_len, segment};
use brindle_felix_core::ipip::table::Choice;
use brindle_felix_core::ipip::{MIN_MTU, OVERHEAD};
use brindle_kernel::rawip::{self, Datagram, RawIp, Trouble};
use brindle_kernel::tun::{FrameMeta, GsoKind, MAX_FRAME_LEN, Tun, VNET_HEADER_LEN};

use crate::shared::{OutboundCounters, Shared, View};

/// Frames are read one behind the other into a buffer of this size, until it is full or no more
/// wait. Small enough to stay in a cache, room for three frames of 64 KiB or many small ones.
const FRAMES: usize = 4 * MAX_FRAME_LEN;
/// Datagrams gathered before they are sent.
const GATHER: usize = 192;
/// Destinations remembered with their node.
const REMEMBERED: usize = 256;
/// A narrow path is believed this long and then asked for again (the kernel itself forgets after
/// ten minutes, RFC 1191 section 6.3).
const PATH_MTU_MS: u64 = 30_000;
/// ICMP errors a second.
const ICMP_RATE: u32 = 1000;

struct Path {
    mtu: u16,
    learnt_ms: u64,
}

struct Outbound<'a> {
    counters: &'a OutboundCounters,
    local: Ipv4Addr,
    tun: &'a Tun,
    raw: &'a RawIp,
    view: View,
    start: Instant,
    limiter: Limiter,
    frames: Vec<u8>,
    heads: Vec<u8>,
    pieces: Vec<Fragment>,
    out: Vec<Datagram>,
    remembered: Vec<Option<(Ipv4Addr, Ipv4Addr)>>,
    /// Nodes whose path is narrower than their device: few, mostly none.
    paths: HashMap<Ipv4Addr, Path>,
}

/// Runs until the device or the socket fails for good.
pub(crate) fn run(shared: &Shared, tun: &Tun, raw: &RawIp) -> io::Result<()> {
    let mut outbound = Outbound {
        counters: &shared.outbound,
        local: shared.local,
        tun,
        raw,
        view: View::wait(shared),
        start: Instant::now(),
        limiter: Limiter::new(ICMP_RATE, 0),
        frames: vec![0; FRAMES],
        heads: Vec::new(),
        pieces: Vec::new(),
        out: Vec::with_capacity(GATHER),
        remembered: vec![None; REMEMBERED],
        paths: HashMap::new(),
    };
    loop {
        if !outbound.gather(shared)? {
            tun.wait()?;
            continue;
        }
        outbound.send()?;
    }
}

impl Outbound<'_> {
    /// Reads what waits, up to the room there is; false when nothing waited.
    fn gather(&mut self, shared: &Shared) -> io::Result<bool> {
        self.heads.clear();
        self.out.clear();
        let mut used = 0;
        while let Some(room) = self.frames.get_mut(used..used + MAX_FRAME_LEN)
            && self.out.len() < GATHER
        {
            let Some(n) = self.tun.read(room)? else { break };
            if used == 0 && self.view.refresh(shared) {
                self.remembered.fill(None);
            }
            self.counters.frames.one();
            self.frame(used..used.saturating_add(n));
            used = used.saturating_add(n);
        }
        Ok(used > 0)
    }

    /// Takes one frame: its datagrams are queued, or it is dropped and counted.
    fn frame(&mut self, range: Range<usize>) {
        let c = self.counters;
        let base = range.start.saturating_add(VNET_HEADER_LEN);
        let Some(frame) = self.frames.get_mut(range) else { return };
        let Some((meta, packet)) = frame.split_first_chunk_mut::<VNET_HEADER_LEN>() else {
            return c.dropped_malformed.one();
        };
        let header = match Header::parse(packet) {
            Ok(header) => header,
            Err(Flaw::Version | Flaw::Short) => return c.dropped_not_ipv4.one(),
            Err(_) => return c.dropped_malformed.one(),
        };
        let Some(meta) = FrameMeta::decode(meta) else { return c.dropped_malformed.one() };
        if is_loop(self.local, &header) {
            return c.dropped_loop.one();
        }
        let slot = self.remembered.get_mut(usize::from(header.dst.octets()[3]));
        let known = slot.as_ref().and_then(|s| **s).filter(|(dst, _)| *dst == header.dst);
        let via = match known {
            Some((_, via)) => via,
            None => {
                let Some(choice) = self.view.table().via(header.dst) else {
                    c.dropped_no_route.one();
                    return self.complain(base, &header, icmp::Error::HostUnreachable);
                };
                match choice {
                    Choice::One(via) => {
                        if let Some(slot) = slot {
                            *slot = Some((header.dst, via));
                        }
                        via
                    }
                    // All packets of a flow go one way, so that they arrive in order.
                    Choice::Many(_) => choice.of(flow_hash(packet, &header)),
                }
            }
        };
        let limit = if self.paths.is_empty() { u16::MAX } else { self.limit(via) };
        self.queue(base, &header, meta, via, limit);
    }

    fn queue(&mut self, base: usize, header: &Header, meta: FrameMeta, via: Ipv4Addr, limit: u16) {
        let c = self.counters;
        let tos = outer_tos(header.tos);
        let whole = base..base.saturating_add(header.total_len);
        let Some(packet) = self.frames.get_mut(whole.clone()) else { return c.dropped_malformed.one() };
        self.pieces.clear();
        let cut = match meta.gso {
            None => {
                if let Some((start, offset)) = meta.partial_checksum
                    && complete_checksum(packet, start, offset).is_err()
                {
                    return c.dropped_malformed.one();
                }
                if header.total_len <= usize::from(limit) {
                    self.out.push(Datagram { to: via, tos, head: 0..0, body: whole });
                    return;
                }
                if header.dont_fragment {
                    c.dropped_too_big.one();
                    return self.complain(base, header, icmp::Error::FragmentationNeeded { mtu: limit });
                }
                self.pieces = fragment(packet, header, limit, &mut self.heads);
                c.fragmented.one();
                !self.pieces.is_empty()
            }
            Some((kind, size)) => {
                let kind = match kind {
                    GsoKind::Tcp4 => Kind::Tcp,
                    GsoKind::Udp => Kind::Udp,
                };
                let size = match headers_len(packet, header, kind) {
                    Ok(headers) if headers + usize::from(size) > usize::from(limit) => {
                        if header.dont_fragment {
                            c.dropped_too_big.one();
                            let error = icmp::Error::FragmentationNeeded { mtu: limit };
                            return self.complain(base, header, error);
                        }
                        if kind == Kind::Udp {
                            // A datagram is not ours to cut; one too long is fragmented when the
                            // kernel refuses it.
                            size
                        } else {
                            limit.saturating_sub(u16::try_from(headers).unwrap_or(u16::MAX))
                        }
                    }
                    _ => size,
                };
                segment(packet, header, kind, size, &mut self.heads, &mut self.pieces).is_ok()
            }
        };
        if !cut {
            return c.dropped_malformed.one();
        }
        self.out.extend(self.pieces.drain(..).map(|piece| Datagram {
            to: via,
            tos,
            head: piece.head,
            body: base.saturating_add(piece.body.start)..base.saturating_add(piece.body.end),
        }));
    }

    /// Sends all that is queued.
    fn send(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        let mut rest = out.as_slice();
        let mut again = true;
        while let Some((first, tail)) = rest.split_first() {
            match self.raw.send(&self.heads, &self.frames, rest) {
                Ok(n) => {
                    let (sent, left) = rest.split_at(n.clamp(1, rest.len()));
                    self.counters.packets.add(sent.len());
                    self.counters.bytes.add(sent.iter().map(Datagram::len).sum());
                    rest = left;
                    again = true;
                }
                Err(e) => {
                    let trouble = rawip::trouble(&e);
                    match trouble {
                        Trouble::Fatal => return Err(e),
                        Trouble::TooBig if self.narrower(first) => rest = tail,
                        // The error may be an earlier datagram's: this one gets a second chance.
                        Trouble::TooBig | Trouble::Reported if again => {
                            self.counters.ignored_errors.one();
                            again = false;
                        }
                        Trouble::TooBig | Trouble::Reported | Trouble::Refused => {
                            self.counters.dropped_unsent.one();
                            rest = tail;
                            again = true;
                        }
                    }
                }
            }
        }
        self.out = out;
        Ok(())
    }

    /// The kernel refused a datagram as too big. Looks up how wide the path is; when the datagram
    /// indeed does not fit, remembers that, deals with the datagram and returns true.
    fn narrower(&mut self, datagram: &Datagram) -> bool {
        let Ok(mtu) = self.raw.path_mtu(datagram.to) else { return false };
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).saturating_sub(OVERHEAD).max(MIN_MTU);
        if datagram.len() <= usize::from(mtu) {
            return false;
        }
        let learnt_ms = self.now_ms();
        let known = self.paths.insert(datagram.to, Path { mtu, learnt_ms });
        if known.is_none_or(|p| p.mtu != mtu) {
            self.counters.path_mtu_changes.one();
        }
        let (Some(head), Some(body)) =
            (self.heads.get(datagram.head.clone()), self.frames.get(datagram.body.clone()))
        else {
            return false;
        };
        let packet = [head, body].concat();
        let Ok(header) = Header::parse(&packet) else { return false };
        if header.dont_fragment {
            self.counters.dropped_too_big.one();
            let error = icmp::error(&packet, &header, icmp::Error::FragmentationNeeded { mtu });
            self.answer(error);
            return true;
        }
        let mut heads = Vec::new();
        self.counters.fragmented.one();
        for piece in fragment(&packet, &header, mtu, &mut heads) {
            let piece = Datagram { to: datagram.to, tos: datagram.tos, head: piece.head, body: piece.body };
            match self.raw.send(&heads, &packet, std::slice::from_ref(&piece)) {
                Ok(_) => {
                    self.counters.packets.one();
                    self.counters.bytes.add(piece.len());
                }
                Err(_) => self.counters.dropped_unsent.one(),
            }
        }
        true
    }

    /// The longest inner packet that fits the path to `via`, as far as it is known.
    fn limit(&mut self, via: Ipv4Addr) -> u16 {
        let now = self.now_ms();
        match self.paths.get(&via) {
            None => u16::MAX,
            Some(path) if now.saturating_sub(path.learnt_ms) < PATH_MTU_MS => path.mtu,
            Some(_) => {
                // Let the kernel judge the next packet afresh.
                self.paths.remove(&via);
                u16::MAX
            }
        }
    }

    /// Tells the sender of the packet at `base` what is wrong.
    fn complain(&mut self, base: usize, header: &Header, what: icmp::Error) {
        let packet = self.frames.get(base..base.saturating_add(header.total_len)).unwrap_or_default();
        let error = icmp::error(packet, header, what);
        self.answer(error);
    }

    fn answer(&mut self, error: Option<Vec<u8>>) {
        let Some(error) = error else { return };
        if !self.limiter.allow(self.now_ms()) {
            return self.counters.icmp_suppressed.one();
        }
        let meta = FrameMeta::default().encode();
        // A device that refuses an error message loses nothing but the message.
        if self.tun.write(&[IoSlice::new(&meta), IoSlice::new(&error)]).is_ok() {
            self.counters.icmp_sent.one();
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
