//! A strict renderer of the part of Go's template language that the chart uses: `{{ .Values.a.b }}`, `.Release.Namespace`,
//! `.Chart.AppVersion`, `if`/`else`/`with`/`end`, pipelines of `quote`, `int64`, `toYaml`, `nindent N`, trimming with `-`. Whatever
//! else stands in a template is a panic, so that the chart stays within it.

use brindle_config::yaml::to_yaml;
use serde_json::{Value, json};

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
}

/// Renders; `root` has Values, Release and Chart.
pub(crate) fn render(name: &str, text: &str, root: &Value) -> String {
    let mut tokens = tokens(name, text).into_iter().peekable();
    let (nodes, end) = parse(name, &mut tokens);
    assert!(end.is_none(), "{name}: {end:?} without a beginning");
    let mut out = String::new();
    write(name, &nodes, root, root, &mut out);
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

/// Up to `end` or `else`, which is returned.
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
            "if" | "with" => {
                let (then, mut end) = parse(name, tokens);
                let mut otherwise = Vec::new();
                if end.as_deref() == Some("else") {
                    (otherwise, end) = parse(name, tokens);
                }
                assert_eq!(end.as_deref(), Some("end"), "{name}: {action} has no end");
                nodes.push(Node::Branch { with: word == "with", test: test.to_owned(), then, otherwise });
            }
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

fn write(name: &str, nodes: &[Node], root: &Value, dot: &Value, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(t) => out.push_str(t),
            Node::Print(action) => out.push_str(&text(&pipeline(name, action, root, dot))),
            Node::Branch { with, test, then, otherwise } => {
                let value = pipeline(name, test, root, dot);
                if truthy(&value) {
                    write(name, then, root, if *with { &value } else { dot }, out);
                } else {
                    write(name, otherwise, root, dot, out);
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

fn pipeline(name: &str, action: &str, root: &Value, dot: &Value) -> Value {
    let mut value: Option<Value> = None;
    for stage in action.split('|') {
        let words: Vec<&str> = stage.split_whitespace().collect();
        let argument = |at: usize, value: Option<Value>| match words.get(at) {
            Some(path) => look_up(name, path, root, dot),
            None => value.unwrap_or_else(|| panic!("{name}: {action}: nothing to work on")),
        };
        value = Some(match words.as_slice() {
            ["quote", ..] => format!("{:?}", text(&argument(1, value))).into(),
            ["int64"] => text(&argument(1, value)).parse::<i64>().expect("a number").into(),
            ["toYaml", ..] => to_yaml(&argument(1, value)).trim_end().to_owned().into(),
            ["nindent", n] => {
                let n: usize = n.parse().unwrap_or_else(|_| panic!("{name}: {action}"));
                let pad = format!("\n{}", " ".repeat(n));
                let lines = text(&argument(2, value));
                format!("{pad}{}", lines.replace('\n', &pad)).into()
            }
            [path] if value.is_none() => look_up(name, path, root, dot),
            _ => panic!("{name}: {{{{ {action} }}}} is not understood by this renderer"),
        });
    }
    value.unwrap_or_else(|| panic!("{name}: empty action"))
}

fn look_up(name: &str, path: &str, root: &Value, dot: &Value) -> Value {
    let inside = path.strip_prefix('.').unwrap_or_else(|| panic!("{name}: {path} is no field"));
    if inside.is_empty() {
        return dot.clone();
    }
    let mut at = root;
    for part in inside.split('.') {
        at = at.get(part).unwrap_or_else(|| panic!("{name}: there is no {path}"));
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
    assert!(std::panic::catch_unwind(|| r("{{ range .Values.list }}{{ end }}")).is_err());
    assert!(std::panic::catch_unwind(|| r("{{ .Values.missing }}")).is_err());
}
