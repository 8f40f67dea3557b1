//! Grammar by examples, canonical form, and agreement with a naive evaluator.

use proptest::prelude::*;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn canonical(text: &str) -> String {
    Selector::parse(text).unwrap_or_else(|e| panic!("{e}")).to_string()
}

#[test]
fn accepted_texts_have_calicos_canonical_form() {
    for (text, want) in [
        ("", "all()"),
        (" \t ", "all()"),
        ("all( )", "all()"),
        ("global()", "global()"),
        ("foo=='bar'", "foo == \"bar\""),
        ("foo == 'a\"b'", "foo == 'a\"b'"),
        ("has( projectcalico.org/namespace )", "has(projectcalico.org/namespace)"),
        ("a in {'z','b' , 'b',}", "a in {\"b\", \"z\"}"),
        ("a in{}", "a in {}"),
        ("a not in {'x'}", "a not in {\"x\"}"),
        ("a notin {'x'}", "a not in {\"x\"}"),
        ("a not\t in {'x'}", "a not in {\"x\"}"),
        ("a contains 'x'", "a contains \"x\""),
        ("a startswith 'x'", "a starts with \"x\""),
        ("a starts with 'x'", "a starts with \"x\""),
        ("a endswith 'x'", "a ends with \"x\""),
        ("a ends  with 'x'", "a ends with \"x\""),
        ("!all()", "!all()"),
        ("!!has(a)", "has(a)"),
        ("!(!has(a))", "has(a)"),
        ("! ! !has(a)", "!has(a)"),
        ("!(has(b)||!has(a))", "!(has(b) || !has(a))"),
        ("!(a == \"b\" && !c != \"d\")", "!(a == \"b\" && !c != \"d\")"),
        ("has(a)&&has(b)||has(c)", "((has(a) && has(b)) || has(c))"),
        ("has(a) && has(b) && has(c)", "(has(a) && has(b) && has(c))"),
        ("(has(a) && has(b)) && has(c)", "((has(a) && has(b)) && has(c))"),
        ("((has(a)))", "has(a)"),
        ("in in {'in'}", "in in {\"in\"}"),
        ("all == 'x'", "all == \"x\""),
        ("has == 'x'", "has == \"x\""),
        ("contains contains 'x'", "contains contains \"x\""),
        ("a == 'line\nbreak'", "a == \"line\nbreak\""),
        ("a.b/c-d_e == ''", "a.b/c-d_e == \"\""),
    ] {
        assert_eq!(canonical(text), want, "{text}");
        assert_eq!(canonical(want), want);
    }
}

#[test]
fn unique_ids_are_calicos() {
    for (text, want) in [
        ("", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"),
        ("!all()", "s:Z9zLaL1EHxF9kgXz1JwBD_e-AJbeJyFDpG-oKw"),
        ("foo == 'bar'", "s:KFMvceMXUppWzK90Qfbm3acGhvce0jmCAt1S_A"),
        ("has(projectcalico.org/namespace)", "s:2dAotJA2sZ5pOhC_BaBuAFekzFsoGV350DfHsw"),
        ("!(has(b) || !has(a))", "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q"),
        ("!(a == 'b' && !c != 'd')", "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w"),
    ] {
        assert_eq!(Selector::parse(text).expect(text).unique_id(), want, "{text}");
    }
}

#[test]
fn refused_texts_name_the_column_and_what_would_be_right() {
    let mut shown = String::new();
    for text in [
        "a",
        "a ==",
        "a == b",
        "a = 'b'",
        "a == 'b",
        "a == 'b' c",
        "a == 'b' &&",
        "&& a == 'b'",
        "a == 'b' & has(c)",
        "has(a",
        "has()",
        "has (a)",
        "all (x)",
        "all(x)",
        "(has(a)",
        "has(a))",
        "a in 'x'",
        "a in {'x' 'y'}",
        "a in {,}",
        "a in {'x'",
        "a inside {'x'}",
        "a not {'x'}",
        "a starts 'x'",
        "!",
        "a == 'b'\n",
        "ä == 'b'",
        "a == 'ä' ü",
        "'a' == 'b'",
        "()",
    ] {
        let e = Selector::parse(text).expect_err(text);
        shown.push_str(&format!("{e}\n"));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn too_deep_and_too_long_are_errors_not_crashes() {
    let deep = format!("{}has(a){}", "(".repeat(5000), ")".repeat(5000));
    assert!(Selector::parse(&deep).expect_err("too deep").to_string().contains("nested"));
    let fits = format!("{}has(a){}", "(".repeat(200), ")".repeat(200));
    assert_eq!(canonical(&fits), "has(a)");
    assert_eq!(canonical(&format!("{}has(a)", "!".repeat(100_001))), "!has(a)");
    assert!(Selector::parse(&format!("has({})", "a".repeat(512))).is_ok());
    assert!(Selector::parse(&format!("has({})", "a".repeat(513))).is_err());
}

#[test]
fn absence_satisfies_only_the_negative_comparisons() {
    let none = labels(&[]);
    for (text, want) in [
        ("a == 'x'", false),
        ("a != 'x'", true),
        ("a in {'x'}", false),
        ("a not in {'x'}", true),
        ("a contains ''", false),
        ("a starts with ''", false),
        ("a ends with ''", false),
        ("has(a)", false),
        ("!has(a)", true),
        ("all()", true),
        ("global()", true),
        ("", true),
    ] {
        assert_eq!(Selector::parse(text).expect(text).matches(&none), want, "{text}");
    }
}

#[test]
fn comparisons_look_at_the_whole_value() {
    let l = labels(&[("a", "abc"), ("empty", "")]);
    for (text, want) in [
        ("a == 'abc'", true),
        ("a == 'ab'", false),
        ("a != 'abc'", false),
        ("a contains 'b'", true),
        ("a contains 'd'", false),
        ("a starts with 'ab'", true),
        ("a ends with 'bc'", true),
        ("a ends with 'ab'", false),
        ("a in {}", false),
        ("a not in {}", true),
        ("a in {'x', 'abc'}", true),
        ("empty == ''", true),
        ("has(empty)", true),
        ("has(a) && has(b) || a == 'abc'", true),
        ("has(a) && (has(b) || a == 'x')", false),
    ] {
        assert_eq!(Selector::parse(text).expect(text).matches(&l), want, "{text}");
    }
}

#[test]
fn global_is_found_wherever_it_is() {
    let s = |t: &str| Selector::parse(t).expect(t);
    assert!(s("global()").is_global() && s("!(has(a) || global())").uses_global());
    assert!(!s("has(a)").uses_global() && !s("!global()").is_global());
    assert!(s("").is_all() && Selector::all().is_all());
}

/// Few labels and values, so that matches are frequent.
fn label_name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-d]", Just("in".to_owned()), "[A-Za-z0-9_./-]{1,12}"]
}

fn label_value() -> impl Strategy<Value = String> {
    prop_oneof!["[xyz]{0,2}", "[^'\"]{0,6}", "[^\"]{0,4}", "[^']{0,4}"]
}

fn expr() -> impl Strategy<Value = Expr> {
    let set = || proptest::collection::btree_set(label_value(), 0..3);
    let leaf = prop_oneof![
        Just(Expr::All),
        Just(Expr::Global),
        label_name().prop_map(Expr::Has),
        (label_name(), label_value()).prop_map(|(l, v)| Expr::Equal(l, v)),
        (label_name(), label_value()).prop_map(|(l, v)| Expr::NotEqual(l, v)),
        (label_name(), set()).prop_map(|(l, v)| Expr::In(l, v)),
        (label_name(), set()).prop_map(|(l, v)| Expr::NotIn(l, v)),
        (label_name(), label_value()).prop_map(|(l, v)| Expr::Contains(l, v)),
        (label_name(), label_value()).prop_map(|(l, v)| Expr::StartsWith(l, v)),
        (label_name(), label_value()).prop_map(|(l, v)| Expr::EndsWith(l, v)),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|e| match e {
                Expr::Not(e) => *e,
                e => Expr::Not(Box::new(e)),
            }),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
            proptest::collection::vec(inner, 2..4).prop_map(Expr::Or),
        ]
    })
}

