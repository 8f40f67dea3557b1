//! The change feed between processes: after a commit the writer modifies `PATH.feed`, and one inotify instance per
//! store wakes all watches of the process. No SQL here; a signal carries no content, a lost one costs only time.
//!
//! The first signal is passed on at once. Under a storm the thread sleeps between reads, 5 ms at first and up to 40 ms
//! while it lasts, so that fifty agents on one file do not wake each other for each of fifty writes.

use std::{
    fs, io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use brindle_config_core::{Kind, store::Revision};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;

const DEBOUNCE: Duration = Duration::from_millis(5);
const DEBOUNCE_MAX: Duration = Duration::from_millis(40);
/// How long a watch trusts the feed before it looks for itself.
const SLOW_LOOK: Duration = Duration::from_secs(10);
/// How long a lost feed file is left alone.
const MOURNING: Duration = Duration::from_millis(100);
/// How often to look whether a database that went away is back.
const GONE: Duration = Duration::from_secs(1);
/// The same without inotify.
const POLL: Duration = Duration::from_millis(500);

/// `PATH.feed`.
pub(super) fn file_of(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(".feed");
    name.into()
}

/// The writing end.
pub(super) struct Bell {
    path: PathBuf,
    state: Mutex<Rope>,
}

#[derive(Default)]
struct Rope {
    file: Option<fs::File>,
    /// The trouble was logged; again only after it went well once.
    told: bool,
}

impl Bell {
    pub(super) fn new(db: &Path) -> Self {
        Self { path: file_of(db), state: Mutex::default() }
    }

    /// Tells all processes that `revision` was committed. A failure is logged; watches then notice by themselves
    /// after [`SLOW_LOOK`].
    pub(super) fn ring(&self, revision: Revision) {
        let mut rope = self.state.lock().expect("nothing panics while it holds the bell");
        let ring = |file: &fs::File| file.write_all_at(&revision.0.to_be_bytes(), 0);
        if rope.file.as_ref().is_some_and(|f| is_linked(f) && ring(f).is_ok()) {
            return;
        }
        match open_feed(&self.path).and_then(|f| ring(&f).map(|()| f)) {
            Ok(f) => *rope = Rope { file: Some(f), told: false },
            Err(e) => {
                if !std::mem::replace(&mut rope.told, true) {
                    tracing::warn!(path = %self.path.display(), error = %e, "cannot signal changes to other processes");
                }
                rope.file = None;
            }
        }
    }
}

fn is_linked(file: &fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|m| m.nlink() > 0)
}

fn open_feed(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// How often something was heard: of whatever others changed, and of this process's own changes by kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    others: u64,
    own: [u64; Kind::ALL.len()],
}

impl Heard {
    /// A number that grows with everything that may concern these kinds.
    pub(super) fn of(&self, kinds: &[Kind]) -> u64 {
        let own = kinds.iter().filter_map(|k| self.own.get(*k as usize));
        own.fold(self.others, |sum, n| sum.wrapping_add(*n))
    }
}

/// The listening end, shared by all watches of a store. Dropping it ends its thread.
pub(super) struct Ear {
    tick: watch::Sender<Heard>,
    /// How long to wait for a tick before looking all the same.
    patience: Duration,
    stop: Option<Arc<Stop>>,
}

struct Stop {
    closed: AtomicBool,
    watched: Mutex<(Watches, Option<WatchDescriptor>)>,
}

impl Ear {
    /// Listens for the bell of `db`. Without inotify (its instances are used up, or there is none) the watches poll.
    pub(super) fn new(db: &Path) -> Self {
        let tick = watch::Sender::new(Heard { others: 0, own: [0; Kind::ALL.len()] });
        match Self::listen(file_of(db), tick.clone()) {
            Ok(stop) => Self { tick, patience: SLOW_LOOK, stop: Some(stop) },
            Err(e) => {
                tracing::warn!(
                    path = %db.display(), error = %e,
                    "no inotify (raise fs.inotify.max_user_instances); looking for changes every {POLL:?} instead"
                );
                Self { tick, patience: POLL, stop: None }
            }
        }
    }

