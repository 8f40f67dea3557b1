//! The whole table into one file. Prefixes first, then their paths some at a time, so that the speaker is never held
//! up; the file gets its name when it is complete.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
};

use brindle_bgpd_core::{
    rib::Scan,
    speaker::{PeerId, Speaker},
    wire::NextHop,
};
use bytes::BytesMut;
use ipnet::IpNet;

use super::record::{Entry, Peer, peer_index, rib, seconds};
use crate::{
    ask, fault,
    handle::{Handle, Seen},
    view::wall_ms,
};

/// Prefixes encoded in one turn of the speaker task.
const PAGE: usize = 128;
/// Octets gathered for one write.
const PIECE: usize = 256 * 1024;

/// Place in the peer index, and whether the session is internal; by neighbor. Own routes are of peer 0.
type Index = HashMap<PeerId, (u16, bool)>;

/// Writes a TABLE_DUMP_V2 file; returns prefixes and paths. An earlier file of that name is replaced.
///
/// # Errors
/// The file cannot be written, or the speaker is gone.
pub(crate) async fn dump(handle: &Handle, file: &Path) -> io::Result<(usize, usize)> {
    let gone = |e| io::Error::other(e);
    let name = file.file_name().ok_or_else(|| io::Error::other("is not the name of a file"))?;
    let part = file.with_file_name(format!("{}.part", name.to_string_lossy()));
    let now = seconds(wall_ms());
    let (router_id, peers, index) = handle.look(peer_list).await.map_err(gone)?;
    let index = Arc::new(index);
    let prefixes = ask::prefixes(handle, Scan::All).await.map_err(gone)?;
    let mut out = File::create(&part)?;
    let mut bytes = BytesMut::new();
    peer_index(&mut bytes, now, router_id, &peers);
    let (mut written, mut paths) = (0usize, 0);
    for page in prefixes.chunks(PAGE) {
        let (page, index, first) = (page.to_vec(), Arc::clone(&index), written);
        let (piece, count, entries) =
            handle.look(move |s| encode(s, &page, &index, now, first)).await.map_err(gone)?;
        bytes.extend_from_slice(&piece);
        written += count;
        paths += entries;
        if bytes.len() >= PIECE {
            let piece = bytes.split();
            out = write(out, piece).await?;
        }
    }
    out = write(out, bytes).await?;
    drop(out);
    std::fs::rename(&part, file)?;
    Ok((written, paths))
}

/// A disk may take its time, and must not take a worker's.
async fn write(mut out: File, bytes: BytesMut) -> io::Result<File> {
    let done = tokio::task::spawn_blocking(move || out.write_all(&bytes).map(|()| out));
    done.await.map_err(io::Error::other)?
}

fn peer_list(s: &Seen<'_>) -> (Ipv4Addr, Vec<Peer>, Index) {
    s.speaker.map_or_else(|| (Ipv4Addr::UNSPECIFIED, Vec::new(), Index::new()), peers_of)
}

fn peers_of(speaker: &Speaker) -> (Ipv4Addr, Vec<Peer>, Index) {
    let config = speaker.config();
    let own = Peer { id: config.router_id, address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), asn: config.asn };
    let (mut peers, mut index) = (vec![own], Index::new());
    for p in speaker.peers() {
        let Ok(place) = u16::try_from(peers.len()) else { break };
        // Of one that is away what its routes came with, which may be kept.
        let session = p.session.as_ref().map(|s| (s.ibgp, s.remote_id));
        let (ibgp, id) = session.or_else(|| speaker.source(p.id)).unwrap_or((false, Ipv4Addr::UNSPECIFIED));
        let asn = if p.asn == 0 && ibgp { config.asn } else { p.asn };
        peers.push(Peer { id, address: p.address, asn });
        index.insert(p.id, (place, ibgp));
    }
    (config.router_id, peers, index)
}

/// Records of some prefixes: bytes, records, paths. A neighbor that came after the index was written is left out.
fn encode(s: &Seen<'_>, page: &[IpNet], index: &Index, now: u32, first: usize) -> (BytesMut, usize, usize) {
    fault::point("bgp.dump");
    s.speaker.map_or_else(|| (BytesMut::new(), 0, 0), |speaker| records(speaker, page, index, now, first))
}

fn records(
    speaker: &Speaker,
    page: &[IpNet],
    index: &Index,
    now: u32,
    first: usize,
) -> (BytesMut, usize, usize) {
    let mut out = BytesMut::new();
    let (mut records, mut paths) = (0, 0);
    for prefix in page {
        let views: Vec<_> = speaker.rib(Some(*prefix)).collect();
        let entries: Vec<Entry<'_>> = views
            .iter()
            .filter_map(|p| {
                let (peer, ibgp) = match p.from {
                    None => (0, true),
                    Some(id) => *index.get(&id)?,
                };
                // When a path came is not kept; the time of the dump is what can be said.
                Some(Entry {
                    peer,
                    since: now,
                    path_id: p.path_id,
                    attributes: &p.attributes,
                    // Of our own there is none; IPv6 has it in MP_REACH_NLRI all the same.
                    next_hop: p.next_hop.or_else(|| unspecified(*prefix)).map(hop),
                    ibgp,
                })
            })
            .collect();
        if !entries.is_empty() {
            let sequence = u32::try_from(first + records).unwrap_or(u32::MAX);
            rib(&mut out, now, sequence, *prefix, &entries);
            records += 1;
            paths += entries.len();
        }
    }
    (out, records, paths)
}

