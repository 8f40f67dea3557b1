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
    ("namespace: kube-system", "namespace: {{ .Release.Namespace }}"),
    ("image: brindle:0.1.0", "image: \"{{ .Values.image.repository }}:{{ .Values.image.tag }}\""),
    ("imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.image.pullPolicy }}"),
];

const SECRETS: &str = "      {{- with .Values.image.pullSecrets }}\n      imagePullSecrets:\n        {{- toYaml . | nindent 8 }}\n      {{- end }}\n";

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
    make(&format!("{base}/cluster/roles.yaml"), "roles.yaml", &[], None);
    make(&format!("{base}/node/account.yaml"), "account.yaml", &[], None);
    let config = format!("{base}/node/config.yaml");
    let whole = read(&config);
    let data = whole.split_once("\ndata:\n").expect("data").1;
    make(&config, "config.yaml", &[(data, "  {{- toYaml .Values.config | nindent 2 }}\n")], None);
    let account = "      serviceAccountName: brindle-node\n";
    let (there, here) = resources("100m", "node");
    let places = [(account, &*format!("{account}{SECRETS}")), (&there, &here)];
    make(&format!("{base}/node/daemonset.yaml"), "daemonset.yaml", &places, None);
    let account = "      serviceAccountName: brindle-controllers\n";
    let (there, here) = resources("50m", "controllers");
    let places = [
        (account, &*format!("{account}{SECRETS}")),
        (&there, &here),
        ("replicas: 2", "replicas: {{ .Values.controllers.replicas }}"),
    ];
    let controllers = Some(".Values.controllers.enabled");
    make(&format!("{base}/cluster/controllers.yaml"), "controllers.yaml", &places, controllers);
    let reflectors = Some(".Values.reflectors.enabled");
    let second = "      - name: nodes-ipv6\n        range: \"::/0\"\n        max: 5000\n        template: {asNumber: 64512, reflectorClient: true}\n";
    let valued = second.replace("\"::/0\"", "{{ .Values.reflectors.rangeIPv6 | quote }}");
    let optional = format!("    {{{{- if .Values.reflectors.rangeIPv6 }}}}\n{valued}    {{{{- end }}}}\n");
    let places = [
        (second, &*optional),
        // Numbers of values are floating point to Helm: without int64 a large AS number is printed as 4.2e+09.
        ("asNumber: 64512", "asNumber: {{ .Values.reflectors.asNumber | int64 }}"),
        ("range: \"0.0.0.0/0\"", "range: {{ .Values.reflectors.range | quote }}"),
    ];
    make("deploy/reflectors/config.yaml", "reflectors-config.yaml", &places, reflectors);
    let token = "      automountServiceAccountToken: false\n";
    let places = [
        (token, &*format!("{token}{SECRETS}")),
        ("replicas: 2", "replicas: {{ .Values.reflectors.replicas }}"),
        ("as-number: \"64512\"", "as-number: {{ .Values.reflectors.asNumber | int64 | quote }}"),
    ];
    make("deploy/reflectors/deployment.yaml", "reflectors.yaml", &places, reflectors);
    for file in files("deploy/crds", ".yaml").iter().filter(|f| !f.ends_with("kustomization.yaml")) {
        generated(&file.replace("deploy/crds", &format!("{CHART}/crds")), &read(file));
    }
}

fn render(change: impl Fn(&mut Value)) -> BTreeMap<[String; 4], Value> {
    template::chart(change).iter().map(|o| (identity(o), sorted(o, ""))).collect()
}

fn overlay(name: &str) -> BTreeMap<[String; 4], Value> {
    kustomize(&format!("deploy/overlays/{name}")).iter().map(|o| (identity(o), sorted(o, ""))).collect()
}

#[test]
fn the_chart_renders_to_what_the_overlays_are() {
    generate();
    assert_eq!(render(|_| {}), overlay("mesh"));
    assert_eq!(render(|v| v["reflectors"]["enabled"] = true.into()), overlay("reflectors"));
}

#[test]
fn values_reach_their_places() {
    generate();
    let all = render(|v| {
        v["image"] = json!({"repository": "registry.example/b", "tag": "9", "pullPolicy": "Always",
            "pullSecrets": [{"name": "key"}]});
        v["config"]["CALICO_IPV4POOL_CIDR"] = "10.244.0.0/16".into();
        v["controllers"]["enabled"] = false.into();
        v["reflectors"] = json!({"enabled": true, "replicas": 3, "asNumber": 4200000000u32, "range": "192.0.2.0/24", "rangeIPv6": ""});
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
    assert!(rr.contains("template: {asNumber: 4200000000, reflectorClient: true}"), "{rr}");
}

#[test]
fn the_chart_has_the_version_of_the_program() {
    let [chart] = documents("Chart", &read(&format!("{CHART}/Chart.yaml"))).try_into().expect("one");
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let [values] = documents("values", &read(&format!("{CHART}/values.yaml"))).try_into().expect("one");
    assert_eq!(values["image"]["tag"], env!("CARGO_PKG_VERSION"));
}
