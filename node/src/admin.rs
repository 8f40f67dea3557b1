//! The admin socket: one JSON line in, one JSON line out (`config_core::status`). Mode 0600. Questions
//! about BGP are answered by `brindle_bgpd::ask`, in several lines. `admin_tcp` answers the same to other machines.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use anyhow::Result;
use brindle_config_core::status::{
    AdminRequest,
    bgp::{BgpRequest, End},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::UnixListener,
    time::timeout,
};

use crate::local_socket;

/// Longest request, octets.
const MAX_REQUEST: u64 = 64 * 1024;
/// Questions answered at the same time; more wait.
const MAX_CLIENTS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers questions; given by the composition root. One about BGP comes here only if nobody speaks it.
pub(crate) type Answer =
    Arc<dyn Fn(AdminRequest) -> Pin<Box<dyn Future<Output = Value> + Send>> + Send + Sync>;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// Root on this machine.
    Here,
    /// Somebody with the token.
    Elsewhere,
}

/// Serves until dropped. `bgp`: who answers about BGP, if this agent speaks it.
pub(crate) async fn serve(listener: UnixListener, answer: Answer, bgp: Option<brindle_bgpd::Handle>) {
    local_socket::serve(listener, MAX_CLIENTS, move |stream| {
        let (answer, bgp) = (Arc::clone(&answer), bgp.clone());
        async move {
            let (read, write) = stream.into_split();
            if let Err(e) = client(read, write, answer, bgp.as_ref(), From::Here).await {
                tracing::debug!("admin client: {e:#}");
            }
        }
    })
    .await;
}

/// Each step has its time; how many there are, and how long a live view lasts, is the asker's business.
pub(crate) async fn client(
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    answer: Answer,
    bgp: Option<&brindle_bgpd::Handle>,
    from: From,
) -> Result<()> {
    let mut lines = BufReader::new(read.take(MAX_REQUEST)).lines();
    while let Some(line) = timeout(PATIENCE, lines.next_line()).await?? {
        let reply = match serde_json::from_str::<AdminRequest>(&line) {
            Ok(AdminRequest::Bgp(BgpRequest::MrtDump { .. })) if from == From::Elsewhere => {
                json!(End::Error("writes a file on this node: ask over its own admin socket".into()))
            }
            Ok(AdminRequest::Bgp(request)) if let Some(handle) = bgp => {
                let gone = async { drop(lines.next_line().await) };
                brindle_bgpd::ask::answer(handle, request, &mut write, gone).await?;
                timeout(PATIENCE, write.flush()).await??;
                continue;
            }
            Ok(request) => answer(request).await,
            Err(e) => json!({"error": format!("not a request this agent knows: {e}")}),
        };
        let mut text = reply.to_string();
        text.push('\n');
        timeout(PATIENCE, write.write_all(text.as_bytes())).await??;
        timeout(PATIENCE, write.flush()).await??;
    }
    Ok(())
}
