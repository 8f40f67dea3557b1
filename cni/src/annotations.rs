//! What a pod's annotations wish for (Calico's `cni.projectcalico.org/…`), as the runtime hands them over: containerd and
//! CRI-O do for a configuration that declares the capability `io.kubernetes.cri.pod-annotations`. No access to a datastore
//! is needed for it. What cannot be had is refused, never left out silently.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_kernel::netlink::Mac;
use serde::Deserialize;

use crate::{
    env::check_station,
    error::{CniError, code},
};

const PREFIX: &str = "cni.projectcalico.org/";

/// Which annotations the configuration lets pods use (`feature_control`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "an object")]
pub struct FeatureControl {
    pub ip_addrs_no_ipam: bool,
    pub floating_ips: bool,
}

/// The wishes of one pod; empty where it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    pub ipv4_pools: Vec<String>,
    pub ipv6_pools: Vec<String>,
    /// Addresses of Brindle's pools.
    pub ips: Vec<IpAddr>,
    /// Addresses nobody manages.
    pub unmanaged: Vec<IpAddr>,
    /// Addresses that lead to the pod's own.
    pub floating: Vec<IpAddr>,
    /// Whether an IPv4 and an IPv6 address are wanted.
    pub families: Option<(bool, bool)>,
    pub mac: Option<Mac>,
}

impl Wishes {
    /// What an ADD was granted and a later command has to know: that the pod's addresses have no record. What was refused
    /// then is no concern of it.
    pub fn granted(annotations: &BTreeMap<String, String>, allowed: FeatureControl) -> Self {
        let unmanaged = Self::read(annotations, allowed).map(|w| w.unmanaged).unwrap_or_default();
        Self { unmanaged, ..Self::default() }
    }

    /// Reads them. Other annotations mean nothing here.
    pub fn read(annotations: &BTreeMap<String, String>, allowed: FeatureControl) -> Result<Self, CniError> {
        let get = |name: &str| annotations.get(&format!("{PREFIX}{name}")).filter(|v| !v.is_empty());
        let list = |name: &str| get(name).map_or_else(|| Ok(Vec::new()), |text| words(name, text));
        let out = Self {
            ipv4_pools: list("ipv4pools")?,
            ipv6_pools: list("ipv6pools")?,
            ips: addresses("ipAddrs", &list("ipAddrs")?)?,
            unmanaged: addresses("ipAddrsNoIpam", &list("ipAddrsNoIpam")?)?,
            floating: each("floatingIPs", &list("floatingIPs")?)?,
            families: get("ipFamilies").map(|text| families(&words("ipFamilies", text)?)).transpose()?,
            mac: get("hwAddr").map(|text| mac(text)).transpose()?,
        };
        if !out.unmanaged.is_empty() && !allowed.ip_addrs_no_ipam {
            return Err(wrong("ipAddrsNoIpam", "is not allowed by the network configuration")
                .hint("set feature_control.ip_addrs_no_ipam there, or use ipAddrs"));
        }
        if !out.unmanaged.is_empty() && !out.ips.is_empty() {
            return Err(wrong("ipAddrsNoIpam", "and ipAddrs cannot be used together"));
        }
        if get("floatingIPs").is_some() && !allowed.floating_ips {
            let error = wrong("floatingIPs", "is not allowed by the network configuration");
            return Err(CniError { code: code::FIELD, ..error }.hint(
                "set feature_control.floating_ips there and floatingIPs of the FelixConfiguration to Enabled",
            ));
        }
        Ok(out)
    }
}

fn wrong(name: &str, what: impl std::fmt::Display) -> CniError {
    CniError::config(format!("the pod's annotation {PREFIX}{name} {what}"))
}

fn words(name: &str, text: &str) -> Result<Vec<String>, CniError> {
    serde_json::from_str(text).map_err(|e| {
        wrong(name, format!("is no JSON list of texts: {e}")).hint("write it like [\"10.0.0.0/16\"]")
    })
}

/// Any number; each once.
fn each(name: &str, texts: &[String]) -> Result<Vec<IpAddr>, CniError> {
    let mut out = Vec::new();
    for text in texts {
        let ip: IpAddr =
            text.parse().map_err(|_| wrong(name, format!("has {text:?}, which is no address")))?;
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            return Err(wrong(name, format!("has {text:?}, which cannot lead to a pod")));
        }
        if !out.contains(&ip) {
            out.push(ip);
        }
    }
    Ok(out)
}

/// At most one of each family.
fn addresses(name: &str, texts: &[String]) -> Result<Vec<IpAddr>, CniError> {
    let mut out = Vec::new();
    for text in texts {
        let ip: IpAddr =
            text.parse().map_err(|_| wrong(name, format!("has {text:?}, which is no address")))?;
        if out.iter().any(|o: &IpAddr| o.is_ipv4() == ip.is_ipv4()) {
            return Err(wrong(name, "has more than one address of a family"));
        }
        out.push(ip);
    }
    Ok(out)
}

