//! `-o`: what form an answer takes, and the template languages of `get`.

use std::str::FromStr;

use serde_json::Value;

use super::{gotemplate::GoTemplate, jsonpath::Path};

/// What may follow `-o`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A table for people.
    Table,
    /// The table with more columns.
    Wide,
    Yaml,
    Json,
    /// `kind/name`, one a line.
    Name,
    Columns(Vec<Column>),
    Template(Template),
    Go(Box<GoTemplate>),
    /// None of these: what was typed, which `ipam check` takes for a file as calicoctl does, and what is said elsewhere.
    Other(String, String),
}

/// One of `custom-columns=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// A heading of the wide table, as calicoctl has it.
    Heading(String),
    /// `HEADING:.path`, as kubectl has it.
    Path(String, Box<Path>),
}

impl Column {
    /// What stands under a path's heading.
    pub(crate) fn cell(path: &Path, value: &Value) -> String {
        let text = path.shown(value);
        if text.is_empty() { "<none>".to_owned() } else { text }
    }
}

/// A kubectl JSONPath template: text with `{.path}`, `{"text"}` and `{range .path}…{end}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Path(Path),
    Range(Path, Vec<Part>),
}

/// Templates within templates; more is a mistake or an attack.
const DEEPEST: usize = 8;

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let parts = parts(&mut rest, 0)?;
        Ok(Self(parts))
    }

    /// Fills the template in, piece by piece.
    pub(crate) fn render(&self, value: &Value, out: &mut dyn FnMut(&str)) {
        fill(&self.0, value, out);
    }
}

fn fill(parts: &[Part], value: &Value, out: &mut dyn FnMut(&str)) {
    for part in parts {
        match part {
            Part::Text(text) => out(text),
            Part::Path(path) => path.show(value, out),
            Part::Range(path, inner) => {
                for each in path.find(value) {
                    fill(inner, each, out);
                }
            }
        }
    }
}

fn parts(rest: &mut &str, depth: usize) -> Result<Vec<Part>, String> {
    if depth > DEEPEST {
        return Err(format!("more than {DEEPEST} {{range}} within each other"));
    }
    let mut all = Vec::new();
    while !rest.is_empty() {
        let Some(open) = rest.find('{') else {
            all.push(Part::Text(std::mem::take(rest).to_owned()));
            break;
        };
        let (text, tail) = rest.split_at(open);
        if !text.is_empty() {
            all.push(Part::Text(text.to_owned()));
        }
        let close = closing(tail).ok_or_else(|| format!("no closing brace after {tail:?}"))?;
        let inner = tail.get(1..close).unwrap_or_default().trim();
        *rest = tail.get(close + 1..).unwrap_or_default();
        if inner == "end" {
            return if depth > 0 { Ok(all) } else { Err("{end} without {range}".into()) };
        } else if let Some(path) = inner.strip_prefix("range ") {
            all.push(Part::Range(Path::parse(path)?, parts(rest, depth + 1)?));
        } else if let Some(quoted) = inner.strip_prefix(['"', '\'']) {
            let body = quoted.strip_suffix(['"', '\'']).unwrap_or(quoted);
            all.push(Part::Text(body.replace("\\n", "\n").replace("\\t", "\t")));
        } else {
            all.push(Part::Path(Path::parse(inner)?));
        }
    }
    if depth > 0 { Err("{range} without {end}".into()) } else { Ok(all) }
}

/// Where the brace that opens `text` is closed, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(i),
            _ => {}
        }
    }
    None
}

impl Form {
    /// What stands behind `-o` on the command line.
    pub(crate) fn typed(text: &str) -> Result<Self, String> {
        let word = text.split('=').next().unwrap_or_default();
        match text.parse() {
            Err(why) if !WORDS.contains(&word) => Ok(Self::Other(text.to_owned(), why)),
            other => other,
        }
    }
}

/// The words for forms.
const WORDS: [&str; 9] = [
    "table",
    "wide",
    "yaml",
    "json",
    "name",
    "custom-columns",
    "jsonpath",
    "go-template",
    "go-template-file",
];

