//! Which fields of FelixConfiguration act, found by trying each: what the reference and `brindlectl apply` say of them rests
//! on the list in the model. And: what a node's own configuration says stands above `default`, field by field.

use std::{collections::BTreeSet, sync::Arc};

use brindle_config_core::{
    Key, Kind,
    felix::FelixConfigurationSpec,
    fields,
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix_core::{
    calc::{Graph, Scope},
    desire::desire,
    host::HostView,
    inputs::Inputs,
    policy::active::{PolicyDelta, PolicySettings, ToHostAction},
    rules::{
        around::{self, Settings},
        ir::{Action, Place},
    },
};
use serde_json::{Value, json};

/// What a node makes of these configurations.
fn outcome(configurations: &[(&str, Value)]) -> (Settings, PolicySettings) {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    let mut inputs = Inputs::new("n1");
    for (name, spec) in configurations {
        let key = Key::new(Kind::FelixConfiguration, None, name);
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": name}, "spec": spec});
        graph.put(&key, &value);
        inputs.apply(&SyncEvent::Upsert(Entry { key, revision: Revision(1), value: Arc::new(value) }));
    }
    graph.set_in_sync();
    let policy = graph.flush().into_iter().find_map(|d| match d {
        PolicyDelta::Settings(s) => Some(s),
        _ => None,
    });
    (around::settings(&inputs), policy.expect("settings are always sent"))
}

#[test]
fn the_list_of_fields_that_act_is_what_acts() {
    let plain = outcome(&[]);
    let values = [
        json!(true),
        json!("Enabled"),
        json!("Any"),
        json!("Append"),
        json!("Reject"),
        json!("Return"),
        json!("Legacy"),
        json!("IPPoolsAndHostIPs"),
        json!("192.0.2.7"),
        json!("1000:2000"),
        json!("7s"),
        json!(0x00ff_0000),
        json!(4790),
        json!([{"protocol": "TCP", "port": 77}]),
    ];
    let mut acting = BTreeSet::new();
    for field in fields::of(Kind::FelixConfiguration).filter(|f| !f.contains(['.', '['])) {
        for value in &values {
            if outcome(&[("default", json!({field: value}))]) != plain {
                acting.insert(field);
            }
        }
    }
    let listed: BTreeSet<&str> = FelixConfigurationSpec::SETTINGS.into();
    assert_eq!(&acting - &BTreeSet::from(FelixConfigurationSpec::MODELLED), listed);
    for field in &listed {
        assert!(
            fields::acts(Kind::FelixConfiguration, field)
                && fields::of(Kind::FelixConfiguration).any(|f| f == *field)
        );
    }
}

#[test]
fn the_list_of_fields_of_the_model_is_complete() {
    let spec = FelixConfigurationSpec {
        ipip_enabled: Some(true),
        ipip_mtu: Some(1400),
        interface_prefix: Some("cali".into()),
        route_refresh_interval: Some("1m".into()),
        device_route_protocol: Some(3),
        remove_external_routes: Some(true),
        ipv4_normal_route_priority: Some(1024),
        external_nodes_list: vec!["192.0.2.1".into()],
        mtu_iface_pattern: Some("eth".into()),
        extra: Default::default(),
    };
    let value = serde_json::to_value(spec).expect("it is plain data");
    let names: BTreeSet<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, FelixConfigurationSpec::MODELLED.into());
}

#[test]
fn what_a_nodes_own_configuration_says_stands_above_the_default() {
    let default = (
        "default",
        json!({"defaultEndpointToHostAction": "Accept", "failsafeInboundHostPorts": [],
        "iptablesFilterDenyAction": "Reject", "logPrefix": "all"}),
    );
    let own = (
        "node.n1",
        json!({"failsafeInboundHostPorts": [{"protocol": "TCP", "port": 77}], "logPrefix": "mine"}),
    );
    let other = ("node.n2", json!({"defaultEndpointToHostAction": "Drop", "logPrefix": "other"}));
    let (rules, policy) = outcome(&[own, other, default]);
    assert_eq!(policy.to_host, ToHostAction::Accept);
    assert_eq!(policy.failsafe_inbound.iter().map(|f| f.port).collect::<Vec<_>>(), [77]);
    assert_eq!((rules.around.deny, rules.around.log_prefix.as_str()), (Action::Reject, "mine: "));
}

#[test]
fn each_back_end_has_fields_of_its_own() {
    let both = |mode: &str| {
        outcome(&[("default", json!({"nftablesMode": mode, "iptablesFilterDenyAction": "Drop",
            "nftablesFilterDenyAction": "Reject", "iptablesRefreshInterval": "7s", "nftablesRefreshInterval": "8s"}))]).0
    };
    let (nft, iptables) = (both("Enabled"), both("Disabled"));
    assert_eq!((nft.around.deny, nft.refresh.as_secs()), (Action::Reject, 8));
    assert_eq!((iptables.around.deny, iptables.refresh.as_secs()), (Action::Drop, 7));
}

#[test]
fn an_action_nobody_knows_does_not_open_the_host() {
    let of = |value: Value| {
        let spec = json!({"defaultEndpointToHostAction": value});
        let mut graph = Graph::new(Scope::Node("n1".into()));
        let written = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": spec});
        graph.put(&Key::new(Kind::FelixConfiguration, None, "default"), &written);
        let named =
            graph.problems().values().flatten().any(|p| p.starts_with("spec.defaultEndpointToHostAction:"));
        (outcome(&[("default", spec)]).1.to_host, named)
    };
    for given in ["Accept", "Return", "Drop"] {
        let (action, named) = of(json!(given));
        assert_eq!((format!("{action:?}"), named), (given.to_owned(), false));
    }
    assert_eq!(of(Value::Null), (ToHostAction::Accept, false), "not given");
    for wrong in [json!("drpo"), json!(""), json!(5), json!(true), json!(["Accept"]), json!({"Accept": true})]
    {
        assert_eq!(of(wrong.clone()), (ToHostAction::Drop, true), "{wrong}");
    }
}

