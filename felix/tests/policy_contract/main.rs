//! The contract of the policy driver with what is below it, on the model of the kernel and on Linux in a namespace: what
//! is written is recognised, what a stranger undoes comes back, what fails is tried again until all is as it would have
//! been without the failure. Needs root.
//!
//! `BRINDLE_LOCK_SECONDS`: how long somebody else holds the lock of iptables (2).

use std::{
    collections::BTreeSet,
    fs::File,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    felix::FelixConfigurationSpec,
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix::policy::{
    Calculation, PolicyHandle, PolicyInput, PolicyReport, PolicySetup, Verified, spawn_policy,
};
use brindle_felix_core::policy::active::{
    Action, ActivePolicy, ActiveProfile, EndpointId, EndpointPolicy, EndpointTier, Interface, IpSet,
    IpSetDelta, IpSetId, IpSetKind, IpSetMember, PolicyDelta, PolicyId, PolicyKind, PolicySettings, Rule,
    TierAction, Why,
};
use brindle_kernel::{
    fake::{FilterWorld, NfCall},
    netfilter::{Flow, IpVersion, Netfilter, NfError, Tools, Variant},
    netns::NetNs,
};
use serde_json::json;
use tokio::task::JoinHandle;

mod aside;
mod calico;
mod flows;
mod sets;

const LONG: Duration = Duration::from_secs(60);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace, removed with this.
struct Ns(String);

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}

enum World {
    Model(FilterWorld),
    Linux(Ns),
}

impl World {
    fn linux() -> Self {
        let name = format!("bt-{}-con{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        NetNs::create(&name).expect("root is needed to make a network namespace");
        Self::Linux(Ns(name))
    }

    fn inside<T: Send>(&self, f: impl FnOnce(Box<dyn Netfilter>) -> T + Send) -> T {
        match self {
            Self::Model(w) => f(Box::new(w.open())),
            Self::Linux(ns) => NetNs::named(&ns.0).unwrap().run(|| f(Box::new(Tools::default()))).unwrap(),
        }
    }

    /// Everything of ours, in an order of its own.
    fn state(&self, back_end: &str) -> BTreeSet<String> {
        self.inside(|mut nf| {
            let mut text = String::new();
            for version in [IpVersion::V4, IpVersion::V6] {
                match back_end {
                    "nftables" => {
                        let table = nf.nft_list(version, "brindle").unwrap().unwrap_or_default();
                        text.push_str(&table.replace("{\"", "\n{\""));
                    }
                    make => {
                        let variant = if make == "iptables-nft" { Variant::Nft } else { Variant::Legacy };
                        text.push_str(&nf.probe(variant, version).unwrap().unwrap_or_default());
                        text.push_str(&nf.save_sets().unwrap());
                    }
                }
            }
            // Handles, salts of sets and the time of saving are the kernel's own business.
            let mine = text.lines().filter(|l| !l.starts_with('#')).map(without_handles);
            mine.filter(|l| l.contains("brindle")).collect()
        })
    }
}

fn without_handles(line: &str) -> String {
    if let Some((create, _)) = line.split_once(" initval ") {
        return create.to_owned();
    }
    let mut words: Vec<String> = Vec::new();
    for part in line.split(", ") {
        if !part.contains("\"handle\"") && !part.contains("\"index\"") {
            words.push(part.to_owned());
        }
    }
    words.join(", ")
}

struct Nothing;

impl Calculation for Nothing {
    fn apply(&mut self, _: &SyncEvent) {
        // The test hands over deltas.
    }

    fn flush(&mut self) -> Vec<PolicyDelta> {
        Vec::new()
    }
}

struct Agent {
    runtime: tokio::runtime::Runtime,
    handle: PolicyHandle,
}

impl Agent {
    fn start(world: &World, back_end: &str) -> Self {
        Self::with(world, back_end, |nf| nf)
    }

    fn with(
        world: &World,
        back_end: &str,
        tools: impl FnOnce(Box<dyn Netfilter>) -> Box<dyn Netfilter> + Send,
    ) -> Self {
        Self::early(world, &[], tools, || None).told(back_end)
    }

