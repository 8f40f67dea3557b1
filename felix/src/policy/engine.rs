//! The thread: inputs, decision, one write; what failed is tried again with growing pauses. What it reads back, and when,
//! is in `checks`.

mod aside;
mod calico;
mod checks;
mod closing;
mod doors;
mod flows;
mod host;
mod moves;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config_core::{Kind, store::SyncEvent};
use brindle_felix_core::{
    inputs::{Impact, Inputs},
    policy::{
        active::{EndpointPolicy, Interface, PolicyDelta},
        state::PolicyState,
    },
    rules::{
        around::{self, BackEnd, Settings},
        calico::is_line,
        ir::Family,
        layout::{Layout, Surroundings},
        model::{Changed, Model},
        policy::Style,
        table_plan::{self, Leftovers},
    },
};
use brindle_kernel::{
    netfilter::{IpVersion, Netfilter, NfError, Variant, VariantChoice, choose},
    netlink::Rtnl,
};
use tokio::sync::{mpsc, oneshot, watch};

pub(super) use self::host::addresses;
use self::{
    aside::{Aside, TRIES},
    calico::Calico,
    checks::Questions,
    closing::Closing,
    flows::Tracked,
    host::{HostAddresses, Learned},
    moves::Moves,
};
use super::{
    bridge,
    driver::{DriveError, Driver, Mode},
    handle::{PolicyHandle, PolicyInput, PolicyReport, PolicySetup},
    ipvs,
    readback::Look,
};

/// How long what is left of workloads that have gone stays while nothing else happens, and at most.
const LINGER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Batches waiting for the thread; beyond that senders wait.
const QUEUE: usize = 256;
/// Batches decided on together at most.
const TOGETHER: usize = 1024;
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// First check after a write; the pause doubles up to the refresh interval.
const CHECK: Duration = Duration::from_secs(1);

