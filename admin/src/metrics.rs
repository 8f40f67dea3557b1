//! Metrics as Prometheus reads them: the text of a scrape (exposition format 0.0.4), and what every process says of
//! itself. Which metrics a program has is its own matter: a table that the text is held to.

use std::fmt::{Display, Write as _};

/// Name, type, help.
pub type Metric = (&'static str, &'static str, &'static str);

/// Those of any process.
pub const PROCESS: [Metric; 2] = [
    ("brindle_process_resident_bytes", "gauge", "Resident set of this process."),
    ("brindle_process_cpu_seconds_total", "counter", "Processor time of this process, user and system."),
];

/// The text under construction: the metrics of a table, in its order.
#[derive(Debug)]
pub struct Text {
    table: &'static [Metric],
    out: String,
    metric: usize,
}

impl Text {
    /// Nothing yet.
    #[must_use]
    pub const fn new(table: &'static [Metric]) -> Self {
        Self { table, out: String::new(), metric: 0 }
    }

    /// Begins the next metric of the table, which must be this one.
    pub fn metric(&mut self, name: &str) {
        let (table, kind, help) = self.table.get(self.metric).copied().unwrap_or_default();
        debug_assert_eq!(table, name, "metrics come in the order of the table");
        self.metric += 1;
        let _ = write!(self.out, "# HELP {table} {help}\n# TYPE {table} {kind}\n");
    }

    /// A whole metric without labels.
    pub fn one(&mut self, name: &str, value: impl Display) {
        self.metric(name);
        self.value(&[], value);
    }

    /// The whole text.
    #[must_use]
    pub fn done(self) -> String {
        debug_assert_eq!(self.metric, self.table.len(), "every metric of the table was written");
        self.out
    }

    /// One value of the metric that was begun last.
    pub fn value(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let (name, ..) = self.table.get(self.metric.saturating_sub(1)).copied().unwrap_or_default();
        self.out.push_str(name);
        let mut open = '{';
        for (label, text) in labels {
            let _ = write!(self.out, "{open}{label}=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
            open = ',';
        }
        if open == ',' {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// What any process says of itself.
#[must_use]
pub fn process() -> String {
    let mut t = Text::new(&PROCESS);
    t.one("brindle_process_resident_bytes", resident_bytes());
    t.one("brindle_process_cpu_seconds_total", cpu_seconds());
    t.done()
}

/// 0 if /proc is not there.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) * 1024
}

/// From /proc/self/stat: fields 14 and 15, in hundredths of a second (USER_HZ is 100 on every Linux of today).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in field 2 may contain anything, also spaces and parentheses.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u32 = after.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u32>().ok()).sum();
    f64::from(ticks) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Metric; 2] = [("a", "gauge", "One."), ("b", "counter", "Several.")];

    #[test]
    fn the_text_has_help_type_and_values_with_escaped_labels() {
        let mut t = Text::new(&TABLE);
        t.one("a", 1);
        t.metric("b");
        t.value(&[("x", "\"1\"\\\n"), ("y", "2")], 0.5);
        assert_eq!(
            t.done(),
            "# HELP a One.\n# TYPE a gauge\na 1\n# HELP b Several.\n# TYPE b counter\n\
             b{x=\"\\\"1\\\"\\\\\\n\",y=\"2\"} 0.5\n"
        );
    }

    #[test]
    fn the_process_is_measured() {
        assert!(resident_bytes() > 100_000);
        assert!(cpu_seconds() < 100_000.0);
    }
}
