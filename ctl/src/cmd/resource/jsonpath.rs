//! JSONPath as kubectl writes it, put into the words of RFC 9535, which the library speaks.
//!
//! kubectl leaves out the `$`, lets names hold `-` and `/`, escapes dots in names (`.labels.kubernetes\.io/os`), and
//! means the value itself by `@`. All else (`[*]`, `[-1:]`, `..`, filters) is the same in both.

use jsonpath_rust::{
    parser::{model::JpQuery, parse_json_path},
    query::{QueryRef, js_path_process},
};
use serde_json::Value;

/// A JSONPath expression with the text it was given as.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    text: String,
    query: JpQuery,
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Path {}

impl Path {
    /// Reads `.spec.cidr`, `spec.cidr`, `$.spec.cidr` or `{.spec.cidr}`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(inner).trim();
        let words = translate(inner).map_err(|e| format!("JSONPath {inner:?}: {e}"))?;
        let query = parse_json_path(&words).map_err(|e| {
            // The library draws the place over several lines.
            let why = e.to_string();
            let why = why.lines().rev().find_map(|l| l.trim().strip_prefix("= ")).unwrap_or("not understood");
            format!("JSONPath {inner:?}: {why}")
        })?;
        Ok(Self { text: inner.to_owned(), query })
    }

    pub(super) fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match js_path_process(&self.query, value) {
            Ok(found) => found.into_iter().map(QueryRef::val).collect(),
            // A comparison that cannot be made selects nothing.
            Err(_) => Vec::new(),
        }
    }

    pub(super) fn shown(&self, value: &Value) -> String {
        let mut all = String::new();
        self.show(value, &mut |part| all += part);
        all
    }

    /// What is found, value by value.
    pub(super) fn show(&self, value: &Value, out: &mut dyn FnMut(&str)) {
        for (n, found) in self.find(value).into_iter().enumerate() {
            if n > 0 {
                out(" ");
            }
            out(&plain(found));
        }
    }
}

/// A value as text: strings bare, the rest as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// kubectl's words in RFC 9535's.
fn translate(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix(['$', '@']).unwrap_or(text);
    let mut out = String::from("$");
    // `spec.cidr` begins with a name.
    let dotted;
    let rest = if rest.is_empty() || rest.starts_with(['.', '[']) {
        rest
    } else {
        dotted = format!(".{rest}");
        &dotted
    };
    // A lone dot is the whole, too.
    let end = segments(if rest == "." { "" } else { rest }, false, &mut out)?;
    if end.is_empty() { Ok(out) } else { Err(format!("{end:?} is left over")) }
}

/// Translates segments as long as there are any; what is left. Within a filter a path ends where a name would.
fn segments<'t>(mut rest: &'t str, filter: bool, out: &mut String) -> Result<&'t str, String> {
    loop {
        if let Some(tail) = rest.strip_prefix('[') {
            rest = bracket(tail, out)?;
        } else if let Some(tail) = rest.strip_prefix('.') {
            let deep = tail.strip_prefix('.');
            let tail = deep.unwrap_or(tail);
            if deep.is_some() {
                out.push_str("..");
                if tail.starts_with('[') {
                    rest = tail;
                    continue;
                }
            }
            if let Some(tail) = tail.strip_prefix('*') {
                out.push_str("[*]");
                rest = tail;
                continue;
            }
            let (name, tail) = name(tail, filter);
            if name.is_empty() {
                return Err("a name is missing after a dot".into());
            }
            out.push_str(&quoted(&name));
            rest = tail;
        } else {
            return Ok(rest);
        }
    }
}

/// A name up to the next segment, with its escapes taken away.
fn name(text: &str, filter: bool) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, text.get(i..).unwrap_or_default()),
            ' ' | '=' | '!' | '<' | '>' | ')' | ']' | '&' | '|' | ',' if filter => {
                return (name, text.get(i..).unwrap_or_default());
            }
            c => name.push(c),
        }
    }
    (name, "")
}

