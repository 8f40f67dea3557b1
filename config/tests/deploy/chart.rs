//! The Helm chart: its templates are the manifests with values in some places (made here), and what it renders to by
//! default is what the mesh overlay is. There is no Helm in Debian, so `template` renders; it understands only what the
//! chart may use, and refuses the rest.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    kustomize::{identity, render as kustomize, sorted},
    support::{documents, files, generated, read},
    template::{self, CHART},
};

const HEAD: &str = "{{- /* Generated from deploy/ by `cargo xtask generate`. */ -}}\n";

/// In all templates.
const EVERYWHERE: [(&str, &str); 3] = [
    // Without quotes a namespace 1e3 were a number.
    ("namespace: kube-system", "namespace: {{ .Release.Namespace | quote }}"),
    ("image: brindle:0.1.0", "image: \"{{ .Values.image.repository }}:{{ .Values.image.tag }}\""),
    ("imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.image.pullPolicy | quote }}"),
];

/// A ConfigMap's values are texts, whatever was written into the values' file: `true` and `0` without quotes as well. toJson,
/// since a large number is floating point to Helm and would be printed as 1e+06. `null` takes a default away. Of an AS
/// number the last digit may be lost before a template sees it: 1.10 is 1.1 to YAML.
const CONFIG: &str = r#"  {{- range $name, $value := .Values.config }}
  {{- if kindIs "string" $value }}
  {{ $name }}: {{ $value | quote }}
  {{- else if kindIs "invalid" $value }}
  {{- else }}
  {{- if eq $name "AS" }}
  {{- if $value | toJson | contains "." }}
  {{- fail "config.AS: a dotted AS number needs quotes (1.10 is the number 1.1 without them)" }}
  {{- end }}
  {{- end }}
  {{ $name }}: {{ $value | toJson | quote }}
  {{- end }}
  {{- end }}
"#;

/// A changed ConfigMap makes another pod template, so that the pods are replaced: they read it at their start only.
fn checksum(file: &str) -> String {
    format!(
        "        checksum/config: {{{{ include (print $.Template.BasePath \"/{file}\") . | sha256sum | quote }}}}\n"
    )
}

const SECRETS: &str = "      {{- with .Values.image.pullSecrets }}\n      imagePullSecrets:\n        {{- toYaml . | nindent 8 }}\n      {{- end }}\n";

const GRACE: &str = "      terminationGracePeriodSeconds: 30\n";

/// A drain that the kubelet cuts off leaves peers with sessions that just break: after the seconds the sessions are ended and
/// the Node is told.
const VALUED_GRACE: &str = r#"      {{- if gt (.Values.config.BRINDLE_DRAIN | int64 | add 5) (.Values.node.terminationGracePeriodSeconds | int64) }}
      {{- fail "config.BRINDLE_DRAIN: kubelet would cut the drain off: node.terminationGracePeriodSeconds must be at least 5 more" }}
      {{- end }}
      terminationGracePeriodSeconds: {{ .Values.node.terminationGracePeriodSeconds | int64 }}
"#;

fn resources(cpu: &str, of: &str) -> (String, String) {
    (
        format!(
            "          resources:\n            requests:\n              cpu: {cpu}\n              memory: 64Mi\n"
        ),
        format!("          resources:\n            {{{{- toYaml .Values.{of}.resources | nindent 12 }}}}\n"),
    )
}

/// A template: the text of a manifest with these places replaced, each of which must be there.
fn make(source: &str, name: &str, places: &[(&str, &str)], only_if: Option<&str>) {
    let mut text = read(source);
    for (from, to) in EVERYWHERE {
        text = text.replace(from, to);
    }
    for (from, to) in places {
        assert!(text.contains(from), "{source} has no {from:?}");
        text = text.replace(from, to);
    }
    if let Some(value) = only_if {
        text = format!("{{{{- if {value} }}}}\n{text}{{{{- end }}}}\n");
    }
    generated(&format!("{CHART}/templates/{name}"), &format!("{HEAD}{text}"));
}

