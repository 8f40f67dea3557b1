//! The protocol between the plugin and the agent of its node: one request and one reply per frame over a unix socket,
//! as many as needed per connection. A frame is a length (u32, big endian) and that many octets of JSON.
//!
//! The agent owns addresses and endpoints; the plugin owns the veth pair. So an ADD is two calls: [`Call::Add`] gives
//! addresses and the name of the host device, [`Call::Register`] is answered when the endpoint is in the kernel.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha1::{Digest, Sha1};

use crate::conf::ValidAttachment;

pub mod handle;

/// Version of this protocol. The agent refuses others with a sentence that says what to update.
pub const VERSION: u32 = 1;
/// Largest frame, octets.
pub const MAX_FRAME: u32 = 256 * 1024;

/// The pod behind an attachment, from CNI_ARGS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

/// One interface of one container: what all calls are about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub container_id: String,
    pub ifname: String,
    /// Path of the network namespace; empty in a DEL after the namespace is gone.
    pub netns: String,
    /// `device:inode` of the namespace: the same path may stand for another one later. Empty as above.
    #[serde(default)]
    pub netns_id: String,
    /// `name` of the network configuration; prefix of the address handle.
    pub network: String,
    /// None outside Kubernetes (podman, ctr).
    #[serde(default)]
    pub pod: Option<PodRef>,
}

impl Attachment {
    /// Handle that owns the addresses (see [`handle`]).
    pub fn handle(&self) -> String {
        handle::handle(&self.network, &self.container_id, &self.ifname)
    }

    /// The handle of an earlier agent, where it is another one.
    pub fn former_handle(&self) -> Option<String> {
        handle::former(&self.network, &self.container_id, &self.ifname)
    }

    /// Whether both are of one interface of one container: a DEL need not name the namespace or the pod.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.network, &self.container_id, &self.ifname)
            == (&other.network, &other.container_id, &other.ifname)
    }

    /// Orchestrator field of the endpoint.
    pub fn orchestrator(&self) -> &'static str {
        if self.pod.is_some() { "k8s" } else { "cni" }
    }

    /// Namespace of the endpoint resource.
    pub fn namespace(&self) -> &str {
        self.pod.as_ref().map_or("default", |p| &p.namespace)
    }

    /// Workload part of the endpoint's name: the pod, else the container.
    pub fn workload(&self) -> &str {
        self.pod.as_ref().map_or(&self.container_id, |p| &p.name)
    }

    /// Name of the host device: prefix and the first 11 hexadecimal digits of SHA-1 of `<namespace>.<pod>` for eth0 of
    /// a pod (as Calico has it); of pod or container and interface otherwise, with slashes: no name has one, but pods may be
    /// called like another pod's interface.
    pub fn host_ifname(&self, prefix: &str) -> String {
        device_name(
            prefix,
            &match (&self.pod, self.ifname.as_str()) {
                (Some(p), "eth0") => format!("{}.{}", p.namespace, p.name),
                (Some(p), other) => format!("{}.{}/{other}", p.namespace, p.name),
                (None, other) => format!("/{}/{other}", self.container_id),
            },
        )
    }

    /// The name that earlier versions gave it, where it is another one: with dots alone, which eth0 of another pod may share.
    pub fn former_host_ifname(&self, prefix: &str) -> Option<String> {
        let text = match (&self.pod, self.ifname.as_str()) {
            (Some(_), "eth0") => return None,
            (Some(p), other) => format!("{}.{}.{other}", p.namespace, p.name),
            (None, other) => format!("{}.{other}", self.container_id),
        };
        Some(device_name(prefix, &text))
    }

    /// Whether both are of one interface of one pod, perhaps in different sandboxes; without a pod, of one container.
    pub fn is_interface_of(&self, other: &Self) -> bool {
        let pod = match (&self.pod, &other.pod) {
            (Some(a), Some(b)) => (&a.namespace, &a.name) == (&b.namespace, &b.name),
            (None, None) => self.container_id == other.container_id,
            _ => false,
        };
        pod && self.ifname == other.ifname
    }
}

