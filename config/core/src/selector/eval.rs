//! Applies a selector to labels. `!=` and `not in` hold for an absent label, the other comparisons need it.

use super::Expr;

/// Evaluates; `label` gives the value of a label or `None`.
pub(super) fn eval<'a>(expr: &Expr, label: &dyn Fn(&str) -> Option<&'a str>) -> bool {
    match expr {
        Expr::All | Expr::Global => true,
        Expr::Has(l) => label(l).is_some(),
        Expr::Equal(l, v) => label(l) == Some(v),
        Expr::NotEqual(l, v) => label(l) != Some(v),
        Expr::In(l, values) => label(l).is_some_and(|v| values.contains(v)),
        Expr::NotIn(l, values) => label(l).is_none_or(|v| !values.contains(v)),
        Expr::Contains(l, part) => label(l).is_some_and(|v| v.contains(part.as_str())),
        Expr::StartsWith(l, part) => label(l).is_some_and(|v| v.starts_with(part.as_str())),
        Expr::EndsWith(l, part) => label(l).is_some_and(|v| v.ends_with(part.as_str())),
        Expr::Not(e) => !eval(e, label),
        Expr::And(all) => all.iter().all(|e| eval(e, label)),
        Expr::Or(all) => all.iter().any(|e| eval(e, label)),
    }
}