/// Evaluates by the grammar's sentences, without sharing code with `eval`: every leaf becomes a truth value first.
fn naive(e: &Expr, l: &BTreeMap<String, String>) -> bool {
    let test =
        |k: &String, holds: &dyn Fn(&str) -> bool| l.iter().find(|(key, _)| *key == k).map(|(_, v)| holds(v));
    match e {
        Expr::All | Expr::Global => true,
        Expr::Has(k) => l.keys().any(|key| key == k),
        Expr::Equal(k, v) => test(k, &|x| x == v) == Some(true),
        Expr::NotEqual(k, v) => test(k, &|x| x == v) != Some(true),
        Expr::In(k, set) => set.iter().any(|v| test(k, &|x| x == v) == Some(true)),
        Expr::NotIn(k, set) => !set.iter().any(|v| test(k, &|x| x == v) == Some(true)),
        Expr::Contains(k, v) => test(k, &|x| x.match_indices(v.as_str()).next().is_some()) == Some(true),
        Expr::StartsWith(k, v) => test(k, &|x| x.strip_prefix(v.as_str()).is_some()) == Some(true),
        Expr::EndsWith(k, v) => test(k, &|x| x.strip_suffix(v.as_str()).is_some()) == Some(true),
        Expr::Not(e) => !naive(e, l),
        Expr::And(all) => all.iter().filter(|e| naive(e, l)).count() == all.len(),
        Expr::Or(all) => all.iter().filter(|e| naive(e, l)).count() > 0,
    }
}

proptest! {
    #[test]
    fn printing_and_parsing_is_the_identity(e in expr()) {
        let s = Selector { expr: e };
        prop_assert_eq!(Selector::parse(&s.to_string()), Ok(s));
    }

    #[test]
    fn evaluation_agrees_with_the_naive_oracle(
        e in expr(),
        l in proptest::collection::btree_map(label_name(), label_value(), 0..6),
    ) {
        let s = Selector { expr: e };
        prop_assert_eq!(s.matches(&l), naive(&s.expr, &l));
    }

    #[test]
    fn any_text_is_read_or_refused_at_a_column_of_it(text in "[a-c(){}!&|='\", \tinhas\\PC]{0,40}") {
        match Selector::parse(&text) {
            Ok(s) => prop_assert_eq!(Selector::parse(&s.to_string()), Ok(s)),
            Err(e) => {
                // One past the end is where something is missing.
                prop_assert!((1..=text.chars().count() + 1).contains(&e.column), "{}", e);
                prop_assert_eq!(&e.text, &text);
                prop_assert!(!e.expected.is_empty() && e.to_string().contains(&e.column.to_string()), "{}", e);
            }
        }
    }
}
