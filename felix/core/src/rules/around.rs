//! What FelixConfiguration, IPPools and Nodes say about the rules.

use std::time::Duration;

use brindle_config_core::{Kind, duration, pool::AllowedUse, validate};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    ir::{Action, Place, Ports},
    layout::Surroundings,
    marks::{DEFAULT_MASK, Marks},
};
use crate::{desire, floating, inputs::Inputs};

/// The kinds [`settings`] looks at.
pub const KINDS: [Kind; 3] = [Kind::FelixConfiguration, Kind::IpPool, Kind::Node];

/// Which back end is asked for (nftablesMode, iptablesBackend).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackEnd {
    /// iptables, of the make this machine uses.
    #[default]
    Auto,
    Legacy,
    IptablesNft,
    Nft,
}

/// Settings of the dataplane beside [`crate::policy::active::PolicySettings`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub around: Surroundings,
    pub back_end: BackEnd,
    /// maxIpsetSize.
    pub max_set: usize,
    /// How often rules are compared with the kernel at least (iptablesRefreshInterval).
    pub refresh: Duration,
    /// A value that cannot be used, and what is used instead.
    pub problem: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            around: Surroundings::default(),
            back_end: BackEnd::Auto,
            max_set: 1 << 20,
            refresh: Duration::from_secs(90),
            problem: None,
        }
    }
}

/// Reads the settings from the resources.
pub fn settings(inputs: &Inputs) -> Settings {
    let felix = inputs.felix();
    let extra = |name: &str| felix.setting(name);
    let text = |name: &str| extra(name).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    let flag = |name: &str| extra(name).and_then(Value::as_bool);
    let mut problem = None;
    let back_end = match (&*text("nftablesMode"), &*text("iptablesBackend")) {
        ("enabled", _) => BackEnd::Nft,
        (_, "legacy") => BackEnd::Legacy,
        (_, "nft") => BackEnd::IptablesNft,
        _ => BackEnd::Auto,
    };
    // Each back end has fields of its own; where only the other's is given, that one is meant.
    let own = |iptables: &str, nftables: &str| match back_end {
        BackEnd::Nft => extra(nftables).or_else(|| extra(iptables)),
        _ => extra(iptables).or_else(|| extra(nftables)),
    };
    let mask = own("iptablesMarkMask", "nftablesMarkMask").and_then(Value::as_u64);
    let mask = mask.and_then(|m| u32::try_from(m).ok()).unwrap_or(DEFAULT_MASK);
    let marks = Marks::new(mask).unwrap_or_else(|e| {
        problem = Some(format!("FelixConfiguration: {e}; using {DEFAULT_MASK:#x}"));
        Marks::default()
    });
    let rejects = own("iptablesFilterDenyAction", "nftablesFilterDenyAction")
        .and_then(Value::as_str)
        .is_some_and(|a| a.eq_ignore_ascii_case("reject"));
    let deny = if rejects { Action::Reject } else { Action::Drop };
    let nat_ports = extra("natPortRange").and_then(|v| validate::nat_port_range(v).ok());
    let nat_ports = nat_ports.map(|(first, last)| Ports { first, last });
    let defaults = Surroundings::default();
    let pools =
        inputs.pools.values().filter(|p| p.allows(AllowedUse::Workload) || p.allows(AllowedUse::Tunnel));
    let around = Surroundings {
        marks,
        prefixes: desire::pod_prefixes(felix.interface_prefix.as_deref()),
        deny,
        drop_invalid: flag("disableConntrackInvalidCheck") != Some(true),
        log_prefix: match extra("logPrefix").and_then(Value::as_str) {
            Some(p) if !p.is_empty() => format!("{p}: "),
            _ => defaults.log_prefix,
        },
        pools: pools.map(|p| (p.cidr.trunc(), p.nat_outgoing)).collect(),
        nodes: inputs
            .nodes
            .values()
            .flat_map(|n| n.ips().map(IpNet::from))
            .chain(felix.external_nodes_list.iter().filter_map(|s| validate::policy::net(s).ok()))
            .collect(),
        exclude_nodes: text("natOutgoingExclusions") == "ippoolsandhostips",
        nat_ports,
        nat_address: extra("natOutgoingAddress").and_then(Value::as_str).and_then(|a| a.parse().ok()),
        nat_interface: extra("iptablesNATOutgoingInterfaceFilter")
            .and_then(Value::as_str)
            .filter(|d| validate::device_name(d))
            .map(str::to_owned),
        ipip: inputs.ipip_wanted(),
        floating: floating::enabled(inputs).then(|| {
            floating::leads(inputs).into_iter().map(|(external, (_, own))| (external, own)).collect()
        }),
        place: if text("chainInsertMode") == "append" { Place::Last } else { Place::First },
        // The kernel knows.
        ipvs: None,
    };
    let refresh = own("iptablesRefreshInterval", "nftablesRefreshInterval");
    let refresh = refresh.and_then(Value::as_str).and_then(|t| duration::parse(t).ok());
    Settings {
        around,
        back_end,
        max_set: extra("maxIpsetSize")
            .and_then(Value::as_u64)
            .filter(|m| u32::try_from(*m).is_ok())
            .and_then(|m| usize::try_from(m).ok())
            .unwrap_or(1 << 20),
        refresh: refresh.filter(|d| !d.is_zero()).unwrap_or(Duration::from_secs(90)),
        problem,
    }
}
