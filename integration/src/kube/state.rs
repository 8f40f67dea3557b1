//! The stored objects: one resource version for everything, history of changes for watches, who owns what.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    apply::Managers,
    kinds::Kind,
    rbac::{Access, Call, Identity, Rule},
    status::{Answer, Status},
};

/// Namespace (empty for cluster-wide objects) and name.
pub(crate) type Key = (String, String);
/// Group and plural.
pub(crate) type Id = (String, String);

/// Changes kept per kind.
const HISTORY: usize = 100_000;
/// etcd's limit for one request, bytes.
const TOO_LARGE: usize = 1_572_864;

/// A stored object, without apiVersion and kind.
#[derive(Debug)]
pub(crate) struct Obj {
    pub value: Value,
    /// `value` serialised.
    pub bytes: Bytes,
    pub rv: u64,
    pub managers: Arc<Managers>,
}

impl Obj {
    pub(crate) fn meta(&self, field: &str) -> &str {
        self.value["metadata"][field].as_str().unwrap_or("")
    }
}

/// One change. A deletion has no `after`; its `before` carries the resource version of the deletion.
#[derive(Debug)]
pub(crate) struct Change {
    pub rv: u64,
    pub before: Option<Arc<Obj>>,
    pub after: Option<Arc<Obj>>,
    /// What a deletion's event shows: the last state with the resource version of the deletion.
    pub last: Option<Arc<Obj>>,
}

#[derive(Debug)]
pub(crate) struct Collection {
    pub kind: Arc<Kind>,
    pub objects: BTreeMap<Key, Arc<Obj>>,
    pub history: VecDeque<Arc<Change>>,
    /// Newest resource version whose change is no longer in `history`.
    pub forgotten: u64,
    /// The last change the history no longer has: a watch that is open and has told it goes on.
    pub lost: u64,
    pub notify: watch::Sender<u64>,
}

impl Collection {
    fn new(kind: Kind, rv: u64) -> Self {
        Self {
            kind: Arc::new(kind),
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            forgotten: rv,
            lost: 0,
            notify: watch::channel(0).0,
        }
    }

    /// The objects as they were at `rv`; None when that is too long ago.
    pub(crate) fn at(&self, rv: u64) -> Option<BTreeMap<Key, Arc<Obj>>> {
        if rv < self.forgotten {
            return None;
        }
        let mut objects = self.objects.clone();
        for c in self.history.iter().rev().take_while(|c| c.rv > rv) {
            match (&c.before, &c.after) {
                (Some(old), _) => {
                    objects.insert(key_of(old), Arc::clone(old));
                }
                (None, Some(new)) => {
                    objects.remove(&key_of(new));
                }
                (None, None) => {}
            }
        }
        Some(objects)
    }
}

pub(crate) fn key_of(o: &Obj) -> Key {
    (o.meta("namespace").to_owned(), o.meta("name").to_owned())
}

#[derive(Debug)]
pub(crate) struct State {
    pub rv: u64,
    pub collections: BTreeMap<Id, Collection>,
    /// UID of every object there is.
    live: HashMap<String, (Id, Key)>,
    /// Owner's UID to what it owns.
    owned: HashMap<String, HashSet<(Id, Key)>>,
    pub next_ip: u32,
    /// The CA's PEM, for `kube-root-ca.crt`.
    pub ca: String,
}

impl State {
    pub(crate) fn new(ca: String) -> Self {
        let mut s = Self {
            // A cluster is never at 1; the number must not be mistaken for a count.
            rv: 100,
            collections: BTreeMap::new(),
            live: HashMap::new(),
            owned: HashMap::new(),
            next_ip: u32::from(std::net::Ipv4Addr::new(10, 96, 0, 10)),
            ca,
        };
        for kind in super::kinds::built_in() {
            s.add_kind(kind);
        }
        s
    }

    pub(crate) fn add_kind(&mut self, kind: Kind) {
        let id = (kind.group.clone(), kind.plural.clone());
        match self.collections.get_mut(&id) {
            Some(c) => c.kind = Arc::new(kind),
            None => {
                self.collections.insert(id, Collection::new(kind, self.rv));
            }
        }
    }

