//! The socket: who may connect, how many at a time, how long they may take.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use brindle_cni::{
    error::code,
    proto::{self, Reply, Request},
};
use brindle_config_core::store::Store;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};

use super::Service;
use crate::settings::Settings;

/// Calls worked on at the same time; more wait in the socket's backlog. kubelet starts pods in bursts.
const MAX_CLIENTS: usize = 256;
/// A plugin sends its request at once or is stuck.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest a call may take (kubelet gives up after 2 minutes).
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Server {
    task: JoinHandle<()>,
}

impl Server {
    /// Completes when the server has ended, which it does only by a defect.
    pub(crate) async fn ended(self) {
        let _ = self.task.await;
    }
}

/// Starts the server: first what was asked while no agent was here, then the socket.
pub(crate) async fn start(
    settings: &Settings,
    store: &Arc<dyn Store>,
    felix: &brindle_felix::Handle,
) -> Result<Server> {
    let service = Arc::new(Service::new(&settings.node_name, store.clone(), felix.clone()));
    service.replay(&settings.state_dir.join("cni-journal")).await;
    let listener = bind(&settings.cni_socket)?;
    let journal = settings.state_dir.join("cni-journal");
    let task = tokio::spawn(async move {
        // A DEL that found no agent a moment ago may have been journalled after the first look.
        service.replay(&journal).await;
        serve(listener, service).await;
    });
    Ok(Server { task })
}

fn bind(path: &Path) -> Result<UnixListener> {
    if let Err(e) = std::fs::remove_file(path)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(e).with_context(|| format!("cannot replace the socket {}", path.display()));
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot restrict {}", path.display()))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, service: Arc<Service>) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(e) = client(stream, &service).await {
                        tracing::debug!("CNI client: {e:#}");
                    }
                });
            }
            Err(e) => {
                tracing::warn!("CNI socket: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(mut stream: UnixStream, service: &Service) -> Result<()> {
    let uid = stream.peer_cred().context("peer credentials")?.uid();
    if uid != 0 {
        tracing::warn!(uid, "refused a CNI call: only root may ask for addresses");
        return Ok(());
    }
    loop {
        let mut head = [0; 4];
        match timeout(CALL_TIMEOUT, stream.read_exact(&mut head)).await? {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let reply = match proto::body_len(head) {
            Ok(len) => {
                let mut body = vec![0; len];
                timeout(REQUEST_TIMEOUT, stream.read_exact(&mut body)).await??;
                answer(&body, service).await
            }
            Err(e) => {
                error(code::DECODE, e.to_string(), "the plugin and the agent do not fit; install both anew")
            }
        };
        stream.write_all(&proto::encode(&reply)?).await?;
    }
}

async fn answer(body: &[u8], service: &Service) -> Reply {
    let hint = "run `brindle-node install-cni`, or install plugin and agent of one version";
    let request: Request = match proto::decode(body) {
        Ok(r) => r,
        Err(e) => return error(code::DECODE, e.to_string(), hint),
    };
    if request.version != proto::VERSION {
        let msg = format!("the plugin speaks version {}, this agent {}", request.version, proto::VERSION);
        return error(code::VERSION, msg, hint);
    }
    match timeout(CALL_TIMEOUT, service.call(request.call)).await {
        Ok(reply) => reply,
        Err(_) => error(code::TRY_AGAIN, format!("not done within {CALL_TIMEOUT:?}"), "see the agent's log"),
    }
}

fn error(code: u32, msg: String, details: &str) -> Reply {
    Reply::Error { code, msg, details: details.to_owned() }
}
