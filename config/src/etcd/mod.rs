//! The store on etcd v3, in Calico's layout, so that both can work on one cluster. Compare-and-swap is a transaction on
//! the key's modification revision; a listing is read at one revision, in pages; a watch is one stream.
//!
//! Nothing is written twice: a write whose answer was lost is the caller's to look at again, as its expectation decides.

mod client;
mod identity;
mod keys;
mod members;
mod model;
mod pb;
mod settings;
mod watch;

use std::{collections::BTreeSet, sync::Arc};

use brindle_config_core::{
    Key, Kind,
    store::{Entry, Expect, Listing, Revision, Store, StoreError, StoreFuture, Watch},
};
use serde_json::Value;

pub use self::settings::{EtcdSettings, Pem};
use self::{
    client::Client,
    keys::{Layout, end_of},
    pb::{
        Answer, Compare, DeleteRangeRequest, KeyValue, Op, PutRequest, RangeRequest, RequestOp, Target,
        TxnRequest,
    },
};

/// Entries in one page of a listing.
const PAGE: i64 = 2_000;
/// How often a listing is begun again because its revision was compacted meanwhile.
const LISTINGS: usize = 3;
/// How often an unconditional write looks again at what it keeps, when others write meanwhile.
const LOOKS: usize = 8;

/// A datastore in etcd. Clones share connections.
#[derive(Clone)]
pub struct EtcdStore {
    client: Arc<Client>,
    layout: Layout,
}

impl EtcdStore {
    /// A store; connections are made with the first call.
    pub fn new(settings: EtcdSettings) -> Self {
        let layout = Layout::new(&settings.root);
        Self { client: Arc::new(Client::new(settings)), layout }
    }

    /// Forgets all history up to now (`etcdctl compact`).
    pub async fn compact(&self) -> Result<(), StoreError> {
        let now = self.client.now().await?;
        self.client.compact(now.unwrap_or_default().revision).await
    }

