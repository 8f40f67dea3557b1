//! The inbound thread: raw socket → device. Takes all packets that wait, drops what must not come
//! in, puts TCP segments together and writes the rest into the device.

use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use brindle_felix_core::ipip::coalesce::{self, Coalescer, Group, MAX_HEAD};
use brindle_felix_core::ipip::decap::{Verdict, decapsulate};
use brindle_felix_core::ipip::ipv4::{self, Header};
use brindle_felix_core::ipip::segment::{Kind, Transport, headers_len, transport_state};
use brindle_kernel::rawip::{self, RawIp, RecvBatch, SEND_BATCH, Trouble};
use brindle_kernel::tun::{FrameMeta, GsoKind, Tun};

use crate::shared::{InboundCounters, Shared, View};

/// TCP checksum field within the TCP header.
const TCP_CHECKSUM: u16 = 16;
/// IPv4 header of a coalesced frame: no options.
const PLAIN_HEADER: u16 = 20;

/// A packet of the batch that is to be delivered.
struct Arrival {
    slot: usize,
    inner: Range<usize>,
    meta: FrameMeta,
}

struct Inbound<'a> {
    counters: &'a InboundCounters,
    tun: &'a Tun,
    view: View,
    coalescer: Coalescer,
    arrivals: Vec<Arrival>,
    last_unknown: Option<Ipv4Addr>,
}

/// Runs until the socket fails for good.
pub(crate) fn run(shared: &Shared, tun: &Tun, raw: &RawIp) -> io::Result<()> {
    let mut inbound = Inbound {
        counters: &shared.inbound,
        tun,
        view: View::wait(shared),
        coalescer: Coalescer::default(),
        arrivals: Vec::with_capacity(SEND_BATCH),
        last_unknown: None,
    };
    let mut batch = RecvBatch::new(SEND_BATCH);
    loop {
        match raw.receive(&mut batch) {
            Ok(()) => {}
            // An ICMP error about something we sent, such as "protocol unreachable" from a node
            // whose carrier is not up yet. It is reported once and the socket works on.
            Err(e) if rawip::trouble(&e) != Trouble::Fatal => {
                inbound.counters.ignored_errors.one();
                continue;
            }
            Err(e) => return Err(e),
        }
        inbound.view.refresh(shared);
        inbound.sort(&mut batch);
        inbound.deliver(&batch);
    }
}

impl Inbound<'_> {
    /// Judges every packet of the batch and groups those to be delivered.
    fn sort(&mut self, batch: &mut RecvBatch) {
        self.coalescer.clear();
        self.arrivals.clear();
        let c = self.counters;
        for slot in 0..batch.len() {
            let Some(packet) = batch.packet_mut(slot) else { continue };
            let delivery = match decapsulate(packet, self.view.table()) {
                Verdict::Deliver(delivery) => delivery,
                Verdict::UnknownSource(source) => {
                    c.dropped_unknown_source.one();
                    if self.last_unknown != Some(source) {
                        self.last_unknown = Some(source);
                        c.last_unknown_source.store(source.to_bits(), Relaxed);
                    }
                    continue;
                }
                Verdict::Outer(_) => {
                    c.dropped_outer_malformed.one();
                    continue;
                }
                Verdict::Inner(_) => {
                    c.dropped_inner_malformed.one();
                    continue;
                }
                Verdict::EcnDrop => {
                    c.dropped_ecn.one();
                    continue;
                }
            };
            let Some(inner) = packet.get_mut(delivery.inner.clone()) else { continue };
            let mut header = delivery.header;
            if let Some(ecn) = delivery.set_ecn {
                ipv4::set_ecn(inner, ecn);
                header.tos = (header.tos & !3) | (ecn & 3);
            }
            let (meta, alone) = match transport_state(inner, &header) {
                Transport::AsIs => (FrameMeta::default(), false),
                Transport::Partial { start, offset, kind } => {
                    let Some(meta) = unfinished(inner, &header, (start, offset), kind, self.view.mtu())
                    else {
                        c.dropped_superframe.one();
                        continue;
                    };
                    (meta, true)
                }
            };
            self.coalescer.push(inner, &header, alone);
            self.arrivals.push(Arrival { slot, inner: delivery.inner, meta });
        }
    }

    fn deliver(&self, batch: &RecvBatch) {
        for group in self.coalescer.groups() {
            let written =
                if group.count() == 1 { self.single(batch, group) } else { self.merged(batch, group) };
            let Some(bytes) = written else {
                self.counters.dropped_device.add(group.count());
                continue;
            };
            self.counters.frames.one();
            self.counters.packets.add(group.count());
            self.counters.bytes.add(bytes);
        }
    }

    fn single(&self, batch: &RecvBatch, group: &Group) -> Option<usize> {
        let arrival = self.arrivals.get(group.first())?;
        let inner = batch.packet(arrival.slot)?.get(arrival.inner.clone())?;
        let meta = arrival.meta.encode();
        self.tun.write(&[IoSlice::new(&meta), IoSlice::new(inner)]).ok()?;
        Some(inner.len())
    }

    fn merged(&self, batch: &RecvBatch, group: &Group) -> Option<usize> {
        let first = self.arrivals.get(group.first())?;
        let packet = batch.packet(first.slot)?.get(first.inner.clone())?;
        let mut head = [0; MAX_HEAD];
        let head_len = coalesce::frame_head(packet, group, &mut head)?;
        let meta = FrameMeta {
            partial_checksum: Some((PLAIN_HEADER, TCP_CHECKSUM)),
            gso: Some((GsoKind::Tcp4, group.size())),
            header_len: u16::try_from(head_len).ok()?,
        };
        let meta = meta.encode();
        let mut pieces = [IoSlice::new(&[]); SEND_BATCH + 2];
        let mut bytes = 0;
        let (lead, bodies) = pieces.split_at_mut(2);
        lead.copy_from_slice(&[IoSlice::new(&meta), IoSlice::new(head.get(..head_len)?)]);
        let mut used = 2;
        for (piece, member) in bodies.iter_mut().zip(self.coalescer.members(group)) {
            let arrival = self.arrivals.get(member)?;
            let inner = batch.packet(arrival.slot)?.get(arrival.inner.clone())?;
            *piece = IoSlice::new(inner.get(head_len..)?);
            bytes += inner.len();
            used += 1;
        }
        self.tun.write(pieces.get(..used)?).ok()?;
        Some(bytes)
    }
}

/// The header for a packet whose checksum the sender left to hardware. One that is longer than the
/// device's MTU stands for several segments; their size is not told, and what fits is as good: TCP
/// does not mind where its stream is cut. UDP does: `None`.
fn unfinished(
    inner: &[u8],
    header: &Header,
    checksum: (u16, u16),
    kind: Kind,
    mtu: u16,
) -> Option<FrameMeta> {
    let mut meta = FrameMeta { partial_checksum: Some(checksum), gso: None, header_len: 0 };
    if header.total_len > usize::from(mtu) {
        let headers = headers_len(inner, header, kind).ok()?;
        let headers = u16::try_from(headers).ok()?;
        let size = mtu.checked_sub(headers).filter(|size| *size > 0)?;
        if kind == Kind::Udp {
            return None;
        }
        meta.gso = Some((GsoKind::Tcp4, size));
        meta.header_len = headers;
    }
    Some(meta)
}
