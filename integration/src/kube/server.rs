//! One request from authentication to body.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    header,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    delete::{self, Deleted},
    discovery,
    faults::Faults,
    http::{self, Route},
    rbac::{Identity, open_path},
    read::{Query, View},
    state::{Obj, State},
    status::{Answer, Cause, Status},
    watching,
    write::{self, PatchKind, Target},
};

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Largest body of a request, bytes.
const MAX_BODY: usize = 3 << 20;

/// What the log tells calls apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recorded {
    pub user: String,
    pub verb: String,
    pub group: String,
    /// With the sub-resource.
    pub resource: String,
    /// Whether the call was for one namespace.
    pub namespaced: bool,
    pub allowed: bool,
}

/// What went out for one kind of call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    /// Bytes of bodies sent, before TLS and framing.
    pub bytes: u64,
    /// Objects sent: items of lists, events of watches.
    pub objects: u64,
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub watch_timeout: Duration,
    pub bookmark_every: Duration,
    pub anonymous: bool,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub state: Mutex<State>,
    pub tokens: Mutex<HashMap<String, Identity>>,
    pub log: Mutex<BTreeMap<Recorded, Traffic>>,
    pub faults: Mutex<Faults>,
    pub drops: watch::Sender<u64>,
    pub options: Settings,
}

/// A poisoned lock: a handler panicked, and the test will fail of that; the state itself is whole between commits.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn tokens(&self) -> MutexGuard<'_, HashMap<String, Identity>> {
        lock(&self.tokens)
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, BTreeMap<Recorded, Traffic>> {
        lock(&self.log)
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub(crate) fn count(&self, record: &Recorded, bytes: usize, objects: usize) {
        let mut log = self.log();
        let t = log.entry(record.clone()).or_default();
        t.bytes += bytes as u64;
        t.objects += objects as u64;
    }

    fn identify(&self, headers: &header::HeaderMap) -> Answer<Identity> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return if self.options.anonymous {
                Ok(Identity::anonymous())
            } else {
                Err(Status::unauthorized())
            };
        };
        let token =
            value.to_str().ok().and_then(|v| v.strip_prefix("Bearer ").or_else(|| v.strip_prefix("bearer ")));
        token.and_then(|t| self.tokens().get(t.trim()).cloned()).ok_or_else(Status::unauthorized)
    }
}

