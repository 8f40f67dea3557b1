//! BGPFilter resources to policies. A peer whose filters cannot be honoured is left out, rather than peered with
//! unfiltered.

use brindle_bgpd_core::policy::{
    Action, Community, Compare, Direction, Filter, Operation, PeerType, Policy, PrefixMatch, Rule,
};
use brindle_config_core::{
    bgp::{BgpFilterRule, BgpFilterSpec, FilterAction, MatchOperator},
    bgp_values::CommunityValue,
    validate::{self, Invalid},
};
use ipnet::IpNet;
use serde::Deserialize;

use super::state::ClusterState;

/// Import and export policy of a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Policies {
    pub(crate) import: Policy,
    pub(crate) export: Policy,
}

/// The policies of the named filters, in order; the error says why the peer is left out.
pub(super) fn policies(state: &ClusterState, names: &[String]) -> Result<Policies, String> {
    let mut filters = Vec::new();
    for name in names {
        let spec = state.filters.get(name).ok_or_else(|| {
            format!(
                "spec.filters: BGPFilter {name} does not exist; the peer is left out rather than peered with \
                 unfiltered"
            )
        })?;
        filters.push((name.as_str(), spec));
    }
    compile(filters).map_err(|e| format!("spec.filters: BGPFilter {e}; the peer is left out"))
}

/// Compiles filters; an error names filter and field. Nothing that [`validate`] refuses gets through.
pub(crate) fn compile<'a>(
    filters: impl IntoIterator<Item = (&'a str, &'a BgpFilterSpec)>,
) -> Result<Policies, String> {
    let (mut import, mut export) = (Vec::new(), Vec::new());
    for (name, spec) in filters {
        // What brindlectl refuses may have been written by others, or stand in a file. It must not mean less than it says.
        if let Err(Invalid(all)) = validate::bgp_filter(spec)
            && let Some(e) = all.first()
        {
            let field = e.field.strip_prefix("spec.").unwrap_or(&e.field);
            return Err(format!("{name}: {field}: {}", e.reason));
        }
        let list = |field: &str, rules: &[BgpFilterRule]| -> Result<Vec<Rule>, String> {
            let numbered = rules.iter().enumerate();
            numbered.map(|(i, r)| rule(r).map_err(|e| format!("{name}: {field}[{i}].{e}"))).collect()
        };
        let filter = |direction, v4, v6| Filter { name: name.to_owned(), direction, v4, v6 };
        let (v4, v6) = (list("importV4", &spec.import_v4)?, list("importV6", &spec.import_v6)?);
        import.push(filter(Direction::Import, v4, v6));
        let (v4, v6) = (list("exportV4", &spec.export_v4)?, list("exportV6", &spec.export_v6)?);
        export.push(filter(Direction::Export, v4, v6));
    }
    // A side without rules is no policy: peers that differ only in that are told the same.
    let policy = |mut list: Vec<Filter>| {
        list.retain(|f| !(f.v4.is_empty() && f.v6.is_empty()));
        Policy::from(list)
    };
    Ok(Policies { import: policy(import), export: policy(export) })
}

fn rule(r: &BgpFilterRule) -> Result<Rule, String> {
    let prefix = r.cidr.zip(r.match_operator).map(|(cidr, operator)| prefix(cidr, operator, r));
    let peer = match r.peer_type.as_deref() {
        None | Some("") => None,
        Some("eBGP") => Some(PeerType::Ebgp),
        Some("iBGP") => Some(PeerType::Ibgp),
        Some(other) => return Err(format!("peerType: expected eBGP or iBGP, found {other:?}")),
    };
    let learnt = match r.source.as_deref() {
        None | Some("") => false,
        Some("RemotePeers") => true,
        Some(other) => return Err(format!("source: expected RemotePeers, found {other:?}")),
    };
    // `*` is met by every route, also by one whose device is not known.
    let interface = r.interface.clone().filter(|i| !matches!(i.as_str(), "" | "*"));
    let community = match r.communities.as_ref().map(|c| c.values.as_slice()) {
        None => None,
        Some([one]) => Some(community(one).map_err(|e| format!("communities.values[0]: {e}"))?),
        Some(more) => return Err(format!("communities.values: expected exactly one, found {}", more.len())),
    };
    let action = match r.action {
        FilterAction::Accept => Action::Accept,
        FilterAction::Reject => Action::Reject,
    };
    let operations = r.operations.iter().enumerate().map(|(i, o)| {
        let read = Written::deserialize(o).map_err(|e| e.to_string());
        read.and_then(Written::operation).map_err(|e| format!("operations[{i}]: {e}"))
    });
    let operations: Vec<Operation> = operations.collect::<Result<_, _>>()?;
    Ok(Rule {
        prefix,
        learnt,
        interface,
        peer,
        community,
        as_path: r.as_path_prefix.iter().flatten().map(|a| a.0).collect(),
        priority: r.priority,
        action,
        operations,
    })
}

fn prefix(cidr: IpNet, operator: MatchOperator, r: &BgpFilterRule) -> PrefixMatch {
    PrefixMatch {
        net: cidr.trunc(),
        compare: match operator {
            MatchOperator::Equal => Compare::Equal,
            MatchOperator::NotEqual => Compare::NotEqual,
            MatchOperator::In => Compare::In,
            MatchOperator::NotIn => Compare::NotIn,
        },
        min: r.prefix_length.as_ref().and_then(|l| l.min),
        max: r.prefix_length.as_ref().and_then(|l| l.max),
    }
}

/// `aa:nn` or `aa:nn:mm`.
pub(crate) fn community(text: &str) -> Result<Community, String> {
    Ok(match text.parse::<CommunityValue>()? {
        CommunityValue::Standard(a, n) => Community::Standard(u32::from(a) << 16 | u32::from(n)),
        CommunityValue::Large(a, n, m) => Community::Large((a, n, m)),
    })
}

/// An operation as written: exactly one of the fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Written {
    AddCommunity {
        value: String,
    },
    #[serde(rename = "prependASPath")]
    PrependAsPath {
        prefix: Vec<brindle_config_core::bgp::AsNumber>,
    },
    SetPriority {
        value: u32,
    },
}

impl Written {
    fn operation(self) -> Result<Operation, String> {
        Ok(match self {
            Self::AddCommunity { value } => Operation::AddCommunity(community(&value)?),
            Self::PrependAsPath { prefix } => {
                Operation::PrependAsPath(prefix.into_iter().map(|a| a.0).collect())
            }
            Self::SetPriority { value } => Operation::SetPriority(value),
        })
    }
}
