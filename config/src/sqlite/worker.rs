//! A thread that owns one connection and runs jobs on it in order. Callers await the answer; dropping the future does
//! not undo a job that was already handed over.
//!
//! A process that ends takes its threads along, wherever they are: [`close_all`] has them close their connections first,
//! so that the file has everything and is a backup of itself.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    thread,
    time::{Duration, Instant},
};

use brindle_config_core::store::StoreError;
use tokio::sync::oneshot;

use super::db::{Db, Failure};

type Job = Box<dyn FnOnce(&mut Db) + Send>;
/// `None`: closed.
type Jobs = Mutex<Option<mpsc::Sender<Job>>>;

/// The threads of this process, each with an end of a channel whose other one goes with its connection.
static OPEN: Mutex<Vec<(Weak<Jobs>, mpsc::Receiver<()>)>> = Mutex::new(Vec::new());

/// Poisoned only if a push or a swap panicked, which leaves the value usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes every connection of this process; whoever asks one after that is refused. One after the other: who closes last
/// takes the log into the file, and of two at once neither is. One that has not closed after `limit` stays open.
pub(super) fn close_all(limit: Duration) {
    let until = Instant::now() + limit;
    for (jobs, closed) in std::mem::take(&mut *lock(&OPEN)) {
        if let Some(jobs) = jobs.upgrade() {
            drop(lock(&jobs).take());
        }
        let left = until.saturating_duration_since(Instant::now());
        if closed.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::debug!("a connection to the datastore is still at work; not closed");
        }
    }
}

/// Handle of the thread; the thread ends when the last handle is gone.
#[derive(Clone)]
pub(super) struct Worker {
    jobs: Arc<Jobs>,
}

impl Worker {
    /// Starts a thread for an open connection.
    pub(super) fn start(name: &str, path: &Path, mut db: Db) -> Result<Self, StoreError> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (closing, closed) = mpsc::channel();
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                for job in inbox {
                    job(&mut db);
                }
                db.close();
                drop(closing);
            })
            .map_err(|e| StoreError::Unavailable(format!("{}: no thread for it: {e}", path.display())))?;
        let jobs = Arc::new(Mutex::new(Some(jobs)));
        let mut open = lock(&OPEN);
        open.retain(|(_, closed)| closed.try_recv() == Err(mpsc::TryRecvError::Empty));
        open.push((Arc::downgrade(&jobs), closed));
        Ok(Self { jobs })
    }

    /// Runs `f` on the connection.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Db) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable("the thread of the datastore has ended".into());
        let (answer, reply) = oneshot::channel();
        let job = move |db: &mut Db| {
            let result = db.verify_file().and_then(|()| f(db).map_err(|e| db.explain(e)));
            // Nobody waits any more: the job is done all the same.
            let _ = answer.send(result);
        };
        lock(&self.jobs).as_ref().and_then(|jobs| jobs.send(Box::new(job)).ok()).ok_or_else(gone)?;
        reply.await.map_err(|_| gone())?
    }
}
