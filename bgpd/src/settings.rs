//! The file of a plain speaker: `brindle-bgpd --config FILE.yaml`. Every error names file, line and field.
//!
//! deploy/brindle-bgpd.example.yaml shows every field; a test reads it.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use brindle_bgpd_core::{
    af::Family,
    speaker::{ExportPolicy, LocalRoute, NextHopPolicy, PeerConfig, SpeakerConfig},
    wire::{AttrSet, NextHop, Origin},
};
use brindle_config_core::bgp::AsNumber;
use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::{communities, handle::Desired};

/// What is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    pub file: PathBuf,
    /// 1-based; `None` where the file as a whole is meant.
    pub line: Option<u64>,
    pub what: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.what),
            None => write!(f, "{}: {}", self.file.display(), self.what),
        }
    }
}

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

/// An AS number read as the text it is: as a YAML number, `1.10` would be `1.1`.
#[derive(Clone, Copy)]
struct Asn(u32);

impl<'de> Deserialize<'de> for Asn {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map(|AsNumber(n)| Self(n)).map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    as_number: Spanned<Asn>,
    #[serde(rename = "routerID")]
    router_id: Spanned<Ipv4Addr>,
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
    peers: Vec<Peer>,
    #[serde(default)]
    announce: Vec<Announce>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Peer {
    #[serde(default)]
    name: Option<String>,
    address: Spanned<IpAddr>,
    as_number: Spanned<Asn>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default, rename = "localASNumber")]
    local_as_number: Option<Asn>,
    #[serde(default)]
    source_address: Option<Spanned<IpAddr>>,
    #[serde(default)]
    passive: bool,
    #[serde(default)]
    families: Option<Vec<FamilyName>>,
    #[serde(default)]
    hold_time: Option<Spanned<u16>>,
    #[serde(default)]
    keepalive: Option<u16>,
    #[serde(default)]
    connect_retry: Option<u16>,
    #[serde(default)]
    restart_time: Option<Spanned<u16>>,
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
    password_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    export: Export,
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
    prefix: Spanned<IpNet>,
    #[serde(default)]
    next_hop: Option<Spanned<IpAddr>>,
    #[serde(default)]
    communities: Vec<Spanned<String>>,
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
    /// [`SettingsError`]: not readable, not YAML, or not a configuration.
    pub fn read(file: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(file).map_err(|e| SettingsError {
            file: file.into(),
            line: None,
            what: format!("cannot read: {e}"),
        })?;
        Self::parse(file, &text)
    }

    /// Reads the text of a file; `file` is for errors, and for password files named relative to it.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, SettingsError> {
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        let mut path = String::new();
        let parsed: Result<File, _> =
            serde_saphyr::with_deserializer_from_str_with_options(text, options, |de| {
                serde_path_to_error::deserialize(de).map_err(|e| {
                    path = e.path().to_string();
                    e.into_inner()
                })
            });
        let raw = parsed.map_err(|e| {
            let line = e.location().map(|l| l.line());
            // The location is in its own field.
            let what = e.without_snippet().to_string();
            let what = what.split_once(" at line ").map_or(what.as_str(), |(w, _)| w).to_owned();
            let what = if path.is_empty() || path == "." { what } else { format!("{path}: {what}") };
            SettingsError { file: file.into(), line, what }
        })?;
        Check { file }.settings(raw)
    }
}

/// Turns what was read into what can be run.
struct Check<'a> {
    file: &'a Path,
}

