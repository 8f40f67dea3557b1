//! FelixConfiguration: the fields this version acts on.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{Errors, policy};
use crate::{
    felix::{FelixConfigurationSpec, Form, form},
    policy::IntOrString,
};

pub(super) fn check(name: &str, f: &FelixConfigurationSpec, errors: &mut Errors) {
    let per_node = name.strip_prefix("node.").is_some_and(|n| !n.is_empty());
    if name != "default" && !per_node && !f.extra.contains_key("nodeSelector") {
        let reason = "expected default, node.NAME, or any name with a nodeSelector";
        errors.add("metadata.name", name, reason);
    }
    if let Some(prefixes) = &f.interface_prefix {
        for prefix in prefixes.split(',').map(str::trim) {
            errors.interface("spec.interfacePrefix", prefix, false);
        }
    }
    if let Some(mtu) = f.ipip_mtu.filter(|m| *m != 0 && !(68..=65_515).contains(m)) {
        errors.add("spec.ipipMTU", mtu, "expected 0 (automatic) or 68 to 65515");
    }
    errors.duration("spec.routeRefreshInterval", f.route_refresh_interval.as_ref());
    errors.route_priority("spec.ipv4NormalRoutePriority", f.ipv4_normal_route_priority);
    for (i, node) in f.external_nodes_list.iter().enumerate() {
        if node.parse::<IpAddr>().is_err() && node.parse::<IpNet>().is_err() {
            errors.add(&format!("spec.externalNodesList[{i}]"), node, "expected an IP address or a CIDR");
        }
    }
    settings(f, errors);
}

/// Bits of the mark that kube-proxy and the portmap plugin use.
const FOREIGN_MARKS: u32 = 0xe000;

/// What stays among the other fields and is acted on all the same.
fn settings(f: &FelixConfigurationSpec, errors: &mut Errors) {
    for name in FelixConfigurationSpec::SETTINGS {
        if let Some(value) = f.setting(name).filter(|v| !v.is_null()) {
            setting(name, value, errors);
        }
    }
}

fn setting(name: &str, value: &Value, errors: &mut Errors) {
    let field = format!("spec.{name}");
    let text = value.as_str();
    let mut wrong = |reason: String| {
        let shown = text.map_or_else(|| value.to_string(), str::to_owned);
        errors.add(&field, shown, reason);
    };
    match form(name) {
        Some(Form::Word(allowed))
            if !text.is_some_and(|t| allowed.iter().any(|a| a.eq_ignore_ascii_case(t))) =>
        {
            let meant = text.and_then(|t| crate::suggest::closest(t, allowed.iter().copied()));
            let hint = meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default();
            wrong(format!("expected one of {}{hint}", allowed.join(", ")));
        }
        Some(Form::Flag) if !value.is_boolean() => wrong("expected true or false".into()),
        Some(Form::Ports) => match value.as_array() {
            Some(list) => failsafes(&field, list, errors),
            None => wrong("expected a list of protocol, port and net".into()),
        },
        Some(Form::Number(from, to)) => {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
            let number = number.filter(|n| (from..=to).contains(n));
            if name.ends_with("MarkMask") {
                if number.is_none_or(|m| (m & !FOREIGN_MARKS).count_ones() < 2) {
                    wrong(format!(
                        "expected a number up to {to} with at least two bits beside {FOREIGN_MARKS:#x}, such as {} \
                         (0xffff0000)",
                        0xffff_0000_u32
                    ));
                }
            } else if number.is_none() {
                let what = if name.ends_with("Port") { "a port from " } else { "" };
                wrong(format!("expected {what}{from} to {to}"));
            }
        }
        Some(Form::Duration) => match text {
            Some(t) => errors.duration(&field, Some(&t.to_owned())),
            None => wrong("expected a duration such as 90s".into()),
        },
        Some(Form::PortRange) => {
            if let Err(reason) = nat_port_range(value) {
                wrong(reason);
            }
        }
        Some(Form::Text) => match name {
            "iptablesNATOutgoingInterfaceFilter" if !text.is_some_and(super::device_name) => {
                wrong("expected the name of an interface".into());
            }
            "natOutgoingAddress" if text.is_none_or(|t| t.parse::<IpAddr>().is_err()) => {
                wrong("expected an IP address".into());
            }
            _ if text.is_none() => wrong("expected a text".into()),
            "logPrefix" if !text.is_some_and(|t| t.chars().all(logged)) => {
                wrong(
                    "expected printable ASCII without \", \\ and $; what is no such letter is left out"
                        .into(),
                );
            }
            _ => {}
        },
        _ => {}
    }
}

