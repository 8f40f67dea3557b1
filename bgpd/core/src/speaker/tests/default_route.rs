//! A default route that is originated: it comes and goes with its setting, whatever the RIB holds.

use super::*;

/// The last thing neighbor 3 is told now about a default route: the AS_PATH it has, or that it is gone.
fn default_to_3(b: &mut Bench) -> Option<Option<AsPath>> {
    let zero = Nlri { path_id: 0, prefix: ipnet::Ipv4Net::default() };
    let has = |p: &Prefixes| matches!(p, Prefixes::V4(list) if list.contains(&zero));
    let mut said = b.pull(3).into_iter().filter_map(|u| {
        if u.reach.iter().any(|r| has(&r.prefixes)) {
            return Some(u.attributes.map(|a| a.as_path));
        }
        u.withdrawn.iter().any(has).then_some(None)
    });
    said.next_back()
}

#[test]
fn a_default_route_comes_and_goes_with_the_setting() {
    for with_paths in [false, true] {
        let list = |on: bool| {
            [2, 3].map(|n| {
                let mut c = neighbor(n, 65_000 + u32::from(n));
                c.attributes.default_route = on && n == 3;
                c.add_path.send = (with_paths && n == 3).then_some(AddPathSend::Single);
                c
            })
        };
        let (ours, theirs) = (AsPath::sequence([AS]), AsPath::sequence([AS, 65_002]));
        let mut b = Bench::new(list(false).to_vec());
        b.establish(2, open(2, 65_002));
        b.establish(3, open(3, 65_003));
        b.pull(3);
        let set = |b: &mut Bench, on| {
            b.out.clear();
            b.input(Input::SetPeers(list(on).to_vec()));
            assert_eq!(b.notifications(), []);
        };
        let id = b.s.peers().nth(1).unwrap().id;
        let told = |b: &Bench| b.s.peer(id).unwrap().routes[Family::Ipv4Unicast].advertised;
        set(&mut b, true);
        assert_eq!(default_to_3(&mut b), Some(Some(ours.clone())));
        assert_eq!((told(&b), b.s.advertised(id).count()), (1, 1));
        assert_eq!(b.s.told_from(id, net("0.0.0.0/0"), 0), None);
        // That of the RIB, which comes and goes, is nothing to it; nor does a sweep take what it was told.
        let many: Vec<String> = (0..3_000_u32).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).chain(["0.0.0.0/0"]).collect();
        b.message(2, announce(2, &many, via(&[65_002])));
        assert_eq!(default_to_3(&mut b), None);
        b.message(2, withdraw(&many));
        assert_eq!(default_to_3(&mut b), None);
        assert_eq!(told(&b), 1);
        b.input(Input::Clear { peer: id, how: Clear::SoftOut });
        assert_eq!(default_to_3(&mut b), Some(Some(ours.clone())));
        set(&mut b, false);
        assert_eq!((default_to_3(&mut b), told(&b)), (Some(None), 0));
        // From that of the RIB to ours and back it is never without one.
        b.message(2, announce(2, &["0.0.0.0/0"], via(&[65_002])));
        assert_eq!(default_to_3(&mut b), Some(Some(theirs.clone())));
        set(&mut b, true);
        assert_eq!(default_to_3(&mut b), Some(Some(ours)));
        set(&mut b, false);
        assert_eq!(default_to_3(&mut b), Some(Some(theirs)));
    }
}

#[test]
fn a_default_route_of_ours_has_the_preference_and_the_communities_of_the_hour() {
    let mut cfg = neighbor(3, AS);
    cfg.attributes.default_route = true;
    cfg.add_path = AddPath { receive: false, send: Some(AddPathSend::All) };
    let mut b = Bench::new(vec![cfg]);
    let mut asks = open(3, AS);
    asks.capabilities.push(Capability::AddPath(vec![(1, 1, 1)]));
    b.establish(3, asks);
    let mut told = || {
        let sets: Vec<AttrSet> = b.pull(3).into_iter().filter_map(|u| u.attributes).collect();
        let [set] = &sets[..] else { panic!("{sets:?}") };
        (set.local_pref, set.communities.contains(&GRACEFUL_SHUTDOWN))
    };
    assert_eq!(told(), (Some(SpeakerConfig::NORMAL_LOCAL_PREF), false));
    let routing = Routing { local_pref: 7, ..b.s.config().routing() };
    b.input(Input::SetRouting(routing));
    let mut told = || {
        let sets: Vec<AttrSet> = b.pull(3).into_iter().filter_map(|u| u.attributes).collect();
        sets.last().map(|set| (set.local_pref, set.communities.contains(&GRACEFUL_SHUTDOWN)))
    };
    assert_eq!(told(), Some((Some(7), false)));
    b.input(Input::Drain);
    let last = b.pull(3).into_iter().filter_map(|u| u.attributes).next_back().unwrap();
    assert_eq!((last.local_pref, &last.communities[..]), (Some(0), &[GRACEFUL_SHUTDOWN][..]));
}

#[test]
fn a_default_route_is_originated_where_asked_for_and_hides_that_of_the_rib() {
    let mut b = Bench::new(
        [2, 3]
            .map(|n| neighbor(n, 65_000 + u32::from(n)))
            .map(|mut c| {
                c.attributes.default_route = c.address == ip(3);
                c
            })
            .to_vec(),
    );
    b.establish(2, open(2, 65_002));
    b.establish(3, open(3, 65_003));
    let sent = b.pull(3);
    let [update, end] = &sent[..] else { panic!("{sent:?}") };
    assert!(end.end_of_rib.is_some());
    assert_eq!(update.attributes.as_ref().unwrap().as_path, AsPath::sequence([AS]));
    assert_eq!(update.reach[0].next_hop, NextHop::V4([10, 0, 0, 1].into()));
    b.message(2, announce(2, &["0.0.0.0/0", "10.2.0.0/24"], via(&[65_002])));
    assert_eq!(b.told(3), [net("10.2.0.0/24")]);
}

#[test]
fn a_default_route_that_is_asked_for_is_sent_without_a_policy_and_that_is_said() {
    for (asked, said) in [
        (
            true,
            "nothing is accepted from it or sent to it but the default route of defaultOriginate (RFC 8212)",
        ),
        (false, "nothing is accepted from it or sent to it (RFC 8212)"),
    ] {
        let mut cfg = neighbor(3, 65_003);
        (cfg.attributes.default_route, cfg.attributes.require_policy) = (asked, true);
        let mut b = Bench::new(vec![cfg]);
        b.establish(3, open(3, 65_003));
        assert_eq!(b.told(3).len(), usize::from(asked));
        let note = b.s.peers().next().unwrap().note.unwrap();
        assert_eq!(note, format!("external peer without a policy: {said}"));
        assert!(b.events().iter().any(|e| e.contains(&note)));
    }
}

#[test]
fn a_default_route_of_ours_waits_like_the_others_while_selection_is_put_off() {
    let mut cfg = neighbor(3, AS);
    cfg.attributes.default_route = true;
    let mut b = super::refresh::waiting(vec![cfg]);
    b.establish(3, open(3, AS));
    assert!(b.pull(3).is_empty());
    b.wait(61_000);
    assert_eq!(b.told(3), [net("0.0.0.0/0")]);
}
