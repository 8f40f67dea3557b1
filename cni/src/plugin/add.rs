//! ADD: addresses from the agent, the pair, the pod's end, the endpoint at the agent, the result. Whatever fails, what
//! was made before it is taken back: a runtime that never sends the DEL still finds nothing left.

use brindle_kernel::{
    netlink::{Mac, Rtnl},
    netns::NetNs,
};
use ipnet::IpNet;
use serde_json::json;

use super::{
    Invocation,
    delegate::{self, Delegate, Given},
    open_pod,
};
use crate::{
    aside,
    client::Agent,
    conf::Dns,
    error::{CniError, code},
    fail, names,
    proto::{Call, Reply},
    result::{Answer, Interface},
    veth::{self, Created, Wiring},
};

pub(super) fn add(call: &Invocation) -> Result<Answer, CniError> {
    fail::point("add.begin");
    let before = call.conf.prev_answer()?;
    let pod = call.pod()?;
    let mut host = Rtnl::open()?;
    let mut agent = call.agent()?;
    let mut attachment = call.attachment.clone();
    attachment.netns_id = format!("{}:{}", pod.id().dev, pod.id().inode);

    let (pools4, pools6, num4, num6, ips) = call.wish();
    let mac = mac(call);
    let before_this = given_before(call, &mut host, &pod, mac)?;
    let repeated = !before_this.is_empty();
    // Nobody may give back what a running pod has, whatever its ADD is repeated for.
    let given = if repeated {
        // What they were given with is in the configuration of the plugins that are called here.
        let routes = delegate::destinations(&call.conf.routes).unwrap_or_default();
        Given { addresses: before_this, routes, ..Given::default() }
    } else {
        call.given().inspect_err(|_| {
            if !lives(call, &mut host) {
                give_back(call);
            }
        })?
    };
    let request = Call::Add {
        attachment: attachment.clone(),
        pools4,
        pools6,
        num4,
        num6,
        ips,
        given: given.addresses.clone(),
        ranges: call.delegate.as_ref().map_or_else(Vec::new, Delegate::ranges),
        pools_of_pod: call.conf.pools_of_pod,
    };
    let added = match agent.call(request) {
        Ok(Reply::Added { addresses, host_ifname, mtu, again }) => Ok((addresses, host_ifname, mtu, again)),
        Ok(other) => Err(Agent::unexpected(&other)),
        Err(e) => Err(e.into()),
    };
    let (addresses, host_ifname, mtu, again) = added.inspect_err(|_| {
        if !repeated {
            give_back(call);
        }
    })?;
    let again = again || repeated;
    fail::point("add.given");
    let mut undo = Undo { agent, attachment: Some(attachment.clone()), device: None, armed: !again };

    let wiring = Wiring {
        host_ifname: host_ifname.clone(),
        ifname: attachment.ifname.clone(),
        mac,
        mtu: call.conf.mtu.or(Some(mtu).filter(|m| *m != 0)),
        addresses: addresses.clone(),
        routes: given.routes.clone(),
        forwarding: call.conf.container.allow_ip_forwarding,
    };
    let wired = wire(&wiring, &mut host, &pod, &mut undo).and_then(|()| {
        let register = Call::Register {
            attachment: attachment.clone(),
            host_ifname: host_ifname.clone(),
            mac: mac.to_string(),
            addresses: addresses.clone(),
            floating: call.conf.floating.clone(),
        };
        match undo.agent.call(register)? {
            Reply::Registered => {
                fail::point("add.registered");
                still_there(call, &pod)
            }
            other => Err(Agent::unexpected(&other)),
        }
    });
    if let Err(e) = wired {
        if undo.armed {
            give_back(call);
        }
        return Err(undo.all(&mut host, e));
    }
    Ok(answer(call, &wiring, given.dns, before))
}

/// The addresses that another IPAM plugin gave for this very attachment, when its ADD is repeated: they are those of the
/// device, for it would refuse to give them twice. None while there is no such device.
fn given_before(call: &Invocation, host: &mut Rtnl, pod: &NetNs, mac: Mac) -> Result<Vec<IpNet>, CniError> {
    let found = if call.delegate.is_some() { veth::find(host, pod, &call.runtime.ifname) } else { Ok(None) };
    // What is in the way is refused where the device is made.
    let Ok(Some(pair)) = found else { return Ok(Vec::new()) };
    if !names::is_device_of(&call.attachment, &pair.host.name) || pair.container.mac != Some(mac) {
        return Ok(Vec::new());
    }
    let addrs = Rtnl::open_in(pod)?.addrs(Some(pair.container.index))?;
    // The kernel's own link-local ones have the length of a network.
    Ok(addrs.into_iter().map(|a| a.net).filter(|n| n.prefix_len() == n.max_prefix_len()).collect())
}