fn generate() {
    let base = "deploy/base";
    make(&format!("{base}/node-roles/roles.yaml"), "roles.yaml", &[], None);
    make(&format!("{base}/node/account.yaml"), "account.yaml", &[], None);
    let config = format!("{base}/node/config.yaml");
    let whole = read(&config);
    let data = whole.split_once("\ndata:\n").expect("data").1;
    make(&config, "config.yaml", &[(data, CONFIG)], None);
    let account = "      serviceAccountName: brindle-node\n";
    let (there, here) = resources("100m", "node");
    let labels = "      labels:\n        k8s-app: brindle-node\n    spec:\n";
    let sum = checksum("config.yaml");
    let annotated = labels.replace("    spec:\n", &format!("      annotations:\n{sum}    spec:\n"));
    let arch = "        kubernetes.io/arch: amd64\n";
    let more = "        {{- with .Values.node.nodeSelector }}\n        {{- toYaml . | nindent 8 }}\n        {{- end }}\n";
    let places = [
        (account, &*format!("{account}{SECRETS}")),
        (GRACE, VALUED_GRACE),
        (&there, &here),
        (labels, &annotated),
        (arch, &format!("{arch}{more}")),
    ];
    make(&format!("{base}/node/daemonset.yaml"), "daemonset.yaml", &places, None);
    let controllers = Some(".Values.controllers.enabled");
    make(&format!("{base}/cluster/roles.yaml"), "controllers-roles.yaml", &[], controllers);
    let account = "      serviceAccountName: brindle-controllers\n";
    let (there, here) = resources("50m", "controllers");
    let places = [
        (account, &*format!("{account}{SECRETS}")),
        (&there, &here),
        ("replicas: 2", "replicas: {{ .Values.controllers.replicas | int64 }}"),
    ];
    make(&format!("{base}/controllers/controllers.yaml"), "controllers.yaml", &places, controllers);
    let reflectors = Some(".Values.reflectors.enabled");
    let config = read("deploy/reflectors/config.yaml");
    let second = &config[config.find("      - name: nodes-ipv6").expect("a second range")..];
    let valued = second.replace("\"::/0\"", "{{ .Values.reflectors.rangeIPv6 | quote }}");
    let optional = format!("    {{{{- if .Values.reflectors.rangeIPv6 }}}}\n{valued}    {{{{- end }}}}\n");
    let password = "          passwordFile: /etc/brindle-secret/reflectors\n";
    let places = [
        (second, &*optional),
        (
            password,
            "          {{- if .Values.reflectors.passwordKey }}\n          passwordFile: /etc/brindle-secret/{{ .Values.reflectors.passwordKey }}\n          {{- end }}\n",
        ),
        // Numbers of values are floating point to Helm: without int64 a large AS number is printed as 4.2e+09.
        ("asNumber: 64512", "asNumber: {{ .Values.reflectors.asNumber | int64 }}"),
        ("range: \"0.0.0.0/0\"", "range: {{ .Values.reflectors.range | quote }}"),
    ];
    make("deploy/reflectors/config.yaml", "reflectors-config.yaml", &places, reflectors);
    let token = "      automountServiceAccountToken: false\n";
    let as_number = "        brindle.dev/as-number: \"64512\"\n";
    let sum = checksum("reflectors-config.yaml");
    let mount = "            - name: secret\n              mountPath: /etc/brindle-secret\n              readOnly: true\n";
    let volume = "        # Not optional: without it whoever reaches the port could announce any route.\n        - name: secret\n          secret:\n            secretName: bgp-secrets\n            items:\n              - key: reflectors\n                path: reflectors\n";
    let of_password = |text: &str| {
        format!(
            "            {{{{- if .Values.reflectors.passwordKey }}}}\n{text}            {{{{- end }}}}\n"
        )
    };
    let places = [
        (token, &*format!("{token}{SECRETS}")),
        ("replicas: 2", "replicas: {{ .Values.reflectors.replicas | int64 }}"),
        (
            as_number,
            &*format!(
                "        brindle.dev/as-number: {{{{ .Values.reflectors.asNumber | int64 | quote }}}}\n{sum}"
            ),
        ),
        ("password-key: \"reflectors\"", "password-key: {{ .Values.reflectors.passwordKey | quote }}"),
        (mount, &*of_password(mount)),
        (
            volume,
            &*of_password(&volume.replace(": reflectors\n", ": {{ .Values.reflectors.passwordKey }}\n")),
        ),
    ];
    make("deploy/reflectors/deployment.yaml", "reflectors.yaml", &places, reflectors);
    for file in files("deploy/crds", ".yaml").iter().filter(|f| !f.ends_with("kustomization.yaml")) {
        generated(&file.replace("deploy/crds", &format!("{CHART}/crds")), &read(file));
    }
}

fn render(change: impl Fn(&mut Value)) -> BTreeMap<[String; 4], Value> {
    template::chart(change).iter().map(|o| (identity(o), sorted(o, ""))).collect()
}

/// Takes the checksum out of a pod's annotations, which the overlays have not.
fn checksum_of(object: &mut Value) -> Option<String> {
    let meta = object.pointer_mut("/spec/template/metadata")?.as_object_mut()?;
    let annotations = meta.get_mut("annotations")?.as_object_mut()?;
    let sum = annotations.remove("checksum/config")?;
    if annotations.is_empty() {
        meta.remove("annotations");
    }
    sum.as_str().map(str::to_owned)
}

