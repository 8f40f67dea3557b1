//! Who there is and where each agent answers.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use brindle_admin::rustls::ClientConfig;
use brindle_config_core::{
    node::NodeSpec,
    status::{AdminRequest, NodeAt},
    store::{Store, StoreExt as _},
};

use super::{Agent, ClusterArgs, LOCAL_SOCKET, ReachArgs, Where};
use crate::{
    cmd::resource::{
        block_on,
        place::{CALICO, Place, VARIABLE, place},
    },
    lab::{state::LabDir, topology::AgentKind},
};

/// Where the list of nodes comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Lab(String),
    Store(String),
    Agent(String),
}

impl Source {
    /// As it is shown.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Lab(name) => format!("lab {name:?}"),
            Self::Store(url) => url.clone(),
            Self::Agent(at) => format!("the agent at {at}"),
        }
    }

    /// Whether this is a cluster of Kubernetes, known by its API server.
    pub(crate) fn kubernetes(&self) -> bool {
        matches!(self, Self::Store(url) if url.starts_with("kubernetes:"))
    }

    /// What to add to a command that is about the same cluster.
    pub(crate) fn flag(&self) -> String {
        match self {
            Self::Lab(name) => format!(" --lab {name}"),
            Self::Store(url) if url == brindle_config::DEFAULT_URL => String::new(),
            Self::Store(url) if std::env::var(VARIABLE).is_ok_and(|v| v == *url) => String::new(),
            Self::Store(url) => format!(" --datastore {url}"),
            Self::Agent(_) => String::new(),
        }
    }
}

/// The agents asked about, and the datastore where it can be opened.
pub(crate) struct Cluster {
    pub(crate) source: Source,
    pub(crate) agents: Vec<Agent>,
    pub(crate) store: Option<Arc<dyn Store>>,
}

/// Finds the cluster the arguments are about: a lab that is named; the datastore; the agent of this machine; the only
/// lab there is.
pub(crate) fn find(args: &ClusterArgs) -> Result<Cluster> {
    let mut cluster = all(&args.reach)?;
    if !args.node.is_empty() {
        for wanted in &args.node {
            if !cluster.agents.iter().any(|a| a.at.name == *wanted) {
                let names: Vec<&str> = cluster.agents.iter().map(|a| a.at.name.as_str()).collect();
                let meant = brindle_config_core::suggest::closest(wanted, names.iter().copied());
                let hint = meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default();
                bail!("{} has no node {wanted:?}, only {}{hint}", cluster.source.name(), names.join(", "));
            }
        }
        cluster.agents.retain(|a| args.node.contains(&a.at.name));
    }
    Ok(cluster)
}

/// The same with all nodes.
pub(crate) fn all(args: &ReachArgs) -> Result<Cluster> {
    let token = Token { path: &args.admin_token_file, config: std::cell::OnceCell::new() };
    if let Some(address) = args.agent {
        let place = token.port(address);
        let nodes = ask_nodes(&place, args)?;
        let agents = nodes.into_iter().map(|at| token.agent(at)).collect();
        return Ok(Cluster { source: Source::Agent(address.to_string()), agents, store: None });
    }
    let place = place(&args.store)?;
    if let Some(dir) = &place.lab {
        return lab(dir);
    }
    let url = place.url.clone();
    let store = match place.open(false) {
        Ok(store) => store,
        Err(error) => {
            if Path::new(LOCAL_SOCKET).exists() {
                let place = Where::Socket(LOCAL_SOCKET.into());
                let nodes = ask_nodes(&place, args)?;
                let agents = nodes.into_iter().map(|at| token.agent(at)).collect();
                let mut cluster = Cluster { source: Source::Agent(LOCAL_SOCKET.into()), agents, store: None };
                own(&mut cluster.agents, args);
                return Ok(cluster);
            }
            return Err(error);
        }
    };
    let nodes = block_on(async {
        store.list_as::<NodeSpec>().await.with_context(|| format!("cannot list the nodes of {url}"))
    })?
    .0;
    let agents = nodes.iter().map(|n| token.agent(NodeAt::of(&n.resource))).collect();
    let mut cluster = Cluster { source: Source::Store(url), agents, store: Some(store) };
    own(&mut cluster.agents, args);
    if cluster.agents.is_empty() {
        let url = place.url;
        let flag = if url.starts_with(CALICO) { String::new() } else { format!(" --datastore {url}") };
        bail!("{} has no nodes yet; start an agent: brindle-node run{flag}", cluster.source.name());
    }
    Ok(cluster)
}

fn ask_nodes(place: &Where, args: &ReachArgs) -> Result<Vec<NodeAt>> {
    place
        .one(&AdminRequest::Nodes, args.timeout)
        .with_context(|| format!("cannot learn the nodes from the agent at {}", place.name()))
}

/// The agent of this machine is asked over its socket.
fn own(agents: &mut [Agent], args: &ReachArgs) {
    let place = Where::Socket(LOCAL_SOCKET.into());
    if !Path::new(LOCAL_SOCKET).exists() {
        return;
    }
    if let Ok(status) =
        place.one::<brindle_config_core::status::NodeStatus>(&AdminRequest::Status, args.timeout)
        && let Some(agent) = agents.iter_mut().find(|a| a.at.name == status.node)
    {
        agent.place = place;
    }
}

/// The agents of a lab on this machine, over their sockets.
fn lab(dir: &LabDir) -> Result<Cluster> {
    let plan = dir.load_existing()?.plan;
    let agents = plan
        .nodes
        .iter()
        .map(|n| Agent {
            at: NodeAt {
                name: n.name.clone(),
                addresses: (plan.families.v4().then_some(n.address.into()).into_iter())
                    .chain(n.address6.map(Into::into))
                    .collect(),
                ..NodeAt::default()
            },
            place: match n.agent {
                AgentKind::Brindle => Where::Socket(dir.admin_socket(&n.name)),
                AgentKind::Bird => Where::Nowhere(
                    "runs BIRD, which is not asked".into(),
                    Some(format!(
                        "brindlectl lab exec --name {} {} -- birdc show protocols",
                        dir.name(),
                        n.name
                    )),
                ),
            },
        })
        .collect();
    let store = Place::of_lab(dir).open(false).ok();
    Ok(Cluster { source: Source::Lab(dir.name().to_owned()), agents, store })
}

/// The token, read when the first agent elsewhere is to be asked.
struct Token<'a> {
    path: &'a Path,
    config: std::cell::OnceCell<Result<Arc<ClientConfig>, String>>,
}

impl Token<'_> {
    fn port(&self, address: SocketAddr) -> Where {
        let config = self.config.get_or_init(|| {
            let token = brindle_admin::Token::read(self.path).map_err(|e| e.to_string())?;
            brindle_admin::client(&token).map_err(|e| e.to_string())
        });
        match config {
            Ok(config) => Where::Port(address, Arc::clone(config)),
            Err(why) => Where::Nowhere(
                format!("answers at {address}, and there is no token for it: {why}"),
                Some("name the token's file with --admin-token-file".into()),
            ),
        }
    }

    fn agent(&self, at: NodeAt) -> Agent {
        let place = match &at.admin {
            None => Where::Nowhere(
                "its agent does not answer other machines".into(),
                Some("start it with --admin-listen and --admin-token-file, or ask on that node".into()),
            ),
            Some(text) => match text.parse() {
                Ok(address) => self.port(address),
                Err(_) => Where::Nowhere(
                    format!("its Node resource says it answers at {text:?}, which is no ADDR:PORT"),
                    Some(format!("brindlectl get node {} -o yaml", at.name)),
                ),
            },
        };
        Agent { at, place }
    }
}
