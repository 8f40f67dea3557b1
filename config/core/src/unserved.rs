//! What resources may ask for and this version does not do: VXLAN, WireGuard, eBPF. Whoever relies on it must hear of it, from
//! the command line that writes the resource and from every agent that it is in force for, which is not ready over it.
//! What merely has no effect is for [`crate::fields`].

use crate::{
    AnyResource,
    felix::FelixConfigurationSpec,
    pool::{EncapMode, IpPoolSpec},
};

/// Fields of FelixConfiguration that ask for it by being true, with what there is not and what follows.
const FELIX: [(&str, &str); 4] = [
    ("bpfEnabled", "there is no eBPF dataplane in this version, and services are left to kube-proxy"),
    ("vxlanEnabled", "there is no VXLAN in this version, and no pool can have a vxlanMode"),
    (
        "wireguardEnabled",
        "there is no WireGuard in this version, and packets between nodes are not encrypted",
    ),
    (
        "wireguardEnabledV6",
        "there is no WireGuard in this version, and packets between nodes are not encrypted",
    ),
];

/// What a resource asks for in vain: its fields from the top, each with what is to be said of it.
pub fn of(resource: &AnyResource) -> Vec<(String, String)> {
    match resource {
        AnyResource::IpPool(r) => {
            let said = vxlan(&r.spec).map(|why| ("spec.vxlanMode".to_owned(), why));
            said.into_iter().collect()
        }
        AnyResource::FelixConfiguration(r) => felix(&r.spec)
            .map(|(field, why)| {
                (format!("spec.{field}"), format!("{why}; agents are not ready until it is false"))
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// What follows from a pool's `vxlanMode`, and the way out; none if it asks for no VXLAN.
pub fn vxlan(pool: &IpPoolSpec) -> Option<String> {
    let others = match pool.vxlan_mode {
        EncapMode::Never => return None,
        EncapMode::Always => "other nodes",
        EncapMode::CrossSubnet => "nodes of other subnets",
    };
    let way_out = if pool.cidr.addr().is_ipv4() {
        format!("set ipipMode: {:?} and vxlanMode: Never", pool.vxlan_mode)
    } else {
        "IPIP carries no IPv6: set vxlanMode: Never, and let the routers between the nodes learn the pods' routes by BGP"
            .to_owned()
    };
    Some(format!(
        "is {:?}, and there is no VXLAN in this version: its pods and {others} do not reach each other; {way_out}",
        pool.vxlan_mode
    ))
}

/// Whether a field of FelixConfiguration is a flag that asks for what there is not.
pub fn asks(field: &str) -> bool {
    FELIX.iter().any(|(name, _)| *name == field)
}

/// The fields that ask for what there is not, with what follows. What is no flag by its type may be meant as one.
pub fn felix(spec: &FelixConfigurationSpec) -> impl Iterator<Item = (&'static str, &'static str)> {
    let wanted = |name: &str| {
        spec.extra.get(name).is_some_and(|v| match v.as_str() {
            Some(word) => ["y", "yes", "t", "true"].iter().any(|w| word.eq_ignore_ascii_case(w)),
            None => *v == true || *v == 1,
        })
    };
    FELIX.into_iter().filter(move |(name, _)| wanted(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Kind, fields};

    fn said(kind: Kind, spec: &Value) -> Vec<String> {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
            "metadata": {"name": "x"}, "spec": spec});
        let resource = AnyResource::from_value(kind, &value).expect("it reads");
        of(&resource).into_iter().map(|(field, why)| format!("{field} {why}")).collect()
    }

    #[test]
    fn a_pool_in_vxlan_is_told_with_the_way_out() {
        let pool = |cidr: &str, mode: &str| said(Kind::IpPool, &json!({"cidr": cidr, "vxlanMode": mode}));
        assert_eq!(pool("10.0.0.0/16", "Never"), [""; 0]);
        assert_eq!(
            pool("10.0.0.0/16", "CrossSubnet"),
            [
                "spec.vxlanMode is CrossSubnet, and there is no VXLAN in this version: its pods and nodes of other subnets do \
              not reach each other; set ipipMode: CrossSubnet and vxlanMode: Never"
            ]
        );
        let six = pool("fd00::/48", "Always");
        assert!(six[0].contains("other nodes do not reach each other; IPIP carries no IPv6"), "{six:?}");
    }

    #[test]
    fn what_felix_is_to_do_and_does_not_is_told_however_it_is_written() {
        for (field, _) in FELIX {
            assert!(fields::of(Kind::FelixConfiguration).any(|f| f == field), "{field}");
            for yes in [json!(true), json!(1), json!("Yes")] {
                let all = said(Kind::FelixConfiguration, &json!({field: yes}));
                assert!(
                    all.len() == 1 && all[0].starts_with(&format!("spec.{field} there is no ")),
                    "{all:?}"
                );
            }
            for no in [json!(false), json!(0), json!("no"), Value::Null] {
                assert_eq!(said(Kind::FelixConfiguration, &json!({field: no})), [""; 0]);
            }
        }
        assert_eq!(said(Kind::FelixConfiguration, &json!({"wireguardListeningPort": 51820})), [""; 0]);
    }
}
