//! The store on a Kubernetes API server, in Calico's layout ("Kubernetes datastore"): Calico's kinds are CRDs, Nodes and
//! Pods carry annotations, Kubernetes' own kinds are read as they are. Compare-and-swap is the server's on
//! `resourceVersion`; a listing reads each collection in pages, a follower as a stream where the server has that; a watch is
//! one stream for each collection.
//!
//! Nothing is written twice: a write whose answer was lost is the caller's to look at again, as its expectation decides.

mod client;
mod cursors;
mod explain;
mod initial;
mod kinds;
mod map_crd;
mod map_node;
mod map_plain;
mod map_pod;
mod object;
mod overrides;
mod reflector;
mod settings;
mod shared;
mod watch;
mod write;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use brindle_config_core::{
    Key, Kind,
    store::{
        Entry, Expect, Listing, NetworkWord, Revision, Store, StoreError, StoreFuture, Subscription, Watch,
    },
};
use futures::{StreamExt, TryStreamExt};
use http::Method;
use serde_json::Value;
use tokio::sync::Semaphore;

pub(crate) use self::overrides::Overrides;
pub use self::settings::KubeSettings;
use self::{
    client::{Client, Failure, Payload},
    cursors::{Cursor, Cursors},
    explain::{Verb, explain},
    kinds::{Place, Shape, escaped},
    object::Mapped,
    reflector::{Reflectors, Whose},
};

/// Objects in one page of a list, as kubectl has it.
const PAGE: usize = 500;
/// Collections read at the same time.
const ABREAST: usize = 6;
/// How often the list of a collection is begun again because its pages were forgotten meanwhile.
const LISTS: usize = 3;
/// How often a collection that the cluster lacks is looked for: once in 60 to 90 s.
const MISSING: Duration = Duration::from_secs(60);

/// Which pods are of interest: those with an address of their own that have not finished. The server leaves the others out.
const PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// A field servers before Kubernetes 1.28 do not select by; the others' pods in the host's network are read and left out.
const HOST_NETWORK: &str = "spec.hostNetwork";

/// Of a collection that is read page by page.
enum Piece {
    /// Before the first page: what came before does not count.
    Begin,
    One(Entry),
}

/// A datastore on an API server. Clones share connections.
#[derive(Clone)]
pub struct KubeStore {
    inner: Arc<Inner>,
}

struct Inner {
    client: Arc<Client>,
    cursors: Arc<Cursors>,
    reflectors: Arc<Reflectors>,
    /// Reflectors that may list at the same time.
    turns: Arc<Semaphore>,
    /// Listings and watches tell of endpoints of this node alone.
    node: Option<String>,
    missing: Duration,
    /// The server knows no [`HOST_NETWORK`].
    old: Arc<AtomicBool>,
    /// The server does not stream collections.
    unstreamed: Arc<AtomicBool>,
    /// Collections of which was told that the cluster lacks them.
    told: Arc<Mutex<BTreeSet<String>>>,
    whose: Whose,
}

impl KubeStore {
    /// A store; connections are made with the first call, on the runtime of that call.
    pub fn new(settings: KubeSettings) -> Self {
        Self::of(Client::new(settings), Whose::Datastore)
    }

    /// A store of what Kubernetes itself has (nodes, pods, ..), on a cluster that need not have Calico's definitions.
    pub fn core(settings: KubeSettings) -> Self {
        Self::of(Client::core(settings), Whose::Cluster)
    }

