//! Writes: what may be written where, and the expectation as the server checks it.

use std::sync::Arc;

use brindle_config_core::{
    Key, Kind, names,
    store::{Expect, NetworkWord, Revision, StoreError},
};
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    Inner,
    client::Payload,
    explain::Verb,
    kinds::{Api, Place, Shape},
    map_crd,
    map_node::{self, NodeObject},
    map_pod::{self, PodObject},
    object::{Mapped, Stub},
};
use crate::jitter;

/// Attempts of a write that has no expectation, against other writers.
const ATTEMPTS: u32 = 20;

fn refused(key: &Key, reason: impl Into<String>) -> StoreError {
    StoreError::Refused { key: key.clone(), reason: reason.into() }
}

fn no_such_node(key: &Key) -> StoreError {
    refused(
        key,
        "there is no such Node in Kubernetes, and kubelets alone make them; is the node's name right?",
    )
}

/// Whether another attempt may succeed.
const fn raced(e: &StoreError) -> bool {
    matches!(e, StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_))
}

const fn number(expect: Expect) -> Option<u64> {
    match expect {
        Expect::Revision(r) => Some(r.0),
        Expect::Absent | Expect::Any => None,
    }
}

/// Whether the server is to keep what it is sent.
#[derive(Clone, Copy)]
enum Dry {
    /// It is.
    Not,
    /// It is only to say what it would keep.
    All,
}

impl Dry {
    fn of(self, path: String) -> String {
        match self {
            Self::Not => path,
            Self::All => path + "?dryRun=All",
        }
    }
}

impl Inner {
    /// The collection a resource is written to.
    async fn target(&self, key: &Key) -> Result<Place, StoreError> {
        if key.name.is_empty() {
            return Err(refused(key, "it has no name"));
        }
        if key.kind == Kind::Profile {
            return Err(refused(
                key,
                "profiles follow from Namespaces and ServiceAccounts; change their labels",
            ));
        }
        let place = self.place(key).await?;
        // Of Kubernetes' own objects, the record of who acts and the status of services are written.
        if place.shape == Shape::Plain && !matches!(key.kind, Kind::Lease | Kind::Service) {
            let what = place.resource();
            return Err(refused(
                key,
                format!("is Kubernetes' own; change it there: kubectl edit {what} {}", key.name),
            ));
        }
        Ok(place)
    }

