//! The admin socket: one JSON line in, one JSON line out (`config_core::status`). Read only; mode 0600.

use std::{future::Future, os::unix::fs::PermissionsExt, path::Path, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use brindle_config_core::status::AdminRequest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

/// Longest request, octets.
const MAX_REQUEST: u64 = 64 * 1024;
/// Questions answered at the same time; more wait.
const MAX_CLIENTS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers questions; given by the composition root.
pub(crate) type Answer =
    Arc<dyn Fn(AdminRequest) -> Pin<Box<dyn Future<Output = Value> + Send>> + Send + Sync>;

/// Binds the socket, replacing one left by a dead agent (the agent lock is held, so nobody else lives).
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

/// Serves until dropped.
pub(crate) async fn serve(listener: UnixListener, answer: Answer) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(e) = timeout(PATIENCE, client(stream, answer)).await.unwrap_or(Ok(())) {
                        tracing::debug!("admin client: {e:#}");
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, most likely: wait for some to come back.
                tracing::warn!("admin socket: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(stream: UnixStream, answer: Answer) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(MAX_REQUEST)).lines();
    while let Some(line) = lines.next_line().await? {
        let reply = match serde_json::from_str::<AdminRequest>(&line) {
            Ok(request) => answer(request).await,
            Err(e) => json!({"error": format!("not a request this agent knows: {e}")}),
        };
        let mut text = reply.to_string();
        text.push('\n');
        write.write_all(text.as_bytes()).await?;
    }
    Ok(())
}
