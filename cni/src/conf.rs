//! The network configuration on standard input. Unknown fields are ignored (a conflist carries fields for others);
//! known ones are checked, and errors name the field.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::Value;

use crate::{
    annotations::{FeatureControl, Wishes},
    env::{Command, NAME_RULE, check_station, is_name},
    error::{CniError, code},
    result::Answer,
    undo,
};

/// Versions of the specification served, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Largest configuration read.
pub const MAX_INPUT: usize = 1024 * 1024;
/// Where the agent listens unless `agent_socket` says otherwise, in this order.
const SOCKETS: [&str; 2] = ["/run/brindle/cni.sock", "/var/lib/brindle/cni.sock"];
/// Where the agent keeps its files unless `state_dir` says otherwise.
pub const STATE_DIR: &str = "/var/lib/brindle";
/// Other IPAM plugins whose addresses our interface may have.
const DELEGATES: [&str; 2] = ["host-local", "static"];
/// What the plugin calls itself in an `ipam` section.
const IPAM: &str = "brindle-ipam";

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const LATEST: Self = Self::V1_1_0;

    /// The version of this name.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "0.3.1" => Some(Self::V0_3_1),
            "0.4.0" => Some(Self::V0_4_0),
            "1.0.0" => Some(Self::V1_0_0),
            "1.1.0" => Some(Self::V1_1_0),
            _ => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

/// The `dns` section; handed on to the result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, expecting = "an object")]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default, expecting = "an object")]
struct RawIpam {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "flag")]
    assign_ipv4: Option<bool>,
    #[serde(deserialize_with = "flag")]
    assign_ipv6: Option<bool>,
    ipv4_pools: Vec<String>,
    ipv6_pools: Vec<String>,
    /// Another plugin's configuration has no place for these but this section.
    agent_socket: String,
    state_dir: String,
    /// For the interface that gets the addresses, where it is another plugin's.
    routes: Vec<Value>,
    /// host-local's; only looked at.
    subnet: Value,
    ranges: Value,
}

impl RawIpam {
    fn takes_pod_cidr(&self) -> bool {
        fn names_it(value: &Value) -> bool {
            match value {
                Value::String(s) => s == "usePodCidr" || s == "usePodCidrIPv6",
                Value::Array(all) => all.iter().any(names_it),
                Value::Object(all) => all.values().any(names_it),
                _ => false,
            }
        }
        names_it(&self.subnet) || names_it(&self.ranges)
    }
}

impl Default for RawIpam {
    fn default() -> Self {
        Self {
            kind: IPAM.into(),
            assign_ipv4: None,
            assign_ipv6: None,
            routes: Vec::new(),
            ipv4_pools: Vec::new(),
            ipv6_pools: Vec::new(),
            agent_socket: String::new(),
            state_dir: String::new(),
            subnet: Value::Null,
            ranges: Value::Null,
        }
    }
}

/// `"true"`, `"false"`, true, false.
fn flag<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(d)? {
        Value::Null => Ok(None),
        Value::Bool(b) => Ok(Some(b)),
        Value::String(s) if s == "true" => Ok(Some(true)),
        Value::String(s) if s == "false" => Ok(Some(false)),
        other => Err(D::Error::custom(format!("expected true or false, found {other}"))),
    }
}

#[derive(Deserialize)]
struct RawConf {
    #[serde(default, rename = "cniVersion")]
    version: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    nodename: String,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    agent_socket: String,
    #[serde(default)]
    state_dir: String,
    #[serde(default)]
    ipam: RawIpam,
    #[serde(default)]
    dns: Dns,
    #[serde(default, rename = "prevResult")]
    prev_result: Option<Value>,
    #[serde(default)]
    policy: Option<Value>,
    #[serde(default)]
    container_settings: ContainerSettings,
    #[serde(default, rename = "runtimeConfig")]
    runtime: RuntimeConfig,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    #[serde(default)]
    gc_dry_run: bool,
    #[serde(default)]
    feature_control: FeatureControl,
}

