//! Reads `table.txt`. The table is part of the program: a mistake in it is a panic that names the line, met by the tests.

const TEXT: &str = include_str!("table.txt");

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Type {
    String,
    Bool,
    Number,
    Time,
    IntOrString,
    /// With its least and largest value.
    Int(Option<(i64, i64)>),
    OneOf(Vec<&'static str>),
    List(Box<Self>),
    Map(Box<Self>),
    Nullable(Box<Self>),
    /// One of the table's own types.
    Object(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) required: bool,
    pub(super) type_: Type,
    pub(super) about: &'static str,
}

#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) plural: &'static str,
    pub(super) namespaced: bool,
    /// The type of its status, if it has that sub-resource.
    pub(super) status: Option<&'static str>,
    pub(super) about: &'static str,
    pub(super) fields: Vec<Field>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) kinds: Vec<Kind>,
    types: Vec<(&'static str, Vec<Field>)>,
}

impl Table {
    /// The fields of one of the table's types.
    pub(super) fn object(&self, name: &str) -> &[Field] {
        match self.types.iter().find(|t| t.0 == name) {
            Some((_, fields)) => fields,
            None => panic!("crd/table.txt has no type {name}"),
        }
    }
}

pub(super) fn read() -> Table {
    let mut table = Table::default();
    let mut in_type = false;
    for (number, line) in TEXT.lines().enumerate() {
        let wrong = || -> ! { panic!("crd/table.txt:{}: {line:?}", number + 1) };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (code, about) = line.split_once(" -- ").unwrap_or((line, ""));
        let words: Vec<&'static str> = code.split_whitespace().collect();
        match (line.starts_with(' '), &words[..]) {
            (true, [name, type_]) => {
                let Some(type_) = parse(type_) else { wrong() };
                let bare = name.trim_end_matches('!');
                let field = Field { name: bare, required: bare != *name, type_, about };
                let fields = if in_type {
                    table.types.last_mut().map(|t| &mut t.1)
                } else {
                    table.kinds.last_mut().map(|k| &mut k.fields)
                };
                let Some(fields) = fields else { wrong() };
                fields.push(field);
            }
            (false, ["type", name]) => {
                in_type = true;
                table.types.push((name, Vec::new()));
            }
            (false, ["kind", name, plural, scope, rest @ ..]) => {
                in_type = false;
                let status = match rest {
                    [] => None,
                    [word] => Some(word.strip_prefix("status=").unwrap_or_else(|| wrong())),
                    _ => wrong(),
                };
                let namespaced = *scope == "Namespaced";
                if !namespaced && *scope != "Cluster" {
                    wrong();
                }
                table.kinds.push(Kind { name, plural, namespaced, status, about, fields: Vec::new() });
            }
            _ => wrong(),
        }
    }
    table
}

fn parse(word: &'static str) -> Option<Type> {
    if let Some(inner) = word.strip_suffix('?') {
        return Some(Type::Nullable(Box::new(parse(inner)?)));
    }
    if let Some(inner) = word.strip_prefix('[') {
        return Some(Type::List(Box::new(parse(inner.strip_suffix(']')?)?)));
    }
    if let Some(inner) = word.strip_prefix('{') {
        return Some(Type::Map(Box::new(parse(inner.strip_suffix('}')?)?)));
    }
    if let Some(values) = word.strip_prefix('=') {
        return Some(Type::OneOf(values.split('|').collect()));
    }
    if let Some(range) = word.strip_prefix("int(") {
        let (min, max) = range.strip_suffix(')')?.split_once("..")?;
        return Some(Type::Int(Some((min.parse().ok()?, max.parse().ok()?))));
    }
    Some(match word {
        "string" => Type::String,
        "bool" => Type::Bool,
        "number" => Type::Number,
        "date-time" => Type::Time,
        "int-or-string" => Type::IntOrString,
        "int" => Type::Int(None),
        name if name.starts_with(|c: char| c.is_ascii_uppercase()) => Type::Object(name),
        _ => return None,
    })
}
