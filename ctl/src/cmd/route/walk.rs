//! Following a packet from node to node: at each the kernel's route is taken, whatever was intended. Pure but for the
//! question it is given.

use std::net::IpAddr;

use brindle_config_core::status::path::{KernelHop, PathAnswer};
use serde::Serialize;

use super::ends::End;
use crate::cluster::Silence;

/// More nodes than this is a loop in all but name.
const LONGEST: usize = 16;

/// One node on the way.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hop {
    pub(super) node: String,
    /// What it says.
    pub(super) answer: Option<PathAnswer>,
    /// Why it says nothing.
    pub(super) silence: Option<String>,
    /// A gateway behind it that is no node of ours.
    pub(super) router: Option<IpAddr>,
}

/// How a way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fate {
    Delivered,
    /// It leaves what agents can tell about.
    Leaves,
    /// A node has no route, or drops it.
    Dropped,
    Loop,
    /// A node on the way does not answer.
    Unknown,
}

/// One direction.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Way {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) hops: Vec<Hop>,
    pub(super) fate: Fate,
    /// Smallest MTU on the way, octets.
    pub(super) mtu: Option<u32>,
    /// Whether every node's kernel is as its agent intends.
    pub(super) as_intended: bool,
}

impl Way {
    pub(super) fn good(&self) -> bool {
        self.as_intended && matches!(self.fate, Fate::Delivered | Fate::Leaves)
    }
}

/// Follows a packet. `ask` asks a node about an address, `node_at` tells whose address a gateway is.
pub(super) fn walk(
    from: &End,
    to: &End,
    (source, destination): (IpAddr, IpAddr),
    ask: &dyn Fn(&str, IpAddr) -> Result<PathAnswer, Silence>,
    node_at: &dyn Fn(IpAddr) -> Option<String>,
) -> Way {
    let mut way = Way {
        from: from.clone(),
        to: to.clone(),
        source,
        destination,
        hops: Vec::new(),
        fate: Fate::Unknown,
        mtu: None,
        as_intended: true,
    };
    // From outside a packet may come in anywhere; what is known is the node it is for.
    let mut at = from.node.clone().or_else(|| to.node.clone());
    while let Some(node) = at.take() {
        if way.hops.iter().any(|h| h.node == node) {
            way.fate = Fate::Loop;
            break;
        }
        if way.hops.len() == LONGEST {
            way.fate = Fate::Loop;
            break;
        }
        let mut hop = Hop { node: node.clone(), answer: None, silence: None, router: None };
        match ask(&node, destination) {
            Err(silence) => {
                hop.silence = Some(silence.to_string());
                way.fate = Fate::Unknown;
                // A node that is not asked may still be passed through.
                if matches!(silence, Silence::Unreachable(..)) {
                    at = to.node.clone().filter(|n| *n != node);
                }
            }
            Ok(answer) => {
                way.as_intended &= answer.difference.is_none();
                let (fate, next) = step(&answer, &mut hop, to, destination, node_at);
                way.fate = fate;
                at = next;
                if let Some(mtu) =
                    answer.kernel.iter().flat_map(|k| &k.hops).map(|h| h.mtu).filter(|m| *m > 0).min()
                    && answer.kernel.as_ref().is_none_or(|k| k.kind != "local")
                {
                    way.mtu = Some(way.mtu.map_or(mtu, |m| m.min(mtu)));
                }
                hop.answer = Some(answer);
            }
        }
        way.hops.push(hop);
    }
    way
}