/// `container_settings`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "an object")]
pub struct ContainerSettings {
    /// Let the pod forward packets.
    pub allow_ip_forwarding: bool,
}

/// `runtimeConfig`, for the capabilities this plugin declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "an object")]
struct RuntimeConfig {
    ips: Vec<String>,
    mac: String,
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: BTreeMap<String, String>,
}

/// One entry of `cni.dev/valid-attachments`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Conf {
    pub version: Version,
    pub name: String,
    /// None: as the agent knows.
    pub nodename: Option<String>,
    /// None: as the agent finds right.
    pub mtu: Option<u32>,
    pub sockets: Vec<PathBuf>,
    pub state_dir: PathBuf,
    pub ipv4: bool,
    pub ipv6: bool,
    pub ipv4_pools: Vec<String>,
    pub ipv6_pools: Vec<String>,
    /// The pools are the pod's own wish: those of its namespace do not count.
    pub pools_of_pod: bool,
    /// `ipam.routes`, which the address plugin hands on to whoever makes the interface.
    pub routes: Vec<Value>,
    /// Addresses asked for by the runtime, else by the pod's annotation.
    pub ips: Vec<IpAddr>,
    /// Addresses the pod brings along (ipAddrsNoIpam): none are taken from pools.
    pub unmanaged: Vec<IpAddr>,
    /// Addresses that lead to the pod beside its own.
    pub floating: Vec<IpAddr>,
    pub mac: Option<brindle_kernel::netlink::Mac>,
    pub dns: Dns,
    pub prev_result: Option<Value>,
    pub container: ContainerSettings,
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// Another IPAM plugin that gives the addresses.
    pub delegate: Option<String>,
    /// Its configuration says `usePodCidr`: the agent knows what that is.
    pub pod_cidr: bool,
    /// GC only says in the agent's log what would go.
    pub gc_dry_run: bool,
    /// What is accepted but has no effect.
    pub warnings: Vec<String>,
}

/// Whether this is another IPAM plugin whose addresses our interface may have.
pub fn is_delegate(ipam: &str) -> bool {
    DELEGATES.contains(&ipam)
}

/// The version the configuration is written in, as far as it can be made out: errors are answered in it.
pub fn version_hint(input: &[u8]) -> String {
    let value: Option<Value> = serde_json::from_slice(input).ok();
    let text = value.as_ref().and_then(|v| v.get("cniVersion")).and_then(Value::as_str);
    text.filter(|t| t.len() < 32).unwrap_or(Version::LATEST.as_str()).to_owned()
}

