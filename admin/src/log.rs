//! What of the log is let through. The client of the API server's own complaints are not: it makes an ERROR of each call
//! that found no server, hundreds a minute, and whoever called says it once, with what it means.

/// Where the client says them.
const CLIENT: &str = "kube_client";
const NOISE: &str = "kube_client::client::builder=off";

/// The filter that a wish (`--log-level`: a level, or levels of modules such as `info,brindle_bgpd=debug`) means: what it
/// says, but no complaints of the client, unless it names `kube_client` or asks for everything (`debug`, `trace`).
///
/// # Errors
/// The word that is no level. Whoever reads filters takes a mistyped level for the name of a module, and then lets
/// nothing through at all.
pub fn filter(wish: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |word: &str| LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word));
    let mut stands = false;
    for directive in wish.split(',').map(str::trim) {
        let module = directive.contains(['=', '[', '_', ':']);
        if !module && !level(directive) {
            return Err(format!("{directive:?}: expected one of {}, or MODULE=LEVEL", LEVELS.join(", ")));
        }
        stands |= directive.starts_with(CLIENT)
            || ["debug", "trace"].iter().any(|all| directive.eq_ignore_ascii_case(all));
    }
    Ok(if stands { wish.to_owned() } else { format!("{wish},{NOISE}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_silent_unless_it_is_asked_for() {
        for wish in ["info", "warn", "info,brindle_bgpd=debug", "error"] {
            assert_eq!(filter(wish), Ok(format!("{wish},{NOISE}")));
        }
        for wish in ["debug", "TRACE", "info, kube_client=error", "kube_client::client::builder=warn,info"] {
            assert_eq!(filter(wish).as_deref(), Ok(wish));
        }
    }

    #[test]
    fn a_mistyped_level_is_no_module() {
        for (wish, word) in
            [("", ""), ("warning", "warning"), ("inof", "inof"), ("brindle_bgpd=debug,loud", "loud")]
        {
            let e = filter(wish).unwrap_err();
            assert!(e.contains(&format!("{word:?}")) && e.contains("warn, info"), "{e}");
        }
        assert!(filter("INFO,brindle_felix=trace").is_ok());
    }
}
