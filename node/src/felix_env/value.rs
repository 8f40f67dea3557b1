//! A variable's text as its field wants it, in every form that Felix takes: seconds without a unit, numbers of any base,
//! words for yes and no, networks of IPv6 in brackets.

use std::time::Duration;

use brindle_config_core::{
    AnyResource, ObjectMeta, Resource, duration,
    felix::{FelixConfigurationSpec, Form},
    validate,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// The value of a field that is acted on, checked as a writer's is. The error says what is expected.
pub(super) fn value(field: &str, form: Form, text: &str) -> Result<Value, String> {
    let value = parsed(form, text.trim()).ok_or_else(|| expected(form))?;
    if value.is_null() {
        return Ok(value);
    }
    let spec = FelixConfigurationSpec::deserialize(json!({field: value})).map_err(|_| expected(form))?;
    let resource = AnyResource::FelixConfiguration(Resource::new(ObjectMeta::named("default"), spec));
    match validate::resource(&resource) {
        Ok(()) => Ok(value),
        Err(e) => Err(e.0.into_iter().map(|e| e.reason).collect::<Vec<_>>().join("; ")),
    }
}

fn parsed(form: Form, text: &str) -> Option<Value> {
    // With Felix, the zero of whatever it is.
    if text.eq_ignore_ascii_case("none") {
        return match form {
            Form::Nets | Form::Ports => Some(json!([])),
            Form::Number(..) => Some(json!(0)),
            Form::Duration => Some(json!("0")),
            Form::Text | Form::PortRange => Some(Value::Null),
            Form::Flag | Form::Word(_) => None,
        };
    }
    match form {
        Form::Flag => flag(text).map(Value::from),
        Form::Number(..) => number(text).map(Value::from),
        Form::Duration => time(text).map(Value::from),
        Form::Word(words) => words.iter().find(|w| w.eq_ignore_ascii_case(text)).map(|w| json!(w)),
        Form::Text | Form::PortRange => Some(json!(text)),
        Form::Nets => Some(items(text).collect()),
        Form::Ports => items(text).map(port).collect(),
    }
}

fn expected(form: Form) -> String {
    match form {
        Form::Flag => "expected true or false".into(),
        Form::Number(from, to) => format!("expected a whole number from {from} to {to}"),
        Form::Duration => "expected seconds, or a duration such as 90s or 1m30s".into(),
        Form::Word(words) => format!("expected one of {}", words.join(", ")),
        Form::Text => "expected a text".into(),
        Form::PortRange => "expected a port or FIRST:LAST".into(),
        Form::Nets => "expected addresses and CIDRs with commas between them, or none".into(),
        Form::Ports => {
            "expected PORT, PROTOCOL:PORT or PROTOCOL:NET:PORT (tcp:[fd00::/8]:179) with commas between them, or none"
                .into()
        }
    }
}

fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "t" | "1" => Some(true),
        "false" | "no" | "n" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// As Go reads numbers of base 0.
fn number(text: &str) -> Option<u32> {
    let text = text.strip_prefix('+').unwrap_or(text).to_ascii_lowercase();
    let based = [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)]
        .into_iter()
        .find_map(|(prefix, radix)| Some((text.strip_prefix(prefix).filter(|d| !d.is_empty())?, radix)));
    let (digits, radix) = based.unwrap_or((text.as_str(), 10));
    if digits.starts_with('+') {
        return None;
    }
    u32::from_str_radix(&digits.replace('_', ""), radix).ok()
}

/// The text of a duration: one, or seconds.
fn time(text: &str) -> Option<String> {
    let seconds = || {
        let seconds = Duration::try_from_secs_f64(text.parse().ok()?).ok()?;
        Some(duration::text(seconds))
    };
    let given = [text.to_owned(), format!("{text}s")].into_iter();
    given.chain(seconds()).find(|t| duration::parse(t).is_ok())
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty())
}

/// `22`, `udp:68`, `udp:0.0.0.0/0:68`, `tcp:[fd00::/8]:179`.
fn port(item: &str) -> Option<Value> {
    let (protocol, rest) = item.split_once(':').unwrap_or(("tcp", item));
    let protocol = protocol.to_ascii_uppercase();
    // An IPv6 network has colons of its own, with brackets around it or without.
    let Some((net, port)) = rest.rsplit_once(':') else {
        return Some(json!({"protocol": protocol, "port": rest.parse::<u16>().ok()?}));
    };
    let net = match net.strip_prefix('[') {
        Some(net) => net.strip_suffix(']')?,
        None => net,
    };
    Some(json!({"protocol": protocol, "net": net, "port": port.parse::<u16>().ok()?}))
}

#[cfg(test)]
mod tests {
    use brindle_config_core::{Kind, felix::form, fields};

