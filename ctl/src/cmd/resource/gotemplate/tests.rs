//! Templates as people write them for kubectl and for calicoctl, wrong ones, and any at all.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn pools() -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPoolList", "items": [
        {"apiVersion": "projectcalico.org/v3", "kind": "IPPool",
         "metadata": {"name": "blue", "labels": {"zone": "a", "Name": "x"}},
         "spec": {"cidr": "10.1.0.0/16", "ipipMode": "Always", "natOutgoing": true, "blockSize": 26,
                  "allowedUses": ["Workload", "Tunnel"]}},
        {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "green"},
         "spec": {"cidr": "10.2.0.0/16", "blockSize": 28, "order": 100.0}},
    ]})
}

fn render(template: &str, value: &Value) -> Result<String, String> {
    let parsed = GoTemplate::parse("t", template)?;
    let mut text = String::new();
    parsed.render(value, &mut |part| text += part)?;
    Ok(text)
}

#[track_caller]
fn shows(template: &str, expected: &str) {
    assert_eq!(render(template, &pools()).as_deref(), Ok(expected), "{template}");
}

#[test]
fn templates_are_those_of_kubectl() {
    for (template, text) in [
        ("plain", "plain"),
        ("{{.kind}}", "IPPoolList"),
        ("{{range .items}}{{.metadata.name}} {{end}}", "blue green "),
        ("{{range $i, $e := .items}}{{$i}}={{$e.spec.cidr}}\n{{end}}", "0=10.1.0.0/16\n1=10.2.0.0/16\n"),
        ("{{range .nothing}}x{{else}}none{{end}}", "none"),
        (
            "{{range .items}}{{if .spec.natOutgoing}}nat{{else if eq .spec.blockSize 28}}28{{else}}-{{end}};{{end}}",
            "nat;28;",
        ),
        ("{{with (index .items 0).spec}}{{.blockSize}}{{end}}", "26"),
        ("{{with .nothing}}x{{else}}y{{end}}", "y"),
        ("{{$n := len .items}}{{/* so many */}}{{$n}}{{$n = 7}}{{$n}}", "27"),
        ("a {{- .kind -}} b", "aIPPoolListb"),
        ("{{.kind | printf \"%-12s|\"}}", "IPPoolList  |"),
        ("{{printf \"%q %v %05d %.1f %x\" .kind true 42 1.25 255}}", "\"IPPoolList\" true 00042 1.2 ff"),
        ("{{print 1 2 \"a\" \"b\" 3}}|{{println .kind 1}}", "1 2ab3|IPPoolList 1\n"),
        ("{{and true .kind}} {{or \"\" \"b\"}} {{not 0}}", "IPPoolList b true"),
        (
            "{{eq 1 2 1}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge \"b\" \"a\"}}",
            "true true true true false true",
        ),
        ("{{slice .kind 0 6}} {{index .items 1 \"metadata\" \"name\"}}", "IPPool green"),
        ("{{html \"<a>\"}} {{js \"it's\"}} {{urlquery \"a b&c\"}}", "&lt;a&gt; it\\'s a+b%26c"),
        ("{{(index .items 1).spec.order}}", "100"),
        ("{{.items | len}}", "2"),
        ("{{.nothing}}", "<no value>"),
        ("{{(index .items 0).spec.allowedUses}}", "[Workload Tunnel]"),
        ("{{(index .items 0).metadata.labels}}", "map[Name:x zone:a]"),
        ("{{range $k, $v := (index .items 0).metadata.labels}}{{$k}}:{{$v}} {{end}}", "Name:x zone:a "),
        (
            "{{range .items}}{{if eq .metadata.name \"green\"}}{{break}}{{end}}{{.metadata.name}}{{end}}",
            "blue",
        ),
        (
            "{{define \"n\"}}<{{.metadata.name}}>{{end}}{{range .items}}{{template \"n\" .}}{{end}}",
            "<blue><green>",
        ),
        ("{{\"\\t\"}}{{`raw`}}{{'a'}}", "\traw97"),
        ("{{join (index .items 0).spec.allowedUses \", \"}}", "Workload, Tunnel"),
        (
            "{{join (index .items 0).metadata.labels \",\"}}|{{join .nothing \",\"}}|{{join 5 \",\"}}",
            "Name=x,zone=a||5",
        ),
        ("{{joinAndTruncate (index .items 0).spec.allowedUses \",\" 10}}", "Workloa..."),
        ("{{range .items}}{{.metadata.labels.Name}}{{end}}", "x<no value>"),
    ] {
        shows(template, text);
    }
}