fn device_name(prefix: &str, text: &str) -> String {
    let hex: String = Sha1::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let room = 15_usize.saturating_sub(prefix.len()).min(11);
    format!("{prefix}{}", &hex[..room])
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    Ping,
    /// Which addresses belong to pods of this node (podCIDRs), for `usePodCidr`.
    PodCidrs,
    /// Of which families every pod of this node can have addresses: those of pools that serve it and select every namespace.
    Families,
    /// Whether an ADD can be served now. Without any of these: one of some pod, from whichever pool.
    Status {
        /// Another IPAM plugin gives the addresses: pools do not matter.
        #[serde(default)]
        given: bool,
        #[serde(default)]
        pools4: Vec<String>,
        #[serde(default)]
        pools6: Vec<String>,
        /// As of ADD; both 0: not told.
        #[serde(default)]
        num4: u8,
        #[serde(default)]
        num6: u8,
    },
    /// Addresses and a host device name for an attachment. Asked twice for one attachment, the same are given.
    Add {
        attachment: Attachment,
        #[serde(default)]
        pools4: Vec<String>,
        #[serde(default)]
        pools6: Vec<String>,
        num4: u8,
        num6: u8,
        /// These very addresses.
        #[serde(default)]
        ips: Vec<IpAddr>,
        /// Another IPAM plugin gave these: none are taken from the pools.
        #[serde(default)]
        given: Vec<IpNet>,
        /// What it may give, first and last of each range, where its configuration says.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ranges: Vec<(IpAddr, IpAddr)>,
        /// The pools are the pod's own wish: those its namespace asks for do not count.
        #[serde(default)]
        pools_of_pod: bool,
    },
    /// The veth pair is there: record the endpoint, answer when its route and settings are in the kernel.
    Register {
        attachment: Attachment,
        host_ifname: String,
        /// Of the container's end.
        mac: String,
        addresses: Vec<IpNet>,
        /// Addresses that lead to these.
        #[serde(default)]
        floating: Vec<IpAddr>,
    },
    /// Endpoint and addresses go; nothing there is fine. The agent also deletes the device, without making the caller
    /// wait for the kernel to tear it down.
    Del {
        attachment: Attachment,
        #[serde(default)]
        device: Option<HostDevice>,
    },
    /// Endpoint, address records and host route are as they should be.
    Check {
        attachment: Attachment,
        addresses: Vec<IpNet>,
        /// The addresses are another IPAM plugin's: there is no record of them.
        #[serde(default)]
        foreign: bool,
    },
    /// Addresses only, for another plugin's interface.
    IpamAdd {
        attachment: Attachment,
        #[serde(default)]
        pools4: Vec<String>,
        #[serde(default)]
        pools6: Vec<String>,
        num4: u8,
        num6: u8,
        #[serde(default)]
        ips: Vec<IpAddr>,
        #[serde(default)]
        pools_of_pod: bool,
    },
    IpamDel {
        attachment: Attachment,
    },
    IpamCheck {
        attachment: Attachment,
        addresses: Vec<IpNet>,
    },
    /// Attachments of the network other than these are gone; what they hold goes back.
    Gc {
        network: String,
        valid: Vec<ValidAttachment>,
        /// Only say in the log what would go.
        #[serde(default)]
        dry_run: bool,
    },
}

impl Call {
    /// [`Call::Status`] of no network in particular.
    pub fn status() -> Self {
        Self::Status { given: false, pools4: Vec::new(), pools6: Vec::new(), num4: 0, num6: 0 }
    }
}

/// The host end of a pair, named twice so that a device that took either number or name since is not hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDevice {
    pub index: u32,
    pub name: String,
}

/// A call with the version of the protocol it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    #[serde(flatten)]
    pub call: Call,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Pong {
        node: String,
        version: String,
    },
    Added {
        /// /32 and /128.
        addresses: Vec<IpNet>,
        host_ifname: String,
        /// Octets; 0: leave the kernel's default.
        mtu: u32,
        /// The attachment had these addresses before: a repeated ADD.
        #[serde(default)]
        again: bool,
    },
    PodCidrs {
        cidrs: Vec<IpNet>,
    },
    Families {
        v4: bool,
        v6: bool,
    },
    Registered,
    Deleted,
    Checked,
    Error {
        /// One of [`crate::error::code`].
        code: u32,
        msg: String,
        /// What to do.
        details: String,
    },
}

