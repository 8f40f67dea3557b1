//! One peer in full, as a screen of 80 columns.

use std::fmt::Write as _;

use brindle_config_core::status::bgp::{FamilyState, Messages, Neighbor, NeighborSettings, SessionFacts};

use super::screen::{age, field};
use crate::out::Table;

/// The longest detail of a capability that has room beside the other's.
const DETAIL: usize = 18;

/// All there is to say about a peer.
pub(super) fn screen(p: &Neighbor) -> String {
    let mut text = String::new();
    let address = p.address.map(|a| a.to_string()).unwrap_or_default();
    let _ = writeln!(text, "{} ({address} port {}), AS {}, {}", p.name, p.port, p.asn, p.kind);
    state(&mut text, p);
    if let Some(s) = &p.session {
        let kind = if s.ibgp { "internal" } else { "external" };
        let _ = writeln!(text, "  session    {kind}, {} to {}, router id {}", s.local, s.remote, s.remote_id);
    }
    let s = &p.settings;
    field(&mut text, "way", &way(s));
    timers(&mut text, s, p.session.as_ref());
    restart(&mut text, p);
    field(&mut text, "add-path", &add_path(s));
    field(&mut text, "import", &filters(&s.import_filters));
    field(&mut text, "export", &filters(&s.export_filters));
    field(&mut text, "limits", &limits(s, &p.families));
    let more = settings(s);
    if !more.is_empty() {
        field(&mut text, "settings", &more.join(", "));
    }
    text += &families(&p.families, p.session.is_some());
    text += &capabilities(p);
    text += &messages(p);
    text
}

fn state(text: &mut String, p: &Neighbor) {
    let _ = writeln!(text, "  state      {} for {}", p.state, age(p.since_ms));
    let ended = p.last_reset.as_ref().map(|r| r.why.as_str());
    // What ended the last session is often why the state is what it is: said once.
    let told = [p.last_error.as_deref(), ended].contains(&Some(p.cause.as_str()));
    if p.state != "Established" && !p.cause.is_empty() && !told {
        field(text, "because", &p.cause);
    }
    if let Some(text_to_peer) = &p.settings.shutdown {
        let said = if text_to_peer.is_empty() { String::new() } else { format!(": {text_to_peer:?}") };
        field(text, "shut down", &format!("by its settings{said}"));
    }
    if let Some(ms) = p.held_down_ms {
        field(text, "held down", &format!("starts again by itself in {}", age(ms)));
    }
    if let Some(note) = &p.note {
        field(text, "note", note);
    }
    if let Some(error) = p.last_error.as_deref().filter(|e| Some(*e) != ended) {
        field(text, "last error", error);
    }
    let _ = writeln!(text, "  sessions   {} so far", p.sessions);
    if let Some(reset) = &p.last_reset {
        field(text, "last reset", &format!("{} ago: {}", age(reset.ago_ms), reset.why));
    }
}

/// How packets get there.
fn way(s: &NeighborSettings) -> String {
    let mut words = vec![match s.local_address {
        Some(a) => format!("from {a}"),
        None => "any source address".into(),
    }];
    words.extend(s.interface.as_ref().map(|i| format!("device {i}")));
    words.push(match (s.ttl_security, s.multihop) {
        (Some(hops), _) => format!("TTL security, at most {}", hops_of(hops)),
        (None, Some(hops)) => format!("TTL for {}", hops_of(hops)),
        (None, None) => "usual TTL".into(),
    });
    words.extend(s.password.then(|| "TCP-MD5 password".into()));
    words.push(if s.passive { "passive: it connects" } else { "either side connects" }.into());
    words.join(", ")
}

fn hops_of(n: u8) -> String {
    format!("{n} hop{}", if n == 1 { "" } else { "s" })
}

/// As they are in force, and as they are configured.
fn timers(text: &mut String, s: &NeighborSettings, session: Option<&SessionFacts>) {
    if let Some(f) = session {
        field(text, "timers", &format!("hold {} s, keepalive {} s", f.hold_time, f.keepalive));
    }
    let keepalive = s.keepalive.map_or_else(|| "a third of it".into(), |k| format!("{k} s"));
    let mut words = vec![
        format!("hold {} s", s.hold_time),
        format!("keepalive {keepalive}"),
        format!("connect retry {} s", s.connect_retry),
    ];
    words.extend((s.delay_open > 0).then(|| format!("OPEN delayed by {} s", s.delay_open)));
    words.extend(s.send_hold.map(|t| format!("send hold {t} s")));
    field(text, "configured", &words.join(", "));
}

