//! Addresses from another IPAM plugin (`ipam.type` host-local or static) on our interface. It is called as the
//! specification says: found in CNI_PATH, the same environment, the whole configuration on its standard input.

use std::{
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    conf::Dns,
    error::{CniError, code},
    result::Answer,
};

/// The configuration with the node's pod CIDRs where it says `usePodCidr` (IPv4, else what there is) or `usePodCidrIPv6`.
pub(super) fn with_pod_cidrs(input: &[u8], cidrs: &[IpNet], must: bool) -> Result<Vec<u8>, CniError> {
    fn fill(
        value: &mut Value,
        find: &dyn Fn(&str) -> Option<Result<String, CniError>>,
    ) -> Result<(), CniError> {
        match value {
            Value::String(s) => {
                if let Some(net) = find(s) {
                    *s = net?;
                }
            }
            Value::Array(all) => all.iter_mut().try_for_each(|v| fill(v, find))?,
            Value::Object(all) => all.values_mut().try_for_each(|v| fill(v, find))?,
            _ => {}
        }
        Ok(())
    }
    let find = |word: &str| {
        let (any, v6) = match word {
            "usePodCidr" => ("0.0.0.0/0", false),
            "usePodCidrIPv6" => ("::/0", true),
            _ => return None,
        };
        let family = cidrs.iter().find(|n| n.addr().is_ipv6() == v6);
        Some(match family.or(cidrs.first().filter(|_| !v6)) {
            Some(net) => Ok(net.to_string()),
            None if !must => Ok(any.to_owned()),
            None => Err(CniError::new(
                code::TRY_AGAIN,
                format!("ipam: {word}: this node has no pod CIDR of that family yet"),
            )
            .hint("wait until the cluster has given the node one (Node status.podCIDRs), or write the subnet itself")),
        })
    };
    let broken = |e: serde_json::Error| CniError::new(code::DECODE, format!("network configuration: {e}"));
    let mut conf: Value = serde_json::from_slice(input).map_err(broken)?;
    if let Some(ipam) = conf.get_mut("ipam") {
        fill(ipam, &find)?;
    }
    serde_json::to_vec(&conf).map_err(broken)
}

/// Another IPAM plugin.
#[derive(Clone, Debug)]
pub(crate) struct Delegate {
    kind: String,
    input: Vec<u8>,
}

/// What it gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub addresses: Vec<IpNet>,
    /// Networks that lie behind the interface. Gateways it names are on a link the pod does not have.
    pub routes: Vec<IpNet>,
    pub dns: Dns,
}

/// The destinations of routes as results and configurations have them; fails with one that has none.
pub(super) fn destinations(routes: &[Value]) -> Result<Vec<IpNet>, &Value> {
    let dst = |route: &Value| route.get("dst")?.as_str()?.parse::<IpNet>().ok();
    routes.iter().map(|route| dst(route).map(|net| net.trunc()).ok_or(route)).collect()
}

/// The newest version of the specification, and those before it with results of the same form for addresses.
const NEWEST: &str = "1.1.0";
const OLDER: [&str; 2] = ["1.0.0", "0.4.0"];

/// What to do about an answer of the other plugin that does not say so itself.
const ITS_OWN: &str = "see what its configuration, the section ipam, asks of it";

impl Delegate {
    /// `input` is the network configuration as it came.
    pub(crate) fn new(kind: &str, input: &[u8]) -> Self {
        Self { kind: kind.to_owned(), input: input.to_vec() }
    }

    /// ADD: its addresses, each for the pod alone, and what it says beside them.
    pub(crate) fn add(&self) -> Result<Given, CniError> {
        let out = self.call("ADD")?;
        let answer: Answer = serde_json::from_slice(&out).map_err(|e| {
            CniError::new(code::DECODE, format!("ipam plugin {}: its result does not decode: {e}", self.kind))
                .hint(ITS_OWN)
        })?;
        if answer.ips.is_empty() {
            return Err(CniError::new(
                code::FAILED,
                format!("ipam plugin {}: its result has no address", self.kind),
            )
            .hint(ITS_OWN));
        }
        let routes = destinations(&answer.routes).map_err(|route| {
            let what = format!("ipam plugin {}: its result has {route}, which is no route", self.kind);
            CniError::new(code::DECODE, what).hint(ITS_OWN)
        })?;
        let addresses = answer.ips.iter().map(|ip| IpNet::from(ip.address.addr())).collect();
        Ok(Given { addresses, routes, dns: answer.dns })
    }

    /// The ranges that its configuration lets it give addresses of (host-local's; another's says the addresses themselves).
    pub(crate) fn ranges(&self) -> Vec<(IpAddr, IpAddr)> {
        let conf: Value = serde_json::from_slice(&self.input).unwrap_or_default();
        let Some(ipam) = conf.get("ipam") else { return Vec::new() };
        let sets = ipam.get("ranges").and_then(Value::as_array).into_iter().flatten();
        let all = sets.filter_map(Value::as_array).flatten().chain([ipam]);
        all.filter_map(|range| {
            let text = |key: &str| range.get(key).and_then(Value::as_str);
            let subnet: IpNet = text("subnet")?.parse().ok()?;
            let bound =
                |key: &str| text(key).and_then(|t| t.parse::<IpAddr>().ok()).filter(|ip| subnet.contains(ip));
            Some((
                bound("rangeStart").unwrap_or_else(|| subnet.network()),
                bound("rangeEnd").unwrap_or_else(|| subnet.broadcast()),
            ))
        })
        .collect()
    }

    pub(crate) fn del(&self) -> Result<(), CniError> {
        self.call("DEL").map(drop)
    }

