//! Go durations (`90s`, `1m30s`, `1.5h`) as they stand in Calico's resources.

/// Whole seconds, rounded as Calico rounds (half up). The error says what was expected.
pub(super) fn whole_seconds(text: &str) -> Result<u64, String> {
    let bad = || format!("expected a duration such as 120s or 1m30s, found {text:?}");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut seconds = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| bad())?;
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        seconds += number * factor;
        rest = tail;
    }
    if !seconds.is_finite() || seconds > 1e12 {
        return Err(bad());
    }
    // Bounded above and never negative, so the cast is exact after rounding.
    Ok(seconds.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::whole_seconds;

    #[test]
    fn go_durations_are_read_in_whole_seconds() {
        for (text, seconds) in
            [("120s", 120), ("1m30s", 90), ("1.5h", 5400), ("0", 0), ("1500ms", 2), ("1h0m0s", 3600)]
        {
            assert_eq!(whole_seconds(text), Ok(seconds), "{text}");
        }
        for text in ["", "s", "12", "12 s", "-3s", "1d", "1..2s", "é", "9e99h"] {
            assert!(whole_seconds(text).is_err(), "{text}");
        }
    }
}
