//! BGPFilter: each rule by itself.

use ipnet::IpNet;
use serde_json::Value;

use super::Errors;
use crate::{
    bgp::{AsNumber, BgpFilterRule, BgpFilterSpec, FilterAction, MatchOperator, PrefixLengthRange},
    bgp_values::CommunityValue,
};

pub(super) fn check(f: &BgpFilterSpec, errors: &mut Errors) {
    for (list, rules) in f.lists() {
        for (i, rule) in rules.iter().enumerate() {
            let at = format!("spec.{list}[{i}]");
            prefix(&at, list.ends_with("V4"), rule, errors);
            // What is empty is not set.
            let set = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
            errors.one_of(&format!("{at}.source"), set(&rule.source).as_ref(), &["RemotePeers"]);
            errors.one_of(&format!("{at}.peerType"), set(&rule.peer_type).as_ref(), &["eBGP", "iBGP"]);
            if let Some(interface) = &set(&rule.interface) {
                errors.interface(&format!("{at}.interface"), interface, true);
            }
            if let Some(communities) = &rule.communities {
                let field = format!("{at}.communities.values");
                if communities.values.len() != 1 {
                    errors.add(
                        &field,
                        format!("{} values", communities.values.len()),
                        "expected exactly one",
                    );
                }
                for (j, value) in communities.values.iter().enumerate() {
                    community(&format!("{field}[{j}]"), value, errors);
                }
            }
            errors.route_priority(&format!("{at}.priority"), rule.priority);
            operations(&at, rule, errors);
        }
    }
}

fn community(field: &str, value: &str, errors: &mut Errors) {
    if let Err(reason) = value.parse::<CommunityValue>() {
        errors.add(field, value, reason);
    }
}

fn prefix(at: &str, v4: bool, rule: &BgpFilterRule, errors: &mut Errors) {
    match (&rule.cidr, rule.match_operator) {
        (Some(cidr), None) => {
            errors.add(&format!("{at}.cidr"), cidr, "needs matchOperator (Equal, NotEqual, In, NotIn)")
        }
        (None, Some(op)) => errors.add(&format!("{at}.matchOperator"), name(op), "needs cidr"),
        _ => {}
    }
    if let Some(cidr) = rule.cidr.filter(|c| matches!(c, IpNet::V4(_)) != v4) {
        let family = if v4 { "IPv4" } else { "IPv6" };
        errors.add(&format!("{at}.cidr"), cidr, format!("the list is for {family}"));
    }
    let Some(PrefixLengthRange { min, max, .. }) = &rule.prefix_length else { return };
    let field = format!("{at}.prefixLength");
    let shown = format!("{}..{}", text(*min), text(*max));
    if rule.cidr.is_none() {
        errors.add(&field, &shown, "needs cidr");
    }
    let longest = if v4 { 32 } else { 128 };
    if (*min).max(*max).is_some_and(|n| n > longest) {
        errors.add(&field, &shown, format!("expected 0 to {longest}"));
    } else if matches!((min, max), (Some(min), Some(max)) if min > max) {
        errors.add(&field, shown, "min is greater than max");
    }
}

fn text(n: Option<u8>) -> String {
    n.map(|n| n.to_string()).unwrap_or_default()
}

fn name(op: MatchOperator) -> String {
    format!("{op:?}")
}

fn operations(at: &str, rule: &BgpFilterRule, errors: &mut Errors) {
    let field = format!("{at}.operations");
    if rule.operations.is_empty() {
        return;
    }
    if rule.action != FilterAction::Accept {
        let reason = "only a rule with action Accept can change attributes";
        errors.add(&field, format!("{} operations", rule.operations.len()), reason);
    }
    errors.at_most(&field, &rule.operations, 10);
    for (j, operation) in rule.operations.iter().enumerate() {
        if let Err(reason) = check_operation(operation) {
            errors.add(&format!("{field}[{j}]"), operation, reason);
        }
    }
}

fn check_operation(operation: &Value) -> Result<(), String> {
    const SHAPES: &str = "expected one of addCommunity: {value: aa:nn}, prependASPath: {prefix: [AS, …]}, setPriority: {value: N}";
    let mut members = operation.as_object().into_iter().flatten();
    let (Some((name, body)), None) = (members.next(), members.next()) else { return Err(SHAPES.into()) };
    match name.as_str() {
        "addCommunity" => {
            let value = body.get("value").and_then(Value::as_str).ok_or(SHAPES)?;
            value.parse::<CommunityValue>().map(drop)
        }
        "prependASPath" => {
            let prefix = body.get("prefix").and_then(Value::as_array).ok_or(SHAPES)?;
            if !(1..=10).contains(&prefix.len()) {
                return Err("prependASPath takes 1 to 10 AS numbers".into());
            }
            prefix.iter().try_for_each(|v| match serde_json::from_value::<AsNumber>(v.clone()) {
                Ok(AsNumber(0)) => Err("AS 0 is reserved (RFC 7607)".into()),
                Ok(_) => Ok(()),
                Err(e) => Err(e.to_string()),
            })
        }
        "setPriority" => match body.get("value").and_then(Value::as_u64) {
            Some(1..=2_147_483_646) => Ok(()),
            _ => Err("setPriority takes a value of 1 to 2147483646".into()),
        },
        _ => Err(SHAPES.into()),
    }
}
