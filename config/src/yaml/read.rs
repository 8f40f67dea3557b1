//! Files, documents and lists of resources to typed, validated resources. Nothing stops at the first error.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use brindle_config_core::{
    AnyResource, Key, Kind, ObjectMeta, fields, meta::API_VERSION, suggest, unserved, validate,
};
use serde::de::DeserializeOwned;

use super::{
    MAX_INPUT, Place, Problem, split,
    tree::{self, Data, Node, Position},
};

/// Kinds of Calico that this version does not handle.
const OTHER_KINDS: [&str; 2] = ["LiveMigration", "DatastoreMigration"];

/// What is said of a file without any document.
pub const EMPTY_FILE: &str = "holds no resource";

/// What is said of a folder without any file of resources.
pub const EMPTY_FOLDER: &str = "the folder holds no .yaml, .yml or .json file";

/// A resource and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub resource: AnyResource,
    pub origin: Origin,
}

/// Where a resource came from; keeps the positions of all its fields.
#[derive(Clone, Debug)]
pub struct Origin {
    file: Arc<str>,
    document: usize,
    /// Path of the resource inside the document: empty, or `items[3]` in a list.
    inside: String,
    node: Arc<Node>,
}

impl Origin {
    /// Where the resource begins.
    pub fn place(&self) -> Place {
        self.place_at(self.node.at)
    }

    /// A problem with one of its fields (`spec.cidr`), at the field's place.
    pub fn problem(&self, field: &str, message: impl Into<String>) -> Problem {
        let place = self.place_at(self.node.find(field, false));
        Problem { place, field: self.path(field), message: message.into() }
    }

    fn place_at(&self, at: Position) -> Place {
        Place { file: self.file.clone(), document: self.document, line: at.line, column: at.column }
    }

    fn path(&self, field: &str) -> String {
        match (self.inside.as_str(), field) {
            ("", field) => field.to_owned(),
            (inside, "") => inside.to_owned(),
            (inside, field) => format!("{inside}.{field}"),
        }
    }
}

/// Everything that was read.
#[derive(Clone, Debug, Default)]
pub struct Loading {
    /// In the order of the input.
    pub resources: Vec<Loaded>,
    /// Fields that have no effect, and the like. Nothing was dropped.
    pub warnings: Vec<Problem>,
    pub errors: Vec<Problem>,
    /// Resources that are refused for what they say, not for what they are called.
    refused: Vec<Refused>,
}

/// What a refused resource is called, and which of the errors are its.
#[derive(Clone, Debug)]
struct Refused {
    kind: Kind,
    meta: ObjectMeta,
    errors: Range<usize>,
}

impl Loading {
    /// For whoever needs to know which resources are meant and no more: all of them, and the errors that are left.
    /// `namespace`: of those that name none.
    pub fn keys(self, namespace: Option<&str>) -> (Vec<Key>, Vec<Problem>) {
        let left = |at: usize| !self.refused.iter().any(|r| r.errors.contains(&at));
        let errors = (0..).zip(self.errors).filter(|(at, _)| left(*at)).map(|(_, e)| e).collect();
        let whole = self.resources.iter().map(|l| (l.resource.kind(), l.resource.metadata()));
        let all = whole.chain(self.refused.iter().map(|r| (r.kind, &r.meta)));
        let key = |(kind, meta): (Kind, &ObjectMeta)| {
            let own = meta.namespace.as_deref().filter(|n| !n.is_empty());
            Key::new(kind, own.or(namespace), &meta.name)
        };
        (all.map(key).collect(), errors)
    }

    fn file_error(&mut self, file: &Arc<str>, message: impl Into<String>) {
        let place = Place { file: file.clone(), document: 0, line: 0, column: 0 };
        self.errors.push(Problem { place, field: String::new(), message: message.into() });
    }

    /// Before resources are held against each other: it is part of what they are called.
    fn fill_namespace(&mut self, namespace: Option<&str>) {
        let Some(namespace) = namespace else { return };
        for Loaded { resource, .. } in &mut self.resources {
            let namespaced = resource.kind().namespaced();
            let meta = resource.metadata_mut();
            if namespaced && meta.namespace.as_ref().is_none_or(String::is_empty) {
                meta.namespace = Some(namespace.to_owned());
            }
        }
    }

