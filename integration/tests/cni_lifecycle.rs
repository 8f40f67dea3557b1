//! Pods through the real plugin and the real agent: their life, repeated and untimely calls, deaths of plugin and agent
//! at any moment, and what is said when something cannot be had. Needs root.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use brindle_config_core::{ObjectMeta, felix::ClusterInformationSpec, pool::IpPoolSpec};
use brindle_integration::{
    bins::bin,
    cni::{CniNode, Container, Said, ping},
};
use brindle_kernel::{netlink::RouteFilter, netns::NetNs};
use serde_json::json;

/// xorshift: the same history for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[test]
fn a_pod_is_reachable_when_add_answers_and_gone_when_del_does() {
    let node = CniNode::new("life", "10.81.0.0/24");
    let (a, b) = (Container::new(), Container::new());
    let (first, second) = (node.add(&a), node.add(&b));
    let (ip_a, ip_b) = (first.address(), second.address());
    assert!(node.pings(&ip_a), "from the node, at once");
    assert!(ping(a.ns.ns(), &ip_b), "from pod to pod");
    assert!(ping(a.ns.ns(), "192.0.2.1"), "from pod to node");
    for (c, result) in [(&a, &first), (&b, &second)] {
        let said = node.check(c, result);
        assert!(said.ok, "{said:?}");
    }
    assert_eq!(first.json()["interfaces"][0]["mac"], "ee:ee:ee:ee:ee:ee");
    node.settled(&[&a, &b]);

    assert!(node.del(&a).ok);
    assert!(!node.devices().contains(&first.json()["interfaces"][0]["name"].as_str().unwrap().to_owned()));
    assert!(a.ns.rtnl().link_by_name("eth0").unwrap().is_none());
    let said = node.check(&a, &first);
    assert_eq!(said.code(), 110, "{said:?}");
    assert!(node.pings(&ip_b));
    assert!(node.del(&b).ok);
    node.settled(&[]);
    let left = node.ns.rtnl().routes(&RouteFilter::main()).unwrap();
    assert!(!left.iter().any(|r| r.dst.to_string() == format!("{ip_a}/32")), "{left:?}");
}

#[test]
fn check_asks_the_kernel_for_the_policy_and_names_what_it_lacks() {
    let node = CniNode::new("rules", "10.96.0.0/24");
    let a = Container::new();
    let added = node.add(&a);
    let said = node.check(&a, &added);
    assert!(said.ok, "{said:?}");
    let device = added.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
    for chain in [format!("brindle-tw-{device}"), format!("brindle-fw-{device}")] {
        // Behind the agent's back. Its own check may mend it before CHECK comes; then once more.
        let flush = || {
            // Whichever make the agent has chosen.
            let script = format!("iptables-nft -F {chain} 2>/dev/null || iptables-legacy -F {chain}");
            let status =
                node.ns.ns().run(|| Command::new("sh").args(["-c", &script]).status().unwrap()).unwrap();
            assert!(status.success(), "{script}");
            let said = node.check(&a, &added);
            (!said.ok).then_some(said)
        };
        let said = (0..50).find_map(|_| flush()).expect("CHECK does not see what the kernel lacks");
        assert_eq!(said.code(), 110, "{said:?}");
        let text = said.json()["msg"].as_str().unwrap_or_default().to_owned();
        assert!(text.contains(&chain) && text.contains("lacks"), "{text}");
        let said = node.check(&a, &added);
        assert!(said.ok, "it was written again at once: {said:?}");
    }
    assert!(node.del(&a).ok);
}

#[test]
fn calls_repeated_or_out_of_turn_do_no_harm() {
    let node = CniNode::new("turn", "10.82.0.0/24");
    let a = Container::new();
    assert!(node.del(&a).ok, "DEL without ADD");
    let first = node.add(&a);
    let second = node.add(&a);
    assert_eq!(first.out, second.out, "ADD again");
    assert!(node.check(&a, &second).ok);
    node.settled(&[&a]);
    // Another namespace under the same id while the first one lives.
    let elsewhere = Container { id: a.id.clone(), ..Container::new() };
    let said = node.add(&elsewhere);
    assert_eq!(said.code(), 104, "{said:?}");
    node.settled(&[&a]);
    for _ in 0..2 {
        assert!(node.del(&a).ok, "DEL again");
    }
    // Added anew, and its namespace deleted before anybody asks.
    assert!(node.add(&a).ok);
    NetNs::delete(a.ns.name()).unwrap();
    assert!(node.del(&a).ok, "DEL without a namespace");
    node.settled(&[]);
}

