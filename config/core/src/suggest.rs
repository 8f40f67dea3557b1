//! "Did you mean …": the known word closest to an unknown one.

/// The candidate within a third of the word's length (at least one edit), ignoring case; the closest, then the first.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|c| (distance(&word, &c.to_lowercase()), c))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edits (insert, delete, replace, swap of neighbours) between two words: optimal string alignment.
fn distance(a: &str, b: &str) -> usize {
    // Absurdly long input is not a misspelling.
    if a.len() > 256 || b.len() > 256 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // The row before the last one, and the letter before this one: of a swap.
    let mut older: Vec<usize> = Vec::new();
    let mut before: Option<char> = None;
    for (i, ca) in a.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        let mut left = i + 1;
        for (j, (pair, cb)) in row.windows(2).zip(&b).enumerate() {
            let [diagonal, above] = *pair else { continue };
            let mut least = (diagonal + usize::from(ca != *cb)).min(left + 1).min(above + 1);
            if let Some(p) = j.checked_sub(1).filter(|p| b.get(*p) == Some(&ca) && before == Some(*cb)) {
                least = older.get(p).map_or(least, |two| least.min(two + 1));
            }
            next.push(least);
            left = least;
        }
        older = std::mem::replace(&mut row, next);
        before = Some(ca);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_edits() {
        for (a, b, want) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("abc", "acb", 1),
            ("bleu", "blue", 1),
            ("ca", "abc", 3),
        ] {
            assert_eq!(distance(a, b), want, "{a} {b}");
        }
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let kinds = ["IPPool", "IPReservation", "BGPPeer", "Node"];
        assert_eq!(closest("ippool", kinds), Some("IPPool"));
        assert_eq!(closest("IPPools", kinds), Some("IPPool"));
        assert_eq!(closest("BGPPer", kinds), Some("BGPPeer"));
        assert_eq!(closest("Deployment", kinds), None);
        assert_eq!(closest("x", kinds), None);
        assert_eq!(closest(&"x".repeat(10_000), kinds), None);
    }
}
