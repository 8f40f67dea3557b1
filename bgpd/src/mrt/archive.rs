//! What peers send and how sessions change, into files of one interval each. The speaker task makes the bytes and
//! never waits: a thread of its own writes them, and what a slow disk cannot take is counted and left out.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use brindle_admin::defect::{guarded, words};
use brindle_bgpd_core::{
    speaker::{ConnId, Event, Input, PeerId, Speaker},
    wire::WireCx,
};
use bytes::BytesMut;
use tracing::{error, warn};

use super::{
    MrtSettings, date, prune,
    record::{Ends, message, state_change},
};
use crate::{fault, view::wall_ms};

/// Batches that wait for the disk. One is what a peer sent in one go, at most 128 messages.
const QUEUE: usize = 1_024;

/// Where the speaker task puts what is to be kept.
#[derive(Debug)]
pub(crate) struct Archive {
    to: SyncSender<BytesMut>,
    ends: HashMap<ConnId, Ends>,
    lost: Arc<AtomicU64>,
    /// It met a defect, which was said.
    defective: bool,
}

impl Archive {
    /// Starts the thread that writes.
    pub(super) fn start(settings: &MrtSettings) -> io::Result<Self> {
        let (to, from) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let mut files = Files {
            directory: settings.directory.clone(),
            interval: u64::from(settings.updates_interval.max(1)),
            keep: settings.keep,
            open: None,
            torn: false,
            lost: Arc::clone(&lost),
        };
        // The first file shows at once whether the directory can be written to.
        files.file(wall_ms() / 1_000)?;
        thread::Builder::new().name("mrt".into()).spawn(move || files.run(&from))?;
        Ok(Self { to, ends: HashMap::new(), lost, defective: false })
    }

    /// Messages of a connection, as they were read. They are written again from what was understood, with 4-octet AS
    /// numbers.
    pub(crate) fn messages(&mut self, speaker: &Speaker, conn: ConnId, cx: &WireCx, inputs: &[Input]) {
        if !inputs.iter().any(|i| matches!(i, Input::Message { .. })) {
            return;
        }
        if !self.ends.contains_key(&conn) {
            let Some(ends) = speaker.owner(conn).and_then(|id| ends(speaker, id)) else { return };
            if self.ends.len() > 4 * speaker.peer_ids().count() + 64 {
                // Connections that are gone.
                self.ends.retain(|c, _| speaker.owner(*c).is_some());
            }
            self.ends.insert(conn, ends);
        }
        let Some(ends) = self.ends.get(&conn) else { return };
        fault::point("bgp.archive");
        let now = wall_ms();
        let mut out = BytesMut::new();
        for input in inputs {
            if let Input::Message { message: m, .. } = input {
                message(&mut out, now, ends, cx, m);
            }
        }
        self.put(out);
    }

    /// A change of state.
    pub(crate) fn event(&self, speaker: &Speaker, event: &Event) {
        let Event::State { peer, old, new, .. } = event else { return };
        let Some(ends) = ends(speaker, *peer) else { return };
        let mut out = BytesMut::new();
        state_change(&mut out, wall_ms(), &ends, old, new);
        self.put(out);
    }

    /// Something met a defect, which is said once: whoever sends it may send it again and again.
    pub(crate) fn left_out(&mut self) {
        if !std::mem::replace(&mut self.defective, true) {
            error!("the MRT archive met a defect: messages are missing in it; please report it");
        }
    }

