//! What peers send and how sessions change, into files of one interval each. The speaker task makes the bytes and
//! never waits: a thread of its own writes them, and what a slow or full disk cannot take is counted and left out.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read as _, Write as _},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use brindle_admin::defect::{guarded, words};
use brindle_bgpd_core::{
    speaker::{ConnId, Event, Input, PeerId, Speaker},
    wire::{Message, WireCx},
};
use bytes::BytesMut;
use tracing::{error, info, warn};

use super::{
    MrtSettings, date, prune,
    record::{Ends, message, state_change},
};
use crate::{fault, view::wall_ms};

/// Batches that wait for the disk. One is what a peer sent in one go, at most 128 messages.
const QUEUE: usize = 1_024;

/// Records that are written, or lost, together.
#[derive(Debug, Default)]
struct Batch {
    bytes: BytesMut,
    records: u64,
}

/// How it goes.
#[derive(Debug)]
struct State {
    /// The last write succeeded.
    writing: AtomicBool,
    /// Records that are missing, since the start.
    lost: AtomicU64,
    /// Of these, those the disk was too slow for and nobody has spoken of yet.
    late: AtomicU64,
}

impl Default for State {
    fn default() -> Self {
        Self { writing: AtomicBool::new(true), lost: AtomicU64::new(0), late: AtomicU64::new(0) }
    }
}

/// Where the speaker task puts what is to be kept.
#[derive(Debug)]
pub(crate) struct Archive {
    to: SyncSender<Batch>,
    ends: HashMap<ConnId, Ends>,
    /// Those of the last connection of a neighbor, for what is said of it when that is gone.
    last: HashMap<PeerId, Ends>,
    state: Arc<State>,
    /// It met a defect, which was said.
    defective: bool,
}

impl Archive {
    /// Starts the thread that writes.
    pub(super) fn start(settings: &MrtSettings) -> io::Result<Self> {
        let (to, from) = sync_channel(QUEUE);
        let state = Arc::new(State::default());
        let mut files = Files {
            directory: settings.directory.clone(),
            interval: u64::from(settings.updates_interval.max(1)),
            keep: settings.keep,
            open: None,
            state: Arc::clone(&state),
        };
        // The first file shows at once whether the directory can be written to.
        files.file(wall_ms() / 1_000)?;
        thread::Builder::new().name("mrt".into()).spawn(move || files.run(&from))?;
        Ok(Self { to, ends: HashMap::new(), last: HashMap::new(), state, defective: false })
    }

    /// Whether it is written, and how many records are missing in it.
    pub(crate) fn state(&self) -> (bool, u64) {
        (self.state.writing.load(Ordering::Relaxed), self.state.lost.load(Ordering::Relaxed))
    }

    /// Messages of a connection, as they were read; `local`: our end of it. They are written again from what was
    /// understood, with 4-octet AS numbers.
    pub(crate) fn messages(
        &mut self,
        speaker: &Speaker,
        conn: ConnId,
        local: Option<IpAddr>,
        cx: &WireCx,
        inputs: &[Input],
    ) {
        if !inputs.iter().any(|i| matches!(i, Input::Message { .. })) {
            return;
        }
        let Some(ends) = self.ends_of(speaker, conn, local, inputs) else { return };
        fault::point("bgp.archive");
        let now = wall_ms();
        let mut batch = Batch::default();
        for input in inputs {
            if let Input::Message { message: m, .. } = input {
                message(&mut batch.bytes, now, &ends, cx, m);
                batch.records += 1;
            }
        }
        self.put(batch);
    }

