//! Host devices by name: what an attachment's is called, and whose one of that name is. The plugin takes whatever has the
//! name for the pod's own of before, and removes it.

use brindle_cni::{error::code, proto::Attachment};

use super::{device, refused::Refused, service::Service};

impl Service {
    /// The name of the attachment's host device: that of an earlier version while the device it made is there.
    pub(super) async fn host_ifname(&self, a: &Attachment) -> Result<String, Refused> {
        let prefix = self.pod_prefix();
        if let Some(former) = a.former_host_ifname(&prefix)
            && self.records(a, &former).await?
            && device::exists(former.clone()).await
        {
            return Ok(former);
        }
        Ok(a.host_ifname(&prefix))
    }

    /// Whether there may be a host device of the attachment, or of the same interface of its pod.
    pub(super) async fn may_live(&self, a: &Attachment) -> bool {
        let prefix = self.pod_prefix();
        if device::exists(a.host_ifname(&prefix)).await {
            return true;
        }
        match a.former_host_ifname(&prefix) {
            Some(former) => device::exists(former).await,
            None => false,
        }
    }

    /// Refuses a name that the device of another attachment has: it would be cut off.
    pub(super) async fn not_anothers(&self, a: &Attachment, name: &str) -> Result<(), Refused> {
        let prefix = self.pod_prefix();
        let first = |a: &Attachment| a.pod.is_some() && a.ifname == "eth0";
        let may_have = |other: &Attachment| {
            // Those of two pods' eth0 differ: a namespace's name has no dot. It saves two hashes for each pod of the node.
            if first(a) && first(other) || other.is_interface_of(a) {
                return false;
            }
            other.host_ifname(&prefix) == name || other.former_host_ifname(&prefix).is_some_and(|n| n == name)
        };
        for other in self.attached.which(may_have) {
            if self.records(&other, name).await? && device::exists(name.to_owned()).await {
                return Err(Refused::new(
                    code::ATTACHED,
                    format!(
                        "the host device of {} of {} has the name {name}, which this pod's would have",
                        other.ifname,
                        super::address::whose(&other)
                    ),
                    "delete that pod: made anew, its device is called otherwise",
                ));
            }
        }
        Ok(())
    }

    /// Whether the attachment's endpoint names this device.
    async fn records(&self, a: &Attachment, device: &str) -> Result<bool, Refused> {
        let there = self.endpoint(&self.endpoint_key(a)).await?;
        let its = |e: super::endpoint::Endpoint| {
            e.resource.spec.container_id == a.container_id && e.resource.spec.interface_name == device
        };
        Ok(there.is_some_and(its))
    }
}
