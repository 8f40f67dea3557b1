//! Server-side apply in simplified form: which manager set which field, conflicts, and removal of what a manager no
//! longer applies (k8s.io/apimachinery managedfields; structured-merge-diff).
//!
//! Managed fields are kept beside the object and are not shown in `metadata.managedFields`.

use std::{collections::BTreeSet, fmt};

use serde_json::{Map, Value};

use super::{
    kinds::Kind,
    patch::{Merge, list_merge},
    schema::Schema,
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Field(String),
    /// An element of a list by key: the key fields as a JSON object.
    Item(String),
    /// An element of a set: its value as JSON.
    Member(String),
}

pub(crate) type Path = Vec<Step>;

struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in self.0 {
            match s {
                Step::Field(n) => write!(f, ".{n}")?,
                Step::Member(v) => write!(f, "[={v}]")?,
                Step::Item(json) => {
                    let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                    let keys: Vec<_> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    write!(f, "[{}]", keys.join(","))?;
                }
            }
        }
        Ok(())
    }
}

/// One manager's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manager {
    pub name: String,
    /// Applied, against written by update or patch.
    pub applied: bool,
    pub sub: String,
    pub version: String,
    pub time: String,
    pub paths: BTreeSet<Path>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Managers(pub Vec<Manager>);

impl Managers {
    /// Whether they differ in nothing but when they wrote; a real server does not write for that alone.
    pub(crate) fn same_but_when(&self, other: &Self) -> bool {
        let timeless = |m: &Manager| Manager { time: String::new(), ..m.clone() };
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| timeless(a) == timeless(b))
    }
}

/// How the lists of a type behave, walked in step with the value.
#[derive(Clone, Copy)]
enum Shape<'a> {
    BuiltIn(&'a str, &'a str),
    Custom(Option<&'a Schema>),
}

enum Listing {
    Atomic,
    Set,
    Map(Vec<String>),
}

impl<'a> Shape<'a> {
    fn of(kind: &'a Kind, version: &str) -> Self {
        if kind.custom {
            // Managers are noted with group and version.
            let version = version.rsplit('/').next().unwrap_or(version);
            Self::Custom(kind.versions.iter().find(|v| v.name == version).and_then(|v| v.schema.as_ref()))
        } else {
            Self::BuiltIn(&kind.kind, "")
        }
    }

    fn field<'b>(self, name: &'b str) -> Shape<'b>
    where
        'a: 'b,
    {
        match self {
            Self::BuiltIn(kind, _) => Shape::BuiltIn(kind, name),
            // Metadata is that of the built-in types.
            Self::Custom(_) if matches!(name, "metadata" | "ownerReferences" | "finalizers") => {
                Shape::BuiltIn("", name)
            }
            Self::Custom(s) => Shape::Custom(s.and_then(|s| s.field(name))),
        }
    }

    fn element(self) -> Self {
        match self {
            Self::Custom(s) => Self::Custom(s.and_then(Schema::element)),
            same => same,
        }
    }

    fn listing(self) -> Listing {
        match self {
            Self::BuiltIn(kind, field) => match list_merge(kind, field) {
                Merge::Replace => Listing::Atomic,
                Merge::Set => Listing::Set,
                Merge::Key(k @ ("port" | "containerPort")) => Listing::Map(vec![k.into(), "protocol".into()]),
                Merge::Key(k) => Listing::Map(vec![k.into()]),
            },
            Self::Custom(s) => match s.map(Schema::list_type) {
                Some(("map", keys)) => Listing::Map(keys.to_vec()),
                Some(("set", _)) => Listing::Set,
                _ => Listing::Atomic,
            },
        }
    }
}

fn item(v: &Value, keys: &[String]) -> Step {
    let key: Map<String, Value> = keys
        .iter()
        .map(|k| {
            let d = if k == "protocol" { "TCP".into() } else { Value::Null };
            (k.clone(), v.get(k).cloned().unwrap_or(d))
        })
        .collect();
    Step::Item(Value::Object(key).to_string())
}

fn collect(shape: Shape<'_>, v: &Value, at: &mut Path, out: &mut BTreeSet<Path>) {
    match v {
        Value::Object(o) if !o.is_empty() => {
            for (k, v) in o {
                at.push(Step::Field(k.clone()));
                collect(shape.field(k), v, at, out);
                at.pop();
            }
        }
        Value::Array(a) if !a.is_empty() => match shape.listing() {
            Listing::Atomic => {
                out.insert(at.clone());
            }
            Listing::Set => {
                for v in a {
                    at.push(Step::Member(v.to_string()));
                    out.insert(at.clone());
                    at.pop();
                }
            }
            Listing::Map(keys) => {
                for v in a {
                    at.push(item(v, &keys));
                    collect(shape.element(), v, at, out);
                    at.pop();
                }
            }
        },
        _ => {
            out.insert(at.clone());
        }
    }
}

/// Metadata the server sets, and identity, belong to nobody.
fn nobodys(path: &Path) -> bool {
    matches!(path.as_slice(), [Step::Field(m), Step::Field(f), ..] if m == "metadata" && matches!(f.as_str(),
        "name" | "namespace" | "uid" | "resourceVersion" | "generation" | "creationTimestamp" | "managedFields"
        | "deletionTimestamp" | "deletionGracePeriodSeconds" | "selfLink" | "generateName"))
}

/// The fields a value sets.
pub(crate) fn leaves(kind: &Kind, version: &str, v: &Value) -> BTreeSet<Path> {
    let mut out = BTreeSet::new();
    collect(Shape::of(kind, version), v, &mut Vec::new(), &mut out);
    out.retain(|p| !nobodys(p));
    out
}

