//! Tables with frames, as calicoctl draws them: headings in the middle, numbers to the right. One that would be wider than
//! a narrow terminal has its headings, then its last column, in several lines.

use super::WIDTH;
use crate::lab::progress::wrap;

/// A framed table.
#[derive(Debug)]
pub(crate) struct Grid {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn longest_word(text: &str) -> usize {
    text.split(' ').map(width).max().unwrap_or(0)
}

impl Grid {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The widest of a column's cells and of its heading, as `of` measures that.
    fn widths(&self, of: fn(&str) -> usize) -> Vec<usize> {
        let cells = |i: usize| self.rows.iter().filter_map(move |r| r.get(i)).map(|c| width(c));
        self.headings.iter().enumerate().map(|(i, h)| cells(i).fold(of(h), usize::max)).collect()
    }

    /// How wide each column is, in 80 columns if that can be: headings break first where that is enough, else the last
    /// column, else both.
    fn fitting(&self) -> Vec<usize> {
        let whole = |widths: &[usize]| widths.iter().map(|w| w + 3).sum::<usize>() + 1;
        let (natural, broken) = (self.widths(width), self.widths(longest_word));
        if whole(&natural) <= WIDTH {
            return natural;
        }
        if whole(&broken) <= WIDTH {
            return broken;
        }
        let words = |r: &Vec<String>| r.last().map_or(0, |c| longest_word(c));
        let least =
            self.rows.iter().map(words).chain(self.headings.last().map(|h| width(h))).max().unwrap_or(0);
        let narrower = |mut widths: Vec<usize>| {
            let over = whole(&widths).saturating_sub(WIDTH);
            if let Some(last) = widths.last_mut() {
                *last = last.saturating_sub(over).max(least);
            }
            widths
        };
        // What is too wide in any case is not made hard to read as well.
        [narrower(natural), narrower(broken.clone())]
            .into_iter()
            .find(|w| whole(w) <= WIDTH)
            .unwrap_or(broken)
    }

    pub(crate) fn render(&self) -> String {
        let widths = self.fitting();
        let rule: String =
            widths.iter().map(|w| format!("+{}", "-".repeat(w + 2))).collect::<String>() + "+\n";
        let mut text = rule.clone();
        text += &lines(self.headings.iter().copied(), &widths, |_, line, w| format!("| {line:^w$} "));
        text += &rule;
        for row in &self.rows {
            text += &lines(row.iter().map(String::as_str), &widths, |cell, line, w| {
                let number = cell.parse::<f64>().is_ok();
                if number { format!("| {line:>w$} ") } else { format!("| {line:<w$} ") }
            });
        }
        text + &rule
    }
}

/// One row, in as many lines as the highest of its cells needs. `draw` is given the cell, its line and the width.
fn lines<'a>(
    cells: impl Iterator<Item = &'a str>,
    widths: &[usize],
    draw: impl Fn(&str, &str, usize) -> String,
) -> String {
    let cells: Vec<(&str, Vec<String>)> = cells
        .zip(widths)
        .map(|(cell, w)| (cell, if width(cell) <= *w { vec![cell.to_owned()] } else { wrap(cell, *w) }))
        .collect();
    let height = cells.iter().map(|(_, lines)| lines.len()).max().unwrap_or(0);
    let mut text = String::new();
    for n in 0..height {
        for ((cell, lines), w) in cells.iter().zip(widths) {
            text += &draw(cell, lines.get(n).map_or("", String::as_str), *w);
        }
        text += "|\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_too_wide_breaks_its_headings_and_its_last_column() {
        let mut grid =
            Grid::new(&["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"]);
        grid.row(["IP Pool", "10.92.0.0/16", "65536", "2 (0%)", "0 (0%)", "65534 (100%)"].map(String::from));
        grid.row(["Block", "10.92.118.64/26", "64", "1 (2%)", "0 (0%)", "63 (98%)"].map(String::from));
        let mut peers = Grid::new(&["PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"]);
        let why = "Active connection refused by 10.77.1.254 port 179 (os error 111), tried 14 times since";
        peers.row(["10.77.1.254", "node-to-node mesh", "start", "2026-11-26", why].map(String::from));
        peers.row(["10.77.1.2", "global", "up", "12:00:00", "Established"].map(String::from));
        let text = grid.render() + &peers.render();
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        insta::assert_snapshot!(text);
    }
}
