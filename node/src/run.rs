//! The composition root: starts the parts in order, lets them meet, and ends when asked or when a part ends.
//!
//! ```text
//! store ──follow──> felix <──FIB batches── bgpd <──follow── store
//!                     └──report──> cni server (ready endpoints, MTU), admin socket
//! ```

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use brindle_config_core::{
    node::NodeSpec,
    status::{AdminRequest, BgpStatus, NodeAt, NodeStatus, PodStatus, bgp::End, health::Probe},
    store::{Store, StoreExt},
    workload::WorkloadEndpointSpec,
};
use brindle_felix::{FelixInput, FibUpdate};
use brindle_felix_core::inputs::KINDS;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    addresses, admin, admin_tcp, beside, calico_status, cni_server, condition, defaults,
    drain::Drain,
    felix_env::FelixEnv,
    health::{self, BgpProblems},
    local_socket, lock, metrics, path,
    settings::{Networking, Settings, on_kubernetes},
    speaker, state_files,
    tasks::Tasks,
    tunnel_address,
    waiting::{self, Dataplanes, Early, Ended},
};

/// Why the agent ended.
pub(crate) enum Failure {
    /// It could not start as configured.
    Setup(anyhow::Error),
    /// It ran and cannot go on.
    Running(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        Self::Setup(e)
    }
}