/// A frame that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the other side of the socket: {0}")]
    Io(#[from] io::Error),
    #[error("a frame of {0} octets, but {MAX_FRAME} is the most")]
    TooLong(u32),
    #[error("frame is not valid: {0}")]
    Decode(String),
}

/// The octets of a frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(value).map_err(|e| FrameError::Decode(e.to_string()))?;
    let len =
        u32::try_from(body.len()).ok().filter(|l| *l <= MAX_FRAME).ok_or(FrameError::TooLong(u32::MAX))?;
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

/// The length announced by the first four octets of a frame.
pub fn body_len(head: [u8; 4]) -> Result<usize, FrameError> {
    match u32::from_be_bytes(head) {
        len if len > MAX_FRAME => Err(FrameError::TooLong(len)),
        len => usize::try_from(len).map_err(|_| FrameError::TooLong(len)),
    }
}

/// The value in a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|e| FrameError::Decode(e.to_string()))
}

/// Asks over a connected stream and waits for the reply (the stream's timeouts apply).
pub fn ask(stream: &mut (impl Read + Write), call: Call) -> Result<Reply, FrameError> {
    stream.write_all(&encode(&Request { version: VERSION, call })?)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; body_len(head)?];
    stream.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(pod: bool, ifname: &str) -> Attachment {
        Attachment {
            container_id: "abc123".into(),
            ifname: ifname.into(),
            netns: "/run/netns/x".into(),
            netns_id: "4:1".into(),
            network: "k8s-pod-network".into(),
            pod: pod.then(|| PodRef {
                namespace: "default".into(),
                name: "web-0".into(),
                uid: String::new(),
            }),
        }
    }

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let request = Request {
            version: VERSION,
            call: Call::Add {
                attachment: attachment(true, "eth0"),
                pools4: vec![],
                pools6: vec![],
                num4: 1,
                num6: 0,
                ips: vec![],
                given: vec![],
                ranges: vec![],
                pools_of_pod: false,
            },
        };
        let frame = encode(&request).unwrap();
        let len = body_len(frame[..4].try_into().unwrap()).unwrap();
        assert_eq!(len, frame.len() - 4);
        assert_eq!(decode::<Request>(&frame[4..]).unwrap(), request);
    }

    #[test]
    fn a_status_of_an_earlier_plugin_asks_for_nothing_in_particular() {
        let old: Request = decode(br#"{"version":1,"call":"status"}"#).unwrap();
        assert_eq!(old.call, Call::status());
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        assert!(matches!(body_len([0xff; 4]), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn names_are_those_calico_gives() {
        let a = attachment(true, "eth0");
        assert_eq!(a.handle(), "k8s-pod-network.abc123");
        // sha1("default.web-0")
        assert_eq!(a.host_ifname("cali").len(), 15);
        assert_ne!(a.host_ifname("cali"), attachment(true, "net1").host_ifname("cali"));
        assert_ne!(a.host_ifname("cali"), attachment(false, "eth0").host_ifname("cali"));
    }

    #[test]
    fn a_second_interface_is_named_like_no_other_pods_first() {
        let pod = |name: &str, ifname: &str| {
            let pod = PodRef { namespace: "default".into(), name: name.into(), uid: String::new() };
            Attachment { pod: Some(pod), ..attachment(true, ifname) }
        };
        let (second, first) = (pod("web", "net1"), pod("web.net1", "eth0"));
        assert_ne!(second.host_ifname("cali"), first.host_ifname("cali"));
        assert_eq!(second.former_host_ifname("cali"), Some(first.host_ifname("cali")), "as it was");
        assert_eq!(first.former_host_ifname("cali"), None);
        assert!(second.is_interface_of(&pod("web", "net1")) && !second.is_interface_of(&pod("web", "eth0")));
        // Nor a container's that is no pod like a pod's.
        let container =
            |id: &str, ifname: &str| Attachment { container_id: id.into(), ..attachment(false, ifname) };
        assert_ne!(container("default.web", "net1").host_ifname("cali"), second.host_ifname("cali"));
        assert_ne!(container("default", "web").host_ifname("cali"), pod("web", "eth0").host_ifname("cali"));
    }
}
