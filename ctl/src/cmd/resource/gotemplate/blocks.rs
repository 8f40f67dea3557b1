//! Whether every block of a template is ended, and every end has a block. The library takes the end of the text for every
//! end that is missing, and an end too many for the end of the text.

use super::tree::Wrong;

/// A block that is open, from the offset of its word.
struct Open<'t> {
    word: &'t str,
    offset: usize,
    /// A last `else` was seen: no other may come.
    last: bool,
}

/// Checks a text up to where it can be read; what the library has to say of the rest comes after.
pub(super) fn check(text: &str) -> Result<(), Wrong> {
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut at = 0;
    while let Some((offset, inner, after)) = action(text, at) {
        at = after;
        let word = first_word(inner);
        let here = offset + inner.find(word).unwrap_or(0);
        match word {
            "if" | "range" | "with" | "define" | "block" => {
                if word == "define" && !open.is_empty() {
                    return Err((here, "{{define}} within another block".into()));
                }
                open.push(Open { word, offset: here, last: false });
            }
            "else" => match open.last_mut() {
                Some(block) if ["define", "block"].contains(&block.word) => {
                    return Err((here, format!("{{{{else}}}} in {{{{{}}}}}", block.word)));
                }
                Some(block) if block.last => return Err((here, "a second {{else}}".into())),
                Some(block) => block.last = inner.trim_end_matches('-').trim().ends_with("else"),
                None => return Err((here, "{{else}} without {{if}}, {{range}} or {{with}}".into())),
            },
            "end" if open.pop().is_none() => return Err((here, "{{end}} without a block".into())),
            "break" | "continue" if !open.iter().any(|b| b.word == "range") => {
                return Err((here, format!("{{{{{word}}}}} outside {{{{range}}}}")));
            }
            _ => {}
        }
    }
    let unread = text.get(at..).is_some_and(|rest| rest.contains("{{"));
    match open.pop() {
        Some(block) if !unread => Err((block.offset, format!("{{{{{}}}}} without {{{{end}}}}", block.word))),
        _ => Ok(()),
    }
}

/// The next action from an offset on: where its inside begins, its inside, and what comes after it.
fn action(text: &str, from: usize) -> Option<(usize, &str, usize)> {
    let start = from + text.get(from..)?.find("{{")? + 2;
    let rest = text.get(start..)?;
    let said = rest.strip_prefix('-').unwrap_or(rest).trim_start();
    let begin = start + (rest.len() - said.len());
    let mut end = begin;
    if said.starts_with("/*") {
        end += said.find("*/")? + 2;
    }
    let mut quote = None;
    let mut chars = text.get(end..)?.char_indices();
    while let Some((i, c)) = chars.next() {
        match (quote, c) {
            (Some('"' | '\''), '\\') => drop(chars.next()),
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '}') if text.get(end + i..)?.starts_with("}}") => {
                return Some((begin, text.get(begin..end + i)?, end + i + 2));
            }
            _ => {}
        }
    }
    None
}

fn first_word(inner: &str) -> &str {
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    inner.get(..end).unwrap_or_default()
}
