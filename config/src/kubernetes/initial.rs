//! A collection as a stream: the server tells every object as an event and says when that is all (`sendInitialEvents`,
//! feature WatchList). It then need not put together pages for each agent, which is what costs an API server its
//! memory when many start at once. Servers that do not know it refuse it, and are asked for pages from then on.

use std::{sync::atomic::Ordering, time::Duration};

use brindle_config_core::store::{Revision, StoreError};
use serde::de::IgnoredAny;

use super::{
    Inner, Piece,
    client::{Failure, Lines},
    explain::Verb,
    kinds::Place,
    object::{self, Event, Mapped, Stub},
    watch,
};

/// Annotation of the bookmark behind the last object.
const END: &str = "k8s.io/initial-events-end";
/// How long a stream may be silent before pages are asked for: the server may have to read up first.
const SILENCE: Duration = Duration::from_secs(30);

/// Why a stream is of no use; pages will say what is wrong, if something is.
enum Not {
    /// The server does not know it.
    Refused(String),
    Broken(String),
    /// The server has too much to do: pages would be more still.
    Later(StoreError),
}

impl Inner {
    /// Reads a collection for a follower: as a stream where the server has that, which then goes on with what changes, else
    /// page by page. Returns its version (`None` when the cluster may lack it and does) and the stream.
    pub(super) async fn initial(
        &self,
        place: &Place,
        mut take: impl FnMut(Piece) + Send,
    ) -> Result<(Option<Revision>, Option<Lines>), StoreError> {
        if !self.unstreamed.load(Ordering::Relaxed) {
            take(Piece::Begin);
            match self.streamed(place, &mut take).await {
                Ok((at, lines)) => return Ok((Some(at), Some(lines))),
                Err(Not::Refused(why)) => {
                    if !self.unstreamed.swap(true, Ordering::Relaxed) {
                        tracing::debug!(
                            why,
                            "the server does not stream collections; reading them page by page"
                        );
                    }
                }
                Err(Not::Broken(why)) => {
                    tracing::debug!(resource = %place.resource(), why, "not streamed; reading it page by page");
                }
                Err(Not::Later(error)) => return Err(error),
            }
        }
        Ok((self.each(place, take).await?, None))
    }

    async fn streamed(
        &self,
        place: &Place,
        take: &mut (impl FnMut(Piece) + Send),
    ) -> Result<(Revision, Lines), Not> {
        let path = format!(
            "{}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
             &timeoutSeconds={}{}",
            place.collection(None),
            watch::seconds(),
            self.selection(place)
        );
        let mut lines = self.client.lines(&path).await.map_err(|failure| match failure {
            // "sendInitialEvents is forbidden", or, of servers that do not know the word, "resourceVersionMatch is".
            Failure::Api(s) if s.code == 422 => Not::Refused(s.message),
            Failure::Api(s) if matches!(s.code, 429 | 503) => {
                Not::Later(self.explain(Verb::List, place, None, Failure::Api(s)))
            }
            Failure::Api(s) => Not::Broken(s.message),
            Failure::Transport(e) => Not::Broken(e.to_string()),
        })?;
        loop {
            let line = tokio::time::timeout(SILENCE, lines.next()).await;
            let line = line.map_err(|_| Not::Broken(format!("silent for {SILENCE:?}")))?;
            let line = line.map_err(Not::Broken)?;
            let line = line.ok_or_else(|| Not::Broken("it ended before all was told".into()))?;
            if let Some(at) = one(place, &line, take).map_err(Not::Broken)? {
                return Ok((at, lines));
            }
        }
    }
}