    /// What the server would hold after a write: it fills in defaults and judges by the definition's schema, and keeps
    /// nothing (`dryRun=All`).
    pub(super) async fn would_hold(
        &self,
        key: &Key,
        value: Value,
        expect: Expect,
    ) -> Result<Value, StoreError> {
        let place = self.target(key).await?;
        let api = match place.shape {
            Shape::Calico(api) => api,
            Shape::Node if expect == Expect::Absent => return Err(no_such_node(key)),
            // Annotations of Kubernetes' objects: nothing is filled in.
            Shape::Node | Shape::Pod | Shape::Plain => return Ok(value),
        };
        let answer = match expect {
            Expect::Absent => self.create_named(&place, api, key, &value, Dry::All).await,
            Expect::Revision(at) => self.replace_named(&place, api, key, &value, at, Dry::All).await,
            Expect::Any => match self.get(key).await {
                Ok(found) => self.replace_named(&place, api, key, &value, found.revision, Dry::All).await,
                Err(StoreError::NotFound(_)) => self.create_named(&place, api, key, &value, Dry::All).await,
                Err(e) => Err(e),
            },
        };
        let answer = match answer {
            Ok((_, answer)) => answer,
            // A webhook that acts on more than the object is not asked for a trial; the write itself is.
            Err(StoreError::Refused { reason, .. }) if reason.contains("does not support dry run") => {
                return Ok(value);
            }
            Err(e) => return Err(e),
        };
        let bad = |why: String| {
            StoreError::Unavailable(format!("{}: the answer about {key}: {why}", self.client.name()))
        };
        let mut object: Value = serde_json::from_slice(&answer).map_err(|e| bad(e.to_string()))?;
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            // Nothing was kept: what is new has no revision, and its identity is made up.
            meta.insert("resourceVersion".into(), "1".into());
            if value.pointer("/metadata/uid").is_none() {
                meta.remove("uid");
                meta.remove("creationTimestamp");
            }
        }
        match map_crd::read(&place, api, object).map_err(bad)? {
            Mapped::Put(entry) => Ok(Arc::unwrap_or_clone(entry.value)),
            Mapped::Nothing { .. } => Ok(value),
        }
    }

    pub(super) async fn put(&self, key: &Key, value: &Value, expect: Expect) -> Result<Revision, StoreError> {
        let place = self.target(key).await?;
        match place.shape {
            Shape::Calico(api) => match expect {
                Expect::Absent => self.create(&place, api, key, value).await,
                Expect::Revision(at) => self.replace(&place, api, key, value, at).await,
                Expect::Any => self.overwrite(&place, api, key, value).await,
            },
            Shape::Node => self.put_node(&place, key, value, expect).await,
            Shape::Pod => self.put_endpoint(&place, key, value, expect).await,
            Shape::Plain if key.kind == Kind::Lease => self.put_lease(&place, key, value, expect).await,
            Shape::Plain if key.kind == Kind::Service => self.put_status(&place, key, value, expect).await,
            Shape::Plain => Err(refused(key, "is Kubernetes' own")),
        }
    }

    async fn put_lease(
        &self,
        place: &Place,
        key: &Key,
        value: &Value,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        let mut object = value.clone();
        let meta = object.get_mut("metadata").and_then(Value::as_object_mut);
        let meta = meta.ok_or_else(|| refused(key, "has no metadata"))?;
        meta.insert("name".into(), key.name.clone().into());
        meta.insert("namespace".into(), key.namespace.clone().into());
        meta.remove("resourceVersion");
        if let Some(at) = number(expect) {
            meta.insert("resourceVersion".into(), at.to_string().into());
            let path = place.object(&key.namespace, &key.name);
            return self.write(Verb::Update, place, key, Method::PUT, &path, &object).await;
        }
        if expect == Expect::Any {
            return Err(refused(key, "a lease is only written by those who have read it"));
        }
        let path = place.collection(Some(&key.namespace));
        self.write(Verb::Create, place, key, Method::POST, &path, &object).await
    }

    /// The status of a service: its addresses. Everything else of it is its owner's.
    async fn put_status(
        &self,
        place: &Place,
        key: &Key,
        value: &Value,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        if expect == Expect::Absent {
            return Err(refused(key, "services are made in Kubernetes: kubectl create"));
        }
        let balancer = value.pointer("/status/loadBalancer").cloned().unwrap_or_else(|| json!({}));
        // A merge patch takes nothing away that it does not name.
        let ingress = balancer.get("ingress").cloned().unwrap_or(Value::Null);
        let mut patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        if let Some(at) = number(expect) {
            patch["metadata"] = json!({"resourceVersion": at.to_string()});
        }
        let path = format!("{}/status", place.object(&key.namespace, &key.name));
        self.write(Verb::PatchStatus, place, key, Method::PATCH, &path, &patch).await
    }

    async fn create(
        &self,
        place: &Place,
        api: Api,
        key: &Key,
        value: &Value,
    ) -> Result<Revision, StoreError> {
        let (name, answer) = self.create_named(place, api, key, value, Dry::Not).await?;
        self.with_status(place, api, key, &name, value, &answer).await
    }

    /// Creates the object without its status; its name and the server's answer.
    async fn create_named(
        &self,
        place: &Place,
        api: Api,
        key: &Key,
        value: &Value,
        dry: Dry,
    ) -> Result<(String, Vec<u8>), StoreError> {
        let mut names = map_crd::names_of(key, api);
        let name = match (names.pop(), names.pop()) {
            (Some(legacy), Some(plain)) => {
                // Both names are of one resource: neither may be taken.
                match self.get(key).await {
                    Ok(_) => return Err(StoreError::Exists(key.clone())),
                    Err(StoreError::NotFound(_)) => {}
                    Err(e) => return Err(e),
                }
                if self.old_calico().await? { legacy } else { plain }
            }
            (Some(only), None) => only,
            (None, _) => return Err(refused(key, "its name is no name of an object")),
        };
        let object = map_crd::write(place, api, key, &name, value, None);
        let path = dry.of(place.collection(Some(&key.namespace)));
        let answer = self.send(Verb::Create, place, key, Method::POST, &path, &object).await?;
        Ok((name, answer))
    }

    async fn replace(
        &self,
        place: &Place,
        api: Api,
        key: &Key,
        value: &Value,
        at: Revision,
    ) -> Result<Revision, StoreError> {
        let (name, answer) = self.replace_named(place, api, key, value, at, Dry::Not).await?;
        self.with_status(place, api, key, &name, value, &answer).await
    }

    /// The same without its status.
    async fn replace_named(
        &self,
        place: &Place,
        api: Api,
        key: &Key,
        value: &Value,
        at: Revision,
        dry: Dry,
    ) -> Result<(String, Vec<u8>), StoreError> {
        for name in map_crd::names_of(key, api) {
            let object = map_crd::write(place, api, key, &name, value, Some(at.0));
            let path = dry.of(place.object(&key.namespace, &name));
            match self.send(Verb::Update, place, key, Method::PUT, &path, &object).await {
                Err(StoreError::NotFound(_)) => {}
                answer => return Ok((name, answer?)),
            }
        }
        Err(StoreError::NotFound(key.clone()))
    }

    /// Writes the status of what was just written, where the server keeps it apart and has another one.
    async fn with_status(
        &self,
        place: &Place,
        api: Api,
        key: &Key,
        name: &str,
        value: &Value,
        answer: &[u8],
    ) -> Result<Revision, StoreError> {
        let at = self.revision_in(key, answer)?;
        let Some(status) = value.get("status").filter(|s| s.is_object() && place.has_status()) else {
            return Ok(at);
        };
        let stored = serde_json::from_slice::<Value>(answer).unwrap_or_default();
        if stored.get("status") == Some(status) {
            return Ok(at);
        }
        let object = map_crd::write(place, api, key, name, value, Some(at.0));
        let path = format!("{}/status", place.object(&key.namespace, name));
        self.write(Verb::UpdateStatus, place, key, Method::PUT, &path, &object).await
    }

    async fn overwrite(
        &self,
        place: &Place,
        api: Api,
        key: &Key,
        value: &Value,
    ) -> Result<Revision, StoreError> {
        for attempt in 0..ATTEMPTS {
            let done = match self.get(key).await {
                Ok(found) => self.replace(place, api, key, value, found.revision).await,
                Err(StoreError::NotFound(_)) => self.create(place, api, key, value).await,
                Err(e) => return Err(e),
            };
            match done {
                Err(e) if raced(&e) => tokio::time::sleep(jitter::retry(attempt)).await,
                done => return done,
            }
        }
        Err(StoreError::Conflict(key.clone()))
    }

    /// Whether Calico of before 3.32 reads the policies of this cluster.
    async fn old_calico(&self) -> Result<bool, StoreError> {
        let info = match self.get(&Key::new(Kind::ClusterInformation, None, "default")).await {
            Ok(info) => info,
            Err(StoreError::NotFound(_)) => return Ok(false),
            Err(e) => return Err(e),
        };
        let version = info.value.pointer("/spec/calicoVersion").and_then(Value::as_str).unwrap_or("");
        Ok(names::old_policy_names(version))
    }

    async fn write(
        &self,
        verb: Verb,
        place: &Place,
        key: &Key,
        method: Method,
        path: &str,
        object: &Value,
    ) -> Result<Revision, StoreError> {
        let answer = self.send(verb, place, key, method, path, object).await?;
        self.revision_in(key, &answer)
    }

    /// The same, with the server's answer.
    async fn send(
        &self,
        verb: Verb,
        place: &Place,
        key: &Key,
        method: Method,
        path: &str,
        object: &Value,
    ) -> Result<Vec<u8>, StoreError> {
        let bytes = object.to_string().into_bytes();
        let payload = if method == Method::PATCH { Payload::MergePatch(bytes) } else { Payload::Json(bytes) };
        let answer = self.client.call(method, path, payload).await;
        answer.map_err(|f| self.explain(verb, place, Some(key), f))
    }

    /// The revision in the server's answer to a write.
    fn revision_in(&self, key: &Key, answer: &[u8]) -> Result<Revision, StoreError> {
        let stub = serde_json::from_slice::<Stub>(answer).map_err(|e| e.to_string());
        stub.and_then(|s| s.metadata.revision()).map_err(|why| {
            // It was written; what it is now has to be read again.
            StoreError::Unavailable(format!("{}: the answer to a write of {key}: {why}", self.client.name()))
        })
    }

    /// One object, narrowed.
    async fn object<T: DeserializeOwned>(
        &self,
        place: &Place,
        key: &Key,
        name: &str,
    ) -> Result<T, StoreError> {
        let path = place.object(&key.namespace, name);
        let answer = self
            .client
            .call(Method::GET, &path, Payload::None)
            .await
            .map_err(|f| self.explain(Verb::Get, place, Some(key), f))?;
        serde_json::from_slice(&answer)
            .map_err(|e| StoreError::Invalid { key: key.clone(), reason: e.to_string() })
    }

    async fn put_node(
        &self,
        place: &Place,
        key: &Key,
        value: &Value,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        let node: NodeObject = match self.object(place, key, &key.name).await {
            Err(StoreError::NotFound(_)) if !matches!(expect, Expect::Revision(_)) => {
                return Err(no_such_node(key));
            }
            found => found?,
        };
        if expect == Expect::Absent {
            return Err(StoreError::Exists(key.clone()));
        }
        let patch = map_node::patch(&node, value, number(expect)).map_err(|reason| refused(key, reason))?;
        let path = format!("{}/status", place.object("", &key.name));
        self.write(Verb::PatchStatus, place, key, Method::PATCH, &path, &patch).await
    }

    /// The condition NetworkUnavailable of a Node, as Calico's agent sets it. A merge patch replaces the whole list, so it
    /// names the revision that the others were read at.
    pub(super) async fn say_network(&self, node: &str, word: &NetworkWord) -> Result<bool, StoreError> {
        const KIND: &str = "NetworkUnavailable";
        let key = Key::new(Kind::Node, None, node);
        let place = self.place(&key).await?;
        let path = format!("{}/status", place.object("", node));
        let status = if word.available { "False" } else { "True" };
        for attempt in 0..ATTEMPTS {
            let found: Value = self.object(&place, &key, node).await?;
            let all = found.pointer("/status/conditions").and_then(Value::as_array);
            let mut conditions = all.cloned().unwrap_or_default();
            let old = conditions.iter().find(|c| c["type"] == KIND);
            if old.is_some_and(|c| c["status"] == status && c["reason"] == word.reason) {
                return Ok(false);
            }
            let since = old
                .filter(|c| c["status"] == status)
                .map_or(json!(word.at), |c| c["lastTransitionTime"].clone());
            let new = json!({"type": KIND, "status": status, "reason": word.reason, "message": word.message,
                "lastHeartbeatTime": word.at, "lastTransitionTime": since});
            match conditions.iter_mut().find(|c| c["type"] == KIND) {
                Some(old) => *old = new,
                None => conditions.push(new),
            }
            let at = found.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
            let patch = json!({"metadata": {"resourceVersion": at}, "status": {"conditions": conditions}});
            match self.write(Verb::PatchStatus, &place, &key, Method::PATCH, &path, &patch).await {
                Ok(_) => return Ok(true),
                Err(StoreError::Conflict(_)) => tokio::time::sleep(jitter::back_off(attempt)).await,
                Err(e) => return Err(e),
            }
        }
        Err(StoreError::Conflict(key))
    }

    async fn put_endpoint(
        &self,
        place: &Place,
        key: &Key,
        value: &Value,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        let name = pod_name(key)?;
        let path = format!("{}/status", place.object(&key.namespace, &name));
        for attempt in 0..ATTEMPTS {
            let pod: PodObject = match self.object(place, key, &name).await {
                Err(StoreError::NotFound(_)) if !matches!(expect, Expect::Revision(_)) => {
                    return Err(refused(
                        key,
                        format!("there is no Pod {}/{name} in Kubernetes", key.namespace),
                    ));
                }
                found => found?,
            };
            let is =
                map_pod::read(&pod).map_err(|reason| StoreError::Invalid { key: key.clone(), reason })?;
            let at = match (expect, is) {
                (Expect::Absent, Mapped::Put(_)) => return Err(StoreError::Exists(key.clone())),
                (Expect::Revision(_), Mapped::Nothing { .. }) => {
                    return Err(StoreError::NotFound(key.clone()));
                }
                (Expect::Revision(r), _) => r,
                // The pod must not have become something else since it was looked at.
                (_, is) => is.revision(),
            };
            let patch = map_pod::patch(&pod, value, Some(at.0)).map_err(|reason| refused(key, reason))?;
            match self.write(Verb::PatchStatus, place, key, Method::PATCH, &path, &patch).await {
                Err(e) if raced(&e) && !matches!(expect, Expect::Revision(_)) => {
                    tokio::time::sleep(jitter::retry(attempt)).await;
                }
                done => return done,
            }
        }
        Err(StoreError::Conflict(key.clone()))
    }

    pub(super) async fn delete(&self, key: &Key, expect: Expect) -> Result<Revision, StoreError> {
        let place = self.target(key).await?;
        match (place.shape, expect) {
            (Shape::Node, _) => Err(refused(
                key,
                format!("Nodes are deleted in Kubernetes: kubectl delete node {}", key.name),
            )),
            (Shape::Pod, _) => self.release(&place, key, expect).await,
            (Shape::Calico(_), Expect::Absent) => {
                self.get(key).await?;
                Err(StoreError::Conflict(key.clone()))
            }
            (Shape::Calico(api), _) => self.remove(&place, api, key, expect).await,
            (Shape::Plain, _) => Err(refused(key, "is Kubernetes' own")),
        }
    }

    async fn remove(
        &self,
        place: &Place,
        api: Api,
        key: &Key,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        let options = match number(expect) {
            Some(at) => json!({"apiVersion": "v1", "kind": "DeleteOptions",
                "preconditions": {"resourceVersion": at.to_string()}}),
            None => json!({"apiVersion": "v1", "kind": "DeleteOptions"}),
        };
        for name in map_crd::names_of(key, api) {
            let path = place.object(&key.namespace, &name);
            let payload = Payload::Json(options.to_string().into_bytes());
            match self.client.call(Method::DELETE, &path, payload).await {
                // The server does not say at which revision it deleted.
                Ok(answer) => {
                    return Ok(self
                        .revision_in(key, &answer)
                        .unwrap_or(Revision(number(expect).unwrap_or(0))));
                }
                Err(failure) => match self.explain(Verb::Delete, place, Some(key), failure) {
                    StoreError::NotFound(_) => {}
                    e => return Err(e),
                },
            }
        }
        Err(StoreError::NotFound(key.clone()))
    }

    /// Gives the addresses of a pod back; the pod stays.
    async fn release(&self, place: &Place, key: &Key, expect: Expect) -> Result<Revision, StoreError> {
        let name = pod_name(key)?;
        let path = format!("{}/status", place.object(&key.namespace, &name));
        for attempt in 0..ATTEMPTS {
            let pod: PodObject = self.object(place, key, &name).await?;
            let is =
                map_pod::read(&pod).map_err(|reason| StoreError::Invalid { key: key.clone(), reason })?;
            let at = match (expect, is) {
                (_, Mapped::Nothing { .. }) => return Err(StoreError::NotFound(key.clone())),
                (Expect::Absent, _) => return Err(StoreError::Conflict(key.clone())),
                (Expect::Revision(r), _) => r,
                (Expect::Any, is) => is.revision(),
            };
            let patch = map_pod::release(&pod, Some(at.0));
            match self.write(Verb::PatchStatus, place, key, Method::PATCH, &path, &patch).await {
                Err(StoreError::Conflict(_)) if expect == Expect::Any => {
                    tokio::time::sleep(jitter::retry(attempt)).await;
                }
                done => return done,
            }
        }
        Err(StoreError::Conflict(key.clone()))
    }
}

/// The pod an endpoint is on.
fn pod_name(key: &Key) -> Result<String, StoreError> {
    map_pod::pod_of(key).ok_or_else(|| {
        refused(
            key,
            "with Kubernetes as datastore an endpoint is eth0 of a Pod (NODE-k8s-POD-eth0); containers without a Pod and \
             further interfaces need etcd or a file",
        )
    })
}
