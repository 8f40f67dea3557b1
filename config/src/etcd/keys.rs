//! Where Calico keeps what in etcd, both ways. Resources lie under `resources/v3/projectcalico.org/PLURAL/[NS/]NAME`;
//! address management has paths of its own under `ipam/v2`, made of hosts and blocks, from which names are computed.

use brindle_config_core::{Key, Kind, names};
use ipnet::IpNet;

/// The root of everything, unless configured otherwise.
pub(super) const ROOT: &str = "/calico";

const RESOURCES: &str = "resources/v3/projectcalico.org";
const BLOCKS: &str = "ipam/v2/assignment";
const HANDLES: &str = "ipam/v2/handle";
const CONFIG: &str = "ipam/v2/config";
/// Affinities: one folder for each type.
const AFFINITIES: [&str; 2] = ["host", "virtual"];

/// The paths of one tree.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: String,
}

/// What a path says of an affinity, which its value does not repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Affinity {
    pub(super) kind: String,
    pub(super) host: String,
    pub(super) cidr: IpNet,
}

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) key: Key,
    pub(super) affinity: Option<Affinity>,
}

/// `ipv4/block/10.0.0.0-26`
fn block_path(cidr: &IpNet) -> String {
    let family = if cidr.addr().is_ipv4() { "ipv4" } else { "ipv6" };
    format!("{family}/block/{}-{}", cidr.addr(), cidr.prefix_len())
}

/// The way back.
fn block_of(path: &str) -> Option<IpNet> {
    let text = path.strip_prefix("ipv4/block/").or_else(|| path.strip_prefix("ipv6/block/"))?;
    let (address, length) = text.rsplit_once('-')?;
    IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()
}

impl Layout {
    pub(super) fn new(root: &str) -> Self {
        Self { root: root.trim_end_matches('/').to_owned() }
    }

    /// What every path begins with.
    pub(super) fn everything(&self) -> String {
        format!("{}/", self.root)
    }

    /// Folders in which resources of a kind lie.
    pub(super) fn folders(&self, kind: Kind) -> Vec<String> {
        let root = &self.root;
        match kind {
            Kind::IpamBlock => vec![format!("{root}/{BLOCKS}/")],
            Kind::IpamHandle => vec![format!("{root}/{HANDLES}/")],
            // The one object is its own folder.
            Kind::IpamConfiguration => vec![format!("{root}/{CONFIG}")],
            Kind::BlockAffinity => AFFINITIES.iter().map(|t| format!("{root}/ipam/v2/{t}/")).collect(),
            kind => vec![format!("{root}/{RESOURCES}/{}/", kind.plural())],
        }
    }

    /// The smallest folder with everything of these kinds in it.
    pub(super) fn common(&self, kinds: &[Kind]) -> String {
        let root = &self.root;
        let own = |k: &Kind| {
            matches!(k, Kind::IpamBlock | Kind::IpamHandle | Kind::IpamConfiguration | Kind::BlockAffinity)
        };
        match (kinds.iter().any(own), kinds.iter().all(own)) {
            (false, _) if let [one] = kinds => format!("{root}/{RESOURCES}/{}/", one.plural()),
            (false, _) => format!("{root}/{RESOURCES}/"),
            (true, true) => format!("{root}/ipam/v2/"),
            (true, false) => self.everything(),
        }
    }

    /// The path of an affinity.
    pub(super) fn affinity(&self, a: &Affinity) -> String {
        format!("{}/ipam/v2/{}/{}/{}", self.root, a.kind, a.host, block_path(&a.cidr))
    }

    /// Where a resource can lie. One path for all kinds but affinities: their name does not say where the host ends
    /// and the block begins. Empty when the name fits no path.
    pub(super) fn candidates(&self, key: &Key) -> Vec<String> {
        let root = &self.root;
        match key.kind {
            Kind::IpamBlock => block_named(&key.name)
                .map(|c| format!("{root}/{BLOCKS}/{}", block_path(&c)))
                .into_iter()
                .collect(),
            Kind::IpamHandle => vec![format!("{root}/{HANDLES}/{}", key.name)],
            Kind::IpamConfiguration => vec![format!("{root}/{CONFIG}")],
            Kind::BlockAffinity => {
                let splits = key.name.match_indices('-').filter_map(|(i, _)| {
                    let (host, block) = (key.name.get(..i)?, key.name.get(i + 1..)?);
                    Some((host.to_owned(), block_named(block)?))
                });
                splits
                    .flat_map(|(host, cidr)| {
                        AFFINITIES.map(|kind| {
                            self.affinity(&Affinity { kind: kind.to_owned(), host: host.clone(), cidr })
                        })
                    })
                    .collect()
            }
            kind if key.namespace.is_empty() => {
                vec![format!("{root}/{RESOURCES}/{}/{}", kind.plural(), key.name)]
            }
            kind => vec![format!("{root}/{RESOURCES}/{}/{}/{}", kind.plural(), key.namespace, key.name)],
        }
    }