impl Conf {
    /// Reads and checks a configuration as far as this command needs it: what is wished for concerns ADD alone, and a DEL
    /// must not fail for what an ADD was refused for.
    pub fn parse(input: &[u8], command: Command) -> Result<Self, CniError> {
        if input.iter().all(u8::is_ascii_whitespace) {
            return Err(CniError::new(code::DECODE, "no network configuration on standard input")
                .hint("container runtimes write it there; by hand: CNI_COMMAND=... brindle < FILE"));
        }
        if input.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(match serde_json::from_slice::<Value>(input) {
                Ok(_) => CniError::config("network configuration: expected an object"),
                Err(e) => CniError::new(code::DECODE, format!("network configuration: {e}")),
            });
        }
        let reduced = if command == Command::Del { undo::needed(input) } else { None };
        let mut de = serde_json::Deserializer::from_slice(reduced.as_deref().unwrap_or(input));
        let raw: RawConf = serde_path_to_error::deserialize(&mut de).map_err(|e| {
            let (path, inner) = (e.path().to_string(), e.inner());
            // Broken JSON is code 6; JSON of the wrong shape is an invalid configuration.
            let broken = inner.is_syntax() || inner.is_eof();
            let code = if broken { code::DECODE } else { code::CONFIG };
            let at = if path == "." || broken { String::new() } else { format!("{path}: ") };
            CniError::new(code, format!("network configuration: {at}{inner}"))
        })?;
        de.end().map_err(|e| CniError::new(code::DECODE, format!("network configuration: {e}")))?;
        Self::check(raw, command)
    }

    fn check(raw: RawConf, command: Command) -> Result<Self, CniError> {
        let version = if raw.version.is_empty() {
            return Err(CniError::new(code::VERSION, "network configuration: cniVersion is missing"));
        } else {
            Version::parse(&raw.version).ok_or_else(|| {
                CniError::new(
                    code::VERSION,
                    format!("incompatible CNI versions: the configuration is {:?}", raw.version),
                )
            })?
        };
        if raw.name.is_empty() {
            return Err(CniError::config("name: is missing"));
        }
        if !is_name(&raw.name) {
            return Err(CniError::config(format!("name: {:?} is not valid", raw.name)).hint(NAME_RULE));
        }
        if raw.mtu != 0 && !(68..=65_535).contains(&raw.mtu) {
            return Err(CniError::config(format!("mtu: {} is not between 68 and 65535", raw.mtu)));
        }
        let delegate = is_delegate(&raw.ipam.kind).then(|| raw.ipam.kind.clone());
        // Whoever asks to take it back was given nothing under it.
        let takes_back = matches!(command, Command::Del | Command::Gc);
        if raw.ipam.kind != IPAM && delegate.is_none() && !takes_back {
            return Err(CniError::new(
                code::FIELD,
                format!("ipam.type: {:?} is not supported", raw.ipam.kind),
            )
            .hint(format!("use {IPAM:?}, or one of {}", DELEGATES.join(", "))));
        }
        let asks = command == Command::Add;
        let wishes = if asks {
            Wishes::read(&raw.runtime.annotations, raw.feature_control)?
        } else {
            Wishes::granted(&raw.runtime.annotations, raw.feature_control)
        };
        let configured = (raw.ipam.assign_ipv4.unwrap_or(true), raw.ipam.assign_ipv6.unwrap_or(false));
        let (ipv4, ipv6) = wishes.families.unwrap_or(configured);
        if asks && delegate.is_some() && !(wishes.ips.is_empty() && wishes.unmanaged.is_empty()) {
            return Err(CniError::new(
                code::FIELD,
                format!("the pod's annotation asks for an address, but ipam.type is {:?}", raw.ipam.kind),
            )
            .hint(format!("use {IPAM:?} for this network, or remove the annotation")));
        }
        if asks && !ipv4 && !ipv6 {
            return Err(CniError::config(
                "ipam: assign_ipv4 and assign_ipv6 are both false: no address is asked for",
            )
            .hint("set one of them to true, or leave both out"));
        }
        let pod_cidr = delegate.is_some() && raw.ipam.takes_pod_cidr();
        let pools_of_pod = !(wishes.ipv4_pools.is_empty() && wishes.ipv6_pools.is_empty());
        // A wish for one family says nothing of the other.
        let either = |wished: Vec<String>, configured| if wished.is_empty() { configured } else { wished };
        let ipv4_pools = either(wishes.ipv4_pools, raw.ipam.ipv4_pools);
        let ipv6_pools = either(wishes.ipv6_pools, raw.ipam.ipv6_pools);
        let mut wished = if asks { ips("runtimeConfig.ips", &raw.runtime.ips)? } else { Vec::new() };
        if wished.is_empty() {
            wished = wishes.ips;
        }
        let wished_mac = if asks { mac("runtimeConfig.mac", &raw.runtime.mac)? } else { None };
        let mut warnings = Vec::new();
        if raw.policy.is_some() {
            warnings.push("policy: has no effect; the agent reads policies from its datastore".to_owned());
        }
        Ok(Self {
            version,
            sockets: paths("agent_socket", [&raw.agent_socket, &raw.ipam.agent_socket], &SOCKETS)?,
            state_dir: paths("state_dir", [&raw.state_dir, &raw.ipam.state_dir], &[STATE_DIR])?
                .swap_remove(0),
            ips: wished,
            unmanaged: wishes.unmanaged,
            floating: wishes.floating,
            mac: wished_mac.or(wishes.mac),
            ipv4_pools: pools("ipam.ipv4_pools", ipv4_pools, IpAddr::V4(Ipv4Addr::UNSPECIFIED))?,
            ipv6_pools: pools("ipam.ipv6_pools", ipv6_pools, IpAddr::V6(Ipv6Addr::UNSPECIFIED))?,
            pools_of_pod,
            routes: routes(raw.ipam.routes, command)?,
            pod_cidr,
            name: raw.name,
            nodename: Some(raw.nodename).filter(|n| !n.is_empty()),
            mtu: Some(raw.mtu).filter(|m| *m != 0),
            ipv4,
            ipv6,
            dns: raw.dns,
            prev_result: raw.prev_result.filter(|v| !v.is_null()),
            container: raw.container_settings,
            valid_attachments: raw.valid_attachments,
            delegate,
            gc_dry_run: raw.gc_dry_run,
            warnings,
        })
    }

    /// The earlier plugin's result, or for CHECK our own.
    pub fn prev_answer(&self) -> Result<Option<Answer>, CniError> {
        let Some(value) = &self.prev_result else { return Ok(None) };
        serde_path_to_error::deserialize(value)
            .map(Some)
            .map_err(|e| CniError::config(format!("prevResult.{}: {}", e.path(), e.inner())))
    }
}

