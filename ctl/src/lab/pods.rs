//! Pods: a namespace, attached by executing the real CNI plugin in the node's namespace the way kubelet's runtime
//! does: `CNI_*` in the environment, the plugin's element of the conflist on stdin. On a BIRD node, where there is no
//! plugin, a plain veth with the same looks.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use brindle_kernel::{
    exec,
    netlink::{Addr, Mac, Op, Route, Rtnl, Veth, VethPeer},
    sysctl,
};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};

use super::{
    agents, build,
    plan::{LabPlan, NodePlan, PodPlan, UPLINK},
    state::{LabDir, PodState},
};

/// Kubernetes namespace of the lab's pods.
const NAMESPACE: &str = "default";
/// Longer than the plugin's own patience with its agent (70 s): it says what it waited for, which killing it would not.
const CNI_TIMEOUT: Duration = Duration::from_secs(80);
/// The specification's code for "try again later", which kubelet does.
const TRY_AGAIN: u64 = 11;
/// How long an agent may say so.
const RETRY_FOR: Duration = Duration::from_secs(15);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The gateway of every pod, answered by proxy ARP.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// MAC of every host side.
const HOST_MAC: Mac = Mac([0xee; 6]);

/// The conflist of a node, as it would lie in /etc/cni/net.d.
fn conflist(plan: &LabPlan, dir: &LabDir, node: &NodePlan) -> Value {
    let mut ipam = json!({ "type": "brindle-ipam" });
    if plan.families.v6() {
        // As Calico spells it.
        ipam = json!({
            "type": "brindle-ipam",
            "assign_ipv4": plan.families.v4().to_string(),
            "assign_ipv6": "true",
        });
    }
    json!({
        "cniVersion": "1.0.0",
        "name": "k8s-pod-network",
        "plugins": [{
            "type": "brindle",
            "log_level": "info",
            "nodename": node.name,
            "agent_socket": dir.cni_socket(&node.name),
            "state_dir": dir.node(&node.name),
            "ipam": ipam,
        }],
    })
}

/// Writes the conflist of a node.
pub(crate) fn write_conflist(plan: &LabPlan, dir: &LabDir, node: &NodePlan) -> Result<()> {
    let file = dir.node(&node.name).join("10-brindle.conflist");
    let text = serde_json::to_string_pretty(&conflist(plan, dir, node))?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// What the runtime puts on the plugin's stdin: its element with name and version of the list.
fn plugin_config(dir: &LabDir, node: &NodePlan) -> Result<String> {
    let file = dir.node(&node.name).join("10-brindle.conflist");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let list: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    let mut element = list
        .get("plugins")
        .and_then(|p| p.get(0))
        .and_then(Value::as_object)
        .cloned()
        .with_context(|| format!("{} names no plugin", file.display()))?;
    for key in ["cniVersion", "name"] {
        element.insert(key.to_owned(), list.get(key).cloned().unwrap_or_default());
    }
    Ok(Value::Object(element).to_string())
}

/// ADD on a brindle node, a plain veth on a BIRD node.
pub(crate) fn attach(plan: &LabPlan, dir: &LabDir, node: &NodePlan, pod: &PodPlan) -> Result<PodState> {
    let start = Instant::now();
    let addresses = match pod.address {
        Some(address) => {
            plain_veth(plan, node, pod, address)?;
            vec![IpAddr::V4(address)]
        }
        None => loop {
            match cni_add(dir, node, pod)? {
                Added::Addresses(addresses) => break addresses,
                Added::Later(_) if start.elapsed() < RETRY_FOR => std::thread::sleep(RETRY_PAUSE),
                Added::Later(why) => bail!("{why} (asked again for {RETRY_FOR:?})"),
            }
        },
    };
    Ok(PodState { addresses, add_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX) })
}

/// Answer to an ADD.
enum Added {
    Addresses(Vec<IpAddr>),
    /// The agent is not ready for it yet.
    Later(String),
}