    /// A resource given twice would win by chance: the first one counts, the others are errors.
    fn find_duplicates(&mut self) {
        let mut seen: BTreeMap<Key, Place> = BTreeMap::new();
        let errors = &mut self.errors;
        self.resources.retain(|Loaded { resource, origin }| {
            let key = resource.key();
            let first = seen.get(&key);
            if let Some(first) = first {
                let message = format!("{key} was given before, at {first}");
                errors.push(origin.problem("metadata.name", message));
            } else {
                seen.insert(key, origin.place());
                return true;
            }
            false
        });
    }
}

/// Reads files, folders (their `.yaml`, `.yml` and `.json` files in order of name) and `-`, the standard input.
pub fn read_paths<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Loading {
    read_paths_in(paths, None)
}

/// The same; resources in a namespace that name none are in this one.
pub fn read_paths_in<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>, namespace: Option<&str>) -> Loading {
    let mut out = Loading::default();
    for path in paths {
        load_path(path.as_ref(), &mut out);
    }
    out.fill_namespace(namespace);
    out.find_duplicates();
    out
}

/// Reads one file, folder or `-`.
pub fn read_path(path: &Path) -> Loading {
    read_paths([path])
}

/// Reads resources from a text; `name` stands for the file in messages.
pub fn parse_str(name: &str, text: &str) -> Loading {
    let mut out = Loading::default();
    load_text(&name.into(), text, &mut out);
    out.find_duplicates();
    out
}

/// Reads resources from bytes of any kind. Never panics.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Loading {
    let mut out = Loading::default();
    load_bytes(&name.into(), bytes, &mut out);
    out.find_duplicates();
    out
}

/// Reads a text with exactly one document of any type, for files that are not resources.
pub fn read_one<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, Problem> {
    read_one_with_origin(name, text).map(|(value, _)| value)
}

/// The same, with the means to say where a field stands that turns out to be wrong later.
pub fn read_one_with_origin<T: DeserializeOwned>(name: &str, text: &str) -> Result<(T, Origin), Problem> {
    let file: Arc<str> = name.into();
    let problem = |document, at: Position, field: String, message: String| Problem {
        place: Place { file: file.clone(), document, line: at.line, column: at.column },
        field,
        message,
    };
    let start = Position { line: 1, column: 1 };
    let documents = split::documents(text);
    let (document, more) = match documents.as_slice() {
        [] => return Err(problem(0, Position::default(), String::new(), "the file is empty".into())),
        [document, more @ ..] => (document, more),
    };
    if let Some(second) = more.first() {
        let at = Position { line: second.lines_before + 1, ..start };
        return Err(problem(2, at, String::new(), "expected a single document".into()));
    }
    let node = tree::parse(document.text, document.lines_before)
        .map_err(|(at, message)| problem(1, at, String::new(), message))?;
    let value = T::deserialize(&node).map_err(|e| problem(1, e.at.unwrap_or(start), e.path(), e.message))?;
    Ok((value, Origin { file: file.clone(), document: 1, inside: String::new(), node: Arc::new(node) }))
}

fn load_path(path: &Path, out: &mut Loading) {
    let name: Arc<str> = path.display().to_string().into();
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        let stdin: Arc<str> = "standard input".into();
        match std::io::stdin().lock().take(MAX_INPUT as u64 + 1).read_to_end(&mut bytes) {
            Ok(_) => load_bytes(&stdin, &bytes, out),
            Err(e) => out.file_error(&stdin, format!("cannot be read: {e}")),
        }
        return;
    }
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => match files_of(path) {
            Ok(files) if files.is_empty() => {
                out.file_error(&name, EMPTY_FOLDER);
            }
            Ok(files) => files.iter().for_each(|f| load_path(f, out)),
            Err(e) => out.file_error(&name, format!("cannot be read: {e}")),
        },
        Ok(meta) if meta.len() > MAX_INPUT as u64 => out.file_error(&name, too_large()),
        Ok(_) => match fs::read(path) {
            Ok(bytes) => load_bytes(&name, &bytes, out),
            Err(e) => out.file_error(&name, format!("cannot be read: {e}")),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            out.file_error(&name, "no such file or folder");
        }
        Err(e) => out.file_error(&name, format!("cannot be read: {e}")),
    }
}

fn too_large() -> String {
    format!("is larger than {} MiB; split it", MAX_INPUT >> 20)
}

fn files_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let wanted = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load_bytes(file: &Arc<str>, bytes: &[u8], out: &mut Loading) {
    if bytes.len() > MAX_INPUT {
        return out.file_error(file, too_large());
    }
    match text(file, bytes) {
        Ok(text) => load_text(file, text, out),
        Err(problem) => out.errors.push(problem),
    }
}

