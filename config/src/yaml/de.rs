//! A serde deserializer over [`Node`]s. Errors carry the position of the node, the path to it, what was expected and
//! what was found. `null` stands for an empty text, list or object, as in Go.

use std::fmt;

use brindle_config_core::suggest;
use serde::{
    Deserializer,
    de::{self, Expected, IntoDeserializer, Unexpected, Visitor},
    forward_to_deserialize_any,
};

use super::tree::{Data, Member, Node, Position};

/// One step of a path, outermost last.
#[derive(Debug)]
enum Step {
    Key(String),
    Index(usize),
}

#[derive(Debug)]
pub(super) struct Error {
    pub(super) at: Option<Position>,
    path: Vec<Step>,
    pub(super) message: String,
}

impl Error {
    fn new(message: String) -> Self {
        Self { at: None, path: Vec::new(), message }
    }

    /// Sets the position unless a deeper node has done so.
    fn at(mut self, at: Position) -> Self {
        self.at.get_or_insert(at);
        self
    }

    fn inside(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    /// `spec.exportV4[0].cidr`.
    pub(super) fn path(&self) -> String {
        let mut out = String::new();
        for step in self.path.iter().rev() {
            match step {
                Step::Key(k) if out.is_empty() => out.push_str(k),
                Step::Key(k) => out.extend([".", k]),
                Step::Index(i) => out.push_str(&format!("[{i}]")),
            }
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        Self::new(msg.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}, found {}", expectation(expected), finding(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let expected: Vec<&str> = expected.iter().copied().filter(|e| !e.is_empty()).collect();
        Self::new(format!(
            "expected one of {}, found {variant:?}{}",
            expected.join(", "),
            hint(variant, &expected)
        ))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let meant = match hint(field, expected) {
            none if none.is_empty() => format!("; there are {}", expected.join(", ")),
            some => some,
        };
        Self::new(format!("unknown field {field:?}{meant}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("is required".into()).inside(Step::Key(field.into()))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new("is given twice".into()).inside(Step::Key(field.into()))
    }
}

fn hint(word: &str, known: &[&str]) -> String {
    suggest::closest(word, known.iter().copied()).map(|m| format!("; did you mean {m}?")).unwrap_or_default()
}

/// Rust's and serde's names of types in plain words.
fn expectation(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" => "a number from 0 to 255".into(),
        "u16" => "a number from 0 to 65535".into(),
        "u32" => "a number from 0 to 4294967295".into(),
        "i32" => "a number from -2147483648 to 2147483647".into(),
        "u64" | "usize" => "a number from 0".into(),
        "i64" => "a whole number".into(),
        "a string" => "text".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a map" => "an object".into(),
        "IP address" => "an address such as 10.0.0.1 or fd00::1".into(),
        "IPv4 address" => "an address such as 10.0.0.1".into(),
        "IPv6 address" => "an address such as fd00::1".into(),
        "socket address" => "an address with a port such as 10.0.0.1:179 or [fd00::1]:179".into(),
        "path string" => "a path".into(),
        "IPv4 or IPv6 network address" => "a CIDR such as 10.0.0.0/16 or fd00::/48".into(),
        t if t.starts_with("struct ") => "an object".into(),
        _ => text,
    }
}

fn finding(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(b) => b.to_string(),
        Unexpected::Unsigned(n) => n.to_string(),
        Unexpected::Signed(n) => n.to_string(),
        Unexpected::Float(n) => n.to_string(),
        Unexpected::Str(s) => format!("{s:?}"),
        Unexpected::Unit | Unexpected::Option => "nothing".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "an object".into(),
        other => other.to_string(),
    }
}

impl Node {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.data {
            Data::Null => Unexpected::Unit,
            Data::Bool(b, _) => Unexpected::Bool(*b),
            Data::Number(_, text) => Unexpected::Other(text),
            Data::Text(text) => Unexpected::Str(text),
            Data::List(_) => Unexpected::Seq,
            Data::Map(_) => Unexpected::Map,
        }
    }

    /// A text that is no number only because it was quoted.
    fn is_quoted(&self) -> bool {
        matches!(self.data, Data::Text(_))
    }

    fn refuse<'de, V: Visitor<'de>>(&self, visitor: &V) -> Error {
        de::Error::invalid_type(self.unexpected(), visitor as &dyn Expected)
    }

    /// Gives a text to the visitor; what it refuses is told with what it wanted.
    fn visit_text<'de, V: Visitor<'de>>(&self, text: &str, visitor: V) -> Result<V::Value, Error> {
        let wanted = expectation(&visitor as &dyn Expected);
        visitor.visit_str(text).map_err(|mut e: Error| {
            if !e.message.starts_with("expected ") {
                e.message = format!("expected {wanted}, found {text:?} ({})", e.message);
            } else if wanted.contains("number") && text.parse::<f64>().is_ok() && self.is_quoted() {
                e.message.push_str("; remove the quotes");
            }
            e.at(self.at)
        })
    }

    /// Gives an empty text in the place of `null` to the visitor; what it refuses was not given at all.
    fn visit_null<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Error> {
        let wanted = expectation(&visitor as &dyn Expected);
        visitor.visit_str("").map_err(|mut e: Error| {
            let wanted = match e.message.strip_prefix("expected ").and_then(|m| m.split_once(", found ")) {
                // Somebody has better words for it.
                Some((words, _)) => words,
                None => &wanted,
            };
            e.message = format!("expected {wanted}, found nothing");
            e.at(self.at)
        })
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.data {
            Data::Null => visitor.visit_unit(),
            Data::Bool(b, _) => visitor.visit_bool(*b),
            Data::Number(n, _) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
                (Some(n), ..) => visitor.visit_u64(n),
                (_, Some(n), _) => visitor.visit_i64(n),
                (.., Some(n)) => visitor.visit_f64(n),
                _ => Err(self.refuse(&visitor)),
            },
            Data::Text(text) => return self.visit_text(text, visitor),
            Data::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            Data::Map(members) => visitor.visit_map(Members { members, next: 0 }),
        }
        .map_err(|e: Error| e.at(self.at))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.data {
            Data::Null => visitor.visit_bool(false),
            Data::Text(t) if t == "true" || t == "false" => {
                Err(Error::new(format!("expected true or false, found the text {t:?}; remove the quotes")))
            }
            _ => self.deserialize_any(visitor),
        }
        .map_err(|e| e.at(self.at))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (&self.data, self.text()) {
            (_, Some(text)) => self.visit_text(text, visitor),
            (Data::Null, _) => self.visit_null(visitor),
            _ => Err(self.refuse(&visitor).at(self.at)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.data {
            Data::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.data {
            // 64512.10 is not 64512.1.
            Data::Number(_, text) if name == "AsNumber" => self.visit_text(text, visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.data {
            Data::Null => visitor.visit_seq(Items { items: &[], next: 0 }),
            Data::Text(_) => Err(self.refuse(&visitor)),
            _ => self.deserialize_any(visitor),
        }
        .map_err(|e| e.at(self.at))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.data {
            Data::Null => visitor.visit_map(Members { members: &[], next: 0 }),
            Data::Text(_) => Err(self.refuse(&visitor)),
            _ => self.deserialize_any(visitor),
        }
        .map_err(|e| e.at(self.at))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let text = match (&self.data, self.text()) {
            (_, Some(text)) => text,
            (Data::Null, _) => "",
            (Data::Map(members), _) if members.len() == 1 => {
                return visitor.visit_enum(Variant { members }).map_err(|e| e.at(self.at));
            }
            _ => {
                let wanted = format!("one of {}", variants.join(", "));
                return Err(
                    <Error as de::Error>::invalid_type(self.unexpected(), &wanted.as_str()).at(self.at)
                );
            }
        };
        let d: de::value::StrDeserializer<'_, Error> = text.into_deserializer();
        d.deserialize_enum(name, variants, visitor).map_err(|mut e: Error| {
            if matches!(self.data, Data::Null) {
                let known: Vec<&str> = variants.iter().copied().filter(|v| !v.is_empty()).collect();
                e.message = format!("expected one of {}, found nothing", known.join(", "));
            }
            e.at(self.at)
        })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        ignored_any
    }
}

struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(item).map(Some).map_err(|e| e.at(item.at).inside(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len().saturating_sub(self.next))
    }
}

struct Members<'de> {
    members: &'de [Member],
    next: usize,
}

impl<'de> de::MapAccess<'de> for Members<'de> {
    type Error = Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(member) = self.members.get(self.next) else { return Ok(None) };
        let key: de::value::StrDeserializer<'_, Error> = member.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|e| e.at(member.key_at))
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(member) = self.members.get(self.next) else {
            return Err(<Error as de::Error>::custom("a value was asked for without a key"));
        };
        self.next += 1;
        let node = &member.node;
        seed.deserialize(node).map_err(|e| e.at(node.at).inside(Step::Key(member.key.clone())))
    }
}

/// `{variant: content}`.
struct Variant<'de> {
    members: &'de [Member],
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = Content<'de>;

    fn variant_seed<V: de::DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Content<'de>), Error> {
        let Some(member) = self.members.first() else {
            return Err(<Error as de::Error>::custom("an object with one member was expected"));
        };
        let key: de::value::StrDeserializer<'_, Error> = member.key.as_str().into_deserializer();
        Ok((seed.deserialize(key).map_err(|e| e.at(member.key_at))?, Content { member }))
    }
}

/// What stands behind the name of a variant.
struct Content<'de> {
    member: &'de Member,
}

impl<'de> Content<'de> {
    fn read<T>(self, f: impl FnOnce(&'de Node) -> Result<T, Error>) -> Result<T, Error> {
        f(&self.member.node).map_err(|e| e.at(self.member.node.at).inside(Step::Key(self.member.key.clone())))
    }
}

impl<'de> de::VariantAccess<'de> for Content<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        self.read(|node| match node.data {
            Data::Null => Ok(()),
            _ => Err(<Error as de::Error>::invalid_type(node.unexpected(), &"nothing").at(node.at)),
        })
    }

    fn newtype_variant_seed<T: de::DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.read(|node| seed.deserialize(node))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.read(|node| node.deserialize_seq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.read(|node| node.deserialize_map(visitor))
    }
}
