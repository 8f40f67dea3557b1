//! Label and field selectors of LIST, WATCH and DELETE collection
//! (k8s.io/apimachinery/pkg/labels and pkg/fields): parsing with the server's errors, and matching.

use serde_json::Value;

/// One requirement on labels.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Above(String, i64),
    Below(String, i64),
}

/// A conjunction; the empty one takes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels(Vec<Need>);

fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        if c.is_whitespace() {
            chars.next();
        } else if "=!<>".contains(c) {
            let mut t = String::new();
            while let Some(&c) = chars.peek().filter(|c| "=!<>".contains(**c)) {
                // `!` starts an operator only before `=`; `!key` is two tokens.
                if t == "!" && c != '=' {
                    break;
                }
                t.push(c);
                chars.next();
            }
            out.push(t);
        } else if "(),".contains(c) {
            out.push(c.to_string());
            chars.next();
        } else {
            let mut t = String::new();
            while let Some(&c) = chars.peek().filter(|c| !c.is_whitespace() && !"=!<>(),".contains(**c)) {
                t.push(c);
                chars.next();
            }
            out.push(t);
        }
    }
    out
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(['=', '!', '<', '>', '(', ')', ','])
}

impl Labels {
    /// Parses; the error is the sentence of the 400.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text);
        let mut at = 0;
        let mut needs = Vec::new();
        let peek = |at: usize| tokens.get(at).map_or("", String::as_str);
        while at < tokens.len() {
            needs.push(Self::requirement(&tokens, &mut at)?);
            match peek(at) {
                "" => {}
                "," => {
                    at += 1;
                    if !is_word(peek(at)) && peek(at) != "!" {
                        return Err(format!("found '{}', expected: identifier after ','", peek(at)));
                    }
                }
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
        Ok(Self(needs))
    }

    fn requirement(tokens: &[String], at: &mut usize) -> Result<Need, String> {
        let next = |at: &mut usize| {
            let t = tokens.get(*at).cloned().unwrap_or_default();
            *at += 1;
            t
        };
        let first = next(at);
        let negated = first == "!";
        let key = if negated { next(at) } else { first };
        if !is_word(&key) {
            return Err(format!(
                "unable to parse requirement: found '{key}', expected: !, identifier, or 'end of string'"
            ));
        }
        key_ok(&key).map_err(|e| format!("unable to parse requirement: {e}"))?;
        if negated {
            return Ok(Need::Absent(key));
        }
        match tokens.get(*at).map_or("", String::as_str) {
            "" | "," => Ok(Need::Exists(key)),
            op @ ("=" | "==" | "!=") => {
                *at += 1;
                let value = match tokens.get(*at) {
                    Some(t) if is_word(t) => next(at),
                    _ => String::new(),
                };
                value_ok(&key, &value)?;
                Ok(if op == "!=" { Need::NotIn(key, vec![value]) } else { Need::In(key, vec![value]) })
            }
            op @ (">" | "<") => {
                *at += 1;
                let text = next(at);
                let n = text.parse().map_err(|_| {
                    format!(
                        "unable to parse requirement: values[0][{key}]: Invalid value: {text:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    )
                })?;
                Ok(if op == ">" { Need::Above(key, n) } else { Need::Below(key, n) })
            }
            op @ ("in" | "notin") => {
                *at += 1;
                let open = next(at);
                if open != "(" {
                    return Err(format!("unable to parse requirement: found '{open}' expected: '('"));
                }
                let mut values = Vec::new();
                let mut pending = String::new();
                loop {
                    match next(at).as_str() {
                        ")" => {
                            values.push(pending);
                            break;
                        }
                        "," => values.push(std::mem::take(&mut pending)),
                        "" => {
                            return Err("unable to parse requirement: found '', expected: ',' or ')'".into());
                        }
                        word if is_word(word) && pending.is_empty() => pending = word.to_owned(),
                        other => {
                            return Err(format!(
                                "unable to parse requirement: found '{other}', expected: ',' or ')'"
                            ));
                        }
                    }
                }
                for v in &values {
                    value_ok(&key, v)?;
                }
                Ok(if op == "in" { Need::In(key, values) } else { Need::NotIn(key, values) })
            }
            other => Err(format!(
                "unable to parse requirement: found '{other}', expected: in, notin, =, ==, !=, gt, lt"
            )),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object (with `metadata.labels`) is selected.
    pub(crate) fn takes(&self, object: &Value) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let labels = object.get("metadata").and_then(|m| m.get("labels"));
        let get = |k: &str| labels.and_then(|l| l.get(k)).and_then(Value::as_str);
        self.0.iter().all(|n| match n {
            Need::Exists(k) => get(k).is_some(),
            Need::Absent(k) => get(k).is_none(),
            Need::In(k, v) => get(k).is_some_and(|x| v.iter().any(|v| v == x)),
            Need::NotIn(k, v) => get(k).is_none_or(|x| v.iter().all(|v| v != x)),
            Need::Above(k, n) => get(k).and_then(|x| x.parse::<i64>().ok()).is_some_and(|x| x > *n),
            Need::Below(k, n) => get(k).and_then(|x| x.parse::<i64>().ok()).is_some_and(|x| x < *n),
        })
    }
}

fn key_ok(key: &str) -> Result<(), String> {
    super::names::qualified(key).map_err(|e| format!("key: Invalid value: {key:?}: {e}"))
}

fn value_ok(key: &str, value: &str) -> Result<(), String> {
    super::names::label_value(value)
        .map_err(|e| format!("unable to parse requirement: values[0][{key}]: Invalid value: {value:?}: {e}"))
}

/// A field selector: (path, value, negated).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// Parses `a=b,c!=d`; the error is the sentence of the 400.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        let mut current = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => {
                    current.push(c);
                    current.extend(chars.next());
                }
                ',' => terms.push(std::mem::take(&mut current)),
                c => current.push(c),
            }
        }
        terms.push(current);
        let mut out = Vec::new();
        for term in terms.iter().filter(|t| !t.is_empty()) {
            let (at, op) = term
                .char_indices()
                .find_map(|(i, _)| {
                    ["!=", "==", "="].into_iter().find(|op| term[i..].starts_with(op)).map(|op| (i, op))
                })
                .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{term}'"))?;
            let value = unescape(&term[at + op.len()..])
                .ok_or_else(|| format!("invalid field selector: invalid escape sequence in '{term}'"))?;
            out.push((term[..at].trim().to_owned(), value, op == "!="));
        }
        Ok(Self(out))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(p, _, _)| p.as_str())
    }

    /// The name, when the selector wants exactly one.
    pub(crate) fn wanted_name(&self) -> Option<&str> {
        self.0.iter().find(|(p, _, not)| p == "metadata.name" && !not).map(|(_, v, _)| v.as_str())
    }

    pub(crate) fn takes(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, value, negated)| {
            let mut at = Some(object);
            for step in path.split('.') {
                at = at.and_then(|o| o.get(step));
            }
            let equal = match at {
                None | Some(Value::Null) => {
                    value.is_empty()
                        || (value == "false"
                            && matches!(path.as_str(), "spec.unschedulable" | "spec.hostNetwork"))
                }
                Some(Value::String(s)) => s == value,
                Some(Value::Bool(b)) => value == if *b { "true" } else { "false" },
                Some(other) => {
                    value.parse::<serde_json::Number>().is_ok_and(|n| other.as_number() == Some(&n))
                }
            };
            equal != *negated
        })
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                e @ ('\\' | ',' | '=') => out.push(e),
                _ => return None,
            },
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn takes(selector: &str, labels: Value) -> bool {
        Labels::parse(selector).unwrap().takes(&json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn label_selectors_mean_what_the_documentation_says() {
        assert!(takes("a=b", json!({"a": "b"})));
        assert!(takes("a==b,c!=d", json!({"a": "b"})));
        assert!(!takes("a=b,c!=d", json!({"a": "b", "c": "d"})));
        assert!(takes("a in (x, y),!z", json!({"a": "y"})));
        assert!(!takes("a in (x, y),!z", json!({"a": "y", "z": ""})));
        assert!(takes("a notin (x,y)", json!({})));
        assert!(!takes("a notin (x,y)", json!({"a": "x"})));
        assert!(takes("a", json!({"a": ""})) && !takes("a", json!({})));
        assert!(
            takes("n > 4", json!({"n": "5"}))
                && !takes("n<4", json!({"n": "5"}))
                && !takes("n>4", json!({"n": "x"}))
        );
        assert!(takes("a=", json!({"a": ""})));
        assert!(takes("x.org/a-b in (,c)", json!({"x.org/a-b": ""})));
        assert!(takes("", json!({})));
    }

    #[test]
    fn wrong_label_selectors_are_refused() {
        for wrong in ["a in", "a in (b", "=b", "a b", "a=b,", "-a=b", "a=b c", "a in b", "a=-"] {
            assert!(Labels::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            Labels::parse("a in b").unwrap_err(),
            "unable to parse requirement: found 'b' expected: '('"
        );
    }

    #[test]
    fn field_selectors() {
        let o = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n,1", "hostNetwork": true}});
        let takes = |s: &str| Fields::parse(s).unwrap().takes(&o);
        assert!(takes("metadata.name=a") && takes("metadata.name==a") && !takes("metadata.name!=a"));
        assert!(takes("spec.nodeName=n\\,1,metadata.name!=b"));
        assert!(takes("status.phase=") && takes("spec.hostNetwork=true"));
        assert_eq!(Fields::parse("a").unwrap_err(), "invalid selector: 'a'; can't understand 'a'");
        assert_eq!(Fields::parse("metadata.name=x,a=b").unwrap().wanted_name(), Some("x"));
    }
}
