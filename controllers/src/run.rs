//! The loop: wait for the lease, follow the store, plan, act, again. Nothing is done without the lease, which is asked for
//! before each single action; a process that loses it forgets what it had seen, so that grace periods begin anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use brindle_admin::http;
use brindle_config::{
    lease::{self, Leadership},
    sync,
};
use brindle_config_core::{
    Key, Kind,
    controllers::{KubeControllersConfigurationSpec, KubeControllersConfigurationStatus},
    store::{Entry, Expect, Store, StoreError, StoreExt as _, SyncEvent, decode},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    act::{Actor, Outcome, now},
    cli::Settings,
    config::{self, Running},
    facts::{Facts, KINDS, POLICY_KINDS},
    health::{self, Pulse},
    kubernetes::{self, KubeNodes},
    metrics::Tally,
    outside::Outside,
    plan::{Controller, Graces, Plan, Planned, Planner, Rules},
    rests::Rests,
};

/// How long further changes are waited for after the first one.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// A listing that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// Plans that follow each other without a pause: what one does may be what the next needs (an address, then the status).
const ROUNDS: usize = 8;
/// How often things that wait are looked at.
const TICK: Duration = Duration::from_secs(60);

/// Runs as set. `true`: ended as asked, and with `--once` everything could be done.
///
/// # Errors
/// Why it could not start.
pub fn main(settings: Settings) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(run(settings));
    drop(runtime);
    brindle_config::SqliteStore::close_all();
    done
}

async fn run(settings: Settings) -> Result<bool> {
    let url = settings.datastore.clone();
    let store = tokio::task::spawn_blocking(move || brindle_config::open_existing(&url)).await??;
    let kube = match settings.kubernetes_nodes.clone() {
        Some(url) => {
            let opened = tokio::task::spawn_blocking(move || brindle_config::open_cluster(&url)).await?;
            Some(opened.map_err(kubernetes::told).context("--kubernetes-nodes")?)
        }
        None => None,
    };
    let kube = kube.map(if settings.once { KubeNodes::of } else { KubeNodes::follow });
    let tally = Tally::default();
    let pulse = Pulse::default();
    let mut outside = Outside::new(&settings, tally.clone(), pulse.clone());
    if let Some(address) = settings.health {
        tokio::spawn(health::serve(health::listen(address).await?, pulse.clone()));
    }
    if let Some(address) = settings.given.metrics {
        outside.listens(address, http::listen("--metrics", address).await?);
    }
    let outside = async {
        if !settings.once {
            // It ends with a defect, or what it follows does.
            let _ = tokio::spawn(outside.follow(Arc::clone(&store))).await;
            return ended("what follows KubeControllersConfiguration");
        }
        std::future::pending().await
    };
    let mut term = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("SIGINT")?;
    brindle_admin::hangup::outlive().context("SIGHUP")?;
    let mut leadership = settings.candidate.clone().map(|c| lease::stand(Arc::clone(&store), c));
    let work = async {
        loop {
            if let Some(l) = &mut leadership {
                elected(l, &settings).await?;
            }
            tally.leads(true);
            let mut worker = Worker::new(&settings, Arc::clone(&store), leadership.as_ref(), tally.clone());
            worker.pulse = pulse.clone();
            worker.kube = kube.as_ref();
            let done = if settings.once { Some(worker.once().await) } else { worker.keep().await };
            tally.leads(false);
            pulse.rest();
            match done {
                Some(done) => return done,
                None => tracing::warn!("the lease is lost; nothing is done until it is held again"),
            }
        }
    };
    let ended = tokio::select! {
        done = work => done,
        error = outside => Err(error),
        _ = term.recv() => Ok(true),
        _ = int.recv() => Ok(true),
    };
    if let Some(l) = leadership {
        l.resign().await;
    }
    ended
}

