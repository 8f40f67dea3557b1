//! Golden readings of good and bad documents, and the laws of writing and reading back.

use std::fmt::Write;

use brindle_config_core::{AnyResource, Kind};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::TempDir;

/// Everything a person would see.
fn shown(loading: &Loading) -> String {
    let mut out = String::new();
    for Loaded { resource, origin } in &loading.resources {
        writeln!(out, "read {} from {}", resource.key(), origin.place()).expect("strings take text");
    }
    for (what, problems) in [("warning", &loading.warnings), ("error", &loading.errors)] {
        for p in problems {
            writeln!(out, "{what}: {p}").expect("strings take text");
        }
    }
    out
}

const GOOD: &str = r#"# Everything a small cluster has
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: default-ipv4-ippool
  labels: {rack: 014, canary: yes, ratio: 1.10, empty: }
  creationTimestamp: null
spec:
  cidr: 10.244.0.0/16
  ipipMode: CrossSubnet
  natOutgoing: yes
  blockSize: 26
  nodeSelector: all()
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  asNumber: 64512.10
  nodeToNodeMeshEnabled: true
  serviceClusterIPs:
  - cidr: 10.96.0.0/12
  - cidr: 10.97.0.1
  logSeverityScreen: Info
---
{"apiVersion": "projectcalico.org/v3", "kind": "BGPPeer", "metadata": {"name": "tor"},
 "spec": {"peerIP": "192.0.2.1", "asNumber": "65001", "nodeSelector": "rack == 'a'"}}
...
apiVersion: v1
kind: List
items:
- apiVersion: projectcalico.org/v3
  kind: Node
  metadata: {name: node-1}
- apiVersion: projectcalico.org/v3
  kind: IPAMConfig
  metadata: {name: default}
  spec: {strictAffinity: true, maxBlocksPerHost: 4}
---
apiVersion: projectcalico.org/v3
kind: IPReservationList
items:
- metadata: {name: gateways}
  spec: {reservedCIDRs: [10.244.0.0/30, 10.244.0.255]}
---
# nothing here
---
kind: FelixConfiguration
apiVersion: projectcalico.org/v3
metadata: {name: default, generation: 3, uid: 5a1}
spec:
  ipipEnabled: true
  bpfEnabled: false
  futureField: {a: [1, 2.5, ~, "x"], b: on}
  ipipmtu: 1440
status: {ready: true}
"#;

#[test]
fn good_documents_are_read_whole() {
    let loading = parse_str("cluster.yaml", GOOD);
    insta::assert_snapshot!(shown(&loading));
    insta::assert_snapshot!(to_yaml_documents(loading.resources.iter().map(|l| &l.resource)));
}

#[test]
fn reading_what_was_written_gives_the_same() {
    let first = parse_str("cluster.yaml", GOOD);
    let text = to_yaml_documents(first.resources.iter().map(|l| &l.resource));
    let second = parse_str("again.yaml", &text);
    let of = |l: &Loading| l.resources.iter().map(|l| l.resource.clone()).collect::<Vec<_>>();
    assert_eq!(of(&first), of(&second));
    assert_eq!(text, to_yaml_documents(second.resources.iter().map(|l| &l.resource)));
}

#[test]
fn as_written_scalars_keep_their_digits() {
    let loading = parse_str("x", GOOD);
    let AnyResource::IpPool(pool) = &loading.resources[0].resource else { panic!("a pool is first") };
    let labels: Vec<_> = pool.metadata.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["canary=yes", "empty=", "rack=014", "ratio=1.10"]);
    assert!(pool.spec.nat_outgoing);
    let AnyResource::BgpConfiguration(bgp) = &loading.resources[1].resource else {
        panic!("the settings are next")
    };
    assert_eq!(bgp.spec.as_number.map(|a| a.0), Some(64512 << 16 | 10));
}

/// `kind`, then the document behind `apiVersion`, `kind` and a name.
fn bad(kind: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!("apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata:\n  name: x\nspec:\n  {spec}\n")
}

