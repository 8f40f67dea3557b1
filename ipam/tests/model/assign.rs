//! Who gets an address from where, and what is said when nobody does.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::sim::{SimStore, run};
use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    ipam::{AffinityState, BlockAffinitySpec, IpamBlockSpec, IpamConfigSpec, IpamHandleSpec},
    node::NodeSpec,
    pool::{AllowedUse, AssignmentMode, IpPoolSpec, IpReservationSpec},
    store::{Expect, Store as _, StoreExt},
};
use brindle_ipam::{
    Allocator, AssignRequest, Assignment, BlockAllocator, IpamError, NoPause, Now, Owner, Release, View,
    Wanted, audit::audit, idle::Idle, usage::Blocks,
};

const NOW: Now = Now(1_795_400_607_000_000_000);
const LATER: Now = Now(NOW.0 + 61_000_000_000);

struct Host {
    store: SimStore,
    name: String,
    allocator: BlockAllocator,
}

impl Host {
    fn new(store: &SimStore, name: &str) -> Self {
        let allocator = BlockAllocator::new(Arc::new(store.clone()), name, Arc::new(NoPause));
        Self { store: store.clone(), name: name.into(), allocator }
    }

    fn view(&self) -> View {
        run(View::load(&self.store, &self.name)).unwrap()
    }

    fn owner(&self, handle: &str) -> Owner {
        Owner { handle: handle.into(), attributes: BTreeMap::from([("node".into(), self.name.clone())]) }
    }

    fn ask(&mut self, request: &AssignRequest, now: Now) -> Assignment {
        let view = self.view();
        run(self.allocator.assign(request, &view, now)).unwrap()
    }

    fn pod(&mut self, handle: &str, n: usize) -> Assignment {
        self.ask(&AssignRequest::for_workload(self.owner(handle), Wanted::any(n), Wanted::default()), NOW)
    }

    fn pod_in(&mut self, handle: &str, pool: &str) -> Assignment {
        let wanted = Wanted { count: 1, pools: vec![pool.into()] };
        self.ask(&AssignRequest::for_workload(self.owner(handle), wanted, Wanted::default()), NOW)
    }

    fn release(&mut self, handle: &str) -> Vec<IpAddr> {
        let view = self.view();
        run(self.allocator.release_handle(handle, &view, NOW)).unwrap()
    }
}

fn pool(store: &SimStore, name: &str, cidr: &str, change: impl FnOnce(&mut IpPoolSpec)) {
    let mut spec = IpPoolSpec::new(cidr.parse().unwrap());
    change(&mut spec);
    store.insert(Resource::new(ObjectMeta::named(name), spec));
}

fn config(store: &SimStore, change: impl FnOnce(&mut IpamConfigSpec)) {
    let mut spec = IpamConfigSpec::default();
    change(&mut spec);
    store.insert(Resource::new(ObjectMeta::named("default"), spec));
}