#[test]
fn a_new_sandbox_of_a_pod_takes_over_before_the_old_one_is_deleted() {
    let node = CniNode::new("sandbox", "10.83.0.0/24");
    let (old, new) = (Container::new(), Container::new());
    let as_pod = |verb: &str, c: &Container| {
        let mut command = node.command(&bin("brindle"), verb, &c.id, &c.netns());
        command.env("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0");
        node.run(&mut command, &node.conf())
    };
    assert!(as_pod("ADD", &old).ok);
    let said = as_pod("ADD", &new);
    assert!(node.pings(&said.address()), "{said:?}");
    assert!(as_pod("DEL", &old).ok);
    assert!(node.pings(&said.address()), "the old sandbox's DEL spared the new one");
    assert!(as_pod("DEL", &new).ok);
    node.settled(&[]);
}

#[test]
fn pods_outlive_their_agent_and_what_was_deleted_meanwhile_is_released() {
    let mut node = CniNode::new("away", "10.84.0.0/24");
    let (a, b) = (Container::new(), Container::new());
    let (first, second) = (node.add(&a), node.add(&b));
    node.kill_agent();
    assert!(node.pings(&first.address()), "forwarding goes on");
    let said = node.add(&Container::new());
    assert_eq!(said.code(), 11, "{said:?}");
    assert!(node.del(&a).ok);
    assert_eq!((node.devices().len(), node.journal()), (1, 1));
    node.start_agent();
    node.settled(&[&b]);
    assert!(node.check(&b, &second).ok, "{:?}", node.check(&b, &second));
    assert!(node.pings(&second.address()));
    assert!(node.del(&b).ok);
    node.settled(&[]);
}

#[test]
fn a_plugin_killed_at_any_moment_leaves_nothing_after_its_del() {
    let node = CniNode::new("kill", "10.85.0.0/24");
    let mut dice = Dice(0x5eed);
    for round in 0..40 {
        let c = Container::new();
        let verb = if round % 4 == 3 { "DEL" } else { "ADD" };
        if verb == "DEL" {
            assert!(node.add(&c).ok);
        }
        let mut command = node.command(&bin("brindle"), verb, &c.id, &c.netns());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let input = serde_json::to_vec(&node.conf()).unwrap();
        let pause = Duration::from_micros(dice.below(15_000));
        let mut child = node
            .ns
            .ns()
            .run(|| {
                let mut child = command.spawn().unwrap();
                std::io::Write::write_all(&mut child.stdin.take().unwrap(), &input).unwrap();
                child
            })
            .unwrap();
        let at = Instant::now() + pause;
        while Instant::now() < at {
            std::hint::spin_loop();
        }
        let _ = child.kill();
        child.wait().unwrap();
        let said = node.del(&c);
        assert!(said.ok, "round {round}: {said:?}");
    }
    node.settled(&[]);
}

#[test]
fn any_history_of_calls_and_deaths_ends_tidy() {
    let mut node = CniNode::new("any", "10.86.0.0/26");
    let mut dice = Dice(0xfeed);
    let mut live: Vec<(Container, Said)> = Vec::new();
    for step in 0..60 {
        match dice.below(10) {
            0..=3 => {
                let c = Container::new();
                let said = node.add(&c);
                assert!(said.ok, "step {step}: {said:?}");
                live.push((c, said));
            }
            4..=6 if !live.is_empty() => {
                let at = dice.below(live.len() as u64) as usize;
                let (c, _) = live.swap_remove(at);
                assert!(node.del(&c).ok);
            }
            7 | 8 if !live.is_empty() => {
                let (c, said) = &live[dice.below(live.len() as u64) as usize];
                let check = node.check(c, said);
                assert!(check.ok, "step {step}: {check:?}");
            }
            9 => {
                node.kill_agent();
                if let Some((c, _)) = live.pop() {
                    assert!(node.del(&c).ok);
                }
                node.start_agent();
            }
            _ => {}
        }
    }
    let addresses: std::collections::BTreeSet<String> = live.iter().map(|(_, s)| s.address()).collect();
    assert_eq!(addresses.len(), live.len(), "no address twice");
    for (_, said) in &live {
        assert!(node.pings(&said.address()));
    }
    node.settled(&live.iter().map(|(c, _)| c).collect::<Vec<_>>());
    for (c, _) in &live {
        assert!(node.del(c).ok);
    }
    node.settled(&[]);
}

