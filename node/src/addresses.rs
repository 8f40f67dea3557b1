//! This node's addresses: gathers what `autodetect` chooses from, publishes the choice on the Node resource, and looks
//! again from time to time when it was autodetected (Calico `monitor-addresses`).

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use brindle_config_core::{
    node::NodeSpec,
    store::{Store, StoreError, StoreExt},
};
use brindle_kernel::netlink::Rtnl;
use ipnet::IpNet;

use crate::{
    admin_tcp,
    autodetect::{self, Candidate, Choice, Facts, Method},
    identity,
    settings::{OwnAddress, Settings},
};

/// Chooses and publishes; the addresses, IPv4 first. `admin`: where the agent answers other machines.
pub(crate) async fn publish(
    store: &dyn Store,
    settings: &Settings,
    admin: Option<SocketAddr>,
) -> Result<Vec<IpNet>> {
    let choices = choose(store, settings).await?;
    for choice in &choices {
        tracing::info!(address = %choice.address, cause = %choice.why, "this node's address");
    }
    let addresses: Vec<_> = choices.iter().map(|c| c.address).collect();
    write(store, settings, &addresses, admin).await?;
    Ok(addresses)
}

/// Looks again every `AUTODETECT_POLL_INTERVAL`, as long as the agent runs. What cannot be found any more stays.
pub(crate) async fn monitor(
    store: Arc<dyn Store>,
    settings: Settings,
    mut published: Vec<IpNet>,
    admin: Option<SocketAddr>,
) {
    let auto = [settings.address, settings.address6].contains(&OwnAddress::Autodetect);
    let pause = settings.cluster.poll_interval;
    if !auto || pause.is_zero() {
        return;
    }
    loop {
        tokio::time::sleep(pause).await;
        let found = match choose(&*store, &settings).await {
            Ok(choices) => choices,
            Err(e) => {
                tracing::warn!("{e:#}; the published address stays");
                continue;
            }
        };
        let addresses: Vec<_> = found.iter().map(|c| c.address).collect();
        if addresses == published {
            continue;
        }
        let why = found.iter().map(|c| c.why.as_str()).collect::<Vec<_>>().join("; ");
        match write(&*store, &settings, &addresses, admin).await {
            Ok(()) => {
                tracing::info!(old = ?published, new = ?addresses, cause = %why, "this node's address");
                published = addresses;
            }
            Err(e) => tracing::warn!("{e:#}; the published address stays"),
        }
    }
}

async fn write(
    store: &dyn Store,
    settings: &Settings,
    addresses: &[IpNet],
    admin: Option<SocketAddr>,
) -> Result<()> {
    let admin = admin.map(|a| admin_tcp::published(a, addresses));
    let check = settings.cluster.check_conflicts;
    identity::publish(store, &settings.node_name, addresses, admin, check).await.map(drop)
}

async fn choose(store: &dyn Store, settings: &Settings) -> Result<Vec<Choice>> {
    let methods = [&settings.cluster.method, &settings.cluster.method6];
    let internal = if methods.iter().any(|m| matches!(m, Method::KubernetesInternalIp)) {
        internal_addresses(store, &settings.node_name).await?
    } else {
        Vec::new()
    };
    let mut choices = Vec::new();
    for (wish, method, v6) in [(settings.address, methods[0], false), (settings.address6, methods[1], true)] {
        let reach = match (wish, method) {
            (OwnAddress::Autodetect, Method::CanReach(to)) => {
                let to = to.clone();
                // A name is asked of a server, which may take its time.
                Some(tokio::task::spawn_blocking(move || source_towards(&to, v6)).await?)
            }
            _ => None,
        };
        let facts = Facts { candidates: candidates()?, internal: internal.clone(), reach };
        choices.extend(autodetect::choose(wish, method, v6, &facts).map_err(anyhow::Error::msg)?);
    }
    Ok(choices)
}

async fn internal_addresses(store: &dyn Store, node: &str) -> Result<Vec<IpAddr>> {
    let spec = match store.get_as::<NodeSpec>(None, node).await {
        Ok(s) => s.resource.spec,
        Err(StoreError::NotFound(_)) => NodeSpec::default(),
        Err(e) => return Err(e).with_context(|| format!("cannot read Node({node})")),
    };
    let internal = spec.addresses.iter().filter(|a| a.kind == "InternalIP");
    Ok(internal.filter_map(|a| a.address.split('/').next()?.parse().ok()).collect())
}

fn candidates() -> Result<Vec<Candidate>> {
    let mut k = Rtnl::open()?;
    let links = k.links()?;
    let all = k.addrs(None)?.into_iter().filter_map(|a| {
        let link = links.iter().find(|l| l.index == a.link)?;
        Some(Candidate { interface: link.name.clone(), address: a.net })
    });
    Ok(all.collect())
}

/// The address the kernel takes towards a destination: a datagram socket is connected, nothing is sent.
fn source_towards(to: &str, v6: bool) -> Result<IpAddr, String> {
    let with_port = (to, 53).to_socket_addrs().map_err(|e| e.to_string())?;
    let to: SocketAddr = with_port
        .into_iter()
        .find(|a| a.is_ipv6() == v6)
        .ok_or_else(|| format!("it has no {} address", if v6 { "IPv6" } else { "IPv4" }))?;
    let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).map_err(|e| e.to_string())?;
    socket.connect(to).map_err(|e| e.to_string())?;
    let ip = socket.local_addr().map_err(|e| e.to_string())?.ip();
    if ip.is_loopback() || ip.is_unspecified() {
        return Err(format!("the way there is through {ip}"));
    }
    Ok(ip)
}

/// How long the default pause between two looks is.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_reached_over_loopback_gives_no_address() {
        assert!(source_towards("127.0.0.1", false).unwrap_err().contains("127.0.0.1"));
        assert!(source_towards("127.0.0.1", true).unwrap_err().contains("IPv6"));
    }
}