fn paths(field: &str, given: [&str; 2], defaults: &[&str]) -> Result<Vec<PathBuf>, CniError> {
    let Some(given) = given.into_iter().find(|g| !g.is_empty()) else {
        return Ok(defaults.iter().map(PathBuf::from).collect());
    };
    if !given.starts_with('/') {
        return Err(CniError::config(format!("{field}: {given:?} is not an absolute path")));
    }
    Ok(vec![PathBuf::from(given)])
}

fn ips(field: &str, texts: &[String]) -> Result<Vec<IpAddr>, CniError> {
    let parse = |t: &String| {
        let bare = t.split('/').next().unwrap_or(t);
        bare.parse().map_err(|_| CniError::config(format!("{field}: {t:?} is not an IP address")))
    };
    texts.iter().map(parse).collect()
}

fn mac(field: &str, text: &str) -> Result<Option<brindle_kernel::netlink::Mac>, CniError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |what: &str| CniError::config(format!("{field}: {text:?} is {what}"));
    let mac = text.parse().map_err(|_| wrong("not a MAC address"))?;
    check_station(mac).map_err(wrong)?;
    Ok(Some(mac))
}

/// Routes for an interface: objects with a network `dst`, and perhaps a gateway `gw`. DEL and the like do not need them.
fn routes(all: Vec<Value>, command: Command) -> Result<Vec<Value>, CniError> {
    if !matches!(command, Command::Add) {
        return Ok(Vec::new());
    }
    for (i, route) in all.iter().enumerate() {
        let text = |key: &str| route.get(key).map(|v| v.as_str().unwrap_or_default());
        let dst = text("dst").is_some_and(|t| t.parse::<ipnet::IpNet>().is_ok());
        let gateway = text("gw").is_none_or(|t| t.parse::<IpAddr>().is_ok());
        if !(dst && gateway) {
            return Err(CniError::config(format!("ipam.routes[{i}]: {route} is no route"))
                .hint("write it like {\"dst\": \"10.0.0.0/16\", \"gw\": \"10.0.0.1\"}; gw may be left out"));
        }
    }
    Ok(all)
}

