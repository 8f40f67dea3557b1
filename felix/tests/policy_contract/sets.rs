//! Sets: those strangers use or make in our place, and members that change without the tool.

use std::{fs::File, time::Instant};

use brindle_config_core::{
    ObjectMeta, Resource,
    felix::FelixConfigurationSpec,
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix::policy::PolicyInput;
use brindle_felix_core::{
    policy::active::{IpSetDelta, IpSetId, IpSetMember, PolicyDelta},
    rules::{endpoint::policy_chain, ir::Family, names, nft_plan},
};
use brindle_kernel::{
    fake::FilterWorld,
    netfilter::{IpVersion, Netfilter as _, Tools, Variant},
};
use serde_json::json;

use super::{Agent, BACK_ENDS, LONG, World, endpoint, first, id, net, same, second};

#[test]
fn a_set_somebody_made_in_another_form_under_our_name_gets_ours_and_its_rules() {
    let (set, chain) = (names::set(Family::V4, "s:one"), policy_chain(&id("one"), true));
    for world in [World::Model(FilterWorld::new()), World::linux()] {
        for back_end in BACK_ENDS {
            let agent = Agent::start(&world, back_end);
            agent.tell(PolicyInput::Deltas(first()));
            agent.tidy();
            let wanted = world.state(back_end);
            agent.stop();
            // The kernel lets nobody do it while our rules ask the set.
            world.inside(|mut nf| match back_end {
                "nftables" => nf
                    .nft(&format!(
                        "flush chain ip brindle filter-{chain}\ndelete set ip brindle {set}\n\
                         add set ip brindle {set} {{ type ipv4_addr . inet_proto . inet_service; }}\n"
                    ))
                    .unwrap(),
                make => {
                    nf.set_variant(if make == "iptables-nft" { Variant::Nft } else { Variant::Legacy });
                    nf.restore(IpVersion::V4, &format!("*filter\n-F {chain}\nCOMMIT\n")).unwrap();
                    nf.restore_sets(&format!("destroy {set}\ncreate {set} hash:ip family inet\n")).unwrap();
                }
            });
            assert_ne!(world.state(back_end), wanted, "{back_end}");
            let agent = Agent::start(&world, back_end);
            agent.tell(PolicyInput::Deltas(first()));
            let counters = agent.tidy().counters;
            assert_eq!(counters.errors, 0, "{back_end}: at once: {counters:?}");
            same(&world.state(back_end), &wanted, back_end);
            agent.stop();
        }
    }
}

#[test]
fn a_set_a_stranger_uses_stays_until_he_lets_go_and_everything_else_is_enforced() {
    let world = World::linux();
    let agent = Agent::start(&world, "iptables-nft");
    agent.tell(PolicyInput::Deltas(first()));
    agent.settled();
    let name = world.state("iptables-nft").iter().find_map(|l| {
        let name = l.strip_prefix("create brindle4-")?.split(' ').next()?;
        // The others are those of pools and nodes.
        (!["pools", "masq-pools", "nodes"].contains(&name)).then(|| format!("brindle4-{name}"))
    });
    let name = name.expect("the set of the policy is there");
    let foreign = format!("-m set --match-set {name} src -j ACCEPT");
    world.inside(|mut nf| {
        nf.restore(IpVersion::V4, &format!("*mangle\n-A INPUT {foreign}\nCOMMIT\n")).unwrap()
    });
    agent.tell(PolicyInput::Deltas(second()));
    let until = |told: bool| {
        let deadline = Instant::now() + LONG;
        loop {
            agent.tell(PolicyInput::Check);
            let r = agent.report();
            if r.resources.iter().any(|l| l.contains("in use") && l.contains(&name)) == told {
                break r;
            }
            assert!(Instant::now() < deadline, "{told} {r:?}");
            std::thread::yield_now();
        }
    };
    let r = until(true);
    assert!(r.settled && r.problems.is_empty() && r.counters.repairs == 0, "{r:?}");
    let state = world.state("iptables-nft");
    assert!(state.iter().any(|l| l.contains("brindle-tw-cali2")), "the new rules are in force: {state:?}");
    world.inside(|mut nf| {
        nf.restore(IpVersion::V4, &format!("*mangle\n-D INPUT {foreign}\nCOMMIT\n")).unwrap()
    });
    until(false);
    assert!(!world.state("iptables-nft").iter().any(|l| l.contains(&name)), "it is gone");
    // Members of what stays go on as before.
    let added = vec![net("203.0.113.0/24")];
    let change = IpSetDelta { id: IpSetId("s:two".into()), added, removed: vec![] };
    agent.tell(PolicyInput::Deltas(vec![PolicyDelta::IpSetDelta(change)]));
    agent.settled();
    assert!(world.state("iptables-nft").iter().any(|l| l.contains("203.0.113.0/24")));
}

/// A set that outgrows its room is built anew with more, and one that shrinks far with less to walk through; both without
/// a moment in which the rules that ask it find none.
#[test]
fn a_set_grows_beyond_its_room_and_shrinks_by_a_swap_while_rules_ask_it() {
    let world = World::linux();
    let agent = Agent::start(&world, "iptables-legacy");
    agent.tell(PolicyInput::Deltas(first()));
    agent.settled();
    let mut spec = FelixConfigurationSpec::default();
    spec.extra.insert("iptablesBackend".into(), json!("Legacy"));
    spec.extra.insert("maxIpsetSize".into(), json!(1024));
    let r = Resource::new(ObjectMeta::named("default"), spec);
    let value = serde_json::to_value(&r).unwrap().into();
    let entry = Entry { key: r.key(), revision: Revision(2), value };
    agent.tell(PolicyInput::Store(vec![SyncEvent::Upsert(entry)]));
    agent.tell(PolicyInput::Deltas(second()));
    let members: Vec<_> = (0..3000).map(|i| net(&format!("10.{}.{}.0/24", i / 256, i % 256))).collect();
    let name = names::set(Family::V4, "s:two");
    let change = |added: &[IpSetMember], removed: &[IpSetMember]| {
        let delta =
            IpSetDelta { id: IpSetId("s:two".into()), added: added.to_vec(), removed: removed.to_vec() };
        agent.tell(PolicyInput::Deltas(vec![PolicyDelta::IpSetDelta(delta)]));
        let counters = agent.settled().counters;
        let state = world.state("iptables-legacy");
        let create = state.iter().find(|l| l.starts_with(&format!("create {name} "))).cloned();
        let held = state.iter().filter(|l| l.starts_with(&format!("add {name} "))).count();
        assert!(state.iter().any(|l| l.contains(&format!("--match-set {name} src"))), "{state:?}");
        assert!(!state.iter().any(|l| l.contains(&names::temporary(&name))), "{state:?}");
        (create.expect("the set is there"), held, counters.errors)
    };
    let (create, held, errors) = change(&members[..500], &[]);
    assert!(create.contains("maxelem 1024") && (held, errors) == (502, 0), "{create}, {held}, {errors}");
    let (create, held, errors) = change(&members[500..], &[]);
    assert!(create.contains("maxelem 4096") && (held, errors) == (3002, 0), "{create}, {held}, {errors}");
    let (create, held, errors) = change(&[], &members[..2900]);
    assert!(create.contains("maxelem 1024") && (held, errors) == (102, 0), "{create}, {held}, {errors}");
    agent.stop();
}

#[test]
fn of_a_full_set_a_member_is_replaced_without_a_word_of_the_kernel() {
    for world in [World::Model(FilterWorld::new()), World::linux()] {
        let agent = Agent::start(&world, "iptables-nft");
        let mut spec = FelixConfigurationSpec::default();
        spec.extra.insert("iptablesBackend".into(), json!("NFT"));
        spec.extra.insert("maxIpsetSize".into(), json!(4));
        let r = Resource::new(ObjectMeta::named("default"), spec);
        let value = serde_json::to_value(&r).unwrap().into();
        let entry = Entry { key: r.key(), revision: Revision(2), value };
        agent.tell(PolicyInput::Store(vec![SyncEvent::Upsert(entry)]));
        agent.tell(PolicyInput::Deltas(first()));
        let change = |added: &[&str], removed: &[&str]| {
            let nets = |texts: &[&str]| texts.iter().map(|t| net(t)).collect();
            let id = IpSetId("s:one".into());
            PolicyDelta::IpSetDelta(IpSetDelta { id, added: nets(added), removed: nets(removed) })
        };
        let more = ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"];
        agent.tell(PolicyInput::Deltas(vec![change(&more, &[])]));
        agent.tell(PolicyInput::Deltas(vec![change(&["192.0.2.4/32"], &["192.0.2.1/32"])]));
        // Two changes at once, of which the second has room only after the first.
        let removed = change(&[], &["192.0.2.2/32"]);
        agent.tell(PolicyInput::Deltas(vec![removed, change(&["192.0.2.5/32"], &["192.0.2.3/32"])]));
        let counters = agent.settled().counters;
        assert_eq!(counters.errors, 0, "{counters:?}");
        let name = names::set(Family::V4, "s:one");
        let state = world.state("iptables-nft");
        let members = state.iter().filter_map(|l| l.strip_prefix(&format!("add {name} ")));
        let members: Vec<&str> = members.map(str::trim).collect();
        assert_eq!(members, ["10.0.0.0/24", "192.0.2.4", "192.0.2.5"]);
        agent.stop();
    }
}

#[test]
fn members_of_nftables_sets_change_as_nft_would_change_them_all_or_none() {
    let world = World::linux();
    world.inside(|mut nf| {
        let form = |kind: &str| format!("{{ type {kind}; flags interval; }}");
        let (v4, v6) = (form("ipv4_addr"), form("ipv6_addr"));
        nf.nft(&format!(
            "add table ip t\nadd set ip t s {v4}\nadd set ip t plain {{ type ipv4_addr; }}\n\
             add table ip6 t\nadd set ip6 t s {v6}\nadd element ip t s {{ 10.2.0.0/16, 10.0.0.9 }}\n"
        ))
        .unwrap();
        let mut change = |input: &str, version, set: &str| {
            let result = nf.nft(input).map_err(|e| e.to_string());
            let table = nft_plan::parse(nf.nft_list(version, "t").unwrap().as_deref()).unwrap();
            let (_, members) = table.sets[set].clone().expect("a form of ours");
            (result.is_ok(), members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let (v4, v6) = (IpVersion::V4, IpVersion::V6);
        let all = "10.0.0.1 10.0.0.2 10.0.0.9 10.1.0.0/16 10.2.0.0/16 255.255.255.255";
        let add = "add element ip t s { 10.0.0.1, 10.0.0.2, 10.1.0.0/16, 255.255.255.255 }\n";
        assert_eq!(change(add, v4, "s"), (true, all.into()));
        assert_eq!(change(add, v4, "s"), (true, all.into()), "what is there may be added");
        let six = "add element ip6 t s { fd00::1, ffff::/16 }\n";
        assert_eq!(change(six, v6, "s"), (true, "fd00::1 ffff::/16".into()));
        let both = "delete element ip t s { 10.0.0.1, 10.2.0.0/16, 255.255.255.255 }\n\
            add element ip t s { 10.0.0.3 }\ndelete element ip6 t s { ffff::/16 }\n";
        let left = "10.0.0.2 10.0.0.3 10.0.0.9 10.1.0.0/16";
        assert_eq!(change(both, v4, "s"), (true, left.into()));
        assert_eq!(change("delete element ip6 t s { fd00::1 }\n", v6, "s"), (true, String::new()));
        let half = "add element ip t s { 10.9.9.9 }\ndelete element ip t s { 192.0.2.1 }\n";
        assert_eq!(change(half, v4, "s"), (false, left.into()), "nothing of it takes effect");
        let plain = "add element ip t plain { 10.0.0.1 }\n";
        assert_eq!(change(plain, v4, "plain"), (true, "10.0.0.1".into()), "a set of another form is nft's");
    });
}

#[test]
fn devices_of_verdict_maps_and_ports_of_sets_change_without_the_tool() {
    let world = World::linux();
    world.inside(|mut nf| {
        nf.nft(
            "add table ip t\nadd table ip6 t\nadd chain ip t x\nadd chain ip t y\n\
             add map ip t m { type ifname : verdict; }\nadd element ip t m { \"old\" : goto x }\n\
             add set ip t p { type ipv4_addr . inet_proto . inet_service; }\n\
             add set ip6 t p { type ipv6_addr . inet_proto . inet_service; }\n",
        )
        .unwrap();
        // A library of no use in front of its own: nothing it is asked for succeeds.
        let folder = std::env::temp_dir().join(format!("bt-{}-no-nft", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        File::create(folder.join("libnftables.so.1")).unwrap();
        let mut broken = Tools::default().env("LD_LIBRARY_PATH", folder.to_str().unwrap());
        assert!(broken.nft("add chain ip t z\n").is_err());
        let mut table = |version| nft_plan::parse(nf.nft_list(version, "t").unwrap().as_deref()).unwrap();
        let mut state = || {
            let (v4, v6) = (table(IpVersion::V4), table(IpVersion::V6));
            let text = |t: &nft_plan::Actual| {
                let (_, members) = t.sets["p"].clone().expect("a form of ours");
                members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            let map = v4.maps["m"].iter().map(|(d, c)| format!("{d}>{c}")).collect::<Vec<_>>().join(" ");
            [map, text(&v4), text(&v6)]
        };
        broken
            .nft(
                "add element ip t p { 10.0.0.1 . 6 . 80, 10.0.0.1 . 17 . 53 }\nadd element ip6 t p { fd00::1 . 132 . 9 }\n\
                 add element ip t m { \"cali0123456789a\" : goto y }\n",
            )
            .unwrap();
        let ports = "10.0.0.1,tcp:80 10.0.0.1,udp:53";
        assert_eq!(state(), ["cali0123456789a>y old>x", ports, "fd00::1,sctp:9"]);
        let away = "delete element ip t m { \"old\" }\ndelete element ip t p { 10.0.0.1 . 6 . 80 }\n\
            add element ip t m { \"new\" : goto x }\n";
        broken.nft(away).unwrap();
        let left = ["cali0123456789a>y new>x", "10.0.0.1,udp:53", "fd00::1,sctp:9"];
        assert_eq!(state(), left);
        // Everything or nothing: there is no such chain.
        let half = "add element ip t m { \"more\" : goto x }\nadd element ip t m { \"most\" : goto nowhere }\n";
        assert!(broken.nft(half).is_err());
        assert_eq!(state(), left);
        let _ = std::fs::remove_dir_all(folder);
    });
}

#[test]
fn a_set_that_only_rules_of_the_former_make_ask_goes_after_them() {
    for (before, after) in [("iptables-nft", "iptables-legacy"), ("iptables-legacy", "iptables-nft")] {
        let world = World::linux();
        let agent = Agent::start(&world, before);
        agent.tell(PolicyInput::Deltas(first()));
        agent.tidy();
        let sets = || world.inside(|mut nf| nf.save_sets().unwrap());
        let name = names::set(Family::V4, "s:one");
        assert!(sets().contains(&name), "{}", sets());
        agent.stop();
        // Meanwhile the policy has gone, and its set with it.
        let agent = Agent::start(&world, after);
        agent.tell(PolicyInput::Deltas(vec![endpoint(1, &[]), PolicyDelta::InSync]));
        assert_eq!(agent.tidy().back_end, after);
        let gone = Instant::now() + LONG;
        while sets().contains(&name) {
            assert!(Instant::now() < gone, "{}", sets());
            agent.tell(PolicyInput::Check);
            agent.settled();
        }
        agent.stop();
    }
}
