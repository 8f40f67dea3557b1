//! Answers to `brindlectl bgp` (`config_core::status::bgp`): any number of JSON lines, then the end.
//!
//! The speaker task is asked in small pieces ([`Handle::look`]), between which it does its work: first the prefixes,
//! a few thousand destinations at a time, then the routes of some hundred prefixes at a time. Sorting and writing
//! happen in the asker's task. So a table of a million routes holds nobody up, and what is listed is each prefix as
//! it was at the moment it was looked at.

mod capabilities;
mod explain;
mod neighbors;

use std::{collections::HashMap, io, sync::Arc};

use brindle_admin::defect::{outlived, words};
use brindle_bgpd_core::{
    af::Family,
    fsm::StateKind,
    rib::{LOCAL, Scan},
    speaker::{Clear, PeerId},
};
use brindle_config_core::status::bgp::{
    BgpEvent, BgpPath, BgpRequest, ClearHow, Cleared, Direction, Dumped, End, MetricsText, RouteTable,
    SpeakerFacts,
};
use ipnet::IpNet;
use serde::Serialize;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::broadcast::error::RecvError,
    time::{Duration, timeout},
};
use tracing::error;

pub(crate) use self::neighbors::{name as family_name, neighbors, unusable};
use crate::{
    handle::{Handle, Seen, Unanswered},
    metrics, mrt, view,
};

/// Destinations looked at in one turn of the speaker task.
pub(crate) const SCAN: u32 = 4_096;
/// Prefixes whose routes are taken in one turn.
const PAGE: usize = 256;
/// Askers of `monitor` at the same time.
const MONITORS: usize = 8;
/// An asker that takes nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error("no peer is called {0:?} or has that address; {1}")]
    NoPeer(String, String),
    #[error("{0}")]
    Other(String),
    /// The asker has hung up or does not read.
    #[error("cannot answer: {0}")]
    Io(#[from] io::Error),
}

/// Writes lines to the asker.
struct Lines<'a, W> {
    to: &'a mut W,
    text: Vec<u8>,
    count: usize,
}

impl<W: AsyncWrite + Unpin> Lines<'_, W> {
    fn add(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.text, value)?;
        self.text.push(b'\n');
        self.count += 1;
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        timeout(PATIENCE, self.to.write_all(&self.text)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        self.text.clear();
        Ok(())
    }
}

/// Answers one question. `gone` completes when the asker hangs up, which is how `monitor` ends.
///
/// # Errors
/// The asker does not read, or has hung up.
pub async fn answer(
    handle: &Handle,
    request: BgpRequest,
    to: &mut (impl AsyncWrite + Unpin),
    gone: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut lines = Lines { to, text: Vec::new(), count: 0 };
    let end = match outlived(reply(handle, request, &mut lines, gone)).await {
        Ok(Ok(())) => End::End { count: lines.count },
        Ok(Err(Trouble::Io(e))) => return Err(e),
        Ok(Err(e)) => End::Error(e.to_string()),
        Err(panic) => {
            error!(what = words(&panic), "an answer about BGP met a defect; please report it");
            // There may be half a line.
            lines.text.clear();
            End::Error("a defect of ours: there is no answer; the log says more".into())
        }
    };
    lines.add(&end)?;
    lines.flush().await
}

async fn reply(
    handle: &Handle,
    request: BgpRequest,
    lines: &mut Lines<'_, impl AsyncWrite + Unpin>,
    gone: impl Future<Output = ()>,
) -> Result<(), Trouble> {
    match request {
        BgpRequest::Speaker => lines.add(&handle.look(speaker).await?)?,
        BgpRequest::Neighbors { peer } => {
            let unusable = unusable(handle).await?;
            let all = handle.look(move |s| neighbors(s, &unusable)).await?;
            let wanted = |p: &&_| peer.as_ref().is_none_or(|name| neighbors::is_called(p, name));
            let found: Vec<_> = all.iter().filter(wanted).collect();
            if let (Some(name), true) = (peer.as_ref(), found.is_empty()) {
                return Err(no_peer(name, all.iter().map(|p| p.name.as_str())));
            }
            found.into_iter().try_for_each(|n| lines.add(n))?;
        }
        BgpRequest::Routes { table, peer, prefix } => routes(handle, table, peer, prefix, lines).await?,
        BgpRequest::Explain { prefix, peer } => {
            for finding in explain::explain(handle, prefix.trunc(), peer).await? {
                lines.add(&finding)?;
            }
        }
        BgpRequest::Services => {
            let all = handle.look(|s| Arc::clone(s.services)).await?;
            for page in all.chunks(PAGE) {
                page.iter().try_for_each(|v| lines.add(&view::service(v)))?;
                lines.flush().await?;
            }
        }
        BgpRequest::Monitor => monitor(handle, lines, gone).await?,
        BgpRequest::Clear { peer, how, direction } => {
            for cleared in clear(handle, peer, how, direction).await? {
                lines.add(&cleared)?;
            }
        }
        BgpRequest::MrtDump { file } => {
            let counts = mrt::dump(handle, std::path::Path::new(&file)).await;
            let (prefixes, paths) = counts.map_err(|e| Trouble::Other(format!("{file}: {e}")))?;
            lines.add(&Dumped { file, prefixes, paths })?;
        }
        BgpRequest::Metrics => lines.add(&MetricsText { text: metrics::text(handle).await? })?,
    }
    Ok(())
}

