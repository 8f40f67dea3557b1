//! The cache and its readers, without a server.

use brindle_config_core::Kind;
use serde_json::json;

use super::*;

fn entry(name: &str, revision: u64, value: u64) -> Entry {
    let key = Key::new(Kind::Node, None, name);
    Entry { key, revision: Revision(revision), value: Arc::new(json!({"v": value})) }
}

fn key(name: &str) -> Key {
    Key::new(Kind::Node, None, name)
}

fn list(shared: &Shared, entries: &[Entry]) {
    shared.begin_listing();
    entries.iter().for_each(|e| shared.listed(e.clone(), false));
    shared.end_listing(Revision(99));
}

/// What a reader is told now, as `+name=value` and `-name`.
async fn told(readers: &mut Readers) -> Vec<String> {
    let events = readers.next().await.expect("never fails");
    let show = |event: SyncEvent| match event {
        SyncEvent::Upsert(e) => format!("+{}={}", e.key.name, e.value["v"]),
        SyncEvent::Delete(key) => format!("-{}", key.name),
        SyncEvent::InSync => "sync".into(),
    };
    events.into_iter().map(show).collect()
}

fn setup() -> (Arc<Reflector>, Readers) {
    let reflector = Arc::new(Reflector::idle());
    let readers = Readers::new(vec![Arc::clone(&reflector)]);
    (reflector, readers)
}

#[tokio::test]
async fn a_reader_is_told_the_snapshot_and_then_each_difference_once() {
    let (r, mut readers) = setup();
    assert!(!r.shared().in_sync());
    list(r.shared(), &[entry("a", 1, 1), entry("b", 2, 1)]);
    assert_eq!(told(&mut readers).await, ["+a=1", "+b=1", "sync"]);
    r.shared().written(entry("a", 3, 2), false);
    r.shared().written(entry("a", 4, 3), false);
    r.shared().deleted(key("b"), Revision(5));
    assert_eq!(told(&mut readers).await, ["+a=3", "-b"], "only what is so now");
    r.shared().written(entry("a", 6, 3), false);
    r.shared().written(entry("c", 7, 1), false);
    assert_eq!(told(&mut readers).await, ["+c=1"], "a write that no resource shows is no news");
    r.shared().written(entry("c", 8, 1), true);
    assert_eq!(told(&mut readers).await, ["+c=1"], "unless revisions count");
}

#[tokio::test]
async fn what_came_and_went_between_two_readings_is_not_told() {
    let (r, mut readers) = setup();
    list(r.shared(), &[entry("a", 1, 1)]);
    assert_eq!(told(&mut readers).await, ["+a=1", "sync"]);
    r.shared().written(entry("x", 2, 1), false);
    r.shared().deleted(key("x"), Revision(3));
    r.shared().deleted(key("never"), Revision(3));
    r.shared().deleted(key("a"), Revision(4));
    r.shared().written(entry("a", 5, 1), false);
    assert_eq!(told(&mut readers).await, ["+a=1"]);
}

#[tokio::test]
async fn a_new_listing_tells_the_differences_and_no_second_sync() {
    let (r, mut readers) = setup();
    list(r.shared(), &[entry("a", 1, 1), entry("b", 2, 1), entry("c", 3, 1)]);
    assert_eq!(told(&mut readers).await.len(), 4);
    // Two objects of one resource: the newer one counts in whatever order they come.
    list(r.shared(), &[entry("b", 9, 2), entry("b", 8, 1), entry("c", 4, 1)]);
    assert_eq!(told(&mut readers).await, ["+b=2", "-a"]);
    let mut late = Readers::new(vec![Arc::clone(&r)]);
    assert_eq!(
        told(&mut late).await,
        ["+c=1", "+b=2", "sync"],
        "a later reader never hears of what was deleted"
    );
}

