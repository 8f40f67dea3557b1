//! The agent's unix sockets: bound for root only, a bounded number of connections served at a time.

use std::{
    future::Future,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

/// Binds a socket of mode 0600, replacing one left by a dead agent (the agent lock is held, so nobody else lives).
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
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

/// The same socket once more: who serves one may end while the other keeps it open.
pub(crate) fn twin(listener: &UnixListener) -> Result<UnixListener> {
    let twin = listener.as_fd().try_clone_to_owned().context("cannot share a socket")?;
    UnixListener::from_std(twin.into()).context("cannot share a socket")
}

/// Serves connections until dropped, `most` at a time; further ones wait in the socket's queue.
pub(crate) async fn serve<F>(listener: UnixListener, most: usize, client: impl Fn(UnixStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let work = client(stream);
                tokio::spawn(async move {
                    let _slot = slot;
                    work.await;
                });
            }
            Err(e) => {
                // Out of descriptors, most likely: wait for some to come back.
                tracing::warn!("local socket: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