/// A part ended that is to run as long as the agent.
fn ended(part: &str) -> Failure {
    Failure::Running(anyhow!("{part} ended unexpectedly; kernel routes stay"))
}

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) fn run(settings: Settings) -> Result<(), Failure> {
    let setup = Failure::Setup;
    if std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) != 0) {
        return Err(setup(anyhow!("must run as root: it programs routes and network namespaces")));
    }
    brindle_kernel::memory::limit_arenas(2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .map_err(|e| setup(anyhow!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(async {
        let _lock = lock::take(&settings.state_dir).map_err(setup)?;
        let folder = &settings.state_dir;
        let pods = || cni_server::pods_here(folder);
        state_files::same_name(folder, &settings.node_name, pods).map_err(setup)?;
        agent(settings).await
    });
    // Connections are dropped without a NOTIFICATION, so that peers keep our routes for the restart time.
    runtime.shutdown_background();
    brindle_config::SqliteStore::close_all();
    result
}

async fn agent(settings: Settings) -> Result<(), Failure> {
    let started = Instant::now();
    let signals = |kind| signal(kind).map_err(|e| Failure::Setup(anyhow!("cannot handle signals: {e}")));
    let mut term = signals(SignalKind::terminate())?;
    let mut int = signals(SignalKind::interrupt())?;
    brindle_admin::hangup::outlive().map_err(|e| Failure::Setup(anyhow!("cannot handle signals: {e}")))?;
    let way_out = OnceLock::new();
    // It may wait for the datastore for long, and speak BGP meanwhile.
    let begin = start(&settings, started, &way_out);
    tokio::pin!(begin);
    let begun = tokio::select! {
        parts = &mut begin => parts?.into(),
        _ = term.recv() => None,
        _ = int.recv() => None,
    };
    let Some(parts) = begun else {
        if let Some(drain) = way_out.get() {
            leave(drain, settings.cluster.drain, &mut term, &mut int).await;
        }
        tracing::info!(cause = "a signal", "agent ends before it has started; kernel routes stay");
        return Ok(());
    };
    let Parts { store, felix, policy, bgp, bgp_problems, mut tasks, listener, port, drain, health } = parts;
    let sources = health::Sources {
        felix: felix.clone(),
        policy: policy.clone(),
        bgp: bgp.clone(),
        bgp_problems: bgp_problems.clone(),
        node: settings.node_name.clone(),
        drain: Arc::clone(&drain),
        started,
        intruder: Some(beside::watch()),
        waits: None,
    };
    if let Some(listener) = health {
        tasks.spawn("the answers to probes", health::serve(listener, sources.clone().asker()));
    }
    // Who routes between nodes says whether the network is there.
    if on_kubernetes(&settings.datastore) && settings.networking == Networking::Bgp {
        tasks.spawn("the Node's condition", condition::keep(Arc::clone(&store), sources.clone()));
    }
    let on_signal = Arc::clone(&drain);
    let end_of = Arc::clone(&store);
    let answer: admin::Answer = {
        let (settings, store, felix, bgp) =
            (Arc::new(settings.clone()), store.clone(), felix.clone(), bgp.clone());
        Arc::new(move |request| {
            let (settings, store, felix, bgp) = (settings.clone(), store.clone(), felix.clone(), bgp.clone());
            let (sources, drain) = (sources.clone(), Arc::clone(&drain));
            Box::pin(async move {
                match request {
                    AdminRequest::Status => status(&*store, &sources).await,
                    AdminRequest::Rib { prefix } => match &bgp {
                        Some(b) => match b.rib(prefix).await {
                            Ok(paths) => serde_json::to_value(paths).unwrap_or(Value::Null),
                            Err(e) => json!({"error": e.to_string()}),
                        },
                        None => json!({"error": "this agent runs with --networking none"}),
                    },
                    AdminRequest::Path { to } => {
                        path::answer(&settings.node_name, to, &*store, &felix, bgp.as_ref()).await
                    }
                    AdminRequest::Nodes => nodes(&*store).await,
                    AdminRequest::Health => {
                        serde_json::to_value(sources.health().await).unwrap_or(Value::Null)
                    }
                    AdminRequest::Drain { wait } => match drain.run(Duration::from_secs(wait)).await {
                        Ok(done) => {
                            condition::down(&*store, &settings.node_name).await;
                            serde_json::to_value(done).unwrap_or(Value::Null)
                        }
                        Err(e) => json!({"error": format!("{e:#}")}),
                    },
                    AdminRequest::Bgp(_) => {
                        json!(End::Error("this agent runs with --networking none".into()))
                    }
                    AdminRequest::Routes => serde_json::to_value(felix.report().encap).unwrap_or(Value::Null),
                }
            })
        })
    };
    if let Some(port) = port {
        tasks.spawn("the admin port", port.serve(Arc::clone(&answer), bgp.clone()));
    }
    tasks.spawn("the admin socket", admin::serve(listener, answer, bgp.clone()));
    tracing::info!(node = %settings.node_name, state = %settings.state_dir.display(), "agent started");

    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        part = tasks.ended() => return Err(ended(part)),
    }
    if leave(&on_signal, settings.cluster.drain, &mut term, &mut int).await {
        condition::down(&*end_of, &settings.node_name).await;
    }
    tracing::info!(cause = "a signal", "agent ends; kernel routes stay");
    Ok(())
}

/// Drains, if that is wished for and was not done before; whether it was done now. A second signal ends it.
async fn leave(drain: &Drain, wait: Duration, term: &mut Signal, int: &mut Signal) -> bool {
    if wait.is_zero() || drain.is_done() {
        return false;
    }
    tokio::select! {
        done = drain.run(wait) => match done {
            Ok(_) => return true,
            Err(e) => tracing::warn!("cannot drain: {e:#}"),
        },
        _ = term.recv() => tracing::info!("a second signal: not waiting for peers any longer"),
        _ = int.recv() => tracing::info!("a second signal: not waiting for peers any longer"),
    }
    false
}

/// The speaker's problems as lines.
fn told(problems: Option<&BgpProblems>) -> Vec<String> {
    let all = problems.map(|p| p.borrow().clone().unwrap_or_default()).unwrap_or_default();
    all.iter().map(ToString::to_string).collect()
}

struct Parts {
    store: Arc<dyn Store>,
    felix: brindle_felix::Handle,
    policy: brindle_felix::policy::PolicyHandle,
    bgp: Option<brindle_bgpd::Handle>,
    /// What the speaker cannot do as configured.
    bgp_problems: Option<BgpProblems>,
    /// Everything that is to run as long as the agent.
    tasks: Tasks,
    listener: tokio::net::UnixListener,
    /// For other machines.
    port: Option<admin_tcp::Port>,
    drain: Arc<Drain>,
    /// For probes over HTTP.
    health: Option<tokio::net::TcpListener>,
}

/// Makes this node known and reads or makes what every cluster has; its addresses.
async fn enter(
    store: &dyn Store,
    settings: &Settings,
    admin: Option<std::net::SocketAddr>,
) -> anyhow::Result<Vec<ipnet::IpNet>> {
    let published = addresses::publish(store, settings, admin).await?;
    defaults::ensure(store, &settings.cluster, on_kubernetes(&settings.datastore), &published).await?;
    Ok(published)
}

async fn start(
    settings: &Settings,
    started: Instant,
    way_out: &OnceLock<Arc<Drain>>,
) -> Result<Parts, Failure> {
    beside::until_alone(settings).await?;
    let mut tasks = Tasks::default();
    let store = waiting::open(&settings.datastore).await?;
    let port = match &settings.admin_port {
        Some((address, token)) => Some(admin_tcp::bind(*address, token).await?),
        None => None,
    };
    let admin = port.as_ref().map(admin_tcp::Port::address).transpose()?;
    let env = FelixEnv::read();
    env.log();
    let metrics = metrics::Sources::new(&store, &settings.node_name);
    if let Some(address) = settings.metrics {
        let listener = brindle_bgpd::metrics::listen(address).await.map_err(anyhow::Error::from)?;
        tasks.spawn("the metrics", metrics::serve(listener, Arc::clone(&metrics)));
    }
    let mut early: Option<Early> = None;
    let published = loop {
        let entered = tokio::select! {
            entered = enter(&*store, settings, admin) => entered,
            part = died(&mut tasks, &mut early) => return Err(ended(part)),
        };
        match entered {
            Ok(published) => break published,
            Err(why) if waiting::is_worth_it(&why, settings) => {
                match &mut early {
                    Some(early) => early.say(&why),
                    None => {
                        let new = Early::start(settings, &store, &env, started, &why, &mut tasks).await?;
                        let early = early.insert(new);
                        metrics.parts(&early.dataplanes, &early.cni);
                        if let Some(drain) = early.drain() {
                            drain.speaker().into_iter().for_each(|bgp| metrics.bgp(bgp));
                            // Set here only, and an agent waits once.
                            let _ = way_out.set(Arc::clone(drain));
                        }
                        early.say(&why);
                    }
                }
                let pause = early.as_mut().map(Early::pause).unwrap_or_default();
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    part = died(&mut tasks, &mut early) => return Err(ended(part)),
                }
            }
            Err(why) => return Err(waiting::explained(why).into()),
        }
    };
    let (early, speaking, listener) = match early {
        Some(early) => {
            let Ended { dataplanes, cni, speaking, listener } = early.end().await;
            (Some((dataplanes, cni)), speaking, Some(listener))
        }
        None => (None, None, None),
    };
    let (speaking, drain) = speaking.unzip();
    state_files::leave_node_name(&settings.state_dir, &settings.node_name).await?;

    // Bound before anything is written to the kernel: whoever can connect finds a starting agent, not a dead one.
    let listener = match listener {
        Some(listener) => listener,
        None => local_socket::bind(&settings.admin_socket)?,
    };
    let health = match settings.cluster.health {
        Some(address) => Some(health::listen(address).await?),
        None => None,
    };
    let (dataplanes, cni) = match early {
        Some((dataplanes, cni)) => (dataplanes, Some(cni)),
        None => (Dataplanes::start(settings, &store, &env, &mut tasks)?, None),
    };
    let Dataplanes { policy, felix } = dataplanes.clone();
    // Routes need the pods of this node alone; policy follows all of them by itself.
    let own = store.for_node(&settings.node_name).unwrap_or_else(|| store.clone());
    let floating = env.floating_ips();
    let mut events = brindle_config::sync::follow(own, KINDS.to_vec());
    let to_felix = felix.clone();
    let node = settings.node_name.clone();
    tasks.spawn("the follower of the datastore for routes", async move {
        let mut seen = false;
        while let Some(mut batch) = events.recv().await {
            env.apply(&mut batch, &node, &mut seen);
            if !to_felix.send(FelixInput::Store(batch)).await {
                // Felix has ended, and is told of.
                return std::future::pending().await;
            }
        }
    });

    let (bgp, speaker) = match settings.networking {
        Networking::Bgp => {
            let speaker = speaker::speak(settings, &store, floating, &felix, speaking, &mut tasks).await?;
            metrics.bgp(&speaker.running.handle);
            (Some(speaker.running.handle.clone()), Some(speaker))
        }
        Networking::None => {
            let done = FibUpdate { in_sync: true, ..FibUpdate::default() };
            felix.send(FelixInput::Fib(done)).await;
            (None, None)
        }
    };

    tasks.spawn_beside("what gives memory back", give_memory_back(policy.watch()));
    let v4 = published.iter().any(|a| a.addr().is_ipv4());
    tasks.spawn_beside("the MTU file", state_files::keep_mtu(settings.state_dir.clone(), felix.watch()));
    let mut cni = match cni {
        Some(cni) => cni,
        None => cni_server::start(settings, &store, &felix, &policy).await?,
    };
    metrics.parts(&dataplanes, &cni);
    tasks.spawn(
        "the tunnel address",
        tunnel_address::keep(store.clone(), settings.node_name.clone(), v4, cni.history()),
    );
    tasks.spawn("the Node's addresses", addresses::keep(store.clone(), settings.clone(), published, admin));
    tasks.spawn("the CNI server", async move { cni.ended().await });
    if settings.cluster.install_cni {
        // Not one of the runtime's few threads: it may sleep for long.
        let (socket, state_dir) = (settings.cni_socket.clone(), settings.state_dir.clone());
        let (alive, gone) = tokio::sync::oneshot::channel::<()>();
        let keep = move || {
            let _alive = alive;
            install_conflist(&socket, &state_dir);
        };
        std::thread::Builder::new()
            .name("conflist".into())
            .spawn(keep)
            .context("no thread for the conflist")?;
        tasks.spawn("the conflist", async move {
            // An error: the thread is no more.
            let _ = gone.await;
        });
    }

    let bgp_problems = speaker.as_ref().map(|s| s.follower.watch());
    let sources = calico_status::Sources {
        store: store.clone(),
        node: settings.node_name.clone(),
        felix: felix.clone(),
        bgp: bgp.clone(),
        started,
        configured: bgp_problems.clone(),
    };
    tasks.spawn("the CalicoNodeStatus", calico_status::keep(sources));
    let drain = drain.unwrap_or_else(|| Arc::new(Drain::new(bgp.clone())));
    if let Some(mut speaker) = speaker {
        let drain = Arc::clone(&drain);
        tasks.spawn("bgpd", async move {
            // Fed until it ends.
            let _follower = speaker.follower;
            speaker::ended(&mut speaker.running, &drain).await;
        });
    }
    Ok(Parts { store, felix, policy, bgp, bgp_problems, tasks, listener, port, drain, health })
}

