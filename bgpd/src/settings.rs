//! The file of a plain speaker: `brindle-bgpd --config FILE.yaml`. Every error names file, line and field.
//!
//! deploy/brindle-bgpd.example.yaml shows every field; a test reads it.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use brindle_bgpd_core::{
    af::Family,
    speaker::{ExportPolicy, LocalRoute, NextHopPolicy, PeerConfig, SpeakerConfig},
    wire::{AttrSet, NextHop, Origin},
};
use brindle_config::yaml::{Origin as Source, Place, Problem, read_one_with_origin};
use brindle_config_core::{
    bgp::{AsNumber, BgpFilterRule, BgpFilterSpec},
    meta::Spec,
};
use brindle_kernel::tcp::MD5_KEY_MAX;
use ipnet::IpNet;
use serde::Deserialize;

use crate::{communities, handle::Desired, peers::filters::compile};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub desired: Desired,
    pub admin_socket: PathBuf,
    pub log: Log,
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
    #[serde(default = "classic_local_pref")]
    local_pref: u32,
    #[serde(default = "sixteen")]
    multipath: u8,
    #[serde(default)]
    filters: Vec<NamedFilter>,
    #[serde(default)]
    peers: Vec<Peer>,
    #[serde(default)]
    announce: Vec<Announce>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Peer {
    #[serde(default)]
    name: Option<String>,
    address: IpAddr,
    as_number: AsNumber,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default, rename = "localASNumber")]
    local_as_number: Option<AsNumber>,
    #[serde(default)]
    source_address: Option<IpAddr>,
    #[serde(default)]
    passive: bool,
    #[serde(default)]
    families: Option<Vec<FamilyName>>,
    #[serde(default)]
    hold_time: Option<u16>,
    #[serde(default)]
    keepalive: Option<u16>,
    #[serde(default)]
    connect_retry: Option<u16>,
    #[serde(default)]
    restart_time: Option<u16>,
    #[serde(default)]
    reflector_client: bool,
    #[serde(default, rename = "allowOwnAS")]
    allow_own_as: u8,
    #[serde(default)]
    max_prefixes: Option<u32>,
    #[serde(default)]
    next_hop: NextHopName,
    #[serde(default)]
    ttl_security: Option<u8>,
    #[serde(default)]
    password_file: Option<PathBuf>,
    #[serde(default)]
    export: Export,
    #[serde(default)]
    filters: Vec<String>,
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

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Export {
    allow: Option<Vec<IpNet>>,
    deny: Vec<IpNet>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FamilyName {
    Ipv4,
    Ipv6,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NextHopName {
    #[default]
    Auto,
    #[serde(rename = "self")]
    SelfAddress,
    Keep,
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
        let text = std::fs::read_to_string(file).map_err(|e| Problem {
            place: Place { file: file.display().to_string().into(), document: 0, line: 0, column: 0 },
            field: String::new(),
            message: format!("cannot be read: {e}"),
        })?;
        Self::parse(file, &text)
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
        let reflects = raw.peers.iter().any(|p| p.reflector_client);
        let speaker = SpeakerConfig {
            cluster_id: raw.cluster_id.or(reflects.then_some(raw.router_id)),
            local_pref: raw.local_pref,
            classic_local_pref: None,
            multipath: raw.multipath.max(1),
            ..SpeakerConfig::new(asn, raw.router_id)
        };
        let filters = self.filters(raw.filters)?;
        let mut seen: HashMap<IpAddr, usize> = HashMap::new();
        let mut peers = Vec::with_capacity(raw.peers.len());
        for (i, peer) in raw.peers.into_iter().enumerate() {
            if let Some(first) = seen.insert(peer.address, i) {
                let what = format!("{} is the address of peers[{first}] already", peer.address);
                return self.fail(format!("peers[{i}].address"), what);
            }
            peers.push(self.peer(i, peer, asn, &filters)?);
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
            },
            admin_socket: raw.admin_socket,
            log: raw.log,
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

    fn peer(
        &self,
        i: usize,
        p: Peer,
        own_asn: u32,
        filters: &BTreeMap<String, BgpFilterSpec>,
    ) -> Result<PeerConfig, Problem> {
        let (address, asn) = (p.address, p.as_number.0);
        let fail = |field: &str, what: String| self.fail(format!("peers[{i}].{field}"), what);
        if asn == 0 {
            return fail("asNumber", "0 is reserved (RFC 7607)".into());
        }
        let external = asn != p.local_as_number.map_or(own_asn, |a| a.0);
        if p.reflector_client && external {
            return fail("reflectorClient", format!("AS {asn} is not ours, and only iBGP is reflected"));
        }
        if let Some(source) = p.source_address
            && source.is_ipv4() != address.is_ipv4()
        {
            return fail("sourceAddress", format!("{source} cannot connect to {address}"));
        }
        if matches!(p.hold_time, Some(1 | 2)) {
            return fail("holdTime", "must be 0 or at least 3 (RFC 4271 section 4.2)".into());
        }
        if p.restart_time.is_some_and(|t| t > 4095) {
            return fail("restartTime", "at most 4095 (RFC 4724 section 3)".into());
        }
        let mut peer = PeerConfig::new(p.name.unwrap_or_else(|| address.to_string()), address, asn);
        if let Some(families) = p.families {
            let named = |f: Family| match f {
                Family::Ipv4Unicast => families.contains(&FamilyName::Ipv4),
                Family::Ipv6Unicast => families.contains(&FamilyName::Ipv6),
            };
            peer.families = Family::ALL.into_iter().filter(|f| named(*f)).collect();
            if peer.families.is_empty() {
                return fail("families", "name ipv4, ipv6 or both".into());
            }
        }
        peer.port = p.port.unwrap_or(peer.port);
        peer.local_address = p.source_address;
        peer.local_asn = p.local_as_number.map(|a| a.0);
        peer.passive = p.passive;
        peer.hold_time = p.hold_time.unwrap_or(peer.hold_time);
        peer.keepalive = p.keepalive.filter(|k| *k != 0);
        peer.connect_retry = p.connect_retry.unwrap_or(peer.connect_retry);
        peer.restart_time = p.restart_time.unwrap_or(peer.restart_time);
        peer.reflector_client = p.reflector_client;
        peer.allow_own_as = p.allow_own_as;
        peer.max_prefixes = p.max_prefixes.unwrap_or(peer.max_prefixes);
        peer.next_hop = match p.next_hop {
            NextHopName::Auto => NextHopPolicy::Auto,
            NextHopName::SelfAddress => NextHopPolicy::SelfAddress,
            NextHopName::Keep => NextHopPolicy::Keep,
        };
        peer.ttl = p.ttl_security.filter(|hops| *hops != 0);
        if let Some(file) = p.password_file {
            match self.password(&file) {
                Ok(key) => peer.password = Some(key),
                Err(what) => return fail("passwordFile", what),
            }
        }
        let mut named = Vec::with_capacity(p.filters.len());
        for (k, name) in p.filters.iter().enumerate() {
            match filters.get(name) {
                Some(spec) => named.push((name.as_str(), spec)),
                None => {
                    return fail(&format!("filters[{k}]"), format!("there is no filter {name} in filters"));
                }
            }
        }
        match compile(named) {
            Ok(policies) => {
                peer.import = policies.import;
                peer.export =
                    ExportPolicy { deny: p.export.deny, allow: p.export.allow, filters: policies.export };
            }
            Err(what) => return fail("filters", what),
        }
        Ok(peer)
    }

    /// Passwords stand in files of their own, so that this one can be shown around. The trailing newline is not part
    /// of it.
    fn password(&self, file: &Path) -> Result<String, String> {
        let path = self.file.parent().unwrap_or(Path::new("")).join(file);
        let shown = path.display();
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{shown} cannot be read: {e}"))?;
        let key = text.trim_end_matches(['\n', '\r']);
        match key.len() {
            0 => Err(format!("{shown} is empty")),
            1..=MD5_KEY_MAX => Ok(key.to_owned()),
            n => Err(format!("the key in {shown} has {n} octets, the kernel takes {MD5_KEY_MAX}")),
        }
    }

    fn route(&self, i: usize, a: Announce) -> Result<LocalRoute, Problem> {
        let prefix = a.prefix;
        let fail = |field: &str, what: String| self.fail(format!("announce[{i}].{field}"), what);
        if prefix != prefix.trunc() {
            return fail("prefix", format!("{prefix} has host bits set; write {}", prefix.trunc()));
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
            match communities::parse(text) {
                Some(tag) => tag.attach(&mut attributes),
                None => {
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
