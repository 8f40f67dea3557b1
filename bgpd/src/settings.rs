//! The file of a plain speaker: `brindle-bgpd --config FILE.yaml`. Every error names file, line and field.
//!
//! deploy/brindle-bgpd.example.yaml shows every field; a test reads it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use brindle_bgpd_core::{
    speaker::{LocalRoute, Multipath, SpeakerConfig},
    wire::{AttrSet, NextHop, Origin},
};
use brindle_config::yaml::{self, Origin as Source, Place, Problem, read_one_with_origin};
use brindle_config_core::{
    bgp::{AsNumber, BgpFilterRule, BgpFilterSpec},
    meta::Spec,
};
use ipnet::IpNet;
use serde::Deserialize;

use self::{
    imports::Import,
    peer::{Common, Peer, Range, usual_name},
};
use crate::{
    handle::Desired,
    keys::{Wanted, Whose},
    mrt::MrtSettings,
    peers::filters::{community, compile},
};

mod checks;
mod imports;
mod peer;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub desired: Desired,
    pub admin_socket: PathBuf,
    pub log: Log,
    /// How long peers may react to our leaving before the sessions end (RFC 8326); zero: not at all.
    pub drain_time: Duration,
    pub mrt: Option<MrtSettings>,
}

/// `log:` of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `brindle_bgpd=debug`. Absent = `info`.
    pub level: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where the admin socket is unless the file says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/brindle-bgpd.sock";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    as_number: AsNumber,
    #[serde(rename = "routerID")]
    router_id: Ipv4Addr,
    #[serde(default, rename = "clusterID")]
    cluster_id: Option<Ipv4Addr>,
    #[serde(default = "everywhere")]
    listen: Vec<SocketAddr>,
    #[serde(default = "admin_socket")]
    admin_socket: PathBuf,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    mrt: Option<MrtSettings>,
    #[serde(default = "classic_local_pref")]
    local_pref: u32,
    #[serde(default = "sixteen")]
    multipath: u8,
    #[serde(default)]
    maximum_paths: MaximumPaths,
    #[serde(default)]
    filters: Vec<NamedFilter>,
    /// External peers need no policy (RFC 8212).
    #[serde(default)]
    accept_all: bool,
    /// Seconds between the announcement that we leave (RFC 8326) and the end.
    #[serde(default)]
    drain_time: u16,
    /// Paths of all peers together; 0 = no limit.
    #[serde(default)]
    max_paths: usize,
    #[serde(default)]
    peers: Vec<Peer>,
    #[serde(default)]
    dynamic: Vec<Range>,
    #[serde(default)]
    announce: Vec<Announce>,
    #[serde(default)]
    import_routes: Vec<Import>,
}

/// `maximumPaths:` of the file: what differs from `multipath`, by where the best path comes from.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct MaximumPaths {
    ebgp: Option<u8>,
    ibgp: Option<u8>,
    #[serde(rename = "sameASPath")]
    same_as_path: bool,
}

impl MaximumPaths {
    fn or(&self, both: u8) -> Multipath {
        Multipath {
            ebgp: self.ebgp.unwrap_or(both),
            ibgp: self.ibgp.unwrap_or(both),
            same_as_path: self.same_as_path,
        }
    }
}

