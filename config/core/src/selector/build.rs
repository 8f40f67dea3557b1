//! Selectors made of selectors, and what an index needs to know about one.

use std::collections::BTreeSet;

use super::{Expr, Selector};

/// A condition on one label without which a selector cannot match; an index looks selectors up by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The label must have one of these values.
    Values(String, BTreeSet<String>),
    /// The label must be there.
    Present(String),
}

impl Selector {
    /// `has(label)`.
    pub fn has(label: impl Into<String>) -> Self {
        Self { expr: Expr::Has(label.into()) }
    }

    /// `label == "value"`.
    pub fn equal(label: impl Into<String>, value: impl Into<String>) -> Self {
        Self { expr: Expr::Equal(label.into(), value.into()) }
    }

    /// `label in {values}`.
    pub fn one_of(label: impl Into<String>, values: impl IntoIterator<Item = String>) -> Self {
        Self { expr: Expr::In(label.into(), values.into_iter().collect()) }
    }

    /// The opposite.
    pub fn negated(self) -> Self {
        match self.expr {
            Expr::Not(e) => Self { expr: *e },
            e => Self { expr: Expr::Not(Box::new(e)) },
        }
    }

    /// All of them at once; `all()` for none. Parts that are `all()` themselves are left out.
    pub fn all_of(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts: Vec<Expr> = parts.into_iter().map(|s| s.expr).filter(|e| *e != Expr::All).collect();
        match (parts.pop(), parts.is_empty()) {
            (None, _) => Self::all(),
            (Some(one), true) => Self { expr: one },
            (Some(last), false) => {
                parts.push(last);
                Self { expr: Expr::And(parts) }
            }
        }
    }

    /// The same with `prefix` before every label.
    pub fn prefixed(&self, prefix: &str) -> Self {
        Self { expr: renamed(&self.expr, &|label| format!("{prefix}{label}")) }
    }

    /// The condition by which to index it: the one with the fewest values, `None` when it can match without any label.
    pub fn anchor(&self) -> Option<Anchor> {
        anchor(&self.expr)
    }
}

fn renamed(e: &Expr, name: &dyn Fn(&str) -> String) -> Expr {
    let list = |all: &[Expr]| all.iter().map(|e| renamed(e, name)).collect();
    match e {
        Expr::All => Expr::All,
        Expr::Global => Expr::Global,
        Expr::Has(l) => Expr::Has(name(l)),
        Expr::Equal(l, v) => Expr::Equal(name(l), v.clone()),
        Expr::NotEqual(l, v) => Expr::NotEqual(name(l), v.clone()),
        Expr::In(l, v) => Expr::In(name(l), v.clone()),
        Expr::NotIn(l, v) => Expr::NotIn(name(l), v.clone()),
        Expr::Contains(l, v) => Expr::Contains(name(l), v.clone()),
        Expr::StartsWith(l, v) => Expr::StartsWith(name(l), v.clone()),
        Expr::EndsWith(l, v) => Expr::EndsWith(name(l), v.clone()),
        Expr::Not(e) => Expr::Not(Box::new(renamed(e, name))),
        Expr::And(all) => Expr::And(list(all)),
        Expr::Or(all) => Expr::Or(list(all)),
    }
}

fn anchor(e: &Expr) -> Option<Anchor> {
    match e {
        Expr::Equal(l, v) => Some(Anchor::Values(l.clone(), BTreeSet::from([v.clone()]))),
        Expr::In(l, values) => Some(Anchor::Values(l.clone(), values.clone())),
        Expr::Has(l) | Expr::Contains(l, _) | Expr::StartsWith(l, _) | Expr::EndsWith(l, _) => {
            Some(Anchor::Present(l.clone()))
        }
        // A label every pod has, such as the orchestrator, is a poor choice.
        Expr::And(all) => all.iter().filter_map(anchor).min_by_key(|a| match a {
            Anchor::Values(l, _) if l == crate::convert::LABEL_ORCHESTRATOR => 10_000,
            Anchor::Values(l, v) if l == crate::convert::LABEL_NAMESPACE => 100 + v.len(),
            Anchor::Values(_, v) => v.len(),
            Anchor::Present(l) if l.starts_with("projectcalico.org/") => 20_000,
            Anchor::Present(_) => 1000,
        }),
        Expr::Or(all) => {
            let mut parts = all.iter().map(anchor);
            let first = parts.next()??;
            parts.try_fold(first, |a, b| match (a, b?) {
                (Anchor::Values(l, mut v), Anchor::Values(m, w)) if l == m => {
                    v.extend(w);
                    Some(Anchor::Values(l, v))
                }
                (Anchor::Values(l, _) | Anchor::Present(l), Anchor::Values(m, _) | Anchor::Present(m))
                    if l == m =>
                {
                    Some(Anchor::Present(l))
                }
                _ => None,
            })
        }
        Expr::All | Expr::Global | Expr::NotEqual(..) | Expr::NotIn(..) | Expr::Not(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn s(text: &str) -> Selector {
        Selector::parse(text).expect(text)
    }

    #[test]
    fn combining_prints_what_parsing_gives() {
        let both = Selector::all_of([s("a == 'b'"), Selector::all(), s("has(c)").negated()]);
        assert_eq!(both.to_string(), "(a == \"b\" && !has(c))");
        assert_eq!(Selector::all_of([s("all()"), s("has(x)")]), s("has(x)"));
        assert_eq!(Selector::all_of([]), Selector::all());
        assert_eq!(s("!has(a)").negated(), s("has(a)"));
        assert_eq!(s("a in {'x'} || !has(b)").prefixed("pcns."), s("pcns.a in {'x'} || !has(pcns.b)"));
    }

    #[test]
    fn anchors_are_necessary_conditions() {
        for (text, label) in [
            ("a == 'x'", Some("a")),
            ("a == 'x' || a in {'y'}", Some("a")),
            ("a == 'x' || has(a)", Some("a")),
            ("a == 'x' || b == 'y'", None),
            ("a != 'x'", None),
            ("!has(a)", None),
            ("has(a) && b == 'x'", Some("b")),
            ("a != 'x' && b starts with 'x'", Some("b")),
            ("all()", None),
        ] {
            let selector = s(text);
            let anchor = selector.anchor();
            let found = anchor.as_ref().map(|(Anchor::Values(l, _) | Anchor::Present(l))| l.as_str());
            assert_eq!(found, label, "{text}");
            assert!(anchor.is_none() || !selector.matches(&BTreeMap::new()), "{text}");
        }
    }
}