/// Completes with the name of a part that ended while the agent starts. Cancel safe.
async fn died(tasks: &mut Tasks, early: &mut Option<Early>) -> &'static str {
    let early = async {
        match early {
            Some(early) => early.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        part = tasks.ended() => part,
        part = early => part,
    }
}

/// When an agent's start is over, and now and then, what it needed only for that is given back. In a large cluster, or on a
/// busy machine, it is over late: the pauses begin anew when policy has read everything.
async fn give_memory_back(mut policy: tokio::sync::watch::Receiver<brindle_felix::policy::PolicyReport>) {
    use brindle_kernel::memory::{give_back, let_program_go, processor_time};
    /// A start takes a third of this where nothing is unusual. Where it takes more, the machine is slow or the cluster
    /// large, and reading pages again costs more than it saves until the agent has come to rest.
    const BUSY: Duration = Duration::from_millis(500);
    const REST: u64 = 5_000;
    // A start runs through most of the program once, each moment through another part; free memory it soon needs again.
    let program =
        [100; 5].into_iter().chain([250; 2]).chain([1_000; 8]).map(|ms| (ms, let_program_go as fn() -> _));
    let all = [2_000, 5_000, 30_000]
        .into_iter()
        .chain(std::iter::repeat(600_000))
        .map(|ms| (ms, give_back as fn() -> _));
    let pauses = program.chain(all);
    let mut next = pauses.clone();
    let mut read = false;
    while let Some((mut pause, step)) = next.next() {
        let step = tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(pause)) => step,
            // An error: there is no policy any more, and the agent ends.
            _ = policy.wait_for(|p| p.in_sync), if !read => {
                read = true;
                next = pauses.clone();
                pause = 0;
                give_back
            }
        };
        if pause < REST && processor_time() > BUSY {
            continue;
        }
        match tokio::task::spawn_blocking(step).await {
            Ok(Ok(octets)) => tracing::debug!(octets, "pages of the program given back"),
            Ok(Err(e)) => return tracing::debug!("memory is not given back: {e}"),
            Err(e) => return tracing::debug!("memory is not given back: {e}"),
        }
    }
}