    /// One beside a Calico, as that shows.
    fn beside(world: &World, back_end: &str, calico: fn() -> Option<String>) -> Self {
        Self::early(world, &[], |nf| nf, calico).told(back_end)
    }

    fn told(self, back_end: &str) -> Self {
        let agent = self;
        let (nft, iptables) = match back_end {
            "nftables" => ("Enabled", "Auto"),
            "iptables-nft" => ("Disabled", "NFT"),
            _ => ("Disabled", "Legacy"),
        };
        let mut spec = FelixConfigurationSpec::default();
        spec.extra.insert("nftablesMode".into(), json!(nft));
        spec.extra.insert("iptablesBackend".into(), json!(iptables));
        let r = Resource::new(ObjectMeta::named("default"), spec);
        let entry =
            Entry { key: r.key(), revision: Revision(1), value: serde_json::to_value(&r).unwrap().into() };
        agent.tell(PolicyInput::Store(vec![SyncEvent::Upsert(entry), SyncEvent::InSync]));
        agent
    }

    /// One that knows nothing of the store yet.
    fn early(
        world: &World,
        prefixes: &[&str],
        tools: impl FnOnce(Box<dyn Netfilter>) -> Box<dyn Netfilter> + Send,
        calico: fn() -> Option<String>,
    ) -> Self {
        let families = brindle_felix_core::rules::ir::Family::ALL.into();
        let prefixes = prefixes.iter().map(|p| (*p).to_owned()).collect();
        let setup = PolicySetup { node: "n1".into(), families, prefixes, calico };
        let handle = world.inside(|nf| spawn_policy(&setup, tools(nf), Box::new(Nothing)).unwrap());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, handle }
    }

    fn tell(&self, input: PolicyInput) {
        assert!(self.runtime.block_on(self.handle.send(input)), "the policy thread lives");
    }

    fn report(&self) -> PolicyReport {
        self.runtime.block_on(async {
            let (tx, rx) = tokio::sync::oneshot::channel();
            assert!(self.handle.send(PolicyInput::Ask(tx)).await);
            tokio::time::timeout(LONG, rx).await.expect("it answers").expect("it lives")
        })
    }