fn speaker(s: &Seen<'_>) -> SpeakerFacts {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let Some(speaker) = s.speaker else { return SpeakerFacts { version, ..SpeakerFacts::default() } };
    let config = speaker.config();
    let states: Vec<bool> = speaker.peers().map(|p| p.state == StateKind::Established).collect();
    SpeakerFacts {
        version,
        asn: config.asn,
        router_id: config.router_id.to_string(),
        cluster_id: config.cluster_id.map(|id| id.to_string()),
        listen: s.listeners.describe(),
        peers: states.len(),
        established: states.iter().filter(|up| **up).count(),
        prefixes: Family::ALL.into_iter().map(|f| speaker.prefixes(f)).sum(),
    }
}

/// The neighbors with this name or address, at least one: a node has a session for each family, and several speakers may
/// be at one address.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Vec<PeerId>, Trouble> {
    let wanted = name.to_owned();
    let (found, names) = handle
        .look(move |s| {
            let peers: Vec<_> = s.speaker.into_iter().flat_map(|s| s.peers()).collect();
            let called = peers.iter().filter(|p| p.name == wanted || p.address.to_string() == wanted);
            let found: Vec<PeerId> = called.map(|p| p.id).collect();
            (found, peers.into_iter().map(|p| p.name).collect::<Vec<String>>())
        })
        .await?;
    if found.is_empty() { Err(no_peer(name, names.iter().map(String::as_str))) } else { Ok(found) }
}

fn no_peer<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Trouble {
    let next = match brindle_config_core::suggest::closest(typed, names) {
        Some(meant) => format!("did you mean {meant}?"),
        None => "`brindlectl bgp summary` lists them".to_owned(),
    };
    Trouble::NoPeer(typed.to_owned(), next)
}

/// The prefixes of a scan, sorted: IPv4 first.
pub(crate) async fn prefixes(handle: &Handle, which: Scan) -> Result<Vec<IpNet>, Unanswered> {
    let mut all: Vec<IpNet> = Vec::new();
    for family in Family::ALL {
        let mut from = Some(0);
        while let Some(at) = from {
            let (next, mut found) = handle
                .look(move |s| {
                    let mut found = Vec::new();
                    let next = s.speaker.and_then(|s| s.scan(family, at, SCAN, which, &mut found));
                    (next, found)
                })
                .await?;
            all.append(&mut found);
            from = next;
        }
    }
    all.sort_unstable();
    Ok(all)
}

async fn routes(
    handle: &Handle,
    table: RouteTable,
    peer: Option<String>,
    prefix: Option<IpNet>,
    lines: &mut Lines<'_, impl AsyncWrite + Unpin>,
) -> Result<(), Trouble> {
    let peers = match peer {
        Some(name) if name == "own" => vec![LOCAL],
        Some(name) => find(handle, &name).await?,
        None if table == RouteTable::Rib => Vec::new(),
        None => return Err(Trouble::Other("name the peer whose routes are wanted".into())),
    };
    let mut scans: Vec<Scan> = peers
        .into_iter()
        .map(|peer| match table {
            RouteTable::Rib | RouteTable::Received => Scan::From(peer),
            RouteTable::Advertised => Scan::Told(peer),
        })
        .collect();
    if scans.is_empty() {
        scans.push(Scan::All);
    }
    for which in scans {
        let wanted = match prefix {
            Some(prefix) => vec![prefix.trunc()],
            None => prefixes(handle, which).await?,
        };
        for page in wanted.chunks(PAGE) {
            let page = page.to_vec();
            for path in handle.look(move |s| paths(s, which, &page)).await? {
                lines.add(&path)?;
            }
            lines.flush().await?;
        }
    }
    Ok(())
}