/// How often it is looked whether the conflist is still there.
const CONFLIST: Duration = Duration::from_secs(5);

/// The conflist, once pods can be attached; tried until it is there, and put back when somebody takes it away. Runs on a
/// thread of its own.
fn install_conflist(socket: &std::path::Path, state_dir: &std::path::Path) {
    // The pause grows to half a minute; the log says why each time.
    let mut pause = Duration::from_secs(1);
    loop {
        match crate::install_cni::conflist_for(socket, state_dir) {
            Ok((done, mut conflist)) => {
                done.iter().for_each(|line| tracing::info!("conflist {line}"));
                loop {
                    std::thread::sleep(CONFLIST);
                    conflist.look();
                }
            }
            Err(e) => tracing::warn!("{e:#}; trying again"),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

/// Who else there is, for an asker that cannot reach the datastore.
async fn nodes(store: &dyn Store) -> Value {
    match store.list_as::<NodeSpec>().await {
        Ok((all, _)) => json!(all.iter().map(|n| NodeAt::of(&n.resource)).collect::<Vec<_>>()),
        Err(e) => json!({"error": format!("cannot list the nodes: {e}")}),
    }
}

async fn status(store: &dyn Store, sources: &health::Sources) -> Value {
    let report = sources.felix.fresh_report().await;
    let policy = sources.policy.report();
    let mut reasons = report.problems.clone();
    if report.pod_mtu == 0 && reasons.is_empty() {
        reasons.push("starting: the datastore has not been read yet".into());
    }
    // Felix and the speaker may say the same of the same resource.
    for said in report.warnings.iter().chain(&told(sources.bgp_problems.as_ref())) {
        if !reasons.contains(said) {
            reasons.push(said.clone());
        }
    }
    let bgp = match &sources.bgp {
        Some(b) => b.status().await.unwrap_or_else(|e| {
            reasons.push(e.to_string());
            BgpStatus::default()
        }),
        None => BgpStatus::default(),
    };
    let own = store.for_node(&sources.node);
    let pods = match own.as_deref().unwrap_or(store).list_as::<WorkloadEndpointSpec>().await {
        Ok((all, _)) => all
            .into_iter()
            .filter(|w| w.resource.spec.node == sources.node)
            .map(|w| PodStatus {
                ready: report.ready.contains(&w.resource.key()) && policy.is_ready(&w.resource.key()),
                namespace: w.resource.metadata.namespace.clone().unwrap_or_default(),
                name: w.resource.spec.pod,
                container_id: w.resource.spec.container_id,
                addresses: w.resource.spec.ip_networks,
                interface: w.resource.spec.interface_name,
            })
            .collect(),
        Err(e) => {
            reasons.push(format!("{e}; running pods are not touched"));
            Vec::new()
        }
    };
    reasons.extend(policy.problems.iter().cloned());
    // The same judgement as /readyz.
    let health = sources.health().await;
    reasons.extend(health::untold(&health, &reasons));
    let status = NodeStatus {
        node: sources.node.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        rss_kib: rss_kib().unwrap_or(0),
        uptime_ms: u64::try_from(sources.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        ready: health.ok(Probe::Ready),
        reasons,
        bgp,
        routes: report.routes,
        encap: report.encap,
        policy: policy.status(),
        pods,
        blocks: report.own_blocks,
    };
    serde_json::to_value(status).unwrap_or_else(|e| json!({"error": e.to_string()}))
}

fn rss_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}
