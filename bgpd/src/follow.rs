//! From the datastore to the speaker: follows the store, translates, applies. Changes that come together are
//! translated together.
//!
//! Services and their endpoints are many and restless, so they are followed only while ranges for them are configured;
//! then nothing is applied before they, too, are complete: a plan without their addresses would withdraw what an
//! earlier run of this node announced.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use brindle_admin::defect::{outlived, words};
use brindle_bgpd_core::speaker::PeerConfig;
use brindle_config::sync;
use brindle_config_core::{
    key::{Key, Kind},
    store::{Store, SyncEvent},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::{debug, error, info, warn};

use crate::{
    fault,
    handle::{Handle, Unanswered},
    peers::{
        ClusterState, KINDS, Peering, Plan, Problem, SERVICE_KINDS,
        leave::{BOUND, Coverage, Event, Mesh, Step},
        translate,
    },
    remembered::Memory,
    secrets::Secrets,
    view::MESH,
};

/// How long further changes are waited for after the first one.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often coverage is asked for while the mesh is being left.
const OBSERVE: Duration = Duration::from_millis(500);
/// How long the first plan waits for services. Without them their addresses are withdrawn; but pods must not be without
/// routes because of a right that is missing for services.
const SERVICES: Duration = Duration::from_secs(30);
/// How long it is waited before everything is read again after a defect of ours; each time twice as long, up to the second.
pub(crate) const AFTER_DEFECT: Duration = Duration::from_secs(1);
const AFTER_DEFECTS: Duration = Duration::from_secs(60);
/// How often files of secrets are read again while resources refer to some.
const SECRETS: Duration = Duration::from_secs(10);

/// Feeds a speaker from a store; ends when dropped.
#[derive(Debug)]
pub struct Follower {
    problems: watch::Receiver<Option<Vec<Problem>>>,
    peering: watch::Receiver<Option<Peering>>,
    task: JoinHandle<()>,
}

/// What is not for the store to say.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Whether pods have floating addresses.
    pub floating: Option<bool>,
    /// The speaker's identifier; else the node's IPv4 address, else a hash of its name.
    pub router_id: Option<std::net::Ipv4Addr>,
    /// The file for [`crate::recall`].
    pub memory: Option<PathBuf>,
}

/// Starts feeding `handle` with what the store says about the node called `node`. Nothing is applied before the
/// store's snapshot is complete. `secrets`: folder of passwords, `NAME/KEY`.
pub fn from_store(
    store: Arc<dyn Store>,
    node: &str,
    secrets: &Path,
    told: Environment,
    handle: Handle,
) -> Follower {
    // Of endpoints, only those of this node matter: the pods of a whole cluster are left out where the store can do it.
    let store = store.for_node(node).unwrap_or(store);
    let (tx, problems) = watch::channel(None);
    let (pods, peering) = watch::channel(None);
    let (node, secrets) = (node.to_owned(), Secrets(secrets.to_owned()));
    let task = tokio::spawn(async move {
        let mut pause = AFTER_DEFECT;
        let state = || ClusterState::new(&node).with_floating(told.floating).with_router_id(told.router_id);
        let memory = || told.memory.as_ref().map(|path| Memory::new(path, &node));
        let mut feeder = Feeder {
            state: state(),
            secrets,
            memory: memory(),
            handle,
            told: tx.clone(),
            pods,
            mesh: Mesh::default(),
            sessions: Vec::new(),
            leaving: BTreeSet::new(),
            identity: None,
            origin: Instant::now(),
            again: None,
        };
        loop {
            let ended = outlived(run(Feeds::new(Arc::clone(&store)), &mut feeder)).await;
            let what = match &ended {
                // The speaker was shut down: there is nobody left to feed.
                Ok(Err(_)) => return,
                Ok(Ok(())) => "the follower of the datastore ended",
                Err(panic) => words(panic),
            };
            error!(
                what,
                seconds = pause.as_secs(),
                "a defect, met while the datastore was followed; BGP stays as it is until it is read again. Please report it"
            );
            tx.send_if_modified(|problems| met(problems, what));
            // What was read may be what it met. Where the leaving of the mesh stands is kept: sessions would end early.
            (feeder.state, feeder.memory, feeder.again) = (state(), memory(), None);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AFTER_DEFECTS);
        }
    });
    Follower { problems, peering, task }
}

