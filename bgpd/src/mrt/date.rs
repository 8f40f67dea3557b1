//! File names by time: `20260131.235959`, UTC.

use brindle_config_core::time::Now;

/// `YYYYMMDD.HHMMSS` of seconds since 1970.
pub(super) fn stamp(seconds: u64) -> String {
    let (y, mo, d, h, mi, s) = Now::from_secs(seconds).civil();
    format!("{y:04}{mo:02}{d:02}.{h:02}{mi:02}{s:02}")
}

/// Whether a name ends in what [`stamp`] gives.
pub(super) fn is_stamp(text: &str) -> bool {
    text.len() == 15
        && text.bytes().enumerate().all(|(i, b)| if i == 8 { b == b'.' } else { b.is_ascii_digit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "19700101.000000"),
            (951_782_399, "20000228.235959"),
            (951_782_400, "20000229.000000"),
            (1_078_012_800, "20040229.000000"),
            (1_709_251_199, "20240229.235959"),
            (1_709_251_200, "20240301.000000"),
            (4_107_542_400, "21000301.000000"),
            (1_767_225_599, "20251231.235959"),
        ] {
            assert_eq!(stamp(seconds), text);
            assert!(is_stamp(text));
        }
        assert!(!is_stamp("2024022912345678") && !is_stamp("20240229-123456"));
    }
}
