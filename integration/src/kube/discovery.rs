//! What kinds there are, as clients ask: /api, /apis, their groups and versions, and /version.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    state::State,
    status::{Answer, Status},
};

/// The version this server claims to be.
pub(crate) fn version() -> Value {
    json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64"})
}

/// Group → versions, the preferred one first.
fn groups(state: &State) -> BTreeMap<&str, Vec<&str>> {
    let mut out: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for c in state.collections.values() {
        let versions = out.entry(&c.kind.group).or_default();
        for v in c.kind.versions.iter().filter(|v| v.served) {
            if !versions.contains(&v.name.as_str()) {
                versions.push(&v.name);
            }
        }
    }
    out.values_mut().for_each(|v| v.sort_by_key(|v| std::cmp::Reverse(priority(v))));
    out
}

/// Order of versions: stable ones before beta before alpha, later numbers first.
fn priority(version: &str) -> (u8, u32, u32) {
    let number = |s: &str| s.parse::<u32>().ok();
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    if let Some(n) = number(rest) {
        return (3, n, 0);
    }
    for (word, rank) in [("beta", 2), ("alpha", 1)] {
        if let Some((a, b)) = rest.split_once(word)
            && let (Some(a), Some(b)) = (number(a), number(b))
        {
            return (rank, a, b);
        }
    }
    (0, 0, 0)
}

fn group(name: &str, versions: &[&str]) -> Value {
    let entry = |v: &str| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    json!({"name": name, "versions": versions.iter().map(|v| entry(v)).collect::<Vec<_>>(),
        "preferredVersion": entry(versions.first().copied().unwrap_or("v1"))})
}

fn resources(state: &State, wanted: &str, version: &str) -> Answer<Value> {
    let mut list = Vec::new();
    let mut known = false;
    for c in state.collections.values().filter(|c| c.kind.group == wanted) {
        if let Some(v) = c.kind.version(version) {
            known = true;
            list.extend(c.kind.discovery(v));
        }
    }
    if !known {
        return Err(Status::page_not_found());
    }
    let gv = if wanted.is_empty() { version.to_owned() } else { format!("{wanted}/{version}") };
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": list}))
}

/// Answers a discovery path.
pub(crate) fn answer(state: &State, path: &[&str], address: &str) -> Answer<Value> {
    match path {
        ["version"] => Ok(version()),
        ["api"] => Ok(json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})),
        ["api", version] => resources(state, "", version),
        ["apis"] => {
            let all = groups(state);
            let all: Vec<_> = all.iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, v)).collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all}))
        }
        ["apis", name] => {
            let all = groups(state);
            let Some(v) = all.get(name).filter(|_| !name.is_empty()) else {
                return Err(Status::page_not_found());
            };
            let mut g = group(name, v);
            g["kind"] = "APIGroup".into();
            g["apiVersion"] = "v1".into();
            Ok(g)
        }
        ["apis", group, version] if !group.is_empty() => resources(state, group, version),
        _ => Err(Status::page_not_found()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut v = vec!["v1beta1", "v2alpha1", "v1", "foo", "v10", "v2beta3"];
        v.sort_by_key(|v| std::cmp::Reverse(priority(v)));
        assert_eq!(v, ["v10", "v1", "v2beta3", "v1beta1", "v2alpha1", "foo"]);
    }

    #[test]
    fn the_groups_and_resources_are_listed() {
        let s = State::new(String::new());
        let core = answer(&s, &["api", "v1"], "").unwrap();
        let names: Vec<_> =
            core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"pods/status") && names.contains(&"serviceaccounts/token"), "{names:?}");
        assert_eq!(answer(&s, &["apis", "apps"], "").unwrap()["preferredVersion"]["groupVersion"], "apps/v1");
        assert_eq!(answer(&s, &["apis", "none"], "").unwrap_err().message, "404 page not found\n");
    }
}
