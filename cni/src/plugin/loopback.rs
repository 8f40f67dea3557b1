//! The plugin `loopback` of the reference set, for nodes that have none: containerd before 2.0 calls it for every pod. It
//! brings the pod's `lo` up and says what is on it. No agent and no address management are asked.

use brindle_kernel::netlink::Rtnl;
use ipnet::IpNet;

use super::open_netns;
use crate::{
    conf::Conf,
    env::{Attachment, Command},
    error::{CniError, code},
    result::Answer,
};

const LO: &str = "lo";

/// Carries out a command that concerns a pod; the result of an ADD.
pub(super) fn run(conf: &Conf, runtime: &Attachment, command: Command) -> Result<Option<Answer>, CniError> {
    let Some(path) = runtime.netns.as_deref() else {
        // Only a DEL may come without: what was in the namespace is gone with it.
        return Ok(None);
    };
    let pod = match open_netns(path) {
        Err(e) if command == Command::Del && matches!(e.code, code::CONTAINER | code::ENVIRONMENT) => {
            return Ok(None);
        }
        pod => pod?,
    };
    let mut kernel = Rtnl::open_in(&pod)?;
    match command {
        Command::Add => {
            kernel.set_up(LO)?;
            if let Some(before) = conf.prev_answer()? {
                return Ok(Some(before));
            }
            let link = kernel.link_by_name(LO)?;
            let on_it = kernel.addrs(link.map(|l| l.index))?;
            let nets: Vec<IpNet> = on_it.iter().map(|a| a.net).filter(|n| n.addr().is_loopback()).collect();
            let sandbox = path.to_string_lossy().into_owned();
            Ok(Some(Answer::of_device(conf.version, LO, sandbox, &nets, conf.dns.clone())))
        }
        Command::Del => kernel.set_down(LO).map(|()| None).map_err(CniError::from),
        _ => {
            let up = kernel.link_by_name(LO)?.is_some_and(|l| l.up);
            if up {
                Ok(None)
            } else {
                Err(CniError::new(code::FAILED, "lo is not up").hint("delete the pod; it will be made anew"))
            }
        }
    }
}
