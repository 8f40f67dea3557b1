//! What a Calico has left beside ours: it goes, once, unless one runs; what is in the way of that is named; and where
//! nothing was left, next to nothing is asked for it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use brindle_felix::policy::PolicyInput;
use brindle_kernel::{
    fake::{FilterWorld, NfCall},
    netfilter::{Flow, IpVersion, Netfilter, NfError, Variant},
};

use super::{Agent, BACK_ENDS, LONG, World, first, same};

const RULES: &str = "*filter\n:cali-FORWARD - [0:0]\n:cali-from-wl-dispatch - [0:0]\n:KUBE-FORWARD - [0:0]\n\
    -A FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD\n\
    -A FORWARD -m comment --comment KUBE-rule -j KUBE-FORWARD\n\
    -A cali-FORWARD -i cali+ -m comment --comment \"cali:8ZoYfO5HKXWbB3pk\" -j cali-from-wl-dispatch\n\
    -A cali-from-wl-dispatch -m comment --comment \"cali:zTj6P0TIgYvgz-md\" -j DROP\nCOMMIT\n";
const SETS: &str =
    "create cali40s:abc hash:net\ncreate cali6t1 hash:net family inet6\ncreate stranger hash:net\n";

const BOTH: [Variant; 2] = [Variant::Legacy, Variant::Nft];
const FAMILIES: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

fn leave(world: &World) {
    world.inside(|mut nf| {
        nf.restore_sets(SETS).unwrap();
        for variant in BOTH {
            nf.set_variant(variant);
            FAMILIES.iter().for_each(|v| nf.restore(*v, RULES).unwrap());
        }
        for family in ["ip", "ip6"] {
            nf.nft(&format!("add table {family} calico\nadd chain {family} calico filter-x\n")).unwrap();
        }
    });
}

/// How many things of Calico's there are, and of strangers'.
fn count(world: &World) -> (usize, usize) {
    world.inside(|mut nf| {
        let mut text = nf.save_sets().unwrap();
        for version in FAMILIES {
            for variant in BOTH {
                text.push_str(&nf.probe(variant, version).unwrap().unwrap_or_default());
            }
            text.push_str(nf.nft_list(version, "calico").unwrap().map_or("", |_| "cali-table\n"));
        }
        let with = |words: &[&str]| text.lines().filter(|l| words.iter().any(|w| l.contains(w))).count();
        (with(&["cali-", "cali40", "cali6t"]), with(&["KUBE-", "stranger"]))
    })
}

/// Waits until nothing of Calico's is there: the kernel lets go of sets a moment after the rules that ask them.
#[track_caller]
fn gone(world: &World, agent: &Agent) {
    let deadline = Instant::now() + LONG;
    while count(world).0 > 0 {
        assert!(Instant::now() < deadline, "{:?}", agent.report());
        std::thread::sleep(Duration::from_millis(10));
    }
    agent.settled();
}

#[test]
fn it_goes_from_every_place_and_strangers_stay() {
    for back_end in BACK_ENDS {
        for world in [World::Model(FilterWorld::new()), World::linux()] {
            leave(&world);
            let (left, strangers) = count(&world);
            assert!(left > 10 && strangers > 4, "{left} {strangers}");
            let agent = Agent::start(&world, back_end);
            agent.tell(PolicyInput::Deltas(first()));
            gone(&world, &agent);
            assert_eq!(count(&world), (0, strangers), "{back_end}");
            let wanted = world.state(back_end);
            let r = agent.tidy();
            assert_eq!(r.counters.repairs, 0, "{back_end}: {r:?}");
            same(&world.state(back_end), &wanted, back_end);
            agent.stop();
        }
    }
}

static RUNS: AtomicBool = AtomicBool::new(true);

fn runs() -> Option<String> {
    RUNS.load(Ordering::SeqCst).then(|| "a sign".to_owned())
}

#[test]
fn while_one_runs_it_stays_and_is_named() {
    let world = World::Model(FilterWorld::new());
    leave(&world);
    let before = count(&world);
    let agent = Agent::beside(&world, "iptables-nft", runs);
    agent.tell(PolicyInput::Deltas(first()));
    agent.named("a Calico runs on this node (a sign)");
    assert!(agent.report().in_sync, "ours is in force beside it");
    assert_eq!(count(&world), before);
    RUNS.store(false, Ordering::SeqCst);
    agent.settled();
    assert_eq!(count(&world), (0, before.1));
    // It is back at once: nobody fights it.
    leave_rules(&world);
    agent.tell(PolicyInput::Check);
    agent.named("back in the packet filter though they were removed");
    assert!(count(&world).0 > 0);
}