/// Waits for the lease. Whoever looks once waits no longer than a lease of a dead leader lasts, and a little.
async fn elected(leadership: &mut Leadership, settings: &Settings) -> Result<()> {
    let Some(candidate) = settings.candidate.as_ref().filter(|_| settings.once) else {
        return Ok(leadership.elected().await?);
    };
    let limit = candidate.timing.duration + candidate.timing.renew_within;
    if let Ok(elected) = tokio::time::timeout(limit, leadership.elected()).await {
        return Ok(elected?);
    }
    let (namespace, name) = (&candidate.namespace, &candidate.name);
    let why = leadership.obstacle().unwrap_or_else(|| "nobody says why".to_owned());
    bail!(
        "--once: no lease {namespace}/{name} within {} s: {why}; make the datastore answer, let the process that leads do \
         the work, or look without a lease: --dry-run, or --leader-elect=false where no other runs",
        limit.as_secs()
    )
}

/// A part that is to run as long as the process.
fn ended(part: &str) -> anyhow::Error {
    anyhow!("{part} ended with a defect, which the log tells; start this process again")
}

/// What is done while the lease is held.
struct Worker<'a> {
    settings: &'a Settings,
    store: Arc<dyn Store>,
    actor: Actor,
    planner: Planner,
    leadership: Option<&'a Leadership>,
    tally: Tally,
    pulse: Pulse,
    kube: Option<&'a KubeNodes>,
    running: Running,
    /// What was said of KubeControllersConfiguration.
    remarks: String,
    /// Why the status could not be written.
    unwritten: String,
    /// The problems that were last written into it.
    reported: Option<Vec<String>>,
    /// What was said already: problems and failures are told when they are new, not at each look.
    told: BTreeSet<String>,
    /// What could not be done.
    rests: Rests,
}

/// The store as followed.
struct Cache {
    events: mpsc::Receiver<Vec<SyncEvent>>,
    entries: BTreeMap<Key, Entry>,
    in_sync: bool,
}

impl Cache {
    fn of(store: &Arc<dyn Store>, kinds: &[Kind]) -> Self {
        let events = sync::follow(Arc::clone(store), kinds);
        Self { events, entries: BTreeMap::new(), in_sync: false }
    }

    /// Takes what comes until then; `false`: nothing came. Cancel safe.
    async fn wait(&mut self, until: Instant) -> Result<bool> {
        let mut news = false;
        let mut until = until;
        while let Ok(batch) = timeout_at(until, self.events.recv()).await {
            let batch = batch.ok_or_else(|| ended("what follows the datastore"))?;
            for event in batch {
                match event {
                    SyncEvent::Upsert(e) => drop(self.entries.insert(e.key.clone(), e)),
                    SyncEvent::Delete(key) => drop(self.entries.remove(&key)),
                    SyncEvent::InSync => self.in_sync = true,
                }
            }
            if !news {
                until = until.min(Instant::now() + DEBOUNCE);
            }
            news = true;
        }
        Ok(news)
    }
}

impl<'a> Worker<'a> {
    fn new(
        settings: &'a Settings,
        store: Arc<dyn Store>,
        leadership: Option<&'a Leadership>,
        tally: Tally,
    ) -> Self {
        let running = Running::of(&settings.given, None);
        Self {
            settings,
            actor: Actor::new(Arc::clone(&store)),
            store,
            planner: Planner::new(rules(settings, &running)),
            leadership,
            tally,
            pulse: Pulse::default(),
            kube: None,
            running,
            remarks: String::new(),
            unwritten: String::new(),
            reported: None,
            told: BTreeSet::new(),
            rests: Rests::default(),
        }
    }