    use super::*;

    /// Texts for a field, and what they mean.
    fn samples(field: &str, form: Form) -> Vec<(String, Value)> {
        let texts = |all: &[(&str, Value)]| all.iter().map(|(t, v)| ((*t).to_owned(), v.clone())).collect();
        match form {
            Form::Flag => {
                let yes = ["true", "True", "TRUE", "yes", "Y", "t", "1"].map(|t| (t.to_owned(), json!(true)));
                let no = ["false", "FALSE", "no", "n", "F", "0"].map(|t| (t.to_owned(), json!(false)));
                yes.into_iter().chain(no).collect()
            }
            Form::Number(..) if field.ends_with("MarkMask") => texts(&[
                ("0xff000000", json!(0xff00_0000_u32)),
                ("0XFFFF0000", json!(0xffff_0000_u32)),
                ("4278190080", json!(0xff00_0000_u32)),
                ("0b1111_0000_0000", json!(0xf00)),
            ]),
            Form::Number(from, _) => {
                let mut all: Vec<_> = texts(&[
                    ("100", json!(100)),
                    ("0x64", json!(100)),
                    ("0144", json!(100)),
                    ("+100", json!(100)),
                ]);
                all.extend((from == 0).then(|| ("0".to_owned(), json!(0))));
                all.extend((from == 0).then(|| ("none".to_owned(), json!(0))));
                all
            }
            Form::Duration => texts(&[
                ("60", json!("60s")),
                ("10.5", json!("10.5s")),
                (".5", json!(".5s")),
                ("1e2", json!("1m40s")),
                ("0", json!("0")),
                ("90s", json!("90s")),
                ("1m30s", json!("1m30s")),
            ]),
            Form::Word(words) => words
                .iter()
                .flat_map(|w| {
                    [w.to_string(), w.to_ascii_uppercase(), w.to_ascii_lowercase()].map(|t| (t, json!(w)))
                })
                .collect(),
            Form::Text if field == "natOutgoingAddress" => texts(&[("192.0.2.1", json!("192.0.2.1"))]),
            Form::Text => texts(&[("eth0", json!("eth0")), ("none", Value::Null)]),
            Form::PortRange => texts(&[("40000", json!("40000")), ("32768:65535", json!("32768:65535"))]),
            Form::Nets => {
                texts(&[("10.0.0.1, 10.1.0.0/16", json!(["10.0.0.1", "10.1.0.0/16"])), ("none", json!([]))])
            }
            Form::Ports => texts(&[
                ("none", json!([])),
                ("22", json!([{"protocol": "TCP", "port": 22}])),
                (
                    "tcp:22, UDP:10.0.0.0/8:68,sctp:[fd00::/8]:179,tcp:fd00::/8:5473",
                    json!([
                        {"protocol": "TCP", "port": 22},
                        {"protocol": "UDP", "net": "10.0.0.0/8", "port": 68},
                        {"protocol": "SCTP", "net": "fd00::/8", "port": 179},
                        {"protocol": "TCP", "net": "fd00::/8", "port": 5473},
                    ]),
                ),
            ]),
        }
    }

    #[test]
    fn every_field_takes_the_forms_that_felix_takes() {
        let all = fields::of(Kind::FelixConfiguration).filter_map(|f| Some((f, form(f)?)));
        let mut seen = 0;
        for (field, form) in all {
            for (text, want) in samples(field, form) {
                assert_eq!(value(field, form, &text), Ok(want), "{field}={text}");
                seen += 1;
            }
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn what_a_field_cannot_be_is_told_with_what_it_can() {
        let mut told = String::new();
        for (field, text) in [
            ("ipipEnabled", "maybe"),
            ("ipipMTU", "1400x"),
            ("ipipMTU", "-1"),
            ("ipipMTU", "0x+5"),
            ("ipipMTU", "20"),
            ("deviceRouteProtocol", "300"),
            ("iptablesMarkMask", "0x1ffffffff"),
            ("iptablesMarkMask", "1"),
            ("routeRefreshInterval", "-5"),
            ("routeRefreshInterval", "inf"),
            ("routeRefreshInterval", "9999999999999999999s"),
            ("chainInsertMode", "Apend"),
            ("externalNodesList", "10.0.0.1,nowhere"),
            ("failsafeInboundHostPorts", "tcp:ssh"),
            ("failsafeInboundHostPorts", "tcp:[fd00::/8:179"),
            ("failsafeInboundHostPorts", "icmp:1"),
            ("natOutgoingAddress", "x"),
            ("natPortRange", "9:8"),
        ] {
            let reason = value(field, form(field).unwrap(), text).expect_err(text);
            told.push_str(&format!("{field}={text}: {reason}\n"));
        }
        insta::assert_snapshot!(told);
    }
}
