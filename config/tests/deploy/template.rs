//! A strict renderer of the part of Go's template language that the chart uses: `{{ .Values.a.b }}`, `.Release.Namespace`,
//! `if`/`else if`/`else`/`with`/`end`, `range $key, $value := .a.map`, pipelines of `quote`, `int64`, `toYaml`, `toJson`,
//! `kindIs "KIND"`, `eq $a "TEXT"`, `gt (PIPELINE) (PIPELINE)`, `add N`, `contains "TEXT"`, `fail "SENTENCE"`, `sha256sum`, `nindent N` and `include (print $.Template.BasePath "/FILE") .`, trimming with `-`. Whatever else
//! stands in a template is a panic, so that the chart stays within it.

use std::{collections::BTreeMap, fmt::Write as _};

use brindle_config::yaml::to_yaml;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{documents, files, read};

/// The chart's folder.
pub(crate) const CHART: &str = "deploy/helm/brindle";

/// What the chart makes of its values once these are changed.
pub(crate) fn chart(change: impl Fn(&mut Value)) -> Vec<Value> {
    let [mut values] = documents("values", &read(&format!("{CHART}/values.yaml"))).try_into().expect("one");
    change(&mut values);
    let root = json!({"Values": values, "Release": {"Namespace": "kube-system", "Name": "brindle"}});
    // Helm makes what is in crds/ first.
    let definitions = files(&format!("{CHART}/crds"), ".yaml");
    let mut objects: Vec<Value> = definitions.iter().flat_map(|f| documents(f, &read(f))).collect();
    for file in files(&format!("{CHART}/templates"), ".yaml") {
        objects.extend(documents(&file, &render(&file, &read(&file), &root)));
    }
    objects
}

enum Node {
    Text(String),
    Print(String),
    /// `with` moves the dot, `if` does not.
    Branch {
        with: bool,
        test: String,
        then: Vec<Self>,
        otherwise: Vec<Self>,
    },
    /// Over a map, in the order of its keys.
    Range {
        key: String,
        value: String,
        of: String,
        each: Vec<Self>,
    },
}

/// What names stand for at one place.
struct Scope<'a> {
    root: &'a Value,
    dot: &'a Value,
    variables: BTreeMap<String, Value>,
}

/// Renders; `root` has Values and Release.
pub(crate) fn render(name: &str, text: &str, root: &Value) -> String {
    let mut tokens = tokens(name, text).into_iter().peekable();
    let (nodes, end) = parse(name, &mut tokens);
    assert!(end.is_none(), "{name}: {end:?} without a beginning");
    let mut out = String::new();
    write(name, &nodes, &Scope { root, dot: root, variables: BTreeMap::new() }, &mut out);
    out
}

enum Token {
    Text(String),
    Action(String),
}

fn tokens(name: &str, text: &str) -> Vec<Token> {
    let mut all = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let (before, after) = rest.split_once("{{").map_or((rest, None), |(b, a)| (b, Some(a)));
        let mut before = if trim_next { before.trim_start() } else { before };
        let Some(after) = after else {
            all.push(Token::Text(before.to_owned()));
            return all;
        };
        let (mut action, next) =
            after.split_once("}}").unwrap_or_else(|| panic!("{name}: {{{{ without }}}}"));
        if let Some(a) = action.strip_prefix('-') {
            before = before.trim_end();
            action = a;
        }
        trim_next = action.ends_with('-');
        action = action.strip_suffix('-').unwrap_or(action);
        all.push(Token::Text(before.to_owned()));
        all.push(Token::Action(action.trim().to_owned()));
        rest = next;
    }
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

/// Up to `end`, `else` or `else if TEST`, which is returned.
fn parse(name: &str, tokens: &mut Tokens) -> (Vec<Node>, Option<String>) {
    let mut nodes = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(t) => {
                nodes.push(Node::Text(t));
                continue;
            }
            Token::Action(a) => a,
        };
        let (word, test) = action.split_once(' ').unwrap_or((&action, ""));
        match word {
            "if" | "with" => nodes.push(branch(name, word == "with", test, tokens)),
            "range" => {
                let parts: Vec<&str> = test.split_whitespace().collect();
                let [key, value, ":=", of] = parts.as_slice() else {
                    panic!("{name}: {action} is not understood by this renderer")
                };
                let (key, value) = (key.strip_suffix(',').unwrap_or_default(), *value);
                assert!(key.starts_with('$') && value.starts_with('$'), "{name}: {action}: two variables");
                let (each, end) = parse(name, tokens);
                assert_eq!(end.as_deref(), Some("end"), "{name}: {action} has no end");
                nodes.push(Node::Range { key: key.into(), value: value.into(), of: (*of).into(), each });
            }
            "else" if test.starts_with("if ") => return (nodes, Some(action)),
            "end" | "else" => {
                assert!(test.is_empty(), "{name}: {action} is not understood by this renderer");
                return (nodes, Some(word.to_owned()));
            }
            _ if action.starts_with("/*") => {}
            _ => nodes.push(Node::Print(action)),
        }
    }
    (nodes, None)
}