/// What a file says, if it is text.
pub fn text<'a>(file: &Arc<str>, bytes: &'a [u8]) -> Result<&'a str, Problem> {
    std::str::from_utf8(bytes).map_err(|e| {
        let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        let hint = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "; the file is UTF-16, save it as UTF-8",
            _ => "",
        };
        let place = Place { file: file.clone(), document: 0, line, column: 1 };
        Problem { place, field: String::new(), message: format!("is not UTF-8 text{hint}") }
    })
}

fn load_text(file: &Arc<str>, text: &str, out: &mut Loading) {
    let documents = split::documents(text);
    if documents.is_empty() {
        out.file_error(file, EMPTY_FILE);
    }
    for (number, document) in (1..).zip(documents) {
        match tree::parse(document.text, document.lines_before) {
            Ok(node) => {
                let origin = Origin {
                    file: file.clone(),
                    document: number,
                    inside: String::new(),
                    node: Arc::new(node),
                };
                load_document(&origin, out);
            }
            Err((at, message)) => {
                let place = Place { file: file.clone(), document: number, line: at.line, column: at.column };
                out.errors.push(Problem { place, field: String::new(), message });
            }
        }
    }
}

/// A document is a resource or a list of them.
fn load_document(origin: &Origin, out: &mut Loading) {
    let kind = origin.node.member("kind").and_then(|m| m.node.text());
    let items = origin.node.member("items").map(|m| &m.node);
    match (kind.and_then(|k| k.strip_suffix("List")), items) {
        (Some(of), Some(Node { data: Data::List(items), .. })) => {
            if let Some(problem) = wrong_api_version(origin, &["v1", API_VERSION]) {
                out.errors.push(problem);
                return;
            }
            for (i, item) in items.iter().enumerate() {
                let item =
                    Origin { inside: format!("items[{i}]"), node: Arc::new(item.clone()), ..origin.clone() };
                load_resource(&item, Some(of).filter(|k| !k.is_empty()), out);
            }
        }
        (Some(_), Some(other)) if !matches!(other.data, Data::Null) => {
            out.errors.push(origin.problem("items", "expected a list of resources"));
        }
        (Some(_), _) => {}
        (None, _) => load_resource(origin, None, out),
    }
}

fn load_resource(origin: &Origin, list_of: Option<&str>, out: &mut Loading) {
    let Data::Map(members) = &origin.node.data else {
        out.errors.push(origin.problem("", "expected an object with apiVersion, kind, metadata and spec"));
        return;
    };
    let kind = match origin.node.member("kind").and_then(|m| m.node.text()).or(list_of) {
        Some(text) => text,
        None => {
            out.errors.push(origin.problem("kind", "is required"));
            return;
        }
    };
    let version = origin.node.member("apiVersion").and_then(|m| m.node.text());
    let Some(kind) = Kind::parse_written(version, kind) else {
        out.errors.push(origin.problem("kind", unknown_kind(kind)));
        return;
    };
    if let Some(problem) = wrong_api_version(origin, &[kind.written().0]) {
        out.errors.push(problem);
        return;
    }
    // A missing spec is an empty one: which fields it lacks is for the kind to say.
    let mut node = Node { at: origin.node.at, data: Data::Map(members.clone()) };
    if let Data::Map(members) = &mut node.data {
        let text = |key: &str, text: &str| tree::Member {
            key: key.into(),
            key_at: origin.node.at,
            node: Node { at: origin.node.at, data: Data::Text(text.into()) },
        };
        for (key, value) in [("kind", kind.written().1), ("apiVersion", kind.written().0)] {
            members.retain(|m| m.key != key);
            members.push(text(key, value));
        }
        if !members.iter().any(|m| m.key == "spec") {
            let node = Node::empty_map(origin.node.at);
            members.push(tree::Member { key: "spec".into(), key_at: origin.node.at, node });
        }
    }
    let first = out.errors.len();
    let resource = match AnyResource::deserialize_kind(kind, &node) {
        Ok(resource) => resource,
        Err(e) => {
            let place = origin.place_at(e.at.unwrap_or(origin.node.at));
            if !e.path().starts_with("metadata")
                && let Some(meta) = names_of(origin)
            {
                out.refused.push(Refused { kind, meta, errors: first..first + 1 });
            }
            let field = origin.path(&e.path());
            out.errors.push(Problem { place, field, message: e.message });
            return;
        }
    };
    let before = out.warnings.len();
    warn_of_idle_fields(&resource, origin, out);
    match validate::written(&resource) {
        Ok(()) => out.resources.push(Loaded { resource, origin: origin.clone() }),
        Err(invalid) => {
            // What is refused is not kept.
            let refused = |w: &Problem| invalid.0.iter().any(|e| origin.path(&e.field) == w.field);
            let ours = out.warnings.split_off(before);
            out.warnings.extend(ours.into_iter().filter(|w| !refused(w)));
            if !invalid.0.iter().any(|e| e.field.starts_with("metadata")) {
                let errors = first..first + invalid.0.len();
                out.refused.push(Refused { kind, meta: resource.metadata().clone(), errors });
            }
            out.errors.extend(invalid.0.into_iter().map(|e| {
                let shown = match (e.value.as_str(), e.counted) {
                    ("", _) => String::new(),
                    (count, true) => format!(", found {count}"),
                    (value, false) => format!(", found {value:?}"),
                };
                // The suggestion is the last word.
                let hint = e.reason.find("; did you mean ").unwrap_or(e.reason.len());
                let (reason, hint) = e.reason.split_at(hint);
                origin.problem(&e.field, format!("{reason}{shown}{hint}"))
            }));
        }
    }
}

