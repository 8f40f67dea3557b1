//! `importRoutes:` of the file: which routes of the kernel are announced.

use std::collections::BTreeMap;

use brindle_config::yaml::Problem;
use brindle_config_core::bgp::BgpFilterSpec;
use brindle_kernel::netlink::TABLE_MAIN;
use serde::Deserialize;

use super::Check;
use crate::{
    import::{ImportRule, Imports, Source},
    peers::filters::compile,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Import {
    protocol: Protocol,
    #[serde(default = "main")]
    table: u32,
    #[serde(default)]
    interface: Option<String>,
    #[serde(default)]
    default_route: bool,
    #[serde(default)]
    med: Option<u32>,
    #[serde(default)]
    filter: Option<String>,
}

/// A word, or a number without quotes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Protocol {
    Number(u8),
    Name(String),
}

const fn main() -> u32 {
    TABLE_MAIN
}

impl Check<'_> {
    pub(super) fn imports(
        &self,
        list: Vec<Import>,
        filters: &BTreeMap<String, BgpFilterSpec>,
    ) -> Result<Imports, Problem> {
        let mut rules = Vec::with_capacity(list.len());
        for (i, r) in list.into_iter().enumerate() {
            let fail = |field: &str, what: String| self.fail(format!("importRoutes[{i}].{field}"), what);
            let name = match r.protocol {
                Protocol::Number(n) => n.to_string(),
                Protocol::Name(name) => name,
            };
            let source = match Source::parse(&name) {
                Ok(source) => source,
                Err(what) => return fail("protocol", what),
            };
            let mut rule = ImportRule {
                table: r.table,
                interface: r.interface,
                default_route: r.default_route,
                med: r.med,
                ..ImportRule::of(source)
            };
            if let Some(name) = r.filter {
                let Some(spec) = filters.get(&name) else {
                    return fail("filter", format!("there is no filter {name} in filters"));
                };
                match compile([(name.as_str(), spec)]) {
                    Ok(policies) => rule.policy = policies.import,
                    Err(what) => return fail("filter", what),
                }
            }
            rules.push(rule);
        }
        Ok(Imports { rules, exclude: Vec::new() })
    }
}
