//! calicoctl's configuration file: `kind: CalicoAPIConfig`, YAML or JSON, with the datastore in its `spec` (Calico
//! `apiconfig.go`). Fields that only concern programs other than a client of the datastore are read and mean nothing.

use std::{path::Path, sync::Arc};

use brindle_config_core::store::{Store, StoreError};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    etcd::{EtcdSettings, EtcdStore, Pem},
    hidden::Hidden,
    kubernetes::{KubeSettings, KubeStore, Overrides},
    yaml,
};

/// Where calicoctl looks unless told.
pub const DEFAULT_FILE: &str = "/etc/calico/calicoctl.cfg";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    api_version: String,
    kind: String,
    #[serde(rename = "metadata")]
    _metadata: IgnoredAny,
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Spec {
    datastore_type: String,
    etcd_endpoints: String,
    etcd_discovery_srv: String,
    etcd_username: String,
    etcd_password: String,
    etcd_key_file: String,
    etcd_cert_file: String,
    #[serde(rename = "etcdCACertFile")]
    etcd_ca_cert_file: String,
    etcd_key: String,
    etcd_cert: String,
    #[serde(rename = "etcdCACert")]
    etcd_ca_cert: String,
    #[serde(rename = "etcdFIPSModeEnabled")]
    _etcd_fips_mode_enabled: IgnoredAny,
    kubeconfig: String,
    kubeconfig_inline: String,
    #[serde(rename = "k8sAPIEndpoint")]
    k8s_api_endpoint: String,
    k8s_key_file: String,
    k8s_cert_file: String,
    #[serde(rename = "k8sCAFile")]
    k8s_ca_file: String,
    #[serde(rename = "k8sAPIToken")]
    k8s_api_token: String,
    #[serde(rename = "k8sInsecureSkipTLSVerify")]
    k8s_insecure_skip_tls_verify: bool,
    k8s_current_context: String,
    #[serde(rename = "k8sDisableNodePoll")]
    _k8s_disable_node_poll: IgnoredAny,
    #[serde(rename = "k8sUsePodCIDR")]
    _k8s_use_pod_cidr: IgnoredAny,
    #[serde(rename = "k8sClientQPS")]
    _k8s_client_qps: IgnoredAny,
    #[serde(rename = "calicoAPIGroup")]
    _calico_api_group: IgnoredAny,
}

/// The datastore of a file.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Etcd(EtcdSettings),
    Kubernetes(KubeSettings),
}

/// Opens the datastore a file names. `context`: of its kubeconfig, instead of the file's own choice.
///
/// # Errors
/// The file, its line and field, and what would be right.
pub fn open(file: &Path, context: Option<&str>) -> Result<Arc<dyn Store>, StoreError> {
    let name = file.display().to_string();
    let text =
        std::fs::read_to_string(file).map_err(|e| StoreError::Broken(format!("cannot read {name}: {e}")))?;
    Ok(match read(&name, &text, context)? {
        Named::Etcd(settings) => Arc::new(EtcdStore::new(settings)),
        Named::Kubernetes(settings) => Arc::new(KubeStore::new(settings)),
    })
}

fn read(name: &str, text: &str, context: Option<&str>) -> Result<Named, StoreError> {
    let (file, origin) = yaml::read_one_with_origin::<File>(name, text)
        .map_err(|problem| StoreError::Broken(problem.to_string()))?;
    let wrong = |field: &str, message: String| StoreError::Broken(origin.problem(field, message).to_string());
    if file.kind != "CalicoAPIConfig" {
        return Err(wrong("kind", format!("expected CalicoAPIConfig, found {:?}", file.kind)));
    }
    if file.api_version != brindle_config_core::meta::API_VERSION {
        let wanted = brindle_config_core::meta::API_VERSION;
        return Err(wrong("apiVersion", format!("expected {wanted}, found {:?}", file.api_version)));
    }
    let s = file.spec;
    let of_kubernetes = [&s.kubeconfig, &s.kubeconfig_inline, &s.k8s_api_endpoint];
    let kubernetes = match s.datastore_type.as_str() {
        "kubernetes" => true,
        "etcdv3" => false,
        "" => of_kubernetes.iter().any(|t| !t.is_empty()) && s.etcd_endpoints.is_empty(),
        other => {
            return Err(wrong(
                "spec.datastoreType",
                format!("expected kubernetes or etcdv3, found {other:?}"),
            ));
        }
    };
    if kubernetes {
        return kubernetes_of(name, &s, context, &wrong).map(Named::Kubernetes);
    }
    if context.is_some() {
        return Err(StoreError::Broken(format!("{name}: a context is one of Kubernetes; this names etcd")));
    }
    etcd_of(&s, &wrong).map(Named::Etcd)
}