    /// Finds a resource among the places it can lie in.
    async fn find(&self, key: &Key) -> Result<(String, KeyValue, Entry), StoreError> {
        let candidates = self.layout.candidates(key);
        let found = match candidates.as_slice() {
            [] => None,
            [one] => {
                let request = RangeRequest { key: one.clone().into_bytes(), ..Default::default() };
                self.client.range(request).await?.kvs.into_iter().next()
            }
            several => {
                let success = several.iter().map(|path| range_op(path)).collect();
                let answer = self.client.txn(TxnRequest { success, ..Default::default() }).await?;
                answer
                    .responses
                    .into_iter()
                    .filter_map(|r| match r.response {
                        Some(Answer::Range(r)) => r.kvs.into_iter().next(),
                        _ => None,
                    })
                    // The longest host first: `node-1` before `node`.
                    .max_by_key(|kv| kv.key.len())
            }
        };
        let found = match found {
            None if key.kind == Kind::BlockAffinity => self.find_shortened(key).await?,
            other => other,
        };
        let kv = found.ok_or_else(|| StoreError::NotFound(key.clone()))?;
        let path = String::from_utf8_lossy(&kv.key).into_owned();
        let entry =
            self.entry(&kv)?.filter(|e| e.key == *key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
        Ok((path, kv, entry))
    }

    /// An affinity whose name was too long and carries a hash: its path cannot be computed, so all are looked at.
    async fn find_shortened(&self, key: &Key) -> Result<Option<KeyValue>, StoreError> {
        const LONG: usize = 200;
        if key.name.len() < LONG {
            return Ok(None);
        }
        for folder in self.layout.folders(Kind::BlockAffinity) {
            for kv in self.read_folder(&folder, 0).await?.0 {
                let place = self.layout.place(&String::from_utf8_lossy(&kv.key));
                if place.is_some_and(|p| p.key == *key) {
                    return Ok(Some(kv));
                }
            }
        }
        Ok(None)
    }

    /// Everything in a folder, in pages, as of one revision (0: now).
    async fn read_folder(&self, folder: &str, at: i64) -> Result<(Vec<KeyValue>, i64), StoreError> {
        let range_end = if folder.ends_with('/') { end_of(folder) } else { Vec::new() };
        let mut request =
            RangeRequest { key: folder.as_bytes().to_vec(), range_end, limit: PAGE, revision: at };
        let mut all = Vec::new();
        loop {
            let page = self.client.range(request.clone()).await?;
            if request.revision == 0 {
                request.revision = page.header.unwrap_or_default().revision;
            }
            let next = page.kvs.last().map(|kv| [kv.key.as_slice(), b"\0"].concat());
            all.extend(page.kvs);
            match next {
                Some(next) if page.more => request.key = next,
                _ => return Ok((all, request.revision)),
            }
        }
    }

    /// What is stored at a path of ours; `None` for other paths.
    fn entry(&self, kv: &KeyValue) -> Result<Option<Entry>, StoreError> {
        let Some(place) = std::str::from_utf8(&kv.key).ok().and_then(|p| self.layout.place(p)) else {
            return Ok(None);
        };
        let value = model::read(&place.key, place.affinity.as_ref(), &kv.value)
            .map_err(|reason| StoreError::Invalid { key: place.key.clone(), reason })?;
        Ok(Some(Entry { key: place.key, revision: revision(kv.mod_revision), value: Arc::new(value) }))
    }

    /// A value with the identity of what lies at its path, or a new one; and the revision of what lies there.
    async fn identified(
        &self,
        path: &str,
        value: &Value,
        expect: Expect,
    ) -> Result<(Value, Option<Revision>), StoreError> {
        let stored = match expect {
            Expect::Absent => None,
            Expect::Revision(_) | Expect::Any => {
                let request = RangeRequest { key: path.as_bytes().to_vec(), ..Default::default() };
                self.client.range(request).await?.kvs.into_iter().next()
            }
        };
        let mut whole = value.clone();
        identity::complete(&mut whole, stored.as_ref().map(|kv| kv.value.as_slice()), identity::fresh());
        Ok((whole, stored.map(|kv| revision(kv.mod_revision))))
    }

    async fn write(
        &self,
        key: &Key,
        path: &str,
        value: &Value,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        let put = PutRequest { key: path.as_bytes().to_vec(), value: model::write(key, value) };
        let answer = self
            .client
            .txn(TxnRequest {
                compare: compare(path, expect),
                success: vec![RequestOp { request: Some(Op::Put(put)) }],
                failure: vec![range_op(path)],
            })
            .await?;
        if !answer.succeeded {
            return Err(refused(key, expect, &answer.responses));
        }
        Ok(revision(answer.header.unwrap_or_default().revision))
    }

    /// Where a value is written to.
    fn path_for(&self, key: &Key, value: &Value) -> Result<String, StoreError> {
        if key.kind == Kind::BlockAffinity
            && let Some(affinity) = model::affinity_of(value)
        {
            return Ok(self.layout.affinity(&affinity));
        }
        self.layout.candidates(key).into_iter().next().ok_or_else(|| StoreError::Invalid {
            key: key.clone(),
            reason: "its name is no name of such a record".into(),
        })
    }
}

/// The revision of a number etcd gave; it counts from 1.
fn revision(n: i64) -> Revision {
    Revision(u64::try_from(n).unwrap_or(0))
}

fn number(r: Revision) -> i64 {
    i64::try_from(r.0).unwrap_or(i64::MAX)
}

fn range_op(path: &str) -> RequestOp {
    RequestOp {
        request: Some(Op::Range(RangeRequest { key: path.as_bytes().to_vec(), ..Default::default() })),
    }
}

/// The condition of a write; none for [`Expect::Any`].
fn compare(path: &str, expect: Expect) -> Vec<Compare> {
    const CREATE: i32 = 1;
    const MOD: i32 = 2;
    let key = path.as_bytes().to_vec();
    match expect {
        Expect::Any => Vec::new(),
        Expect::Absent => {
            vec![Compare { result: 0, target: CREATE, key, target_union: Some(Target::Create(0)) }]
        }
        Expect::Revision(r) => {
            vec![Compare { result: 0, target: MOD, key, target_union: Some(Target::Mod(number(r))) }]
        }
    }
}

/// Why a condition did not hold.
fn refused(key: &Key, expect: Expect, answers: &[pb::ResponseOp]) -> StoreError {
    let exists = answers.iter().any(|r| matches!(&r.response, Some(Answer::Range(r)) if !r.kvs.is_empty()));
    match expect {
        Expect::Absent => StoreError::Exists(key.clone()),
        _ if exists => StoreError::Conflict(key.clone()),
        _ => StoreError::NotFound(key.clone()),
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        Box::pin(async move { self.find(key).await.map(|(_, _, entry)| entry) })
    }

    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let kinds: BTreeSet<Kind> = kinds.iter().copied().collect();
            let mut failed = None;
            for _ in 0..LISTINGS {
                let mut at = 0;
                let mut entries = Vec::new();
                let mut result = Ok(());
                for folder in kinds.iter().flat_map(|k| self.layout.folders(*k)) {
                    match self.read_folder(&folder, at).await {
                        Ok((kvs, revision)) => {
                            at = revision;
                            for kv in &kvs {
                                match self.entry(kv) {
                                    Ok(entry) => entries.extend(entry),
                                    // One broken entry must not hide the others.
                                    Err(error) => tracing::warn!(%error, "left out of a listing"),
                                }
                            }
                        }
                        Err(e) => {
                            result = Err(e);
                            break;
                        }
                    }
                }
                match result {
                    Ok(()) => {
                        if kinds.is_empty() {
                            at = self.client.now().await?.unwrap_or_default().revision;
                        }
                        entries.sort_by(|a, b| a.key.cmp(&b.key));
                        return Ok(Listing { entries, revision: revision(at) });
                    }
                    Err(StoreError::Unavailable(why)) if why.contains("compacted") => {
                        failed = Some(StoreError::Unavailable(why));
                    }
                    Err(e) => return Err(e),
                }
            }
            Err(failed.unwrap_or_else(|| StoreError::Unavailable(self.client.name())))
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            let path = self.path_for(key, &value)?;
            if identity::is_whole(key.kind, &value) {
                return self.write(key, &path, &value, expect).await;
            }
            for _ in 0..LOOKS {
                let (whole, at) = self.identified(&path, &value, expect).await?;
                // Who overwrites whatever is there still keeps the identity of exactly that.
                let guard = match (expect, at) {
                    (Expect::Any, None) => Expect::Absent,
                    (Expect::Any, Some(at)) => Expect::Revision(at),
                    (given, _) => given,
                };
                match self.write(key, &path, &whole, guard).await {
                    Err(StoreError::Exists(_) | StoreError::Conflict(_) | StoreError::NotFound(_))
                        if expect == Expect::Any => {}
                    result => return result,
                }
            }
            let (whole, _) = self.identified(&path, &value, expect).await?;
            self.write(key, &path, &whole, expect).await
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            let path = match self.layout.candidates(key).as_slice() {
                [one] if expect != Expect::Absent => one.clone(),
                _ => self.find(key).await?.0,
            };
            if expect == Expect::Absent {
                return Err(StoreError::Conflict(key.clone()));
            }
            let delete = DeleteRangeRequest { key: path.clone().into_bytes() };
            let answer = self
                .client
                .txn(TxnRequest {
                    compare: compare(&path, expect),
                    success: vec![RequestOp { request: Some(Op::Delete(delete)) }],
                    failure: vec![range_op(&path)],
                })
                .await?;
            if !answer.succeeded {
                return Err(refused(key, expect, &answer.responses));
            }
            let deleted = answer
                .responses
                .iter()
                .any(|r| matches!(&r.response, Some(Answer::Delete(d)) if d.deleted > 0));
            if !deleted {
                return Err(StoreError::NotFound(key.clone()));
            }
            Ok(revision(answer.header.unwrap_or_default().revision))
        })
    }

    fn keeps_names_as_written(&self) -> bool {
        true
    }

    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let watch = watch::EtcdWatch::open(self.clone(), kinds, from).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }
}
