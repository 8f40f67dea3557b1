//! `-o go-template=`: templates of Go's text/template, over what kubectl gives them and over what calicoctl does.
//!
//! A library speaks the language; here are the functions of calicoctl, the names a template may use, and bounds: whatever is
//! typed ends, in bounded memory, and is told with its line and column when it is wrong.

mod blocks;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    sync::{Arc, OnceLock},
};

use gotmpl::{Template, TemplateError, Value as Go};
use serde_json::Value;

/// Its name within the library: what no `define` is meant to hide.
const MAIN: &str = "get";
/// Functions that make texts of what they get. Each is asked first how large its answer could become.
const TEXTS: [&str; 6] = ["print", "printf", "println", "html", "js", "urlquery"];
/// The rest of the language's own, and calicoctl's.
const OTHERS: [&str; 16] = [
    "and",
    "or",
    "not",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "len",
    "index",
    "slice",
    "call",
    "join",
    "joinAndTruncate",
    "config",
];
/// No function makes a text larger than this, in octets.
const LARGEST: usize = 64 << 20;
/// The widest a verb of printf becomes by its width alone.
const WIDEST: usize = 1 << 16;
/// What a template may `range` over, all in all.
const ROUNDS: u64 = 10_000_000;

/// A template that was understood.
#[derive(Clone)]
pub(crate) struct GoTemplate {
    text: String,
    /// Where it came from, for errors.
    origin: String,
    template: Arc<Template>,
    /// Names with a capital that it asks for, when it is written in calicoctl's names.
    names: Option<BTreeSet<String>>,
    /// Whether it asks for the cluster's AS number, and that once it is known.
    asks_asn: bool,
    asn: Arc<OnceLock<String>>,
}

impl fmt::Debug for GoTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GoTemplate({:?})", self.text)
    }
}

impl PartialEq for GoTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for GoTemplate {}

impl GoTemplate {
    /// Reads a template; `origin` names it in errors.
    pub(super) fn parse(origin: &str, text: &str) -> Result<Self, String> {
        let asn: Arc<OnceLock<String>> = Arc::default();
        let placed = |(offset, why): tree::Wrong| format!("{origin}:{}: {why}", place(text, offset));
        blocks::check(text).map_err(placed)?;
        let template = functions(Template::new(MAIN), &asn).max_range_iters(ROUNDS).parse(text);
        let template = template.map_err(|e| match e {
            TemplateError::Parse { line, col, message, .. }
            | TemplateError::Lex { line, col, message, .. } => {
                format!("{origin}:{line}:{col}: {message}")
            }
            other => format!("{origin}: {}", plain(&other)),
        })?;
        let known: Vec<&str> = TEXTS.into_iter().chain(OTHERS).collect();
        let seen = tree::look(&template, &known).map_err(placed)?;
        Ok(Self {
            text: text.to_owned(),
            origin: origin.to_owned(),
            template: Arc::new(template),
            names: seen.calicos().then_some(seen.capitals),
            asks_asn: seen.functions.contains("config"),
            asn,
        })
    }

    /// Whether [`GoTemplate::knows_asn`] is to be called first.
    pub(super) const fn asks_asn(&self) -> bool {
        self.asks_asn
    }

    pub(super) fn knows_asn(&self, asn: &str) {
        self.asn.get_or_init(|| asn.to_owned());
    }

    /// Fills the template in, piece by piece.
    pub(super) fn render(&self, value: &Value, out: &mut dyn FnMut(&str)) -> Result<(), String> {
        let data = match &self.names {
            // calicoctl gives a list of what it got, which may be lists.
            Some(names) => Go::List([named(value, names)].into()),
            None => named(value, &BTreeSet::new()),
        };
        let Err(error) = self.template.execute_fmt(&mut Pieces(out), &data) else { return Ok(()) };
        let at = tree::failing(&self.template, MAIN, |main| {
            let part = functions(Template::new(MAIN), &self.asn).max_range_iters(ROUNDS);
            let part = main.into_iter().fold(part, |t, (name, tree)| t.add_parse_tree(&name, tree));
            part.execute_template_fmt(&mut Pieces(&mut |_| {}), MAIN, &data).is_err()
        });
        let at = at.map(|offset| format!(":{}", place(&self.text, offset))).unwrap_or_default();
        Err(format!("{}{at}: {}", self.origin, plain(&error)))
    }
}

/// Line and column, in characters from 1.
fn place(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{line}:{column}")
}

fn plain(error: &TemplateError) -> String {
    let text = error.to_string();
    text.strip_prefix("execution error: ").map(str::to_owned).unwrap_or(text)
}

struct Pieces<'a>(&'a mut dyn FnMut(&str));

impl Write for Pieces<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        (self.0)(s);
        Ok(())
    }
}