    fn ends_of(
        &mut self,
        speaker: &Speaker,
        conn: ConnId,
        local: Option<IpAddr>,
        inputs: &[Input],
    ) -> Option<Ends> {
        if let Some(ends) = self.ends.get(&conn) {
            return Some(*ends);
        }
        let id = speaker.owner(conn)?;
        let mut ends = configured(speaker, id)?;
        ends.local = local.map_or(ends.local, |a| a.to_canonical());
        if ends.peer_asn == 0 {
            // Any AS is welcome: it says itself which one it is.
            let opens = inputs.iter().find_map(|i| match i {
                Input::Message { message: Message::Open(open), .. } => Some(open.asn),
                _ => None,
            });
            ends.peer_asn = opens.unwrap_or(0);
        }
        if ends.peer_asn != 0 {
            if self.ends.len() > 4 * speaker.peer_ids().count() + 64 {
                // Connections that are gone.
                self.ends.retain(|c, _| speaker.owner(*c).is_some());
                self.last.retain(|id, _| speaker.peer_config(*id).is_some());
            }
            self.ends.insert(conn, ends);
            self.last.insert(id, ends);
        }
        Some(ends)
    }

    /// A change of state.
    pub(crate) fn event(&self, speaker: &Speaker, event: &Event) {
        let Event::State { peer, old, new, .. } = event else { return };
        let Some(ends) = configured(speaker, *peer) else { return };
        // Numbers of neighbors that are gone are given to others.
        let ends = self.last.get(peer).filter(|last| last.peer == ends.peer).copied().unwrap_or(ends);
        let mut batch = Batch { records: 1, ..Batch::default() };
        state_change(&mut batch.bytes, wall_ms(), &ends, old, new);
        self.put(batch);
    }

    /// Something met a defect, which is said once: whoever sends it may send it again and again.
    pub(crate) fn left_out(&mut self) {
        if !std::mem::replace(&mut self.defective, true) {
            error!("the MRT archive met a defect: messages are missing in it; please report it");
        }
    }

