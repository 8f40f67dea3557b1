//! Putting together what arrives: consecutive TCP segments of one connection, received in one
//! batch, go into the TUN device as one frame that names its segment size. The kernel may cut it
//! again at any later hop, into exactly the packets that came.
//!
//! Only segments that differ in nothing but sequence number, identification, PSH and checksum are
//! put together, and only after their checksum was found right: the frame's own is made anew.

use std::net::Ipv4Addr;

use super::checksum::Sum;
use super::ipv4::{self, Header, MIN_HEADER};

const PROTO_TCP: u8 = 6;
const TCP_HEADER: usize = 20;
const MAX_TCP_HEADER: usize = 60;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const ECE: u8 = 0x40;
/// Connections looked at side by side; with more, the one longest open is closed.
const MAX_OPEN: usize = 8;
const MAX_PACKET: usize = 65_535;

/// Longest header block of a frame: IPv4 without options, TCP with.
pub const MAX_HEAD: usize = MIN_HEADER + MAX_TCP_HEADER;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    ports: [u8; 4],
}

/// All a segment must share with the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alike {
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
    ack: [u8; 4],
    window: [u8; 2],
    flags: u8,
    options: [u8; MAX_TCP_HEADER - TCP_HEADER],
    head_len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    alike: Alike,
    seq: u32,
    id: u16,
    push: bool,
    payload: u16,
}

/// Packets of a batch that go into one frame, in order.
#[derive(Debug, Clone)]
pub struct Group {
    flow: Option<Flow>,
    like: Option<Segment>,
    next_seq: u32,
    first: usize,
    last: usize,
    count: usize,
    total_len: usize,
    push: bool,
    open: bool,
}

impl Group {
    /// The first packet's index in the batch.
    pub fn first(&self) -> usize {
        self.first
    }

    /// How many packets; with 1 the packet goes as it is.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of the headers of each packet of a group of several.
    pub fn head_len(&self) -> usize {
        self.like.map_or(0, |s| s.alike.head_len)
    }

    /// Payload bytes of each segment but the last.
    pub fn size(&self) -> u16 {
        self.like.map_or(0, |s| s.payload)
    }
}

/// Groups the packets of one batch. Order within a connection is kept.
#[derive(Debug, Default)]
pub struct Coalescer {
    groups: Vec<Group>,
    /// Indices into `groups`, longest open first.
    open: Vec<usize>,
    /// For each pushed packet, the one that follows it in its group.
    next: Vec<Option<usize>>,
}

impl Coalescer {
    /// Forgets the batch.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.open.clear();
        self.next.clear();
    }

    /// Takes the next packet and returns its index: 0, 1, 2... since [`clear`](Self::clear).
    /// `alone` keeps it out of every group.
    pub fn push(&mut self, packet: &[u8], header: &Header, alone: bool) -> usize {
        let index = self.next.len();
        self.next.push(None);
        let Some(flow) = flow(packet, header) else {
            // A fragment may belong to any connection.
            if header.protocol == PROTO_TCP {
                self.close_all();
            }
            self.start(index, header, None, None);
            return index;
        };
        let slot = self.open.iter().position(|&g| self.groups.get(g).is_some_and(|g| g.flow == Some(flow)));
        let segment = if alone { None } else { Segment::read(packet, header) };
        if let (Some(slot), Some(segment)) = (slot, segment)
            && self.append(slot, index, &segment)
        {
            return index;
        }
        if let Some(slot) = slot {
            self.open.remove(slot);
        }
        self.start(index, header, Some(flow), segment);
        index
    }

    /// The groups, in the order of their first packets.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The packets of a group.
    pub fn members(&self, group: &Group) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(group.first), |&i| self.next.get(i).copied().flatten())
    }

    fn start(&mut self, index: usize, header: &Header, flow: Option<Flow>, segment: Option<Segment>) {
        let open = segment.is_some_and(|s| !s.push);
        if open {
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(self.groups.len());
        }
        self.groups.push(Group {
            flow,
            like: segment,
            next_seq: segment.map_or(0, |s| s.seq.wrapping_add(u32::from(s.payload))),
            first: index,
            last: index,
            count: 1,
            total_len: header.total_len,
            push: segment.is_some_and(|s| s.push),
            open,
        });
    }

    fn append(&mut self, slot: usize, index: usize, segment: &Segment) -> bool {
        let Some(group) = self.open.get(slot).and_then(|&g| self.groups.get_mut(g)) else { return false };
        let Some(like) = group.like else { return false };
        let id_follows = u16::try_from(group.count).is_ok_and(|n| like.id.wrapping_add(n) == segment.id);
        let total_len = group.total_len.saturating_add(usize::from(segment.payload));
        let fits = group.open
            && like.alike == segment.alike
            && group.next_seq == segment.seq
            && segment.payload <= like.payload
            && (segment.alike.dont_fragment || id_follows)
            && total_len <= MAX_PACKET;
        if !fits {
            return false;
        }
        if let Some(next) = self.next.get_mut(group.last) {
            *next = Some(index);
        }
        group.last = index;
        group.count += 1;
        group.total_len = total_len;
        group.next_seq = segment.seq.wrapping_add(u32::from(segment.payload));
        group.push = segment.push;
        if segment.push || segment.payload < like.payload {
            group.open = false;
            self.open.remove(slot);
        }
        true
    }

    fn close_all(&mut self) {
        self.open.clear();
    }
}