/// Graceful restart: what we do for it, what it does for us, and how far that is now.
fn restart(text: &mut String, p: &Neighbor) {
    let s = &p.settings;
    if s.restart_time == 0 {
        field(text, "restart", "not announced: no routes are kept");
        return;
    }
    let mut words = vec![format!("it is asked to keep ours for {} s", s.restart_time)];
    match &p.session {
        Some(f) => match f.restart_time {
            // A list without families promises End-of-RIB and nothing else (RFC 4724 section 3).
            Some(_) if p.families.iter().all(|f| f.forwarding_kept.is_none()) => {
                words.push("it names no family, so its are not kept".into());
            }
            Some(time) => {
                words.push(format!("its are kept for {} s", time.min(s.restart_limit)));
                words.extend(f.notification_restart.then(|| "over notifications, too".into()));
            }
            None => words.push("it announces none, so its are not kept".into()),
        },
        None => words.extend(s.notification_restart.then(|| "over notifications, too".into())),
    }
    words.extend((s.long_lived_time > 0).then(|| format!("long-lived stale for {} s", s.long_lived_time)));
    field(text, "restart", &words.join(", "));
    if p.session.as_ref().is_some_and(|f| f.restarting) {
        field(text, "restarted", "it had, before this session");
    }
    if let Some(ms) = p.stale_for_ms {
        let until = if p.session.is_some() { "End-of-RIB has " } else { "it has " };
        field(text, "stale", &format!("{until}{} to come; then stale routes go", age(ms)));
    }
    for f in &p.families {
        if let Some(ms) = f.long_lived_for_ms {
            field(text, "stale", &format!("{}: long-lived, for {} more", f.family, age(ms)));
        }
    }
}

fn add_path(s: &NeighborSettings) -> String {
    let receive = if s.add_path_receive { "several paths are taken" } else { "one path is taken" };
    let send = match s.add_path_send.as_deref() {
        None => "one is sent".to_owned(),
        Some("one") => "one is sent, under an identifier".to_owned(),
        Some("all") => "all are sent".to_owned(),
        Some(best) => format!("the {best} are sent"),
    };
    format!("{receive}, {send}, as far as it agrees")
}

fn filters(names: &[String]) -> String {
    if names.is_empty() { "no filter".into() } else { format!("filters {}", names.join(", ")) }
}

fn limits(s: &NeighborSettings, families: &[FamilyState]) -> String {
    let warn =
        if s.prefix_warning > 0 { format!(", a warning at {} %", s.prefix_warning) } else { String::new() };
    let then = match s.prefix_action.as_str() {
        "warn" => "then a warning".to_owned(),
        other => format!("then {other}"),
    };
    let own: Vec<&FamilyState> =
        families.iter().filter(|f| f.asked && f.max_prefixes != s.max_prefixes).collect();
    let own: String = own.iter().map(|f| format!(", {} of {}", f.max_prefixes, f.family)).collect();
    format!("{} prefixes of a family{own}{warn}, {then}", s.max_prefixes)
}

/// What is not as usual.
fn settings(s: &NeighborSettings) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    all.extend(s.local_asn.map(|asn| format!("local AS {asn}")));
    all.extend(s.reflector_client.then(|| "reflector client".into()));
    all.extend((s.next_hop != "auto" && !s.next_hop.is_empty()).then(|| format!("next hop {}", s.next_hop)));
    all.extend(
        (s.allow_own_as > 0).then(|| format!("our AS may stand {} times in its paths", s.allow_own_as)),
    );
    all.extend(s.route_options.iter().cloned());
    all
}

fn families(all: &[FamilyState], session: bool) -> String {
    let mut agreed = Table::new(&["  FAMILY", "AGREED ON", "ADD-PATH", "LIMIT", "RESTART"]);
    for f in all {
        let on = match (f.asked, f.negotiated) {
            (_, true) => "yes",
            (false, false) => "not asked for",
            (true, false) if session => "not announced by it",
            (true, false) => "-",
        };
        let paths = match (f.add_path_in, f.add_path_out) {
            (true, true) => "in and out",
            (true, false) => "in",
            (false, true) => "out",
            (false, false) => "no",
        };
        let restart = match f.forwarding_kept {
            _ if !f.negotiated => "-".into(),
            None => "no".to_owned(),
            Some(true) => "it kept forwarding".into(),
            Some(false) => "yes".into(),
        };
        let long = f.long_lived_time.map(|t| format!(", then {t} s")).unwrap_or_default();
        let limit = if f.asked { f.max_prefixes.to_string() } else { "-".into() };
        agreed.row([format!("  {}", f.family), on.into(), paths.into(), limit, restart + &long]);
    }
    let mut table =
        Table::new(&["  FAMILY", "RECEIVED", "ACCEPTED", "STALE", "ADVERTISED", "WAITING", "END-OF-RIB"]);
    let mut rows = false;
    for f in all.iter().filter(|f| f.negotiated || f.received > 0) {
        rows = true;
        table.row([
            format!("  {}", f.family),
            f.received.to_string(),
            f.accepted.to_string(),
            f.stale.to_string(),
            f.advertised.to_string(),
            f.waiting.to_string(),
            if f.end_of_rib { "yes" } else { "no" }.into(),
        ]);
    }
    agreed.render() + &if rows { table.render() } else { String::new() }
}