type Wrong<'a> = &'a dyn Fn(&str, String) -> StoreError;

fn etcd_of(s: &Spec, wrong: Wrong<'_>) -> Result<EtcdSettings, StoreError> {
    if !s.etcd_discovery_srv.is_empty() {
        let message = "is not supported; write the servers into etcdEndpoints";
        return Err(wrong("spec.etcdDiscoverySrv", message.into()));
    }
    if s.etcd_endpoints.is_empty() {
        return Err(wrong("spec.etcdEndpoints", "is required, such as http://HOST:2379".into()));
    }
    let pem = |field: &str, file: &str, text: &str| match (file.is_empty(), text.is_empty()) {
        (true, true) => Ok(None),
        (false, true) => Ok(Some(Pem::from(file))),
        (true, false) => Ok(Some(Pem::text(text))),
        (false, false) => Err(wrong(&format!("spec.{field}"), format!("goes without {field}File"))),
    };
    let mut settings = EtcdSettings::parse(&s.etcd_endpoints, |_| None)
        .map_err(|e| wrong("spec.etcdEndpoints", e.to_string()))?;
    settings.ca = pem("etcdCACert", &s.etcd_ca_cert_file, &s.etcd_ca_cert)?;
    settings.cert = pem("etcdCert", &s.etcd_cert_file, &s.etcd_cert)?;
    settings.key = pem("etcdKey", &s.etcd_key_file, &s.etcd_key)?;
    settings.user = Some(s.etcd_username.clone()).filter(|u| !u.is_empty());
    settings.password = Some(s.etcd_password.clone()).filter(|p| !p.is_empty());
    if settings.cert.is_some() != settings.key.is_some() {
        let field = if settings.cert.is_some() { "spec.etcdCertFile" } else { "spec.etcdKeyFile" };
        return Err(wrong(field, "certificate and key go together".into()));
    }
    if settings.user.is_some() != settings.password.is_some() {
        let field = if settings.user.is_some() { "spec.etcdUsername" } else { "spec.etcdPassword" };
        return Err(wrong(field, "user and password go together".into()));
    }
    Ok(settings)
}

