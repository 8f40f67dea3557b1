//! A cluster of a given size, made in memory without going through HTTP, for measurements.

use serde_json::{Value, json};

use super::{serve::ApiServer, state::Id};

/// What [`ApiServer::populate`] makes is the same every time: node `n` has the pods of which the number modulo the
/// nodes is `n`, namespaces have about 100 pods, and each policy selects one of 50 applications in its namespace.
impl ApiServer {
    /// Creates `nodes` nodes (`node-0000`…, 10.x addresses), `pods` running pods spread over them and `policies`
    /// network policies.
    pub fn populate(&self, nodes: usize, pods: usize, policies: usize) {
        let core = |plural: &str| -> Id { (String::new(), plural.to_owned()) };
        let networking: Id = ("networking.k8s.io".into(), "networkpolicies".into());
        let mut state = self.shared().state();
        for n in 0..nodes {
            state.plant(&core("nodes"), node(n));
        }
        let namespaces = (pods / 100).max(1);
        for n in 0..namespaces {
            let name = format!("ns-{n:04}");
            state.plant(&core("namespaces"), json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "team": format!("team-{}", n % 10)}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}));
            state.furnish_namespace(&name);
        }
        for p in 0..pods {
            state.plant(&core("pods"), whole("Pod", pod(p, p % nodes.max(1), p % namespaces)));
        }
        for p in 0..policies {
            state.plant(&networking, whole("NetworkPolicy", policy(p, p % namespaces)));
        }
    }

    /// The name and namespace of the `p`-th pod of [`ApiServer::populate`] with that many pods.
    pub fn populated_pod(p: usize, pods: usize) -> (String, String) {
        (format!("ns-{:04}", p % (pods / 100).max(1)), format!("app-{:02}-{p:06}", p % 50))
    }
}

/// With the server's defaults, so that objects have the size they have in a cluster.
fn whole(kind: &str, mut object: Value) -> Value {
    super::builtin::defaults(kind, &mut object, &mut String::new);
    object
}

fn node(n: usize) -> Value {
    let (a, b) = (n / 250, n % 250 + 1);
    json!({
        "metadata": {"name": format!("node-{n:04}"), "labels": {
            "kubernetes.io/hostname": format!("node-{n:04}"), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": format!("zone-{}", n % 3), "node.kubernetes.io/instance-type": "standard-8"},
            "annotations": {"projectcalico.org/IPv4Address": format!("10.0.{a}.{b}/16"), "node.alpha.kubernetes.io/ttl": "0"}},
        "spec": {"podCIDR": format!("10.{}.{}.0/24", 64 + n / 256, n % 256), "podCIDRs": [format!("10.{}.{}.0/24", 64 + n / 256, n % 256)]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("10.0.{a}.{b}")}, {"type": "Hostname", "address": format!("node-{n:04}")}],
            "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "250"}, "capacity": {"cpu": "8", "memory": "32Gi", "pods": "250"},
            "conditions": [
                {"type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory", "message": "kubelet has sufficient memory available", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "DiskPressure", "status": "False", "reason": "KubeletHasNoDiskPressure", "message": "kubelet has no disk pressure", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "nodeInfo": {"architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.1.0", "kernelVersion": "6.12.0",
                "kubeProxyVersion": "v1.36.0", "kubeletVersion": "v1.36.0", "machineID": "m", "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12", "systemUUID": "s"}}
    })
}

fn pod(p: usize, node: usize, namespace: usize) -> Value {
    let app = format!("app-{:02}", p % 50);
    let slot = p / 256 % 256;
    let ip = format!("10.{}.{slot}.{}", 128 + p / 65_536, p % 256);
    let time = "2026-01-01T00:00:00Z";
    let image = format!("registry.example.org/team/{app}:1.2.3");
    json!({
        "metadata": {"name": format!("{app}-{p:06}"), "namespace": format!("ns-{namespace:04}"),
            "generateName": format!("{app}-"),
            "labels": {"app": app, "pod-template-hash": format!("{:08x}", p % 50), "tier": if p.is_multiple_of(3) { "frontend" } else { "backend" }},
            "annotations": {"cni.projectcalico.org/podIP": format!("{ip}/32"), "cni.projectcalico.org/podIPs": format!("{ip}/32")}},
        "spec": {"nodeName": format!("node-{node:04}"), "serviceAccountName": "default", "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
                "env": [{"name": "LOG_LEVEL", "value": "info"}, {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
                "livenessProbe": {"httpGet": {"path": "/livez", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3},
                "volumeMounts": [{"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": format!("10.0.{}.{}", node / 250, node % 250 + 1),
            "qosClass": "Burstable", "startTime": time,
            "conditions": [{"type": "Initialized", "status": "True", "lastTransitionTime": time}, {"type": "Ready", "status": "True", "lastTransitionTime": time},
                {"type": "ContainersReady", "status": "True", "lastTransitionTime": time}, {"type": "PodScheduled", "status": "True", "lastTransitionTime": time}],
            "containerStatuses": [{"name": "main", "ready": true, "started": true, "restartCount": 0, "image": image, "imageID": format!("{image}@sha256:{:064x}", p % 50),
                "containerID": format!("containerd://{p:064x}"), "state": {"running": {"startedAt": time}}}]}
    })
}

fn policy(p: usize, namespace: usize) -> Value {
    json!({
        "metadata": {"name": format!("policy-{p:05}"), "namespace": format!("ns-{namespace:04}"), "generation": 1},
        "spec": {"podSelector": {"matchLabels": {"app": format!("app-{:02}", p % 50)}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": format!("app-{:02}", (p + 1) % 50)}}},
                {"namespaceSelector": {"matchLabels": {"team": format!("team-{}", p % 10)}}, "podSelector": {"matchLabels": {"tier": "frontend"}}}],
                "ports": [{"protocol": "TCP", "port": 8080}]}]}
    })
}