/// What a resource is called of which nothing else may be right.
fn names_of(origin: &Origin) -> Option<ObjectMeta> {
    let metadata = &origin.node.member("metadata")?.node;
    let text = |name: &str| metadata.member(name)?.node.text().filter(|t| !t.is_empty()).map(str::to_owned);
    Some(ObjectMeta { namespace: text("namespace"), ..ObjectMeta::named(text("name")?) })
}

fn unknown_kind(kind: &str) -> String {
    if OTHER_KINDS.contains(&kind) {
        return format!("{kind} is not handled by this version");
    }
    let known = Kind::ALL.iter().map(|k| k.as_str()).chain(OTHER_KINDS);
    match Kind::closest(kind).map(Kind::as_str).or_else(|| suggest::closest(kind, known)) {
        Some(meant) => format!("unknown kind {kind:?}; did you mean {meant}?"),
        // All of them in each of many errors would hide the others.
        None => format!("unknown kind {kind:?}: none of {API_VERSION}, and no policy of Kubernetes"),
    }
}

fn wrong_api_version(origin: &Origin, accepted: &[&str]) -> Option<Problem> {
    let wanted = accepted.last().copied().unwrap_or(API_VERSION);
    let message = match origin.node.member("apiVersion").and_then(|m| m.node.text()) {
        Some(text) if accepted.contains(&text) => return None,
        // Items of a list may leave to the list what they have in common.
        None if !origin.inside.is_empty() => return None,
        None => format!("is required; write {wanted}"),
        Some("crd.projectcalico.org/v1") => format!(
            "expected {wanted}, found crd.projectcalico.org/v1, which is how the Kubernetes API stores the same \
             resource"
        ),
        Some(other) => format!("expected {wanted}, found {other:?}"),
    };
    Some(origin.problem("apiVersion", message))
}

/// Fields of a resource that do nothing, or that ask for what there is not, each with what is to be said of it.
pub fn idle_fields(resource: &AnyResource) -> Vec<(String, String)> {
    let mut all = unserved::of(resource);
    for (at, extra) in resource.extras() {
        for name in extra.keys() {
            let field = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            if all.iter().any(|(told, _)| *told == field) {
                continue;
            }
            let message = match fields::lookup(resource.kind(), &field) {
                // Metadata and status are the server's business.
                fields::Known::Yes if !field.starts_with("spec.") => continue,
                fields::Known::Yes
                    if field.strip_prefix("spec.").is_some_and(|f| fields::acts(resource.kind(), f)) =>
                {
                    continue;
                }
                fields::Known::Yes => "is kept, but has no effect in this version".to_owned(),
                fields::Known::No { meant: None } => "unknown field; it is kept".to_owned(),
                fields::Known::No { meant: Some(meant) } => {
                    format!("unknown field; it is kept; did you mean {meant}?")
                }
            };
            all.push((field, message));
        }
    }
    all
}

fn warn_of_idle_fields(resource: &AnyResource, origin: &Origin, out: &mut Loading) {
    out.warnings.extend(idle_fields(resource).into_iter().map(|(field, message)| {
        let place = origin.place_at(origin.node.find(&field, true));
        Problem { place, field: origin.path(&field), message }
    }));
}