    fn of(client: Client, whose: Whose) -> Self {
        let inner = Inner {
            client: Arc::new(client),
            cursors: Arc::default(),
            reflectors: Arc::default(),
            turns: Arc::new(Semaphore::new(ABREAST)),
            node: None,
            missing: MISSING,
            old: Arc::default(),
            unstreamed: Arc::default(),
            told: Arc::default(),
            whose,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The same store, which looks for missing collections that often.
    #[must_use]
    pub fn looking_for_missing_every(&self, pause: Duration) -> Self {
        self.with(|inner| {
            inner.missing = pause;
            inner.reflectors = Arc::default();
        })
    }

    fn with(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = &self.inner;
        let mut inner = Inner {
            client: Arc::clone(&old.client),
            cursors: Arc::clone(&old.cursors),
            reflectors: Arc::clone(&old.reflectors),
            turns: Arc::clone(&old.turns),
            node: old.node.clone(),
            missing: old.missing,
            old: Arc::clone(&old.old),
            unstreamed: Arc::clone(&old.unstreamed),
            told: Arc::clone(&old.told),
            whose: old.whose,
        };
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    /// The collection of a kind, as this cluster has it.
    async fn place(&self, key: &Key) -> Result<Place, StoreError> {
        let api = self.client.api().await.map_err(|f| self.no_api(f))?;
        Place::of(key.kind, api).ok_or_else(|| StoreError::NotFound(key.clone()))
    }

    fn no_api(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Transport(e) => e,
            Failure::Api(s) if s.code == 401 => StoreError::Broken(format!(
                "{}: 401 Unauthorized: the token or certificate is wrong or has expired; renew the kubeconfig, or restart the pod",
                self.client.name()
            )),
            Failure::Api(s) if s.code == 403 => StoreError::Broken(format!(
                "{}: may not read the list of API groups ({}); log in with a kubeconfig, or bind the role system:discovery",
                self.client.name(),
                s.message
            )),
            Failure::Api(s) if s.code >= 500 || s.code == 429 => {
                StoreError::Unavailable(format!("{}: /apis: {} {}", self.client.name(), s.code, s.message))
            }
            Failure::Api(s) => StoreError::Broken(format!(
                "{}: /apis: {} {}; is this a Kubernetes API server?",
                self.client.name(),
                s.code,
                s.message
            )),
        }
    }

    fn explain(&self, verb: Verb, place: &Place, key: Option<&Key>, failure: Failure) -> StoreError {
        explain(&self.client.name(), verb, place, key, failure)
    }

    /// Says once that there is nothing of a kind because the cluster does not know it.
    fn tell_missing(&self, resource: &str) {
        // A set of names is whole even if somebody panicked beside it.
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.insert(resource.to_owned()) {
            tracing::info!(
                resource,
                "the cluster has no definition of this kind, so there are none of it; looked for again from time to time"
            );
        }
    }

    /// What of a collection is asked for, as part of a query.
    fn selection(&self, place: &Place) -> String {
        if place.shape != Shape::Pod {
            return String::new();
        }
        let node = self.node.as_ref().map_or_else(|| "!=".into(), |node| format!("={node}"));
        let own =
            if self.old.load(Ordering::Relaxed) { String::new() } else { format!(",{HOST_NETWORK}=false") };
        format!("&fieldSelector={}", escaped(&format!("spec.nodeName{node}{own},{PODS}")))
    }

    async fn get(&self, key: &Key) -> Result<Entry, StoreError> {
        let missing = || StoreError::NotFound(key.clone());
        if key.name.is_empty() {
            // The path of such an object is the collection's.
            return Err(missing());
        }
        let place = self.place(key).await?;
        for name in self.object_names(&place, key) {
            let path = place.object(&key.namespace, &name);
            let answer = match self.client.call(Method::GET, &path, Payload::None).await {
                Ok(answer) => answer,
                Err(Failure::Api(s)) if explain::unknown_collection(&s) && place.optional() => {
                    return Err(missing());
                }
                Err(failure) => match self.explain(Verb::Get, &place, Some(key), failure) {
                    StoreError::NotFound(_) => continue,
                    e => return Err(e),
                },
            };
            let mapped = object::read(&place, &answer)
                .map_err(|reason| StoreError::Invalid { key: key.clone(), reason })?;
            match mapped {
                Mapped::Put(entry) if entry.key == *key => return Ok(entry),
                _ => {}
            }
        }
        Err(missing())
    }

    /// The names the object of a resource can have; none when it can have no object.
    fn object_names(&self, place: &Place, key: &Key) -> Vec<String> {
        match place.shape {
            Shape::Calico(api) => map_crd::names_of(key, api),
            Shape::Pod => map_pod::pod_of(key).into_iter().collect(),
            Shape::Node | Shape::Plain => vec![key.name.clone()],
        }
    }

    /// Everything in a collection, and its version; `None` when the cluster may lack it and does.
    async fn list(&self, place: &Place) -> Result<Option<(Vec<Entry>, Revision)>, StoreError> {
        let mut entries = Vec::new();
        let take = |piece| match piece {
            Piece::Begin => entries.clear(),
            Piece::One(entry) => entries.push(entry),
        };
        let at = self.each(place, take).await?;
        entries.sort_by(|a: &Entry, b| a.key.cmp(&b.key));
        // While Calico renames its policies there are two objects of one; the newer is the one to be.
        entries.dedup_by(|b, a| {
            let same = a.key == b.key;
            if same && b.revision > a.revision {
                std::mem::swap(a, b);
            }
            same
        });
        Ok(at.map(|at| (entries, at)))
    }

    /// Reads a collection page by page, and its version; `None` when the cluster may lack it and does.
    async fn each(
        &self,
        place: &Place,
        mut take: impl FnMut(Piece) + Send,
    ) -> Result<Option<Revision>, StoreError> {
        let mut failed = None;
        for _ in 0..LISTS {
            take(Piece::Begin);
            match self.pages(place, &mut take).await {
                Ok(at) => return Ok(Some(at)),
                Err(Failure::Api(s)) if explain::unknown_collection(&s) && place.optional() => {
                    self.tell_missing(&place.resource());
                    return Ok(None);
                }
                Err(Failure::Api(s)) if s.code == 400 && s.message.contains(HOST_NETWORK) => {
                    tracing::info!(resource = %place.resource(), "the server does not select by {HOST_NETWORK}: asking without");
                    self.old.store(true, Ordering::Relaxed);
                    failed = Some(Failure::Api(s));
                }
                // The pages of a version are kept for some minutes.
                Err(Failure::Api(s)) if explain::gone(&s) => failed = Some(Failure::Api(s)),
                Err(failure) => return Err(self.explain(Verb::List, place, None, failure)),
            }
        }
        let failure = failed.unwrap_or_else(|| {
            Failure::Transport(StoreError::Unavailable(format!(
                "{}: a list came to no end",
                self.client.name()
            )))
        });
        Err(self.explain(Verb::List, place, None, failure))
    }

    async fn pages(&self, place: &Place, take: &mut (impl FnMut(Piece) + Send)) -> Result<Revision, Failure> {
        let mut next = String::new();
        loop {
            let from = if next.is_empty() { String::new() } else { format!("&continue={}", escaped(&next)) };
            let path = format!("{}?limit={PAGE}{from}{}", place.collection(None), self.selection(place));
            let answer = self.client.page(&path).await?;
            let odd = |why: String| {
                let text = format!("{}: a list of {}: {why}", self.client.name(), place.resource());
                Failure::Transport(StoreError::Broken(text))
            };
            let (good, bad, meta) = object::read_page(place, &answer).map_err(odd)?;
            drop(answer);
            for why in bad {
                // One broken object must not hide the others.
                tracing::warn!(resource = %place.resource(), "left out of a listing: {why}");
            }
            for mapped in good {
                if let Mapped::Put(entry) = mapped {
                    take(Piece::One(entry));
                }
            }
            if meta.next.is_empty() {
                return object::revision(&meta.resource_version).map_err(odd);
            }
            next = meta.next;
        }
    }
}

impl Store for KubeStore {
    fn for_node(&self, node: &str) -> Option<Arc<dyn Store>> {
        // Reading and writing by key is not limited.
        Some(Arc::new(self.with(|inner| inner.node = Some(node.to_owned()))))
    }

    fn subscribe(&self, kinds: &[Kind]) -> Option<Box<dyn Subscription>> {
        let kinds: BTreeSet<Kind> = kinds.iter().copied().collect();
        let inner = &self.inner;
        let all = kinds.into_iter().filter_map(|kind| inner.reflectors.of(inner, kind)).collect();
        Some(Box::new(shared::Readers::new(all)))
    }

    fn follows(&self, kinds: &[Kind]) -> Option<bool> {
        let inner = &self.inner;
        Some(kinds.iter().all(|kind| inner.reflectors.cached(inner, *kind).is_some()))
    }

    fn waits_for(&self, kinds: &[Kind]) -> Vec<String> {
        kinds.iter().filter_map(|kind| self.inner.reflectors.waits_for(&self.inner, *kind)).collect()
    }

    fn visit_followed(&self, kinds: &[Kind], each: &mut dyn FnMut(Entry)) -> bool {
        let inner = &self.inner;
        let caches: Option<Vec<_>> = kinds.iter().map(|kind| inner.reflectors.cached(inner, *kind)).collect();
        let Some(caches) = caches else { return false };
        caches.iter().for_each(|cache| cache.shared().visit(each));
        true
    }

    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        Box::pin(self.inner.get(key))
    }

    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let inner = &self.inner;
            let api = inner.client.api().await.map_err(|f| inner.no_api(f))?;
            let listed = futures::stream::iter(watch::places(kinds, api))
                .map(|place| async move { inner.list(&place).await.map(|l| (place.kind, l)) })
                // In order, so that entries of all kinds are in the order of keys.
                .buffered(ABREAST);
            let listed: Vec<_> = listed.try_collect().await?;
            let mut cursor = Cursor::new();
            let mut entries = Vec::new();
            for (kind, list) in listed {
                cursor.insert(kind, list.as_ref().map(|(_, at)| *at));
                entries.extend(list.into_iter().flat_map(|(entries, _)| entries));
            }
            Ok(Listing { entries, revision: inner.cursors.revision(cursor) })
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move { self.inner.put(key, &value, expect).await })
    }

    fn would_hold<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Value> {
        Box::pin(async move { self.inner.would_hold(key, value, expect).await })
    }

    fn say_network<'a>(&'a self, node: &'a str, word: &'a NetworkWord) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.inner.say_network(node, word).await })
    }

    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move { self.inner.delete(key, expect).await })
    }

    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let inner = &self.inner;
            let api = inner.client.api().await.map_err(|f| inner.no_api(f))?;
            let places = watch::places(kinds, api);
            let cursor =
                inner.cursors.from(from, places.iter().map(|p| p.kind)).ok_or(StoreError::Compacted(from))?;
            let watch = watch::KubeWatch::open(inner, places, &cursor, from).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }
}