    #[track_caller]
    fn settled(&self) -> PolicyReport {
        let deadline = Instant::now() + LONG;
        loop {
            let r = self.report();
            if r.in_sync && r.problems.is_empty() {
                return r;
            }
            assert!(Instant::now() < deadline, "{r:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a problem with these words is reported.
    #[track_caller]
    fn named(&self, words: &str) {
        let deadline = Instant::now() + LONG;
        while !self.report().problems.iter().any(|p| p.contains(words)) {
            assert!(Instant::now() < deadline, "{:?}", self.report());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Also what is left of things that have gone, which may stay for a while, is removed.
    #[track_caller]
    fn tidy(&self) -> PolicyReport {
        self.settled();
        self.tell(PolicyInput::Check);
        self.settled()
    }

    fn stop(self) {
        let mut report = self.handle.watch();
        drop(self.handle);
        self.runtime.block_on(async {
            let ended = async { while report.changed().await.is_ok() {} };
            tokio::time::timeout(LONG, ended).await.expect("it ends");
        });
    }
}

fn policy(name: &str, rule: Rule) -> PolicyDelta {
    PolicyDelta::Policy(Arc::new(ActivePolicy { id: id(name), inbound: vec![rule], outbound: vec![] }))
}

fn id(name: &str) -> PolicyId {
    PolicyId {
        tier: "default".into(),
        kind: PolicyKind::NetworkPolicy,
        namespace: "red".into(),
        name: name.into(),
    }
}

fn net(text: &str) -> IpSetMember {
    IpSetMember::Net(text.parse().unwrap())
}

fn endpoint(n: usize, policies: &[&str]) -> PolicyDelta {
    let tiers = match policies {
        [] => Vec::new(),
        names => vec![EndpointTier {
            name: "default".into(),
            default_action: TierAction::Deny,
            ingress: names.iter().map(|n| id(n)).collect(),
            egress: Vec::new(),
        }],
    };
    PolicyDelta::Endpoint(Arc::new(EndpointPolicy {
        id: EndpointId::Workload { namespace: "red".into(), name: format!("w{n}") },
        interface: Interface::Name(format!("cali{n}")),
        addresses: vec![
            format!("10.0.0.{}/32", n + 1).parse().unwrap(),
            format!("fd00::{}/128", n + 1).parse().unwrap(),
        ],
        allowed_sources: Vec::new(),
        mac: None,
        closed: None,
        tiers,
        host: None,
        profiles: vec!["kns.red".into()],
    }))
}

/// From nothing: a set, a policy that uses it, two endpoints.
fn first() -> Vec<PolicyDelta> {
    let allow = || vec![Rule::any(Action::Allow, Why::default())];
    let mut from_set = Rule::any(Action::Allow, Why::default());
    from_set.src.sets = vec![IpSetId("s:one".into())];
    let members = [net("10.0.0.0/24"), net("fd00::/64")].into();
    vec![
        PolicyDelta::Settings(PolicySettings::default()),
        PolicyDelta::IpSet(IpSet { id: IpSetId("s:one".into()), kind: IpSetKind::Net, members }),
        policy("one", from_set),
        PolicyDelta::Profile(Arc::new(ActiveProfile {
            name: "kns.red".into(),
            inbound: allow(),
            outbound: allow(),
        })),
        endpoint(0, &["one"]),
        endpoint(1, &[]),
        PolicyDelta::InSync,
    ]
}

/// A set more and one less, members, policies, endpoints: everything that can change at once.
fn second() -> Vec<PolicyDelta> {
    let mut from_set = Rule::any(Action::Allow, Why::default());
    from_set.src.sets = vec![IpSetId("s:two".into())];
    let members = [net("192.0.2.0/24"), net("198.51.100.0/24"), net("fd01::/64")].into();
    vec![
        PolicyDelta::IpSet(IpSet { id: IpSetId("s:two".into()), kind: IpSetKind::Net, members }),
        policy("two", from_set),
        endpoint(1, &["two"]),
        endpoint(2, &["two"]),
        endpoint(0, &[]),
        PolicyDelta::PolicyRemove(id("one")),
        PolicyDelta::IpSetRemove(IpSetId("s:one".into())),
    ]
}

#[track_caller]
fn same(have: &BTreeSet<String>, want: &BTreeSet<String>, what: &str) {
    let lacks: Vec<_> = want.difference(have).collect();
    let extra: Vec<_> = have.difference(want).collect();
    assert!(lacks.is_empty() && extra.is_empty(), "{what}: lacks {lacks:#?}, has {extra:#?}");
}

const BACK_ENDS: [&str; 3] = ["iptables-nft", "iptables-legacy", "nftables"];

#[test]
fn what_was_written_is_recognised_and_what_a_stranger_undoes_comes_back() {
    for world in [World::Model(FilterWorld::new()), World::linux()] {
        for back_end in BACK_ENDS {
            let agent = Agent::start(&world, back_end);
            agent.tell(PolicyInput::Deltas(first()));
            agent.tidy();
            let wanted = world.state(back_end);
            assert!(!wanted.is_empty());
            agent.stop();

            let agent = Agent::start(&world, back_end);
            agent.tell(PolicyInput::Deltas(first()));
            let c = agent.settled().counters;
            assert_eq!((c.table_writes, c.set_writes, c.nft_writes), (0, 0, 0), "{back_end}: {c:?}");

            world.inside(|mut nf| match back_end {
                "nftables" => nf.nft("flush chain ip brindle filter-FORWARD\n").unwrap(),
                make => {
                    nf.set_variant(if make == "iptables-nft" { Variant::Nft } else { Variant::Legacy });
                    nf.restore(IpVersion::V4, "*filter\n-F FORWARD\n-F brindle-tw-cali0\nCOMMIT\n").unwrap();
                }
            });
            agent.tell(PolicyInput::Check);
            let r = agent.settled();
            assert_eq!(r.counters.repairs, 1, "{back_end}: {r:?}");
            same(&world.state(back_end), &wanted, back_end);
            agent.stop();
        }
    }
}

#[test]
fn devices_of_the_given_prefixes_are_guarded_before_the_resources_are_known() {
    for world in [World::Model(FilterWorld::new()), World::linux()] {
        let agent = Agent::early(&world, &["eni", "veth"], |nf| nf, || None);
        assert!(!agent.report().in_sync);
        let make = world.inside(|mut nf| nf.default_variant().unwrap());
        let state = world.state(if make == Variant::Nft { "iptables-nft" } else { "iptables-legacy" });
        for prefix in ["eni", "veth"] {
            let to_dispatch = |l: &&String| {
                l.starts_with("-A brindle-FORWARD")
                    && l.contains(&format!("-i {prefix}+ "))
                    && l.contains("from-wl")
            };
            assert_eq!(state.iter().filter(to_dispatch).count(), 1, "{prefix}: {state:#?}");
        }
        assert!(!state.iter().any(|l| l.contains("cali+")), "{state:#?}");
        agent.stop();
    }
}

#[test]
fn after_any_failure_all_is_as_without_it() {
    let faults = [
        NfCall::Restore,
        NfCall::RestoreMidway,
        NfCall::Lock,
        NfCall::RestoreSets(0),
        NfCall::RestoreSets(1),
        NfCall::RestoreSets(2),
        NfCall::Nft,
    ];
    for back_end in BACK_ENDS {
        let good = World::Model(FilterWorld::new());
        let agent = Agent::start(&good, back_end);
        agent.tell(PolicyInput::Deltas(first()));
        agent.settled();
        agent.tell(PolicyInput::Deltas(second()));
        agent.tidy();
        let wanted = good.state(back_end);
        for fault in faults {
            let of_nft = fault == NfCall::Nft;
            if of_nft != (back_end == "nftables") {
                continue;
            }
            for times in [1, 3] {
                let model = FilterWorld::new();
                let world = World::Model(model.clone());
                let agent = Agent::start(&world, back_end);
                agent.tell(PolicyInput::Deltas(first()));
                agent.settled();
                let errors = agent.report().counters.errors;
                (0..times).for_each(|_| model.fail_next(fault));
                agent.tell(PolicyInput::Deltas(second()));
                let r = agent.tidy();
                assert!(r.counters.errors > errors, "{back_end}: {fault:?} did not happen: {r:?}");
                same(&world.state(back_end), &wanted, &format!("{back_end}: {fault:?} {times} times"));
                assert_eq!(r.ready.len(), 3, "{r:?}");
                // And reading fails while it makes sure.
                for reading in [NfCall::Save, NfCall::SaveSets, NfCall::NftList] {
                    model.fail_next(reading);
                }
                agent.tidy();
                same(&world.state(back_end), &wanted, back_end);
            }
        }
    }
}

#[test]
fn a_newcomers_rules_stay_unmet_while_members_are_refused_and_are_complete_then() {
    let newcomer = || {
        let mut from_set = Rule::any(Action::Allow, Why::default());
        from_set.src.sets = vec![IpSetId("s:two".into())];
        let members = [net("192.0.2.0/24"), net("fd01::/64")].into();
        let members_of_one =
            IpSetDelta { id: IpSetId("s:one".into()), added: vec![net("203.0.113.0/24")], removed: vec![] };
        vec![
            PolicyDelta::IpSet(IpSet { id: IpSetId("s:two".into()), kind: IpSetKind::Net, members }),
            PolicyDelta::IpSetDelta(members_of_one),
            policy("two", from_set),
            endpoint(2, &["two"]),
        ]
    };
    let run = |refused: usize| {
        let model = FilterWorld::new();
        let world = World::Model(model.clone());
        let agent = Agent::start(&world, "nftables");
        agent.tell(PolicyInput::Deltas(first()));
        agent.settled();
        (0..refused).for_each(|_| model.fail_next(NfCall::NftMembers));
        agent.tell(PolicyInput::Deltas(newcomer()));
        let (report, state) = (agent.report(), world.state("nftables"));
        model.mend();
        (report, state, agent.settled(), world.state("nftables"))
    };
    let (_, _, _, wanted) = run(0);
    assert!(wanted.iter().any(|l| l.contains("203.0.113.0")), "{wanted:#?}");
    // It is tried again and again until it is let through.
    let (early, between, late, end) = run(64);
    assert!(!early.problems.is_empty() && early.ready.len() == 2, "{early:?}");
    assert!(
        between.iter().any(|l| l.contains("filter-brindle-tw-cali2")),
        "its chains are there: {between:#?}"
    );
    assert!(!between.iter().any(|l| l.contains("[\"cali2\"") || l.contains("203.0.113.0")), "{between:#?}");
    assert!(late.counters.errors >= 1 && late.ready.len() == 3, "{late:?}");
    same(&end, &wanted, "after the refusals");
}

/// Where readings on other threads wait.
#[derive(Default)]
struct Gate {
    /// How many wait; how many may pass while it is closed; whether it is.
    state: Mutex<(usize, usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut s = self.state.lock().unwrap();
        s.0 += 1;
        self.changed.notify_all();
        s = self.changed.wait_while(s, |s| s.2 && s.1 == 0).unwrap();
        s.0 -= 1;
        s.1 = s.1.saturating_sub(1);
    }

    fn set(&self, closed: bool) {
        self.state.lock().unwrap().2 = closed;
        self.changed.notify_all();
    }

    fn let_one_through(&self) {
        self.state.lock().unwrap().1 += 1;
        self.changed.notify_all();
    }

    /// `false`: nobody waits, and `done` has become true.
    fn somebody_waits(&self, done: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + LONG;
        let mut s = self.state.lock().unwrap();
        while s.0 == 0 || s.1 > 0 {
            if done() {
                return false;
            }
            assert!(Instant::now() < deadline, "nobody reads");
            s = self.changed.wait_timeout(s, Duration::from_millis(20)).unwrap().0;
        }
        true
    }
}

/// Reads on other threads through a gate.
struct Gated {
    inner: Box<dyn Netfilter>,
    gate: Arc<Gate>,
    other_thread: bool,
}

impl Gated {
    fn reading(&self, version: IpVersion) {
        if self.other_thread && version == IpVersion::V4 {
            self.gate.pass();
        }
    }
}

impl Netfilter for Gated {
    fn again(&self) -> Box<dyn Netfilter> {
        Box::new(Self { inner: self.inner.again(), gate: Arc::clone(&self.gate), other_thread: true })
    }

    fn save(&mut self, version: IpVersion) -> Result<String, NfError> {
        self.reading(version);
        self.inner.save(version)
    }

    fn restore(&mut self, version: IpVersion, input: &str) -> Result<(), NfError> {
        self.inner.restore(version, input)
    }

    fn set_variant(&mut self, variant: Variant) {
        self.inner.set_variant(variant);
    }

    fn probe(&mut self, variant: Variant, version: IpVersion) -> Result<Option<String>, NfError> {
        self.inner.probe(variant, version)
    }

    fn default_variant(&mut self) -> Result<Variant, NfError> {
        self.inner.default_variant()
    }

    fn save_sets(&mut self) -> Result<String, NfError> {
        self.inner.save_sets()
    }

    fn restore_sets(&mut self, input: &str) -> Result<(), NfError> {
        self.inner.restore_sets(input)
    }

    fn nft_list(&mut self, version: IpVersion, table: &str) -> Result<Option<String>, NfError> {
        self.reading(version);
        self.inner.nft_list(version, table)
    }

    fn nft(&mut self, input: &str) -> Result<(), NfError> {
        self.inner.nft(input)
    }

    fn flows(&mut self, version: IpVersion) -> Result<Vec<Flow>, NfError> {
        self.inner.flows(version)
    }

    fn forget(&mut self, flows: &[Flow]) -> Result<usize, NfError> {
        self.inner.forget(flows)
    }

    fn mark(&mut self, flows: &[Flow], bits: u32, set: bool) -> Result<usize, NfError> {
        self.inner.mark(flows, bits, set)
    }
}

#[test]
fn whoever_asks_for_the_kernels_word_waits_for_it_and_keeps_nobody_waiting() {
    for back_end in BACK_ENDS {
        let model = FilterWorld::new();
        let world = World::Model(model.clone());
        let gate = Arc::new(Gate::default());
        let own = Arc::clone(&gate);
        let gated =
            move |inner| Box::new(Gated { inner, gate: own, other_thread: false }) as Box<dyn Netfilter>;
        let agent = Agent::with(&world, back_end, gated);
        agent.tell(PolicyInput::Deltas(first()));
        agent.settled();
        let ask = |name: &str| {
            let (handle, key) = (agent.handle.clone(), Key::new(Kind::WorkloadEndpoint, Some("red"), name));
            agent.runtime.spawn(async move { handle.verify(&key, LONG).await })
        };
        let answer = |asked: JoinHandle<Verified>| agent.runtime.block_on(asked).unwrap();

        // A newcomer is served while the kernel is read, and the answer knows of it.
        gate.set(true);
        let asked = ask("w0");
        gate.somebody_waits(|| false);
        agent.tell(PolicyInput::Deltas(vec![endpoint(2, &["one"])]));
        let r = agent.report();
        assert_eq!((r.settled, r.ready.len()), (true, 3), "{back_end}: {r:?}");
        let late = ask("w2");
        assert!(!asked.is_finished() && !late.is_finished(), "{back_end}: nobody has read anything");
        gate.set(false);
        assert_eq!(answer(asked), Ok(Vec::new()), "{back_end}");
        assert_eq!(answer(late), Ok(Vec::new()), "{back_end}: a newcomer");

        // What a stranger undid before the question is found.
        let undo = |nf: &mut dyn Netfilter| match back_end {
            "nftables" => nf.nft("flush chain ip brindle filter-brindle-tw-cali0\n").unwrap(),
            make => {
                nf.set_variant(if make == "iptables-nft" { Variant::Nft } else { Variant::Legacy });
                nf.restore(IpVersion::V4, "*filter\n-F brindle-tw-cali0\nCOMMIT\n").unwrap();
            }
        };
        // A check that was due may mend it before.
        let said = (0..50).find_map(|_| {
            world.inside(|mut nf| undo(&mut *nf));
            answer(ask("w0")).map(|lines| (!lines.is_empty()).then(|| lines.join("; "))).transpose()
        });
        let said = said.expect("it is found").unwrap();
        assert!(said.contains("brindle-tw-cali0"), "{back_end}: {said}");
        assert_eq!(answer(ask("w0")), Ok(Vec::new()), "{back_end}: mended");

        // Somebody writes during each reading: there is an answer all the same.
        gate.set(true);
        let asked = ask("w0");
        let mut round = 0;
        while gate.somebody_waits(|| asked.is_finished()) && !asked.is_finished() {
            round += 1;
            assert!(round < 50, "{back_end}: no end of readings");
            agent.tell(PolicyInput::Deltas(vec![endpoint(2, if round % 2 == 0 { &["one"] } else { &[] })]));
            agent.settled();
            gate.let_one_through();
        }
        assert_eq!(answer(asked), Ok(Vec::new()), "{back_end}: after {round} readings");
        gate.set(false);
        agent.stop();
    }
}

#[test]
fn a_held_lock_is_named_and_waited_for() {
    let seconds: u64 = std::env::var("BRINDLE_LOCK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    let world = World::linux();
    let lock = std::env::temp_dir().join(format!("bt-{}-xtables.lock", std::process::id()));
    let file = File::create(&lock).unwrap();
    let path = lock.to_str().unwrap().to_owned();
    let agent = Agent::with(&world, "iptables-legacy", |_| {
        Box::new(Tools::new(Variant::Legacy).env("XTABLES_LOCKFILE", &path).lock_wait(1))
    });
    agent.tell(PolicyInput::Deltas(first()));
    agent.settled();
    file.lock().unwrap();
    let held = Instant::now();
    agent.tell(PolicyInput::Deltas(second()));
    let r = agent.report();
    assert!(r.problems.iter().any(|p| p.contains("another process has held the lock for 1 s")), "{r:?}");
    let state = world.state("iptables-legacy");
    assert!(state.iter().any(|l| l.contains("brindle-tw-cali0")), "what was in force stays: {state:?}");
    while held.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(50));
    }
    file.unlock().unwrap();
    let r = agent.settled();
    assert_eq!(r.ready.len(), 3, "{r:?}");
    assert!(world.state("iptables-legacy").iter().any(|l| l.contains("brindle-tw-cali2")));
    let _ = std::fs::remove_file(lock);
}