const fn unspecified(prefix: IpNet) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(_) => None,
        IpNet::V6(_) => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    }
}

const fn hop(address: IpAddr) -> NextHop {
    match address {
        IpAddr::V4(a) => NextHop::V4(a),
        IpAddr::V6(global) => NextHop::V6 { global, link_local: None },
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, net::SocketAddr};

    use brindle_bgpd_core::{
        speaker::{ConnId, DownReason, Input, LocalRoute, PeerConfig, SpeakerConfig},
        time::Mono,
        wire::{AttrSet, Capability, GrFamily, Message, NextHop, Nlri, Open, Prefixes, Reach, Update},
    };

    use super::*;

    const AS: u32 = 64_512;
    const THEM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn feed(s: &mut Speaker, input: Input) {
        s.handle(Mono(1_000), input, &mut VecDeque::new());
    }

    /// A speaker with two routes of its own whose internal neighbor has sent one, and is away.
    fn speaker() -> Speaker {
        let mut s = Speaker::new(SpeakerConfig::new(AS, Ipv4Addr::new(10, 0, 0, 1)));
        feed(
            &mut s,
            Input::SetPeers(vec![PeerConfig { passive: true, ..PeerConfig::new("two", THEM.into(), AS) }]),
        );
        let own = |prefix: &str| LocalRoute {
            prefix: prefix.parse().unwrap(),
            next_hop: None,
            attributes: AttrSet::default(),
        };
        feed(&mut s, Input::SetLocalRoutes(vec![own("10.1.0.0/24"), own("fd00:1::/64")]));
        let conn = ConnId(1);
        let (local, remote) = (SocketAddr::from(([10, 0, 0, 1], 179)), SocketAddr::from((THEM, 40_000)));
        feed(&mut s, Input::Accepted { conn, local, remote, interface: None });
        let families = vec![GrFamily { afi: 1, safi: 1, forwarding_preserved: true }];
        let open = Open {
            asn: AS,
            hold_time: 90,
            router_id: Ipv4Addr::new(10, 9, 9, 9),
            capabilities: vec![
                Capability::MultiProtocol { afi: 1, safi: 1 },
                Capability::FourOctetAs(AS),
                Capability::GracefulRestart {
                    restarting: false,
                    notification: false,
                    restart_time: 60,
                    families,
                },
            ],
        };
        feed(&mut s, Input::Message { conn, message: Message::Open(open) });
        feed(&mut s, Input::Message { conn, message: Message::Keepalive });
        let nlri = Nlri { prefix: "10.2.0.0/24".parse().unwrap(), path_id: 0 };
        let set = AttrSet { local_pref: Some(77), originator_id: Some(THEM), ..AttrSet::default() };
        let update = Update {
            attributes: Some(set),
            reach: vec![Reach { next_hop: NextHop::V4(THEM), prefixes: Prefixes::V4(vec![nlri]) }],
            ..Update::default()
        };
        feed(&mut s, Input::Message { conn, message: Message::Update(update) });
        feed(&mut s, Input::Disconnected { conn, reason: DownReason::Closed("reset".into()) });
        s
    }

    fn has(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|w| w == part)
    }

    #[test]
    fn kept_routes_of_an_internal_peer_have_its_identifier_and_what_they_came_with() {
        let s = speaker();
        let (_, peers, index) = peers_of(&s);
        assert_eq!(peers[1], Peer { id: Ipv4Addr::new(10, 9, 9, 9), address: THEM.into(), asn: AS });
        let (bytes, count, paths) = records(&s, &["10.2.0.0/24".parse().unwrap()], &index, 0, 0);
        assert_eq!((count, paths), (1, 1));
        assert!(has(&bytes, &[0x40, 5, 4, 0, 0, 0, 77]), "LOCAL_PREF: {bytes:?}");
        assert!(has(&bytes, &[0x80, 9, 4, 10, 0, 0, 2]), "ORIGINATOR_ID: {bytes:?}");
    }

    #[test]
    fn own_routes_have_the_next_hop_of_their_family() {
        let s = speaker();
        let (_, _, index) = peers_of(&s);
        let of = |prefix: &str| records(&s, &[prefix.parse().unwrap()], &index, 0, 0).0;
        let (classic, mp) = ([0x40, 3, 4, 0, 0, 0, 0], [[0x80, 14, 17, 16].as_slice(), &[0; 16]].concat());
        for (prefix, v6) in [("10.1.0.0/24", false), ("fd00:1::/64", true)] {
            let bytes = of(prefix);
            assert_eq!((has(&bytes, &classic), has(&bytes, &mp)), (!v6, v6), "{prefix}: {bytes:?}");
        }
    }
}
