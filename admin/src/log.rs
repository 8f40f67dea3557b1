//! What of the log is let through. The client of the API server's own complaints are not: it makes an ERROR of each call
//! that found no server, hundreds a minute, and whoever called says it once, with what it means.

/// Where the client says them.
const CLIENT: &str = "kube_client";
const NOISE: &str = "kube_client::client::builder=off";

/// The filter that a wish (`--log-level`) means: what it says, but no complaints of the client, unless it names
/// `kube_client` or asks for everything (`debug`, `trace`).
#[must_use]
pub fn filter(wish: &str) -> String {
    let stands = wish.split(',').map(str::trim).any(|directive| {
        directive.starts_with(CLIENT)
            || ["debug", "trace"].iter().any(|all| directive.eq_ignore_ascii_case(all))
    });
    if stands || wish.trim().is_empty() { wish.to_owned() } else { format!("{wish},{NOISE}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_silent_unless_it_is_asked_for() {
        for wish in ["info", "warn", "info,brindle_bgpd=debug", "error"] {
            assert_eq!(filter(wish), format!("{wish},{NOISE}"));
        }
        for wish in
            ["debug", "TRACE", "info, kube_client=error", "kube_client::client::builder=warn,info", ""]
        {
            assert_eq!(filter(wish), wish);
        }
    }
}
