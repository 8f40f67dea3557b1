//! Host endpoints: the node's own traffic and what it forwards, before DNAT, untracked, failsafe ports.

use serde_json::{Value, json};

use super::{Case, Probe, one, steps};
use crate::policy::world::{gnp, host, np, with};

const TCP80: Probe = Probe::Tcp(80);
const SSH: Probe = Probe::Tcp(22);

pub(super) fn all() -> Vec<Case> {
    let g = "host endpoints";
    let on = |name: &str, more: Value| {
        let mut spec = json!({"selector": "role == 'host'", "order": 10});
        for (k, v) in more.as_object().into_iter().flatten() {
            spec[k] = v.clone();
        }
        gnp(name, spec)
    };
    let allow = |protocol: &str| json!([{"action": "Allow", "protocol": protocol}]);
    let open = || host(json!({"profiles": ["projectcalico-default-allow"]}));
    let forward = |more: Value| {
        let mut spec = json!({"applyOnForward": true});
        for (k, v) in more.as_object().into_iter().flatten() {
            spec[k] = v.clone();
        }
        on("forward", spec)
    };
    vec![
        one(g, "no policy and no profile: closed but for failsafe ports", [host(json!({}))])
            .says("out1", "host", TCP80, false)
            .says("out1", "host", SSH, true)
            .says("out2", "host", TCP80, true)
            .says("out1", "ns1/p1", TCP80, true)
            .says("host", "out1", Probe::Udp(53), true)
            .says("host", "out1", TCP80, false),
        one(g, "a profile that allows", [open()]).says("out1", "host", TCP80, true),
        one(g, "ingress", [open(), on("p", json!({"types": ["Ingress"], "ingress": allow("UDP")}))])
            .says("out1", "host", Probe::Udp(80), true)
            .says("out1", "host", TCP80, false)
            .says("host", "out1", TCP80, true)
            .says("ns1/p1", "host", TCP80, true),
        one(g, "egress", [open(), on("p", json!({"types": ["Egress"], "egress": allow("TCP")}))])
            .says("host", "out1", TCP80, true)
            .says("host", "out1", Probe::Udp(80), false)
            .says("host", "out2", Probe::Udp(80), true)
            .says("host", "ns1/p1", Probe::Udp(80), true),
        one(g, "deny all, failsafe ports stay", [open(), on("p", json!({"types": ["Ingress", "Egress"]}))])
            .says("out1", "host", SSH, true)
            .says("out1", "host", TCP80, false),
        one(g, "not for forwarded traffic", [open(), on("p", json!({"types": ["Ingress", "Egress"]}))])
            .says("out1", "ns1/p1", TCP80, true),
        one(g, "applyOnForward, ingress", [open(), forward(json!({"types": ["Ingress"], "ingress": allow("TCP")}))])
            .says("out1", "ns1/p1", TCP80, true)
            .says("out1", "ns1/p1", Probe::Udp(53), false)
            .says("out2", "ns1/p1", Probe::Udp(53), true)
            .says("ns1/p1", "out1", Probe::Udp(53), true),
        one(g, "applyOnForward, egress", [open(), forward(json!({"types": ["Egress"], "egress": allow("TCP")}))])
            .says("ns1/p1", "out1", TCP80, true)
            .says("ns1/p1", "out1", Probe::Udp(53), false)
            .says("out2", "out1", Probe::Udp(53), false),
        one(g, "applyOnForward, both ends must allow", [
            open(),
            forward(json!({"types": ["Ingress"], "ingress": allow("TCP")})),
            np("ns1", "pods", json!({"ingress": [{"action": "Allow", "protocol": "UDP"}]})),
        ])
        .says("out1", "ns1/p1", TCP80, false)
        .says("out1", "ns1/p1", Probe::Udp(53), false),
        one(g, "preDNAT", [
            open(),
            on("pre", json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress"],
                "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}}]})),
        ])
        .says("out1", "host", TCP80, false)
        .says("out1", "ns1/p1", TCP80, false)
        .says("out1", "ns1/p1", Probe::Tcp(81), true)
        .says("out2", "ns1/p1", TCP80, true),
        one(g, "preDNAT allows past the host's policy", [
            open(),
            on("pre", json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress"], "ingress": allow("UDP")})),
            on("p", json!({"types": ["Ingress"], "ingress": allow("TCP")})),
        ])
        .says("out1", "host", Probe::Udp(80), true)
        .says("out1", "host", TCP80, true),
        one(g, "preDNAT, a failsafe port of what is forwarded", [
            open(),
            on("pre", json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress"], "ingress": [
                {"action": "Deny", "protocol": "TCP"}]})),
            forward(json!({"types": ["Ingress"], "ingress": allow("UDP")})),
        ])
        .says("out1", "host", SSH, true)
        .says("out1", "host", TCP80, false)
        .says("out1", "ns1/p1", SSH, false)
        .says("out1", "ns1/p1", Probe::Udp(53), true)
        .says("out2", "ns1/p1", SSH, true),
        one(g, "preDNAT denies, a failsafe port is left to policy for what is forwarded", [
            open(),
            on("pre", json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress"], "ingress": [
                {"action": "Deny", "protocol": "TCP"}]})),
            forward(json!({"types": ["Ingress"], "ingress": allow("TCP")})),
        ])
        .says("out1", "ns1/p1", SSH, true)
        .says("out1", "ns1/p1", TCP80, false)
        .says("out1", "ns1/p1", Probe::Udp(53), false),
        one(g, "doNotTrack, a failsafe port of what is forwarded", [
            open(),
            on("raw", json!({"doNotTrack": true, "applyOnForward": true, "types": ["Egress"],
                "egress": [{"action": "Deny", "protocol": "UDP"}]})),
            forward(json!({"types": ["Ingress", "Egress"], "ingress": [
                {"action": "Deny", "protocol": "TCP", "destination": {"ports": [22]}}, {"action": "Allow"}],
                "egress": allow("TCP")})),
        ])
        .says("host", "out1", Probe::Udp(53), true)
        .says("host", "out1", Probe::Udp(80), false)
        .says("ns1/p1", "out1", Probe::Udp(53), false),
        one(g, "doNotTrack denies", [
            open(),
            on("raw", json!({"doNotTrack": true, "applyOnForward": true, "types": ["Ingress"],
                "ingress": [{"action": "Deny", "protocol": "UDP"}]})),
        ])
        .says("out1", "host", Probe::Udp(80), false)
        .says("out1", "ns1/p1", Probe::Udp(53), false)
        .says("out2", "ns1/p1", Probe::Udp(53), true),
        one(g, "doNotTrack allows past the host's policy", [
            open(),
            on("raw", json!({"doNotTrack": true, "applyOnForward": true, "types": ["Ingress", "Egress"],
                "ingress": allow("UDP"), "egress": allow("UDP")})),
            on("p", json!({"types": ["Ingress", "Egress"]})),
        ])
        .says("out1", "host", Probe::Udp(80), true)
        .says("out1", "host", Probe::Ping, false)
        .says("host", "out1", Probe::Udp(80), true),
        one(g, "a rule about host endpoints' addresses", [
            open(),
            np("ns1", "pods", json!({"types": ["Egress"], "egress": [{"action": "Allow",
                "destination": {"selector": "role == 'host'", "namespaceSelector": "global()"}}]})),
        ])
        .says("ns1/p1", "host", TCP80, true)
        .says("ns1/p1", "out1", TCP80, false),
        steps(g, "the endpoint appears and goes", vec![
            with([on("p", json!({"types": ["Ingress"]}))]),
            with([open(), on("p", json!({"types": ["Ingress"]}))]),
            with([on("p", json!({"types": ["Ingress"]}))]),
        ])
        .says("out1", "host", TCP80, true),
        one(g, "found by its addresses", [
            {
                let mut h = open();
                if let Some(spec) = h["spec"].as_object_mut() {
                    spec.remove("interfaceName");
                }
                h["spec"]["expectedIPs"] = json!(["192.0.2.1", "192.168.0.1"]);
                h
            },
            on("p", json!({"types": ["Ingress"], "ingress": allow("UDP")})),
        ])
        .says("out1", "host", TCP80, false),
    ]
}
