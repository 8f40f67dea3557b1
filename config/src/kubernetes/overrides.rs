//! Single fields of calicoctl's file and variables that stand above what a kubeconfig says (Calico `apiconfig.go`,
//! `K8S_API_ENDPOINT` and its like). No file is read here.

use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};

use crate::hidden::Hidden;

/// The name of what no kubeconfig named.
const OWN: &str = "default";

/// Each stands above the kubeconfig's field where it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// `k8sAPIEndpoint`.
    pub(crate) server: Option<String>,
    /// `k8sCAFile`.
    pub(crate) ca: Option<String>,
    /// `k8sCertFile`.
    pub(crate) cert: Option<String>,
    /// `k8sKeyFile`.
    pub(crate) key: Option<String>,
    /// `k8sAPIToken`.
    pub(crate) token: Option<Hidden>,
    /// `k8sInsecureSkipTLSVerify`.
    pub(crate) insecure: bool,
}

impl Overrides {
    /// As variables say.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            server: variable("K8S_API_ENDPOINT"),
            ca: variable("K8S_CA_FILE"),
            cert: variable("K8S_CERT_FILE"),
            key: variable("K8S_KEY_FILE"),
            token: variable("K8S_API_TOKEN").map(Hidden),
            insecure: variable("K8S_INSECURE_SKIP_TLS_VERIFY").is_some_and(|v| {
                let v = v.to_ascii_lowercase();
                matches!(v.as_str(), "1" | "t" | "true" | "yes" | "on")
            }),
        }
    }

    /// Whether they say where the server is, without a kubeconfig.
    pub(crate) const fn names_a_server(&self) -> bool {
        self.server.is_some()
    }

    /// A kubeconfig that says nothing but its names.
    pub(crate) fn empty_kubeconfig() -> Kubeconfig {
        Kubeconfig {
            clusters: vec![NamedCluster {
                name: OWN.into(),
                cluster: Some(Cluster::default()),
                ..NamedCluster::default()
            }],
            contexts: vec![NamedContext {
                name: OWN.into(),
                context: Some(Context { cluster: OWN.into(), ..Context::default() }),
                ..NamedContext::default()
            }],
            current_context: Some(OWN.into()),
            ..Kubeconfig::default()
        }
    }

    /// Writes what is given over the cluster and the user of `context`, or of the kubeconfig's own choice. A context that
    /// is not there changes nothing; whoever reads the kubeconfig names it.
    pub(crate) fn apply(&self, kubeconfig: &mut Kubeconfig, context: Option<&str>) {
        if *self == Self::default() {
            return;
        }
        let chosen = context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone());
        let found = kubeconfig.contexts.iter_mut().find(|c| Some(&c.name) == chosen.as_ref());
        let Some(context) = found.and_then(|c| c.context.as_mut()) else { return };
        let cluster = kubeconfig.clusters.iter_mut().find(|c| c.name == context.cluster);
        if let Some(cluster) = cluster.and_then(|c| c.cluster.as_mut()) {
            if let Some(server) = &self.server {
                cluster.server = Some(server.clone());
            }
            if let Some(ca) = &self.ca {
                cluster.certificate_authority = Some(ca.clone());
                cluster.certificate_authority_data = None;
            }
            if self.insecure {
                cluster.insecure_skip_tls_verify = Some(true);
            }
        }
        if self.cert.is_none() && self.key.is_none() && self.token.is_none() {
            return;
        }
        let name = context.user.get_or_insert_with(|| OWN.into()).clone();
        let at = kubeconfig.auth_infos.iter().position(|u| u.name == name);
        let at = at.unwrap_or_else(|| {
            kubeconfig.auth_infos.push(NamedAuthInfo { name, ..NamedAuthInfo::default() });
            kubeconfig.auth_infos.len() - 1
        });
        let user = kubeconfig.auth_infos[at].auth_info.get_or_insert_with(AuthInfo::default);
        if let Some(cert) = &self.cert {
            user.client_certificate = Some(cert.clone());
            user.client_certificate_data = None;
        }
        if let Some(key) = &self.key {
            user.client_key = Some(key.clone());
            user.client_key_data = None;
        }
        if let Some(token) = &self.token {
            user.token = Some(token.0.clone().into());
            user.token_file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(given: &[(&str, &str)]) -> Overrides {
        Overrides::of(|name| given.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    fn json(k: &Kubeconfig) -> serde_json::Value {
        serde_json::to_value(k).unwrap()
    }

    #[test]
    fn without_a_kubeconfig_the_fields_are_one() {
        let o = over(&[
            ("K8S_API_ENDPOINT", "https://h:6443"),
            ("K8S_CA_FILE", "/ca"),
            ("K8S_API_TOKEN", "secret"),
            ("K8S_INSECURE_SKIP_TLS_VERIFY", "True"),
        ]);
        assert!(o.names_a_server() && !format!("{o:?}").contains("secret"));
        let mut k = Overrides::empty_kubeconfig();
        o.apply(&mut k, None);
        let cluster = k.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://h:6443"));
        assert_eq!(cluster.certificate_authority.as_deref(), Some("/ca"));
        assert_eq!(cluster.insecure_skip_tls_verify, Some(true));
        assert_eq!(k.contexts[0].context.as_ref().unwrap().user.as_deref(), Some("default"));
        assert!(k.auth_infos[0].auth_info.as_ref().unwrap().token.is_some());
    }

    #[test]
    fn what_is_given_stands_above_the_kubeconfigs_own_and_nothing_else_changes() {
        let text = r#"{"current-context": "a", "contexts": [
            {"name": "a", "context": {"cluster": "c", "user": "u"}}, {"name": "b", "context": {"cluster": "d"}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://c", "certificate-authority-data": "eA=="}},
                {"name": "d", "cluster": {"server": "https://d"}}],
            "users": [{"name": "u", "user": {"client-certificate": "/old", "client-key-data": "eA=="}}]}"#;
        let base = Kubeconfig::from_yaml(text).unwrap();
        let mut k = base.clone();
        over(&[]).apply(&mut k, None);
        assert_eq!(json(&k), json(&base));
        over(&[("K8S_CA_FILE", "/ca"), ("K8S_KEY_FILE", "/k")]).apply(&mut k, None);
        let cluster = k.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://c"));
        assert_eq!(cluster.certificate_authority.as_deref(), Some("/ca"));
        assert_eq!(cluster.certificate_authority_data, None);
        let user = k.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(
            (user.client_certificate.as_deref(), user.client_key.as_deref()),
            (Some("/old"), Some("/k"))
        );
        assert!(user.client_key_data.is_none());
        // Another context, with no user yet.
        let mut k = base.clone();
        over(&[("K8S_API_ENDPOINT", "https://e"), ("K8S_API_TOKEN", "t")]).apply(&mut k, Some("b"));
        assert_eq!(json(&k)["clusters"][0], json(&base)["clusters"][0]);
        assert_eq!(k.clusters[1].cluster.as_ref().unwrap().server.as_deref(), Some("https://e"));
        assert_eq!(k.auth_infos.len(), 2);
        let mut k = base.clone();
        over(&[("K8S_API_ENDPOINT", "https://e")]).apply(&mut k, Some("nowhere"));
        assert_eq!(json(&k), json(&base));
    }
}
