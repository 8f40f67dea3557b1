//! Wall-clock time as an argument: the texts in which Calico and Kubernetes write it, and the one it is read from. No
//! clock here.

use std::fmt::Write as _;

const NANOS: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// A point in time, nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

impl Now {
    /// Whole seconds since the epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(NANOS))
    }

    /// `2026-11-21T02:23:27Z`: `affinityClaimTime` and `releasedAt` (Kubernetes `metav1.Time`).
    pub fn rfc3339(self) -> String {
        let (y, mo, d, h, mi, s) = self.civil();
        format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}Z")
    }

    /// `2026-11-21T02:23:27.500000Z`: the times of a Lease (Kubernetes `metav1.MicroTime`).
    pub fn rfc3339_micro(self) -> String {
        let whole = self.rfc3339();
        let micros = self.0 % NANOS / 1_000;
        format!("{}.{micros:06}Z", whole.trim_end_matches('Z'))
    }

    /// `2026-11-21 02:23:27.5 +0000 UTC`: the `timestamp` attribute of an allocation.
    pub fn attribute(self) -> String {
        let (y, mo, d, h, mi, s) = self.civil();
        let mut text = format!("{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02}");
        let nanos = self.0 % NANOS;
        if nanos != 0 {
            let digits = format!("{nanos:09}");
            let _ = write!(text, ".{}", digits.trim_end_matches('0'));
        }
        text.push_str(" +0000 UTC");
        text
    }

    /// Reads RFC 3339 with any offset and any number of fractional digits. `None` for anything else.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once(['T', 't'])?;
        let mut parts = date.splitn(3, '-').map(|p| p.parse::<u64>().ok());
        let (y, mo, d) = (parts.next()??, parts.next()??, parts.next()??);
        let zone = rest.find(['Z', 'z', '+', '-'])?;
        let (clock, offset) = rest.split_at_checked(zone)?;
        let (hms, fraction) = clock.split_once('.').unwrap_or((clock, ""));
        let mut parts = hms.splitn(3, ':').map(|p| p.parse::<u64>().ok());
        let (h, mi, s) = (parts.next()??, parts.next()??, parts.next()??);
        if !(1970..=2500).contains(&y)
            || !(1..=12).contains(&mo)
            || !(1..=31).contains(&d)
            || h > 23
            || mi > 59
            || s > 60
        {
            return None;
        }
        let mut nanos = 0_u64;
        if !fraction.is_empty() {
            if fraction.len() > 18 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
            nanos = nine.parse().ok()?;
        }
        let local = days_from_civil(y, mo, d) * DAY + h * 3600 + mi * 60 + s;
        let utc = match offset.split_at_checked(1)? {
            ("Z" | "z", "") => local,
            (sign, hm) => {
                let (oh, om) = hm.split_once(':')?;
                let (oh, om) = (oh.parse::<u64>().ok()?, om.parse::<u64>().ok()?);
                if oh > 23 || om > 59 {
                    return None;
                }
                let shift = oh * 3600 + om * 60;
                if sign == "+" { local.checked_sub(shift)? } else { local.checked_add(shift)? }
            }
        };
        Some(Self(utc.checked_mul(NANOS)?.checked_add(nanos)?))
    }

    /// Whole seconds from `earlier` to this; 0 when it lies in the future (clocks of two hosts differ).
    pub const fn secs_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / NANOS
    }

    /// Year, month, day, hour, minute and second, UTC.
    pub const fn civil(self) -> (u64, u64, u64, u64, u64, u64) {
        let secs = self.0 / NANOS;
        let (y, mo, d) = civil_from_days(secs / DAY);
        let rest = secs % DAY;
        (y, mo, d, rest / 3600, rest / 60 % 60, rest % 60)
    }
}

/// Days since 1970-01-01 to year, month, day; the Gregorian calendar shifted to start in March.
const fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + (month <= 2) as u64, month, doy - (153 * mp + 2) / 5 + 1)
}

/// Inverse of [`civil_from_days`] for years from 1970.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let y = year - u64::from(month <= 2);
    let era = y / 400;
    let yoe = y % 400;
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doy = (153 * mp + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    (era * 146_097 + doe).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_calico_prints_them() {
        let t = Now(1_795_400_607_500_000_000);
        assert_eq!(t.rfc3339(), "2026-11-23T02:23:27Z");
        assert_eq!(t.attribute(), "2026-11-23 02:23:27.5 +0000 UTC");
        assert_eq!(t.rfc3339_micro(), "2026-11-23T02:23:27.500000Z");
        assert_eq!(Now::from_secs(0).rfc3339(), "1970-01-01T00:00:00Z");
        assert_eq!(Now::from_secs(951_782_400).rfc3339(), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn printed_times_read_back() {
        for secs in [0, 1, 951_782_400, 1_709_164_799, 1_795_400_607, 4_102_444_800] {
            let t = Now::from_secs(secs);
            assert_eq!(Now::parse_rfc3339(&t.rfc3339()), Some(t));
        }
        assert_eq!(Now::parse_rfc3339("1970-01-01T01:00:00.25+01:00"), Some(Now(250_000_000)));
        assert_eq!(Now::parse_rfc3339("1970-01-01T00:00:00-01:00"), Some(Now::from_secs(3600)));
    }

    #[test]
    fn nonsense_is_no_time() {
        for text in
            ["", "T", "2026-11-21", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "é-1-1T0:0:0Z", "1-1-1T+"]
        {
            assert_eq!(Now::parse_rfc3339(text), None, "{text}");
        }
    }
}