/// The header block of a group's frame, made from its first packet: total length, PSH of the last
/// segment, IPv4 checksum, and the pseudo header's sum in the TCP checksum for the kernel to
/// finish. `None` when `first` is not the packet the group was made of.
pub fn frame_head(first: &[u8], group: &Group, out: &mut [u8; MAX_HEAD]) -> Option<usize> {
    let head_len = group.head_len();
    let flow = group.flow?;
    let head = out.get_mut(..head_len)?;
    head.copy_from_slice(first.get(..head_len)?);
    let (ip, tcp) = head.split_at_mut_checked(MIN_HEADER)?;
    let total = u16::try_from(group.total_len).ok()?;
    let id = group.like?.id;
    let word = ipv4::flags_and_offset(ip);
    ipv4::rewrite(ip, total, id, word);
    let fixed = tcp.first_chunk_mut::<TCP_HEADER>()?;
    if group.push {
        fixed[13] |= PSH;
    }
    let transport_len = total.checked_sub(20)?;
    let partial = Sum::pseudo(flow.src, flow.dst, PROTO_TCP, transport_len).fold();
    [fixed[16], fixed[17]] = partial.to_be_bytes();
    Some(head_len)
}

fn flow(packet: &[u8], header: &Header) -> Option<Flow> {
    if header.protocol != PROTO_TCP || header.is_fragment() {
        return None;
    }
    let ports = *packet.get(header.header_len..header.total_len)?.first_chunk::<4>()?;
    Some(Flow { src: header.src, dst: header.dst, ports })
}

impl Segment {
    /// Reads a segment that may be put together with others; its checksum is right.
    fn read(packet: &[u8], header: &Header) -> Option<Segment> {
        if header.header_len != MIN_HEADER {
            return None;
        }
        let transport = packet.get(header.header_len..header.total_len)?;
        let fixed = transport.first_chunk::<TCP_HEADER>()?;
        let tcp_len = usize::from(fixed[12] >> 4) * 4;
        let flags = fixed[13];
        let payload = u16::try_from(transport.len().checked_sub(tcp_len)?).ok()?;
        if tcp_len < TCP_HEADER || payload == 0 || flags & ACK == 0 || flags & !(ACK | PSH | ECE) != 0 {
            return None;
        }
        let given = transport.get(TCP_HEADER..tcp_len)?;
        let mut options = [0; MAX_TCP_HEADER - TCP_HEADER];
        options.get_mut(..given.len())?.copy_from_slice(given);
        let length = u16::try_from(transport.len()).ok()?;
        let mut sum = Sum::pseudo(header.src, header.dst, PROTO_TCP, length);
        sum.add(transport);
        if sum.finish() != 0 {
            return None;
        }
        Some(Segment {
            alike: Alike {
                tos: header.tos,
                ttl: header.ttl,
                dont_fragment: header.dont_fragment,
                ack: [fixed[8], fixed[9], fixed[10], fixed[11]],
                window: [fixed[14], fixed[15]],
                flags: flags & !PSH,
                options,
                head_len: MIN_HEADER + tcp_len,
            },
            seq: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            id: header.id,
            push: flags & PSH != 0,
            payload,
        })
    }
}
