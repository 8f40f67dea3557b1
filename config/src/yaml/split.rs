//! Cuts a text into YAML documents. A line that begins with `---` or `...` always ends a document, whatever is around
//! it (YAML 1.2, 9.1.2), so this needs no parser.

/// One document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    /// Lines of the file in front of it.
    pub(super) lines_before: usize,
}

/// The documents that hold anything beside comments and directives.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let (mut begin, mut begin_line, mut at, mut content) = (0, 0, 0, false);
    let mut close = |from: usize, to: usize, lines_before: usize, content: bool| {
        if let Some(part) = text.get(from..to).filter(|_| content) {
            found.push(Document { text: part, lines_before });
        }
    };
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        let begins = marker(line, "---");
        if begins && content {
            close(begin, at, begin_line, true);
        }
        if begins && (content || !is_prologue(text.get(begin..at).unwrap_or_default())) {
            (begin, begin_line, content) = (at, line_number, false);
        }
        at += line.len();
        if marker(line, "...") {
            close(begin, at, begin_line, content);
            (begin, begin_line, content) = (at, line_number + 1, false);
        } else {
            let rest = if begins { line.trim_start_matches("---") } else { line };
            content |= holds_content(rest);
        }
    }
    close(begin, at, begin_line, content);
    found
}

/// Whether the line is this document marker.
fn marker(line: &str, what: &str) -> bool {
    line.strip_prefix(what).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn holds_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
}

/// Only directives and comments, at least one directive: it belongs to the document behind the marker.
fn is_prologue(text: &str) -> bool {
    text.lines().any(|l| l.starts_with('%')) && !text.lines().any(holds_content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(usize, &str)> {
        documents(text).into_iter().map(|d| (d.lines_before, d.text)).collect()
    }

    #[test]
    fn documents_are_cut_at_markers() {
        assert_eq!(split("a: 1\n"), [(0, "a: 1\n")]);
        assert_eq!(split("a: 1\n---\nb: 2\n"), [(0, "a: 1\n"), (1, "---\nb: 2\n")]);
        assert_eq!(split("---\na: 1\n---\nb: 2"), [(0, "---\na: 1\n"), (2, "---\nb: 2")]);
        assert_eq!(split("--- {a: 1}\n--- {b: 2}\n"), [(0, "--- {a: 1}\n"), (1, "--- {b: 2}\n")]);
        assert_eq!(split("a: 1\r\n---\r\nb: 2\r\n"), [(0, "a: 1\r\n"), (1, "---\r\nb: 2\r\n")]);
        assert_eq!(split("a: 1\n...\nb: 2\n"), [(0, "a: 1\n...\n"), (2, "b: 2\n")]);
    }

    #[test]
    fn empty_documents_do_not_count() {
        assert!(split("").is_empty() && split("---\n# nothing\n---\n\n").is_empty());
        assert_eq!(split("# head\n---\n---\na: 1\n---\n"), [(2, "---\na: 1\n")]);
    }

    #[test]
    fn a_directive_stays_with_its_document() {
        assert_eq!(split("%YAML 1.2\n---\na: 1\n"), [(0, "%YAML 1.2\n---\na: 1\n")]);
    }

    #[test]
    fn what_only_looks_like_a_marker_is_content() {
        let text = "a: |\n  ---\n  text\nb: ----\n----: c\n";
        assert_eq!(split(text), [(0, text)]);
    }
}