#[test]
fn templates_in_calicoctls_names_see_what_calicoctl_gives() {
    for (template, text) in [
        ("{{range .}}{{range .Items}}{{.ObjectMeta.Name}} {{end}}{{end}}", "blue green "),
        (
            "{{range .}}{{range .Items}}{{.Name}}={{.Spec.CIDR}} {{.Spec.IPIPMode}};{{end}}{{end}}",
            "blue=10.1.0.0/16 Always;green=10.2.0.0/16 <no value>;",
        ),
        ("{{range .}}{{range .Items}}{{if .Spec.NATOutgoing}}{{.Labels.zone}}{{end}}{{end}}{{end}}", "a"),
        ("{{range .}}{{.Kind}} {{.APIVersion}}{{end}}", "IPPoolList projectcalico.org/v3"),
    ] {
        shows(template, text);
    }
    // One alone is no list of lists.
    let one = pools()["items"][0].clone();
    assert_eq!(render("{{range .}}{{.Spec.CIDR}}{{end}}", &one).as_deref(), Ok("10.1.0.0/16"));
    let asn = GoTemplate::parse("t", "{{config \"asNumber\"}}").unwrap();
    assert!(asn.asks_asn() && !GoTemplate::parse("t", "{{.a}}").unwrap().asks_asn());
    asn.knows_asn("64999");
    let mut text = String::new();
    asn.render(&json!({}), &mut |part| text += part).unwrap();
    assert_eq!(text, "64999");
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let mut wrong = Vec::new();
    for (template, said) in [
        ("a\n  {{.a", "t:2:"),
        ("{{range .items}}x", "t:1:3: {{range}} without {{end}}"),
        ("{{define \"a\"}}x", "t:1:3: {{define}} without {{end}}"),
        ("{{if 1}}a\n{{- with 1}}b{{end}}{{else}}b\n", "t:1:3: {{if}} without {{end}}"),
        ("{{end}}", "t:1:3: {{end}} without a block"),
        ("a{{if 1}}{{end}}\n{{end}}b", "t:2:3: {{end}} without a block"),
        ("{{else}}", "t:1:3: {{else}} without"),
        ("{{if 1}}{{else}}{{else}}{{end}}", "t:1:19: a second {{else}}"),
        ("{{define \"a\"}}{{else}}{{end}}", "t:1:17: {{else}} in {{define}}"),
        ("{{if 1}}{{break}}{{end}}", "t:1:11: {{break}} outside {{range}}"),
        ("{{if 1}}{{define \"a\"}}{{end}}{{end}}", "t:1:11: {{define}} within another block"),
        ("{{/* {{if 1}} */}}{{\"}}{{if 1}}\"}}{{`\"`}}{{'\"'}}{{with 1}}", "{{with}} without {{end}}"),
        ("{{if}}{{end}}", "t:1:"),
        ("{{\"a}}", "t:1:7: unterminated string"),
        ("{{$x}}", "t:1:"),
        ("ä{{\n printff .a}}", "t:2:2: function \"printff\" not defined; did you mean printf?"),
        ("{{template \"no\"}}", "t:1:3: template \"no\" not defined"),
        ("{{define \"a\"}}{{template \"a\"}}{{end}}", "template \"a\" would call itself"),
        ("{{.kind}}\n{{index .items 9}} {{.kind}}", "t:2:3: index out of range: 9"),
        ("{{range .items}}\n{{if .spec}}{{lt .spec 1}}{{end}}{{end}}", "t:2:15: incompatible"),
        ("{{len 3}}", "t:1:3: len"),
        ("{{.kind.x}}", "t:1:3: "),
        ("{{range $i, $e := .kind}}{{end}}", "t:1:"),
        ("{{range 100000000}}{{end}}", "t:1:9: range iteration budget exhausted"),
        ("{{config \"mtu\"}}", "t:1:3: config knows only \"asnumber\""),
        ("{{join 1}}", "t:1:3: join expects 2 arguments, got 1"),
    ] {
        match render(template, &pools()) {
            Err(e) if e.contains(said) => {}
            other => wrong.push(format!("{template}: {other:?} without {said:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_grows_without_end() {
    let doubling = "{{$x := \"0123456789\"}}{{range 64}}{{$x = print $x $x}}{{end}}";
    let e = render(doubling, &json!({})).unwrap_err();
    assert!(e.contains("t:1:") && e.contains("larger than 64 MiB"), "{e}");
    let many = format!("{{{{printf \"{}\" .}}}}", "%65000d".repeat(2000));
    assert!(render(&many, &json!({})).unwrap_err().contains("larger than 64 MiB"));
    let mut laughs = String::from("{{define \"t0\"}}x{{end}}");
    for n in 1..40 {
        laughs += &format!(
            "{{{{define \"t{n}\"}}}}{{{{template \"t{}\"}}}}{{{{template \"t{}\"}}}}{{{{end}}}}",
            n - 1,
            n - 1
        );
    }
    let e = render(&(laughs + "{{template \"t39\"}}"), &json!({})).unwrap_err();
    assert!(e.contains("more than 10000 templates would be called"), "{e}");
    for deep in [
        "{{(".repeat(5000) + "1",
        "((({{".to_owned() + &"(".repeat(20_000),
        "{{if 1}}".repeat(5000) + &"{{end}}".repeat(5000),
        "{{range .}}".repeat(5000),
        format!("{{{{{}}}}}", ".a".repeat(50_000)),
    ] {
        let _ = render(&deep, &json!({}));
    }
}

proptest! {
    /// Pieces of the language in any order: an answer or an error with a place, never a panic.
    #[test]
    fn any_template_is_filled_in_or_refused(
        pieces in prop::collection::vec(prop_oneof![
            Just("{{"), Just("}}"), Just("{{-"), Just("-}}"), Just("{{end}}"), Just("{{else}}"), Just("{{range .items}}"),
            Just("{{range $i, $e := .items}}"), Just("{{if .kind}}"), Just("{{with .items}}"), Just("{{else if 1}}"),
            Just(".items"), Just(".Spec.CIDR"), Just("$i"), Just("$e.spec"), Just("$"), Just(" "), Just(":="), Just("="),
            Just("|"), Just("("), Just(")"), Just("printf "), Just("\"%v %5d %s %*d %[2]q\""), Just("index "), Just("slice "),
            Just("len "), Just("eq "), Just("lt "), Just("join "), Just("\","), Just("-1"), Just("99999999999999999999"),
            Just("1e400"), Just("nil"), Just("true"), Just("{{/* c */}}"), Just("{{define \"a\"}}"), Just("{{template \"a\" .}}"),
            Just("{{break}}"), Just("`"), Just("'x'"), Just("\u{e4}\u{1f600}"), Just("\n"), Just("0x"), Just("\\"),
        ], 0..24),
    ) {
        let text = pieces.concat();
        if let Err(e) = render(&text, &pools()) {
            prop_assert!(e.starts_with('t'), "{e}");
        }
    }

    #[test]
    fn any_text_is_a_template_or_refused(text in "(\\PC|\\{\\{|\\}\\}|\n){0,64}") {
        let _ = render(&text, &pools());
        let _ = render(&format!("{{{{{text}}}}}"), &pools());
    }
}
