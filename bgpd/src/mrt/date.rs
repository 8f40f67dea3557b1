//! File names by time: `20260131.235959`, UTC. The proleptic Gregorian calendar in a dozen lines.

/// `YYYYMMDD.HHMMSS` of seconds since 1970.
pub(super) fn stamp(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years of 365.2425 days counted from 0000-03-01, so that the leap day is the last of its year.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}.{:02}{:02}{:02}", of_day / 3_600, of_day / 60 % 60, of_day % 60)
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
