//! The socket: who may connect, and how many at a time.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{net::UnixListener, sync::Semaphore, task::JoinHandle};

use super::{CniServerSettings, service::Service, session};

/// Sessions at a time; more wait in the socket's queue. kubelet starts pods in bursts.
const MAX_SESSIONS: usize = 256;

/// A running server. Dropping it ends it.
pub(crate) struct Server {
    tasks: [JoinHandle<()>; 2],
}

impl Server {
    /// Completes when the server has ended, which it does only by a defect.
    pub(crate) async fn ended(mut self) {
        let [serve, replay] = &mut self.tasks;
        tokio::select! {
            _ = serve => {}
            _ = replay => {}
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub(super) async fn spawn(settings: CniServerSettings) -> Result<Server> {
    let service = Arc::new(Service::new(&settings));
    // Before anybody can ask: a container that comes back must not meet its own old DEL.
    service.replay().await;
    let listener = bind(&settings.socket)?;
    let replay = tokio::spawn(Arc::clone(&service).keep_replaying());
    let serve = tokio::spawn(serve(listener, service));
    Ok(Server { tasks: [serve, replay] })
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
    let slots = Arc::new(Semaphore::new(MAX_SESSIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    session::serve(stream, service).await;
                    drop(slot);
                });
            }
            // Out of descriptors: those in use come back.
            Err(e) => {
                tracing::warn!("CNI socket: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
