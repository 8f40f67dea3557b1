//! Deletion: preconditions, grace of pods, finalizers, namespaces, garbage collection by owner references.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    kinds::Kind,
    stamp,
    state::{Id, Key, Obj, State},
    status::{Answer, Status},
    write::Target,
};

/// `meta/v1 DeleteOptions`, of body and query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub dry_run: bool,
    pub grace: Option<i64>,
    pub orphan: bool,
    pub uid: Option<String>,
    pub rv: Option<String>,
}

impl Options {
    pub(crate) fn read(body: &Value) -> Self {
        let own = |v: &Value| v.as_str().map(str::to_owned);
        Self {
            dry_run: body["dryRun"].as_array().is_some_and(|d| !d.is_empty()),
            grace: body["gracePeriodSeconds"].as_i64(),
            orphan: body["propagationPolicy"] == "Orphan" || body["orphanDependents"] == true,
            uid: own(&body["preconditions"]["uid"]),
            rv: own(&body["preconditions"]["resourceVersion"]),
        }
    }
}

/// What a deletion came to.
pub(crate) enum Deleted {
    /// Gone at once.
    Gone(Arc<Obj>),
    /// Marked; something has to finish it.
    Pending(Arc<Obj>),
}

fn preconditions(kind: &Kind, o: &Obj, options: &Options) -> Answer<()> {
    let refuse = |why: String| Err(Status::conflict(&kind.group, &kind.kind, o.meta("name"), &why));
    if let Some(uid) = options.uid.as_deref().filter(|u| *u != o.meta("uid")) {
        return refuse(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            o.meta("uid")
        ));
    }
    if let Some(rv) = options.rv.as_deref().filter(|r| *r != o.meta("resourceVersion")) {
        return refuse(format!(
            "the ResourceVersion in the precondition ({rv}) does not match the ResourceVersion in record ({}). The object might have been modified",
            o.meta("resourceVersion")
        ));
    }
    Ok(())
}

impl State {
    pub(crate) fn delete(&mut self, t: &Target, options: &Options) -> Answer<Deleted> {
        let old = self.get(&t.id, &t.key()).ok_or_else(|| t.not_found())?;
        preconditions(&t.kind, &old, options)?;
        if t.kind.kind == "Namespace"
            && !t.kind.custom
            && matches!(t.name.as_str(), "default" | "kube-system" | "kube-public")
        {
            return Err(Status::forbidden("", "namespaces", &t.name, "this namespace may not be deleted"));
        }
        if options.dry_run {
            return Ok(Deleted::Gone(old));
        }
        self.delete_stored(&t.id, &t.kind, &t.key(), &old, options)
    }

    fn delete_stored(
        &mut self,
        id: &Id,
        kind: &Kind,
        key: &Key,
        old: &Arc<Obj>,
        options: &Options,
    ) -> Answer<Deleted> {
        let gone = |s: &mut Self| {
            s.remove_now(id, key)
                .map(Deleted::Gone)
                .ok_or_else(|| Status::not_found(&kind.group, &kind.plural, &key.1))
        };
        if options.orphan {
            self.orphan(old.meta("uid"))?;
        }
        if !kind.custom && kind.kind == "Namespace" {
            return self.terminate_namespace(id, key, old);
        }
        let grace = if !kind.custom && kind.kind == "Pod" { pod_grace(&old.value, options.grace) } else { 0 };
        let finalizers = old.value["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if grace == 0 && !finalizers {
            return gone(self);
        }
        let mut v = old.value.clone();
        let meta = &mut v["metadata"];
        if !meta["deletionTimestamp"].is_null() {
            // Grace can only become shorter.
            let left = meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
            if grace >= left {
                return Ok(Deleted::Pending(Arc::clone(old)));
            }
        }
        meta["deletionTimestamp"] = stamp::rfc3339(stamp::now() + grace).into();
        meta["deletionGracePeriodSeconds"] = grace.into();
        if let Some(n) = meta["generation"].as_i64() {
            meta["generation"] = (n + 1).into();
        }
        self.put(id, v, Arc::clone(&old.managers)).map(Deleted::Pending)
    }

