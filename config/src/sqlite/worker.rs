//! A thread that owns one connection and runs jobs on it in order. Callers await the answer; dropping the future does
//! not undo a job that was already handed over.

use std::{path::Path, sync::mpsc, thread};

use brindle_config_core::store::StoreError;
use tokio::sync::oneshot;

use super::db::{Db, Failure};

type Job = Box<dyn FnOnce(&mut Db) + Send>;

/// Handle of the thread; the thread ends when the last handle is gone.
#[derive(Clone)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts a thread for an open connection.
    pub(super) fn start(name: &str, path: &Path, mut db: Db) -> Result<Self, StoreError> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                for job in inbox {
                    job(&mut db);
                }
            })
            .map_err(|e| StoreError::Unavailable(format!("{}: no thread for it: {e}", path.display())))?;
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
        self.jobs.send(Box::new(job)).map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }
}