    pub(crate) fn check(&self) -> Result<(), CniError> {
        self.call("CHECK").map(drop)
    }

    /// STATUS or GC, if it is new enough to know them.
    pub(crate) fn forward(&self, verb: &str) -> Result<(), CniError> {
        if self.versions()?.iter().any(|v| v == NEWEST) {
            self.run(verb, &self.input)?;
        }
        Ok(())
    }

    /// The versions it speaks.
    fn versions(&self) -> Result<Vec<String>, CniError> {
        let out = self.run("VERSION", br#"{"cniVersion":"1.1.0"}"#)?;
        let versions: Value = serde_json::from_slice(&out).unwrap_or_default();
        let all = versions.pointer("/supportedVersions").and_then(Value::as_array);
        Ok(all.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect())
    }

    fn call(&self, verb: &str) -> Result<Vec<u8>, CniError> {
        self.run(verb, &self.spoken()?)
    }

    /// The configuration in a version the program speaks: those of many nodes are older than 1.1.0, and what that brought
    /// is for nobody who only gives addresses.
    fn spoken(&self) -> Result<Vec<u8>, CniError> {
        let broken =
            |e: serde_json::Error| CniError::new(code::DECODE, format!("network configuration: {e}"));
        let mut conf: Value = serde_json::from_slice(&self.input).map_err(broken)?;
        if conf.get("cniVersion").is_none_or(|v| v != NEWEST) {
            return Ok(self.input.clone());
        }
        let versions = self.versions()?;
        let older = OLDER.iter().find(|v| versions.iter().any(|known| known == *v));
        let (false, Some(older)) = (versions.iter().any(|v| v == NEWEST), older) else {
            return Ok(self.input.clone());
        };
        conf["cniVersion"] = (*older).into();
        if let Some(version) = conf.pointer_mut("/prevResult/cniVersion") {
            *version = (*older).into();
        }
        serde_json::to_vec(&conf).map_err(broken)
    }

    fn run(&self, verb: &str, input: &[u8]) -> Result<Vec<u8>, CniError> {
        let program = self.find()?;
        let failed = |e: std::io::Error| CniError::new(code::IO, format!("{}: {e}", program.display()));
        let mut child = Process::new(&program)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that refuses before it reads has said why.
            let _ = stdin.write_all(input);
        }
        let out = child.wait_with_output().map_err(failed)?;
        if out.status.success() {
            return Ok(out.stdout);
        }
        let said: Option<CniError> = serde_json::from_slice(&out.stdout).ok();
        Err(match said {
            Some(e) => CniError::new(e.code, format!("ipam plugin {}: {}", self.kind, e.message))
                .hint(ITS_OWN)
                .hint(e.hint),
            None => CniError::new(code::FAILED, format!("ipam plugin {} failed: {}", self.kind, out.status))
                .hint(ITS_OWN),
        })
    }

    fn find(&self) -> Result<PathBuf, CniError> {
        let path = std::env::var_os("CNI_PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).filter(|d| d.is_absolute()).map(|d| d.join(&self.kind));
        found.into_iter().find(|p| Path::is_file(p)).ok_or_else(|| {
            CniError::env(format!("ipam.type: {:?} is in no folder of CNI_PATH {path:?}", self.kind))
                .hint("install it there: it is one of the reference CNI plugins")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_are_read_as_host_local_reads_them() {
        let ranges = |ipam: &str| {
            let input = format!(r#"{{"name":"n","ipam":{ipam}}}"#);
            let text = |(a, b): (IpAddr, IpAddr)| format!("{a}-{b}");
            Delegate::new("host-local", input.as_bytes()).ranges().into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(ranges(r#"{"subnet":"10.1.0.0/24"}"#), ["10.1.0.0-10.1.0.255"]);
        assert_eq!(
            ranges(
                r#"{"ranges":[[{"subnet":"10.1.0.0/16","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.9"},{"subnet":"10.2.0.0/30"}],
                [{"subnet":"fd00::/126"}]]}"#
            ),
            ["10.1.2.0-10.1.2.9", "10.2.0.0-10.2.0.3", "fd00::-fd00::3"]
        );
        for nothing in ["{}", "null", r#"{"subnet":5,"ranges":[7,[{"subnet":"x"}]]}"#] {
            assert_eq!(ranges(nothing), Vec::<String>::new(), "{nothing}");
        }
    }

    #[test]
    fn the_nodes_cidrs_stand_where_the_words_stood() {
        let conf = br#"{"name":"usePodCidr","ipam":{"type":"host-local","subnet":"usePodCidr",
            "ranges":[[{"subnet":"usePodCidrIPv6"}]]}}"#;
        let fill = |cidrs: &[&str], must| {
            let cidrs: Vec<IpNet> = cidrs.iter().map(|c| c.parse().unwrap()).collect();
            with_pod_cidrs(conf, &cidrs, must).map(|o| serde_json::from_slice::<Value>(&o).unwrap())
        };
        let both = fill(&["fd00:1::/64", "10.1.0.0/24"], true).unwrap();
        assert_eq!(both["ipam"]["subnet"], "10.1.0.0/24");
        assert_eq!(both["ipam"]["ranges"][0][0]["subnet"], "fd00:1::/64");
        assert_eq!(both["name"], "usePodCidr", "only the ipam section is filled");
        let e = fill(&["10.1.0.0/24"], true).unwrap_err();
        assert!(e.code == code::TRY_AGAIN && e.message.contains("usePodCidrIPv6"), "{e}");
        // A DEL goes by the container; without the agent any subnet serves it.
        assert_eq!(fill(&[], false).unwrap()["ipam"]["subnet"], "0.0.0.0/0");
    }
}