/// One line each; details that do not fit beside each other follow in full.
fn capabilities(p: &Neighbor) -> String {
    let mut table = Table::new(&["  CAPABILITY", "OURS", "ITS", "AGREED"]);
    let mut long = String::new();
    for c in &p.capabilities {
        let mut cell = |whose: &str, said: Option<&String>| match said.map(String::as_str) {
            None => "-".to_owned(),
            Some("") => "yes".to_owned(),
            Some(detail) if detail.chars().count() <= DETAIL => detail.to_owned(),
            Some(detail) => {
                field(&mut long, whose, &format!("{}: {detail}", c.name));
                "yes, see below".to_owned()
            }
        };
        let (ours, theirs) = (cell("ours", c.ours.as_ref()), cell("its", c.theirs.as_ref()));
        let agreed = match (&p.session, c.agreed) {
            (None, _) => "-",
            (_, true) => "yes",
            (_, false) => "no",
        };
        table.row([format!("  {}", c.name), ours, theirs, agreed.into()]);
    }
    if p.capabilities.is_empty() { String::new() } else { table.render() + &long }
}

fn messages(p: &Neighbor) -> String {
    let mut table = Table::new(&["  MESSAGES", "OPEN", "UPDATE", "NOTIFICATION", "KEEPALIVE", "REFRESH"]);
    let mut row =
        |name: &str, m: &Messages| {
            table.row([format!("  {name}")].into_iter().chain(
                [m.open, m.update, m.notification, m.keepalive, m.route_refresh].map(|n| n.to_string()),
            ));
        };
    row("received", &p.messages_received);
    row("sent", &p.messages_sent);
    let mut text = table.render();
    if p.faulty_updates > 0 {
        field(
            &mut text,
            "faulty",
            &format!("{} of the UPDATEs received (RFC 7606); the log has more", p.faulty_updates),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use brindle_config_core::status::bgp::{CapabilityState, LastReset};

    use super::*;

    #[test]
    fn a_restarting_peer_is_shown_with_what_is_left_of_its_time() {
        let p = Neighbor {
            name: "tor".into(),
            state: "Active".into(),
            cause: "connection refused".into(),
            last_error: Some("connection refused".into()),
            last_reset: Some(LastReset { ago_ms: 30_000, why: "connection closed".into() }),
            stale_for_ms: Some(90_000),
            families: vec![
                FamilyState {
                    family: "ipv4".into(),
                    asked: true,
                    received: 3,
                    stale: 3,
                    max_prefixes: 10,
                    long_lived_for_ms: Some(3_600_000),
                    ..FamilyState::default()
                },
                FamilyState { family: "ipv6".into(), asked: true, max_prefixes: 5, ..FamilyState::default() },
            ],
            settings: NeighborSettings {
                restart_time: 120,
                max_prefixes: 10,
                prefix_warning: 80,
                prefix_action: "restart after 30 s".into(),
                ttl_security: Some(1),
                interface: Some("eth1".into()),
                import_filters: vec!["a".into(), "b".into()],
                ..NeighborSettings::default()
            },
            ..Neighbor::default()
        };
        let text = screen(&p);
        for line in [
            "  last error connection refused",
            "  last reset 30s ago: connection closed",
            "  stale      it has 1m30s to come; then stale routes go",
            "  stale      ipv4: long-lived, for 1h00m more",
            "  import     filters a, b",
            "  limits     10 prefixes of a family, 5 of ipv6, a warning at 80 %, then restart\n             after 30 s",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
        }
        assert!(text.contains("device eth1") && text.contains("at most 1 hop"), "{text}");
        assert!(!text.contains("because"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= crate::out::WIDTH), "{text}");
    }

    #[test]
    fn a_long_capability_stands_below_the_table() {
        let c = CapabilityState {
            name: "graceful restart".into(),
            ours: Some("120 s, ipv4".into()),
            theirs: Some("120 s, over notifications, ipv4, ipv6, AFI 1 SAFI 128".into()),
            agreed: true,
        };
        let p =
            Neighbor { capabilities: vec![c], session: Some(SessionFacts::default()), ..Neighbor::default() };
        let text = screen(&p);
        assert!(text.contains("  its        graceful restart: 120 s, over notifications, ipv4"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= crate::out::WIDTH), "{text}");
    }
}