#[test]
fn pods_send_from_foreign_addresses_only_where_the_cluster_lets_them() {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    let mut inputs = Inputs::new("n1");
    let mut put = |kind, namespace: Option<&str>, value: &Value| {
        let key = Key::new(kind, namespace, value["metadata"]["name"].as_str().expect("a name"));
        graph.put(&key, value);
        graph.set_in_sync();
        inputs.apply(&SyncEvent::Upsert(Entry {
            key,
            revision: Revision(1),
            value: Arc::new(value.clone()),
        }));
        let desired = desire(&inputs, &HostView::default(), &"tunl0".into());
        let filter = "net/ipv4/conf/cali1/rp_filter";
        let mut settings = desired.endpoints.values().flat_map(|e| &e.settings);
        let filter = settings.rfind(|s| s.path == filter).map(|s| s.value);
        let sources = graph.flush().into_iter().find_map(|d| match d {
            PolicyDelta::Endpoint(e) => Some(e.allowed_sources.len()),
            _ => None,
        });
        (sources, filter)
    };
    let pod = json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": "p", "namespace": "ns",
            "annotations": {"cni.projectcalico.org/allowedSourcePrefixes": "[\"192.0.2.0/24\", \"nonsense\"]"}},
        "spec": {"orchestrator": "k8s", "node": "n1", "endpoint": "eth0", "interfaceName": "cali1",
            "profiles": ["kns.ns"], "ipNetworks": ["10.0.0.1/32"]}});
    let felix = |value: Value| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": {"workloadSourceSpoofing": value}})
    };
    assert_eq!(put(Kind::WorkloadEndpoint, Some("ns"), &pod), (Some(0), Some("1")), "nobody allowed it");
    let mut set = |value| put(Kind::FelixConfiguration, None, &felix(value));
    assert_eq!(set(json!("Any")), (Some(1), Some("0")));
    assert_eq!(set(json!("Disabled")), (Some(0), Some("1")));
    assert_eq!(set(json!("any")), (Some(1), Some("0")));
    assert_eq!(set(json!(true)), (Some(0), Some("1")), "what cannot be read allows nothing");
}

#[test]
fn nodes_are_all_addresses_of_nodes_and_what_is_said_of_others() {
    let mut inputs = Inputs::new("n1");
    let mut put = |kind: Kind, name: &str, spec: Value| {
        let key = Key::new(kind, None, name);
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
            "metadata": {"name": name}, "spec": spec});
        inputs.apply(&SyncEvent::Upsert(Entry { key, revision: Revision(1), value: Arc::new(value) }));
    };
    let bgp = json!({"ipv4Address": "192.0.2.2/24", "ipv6Address": "2001:db8::2/64"});
    put(Kind::Node, "n2", json!({ "bgp": bgp }));
    let external = json!({"externalNodesList": ["198.51.100.0/24", "203.0.113.7", "2001:db8:1::/48"]});
    put(Kind::FelixConfiguration, "default", external);
    let nodes: Vec<String> = around::settings(&inputs).around.nodes.iter().map(ToString::to_string).collect();
    let wanted = ["192.0.2.2/32", "2001:db8::2/128", "198.51.100.0/24", "203.0.113.7/32", "2001:db8:1::/48"];
    assert_eq!(nodes, wanted);
}

#[test]
fn one_field_of_a_wrong_type_leaves_the_others_in_force() {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    let key = Key::new(Kind::FelixConfiguration, None, "default");
    let mut put = |spec: Value| {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": spec});
        graph.put(&key, &value);
        graph.set_in_sync();
        let said: Vec<String> = graph.problems().into_values().flatten().collect();
        let settings = graph.flush().into_iter().find_map(|d| match d {
            PolicyDelta::Settings(s) => Some(s),
            _ => None,
        });
        (settings, said.join("; "))
    };
    let closed = json!({"defaultEndpointToHostAction": "Drop", "failsafeInboundHostPorts": [],
        "routeRefreshInterval": 90, "vxlanPort": "4790"});
    let (settings, said) = put(closed);
    let settings = settings.expect("they are sent");
    assert_eq!((settings.to_host, settings.failsafe_inbound.len()), (ToHostAction::Drop, 0));
    assert_eq!(settings.vxlan_port, 4789);
    for field in ["routeRefreshInterval", "spec.vxlanPort"] {
        assert!(said.contains(field), "{field}: {said}");
    }
    // Nothing can be read at all: what was said before holds.
    for nothing in [json!("all"), json!([])] {
        let (settings, said) = put(nothing);
        assert!(settings.is_none() && !said.is_empty(), "{settings:?} {said}");
    }
    let (settings, said) = put(json!({}));
    assert_eq!((settings.map(|s| s.to_host), said.as_str()), (Some(ToHostAction::Accept), ""));
}

#[test]
fn a_field_of_a_wrong_type_takes_no_other_with_it() {
    let (rules, policy) = outcome(&[(
        "default",
        json!({"routeRefreshInterval": 60, "ipipEnabled": "yes", "chainInsertMode": "Append",
            "interfacePrefix": "eni", "defaultEndpointToHostAction": "Return"}),
    )]);
    assert_eq!(rules.around.place, Place::Last);
    assert_eq!(rules.around.prefixes, ["eni"]);
    assert_eq!(policy.to_host, ToHostAction::Return);
}
