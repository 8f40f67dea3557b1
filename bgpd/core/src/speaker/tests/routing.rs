//! Settings of the speaker that peers have not agreed to: they change while sessions go on.

use std::net::Ipv4Addr;

use super::*;

const CLUSTER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

fn own(prefix: &str) -> Input {
    let route = LocalRoute { prefix: net(prefix), next_hop: None, attributes: AttrSet::default() };
    Input::SetLocalRoutes(vec![route])
}

impl Bench {
    fn routing(&mut self, change: impl FnOnce(&mut Routing)) {
        let mut routing = self.s.config().routing();
        change(&mut routing);
        self.out.clear();
        self.input(Input::SetRouting(routing));
        assert_eq!(self.notifications(), [], "sessions go on");
    }

    /// Attributes `n` is told now.
    fn sets(&mut self, n: u8) -> Vec<AttrSet> {
        self.pull(n).into_iter().filter_map(|u| u.attributes).collect()
    }
}

#[test]
fn another_cluster_is_told_and_judged_by_without_a_new_session() {
    let client = PeerConfig { reflector_client: true, ..neighbor(3, AS) };
    let mut b = Bench::new(vec![neighbor(2, AS), client]);
    for n in [2, 3] {
        b.establish(n, open(n, AS));
    }
    b.message(2, announce(2, &["10.9.0.0/24"], ibgp()));
    let through = AttrSet { cluster_list: [CLUSTER].into_iter().collect(), ..ibgp() };
    b.message(2, announce(2, &["10.9.1.0/24"], through.clone()));
    let lists = |sets: Vec<AttrSet>| {
        let mut all: Vec<Vec<Ipv4Addr>> = sets.iter().map(|s| s.cluster_list.to_vec()).collect();
        all.sort();
        all
    };
    let us = Ipv4Addr::new(10, 0, 0, 1);
    assert_eq!(lists(b.sets(3)), [vec![us], vec![us, CLUSTER]]);
    b.fib();

    b.routing(|r| r.cluster_id = Some(CLUSTER));
    assert_eq!(b.fib(), [(net("10.9.1.0/24"), vec![])], "it has been here: RFC 4456 section 8");
    assert_eq!(b.why("10.9.1.0/24"), ["our cluster is in the CLUSTER_LIST"]);
    let told = b.pull(3);
    assert!(
        told.iter().any(|u| u.withdrawn
            == [Prefixes::V4(vec![Nlri { path_id: 0, prefix: "10.9.1.0/24".parse().unwrap() }])])
    );
    assert_eq!(lists(told.into_iter().filter_map(|u| u.attributes).collect()), [vec![CLUSTER]]);

    b.routing(|r| r.cluster_id = None);
    assert_eq!(b.fib(), [(net("10.9.1.0/24"), vec![ip(2)])]);
    assert_eq!(lists(b.sets(3)), [vec![us], vec![us, CLUSTER]]);
    assert_eq!((b.state(2), b.state(3)), (StateKind::Established, StateKind::Established));
}

#[test]
fn another_priority_ranks_what_was_received_anew_and_is_told_with_own_routes() {
    let mut b = Bench::new(vec![neighbor(2, AS), neighbor(3, AS)]);
    for n in [2, 3] {
        b.establish(n, open(n, AS));
    }
    b.input(own("10.8.0.0/24"));
    // On the classic scale 101 is one better than normal, whatever normal is.
    let normal = SpeakerConfig::NORMAL_LOCAL_PREF;
    b.message(2, announce(2, &["10.9.0.0/24"], AttrSet { local_pref: Some(101), ..ibgp() }));
    b.message(3, announce(3, &["10.9.0.0/24"], AttrSet { local_pref: Some(normal), ..ibgp() }));
    let hops = |b: &Bench| b.s.next_hops_to(net("10.9.0.0/24")).to_vec();
    assert_eq!(hops(&b), [ip(2)]);
    b.sets(3);

    b.routing(|r| r.local_pref = normal - 500);
    assert_eq!(hops(&b), [ip(3)], "what was normal is now 500 better than normal");
    b.input(own("10.8.0.0/24"));
    let prefs: Vec<Option<u32>> = b.sets(2).iter().map(|s| s.local_pref).collect();
    assert_eq!(prefs, [Some(normal - 500)]);

    b.routing(|r| r.local_pref = normal);
    assert_eq!(hops(&b), [ip(2)]);
    assert_eq!((b.state(2), b.state(3)), (StateKind::Established, StateKind::Established));
}

#[test]
fn another_limit_of_paths_counts_from_the_next_update() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.9.0.0/24", "10.9.1.0/24"], ibgp()));
    b.routing(|r| r.max_paths = 2);
    b.message(2, announce(2, &["10.9.1.0/24"], ibgp()));
    assert_eq!(b.notifications(), []);
    b.message(2, announce(2, &["10.9.2.0/24"], ibgp()));
    assert_eq!(b.notifications(), [(6, 8)]);
}

#[test]
fn a_neighbor_with_identifiers_is_told_more_paths_without_a_new_session() {
    let with = |send| PeerConfig {
        add_path: AddPath { receive: true, send: Some(send) },
        reflector_client: true,
        ..neighbor(4, AS)
    };
    let others = [neighbor(2, AS), neighbor(3, AS)];
    let all = |send| others.iter().cloned().chain([with(send)]).collect::<Vec<_>>();
    let mut b = Bench::new(all(AddPathSend::Single));
    for n in [2, 3] {
        b.establish(n, open(n, AS));
    }
    let mut ours = open(4, AS);
    ours.capabilities.push(Capability::AddPath(vec![(1, 1, 3)]));
    b.establish(4, ours);
    let (shared, gone) = ("10.9.0.0/24", "10.9.1.0/24");
    for n in [2, 3] {
        b.message(n, announce(n, &[shared], ibgp()));
    }
    b.message(2, announce(2, &[gone], ibgp()));
    // What it holds at the end, by prefix and identifier, and what was sent: as a receiver has it.
    let mut held = std::collections::BTreeSet::new();
    let mut read = |b: &mut Bench| {
        for u in b.pull(4) {
            for list in u.withdrawn {
                let Prefixes::V4(list) = list else { panic!() };
                list.iter().for_each(|n| assert!(held.remove(&(n.prefix.to_string(), n.path_id)), "{n:?}"));
            }
            for reach in u.reach {
                let Prefixes::V4(list) = reach.prefixes else { panic!() };
                held.extend(list.iter().map(|n| (n.prefix.to_string(), n.path_id)));
            }
        }
        held.iter().map(|(p, id)| format!("{p} {id}")).collect::<Vec<_>>()
    };
    assert_eq!(read(&mut b), ["10.9.0.0/24 0", "10.9.1.0/24 0"]);
    b.out.clear();
    b.message(2, withdraw(&[gone]));
    b.input(Input::SetPeers(all(AddPathSend::All)));
    assert_eq!(b.notifications(), []);
    let now = read(&mut b);
    assert!(now.len() == 2 && now.iter().all(|p| p.starts_with(shared) && !p.ends_with(" 0")), "{now:?}");
    // Back: as many as before, until the session ends.
    b.input(Input::SetPeers(all(AddPathSend::Single)));
    assert_eq!((b.notifications(), read(&mut b).len()), (vec![], 2));
    b.message(2, withdraw(&[shared]));
    assert_eq!(read(&mut b).len(), 1);
}