/// Where a packet is after one node.
fn step(
    answer: &PathAnswer,
    hop: &mut Hop,
    to: &End,
    destination: IpAddr,
    node_at: &dyn Fn(IpAddr) -> Option<String>,
) -> (Fate, Option<String>) {
    let Some(kernel) = &answer.kernel else { return (Fate::Dropped, None) };
    if kernel.kind == "local" {
        return (Fate::Delivered, None);
    }
    if kernel.kind != "unicast" {
        return (Fate::Dropped, None);
    }
    match kernel.hops.first() {
        None => (Fate::Dropped, None),
        Some(h) if !h.up => (Fate::Dropped, None),
        Some(KernelHop { via: None, dev, .. }) => {
            if answer.here.is_some() {
                let own = to.device.as_ref().is_none_or(|d| d == dev);
                return (if own { Fate::Delivered } else { Fate::Dropped }, None);
            }
            // On a subnet of this node: another node, or a stranger on the same wire.
            match node_at(destination) {
                Some(node) => (Fate::Unknown, Some(node)),
                None => (Fate::Leaves, None),
            }
        }
        Some(KernelHop { via: Some(via), .. }) => match node_at(*via) {
            Some(node) => (Fate::Unknown, Some(node)),
            None => {
                hop.router = Some(*via);
                // A router's own table is not ours to know; what matters next is the node behind it.
                match &to.node {
                    Some(node) => (Fate::Unknown, Some(node.clone())),
                    None => (Fate::Leaves, None),
                }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use brindle_config_core::status::path::KernelRoute;

    use super::*;

    fn end(name: &str, address: &str, node: Option<&str>, device: Option<&str>) -> End {
        End {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            node: node.map(Into::into),
            device: device.map(Into::into),
        }
    }

    fn route(kind: &str, via: Option<&str>, dev: &str, mtu: u32) -> PathAnswer {
        let hop = KernelHop { via: via.map(|v| v.parse().unwrap()), dev: dev.into(), mtu, up: true };
        PathAnswer {
            kernel: Some(KernelRoute {
                destination: "10.1.0.0/26".parse().unwrap(),
                text: String::new(),
                kind: kind.into(),
                protocol: 80,
                hops: if kind == "blackhole" { Vec::new() } else { vec![hop] },
            }),
            ..PathAnswer::default()
        }
    }

    fn go(answers: &[(&str, PathAnswer)]) -> Way {
        let answers: BTreeMap<&str, &PathAnswer> = answers.iter().map(|(n, a)| (*n, a)).collect();
        let (a, b) = (
            end("pod a", "10.1.0.1", Some("n1"), Some("caliA")),
            end("pod b", "10.1.0.65", Some("n2"), Some("caliB")),
        );
        let ask = |node: &str, _: IpAddr| match answers.get(node) {
            Some(a) => Ok((*a).clone()),
            None => Err(Silence::Refused("gone".into())),
        };
        let node_at = |ip: IpAddr| match ip.to_string().as_str() {
            "10.9.0.1" => Some("n1".to_owned()),
            "10.9.0.2" => Some("n2".to_owned()),
            _ => None,
        };
        walk(&a, &b, (a.addresses[0], b.addresses[0]), &ask, &node_at)
    }

    fn at_home() -> PathAnswer {
        PathAnswer { here: Some("pod b".into()), ..route("unicast", None, "caliB", 1500) }
    }

    #[test]
    fn a_packet_is_followed_to_its_pod_and_the_smallest_mtu_counts() {
        let way = go(&[("n1", route("unicast", Some("10.9.0.2"), "tunl0", 1480)), ("n2", at_home())]);
        assert_eq!((way.fate, way.mtu, way.hops.len()), (Fate::Delivered, Some(1480), 2));
        assert!(way.good());
        // Through a router that is no node.
        let way = go(&[("n1", route("unicast", Some("10.9.0.254"), "eth0", 1500)), ("n2", at_home())]);
        assert_eq!(way.fate, Fate::Delivered);
        assert_eq!(way.hops[0].router, Some("10.9.0.254".parse().unwrap()));
    }

    #[test]
    fn loops_drops_silence_and_differences_are_told() {
        let there = || route("unicast", Some("10.9.0.2"), "eth0", 1500);
        let back = || route("unicast", Some("10.9.0.1"), "eth0", 1500);
        assert_eq!(go(&[("n1", there()), ("n2", back())]).fate, Fate::Loop);
        assert_eq!(go(&[("n1", route("blackhole", None, "", 0))]).fate, Fate::Dropped);
        assert_eq!(go(&[("n1", PathAnswer::default())]).fate, Fate::Dropped);
        let way = go(&[("n1", there())]);
        assert_eq!((way.fate, way.hops[1].silence.as_deref()), (Fate::Unknown, Some("gone")));
        let wrong = PathAnswer { here: Some("pod b".into()), ..route("unicast", None, "caliX", 1500) };
        assert_eq!(go(&[("n1", there()), ("n2", wrong)]).fate, Fate::Dropped);
        let odd = PathAnswer { difference: Some("the kernel has ...".into()), ..there() };
        let way = go(&[("n1", odd), ("n2", at_home())]);
        assert!(way.fate == Fate::Delivered && !way.good());
    }
}
