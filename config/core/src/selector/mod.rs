//! Calico's label selectors: `role == "db" && (has(zone) || env in {"a", "b"})`.
//!
//! `lex` cuts text into tokens, `parse` builds the tree, `eval` applies it to labels. [`Selector`]'s `Display` is
//! the canonical form that Calico prints and hashes: parsing it gives the same selector again.

mod build;
mod eval;
mod lex;
mod parse;

#[cfg(test)]
mod tests;

pub use build::Anchor;
pub use parse::SelectorError;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// A parsed selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    expr: Expr,
}

/// The tree. Children of `And` and `Or` are at least two; `Not` never holds a `Not`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Expr {
    All,
    /// `global()`: true; only meaningful alone, as a rule's `namespaceSelector`.
    Global,
    Has(String),
    Equal(String, String),
    /// Also true when the label is absent.
    NotEqual(String, String),
    In(String, BTreeSet<String>),
    /// Also true when the label is absent.
    NotIn(String, BTreeSet<String>),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

impl Selector {
    /// Matches everything; what an empty text means.
    pub const fn all() -> Self {
        Self { expr: Expr::All }
    }

    /// Parses a selector. The error has the position and says what would be right.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::parse(text).map(|expr| Self { expr })
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// The same over any source of labels, e.g. own labels first and inherited ones behind them.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        eval::eval(&self.expr, &label)
    }

    /// Calico's id of the selector, 40 characters, the same for all spellings: `s:` and a hash of the canonical form.
    pub fn unique_id(&self) -> String {
        use sha2::{Digest, Sha224};
        let hash = Sha224::digest(format!("s:{self}"));
        format!("s:{}", crate::names::base_n::<6>(&hash, crate::names::BASE64_URL))
    }

    /// Whether this is plain `all()` (or empty).
    pub fn is_all(&self) -> bool {
        self.expr == Expr::All
    }

    /// Whether this is plain `global()`.
    pub fn is_global(&self) -> bool {
        self.expr == Expr::Global
    }

    /// Whether `global()` occurs anywhere in it.
    pub fn uses_global(&self) -> bool {
        fn uses(expr: &Expr) -> bool {
            match expr {
                Expr::Global => true,
                Expr::Not(e) => uses(e),
                Expr::And(all) | Expr::Or(all) => all.iter().any(uses),
                _ => false,
            }
        }
        uses(&self.expr)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(s: &str) -> Result<Self, SelectorError> {
        Self::parse(s)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr.fmt(f)
    }
}

/// A value in quotes. There are no escapes: a value cannot hold both kinds of quote.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |f: &mut fmt::Formatter<'_>, label: &str, op: &str, values: &BTreeSet<String>| {
            write!(f, "{label} {op} {{")?;
            for (i, value) in values.iter().enumerate() {
                write!(f, "{}{}", if i == 0 { "" } else { ", " }, Quoted(value))?;
            }
            f.write_str("}")
        };
        let list = |f: &mut fmt::Formatter<'_>, op: &str, all: &[Self]| {
            f.write_str("(")?;
            for (i, e) in all.iter().enumerate() {
                write!(f, "{}{e}", if i == 0 { "" } else { op })?;
            }
            f.write_str(")")
        };
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(l) => write!(f, "has({l})"),
            Self::Equal(l, v) => write!(f, "{l} == {}", Quoted(v)),
            Self::NotEqual(l, v) => write!(f, "{l} != {}", Quoted(v)),
            Self::In(l, values) => set(f, l, "in", values),
            Self::NotIn(l, values) => set(f, l, "not in", values),
            Self::Contains(l, v) => write!(f, "{l} contains {}", Quoted(v)),
            Self::StartsWith(l, v) => write!(f, "{l} starts with {}", Quoted(v)),
            Self::EndsWith(l, v) => write!(f, "{l} ends with {}", Quoted(v)),
            Self::Not(e) => write!(f, "!{e}"),
            Self::And(all) => list(f, " && ", all),
            Self::Or(all) => list(f, " || ", all),
        }
    }
}