    fn put(&self, batch: Batch) {
        match self.to.try_send(batch) {
            Ok(()) => {}
            Err(TrySendError::Full(batch)) => {
                self.state.lost.fetch_add(batch.records, Ordering::Relaxed);
                self.state.late.fetch_add(batch.records, Ordering::Relaxed);
            }
            // The thread is gone.
            Err(TrySendError::Disconnected(batch)) => {
                self.state.lost.fetch_add(batch.records, Ordering::Relaxed);
                self.state.writing.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// Both ends as far as the settings say.
fn configured(speaker: &Speaker, id: PeerId) -> Option<Ends> {
    let config = speaker.peer_config(id)?;
    let unknown = match config.address {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let local_asn = config.local_asn.unwrap_or(speaker.config().asn);
    let local = config.local_address.unwrap_or(unknown);
    Some(Ends { peer_asn: config.asn, local_asn, peer: config.address, local })
}

/// The writer's side.
struct Files {
    directory: PathBuf,
    interval: u64,
    keep: usize,
    open: Option<Open>,
    state: Arc<State>,
}

/// The file that is written.
struct Open {
    /// When its interval began.
    begins: u64,
    file: File,
    /// Octets of whole records in it.
    whole: u64,
}

impl Files {
    fn run(mut self, from: &Receiver<Batch>) {
        loop {
            let batch = match from.recv_timeout(Duration::from_secs(1)) {
                Ok(batch) => batch,
                Err(RecvTimeoutError::Timeout) => Batch::default(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let late = self.state.late.swap(0, Ordering::Relaxed);
            if late > 0 {
                warn!(records = late, "the disk is too slow for the MRT archive: messages are missing in it");
            }
            let done = guarded(|| {
                self.file(wall_ms() / 1_000)?;
                if !batch.bytes.is_empty() {
                    fault::point("bgp.mrt");
                }
                self.write(&batch.bytes)
            });
            if matches!(done, Ok(Ok(()))) {
                // That nothing was to be written says nothing.
                if !batch.bytes.is_empty() && !self.state.writing.swap(true, Ordering::Relaxed) {
                    let lost = self.state.lost.load(Ordering::Relaxed);
                    info!(directory = %self.directory.display(), lost, "the MRT archive is written again");
                }
                continue;
            }
            self.state.lost.fetch_add(batch.records, Ordering::Relaxed);
            match done {
                Err(panic) => {
                    // What is in the file is found out when it is opened again.
                    self.open = None;
                    error!(what = words(&panic), "a defect: messages are missing in the MRT archive");
                }
                Ok(Err(e)) if self.state.writing.swap(false, Ordering::Relaxed) => error!(
                    directory = %self.directory.display(), error = %e,
                    "the MRT archive cannot be written: what comes until it can is missing in it"
                ),
                Ok(_) => {}
            }
        }
    }

    /// Whole records to the open file. Readers find the next record by the length of the one before, so nothing may
    /// follow half a one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Err(io::Error::other("no file is open")) };
        if bytes.is_empty() {
            return Ok(());
        }
        if let Err(e) = open.file.write_all(bytes) {
            if open.file.set_len(open.whole).is_err() {
                self.open = None;
            }
            return Err(e);
        }
        let first = open.whole == 0;
        open.whole += u64::try_from(bytes.len()).unwrap_or(0);
        if first {
            // Not before there is something in the new one: a full disk must not cost the old ones.
            prune(&self.directory, "updates.", self.keep);
        }
        Ok(())
    }

    /// The file of this moment; another one when its interval has begun.
    fn file(&mut self, now: u64) -> io::Result<()> {
        let begins = now - now % self.interval;
        if self.open.as_ref().is_some_and(|open| open.begins == begins) {
            return Ok(());
        }
        self.open = None;
        // One of an earlier run may end in the middle of a record: it stays as it is.
        for at in begins.. {
            let file = File::options().create(true).append(true).read(true).open(self.path(at))?;
            if let Some(whole) = whole(&file)? {
                self.open = Some(Open { begins, file, whole });
                break;
            }
        }
        Ok(())
    }

    fn path(&self, at: u64) -> PathBuf {
        self.directory.join(format!("updates.{}", date::stamp(at)))
    }
}

/// The length of a file that consists of whole records; `None` if it does not.
fn whole(file: &File) -> io::Result<Option<u64>> {
    let len = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut at = 0_u64;
    while at < len {
        let mut head = [0; 12];
        match reader.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let [.., a, b, c, d] = head;
        let body = u32::from_be_bytes([a, b, c, d]);
        reader.seek_relative(body.into())?;
        at += 12 + u64::from(body);
    }
    Ok((at == len).then_some(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &std::path::Path) -> Files {
        Files { directory: directory.into(), interval: 900, keep: 9, open: None, state: Arc::default() }
    }

    fn a_record() -> BytesMut {
        let [peer, local] = [1, 2].map(|n| IpAddr::from([192, 0, 2, n]));
        let mut out = BytesMut::new();
        state_change(&mut out, 0, &Ends { peer_asn: 1, local_asn: 2, peer, local }, "Idle", "Connect");
        out
    }

    #[test]
    fn nothing_follows_half_a_record() {
        let directory = std::env::temp_dir().join(format!("bt-{}-torn", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (begins, record) = (1_800_000_000, a_record());
        let mut first = files(&directory);
        first.file(begins).unwrap();
        first.write(&record).unwrap();
        // Another run in the same interval goes on with a whole file,
        let mut second = files(&directory);
        second.file(begins + 9).unwrap();
        second.write(&record).unwrap();
        let read = |at| std::fs::read(first.path(at)).unwrap_or_default();
        assert_eq!(read(begins), record.repeat(2));
        // and leaves one alone that is cut, in a record or in the head of one.
        for (n, cut) in [(1, 20), (2, 5)] {
            let mut torn = second.open.take().unwrap();
            torn.file.write_all(&record[..cut]).unwrap();
            let before = read(begins + n - 1);
            second = files(&directory);
            second.file(begins + 10).unwrap();
            second.write(&record).unwrap();
            assert_eq!((read(begins + n - 1), read(begins + n)), (before, record.to_vec()));
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