/// Whether it can stand in `logPrefix`: it neither ends the quotes of iptables-restore and nft nor begins one of nft's
/// variables in them.
pub fn logged(c: char) -> bool {
    (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\' | '$')
}

/// Reads `natPortRange`: `40000`, `"40000"` or `"32768:65535"`.
pub fn nat_port_range(value: &Value) -> Result<(u16, u16), String> {
    let expected = || "expected a port or FIRST:LAST, from 1 to 65535".to_owned();
    let given = match value {
        Value::Number(n) => IntOrString::Int(n.as_i64().ok_or_else(expected)?),
        Value::String(t) => IntOrString::Text(t.clone()),
        _ => return Err(expected()),
    };
    match policy::port(&given)? {
        policy::Port::Range(first, last) if first > 0 => Ok((first, last)),
        _ => Err(expected()),
    }
}

fn failsafes(field: &str, list: &[Value], errors: &mut Errors) {
    for (i, e) in list.iter().enumerate() {
        let mut wrong = |name: &str, value: &Value, reason: String| {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            errors.add(&format!("{field}[{i}]{name}"), shown, reason);
        };
        let Some(entry) = e.as_object() else {
            wrong("", e, "expected protocol, port and net".into());
            continue;
        };
        let given = |name: &str| entry.get(name).filter(|v| !v.is_null());
        if let Some(p) = given("protocol") {
            let named = p.as_str().map(|t| IntOrString::Text(t.to_owned()));
            if named.is_none_or(|p| !matches!(policy::protocol(&p), Ok(6 | 17 | 132))) {
                wrong(".protocol", p, "expected TCP, UDP or SCTP".into());
            }
        }
        match given("port") {
            Some(p) if p.as_u64().is_some_and(|n| n <= u16::MAX.into()) => {}
            other => wrong(".port", other.unwrap_or(&Value::Null), "expected a port from 0 to 65535".into()),
        }
        if let Some(n) = given("net") {
            let read = n.as_str().ok_or_else(|| "expected a CIDR".to_owned()).and_then(policy::net);
            if let Err(reason) = read {
                wrong(".net", n, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(field: &str, value: Value) -> Vec<String> {
        let mut spec = FelixConfigurationSpec::default();
        spec.extra.insert(field.to_owned(), value);
        let mut errors = Errors::default();
        check("default", &spec, &mut errors);
        errors.done().err().map(|e| e.0).unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_calico_takes_is_taken() {
        for (field, value) in [
            ("defaultEndpointToHostAction", json!("ACCEPT")),
            ("iptablesBackend", json!("NFT")),
            ("chainInsertMode", json!("insert")),
            ("iptablesMarkMask", json!(0xffff_0000_u32)),
            ("natPortRange", json!(40_000)),
            ("natPortRange", json!("40000")),
            ("natPortRange", json!("32768:65535")),
            ("natOutgoingAddress", json!("192.0.2.1")),
            ("natOutgoingExclusions", json!("IPPoolsAndHostIPs")),
            ("maxIpsetSize", json!(1_048_576)),
            ("iptablesRefreshInterval", json!("180s")),
            ("failsafeInboundHostPorts", json!([])),
            (
                "failsafeOutboundHostPorts",
                json!([{"protocol": "tcp", "port": 22}, {"port": 0, "net": "10.0.0.0/8"}]),
            ),
            ("vxlanPort", json!(4790)),
            ("logPrefix", Value::Null),
            ("logPrefix", json!("%t %k: /_-{}'*")),
        ] {
            assert_eq!(said(field, value.clone()), Vec::<String>::new(), "{field}: {value}");
        }
    }

    #[test]
    fn every_setting_refuses_what_it_cannot_be() {
        for field in FelixConfigurationSpec::SETTINGS {
            let found = said(field, json!({"a": 1}));
            assert!(
                matches!(&*found, [one] if one.starts_with(&format!("spec.{field} = ")) && one.contains("expected")),
                "{field}: {found:?}"
            );
        }
        let one = |field: &str, value: Value| said(field, value).join("; ");
        for (field, value, wanted) in [
            (
                "defaultEndpointToHostAction",
                json!("Acept"),
                "spec.defaultEndpointToHostAction = 'Acept' (expected one of Drop, Accept, Return; did you mean Accept?)",
            ),
            (
                "natPortRange",
                json!("9:8"),
                "spec.natPortRange = '9:8' (the range ends before it begins; write 8:9)",
            ),
            (
                "natPortRange",
                json!(0),
                "spec.natPortRange = '0' (expected a port or FIRST:LAST, from 1 to 65535)",
            ),
            ("maxIpsetSize", json!(0), "spec.maxIpsetSize = '0' (expected 1 to 4294967295)"),
            (
                "logPrefix",
                json!("cost$"),
                "spec.logPrefix = 'cost$' (expected printable ASCII without \", \\ and $; what is no such letter is \
                 left out)",
            ),
            (
                "iptablesMarkMask",
                json!(0x1_e000),
                "spec.iptablesMarkMask = '122880' (expected a number up to 4294967295 with at least two bits beside \
                 0xe000, such as 4294901760 (0xffff0000))",
            ),
            (
                "failsafeInboundHostPorts",
                json!([{"protocol": "ICMP", "port": 1, "net": "x"}, 5]),
                "spec.failsafeInboundHostPorts[0].protocol = 'ICMP' (expected TCP, UDP or SCTP); \
                 spec.failsafeInboundHostPorts[0].net = 'x' (expected a CIDR such as 10.0.0.0/16, or an IP address); \
                 spec.failsafeInboundHostPorts[1] = '5' (expected protocol, port and net)",
            ),
        ] {
            assert_eq!(one(field, value), wanted);
        }
    }
}