/// What is sent back.
enum Reply {
    Json(u16, Value),
    Bytes(u16, Vec<u8>),
    Text(&'static str),
    Stream(Body),
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) async fn handle(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let delay = shared.faults().delay;
    if let Some(d) = delay {
        tokio::time::sleep(d).await;
    }
    let reply = answer(&shared, request).await;
    Ok(respond(reply))
}

fn respond(reply: Answer<Reply>) -> Response<Body> {
    let build = |code: u16, kind: &str, body: Body| {
        let mut r = Response::new(body);
        *r.status_mut() =
            hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
        if let Ok(v) = header::HeaderValue::from_str(kind) {
            r.headers_mut().insert(header::CONTENT_TYPE, v);
        }
        r.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
        r
    };
    match reply {
        Ok(Reply::Json(code, v)) => build(code, "application/json", full(format!("{v}\n"))),
        Ok(Reply::Bytes(code, v)) => build(code, "application/json", full(v)),
        Ok(Reply::Text(t)) => build(200, "text/plain; charset=utf-8", full(t)),
        Ok(Reply::Stream(b)) => build(200, "application/json", b),
        Err(s) if s.plain => build(s.code, "text/plain; charset=utf-8", full(s.message)),
        Err(s) => {
            let mut r = build(s.code, "application/json", full(format!("{}\n", s.body())));
            if let Some(n) = s.retry_after() {
                r.headers_mut().insert(header::RETRY_AFTER, n.into());
            }
            r
        }
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer<Reply> {
    let (head, body) = request.into_parts();
    let query = http::query(head.uri.query().unwrap_or(""));
    let get = |name: &str| query.get(name).cloned().unwrap_or_default();
    let path = head.uri.path().to_owned();
    let route = http::route(&path);
    let who = shared.identify(&head.headers)?;
    let list = if let Route::Resource { .. } = &route { Some(Query::read(get)) } else { None };
    let call = http::call(&head.method, &route, &path, &query);
    let open = call
        .path
        .as_deref()
        .is_some_and(|p| open_path(p, who.groups.iter().any(|g| g == "system:authenticated")));
    let allowed = open || shared.state().allows(&who, &call);
    let record = Recorded {
        user: who.user.clone(),
        verb: call.verb.clone(),
        group: call.group.clone(),
        resource: call.path.clone().unwrap_or_else(|| call.resource.clone()),
        namespaced: !call.namespace.is_empty(),
        allowed,
    };
    shared.log().entry(record.clone()).or_default().requests += 1;
    if !allowed {
        return Err(call.forbidden(&who.user));
    }
    shared.faults().refuse(&call, &get("fieldSelector"))?;
    let Route::Resource { group, version, namespace, plural, name, sub } = route else {
        if head.method != Method::GET {
            return Err(Status::method_not_allowed());
        }
        return plain_path(
            shared,
            &path,
            head.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or(""),
        );
    };
    let id = (group, plural);
    let kind = Arc::clone(&shared.state().collection(&id)?.kind);
    if kind.version(&version).is_none() || (!namespace.is_empty() && !kind.namespaced) {
        return Err(Status::page_not_found());
    }
    if kind.namespaced && namespace.is_empty() && !name.is_empty() {
        return Err(Status::page_not_found());
    }
    // Of one object, and it has no name.
    if name.is_empty() && path.ends_with('/') {
        return Err(Status::bad_request("name must be provided"));
    }
    let target = Target { id, kind, version, namespace, name, sub };
    check_sub(&target)?;
    let accept = head.headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or("").to_owned();
    let meta_only = http::accepted(&accept)?;
    let view = View::new(&target.kind, &target.version, meta_only);
    if head.method == Method::GET {
        return reading(shared, record, target, list.unwrap_or_else(|| Ok(Query::default())), view);
    }
    if !matches!(head.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE) {
        return Err(Status::method_not_allowed());
    }
    let content =
        head.headers.get(header::CONTENT_TYPE).and_then(|c| c.to_str().ok()).unwrap_or("").to_owned();
    let agent =
        head.headers.get(header::USER_AGENT).and_then(|c| c.to_str().ok()).unwrap_or("unknown").to_owned();
    let bytes = whole(body).await?;
    let options = write_options(&query, &agent)?;
    let reply = match head.method {
        Method::DELETE => deleting(shared, &target, &query, list, &bytes, &view),
        Method::PATCH => {
            let how = http::patch_kind(&content, target.kind.custom)?;
            let body = http::decode(&bytes)?;
            check_apply(how, &query, &target)?;
            let (o, made) = shared.state().patch(&target, how, &body, &options)?;
            Ok(written(&view, &o, if made { 201 } else { 200 }))
        }
        ref method => {
            http::writable(&content)?;
            let body = http::decode(&bytes)?;
            if *method == Method::POST {
                posting(shared, &target, body, &options, &view)
            } else {
                if target.name.is_empty() {
                    return Err(Status::method_not_allowed());
                }
                let (o, made) = shared.state().update(&target, body, &options)?;
                Ok(written(&view, &o, if made { 201 } else { 200 }))
            }
        }
    };
    if let Ok(Reply::Bytes(_, b)) = &reply {
        shared.count(&record, b.len(), 1);
    }
    reply
}

fn plain_path(shared: &Arc<Shared>, path: &str, host: &str) -> Answer<Reply> {
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Ok(Reply::Text("ok")),
        [] => Ok(Reply::Json(
            200,
            json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/readyz", "/version"]}),
        )),
        parts => Ok(Reply::Json(200, discovery::answer(&shared.state(), parts, host)?)),
    }
}

/// Whether the kind has the sub-resource.
fn check_sub(t: &Target) -> Answer<()> {
    let core = t.kind.group.is_empty();
    let ok = match t.sub.as_str() {
        "" => true,
        "status" => t.version()?.status,
        "finalize" => core && t.kind.plural == "namespaces",
        "token" => core && t.kind.plural == "serviceaccounts",
        _ => false,
    };
    if ok { Ok(()) } else { Err(Status::page_not_found()) }
}

fn write_options(query: &HashMap<String, String>, agent: &str) -> Answer<write::Options> {
    let dry = query.get("dryRun").map_or("", String::as_str);
    if !matches!(dry, "" | "All") {
        let cause = Cause::unsupported("dryRun", &dry.into(), &["All".to_owned()]);
        return Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &[cause]));
    }
    let manager = query.get("fieldManager").cloned().unwrap_or_default();
    Ok(write::Options {
        dry_run: dry == "All",
        manager: if manager.is_empty() {
            agent.split(['/', ' ']).next().unwrap_or("unknown").to_owned()
        } else {
            manager
        },
        force: query.get("force").is_some_and(|f| f == "true" || f == "1"),
    })
}

fn check_apply(how: PatchKind, query: &HashMap<String, String>, t: &Target) -> Answer<()> {
    if t.name.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let refuse = |cause| Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[cause]));
    if how == PatchKind::Apply {
        if query.get("fieldManager").is_none_or(String::is_empty) {
            return refuse(Cause::required("fieldManager", "is required for apply patch"));
        }
    } else if query.contains_key("force") {
        return refuse(Cause::forbidden("force", "may not be specified for non-apply patch"));
    }
    Ok(())
}

fn written(view: &View, o: &Obj, code: u16) -> Reply {
    let mut out = Vec::with_capacity(o.bytes.len() + 64);
    view.object(o, false, &mut out);
    out.push(b'\n');
    Reply::Bytes(code, out)
}