    fn terminate_namespace(&mut self, id: &Id, key: &Key, old: &Arc<Obj>) -> Answer<Deleted> {
        let mut v = old.value.clone();
        if v["metadata"]["deletionTimestamp"].is_null() {
            v["metadata"]["deletionTimestamp"] = stamp::rfc3339(stamp::now()).into();
            v["status"]["phase"] = "Terminating".into();
        }
        let marked = self.put(id, v, Arc::clone(&old.managers))?;
        let content: Vec<_> = self
            .collections
            .iter()
            .filter(|(_, c)| c.kind.namespaced)
            .flat_map(|(id, c)| {
                c.objects
                    .iter()
                    .filter(|(k, _)| k.0 == key.1)
                    .map(|(k, o)| (id.clone(), Arc::clone(&c.kind), k.clone(), Arc::clone(o)))
            })
            .collect();
        for (id, kind, k, o) in content {
            // An object may have gone with its owner.
            if self.get(&id, &k).is_some() {
                self.delete_stored(&id, &kind, &k, &o, &Options::default())?;
            }
        }
        self.finish_namespace(&key.1);
        Ok(Deleted::Pending(marked))
    }

    /// A terminating namespace without content goes.
    fn finish_namespace(&mut self, name: &str) {
        let Some(ns) = self.core("namespaces", "", name) else { return };
        let empty = self.collections.values().filter(|c| c.kind.namespaced).all(|c| {
            c.objects.range((name.to_owned(), String::new())..).next().is_none_or(|(k, _)| k.0 != name)
        });
        let free = ns.value["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        if !ns.meta("deletionTimestamp").is_empty() && empty && free {
            self.remove(&(String::new(), "namespaces".into()), &(String::new(), name.to_owned()));
        }
    }

    /// Removes from the store, and what follows from it.
    pub(crate) fn remove_now(&mut self, id: &Id, key: &Key) -> Option<Arc<Obj>> {
        let gone = self.remove(id, key)?;
        if id.1 == "customresourcedefinitions" && id.0 == "apiextensions.k8s.io" {
            self.retire(&gone.value);
        }
        self.collect(gone.meta("uid"));
        if !key.0.is_empty() {
            self.finish_namespace(&key.0);
        }
        Some(gone)
    }

    /// A definition is gone: so are its objects and its kind.
    fn retire(&mut self, crd: &Value) {
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        let id = (text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["plural"]));
        let keys: Vec<_> =
            self.collections.get(&id).map(|c| c.objects.keys().cloned().collect()).unwrap_or_default();
        for k in keys {
            self.remove_now(&id, &k);
        }
        self.collections.remove(&id);
    }

    /// Garbage collection in the background: dependants none of whose owners is left go.
    fn collect(&mut self, uid: &str) {
        for (id, key) in self.owned_by(uid) {
            let Some(o) = self.get(&id, &key) else { continue };
            let refs = o.value["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
            if refs.iter().any(|r| r["uid"].as_str().is_some_and(|u| self.is_live(u))) {
                continue;
            }
            let Some(kind) = self.collections.get(&id).map(|c| Arc::clone(&c.kind)) else { continue };
            // Refusals of a background deletion have nobody to be told.
            let _ = self.delete_stored(&id, &kind, &key, &o, &Options::default());
        }
    }

    fn orphan(&mut self, uid: &str) -> Answer<()> {
        for (id, key) in self.owned_by(uid) {
            let Some(o) = self.get(&id, &key) else { continue };
            let mut v = o.value.clone();
            if let Some(refs) = v["metadata"]["ownerReferences"].as_array_mut() {
                refs.retain(|r| r["uid"] != uid);
            }
            self.put(&id, v, Arc::clone(&o.managers))?;
        }
        Ok(())
    }
}

/// Seconds a pod has: none when it never ran or has ended.
fn pod_grace(pod: &Value, wanted: Option<i64>) -> i64 {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if ended || pod["spec"]["nodeName"].as_str().unwrap_or("").is_empty() {
        return 0;
    }
    wanted.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30).max(0)
}

/// The body of a successful deletion without an object to show.
pub(crate) fn success(kind: &Kind, o: &Obj) -> Value {
    let mut details = json!({"name": o.meta("name"), "kind": kind.plural, "uid": o.meta("uid")});
    if !kind.group.is_empty() {
        details["group"] = kind.group.clone().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
