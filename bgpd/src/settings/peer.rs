//! A peer of the file, or the template of a range of dynamic ones: its fields, and what they may be.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    path::{Path, PathBuf},
};

use brindle_bgpd_core::{
    af::{Family, PerFamily},
    speaker::{
        AddPath, AddPathSend, DynamicPeers, ExportPolicy, LONG_LIVED_MAX, NextHopPolicy, PeerConfig,
        PrefixAction, PrefixLimits, RouteOptions, SessionOptions,
    },
};
use brindle_config::yaml::Problem;
use brindle_config_core::bgp::{AsNumber, BgpFilterSpec};
use brindle_kernel::tcp::MD5_KEY_MAX;
use ipnet::IpNet;
use serde::Deserialize;

use super::{Check, checks};
use crate::peers::filters::{Policies, compile};

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Peer {
    pub(super) name: Option<String>,
    pub(super) address: Option<IpAddr>,
    pub(super) as_number: Option<AsNumber>,
    port: Option<u16>,
    #[serde(rename = "localASNumber")]
    local_as_number: Option<AsNumber>,
    no_prepend: Option<bool>,
    #[serde(rename = "replaceAS")]
    replace_as: Option<bool>,
    source_address: Option<IpAddr>,
    interface: Option<String>,
    passive: bool,
    shutdown: Option<String>,
    farewell: String,
    families: Option<Vec<FamilyName>>,
    hold_time: Option<u16>,
    keepalive: Option<u16>,
    send_hold_time: Option<u16>,
    connect_retry: Option<u16>,
    delay_open: u16,
    restart_time: Option<u16>,
    restart_limit: Option<u16>,
    stale_time: Option<u16>,
    notification_restart: Option<bool>,
    long_lived_time: u32,
    pub(super) reflector_client: bool,
    #[serde(rename = "allowOwnAS")]
    allow_own_as: u8,
    #[serde(rename = "asOverride")]
    as_override: bool,
    #[serde(rename = "removePrivateAS")]
    remove_private_as: bool,
    honour_graceful_shutdown: Option<bool>,
    default_originate: bool,
    #[serde(rename = "enforceFirstAS")]
    enforce_first_as: Option<bool>,
    accept_all: bool,
    max_prefixes: Option<u32>,
    prefix_limits: Limits,
    next_hop: NextHopName,
    #[serde(rename = "nextHopIPv4")]
    next_hop_ipv4: Option<Ipv4Addr>,
    #[serde(rename = "nextHopIPv6")]
    next_hop_ipv6: Option<Ipv6Addr>,
    add_path: AddPaths,
    ttl_security: Option<u8>,
    multihop: Option<u8>,
    password_file: Option<PathBuf>,
    export: Export,
    filters: Vec<String>,
}

/// What all peers of a file share.
pub(super) struct Common<'a> {
    /// The speaker's AS.
    pub(super) asn: u32,
    /// External peers need no policy.
    pub(super) accept_all: bool,
    pub(super) filters: &'a BTreeMap<String, BgpFilterSpec>,
}

/// What a peer without a name is called.
pub(super) fn usual_name(address: IpAddr, interface: Option<&str>) -> String {
    match (address, interface) {
        (IpAddr::V6(a), Some(interface)) if a.is_unicast_link_local() => format!("{a}%{interface}"),
        _ => address.to_string(),
    }
}

/// `dynamic:` of the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Range {
    #[serde(default)]
    name: Option<String>,
    range: IpNet,
    #[serde(default = "hundred")]
    max: u32,
    #[serde(default)]
    pub(super) template: Peer,
}