#[test]
fn errors_name_file_document_line_column_and_field() {
    let documents = [
        bad("IPPool", "cidr: 10.0.0.0"),
        bad("IPPool", "cidr: 10.0.0.1/16\nipipMode: Sometimes"),
        bad("IPPool", "cidr: 10.0.0.1/16\nblockSize: 19"),
        bad("IPPool", "cidr: 10.0.0.0/16\nblockSize: 300"),
        bad("IPPool", "cidr: 10.0.0.0/16\nblockSize: \"26\""),
        bad("IPPool", "cidr: 10.0.0.0/16\nnatOutgoing: \"true\""),
        bad("IPPool", "cidr: 10.0.0.0/16\nallowedUses: Workload"),
        bad("IPPool", "cidr: [10.0.0.0/16]"),
        bad("IPPool", "ipipMode: Always"),
        bad("IPPool", "cidr: 10.0.0.0/16\nnodeSelector: rack = 'a'"),
        bad("BGPConfiguration", "asNumber: 70000.1"),
        bad("BGPConfiguration", "listenPort: 70000\nlogSeverityScreen: [Info]"),
        bad("BGPFilter", "exportV4:\n- action: Accept\n- action: Acept\n  cidr: 10.0.0.0/8"),
        bad("BGPFilter", "importV6:\n- cidr: fd00::/8\n  matchOperator: In\n"),
        bad("BGPFilter", "importV4:\n- action: Accept\n  cidr: fd00::/8\n  matchOperator: In\n"),
        bad("Node", "bgp:\n  ipv4Address: 10.0.0.300/24"),
        bad("Node", "bgp: 64512"),
        bad("BlockAffinity", "node: a\ncidr: 10.0.0.0/26\ndeleted: maybe"),
        "apiVersion: projectcalico.org/v3\nkind: IPPol\nmetadata: {name: x}\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: Deployment\nmetadata: {name: x}\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: LiveMigration\nmetadata: {name: x}\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolici\nmetadata: {name: x}\n".into(),
        "apiVersion: v1\nkind: IPPool\nmetadata: {name: x}\n".into(),
        "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: x}\n".into(),
        "kind: IPPool\nmetadata: {name: x}\n".into(),
        "apiVersion: projectcalico.org/v3\nmetadata: {name: x}\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: BGPFilter\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {}\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: Bad_Name, labels: {a: [b]}}\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: Bad_Name, labels: {a.b/c: \"!\"}}\n".into(),
        "apiVersion: projectcalico.org/v3\nkind: BGPFilterList\nitems:\n- metadata: {name: a}\n- metadata: {name: B}\n- 3\n"
            .into(),
        "apiVersion: v2\nkind: List\nitems: []\n".into(),
        "apiVersion: v1\nkind: List\nitems: x\n".into(),
        "just text\n".into(),
        "- a\n- b\n".into(),
        "a: 1\nb: 2\na: 3\n".into(),
        "a: [1\nb: 2\n".into(),
        "a: b: c\n".into(),
        "a: *nowhere\n".into(),
        "a: \"open\n".into(),
    ];
    let loading = parse_str("bad.yaml", &documents.join("---\n"));
    insta::assert_snapshot!(shown(&loading));
}

#[test]
fn one_bad_document_does_not_hide_the_others() {
    let good = bad("IPPool", "cidr: 10.0.0.0/16");
    let text = format!("{good}---\na: [\n---\n{}", good.replace("name: x", "name: y"));
    insta::assert_snapshot!(shown(&parse_str("mixed.yaml", &text)));
}

#[test]
fn a_resource_given_twice_is_an_error() {
    let good = bad("IPPool", "cidr: 10.0.0.0/16");
    insta::assert_snapshot!(shown(&parse_str("twice.yaml", &format!("{good}---\n{good}"))));
}

#[test]
fn files_folders_and_what_is_no_text() {
    let dir = TempDir::new();
    let write = |name: &str, content: &[u8]| {
        let path = dir.path(name);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("creates");
        std::fs::write(path, content).expect("writes");
    };
    let good = bad("IPPool", "cidr: 10.0.0.0/16");
    write("folder/b.yml", good.as_bytes());
    write("folder/a.json", good.replace("name: x", "name: y").as_bytes());
    write("folder/readme.txt", b"not read");
    write("empty.yaml", b"# nothing\n");
    write("latin.yaml", b"a: 1\nb: \xe4\n");
    write("utf16.yaml", b"\xff\xfea\0:\0");
    std::fs::create_dir(dir.path("nothing")).expect("creates");
    let names = ["folder", "empty.yaml", "latin.yaml", "utf16.yaml", "nothing", "absent"];
    let loading = read_paths(names.map(|n| dir.path(n)));
    let folder = dir.path("").display().to_string();
    insta::assert_snapshot!(shown(&loading).replace(&folder, "DIR/"));
    assert_eq!(read_path(&dir.path("folder")).resources.len(), 2);
}

