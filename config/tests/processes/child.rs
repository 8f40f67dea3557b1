//! What a child process does. Started by the harness without a role, it does nothing.

use std::{io::Write, path::Path, sync::Arc, time::Duration};

use brindle_config::SqliteStore;
use brindle_config_core::{
    Kind,
    store::{Expect, Store, SyncEvent},
};

use super::{key, number, value};

pub(super) const ROLE: &str = "BRINDLE_TEST_ROLE";
pub(super) const DB: &str = "BRINDLE_TEST_DB";
/// Begins the lines that are meant for the parent.
pub(super) const MARK: &str = "role: ";

fn say(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    // A parent that is gone needs no answer.
    let _ = writeln!(out, "\n{MARK}{text}");
    let _ = out.flush();
}

#[test]
fn play_a_role() {
    let (Ok(role), Ok(db)) = (std::env::var(ROLE), std::env::var(DB)) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = match SqliteStore::open(Path::new(&db)) {
            Ok(store) => Arc::new(store),
            Err(e) => return say(e),
        };
        match role.as_str() {
            "open" => match store.list(&[Kind::BgpPeer]).await {
                Ok(listing) => say(format_args!("{} entries", listing.entries.len())),
                Err(e) => say(e),
            },
            "put" => match store.put(&key("from-child"), value(1), Expect::Any).await {
                Ok(_) => say("written"),
                Err(e) => say(e),
            },
            "put-and-close" => match store.put(&key("from-child"), value(1), Expect::Any).await {
                Ok(_) => {
                    SqliteStore::close_all();
                    let refused = store.get(&key("from-child")).await.is_err();
                    say(if refused { "closed" } else { "still open" });
                }
                Err(e) => say(e),
            },
            "count" => count(&store).await,
            "fill" => fill(&store).await,
            "follow" => follow(store).await,
            "follow-without-inotify" => {
                let hoard: Vec<_> = std::iter::from_fn(|| inotify::Inotify::init().ok()).collect();
                say(format_args!("took {}", hoard.len()));
                follow(store).await;
            }
            other => panic!("unknown role {other}"),
        }
    });
}

/// Increments a counter for ever and says each number that was committed.
async fn count(store: &SqliteStore) {
    loop {
        let (n, expect) = match store.get(&key("counter")).await {
            Ok(e) => (number(&e.value), Expect::Revision(e.revision)),
            Err(_) => (0, Expect::Absent),
        };
        store.put(&key("counter"), value(n + 1), expect).await.expect("writes");
        // Deletions and creations of others, so that the file is busy.
        let other = key(&format!("other-{}", n % 7));
        if n % 3 == 0 {
            let _ = store.delete(&other, Expect::Any).await;
        } else {
            store.put(&other, value(n), Expect::Any).await.expect("writes");
        }
        say(n + 1);
    }
}

/// Writes until it fails, says why, and whether reading still works.
async fn fill(store: &SqliteStore) {
    for n in 0.. {
        if let Err(e) = store.put(&key(&format!("fill-{n}")), value(n), Expect::Absent).await {
            say(e);
            break;
        }
    }
    match store.list(&[Kind::BgpPeer]).await {
        Ok(listing) => {
            say(format_args!("{} entries", if listing.entries.is_empty() { "no" } else { "some" }))
        }
        Err(e) => say(e),
    }
}

/// Follows and says every event.
async fn follow(store: Arc<SqliteStore>) {
    let mut stream = brindle_config::sync::follow(store, [Kind::BgpPeer]);
    while let Ok(Some(events)) = tokio::time::timeout(Duration::from_secs(120), stream.recv()).await {
        for event in events {
            match event {
                SyncEvent::Upsert(e) => say(format_args!("+{} {}", e.key.name, number(&e.value))),
                SyncEvent::Delete(k) => say(format_args!("-{}", k.name)),
                SyncEvent::InSync => say("in-sync"),
            }
        }
    }
}
