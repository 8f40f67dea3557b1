//! One of several processes acts: the elector of `config/core` at work on any store. The record is a Lease resource
//! written by compare-and-swap, so SQLite, etcd and Kubernetes need nothing of their own for it.
//!
//! A store that does not answer, or answers late, costs the lease: whoever acts asks [`Leadership::leads`] before each
//! thing it does, and that says no as soon as the last renewal is too long ago, whatever happens to this task.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use brindle_config_core::{
    Key, ObjectMeta, Resource,
    lease::{Elector, LeaseSpec, Step, Timing},
    store::{Expect, Revision, Store, StoreError, StoreExt},
    time::Now,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::jitter;

/// The lease as seen by one candidate; dropping it gives up without a word, [`Leadership::resign`] says so.
#[derive(Debug)]
pub struct Leadership {
    key: Key,
    until: watch::Receiver<Option<Instant>>,
    obstacle: watch::Receiver<Option<String>>,
    resign: mpsc::Sender<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// Nobody stands for election any more.
#[derive(Debug, thiserror::Error)]
#[error("the candidate for {0} ended with a defect, which the log tells; start this process again")]
pub struct Ended(Key);

/// Where the record is, and whose it is to be.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub namespace: String,
    pub name: String,
    /// Its own among all candidates, also of the same machine.
    pub identity: String,
    pub timing: Timing,
}

/// Stands for election until dropped or [`Leadership::resign`].
pub fn stand(store: Arc<dyn Store>, candidate: Candidate) -> Leadership {
    let (told, until) = watch::channel(None);
    let (hindered, obstacle) = watch::channel(None);
    let (resign, asked) = mpsc::channel(1);
    let key = Key::new(brindle_config_core::Kind::Lease, Some(&candidate.namespace), &candidate.name);
    let runner = Runner {
        key: key.clone(),
        elector: Elector::new(candidate.identity.clone(), candidate.timing),
        candidate,
        store,
        told,
        hindered,
        origin: Instant::now(),
        holder: None,
    };
    let task = tokio::spawn(runner.run(asked));
    Leadership { key, until, obstacle, resign, task }
}

impl Leadership {
    /// Whether this process may act now. Asked before everything that changes something.
    pub fn leads(&self) -> bool {
        self.until.borrow().is_some_and(|t| Instant::now() < t)
    }

    /// The same for whoever does the acting elsewhere.
    pub fn watch(&self) -> watch::Receiver<Option<Instant>> {
        self.until.clone()
    }

    /// Waits until this process leads.
    ///
    /// # Errors
    /// It never will: the task that stands for it met a defect.
    pub async fn elected(&mut self) -> Result<(), Ended> {
        let current = |t: &Option<Instant>| t.is_some_and(|t| Instant::now() < t);
        self.until.wait_for(current).await.map(drop).map_err(|_| Ended(self.key.clone()))
    }

    /// Why this process does not lead, as far as it is known: who does, or what is wrong with the datastore.
    pub fn obstacle(&self) -> Option<String> {
        self.obstacle.borrow().clone()
    }