#[test]
fn anchors_and_merges_are_expanded() {
    let text = bad(
        "BGPFilter",
        "exportV4:\n- &a {action: Reject, interface: eth0}\n- <<: *a\n  interface: eth1\n- *a",
    );
    let loading = parse_str("x", &text);
    assert_eq!(loading.errors, []);
    let AnyResource::BgpFilter(f) = &loading.resources[0].resource else { panic!("a filter") };
    let interfaces: Vec<_> =
        f.spec.export_v4.iter().map(|r| r.interface.clone().unwrap_or_default()).collect();
    assert_eq!(interfaces, ["eth0", "eth1", "eth0"]);
}

#[test]
fn hostile_input_is_refused_in_time() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
        d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
        g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    let deep = format!("a: {}", "[".repeat(100_000));
    for text in [bomb, &deep, &"- ".repeat(50_000), &"{a: ".repeat(50_000), &"---\n".repeat(100_000)] {
        let loading = parse_str("x", text);
        assert!(loading.resources.is_empty() && !loading.errors.is_empty());
    }
}

#[test]
fn other_files_are_read_with_the_same_care() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    struct Segment {
        name: String,
        #[serde(default)]
        routers: Vec<u8>,
        kind: Shape,
    }
    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Shape {
        Bridge,
        Vlan { id: u16 },
        Trunk(Vec<u16>),
    }
    let read = |text: &str| read_one::<Vec<Segment>>("lab.yaml", text);
    assert_eq!(
        read(
            "- {name: a, routers: [1], kind: bridge}\n- {name: 7, kind: {vlan: {id: 3}}}\n- {name: c, kind: {trunk: [1]}}\n"
        ),
        Ok(vec![
            Segment { name: "a".into(), routers: vec![1], kind: Shape::Bridge },
            Segment { name: "7".into(), routers: vec![], kind: Shape::Vlan { id: 3 } },
            Segment { name: "c".into(), routers: vec![], kind: Shape::Trunk(vec![1]) },
        ])
    );
    let (_, origin) = read_one_with_origin::<Value>("lab.yaml", "- a: 1\n  b:\n  - 2\n").expect("reads");
    assert_eq!(
        origin.problem("[0].b[0]", "is odd").to_string(),
        "lab.yaml:3:5: document 1: [0].b[0]: is odd",
        "what is found wrong later has a place, too"
    );
    let mut shown = String::new();
    for text in [
        "",
        "- {name: a, kind: brigde}",
        "- {name: a, kind: bridge, router: [1]}",
        "- {name: a,\n   kind: {vlan: {id: x}}}",
        "- {name: a, kind: {vlan: {}}}",
        "- {name: a, kind: bridge, routers: [1, 256]}",
        "- kind: bridge",
        "- 1\n---\n- 2",
        "a: [",
        "~: 1",
    ] {
        writeln!(shown, "{}", read(text).expect_err(text)).expect("strings take text");
    }
    insta::assert_snapshot!(shown);
}

/// Texts that YAML takes for something else, and anything.
fn text() -> impl Strategy<Value = String> {
    let tricky = prop::sample::select(vec![
        "",
        "~",
        "null",
        "yes",
        "no",
        "on",
        "y",
        "true",
        "014",
        "0x1F",
        "0o7",
        "1e3",
        "1_000",
        ".inf",
        ".nan",
        "-",
        "- a",
        "a: b",
        "#",
        " lead",
        "trail ",
        "|",
        ">",
        "*a",
        "&a",
        "!t",
        "@",
        "`",
        "%",
        "{",
        "[",
        "'",
        "\"",
        "\\",
        "a\nb",
        "a\n",
        "\n",
        "\t",
        "---",
        "...",
        "=",
        "<<",
        "1:30",
        "2001-01-01",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "\u{0}",
        "\r",
        "a\r\nb",
        ": ",
        "?",
        "? a",
        ",",
    ])
    .prop_map(str::to_owned);
    prop_oneof![tricky, "\\PC{0,12}", "[ -~\n]{0,120}"]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e9f64..1e9).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_value_survives_writing_and_reading(v in value()) {
        let text = to_yaml(&v);
        let read = read_one::<Value>("x", &text);
        // An empty text is no document; only null is written like that.
        prop_assert_eq!(read.as_ref().map_err(|e| e.to_string()), Ok(&v), "{}", text);
    }

    #[test]
    fn unknown_fields_of_a_resource_survive(extra in prop::collection::btree_map("[a-z]{9}", value(), 0..4), label in "[a-z0-9]{1,5}") {
        let mut r = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {"name": "x", "labels": {"l": label}}, "spec": {"cidr": "10.0.0.0/16"}});
        for (k, v) in &extra {
            r["spec"][k] = v.clone();
            r["metadata"][k] = v.clone();
            r[k] = v.clone();
        }
        let typed = AnyResource::from_value(Kind::IpPool, &r).expect("reads");
        let loading = parse_str("x", &to_yaml(&typed));
        prop_assert_eq!(&loading.errors, &[]);
        prop_assert_eq!(&loading.resources[0].resource, &typed);
        prop_assert_eq!(loading.warnings.len(), extra.len() * 3);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        shown(&parse_bytes("x", &bytes));
    }

    #[test]
    fn no_text_makes_it_panic(
        parts in prop::collection::vec(prop::sample::select(vec![
            "apiVersion: projectcalico.org/v3\n", "kind: IPPool\n", "kind: BGPFilter\n", "kind: List\n", "metadata: ",
            "spec:\n", "  cidr: 10.0.0.0/8\n", "  exportV4: ", "items: ", "- ", "{", "}", "[", "]", "name: x", ": ",
            "\n", "---\n", "...\n", "&a ", "*a", "<<: ", "!!str ", "'", "\"", "|\n", "  ", "#", "%YAML 1.2\n", "ü",
        ]), 0..24),
    ) {
        shown(&parse_str("x", &parts.concat()));
    }
}

