//! The start of an agent whose datastore is away, or does not let it in. On a node where an agent ran before, pods come back after a reboot and
//! must not wait for another machine: routes, policy, BGP and the CNI server start at once, with what the last agent left,
//! and everything else when the datastore answers. Probes are answered meanwhile: it lives, and is not ready. A first start
//! has nothing to go by and ends with what is wrong, but as a pod of a cluster, whose manifest says where the datastore is.

use std::{
    ffi::{OsStr, OsString},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use brindle_config_core::{
    Kind,
    status::{AdminRequest, bgp::End},
    store::{Store, StoreError},
};
use brindle_felix::{CarrierPolicy, policy::PolicyHandle};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::{
    admin, calico, cni_server,
    drain::Drain,
    felix_env::FelixEnv,
    health, local_socket, policy,
    settings::{Carrier, Networking, Settings},
    speaker, state_files,
    tasks::Tasks,
};

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Opens the datastore. A file that somebody else keeps locked is waited for: nothing is wrong with what was configured.
pub(crate) async fn open(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    let mut told = false;
    loop {
        let url = url.to_owned();
        let opened = tokio::task::spawn_blocking(move || brindle_config::open(&url)).await;
        match opened.context("the datastore cannot be opened")? {
            Err(why @ StoreError::Unavailable(_)) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(cause = %why, "waiting for the datastore");
                }
                tokio::time::sleep(PAUSE.0).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// What writes to the kernel.
#[derive(Clone)]
pub(crate) struct Dataplanes {
    pub(crate) policy: PolicyHandle,
    pub(crate) felix: brindle_felix::Handle,
}

impl Dataplanes {
    /// Starts both; neither writes routes or rules before it has read the datastore, except for denying what is new where
    /// there are no rules.
    pub(crate) fn start(
        settings: &Settings,
        store: &Arc<dyn Store>,
        env: &FelixEnv,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let policy = policy::start(settings, store, env, tasks)?;
        let felix = brindle_felix::spawn(&brindle_felix::Settings {
            node: settings.node_name.clone(),
            state_dir: settings.state_dir.clone(),
            carrier: match settings.carrier {
                Carrier::Auto => CarrierPolicy::Auto,
                Carrier::Kernel => CarrierPolicy::Kernel,
                Carrier::User => CarrierPolicy::User,
            },
            carrier_args: settings.log_args(),
            // Without a speaker of ours somebody else's routes are what there is.
            bird: match settings.networking {
                Networking::Bgp => Some(calico::bird),
                Networking::None => None,
            },
        })?;
        let watched = felix.clone();
        tasks.spawn("felix", async move { watched.ended().await });
        Ok(Self { policy, felix })
    }
}

/// What is waited for, since when, and why.
#[derive(Debug)]
pub(crate) struct Wait {
    datastore: String,
    since: Instant,
    why: Mutex<String>,
}

impl Wait {
    fn new(datastore: &str, why: &anyhow::Error) -> Self {
        let datastore = brindle_config::shown_url(datastore);
        Self { datastore, since: Instant::now(), why: Mutex::new(format!("{why:#}")) }
    }

    /// The last reason.
    fn set(&self, why: &str) {
        // A string is whole after each statement.
        why.clone_into(&mut self.why.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// As a check's reason.
    pub(crate) fn text(&self) -> String {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        format!("waiting for {} for {} s: {why}", self.datastore, self.since.elapsed().as_secs())
    }

    /// To whoever asks for something else.
    fn refusal(&self) -> String {
        format!("the agent has not started yet; {}; pods that were here before are served", self.text())
    }
}

/// What is answered on the admin socket meanwhile.
fn answers(sources: health::Sources, waits: Arc<Wait>, speaks: bool) -> admin::Answer {
    Arc::new(move |request| {
        let (sources, waits) = (sources.clone(), Arc::clone(&waits));
        Box::pin(async move {
            match request {
                AdminRequest::Health => serde_json::to_value(sources.health().await).unwrap_or(Value::Null),
                AdminRequest::Drain { wait } if speaks => {
                    match sources.drain.run(Duration::from_secs(wait)).await {
                        Ok(done) => serde_json::to_value(done).unwrap_or(Value::Null),
                        Err(e) => json!({"error": format!("{e:#}")}),
                    }
                }
                AdminRequest::Bgp(_) => json!(End::Error(waits.refusal())),
                _ => json!({"error": waits.refusal()}),
            }
        })
    })
}

/// The parts of an agent that waits for its datastore.
pub(crate) struct Early {
    pub(crate) dataplanes: Dataplanes,
    pub(crate) cni: cni_server::Server,
    /// Speaks as the last agent did; the whole one goes on with it.
    speaking: Option<(brindle_bgpd::Running, Arc<Drain>)>,
    /// The admin socket.
    listener: UnixListener,
    /// Who answers there and to probes meanwhile.
    answering: Tasks,
    waits: Arc<Wait>,
    pause: Duration,
    /// The [`gist`] of what was said last.
    told: String,
    /// Whether the datastore's address is one that kube-proxy serves.
    a_service: bool,
}

impl Early {
    /// Starts them.
    pub(crate) async fn start(
        settings: &Settings,
        store: &Arc<dyn Store>,
        env: &FelixEnv,
        started: Instant,
        why: &anyhow::Error,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let listener = local_socket::bind(&settings.admin_socket)?;
        let dataplanes = Dataplanes::start(settings, store, env, tasks)?;
        let Dataplanes { policy, felix } = &dataplanes;
        let waits = Arc::new(Wait::new(&settings.datastore, why));
        let speaking = speaker::without_datastore(settings, felix, tasks).await?;
        let bgp = speaking.as_ref().map(|s| s.handle.clone());
        let drain = Arc::new(Drain::new(bgp.clone()));
        let sources = health::Sources {
            felix: felix.clone(),
            policy: policy.clone(),
            bgp: bgp.clone(),
            bgp_problems: None,
            node: settings.node_name.clone(),
            drain: Arc::clone(&drain),
            started,
            intruder: None,
            waits: Some(Arc::clone(&waits)),
        };
        // First of all: kubelet's probes ask here whether the agent lives.
        let answers = answers(sources.clone(), Arc::clone(&waits), bgp.is_some());
        let mut answering = Tasks::default();
        answering.spawn("the admin socket", admin::serve(local_socket::twin(&listener)?, answers, bgp));
        let cni = cni_server::start(settings, store, felix, policy).await?;
        if let Some(address) = settings.cluster.health {
            answering.spawn(
                "the answers to probes",
                health::serve(health::listen(address).await?, sources.asker()),
            );
        }
        Ok(Self {
            dataplanes,
            cni,
            speaking: speaking.map(|s| (s, drain)),
            listener,
            answering,
            waits,
            pause: PAUSE.0,
            told: String::new(),
            a_service: settings.datastore == IN_CLUSTER,
        })
    }

    /// Says why it waits, if that is news.
    pub(crate) fn say(&mut self, why: &anyhow::Error) {
        let away = is_away(why);
        let why = format!("{why:#}");
        self.waits.set(&why);
        if self.told != gist(&why) {
            let hint = if self.a_service && away {
                "; the address is a service's, so kube-proxy must run on this node, or KUBERNETES_SERVICE_HOST and \
                 KUBERNETES_SERVICE_PORT name the API server itself"
            } else {
                ""
            };
            tracing::warn!(cause = %why, "waiting for the datastore; pods that were here before are served{hint}");
            self.told = gist(&why);
        }
    }

    /// How long to wait until the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        let longer = (self.pause * 2).min(PAUSE.1);
        std::mem::replace(&mut self.pause, longer)
    }

    /// The speaker's way out, if one speaks.
    pub(crate) fn drain(&self) -> Option<&Arc<Drain>> {
        self.speaking.as_ref().map(|(_, drain)| drain)
    }

    /// Completes with the name of a part of its own that ended. Cancel safe.
    pub(crate) async fn ended(&mut self) -> &'static str {
        let speaker = async {
            match &mut self.speaking {
                Some((running, drain)) => speaker::ended(running, drain).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            part = self.answering.ended() => part,
            () = self.cni.ended() => "the CNI server",
            () = speaker => "bgpd",
        }
    }

    /// The wait is over: what the whole agent starts anew is given free. Who asks at the admin socket now is answered by
    /// the whole agent.
    pub(crate) async fn end(self) -> Ended {
        tracing::info!(old = "waiting", new = "starting", cause = "the datastore answers", "agent");
        // The port for probes is free then.
        self.answering.stop().await;
        Ended { dataplanes: self.dataplanes, cni: self.cni, speaking: self.speaking, listener: self.listener }
    }
}

/// What the whole agent goes on with.
pub(crate) struct Ended {
    pub(crate) dataplanes: Dataplanes,
    pub(crate) cni: cni_server::Server,
    pub(crate) speaking: Option<(brindle_bgpd::Running, Arc<Drain>)>,
    pub(crate) listener: UnixListener,
}

/// Whether waiting makes sense. On a node that has been served before it does whenever the datastore does not answer or
/// does not serve this agent: a clock that is wrong after a reboot makes tokens and certificates invalid, and pods of
/// before must not wait for it. On a new node only a pod waits (or whose file another process has locked), and only for an answer: it starts beside kube-proxy, without
/// which there is no way to the API server's service yet, and in a cluster that starts its etcd may be later than its nodes;
/// ending would make kubelet wait longer before each next try.
pub(crate) fn is_worth_it(why: &anyhow::Error, settings: &Settings) -> bool {
    let served =
        || state_files::node_name(&settings.state_dir).is_some_and(|name| name == settings.node_name);
    let file = settings.datastore.starts_with("sqlite:");
    if is_away(why) {
        // A file that is there and locked is no mistake in the configuration.
        return file || is_pod(&settings.datastore, api_server().as_deref()) || served();
    }
    // What is wrong with a file of this machine, waiting does not mend.
    !file && is_refusal(why) && served()
}

/// The API server of the cluster this is a pod of.
const IN_CLUSTER: &str = "kubernetes:";

/// Whether this is a pod of a cluster, whatever holds its resources: kubelet tells every container where the API server is.
fn is_pod(datastore: &str, api_server: Option<&OsStr>) -> bool {
    datastore == IN_CLUSTER || api_server.is_some_and(|host| !host.is_empty())
}

fn api_server() -> Option<OsString> {
    std::env::var_os("KUBERNETES_SERVICE_HOST")
}

/// What a first start says: there is nothing to go by.
pub(crate) fn explained(why: anyhow::Error) -> anyhow::Error {
    if !is_away(&why) {
        return why;
    }
    let help = "start it, or correct --datastore (BRINDLE_DATASTORE); an agent waits for it only where one ran before, \
                or as a pod of the cluster";
    anyhow::anyhow!("{why:#}; {help}")
}

fn is_away(why: &anyhow::Error) -> bool {
    let mut causes = why.chain().filter_map(|e| e.downcast_ref::<StoreError>());
    causes.any(|e| matches!(e, StoreError::Unavailable(_)))
}

/// Whether the datastore answers, and does not serve this agent: 401, 403, a certificate that is not valid (yet), or no Node
/// to write to (kubelet may be about to register it anew).
fn is_refusal(why: &anyhow::Error) -> bool {
    let mut causes = why.chain().filter_map(|e| e.downcast_ref::<StoreError>());
    causes.any(|e| match e {
        StoreError::Broken(_) => true,
        StoreError::Refused { key, .. } => key.kind == Kind::Node,
        _ => false,
    })
}

/// A reason without its figures: those of a certificate's age change every second, which is no news.
fn gist(why: &str) -> String {
    why.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use brindle_config_core::Key;

    use super::*;

    #[test]
    fn what_a_datastore_refuses_is_told_from_what_is_wrong_here() {
        let node = Key::new(Kind::Node, None, "n1");
        let pool = Key::new(Kind::IpPool, None, "p");
        let refused = |key| StoreError::Refused { key, reason: "no".into() };
        for (e, away, refusal) in [
            (StoreError::Unavailable("x".into()), true, false),
            (StoreError::Broken("401 Unauthorized".into()), false, true),
            (refused(node), false, true),
            (refused(pool.clone()), false, false),
            (StoreError::Invalid { key: pool, reason: "x".into() }, false, false),
        ] {
            let e = anyhow::Error::new(e).context("cannot read Node(n1)");
            assert_eq!((is_away(&e), is_refusal(&e)), (away, refusal), "{e:#}");
        }
        assert!(!is_refusal(&anyhow::anyhow!("conflicting node detected")));
    }

    #[test]
    fn a_pod_is_one_whatever_its_datastore_is() {
        for (datastore, host, want) in [
            ("kubernetes:", None, true),
            ("etcd:http://192.0.2.1:2379", Some("10.96.0.1"), true),
            ("kubernetes:/etc/brindle/kubeconfig", Some("10.96.0.1"), true),
            ("etcd:http://192.0.2.1:2379", None, false),
            // Set and empty is not set.
            ("etcd:http://192.0.2.1:2379", Some(""), false),
        ] {
            assert_eq!(is_pod(datastore, host.map(OsStr::new)), want, "{datastore} {host:?}");
        }
    }

    #[test]
    fn figures_are_no_news() {
        assert_eq!(gist("not valid before 200 (7 s)"), gist("not valid before 200 (6 s)"));
        assert_ne!(gist("401 Unauthorized"), gist("no right to list"));
    }
}