fn pools(field: &str, pools: Vec<String>, family: IpAddr) -> Result<Vec<String>, CniError> {
    for pool in &pools {
        let wrong_family = pool.parse::<ipnet::IpNet>().is_ok_and(|n| n.addr().is_ipv4() != family.is_ipv4());
        if pool.is_empty() || wrong_family {
            return Err(CniError::config(format!(
                "{field}: {pool:?} is no pool name and no CIDR of this family"
            )));
        }
    }
    Ok(pools)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Result<Conf, CniError> {
        Conf::parse(json.as_bytes(), Command::Add)
    }

    #[test]
    fn calicos_configuration_is_accepted_and_what_has_no_effect_is_said() {
        let conf = parse(
            r#"{"cniVersion":"1.0.0","name":"k8s-pod-network","type":"brindle","log_level":"info","mtu":0,
                "datastore_type":"kubernetes","nodename":"node1","ipam":{"type":"brindle-ipam","assign_ipv4":"true"},
                "policy":{"type":"k8s"},"kubernetes":{"kubeconfig":"/etc/x"}}"#,
        )
        .unwrap();
        assert_eq!((conf.ipv4, conf.ipv6, conf.mtu), (true, false, None));
        assert_eq!(conf.nodename.as_deref(), Some("node1"));
        assert_eq!(conf.sockets.len(), 2);
        assert_eq!(conf.warnings.len(), 1);
    }

    #[test]
    fn a_pods_annotations_come_before_the_configuration_and_after_the_runtime() {
        let conf = |ips: &str| {
            parse(&format!(
                r#"{{"cniVersion":"1.0.0","name":"n","ipam":{{"ipv4_pools":["red"]}},"runtimeConfig":{{"ips":[{ips}],
                "io.kubernetes.cri.pod-annotations":{{"cni.projectcalico.org/ipv4pools":"[\"blue\"]",
                "cni.projectcalico.org/ipAddrs":"[\"10.0.0.9\"]","cni.projectcalico.org/hwAddr":"02:00:00:00:00:09",
                "cni.projectcalico.org/ipFamilies":"[\"IPv4\",\"IPv6\"]"}}}}}}"#
            ))
            .unwrap()
        };
        let c = conf("");
        assert_eq!(
            (c.ipv4_pools, c.pools_of_pod, c.ipv4, c.ipv6),
            (vec!["blue".to_owned()], true, true, true)
        );
        assert_eq!(c.ips, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(c.mac.unwrap().to_string(), "02:00:00:00:00:09");
        assert_eq!(conf("\"10.0.0.3\"").ips, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn pools_of_a_pod_for_one_family_leave_the_other_as_configured() {
        let conf = |family: &str, pool: &str| {
            let conf = parse(&format!(
                r#"{{"cniVersion":"1.0.0","name":"n","ipam":{{"ipv4_pools":["four"],"ipv6_pools":["six"]}},
                "runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{{
                "cni.projectcalico.org/{family}pools":"[\"{pool}\"]"}}}}}}"#
            ))
            .unwrap();
            (conf.ipv4_pools.concat(), conf.ipv6_pools.concat(), conf.pools_of_pod)
        };
        assert_eq!(conf("ipv4", "blue"), ("blue".into(), "six".into(), true));
        assert_eq!(conf("ipv6", "blue"), ("four".into(), "blue".into(), true));
    }

    #[test]
    fn every_error_has_its_code_and_names_the_field() {
        let cases = [
            ("", 6, "no network configuration"),
            ("{", 6, "EOF"),
            ("nonsense", 6, "expected"),
            (r#"{"cniVersion":"1.0.0","name":"n"} x"#, 6, "trailing"),
            ("[]", 7, "expected an object"),
            (r#"{"name":"n"}"#, 1, "cniVersion is missing"),
            (r#"{"cniVersion":"9.9.9","name":"n"}"#, 1, "\"9.9.9\""),
            (r#"{"cniVersion":"1.0.0"}"#, 7, "name: is missing"),
            (r#"{"cniVersion":"1.0.0","name":"a/b"}"#, 7, "name: \"a/b\""),
            (r#"{"cniVersion":"1.0.0","name":"n","mtu":"big"}"#, 7, "mtu: invalid type"),
            (r#"{"cniVersion":"1.0.0","name":"n","mtu":20}"#, 7, "mtu: 20"),
            (r#"{"cniVersion":"1.0.0","name":"n","ipam":{"type":"dhcp"}}"#, 2, "ipam.type: \"dhcp\""),
            (
                r#"{"cniVersion":"1.0.0","name":"n","ipam":{"type":"host-local"},"runtimeConfig":{
                    "io.kubernetes.cri.pod-annotations":{"cni.projectcalico.org/ipAddrs":"[\"10.0.0.1\"]"}}}"#,
                2,
                "ipam.type is \"host-local\"",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","ipam":{"assign_ipv4":"maybe"}}"#, 7, "ipam.assign_ipv4"),
            (r#"{"cniVersion":"1.0.0","name":"n","ipam":{"routes":[{"dst":"all"}]}}"#, 7, "ipam.routes[0]"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","ipam":{"assign_ipv4":false}}"#,
                7,
                "no address is asked for",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","ipam":{"ipv4_pools":["fd00::/64"]}}"#,
                7,
                "ipam.ipv4_pools",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","ipam":{"ipv4_pools":[7]}}"#, 7, "ipam.ipv4_pools[0]"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","ipam":null}"#,
                7,
                "ipam: invalid type: null, expected an object",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"01:00:5e:00:00:01"}}"#,
                7,
                "runtimeConfig.mac: \"01:00:5e:00:00:01\" is not the address of one station",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"ee:ee:ee:ee:ee:ee"}}"#,
                7,
                "runtimeConfig.mac: \"ee:ee:ee:ee:ee:ee\" is what the host's end of every pod has",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","agent_socket":"cni.sock"}"#, 7, "agent_socket"),
            (r#"{"cniVersion":"1.0.0","name":"n","state_dir":"x"}"#, 7, "state_dir"),
            (r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"ips":["x"]}}"#, 7, "runtimeConfig.ips"),
        ];
        for (json, code, want) in cases {
            let e = parse(json).unwrap_err();
            assert_eq!(e.code, code, "{json}: {e}");
            assert!(e.message.contains(want), "{json}: {e}");
            assert!(!e.hint.is_empty(), "{json}: what to do about it is not said");
        }
    }

    #[test]
    fn what_an_add_is_refused_for_hinders_no_other_command() {
        let annotated = |name: &str, value: &str| {
            format!(
                r#"{{"cniVersion":"1.1.0","name":"n","runtimeConfig":{{
                    "io.kubernetes.cri.pod-annotations":{{"cni.projectcalico.org/{name}":{value:?}}}}}}}"#
            )
        };
        let wishes = [
            annotated("ipAddrs", "garbage"),
            annotated("ipAddrsNoIpam", r#"["192.0.2.7"]"#),
            annotated("hwAddr", "x"),
            annotated("ipFamilies", "[]"),
            annotated("floatingIPs", r#"["192.0.2.1"]"#),
            annotated("ipv4pools", "{}"),
            r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"ips":["x"],"mac":"y"}}"#.to_owned(),
            r#"{"cniVersion":"1.1.0","name":"n","ipam":{"assign_ipv4":false}}"#.to_owned(),
        ];
        for json in &wishes {
            assert!(parse(json).is_err(), "{json}");
            for command in [Command::Del, Command::Check, Command::Gc] {
                let conf = Conf::parse(json.as_bytes(), command).unwrap();
                assert!(conf.ips.is_empty() && conf.unmanaged.is_empty() && conf.mac.is_none(), "{json}");
            }
        }
        // CHECK must know that such addresses have no record.
        let allowed = annotated("ipAddrsNoIpam", r#"["192.0.2.7"]"#).replacen(
            '{',
            r#"{"feature_control":{"ip_addrs_no_ipam":true},"#,
            1,
        );
        assert_eq!(Conf::parse(allowed.as_bytes(), Command::Check).unwrap().unmanaged.len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Conf::parse(&bytes, Command::Add);
            let _ = Conf::parse(&bytes, Command::Del);
            let _ = version_hint(&bytes);
        }
    }
}