fn index(list: &[Value], step: &Step) -> Option<usize> {
    match step {
        Step::Field(_) => None,
        Step::Member(json) => {
            let wanted: Value = serde_json::from_str(json).ok()?;
            list.iter().position(|v| *v == wanted)
        }
        Step::Item(json) => {
            let keys: Map<String, Value> = serde_json::from_str(json).ok()?;
            list.iter().position(|v| {
                keys.iter().all(|(k, want)| {
                    v.get(k) == Some(want) || (k == "protocol" && *want == "TCP" && v.get(k).is_none())
                })
            })
        }
    }
}

fn at<'a>(v: &'a Value, path: &[Step]) -> Option<&'a Value> {
    let mut v = v;
    for s in path {
        v = match s {
            Step::Field(f) => v.get(f)?,
            other => {
                let list = v.as_array()?;
                &list[index(list, other)?]
            }
        };
    }
    Some(v)
}

/// Removes a field, and the list element that has nothing left.
fn cut(v: &mut Value, path: &[Step]) {
    match path {
        [] => {}
        [Step::Field(f)] => {
            if let Some(o) = v.as_object_mut() {
                o.remove(f);
            }
        }
        [Step::Field(f), rest @ ..] => {
            if let Some(inner) = v.get_mut(f) {
                cut(inner, rest);
                let empty = inner.as_array().is_some_and(Vec::is_empty);
                if empty && let Some(o) = v.as_object_mut() {
                    o.remove(f);
                }
            }
        }
        [step, rest @ ..] => {
            let Some(list) = v.as_array_mut() else { return };
            let Some(i) = index(list, step) else { return };
            if rest.is_empty() {
                list.remove(i);
            } else {
                cut(&mut list[i], rest);
                if list[i].as_object().is_some_and(Map::is_empty) {
                    list.remove(i);
                }
            }
        }
    }
}

fn merge(shape: Shape<'_>, live: &mut Value, applied: &Value) {
    match (live, applied) {
        (Value::Object(l), Value::Object(a)) => {
            for (k, v) in a {
                match l.get_mut(k) {
                    Some(inner) => merge(shape.field(k), inner, v),
                    None => {
                        l.insert(k.clone(), v.clone());
                    }
                }
            }
        }
        (Value::Array(l), Value::Array(a)) => match shape.listing() {
            Listing::Atomic => l.clone_from(a),
            Listing::Set => {
                for v in a {
                    if !l.contains(v) {
                        l.push(v.clone());
                    }
                }
            }
            Listing::Map(keys) => {
                for v in a {
                    match index(l, &item(v, &keys)) {
                        Some(i) => merge(shape.element(), &mut l[i], v),
                        None => l.push(v.clone()),
                    }
                }
            }
        },
        (live, applied) => *live = applied.clone(),
    }
}

/// Merges `applied` into `live` for `manager`.
///
/// # Errors
/// (manager as the message names it, field) for every conflict, when not forced.
pub(crate) fn apply(
    kind: &Kind,
    live: &Value,
    managers: &Managers,
    applied: &Value,
    manager: Manager,
    force: bool,
) -> Result<(Value, Managers), Vec<(String, String)>> {
    let mut managers = managers.clone();
    let same = |m: &Manager| m.applied && m.name == manager.name && m.sub == manager.sub;
    let mut conflicts = Vec::new();
    for p in &manager.paths {
        let (is, wanted) = (at(live, p), at(applied, p));
        // An empty map asks for the map, not for the end of what others have in it.
        let kept =
            is.is_some_and(Value::is_object) && wanted.and_then(Value::as_object).is_some_and(Map::is_empty);
        if is.is_none() || is == wanted || kept {
            continue;
        }
        for m in managers.0.iter_mut().filter(|m| !same(m)) {
            if m.paths.contains(p) {
                if force {
                    m.paths.remove(p);
                } else {
                    conflicts.push((words(m), Shown(p).to_string()));
                }
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut merged = live.clone();
    merge(Shape::of(kind, &manager.version), &mut merged, applied);
    if let Some(i) = managers.0.iter().position(same) {
        let old = managers.0.remove(i);
        for p in old.paths.difference(&manager.paths) {
            if !managers.0.iter().any(|m| m.paths.iter().any(|q| q.starts_with(p))) {
                cut(&mut merged, p);
            }
        }
    }
    managers.0.push(manager);
    managers.0.retain(|m| !m.paths.is_empty());
    Ok((merged, managers))
}

fn words(m: &Manager) -> String {
    let mut text = format!("{:?}", m.name);
    if !m.sub.is_empty() {
        text += &format!(" with subresource {:?}", m.sub);
    }
    if !m.applied {
        text += &format!(" using {} at {}", m.version, m.time);
    }
    text
}

/// Notes that an update by `manager` (whose paths are ignored) made `new` of `old`.
pub(crate) fn updated(
    kind: &Kind,
    old: Option<&Value>,
    new: &Value,
    managers: &Managers,
    mut manager: Manager,
) -> Managers {
    let mut managers = managers.clone();
    let have = leaves(kind, &manager.version, new);
    let changed: BTreeSet<Path> =
        have.iter().filter(|p| old.is_none_or(|o| at(o, p) != at(new, p))).cloned().collect();
    for m in &mut managers.0 {
        m.paths.retain(|p| !changed.contains(p) && at(new, p).is_some());
    }
    let same = |m: &Manager| !m.applied && m.name == manager.name && m.sub == manager.sub;
    if let Some(i) = managers.0.iter().position(same) {
        manager.paths = managers.0.remove(i).paths;
    } else {
        manager.paths.clear();
    }
    manager.paths.extend(changed);
    managers.0.push(manager);
    managers.0.retain(|m| !m.paths.is_empty());
    managers
}
