//! Cuts a selector into tokens. White space is space and tab only. What a word means depends on the word before it:
//! behind a label only an operator can stand, so that labels may be called `in` or `contains`.

use super::parse::SelectorError;

/// Longest label name.
const MAX_LABEL: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Open,
    Close,
    BraceOpen,
    BraceClose,
    Comma,
    Not,
    And,
    Or,
    All,
    Global,
    Has(String),
    Label(String),
    Text(String),
    Equal,
    NotEqual,
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
    End,
}

impl Token {
    /// How an error names it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Open => "\"(\"".into(),
            Self::Close => "\")\"".into(),
            Self::BraceOpen => "\"{\"".into(),
            Self::BraceClose => "\"}\"".into(),
            Self::Comma => "\",\"".into(),
            Self::Not => "\"!\"".into(),
            Self::And => "\"&&\"".into(),
            Self::Or => "\"||\"".into(),
            Self::All => "all()".into(),
            Self::Global => "global()".into(),
            Self::Has(l) => format!("has({l})"),
            Self::Label(l) => format!("{l:?}"),
            Self::Text(t) => format!("the value {t:?}"),
            Self::Equal => "\"==\"".into(),
            Self::NotEqual => "\"!=\"".into(),
            Self::In => "\"in\"".into(),
            Self::NotIn => "\"not in\"".into(),
            Self::Contains => "\"contains\"".into(),
            Self::StartsWith => "\"starts with\"".into(),
            Self::EndsWith => "\"ends with\"".into(),
            Self::End => "the end".into(),
        }
    }
}

/// Tokens with the byte offset at which each begins; the last one is [`Token::End`].
pub(super) fn lex(text: &str) -> Result<Vec<(usize, Token)>, SelectorError> {
    let mut tokens = Vec::new();
    let mut rest = skip(text);
    loop {
        let at = text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            tokens.push((at, Token::End));
            return Ok(tokens);
        };
        let behind_label = matches!(tokens.last(), Some((_, Token::Label(_))));
        let (token, tail) = match first {
            '"' | '\'' => quoted(text, at, rest, first)?,
            _ => match symbol(rest) {
                Some(found) => found,
                None if behind_label => {
                    operator(rest).ok_or_else(|| SelectorError::new(text, at, OPERATORS, excerpt(rest)))?
                }
                None => word(text, at, rest)?,
            },
        };
        tokens.push((at, token));
        rest = skip(tail);
    }
}

pub(super) const OPERATORS: &str =
    "an operator (==, !=, in, not in, contains, starts with, ends with) behind the label";

fn skip(s: &str) -> &str {
    s.trim_start_matches([' ', '\t'])
}

fn symbol(rest: &str) -> Option<(Token, &str)> {
    const SYMBOLS: [(&str, Token); 10] = [
        ("==", Token::Equal),
        ("!=", Token::NotEqual),
        ("&&", Token::And),
        ("||", Token::Or),
        ("(", Token::Open),
        (")", Token::Close),
        ("{", Token::BraceOpen),
        ("}", Token::BraceClose),
        (",", Token::Comma),
        ("!", Token::Not),
    ];
    SYMBOLS.into_iter().find_map(|(s, token)| Some((token, rest.strip_prefix(s)?)))
}

fn quoted<'a>(text: &str, at: usize, rest: &'a str, quote: char) -> Result<(Token, &'a str), SelectorError> {
    rest.strip_prefix(quote)
        .and_then(|inner| inner.split_once(quote))
        .map(|(value, tail)| (Token::Text(value.to_owned()), tail))
        .ok_or_else(|| SelectorError::new(text, at, "a closing quote", "the end".into()))
}

fn is_label_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

/// Whether an operator word may end before `tail`.
fn ends_word(tail: &str) -> bool {
    !tail.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
}

/// One or two words that stand behind a label.
fn operator(rest: &str) -> Option<(Token, &str)> {
    const WORDS: [(&str, &str, Token); 5] = [
        ("not", "in", Token::NotIn),
        ("in", "", Token::In),
        ("contains", "", Token::Contains),
        ("starts", "with", Token::StartsWith),
        ("ends", "with", Token::EndsWith),
    ];
    WORDS.into_iter().find_map(|(first, second, token)| {
        let tail = rest.strip_prefix(first)?;
        let tail = if second.is_empty() { tail } else { skip(tail).strip_prefix(second)? };
        ends_word(tail).then_some((token, tail))
    })
}

/// `all()`, `global()`, `has(label)` or a label.
fn word<'a>(text: &str, at: usize, rest: &'a str) -> Result<(Token, &'a str), SelectorError> {
    for (name, token) in [("all(", Token::All), ("global(", Token::Global)] {
        if let Some(inner) = rest.strip_prefix(name) {
            let inner = skip(inner);
            let tail = inner.strip_prefix(')').ok_or_else(|| {
                let what = format!("\")\" to close {name}");
                SelectorError::new(text, text.len() - inner.len(), &what, excerpt(inner))
            })?;
            return Ok((token, tail));
        }
    }
    if let Some(inner) = rest.strip_prefix("has(") {
        let inner = skip(inner);
        let (name, tail) = label(text, text.len() - inner.len(), inner)?;
        let tail = skip(tail);
        let close = tail.strip_prefix(')').ok_or_else(|| {
            SelectorError::new(text, text.len() - tail.len(), "\")\" to close has(", excerpt(tail))
        })?;
        return Ok((Token::Has(name.to_owned()), close));
    }
    let (name, tail) = label(text, at, rest)?;
    Ok((Token::Label(name.to_owned()), tail))
}

fn label<'a>(text: &str, at: usize, rest: &'a str) -> Result<(&'a str, &'a str), SelectorError> {
    let end = rest.find(|c| !is_label_char(c)).unwrap_or(rest.len());
    let (name, tail) = rest.split_at(end);
    if name.is_empty() {
        return Err(SelectorError::new(text, at, "a label name (letters, digits, _ . / -)", excerpt(rest)));
    }
    if name.len() > MAX_LABEL {
        let found = format!("one of {} characters", name.len());
        return Err(SelectorError::new(text, at, "a label name of at most 512 characters", found));
    }
    Ok((name, tail))
}

/// What stands at an unexpected place, in short.
pub(super) fn excerpt(rest: &str) -> String {
    match rest.chars().next() {
        None => "the end".into(),
        Some(c) if is_label_char(c) => {
            format!("{:?}", rest.chars().take_while(|c| is_label_char(*c)).take(40).collect::<String>())
        }
        Some(c) => format!("{:?}", c.to_string()),
    }
}
