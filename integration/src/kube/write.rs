//! Create, update, patch: what the registry's strategies do between a request and the store
//! (k8s.io/apiserver/pkg/registry/generic and pkg/registry/rest).

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    apply::{self, Manager, Managers},
    builtin,
    kinds::{Kind, Version},
    names, patch, stamp,
    state::{Id, Key, Obj, State},
    status::{Answer, Cause, Status},
};

/// What a write is about.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub id: Id,
    pub kind: Arc<Kind>,
    pub version: String,
    pub namespace: String,
    pub name: String,
    /// "" or "status".
    pub sub: String,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub dry_run: bool,
    pub manager: String,
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Target {
    pub(crate) fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }

    pub(crate) fn version(&self) -> Answer<&Version> {
        self.kind.version(&self.version).ok_or_else(Status::page_not_found)
    }

    pub(crate) fn not_found(&self) -> Box<Status> {
        Status::not_found(&self.kind.group, &self.kind.plural, &self.name)
    }

    fn modified(&self) -> Box<Status> {
        Status::modified(&self.kind.group, &self.kind.plural, &self.name)
    }

    fn invalid(&self, name: &str, causes: &[Cause]) -> Box<Status> {
        Status::invalid(&self.kind.group, &self.kind.kind, name, causes)
    }

    /// With apiVersion and kind, as clients see it.
    pub(crate) fn shown(&self, value: &Value) -> Value {
        let mut v = value.clone();
        v["apiVersion"] = self.kind.group_version(&self.version).into();
        v["kind"] = self.kind.kind.clone().into();
        v
    }

    fn manager(&self, options: &Options, applied: bool) -> Manager {
        Manager {
            name: options.manager.clone(),
            applied,
            sub: self.sub.clone(),
            version: self.kind.group_version(&self.version),
            time: stamp::rfc3339(stamp::now()),
            paths: Default::default(),
        }
    }

    /// Checks apiVersion and kind, decodes by type or schema, and takes both off.
    fn decode(&self, mut body: Value) -> Answer<Value> {
        let Some(o) = body.as_object_mut() else {
            return Err(Status::bad_request(
                "couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of type struct { APIVersion string; Kind string }",
            ));
        };
        let want = self.kind.group_version(&self.version);
        match o.get("kind").and_then(Value::as_str) {
            None | Some("") if self.kind.custom => {
                return Err(Status::bad_request(format!("Object 'Kind' is missing in '{body}'")));
            }
            None | Some("") => {}
            Some(k) if k != self.kind.kind => {
                let (have, version) =
                    (k.to_owned(), o.get("apiVersion").and_then(Value::as_str).unwrap_or("").to_owned());
                return Err(Status::bad_request(format!(
                    "{have} in version {version:?} cannot be handled as a {}: converting ({have}) to ({}): unknown conversion",
                    self.kind.kind, self.kind.kind
                )));
            }
            Some(_) => {}
        }
        match o.get("apiVersion").and_then(Value::as_str) {
            None | Some("") if self.kind.custom => {
                return Err(Status::bad_request(format!("Object 'apiVersion' is missing in '{body}'")));
            }
            None | Some("") => {}
            Some(v) if v != want => {
                return Err(Status::bad_request(format!(
                    "the API version in the data ({v}) does not match the expected API version ({want})"
                )));
            }
            Some(_) => {}
        }
        o.remove("apiVersion");
        o.remove("kind");
        if !self.kind.custom {
            return builtin::typed(&self.kind.kind, body);
        }
        body["metadata"] = builtin::typed_meta(&self.kind.kind, body["metadata"].take())?;
        if let Some(s) = &self.version()?.schema {
            s.prune(&mut body, true);
            s.fill(&mut body);
        }
        Ok(body)
    }

    fn validate(&self, new: &Value, old: Option<&Value>) -> Answer<()> {
        let mut causes = names::metadata(new, self.kind.form);
        if self.kind.custom {
            if let Some(s) = &self.version()?.schema {
                s.validate(new, "", &mut causes);
            }
        } else {
            causes.extend(builtin::validate(&self.kind.kind, new, old));
        }
        if causes.is_empty() {
            Ok(())
        } else {
            Err(self.invalid(new["metadata"]["name"].as_str().unwrap_or(""), &causes))
        }
    }

    fn counts_as_change(&self, old: &Value, new: &Value, status: bool) -> bool {
        let bare = |v: &Value| {
            let mut v = v.clone();
            if let Some(o) = v.as_object_mut() {
                o.remove("metadata");
                if status {
                    o.remove("status");
                }
            }
            v
        };
        bare(old) != bare(new)
    }
}