/// calicoctl's functions, and the guarded ones.
fn functions(template: Template, asn: &Arc<OnceLock<String>>) -> Template {
    let asn = Arc::clone(asn);
    let template = template
        .func("join", |args| match args {
            [items, separator] => joined(items, separator, None),
            _ => Err(wrong(format!("join expects 2 arguments, got {}", args.len()))),
        })
        .func("joinAndTruncate", |args| match args {
            [items, separator, Go::Int(most)] => joined(items, separator, usize::try_from(*most).ok()),
            _ => Err(wrong("joinAndTruncate expects a list, a separator and a length".into())),
        })
        .func("config", move |args| match args {
            [Go::String(name)] if name.eq_ignore_ascii_case("asnumber") => {
                Ok(text(asn.get().map_or("unknown", String::as_str)))
            }
            _ => Err(wrong("config knows only \"asnumber\"".into())),
        });
    TEXTS.into_iter().fold(template, |t, name| t.func(name, move |args| guarded(name, args)))
}

fn wrong(why: String) -> TemplateError {
    TemplateError::Exec(why)
}

fn text(text: &str) -> Go {
    Go::String(text.into())
}

/// What the library's function of this name answers, unless that could be too large.
fn guarded(name: &str, args: &[Go]) -> gotmpl::Result<Go> {
    let all: usize = args.iter().map(size).fold(0, usize::saturating_add);
    let could = match args.first() {
        Some(Go::String(format)) if name == "printf" => {
            format.matches('%').count().saturating_mul(all.saturating_add(WIDEST)).saturating_add(all)
        }
        _ => all,
    };
    if could > LARGEST {
        return Err(wrong(format!("{name}: the text could be larger than {} MiB", LARGEST >> 20)));
    }
    // Its own functions are to be had only by a template.
    let words: String = (0..args.len()).map(|n| format!(" (index . {n})")).collect();
    let made = Template::new("").parse(&format!("{{{{{name}{words}}}}}"))?;
    Ok(text(&made.execute_to_string(&Go::List(args.into()))?))
}

/// How long a value is as a text; counting ends where it is too long anyway.
fn size(value: &Go) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.0 = self.0.saturating_add(s.len());
            if self.0 > LARGEST { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut count = Count(0);
    // An error is the end of counting.
    let _ = write!(count, "{value}");
    count.0
}

/// calicoctl's: a list's items, a map's pairs, or one value, cut to a length with dots at its end.
fn joined(items: &Go, separator: &Go, most: Option<usize>) -> gotmpl::Result<Go> {
    let parts: Vec<String> = match items {
        Go::Nil => return Ok(text("")),
        Go::List(all) => all.iter().map(Go::to_string).collect(),
        Go::Map(all) => all.iter().map(|(k, v)| format!("{k}={v}")).collect(),
        one => vec![one.to_string()],
    };
    let separator = separator.to_string();
    if size(items).saturating_add(parts.len().saturating_mul(separator.len() + 1)) > LARGEST {
        return Err(wrong(format!("join: the text could be larger than {} MiB", LARGEST >> 20)));
    }
    let whole = parts.join(&separator);
    let most = most.filter(|m| *m > 0 && whole.chars().count() > *m);
    Ok(text(&match most {
        Some(most) => whole.chars().take(most.saturating_sub(3)).chain("...".chars()).collect(),
        None => whole,
    }))
}

/// Members that hold names of other people's: no field of ours is among them.
const FREE: [&str; 4] = ["labels", "annotations", "matchLabels", "labelsToApply"];

/// A value for a template; its fields under the names with capitals that the template asks for.
fn named(value: &Value, names: &BTreeSet<String>) -> Go {
    match value {
        Value::Null => Go::Nil,
        Value::Bool(b) => Go::Bool(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Go::Int(n),
            (None, Some(n)) => Go::Uint(n),
            (None, None) => Go::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(s) => text(s),
        Value::Array(all) => Go::List(all.iter().map(|v| named(v, names)).collect()),
        Value::Object(all) => {
            let mut map: BTreeMap<Arc<str>, Go> = BTreeMap::new();
            let mut put = |key: &str, value: &Go| {
                let theirs =
                    |n: &str| n.eq_ignore_ascii_case(key) || (n == "ObjectMeta" && key == "metadata");
                let mut any = false;
                for name in names.iter().filter(|n| theirs(n)) {
                    map.insert(name.as_str().into(), value.clone());
                    any = true;
                }
                if !any {
                    map.insert(key.into(), value.clone());
                }
            };
            for (key, value) in all {
                let free = FREE.contains(&key.as_str());
                put(key, &named(value, if free { const { &BTreeSet::new() } } else { names }));
            }
            // In Go what metadata holds is the resource's own, too.
            let metadata = all.get("metadata").and_then(Value::as_object).filter(|_| !names.is_empty());
            for (key, value) in metadata.into_iter().flatten().filter(|(k, _)| !all.contains_key(*k)) {
                put(key, &named(value, const { &BTreeSet::new() }));
            }
            Go::Map(Arc::new(map))
        }
    }
}

#[cfg(test)]
mod tests;