/// Whether a device of this attachment is there from before.
fn lives(call: &Invocation, host: &mut Rtnl) -> bool {
    let links = host.links().unwrap_or_default();
    links.iter().any(|l| names::is_device_of(&call.attachment, &l.name))
}

/// Addresses of another IPAM plugin, after an ADD that failed, be it its own: so the specification has it.
fn give_back(call: &Invocation) {
    if let Some(Err(e)) = call.delegate.as_ref().map(Delegate::del) {
        aside::say(format_args!("brindle: {e}"));
    }
}

fn mac(call: &Invocation) -> Mac {
    let wished = call.runtime.args.mac.or(call.conf.mac);
    wished.unwrap_or_else(|| names::container_mac(&call.runtime.container_id, &call.runtime.ifname))
}

fn wire(wiring: &Wiring, host: &mut Rtnl, pod: &NetNs, undo: &mut Undo) -> Result<(), CniError> {
    if wiring.create(host, pod)? == Created::New {
        undo.device = Some(wiring.host_ifname.clone());
    }
    fail::point("add.created");
    for warning in wiring.configure(pod)? {
        aside::say(format_args!("brindle: {warning}"));
    }
    fail::point("add.configured");
    Ok(())
}

/// Our descriptor kept the namespace alive; the runtime may have deleted it all the same.
fn still_there(call: &Invocation, pod: &NetNs) -> Result<(), CniError> {
    let path = call.runtime.netns.as_deref().unwrap_or_else(|| pod.path());
    match open_pod(path) {
        Ok(now) if now == *pod => Ok(()),
        _ => Err(CniError::new(
            code::CONTAINER,
            format!(
                "the network namespace {} was deleted while the interface was being made",
                path.display()
            ),
        )
        .hint("the container was deleted meanwhile; nothing is left of it")),
    }
}

/// `dns`: of the other IPAM plugin; the configuration's own comes first.
fn answer(call: &Invocation, wiring: &Wiring, dns: Dns, before: Option<Answer>) -> Answer {
    let mtu = wiring.mtu.unwrap_or(1500);
    let host = Interface {
        name: wiring.host_ifname.clone(),
        mac: names::HOST_MAC.to_string(),
        mtu,
        ..Interface::default()
    };
    let container = Interface {
        name: wiring.ifname.clone(),
        mac: wiring.mac.to_string(),
        mtu,
        sandbox: call.attachment.netns.clone(),
        ..Interface::default()
    };
    let addresses: &[IpNet] = &wiring.addresses;
    let own = call.conf.dns.clone();
    let dns = if own == Dns::default() { dns } else { own };
    let mut answer = Answer::attached(call.conf.version, host, container, addresses, dns, before);
    answer.routes.extend(wiring.further().map(|(dst, gateway)| json!({ "dst": dst, "gw": gateway })));
    answer
}

/// What has to go if the rest fails.
struct Undo {
    agent: Agent,
    attachment: Option<crate::proto::Attachment>,
    /// The pair made by this call.
    device: Option<String>,
    /// Not for a repeated ADD: the pod may be running on what the first one made.
    armed: bool,
}

impl Undo {
    fn all(&mut self, host: &mut Rtnl, cause: CniError) -> CniError {
        let mut left = Vec::new();
        if let Some(device) = self.device.take()
            && let Err(e) = veth::remove(host, &device)
        {
            left.push(format!("device {device}: {e}"));
        }
        if self.armed
            && let Some(attachment) = self.attachment.take()
            && let Err(e) = self.agent.call(Call::Del { attachment, device: None })
        {
            // The agent undoes an ADD whose connection ends before it was registered.
            left.push(format!("addresses: {}", CniError::from(e)));
        }
        if left.is_empty() {
            return cause;
        }
        let hint = format!("{}; not taken back yet: {}", cause.hint, left.join("; "));
        CniError { hint: hint.trim_start_matches("; ").to_owned(), ..cause }
    }
}