/// What follows `if TEST` or `with TEST`, its `end` included.
fn branch(name: &str, with: bool, test: &str, tokens: &mut Tokens) -> Node {
    let (then, end) = parse(name, tokens);
    let otherwise = match end.as_deref() {
        Some("end") => Vec::new(),
        Some("else") => {
            let (otherwise, end) = parse(name, tokens);
            assert_eq!(end.as_deref(), Some("end"), "{name}: {test} has no end");
            otherwise
        }
        // It shares the end.
        Some(other) => vec![branch(name, false, other.trim_start_matches("else if "), tokens)],
        None => panic!("{name}: {test} has no end"),
    };
    Node::Branch { with, test: test.to_owned(), then, otherwise }
}

fn write(name: &str, nodes: &[Node], scope: &Scope<'_>, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(t) => out.push_str(t),
            Node::Print(action) => out.push_str(&text(&pipeline(name, action, scope))),
            Node::Branch { with, test, then, otherwise } => {
                let value = pipeline(name, test, scope);
                if truthy(&value) {
                    let dot = if *with { &value } else { scope.dot };
                    let inner = Scope { root: scope.root, dot, variables: scope.variables.clone() };
                    write(name, then, &inner, out);
                } else {
                    write(name, otherwise, scope, out);
                }
            }
            Node::Range { key, value, of, each } => {
                let map = look_up(name, of, scope);
                let map =
                    map.as_object().unwrap_or_else(|| panic!("{name}: range over {of}, which is no map"));
                let sorted: BTreeMap<_, _> = map.iter().collect();
                for (k, v) in sorted {
                    let mut variables = scope.variables.clone();
                    variables.insert(key.clone(), k.as_str().into());
                    variables.insert(value.clone(), v.clone());
                    write(name, each, &Scope { root: scope.root, dot: v, variables }, out);
                }
            }
        }
    }
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        other => panic!("{other} is printed without toYaml"),
    }
}

/// A word in quotes.
fn literal(word: &str) -> Option<&str> {
    word.strip_prefix('"')?.strip_suffix('"')
}

/// The words of a value's kind in Go, for `kindIs`.
const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

/// As sprig has it: what is not there is 0.
fn number(value: &Value) -> i64 {
    if value.is_null() { 0 } else { text(value).parse().expect("a number") }
}

fn pipeline(name: &str, action: &str, scope: &Scope<'_>) -> Value {
    if let Some(both) = action.strip_prefix("gt (") {
        let both = both.strip_suffix(')').and_then(|b| b.split_once(") ("));
        let (a, b) = both.unwrap_or_else(|| panic!("{name}: {action}: two in parentheses"));
        return (number(&pipeline(name, a, scope)) > number(&pipeline(name, b, scope))).into();
    }
    let mut value: Option<Value> = None;
    for stage in action.split('|') {
        if let Some(why) = stage.trim().strip_prefix("fail ") {
            panic!(
                "{name}: {}",
                literal(why).unwrap_or_else(|| panic!("{name}: {action}: a sentence in quotes"))
            );
        }
        let words: Vec<&str> = stage.split_whitespace().collect();
        let argument = |at: usize, value: Option<Value>| match words.get(at) {
            Some(path) => look_up(name, path, scope),
            None => value.unwrap_or_else(|| panic!("{name}: {action}: nothing to work on")),
        };
        value = Some(match words.as_slice() {
            ["quote", ..] => format!("{:?}", text(&argument(1, value))).into(),
            ["int64"] => number(&argument(1, value)).into(),
            ["add", n] => {
                let n: i64 = n.parse().unwrap_or_else(|_| panic!("{name}: {action}: a number"));
                (number(&argument(2, value)) + n).into()
            }
            ["toJson", ..] => argument(1, value).to_string().into(),
            ["kindIs", wanted, ..] => {
                let wanted = literal(wanted).unwrap_or_else(|| panic!("{name}: {action}: a kind in quotes"));
                (kind(&argument(2, value)) == wanted).into()
            }
            ["eq", path, wanted] => {
                let wanted = literal(wanted).unwrap_or_else(|| panic!("{name}: {action}: a text in quotes"));
                (look_up(name, path, scope) == wanted).into()
            }
            ["contains", wanted] => {
                let wanted = literal(wanted).unwrap_or_else(|| panic!("{name}: {action}: a text in quotes"));
                text(&argument(2, value)).contains(wanted).into()
            }
            ["sha256sum", ..] => {
                let mut hex = String::new();
                for octet in Sha256::digest(text(&argument(1, value))) {
                    // Writing to a string cannot fail.
                    let _ = write!(hex, "{octet:02x}");
                }
                hex.into()
            }
            ["include", "(print", "$.Template.BasePath", file, "."] => {
                let file = literal(file.trim_end_matches(')')).unwrap_or_else(|| panic!("{name}: {action}"));
                let path = format!("{CHART}/templates{file}");
                render(&path, &read(&path), scope.root).into()
            }
            ["toYaml", ..] => to_yaml(&argument(1, value)).trim_end().to_owned().into(),
            ["nindent", n] => {
                let n: usize = n.parse().unwrap_or_else(|_| panic!("{name}: {action}"));
                let pad = format!("\n{}", " ".repeat(n));
                let lines = text(&argument(2, value));
                format!("{pad}{}", lines.replace('\n', &pad)).into()
            }
            [path] if value.is_none() => look_up(name, path, scope),
            _ => panic!("{name}: {{{{ {action} }}}} is not understood by this renderer"),
        });
    }
    value.unwrap_or_else(|| panic!("{name}: empty action"))
}