/// Whoever deletes what a file names need not have it right.
#[test]
fn refused_resources_say_what_they_are_called_as_long_as_they_can() {
    let text = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: typed}
spec: {cidr: nonsense}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: judged, namespace: blue}
spec: {selector: 'a b', ingress: [{action: Perhaps}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: nowhere}
spec: {nets: [x]}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: right}
spec: {cidr: 10.0.0.0/16}
";
    let (keys, errors) = parse_str("x", text).keys(Some("red"));
    let mut keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    keys.sort();
    let want = ["IPPool(right)", "IPPool(typed)", "NetworkPolicy(blue/judged)", "NetworkSet(red/nowhere)"];
    assert_eq!((keys, errors), (want.map(str::to_owned).to_vec(), Vec::new()));
    for nameless in [
        "kind: IPPool\nmetadata: {labels: {a: b}}\nspec: {}\n",
        "kind: IPPool\nmetadata: {name: Ü}\nspec: {cidr: 10.0.0.0/16}\n",
        "kind: IPPol\nmetadata: {name: a}\nspec: {}\n",
    ] {
        let text = format!("apiVersion: projectcalico.org/v3\n{nameless}");
        let (keys, errors) = parse_str("x", &text).keys(None);
        assert!(keys.is_empty() && !errors.is_empty(), "{nameless}: {keys:?}");
    }
}

#[test]
fn a_count_is_shown_without_quotes() {
    let nets: Vec<String> = (0..300).map(|i| format!("10.0.{}.0/24", i % 256)).collect();
    let text = format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: a}}\nspec: {{selector: all(), ingress: [{{action: Allow, source: {{nets: [{}]}}}}]}}\n",
        nets.join(", ")
    );
    let said = shown(&parse_str("x", &text));
    assert!(said.contains("at most 256 entries, found 300 entries"), "{said}");
}

/// What asks for what there is not says so once, whether or not the model has the field.
#[test]
fn what_there_is_not_is_warned_of_with_its_place() {
    let text = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\n\
                spec:\n  cidr: 10.0.0.0/16\n  vxlanMode: Always\n---\n\
                apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\n\
                spec:\n  wireguardEnabled: true\n  bpfEnabled: false\n";
    let loading = parse_str("x.yaml", text);
    let said: Vec<String> = loading.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(
        said[0].starts_with("x.yaml:6") && said[0].contains("set ipipMode: Always and vxlanMode: Never"),
        "{said:?}"
    );
    assert!(said[1].contains("there is no WireGuard in this version"), "{said:?}");
    assert!(said[2].contains("bpfEnabled") && said[2].contains("has no effect"), "{said:?}");
}

#[test]
fn fields_that_act_are_not_called_idle() {
    let node = json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "n"},
        "spec": {"orchRefs": [{"nodeName": "n", "orchestrator": "k8s"}], "interfaces": [{"name": "eth0"}]}});
    let node = AnyResource::from_value(Kind::Node, &node).expect("it reads");
    assert_eq!(super::idle_fields(&node), []);
    let felix = json!({"bpfEnabled": false, "nftablesMode": "Enabled", "failsafeInboundHostPorts": [],
        "failsafeOutboundHostPorts": [], "defaultEndpointToHostAction": "Accept", "interfacePrefix": "cali"});
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": felix});
    let resource = AnyResource::from_value(Kind::FelixConfiguration, &value).expect("it reads");
    let named: Vec<String> = super::idle_fields(&resource).into_iter().map(|(field, _)| field).collect();
    assert_eq!(named, ["spec.bpfEnabled"]);
}