/// Takes one line; the version of the collection when it was the last one.
fn one(place: &Place, line: &[u8], take: &mut impl FnMut(Piece)) -> Result<Option<Revision>, String> {
    let event: Event<IgnoredAny> = serde_json::from_slice(line).map_err(|e| format!("no event: {e}"))?;
    match event.kind.as_str() {
        // Who is changed while the stream is read is told twice; the later one counts.
        "ADDED" | "MODIFIED" => {
            match object::read_event(place, line) {
                Ok(Mapped::Put(entry)) => take(Piece::One(entry)),
                // As with what is deleted: an earlier line may have told it as something.
                Ok(Mapped::Nothing { .. }) if event.kind == "MODIFIED" => {
                    return Err("an object stopped being one of ours before all was told".into());
                }
                Ok(Mapped::Nothing { .. }) => {}
                // One broken object must not hide the others.
                Err(why) => tracing::warn!(resource = %place.resource(), "left out of a listing: {why}"),
            }
            Ok(None)
        }
        "BOOKMARK" => {
            let stub: Event<Stub> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
            let meta = stub.object.metadata;
            if meta.annotations.get(END).is_none_or(|v| v != "true") {
                return Ok(None);
            }
            meta.revision().map(Some)
        }
        // What is gone again cannot be taken back here, and is rare.
        other => Err(format!("{other} before all was told")),
    }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::Kind;

    use super::*;
    use crate::kubernetes::kinds::Api;

    fn run(lines: &[&str]) -> (Vec<String>, Result<Option<Revision>, String>) {
        let place = Place::of(Kind::Namespace, Api::V1).unwrap();
        let mut names = Vec::new();
        let mut last = Ok(None);
        for line in lines {
            last = one(&place, line.as_bytes(), &mut |piece| match piece {
                Piece::Begin => {}
                Piece::One(entry) => names.push(entry.key.name),
            });
            if !matches!(last, Ok(None)) {
                break;
            }
        }
        (names, last)
    }

    #[test]
    fn a_stream_ends_with_its_bookmark_and_no_other() {
        const A: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"5"}}}"#;
        const B: &str = r#"{"type":"MODIFIED","object":{"metadata":{"name":"b","resourceVersion":"6"}}}"#;
        const PLAIN: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#;
        const LAST: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"8",
            "annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        const GONE: &str = r#"{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"9"}}}"#;
        let (names, at) = run(&[A, PLAIN, B, LAST, GONE]);
        assert_eq!(names, ["a", "b"]);
        assert_eq!(at, Ok(Some(Revision(8))));
        assert_eq!(run(&[A, PLAIN]).1, Ok(None), "a bookmark alone is no end");
        assert_eq!(run(&[A, GONE]).1.unwrap_err(), "DELETED before all was told");
        assert!(run(&["{"]).1.unwrap_err().starts_with("no event"));
        const BAD: &str = r#"{"type":"ADDED","object":{"metadata":{"name":7}}}"#;
        assert_eq!(run(&[BAD, A]).0, ["a"], "one that cannot be read hides no other");
    }

    #[test]
    fn a_pod_that_loses_its_address_while_the_stream_is_read_is_not_kept() {
        let place = Place::of(Kind::WorkloadEndpoint, Api::V1).unwrap();
        let line = |kind: &str, status: &str| {
            format!(
                r#"{{"type":"{kind}","object":{{"metadata":{{"name":"p","namespace":"a","uid":"u",
                "resourceVersion":"5"}},"spec":{{"nodeName":"n1"}},"status":{status}}}}}"#
            )
        };
        let mut told = 0;
        let mut take = |piece: Piece| told += usize::from(matches!(piece, Piece::One(_)));
        let up = line("ADDED", r#"{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}"#);
        let waiting = line("ADDED", r#"{"phase":"Pending"}"#);
        let done = line("MODIFIED", r#"{"phase":"Pending"}"#);
        assert_eq!(one(&place, up.as_bytes(), &mut take), Ok(None));
        assert_eq!(one(&place, waiting.as_bytes(), &mut take), Ok(None), "nothing was told of it before");
        let why = one(&place, done.as_bytes(), &mut take).unwrap_err();
        assert!(why.ends_with("before all was told"), "{why}");
        assert_eq!(told, 1);
    }
}