impl FromStr for Form {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (word, rest) = s.split_once('=').map_or((s, None), |(w, r)| (w, Some(r)));
        match (word, rest) {
            ("table" | "ps", None) => Ok(Self::Table),
            ("wide", None) => Ok(Self::Wide),
            ("yaml", None) => Ok(Self::Yaml),
            ("json", None) => Ok(Self::Json),
            ("name", None) => Ok(Self::Name),
            ("custom-columns", Some(list)) if !list.is_empty() => {
                let columns = list.split(',').map(|c| match c.split_once(':') {
                    Some((heading, "")) => {
                        Err(format!("custom-columns: {heading:?} has no path; write {heading}:.path"))
                    }
                    Some((heading, path)) => {
                        Ok(Column::Path(heading.to_owned(), Box::new(Path::parse(path)?)))
                    }
                    None => Ok(Column::Heading(c.trim().to_uppercase())),
                });
                columns.collect::<Result<_, String>>().map(Self::Columns)
            }
            ("jsonpath", Some(template)) if !template.is_empty() => {
                Template::parse(template).map(Self::Template)
            }
            ("go-template", Some(template)) if !template.is_empty() => {
                GoTemplate::parse("go-template", template).map(|t| Self::Go(Box::new(t)))
            }
            ("go-template-file", Some(file)) if !file.is_empty() => {
                let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {file}: {e}"))?;
                GoTemplate::parse(file, &text).map(|t| Self::Go(Box::new(t)))
            }
            ("custom-columns" | "jsonpath" | "go-template" | "go-template-file", _) => {
                let what = match word {
                    "custom-columns" => "COLUMN,.. or HEADING:.path,..",
                    "go-template-file" => "FILE",
                    _ => "TEMPLATE",
                };
                Err(format!("{word} needs a value: {word}={what}"))
            }
            _ => {
                let meant = brindle_config_core::suggest::closest(word, WORDS);
                let hint = meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default();
                Err(format!(
                    "unrecognized output format '{s}'; expected table, wide, yaml, json, name, \
                     custom-columns=NAME,.., jsonpath=TEMPLATE, go-template=TEMPLATE or go-template-file=FILE{hint}"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str, value: &Value) -> String {
        match format!("jsonpath={template}").parse() {
            Ok(Form::Template(t)) => {
                let mut text = String::new();
                t.render(value, &mut |part| text += part);
                text
            }
            other => panic!("{template}: {other:?}"),
        }
    }

    #[test]
    fn templates_are_those_of_kubectl() {
        let v =
            json!({"items": [{"metadata": {"name": "a"}, "spec": {"n": 1}}, {"metadata": {"name": "b"}}]});
        assert_eq!(render("{.items[*].metadata.name}", &v), "a b");
        assert_eq!(render("{range .items[*]}{.metadata.name}={.spec.n}{\"\\n\"}{end}.", &v), "a=1\nb=\n.");
        assert_eq!(render("{.items[0].spec}", &v), r#"{"n":1}"#);
        assert_eq!(render("{.items[?(@.spec.n==1)].metadata.name}", &v), "a");
        assert_eq!(render("plain", &v), "plain");
    }

    #[test]
    fn wrong_forms_say_what_is_wrong() {
        for (text, part) in [
            ("yml", "did you mean yaml?"),
            ("jsonpath={.a", "no closing brace"),
            ("jsonpath={range .a}x", "without {end}"),
            ("jsonpath={end}", "without {range}"),
            ("jsonpath={.a[}", "JSONPath"),
            ("go-template={{.a", "go-template:1:"),
            ("go-template", "go-template needs a value: go-template=TEMPLATE"),
            ("go-template-file=/nonexistent/t", "cannot read /nonexistent/t: No such file"),
            ("gotemplate={{.}}", "did you mean go-template?"),
            ("custom-columns=", "needs a value: custom-columns=COLUMN"),
            ("custom-columns=NAME:", "\"NAME\" has no path; write NAME:.path"),
        ] {
            let e = text.parse::<Form>().expect_err(text);
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
