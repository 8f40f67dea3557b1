//! Tables with frames, as calicoctl draws them: headings in the middle, numbers to the right.

/// A framed table.
#[derive(Debug)]
pub(crate) struct Grid {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = self
            .headings
            .iter()
            .enumerate()
            .map(|(i, h)| {
                self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).fold(h.len(), usize::max)
            })
            .collect();
        let rule: String =
            widths.iter().map(|w| format!("+{}", "-".repeat(w + 2))).collect::<String>() + "+\n";
        let middle =
            self.headings.iter().zip(&widths).map(|(h, w)| format!("| {h:^w$} ")).collect::<String>();
        let mut text = format!("{rule}{middle}|\n{rule}");
        for row in &self.rows {
            for (cell, w) in row.iter().zip(&widths) {
                let number = cell.parse::<f64>().is_ok();
                text += &if number { format!("| {cell:>w$} ") } else { format!("| {cell:<w$} ") };
            }
            text += "|\n";
        }
        text + &rule
    }
}