const fn hundred() -> u32 {
    100
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Export {
    allow: Option<Vec<IpNet>>,
    deny: Vec<IpNet>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct AddPaths {
    receive: bool,
    send_all: bool,
    send_best: u8,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Limits {
    ipv4: Option<u32>,
    ipv6: Option<u32>,
    warn_at: u8,
    action: ActionName,
    restart_after: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActionName {
    Warn,
    #[default]
    Restart,
    Down,
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

impl Check<'_> {
    pub(super) fn ranges(&self, list: Vec<Range>, common: &Common<'_>) -> Result<Vec<DynamicPeers>, Problem> {
        let mut ranges: Vec<DynamicPeers> = Vec::with_capacity(list.len());
        for (i, r) in list.into_iter().enumerate() {
            let at = format!("dynamic[{i}]");
            if r.range != r.range.trunc() {
                let what = format!("{} has host bits set; write {}", r.range, r.range.trunc());
                return self.fail(format!("{at}.range"), what);
            }
            if let Some(first) = ranges.iter().position(|d| d.range == r.range) {
                return self.fail(format!("{at}.range"), format!("stands in dynamic[{first}] already"));
            }
            if r.max == 0 {
                return self.fail(format!("{at}.max"), "0 lets nobody in; leave the range out");
            }
            if let Some(what) = r.name.as_deref().and_then(checks::name) {
                return self.fail(format!("{at}.name"), what);
            }
            let place = format!("{at}.template");
            if r.template.address.is_some() {
                return self.fail(format!("{place}.address"), "a range has no address of its own");
            }
            let any: IpAddr = match r.range {
                IpNet::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpNet::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            ranges.push(DynamicPeers {
                name: r.name.unwrap_or_else(|| r.range.to_string()),
                range: r.range,
                max: r.max,
                template: self.peer(&place, any, r.template, common)?,
            });
        }
        Ok(ranges)
    }

    /// A peer at `at`; without an AS number (only in templates) it may have any.
    pub(super) fn peer(
        &self,
        at: &str,
        address: IpAddr,
        p: Peer,
        common: &Common<'_>,
    ) -> Result<PeerConfig, Problem> {
        self.config(address, p, common)
            .or_else(|wrong| self.fail(format!("{at}.{}", wrong.field), wrong.what))
    }

    fn config(&self, address: IpAddr, p: Peer, common: &Common<'_>) -> Result<PeerConfig, Wrong> {
        p.refuse_contradictions(address, common)?;
        let send = p.add_path.send()?;
        let usual = usual_name(address, p.interface.as_deref());
        let mut peer = PeerConfig::new(p.name.clone().unwrap_or(usual), address, p.asn());
        if let Some(families) = &p.families {
            let named = |f: Family| match f {
                Family::Ipv4Unicast => families.contains(&FamilyName::Ipv4),
                Family::Ipv6Unicast => families.contains(&FamilyName::Ipv6),
            };
            peer.families = Family::ALL.into_iter().filter(|f| named(*f)).collect();
            if peer.families.is_empty() {
                return wrong("families", "name ipv4, ipv6 or both");
            }
        }
        peer.attributes = p.route_options(common, p.own_next_hop(|f| peer.families.contains(&f))?);
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
        peer.add_path = AddPath { receive: p.add_path.receive, send };
        peer.ttl = p.ttl_security.filter(|hops| *hops != 0);
        if let Some(file) = &p.password_file {
            peer.password = Some(self.password(file).or_else(|what| wrong("passwordFile", what))?);
        }
        let policies = p.filters(common)?;
        peer.import = policies.import;
        peer.export = ExportPolicy {
            deny: p.export.deny.clone(),
            allow: p.export.allow.clone(),
            filters: policies.export,
            ..ExportPolicy::default()
        };
        peer.session = p.session_options();
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
}

/// A field of a peer that cannot be as it is.
struct Wrong {
    field: String,
    what: String,
}

fn wrong<T>(field: impl Into<String>, what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { field: field.into(), what: what.into() })
}

impl AddPaths {
    fn send(&self) -> Result<Option<AddPathSend>, Wrong> {
        match (self.send_all, NonZeroU8::new(self.send_best)) {
            (true, Some(_)) => wrong("addPath.sendBest", "sendAll is set"),
            (true, None) => Ok(Some(AddPathSend::All)),
            (false, best) => Ok(best.map(AddPathSend::Best)),
        }
    }
}

impl Peer {
    /// 0: any.
    fn asn(&self) -> u32 {
        self.as_number.map_or(0, |a| a.0)
    }

    /// Values that no peer has, and those that do not go with each other.
    fn refuse_contradictions(&self, address: IpAddr, common: &Common<'_>) -> Result<(), Wrong> {
        if self.as_number.is_some_and(|a| a.0 == 0) {
            return wrong("asNumber", "0 is reserved (RFC 7607)");
        }
        let asn = self.asn();
        let external = asn != 0 && asn != self.local_as_number.map_or(common.asn, |a| a.0);
        if self.reflector_client && external {
            return wrong("reflectorClient", format!("AS {asn} is not ours, and only iBGP is reflected"));
        }
        if let Some(source) = self.source_address
            && source.is_ipv4() != address.is_ipv4()
        {
            return wrong("sourceAddress", format!("{source} cannot connect to {address}"));
        }
        if matches!(address, IpAddr::V6(a) if a.is_unicast_link_local()) && self.interface.is_none() {
            return wrong("address", format!("{address} is link-local; name its interface"));
        }
        if matches!(self.hold_time, Some(1 | 2)) {
            return wrong("holdTime", "must be 0 or at least 3 (RFC 4271 section 4.2)");
        }
        let hold = self.hold_time.unwrap_or_else(|| PeerConfig::new("", address, asn).hold_time);
        if let Some((field, what)) = checks::times(hold, self.keepalive, self.send_hold_time) {
            return wrong(field, what);
        }
        if self.port == Some(0) {
            return wrong("port", "expected 1 to 65535");
        }
        let texts = [("shutdown", self.shutdown.as_deref()), ("farewell", Some(self.farewell.as_str()))];
        for (field, text) in texts {
            if let Some(what) = text.and_then(checks::text) {
                return wrong(field, what);
            }
        }
        if let Some(what) = self.interface.as_deref().and_then(checks::interface) {
            return wrong("interface", what);
        }
        let prefixes = &self.prefix_limits;
        let limits = [
            ("maxPrefixes", self.max_prefixes),
            ("prefixLimits.ipv4", prefixes.ipv4),
            ("prefixLimits.ipv6", prefixes.ipv6),
        ];
        if let Some((field, _)) = limits.iter().find(|(_, limit)| *limit == Some(0)) {
            return wrong(*field, "0 lets no route in; reject them with a filter");
        }
        if self.restart_time.is_some_and(|t| t > 4095) {
            return wrong("restartTime", "at most 4095 (RFC 4724 section 3)");
        }
        if self.stale_time == Some(0) {
            // It would be the end of its routes before it can repeat any, at each route refresh, too.
            return wrong(
                "staleTime",
                "expected 1 to 65535; to keep nothing at all there is restartLimit: 0",
            );
        }
        if self.long_lived_time > LONG_LIVED_MAX {
            return wrong("longLivedTime", format!("at most {LONG_LIVED_MAX} (RFC 9494 section 3)"));
        }
        if self.long_lived_time > 0 && self.restart_time == Some(0) {
            return wrong("longLivedTime", "needs a restartTime (RFC 9494 section 4.1)");
        }
        if self.ttl_security.is_some_and(|h| h > 0) && self.multihop.is_some() {
            return wrong("multihop", "ttlSecurity says already how far the peer may be");
        }
        if prefixes.warn_at > 100 {
            return wrong("prefixLimits.warnAt", "at most 100 per cent");
        }
        if prefixes.restart_after > 0 && prefixes.action != ActionName::Restart {
            return wrong("prefixLimits.restartAfter", "goes with action: restart");
        }
        if self.local_as_number.is_none() && (self.no_prepend.is_some() || self.replace_as.is_some()) {
            let field = if self.no_prepend.is_some() { "noPrepend" } else { "replaceAS" };
            return wrong(field, "goes with localASNumber");
        }
        Ok(())
    }

    /// Own next hops, for families the session `carries`.
    fn own_next_hop(&self, carries: impl Fn(Family) -> bool) -> Result<PerFamily<Option<IpAddr>>, Wrong> {
        let own = PerFamily([self.next_hop_ipv4.map(IpAddr::V4), self.next_hop_ipv6.map(IpAddr::V6)]);
        for (family, field) in Family::ALL.into_iter().zip(["nextHopIPv4", "nextHopIPv6"]) {
            let Some(ours) = own[family] else { continue };
            if !carries(family) {
                return wrong(field, format!("the session carries no {family} routes; see families"));
            }
            if let Some(what) = checks::unicast(ours) {
                return wrong(field, what);
            }
            if matches!(ours, IpAddr::V6(a) if a.is_unicast_link_local()) {
                return wrong(field, format!("{ours} is link-local; nobody behind the peer reaches it"));
            }
        }
        Ok(own)
    }

    fn filters(&self, common: &Common<'_>) -> Result<Policies, Wrong> {
        let mut named = Vec::with_capacity(self.filters.len());
        for (k, name) in self.filters.iter().enumerate() {
            match common.filters.get(name) {
                Some(spec) => named.push((name.as_str(), spec)),
                None => {
                    return wrong(format!("filters[{k}]"), format!("there is no filter {name} in filters"));
                }
            }
        }
        let policies = compile(named).or_else(|what| wrong("filters", what))?;
        // Only a node knows by which device a next hop is reached.
        if policies.export.reads_interface() || policies.import.reads_interface() {
            let what = "only brindle-node knows by which device a route leaves; a rule has `interface`";
            return wrong("filters", what);
        }
        Ok(policies)
    }

    fn route_options(&self, common: &Common<'_>, own_next_hop: PerFamily<Option<IpAddr>>) -> RouteOptions {
        RouteOptions {
            as_override: self.as_override,
            remove_private: self.remove_private_as,
            local_as_prepend: !self.no_prepend.unwrap_or(true),
            local_as_show_own: !self.replace_as.unwrap_or(true),
            honour_shutdown: self.honour_graceful_shutdown,
            default_route: self.default_originate,
            enforce_first_as: self.enforce_first_as.unwrap_or(true),
            require_policy: !(common.accept_all || self.accept_all),
            own_next_hop,
        }
    }

    fn session_options(self) -> SessionOptions {
        let usual = SessionOptions::default();
        SessionOptions {
            interface: self.interface,
            hops: self.multihop.filter(|h| *h != 0),
            send_hold: self.send_hold_time.filter(|s| *s != 0),
            delay_open: self.delay_open,
            shutdown: self.shutdown,
            farewell: self.farewell,
            long_lived: self.long_lived_time,
            notification_restart: self.notification_restart.unwrap_or(true),
            restart_limit: self.restart_limit.unwrap_or(usual.restart_limit),
            stale_time: self.stale_time.unwrap_or(usual.stale_time),
            prefixes: PrefixLimits {
                family: PerFamily([self.prefix_limits.ipv4, self.prefix_limits.ipv6]),
                warn_at: self.prefix_limits.warn_at,
                action: match self.prefix_limits.action {
                    ActionName::Warn => PrefixAction::Warn,
                    ActionName::Restart => PrefixAction::Restart(self.prefix_limits.restart_after),
                    ActionName::Down => PrefixAction::StayDown,
                },
            },
        }
    }
}