fn refusal(given: &Assignment) -> String {
    given.refusal().map(ToString::to_string).unwrap_or_default()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

#[test]
fn a_warm_assignment_is_two_writes_and_a_release_two_and_a_read() {
    let store = SimStore::with_pool("10.0.0.0/24", 26);
    let mut host = Host::new(&store, "n0");
    host.pod("a", 1);
    let view = host.view();
    let request = AssignRequest::for_workload(host.owner("b"), Wanted::any(1), Wanted::default());
    let before = (store.reads(), store.writes());
    run(host.allocator.assign(&request, &view, NOW)).unwrap();
    assert_eq!((store.reads() - before.0, store.writes() - before.1), (0, 2), "handle, block");
    let before = (store.reads(), store.writes());
    run(host.allocator.release_handle("b", &view, NOW)).unwrap();
    // The second read finds that the handle is gone.
    assert_eq!((store.reads() - before.0, store.writes() - before.1), (2, 2), "block, handle");
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn a_full_pool_says_what_was_tried() {
    let store = SimStore::with_pool("10.0.0.0/30", 31);
    let (mut a, mut b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    assert_eq!(a.pod("a1", 4).addresses.len(), 4);
    let none = b.pod("b1", 1);
    assert!(none.addresses.is_empty());
    assert!(none.refusal().unwrap().exhausted());
    assert_eq!(
        refusal(&none),
        "no free block in pool pool-10-0-0-0-30 (2 in all); no other node's block has a free address"
    );
    let short = a.pod("a2", 1);
    assert!(
        refusal(&short).starts_with("the node's 2 blocks are full; no free block"),
        "{}",
        refusal(&short)
    );
    a.release("a1");
    assert_eq!(b.pod("b2", 1).addresses.len(), 1);
}

#[test]
fn a_short_answer_carries_both_addresses_and_reason() {
    let store = SimStore::with_pool("10.0.0.0/30", 31);
    let given = Host::new(&store, "a").pod("a1", 6);
    assert_eq!(given.addresses.len(), 4);
    assert!(given.v4_refusal.is_some());
    assert!(given.v6_refusal.is_none());
}

#[test]
fn an_address_is_borrowed_when_no_block_is_left_and_returns_to_its_lender() {
    let store = SimStore::with_pool("10.0.0.0/29", 30);
    let (mut a, mut b, mut c) = (Host::new(&store, "a"), Host::new(&store, "b"), Host::new(&store, "c"));
    a.pod("a1", 1);
    b.pod("b1", 1);
    let lent = c.pod("c1", 1);
    assert!(matches!(lent.addresses[0].borrowed_from.as_deref(), Some("a" | "b")), "{lent:?}");
    assert_eq!(audit(&store.everything()), []);
    assert_eq!(c.release("c1"), [lent.addresses[0].ip]);
    config(&store, |c| c.strict_affinity = true);
    assert!(refusal(&c.pod("c2", 1)).ends_with("not borrowed from other nodes (strictAffinity)"));
}

#[test]
fn a_host_at_its_limit_of_blocks_borrows_rather_than_fails() {
    let store = SimStore::with_pool("10.0.0.0/24", 30);
    config(&store, |c| c.max_blocks_per_host = 1);
    let (mut a, mut b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    b.pod("b1", 1);
    assert_eq!(a.pod("a1", 5).addresses.len(), 5, "four of its own, one of b's");
    config(&store, |c| {
        c.max_blocks_per_host = 1;
        c.strict_affinity = true;
    });
    let none = a.pod("a2", 1);
    assert!(refusal(&none).contains("limit of 1 blocks (maxBlocksPerHost)"), "{}", refusal(&none));
    config(&store, |c| c.auto_allocate_blocks = false);
    let none = Host::new(&store, "fresh").pod_in("f", "10.0.0.0/24");
    assert_eq!(none.addresses.len(), 1, "borrowed");
}

#[test]
fn an_unused_block_of_another_host_is_taken_over_after_a_minute() {
    let store = SimStore::with_pool("10.0.0.0/31", 31);
    config(&store, |c| c.strict_affinity = true);
    let (mut a, mut b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    a.pod("a1", 1);
    a.release("a1");
    let request = AssignRequest::for_workload(b.owner("b1"), Wanted::any(1), Wanted::default());
    assert!(b.ask(&request, NOW).addresses.is_empty(), "claimed a moment ago");
    assert_eq!(b.ask(&request, LATER).addresses.len(), 1);
    // The former owner still remembers the block, and finds out when it writes.
    assert!(a.pod("a2", 1).addresses.is_empty());
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn addresses_whose_cooldown_is_over_serve_every_host() {
    for kept in [0, 1] {
        let store = SimStore::with_pool("10.0.0.0/30", 30);
        config(&store, |c| c.ip_cooldown_seconds = Some(60));
        let (mut a, mut b) = (Host::new(&store, "a"), Host::new(&store, "b"));
        assert_eq!(a.pod("net.keep", kept).addresses.len(), kept);
        assert_eq!(a.pod("net.gone", 4 - kept).addresses.len(), 4 - kept);
        a.release("net.gone");
        let request = |b: &Host| {
            AssignRequest::for_workload(b.owner("net.b"), Wanted::any(4 - kept), Wanted::default())
        };
        let asked = request(&b);
        assert_eq!(b.ask(&asked, NOW).addresses.len(), 0, "they cool down");
        // The block is taken over when nobody has an address in it, otherwise its addresses are borrowed.
        let given = b.ask(&asked, LATER);
        assert_eq!(given.refusal(), None);
        let lender = (kept > 0).then_some("a");
        assert!(given.addresses.iter().all(|g| g.borrowed_from.as_deref() == lender), "{given:?}");
        assert_eq!(audit(&store.everything()), []);
    }
}

#[test]
fn pools_are_chosen_by_request_then_by_selectors_and_uses() {
    let store = SimStore::default();
    pool(&store, "east", "10.1.0.0/24", |p| p.node_selector = "zone == 'east'".into());
    pool(&store, "west", "10.2.0.0/24", |p| p.node_selector = "zone == 'west'".into());
    pool(&store, "manual", "10.3.0.0/24", |p| p.assignment_mode = AssignmentMode::Manual);
    pool(&store, "off", "10.4.0.0/24", |p| p.disabled = true);
    pool(&store, "lb", "10.5.0.0/24", |p| p.allowed_uses = vec![AllowedUse::LoadBalancer]);
    pool(&store, "odd", "10.6.0.0/24", |p| p.block_size_raw = Some(16));
    let labels = BTreeMap::from([("zone".to_owned(), "west".to_owned())]);
    store.insert(Resource::new(ObjectMeta { labels, ..ObjectMeta::named("n0") }, NodeSpec::default()));
    let mut host = Host::new(&store, "n0");
    assert_eq!(host.pod("a", 1).addresses[0].pool, "west");
    assert_eq!(host.pod_in("b", "east").addresses[0].pool, "east", "asked for by name");
    assert_eq!(host.pod_in("c", "10.3.0.0/24").addresses[0].pool, "manual", "asked for by CIDR");
    assert_eq!(refusal(&host.pod_in("d", "off")), "pool off is disabled");
    assert_eq!(
        refusal(&host.pod_in("d", "nowhere")),
        "the given pool (nowhere) does not exist, or is not enabled"
    );
    assert_eq!(refusal(&host.pod_in("d", "lb")), "pool lb is not for Workload addresses");
    assert_eq!(refusal(&host.pod_in("d", "odd")), "pool odd cannot be divided into blocks of /16");
    assert_eq!(
        refusal(&Host::new(&store, "elsewhere").pod("e", 1)),
        "pool east does not select node elsewhere (nodeSelector \"zone == 'east'\"); \
         pool manual is given on request only (assignmentMode Manual); pool off is disabled; \
         pool west does not select node elsewhere (nodeSelector \"zone == 'west'\"); \
         pool lb is not for Workload addresses; pool odd cannot be divided into blocks of /16"
    );
}

#[test]
fn no_pool_at_all_is_said_plainly() {
    let store = SimStore::default();
    assert_eq!(refusal(&Host::new(&store, "n0").pod("a", 1)), "no IP pool is configured");
    pool(&store, "six", "fd00::/64", |_| {});
    assert_eq!(refusal(&Host::new(&store, "n0").pod("a", 1)), "no IPv4 pool is configured");
}

#[test]
fn a_namespace_selector_asks_the_namespace() {
    let store = SimStore::default();
    pool(&store, "team", "10.1.0.0/24", |p| p.namespace_selector = "projectcalico.org/name == 'team'".into());
    let mut host = Host::new(&store, "n0");
    assert!(refusal(&host.pod("a", 1)).contains("does not select the namespace"));
    let mut request = AssignRequest::for_workload(host.owner("a"), Wanted::any(1), Wanted::default());
    request.namespace_labels = Some([("projectcalico.org/name".to_owned(), "team".to_owned())].into());
    assert_eq!(host.ask(&request, NOW).addresses.len(), 1);
}

#[test]
fn reserved_addresses_are_given_only_by_name() {
    let store = SimStore::with_pool("10.0.0.0/29", 30);
    let reserved = IpReservationSpec {
        reserved_cidrs: vec!["10.0.0.0/30".parse().unwrap(), "10.0.0.4/32".parse().unwrap()],
        ..IpReservationSpec::default()
    };
    store.insert(Resource::new(ObjectMeta::named("r"), reserved));
    let mut host = Host::new(&store, "n0");
    let ips: Vec<IpAddr> = host.pod("a", 8).addresses.iter().map(|a| a.ip).collect();
    assert_eq!(ips, [ip("10.0.0.5"), ip("10.0.0.6"), ip("10.0.0.7")]);
    let view = host.view();
    let owner = host.owner("b");
    run(host.allocator.assign_ip(ip("10.0.0.4"), &owner, AllowedUse::Workload, &view, NOW)).unwrap();
    run(host.allocator.assign_ip(ip("10.0.0.1"), &owner, AllowedUse::Workload, &view, NOW)).unwrap();
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn a_pool_that_is_reserved_says_so() {
    let reserve = |store: &SimStore, cidrs: &[&str]| {
        let reserved_cidrs = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        let spec = IpReservationSpec { reserved_cidrs, ..IpReservationSpec::default() };
        store.insert(Resource::new(ObjectMeta::named("r"), spec));
    };
    // By one that covers it, and by two that together do.
    for cidrs in [&["10.0.0.0/16"][..], &["10.0.0.0/30", "10.0.0.4/30", "10.0.0.5/32"]] {
        let store = SimStore::with_pool("10.0.0.0/29", 30);
        reserve(&store, cidrs);
        let given = Host::new(&store, "n0").pod("a", 1);
        let said = refusal(&given);
        assert!(
            said.starts_with(
                "pool pool-10-0-0-0-29 is reserved as a whole (IPReservation): its addresses are given on request only"
            ),
            "{said}"
        );
        assert!(given.refusal().is_some_and(|r| r.exhausted() && r.reserved()));
    }
    let store = SimStore::with_pool("10.0.0.0/29", 30);
    reserve(&store, &["10.0.0.0/30"]);
    let given = Host::new(&store, "n0").pod("a", 5);
    assert_eq!(given.addresses.len(), 4);
    let said = refusal(&given);
    assert!(
        said.contains(
            "no free block in pool pool-10-0-0-0-29 (2 in all; IPReservations keep 4 of its addresses)"
        ),
        "{said}"
    );
}

#[test]
fn a_given_address_is_assigned_once_and_its_holder_named() {
    let store = SimStore::with_pool("10.0.0.0/24", 26);
    let (mut a, mut b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    let view = a.view();
    let want = |h: &mut Host, handle: &str, addr: &str| {
        let owner = h.owner(handle);
        run(h.allocator.assign_ip(ip(addr), &owner, AllowedUse::Workload, &view, NOW))
    };
    assert_eq!(want(&mut a, "x", "10.0.0.70").unwrap().borrowed_from, None);
    assert_eq!(want(&mut b, "y", "10.0.0.71").unwrap().borrowed_from.as_deref(), Some("a"));
    let taken = want(&mut b, "z", "10.0.0.70").unwrap_err();
    assert_eq!(taken.to_string(), "10.0.0.70 is already assigned to handle x");
    let outside = want(&mut b, "z", "192.0.2.1").unwrap_err();
    assert_eq!(outside.to_string(), "no address: the provided IP address is not in a configured pool");
    assert_eq!(audit(&store.everything()), []);
    config(&store, |c| c.strict_affinity = true);
    let view = b.view();
    let owner = b.owner("z");
    let foreign =
        run(b.allocator.assign_ip(ip("10.0.0.72"), &owner, AllowedUse::Workload, &view, NOW)).unwrap_err();
    assert_eq!(foreign.to_string(), "no address: block 10.0.0.64/26 belongs to node a");
}

#[test]
fn guarded_releases_spare_the_new_owner() {
    let store = SimStore::with_pool("10.0.0.0/30", 30);
    let mut host = Host::new(&store, "a");
    let ip = host.pod("old", 1).addresses[0].ip;
    host.release("old");
    let view = host.view();
    let owner = host.owner("new");
    run(host.allocator.assign_ip(ip, &owner, AllowedUse::Workload, &view, NOW)).unwrap();
    let late = [Release { ip, handle: Some("old".into()), sequence: None }];
    let e = run(host.allocator.release_ips(&late, &view, NOW)).unwrap_err();
    assert!(matches!(e, IpamError::Stale(_)), "{e}");
    assert_eq!(run(host.allocator.by_handle("new")).unwrap(), [ip]);
    let right = [Release::of(ip), Release::of("192.0.2.9".parse().unwrap())];
    let report = run(host.allocator.release_ips(&right, &view, NOW)).unwrap();
    assert_eq!((report.released, report.unallocated), (vec![ip], vec!["192.0.2.9".parse().unwrap()]));
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn both_families_are_served_and_ipv6_pools_may_be_huge() {
    let store = SimStore::with_pool("10.0.0.0/24", 26);
    pool(&store, "six", "fd00:1::/48", |_| {});
    let mut host = Host::new(&store, "n0");
    let request = AssignRequest::for_workload(host.owner("a"), Wanted::any(1), Wanted::any(1));
    let given = host.ask(&request, NOW);
    assert_eq!(given.addresses.len(), 2);
    assert!(given.addresses[1].ip.is_ipv6());
    assert_eq!(given.addresses[1].block.prefix_len(), 122);
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn a_changed_block_size_never_makes_overlapping_blocks() {
    let store = SimStore::default();
    pool(&store, "p", "10.0.0.0/26", |p| p.block_size_raw = Some(28));
    let mut a = Host::new(&store, "a");
    a.pod("a1", 1);
    pool(&store, "p", "10.0.0.0/26", |p| p.block_size_raw = Some(27));
    let mut b = Host::new(&store, "b");
    let given = b.pod("b1", 64);
    assert_eq!(audit(&store.everything()), []);
    // One free /27, and 15 addresses borrowed from the old /28; the other old /28's space cannot be used.
    assert_eq!(given.addresses.len(), 47);
    let view = b.view();
    let owner = b.owner("b2");
    let old = a.allocator.own_blocks().next().unwrap();
    let wanted = run(a.allocator.by_handle("a1")).unwrap()[0];
    let e = run(b.allocator.assign_ip(wanted, &owner, AllowedUse::Workload, &view, NOW)).unwrap_err();
    assert!(matches!(e, IpamError::Assigned { .. }), "{e}: found in {old}");
}

#[test]
fn a_block_that_does_not_read_keeps_its_place() {
    let store = SimStore::with_pool("10.0.0.0/31", 32);
    let mut bad = Resource::new(
        ObjectMeta::named("10-0-0-0-32"),
        serde_json::from_value::<IpamBlockSpec>(serde_json::json!({
            "cidr": "10.0.0.0/32", "allocations": [], "unallocated": [0], "attributes": []
        }))
        .unwrap(),
    );
    bad.metadata.labels.insert("mine".into(), "keep".into());
    store.insert(bad);
    let given = Host::new(&store, "n0").pod("a", 2);
    assert_eq!(given.addresses.iter().map(|a| a.ip).collect::<Vec<_>>(), [ip("10.0.0.1")]);
}

#[test]
fn half_finished_claims_and_releases_are_settled_at_the_first_reading() {
    let store = SimStore::with_pool("10.0.0.0/28", 30);
    let affinity = |block: &str, state| {
        let name = format!("n0-{}", block.replace(['.', '/'], "-"));
        Resource::new(
            ObjectMeta::named(name),
            BlockAffinitySpec {
                state,
                node: "n0".into(),
                affinity_type: "host".into(),
                cidr: block.parse().unwrap(),
                deleted: false,
                extra: BTreeMap::new(),
            },
        )
    };
    // Other hosts' blocks, so that n0's claims below meet every combination.
    let mut other = Host::new(&store, "other");
    let view = other.view();
    let owner = other.owner("o");
    run(other.allocator.assign_ip(ip("10.0.0.0"), &owner, AllowedUse::Workload, &view, NOW)).unwrap();
    let mut n0 = Host::new(&store, "n0");
    let owner = n0.owner("p");
    run(n0.allocator.assign_ip(ip("10.0.0.4"), &owner, AllowedUse::Workload, &view, NOW)).unwrap();
    run(n0.allocator.assign_ip(ip("10.0.0.8"), &owner, AllowedUse::Workload, &view, NOW)).unwrap();
    let eight = [Release::of(ip("10.0.0.8"))];
    run(n0.allocator.release_ips(&eight, &view, NOW)).unwrap();
    store.insert(affinity("10.0.0.0/30", AffinityState::Pending)); // lost to `other`
    store.insert(affinity("10.0.0.4/30", AffinityState::PendingDeletion)); // in use: kept
    store.insert(affinity("10.0.0.8/30", AffinityState::PendingDeletion)); // empty: released
    store.insert(affinity("10.0.0.12/30", AffinityState::Pending)); // block never created
    let mut again = Host::new(&store, "n0");
    run(again.allocator.reload(&view)).unwrap();
    assert_eq!(again.allocator.own_blocks().collect::<Vec<_>>(), ["10.0.0.4/30".parse().unwrap()]);
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn an_empty_block_goes_back_when_its_pool_no_longer_selects_the_node() {
    let store = SimStore::default();
    pool(&store, "p", "10.0.0.0/24", |_| {});
    let mut host = Host::new(&store, "n0");
    host.pod("a", 1);
    host.release("a");
    pool(&store, "p", "10.0.0.0/24", |p| p.node_selector = "zone == 'west'".into());
    let view = host.view();
    run(host.allocator.reload(&view)).unwrap();
    assert_eq!(host.allocator.own_blocks().count(), 0);
    assert!(store.everything().is_empty());
}

#[test]
fn a_block_goes_with_its_last_address_when_its_pool_is_gone() {
    for cooldown in [None, Some(60)] {
        let store = SimStore::with_pool("10.0.0.0/24", 26);
        config(&store, |c| c.ip_cooldown_seconds = cooldown);
        let (mut a, mut b) = (Host::new(&store, "a"), Host::new(&store, "b"));
        a.pod("net.1", 1);
        a.pod("net.2", 1);
        b.pod("net.3", 1);
        a.release("net.1");
        run(store.delete(&Key::new(Kind::IpPool, None, "pool-10-0-0-0-24"), Expect::Any)).unwrap();
        assert_eq!(store.everything().iter().filter(|e| e.key.kind == Kind::IpamBlock).count(), 2);
        a.release("net.2");
        assert_eq!(a.allocator.own_blocks().count(), 0);
        // Whoever releases it.
        a.release("net.3");
        let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
        assert!(!store.everything().iter().any(|e| kinds.contains(&e.key.kind)), "{cooldown:?}");
    }
}

#[test]
fn blocks_that_stay_empty_go_back_but_one_of_each_pool() {
    const GRACE: u64 = 900;
    let store = SimStore::with_pool("10.0.0.0/24", 30);
    pool(&store, "other", "10.1.0.0/24", |_| {});
    let mut a = Host::new(&store, "a");
    for (handle, count) in [("net.keep", 1), ("net.gone", 11)] {
        let wanted = Wanted { count, pools: vec!["10.0.0.0/24".into()] };
        let asked = AssignRequest::for_workload(a.owner(handle), wanted, Wanted::default());
        assert_eq!(a.ask(&asked, NOW).addresses.len(), count);
    }
    a.pod_in("net.other", "other");
    a.release("net.gone");
    a.release("net.other");
    let mut idle = Idle::default();
    let mut look = |seconds: u64| {
        let view = run(View::load(&store, "a")).unwrap();
        idle.look("a", &Blocks::read(&store.everything()), &view, GRACE, Now(NOW.0 + seconds * 1_000_000_000))
    };
    assert_eq!(a.allocator.own_blocks().count(), 4);
    assert_eq!(look(0), []);
    assert_eq!(look(899), []);
    let due = look(900);
    assert_eq!(due.len(), 2, "the other pool's stays");
    // Used again in between: it is another case.
    let view = a.view();
    let used = due[0].cidr.hosts().next().unwrap();
    let owner = a.owner("net.new");
    run(a.allocator.assign_ip(used, &owner, AllowedUse::Workload, &view, NOW)).unwrap();
    let gone: Vec<bool> = due.iter().map(|b| run(a.allocator.give_back(*b, &view, LATER)).unwrap()).collect();
    assert_eq!(gone, [false, true]);
    assert_eq!(a.allocator.own_blocks().count(), 3);
    a.release("net.new");
    assert_eq!(look(901), [], "its time begins anew");
    assert_eq!(look(1801).len(), 1);
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn what_gives_a_node_nothing_any_more_takes_its_last_block() {
    const GRACE: u64 = 900;
    let deleted: fn(&SimStore) = |s| {
        run(s.delete(&Key::new(Kind::IpPool, None, "p"), Expect::Any)).unwrap();
    };
    let disabled: fn(&SimStore) = |s| pool(s, "p", "10.0.0.0/24", |p| p.disabled = true);
    let elsewhere: fn(&SimStore) =
        |s| pool(s, "p", "10.0.0.0/24", |p| p.node_selector = "rack == 'b'".into());
    for (change, due) in [(deleted, [1, 1]), (disabled, [0, 1]), (elsewhere, [0, 1])] {
        let store = SimStore::default();
        pool(&store, "p", "10.0.0.0/24", |_| {});
        let mut a = Host::new(&store, "a");
        a.pod("net.1", 1);
        a.release("net.1");
        let looks = || {
            let mut idle = Idle::default();
            [0, GRACE].map(|seconds| {
                let view = run(View::load(&store, "a")).unwrap();
                let at = Now(NOW.0 + seconds * 1_000_000_000);
                idle.look("a", &Blocks::read(&store.everything()), &view, GRACE, at).len()
            })
        };
        assert_eq!(looks(), [0, 0], "it serves the next pod");
        change(&store);
        assert_eq!(looks(), due);
    }
}

#[test]
fn the_empty_blocks_of_a_pool_that_is_gone_make_room_for_another_size() {
    let store = SimStore::default();
    pool(&store, "p", "10.0.0.0/24", |_| {});
    let (mut a, mut b) = (Host::new(&store, "a"), Host::new(&store, "b"));
    a.pod("net.1", 1);
    b.pod("net.2", 1);
    a.release("net.1");
    run(store.delete(&Key::new(Kind::IpPool, None, "p"), Expect::Any)).unwrap();
    let mut other = Host::new(&store, "brindlectl");
    let given = run(other.allocator.give_back_within(&"10.0.0.0/24".parse().unwrap(), NOW)).unwrap();
    assert_eq!(given.len(), 1, "the one with an address in use stays");
    assert_eq!(store.everything().iter().filter(|e| e.key.kind == Kind::BlockAffinity).count(), 1);
    b.release("net.2");
    let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
    assert!(!store.everything().iter().any(|e| kinds.contains(&e.key.kind)));
}

#[test]
fn addresses_that_cool_down_are_told_from_those_in_use() {
    let store = SimStore::default();
    pool(&store, "p", "10.0.0.0/31", |p| p.block_size_raw = Some(31));
    config(&store, |c| c.ip_cooldown_seconds = Some(60));
    let mut a = Host::new(&store, "a");
    a.pod("net.1", 2);
    a.release("net.1");
    let said = refusal(&a.pod("net.2", 1));
    assert!(
        said.contains("2 addresses were given back a moment ago and cool down") && said.contains("60 s"),
        "{said}"
    );
    let (view, owner) = (a.view(), a.owner("net.3"));
    let one = run(a.allocator.assign_ip(ip("10.0.0.1"), &owner, AllowedUse::Workload, &view, NOW));
    assert_eq!(one, Err(IpamError::Cooling { ip: ip("10.0.0.1"), seconds: 60 }));
    // Who has it already need not wait.
    run(a.allocator.keep(ip("10.0.0.1"), "net.1", &owner, &view, NOW)).unwrap();
    assert_eq!(run(a.allocator.by_handle("net.3")).unwrap(), [ip("10.0.0.1")]);
    assert_eq!(audit(&store.everything()), []);
}

#[test]
fn records_calico_marked_deleted_are_gone() {
    let store = SimStore::with_pool("10.0.0.0/30", 30);
    let handle = IpamHandleSpec {
        handle_id: "a".into(),
        block: BTreeMap::from([("10.0.0.0/30".into(), 3)]),
        deleted: true,
        ..IpamHandleSpec::default()
    };
    store.insert(Resource::new(ObjectMeta::named("a"), handle));
    let mut host = Host::new(&store, "n0");
    assert_eq!(host.pod("a", 1).addresses.len(), 1);
    assert_eq!(audit(&store.everything()), []);
    let stored = run(store.get_as::<IpamHandleSpec>(None, "a")).unwrap();
    assert_eq!(stored.resource.spec.block["10.0.0.0/30"], 1);
}

#[test]
fn a_block_whose_deletion_stopped_halfway_is_to_be_had_again() {
    let store = SimStore::with_pool("10.0.0.0/30", 30);
    let mut gone = Host::new(&store, "gone");
    assert_eq!(gone.pod("a", 1).addresses.len(), 1);
    gone.release("a");
    let mut block = run(store.get_as::<IpamBlockSpec>(None, "10-0-0-0-30")).unwrap().resource;
    block.spec.deleted = true;
    store.insert(block);
    let affinity = Key::new(Kind::BlockAffinity, None, "gone-10-0-0-0-30");
    run(store.delete(&affinity, Expect::Any)).unwrap();
    // The only block of the pool.
    let mut host = Host::new(&store, "n0");
    assert_eq!(host.pod("b", 1).addresses.len(), 1);
    assert_eq!(audit(&store.everything()), []);
    let block = run(store.get_as::<IpamBlockSpec>(None, "10-0-0-0-30")).unwrap().resource;
    assert_eq!((block.spec.affinity.as_deref(), block.spec.deleted), (Some("host:n0"), false));
}
