//! Capabilities as people read them: what we announce beside what the peer announced, and what of it is in force.

use brindle_bgpd_core::{af::Family, speaker::SessionStatus, wire::Capability};
use brindle_config_core::status::bgp::CapabilityState;

/// Every capability of either side, ours first and in the order of the OPEN.
pub(super) fn both(ours: &[Capability], session: Option<&SessionStatus>) -> Vec<CapabilityState> {
    let mut all: Vec<CapabilityState> = Vec::with_capacity(ours.len() + 2);
    for c in ours {
        at(&mut all, c).ours.get_or_insert_with(|| detail(c));
    }
    for c in session.iter().flat_map(|s| &s.capabilities) {
        let state = at(&mut all, c);
        // Some are sent once for each family.
        state.agreed |= state.ours.is_some() && session.is_some_and(|s| in_force(c, s));
        match &mut state.theirs {
            Some(text) if !text.is_empty() => *text = format!("{text}, {}", detail(c)),
            Some(_) => {}
            None => state.theirs = Some(detail(c)),
        }
    }
    all
}

fn at<'a>(all: &'a mut Vec<CapabilityState>, c: &Capability) -> &'a mut CapabilityState {
    let name = name(c);
    let found = all.iter().position(|s| s.name == name);
    let index = found.unwrap_or_else(|| {
        all.push(CapabilityState { name, ..CapabilityState::default() });
        all.len() - 1
    });
    // Just found or just put there.
    &mut all[index]
}

/// Whether what the peer announced holds for the session, given that we announce it, too.
fn in_force(c: &Capability, s: &SessionStatus) -> bool {
    match c {
        Capability::MultiProtocol { afi, safi } => {
            Family::from_code(*afi, *safi).is_some_and(|f| s.families[f])
        }
        Capability::RouteRefresh | Capability::ExtendedMessage | Capability::FourOctetAs(_) => true,
        Capability::EnhancedRouteRefresh => s.enhanced_refresh,
        Capability::GracefulRestart { .. } => s.restart.is_some(),
        Capability::AddPath(_) => s.add_path_in.0.contains(&true) || s.add_path_out.0.contains(&true),
        Capability::LongLivedGracefulRestart(_) => s.long_lived.0.iter().any(Option::is_some),
        Capability::Fqdn { .. } | Capability::Unknown { .. } => false,
    }
}

/// What it is called.
pub(super) fn name(c: &Capability) -> String {
    match c {
        Capability::MultiProtocol { afi: 1, safi: 1 } => "IPv4 unicast".into(),
        Capability::MultiProtocol { afi: 2, safi: 1 } => "IPv6 unicast".into(),
        Capability::MultiProtocol { afi, safi } => format!("AFI {afi} SAFI {safi}"),
        Capability::RouteRefresh => "route refresh".into(),
        Capability::ExtendedMessage => "extended message".into(),
        Capability::GracefulRestart { .. } => "graceful restart".into(),
        Capability::FourOctetAs(_) => "4-octet AS".into(),
        Capability::AddPath(_) => "add-path".into(),
        Capability::EnhancedRouteRefresh => "enhanced route refresh".into(),
        Capability::LongLivedGracefulRestart(_) => "long-lived graceful restart".into(),
        Capability::Fqdn { .. } => "host name".into(),
        Capability::Unknown { code, .. } => format!("code {code}"),
    }
}

/// What it says beside its name, and says each time: that a side has just restarted stands with the session.
fn detail(c: &Capability) -> String {
    match c {
        Capability::MultiProtocol { .. }
        | Capability::RouteRefresh
        | Capability::ExtendedMessage
        | Capability::EnhancedRouteRefresh => String::new(),
        Capability::FourOctetAs(asn) => asn.to_string(),
        Capability::GracefulRestart { restarting: _, notification, restart_time, families } => {
            let mut words = vec![format!("{restart_time} s")];
            words.extend(notification.then(|| "over notifications".into()));
            words.extend(families.iter().map(|f| family(f.afi, f.safi)));
            words.join(", ")
        }
        Capability::AddPath(list) => {
            let mode = |mode: u8| match mode {
                1 => "in",
                2 => "out",
                _ => "in and out",
            };
            list.iter()
                .map(|(afi, safi, m)| format!("{} {}", family(*afi, *safi), mode(*m)))
                .collect::<Vec<_>>()
                .join(", ")
        }
        Capability::LongLivedGracefulRestart(list) => list
            .iter()
            .map(|(afi, safi, _, time)| format!("{} {time} s", family(*afi, *safi)))
            .collect::<Vec<_>>()
            .join(", "),
        Capability::Fqdn { host, domain } if domain.is_empty() => host.clone(),
        Capability::Fqdn { host, domain } => format!("{host}.{domain}"),
        Capability::Unknown { value, .. } => value.iter().map(|b| format!("{b:02x}")).collect(),
    }
}

/// As it stands in configuration files, or by its numbers.
fn family(afi: u16, safi: u8) -> String {
    Family::from_code(afi, safi)
        .map_or_else(|| format!("AFI {afi} SAFI {safi}"), |f| super::neighbors::name(f).to_owned())
}

#[cfg(test)]
mod tests {
    use brindle_bgpd_core::wire::GrFamily;

    use super::*;

    #[test]
    fn what_only_one_side_announces_is_not_agreed_on() {
        let ours = [
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::AddPath(vec![(1, 1, 1), (2, 1, 3)]),
            Capability::FourOctetAs(64_512),
        ];
        let alone = both(&ours, None);
        assert!(alone.iter().all(|c| c.theirs.is_none() && !c.agreed), "{alone:?}");
        assert_eq!(alone[1].ours.as_deref(), Some("ipv4 in, ipv6 in and out"));

        let status = SessionStatus {
            local: "10.0.0.1:179".parse().unwrap(),
            remote: "10.0.0.2:179".parse().unwrap(),
            remote_id: [10, 0, 0, 2].into(),
            ibgp: true,
            hold_time: 9,
            keepalive: 3,
            families: brindle_bgpd_core::af::PerFamily([true, false]),
            add_path_in: Default::default(),
            add_path_out: Default::default(),
            enhanced_refresh: false,
            restart: None,
            notification_restart: false,
            long_lived: Default::default(),
            end_of_rib: Default::default(),
            capabilities: vec![
                Capability::MultiProtocol { afi: 1, safi: 1 },
                Capability::GracefulRestart {
                    restarting: true,
                    notification: false,
                    restart_time: 120,
                    families: vec![GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
                },
                Capability::AddPath(vec![(1, 1, 1)]),
                Capability::Unknown { code: 131, value: vec![0] },
            ],
        };
        let all = both(&ours, Some(&status));
        let seen: Vec<_> =
            all.iter().map(|c| (c.name.as_str(), c.ours.is_some(), c.theirs.as_deref(), c.agreed)).collect();
        assert_eq!(
            seen,
            [
                ("IPv4 unicast", true, Some(""), true),
                // Both receive and nobody sends.
                ("add-path", true, Some("ipv4 in"), false),
                ("4-octet AS", true, None, false),
                ("graceful restart", false, Some("120 s, ipv4"), false),
                ("code 131", false, Some("00"), false),
            ]
        );
    }
}
