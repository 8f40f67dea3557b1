//! The suite every datastore passes: what `brindle_config_core::store` promises, checked from outside. Test code that
//! other packages and later back ends may call; it panics with the name of the promise that was broken.
//!
//! The checks use kinds and values that a strict server accepts, compare specs only (a server may add metadata), and
//! wait for what must happen instead of sleeping. A store that knows namespaces must have `one` and `two`.

mod checks;
mod watching;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use brindle_config_core::{
    Key, Kind,
    store::{Change, Entry, Store},
};
use serde_json::{Value, json};

type Pending<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A fresh, empty datastore under test.
pub struct Subject {
    /// Gives another handle (connection, client) on the same data.
    pub handle: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    /// Makes the datastore forget its history. A server that cannot be told to has none: what a watch does then is not
    /// checked, and the run says so.
    pub compact: Option<Forget>,
}

/// See [`Subject::compact`].
pub type Forget = Box<dyn Fn() -> Pending<'static> + Send + Sync>;

impl Subject {
    fn store(&self) -> Arc<dyn Store> {
        (self.handle)()
    }
}

/// Runs all checks, each on a fresh subject.
pub async fn run(fresh: impl Fn() -> Subject) {
    macro_rules! run {
        ($($module:ident :: $check:ident),* $(,)?) => {$(
            let done = tokio::time::timeout(Duration::from_secs(60), $module::$check(fresh())).await;
            assert!(done.is_ok(), "{} did not end within 60 s", stringify!($check));
        )*};
    }
    run!(
        checks::what_does_not_exist_is_not_found,
        checks::creating_twice_is_refused,
        checks::a_write_needs_the_last_revision,
        checks::any_creates_and_overwrites,
        checks::a_delete_keeps_to_its_expectation,
        checks::a_recreated_key_has_a_newer_revision,
        checks::a_listing_is_in_key_order_and_of_the_asked_kinds,
        checks::namespaces_keep_names_apart,
        checks::another_handle_sees_a_write_at_once,
        checks::concurrent_increments_lose_nothing,
        checks::one_of_many_creators_wins,
        checks::values_come_back_as_they_went,
        watching::a_watch_sees_every_change_once_and_in_order,
        watching::a_watch_replays_from_an_old_revision,
        watching::a_watch_keeps_to_its_kinds,
        watching::listing_and_watch_leave_no_gap,
        watching::a_dropped_wait_loses_nothing,
        watching::a_compacted_revision_is_refused,
        watching::an_up_to_date_watch_survives_compaction,
        watching::two_watches_are_independent,
    );
}

fn pool(name: &str) -> Key {
    Key::new(Kind::IpPool, None, name)
}

fn peer(name: &str) -> Key {
    Key::new(Kind::BgpPeer, None, name)
}

/// A valid value for `key` that carries `n`.
fn value(key: &Key, n: u32) -> Value {
    let spec = match key.kind {
        // All that a server fills in by Calico's definitions is there already: what is written comes back as it is.
        Kind::IpPool => json!({"cidr": format!("10.{}.{}.0/24", n / 256 % 256, n % 256), "blockSize": 26,
            "assignmentMode": "Automatic", "nodeSelector": "all()"}),
        Kind::NetworkSet => json!({"nets": [format!("10.{}.{}.0/24", n / 256 % 256, n % 256)]}),
        _ => json!({"peerIP": "192.0.2.1", "asNumber": n}),
    };
    let mut metadata = json!({"name": key.name});
    if !key.namespace.is_empty() {
        metadata["namespace"] = json!(key.namespace);
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": key.kind.as_str(), "metadata": metadata, "spec": spec})
}

/// The number [`value`] carries (for peers).
fn number(entry: &Entry) -> u32 {
    u32::try_from(entry.value["spec"]["asNumber"].as_u64().expect("a number was stored"))
        .expect("it is small")
}

/// One change, without what differs between stores.
#[derive(Debug, PartialEq)]
enum Seen {
    Put(Key, Value),
    Delete(Key),
}

fn seen(change: &Change) -> Seen {
    match change {
        Change::Put(e) => Seen::Put(e.key.clone(), e.value["spec"].clone()),
        Change::Delete { key, .. } => Seen::Delete(key.clone()),
    }
}