fn text<'a>(v: &'a Value, field: &str) -> &'a str {
    v["metadata"][field].as_str().unwrap_or("")
}

impl State {
    pub(crate) fn create(&mut self, t: &Target, body: Value, options: &Options) -> Answer<Arc<Obj>> {
        let mut o = t.decode(body)?;
        self.place(t, &mut o)?;
        self.create_decoded(t, o, None, options)
    }

    /// Name and namespace of a new object.
    fn place(&self, t: &Target, o: &mut Value) -> Answer<()> {
        if t.kind.namespaced {
            match text(o, "namespace") {
                "" => o["metadata"]["namespace"] = t.namespace.clone().into(),
                ns if ns != t.namespace => {
                    return Err(Status::bad_request(
                        "the namespace of the provided object does not match the namespace sent on the request",
                    ));
                }
                _ => {}
            }
        } else if let Some(m) = o["metadata"].as_object_mut() {
            m.remove("namespace");
        }
        let prefix = text(o, "generateName").to_owned();
        if text(o, "name").is_empty() && !prefix.is_empty() {
            let keep = prefix.len().min(58);
            o["metadata"]["name"] =
                format!("{}{}", prefix.get(..keep).unwrap_or(&prefix), stamp::suffix()).into();
        }
        Ok(())
    }

    fn create_decoded(
        &mut self,
        t: &Target,
        mut o: Value,
        managers: Option<Managers>,
        options: &Options,
    ) -> Answer<Arc<Obj>> {
        let (name, ns) = (text(&o, "name").to_owned(), text(&o, "namespace").to_owned());
        if !matches!(text(&o, "resourceVersion"), "" | "0") {
            return Err(Status::plain_error("resourceVersion should not be set on objects to be created"));
        }
        if t.kind.namespaced {
            self.check_namespace(t, &ns, &name)?;
        }
        if t.kind.custom {
            if t.version()?.status
                && let Some(m) = o.as_object_mut()
            {
                m.remove("status");
            }
        } else {
            builtin::prepare_create(&t.kind.kind, &mut o);
            let mut ip = || self.cluster_ip();
            builtin::defaults(&t.kind.kind, &mut o, &mut ip);
        }
        if let Some(m) = o["metadata"].as_object_mut() {
            for server_owned in [
                "selfLink",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "managedFields",
                "resourceVersion",
            ] {
                m.remove(server_owned);
            }
            m.insert("uid".into(), stamp::uid().into());
            m.insert("creationTimestamp".into(), stamp::rfc3339(stamp::now()).into());
            m.remove("generation");
            if t.kind.generation {
                m.insert("generation".into(), 1.into());
            }
        }
        t.validate(&o, None)?;
        let mut kind = None;
        if t.kind.kind == "CustomResourceDefinition" {
            kind = Some(super::kinds::from_definition(&o)?);
        }
        if self.get(&t.id, &(ns, name.clone())).is_some() {
            return Err(Status::already_exists(&t.kind.group, &t.kind.plural, &name));
        }
        let managers = managers.unwrap_or_else(|| {
            apply::updated(&t.kind, None, &o, &Managers::default(), t.manager(options, false))
        });
        if options.dry_run {
            return Self::seal(o, self.rv, Arc::new(managers));
        }
        let made = self.put(&t.id, o, Arc::new(managers))?;
        if let Some(kind) = kind {
            self.establish(kind, &made)?;
        }
        if t.kind.kind == "Namespace" && !t.kind.custom {
            self.furnish_namespace(&name);
        }
        Ok(made)
    }

