//! The result of ADD, in the shape each version of the specification asks for.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    conf::{Dns, VERSIONS, Version},
    error::CniError,
    veth::{GATEWAY, GATEWAY6},
};

/// A device in a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Only since 1.1.0.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Path of the network namespace; empty for the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// What this version does not know is handed on.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, Value>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// An address in a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// `4` or `6`; only before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A result, ours or an earlier plugin's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    pub cni_version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    pub ips: Vec<Ip>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Value>,
    pub dns: Dns,
}

impl Answer {
    /// A result with addresses alone (IPAM plugin).
    pub fn addresses(version: Version, addresses: &[IpNet], dns: Dns) -> Self {
        let ips = addresses.iter().map(|a| ip(version, *a, None)).collect();
        Self { cni_version: version.as_str().into(), ips, dns, ..Self::default() }
    }

    /// A result with one device of the container and its addresses, none of which has a gateway.
    pub fn of_device(version: Version, name: &str, sandbox: String, addresses: &[IpNet], dns: Dns) -> Self {
        let device =
            Interface { name: name.into(), mac: "00:00:00:00:00:00".into(), sandbox, ..Interface::default() };
        let ips = addresses.iter().map(|a| ip(version, *a, Some(0))).collect();
        Self { cni_version: version.as_str().into(), interfaces: vec![device], ips, dns, ..Self::default() }
    }

    /// A result with the pair and its addresses, behind what an earlier plugin of the list made.
    pub fn attached(
        version: Version,
        host: Interface,
        container: Interface,
        addresses: &[IpNet],
        dns: Dns,
        before: Option<Self>,
    ) -> Self {
        let mut answer = before.unwrap_or_default();
        answer.cni_version = version.as_str().into();
        let index = answer.interfaces.len() + 1;
        answer.interfaces.extend([host, container]);
        if version < Version::V1_1_0 {
            answer.interfaces.iter_mut().for_each(|i| i.mtu = 0);
        }
        answer.ips.extend(addresses.iter().map(|a| {
            let gateway = if a.addr().is_ipv4() { GATEWAY.into() } else { GATEWAY6.into() };
            Ip { gateway: Some(gateway), ..ip(version, *a, Some(index)) }
        }));
        if answer.dns == Dns::default() {
            answer.dns = dns;
        }
        answer
    }

    /// The addresses said to be on the device of this name in this namespace.
    pub fn addresses_of(&self, ifname: &str, sandbox: &str) -> Vec<IpNet> {
        let on_it = |i: &Interface| i.name == ifname && i.sandbox == sandbox;
        let ips = self.ips.iter().filter(|ip| {
            let interface = ip.interface.and_then(|i| self.interfaces.get(i));
            interface.is_some_and(on_it)
        });
        ips.map(|ip| ip.address).collect()
    }
}

fn ip(version: Version, address: IpNet, interface: Option<usize>) -> Ip {
    let family = if address.addr().is_ipv4() { "4" } else { "6" };
    let old = version < Version::V1_0_0;
    Ip { version: old.then(|| family.to_owned()), address, gateway: None, interface }
}

/// The error object.
pub fn error(version: &str, e: &CniError) -> Value {
    json!({ "cniVersion": version, "code": e.code, "msg": e.message, "details": e.hint })
}

/// The answer to VERSION.
pub fn versions(asked_in: &str) -> Value {
    json!({ "cniVersion": asked_in, "supportedVersions": VERSIONS })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Interface, Interface) {
        (
            Interface {
                name: "cali1".into(),
                mac: "ee:ee:ee:ee:ee:ee".into(),
                mtu: 1480,
                ..Interface::default()
            },
            Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: 1480,
                sandbox: "/run/netns/x".into(),
                ..Interface::default()
            },
        )
    }

    fn nets() -> [IpNet; 2] {
        ["10.0.0.5/32".parse().unwrap(), "fd00::5/128".parse().unwrap()]
    }

    #[test]
    fn before_1_0_addresses_carry_their_family() {
        let (host, container) = pair();
        let answer = Answer::attached(Version::V0_4_0, host, container, &nets(), Dns::default(), None);
        insta::assert_snapshot!(serde_json::to_string(&answer).unwrap(), @r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cali1","mac":"ee:ee:ee:ee:ee:ee"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x"}],"ips":[{"version":"4","address":"10.0.0.5/32","gateway":"169.254.1.1","interface":1},{"version":"6","address":"fd00::5/128","gateway":"fe80::ecee:eeff:feee:eeee","interface":1}],"dns":{}}"#);
    }

    #[test]
    fn since_1_1_devices_carry_their_mtu() {
        let (host, container) = pair();
        let dns = Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() };
        let answer = Answer::attached(Version::V1_1_0, host, container, &nets(), dns, None);
        insta::assert_snapshot!(serde_json::to_string(&answer).unwrap(), @r#"{"cniVersion":"1.1.0","interfaces":[{"name":"cali1","mac":"ee:ee:ee:ee:ee:ee","mtu":1480},{"name":"eth0","mac":"02:00:00:00:00:01","mtu":1480,"sandbox":"/run/netns/x"}],"ips":[{"address":"10.0.0.5/32","gateway":"169.254.1.1","interface":1},{"address":"fd00::5/128","gateway":"fe80::ecee:eeff:feee:eeee","interface":1}],"dns":{"nameservers":["10.96.0.10"]}}"#);
    }

    #[test]
    fn an_earlier_result_comes_first_and_keeps_its_indices() {
        let (host, container) = pair();
        let before: Answer = serde_json::from_value(json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "net1", "sandbox": "/run/netns/x", "pciID": "0000:1" }],
            "ips": [{ "address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 0 }],
        }))
        .unwrap();
        let answer =
            Answer::attached(Version::V1_0_0, host, container, &nets()[..1], Dns::default(), Some(before));
        assert_eq!(answer.interfaces[0].extra["pciID"], "0000:1");
        assert_eq!(answer.ips[0].interface, Some(0));
        assert_eq!(answer.addresses_of("eth0", "/run/netns/x"), nets()[..1]);
        assert_eq!(answer.addresses_of("net1", "/run/netns/x"), ["192.0.2.2/24".parse::<IpNet>().unwrap()]);
        assert!(answer.addresses_of("eth0", "/run/netns/y").is_empty());
    }
}
