//! Settings from the environment: `FELIX_<FIELD>` stands above FelixConfiguration, as with Calico
//! (`FELIX_DEFAULTENDPOINTTOHOSTACTION=Accept`). What is set is laid over the objects as they come from the datastore,
//! so that everybody downstream sees one truth; if there is no object `default`, one is made up.

use std::{collections::BTreeMap, sync::Arc};

use brindle_config_core::{
    Key, Kind, felix, fields,
    store::{Entry, Revision, SyncEvent},
    unserved,
};
use brindle_felix_core::desire::pod_prefixes;
use serde_json::{Value, json};

mod value;

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
const ALIASES: [(&str, &str); 3] = [
    ("IPINIPENABLED", "ipipEnabled"),
    ("IPINIPMTU", "ipipMTU"),
    ("EXTERNALNODESCIDRLIST", "externalNodesList"),
];

/// What the environment says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FelixEnv {
    fields: BTreeMap<String, Value>,
    /// Variables that mean nothing here.
    unknown: Vec<String>,
    /// Variables of fields that this version does not act on.
    idle: Vec<String>,
    /// Variables that do not say what they should, and what that is.
    wrong: Vec<String>,
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
            let upper = name.to_ascii_uppercase();
            let Some(field) = upper.strip_prefix(PREFIX) else { continue };
            // Felix, too, takes an empty one for one that is not set.
            if ELSEWHERE.contains(&field) || text.is_empty() {
                continue;
            }
            let field = ALIASES.iter().find(|a| a.0 == field).map_or(field, |a| a.1);
            let known = |f: &&str| f.eq_ignore_ascii_case(field) && !f.contains(['.', '[']);
            let Some(known) = fields::of(Kind::FelixConfiguration).find(known) else {
                env.unknown.push(name);
                continue;
            };
            let idle = felix::form(known).is_none();
            // What a node cannot have it must not be ready without: that is said of the field.
            let flag = unserved::asks(known).then_some(felix::Form::Flag);
            match felix::form(known).or(flag).map(|form| value::value(known, form, &text)) {
                Some(Ok(value)) => drop(env.fields.insert(known.to_owned(), value)),
                Some(Err(reason)) => env.wrong.push(format!("{name}={text}: {reason}")),
                None => {}
            }
            if idle {
                env.idle.push(name);
            }
        }
        for list in [&mut env.unknown, &mut env.idle, &mut env.wrong] {
            list.sort();
        }
        env
    }

    /// Tells what is set, and what is not understood.
    pub(crate) fn log(&self) {
        if !self.fields.is_empty() {
            let fields: Vec<&str> = self.fields.keys().map(String::as_str).collect();
            tracing::info!(fields = fields.join(" "), "the environment stands above FelixConfiguration");
        }
        if !self.idle.is_empty() {
            tracing::info!("without effect in this version: {}", self.idle.join(" "));
        }
        if !self.unknown.is_empty() {
            tracing::warn!("these mean nothing to this agent: {}", self.unknown.join(" "));
        }
        for wrong in &self.wrong {
            tracing::warn!("{wrong}; it is left out, correct the variable");
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

#[cfg(test)]
mod tests {
    use brindle_config_core::{felix::FelixConfigurationSpec, store};

    use super::*;

    fn env(vars: &[(&str, &str)]) -> FelixEnv {
        FelixEnv::from_vars(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    fn felix(name: &str, spec: Value) -> SyncEvent {
        let key = Key::new(Kind::FelixConfiguration, None, name);
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": name}, "spec": spec});
        SyncEvent::Upsert(Entry { key, revision: Revision(7), value: Arc::new(value) })
    }

    fn spec(event: &SyncEvent) -> &Value {
        match event {
            SyncEvent::Upsert(e) => &e.value["spec"],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn variables_are_read_by_the_names_of_felix() {
        let e = env(&[
            ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "ACCEPT"),
            ("FELIX_IPINIPMTU", "1400"),
            ("FELIX_IPINIPENABLED", "1"),
            ("FELIX_ExternalNodesCIDRList", "10.0.0.0/24"),
            ("FELIX_NONSENSE", "1400"),
            ("FELIX_IPV6SUPPORT", "false"),
            ("FELIX_HEALTHENABLED", "true"),
            ("PATH", "/bin"),
        ]);
        assert_eq!((e.unknown, e.idle), (vec!["FELIX_NONSENSE".into()], vec!["FELIX_IPV6SUPPORT".into()]));
        assert_eq!(e.wrong, Vec::<String>::new());
        assert_eq!(
            json!(e.fields),
            json!({"defaultEndpointToHostAction": "Accept", "ipipMTU": 1400, "ipipEnabled": true,
                "externalNodesList": ["10.0.0.0/24"]})
        );
    }

    #[test]
    fn a_variable_that_cannot_be_read_harms_no_field() {
        let e = env(&[
            ("FELIX_ROUTEREFRESHINTERVAL", "60"),
            ("FELIX_REMOVEEXTERNALROUTES", "no"),
            ("FELIX_DEVICEROUTEPROTOCOL", "many"),
            ("FELIX_CHAININSERTMODE", "Apend"),
        ]);
        assert_eq!(
            e.wrong,
            [
                "FELIX_CHAININSERTMODE=Apend: expected one of Insert, Append",
                "FELIX_DEVICEROUTEPROTOCOL=many: expected a whole number from 0 to 255",
            ]
        );
        let mut batch = vec![felix("default", json!({"chainInsertMode": "Append", "ipipMTU": 1300}))];
        e.apply(&mut batch, "n1", &mut false);
        let SyncEvent::Upsert(entry) = &batch[0] else { panic!("{batch:?}") };
        let read = store::decode::<FelixConfigurationSpec>(entry).expect("it is whole").resource.spec;
        assert_eq!(read.route_refresh_interval.as_deref(), Some("60s"));
        assert_eq!((read.remove_external_routes, read.device_route_protocol), (Some(false), None));
        assert_eq!((read.setting("chainInsertMode"), read.ipip_mtu), (Some(&json!("Append")), Some(1300)));
    }

    #[test]
    fn what_asks_for_what_there_is_not_reaches_the_configuration() {
        let e = env(&[
            ("FELIX_WIREGUARDENABLED", "1"),
            ("FELIX_BPFENABLED", "false"),
            ("FELIX_VXLANENABLED", "perhaps"),
            ("FELIX_VXLANMTU", "1410"),
        ]);
        assert_eq!(json!(e.fields), json!({"wireguardEnabled": true, "bpfEnabled": false}));
        assert_eq!(e.idle.len(), 4, "{:?}", e.idle);
        assert!(e.wrong.len() == 1 && e.wrong[0].starts_with("FELIX_VXLANENABLED=perhaps"), "{:?}", e.wrong);
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
