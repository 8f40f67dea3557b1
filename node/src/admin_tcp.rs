//! The same answers as on the admin socket, for other machines: TLS with the cluster's token (`brindle_admin`,
//! docs/adr/0004). Off unless asked for. Whoever knows the token may ask everything but what writes files here.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use brindle_admin::TlsAcceptor;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use crate::admin::{self, Answer, From};

/// Connections served at the same time, those that have not proved anything yet among them; more wait.
const MAX_CLIENTS: usize = 32;
/// Time to prove the token.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A listener and the key it serves with.
pub(crate) struct Port {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

/// Reads the token and listens.
pub(crate) async fn bind(address: SocketAddr, token: &Path) -> Result<Port> {
    let token = brindle_admin::Token::read(token).context("--admin-token-file")?;
    let config = brindle_admin::server(&token).context("cannot make a key of the admin token")?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("--admin-listen {address}: cannot listen"))?;
    Ok(Port { listener, acceptor: TlsAcceptor::from(config) })
}

impl Port {
    /// Where it listens, the port chosen.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().context("the admin port has no address")
    }

    /// Serves until dropped.
    pub(crate) async fn serve(self, answer: Answer, bgp: Option<brindle_bgpd::Handle>) {
        let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of descriptors, most likely: wait for some to come back.
                    tracing::warn!("admin port: {e}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let (acceptor, answer, bgp) = (self.acceptor.clone(), Arc::clone(&answer), bgp.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(e)) => return tracing::info!(%peer, cause = %e, "refused at the admin port"),
                    Err(_) => return tracing::debug!(%peer, "said nothing at the admin port"),
                };
                let (read, write) = tokio::io::split(stream);
                if let Err(e) = admin::client(read, write, answer, bgp.as_ref(), From::Elsewhere).await {
                    tracing::debug!(%peer, "admin client: {e:#}");
                }
            });
        }
    }
}

/// What is published: the address asked for, or the node's own where that is any.
pub(crate) fn published(listens: SocketAddr, own: &[ipnet::IpNet]) -> SocketAddr {
    if !listens.ip().is_unspecified() {
        return listens;
    }
    let fits = |n: &&ipnet::IpNet| n.addr().is_ipv4() == listens.is_ipv4();
    let ip = own.iter().find(fits).or(own.first()).map_or(listens.ip(), ipnet::IpNet::addr);
    SocketAddr::new(ip, listens.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_address_is_published() {
        let own = ["10.0.0.5/24".parse().unwrap(), "fd00::5/64".parse().unwrap()];
        let of = |a: &str| published(a.parse().unwrap(), &own).to_string();
        assert_eq!(of("0.0.0.0:9180"), "10.0.0.5:9180");
        assert_eq!(of("[::]:9180"), "[fd00::5]:9180");
        assert_eq!(of("192.0.2.7:1"), "192.0.2.7:1");
        let six = ["fd00::5/64".parse().unwrap()];
        assert_eq!(published("0.0.0.0:9180".parse().unwrap(), &six).to_string(), "[fd00::5]:9180");
    }
}