    /// Gives the lease back, so that the next one need not wait for its end.
    pub async fn resign(self) {
        let (done, answered) = oneshot::channel();
        if self.resign.send(done).await.is_ok() {
            // Fails if the store did not take it: then the lease ends by itself.
            let _ = answered.await;
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Runner {
    store: Arc<dyn Store>,
    candidate: Candidate,
    key: Key,
    elector: Elector,
    told: watch::Sender<Option<Instant>>,
    hindered: watch::Sender<Option<String>>,
    origin: Instant,
    /// Who had it last, to tell a change once.
    holder: Option<String>,
}

impl Runner {
    async fn run(mut self, mut asked: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut trouble = false;
        loop {
            // A call that hangs must not keep the next one from being made in time.
            let limit = self.candidate.timing.renew_within;
            match timeout(limit, self.turn()).await {
                Ok(Ok(())) => trouble = false,
                Ok(Err(error)) => {
                    self.hindered.send_replace(Some(error.to_string()));
                    if !trouble {
                        tracing::warn!(lease = %self.key, %error, "cannot read or renew the lease; trying again");
                    }
                    trouble = true;
                }
                Err(_) => {
                    self.hindered.send_replace(Some("the datastore does not answer".to_owned()));
                    if !trouble {
                        tracing::warn!(lease = %self.key, "the datastore does not answer; the lease is not renewed");
                    }
                    trouble = true;
                }
            }
            self.tell();
            let retry = self.candidate.timing.retry;
            let spread = u64::try_from(retry.as_millis() / 5).unwrap_or(0);
            let pause = retry + std::time::Duration::from_millis(jitter::below(spread));
            tokio::select! {
                () = sleep(pause) => {}
                Some(done) = asked.recv() => {
                    self.told.send_replace(None);
                    let why = match timeout(limit, self.resign()).await {
                        Ok(Ok(())) => None,
                        Ok(Err(error)) => Some(error.to_string()),
                        Err(_) => Some("the datastore does not answer".to_owned()),
                    };
                    if let Some(why) = why {
                        tracing::warn!(lease = %self.key, "the lease could not be given back: {why}; nothing need be \
                            done, the next process follows when it has ended");
                    }
                    // Whoever asked may have gone.
                    let _ = done.send(());
                    return;
                }
            }
        }
    }

    fn now(&self) -> std::time::Duration {
        self.origin.elapsed()
    }

    fn tell(&self) {
        let until = self.elector.until().map(|t| self.origin + t);
        self.told.send_if_modified(|old| std::mem::replace(old, until) != until);
    }

    async fn read(&self) -> Result<Option<(Resource<LeaseSpec>, Revision)>, StoreError> {
        match self.store.get_as::<LeaseSpec>(Some(&self.key.namespace), &self.key.name).await {
            Ok(found) => Ok(Some((found.resource, found.revision))),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads the record and writes it if it is ours to write.
    async fn turn(&mut self) -> Result<(), StoreError> {
        // What was written between the two may be our own last renewal, whose answer was lost: that is looked at at once,
        // for a leader that steps back for nothing has everything begun anew.
        for last in [false, true] {
            if self.attempt(last).await? {
                break;
            }
        }
        Ok(())
    }

    /// `false`: somebody wrote in between.
    async fn attempt(&mut self, last: bool) -> Result<bool, StoreError> {
        let found = self.read().await?;
        let began = self.now();
        let record = found.as_ref().map(|(r, revision)| (&r.spec, *revision));
        let step = self.elector.step(began, wall(), record);
        let Step::Write(spec, expect) = step else {
            let holder = found.and_then(|(r, _)| r.spec.holder().map(str::to_owned));
            self.note(holder);
            return Ok(true);
        };
        match self.write(found.map(|(r, _)| r), spec, expect).await {
            Ok(()) => {
                self.elector.written(began);
                self.note(Some(self.candidate.identity.clone()));
                Ok(true)
            }
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {
                if last {
                    self.elector.lost();
                }
                Ok(false)
            }
            // Whether it was written is not known: what was known before holds on until it ends.
            Err(e) => Err(e),
        }
    }

    async fn write(
        &self,
        old: Option<Resource<LeaseSpec>>,
        spec: LeaseSpec,
        expect: Expect,
    ) -> Result<(), StoreError> {
        let resource = match old {
            Some(old) => Resource { spec, ..old },
            None => {
                let meta = ObjectMeta::named(self.candidate.name.clone());
                Resource::new(ObjectMeta { namespace: Some(self.candidate.namespace.clone()), ..meta }, spec)
            }
        };
        self.store.put_as(&resource, expect).await.map(drop)
    }

    async fn resign(&mut self) -> Result<(), StoreError> {
        if let Some((found, revision)) = self.read().await?
            && let Some(spec) = self.elector.resignation(&found.spec)
        {
            match self.write(Some(found), spec, Expect::Revision(revision)).await {
                Ok(()) => tracing::info!(lease = %self.key, "the lease is given back"),
                // Another has it already.
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// One line per change of holder.
    fn note(&mut self, holder: Option<String>) {
        let own = holder.as_deref() == Some(self.candidate.identity.as_str());
        let other = holder.as_ref().filter(|_| !own);
        self.hindered.send_replace(other.map(|name| format!("{name} leads")));
        if self.holder == holder {
            return;
        }
        let name = holder.as_deref().unwrap_or("nobody");
        if own {
            tracing::info!(lease = %self.key, identity = %name, "this process leads");
        } else {
            tracing::info!(lease = %self.key, holder = %name, "another process leads; waiting");
        }
        self.holder = holder;
    }
}

fn wall() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::MemoryStore;

    fn candidate(identity: &str) -> Candidate {
        Candidate {
            namespace: "kube-system".into(),
            name: "brindle-controllers".into(),
            identity: identity.into(),
            timing: Timing::default(),
        }
    }

    async fn holder(store: &Arc<dyn Store>) -> Option<String> {
        let found = store.get_as::<LeaseSpec>(Some("kube-system"), "brindle-controllers").await.unwrap();
        found.resource.spec.holder().map(str::to_owned)
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_the_next_follows_at_once_when_it_resigns() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let mut a = stand(store.clone(), candidate("a"));
        a.elected().await.unwrap();
        let mut b = stand(store.clone(), candidate("b"));
        sleep(Duration::from_secs(60)).await;
        assert!(a.leads() && !b.leads(), "renewed all the time");
        let asked = Instant::now();
        a.resign().await;
        assert_eq!(holder(&store).await, None);
        b.elected().await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        assert_eq!(holder(&store).await.as_deref(), Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_leader_is_followed_after_the_duration_and_never_before() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let mut a = stand(store.clone(), candidate("a"));
        a.elected().await.unwrap();
        let (until, died) = (a.watch(), Instant::now());
        drop(a);
        let mut b = stand(store.clone(), candidate("b"));
        b.elected().await.unwrap();
        assert!(died.elapsed() >= Duration::from_secs(15), "{:?}", died.elapsed());
        assert!(until.borrow().is_none_or(|t| t < Instant::now()), "the dead one would have stopped by now");
        assert_eq!(holder(&store).await.as_deref(), Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_candidate_that_ended_is_not_waited_for() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let mut first = stand(store.clone(), candidate("a"));
        first.elected().await.unwrap();
        let mut second = stand(store, candidate("b"));
        // As a panic would.
        second.task.abort();
        let why =
            timeout(Duration::from_secs(60), second.elected()).await.expect("it does not wait for ever");
        assert!(why.unwrap_err().to_string().contains("Lease(kube-system/brindle-controllers)"));
    }
}