impl Follower {
    /// What could not be done as the resources say; `None` before the first plan, or the first defect.
    pub fn problems(&self) -> Option<Vec<Problem>> {
        self.problems.borrow().clone()
    }

    /// The same, for whoever reports it while somebody else holds the follower.
    pub fn watch(&self) -> watch::Receiver<Option<Vec<Problem>>> {
        self.problems.clone()
    }

    /// Follows which addresses are to be on devices of pods; `None` before the first plan.
    pub fn peering(&self) -> watch::Receiver<Option<Peering>> {
        self.peering.clone()
    }

    /// Waits until the first plan was applied, or met a defect. `false`: the follower ended before.
    pub async fn applied(&mut self) -> bool {
        self.problems.wait_for(Option::is_some).await.is_ok()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The follower's side of things.
struct Feeder {
    state: ClusterState,
    secrets: Secrets,
    memory: Option<Memory>,
    handle: Handle,
    told: watch::Sender<Option<Vec<Problem>>>,
    pods: watch::Sender<Option<Peering>>,
    mesh: Mesh,
    /// Mesh sessions as they were last asked for.
    sessions: Vec<PeerConfig>,
    /// Addresses of those that stay only until what replaces them carries their routes.
    leaving: BTreeSet<IpAddr>,
    /// AS and router id.
    identity: Option<(u32, Ipv4Addr)>,
    origin: Instant,
    /// When what met a defect is applied once more.
    again: Option<Instant>,
}

/// What the store says: on one line what always matters, on a second one services, while they do.
struct Feeds {
    store: Arc<dyn Store>,
    main: mpsc::Receiver<Vec<SyncEvent>>,
    main_in_sync: bool,
    services: Option<mpsc::Receiver<Vec<SyncEvent>>>,
    services_in_sync: bool,
    /// When they were first asked for.
    services_since: Instant,
    /// The plan may be another than the last one applied.
    changed: bool,
}

impl Feeds {
    fn new(store: Arc<dyn Store>) -> Self {
        let main = sync::follow(Arc::clone(&store), KINDS);
        Self {
            store,
            main,
            main_in_sync: false,
            services: None,
            services_in_sync: false,
            services_since: Instant::now(),
            changed: false,
        }
    }

    /// Whether the state is complete, or as complete as it will become soon.
    fn in_sync(&self) -> bool {
        self.main_in_sync && self.patience().is_none()
    }

    /// How long services may still be waited for; `None`: they are not.
    fn patience(&self) -> Option<Duration> {
        let waits = self.services.is_some() && !self.services_in_sync;
        let left = SERVICES.saturating_sub(self.services_since.elapsed());
        (waits && !left.is_zero()).then_some(left)
    }

    /// Waits for the next batch and takes it. `false`: nobody follows the store any more. Cancel safe.
    async fn take(&mut self, state: &mut ClusterState) -> bool {
        let (batch, of_services) = match &mut self.services {
            None => (self.main.recv().await, false),
            Some(services) => tokio::select! {
                batch = self.main.recv() => (batch, false),
                batch = services.recv() => (batch, true),
            },
        };
        let Some(batch) = batch else { return false };
        let in_sync = if of_services { &mut self.services_in_sync } else { &mut self.main_in_sync };
        for event in &batch {
            // The snapshot's end makes a plan due even if the store is empty: that, too, is news.
            let first = *event == SyncEvent::InSync && !*in_sync;
            *in_sync |= first;
            self.changed |= first | state.apply(event);
        }
        self.follow_services(state);
        true
    }

    /// Starts or ends following services, as the configuration says now.
    fn follow_services(&mut self, state: &mut ClusterState) {
        match (state.wants_services(), self.services.is_some()) {
            (true, false) => {
                self.services = Some(sync::follow(Arc::clone(&self.store), SERVICE_KINDS));
                self.services_since = Instant::now();
            }
            (false, true) => {
                self.services = None;
                self.services_in_sync = false;
                self.changed |= state.forget_services();
            }
            _ => {}
        }
    }
}

const DEFECT: &str = "a defect of ours: ";

/// What an operator sees of a defect.
fn defect(what: &str) -> Problem {
    let what = format!("{DEFECT}{what}");
    Problem { about: Key::new(Kind::BgpConfiguration, None, "default"), what }
}

/// A defect before there is a plan: also before the first one, when there is nothing else to tell; whether it is news.
fn met(problems: &mut Option<Vec<Problem>>, what: &str) -> bool {
    let stays = match problems {
        Some(_) => "the configuration before stays in force",
        None => "nothing is in force yet",
    };
    let all = problems.get_or_insert_default();
    // The same again is not another.
    let again = all.iter().any(|p| p.what.starts_with(DEFECT) && p.what.contains(what));
    !again && add(all, defect(&format!("{stays} ({what})")))
}

/// Whether it was not there yet.
fn add(all: &mut Vec<Problem>, one: Problem) -> bool {
    let new = !all.contains(&one);
    if new {
        all.push(one);
    }
    new
}

async fn run(mut feeds: Feeds, feeder: &mut Feeder) -> Result<(), Unanswered> {
    loop {
        if let Some(memory) = &mut feeder.memory {
            memory.keep().await;
        }
        let (pause, patience) = (feeder.pause(feeds.in_sync()), feeds.patience());
        let due = feeder.memory.as_ref().and_then(Memory::due);
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        let more = match [pause, patience, due].into_iter().flatten().min() {
            None => feeds.take(&mut feeder.state).await,
            Some(pause) => match timeout_at(Instant::now() + pause, feeds.take(&mut feeder.state)).await {
                Ok(more) => more,
                Err(_) if patience.is_some() => {
                    if feeds.patience().is_none() {
                        warn!(
                            "Services and EndpointSlices cannot be read; going on without them, their addresses are \
                             announced as soon as they can"
                        );
                    }
                    true
                }
                Err(_) => {
                    feeder.tick().await?;
                    continue;
                }
            },
        };
        if !more {
            return Ok(());
        }
        if !(feeds.in_sync() && feeds.changed) {
            continue;
        }
        let until = Instant::now() + DEBOUNCE;
        while let Ok(true) = timeout_at(until, feeds.take(&mut feeder.state)).await {}
        if feeds.in_sync() {
            feeds.changed = false;
            feeder.apply().await?;
        }
    }
}

impl Feeder {
    /// After which time to look again without a change of the store; `None`: there is nothing to look at.
    fn pause(&self, in_sync: bool) -> Option<Duration> {
        let usual = if self.mesh.reason().is_some() {
            Some(OBSERVE)
        } else {
            (in_sync && !self.state.wanted_secrets().is_empty()).then_some(SECRETS)
        };
        let again = self.again.filter(|_| in_sync).map(|at| at.saturating_duration_since(Instant::now()));
        usual.into_iter().chain(again).min()
    }

    /// Looks at what changes without the store.
    async fn tick(&mut self) -> Result<(), Unanswered> {
        let mut changed = false;
        if self.mesh.reason().is_some() {
            let coverage = match self.handle.coverage(self.leaving.clone()).await {
                Ok(coverage) => coverage,
                Err(Unanswered::Gone) => return Err(Unanswered::Gone),
                // Nobody knows, so nothing is covered.
                Err(e @ Unanswered::Defect) => {
                    Coverage { not_ready: vec![e.to_string()], ..Coverage::default() }
                }
            };
            let left = coverage.to_string();
            let before = self.mesh.reason().map(str::to_owned);
            match self.mesh.on(Event::Observed { now: self.origin.elapsed(), coverage }) {
                Step::Drop => info!("the other sessions carry the routes of the mesh: its sessions end"),
                Step::GiveUp => {
                    warn!(%left, "mesh sessions end although not everything is covered; waited long enough")
                }
                Step::Keep | Step::Follow => {}
            }
            changed = self.mesh.reason() != before.as_deref();
        }
        let again = self.again.is_some_and(|at| at <= Instant::now());
        if changed || again || self.secrets.read(&mut self.state) {
            self.apply().await?;
            if again {
                // Once: what meets a defect twice would do it every time, and each costs the sessions.
                self.again = None;
            }
        }
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), Unanswered> {
        self.secrets.read(&mut self.state);
        fault::point("bgp.follow");
        let mut plan = translate(&self.state);
        if let Some(memory) = &mut self.memory {
            memory.told(&plan, &self.state);
        }
        self.keep_mesh(&mut plan);
        let mut problems = std::mem::take(&mut plan.problems);
        let peering = Some(std::mem::take(&mut plan.peering));
        self.pods.send_if_modified(|old| {
            let differs = *old != peering;
            *old = peering;
            differs
        });
        report(self.told.borrow().as_deref().unwrap_or_default(), &problems);
        let (peers, routes) = (plan.peers.len(), plan.routes.len());
        if self.told.borrow().is_none() {
            info!(peers, routes, problems = problems.len(), "first BGP configuration from the datastore");
        } else {
            debug!(peers, routes, problems = problems.len(), "BGP configuration from the datastore");
        }
        self.again = None;
        match self.handle.apply(plan.into()).await {
            Ok(errors) => {
                errors.into_iter().for_each(|error| warn!(%error, "trying again every few seconds"));
            }
            Err(Unanswered::Gone) => return Err(Unanswered::Gone),
            // Once more after a pause, in case it was only the change from what was before; then when something changes.
            Err(e @ Unanswered::Defect) => {
                error!(error = %e, "the configuration may be in force in part only");
                add(
                    &mut problems,
                    defect("the configuration may be in force in part only; the log says more"),
                );
                self.again = Some(Instant::now() + AFTER_DEFECT);
            }
        }
        self.told.send_replace(Some(problems));
        Ok(())
    }

    /// Keeps mesh sessions the configuration no longer wants until what replaces them carries their routes.
    fn keep_mesh(&mut self, plan: &mut Plan) {
        let identity = plan.speaker.as_ref().map(|s| (s.asn, s.router_id));
        if identity != self.identity {
            // Another identity is another speaker: its sessions start anew in any case.
            self.sessions.clear();
            self.identity = identity;
        }
        let reflects = plan.speaker.as_ref().is_some_and(|s| s.cluster_id.is_some());
        // They stay noted until there are new ones: a defect may come between.
        let old = self.sessions.iter();
        let left: Vec<PeerConfig> = old
            .filter(|p| {
                self.state.is_node_address(p.address) && plan.peers.iter().all(|q| q.address != p.address)
            })
            // While there is a mesh, only a reflector has left it.
            .filter(|p| !plan.mesh || self.state.is_reflector(p.address))
            .cloned()
            .collect();
        let event = if plan.mesh && left.is_empty() {
            Event::Wanted
        } else {
            Event::Unwanted {
                now: self.origin.elapsed(),
                present: !left.is_empty(),
                // A reflector is about to get other sessions, if it has none yet.
                replaced: plan.mesh || reflects || plan.peers.iter().any(|p| p.kind != MESH),
            }
        };
        self.leaving.clear();
        let step = self.mesh.on(event);
        if step == Step::Keep {
            self.leaving = left.iter().map(|p| p.address).collect();
            let why = match (plan.mesh, reflects) {
                (true, _) => "nodes of the mesh have become reflectors",
                (false, true) => "this node has become a reflector",
                (false, false) => "spec.nodeToNodeMeshEnabled is false",
            };
            let what = format!(
                "{why}; {} mesh sessions stay until the others carry their routes, {} s at most: {}",
                left.len(),
                BOUND.as_secs(),
                self.mesh.reason().unwrap_or_default()
            );
            plan.problems.push(Problem { about: Key::new(Kind::BgpConfiguration, None, "default"), what });
            plan.problems.sort();
            plan.peers.extend(left);
            plan.peers.sort_by_key(|p| p.address);
        }
        if plan.mesh && step == Step::Follow {
            // Those who left it are gone; it is there for the others, and for the next one who leaves it.
            self.mesh.on(Event::Wanted);
        }
        self.sessions = plan.peers.iter().filter(|p| p.kind == MESH).cloned().collect();
    }
}

fn report(old: &[Problem], new: &[Problem]) {
    for p in new.iter().filter(|p| !old.contains(p)) {
        warn!(resource = %p.about, problem = %p.what, "configuration problem");
    }
    for p in old.iter().filter(|p| !new.contains(p)) {
        info!(resource = %p.about, problem = %p.what, "configuration problem is gone");
    }
}

#[cfg(test)]
mod tests {
    use brindle_config::memory::MemoryStore;
    use brindle_config_core::{
        ObjectMeta, Resource,
        bgp::BgpConfigurationSpec,
        node::{NodeAddress, NodeBgpSpec, NodeSpec},
        store::{Entry, Expect, Listing, Revision, StoreError, StoreExt, StoreFuture, Watch},
    };
    use serde_json::Value;

    use super::*;
    use crate::handle::{Desired, Order};

    fn node(name: &str, ip: &str) -> Resource<NodeSpec> {
        let bgp =
            NodeBgpSpec { ipv4_address: Some(NodeAddress(ip.parse().unwrap())), ..NodeBgpSpec::default() };
        Resource::new(ObjectMeta::named(name), NodeSpec { bgp: Some(bgp), ..NodeSpec::default() })
    }

    /// A store that answers for everything but services.
    struct NoServices(MemoryStore);

    impl Store for NoServices {
        fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
            self.0.get(key)
        }
        fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
            if kinds.contains(&Kind::Service) {
                return Box::pin(async { Err(StoreError::Unavailable("services: forbidden".into())) });
            }
            self.0.list(kinds)
        }
        fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
            self.0.put(key, value, expect)
        }
        fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
            self.0.delete(key, expect)
        }
        fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
            self.0.watch(kinds, from)
        }
    }

    fn ranges() -> Resource<BgpConfigurationSpec> {
        let spec = serde_json::json!({"serviceClusterIPs": [{"cidr": "10.96.0.0/16"}]});
        Resource::new(ObjectMeta::named("default"), serde_json::from_value(spec).unwrap())
    }

    /// A follower of the node `a`, and what it orders.
    fn fed(store: &Arc<dyn Store>) -> (Follower, mpsc::Receiver<Order>) {
        let (orders, taken) = mpsc::channel(4);
        let handle =
            Handle { orders, events: tokio::sync::broadcast::channel(1).0, kernel: Default::default() };
        let none = Path::new("/nonexistent");
        (from_store(Arc::clone(store), "a", none, Environment::default(), handle), taken)
    }

    /// The nodes `a`, `b` and `c`.
    async fn mesh() -> Arc<dyn Store> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        for (name, ip) in [("a", "10.0.0.1/24"), ("b", "10.0.0.2/24"), ("c", "10.0.0.3/24")] {
            store.put_as(&node(name, ip), Expect::Absent).await.unwrap();
        }
        store
    }

    async fn first_plan(store: Arc<dyn Store>) -> (Desired, Duration) {
        store.put_as(&node("a", "10.0.0.1/24"), Expect::Absent).await.unwrap();
        store.put_as(&ranges(), Expect::Absent).await.unwrap();
        let began = Instant::now();
        let (_follower, mut taken) = fed(&store);
        match taken.recv().await {
            Some(Order::Apply(desired, _)) => (*desired, began.elapsed()),
            _ => panic!("expected a plan"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_plan_has_the_services_and_does_not_wait_for_them_for_ever() {
        let store = MemoryStore::new();
        let slice = serde_json::json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "spec": {},
            "metadata": {"name": "s", "namespace": "n", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "a"}]});
        let service = serde_json::json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.5", "internalTrafficPolicy": "Local"}});
        for (kind, name, value) in [(Kind::EndpointSlice, "s", slice), (Kind::Service, "web", service)] {
            store.put(&Key::new(kind, Some("n"), name), value, Expect::Absent).await.unwrap();
        }
        let (plan, _) = first_plan(Arc::new(store)).await;
        let prefixes: Vec<String> = plan.routes.iter().map(|r| r.prefix.to_string()).collect();
        assert_eq!(prefixes, ["10.96.0.0/16", "10.96.0.5/32"], "all of it at once");

        let (plan, waited) = first_plan(Arc::new(NoServices(MemoryStore::new()))).await;
        assert_eq!(plan.routes.len(), 1, "the range");
        assert!((SERVICES..SERVICES * 2).contains(&waited), "{waited:?}");
    }

    #[tokio::test]
    async fn the_speaker_is_told_after_the_snapshot_and_after_every_change_that_matters() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        store.put_as(&node("a", "10.0.0.1/24"), Expect::Absent).await.unwrap();
        store.put_as(&node("b", "10.0.0.2/24"), Expect::Absent).await.unwrap();
        let (mut follower, mut taken) = fed(&store);
        let mut next = async || match taken.recv().await {
            Some(Order::Apply(desired, answer)) => {
                answer.send(vec![]).unwrap();
                *desired
            }
            _ => panic!("expected a plan"),
        };
        assert_eq!(next().await.peers.len(), 1);
        assert!(follower.applied().await);
        store.put_as(&node("c", "10.0.0.3/24"), Expect::Absent).await.unwrap();
        store.put_as(&node("d", "10.0.0.3/24"), Expect::Absent).await.unwrap();
        let plan = next().await;
        assert_eq!(plan.peers.len(), 2, "c and d have the same address: {plan:?}");
        while follower.problems().is_none_or(|p| p.is_empty()) {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_defect_is_told_before_there_is_a_plan_too() {
        let mut problems = None;
        assert!(met(&mut problems, "index out of bounds"));
        assert!(!met(&mut problems, "index out of bounds"), "again after each pause");
        let said: Vec<String> = problems.iter().flatten().map(|p| p.what.clone()).collect();
        assert_eq!(said, ["a defect of ours: nothing is in force yet (index out of bounds)"]);
        let mut problems = Some(vec![]);
        assert!(met(&mut problems, "x"));
        assert!(problems.unwrap()[0].what.contains("the configuration before stays in force (x)"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_that_meets_a_defect_is_told_and_applied_once_more() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        store.put_as(&node("a", "10.0.0.1/24"), Expect::Absent).await.unwrap();
        let (mut follower, mut taken) = fed(&store);
        let mut next = async || match taken.recv().await {
            Some(Order::Apply(desired, answer)) => (*desired, answer),
            _ => panic!("expected a plan"),
        };
        let told = |follower: &Follower| {
            let all = follower.problems().unwrap_or_default();
            all.iter().any(|p| p.what.contains("a defect of ours: the configuration may be in force in part"))
        };
        // Who is asked and has no answer met a defect.
        let (first, answer) = next().await;
        let began = Instant::now();
        drop(answer);
        follower.problems.changed().await.unwrap();
        assert!(told(&follower));
        let (second, answer) = next().await;
        assert_eq!((first, began.elapsed() >= AFTER_DEFECT), (second, true), "without a change");
        drop(answer);
        let rest = tokio::time::timeout(AFTER_DEFECTS, next()).await;
        assert!(rest.is_err() && told(&follower), "twice is enough");
        store.put_as(&node("b", "10.0.0.2/24"), Expect::Absent).await.unwrap();
        let (_, answer) = next().await;
        answer.send(vec![]).unwrap();
        follower.problems.wait_for(|p| p.as_ref().is_some_and(Vec::is_empty)).await.unwrap();
    }

    /// A node of the mesh becomes a reflector by an annotation, before anybody has made a BGPPeer for it.
    #[tokio::test(start_paused = true)]
    async fn mesh_sessions_of_a_new_reflector_stay_until_others_carry_their_routes() {
        for new in ["a", "b"] {
            let store = mesh().await;
            let (follower, mut taken) = fed(&store);
            let mut covered = None;
            let mut plans: Vec<Vec<String>> = Vec::new();
            // All sessions; with that of the new reflector (or all of its own) kept; without.
            while plans.len() < 3 {
                match taken.recv().await {
                    Some(Order::Apply(desired, answer)) => {
                        answer.send(vec![]).unwrap();
                        let peers: Vec<String> = desired.peers.iter().map(|p| p.name.clone()).collect();
                        if plans.last() == Some(&peers) && plans.len() == 2 {
                            continue;
                        }
                        plans.push(peers);
                        if plans.len() == 1 {
                            let ip = if new == "a" { "10.0.0.1/24" } else { "10.0.0.2/24" };
                            let mut node = node(new, ip);
                            let bgp = node.spec.bgp.as_mut().unwrap();
                            bgp.route_reflector_cluster_id = Some([9, 9, 9, 9].into());
                            store.put_as(&node, Expect::Any).await.unwrap();
                        }
                    }
                    Some(Order::Coverage(leaving, answer)) => {
                        covered = Some(leaving);
                        answer.send(Default::default()).unwrap();
                    }
                    _ => panic!("expected a plan, or a question"),
                }
            }
            let both = ["b", "c"].map(str::to_owned).to_vec();
            let left = if new == "a" { vec![] } else { vec!["c".to_owned()] };
            assert_eq!(plans, [both.clone(), both, left]);
            let leaving: &[[u8; 4]] =
                if new == "a" { &[[10, 0, 0, 2], [10, 0, 0, 3]] } else { &[[10, 0, 0, 2]] };
            assert_eq!(covered, Some(leaving.iter().map(|a| IpAddr::from(*a)).collect()));
            drop(follower);
        }
    }
    /// A defect while the mesh is being left: its sessions stay, and the time that has passed counts.
    #[tokio::test(start_paused = true)]
    async fn a_defect_does_not_end_the_mesh_that_is_being_left() {
        let store = mesh().await;
        let (follower, mut taken) = fed(&store);
        let began = Instant::now();
        let (mut last, mut asked, mut left_at) = (Vec::new(), 0, None);
        // Nothing covers it, so it is left when the time is over.
        while left_at.is_none() {
            match taken.recv().await {
                Some(Order::Apply(desired, answer)) => {
                    answer.send(vec![]).unwrap();
                    let peers: Vec<String> = desired.peers.iter().map(|p| p.name.clone()).collect();
                    if last.is_empty() {
                        let mut reflector = node("b", "10.0.0.2/24");
                        let bgp = reflector.spec.bgp.as_mut().unwrap();
                        bgp.route_reflector_cluster_id = Some([9, 9, 9, 9].into());
                        store.put_as(&reflector, Expect::Any).await.unwrap();
                    } else if peers != ["b", "c"] {
                        assert_eq!(peers, ["c"]);
                        left_at = Some(Instant::now());
                    }
                    last = peers;
                }
                Some(Order::Coverage(leaving, answer)) => {
                    assert_eq!(leaving, BTreeSet::from([IpAddr::from([10, 0, 0, 2])]));
                    let coverage =
                        Coverage { not_ready: vec![format!("look {asked}")], ..Default::default() };
                    answer.send(coverage).unwrap();
                    asked += 1;
                    if asked == 10 {
                        fault::arm("bgp.follow");
                    }
                }
                _ => panic!("expected a plan, or a question"),
            }
        }
        assert!(asked > 10);
        drop(follower);
        let waited = left_at.unwrap() - began;
        assert!((BOUND..BOUND + AFTER_DEFECT * 3).contains(&waited), "{waited:?}");
    }
}
