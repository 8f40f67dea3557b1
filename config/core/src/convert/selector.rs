//! Label selectors of Kubernetes as Calico selectors.

use crate::kube::LabelSelector;

/// A quoted value; no label can hold both kinds of quote.
fn quoted(value: &str) -> Result<String, String> {
    match (value.contains('\''), value.contains('"')) {
        (false, _) => Ok(format!("'{value}'")),
        (true, false) => Ok(format!("\"{value}\"")),
        (true, true) => Err(format!("{value:?} can be no label: it holds both kinds of quote")),
    }
}

/// The terms of a selector joined by `&&`, empty for one that selects everything.
pub(super) fn terms(s: &LabelSelector) -> Result<String, String> {
    let mut out = Vec::new();
    for (key, value) in &s.match_labels {
        out.push(format!("{key} == {}", quoted(value)?));
    }
    for e in &s.match_expressions {
        let set = || -> Result<String, String> {
            let values: Result<Vec<String>, String> = e.values.iter().map(|v| quoted(v)).collect();
            match values?.as_slice() {
                [] => Err(format!("operator {} needs values", e.operator)),
                values => Ok(format!("{{ {} }}", values.join(", "))),
            }
        };
        out.push(match e.operator.as_str() {
            "In" => format!("{} in {}", e.key, set()?),
            "NotIn" => format!("{} not in {}", e.key, set()?),
            "Exists" => format!("has({})", e.key),
            "DoesNotExist" => format!("! has({})", e.key),
            other => {
                return Err(format!("operator {other:?}: expected In, NotIn, Exists or DoesNotExist"));
            }
        });
    }
    let text = out.join(" && ");
    crate::Selector::parse(&text).map(|_| text).map_err(|e| e.to_string())
}

/// A selector of pods.
pub(super) fn pods(s: &LabelSelector) -> Result<String, String> {
    let terms = terms(s)?;
    let mut out = format!("{} == 'k8s'", super::LABEL_ORCHESTRATOR);
    if !terms.is_empty() {
        out.push_str(" && ");
        out.push_str(&terms);
    }
    Ok(out)
}

/// A selector of namespaces.
pub(super) fn namespaces(s: &LabelSelector) -> Result<String, String> {
    let terms = terms(s)?;
    Ok(if terms.is_empty() { "all()".into() } else { terms })
}