    /// What is looked at.
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds = KINDS.to_vec();
        if self.running.controllers.contains(&Controller::PolicyNames) {
            kinds.extend(POLICY_KINDS);
        }
        kinds
    }

    /// Goes on as KubeControllersConfiguration says now; one that cannot be read changes nothing.
    fn adopt(&mut self, facts: &Facts) {
        let found = configuration(facts).map(decode::<KubeControllersConfigurationSpec>);
        let resource = match found {
            None => None,
            Some(Ok(found)) => Some(found.resource),
            Some(Err(error)) => {
                self.remark(format!("{error}; what ran before goes on"));
                return;
            }
        };
        let running = Running::of(&self.settings.given, resource.as_ref().map(|r| &r.spec));
        if running != self.running {
            let changes = running.changes(&self.running);
            if !changes.is_empty() {
                tracing::info!(
                    cause = "KubeControllersConfiguration(default)",
                    "goes on otherwise: {changes}"
                );
            }
            self.planner.rule(rules(self.settings, &running));
            self.running = running;
        }
        let Some(resource) = resource else { return };
        let mut remarks = Vec::new();
        let won = config::overruled(&self.settings.given, &resource.spec);
        if !won.is_empty() {
            remarks.push(format!("this process was told otherwise, and that wins: {}", won.join(", ")));
        }
        let idle = brindle_config::yaml::idle_fields(&resource.into());
        let idle: Vec<&str> = idle.iter().map(|(field, _)| field.as_str()).collect();
        if !idle.is_empty() {
            remarks.push(format!("without effect in this version: {}", idle.join(", ")));
        }
        self.remark(if remarks.is_empty() {
            String::new()
        } else {
            format!("KubeControllersConfiguration(default): {}", remarks.join("; "))
        });
    }

    fn remark(&mut self, remark: String) {
        if remark != self.remarks && !remark.is_empty() {
            tracing::warn!("{remark}");
        }
        self.remarks = remark;
    }

    /// Writes what is run with, and what of the object cannot be done, where people look for it; makes the object when
    /// there is none.
    async fn report(&mut self, facts: &Facts, problems: &[String]) {
        if self.settings.dry_run || facts.locked || !self.leads() {
            return;
        }
        let mut status = self.running.status(&self.settings.given);
        let own = problems.iter().filter_map(|p| p.strip_prefix("KubeControllersConfiguration(default): "));
        status.problems = own.map(str::to_owned).collect();
        let found = configuration(facts).map(decode::<KubeControllersConfigurationSpec>);
        let (mut resource, expect) = match found {
            None => (config::default_object(), Expect::Absent),
            Some(Ok(found)) => (found.resource, Expect::Revision(found.revision)),
            Some(Err(_)) => return,
        };
        let there = resource.extra.get("status").cloned();
        let there = there.and_then(|s| serde_json::from_value::<KubeControllersConfigurationStatus>(s).ok());
        let there = there.map(config::bare);
        // Calico's definition drops the problems: once written they are not written again and again.
        let but_problems = |s: &KubeControllersConfigurationStatus| KubeControllersConfigurationStatus {
            problems: Vec::new(),
            ..s.clone()
        };
        let known = self.reported.as_ref() == Some(&status.problems);
        if there.as_ref() == Some(&status)
            || known && there.as_ref().map(but_problems) == Some(but_problems(&status))
        {
            self.reported = Some(status.problems);
            return;
        }
        let value = serde_json::to_value(&status).expect("a status has string keys and no floats");
        resource.extra.insert("status".into(), value);
        match self.store.put_as(&resource, expect).await {
            Ok(_) => {
                self.unwritten.clear();
                self.reported = Some(status.problems);
            }
            // Somebody changes it; their change is looked at next.
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {}
            Err(error) => {
                let error = error.to_string();
                if error != self.unwritten {
                    tracing::warn!(%error, "cannot write the status of KubeControllersConfiguration(default)");
                    self.unwritten = error;
                }
            }
        }
    }

    fn leads(&self) -> bool {
        self.leadership.is_none_or(Leadership::leads)
    }

    /// One look. `true`: everything could be done.
    async fn once(&mut self) -> Result<bool> {
        let facts = self.listed().await?;
        let plan = self.look(&facts);
        for (controller, what, since) in &plan.waiting {
            tracing::info!(controller = controller.name(), since = %since.rfc3339(), "waits: {what}");
        }
        if self.settings.dry_run {
            plan.actions.iter().for_each(would);
            return Ok(plan.problems.is_empty());
        }
        Ok(self.settle(facts, plan).await? && self.told.is_empty())
    }

    /// Goes on until the lease is lost (`None`).
    async fn keep(&mut self) -> Option<Result<bool>> {
        let mut kinds = self.kinds();
        let mut cache = Cache::of(&self.store, &kinds);
        let mut due = Instant::now() + self.running.period;
        let mut waiting = false;
        let mut first = true;
        let mut nodes = self.kube.map(KubeNodes::watch);
        loop {
            self.pulse.beat(self.running.period);
            let shortest = [self.running.leak, self.settings.node_grace, self.settings.repair_grace];
            let tick = shortest.into_iter().min().unwrap_or(TICK).clamp(Duration::from_secs(1), TICK);
            // The lease is looked at now and then even when nothing happens.
            let next = if waiting { due.min(Instant::now() + tick) } else { due };
            let news = tokio::select! {
                news = cache.wait(next) => news,
                still = kubernetes::changed(&mut nodes) => match still {
                    true => Ok(true),
                    false => Err(ended("what follows the nodes of Kubernetes")),
                },
                () = self.deposed() => return None,
            };
            let news = match news {
                Ok(news) => news,
                Err(error) => return Some(Err(error)),
            };
            if !self.leads() {
                return None;
            }
            if !cache.in_sync || !(news || first || waiting || Instant::now() >= due) {
                continue;
            }
            first = false;
            let mut facts = Facts::read(cache.entries.values().cloned().collect());
            facts.kubernetes = self.kube.and_then(KubeNodes::known);
            self.adopt(&facts);
            due = Instant::now() + self.running.period;
            if self.kinds() != kinds {
                kinds = self.kinds();
                cache = Cache::of(&self.store, &kinds);
                first = true;
                continue;
            }
            let plan = self.look(&facts);
            self.report(&facts, &plan.problems).await;
            waiting = !plan.waiting.is_empty();
            if self.settings.dry_run {
                self.say_new(&plan);
                continue;
            }
            let awake = self.rests.awake(&plan, &facts, Instant::now()).next().is_some();
            // What was followed may be older than what is stored.
            let done = if awake { self.again().await } else { Ok(()) };
            let next = match done {
                Ok(()) => self.rests.next(),
                Err(error) => {
                    tracing::warn!(%error, "cannot list the datastore; trying again");
                    Some(Instant::now() + AGAIN)
                }
            };
            due = next.map_or(due, |next| due.min(next));
        }
    }

    /// Completes when the lease is lost.
    async fn deposed(&self) {
        let Some(leadership) = self.leadership else { return std::future::pending().await };
        while leadership.leads() {
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn listed(&mut self) -> Result<Facts> {
        let kinds = self.kinds();
        let mut facts = Facts::read(self.store.list(&kinds).await?.entries);
        self.adopt(&facts);
        if self.kinds() != kinds {
            facts = Facts::read(self.store.list(&self.kinds()).await?.entries);
        }
        facts.kubernetes = match self.kube {
            Some(kube) => match kube.listed().await {
                Ok(nodes) => Some(nodes),
                // There is no next look that would make up for it.
                Err(error) if self.settings.once => {
                    let url = self.settings.kubernetes_nodes.as_deref().unwrap_or_default();
                    return Err(error
                        .context(format!("--kubernetes-nodes {url}: cannot list the nodes of Kubernetes")));
                }
                // What is not known says nothing; everything else goes on.
                Err(error) => {
                    tracing::warn!("--kubernetes-nodes: cannot list the nodes of Kubernetes: {error:#}");
                    None
                }
            },
            None => None,
        };
        Ok(facts)
    }

    async fn again(&mut self) -> Result<()> {
        let facts = self.listed().await?;
        let plan = self.look(&facts);
        self.settle(facts, plan).await.map(drop)
    }

    /// Plans, and tells new problems.
    fn look(&mut self, facts: &Facts) -> Plan {
        let plan = self.planner.plan(facts, now());
        self.tally.planned(&plan);
        self.rests.keep(&plan);
        let problems: BTreeSet<String> = plan.problems.iter().cloned().collect();
        for problem in problems.difference(&self.told) {
            tracing::warn!(%problem, "somebody has to see to this");
        }
        self.told.retain(|t| t.starts_with(FAILED) || problems.contains(t));
        self.told.extend(problems);
        plan
    }

    /// Does what the plan says, and what follows from it. What rests when it begins goes on resting. Whether everything
    /// could be done.
    async fn settle(&mut self, mut facts: Facts, mut plan: Plan) -> Result<bool> {
        let mut good = true;
        let begun = (self.rests.clone(), Instant::now());
        self.told.retain(|t| {
            !t.starts_with(FAILED) || plan.actions.iter().any(|a| t.contains(&a.action.to_string()))
        });
        for _ in 0..ROUNDS {
            let mut changed = false;
            for planned in begun.0.awake(&plan, &facts, begun.1) {
                if !self.leads() {
                    return Ok(false);
                }
                match self.perform(planned).await {
                    Some(Outcome::Done | Outcome::Outdated) => {
                        self.rests.ended(&planned.action);
                        changed = true;
                    }
                    None => {
                        self.rests.failed(&planned.action, &facts, self.running.period, Instant::now());
                        good = false;
                    }
                }
            }
            if !changed {
                break;
            }
            facts = self.listed().await?;
            plan = self.look(&facts);
            if plan.actions.is_empty() {
                break;
            }
        }
        Ok(good)
    }

    /// One line per action, with its cause. `None`: it failed.
    async fn perform(&mut self, planned: &Planned) -> Option<Outcome> {
        let Planned { action, why } = planned;
        let controller = action.controller();
        let name = controller.name();
        self.pulse.beat(self.running.period);
        match self.actor.perform(action).await {
            Ok(Outcome::Done) => {
                self.tally.acted(controller, "done");
                tracing::info!(controller = name, cause = %why, "{action}");
                Some(Outcome::Done)
            }
            Ok(Outcome::Outdated) => {
                self.tally.acted(controller, "outdated");
                tracing::debug!(controller = name, "{action}: it has changed meanwhile");
                Some(Outcome::Outdated)
            }
            Err(error) => {
                self.tally.acted(controller, "failed");
                let line = format!("{FAILED}{action}: {error:#}");
                if self.told.insert(line) {
                    tracing::warn!(controller = name, cause = %why, "cannot {action}: {error:#}");
                }
                None
            }
        }
    }

    /// What a dry run would do, each thing once.
    fn say_new(&mut self, plan: &Plan) {
        for planned in &plan.actions {
            if self.told.insert(format!("{FAILED}would {}", planned.action)) {
                would(planned);
            }
        }
    }
}

fn configuration(facts: &Facts) -> Option<&Entry> {
    facts.of(Kind::KubeControllersConfiguration).find(|e| e.key.name == config::NAME)
}

fn rules(settings: &Settings, running: &Running) -> Rules {
    Rules {
        controllers: running.controllers.clone(),
        graces: Graces { leak: running.leak, node: settings.node_grace, repair: settings.repair_grace },
        assign_ips: running.assign_ips,
        drop_endpoints: !settings.datastore.starts_with("kubernetes:"),
        host_endpoints: running.host_endpoints.clone(),
        careful_with_names: running.careful_with_names,
    }
}

/// Marks what is remembered beside problems.
const FAILED: &str = "! ";

fn would(planned: &Planned) {
    let controller = planned.action.controller().name();
    tracing::info!(controller, cause = %planned.why, "would {}", planned.action);
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
