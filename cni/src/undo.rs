//! What a DEL needs of a network configuration. A runtime repeats a DEL until it succeeds, and a pod whose DEL can never
//! succeed can never be deleted: so all else is left out before it is looked at, whatever shape it has.

use serde_json::{Map, Value};

const FIELDS: [&str; 6] = ["cniVersion", "name", "agent_socket", "state_dir", "ipam", "policy"];
const IPAM: [&str; 5] = ["type", "agent_socket", "state_dir", "subnet", "ranges"];

/// The configuration with what a DEL needs alone; none for what is no JSON object.
pub(crate) fn needed(input: &[u8]) -> Option<Vec<u8>> {
    let Ok(Value::Object(mut conf)) = serde_json::from_slice(input) else { return None };
    keep(&mut conf, &FIELDS);
    match conf.get_mut("ipam") {
        Some(Value::Object(ipam)) => {
            keep(ipam, &IPAM);
            // Only text is a place; what names none was of no use to the ADD either.
            ipam.retain(|key, value| value.is_string() || matches!(key.as_str(), "subnet" | "ranges"));
        }
        _ => drop(conf.remove("ipam")),
    }
    serde_json::to_vec(&conf).ok()
}

fn keep(map: &mut Map<String, Value>, keys: &[&str]) {
    map.retain(|key, _| keys.contains(&key.as_str()));
}

#[cfg(test)]
mod tests {
    use crate::{conf::Conf, env::Command};

    #[test]
    fn a_del_reads_what_it_needs_and_nothing_else() {
        let whole = br#"{"cniVersion":"1.0.0","name":"n","mtu":"big","nodename":7,"dns":[],"runtimeConfig":[],
            "container_settings":1,"feature_control":"x","prevResult":3,"agent_socket":"/run/a.sock",
            "ipam":{"type":"host-local","assign_ipv4":"maybe","ipv4_pools":["fd00::/64",7],"subnet":"usePodCidr",
            "state_dir":"/s"}}"#;
        assert!(Conf::parse(whole, Command::Add).is_err());
        let conf = Conf::parse(whole, Command::Del).unwrap();
        assert_eq!(conf.delegate.as_deref(), Some("host-local"));
        assert!(conf.pod_cidr);
        assert_eq!(conf.sockets, [std::path::Path::new("/run/a.sock")]);
        assert_eq!(conf.state_dir, std::path::Path::new("/s"));
        for ipam in ["null", r#"{"type":"dhcp"}"#, r#"{"type":5}"#] {
            let json = format!(r#"{{"cniVersion":"1.0.0","name":"n","ipam":{ipam}}}"#);
            assert!(Conf::parse(json.as_bytes(), Command::Add).is_err(), "{ipam}");
            assert_eq!(Conf::parse(json.as_bytes(), Command::Del).unwrap().delegate, None, "{ipam}");
        }
    }

    #[test]
    fn whose_attachment_it_is_must_still_be_said() {
        for (json, code) in [("{", 6), ("[]", 7), (r#"{"name":"n"}"#, 1), (r#"{"cniVersion":"1.0.0"}"#, 7)] {
            assert_eq!(Conf::parse(json.as_bytes(), Command::Del).unwrap_err().code, code, "{json}");
        }
    }
}
