//! Go's duration texts, as Calico's resources have them: `120s`, `1m30s`, `1.5h`, `250ms`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration such as 120s, 1m30s or 500ms, found {text:?}{detail}")]
pub struct DurationError {
    pub text: String,
    detail: &'static str,
}

impl DurationError {
    /// What would be right, without the text itself.
    pub fn expected(&self) -> String {
        format!("expected a duration such as 120s, 1m30s or 500ms{}", self.detail)
    }
}

/// Parses a duration; negative ones are refused, since none of the settings that hold one has a use for them.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = |detail| DurationError { text: text.to_owned(), detail };
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.starts_with('-') {
        return Err(error(": it may not be negative"));
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(error(""));
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, tail) = digits(rest);
        let (fraction, tail) = tail.strip_prefix('.').map_or(("", tail), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(error(""));
        }
        let (unit, tail) =
            unit(tail).ok_or_else(|| error(": each number needs a unit (h, m, s, ms, us, ns)"))?;
        total = nanoseconds(whole, fraction, unit)
            .and_then(|n| total.checked_add(n))
            .filter(|n| *n <= i64::MAX as u128)
            .ok_or_else(|| error(": it is too long"))?;
        rest = tail;
    }
    u64::try_from(total).map(Duration::from_nanos).map_err(|_| error(": it is too long"))
}

/// A duration as Go writes it: `5m0s`, `1.5s`, `250ms`.
pub fn text(d: Duration) -> String {
    let part = |whole: u128, rest: u128, scale: usize, unit: &str| {
        let digits = format!("{rest:0scale$}");
        match digits.trim_end_matches('0') {
            "" => format!("{whole}{unit}"),
            fraction => format!("{whole}.{fraction}{unit}"),
        }
    };
    let ns = d.as_nanos();
    match ns {
        0 => return "0s".to_owned(),
        1..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => return part(ns / 1_000, ns % 1_000, 3, "µs"),
        1_000_000..1_000_000_000 => return part(ns / 1_000_000, ns % 1_000_000, 6, "ms"),
        _ => {}
    }
    let (h, m, s) = (d.as_secs() / 3600, d.as_secs() / 60 % 60, d.as_secs() % 60);
    let seconds = part(u128::from(s), u128::from(d.subsec_nanos()), 9, "s");
    match (h, m) {
        (0, 0) => seconds,
        (0, m) => format!("{m}m{seconds}"),
        (h, m) => format!("{h}h{m}m{seconds}"),
    }
}

fn digits(s: &str) -> (&str, &str) {
    s.split_at(s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len()))
}

/// Nanoseconds of the unit in front, and what follows it.
fn unit(s: &str) -> Option<(u128, &str)> {
    const UNITS: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    UNITS.into_iter().find_map(|(name, ns)| Some((ns, s.strip_prefix(name)?)))
}

fn nanoseconds(whole: &str, fraction: &str, unit: u128) -> Option<u128> {
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // More digits than nanoseconds have are cut off, as Go does.
    let fraction: String = fraction.chars().take(15).collect();
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    whole.checked_mul(unit)?.checked_add(part.checked_mul(unit)? / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("120s", 120_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1.s", 1_000),
            ("+2s", 2_000),
            ("250ms", 250),
            ("1h0m1s1ms", 3_601_001),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse("3us4ns"), Ok(Duration::from_nanos(3004)));
        assert_eq!(parse("1µs1μs"), Ok(Duration::from_nanos(2000)));
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (ms, written) in [
            (0, "0s"),
            (250, "250ms"),
            (1_500, "1.5s"),
            (90_000, "1m30s"),
            (300_000, "5m0s"),
            (3_600_000, "1h0m0s"),
            (3_661_001, "1h1m1.001s"),
        ] {
            assert_eq!(text(Duration::from_millis(ms)), written);
        }
        assert_eq!(text(Duration::from_nanos(1_500)), "1.5µs");
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        let mut shown = String::new();
        for text in
            ["", "120", "s", "1 s", "-5s", "1x", "1s2", ".s", "99999999999h", "9223372037s", "1d", "１s"]
        {
            shown.push_str(&format!("{}\n", parse(text).expect_err(text)));
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn no_number_is_read_in_another_way_than_gos() {
        for bad in ["1m30", "1..5s", "1e400s", "0x10s", "99999999999999999999999h", "9999999999999999999s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("9223372036s").is_ok(), "Go's longest");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[+-]?[0-9.]{0,40}(ns|us|ms|s|m|h|µs|x)?\\PC{0,3}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(ns in prop_oneof![0u64..5_000, 0u64..5_000_000_000, 0u64..9_000_000_000_000_000]) {
            let d = Duration::from_nanos(ns);
            prop_assert_eq!(parse(&text(d)), Ok(d));
        }

        #[test]
        fn whole_units_add_up(h in 0u64..1000, m in 0u64..1000, s in 0u64..100_000) {
            prop_assert_eq!(parse(&format!("{h}h{m}m{s}s")), Ok(Duration::from_secs(h * 3600 + m * 60 + s)));
        }
    }
}