#[tokio::test]
async fn marks_of_deleted_objects_go_when_everybody_has_read_them() {
    let (r, mut fast) = setup();
    let mut slow = Readers::new(vec![Arc::clone(&r)]);
    list(r.shared(), &[entry("a", 1, 1), entry("b", 2, 1)]);
    assert_eq!(told(&mut fast).await.len(), 3);
    assert_eq!(told(&mut slow).await.len(), 3);
    r.shared().deleted(key("a"), Revision(3));
    assert_eq!(told(&mut fast).await, ["-a"]);
    assert_eq!(r.shared().held().items.len(), 2, "one has not read it");
    assert_eq!(told(&mut slow).await, ["-a"]);
    assert_eq!(r.shared().held().items.len(), 1);
    assert_eq!(r.shared().held().numbers.len(), 1);
    r.shared().deleted(key("b"), Revision(4));
    drop((fast, slow));
    assert_eq!(r.shared().held().items.len(), 0, "nor does who has gone hold it");
}

#[tokio::test]
async fn a_deletion_is_told_once_to_each_who_knew_the_object() {
    let (r, mut fast) = setup();
    let mut slow = Readers::new(vec![Arc::clone(&r)]);
    list(r.shared(), &[entry("a", 1, 1), entry("z", 1, 1)]);
    assert_eq!(told(&mut fast).await.len(), 3);
    assert_eq!(told(&mut slow).await.len(), 3);
    for round in 1..50 {
        r.shared().deleted(key("a"), Revision(round * 3));
        if round == 1 {
            assert_eq!(told(&mut fast).await, ["-a"]);
        }
        r.shared().written(entry("a", round * 3 + 1, round), false);
    }
    r.shared().deleted(key("a"), Revision(999));
    assert_eq!(
        r.shared().held().before.values().map(Vec::len).sum::<usize>(),
        1,
        "of each life only who knows it"
    );
    r.shared().written(entry("z", 1000, 2), false);
    assert_eq!(told(&mut fast).await, ["+z=2"], "what it was told is gone stays gone");
    assert_eq!(told(&mut slow).await, ["-a", "+z=2"], "it knew the first");
    let objects = r.shared().held();
    assert_eq!((objects.before.len(), objects.marks.len(), objects.items.len()), (0, 0, 1));
}

#[tokio::test]
async fn a_reader_that_stands_still_or_goes_holds_up_nobody() {
    let (r, mut readers) = setup();
    let stuck = Readers::new(vec![Arc::clone(&r)]);
    let many: Vec<Entry> = (0..500).map(|n| entry(&format!("n{n:03}"), n + 1, n)).collect();
    list(r.shared(), &many);
    let mut all = Vec::new();
    while all.last().is_none_or(|l| l != "sync") {
        all.extend(told(&mut readers).await);
    }
    for n in 0..500 {
        r.shared().written(entry("n000", 1000 + n, n + 1), false);
    }
    assert_eq!(told(&mut readers).await, ["+n000=500"]);
    assert_eq!(r.shared().held().items.len(), 500, "what one has not read takes no room");
    // A reading that is given up half-way loses nothing.
    {
        let mut next = readers.next();
        assert!(futures::FutureExt::now_or_never(&mut next).is_none());
    }
    drop(stuck);
    r.shared().deleted(key("n001"), Revision(3000));
    assert_eq!(told(&mut readers).await, ["-n001"]);
    assert_eq!(r.shared().held().marks.len(), 0);
}

#[tokio::test]
async fn what_moves_or_goes_while_a_snapshot_is_told_is_told_once() {
    let (r, mut readers) = setup();
    let many: Vec<Entry> = (0..200).map(|n| entry(&format!("n{n:03}"), n + 1, n)).collect();
    list(r.shared(), &many);
    assert_eq!(told(&mut readers).await.len(), BATCH);
    // One it was told of and one it was not, changed and then deleted; one it was told of goes, comes and goes again.
    for name in ["n001", "n150"] {
        r.shared().written(entry(name, 300, 1000), false);
    }
    assert_eq!(told(&mut readers).await.len(), BATCH);
    for (n, name) in ["n001", "n150", "n002"].into_iter().enumerate() {
        r.shared().deleted(key(name), Revision(400 + n as u64));
    }
    let mut rest = Vec::new();
    while rest.last().is_none_or(|l| l != "sync") {
        rest.extend(told(&mut readers).await);
    }
    let deleted: Vec<_> = rest.iter().filter(|t| t.starts_with('-')).collect();
    assert_eq!(deleted, ["-n001", "-n002"], "{rest:?}");
    assert!(!rest.iter().any(|t| t.starts_with("+n150")));
    r.shared().written(entry("n002", 500, 1), false);
    r.shared().deleted(key("n002"), Revision(501));
    r.shared().written(entry("n003", 502, 1), false);
    assert_eq!(told(&mut readers).await, ["+n003=1"]);
    assert!(readers.readers[0].since.is_empty());
}