/// The same without checksums.
fn plain(change: impl Fn(&mut Value)) -> BTreeMap<[String; 4], Value> {
    let mut all = render(change);
    for object in all.values_mut() {
        let sum = checksum_of(object);
        assert!(sum.is_none_or(|s| s.len() == 64), "{object}");
    }
    all
}

fn overlay(name: &str) -> BTreeMap<[String; 4], Value> {
    kustomize(&format!("deploy/overlays/{name}")).iter().map(|o| (identity(o), sorted(o, ""))).collect()
}

#[test]
fn the_chart_renders_to_what_the_overlays_are() {
    generate();
    assert_eq!(plain(|_| {}), overlay("mesh"));
    assert_eq!(plain(|v| v["reflectors"]["enabled"] = true.into()), overlay("reflectors"));
    let mut beside = plain(|v| {
        v["controllers"]["enabled"] = false.into();
        v["node"]["nodeSelector"] = json!({"brindle.dev/node": "true"});
    });
    // --skip-crds
    beside.retain(|identity, _| identity[1] != "CustomResourceDefinition");
    assert_eq!(beside, overlay("beside-calico"));
}

#[test]
fn a_changed_config_map_makes_other_pods_of_those_that_read_it() {
    generate();
    let sums = |change: &dyn Fn(&mut Value)| {
        let mut all = render(|v| {
            v["reflectors"]["enabled"] = true.into();
            change(v);
        });
        ["DaemonSet", "Deployment"].map(|kind| {
            all.iter_mut().filter(|(k, _)| k[1] == kind).filter_map(|(_, o)| checksum_of(o)).collect()
        })
    };
    let [node, reflectors]: [Vec<String>; 2] = sums(&|_| {});
    assert_eq!((node.len(), reflectors.len()), (1, 1), "the controllers read no ConfigMap");
    let told = sums(&|v| v["config"]["BRINDLE_LOG"] = "debug".into());
    assert_ne!(told[0], node);
    assert_eq!(told[1], reflectors);
    let more = sums(&|v| v["reflectors"]["range"] = "192.0.2.0/24".into());
    assert_eq!(more[0], node);
    assert_ne!(more[1], reflectors);
    let replicas = sums(&|v| v["reflectors"]["replicas"] = 3.into());
    assert_eq!(replicas, [node, reflectors], "more of the same are no others");
}