    /// What lies at a path; `None` for what is none of ours.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        let path = path.strip_prefix(&self.root)?.strip_prefix('/')?;
        let plain = |key| Some(Place { key, affinity: None });
        if let Some(rest) = path.strip_prefix(RESOURCES) {
            let mut parts = rest.strip_prefix('/')?.split('/');
            let plural = parts.next()?;
            let kind = Kind::ALL.into_iter().find(|k| k.plural() == plural)?;
            return match (parts.next(), parts.next(), parts.next()) {
                (Some(name), None, None) if !kind.namespaced() => plain(Key::new(kind, None, name)),
                (Some(ns), Some(name), None) if kind.namespaced() => plain(Key::new(kind, Some(ns), name)),
                _ => None,
            };
        }
        if path == CONFIG {
            return plain(Key::new(Kind::IpamConfiguration, None, "default"));
        }
        if let Some(handle) = path.strip_prefix(HANDLES) {
            let id = handle.strip_prefix('/')?;
            return plain(Key::new(Kind::IpamHandle, None, &names::handle_name(id)));
        }
        if let Some(block) = path.strip_prefix(BLOCKS) {
            let cidr = block_of(block.strip_prefix('/')?)?;
            return plain(Key::new(Kind::IpamBlock, None, &names::block_name(&cidr)));
        }
        let (kind, rest) = path.strip_prefix("ipam/v2/")?.split_once('/')?;
        if !AFFINITIES.contains(&kind) {
            return None;
        }
        let (host, block) = rest.split_once('/')?;
        let cidr = block_of(block)?;
        let key = Key::new(Kind::BlockAffinity, None, &names::affinity_name(host, &cidr));
        Some(Place { key, affinity: Some(Affinity { kind: kind.to_owned(), host: host.to_owned(), cidr }) })
    }
}

/// The block with this name: the way back from [`names::block_name`].
fn block_named(name: &str) -> Option<IpNet> {
    let (address, length) = name.rsplit_once('-')?;
    [address.replace('-', "."), address.replace('-', ":")].iter().find_map(|text| {
        let net = IpNet::new(text.parse().ok()?, length.parse().ok()?).ok()?;
        (names::block_name(&net) == name).then_some(net)
    })
}

/// The end of the range of all keys that begin with `prefix` (etcd's convention: the prefix with its last byte raised).
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Everything.
    vec![0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().expect(s)
    }

    #[test]
    fn paths_are_calicos() {
        let l = Layout::new(ROOT);
        for (kind, ns, name, path) in [
            (Kind::IpPool, None, "p", "/calico/resources/v3/projectcalico.org/ippools/p"),
            (
                Kind::WorkloadEndpoint,
                Some("ns"),
                "node-k8s-pod-eth0",
                "/calico/resources/v3/projectcalico.org/workloadendpoints/ns/node-k8s-pod-eth0",
            ),
            (Kind::IpamBlock, None, "10-0-0-0-26", "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26"),
            (Kind::IpamBlock, None, "fd00-1---122", "/calico/ipam/v2/assignment/ipv6/block/fd00:1::-122"),
            (Kind::IpamHandle, None, "k8s-pod-network.abc", "/calico/ipam/v2/handle/k8s-pod-network.abc"),
            (Kind::IpamConfiguration, None, "default", "/calico/ipam/v2/config"),
        ] {
            let key = Key::new(kind, ns, name);
            assert_eq!(l.candidates(&key), [path], "{key}");
            assert_eq!(l.place(path), Some(Place { key, affinity: None }), "{path}");
        }
        let path = "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.0-26";
        let key = Key::new(Kind::BlockAffinity, None, "node-1-10-0-0-0-26");
        let affinity = Affinity { kind: "host".into(), host: "node-1".into(), cidr: net("10.0.0.0/26") };
        assert_eq!(l.place(path), Some(Place { key: key.clone(), affinity: Some(affinity) }));
        assert!(l.candidates(&key).contains(&path.to_owned()));
    }

    #[test]
    fn strange_paths_are_nobodys() {
        let l = Layout::new(ROOT);
        for path in [
            "",
            "/",
            "/calico",
            "/calico/",
            "/other/ipam/v2/config",
            "/calico/resources/v3/projectcalico.org/ippools",
            "/calico/resources/v3/projectcalico.org/ippools/a/b",
            "/calico/resources/v3/projectcalico.org/workloadendpoints/only",
            "/calico/resources/v3/projectcalico.org/unheardof/x",
            "/calico/ipam/v2/assignment/ipv4/block/nonsense",
            "/calico/ipam/v2/host/node/ipv4/block/10.0.0.0",
            "/calico/ipam/v2/other/node/ipv4/block/10.0.0.0-26",
        ] {
            assert_eq!(l.place(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn an_affinity_is_found_by_its_name(
            host in "[a-z][a-z0-9]{0,5}(-[a-f0-9]{1,4}){0,3}",
            v6 in any::<bool>(),
            bits in any::<u128>(),
        ) {
            let cidr = if v6 {
                IpNet::new(std::net::Ipv6Addr::from(bits).into(), 122).unwrap().trunc()
            } else {
                IpNet::new(std::net::Ipv4Addr::from(bits as u32).into(), 26).unwrap().trunc()
            };
            let l = Layout::new(ROOT);
            let path = l.affinity(&Affinity { kind: "host".into(), host: host.clone(), cidr });
            let place = l.place(&path).expect("a place");
            prop_assert_eq!(place.affinity.map(|a| (a.host, a.cidr)), Some((host, cidr)));
            prop_assert!(l.candidates(&place.key).contains(&path));
        }

        #[test]
        fn no_path_makes_it_panic(path in "/calico/.{0,60}") {
            let _ = Layout::new(ROOT).place(&path);
        }
    }

    #[test]
    fn a_range_ends_behind_its_prefix() {
        assert_eq!(end_of("/a/"), b"/a0");
        assert_eq!(end_of(""), [0]);
    }
}
