//! The admin socket: one JSON line in, one JSON line out (`config_core::status`). Mode 0600. Questions
//! about BGP are answered by `brindle_bgpd::ask`, in several lines.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use anyhow::Result;
use brindle_config_core::status::{AdminRequest, bgp::End};
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

/// Serves until dropped. `bgp`: who answers about BGP, if this agent speaks it.
pub(crate) async fn serve(listener: UnixListener, answer: Answer, bgp: Option<brindle_bgpd::Handle>) {
    local_socket::serve(listener, MAX_CLIENTS, move |stream| {
        let (answer, bgp) = (Arc::clone(&answer), bgp.clone());
        async move {
            if let Err(e) = client(stream, answer, bgp.as_ref()).await {
                tracing::debug!("admin client: {e:#}");
            }
        }
    })
    .await;
}

/// Each step has its time; how many there are, and how long a live view lasts, is the asker's business.
async fn client(stream: UnixStream, answer: Answer, bgp: Option<&brindle_bgpd::Handle>) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(MAX_REQUEST)).lines();
    while let Some(line) = timeout(PATIENCE, lines.next_line()).await?? {
        let reply = match serde_json::from_str::<AdminRequest>(&line) {
            Ok(AdminRequest::Bgp(request)) => match bgp {
                Some(handle) => {
                    let gone = async { drop(lines.next_line().await) };
                    brindle_bgpd::ask::answer(handle, request, &mut write, gone).await?;
                    continue;
                }
                None => json!(End::Error("this agent runs with --networking none".into())),
            },
            Ok(request) => answer(request).await,
            Err(e) => json!({"error": format!("not a request this agent knows: {e}")}),
        };
        let mut text = reply.to_string();
        text.push('\n');
        timeout(PATIENCE, write.write_all(text.as_bytes())).await??;
    }
    Ok(())
}