#[test]
fn a_burst_of_two_hundred_pods_is_served() {
    let node = CniNode::new("burst", "10.87.0.0/22");
    let pods: Vec<Container> = (0..200).map(|_| Container::new()).collect();
    let all = |verb: &'static str| -> Vec<Said> {
        std::thread::scope(|s| {
            let threads: Vec<_> = pods
                .iter()
                .map(|c| {
                    let mut command = node.command(&bin("brindle"), verb, &c.id, &c.netns());
                    let (ns, input) = (node.ns.ns(), serde_json::to_vec(&node.conf()).unwrap());
                    s.spawn(move || {
                        let out = ns
                            .run(|| {
                                let mut child = command.spawn().unwrap();
                                std::io::Write::write_all(&mut child.stdin.take().unwrap(), &input).unwrap();
                                child.wait_with_output().unwrap()
                            })
                            .unwrap();
                        Said {
                            ok: out.status.success(),
                            out: String::from_utf8_lossy(&out.stdout).into_owned(),
                            err: String::from_utf8_lossy(&out.stderr).into_owned(),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    };
    let start = Instant::now();
    let said = all("ADD");
    let added = start.elapsed();
    let addresses: std::collections::BTreeSet<String> = said.iter().map(Said::address).collect();
    assert_eq!(addresses.len(), 200);
    node.settled(&pods.iter().collect::<Vec<_>>());
    let start = Instant::now();
    for said in all("DEL") {
        assert!(said.ok, "{said:?}");
    }
    println!("200 at once: ADD {added:?}, DEL {:?}", start.elapsed());
    node.settled(&[]);
}

#[test]
fn what_cannot_be_had_is_said_with_its_code() {
    let node = CniNode::new("refuse", "10.88.0.0/24");
    // A pool of one address, by request.
    let tiny = IpPoolSpec {
        block_size_raw: Some(32),
        node_selector: "never == 'x'".into(),
        ..IpPoolSpec::new("10.89.0.9/32".parse().unwrap())
    };
    node.put(ObjectMeta::named("tiny"), tiny);
    let (a, b) = (Container::new(), Container::new());
    let mut conf = node.conf();
    conf["ipam"]["ipv4_pools"] = json!(["tiny"]);
    assert_eq!(node.call("ADD", &a, &conf).address(), "10.89.0.9");
    let said = node.call("ADD", &b, &conf);
    assert_eq!(said.code(), 100, "{said:?}");
    assert!(said.out.contains("no free block in pool tiny (1 in all)"), "{said:?}");

    conf["ipam"]["ipv4_pools"] = json!(["nowhere"]);
    let said = node.call("ADD", &b, &conf);
    assert!(said.out.contains("the given pool (nowhere) does not exist"), "{said:?}");

    let mut conf = node.conf();
    conf["runtimeConfig"] = json!({ "ips": ["10.89.0.9"] });
    let said = node.call("ADD", &b, &conf);
    assert_eq!(said.code(), 101, "{said:?}");

    let locked = ClusterInformationSpec { datastore_ready: Some(false), ..ClusterInformationSpec::default() };
    node.put(ObjectMeta::named("default"), locked);
    let said = node.add(&b);
    assert_eq!(said.code(), 11, "{said:?}");
    assert!(said.out.contains("Calico is currently not ready to process requests"), "{said:?}");
    assert_eq!(node.status().code(), 50);
    let unlocked =
        ClusterInformationSpec { datastore_ready: Some(true), ..ClusterInformationSpec::default() };
    node.put(ObjectMeta::named("default"), unlocked);
    assert!(node.del(&a).ok);
    node.settled(&[]);
}
