//! WATCH: changes since a resource version as JSON lines, with initial events, bookmarks and 410.

use std::{io, sync::Arc, time::Duration};

use futures::{Stream, stream};
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    read::{Query, View},
    server::{Recorded, Shared},
    state::{Change, Obj, State},
    status::{Answer, Status},
    write::Target,
};

/// Changes read under one lock.
const BATCH: usize = 1000;

struct Watcher {
    shared: Arc<Shared>,
    record: Recorded,
    target: Target,
    query: Query,
    view: View,
    /// Everything up to here was sent.
    at: u64,
    /// Lines to send before anything else.
    ready: Vec<Bytes>,
    notify: watch::Receiver<u64>,
    drops: watch::Receiver<u64>,
    drop_seen: u64,
    end: Instant,
    bookmark_every: Duration,
    next_bookmark: Instant,
    ended: bool,
    first: bool,
}

fn line(kind: &str, view: &View, o: &Obj, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
    view.object(o, false, out);
    out.extend_from_slice(b"}\n");
}

fn bookmark(view: &View, rv: u64, end_of_initial: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(
        format!("{{\"type\":\"BOOKMARK\",\"object\":{}}}\n", view.bookmark(rv, end_of_initial)).as_bytes(),
    );
}

fn error(status: &Status, out: &mut Vec<u8>) {
    let v: Value = json!({"type": "ERROR", "object": status.body()});
    out.extend_from_slice(format!("{v}\n").as_bytes());
}

fn too_old(asked: u64, oldest: u64) -> Box<Status> {
    Status::expired(format!("too old resource version: {asked} ({oldest})"))
}

/// Starts a watch; the answer is its body.
pub(crate) fn start(
    shared: &Arc<Shared>,
    record: Recorded,
    target: Target,
    query: Query,
    view: View,
) -> Answer<impl Stream<Item = io::Result<Bytes>> + Send + use<>> {
    let state = shared.state();
    let c = state.collection(&target.id)?;
    target.kind.check_fields(target.version()?, query.fields.paths())?;
    let asked = query.version()?;
    let initial = query.initial.unwrap_or(asked == 0);
    let (mut out, mut at, mut ended, mut sent) = (Vec::new(), state.rv.max(asked), false, 0);
    if initial {
        let mut all = query.clone();
        (all.limit, all.rv, all.rv_match, all.proceed) = (0, String::new(), String::new(), String::new());
        if asked > state.rv {
            return Err(super::read::too_large(asked, state.rv));
        }
        let page = state.list(&target, &all)?;
        at = page.rv;
        sent = page.items.len();
        for o in &page.items {
            line("ADDED", &view, o, &mut out);
        }
        if query.initial == Some(true) && query.bookmarks {
            bookmark(&view, at, true, &mut out);
        }
    } else if asked > 0 {
        at = asked;
        if asked < c.forgotten {
            error(&too_old(asked, c.forgotten), &mut out);
            ended = true;
        }
    }
    let notify = c.notify.subscribe();
    drop(state);
    shared.count(&record, out.len(), sent);
    let seconds = query.timeout.unwrap_or(shared.options.watch_timeout.as_secs());
    let now = Instant::now();
    let bookmark_every = shared.options.bookmark_every;
    let drops = shared.drops.subscribe();
    let drop_seen = *drops.borrow();
    let ready = if out.is_empty() { Vec::new() } else { vec![Bytes::from(out)] };
    let w = Watcher {
        shared: Arc::clone(shared),
        record,
        target,
        query,
        view,
        at,
        ready,
        notify,
        drops,
        drop_seen,
        end: now + Duration::from_secs(seconds),
        bookmark_every,
        next_bookmark: now + bookmark_every,
        ended,
        first: true,
    };
    Ok(stream::unfold(w, |mut w| async move { w.next().await.map(|item| (item, w)) }))
}

impl Watcher {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if std::mem::take(&mut self.first) && self.ready.is_empty() {
            // The response's head goes out at once, also when nothing happens.
            return Some(Ok(Bytes::new()));
        }
        loop {
            if let Some(b) = self.ready.pop() {
                return Some(Ok(b));
            }
            if self.ended {
                return None;
            }
            if *self.drops.borrow() != self.drop_seen {
                self.ended = true;
                return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "watch dropped")));
            }
            self.notify.borrow_and_update();
            let mut out = Vec::new();
            let n = self.collect(&mut out);
            if !out.is_empty() {
                self.shared.count(&self.record, out.len(), n);
                return Some(Ok(out.into()));
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                changed = self.notify.changed() => {
                    // The kind itself is gone.
                    if changed.is_err() {
                        return None;
                    }
                }
                _ = self.drops.changed() => {}
                () = sleep_until(self.next_bookmark.min(self.end)) => {
                    let now = Instant::now();
                    self.ended = now >= self.end;
                    self.next_bookmark = now + self.bookmark_every;
                    if self.query.bookmarks {
                        let mut out = Vec::new();
                        // What happened until now goes before the mark that says it was seen.
                        let n = self.collect(&mut out);
                        bookmark(&self.view, self.at, false, &mut out);
                        self.shared.count(&self.record, out.len(), n);
                        return Some(Ok(out.into()));
                    }
                }
            }
        }
    }

    /// Appends what happened since; the number of events.
    fn collect(&mut self, out: &mut Vec<u8>) -> usize {
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        let Some(c) = state.collections.get(&self.target.id) else {
            self.ended = true;
            return 0;
        };
        if self.at < c.lost {
            error(&too_old(self.at, c.forgotten), out);
            self.ended = true;
            return 0;
        }
        let from = c.history.partition_point(|h| h.rv <= self.at);
        let mut n = 0;
        let mut at = state.rv.max(self.at);
        for (i, h) in c.history.range(from..).enumerate() {
            if i == BATCH {
                at = c.history[from + i - 1].rv;
                break;
            }
            n += usize::from(self.event(h, out));
        }
        self.at = at;
        n
    }

    fn event(&self, h: &Change, out: &mut Vec<u8>) -> bool {
        let ns = &self.target.namespace;
        let sees = |o: &Arc<Obj>| (ns.is_empty() || o.meta("namespace") == ns) && self.query.takes(o);
        let was = h.before.as_ref().filter(|o| sees(o));
        let is = h.after.as_ref().filter(|o| sees(o));
        match (was, is) {
            (None, None) => return false,
            (None, Some(o)) => line("ADDED", &self.view, o, out),
            (Some(_), Some(o)) => line("MODIFIED", &self.view, o, out),
            (Some(old), None) => match &h.last {
                Some(last) => line("DELETED", &self.view, last, out),
                // It left the selection: the state it had in it, under the version of the change.
                None => {
                    if let Ok(o) = State::seal(old.value.clone(), h.rv, Arc::clone(&old.managers)) {
                        line("DELETED", &self.view, &o, out);
                    }
                }
            },
        }
        true
    }
}
