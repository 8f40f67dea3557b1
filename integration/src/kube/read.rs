//! LIST in pages at one resource version, and how objects are written out.

use std::{ops::Bound, sync::Arc};

use hyper::body::Bytes;
use serde_json::{Value, json};

use super::{
    kinds::Kind,
    selector::{Fields, Labels},
    state::{Key, Obj, State},
    status::{Answer, Cause, Status},
    write::Target,
};

/// Parameters of LIST, WATCH and DELETE collection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub labels: Labels,
    pub fields: Fields,
    pub limit: usize,
    pub proceed: String,
    pub rv: String,
    pub rv_match: String,
    pub watch: bool,
    pub bookmarks: bool,
    pub initial: Option<bool>,
    pub timeout: Option<u64>,
}

impl Query {
    /// Reads and checks; `get` gives a parameter.
    pub(crate) fn read(get: impl Fn(&str) -> String) -> Answer<Self> {
        let flag = |name: &str| matches!(get(name).as_str(), "1" | "true" | "True" | "TRUE" | "t" | "T");
        let number = |name: &str| -> Answer<Option<u64>> {
            match get(name).as_str() {
                "" => Ok(None),
                t => t.parse().map(Some).map_err(|_| {
                    Status::bad_request(format!("strconv.ParseInt: parsing {t:?}: invalid syntax"))
                }),
            }
        };
        let selector = get("labelSelector");
        let q = Self {
            labels: Labels::parse(&selector).map_err(Status::bad_request)?,
            fields: Fields::parse(&get("fieldSelector")).map_err(Status::bad_request)?,
            limit: usize::try_from(number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX),
            proceed: get("continue"),
            rv: get("resourceVersion"),
            rv_match: get("resourceVersionMatch"),
            watch: flag("watch"),
            bookmarks: flag("allowWatchBookmarks"),
            initial: (!get("sendInitialEvents").is_empty()).then(|| flag("sendInitialEvents")),
            timeout: number("timeoutSeconds")?.filter(|t| *t > 0),
        };
        q.check()?;
        Ok(q)
    }

    fn check(&self) -> Answer<()> {
        let refuse = |field: &str, why: String| {
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[Cause::forbidden(field, &why)]))
        };
        let matching = !self.rv_match.is_empty();
        if self.watch {
            return match self.initial {
                None if matching => refuse(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided".into(),
                ),
                Some(_) if self.rv_match != "NotOlderThan" => refuse(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan".into(),
                ),
                _ => Ok(()),
            };
        }
        if self.initial.is_some() {
            return refuse("sendInitialEvents", "sendInitialEvents is forbidden for list".into());
        }
        if matching {
            if !matches!(self.rv_match.as_str(), "Exact" | "NotOlderThan") {
                let choices = ["Exact", "NotOlderThan"].map(str::to_owned);
                let cause =
                    Cause::unsupported("resourceVersionMatch", &self.rv_match.as_str().into(), &choices);
                return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[cause]));
            }
            if self.rv.is_empty() {
                return refuse(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided".into(),
                );
            }
            if !self.proceed.is_empty() {
                return refuse(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided".into(),
                );
            }
            if self.rv_match == "Exact" && self.rv == "0" {
                return refuse(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"".into(),
                );
            }
        }
        if !self.proceed.is_empty() && !matches!(self.rv.as_str(), "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(())
    }

    /// The resource version asked for, 0 when none.
    pub(crate) fn version(&self) -> Answer<u64> {
        if self.rv.is_empty() {
            return Ok(0);
        }
        self.rv.parse().map_err(|_| {
            Status::bad_request(format!(
                "resourceVersion: Invalid value: {:?}: strconv.ParseUint: parsing {:?}: invalid syntax",
                self.rv, self.rv
            ))
        })
    }

    pub(crate) fn takes(&self, o: &Obj) -> bool {
        self.labels.takes(&o.value) && self.fields.takes(&o.value)
    }
}

/// How objects go out.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// `{"kind":…,"apiVersion":…,`
    head: Arc<str>,
    list_head: Arc<str>,
    /// Lists of custom resources carry kind and apiVersion in each item, those of built-in ones do not.
    whole_items: bool,
    meta_only: bool,
}

impl View {
    pub(crate) fn new(kind: &Kind, version: &str, meta_only: bool) -> Self {
        let (name, gv) = if meta_only {
            ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned())
        } else {
            (kind.kind.clone(), kind.group_version(version))
        };
        Self {
            head: format!("{{\"kind\":{:?},\"apiVersion\":{gv:?},", name).into(),
            list_head: format!("{{\"kind\":\"{name}List\",\"apiVersion\":{gv:?},").into(),
            whole_items: kind.custom || meta_only,
            meta_only,
        }
    }

    /// Appends one object.
    pub(crate) fn object(&self, o: &Obj, in_list: bool, out: &mut Vec<u8>) {
        let whole = !in_list || self.whole_items;
        if whole {
            out.extend_from_slice(self.head.as_bytes());
        } else {
            out.push(b'{');
        }
        if self.meta_only {
            out.extend_from_slice(br#""metadata":"#);
            out.extend_from_slice(o.value["metadata"].to_string().as_bytes());
            out.push(b'}');
        } else {
            out.extend_from_slice(&o.bytes[1..]);
        }
    }

    /// A bookmark's object.
    pub(crate) fn bookmark(&self, rv: u64, end_of_initial: bool) -> String {
        let mut meta = json!({"resourceVersion": rv.to_string()});
        if end_of_initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        format!("{}\"metadata\":{meta}}}", self.head)
    }
}