/// Turns events of the store into what is active on this node. The calculation graph; a script in tests.
pub trait Calculation: Send {
    /// Takes one event.
    fn apply(&mut self, event: &SyncEvent);
    /// What changed since the last call, in an order that can be carried out.
    fn flush(&mut self) -> Vec<PolicyDelta>;
    /// Resources that cannot be enforced as written, a line each.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Starts the thread in the network namespace of the calling thread.
pub fn spawn_policy(
    setup: &PolicySetup,
    netfilter: Box<dyn Netfilter>,
    calculation: Box<dyn Calculation>,
) -> std::io::Result<PolicyHandle> {
    let (tx, rx) = mpsc::channel(QUEUE);
    let (report_tx, report) = watch::channel(PolicyReport::default());
    let families = if setup.families.is_empty() { kernel_families() } else { setup.families.clone() };
    let mut settings = Settings::default();
    if !setup.prefixes.is_empty() {
        settings.around.prefixes.clone_from(&setup.prefixes);
    }
    let engine = Engine {
        calculation,
        inputs: Inputs::new(setup.node.clone()),
        model: Model::default(),
        state: PolicyState::default(),
        driver: Driver::new(netfilter, families),
        settings,
        settings_stale: true,
        report: report_tx,
        pending: Changed::default(),
        failed: None,
        check_at: None,
        check_pause: CHECK,
        check_now: false,
        look: None,
        found: false,
        look_took: Duration::ZERO,
        compared: Instant::now(),
        resources: Vec::new(),
        addresses: HostAddresses::default(),
        moves: None,
        rivals: Vec::new(),
        ipvs: ipvs::Watch::default(),
        ipvs_problems: Vec::new(),
        heard: false,
        revision: 0,
        mode_problem: None,
        problem: None,
        bridge_problem: None,
        applied: false,
        asked: Vec::new(),
        waiting: Vec::new(),
        questions: Questions::default(),
        urgent: false,
        tidy: None,
        aside: Aside::default(),
        closing: Closing::default(),
        tracked: Tracked::default(),
        calico: Calico::new(setup.calico),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("policy".into()).spawn(move || runtime.block_on(engine.run(rx)))?;
    Ok(PolicyHandle { inputs: tx, report })
}

fn kernel_families() -> Vec<Family> {
    if std::path::Path::new("/proc/net/if_inet6").exists() { Family::ALL.into() } else { vec![Family::V4] }
}

struct Engine {
    calculation: Box<dyn Calculation>,
    inputs: Inputs,
    model: Model,
    /// The same as a value that verdicts are given on.
    state: PolicyState,
    driver: Driver,
    settings: Settings,
    settings_stale: bool,
    report: watch::Sender<PolicyReport>,
    /// Changes that are not in the kernel yet.
    pending: Changed,
    /// The last write failed: next attempt, pause after that.
    failed: Option<(Instant, Duration)>,
    check_at: Option<Instant>,
    check_pause: Duration,
    /// Asked for by somebody who waits for it.
    check_now: bool,
    /// The reading of a check, under way.
    look: Option<Look>,
    /// What it found is believed, and to be compared.
    found: bool,
    /// How long the last reading took, and when the kernel was last compared with what is wanted.
    look_took: Duration,
    compared: Instant,
    resources: Vec<String>,
    /// Of this host, with their devices, while host endpoints are known by them; who tells of changes; and host endpoints
    /// that others stand in the way of there.
    addresses: HostAddresses,
    moves: Option<Moves>,
    rivals: Vec<String>,
    /// What kube-proxy has in IPVS mode; and what does not hold beside it. Told, but no reason to call the node broken.
    ipvs: ipvs::Watch,
    ipvs_problems: Vec<String>,
    /// Resources changed: what is wrong with them may have.
    heard: bool,
    /// The latest revision taken in.
    revision: u64,
    mode_problem: Option<String>,
    problem: Option<String>,
    /// What keeps packets from the rules.
    bridge_problem: Option<String>,
    /// Everything was written at least once.
    applied: bool,
    asked: Vec<oneshot::Sender<PolicyReport>>,
    waiting: Vec<oneshot::Sender<()>>,
    questions: Questions,
    /// Something other than departures of workloads was taken in since the last step.
    urgent: bool,
    /// When what is left of workloads that have gone is removed, and when at the latest.
    tidy: Option<(Instant, Instant)>,
    aside: Aside,
    closing: Closing,
    tracked: Tracked,
    calico: Calico,
}

/// Whether an input says no more than that workloads have gone.
fn departures(input: &PolicyInput) -> bool {
    let gone = |e: &SyncEvent| matches!(e, SyncEvent::Delete(key) if key.kind == Kind::WorkloadEndpoint);
    matches!(input, PolicyInput::Store(events) if events.iter().all(gone))
}

impl Engine {
    async fn run(mut self, mut rx: mpsc::Receiver<PolicyInput>) {
        // Why it could not is in the log, and asked for again by whoever depends on it.
        drop(self.guard());
        loop {
            let tidy = self.tidy.map(|(at, _)| at);
            let flows = self.tracked.due();
            let wake = match self.failed {
                Some((at, _)) => flows.into_iter().chain([at]).min(),
                None => {
                    let check = self.check_at.filter(|_| self.look.is_none());
                    let told = [self.ipvs.due(), self.addresses.due(), self.calico.due(), self.aside.due()];
                    let others = [tidy, flows].into_iter().chain(told);
                    check.into_iter().chain(others.flatten()).min()
                }
            };
            let sleep = async {
                match wake {
                    Some(t) => tokio::time::sleep_until(t.into()).await,
                    None => std::future::pending().await,
                }
            };
            let look = async {
                match &mut self.look {
                    Some(look) => (look.answer().await, look.since),
                    None => std::future::pending().await,
                }
            };
            let moved = async {
                match &mut self.moves {
                    Some(moves) => moves.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = moved => {
                    self.ipvs.hurry();
                    self.urgent = true;
                }
                input = rx.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                (answer, since) = look => {
                    self.look = None;
                    self.urgent = true;
                    self.looked(answer, since);
                }
                found = self.tracked.walked() => {
                    self.found(found);
                    self.publish();
                    continue;
                }
                () = sleep => self.urgent = true,
            }
            for _ in 0..TOGETHER {
                match rx.try_recv() {
                    Ok(input) => self.take(input),
                    Err(_) => break,
                }
            }
            let now = Instant::now();
            if !std::mem::take(&mut self.urgent) {
                // Rules of a workload that has gone harm nobody for a moment; whoever comes next does not wait until the
                // kernel has got rid of them.
                self.tidy_later(now);
                continue;
            }
            // Before anything is mended; what is not written yet is written first. Whoever asks again finds it mended.
            self.verify(false);
            let mut written = self.step(Instant::now());
            if self.verify(true)
                && let Some(more) = self.step(Instant::now())
            {
                written.get_or_insert_default().absorb(more);
            }
            // Who waits for the rules waits for this as well: a new pod's packets meet what is left there.
            self.clear_calico(Instant::now());
            if self.driver.untidy {
                self.tidy_later(now);
            } else {
                self.tidy = None;
            }
            self.publish();
            for who in self.waiting.drain(..) {
                // Who has gone away needs no answer.
                let _ = who.send(());
            }
            // Somebody waits for the rules; nobody for this.
            if written.is_some() || self.tracked.due().is_some() {
                self.cut_flows(&written.unwrap_or_default(), Instant::now());
                self.publish();
            }
            self.answer();
        }
    }

    /// Departures wait while others come, but not for ever.
    fn tidy_later(&mut self, now: Instant) {
        let latest = self.tidy.map_or(now + LINGER.1, |(_, latest)| latest);
        self.tidy = Some(((now + LINGER.0).min(latest), latest));
    }

    fn take(&mut self, input: PolicyInput) {
        self.urgent |= !departures(&input);
        match input {
            PolicyInput::Store(events) => {
                self.heard = true;
                for e in &events {
                    if let SyncEvent::Upsert(entry) = e {
                        self.revision = self.revision.max(entry.revision.0);
                    }
                    let kind = match e {
                        SyncEvent::Upsert(entry) => Some(entry.key.kind),
                        SyncEvent::Delete(key) => Some(key.kind),
                        SyncEvent::InSync => None,
                    };
                    // Others say nothing about what the rules stand in, and endpoints are many.
                    if kind.is_some_and(|k| around::KINDS.contains(&k)) || self.floats(e) {
                        self.settings_stale |= self.inputs.apply(e) != Impact::Nothing;
                    }
                    self.calculation.apply(e);
                }
            }
            PolicyInput::Deltas(deltas) => self.learn(deltas),
            PolicyInput::Check => self.check_now = true,
            PolicyInput::Ask(who) => self.asked.push(who),
            PolicyInput::Heard(who) => self.waiting.push(who),
            PolicyInput::Verify(id, who) => self.questions.ask(id, who),
            PolicyInput::Guard(who) => {
                // Who has gone away needs no answer.
                drop(who.send(if self.applied { Ok(()) } else { self.guard() }));
            }
        }
    }

    fn learn(&mut self, deltas: Vec<PolicyDelta>) {
        for d in deltas {
            if let Err(e) = self.state.apply(&d) {
                tracing::debug!("the calculation repeats itself: {e}");
            }
            self.model.apply(d);
        }
        self.pending.absorb(self.model.take_changed());
    }

    /// A node without any rules of ours would let its workloads through until the resources are known.
    fn guard(&mut self) -> Result<(), String> {
        let make = self.detect()?;
        self.driver.set_mode(Mode::Iptables(make));
        self.ipvs.look(Instant::now());
        // Nobody has closed a flow on a node that has no rules.
        let mut around = self.around();
        around.marks.closed = None;
        let waiting = |f: &Family| (*f, Model::waiting(*f, &around, &Style::iptables()));
        let waiting = self.driver.families().iter().map(waiting).collect();
        match self.driver.guard(&waiting) {
            Ok(true) => tracing::info!(
                old = "no rules",
                new = "new flows of workloads are denied",
                cause = "the resources are not known yet",
                "policy"
            ),
            Ok(false) => {}
            // Written again, or with the other make, as soon as the resources are known.
            Err(e) => {
                tracing::warn!(cause = %e, "workloads are not guarded until the resources are known");
                return Err(e.to_string());
            }
        }
        Ok(())
    }

    /// All that is known is in the kernel.
    fn settled(&self) -> bool {
        self.applied && self.pending.is_empty() && self.failed.is_none()
    }

    /// The one place from which anything is written, and its conditions. Gives what was written.
    fn step(&mut self, now: Instant) -> Option<Changed> {
        self.pending.rules |= self.ipvs.look(Instant::now());
        let deltas = self.calculation.flush();
        if std::mem::take(&mut self.heard) {
            let now = self.calculation.problems();
            super::named::log(&self.resources, &now);
            self.resources = now;
        }
        self.learn(deltas);
        if !self.model.in_sync() || self.failed.is_some_and(|(at, _)| at > now) {
            return None;
        }
        if std::mem::take(&mut self.settings_stale) {
            let settings = around::settings(&self.inputs);
            if settings != self.settings {
                self.settings = settings;
                self.pending.rules = true;
                self.pending.judge = true;
            }
            self.driver.max_set = self.settings.max_set;
        }
        if !self.choose_mode() {
            self.postpone(now);
            return None;
        }
        if !self.look_at_addresses(now) {
            self.postpone(now);
            return None;
        }
        self.try_in_full(now);
        let found = std::mem::take(&mut self.found);
        let check = self.check(now) || found;
        let tidy = self.tidy.is_some_and(|(at, _)| at <= now);
        let must = !self.applied || self.failed.is_some() || check || tidy;
        if !must && self.pending.is_empty() {
            return None;
        }
        self.judge_old_flows();
        let repairs = self.driver.counters.repairs;
        let mut result = self.write(must, tidy);
        for _ in 0..TRIES {
            match &result {
                Err(e) if self.set_aside(e) => result = self.write(true, tidy),
                _ => break,
            }
        }
        self.tell_of_aside(result.is_ok(), now);
        match result {
            Ok(()) => Some(self.done(now, repairs, check)),
            Err(e) => {
                let text = e.to_string();
                if self.problem.as_ref() != Some(&text) {
                    tracing::warn!(cause = %text, "policy could not be written; what was in force stays");
                }
                self.problem = Some(text);
                self.postpone(now);
                self.try_other_make(&e);
                None
            }
        }
    }

    /// Brings the kernel to what is known. `must`: also when nothing has changed.
    fn write(&mut self, must: bool, tidy: bool) -> Result<(), DriveError> {
        if self.driver.apply_members(&self.pending)? && !must {
            return Ok(());
        }
        let layouts = self.layouts();
        let known = self.failed.is_none() && self.applied;
        let keep = known && !tidy && !any_exists(&self.pending.gone_devices);
        let leftovers = if keep { Leftovers::Keep } else { Leftovers::Remove };
        self.driver.apply(&layouts, known.then_some(&self.pending), leftovers)
    }

    fn done(&mut self, now: Instant, repairs: u64, checked: bool) -> Changed {
        if let Some(old) = self.problem.take() {
            tracing::info!(old = %old, new = "written", "policy");
        }
        if !self.applied {
            tracing::info!(
                old = "waiting",
                new = "in force",
                cause = "store in sync",
                back_end = self.driver.mode().map_or("", Mode::name),
                "policy"
            );
        }
        let repaired = self.driver.counters.repairs > repairs;
        if repaired {
            tracing::warn!(cause = "somebody else changed rules or sets of ours", "policy repaired");
        }
        let bridge = bridge::problem(&self.model, &self.settings.around.prefixes, self.driver.families());
        if bridge != self.bridge_problem {
            match (&bridge, &self.bridge_problem) {
                (Some(why), _) => tracing::warn!("{why}"),
                (None, old) => {
                    tracing::info!(old = old.as_deref().unwrap_or_default(), new = "mended", "policy")
                }
            }
            self.bridge_problem = bridge;
        }
        let ipvs = self.ipvs.problems(&self.model, &self.settings.around);
        super::named::log(&self.ipvs_problems, &ipvs);
        self.ipvs_problems = ipvs;
        let changed = std::mem::take(&mut self.pending);
        let wrote = !changed.is_empty() || repaired || !self.applied;
        self.pending.rules = self.closing.written(!self.applied);
        self.applied = true;
        self.failed = None;
        self.check_pause = if wrote { CHECK } else { (self.check_pause * 2).min(self.settings.refresh) };
        // Those who write all the time do not put it off.
        let next = Instant::now() + self.pause();
        let due = self.check_at.filter(|at| !checked && *at < next);
        self.check_at = Some(due.unwrap_or(next));
        if checked {
            self.compared = now;
        }
        changed
    }

    /// A kernel may know one make of iptables only by name: nothing was ever written with it and it refuses, so the
    /// other one gets its turn; then both without marks of flows, which a kernel may lack as well.
    fn try_other_make(&mut self, why: &DriveError) {
        let refused = matches!(why, DriveError::Netfilter(NfError::Refused { .. }));
        if refused {
            self.closing.refused(!self.applied);
        }
        if let (false, true, BackEnd::Auto, Some(Mode::Iptables(make))) =
            (self.applied, refused, self.settings.back_end, self.driver.mode())
        {
            let other = if make == Variant::Nft { Variant::Legacy } else { Variant::Nft };
            tracing::warn!(old = %make, new = %other, cause = %why, "the other make of iptables is tried");
            self.driver.set_mode(Mode::Iptables(other));
        }
    }

    /// Tries again later: soon at first.
    fn postpone(&mut self, now: Instant) {
        let pause = self.failed.map_or(RETRY.0, |(_, pause)| (pause * 2).min(RETRY.1));
        self.failed = Some((now + pause, pause));
    }

    /// Which back end; `false`: none can be used, and why is known.
    fn choose_mode(&mut self) -> bool {
        let wanted = match self.settings.back_end {
            BackEnd::Nft => Ok(Mode::Nft),
            BackEnd::Legacy => Ok(Mode::Iptables(Variant::Legacy)),
            BackEnd::IptablesNft => Ok(Mode::Iptables(Variant::Nft)),
            // Looked for once: what is found may be what we wrote.
            BackEnd::Auto => match (self.driver.mode(), &self.mode_problem) {
                (Some(Mode::Iptables(v)), None) => Ok(Mode::Iptables(v)),
                _ => self.detect().map(Mode::Iptables),
            },
        };
        match wanted {
            Ok(mode) => {
                self.mode_problem = None;
                self.driver.set_mode(mode);
                true
            }
            Err(why) => {
                if self.mode_problem.as_ref() != Some(&why) {
                    tracing::error!(cause = %why, "policy is not written");
                }
                self.mode_problem = Some(why);
                false
            }
        }
    }

    /// Whether an event is about an endpoint that has floating addresses, or had.
    fn floats(&self, event: &SyncEvent) -> bool {
        match event {
            SyncEvent::Upsert(entry) if entry.key.kind == Kind::WorkloadEndpoint => {
                let spec = entry.value.get("spec");
                spec.is_some_and(|s| s.get("ipNATs").is_some()) || self.inputs.endpoint(&entry.key).is_some()
            }
            SyncEvent::Delete(key) => self.inputs.endpoint(key).is_some(),
            _ => false,
        }
    }

    fn detect(&mut self) -> Result<Variant, String> {
        let nf = self.driver.netfilter();
        let mut look = |variant| {
            let text = nf.probe(variant, IpVersion::V4).map_err(|e| e.to_string())?;
            Ok::<_, String>(VariantChoice::of(&text.unwrap_or_default(), |l| {
                table_plan::is_ours(l) || is_line(l)
            }))
        };
        // One of the makes may be missing; then the other is the answer.
        match (look(Variant::Legacy), look(Variant::Nft)) {
            (Ok(legacy), Ok(nft)) => {
                let default = nf.default_variant().map_err(|e| e.to_string())?;
                choose(legacy, nft, default)
            }
            (Ok(_), Err(_)) => Ok(Variant::Legacy),
            (Err(_), Ok(_)) => Ok(Variant::Nft),
            (Err(e), Err(_)) => Err(e),
        }
    }

    /// Which device a host endpoint known by its addresses stands for may change with every address of this host. That is
    /// a change like others: nobody has touched our rules. `false`: that was never told, so nothing is to be written.
    fn look_at_addresses(&mut self, now: Instant) -> bool {
        let by_address = self.model.endpoints.values().any(|e| e.interface == Interface::WithAddress);
        // Whoever listens hears of what happens after the look.
        self.moves.get_or_insert_with(Moves::begin).tell_of_addresses(by_address);
        let reading = by_address.then(|| addresses().map_err(|e| e.to_string()));
        match self.addresses.learn(reading, now) {
            Learned::Nothing => {}
            Learned::Changed => {
                self.pending.rules = true;
                self.pending.judge = true;
            }
            Learned::Unknown => return false,
        }
        let rivals = self.model.rivals(self.addresses.known());
        super::named::log(&self.rivals, &rivals);
        self.rivals = rivals;
        true
    }

    /// What the resources say of the rules, and what the kernel does.
    fn around(&self) -> Surroundings {
        let mut around = self.settings.around.clone();
        around.ipvs = self.ipvs.services().cloned();
        around.marks.closed = self.closed_bit();
        around
    }

    /// The bit of closed flows, unless the kernel has refused rules that ask for it.
    fn closed_bit(&self) -> Option<u32> {
        self.settings.around.marks.closed.filter(|_| self.closing.possible())
    }

    fn layouts(&mut self) -> BTreeMap<Family, Layout> {
        let around = self.around();
        let mut style = Style { deny: around.deny.clone(), ..Style::iptables() };
        style.log_prefix.clone_from(&around.log_prefix);
        if self.driver.mode() == Some(Mode::Nft) {
            style.places = usize::MAX;
        }
        let families = self.driver.families().to_vec();
        let known = self.addresses.known();
        families.into_iter().map(|f| (f, self.model.layout(f, &around, &style, known))).collect()
    }

    fn publish(&mut self) {
        let settled = self.settled();
        let ready = if settled {
            let addresses = |e: &EndpointPolicy| e.addresses.iter().copied().collect::<BTreeSet<_>>();
            let all = self.model.endpoints.iter().map(|(id, e)| (id.clone(), addresses(e)));
            Some(all.collect::<BTreeMap<_, _>>())
        } else {
            None
        };
        let lines = [&self.mode_problem, &self.problem, &self.bridge_problem, &self.settings.problem];
        let lines = lines.into_iter().flatten().chain(self.addresses.problem()).chain(self.calico.problem());
        let problems: Vec<String> = lines.cloned().collect();
        let held = self.driver.held();
        let stuck =
            self.failed.filter(|(_, pause)| *pause > RETRY.0 * 2).map(|_| match problems.as_slice() {
                [] => "policy cannot be written to the kernel".to_owned(),
                all => all.join("; "),
            });
        let next = PolicyReport {
            in_sync: self.applied,
            listed: self.model.in_sync(),
            settled: ready.is_some(),
            back_end: self.driver.mode().map_or("", Mode::name),
            // What was ready stays so: its rules are in force until new ones are.
            ready: match ready {
                Some(r) if r == *self.report.borrow().ready => Arc::clone(&self.report.borrow().ready),
                Some(r) => Arc::new(r),
                None => Arc::clone(&self.report.borrow().ready),
            },
            stuck,
            problems,
            resources: self
                .ipvs_problems
                .iter()
                .chain(&held)
                .chain(&self.resources)
                .chain(&self.rivals)
                .chain(&self.aside.lines)
                .cloned()
                .collect(),
            policies: self.model.policies.len(),
            sets: self.model.set_count(),
            revision: if settled && self.mode_problem.is_none() {
                self.revision
            } else {
                self.report.borrow().revision
            },
            counters: self.driver.counters,
        };
        self.report.send_if_modified(|r| {
            let different = *r != next;
            if different {
                *r = next;
            }
            different
        });
    }

    /// Tells those who asked how it is now.
    fn answer(&mut self) {
        for who in self.asked.drain(..) {
            // Who has gone away needs no answer.
            drop(who.send(self.report.borrow().clone()));
        }
    }
}

/// Whether one of these devices is still there: then nothing of what let its packets through may stay.
fn any_exists(devices: &BTreeSet<String>) -> bool {
    let look = || {
        let mut rtnl = Rtnl::open()?;
        for device in devices {
            if rtnl.link_by_name(device)?.is_some() {
                return Ok(true);
            }
        }
        Ok::<_, brindle_kernel::netlink::NetlinkError>(false)
    };
    !devices.is_empty() && look().unwrap_or(true)
}
