//! The admin socket: one JSON line in, one JSON line out (`config_core::status`). Read only; mode 0600.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use anyhow::Result;
use brindle_config_core::status::AdminRequest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::local_socket;

/// Longest request, octets.
const MAX_REQUEST: u64 = 64 * 1024;
/// Questions answered at the same time; more wait.
const MAX_CLIENTS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers questions; given by the composition root.
pub(crate) type Answer =
    Arc<dyn Fn(AdminRequest) -> Pin<Box<dyn Future<Output = Value> + Send>> + Send + Sync>;

/// Serves until dropped.
pub(crate) async fn serve(listener: UnixListener, answer: Answer) {
    local_socket::serve(listener, MAX_CLIENTS, move |stream| {
        let answer = Arc::clone(&answer);
        async move {
            if let Err(e) = timeout(PATIENCE, client(stream, answer)).await.unwrap_or(Ok(())) {
                tracing::debug!("admin client: {e:#}");
            }
        }
    })
    .await;
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