/// One page.
#[derive(Debug)]
pub(crate) struct Page {
    pub rv: u64,
    pub items: Vec<Arc<Obj>>,
    pub proceed: Option<String>,
    pub remaining: Option<usize>,
}

/// Bytes of a list are made in pieces of about this size.
const PIECE: usize = 64 << 10;

impl Page {
    /// The body, made while it is sent.
    pub(crate) fn pieces(self, view: View) -> impl Iterator<Item = Bytes> + Send {
        let mut meta = json!({"resourceVersion": self.rv.to_string()});
        if let Some(c) = &self.proceed {
            meta["continue"] = c.clone().into();
        }
        if let Some(n) = self.remaining.filter(|n| *n > 0) {
            meta["remainingItemCount"] = n.into();
        }
        let mut items = self.items.into_iter();
        let mut first = true;
        let mut out = format!("{}\"metadata\":{meta},\"items\":[", view.list_head).into_bytes();
        let mut done = false;
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            while out.len() < PIECE {
                let Some(o) = items.next() else {
                    out.extend_from_slice(b"]}\n");
                    done = true;
                    break;
                };
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                view.object(&o, true, &mut out);
            }
            Some(Bytes::from(std::mem::take(&mut out)))
        })
    }
}

fn token(rv: i64, after: &Key) -> String {
    let json = json!({"v": "meta.k8s.io/v1", "rv": rv, "start": [after.0, after.1]}).to_string();
    json.bytes().map(|b| format!("{b:02x}")).collect()
}

fn read_token(t: &str) -> Answer<(i64, Key)> {
    let wrong = || Status::bad_request("continue key is not valid: encoded continue key is not valid");
    let bytes: Option<Vec<u8>> =
        (0..t.len()).step_by(2).map(|i| u8::from_str_radix(t.get(i..i + 2)?, 16).ok()).collect();
    let v: Value = serde_json::from_slice(&bytes.ok_or_else(wrong)?).map_err(|_| wrong())?;
    let part = |i: usize| v["start"][i].as_str().map(str::to_owned);
    let key = part(0).zip(part(1)).ok_or_else(wrong)?;
    Ok((v["rv"].as_i64().ok_or_else(wrong)?, key))
}

/// A resource version from the future: another server may know it.
pub(crate) fn too_large(wanted: u64, current: u64) -> Box<Status> {
    Status::new(504, "Timeout", format!("Too large resource version: {wanted}, current: {current}")).with(
        json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }),
    )
}

const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

impl State {
    pub(crate) fn list(&self, t: &Target, q: &Query) -> Answer<Page> {
        let c = self.collection(&t.id)?;
        t.kind.check_fields(t.version()?, q.fields.paths())?;
        let wanted = q.version()?;
        if wanted > self.rv {
            return Err(too_large(wanted, self.rv));
        }
        let mut rv = self.rv;
        let mut after = None;
        if !q.proceed.is_empty() {
            let (at, key) = read_token(&q.proceed)?;
            if let Ok(at) = u64::try_from(at) {
                rv = at;
            }
            after = Some(key);
        } else if wanted > 0 && (q.rv_match == "Exact" || (q.rv_match.is_empty() && q.limit > 0)) {
            rv = wanted;
        }
        let old;
        let objects = if rv == self.rv || c.history.back().is_none_or(|h| h.rv <= rv) && rv >= c.forgotten {
            &c.objects
        } else {
            let Some(o) = c.at(rv) else {
                let Some(after) = after else {
                    return Err(Status::expired("The resourceVersion for the provided list is too old."));
                };
                let mut s = Status::expired(EXPIRED);
                s.proceed = Some(token(-1, &after));
                return Err(s);
            };
            old = o;
            &old
        };
        let low = match (&after, t.namespace.is_empty()) {
            (Some(k), _) => Bound::Excluded(k.clone()),
            (None, false) => Bound::Included((t.namespace.clone(), String::new())),
            (None, true) => Bound::Unbounded,
        };
        let one = q.fields.wanted_name().filter(|_| !t.namespace.is_empty() || !t.kind.namespaced);
        let mut items = Vec::new();
        let mut last: Option<Key> = None;
        let mut more = false;
        if let Some(name) = one {
            items
                .extend(objects.get(&(t.namespace.clone(), name.to_owned())).filter(|o| q.takes(o)).cloned());
        } else {
            for (k, o) in objects.range((low, Bound::Unbounded)) {
                if !t.namespace.is_empty() && k.0 != t.namespace {
                    break;
                }
                if !q.takes(o) {
                    continue;
                }
                if q.limit > 0 && items.len() == q.limit {
                    more = true;
                    break;
                }
                last = Some(k.clone());
                items.push(Arc::clone(o));
            }
        }
        let remaining = (more && q.labels.is_empty() && q.fields.is_empty()).then(|| {
            let from = last.clone().map_or(Bound::Unbounded, Bound::Excluded);
            objects
                .range((from, Bound::Unbounded))
                .take_while(|(k, _)| t.namespace.is_empty() || k.0 == t.namespace)
                .count()
        });
        let proceed = last.filter(|_| more).map(|k| token(i64::try_from(rv).unwrap_or(-1), &k));
        Ok(Page { rv, items, proceed, remaining })
    }
}
