//! The store on a Kubernetes API server, in Calico's layout ("Kubernetes datastore"): Calico's kinds are CRDs, Nodes and
//! Pods carry annotations, Kubernetes' own kinds are read as they are. Compare-and-swap is the server's on
//! `resourceVersion`; a listing reads each collection in pages; a watch is one stream for each collection.
//!
//! Nothing is written twice: a write whose answer was lost is the caller's to look at again, as its expectation decides.

mod client;
mod cursors;
mod explain;
mod kinds;
mod map_crd;
mod map_node;
mod map_plain;
mod map_pod;
mod object;
mod settings;
mod watch;
mod write;

use std::{sync::Arc, time::Duration};

use brindle_config_core::{
    Key, Kind,
    store::{Entry, Expect, Listing, Revision, Store, StoreError, StoreFuture, Watch},
};
use futures::{StreamExt, TryStreamExt};
use http::Method;
use serde_json::Value;

pub use self::settings::KubeSettings;
use self::{
    client::{Client, Failure, Payload},
    cursors::{Cursor, Cursors},
    explain::{Verb, explain},
    kinds::{Place, Shape, escaped},
    object::Mapped,
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
const PODS: &str = "spec.hostNetwork=false,status.phase!=Succeeded,status.phase!=Failed";

/// A datastore on an API server. Clones share connections.
#[derive(Clone)]
pub struct KubeStore {
    inner: Arc<Inner>,
}

struct Inner {
    client: Arc<Client>,
    cursors: Arc<Cursors>,
    /// Listings and watches tell of endpoints of this node alone.
    node: Option<String>,
    missing: Duration,
}

impl KubeStore {
    /// A store; connections are made with the first call, on the runtime of that call.
    pub fn new(settings: KubeSettings) -> Self {
        let inner = Inner {
            client: Arc::new(Client::new(settings)),
            cursors: Arc::default(),
            node: None,
            missing: MISSING,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The same store, which looks for missing collections that often.
    #[must_use]
    pub fn looking_for_missing_every(&self, pause: Duration) -> Self {
        self.with(|inner| inner.missing = pause)
    }

    fn with(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = &self.inner;
        let mut inner = Inner {
            client: Arc::clone(&old.client),
            cursors: Arc::clone(&old.cursors),
            node: old.node.clone(),
            missing: old.missing,
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

    /// What of a collection is asked for, as part of a query.
    fn selection(&self, place: &Place) -> String {
        match (place.shape, &self.node) {
            (Shape::Pod, Some(node)) => {
                format!("&fieldSelector={}", escaped(&format!("spec.nodeName={node},{PODS}")))
            }
            (Shape::Pod, None) => format!("&fieldSelector={}", escaped(&format!("spec.nodeName!=,{PODS}"))),
            _ => String::new(),
        }
    }

    async fn get(&self, key: &Key) -> Result<Entry, StoreError> {
        let place = self.place(key).await?;
        let missing = || StoreError::NotFound(key.clone());
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
        let mut failed = None;
        for _ in 0..LISTS {
            match self.pages(place).await {
                Ok(all) => return Ok(Some(all)),
                Err(Failure::Api(s)) if explain::unknown_collection(&s) && place.optional() => {
                    return Ok(None);
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

    async fn pages(&self, place: &Place) -> Result<(Vec<Entry>, Revision), Failure> {
        let mut entries = Vec::new();
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
            for why in bad {
                // One broken object must not hide the others.
                tracing::warn!(resource = %place.resource(), "left out of a listing: {why}");
            }
            entries.extend(good.into_iter().filter_map(|m| match m {
                Mapped::Put(e) => Some(e),
                Mapped::Nothing { .. } => None,
            }));
            if meta.next.is_empty() {
                let at = object::revision(&meta.resource_version).map_err(odd)?;
                entries.sort_by(|a: &Entry, b| a.key.cmp(&b.key));
                // While Calico renames its policies there are two objects of one; the newer is the one to be.
                entries.dedup_by(|b, a| {
                    let same = a.key == b.key;
                    if same && b.revision > a.revision {
                        std::mem::swap(a, b);
                    }
                    same
                });
                return Ok((entries, at));
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