/// The API server refuses a ConfigMap with anything but texts.
#[test]
fn whatever_is_written_into_config_becomes_a_text() {
    generate();
    let all = render(|v| {
        let config = &mut v["config"];
        config["FELIX_IPV6SUPPORT"] = false.into();
        config["BRINDLE_DRAIN"] = 15.into();
        config["FELIX_VXLANVNI"] = 1_000_000.into();
        config["AS"] = "64512".into();
        config["IP"] = "".into();
        config["IP_AUTODETECTION_METHOD"] = r#"skip-interface=^a\d,"b""#.into();
        config["FELIX_LOGPREFIX"] = "a: b #c".into();
        config["CLUSTER_TYPE"] = Value::Null;
    });
    let map =
        all.iter().find(|(k, _)| k[1] == "ConfigMap" && k[3] == "brindle-config").expect("a ConfigMap").1;
    let data = map["data"].as_object().expect("data");
    for (name, value) in [
        ("FELIX_IPV6SUPPORT", "false"),
        ("BRINDLE_DRAIN", "15"),
        ("FELIX_VXLANVNI", "1000000"),
        ("AS", "64512"),
        ("IP", ""),
        ("IP_AUTODETECTION_METHOD", r#"skip-interface=^a\d,"b""#),
        ("FELIX_LOGPREFIX", "a: b #c"),
        ("CALICO_IPV4POOL_NAT_OUTGOING", "true"),
    ] {
        assert_eq!(data[name], value, "{name}");
    }
    assert!(!data.contains_key("CLUSTER_TYPE"), "null takes it away");
}

/// What stood there cannot be told any more.
#[test]
fn a_dotted_as_number_without_quotes_is_refused() {
    generate();
    let rendered = |number: Value| {
        let all = render(|v| v["config"]["AS"] = number.clone());
        let map = all.into_iter().find(|(k, _)| k[1] == "ConfigMap" && k[3] == "brindle-config");
        map.expect("a ConfigMap").1["data"]["AS"].clone()
    };
    assert_eq!(rendered("1.10".into()), "1.10");
    assert_eq!(rendered(4_200_000_000_u32.into()), "4200000000");
    let refused = std::panic::catch_unwind(|| rendered(1.1.into())).expect_err("it is refused");
    let why = refused.downcast_ref::<String>().expect("a sentence");
    assert!(why.contains("config.AS") && why.contains("needs quotes"), "{why}");
}

/// kubelet kills what has not ended in time.
#[test]
fn a_drain_that_would_be_cut_off_is_refused() {
    generate();
    let grace = |drain: Value, seconds: Option<u32>| {
        let all = render(|v| {
            v["config"]["BRINDLE_DRAIN"] = drain.clone();
            if let Some(seconds) = seconds {
                v["node"]["terminationGracePeriodSeconds"] = seconds.into();
            }
        });
        let node = all.into_iter().find(|(k, _)| k[1] == "DaemonSet").expect("a DaemonSet").1;
        node["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].clone()
    };
    assert_eq!(grace(Value::Null, None), 30);
    assert_eq!(grace("25".into(), None), 30);
    assert_eq!(grace(120.into(), Some(125)), 125);
    for (drain, seconds) in [(json!(26), None), (json!("120"), None), (json!(120), Some(124))] {
        let refused = std::panic::catch_unwind(|| grace(drain.clone(), seconds)).expect_err("it is refused");
        let why = refused.downcast_ref::<String>().expect("a sentence");
        assert!(why.contains("config.BRINDLE_DRAIN") && why.contains("at least 5 more"), "{why}");
    }
}

#[test]
fn values_reach_their_places() {
    generate();
    let all = render(|v| {
        v["image"] = json!({"repository": "registry.example/b", "tag": "9", "pullPolicy": "Always",
            "pullSecrets": [{"name": "key"}]});
        v["config"]["CALICO_IPV4POOL_CIDR"] = "10.244.0.0/16".into();
        v["controllers"]["enabled"] = false.into();
        v["reflectors"] = json!({"enabled": true, "replicas": 3, "asNumber": 4200000000u32, "range": "192.0.2.0/24", "rangeIPv6": "",
            "passwordKey": "rr"});
        v["node"]["resources"] = json!({"limits": {"memory": "1Gi"}});
    });
    let get = |kind: &str, name: &str| {
        all.iter().find(|(k, _)| k[1] == kind && k[3] == name).map(|(_, v)| v.clone())
    };
    assert!(get("Deployment", "brindle-controllers").is_none());
    let node = get("DaemonSet", "brindle-node").expect("DaemonSet");
    let pod = &node["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example/b:9");
    assert_eq!(pod["initContainers"][0]["imagePullPolicy"], "Always");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "key"}]));
    assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"memory": "1Gi"}}));
    assert_eq!(get("ConfigMap", "brindle-config").unwrap()["data"]["CALICO_IPV4POOL_CIDR"], "10.244.0.0/16");
    assert_eq!(get("Deployment", "brindle-rr").unwrap()["spec"]["replicas"], 3);
    let rr =
        get("ConfigMap", "brindle-rr").unwrap()["data"]["brindle-bgpd.yaml"].as_str().unwrap().to_owned();
    assert!(rr.contains("asNumber: 4200000000\n") && rr.contains("range: \"192.0.2.0/24\"\n"), "{rr}");
    assert!(!rr.contains("ipv6"), "an empty range lets nobody in: {rr}");
    let template = &get("Deployment", "brindle-rr").unwrap()["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["brindle.dev/as-number"], "4200000000");
    assert_eq!(template["metadata"]["annotations"]["brindle.dev/password-key"], "rr");
    assert!(rr.contains("      asNumber: 4200000000\n"), "{rr}");
    assert!(rr.contains("passwordFile: /etc/brindle-secret/rr\n"), "{rr}");
    let volumes = template["spec"]["volumes"].to_string();
    assert!(volumes.contains(r#""items":[{"key":"rr","path":"rr"}]"#), "{volumes}");

    // Without a password nothing is left of it.
    let all = render(|v| {
        v["reflectors"]["enabled"] = true.into();
        v["reflectors"]["passwordKey"] = "".into();
    });
    let rr: Vec<String> =
        all.iter().filter(|(k, _)| k[3] == "brindle-rr").map(|(_, v)| v.to_string()).collect();
    assert_eq!(rr.len(), 3, "{rr:?}");
    assert!(rr.iter().all(|o| !o.contains("brindle-secret") && !o.contains("passwordFile")), "{rr:?}");
}

#[test]
fn the_chart_has_the_version_of_the_program() {
    let [chart] = documents("Chart", &read(&format!("{CHART}/Chart.yaml"))).try_into().expect("one");
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let [values] = documents("values", &read(&format!("{CHART}/values.yaml"))).try_into().expect("one");
    assert_eq!(values["image"]["tag"], env!("CARGO_PKG_VERSION"));
}
