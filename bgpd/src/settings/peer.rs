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
use crate::peers::filters::compile;

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
        let fail = |field: &str, what: String| self.fail(format!("{at}.{field}"), what);
        if p.as_number.is_some_and(|a| a.0 == 0) {
            return fail("asNumber", "0 is reserved (RFC 7607)".into());
        }
        let asn = p.as_number.map_or(0, |a| a.0);
        let external = asn != 0 && asn != p.local_as_number.map_or(common.asn, |a| a.0);
        if p.reflector_client && external {
            return fail("reflectorClient", format!("AS {asn} is not ours, and only iBGP is reflected"));
        }
        if let Some(source) = p.source_address
            && source.is_ipv4() != address.is_ipv4()
        {
            return fail("sourceAddress", format!("{source} cannot connect to {address}"));
        }
        if matches!(address, IpAddr::V6(a) if a.is_unicast_link_local()) && p.interface.is_none() {
            return fail("address", format!("{address} is link-local; name its interface"));
        }
        if matches!(p.hold_time, Some(1 | 2)) {
            return fail("holdTime", "must be 0 or at least 3 (RFC 4271 section 4.2)".into());
        }
        let hold = p.hold_time.unwrap_or_else(|| PeerConfig::new("", address, asn).hold_time);
        if let Some((field, what)) = checks::times(hold, p.keepalive, p.send_hold_time) {
            return fail(field, what);
        }
        if p.port == Some(0) {
            return fail("port", "expected 1 to 65535".into());
        }
        let texts = [("shutdown", p.shutdown.as_deref()), ("farewell", Some(p.farewell.as_str()))];
        for (field, text) in texts {
            if let Some(what) = text.and_then(checks::text) {
                return fail(field, what);
            }
        }
        if let Some(what) = p.interface.as_deref().and_then(checks::interface) {
            return fail("interface", what);
        }
        let limits = [
            ("maxPrefixes", p.max_prefixes),
            ("prefixLimits.ipv4", p.prefix_limits.ipv4),
            ("prefixLimits.ipv6", p.prefix_limits.ipv6),
        ];
        if let Some((field, _)) = limits.iter().find(|(_, limit)| *limit == Some(0)) {
            return fail(field, "0 lets no route in; reject them with a filter".into());
        }
        if p.restart_time.is_some_and(|t| t > 4095) {
            return fail("restartTime", "at most 4095 (RFC 4724 section 3)".into());
        }
        if p.long_lived_time > LONG_LIVED_MAX {
            return fail("longLivedTime", format!("at most {LONG_LIVED_MAX} (RFC 9494 section 3)"));
        }
        if p.long_lived_time > 0 && p.restart_time == Some(0) {
            return fail("longLivedTime", "needs a restartTime (RFC 9494 section 4.1)".into());
        }
        if p.ttl_security.is_some_and(|h| h > 0) && p.multihop.is_some() {
            return fail("multihop", "ttlSecurity says already how far the peer may be".into());
        }
        if p.prefix_limits.warn_at > 100 {
            return fail("prefixLimits.warnAt", "at most 100 per cent".into());
        }
        if p.prefix_limits.restart_after > 0 && p.prefix_limits.action != ActionName::Restart {
            return fail("prefixLimits.restartAfter", "goes with action: restart".into());
        }
        if p.local_as_number.is_none() && (p.no_prepend.is_some() || p.replace_as.is_some()) {
            let field = if p.no_prepend.is_some() { "noPrepend" } else { "replaceAS" };
            return fail(field, "goes with localASNumber".into());
        }
        let send = match (p.add_path.send_all, NonZeroU8::new(p.add_path.send_best)) {
            (true, Some(_)) => return fail("addPath.sendBest", "sendAll is set".into()),
            (true, None) => Some(AddPathSend::All),
            (false, best) => best.map(AddPathSend::Best),
        };
        let usual = usual_name(address, p.interface.as_deref());
        let mut peer = PeerConfig::new(p.name.unwrap_or(usual), address, asn);
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
        let own_next_hop = PerFamily([p.next_hop_ipv4.map(IpAddr::V4), p.next_hop_ipv6.map(IpAddr::V6)]);
        for (family, field) in Family::ALL.into_iter().zip(["nextHopIPv4", "nextHopIPv6"]) {
            let Some(ours) = own_next_hop[family] else { continue };
            if !peer.families.contains(&family) {
                return fail(field, format!("the session carries no {family} routes; see families"));
            }
            if let Some(what) = checks::unicast(ours) {
                return fail(field, what);
            }
            if matches!(ours, IpAddr::V6(a) if a.is_unicast_link_local()) {
                return fail(field, format!("{ours} is link-local; nobody behind the peer reaches it"));
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
        peer.add_path = AddPath { receive: p.add_path.receive, send };
        peer.ttl = p.ttl_security.filter(|hops| *hops != 0);
        if let Some(file) = p.password_file {
            match self.password(&file) {
                Ok(key) => peer.password = Some(key),
                Err(what) => return fail("passwordFile", what),
            }
        }
        let mut named = Vec::with_capacity(p.filters.len());
        for (k, name) in p.filters.iter().enumerate() {
            match common.filters.get(name) {
                Some(spec) => named.push((name.as_str(), spec)),
                None => {
                    return fail(&format!("filters[{k}]"), format!("there is no filter {name} in filters"));
                }
            }
        }
        match compile(named) {
            // Only a node knows by which device a next hop is reached.
            Ok(policies) if policies.export.reads_interface() || policies.import.reads_interface() => {
                let what = "only brindle-node knows by which device a route leaves; a rule has `interface`";
                return fail("filters", what.into());
            }
            Ok(policies) => {
                peer.import = policies.import;
                peer.export = ExportPolicy {
                    deny: p.export.deny,
                    allow: p.export.allow,
                    filters: policies.export,
                    ..ExportPolicy::default()
                };
            }
            Err(what) => return fail("filters", what),
        }
        let usual = SessionOptions::default();
        peer.session = SessionOptions {
            interface: p.interface,
            hops: p.multihop.filter(|h| *h != 0),
            send_hold: p.send_hold_time.filter(|s| *s != 0),
            delay_open: p.delay_open,
            shutdown: p.shutdown,
            farewell: p.farewell,
            long_lived: p.long_lived_time,
            notification_restart: p.notification_restart.unwrap_or(true),
            restart_limit: p.restart_limit.unwrap_or(usual.restart_limit),
            stale_time: p.stale_time.unwrap_or(usual.stale_time),
            prefixes: PrefixLimits {
                family: PerFamily([p.prefix_limits.ipv4, p.prefix_limits.ipv6]),
                warn_at: p.prefix_limits.warn_at,
                action: match p.prefix_limits.action {
                    ActionName::Warn => PrefixAction::Warn,
                    ActionName::Restart => PrefixAction::Restart(p.prefix_limits.restart_after),
                    ActionName::Down => PrefixAction::StayDown,
                },
            },
        };
        peer.attributes = RouteOptions {
            as_override: p.as_override,
            remove_private: p.remove_private_as,
            local_as_prepend: !p.no_prepend.unwrap_or(true),
            local_as_show_own: !p.replace_as.unwrap_or(true),
            honour_shutdown: p.honour_graceful_shutdown,
            default_route: p.default_originate,
            enforce_first_as: p.enforce_first_as.unwrap_or(true),
            require_policy: !(common.accept_all || p.accept_all),
            own_next_hop,
        };
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
