//! Settings from the environment: `FELIX_<FIELD>` stands above FelixConfiguration, as with Calico
//! (`FELIX_DEFAULTENDPOINTTOHOSTACTION=Accept`). What is set is laid over the objects as they come from the datastore,
//! so that everybody downstream sees one truth; if there is no object `default`, one is made up.

use std::{collections::BTreeMap, sync::Arc};

use brindle_config_core::{
    Key, Kind,
    felix::FelixConfigurationSpec,
    fields,
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix_core::desire::pod_prefixes;
use serde_json::{Value, json};

const PREFIX: &str = "FELIX_";

/// Read elsewhere: `cluster`, and what only Calico's own binaries have a use for.
const ELSEWHERE: [&str; 9] = [
    "HEALTHENABLED",
    "HEALTHHOST",
    "HEALTHPORT",
    "PROMETHEUSMETRICSENABLED",
    "PROMETHEUSMETRICSHOST",
    "PROMETHEUSMETRICSPORT",
    "FELIXHOSTNAME",
    "DATASTORETYPE",
    "TYPHAK8SSERVICENAME",
];

/// Names in Felix' environment that are not those of the resource.
const ALIASES: [(&str, &str); 2] = [("IPINIPENABLED", "ipipEnabled"), ("IPINIPMTU", "ipipMTU")];

/// What the environment says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FelixEnv {
    fields: BTreeMap<String, Value>,
    /// Variables that mean nothing here.
    unknown: Vec<String>,
}