    fn check_namespace(&self, t: &Target, ns: &str, name: &str) -> Answer<()> {
        let Some(n) = self.core("namespaces", "", ns) else {
            return Err(Status::not_found("", "namespaces", ns));
        };
        if n.meta("deletionTimestamp").is_empty() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {ns} because it is being terminated");
        let mut s = Status::forbidden(&t.kind.group, &t.kind.plural, name, &why);
        if let Some(d) = &mut s.details {
            d["causes"] = json!([{"reason": "NamespaceTerminating",
                "message": format!("namespace {ns} is being terminated"), "field": "metadata.namespace"}]);
        }
        Err(s)
    }

    /// A definition becomes a kind; its status says so.
    fn establish(&mut self, kind: super::kinds::Kind, crd: &Obj) -> Answer<()> {
        let mut v = crd.value.clone();
        let now = stamp::rfc3339(stamp::now());
        let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
        let mut stored = v["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
        let storage = Value::from(kind.storage_version());
        if !stored.contains(&storage) {
            stored.push(storage);
        }
        v["status"] = json!({
            "acceptedNames": v["spec"]["names"],
            "conditions": [
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            ],
            "storedVersions": stored,
        });
        self.add_kind(kind);
        let id = ("apiextensions.k8s.io".to_owned(), "customresourcedefinitions".to_owned());
        self.put(&id, v, Arc::clone(&crd.managers)).map(|_| ())
    }

    /// PUT. The flag says whether the object was created.
    pub(crate) fn update(&mut self, t: &Target, body: Value, options: &Options) -> Answer<(Arc<Obj>, bool)> {
        let mut o = t.decode(body)?;
        let name = text(&o, "name").to_owned();
        if name.is_empty() && t.kind.custom {
            return Err(
                t.invalid("", &[Cause::required("metadata.name", "name or generateName is required")])
            );
        }
        if !name.is_empty() && name != t.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                t.name
            )));
        }
        o["metadata"]["name"] = t.name.clone().into();
        self.place(t, &mut o)?;
        let Some(old) = self.get(&t.id, &t.key()) else {
            if t.kind.create_on_update && t.sub.is_empty() {
                return Ok((self.create_decoded(t, o, None, options)?, true));
            }
            return Err(t.not_found());
        };
        let rv = text(&o, "resourceVersion").to_owned();
        if matches!(rv.as_str(), "" | "0") && !t.kind.unconditional {
            let cause = Cause {
                reason: "FieldValueInvalid",
                message: "Invalid value: 0: must be specified for an update".into(),
                field: "metadata.resourceVersion".into(),
            };
            return Err(Status::invalid(&t.kind.group, &t.kind.plural, &t.name, &[cause]));
        }
        Ok((self.replace(t, &old, o, None, options)?, false))
    }

    pub(crate) fn patch(
        &mut self,
        t: &Target,
        how: PatchKind,
        body: &Value,
        options: &Options,
    ) -> Answer<(Arc<Obj>, bool)> {
        if how == PatchKind::Apply {
            return self.apply(t, body, options);
        }
        let old = self.get(&t.id, &t.key()).ok_or_else(|| t.not_found())?;
        let mut doc = t.shown(&old.value);
        match how {
            PatchKind::Json => patch::json(&mut doc, body)?,
            PatchKind::Merge => patch::merge(&mut doc, body),
            PatchKind::Strategic => patch::strategic(&t.kind.kind, &mut doc, body)?,
            PatchKind::Apply => {}
        }
        let o = t.decode(doc)?;
        if text(&o, "name") != t.name {
            let cause = Cause::invalid("metadata.name", &text(&o, "name").into(), "field is immutable");
            return Err(t.invalid(&t.name, &[cause]));
        }
        Ok((self.replace(t, &old, o, None, options)?, false))
    }

    fn apply(&mut self, t: &Target, body: &Value, options: &Options) -> Answer<(Arc<Obj>, bool)> {
        if !body["metadata"]["managedFields"].is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let name = text(body, "name");
        if !name.is_empty() && name != t.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                t.name
            )));
        }
        // Which fields are applied is what the client wrote; defaults are nobody's.
        let mut bare = body.clone();
        if let Some(o) = bare.as_object_mut() {
            o.remove("apiVersion");
            o.remove("kind");
        }
        let mut decoded = t.decode(body.clone())?;
        decoded["metadata"]["name"] = t.name.clone().into();
        let mut manager = t.manager(options, true);
        manager.paths = apply::leaves(&t.kind, &t.version, &bare);
        if !t.sub.is_empty() {
            manager.paths.retain(
                |p| !matches!(p.first(), Some(apply::Step::Field(f)) if f != "status" && f != "metadata"),
            );
        }
        let Some(old) = self.get(&t.id, &t.key()) else {
            if !t.sub.is_empty() {
                return Err(t.not_found());
            }
            self.place(t, &mut decoded)?;
            let managers = if manager.paths.is_empty() { Vec::new() } else { vec![manager] };
            return Ok((self.create_decoded(t, decoded, Some(Managers(managers)), options)?, true));
        };
        let rv = text(body, "resourceVersion").to_owned();
        if let Some(m) = bare["metadata"].as_object_mut() {
            for f in ["creationTimestamp", "uid", "resourceVersion", "generation"] {
                m.remove(f);
            }
        }
        let merged = apply::apply(&t.kind, &old.value, &old.managers, &bare, manager, options.force);
        let (mut merged, managers) = merged.map_err(|c| conflicts(&c))?;
        if !rv.is_empty() {
            merged["metadata"]["resourceVersion"] = rv.into();
        }
        let o = t.decode(t.shown(&merged))?;
        Ok((self.replace(t, &old, o, Some(managers), options)?, false))
    }

    /// The common end of every change of an existing object.
    fn replace(
        &mut self,
        t: &Target,
        old: &Arc<Obj>,
        mut o: Value,
        managers: Option<Managers>,
        options: &Options,
    ) -> Answer<Arc<Obj>> {
        let rv = text(&o, "resourceVersion").to_owned();
        let uid = text(&o, "uid").to_owned();
        if !uid.is_empty() && uid != old.meta("uid") {
            let path =
                if t.namespace.is_empty() { t.name.clone() } else { format!("{}/{}", t.namespace, t.name) };
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{path}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                t.kind.plural,
                old.meta("uid")
            );
            return Err(Status::conflict(&t.kind.group, &t.kind.plural, &t.name, &why));
        }
        if !matches!(rv.as_str(), "" | "0") {
            let Ok(n) = rv.parse::<u64>() else {
                let cause = Cause::invalid(
                    "metadata.resourceVersion",
                    &rv.as_str().into(),
                    &format!("strconv.ParseUint: parsing {rv:?}: invalid syntax"),
                );
                return Err(t.invalid(&t.name, &[cause]));
            };
            if n != old.rv {
                return Err(t.modified());
            }
        }
        let has_status = t.version()?.status;
        self.settle_parts(t, has_status, &mut o, old);
        if !t.kind.custom {
            let ip = old.value["spec"]["clusterIP"].as_str().unwrap_or("").to_owned();
            let mut same = || if ip.is_empty() { self.cluster_ip() } else { ip.clone() };
            builtin::defaults(&t.kind.kind, &mut o, &mut same);
        }
        self.settle_meta(&mut o, old)?;
        let deleting = !old.meta("deletionTimestamp").is_empty();
        if deleting {
            let had = old.value["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            let new: Vec<_> = o["metadata"]["finalizers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|f| !had.contains(f))
                .collect();
            if !new.is_empty() {
                let list: Vec<_> = new.iter().map(|f| f.to_string()).collect();
                let detail = format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                );
                return Err(t.invalid(&t.name, &[Cause::forbidden("metadata.finalizers", &detail)]));
            }
        }
        t.validate(&o, Some(&old.value))?;
        if t.kind.generation && t.counts_as_change(&old.value, &o, has_status) {
            let n = old.value["metadata"]["generation"].as_i64().unwrap_or(1);
            o["metadata"]["generation"] = (n + 1).into();
        }
        o["metadata"]["resourceVersion"] = old.rv.to_string().into();
        let kind = if t.kind.kind == "CustomResourceDefinition" && t.sub.is_empty() {
            Some(super::kinds::from_definition(&o)?)
        } else {
            None
        };
        let unchanged = o == old.value;
        let managers = match managers {
            Some(m) => Arc::new(m),
            None if unchanged => Arc::clone(&old.managers),
            None => Arc::new(apply::updated(
                &t.kind,
                Some(&old.value),
                &o,
                &old.managers,
                t.manager(options, false),
            )),
        };
        if options.dry_run {
            return Self::seal(o, old.rv, managers);
        }
        // A change of nothing is not written: no event, the same resource version.
        if unchanged && managers.same_but_when(&old.managers) {
            return Ok(Arc::clone(old));
        }
        let free = o["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        let grace = o["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if deleting && free && grace == 0 && (t.kind.custom || t.kind.kind != "Namespace") {
            let key = t.key();
            self.put(&t.id, o, managers)?;
            return self.remove_now(&t.id, &key).ok_or_else(|| t.not_found());
        }
        let new = self.put(&t.id, o, managers)?;
        if let Some(kind) = kind {
            self.establish(kind, &new)?;
        }
        Ok(new)
    }

    /// What the endpoint may not change comes from the old object.
    fn settle_parts(&self, t: &Target, has_status: bool, o: &mut Value, old: &Obj) {
        if t.kind.custom && t.sub == "status" {
            let mut v = old.value.clone();
            let status = o.as_object_mut().and_then(|m| m.remove("status"));
            if let Some(m) = v.as_object_mut() {
                match status {
                    Some(s) => m.insert("status".into(), s),
                    None => m.remove("status"),
                };
            }
            *o = v;
        } else {
            builtin::prepare_update(&t.kind.kind, has_status, &t.sub, o, &old.value);
        }
    }

    /// What of `metadata` is the server's.
    fn settle_meta(&self, o: &mut Value, old: &Obj) -> Answer<()> {
        let was = &old.value["metadata"];
        let Some(m) = o["metadata"].as_object_mut() else {
            return Err(Status::bad_request("metadata must be an object"));
        };
        m.remove("selfLink");
        m.remove("managedFields");
        for f in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "generation",
            "generateName",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            match was.get(f) {
                Some(v) => m.insert(f.to_owned(), v.clone()),
                None => m.remove(f),
            };
        }
        for f in ["labels", "annotations"] {
            if m.get(f).and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
                m.remove(f);
            }
        }
        Ok(())
    }
}

fn conflicts(found: &[(String, String)]) -> Box<Status> {
    let causes: Vec<_> = found
        .iter()
        .map(|(m, f)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {m}"), "field": f}))
        .collect();
    let text = match found {
        [(m, f)] => format!("Apply failed with 1 conflict: conflict with {m}: {f}"),
        many => {
            let mut by: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
            for (m, f) in many {
                by.entry(m).or_default().push(f);
            }
            let parts: Vec<_> =
                by.iter().map(|(m, f)| format!("conflicts with {m}:\n- {}", f.join("\n- "))).collect();
            format!("Apply failed with {} conflicts: {}", many.len(), parts.join("\n"))
        }
    };
    Status::new(409, "Conflict", text).with(json!({"causes": causes}))
}
