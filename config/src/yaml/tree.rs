//! One document as a tree that knows where each node is and how each plain scalar was written.

use std::fmt;

use serde::{Deserialize, de};
use serde_json::Number;
use serde_saphyr::{Error, Spanned, options::DuplicateKeyPolicy};

/// Line and column, from 1. Columns count characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) data: Data,
}

#[derive(Clone, Debug)]
pub(super) enum Data {
    Null,
    /// A plain scalar that YAML takes for a boolean, and how it was written.
    Bool(bool, String),
    /// A plain scalar that YAML takes for a number, and how it was written.
    Number(Number, String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Member>),
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) key_at: Position,
    pub(super) node: Node,
}

impl Node {
    /// An object without members.
    pub(super) fn empty_map(at: Position) -> Self {
        Self { at, data: Data::Map(Vec::new()) }
    }

    pub(super) fn member(&self, key: &str) -> Option<&Member> {
        match &self.data {
            Data::Map(members) => members.iter().find(|m| m.key == key),
            _ => None,
        }
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Bool(_, text) | Data::Number(_, text) | Data::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Where the field with this path is, or the deepest part of the path that exists. For a member this is its key
    /// when `key` is set, else its value.
    pub(super) fn find(&self, path: &str, key: bool) -> Position {
        let path = path.trim_start_matches('.');
        if path.is_empty() {
            return self.at;
        }
        match &self.data {
            Data::Map(members) => {
                // Keys may hold dots (labels do): the longest key that fits is meant.
                let fits = |m: &&Member| path.strip_prefix(m.key.as_str()).is_some_and(is_path_end);
                match members.iter().filter(fits).max_by_key(|m| m.key.len()) {
                    Some(m) if m.key.len() == path.len() && key => m.key_at,
                    Some(m) => m.node.find(path.strip_prefix(m.key.as_str()).unwrap_or_default(), key),
                    None => self.at,
                }
            }
            Data::List(items) => {
                let index = path.strip_prefix('[').and_then(|p| p.split_once(']'));
                let item = index.and_then(|(i, rest)| Some((items.get(i.parse::<usize>().ok()?)?, rest)));
                item.map_or(self.at, |(item, rest)| item.find(rest, key))
            }
            _ => self.at,
        }
    }
}

fn is_path_end(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(['.', '['])
}

/// Parses one document. Positions are those of the file, which has `lines_before` lines in front of it.
pub(super) fn parse(text: &str, lines_before: usize) -> Result<Node, (Position, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 20_000_000,
            max_nodes: 5_000_000,
            max_depth: 64,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 200_000 },
        duplicate_keys: DuplicateKeyPolicy::Error,
        emit_comments: false,
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    let parsed: Result<Spanned<Raw>, Error> = serde_saphyr::from_str_with_options(text, options);
    match parsed {
        Ok(raw) => Ok(Builder { text, lines_before }.node(raw)),
        Err(e) => {
            let at = e.location().map_or(Position { line: lines_before + 1, column: 1 }, |l| {
                position(lines_before, l.line(), l.column())
            });
            Err((at, words(&e)))
        }
    }
}

/// The parser's sentence without what we say ourselves.
fn words(e: &Error) -> String {
    if let Error::DuplicateMappingKey { key, .. } = e.without_snippet() {
        let key = key.as_deref().map(|k| format!(" {k:?}")).unwrap_or_default();
        return format!("the key{key} is given twice in this object; remove one");
    }
    let text = e.to_string();
    let text = text.split_once(" at line ").map_or(text.as_str(), |(t, _)| t);
    format!("not valid YAML: {text}")
}

fn position(lines_before: usize, line: u64, column: u64) -> Position {
    let small = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Position { line: lines_before.saturating_add(small(line)), column: small(column) }
}

/// What the parser delivers.
#[derive(Debug)]
enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

struct Builder<'a> {
    text: &'a str,
    lines_before: usize,
}

impl Builder<'_> {
    fn at(&self, l: serde_saphyr::Location) -> Position {
        position(self.lines_before, l.line(), l.column())
    }

    fn node(&self, raw: Spanned<Raw>) -> Node {
        let written = || {
            let span = raw.defined.span();
            let from = usize::try_from(span.byte_offset()?).ok()?;
            let len = usize::try_from(span.byte_len()?).ok()?;
            Some(self.text.get(from..from.checked_add(len)?)?.to_owned())
        };
        let data = match raw.value {
            Raw::Null => Data::Null,
            Raw::Bool(b) => Data::Bool(b, written().unwrap_or_else(|| b.to_string())),
            Raw::Number(ref n) => Data::Number(n.clone(), written().unwrap_or_else(|| n.to_string())),
            Raw::Text(text) => Data::Text(text),
            Raw::List(items) => Data::List(items.into_iter().map(|i| self.node(i)).collect()),
            Raw::Map(members) => Data::Map(
                members
                    .into_iter()
                    .map(|(key, value)| Member {
                        key_at: self.at(key.referenced),
                        key: key.value,
                        node: self.node(value),
                    })
                    .collect(),
            ),
        };
        Node { at: self.at(raw.referenced), data }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> de::Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML node")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Number(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        Ok(Number::from_f64(v).map_or_else(|| Raw::Text(v.to_string()), Raw::Number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Text(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Raw, E> {
        Ok(Raw::Text(v))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: de::Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
        Raw::deserialize(d)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Raw::Map(members))
    }
}
