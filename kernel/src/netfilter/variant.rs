//! Which iptables this machine uses. Rules of both kinds are in force at the same time when both are filled, so that
//! what one accepts the other may drop: a mixture is refused.

use std::fmt;

/// The two makes of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    Legacy,
    Nft,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        })
    }
}

/// What was found of one make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VariantChoice {
    /// The kubelet's hint chain is there.
    pub hint: bool,
    /// Rules of others.
    pub foreign: usize,
}

impl VariantChoice {
    /// Reads iptables-save; `ours` tells our rules.
    pub fn of(save: &str, ours: impl Fn(&str) -> bool) -> Self {
        let hint = save
            .lines()
            .any(|l| l.starts_with(":KUBE-IPTABLES-HINT ") || l.starts_with(":KUBE-KUBELET-CANARY "));
        let foreign = save.lines().filter(|l| l.starts_with("-A ") && !ours(l)).count();
        Self { hint, foreign }
    }
}

/// The make to use: where the kubelet's hint is, else where others have their rules, else `default` (what the plain
/// name `iptables` is on this machine).
pub fn choose(legacy: VariantChoice, nft: VariantChoice, default: Variant) -> Result<Variant, String> {
    match (nft.hint, legacy.hint) {
        (true, _) => return Ok(Variant::Nft),
        (false, true) => return Ok(Variant::Legacy),
        (false, false) => {}
    }
    match (legacy.foreign, nft.foreign) {
        (0, 0) => Ok(default),
        (_, 0) => Ok(Variant::Legacy),
        (0, _) => Ok(Variant::Nft),
        (l, n) => Err(format!(
            "both iptables-legacy ({l} rules) and iptables-nft ({n} rules) are in use, and packets would meet both; remove \
             the rules of one of them, or set iptablesBackend to Legacy or NFT in the FelixConfiguration"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_then_rules_then_the_default_and_a_mixture_is_refused() {
        let none = VariantChoice::default();
        let some = VariantChoice { hint: false, foreign: 3 };
        let hint = VariantChoice { hint: true, foreign: 0 };
        assert_eq!(choose(none, none, Variant::Nft), Ok(Variant::Nft));
        assert_eq!(choose(some, none, Variant::Nft), Ok(Variant::Legacy));
        assert_eq!(choose(none, some, Variant::Legacy), Ok(Variant::Nft));
        assert_eq!(choose(some, hint, Variant::Legacy), Ok(Variant::Nft));
        assert_eq!(choose(hint, some, Variant::Nft), Ok(Variant::Legacy));
        let e = choose(some, some, Variant::Nft).unwrap_err();
        assert!(e.contains("iptables-legacy (3 rules)") && e.contains("iptablesBackend"), "{e}");
    }
}