fn reading(
    shared: &Arc<Shared>,
    record: Recorded,
    target: Target,
    q: Answer<Query>,
    view: View,
) -> Answer<Reply> {
    if !target.name.is_empty() {
        if matches!(target.sub.as_str(), "finalize" | "token") {
            return Err(Status::method_not_allowed());
        }
        let o = shared.state().get(&target.id, &target.key()).ok_or_else(|| target.not_found())?;
        let reply = written(&view, &o, 200);
        shared.count(&record, o.bytes.len(), 1);
        return Ok(reply);
    }
    let q = q?;
    if q.watch {
        let events = watching::start(shared, record, target, q, view)?;
        let frames = events.map(|b| b.map(Frame::data));
        return Ok(Reply::Stream(StreamBody::new(frames).boxed_unsync()));
    }
    let page = shared.state().list(&target, &q)?;
    shared.count(&record, 0, page.items.len());
    let shared = Arc::clone(shared);
    let pieces = page.pieces(view).map(move |b| {
        shared.count(&record, b.len(), 0);
        Ok(Frame::data(b))
    });
    Ok(Reply::Stream(StreamBody::new(stream::iter(pieces)).boxed_unsync()))
}

fn posting(
    shared: &Arc<Shared>,
    t: &Target,
    body: Value,
    options: &write::Options,
    view: &View,
) -> Answer<Reply> {
    if t.sub == "token" {
        let sa = shared.state().get(&t.id, &t.key()).ok_or_else(|| t.not_found())?;
        let token = format!("sa-{}", super::stamp::uid());
        let seconds = body["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
        let until = super::stamp::rfc3339(super::stamp::now() + seconds);
        shared
            .tokens()
            .insert(token.clone(), Identity::service_account(sa.meta("namespace"), sa.meta("name")));
        let mut v = body;
        v["kind"] = "TokenRequest".into();
        v["apiVersion"] = "authentication.k8s.io/v1".into();
        v["status"] = json!({"token": token, "expirationTimestamp": until});
        return Ok(Reply::Json(201, v));
    }
    if !t.name.is_empty() || (t.kind.namespaced && t.namespace.is_empty()) {
        return Err(Status::method_not_allowed());
    }
    let o = shared.state().create(t, body, options)?;
    Ok(written(view, &o, 201))
}

fn deleting(
    shared: &Arc<Shared>,
    t: &Target,
    query: &HashMap<String, String>,
    list: Option<Answer<Query>>,
    bytes: &[u8],
    view: &View,
) -> Answer<Reply> {
    if !t.sub.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let mut options = if bytes.is_empty() {
        delete::Options::default()
    } else {
        delete::Options::read(&http::decode(bytes)?)
    };
    if let Some(g) = query.get("gracePeriodSeconds").and_then(|g| g.parse().ok()) {
        options.grace = Some(g);
    }
    options.orphan |= query.get("propagationPolicy").is_some_and(|p| p == "Orphan");
    options.dry_run |= query.get("dryRun").is_some_and(|d| d == "All");
    let mut state = shared.state();
    if t.name.is_empty() {
        let q = list.unwrap_or_else(|| Ok(Query::default()))?;
        let page = state.list(t, &q)?;
        for o in &page.items {
            let one =
                Target { namespace: o.meta("namespace").into(), name: o.meta("name").into(), ..t.clone() };
            // Something of the list may have gone with its owner.
            if state.get(&one.id, &one.key()).is_some() {
                state.delete(&one, &options)?;
            }
        }
        let body: Vec<_> = page.pieces(view.clone()).flatten().collect();
        return Ok(Reply::Bytes(200, body));
    }
    Ok(match state.delete(t, &options)? {
        // Pods and what waits for finalizers are shown, of the rest only that they are gone.
        Deleted::Gone(o) if t.kind.custom || t.kind.kind != "Pod" => {
            Reply::Json(200, delete::success(&t.kind, &o))
        }
        Deleted::Gone(o) | Deleted::Pending(o) => written(view, &o, 200),
    })
}

/// The body of a request. One that is too large is read on all the same: who still sends when the connection closes is
/// shown a broken connection and not the answer.
async fn whole(mut body: Incoming) -> Answer<Bytes> {
    let (mut bytes, mut size) = (Vec::new(), 0usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Status::bad_request(e.to_string()))?;
        if let Ok(data) = frame.into_data() {
            size = size.saturating_add(data.len());
            if size <= MAX_BODY {
                bytes.extend_from_slice(&data);
            } else if size > 16 * MAX_BODY {
                break;
            }
        }
    }
    if size > MAX_BODY {
        let text = format!("Request entity too large: limit is {MAX_BODY}");
        return Err(Status::new(413, "RequestEntityTooLarge", text));
    }
    Ok(bytes.into())
}