/// A BGPFilter with its name; the rules are those of the resource.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamedFilter {
    name: String,
    #[serde(default, rename = "importV4")]
    import_v4: Vec<BgpFilterRule>,
    #[serde(default, rename = "exportV4")]
    export_v4: Vec<BgpFilterRule>,
    #[serde(default, rename = "importV6")]
    import_v6: Vec<BgpFilterRule>,
    #[serde(default, rename = "exportV6")]
    export_v6: Vec<BgpFilterRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Announce {
    prefix: IpNet,
    #[serde(default)]
    next_hop: Option<IpAddr>,
    #[serde(default)]
    communities: Vec<String>,
    #[serde(default)]
    med: Option<u32>,
    #[serde(default)]
    local_pref: Option<u32>,
    #[serde(default)]
    origin: OriginName,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OriginName {
    #[default]
    Igp,
    Egp,
    Incomplete,
}

fn everywhere() -> Vec<SocketAddr> {
    vec![(Ipv4Addr::UNSPECIFIED, 179).into(), (Ipv6Addr::UNSPECIFIED, 179).into()]
}

fn admin_socket() -> PathBuf {
    DEFAULT_ADMIN_SOCKET.into()
}

const fn classic_local_pref() -> u32 {
    100
}

const fn sixteen() -> u8 {
    16
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// Not readable, not YAML, or not a configuration: file, line and field.
    pub fn read(file: &Path) -> Result<Self, Problem> {
        let name: Arc<str> = file.display().to_string().into();
        let bytes = std::fs::read(file).map_err(|e| Problem {
            place: Place { file: name.clone(), document: 0, line: 0, column: 0 },
            field: String::new(),
            message: format!("cannot be read: {e}"),
        })?;
        Self::parse(file, yaml::text(&name, &bytes)?)
    }

    /// With another router id than the file's; the cluster id follows if it is the same. For many reflectors with one file.
    ///
    /// # Errors
    /// 0.0.0.0 is none (RFC 6286).
    pub fn set_router_id(&mut self, id: Ipv4Addr) -> Result<(), &'static str> {
        if id.is_unspecified() {
            return Err("0.0.0.0 is not allowed (RFC 6286)");
        }
        if let Some(speaker) = &mut self.desired.speaker {
            if speaker.cluster_id == Some(speaker.router_id) {
                speaker.cluster_id = Some(id);
            }
            speaker.router_id = id;
        }
        Ok(())
    }

    /// Reads the text of a file; `file` is for errors, and for password files named relative to it.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, Problem> {
        let (raw, source) = read_one_with_origin::<File>(&file.display().to_string(), text)?;
        Check { file, source }.settings(raw)
    }
}

/// Turns what was read into what can be run.
struct Check<'a> {
    file: &'a Path,
    source: Source,
}