impl FelixEnv {
    /// Of this process.
    pub(crate) fn read() -> Self {
        Self::from_vars(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    fn from_vars(vars: impl Iterator<Item = (String, String)>) -> Self {
        let mut env = Self::default();
        for (name, text) in vars {
            let Some(field) = name.strip_prefix(PREFIX) else { continue };
            // Felix, too, takes an empty one for one that is not set.
            if ELSEWHERE.contains(&field) || text.is_empty() {
                continue;
            }
            let field = ALIASES.iter().find(|a| a.0 == field).map_or(field, |a| a.1);
            let known = |f: &&str| f.eq_ignore_ascii_case(field) && !f.contains(['.', '[']);
            match fields::of(Kind::FelixConfiguration).find(known) {
                Some(known) => drop(env.fields.insert(known.to_owned(), value(known, &text))),
                None => env.unknown.push(name),
            }
        }
        env.unknown.sort();
        env
    }

    /// Says what is set: what acts, what does not, and what means nothing.
    pub(crate) fn tell(&self) {
        let (idle, acting): (Vec<_>, Vec<_>) =
            self.fields.iter().partition(|(name, value)| is_idle(name, value));
        let names = |fields: &[(&String, &Value)]| -> String {
            fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
        };
        if !acting.is_empty() {
            tracing::info!(fields = names(&acting), "the environment stands above FelixConfiguration");
        }
        if !idle.is_empty() {
            tracing::warn!(fields = names(&idle), "the environment sets what has no effect in this version");
        }
        if !self.unknown.is_empty() {
            tracing::warn!("these mean nothing to this agent: {}", self.unknown.join(" "));
        }
    }

    /// The prefixes of pod devices, if it says; none otherwise.
    pub(crate) fn pod_prefixes(&self) -> Vec<String> {
        let setting = self.fields.get("interfacePrefix").and_then(Value::as_str);
        setting.map(|s| pod_prefixes(Some(s))).unwrap_or_default()
    }

    /// Whether pods have floating addresses, if it says; the speaker announces them.
    pub(crate) fn floating_ips(&self) -> Option<bool> {
        let setting = self.fields.get("floatingIPs")?.as_str()?;
        Some(setting.eq_ignore_ascii_case("enabled"))
    }

    /// Lays the settings over a batch. `node`: this node's name; `seen`: whether `default` was among the events so far,
    /// kept by the caller from batch to batch.
    pub(crate) fn apply(&self, batch: &mut Vec<SyncEvent>, node: &str, seen: &mut bool) {
        if self.fields.is_empty() {
            return;
        }
        let default = Key::new(Kind::FelixConfiguration, None, "default");
        let own = Key::new(Kind::FelixConfiguration, None, &format!("node.{node}"));
        let mut out = Vec::with_capacity(batch.len() + 1);
        for event in batch.drain(..) {
            match event {
                SyncEvent::Upsert(entry) if entry.key == default || entry.key == own => {
                    *seen |= entry.key == default;
                    out.push(SyncEvent::Upsert(self.over(entry)));
                }
                SyncEvent::Delete(key) if key == default => out.push(SyncEvent::Upsert(self.alone(key))),
                SyncEvent::InSync if !*seen => {
                    *seen = true;
                    out.push(SyncEvent::Upsert(self.alone(default.clone())));
                    out.push(SyncEvent::InSync);
                }
                other => out.push(other),
            }
        }
        *batch = out;
    }

    fn over(&self, mut entry: Entry) -> Entry {
        let mut value = (*entry.value).clone();
        if let Some(object) = value.as_object_mut() {
            let spec = object.entry("spec").or_insert_with(|| json!({}));
            if let Some(spec) = spec.as_object_mut() {
                spec.extend(self.fields.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
        }
        entry.value = Arc::new(value);
        entry
    }

    fn alone(&self, key: Key) -> Entry {
        let value = json!({
            "apiVersion": brindle_config_core::meta::API_VERSION,
            "kind": Kind::FelixConfiguration.as_str(),
            "metadata": {"name": key.name},
            "spec": self.fields,
        });
        Entry { key, revision: Revision(0), value: Arc::new(value) }
    }
}

/// Whether nothing comes of a field. One whose value does not fit is the model's, which names it.
fn is_idle(name: &str, value: &Value) -> bool {
    let kept = serde_json::from_value::<FelixConfigurationSpec>(json!({name: value}));
    kept.is_ok_and(|spec| spec.extra.contains_key(name)) && !fields::acts(Kind::FelixConfiguration, name)
}

/// A variable's text as the field wants it: a boolean, a number, a list of ports, or the text.
fn value(field: &str, text: &str) -> Value {
    if field.starts_with("failsafe") {
        return ports(text);
    }
    if field == "externalNodesList" {
        return text.split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
    }
    match text.to_ascii_lowercase().as_str() {
        "true" => return true.into(),
        "false" => return false.into(),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return number.into();
    }
    // Actions are upper case in the environment and capitalised in the resource.
    if field.ends_with("Action") {
        let mut letters = text.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        return first.into_iter().chain(letters.map(|c| c.to_ascii_lowercase())).collect::<String>().into();
    }
    text.into()
}

/// `tcp:22,udp:0.0.0.0/0:68,179`; `none` is the empty list.
fn ports(text: &str) -> Value {
    if text.eq_ignore_ascii_case("none") {
        return json!([]);
    }
    let one = |item: &str| {
        let parts: Vec<&str> = item.split(':').collect();
        let (protocol, net, port) = match parts.as_slice() {
            [port] => ("tcp", None, *port),
            [protocol, port] => (*protocol, None, *port),
            // An IPv6 network has colons of its own.
            [protocol, net @ .., port] => (*protocol, Some(net.join(":")), *port),
            [] => return Value::Null,
        };
        let port = port.parse::<u16>().map_or_else(|_| json!(port), |p| json!(p));
        match net {
            Some(net) => json!({"protocol": protocol.to_ascii_uppercase(), "net": net, "port": port}),
            None => json!({"protocol": protocol.to_ascii_uppercase(), "port": port}),
        }
    };
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> FelixEnv {
        FelixEnv::from_vars(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    fn felix(name: &str, spec: Value) -> SyncEvent {
        let key = Key::new(Kind::FelixConfiguration, None, name);
        let value = json!({"metadata": {"name": name}, "spec": spec});
        SyncEvent::Upsert(Entry { key, revision: Revision(7), value: Arc::new(value) })
    }

    fn spec(event: &SyncEvent) -> &Value {
        match event {
            SyncEvent::Upsert(e) => &e.value["spec"],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn variables_are_read_as_their_fields_want_them() {
        let e = env(&[
            ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "ACCEPT"),
            ("FELIX_IPINIPMTU", "1400"),
            ("FELIX_NONSENSE", "1400"),
            ("FELIX_IPV6SUPPORT", "false"),
            ("FELIX_FAILSAFEINBOUNDHOSTPORTS", "tcp:22,udp:10.0.0.0/8:68,tcp:fd00::/8:179"),
            ("FELIX_HEALTHENABLED", "true"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(e.unknown, ["FELIX_NONSENSE"]);
        assert_eq!(e.fields["defaultEndpointToHostAction"], "Accept");
        assert_eq!((&e.fields["ipipMTU"], &e.fields["ipv6Support"]), (&json!(1400), &json!(false)));
        assert_eq!(
            e.fields["failsafeInboundHostPorts"],
            json!([
                {"protocol": "TCP", "port": 22},
                {"protocol": "UDP", "net": "10.0.0.0/8", "port": 68},
                {"protocol": "TCP", "net": "fd00::/8", "port": 179},
            ])
        );
        assert_eq!(ports("none"), json!([]));
    }

    #[test]
    fn what_has_no_effect_is_told_from_what_has() {
        let e = env(&[
            ("FELIX_IPINIPMTU", "nonsense"),
            ("FELIX_IPTABLESREFRESHINTERVAL", "60"),
            ("FELIX_IPV6SUPPORT", "false"),
            ("FELIX_VXLANMTU", "1410"),
            ("FELIX_WIREGUARDENABLED", "true"),
        ]);
        let idle: Vec<&str> =
            e.fields.iter().filter(|(n, v)| is_idle(n, v)).map(|(n, _)| n.as_str()).collect();
        assert_eq!(idle, ["ipv6Support", "vxlanMTU", "wireguardEnabled"]);
    }

    #[test]
    fn an_empty_variable_is_none() {
        assert_eq!(env(&[("FELIX_IPINIPMTU", ""), ("FELIX_NOSUCH", "")]), FelixEnv::default());
    }

    #[test]
    fn the_prefixes_of_devices_are_known_before_any_object() {
        let of = |text: &str| env(&[("FELIX_INTERFACEPREFIX", text)]).pod_prefixes();
        assert_eq!(of("eni, veth"), ["eni", "veth"]);
        assert_eq!(env(&[]).pod_prefixes(), Vec::<String>::new());
    }

    #[test]
    fn floating_addresses_are_for_the_speaker_too() {
        let of = |text: &str| env(&[("FELIX_FLOATINGIPS", text)]).floating_ips();
        assert_eq!((of("Enabled"), of("disabled"), of("true")), (Some(true), Some(false), None));
        assert_eq!(env(&[]).floating_ips(), None);
    }

    #[test]
    fn the_environment_stands_above_both_objects_and_replaces_a_missing_one() {
        let e = env(&[("FELIX_DEFAULTENDPOINTTOHOSTACTION", "Accept")]);
        let mut seen = false;
        let mut batch = vec![
            felix("default", json!({"defaultEndpointToHostAction": "Drop", "ipipMTU": 1300})),
            felix("node.n1", json!({})),
            felix("node.n2", json!({})),
            SyncEvent::InSync,
        ];
        e.apply(&mut batch, "n1", &mut seen);
        assert!(seen && batch.len() == 4);
        assert_eq!(spec(&batch[0]), &json!({"defaultEndpointToHostAction": "Accept", "ipipMTU": 1300}));
        assert_eq!(spec(&batch[1])["defaultEndpointToHostAction"], "Accept");
        assert_eq!(spec(&batch[2]), &json!({}), "another node's");

        let mut batch = vec![SyncEvent::Delete(Key::new(Kind::FelixConfiguration, None, "default"))];
        e.apply(&mut batch, "n1", &mut seen);
        assert_eq!(spec(&batch[0])["defaultEndpointToHostAction"], "Accept");

        let mut batch = vec![SyncEvent::InSync];
        e.apply(&mut batch, "n1", &mut false);
        assert_eq!(spec(&batch[0])["defaultEndpointToHostAction"], "Accept");
        assert_eq!(batch[1], SyncEvent::InSync);
        FelixEnv::default().apply(&mut batch, "n1", &mut false);
        assert_eq!(batch.len(), 2, "nothing set, nothing touched");
    }
}