fn families(texts: &[String]) -> Result<(bool, bool), CniError> {
    let mut out = (false, false);
    for text in texts {
        match text.as_str() {
            "IPv4" => out.0 = true,
            "IPv6" => out.1 = true,
            other => return Err(wrong("ipFamilies", format!("has {other:?}, not IPv4 or IPv6"))),
        }
    }
    if out == (false, false) {
        return Err(wrong("ipFamilies", "names no family"));
    }
    Ok(out)
}

fn mac(text: &str) -> Result<Mac, CniError> {
    let mac = text.parse().map_err(|_| wrong("hwAddr", format!("is {text:?}, which is no MAC address")))?;
    check_station(mac).map_err(|why| wrong("hwAddr", format!("is {text:?}, which is {why}")))?;
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)], allowed: FeatureControl) -> Result<Wishes, CniError> {
        let all = pairs.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned()));
        Wishes::read(&all.chain([("other/ipAddrs".to_owned(), "x".to_owned())]).collect(), allowed)
    }

    #[test]
    fn every_wish_is_read() {
        let all = read(
            &[
                ("ipv4pools", r#"["10.0.0.0/16","blue"]"#),
                ("ipv6pools", r#"["fd00::/64"]"#),
                ("ipAddrs", r#"["10.0.0.7","fd00::7"]"#),
                ("ipFamilies", r#"["IPv4"]"#),
                ("hwAddr", "02:00:00:00:00:07"),
            ],
            FeatureControl::default(),
        )
        .unwrap();
        assert_eq!(all.ipv4_pools, ["10.0.0.0/16", "blue"]);
        assert_eq!(all.ipv6_pools, ["fd00::/64"]);
        assert_eq!(all.ips.len(), 2);
        assert_eq!(all.families, Some((true, false)));
        assert_eq!(all.mac.unwrap().to_string(), "02:00:00:00:00:07");
        let on = FeatureControl { ip_addrs_no_ipam: true, floating_ips: false };
        assert_eq!(read(&[("ipAddrsNoIpam", r#"["192.0.2.7"]"#)], on).unwrap().unmanaged.len(), 1);
        let floating = [("floatingIPs", r#"["192.0.2.1","fd00::9","192.0.2.2"]"#)];
        let e = read(&floating, on).unwrap_err();
        assert!(e.code == 2 && e.message.contains("floatingIPs is not allowed"), "{e}");
        let allowed = FeatureControl { floating_ips: true, ..on };
        assert_eq!(read(&floating, allowed).unwrap().floating.len(), 3);
        assert_eq!(read(&[("ipAddrs", "")], on).unwrap(), Wishes::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let on = FeatureControl { ip_addrs_no_ipam: true, floating_ips: true };
        let cases = [
            (vec![("ipAddrs", "10.0.0.7")], 7, "ipAddrs is no JSON list"),
            (vec![("ipAddrs", r#"["ten"]"#)], 7, "\"ten\", which is no address"),
            (vec![("ipAddrs", r#"["10.0.0.7","10.0.0.8"]"#)], 7, "more than one address"),
            (vec![("ipAddrs", r#"["10.0.0.7"]"#), ("ipAddrsNoIpam", r#"["10.0.0.8"]"#)], 7, "together"),
            (vec![("ipFamilies", r#"["IPv5"]"#)], 7, "\"IPv5\""),
            (vec![("ipFamilies", "[]")], 7, "no family"),
            (vec![("hwAddr", "x")], 7, "no MAC address"),
            (vec![("hwAddr", "ff:ff:ff:ff:ff:ff")], 7, "not the address of one station"),
            (vec![("hwAddr", "00:00:00:00:00:00")], 7, "not the address of one station"),
            (vec![("hwAddr", "ee:ee:ee:ee:ee:ee")], 7, "what the host's end of every pod has"),
            (vec![("ipv4pools", "{}")], 7, "ipv4pools is no JSON list"),
            (vec![("floatingIPs", "192.0.2.1")], 7, "floatingIPs is no JSON list"),
            (vec![("floatingIPs", r#"["192.0.2.1/32"]"#)], 7, "\"192.0.2.1/32\", which is no address"),
            (vec![("floatingIPs", r#"["127.0.0.1"]"#)], 7, "cannot lead to a pod"),
        ];
        for (pairs, code, want) in cases {
            let e = read(&pairs, on).unwrap_err();
            assert!(e.code == code && e.message.contains(want), "{pairs:?}: {e}");
        }
        let e = read(&[("ipAddrsNoIpam", r#"["192.0.2.7"]"#)], FeatureControl::default()).unwrap_err();
        assert!(e.message.contains("not allowed"), "{e}");
    }
}