fn kubernetes_of(
    name: &str,
    s: &Spec,
    context: Option<&str>,
    wrong: Wrong<'_>,
) -> Result<KubeSettings, StoreError> {
    let context = context.or(Some(s.k8s_current_context.as_str()).filter(|c| !c.is_empty()));
    let given = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    let over = Overrides {
        server: given(&s.k8s_api_endpoint),
        ca: given(&s.k8s_ca_file),
        cert: given(&s.k8s_cert_file),
        key: given(&s.k8s_key_file),
        token: given(&s.k8s_api_token).map(Hidden),
        insecure: s.k8s_insecure_skip_tls_verify,
    };
    let settings = if !s.kubeconfig_inline.is_empty() {
        if !s.kubeconfig.is_empty() {
            return Err(wrong("spec.kubeconfigInline", "goes without kubeconfig".into()));
        }
        KubeSettings::inline(name, &s.kubeconfig_inline)
    } else if over.names_a_server() && s.kubeconfig.is_empty() {
        KubeSettings::single(name)
    } else {
        KubeSettings::parse(&s.kubeconfig)?
    };
    let settings = settings.with_overrides(over);
    Ok(match context {
        Some(context) => settings.with_context(context),
        None => settings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n";

    fn named(spec: &str) -> Result<Named, String> {
        read("calicoctl.cfg", &format!("{HEAD}{spec}"), None).map_err(|e| e.to_string())
    }

    fn etcd(spec: &str) -> EtcdSettings {
        match named(spec) {
            Ok(Named::Etcd(settings)) => settings,
            other => panic!("{spec}: {other:?}"),
        }
    }

    #[test]
    fn etcd_is_named_with_all_it_takes() {
        let s = etcd(
            "  datastoreType: etcdv3\n  etcdEndpoints: https://a:2379,https://b:2379\n  etcdCACertFile: /ca\n  \
             etcdCertFile: /c\n  etcdKeyFile: /k\n  etcdUsername: u\n  etcdPassword: p\n",
        );
        assert_eq!(s.endpoints, ["https://a:2379", "https://b:2379"]);
        assert_eq!((s.ca, s.cert, s.key), (Some("/ca".into()), Some("/c".into()), Some("/k".into())));
        assert_eq!((s.user.as_deref(), s.password.as_deref()), (Some("u"), Some("p")));
        let inline = etcd("  etcdEndpoints: https://a:2379\n  etcdCACert: |\n    PEM\n");
        assert_eq!(inline.ca, Some(Pem::text("PEM\n")));
        let shown = format!("{inline:?}");
        assert!(!shown.contains("PEM\\n"), "{shown}");
    }

    #[test]
    fn kubernetes_is_named_by_file_text_or_fields() {
        let file = |spec: &str| match named(spec) {
            Ok(Named::Kubernetes(settings)) => settings,
            other => panic!("{spec}: {other:?}"),
        };
        let parsed = KubeSettings::parse("/k").unwrap();
        assert_eq!(file("  datastoreType: kubernetes\n  kubeconfig: /k\n"), parsed);
        assert_eq!(file("  kubeconfig: /k\n"), parsed);
        assert_eq!(
            file("  kubeconfig: /k\n  k8sCurrentContext: other\n"),
            parsed.clone().with_context("other")
        );
        let text = format!("{HEAD}  kubeconfig: /k\n  k8sCurrentContext: other\n");
        let typed = read("f", &text, Some("third")).unwrap();
        assert_eq!(typed, Named::Kubernetes(parsed.with_context("third")));
        assert_eq!(file("  datastoreType: kubernetes\n"), KubeSettings::parse("").unwrap());
        let fields = "  k8sAPIEndpoint: https://h:6443\n  k8sCAFile: /ca\n  k8sAPIToken: secret\n  k8sUsePodCIDR: true\n";
        let shown = format!("{:?}", file(fields));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn json_is_taken_as_well() {
        let text = r#"{"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "metadata": {},
            "spec": {"datastoreType": "etcdv3", "etcdEndpoints": "http://a:2379"}}"#;
        assert!(matches!(read("c", text, None), Ok(Named::Etcd(s)) if s.endpoints == ["http://a:2379"]));
    }

    #[test]
    fn mistakes_are_named_with_line_and_field() {
        let mut shown = String::new();
        for spec in [
            "  etcdEndpoint: http://a:2379\n",
            "  colour: red\n",
            "  datastoreType: etcdv2\n",
            "  datastoreType: etcdv3\n",
            "  etcdEndpoints: a:2379\n",
            "  etcdDiscoverySrv: example.org\n",
            "  etcdEndpoints: http://a:2379\n  etcdCertFile: /c\n",
            "  etcdEndpoints: http://a:2379\n  etcdPassword: p\n",
            "  etcdEndpoints: http://a:2379\n  etcdKey: k\n  etcdKeyFile: /k\n",
            "  kubeconfig: /k\n  kubeconfigInline: x\n",
            "  k8sInsecureSkipTLSVerify: maybe\n",
        ] {
            let error = named(spec).unwrap_err();
            shown += &format!("{error}\n");
        }
        for text in ["", "kind: IPPool\n", "kind: CalicoAPIConfig\napiVersion: v1\n", "spec: ["] {
            shown += &format!("{}\n", read("calicoctl.cfg", text, None).unwrap_err());
        }
        let of_etcd = format!("{HEAD}  etcdEndpoints: http://a:2379\n");
        shown += &format!("{}\n", read("calicoctl.cfg", &of_etcd, Some("x")).unwrap_err());
        shown += &format!("{}\n", open(Path::new("/nonexistent/c"), None).err().unwrap());
        insta::assert_snapshot!(shown);
    }
}
