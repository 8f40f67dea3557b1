//! What `KIND NAME..` means: kinds by any of their names, `KIND/NAME`, several kinds with commas.

use anyhow::{Result, bail, ensure};
use brindle_config_core::{Key, Kind};

use crate::{lab::progress::wrap, out::WIDTH};

/// What a person asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Everything of these kinds.
    Kinds(Vec<Kind>),
    /// These resources.
    Named(Vec<Key>),
}

/// A kind by any of its names; a mistake gets a suggestion.
pub(crate) fn kind(word: &str) -> Result<Kind> {
    if let Some(kind) = Kind::find(word) {
        return Ok(kind);
    }
    match Kind::closest(word) {
        Some(meant) => bail!("unknown kind {word:?}; did you mean {}?", meant.as_str()),
        None => {
            bail!("unknown kind {word:?}; expected one of{}", all_kinds())
        }
    }
}

/// Every kind in lines of their own; more than one line would hold.
fn all_kinds() -> String {
    let all: Vec<_> = Kind::ALL.iter().map(|k| k.plural()).collect();
    let lines = wrap(&all.join(", "), WIDTH - 2);
    lines.iter().map(|l| format!("\n  {l}")).collect()
}

/// Reads words into a selection.
pub(crate) fn selection(words: &[String], namespace: Option<&str>) -> Result<Selection> {
    let Some(first) = words.first() else {
        bail!("which kind? Name files with -f, or one of{}", all_kinds())
    };
    if first.contains('/') {
        let keys = words.iter().map(|word| {
            let Some((k, name)) = word.split_once('/') else {
                bail!("{word:?}: expected KIND/NAME like the words before")
            };
            key(kind(k)?, namespace, name)
        });
        return keys.collect::<Result<_>>().map(Selection::Named);
    }
    let kinds = first.split(',').map(kind).collect::<Result<Vec<_>>>()?;
    match (kinds.as_slice(), words.get(1..).unwrap_or_default()) {
        (_, []) => Ok(Selection::Kinds(kinds)),
        ([one], names) => {
            names.iter().map(|n| key(*one, namespace, n)).collect::<Result<_>>().map(Selection::Named)
        }
        _ => bail!(
            "names go with one kind, not with {first:?}; write KIND/NAME for resources of several kinds"
        ),
    }
}

/// The key of a named resource.
pub(crate) fn key(kind: Kind, namespace: Option<&str>, name: &str) -> Result<Key> {
    ensure!(!name.is_empty(), "resource name may not be empty");
    Ok(Key::new(kind, namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn kinds_have_many_names() {
        assert_eq!(
            selection(&words("pools,bgpp"), None).unwrap(),
            Selection::Kinds(vec![Kind::IpPool, Kind::BgpPeer])
        );
        let a = Key::new(Kind::IpPool, None, "a");
        let b = Key::new(Kind::IpPool, None, "b");
        assert_eq!(selection(&words("ippool a b"), None).unwrap(), Selection::Named(vec![a.clone(), b]));
        let n = Key::new(Kind::Node, None, "n");
        assert_eq!(selection(&words("ipp/a node/n"), None).unwrap(), Selection::Named(vec![a, n]));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "which kind?"),
            ("ippol", "did you mean IPPool?"),
            ("gnpp", "did you mean GlobalNetworkPolicy?"),
            ("deployment", "expected one of\n  ippools"),
            ("ipp,node x", "one kind"),
            ("ipp/a b", "KIND/NAME"),
            ("ipp/", "may not be empty"),
        ] {
            let e = selection(&words(text), None).expect_err(text).to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