impl Check<'_> {
    fn fail<T, R>(&self, at: &Spanned<T>, what: impl Into<String>) -> Result<R, SettingsError> {
        Err(SettingsError { file: self.file.into(), line: Some(at.referenced.line()), what: what.into() })
    }

    fn settings(&self, raw: File) -> Result<Settings, SettingsError> {
        if raw.as_number.value.0 == 0 {
            return self.fail(&raw.as_number, "asNumber: 0 is reserved (RFC 7607)");
        }
        if raw.router_id.value.is_unspecified() {
            return self.fail(&raw.router_id, "routerID: 0.0.0.0 is not allowed (RFC 6286)");
        }
        let asn = raw.as_number.value.0;
        let reflects = raw.peers.iter().any(|p| p.reflector_client);
        let speaker = SpeakerConfig {
            cluster_id: raw.cluster_id.or(reflects.then_some(raw.router_id.value)),
            local_pref: raw.local_pref,
            classic_local_pref: None,
            multipath: raw.multipath.max(1),
            ..SpeakerConfig::new(asn, raw.router_id.value)
        };
        let mut seen: HashMap<IpAddr, usize> = HashMap::new();
        let mut peers = Vec::with_capacity(raw.peers.len());
        for (i, peer) in raw.peers.into_iter().enumerate() {
            if let Some(first) = seen.insert(peer.address.value, i) {
                let address = peer.address.value;
                let what = format!("peers[{i}].address: {address} is the address of peers[{first}] already");
                return self.fail(&peer.address, what);
            }
            peers.push(self.peer(i, peer, asn)?);
        }
        let mut routes: HashMap<IpNet, usize> = HashMap::new();
        let mut announced = Vec::with_capacity(raw.announce.len());
        for (i, a) in raw.announce.into_iter().enumerate() {
            if let Some(first) = routes.insert(a.prefix.value, i) {
                let what =
                    format!("announce[{i}].prefix: {} stands in announce[{first}] already", a.prefix.value);
                return self.fail(&a.prefix, what);
            }
            announced.push(self.route(i, a)?);
        }
        Ok(Settings {
            desired: Desired { speaker: Some(speaker), listen: raw.listen, peers, routes: announced },
            admin_socket: raw.admin_socket,
            log: raw.log,
        })
    }

    fn peer(&self, i: usize, p: Peer, own_asn: u32) -> Result<PeerConfig, SettingsError> {
        let address = p.address.value;
        let asn = p.as_number.value.0;
        if asn == 0 {
            return self.fail(&p.as_number, format!("peers[{i}].asNumber: 0 is reserved (RFC 7607)"));
        }
        let external = asn != p.local_as_number.map_or(own_asn, |a| a.0);
        if p.reflector_client && external {
            let what =
                format!("peers[{i}].reflectorClient: AS {asn} is not ours, and only iBGP is reflected");
            return self.fail(&p.as_number, what);
        }
        if let Some(source) = &p.source_address
            && source.value.is_ipv4() != address.is_ipv4()
        {
            let what = format!("peers[{i}].sourceAddress: {} cannot connect to {address}", source.value);
            return self.fail(source, what);
        }
        if let Some(hold) = &p.hold_time
            && matches!(hold.value, 1 | 2)
        {
            return self.fail(hold, format!("peers[{i}].holdTime: must be 0 or at least 3 (RFC 4271 4.2)"));
        }
        if let Some(restart) = &p.restart_time
            && restart.value > 4095
        {
            return self.fail(restart, format!("peers[{i}].restartTime: at most 4095 (RFC 4724 section 3)"));
        }
        let mut peer = PeerConfig::new(p.name.unwrap_or_else(|| address.to_string()), address, asn);
        peer.port = p.port.unwrap_or(peer.port);
        peer.local_address = p.source_address.map(|s| s.value);
        peer.local_asn = p.local_as_number.map(|a| a.0);
        peer.passive = p.passive;
        if let Some(families) = p.families {
            let named = |f: Family| match f {
                Family::Ipv4Unicast => families.contains(&FamilyName::Ipv4),
                Family::Ipv6Unicast => families.contains(&FamilyName::Ipv6),
            };
            peer.families = Family::ALL.into_iter().filter(|f| named(*f)).collect();
            if peer.families.is_empty() {
                return self.fail(&p.address, format!("peers[{i}].families: name ipv4, ipv6 or both"));
            }
        }
        peer.hold_time = p.hold_time.map_or(peer.hold_time, |h| h.value);
        peer.keepalive = p.keepalive.filter(|k| *k != 0);
        peer.connect_retry = p.connect_retry.unwrap_or(peer.connect_retry);
        peer.restart_time = p.restart_time.map_or(peer.restart_time, |r| r.value);
        peer.reflector_client = p.reflector_client;
        peer.allow_own_as = p.allow_own_as;
        peer.max_prefixes = p.max_prefixes.unwrap_or(peer.max_prefixes);
        peer.next_hop = match p.next_hop {
            NextHopName::Auto => NextHopPolicy::Auto,
            NextHopName::SelfAddress => NextHopPolicy::SelfAddress,
            NextHopName::Keep => NextHopPolicy::Keep,
        };
        peer.ttl = p.ttl_security.filter(|hops| *hops != 0);
        peer.password = p.password_file.map(|f| self.password(i, &f)).transpose()?;
        peer.export = ExportPolicy { deny: p.export.deny, allow: p.export.allow };
        Ok(peer)
    }

    /// Passwords stand in files of their own, so that this one can be shown around. The trailing newline is not part
    /// of it.
    fn password(&self, i: usize, file: &Spanned<PathBuf>) -> Result<String, SettingsError> {
        let path = self.file.parent().unwrap_or(Path::new("")).join(&file.value);
        match std::fs::read_to_string(&path) {
            Ok(text) => match text.trim_end_matches(['\n', '\r']) {
                "" => self.fail(file, format!("peers[{i}].passwordFile: {} is empty", path.display())),
                key if key.len() > brindle_kernel::tcp::MD5_KEY_MAX => self.fail(
                    file,
                    format!(
                        "peers[{i}].passwordFile: the key in {} has {} octets, the kernel takes {}",
                        path.display(),
                        key.len(),
                        brindle_kernel::tcp::MD5_KEY_MAX
                    ),
                ),
                key => Ok(key.to_owned()),
            },
            Err(e) => {
                self.fail(file, format!("peers[{i}].passwordFile: cannot read {}: {e}", path.display()))
            }
        }
    }

    fn route(&self, i: usize, a: Announce) -> Result<LocalRoute, SettingsError> {
        let prefix = a.prefix.value;
        if prefix != prefix.trunc() {
            let what = format!("announce[{i}].prefix: {prefix} has host bits set; write {}", prefix.trunc());
            return self.fail(&a.prefix, what);
        }
        let next_hop = match a.next_hop {
            None => None,
            Some(hop) => match (hop.value, prefix) {
                (IpAddr::V4(v4), IpNet::V4(_)) => Some(NextHop::V4(v4)),
                (IpAddr::V6(global), IpNet::V6(_)) => Some(NextHop::V6 { global, link_local: None }),
                (other, _) => {
                    let what = format!("announce[{i}].nextHop: {other} is not of the family of {prefix}");
                    return self.fail(&hop, what);
                }
            },
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
        for text in &a.communities {
            match communities::parse(&text.value) {
                Some(tag) => tag.attach(&mut attributes),
                None => {
                    let what = format!(
                        "announce[{i}].communities: expected aa:nn or aa:nn:mm, found {:?}",
                        text.value
                    );
                    return self.fail(text, what);
                }
            }
        }
        Ok(LocalRoute { prefix, next_hop, attributes })
    }
}

#[cfg(test)]
mod tests;