    fn listen(feed: PathBuf, tick: watch::Sender<Heard>) -> io::Result<Arc<Stop>> {
        let mut inotify = Inotify::init()?;
        let watched = add(&mut inotify.watches(), &feed)?;
        let stop = Arc::new(Stop {
            closed: AtomicBool::new(false),
            watched: Mutex::new((inotify.watches(), Some(watched))),
        });
        let shared = stop.clone();
        thread::Builder::new()
            .name("store-feed".into())
            .stack_size(128 << 10)
            .spawn(move || listen_loop(&mut inotify, &feed, &tick, &shared))?;
        Ok(stop)
    }

    /// A receiver of ticks; subscribe before reading, so that no change is missed.
    pub(super) fn subscribe(&self) -> watch::Receiver<Heard> {
        self.tick.subscribe()
    }

    /// A change of this process: its own watches need not hear it through the file, nor wait while the feed is paused.
    /// Those of other kinds read past it with the next signal.
    pub(super) fn wake(&self, kind: Kind) {
        self.tick.send_modify(|t| {
            if let Some(n) = t.own.get_mut(kind as usize) {
                *n += 1;
            }
        });
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if let Some(stop) = &self.stop {
            stop.closed.store(true, Ordering::SeqCst);
            // Removing the watch produces an event, which is what wakes the thread.
            let mut watched = stop.watched.lock().expect("nothing panics while it holds this");
            if let Some(wd) = watched.1.take() {
                let _ = watched.0.remove(wd);
            }
        }
    }
}

fn add(watches: &mut Watches, feed: &Path) -> io::Result<WatchDescriptor> {
    open_feed(feed)?;
    watches.add(feed, WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::MOVE_SELF)
}

fn listen_loop(inotify: &mut Inotify, feed: &Path, tick: &watch::Sender<Heard>, stop: &Stop) {
    let mut buffer = [0u8; 1024];
    let mut pause = DEBOUNCE;
    // An unlinked file that somebody holds open is only reported as a changed link count.
    let lost = EventMask::ATTRIB | EventMask::MOVE_SELF | EventMask::IGNORED;
    loop {
        let gone = match inotify.read_events_blocking(&mut buffer) {
            Ok(mut events) => events.any(|e| e.mask.intersects(lost)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                tracing::warn!(error = %e, "the change feed failed; changes of others are seen late");
                return;
            }
        };
        if stop.closed.load(Ordering::SeqCst) {
            return;
        }
        if gone && !listen_again(feed, stop) {
            return;
        }
        tick.send_modify(|t| t.others += 1);
        thread::sleep(pause);
        // Whatever came during the pause is one signal, and a reason to pause longer next time.
        let more = match inotify.read_events(&mut buffer) {
            Ok(events) => events
                .fold(None, |any: Option<bool>, e| Some(any.unwrap_or(false) || e.mask.intersects(lost))),
            Err(_) => None,
        };
        if stop.closed.load(Ordering::SeqCst) || more == Some(true) && !listen_again(feed, stop) {
            return;
        }
        pause = if more.is_some() { (pause * 2).min(DEBOUNCE_MAX) } else { DEBOUNCE };
        if more.is_some() {
            tick.send_modify(|t| t.others += 1);
        }
    }
}

/// Somebody removed the feed file: make a new one, but only beside a database. False when the store is closing or the
/// file cannot be made.
fn listen_again(feed: &Path, stop: &Stop) -> bool {
    // Perhaps the whole store is being removed: then nothing of ours may come back into its folder.
    thread::sleep(MOURNING);
    while !feed.with_extension("").exists() {
        if stop.closed.load(Ordering::SeqCst) {
            return false;
        }
        thread::sleep(GONE);
    }
    let mut watched = stop.watched.lock().expect("nothing panics while it holds this");
    if stop.closed.load(Ordering::SeqCst) {
        return false;
    }
    match add(&mut watched.0, feed) {
        Ok(wd) => {
            watched.1 = Some(wd);
            true
        }
        Err(e) => {
            tracing::warn!(path = %feed.display(), error = %e, "the change feed was removed; changes of others are seen late");
            false
        }
    }
}
