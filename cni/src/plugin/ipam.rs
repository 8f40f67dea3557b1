//! The address plugin: for other plugins that want Brindle's addresses on interfaces of their own.

use super::{Invocation, del};
use crate::{
    client::Agent,
    error::CniError,
    proto::{Call, Reply},
    result::Answer,
};

pub(super) fn add(call: &Invocation) -> Result<Answer, CniError> {
    if !call.conf.unmanaged.is_empty() {
        return Err(CniError::config(
            "the pod's annotation ipAddrsNoIpam leaves nothing for an IPAM plugin to give",
        )
        .hint("use the annotation ipAddrs on networks of other plugins"));
    }
    let (pools4, pools6, num4, num6, ips) = call.wish();
    let attachment = call.attachment.clone();
    let pools_of_pod = call.conf.pools_of_pod;
    let request = Call::IpamAdd { attachment, pools4, pools6, num4, num6, ips, pools_of_pod };
    match call.agent()?.call(request)? {
        Reply::Added { addresses, .. } => {
            let answer = Answer::addresses(call.conf.version, &addresses, call.conf.dns.clone());
            Ok(Answer { routes: call.conf.routes.clone(), ..answer })
        }
        other => Err(Agent::unexpected(&other)),
    }
}

pub(super) fn del(call: &Invocation) -> Result<(), CniError> {
    del::tell(call, Call::IpamDel { attachment: call.attachment.clone() }, true).map(drop)
}

pub(super) fn check(call: &Invocation) -> Result<(), CniError> {
    let result = call.conf.prev_answer()?.ok_or_else(|| CniError::config("prevResult: is missing"))?;
    let addresses = result.ips.iter().map(|ip| ip.address).collect();
    match call.agent()?.call(Call::IpamCheck { attachment: call.attachment.clone(), addresses })? {
        Reply::Checked => Ok(()),
        other => Err(Agent::unexpected(&other)),
    }
}