impl Check<'_> {
    fn fail<R>(&self, field: impl AsRef<str>, what: impl Into<String>) -> Result<R, Problem> {
        Err(self.source.problem(field.as_ref(), what))
    }

    fn settings(&self, raw: File) -> Result<Settings, Problem> {
        let asn = raw.as_number.0;
        if asn == 0 {
            return self.fail("asNumber", "0 is reserved (RFC 7607)");
        }
        if raw.router_id.is_unspecified() {
            return self.fail("routerID", "0.0.0.0 is not allowed (RFC 6286)");
        }
        let filters = self.filters(raw.filters)?;
        let common = Common { asn, accept_all: raw.accept_all, filters: &filters };
        let ranges = raw.dynamic.iter().map(|d| &d.template);
        let reflects = raw.peers.iter().chain(ranges).any(|p| p.reflector_client);
        if let Some(Err(what)) = raw.log.level.as_deref().map(crate::log::filter) {
            return self.fail("log.level", what);
        }
        let mut seen: HashMap<(String, u16), usize> = HashMap::new();
        let mut names: HashMap<String, usize> = HashMap::new();
        let mut addresses: HashSet<String> = HashSet::new();
        let mut peers = Vec::with_capacity(raw.peers.len());
        let speaker = SpeakerConfig {
            cluster_id: raw.cluster_id.or(reflects.then_some(raw.router_id)),
            local_pref: raw.local_pref,
            classic_local_pref: None,
            multipath: raw.maximum_paths.or(raw.multipath),
            max_paths: raw.max_paths,
            dynamic: self.ranges(raw.dynamic, &common)?,
            ..SpeakerConfig::new(asn, raw.router_id)
        };
        for (i, peer) in raw.peers.into_iter().enumerate() {
            let at = format!("peers[{i}]");
            let Some(address) = peer.address else { return self.fail(at, "address is missing") };
            if let Some(what) = checks::unicast(address) {
                return self.fail(format!("{at}.address"), what);
            }
            if peer.as_number.is_none() {
                return self.fail(at, "asNumber is missing");
            }
            let unnamed = peer.name.is_none();
            let mut peer = self.peer(&at, address, peer, &common)?;
            // Several speakers at one address are told apart by their ports, those of several links by the links.
            let usual = usual_name(address.to_canonical(), peer.session.interface.as_deref());
            if let Some(first) = seen.insert((usual.clone(), peer.port), i) {
                let what = format!("{usual} is the address of peers[{first}] already, with the same port");
                return self.fail(format!("{at}.address"), what);
            }
            if !addresses.insert(usual.clone()) && unnamed {
                // Commands and metrics tell them apart by their names.
                let host = if address.is_ipv6() { format!("[{usual}]") } else { usual.clone() };
                peer.name = format!("{host}:{}", peer.port);
            }
            if let Some(what) = checks::peer_name(&peer.name) {
                return self.fail(format!("{at}.name"), what);
            }
            if let Some(first) = names.insert(peer.name.clone(), i)
                && peer.name != usual
            {
                let what = format!("{} is the name of peers[{first}] already", peer.name);
                return self.fail(format!("{at}.name"), what);
            }
            if let Some((first, what)) = checks::waited_for(&peers, &peer) {
                return self.fail(format!("{at}.passive"), format!("{what} peers[{first}]"));
            }
            peers.push(peer);
        }
        let clashes = Wanted::new(&peers, &speaker.dynamic).clashes(&raw.listen);
        if let Some(clash) = clashes.iter().find(|c| c.hopeless) {
            let field = match &clash.who {
                Whose::Peer { place, .. } => format!("peers[{place}].passive"),
                Whose::Range { place, .. } => format!("dynamic[{place}].range"),
            };
            return self.fail(field, clash.to_string());
        }
        let mut routes: HashMap<IpNet, usize> = HashMap::new();
        let mut announced = Vec::with_capacity(raw.announce.len());
        for (i, a) in raw.announce.into_iter().enumerate() {
            if let Some(first) = routes.insert(a.prefix, i) {
                let what = format!("{} stands in announce[{first}] already", a.prefix);
                return self.fail(format!("announce[{i}].prefix"), what);
            }
            announced.push(self.route(i, a)?);
        }
        Ok(Settings {
            desired: Desired {
                speaker: Some(speaker),
                listen: raw.listen,
                peers,
                routes: announced,
                statics: vec![],
                imports: self.imports(raw.import_routes, &filters)?,
                services: std::sync::Arc::default(),
            },
            admin_socket: raw.admin_socket,
            log: raw.log,
            drain_time: Duration::from_secs(raw.drain_time.into()),
            mrt: raw.mrt,
        })
    }

    /// Reads the filters; each by itself, so that a mistake is told where it stands.
    fn filters(&self, list: Vec<NamedFilter>) -> Result<BTreeMap<String, BgpFilterSpec>, Problem> {
        let mut all = BTreeMap::new();
        for (i, f) in list.into_iter().enumerate() {
            let spec = BgpFilterSpec {
                import_v4: f.import_v4,
                export_v4: f.export_v4,
                import_v6: f.import_v6,
                export_v6: f.export_v6,
                ..BgpFilterSpec::default()
            };
            for (at, extra) in spec.extras() {
                if let Some(field) = extra.keys().next() {
                    return self.fail(format!("filters[{i}].{at}.{field}"), "there is no such field");
                }
            }
            if let Some(what) = checks::name(&f.name) {
                return self.fail(format!("filters[{i}].name"), what);
            }
            if let Err(e) = compile([(f.name.as_str(), &spec)]) {
                let text = e.strip_prefix(&format!("{}: ", f.name)).unwrap_or(&e);
                let (field, what) = text.split_once(": ").unwrap_or(("", text));
                return self.fail(format!("filters[{i}].{field}"), what);
            }
            if all.insert(f.name.clone(), spec).is_some() {
                return self.fail(format!("filters[{i}].name"), format!("{} stands here twice", f.name));
            }
        }
        Ok(all)
    }

    fn route(&self, i: usize, a: Announce) -> Result<LocalRoute, Problem> {
        let prefix = a.prefix;
        let fail = |field: &str, what: String| self.fail(format!("announce[{i}].{field}"), what);
        if prefix != prefix.trunc() {
            return fail("prefix", format!("{prefix} has host bits set; write {}", prefix.trunc()));
        }
        if let Some(what) = a.next_hop.and_then(checks::unicast) {
            return fail("nextHop", what);
        }
        let next_hop = match (a.next_hop, prefix) {
            (None, _) => None,
            (Some(IpAddr::V4(v4)), IpNet::V4(_)) => Some(NextHop::V4(v4)),
            (Some(IpAddr::V6(global)), IpNet::V6(_)) => Some(NextHop::V6 { global, link_local: None }),
            (Some(other), _) => return fail("nextHop", format!("{other} is not of the family of {prefix}")),
        };
        let mut attributes = AttrSet {
            origin: match a.origin {
                OriginName::Igp => Origin::Igp,
                OriginName::Egp => Origin::Egp,
                OriginName::Incomplete => Origin::Incomplete,
            },
            med: a.med,
            local_pref: a.local_pref,
            ..AttrSet::default()
        };
        for (k, text) in a.communities.iter().enumerate() {
            match community(text) {
                Ok(c) => c.attach(&mut attributes),
                Err(_) => {
                    let what = format!("expected aa:nn or aa:nn:mm, found {text:?}");
                    return fail(&format!("communities[{k}]"), what);
                }
            }
        }
        Ok(LocalRoute { prefix, next_hop, attributes })
    }
}

#[cfg(test)]
mod tests;