/// Compares what a reader made of what it was told with what it should know, and that it was told only differences.
async fn hear(readers: &mut Readers, seen: &mut BTreeMap<String, u64>) {
    let events = futures::FutureExt::now_or_never(readers.next());
    for event in events.into_iter().flat_map(|e| e.expect("never fails")) {
        match event {
            SyncEvent::Upsert(e) => {
                let value = e.value["v"].as_u64().expect("a number");
                assert_ne!(seen.insert(e.key.name, value), Some(value), "told twice");
            }
            SyncEvent::Delete(key) => assert!(seen.remove(&key.name).is_some(), "{key} was not known"),
            SyncEvent::InSync => {}
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn every_reader_comes_to_know_what_is_by_differences_alone(
        steps in proptest::collection::vec((0u8..10, 0u64..160), 1..600)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (r, mut a) = setup();
            let mut b = Readers::new(vec![Arc::clone(&r)]);
            let (mut knows_a, mut knows_b) = (BTreeMap::new(), BTreeMap::new());
            let mut truth = BTreeMap::new();
            let first: Vec<Entry> = (0..150).map(|n| entry(&n.to_string(), 1, 0)).collect();
            list(r.shared(), &first);
            truth.extend((0..150u64).map(|n| (n.to_string(), 0)));
            for (n, (what, of)) in steps.into_iter().enumerate() {
                let (at, name) = (n as u64 + 2, of.to_string());
                match what {
                    0..4 => {
                        r.shared().written(entry(&name, at, at), false);
                        truth.insert(name, at);
                    }
                    4..7 => {
                        r.shared().deleted(key(&name), Revision(at));
                        truth.remove(&name);
                    }
                    7 => hear(&mut a, &mut knows_a).await,
                    8 => hear(&mut b, &mut knows_b).await,
                    _ if of < 4 => {
                        truth.retain(|name, _| name.len() % 2 == of as usize % 2);
                        let all: Vec<Entry> = truth.iter().map(|(name, v)| entry(name, at, *v)).collect();
                        list(r.shared(), &all);
                    }
                    _ => {}
                }
            }
            for _ in 0..10 {
                hear(&mut a, &mut knows_a).await;
                hear(&mut b, &mut knows_b).await;
            }
            assert_eq!((&knows_a, &knows_b), (&truth, &truth));
            let objects = r.shared().held();
            assert_eq!((objects.items.len(), objects.marks.len(), objects.before.len()), (truth.len(), 0, 0));
        });
    }
}

#[tokio::test]
async fn a_long_snapshot_comes_in_pieces_and_is_visited_whole() {
    let (r, mut readers) = setup();
    let many: Vec<Entry> = (0..1000).map(|n| entry(&format!("n{n:04}"), n + 1, n)).collect();
    list(r.shared(), &many);
    let mut all = Vec::new();
    while all.last().is_none_or(|l| l != "sync") {
        let batch = told(&mut readers).await;
        assert!(batch.len() <= BATCH);
        all.extend(batch);
    }
    assert_eq!(all.len(), 1001);
    let mut seen = Vec::new();
    r.shared().visit(&mut |e| seen.push(e));
    assert_eq!(seen, many);
}

#[tokio::test]
async fn readers_are_told_when_nobody_fills_the_cache_any_more() {
    let (r, mut readers) = setup();
    let mut late = Readers::new(vec![Arc::clone(&r)]);
    list(r.shared(), &[entry("a", 1, 1)]);
    assert_eq!(told(&mut readers).await, ["+a=1", "sync"]);
    let (filling, waits) =
        (Filling(Arc::clone(r.shared())), tokio::spawn(async move { readers.next().await }));
    let died = tokio::spawn(async move {
        let _filling = filling;
        panic!("as a defect would");
    });
    assert!(died.await.is_err());
    let why = waits.await.unwrap().expect_err("it does not wait for ever");
    assert!(why.to_string().contains("ended with a defect"), "{why}");
    assert!(late.next().await.is_err(), "nor one that comes late");
}