fn cni_add(dir: &LabDir, node: &NodePlan, pod: &PodPlan) -> Result<Added> {
    let bin_dir = agents::bin_dir()?;
    let plugin = agents::our_program("brindle")?;
    let netns = Path::new("/run/netns").join(&pod.namespace);
    let mut command = Command::new(&plugin);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", &netns)
        .env("CNI_IFNAME", UPLINK)
        .env("CNI_PATH", &bin_dir)
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
                pod.name, pod.container_id
            ),
        );
    let config = plugin_config(dir, node)?.into_bytes();
    let out = build::open(&node.namespace)?
        .run(move || exec::run_command(&mut command, Some(&config), CNI_TIMEOUT))?
        .with_context(|| format!("CNI ADD of {} on {}", pod.name, node.name))?;
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    if !out.status.success() {
        let message = answer.get("msg").and_then(Value::as_str).map_or_else(
            || format!("{} said: {}", plugin.display(), String::from_utf8_lossy(&out.stderr).trim()),
            |msg| {
                let details = answer.get("details").and_then(Value::as_str).unwrap_or_default();
                if details.is_empty() { msg.to_owned() } else { format!("{msg}: {details}") }
            },
        );
        let message = format!("CNI ADD of {} on {}: {message}", pod.name, node.name);
        if answer.get("code").and_then(Value::as_u64) == Some(TRY_AGAIN) {
            return Ok(Added::Later(message));
        }
        bail!(message);
    }
    let addresses = addresses_of(&answer);
    if addresses.is_empty() {
        bail!("CNI ADD of {} on {} answered without an address: {answer}", pod.name, node.name);
    }
    Ok(Added::Addresses(addresses))
}

/// The addresses of a CNI result, IPv4 first.
fn addresses_of(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let mut all: Vec<IpAddr> = ips
        .filter_map(|ip| ip.get("address")?.as_str()?.parse::<IpNet>().ok())
        .map(|net| net.addr())
        .collect();
    all.sort();
    all
}

/// A pod's addresses in words.
pub(crate) fn words(pod: &PodState) -> String {
    pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn plain_veth(plan: &LabPlan, node: &NodePlan, pod: &PodPlan, address: Ipv4Addr) -> Result<()> {
    let host = build::open(&node.namespace)?;
    let inside = build::open(&pod.namespace)?;
    let port = format!("pod-{}", pod.name);
    let mut rtnl = Rtnl::open_in(&host)?;
    rtnl.run_all(&[Op::add_veth(&Veth {
        name: &port,
        mac: Some(HOST_MAC),
        mtu: Some(plan.pod_mtu()),
        up: true,
        peer: VethPeer { name: UPLINK, mac: None, netns: Some(&inside) },
    })])?;
    host.run(|| {
        sysctl::set(&format!("net/ipv4/conf/{port}/proxy_arp"), "1")?;
        sysctl::set(&format!("net/ipv4/neigh/{port}/proxy_delay"), "0")
    })??;
    let net = IpNet::V4(Ipv4Net::from(address));
    let index = build::find(&build::indices(&mut rtnl)?, &port)?;
    rtnl.run_all(&[Op::add_route(&Route::new(net).dev(index))])?;
    let mut rtnl = Rtnl::open_in(&inside)?;
    let index = build::find(&build::indices(&mut rtnl)?, UPLINK)?;
    let gateway = IpNet::V4(Ipv4Net::from(GATEWAY));
    let everything = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
    rtnl.run_all(&[
        Op::set_up("lo", true),
        Op::set_up(index, true),
        Op::add_addr(&Addr::new(index, net)),
        Op::add_route(&Route::new(gateway).dev(index)),
        Op::add_route(&Route::new(everything).via(IpAddr::V4(GATEWAY), Some(index), false)),
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_a_result_are_taken_ipv4_first() {
        let result = json!({"ips": [{"address": "fd00::1/128"}, {"address": "192.168.0.5/32"}]});
        let all: Vec<String> = addresses_of(&result).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["192.168.0.5", "fd00::1"]);
        assert!(addresses_of(&json!({"ips": []})).is_empty());
        assert!(addresses_of(&json!({})).is_empty());
    }
}