    fn put(&self, bytes: BytesMut) {
        match self.to.try_send(bytes) {
            // The writer has said why it ended.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Both ends as far as they are known: before a connection is made, ours is not.
fn ends(speaker: &Speaker, id: PeerId) -> Option<Ends> {
    let config = speaker.peer_config(id)?;
    let unknown = match config.address {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let session = speaker.peer(id).and_then(|p| p.session);
    let local = session.map(|s| s.local.ip().to_canonical()).or(config.local_address).unwrap_or(unknown);
    let local_asn = config.local_asn.unwrap_or(speaker.config().asn);
    Some(Ends { peer_asn: config.asn, local_asn, peer: config.address, local })
}

/// The writer's side.
struct Files {
    directory: PathBuf,
    interval: u64,
    keep: usize,
    open: Option<(u64, BufWriter<File>)>,
    /// The file may have half a record at its end.
    torn: bool,
    lost: Arc<AtomicU64>,
}

impl Files {
    fn run(mut self, from: &Receiver<BytesMut>) {
        loop {
            let bytes = match from.recv_timeout(Duration::from_secs(1)) {
                Ok(bytes) => bytes,
                Err(RecvTimeoutError::Timeout) => BytesMut::new(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.flush();
                    return;
                }
            };
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                warn!(batches = lost, "the disk is too slow for the MRT archive: messages are missing in it");
            }
            let idle = bytes.is_empty();
            let done = guarded(|| {
                self.file(wall_ms() / 1_000)?;
                if !idle {
                    fault::point("bgp.mrt");
                }
                self.write(&bytes)
            });
            match done {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    error!(directory = %self.directory.display(), error = %e, "the MRT archive ends here");
                    return;
                }
                Err(panic) => {
                    // Another file, if this one may have half a record.
                    error!(what = words(&panic), "a defect: messages are missing in the MRT archive");
                }
            }
        }
    }

    fn flush(&mut self) {
        if let Some((_, out)) = &mut self.open
            && let Err(e) = out.flush()
        {
            error!(directory = %self.directory.display(), error = %e, "the end of the MRT archive is lost");
        }
    }

    /// To the open file; nothing: what it has goes to the disk.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some((_, out)) = &mut self.open else { return Err(io::Error::other("no file is open")) };
        self.torn = true;
        if bytes.is_empty() {
            out.flush()?;
        } else {
            out.write_all(bytes)?;
        }
        self.torn = false;
        Ok(())
    }

    /// The file of this moment; another one when its interval has begun, or the one before is torn. Readers find the
    /// next record by the length of the one before, so nothing can follow half a one.
    fn file(&mut self, now: u64) -> io::Result<()> {
        let begins = now - now % self.interval;
        if std::mem::take(&mut self.torn) {
            // Whatever is left in memory belongs behind what was torn.
            if let Some((_, old)) = self.open.take() {
                drop(old.into_parts());
            }
            let free = (now..).find(|at| !self.path(*at).exists()).unwrap_or(now);
            return self.open(begins, free);
        }
        if self.open.as_ref().is_none_or(|(at, _)| *at != begins) {
            if let Some((_, mut old)) = self.open.take() {
                old.flush()?;
            }
            self.open(begins, begins)?;
        }
        Ok(())
    }

    /// Opens the file with this time in its name, for the interval that began at `begins`.
    fn open(&mut self, begins: u64, named: u64) -> io::Result<()> {
        let file = File::options().create(true).append(true).open(self.path(named))?;
        prune(&self.directory, "updates.", self.keep);
        self.open = Some((begins, BufWriter::new(file)));
        Ok(())
    }

    fn path(&self, at: u64) -> PathBuf {
        self.directory.join(format!("updates.{}", date::stamp(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_half_a_record() {
        let directory = std::env::temp_dir().join(format!("bt-{}-torn", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut files = Files {
            directory: directory.clone(),
            interval: 900,
            keep: 9,
            open: None,
            torn: false,
            lost: Arc::default(),
        };
        let begins = 1_800_000_000;
        files.file(begins).unwrap();
        files.write(b"whole").unwrap();
        files.write(b"").unwrap();
        files.write(b"ha").unwrap();
        // The panic came in the middle of it, and twice in one second.
        for _ in 0..2 {
            files.torn = true;
            files.file(begins).unwrap();
            files.write(b"next").unwrap();
            files.write(b"").unwrap();
        }
        files.file(begins + 1).unwrap();
        files.write(b"!").unwrap();
        files.flush();
        let read = |at| std::fs::read_to_string(files.path(at)).unwrap();
        assert_eq!([0, 1, 2].map(|s| read(begins + s)), ["whole", "next", "next!"]);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
