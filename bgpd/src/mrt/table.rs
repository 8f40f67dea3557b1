//! The whole table into one file. Prefixes first, then their paths some at a time, so that the speaker is never held
//! up; the file gets its name when it is complete.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use brindle_bgpd_core::{rib::Scan, speaker::PeerId, wire::NextHop};
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
    let Some(speaker) = s.speaker else { return (Ipv4Addr::UNSPECIFIED, Vec::new(), Index::new()) };
    let config = speaker.config();
    let own = Peer { id: config.router_id, address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), asn: config.asn };
    let (mut peers, mut index) = (vec![own], Index::new());
    for p in speaker.peers() {
        let Ok(place) = u16::try_from(peers.len()) else { break };
        let ibgp = p.session.as_ref().is_some_and(|s| s.ibgp);
        let id = p.session.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |s| s.remote_id);
        peers.push(Peer { id, address: p.address, asn: p.asn });
        index.insert(p.id, (place, ibgp));
    }
    (config.router_id, peers, index)
}

/// Records of some prefixes: bytes, records, paths. A neighbor that came after the index was written is left out.
fn encode(s: &Seen<'_>, page: &[IpNet], index: &Index, now: u32, first: usize) -> (BytesMut, usize, usize) {
    fault::point("bgp.dump");
    let mut out = BytesMut::new();
    let (mut records, mut paths) = (0, 0);
    let Some(speaker) = s.speaker else { return (out, 0, 0) };
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
                    next_hop: p.next_hop.map(hop),
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

const fn hop(address: IpAddr) -> NextHop {
    match address {
        IpAddr::V4(a) => NextHop::V4(a),
        IpAddr::V6(global) => NextHop::V6 { global, link_local: None },
    }
}