    pub(crate) fn collection(&self, id: &Id) -> Answer<&Collection> {
        self.collections.get(id).ok_or_else(Status::page_not_found)
    }

    pub(crate) fn get(&self, id: &Id, key: &Key) -> Option<Arc<Obj>> {
        self.collections.get(id)?.objects.get(key).cloned()
    }

    /// An object of a built-in kind of the core group.
    pub(crate) fn core(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Obj>> {
        self.get(&(String::new(), plural.into()), &(namespace.into(), name.into()))
    }

    pub(crate) fn is_live(&self, uid: &str) -> bool {
        self.live.contains_key(uid)
    }

    pub(crate) fn owned_by(&self, uid: &str) -> Vec<(Id, Key)> {
        self.owned.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Builds what will be stored; refuses what etcd would not take.
    pub(crate) fn seal(mut value: Value, rv: u64, managers: Arc<Managers>) -> Answer<Arc<Obj>> {
        value["metadata"]["resourceVersion"] = rv.to_string().into();
        let bytes = serde_json::to_vec(&value).map_err(|e| Status::plain_error(e.to_string()))?;
        if bytes.len() > TOO_LARGE {
            return Err(Status::plain_error("etcdserver: request is too large"));
        }
        Ok(Arc::new(Obj { value, bytes: bytes.into(), rv, managers }))
    }

    /// Stores an object under the next resource version.
    pub(crate) fn put(&mut self, id: &Id, value: Value, managers: Arc<Managers>) -> Answer<Arc<Obj>> {
        let rv = self.rv + 1;
        let new = Self::seal(value, rv, managers)?;
        let key = key_of(&new);
        let Some(c) = self.collections.get_mut(id) else { return Err(Status::page_not_found()) };
        self.rv = rv;
        let before = c.objects.insert(key.clone(), Arc::clone(&new));
        let place = (id.clone(), key);
        if let Some(old) = &before {
            unlink(&mut self.owned, old, &place);
        }
        for uid in owners(&new) {
            self.owned.entry(uid.to_owned()).or_default().insert(place.clone());
        }
        self.live.insert(new.meta("uid").to_owned(), place);
        record(c, Change { rv, before, after: Some(Arc::clone(&new)), last: None });
        Ok(new)
    }

    /// Removes an object; gives its last state under the resource version of the removal.
    pub(crate) fn remove(&mut self, id: &Id, key: &Key) -> Option<Arc<Obj>> {
        let c = self.collections.get_mut(id)?;
        let old = c.objects.remove(key)?;
        self.rv += 1;
        let rv = self.rv;
        let last =
            Self::seal(old.value.clone(), rv, Arc::clone(&old.managers)).unwrap_or_else(|_| Arc::clone(&old));
        let place = (id.clone(), key.clone());
        unlink(&mut self.owned, &old, &place);
        self.live.remove(old.meta("uid"));
        record(c, Change { rv, before: Some(old), after: None, last: Some(Arc::clone(&last)) });
        Some(last)
    }

    /// Forgets all history, as etcd's compaction does: older watches and continuations come to 410.
    pub(crate) fn compact(&mut self) {
        let rv = self.rv;
        for c in self.collections.values_mut() {
            c.lost = c.history.back().map_or(c.lost, |h| h.rv);
            c.history.clear();
            c.forgotten = rv;
        }
    }

    pub(crate) fn cluster_ip(&mut self) -> String {
        self.next_ip += 1;
        std::net::Ipv4Addr::from(self.next_ip).to_string()
    }

    /// Whether the identity may make the call.
    pub(crate) fn allows(&self, who: &Identity, call: &Call) -> bool {
        match &who.access {
            Access::All => true,
            Access::Rules(rules) => rules.iter().any(|r| r.grants(call)),
            Access::Stored => self.stored_rules(who, &call.namespace).iter().any(|r| r.grants(call)),
        }
    }

    fn stored_rules(&self, who: &Identity, namespace: &str) -> Vec<Rule> {
        let group = "rbac.authorization.k8s.io";
        let objects = |plural: &str| {
            let c = self.collections.get(&(group.to_owned(), plural.to_owned()));
            c.into_iter().flat_map(|c| c.objects.values())
        };
        let mut out = Vec::new();
        let mut add = |binding: &Value, ns: &str| {
            let subjects = binding["subjects"].as_array();
            if !subjects.into_iter().flatten().any(|s| who.is(s, ns)) {
                return;
            }
            let name = binding["roleRef"]["name"].as_str().unwrap_or("");
            let (plural, ns) =
                if binding["roleRef"]["kind"] == "Role" { ("roles", ns) } else { ("clusterroles", "") };
            if let Some(r) = self.get(&(group.into(), plural.into()), &(ns.into(), name.into())) {
                out.extend(Rule::of(&r.value));
            }
        };
        for b in objects("clusterrolebindings") {
            add(&b.value, "");
        }
        if !namespace.is_empty() {
            for b in objects("rolebindings").filter(|b| b.meta("namespace") == namespace) {
                add(&b.value, namespace);
            }
        }
        out
    }

    /// Namespaces every cluster has.
    pub(crate) fn furnish(&mut self) {
        for ns in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            self.make_namespace(ns);
        }
        let group = "rbac.authorization.k8s.io".to_owned();
        for (plural, value) in [
            (
                "clusterroles",
                json!({"metadata": {"name": "cluster-admin"}, "rules": [
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}]}),
            ),
            (
                "clusterrolebindings",
                json!({"metadata": {"name": "cluster-admin"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:masters"}]}),
            ),
        ] {
            self.plant(&(group.clone(), plural.into()), value);
        }
    }

    fn make_namespace(&mut self, name: &str) {
        let ns = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        self.plant(&(String::new(), "namespaces".into()), ns);
        self.furnish_namespace(name);
    }

    /// What the controllers put into a new namespace.
    pub(crate) fn furnish_namespace(&mut self, name: &str) {
        let sa = json!({"metadata": {"name": "default", "namespace": name}});
        self.plant(&(String::new(), "serviceaccounts".into()), sa);
        let cm =
            json!({"metadata": {"name": "kube-root-ca.crt", "namespace": name}, "data": {"ca.crt": self.ca}});
        self.plant(&(String::new(), "configmaps".into()), cm);
    }

    /// Stores an object as it is, with uid and time, without any check. Existing objects stay.
    pub(crate) fn plant(&mut self, id: &Id, mut value: Value) {
        let meta = &mut value["metadata"];
        let key = (
            meta["namespace"].as_str().unwrap_or("").to_owned(),
            meta["name"].as_str().unwrap_or("").to_owned(),
        );
        if self.get(id, &key).is_some() {
            return;
        }
        meta["uid"] = super::stamp::uid().into();
        meta["creationTimestamp"] = super::stamp::rfc3339(super::stamp::now()).into();
        // Only an object too large for etcd fails here, and these are not.
        let _ = self.put(id, value, Arc::default());
    }
}

fn owners(o: &Obj) -> impl Iterator<Item = &str> {
    o.value["metadata"]["ownerReferences"].as_array().into_iter().flatten().filter_map(|r| r["uid"].as_str())
}

fn unlink(owned: &mut HashMap<String, HashSet<(Id, Key)>>, old: &Obj, place: &(Id, Key)) {
    for uid in owners(old) {
        if let Some(set) = owned.get_mut(uid) {
            set.remove(place);
            if set.is_empty() {
                owned.remove(uid);
            }
        }
    }
}

fn record(c: &mut Collection, change: Change) {
    let rv = change.rv;
    c.history.push_back(Arc::new(change));
    if c.history.len() > HISTORY
        && let Some(old) = c.history.pop_front()
    {
        c.forgotten = old.rv;
        c.lost = old.rv;
    }
    c.notify.send_replace(rv);
}