fn look_up(name: &str, path: &str, scope: &Scope<'_>) -> Value {
    if path.starts_with('$') {
        let found = scope.variables.get(path);
        return found.unwrap_or_else(|| panic!("{name}: there is no {path}")).clone();
    }
    let inside = path.strip_prefix('.').unwrap_or_else(|| panic!("{name}: {path} is no field"));
    if inside.is_empty() {
        return scope.dot.clone();
    }
    let mut at = scope.root;
    for part in inside.split('.') {
        // Any variable may be left out of the agents' environment; else what is not there is a mistake.
        let optional = part.starts_with("BRINDLE_");
        at = match at.get(part) {
            Some(value) => value,
            None if optional => &Value::Null,
            None => panic!("{name}: there is no {path}"),
        };
    }
    at.clone()
}

#[test]
fn actions_are_rendered_as_go_does() {
    let root =
        serde_json::json!({"Values": {"a": "x", "on": true, "off": false, "list": [1], "map": {"k": "v"}}});
    let r = |t: &str| render("test", t, &root);
    assert_eq!(r("a: {{ .Values.a }}\n"), "a: x\n");
    assert_eq!(r("a: {{ .Values.a | quote }}"), "a: \"x\"");
    assert_eq!(r("m:\n  {{- toYaml .Values.map | nindent 2 }}\nz"), "m:\n  k: v\nz");
    assert_eq!(r("{{- if .Values.on }}\nyes\n{{- else }}\nno\n{{- end }}\n"), "\nyes\n");
    assert_eq!(r("{{- if .Values.off }}\nyes\n{{- else }}\nno\n{{- end }}\n"), "\nno\n");
    assert_eq!(r("x{{- with .Values.list }} {{ toYaml . }}{{ end }}"), "x - 1");
    let each = "{{ range $k, $v := .Values }}{{ if kindIs \"string\" $v }}{{ $k }}{{ else if kindIs \"bool\" $v }}{{ $v }}{{ else }}-{{ end }} {{ end }}";
    assert_eq!(r(each), "a - - false true ", "in the order of the keys");
    assert_eq!(r("{{ .Values.map | toJson | quote }}"), r#""{\"k\":\"v\"}""#);
    let some = "{{ range $k, $v := .Values.map }}{{ if eq $k \"k\" }}{{ if $v | contains \"w\" }}w{{ else }}v{{ end }}{{ end }}{{ end }}";
    assert_eq!(r(some), "v");
    let over =
        "{{ if gt (.Values.BRINDLE_X | int64 | add 5) (.Values.n | int64) }}more{{ else }}not{{ end }}";
    let with = |values: Value| render("test", over, &json!({"Values": values}));
    assert_eq!([with(json!({"n": 5})), with(json!({"n": "4"}))], ["not", "more"]);
    assert_eq!(with(json!({"BRINDLE_X": "3", "n": 7})), "more");
    assert!(std::panic::catch_unwind(|| r("{{ fail \"it is wrong\" }}")).is_err());
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(r("{{ with .Values.off }}x{{ else }}{{ .Values.a | sha256sum }}{{ end }}").len(), empty.len());
    assert!(std::panic::catch_unwind(|| r("{{ range .Values.list }}{{ end }}")).is_err());
    assert!(std::panic::catch_unwind(|| r("{{ $v }}")).is_err());
    assert!(std::panic::catch_unwind(|| r("{{ .Values.missing }}")).is_err());
}