fn quoted(name: &str) -> String {
    let mut out = String::from("['");
    for c in name.chars() {
        if matches!(c, '\'' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out + "']"
}

/// The inside of brackets and its closing one: copied, but for the paths in a filter.
fn bracket<'t>(text: &'t str, out: &mut String) -> Result<&'t str, String> {
    out.push('[');
    let filter = text.trim_start().starts_with('?');
    let (mut rest, mut depth, mut quote) = (text, 0usize, None);
    while let Some(c) = rest.chars().next() {
        let tail = rest.get(c.len_utf8()..).unwrap_or_default();
        match (quote, c) {
            (Some(_), '\\') => {
                // The escaped character goes with its backslash.
                let len = tail.chars().next().map_or(0, char::len_utf8);
                out.push_str(rest.get(..1 + len).unwrap_or(rest));
                rest = tail.get(len..).unwrap_or_default();
                continue;
            }
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '@' | '$') if filter => {
                out.push(c);
                rest = segments(tail, true, out)?;
                continue;
            }
            (None, '[' | '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ']') if depth == 0 => {
                out.push(']');
                return Ok(tail);
            }
            (None, ']') => depth -= 1,
            (None, _) => {}
        }
        out.push(c);
        rest = tail;
    }
    Err("no closing bracket".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubectls_words_become_those_of_the_standard() {
        for (ours, theirs) in [
            (".spec.cidr", "$['spec']['cidr']"),
            ("spec.cidr", "$['spec']['cidr']"),
            ("{.spec.cidr}", "$['spec']['cidr']"),
            ("$.a[0].b", "$['a'][0]['b']"),
            (".", "$"),
            ("@", "$"),
            (".items[*].metadata.name", "$['items'][*]['metadata']['name']"),
            (r".metadata.labels.kubernetes\.io/os", "$['metadata']['labels']['kubernetes.io/os']"),
            ("..name", "$..['name']"),
            (".a[-1:]", "$['a'][-1:]"),
            ("['a.b','c']", "$['a.b','c']"),
            (".a.*", "$['a'][*]"),
            (".it's", r"$['it\'s']"),
            (
                r#".items[?(@.spec.node-name=="n 1" && @.a[0]>2)].b"#,
                r#"$['items'][?(@['spec']['node-name']=="n 1" && @['a'][0]>2)]['b']"#,
            ),
        ] {
            let inner = ours.trim_start_matches('{').trim_end_matches('}');
            assert_eq!(translate(inner).unwrap(), theirs, "{ours}");
            assert!(Path::parse(ours).is_ok(), "{ours}");
        }
    }

    #[test]
    fn values_are_found() {
        let v = json!({"items": [
            {"metadata": {"name": "a", "labels": {"kubernetes.io/os": "linux"}}, "spec": {"n": 1, "t": true}},
            {"metadata": {"name": "b", "labels": {}}, "spec": {"n": 2}},
        ]});
        for (path, shown) in [
            (".items[*].metadata.name", "a b"),
            (".items[-1:].metadata.name", "b"),
            (".items[0:1].metadata.name", "a"),
            (r".items[*].metadata.labels.kubernetes\.io/os", "linux"),
            (".items[?(@.spec.n>1)].metadata.name", "b"),
            (r#".items[?(@.metadata.name=="a")].spec.n"#, "1"),
            (".items[?(@.spec.t)].metadata.name", "a"),
            ("..name", "a b"),
            (".items[7].metadata.name", ""),
            (".nothing.here", ""),
            (".items[0]['metadata','spec'].name", "a"),
        ] {
            assert_eq!(Path::parse(path).unwrap().shown(&v), shown, "{path}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_on_one_line() {
        for bad in [".a[", ".a..", ".a[?(@.b ==)]", ".a[x]", "['a", ".a[0]b", "[?(@.a=='b]"] {
            let e = Path::parse(bad).expect_err(bad);
            assert!(e.starts_with("JSONPath ") && !e.contains('\n'), "{bad}: {e}");
        }
    }
}