fn leave_rules(world: &World) {
    world.inside(|mut nf| {
        nf.set_variant(Variant::Nft);
        nf.restore(IpVersion::V4, RULES).unwrap();
    });
}

#[test]
fn what_a_stranger_holds_is_named_until_he_lets_go() {
    let world = World::Model(FilterWorld::new());
    leave(&world);
    let rule = |verb: &str| {
        let input = format!("*mangle\n{verb} INPUT -m set --match-set cali40s:abc src -j ACCEPT\nCOMMIT\n");
        world.inside(|mut nf| nf.restore(IpVersion::V4, &input).unwrap());
    };
    rule("-A");
    let agent = Agent::start(&world, "iptables-nft");
    agent.tell(PolicyInput::Deltas(first()));
    agent.named("cannot be removed");
    rule("-D");
    agent.settled();
    assert_eq!(count(&world).0, 0);
}

#[test]
fn a_write_that_ends_in_its_middle_is_finished() {
    for fault in [NfCall::Restore, NfCall::RestoreMidway, NfCall::Lock, NfCall::RestoreSets(1), NfCall::Nft] {
        let model = FilterWorld::new();
        let world = World::Model(model.clone());
        let agent = Agent::start(&world, "iptables-nft");
        agent.tell(PolicyInput::Deltas(first()));
        agent.settled();
        leave(&world);
        model.fail_next(fault);
        agent.tell(PolicyInput::Check);
        gone(&world, &agent);
    }
}

/// Counts what is asked of the kernel.
struct Counting(Box<dyn Netfilter>, Arc<Mutex<Vec<String>>>);

impl Counting {
    fn note(&self, call: String) {
        self.1.lock().unwrap().push(call);
    }
}

impl Netfilter for Counting {
    fn again(&self) -> Box<dyn Netfilter> {
        Box::new(Self(self.0.again(), Arc::clone(&self.1)))
    }

    fn save(&mut self, version: IpVersion) -> Result<String, NfError> {
        self.note(format!("save {version:?}"));
        self.0.save(version)
    }

    fn restore(&mut self, version: IpVersion, input: &str) -> Result<(), NfError> {
        self.0.restore(version, input)
    }

    fn set_variant(&mut self, variant: Variant) {
        self.0.set_variant(variant);
    }

    fn probe(&mut self, variant: Variant, version: IpVersion) -> Result<Option<String>, NfError> {
        self.note(format!("probe {variant} {version:?}"));
        self.0.probe(variant, version)
    }

    fn default_variant(&mut self) -> Result<Variant, NfError> {
        self.0.default_variant()
    }

    fn save_sets(&mut self) -> Result<String, NfError> {
        self.note("sets".into());
        self.0.save_sets()
    }

    fn restore_sets(&mut self, input: &str) -> Result<(), NfError> {
        self.0.restore_sets(input)
    }

    fn nft_list(&mut self, version: IpVersion, table: &str) -> Result<Option<String>, NfError> {
        self.note(format!("table {table} {version:?}"));
        self.0.nft_list(version, table)
    }

    fn nft(&mut self, input: &str) -> Result<(), NfError> {
        self.0.nft(input)
    }

    fn flows(&mut self, version: IpVersion) -> Result<Vec<Flow>, NfError> {
        self.0.flows(version)
    }

    fn forget(&mut self, flows: &[Flow]) -> Result<usize, NfError> {
        self.0.forget(flows)
    }

    fn mark(&mut self, flows: &[Flow], bits: u32, set: bool) -> Result<usize, NfError> {
        self.0.mark(flows, bits, set)
    }
}

#[test]
fn where_none_was_only_its_two_tables_are_asked_for() {
    for back_end in BACK_ENDS {
        let asked = Arc::default();
        let world = World::Model(FilterWorld::new());
        // A first agent, so that the second one finds rules and writes none.
        let agent = Agent::start(&world, back_end);
        agent.tell(PolicyInput::Deltas(first()));
        agent.settled();
        agent.stop();
        let agent = Agent::with(&world, back_end, |nf| Box::new(Counting(nf, Arc::clone(&asked))));
        agent.tell(PolicyInput::Deltas(first()));
        agent.settled();
        agent.tidy();
        let of = |word: &str| asked.lock().unwrap().iter().filter(|c| c.contains(word)).count();
        let start = of("probe");
        agent.tidy();
        agent.tidy();
        assert_eq!((of("table calico"), of("probe")), (2, start), "{back_end}: {:?}", asked.lock().unwrap());
    }
}
