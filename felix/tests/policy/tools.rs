//! What is rendered is what the tools take: the whole rule sets kept in `golden/`, and whatever a user may write into the
//! words of a rule. One refused line would hold back all others.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use brindle_felix_core::rules::{
    iptables,
    ir::{self, Family, Table},
    nft, nft_plan,
    sets::WantedSets,
    table_plan::{self, Leftovers, Seen},
};
use brindle_kernel::netfilter::{IpVersion, Netfilter as _, NfError, Tools, Variant};

use super::Ns;

fn tools<T: Send>(variant: Variant, f: impl FnOnce(&mut Tools) -> Result<T, NfError> + Send) -> T {
    Ns::new("t").run(|| f(&mut Tools::new(variant))).unwrap_or_else(|e| panic!("{variant}: {e}"))
}

#[allow(clippy::disallowed_methods, reason = "the files are those of a test")]
fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("core/tests/policy/golden");
    fs::read_to_string(folder.join(name)).expect("a golden file")
}

#[test]
fn the_golden_rule_sets_are_taken_by_the_tools() {
    for (version, digit) in [(IpVersion::V4, 4), (IpVersion::V6, 6)] {
        let text = golden(&format!("iptables-ipv{digit}.txt"));
        let (sets, tables) = text.split_at(text.find('*').expect("a table"));
        for variant in [Variant::Legacy, Variant::Nft] {
            tools(variant, |nf| {
                nf.restore_sets(sets)?;
                nf.restore(version, tables)
            });
        }
        tools(Variant::Nft, |nf| nf.nft(&golden(&format!("nftables-ipv{digit}.txt"))));
    }
}

/// Each letter alone, beside itself, between others, before what would be a name.
fn words() -> Vec<String> {
    let letters = (0..0x180_u32).filter_map(char::from_u32).chain(['\u{2028}', '\u{1f980}']);
    letters
        .flat_map(|c| [c.to_string(), format!("{c}{c}"), format!("a{c}b "), format!(" {c}{{a}}{c}")])
        .collect()
}

#[test]
fn whatever_a_log_prefix_or_a_comment_says_is_taken_by_the_tools() {
    let rule = |w: String| ir::Rule::new(Vec::new(), ir::Action::Log { prefix: format!("{w}: ") }).because(w);
    let chain = ir::Chain::new("brindle-pi-words", words().into_iter().map(rule).collect());
    for family in Family::ALL {
        let version = if family == Family::V4 { IpVersion::V4 } else { IpVersion::V6 };
        let text = |t: iptables::Text| BTreeMap::from([(t.name.clone(), Arc::new(t))]);
        let wanted =
            table_plan::Wanted { chains: text(iptables::chain(family, &chain)), ..Default::default() };
        let none = table_plan::Actual::default();
        let plan = table_plan::plan(Table::Filter, &wanted, &none, &Seen::new(), Leftovers::Remove);
        for variant in [Variant::Legacy, Variant::Nft] {
            tools(variant, |nf| nf.restore(version, &plan.input));
        }
        let wanted = nft_plan::Wanted {
            chains: text(nft::chain(family, Table::Filter, &chain)),
            ..Default::default()
        };
        let none = nft_plan::Actual::default();
        let plan = nft_plan::plan(family, &wanted, &WantedSets::new(), &none, Leftovers::Remove, None);
        tools(Variant::Nft, |nf| nf.nft(&format!("{}{}", plan.input, plan.late)));
    }
}