/// The routes of some prefixes.
fn paths(s: &Seen<'_>, which: Scan, page: &[IpNet]) -> Vec<BgpPath> {
    let Some(speaker) = s.speaker else { return Vec::new() };
    let names = view::names(speaker);
    if let Scan::Told(peer) = which {
        // To whom is what was asked: from whom is news.
        let from =
            |prefix, id| speaker.told_from(peer, prefix, id).and_then(|from| names.get(&from).cloned());
        let told = page.iter().flat_map(|p| speaker.told(peer, *p).into_iter().map(|t| (*p, t)));
        return told
            .map(|(prefix, (path_id, set, hop))| BgpPath {
                peer: from(prefix, path_id),
                path_id,
                next_hop: hop,
                why: "advertised".into(),
                ..view::attributes(prefix, &set)
            })
            .collect();
    }
    let all = page.iter().flat_map(|p| speaker.rib(Some(*p)));
    let wanted = all.filter(|p| match which {
        Scan::From(peer) => p.from.unwrap_or(LOCAL) == peer,
        Scan::All | Scan::Told(_) => true,
    });
    wanted.map(|p| view::path(&p, &names)).collect()
}

async fn clear(
    handle: &Handle,
    peer: Option<String>,
    how: ClearHow,
    direction: Option<Direction>,
) -> Result<Vec<Cleared>, Trouble> {
    if how == ClearHow::Hard && direction.is_some() {
        return Err(Trouble::Other("in and out go with soft: a hard clear ends the session".into()));
    }
    let some = match &peer {
        Some(name) => Some(find(handle, name).await?),
        None => None,
    };
    let peers = handle
        .look(move |s| {
            let all: Vec<_> = s.speaker.into_iter().flat_map(|s| s.peers()).collect();
            let mut times: HashMap<&str, usize> = HashMap::new();
            all.iter().for_each(|p| *times.entry(&p.name).or_default() += 1);
            let wanted = all.iter().filter(|p| some.as_ref().is_none_or(|ids| ids.contains(&p.id)));
            wanted
                .map(|p| {
                    let several = times.get(p.name.as_str()).is_some_and(|n| *n > 1);
                    let name = if several { format!("{} {}", p.name, p.address) } else { p.name.clone() };
                    let caps = p.session.as_ref().map(|s| s.capabilities.clone()).unwrap_or_default();
                    let refresh = caps.iter().any(|c| c.code() == 2);
                    let config = s.speaker.and_then(|s| s.peer_config(p.id));
                    let shut = config.is_some_and(|c| c.session.shutdown.is_some());
                    (p.id, name, p.state.to_string(), refresh, shut)
                })
                .collect::<Vec<_>>()
        })
        .await?;
    let mut report = Vec::with_capacity(peers.len());
    for (id, name, state, refresh, shut) in peers {
        let mut did = Vec::new();
        let mut done = true;
        if shut {
            done = false;
            did.push("is shut down (`shutdown` in its configuration): nothing to clear".to_owned());
        } else if how == ClearHow::Hard {
            done = handle.clear(id, Clear::Reset).await?;
            did.push("session reset".to_owned());
        } else if state == "Established" {
            if direction != Some(Direction::In) {
                done &= handle.clear(id, Clear::SoftOut).await?;
                did.push("routes are sent again".to_owned());
            }
            if direction != Some(Direction::Out) {
                if refresh {
                    done &= handle.clear(id, Clear::SoftIn).await?;
                    did.push("asked for its routes".to_owned());
                } else {
                    done = false;
                    did.push("cannot be asked again: no route refresh; `clear hard` does it".to_owned());
                }
            }
        } else {
            done = false;
            did.push(format!("is {state}: nothing to clear"));
        }
        report.push(Cleared { peer: name, done, what: did.join("; ") });
    }
    Ok(report)
}

async fn monitor(
    handle: &Handle,
    lines: &mut Lines<'_, impl AsyncWrite + Unpin>,
    gone: impl Future<Output = ()>,
) -> Result<(), Trouble> {
    if handle.events.receiver_count() >= MONITORS {
        return Err(Trouble::Other(format!("{MONITORS} others are watching already; end one of them")));
    }
    let mut events = handle.events.subscribe();
    let mut gone = std::pin::pin!(gone);
    loop {
        let event = tokio::select! {
            () = &mut gone => return Ok(()),
            event = events.recv() => event,
        };
        match event {
            Ok(event) => lines.add(&event)?,
            Err(RecvError::Lagged(n)) => lines.add(&BgpEvent {
                at_ms: view::wall_ms(),
                kind: "lost".into(),
                subject: String::new(),
                what: format!("{n} events: they came faster than they were read"),
            })?,
            Err(RecvError::Closed) => return Err(Unanswered::Gone.into()),
        }
        lines.flush().await?;
    }
}
