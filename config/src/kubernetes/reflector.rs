//! Keeps the cache of one collection (`shared.rs`) at what the API server has: reads it all, then watches it;
//! reads it again when the server has forgotten where the watch was. Lives as long as somebody reads the cache.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use brindle_config_core::{
    Kind,
    store::{Change, StoreError, Watch as _},
};
use tokio::task::JoinHandle;

use super::{
    Inner, Piece,
    kinds::{Api, Place, Shape},
    shared::{Filling, Shared},
    watch::KubeWatch,
};

/// A collection, and the node whose pods alone are followed.
type Selected = (Kind, Option<String>);

/// What an API server is to whoever follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Datastore,
    /// Asked for what Kubernetes itself has; the datastore is another one.
    Cluster,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Datastore => "the datastore",
            Self::Cluster => "the API server",
        })
    }
}

/// The reflectors of one store and its clones.
#[derive(Default)]
pub(super) struct Reflectors {
    running: Mutex<HashMap<Selected, Weak<Reflector>>>,
    /// What was logged and is not over: many collections meet the same trouble.
    trouble: Mutex<BTreeSet<String>>,
}

impl Reflectors {
    /// The reflector of a kind; `None` for kinds that are stored nowhere.
    pub(super) fn of(&self, inner: &Arc<Inner>, kind: Kind) -> Option<Arc<Reflector>> {
        let selected = inner.selected(kind)?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, r| r.strong_count() > 0);
        if let Some(there) = running.get(&selected).and_then(Weak::upgrade).filter(|r| !r.task.is_finished())
        {
            return Some(there);
        }
        let shared = Arc::<Shared>::default();
        let trouble = Arc::<Mutex<Option<String>>>::default();
        let filling = Filling(Arc::clone(&shared));
        let task = tokio::spawn(keep(Arc::clone(inner), kind, filling, Arc::clone(&trouble)));
        let new = Arc::new(Reflector { shared, trouble, task });
        running.insert(selected, Arc::downgrade(&new));
        Some(new)
    }

    /// The cache of a kind, if it is followed and complete.
    pub(super) fn cached(&self, inner: &Inner, kind: Kind) -> Option<Arc<Reflector>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let there = running.get(&inner.selected(kind)?).and_then(Weak::upgrade)?;
        (there.shared.in_sync() && !there.task.is_finished()).then_some(there)
    }

    /// Why a kind that is followed is not complete.
    pub(super) fn waits_for(&self, inner: &Inner, kind: Kind) -> Option<String> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let there = running.get(&inner.selected(kind)?).and_then(Weak::upgrade)?;
        if there.shared.in_sync() && !there.task.is_finished() {
            return None;
        }
        let why = there.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(format!("{} ({})", kind.plural(), why.as_deref().unwrap_or("its listing is under way")))
    }

    /// A collection meets a trouble, `mine` from now on: logged unless another one has met it already.
    pub(super) fn meet(&self, of: Whose, mine: &mut Option<String>, error: &StoreError) {
        let text = error.to_string();
        let mut all = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = mine.take().filter(|old| *old != text) {
            all.remove(&old);
        }
        if all.insert(text.clone()) {
            tracing::warn!(error = %text, "cannot follow {of}; trying again until it answers");
        }
        *mine = Some(text);
    }

    /// The trouble of a collection, if it had one, is over.
    pub(super) fn over(&self, of: Whose, mine: &mut Option<String>) {
        let mut all = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if mine.take().is_some_and(|text| all.remove(&text)) {
            tracing::info!("{of} answers again");
        }
    }
}

/// A running reflector.
pub(super) struct Reflector {
    shared: Arc<Shared>,
    /// The last thing that went wrong.
    trouble: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Reflector {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// One that nobody fills but the test.
    #[cfg(test)]
    pub(super) fn idle() -> Self {
        Self { shared: Arc::default(), trouble: Arc::default(), task: tokio::spawn(std::future::pending()) }
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn selected(&self, kind: Kind) -> Option<Selected> {
        let place = Place::of(kind, Api::V1)?;
        Some((kind, self.node.clone().filter(|_| place.shape == Shape::Pod)))
    }
}

/// Fills the cache until it is stopped.
async fn keep(inner: Arc<Inner>, kind: Kind, filling: Filling, last: Arc<Mutex<Option<String>>>) {
    let mut attempt = 0u32;
    let mut trouble = None;
    loop {
        let error = match pass(&inner, kind, &filling.0, &mut attempt, &mut trouble).await {
            Ok(never) => match never {},
            Err(e) => e,
        };
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        // A version that the server has forgotten is everyday life.
        if !matches!(error, StoreError::Compacted(_)) {
            inner.reflectors.meet(inner.whose, &mut trouble, &error);
        }
        tokio::time::sleep(inner.client.pause(attempt)).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Lists, then watches until something fails.
async fn pass(
    inner: &Arc<Inner>,
    kind: Kind,
    shared: &Shared,
    attempt: &mut u32,
    trouble: &mut Option<String>,
) -> Result<std::convert::Infallible, StoreError> {
    let api = inner.client.api().await.map_err(|f| inner.no_api(f))?;
    let Some(place) = Place::of(kind, api) else { return std::future::pending().await };
    // Objects of Kubernetes change all the time in ways that no resource shows. Who writes Calico's with an expectation
    // needs their revision.
    let revisions = matches!(place.shape, Shape::Calico(_));
    let (at, lines) = {
        let _turn = inner.turns.acquire().await;
        let take = |piece| match piece {
            Piece::Begin => shared.begin_listing(),
            Piece::One(entry) => shared.listed(entry, revisions),
        };
        inner.initial(&place, take).await?
    };
    let mut watch = KubeWatch::go_on(inner, place, at, lines).await?;
    inner.reflectors.over(inner.whose, trouble);
    shared.end_listing(at.unwrap_or_default());
    loop {
        let changes = watch.next().await?;
        *attempt = 0;
        for change in changes {
            match change {
                Change::Put(entry) => shared.written(entry, revisions),
                Change::Delete { key, revision } => shared.deleted(key, revision),
            }
        }
    }
}
