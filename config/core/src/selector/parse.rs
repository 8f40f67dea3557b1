//! Tokens to tree: `or` of `and` of negated atoms. Parentheses bind, pairs of `!` cancel, an empty text is `all()`.

use std::collections::BTreeSet;

use super::{
    Expr,
    lex::{OPERATORS, Token, lex},
};

/// Deepest nesting of parentheses (a selector in a Kubernetes resource has at most 1024 characters).
const MAX_DEPTH: usize = 256;

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} of selector {text:?}: expected {expected}, found {found}")]
pub struct SelectorError {
    pub text: String,
    /// Position in characters, from 1.
    pub column: usize,
    pub expected: String,
    pub found: String,
}

impl SelectorError {
    pub(super) fn new(text: &str, at: usize, expected: &str, found: String) -> Self {
        let column = 1 + text.char_indices().take_while(|(i, _)| *i < at).count();
        Self { text: text.to_owned(), column, expected: expected.to_owned(), found }
    }
}

pub(super) fn parse(text: &str) -> Result<Expr, SelectorError> {
    let tokens = lex(text)?;
    if matches!(tokens.first(), Some((_, Token::End))) {
        return Ok(Expr::All);
    }
    let mut parser = Parser { text, tokens, next: 0, depth: 0 };
    let expr = parser.or()?;
    match parser.take() {
        (_, Token::End) => Ok(expr),
        (at, other) => Err(parser.error(at, "&&, || or the end", &other)),
    }
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, t)| t)
    }

    fn take(&mut self) -> (usize, Token) {
        let token = self.tokens.get(self.next).cloned().unwrap_or((self.text.len(), Token::End));
        self.next += 1;
        token
    }

    fn took(&mut self, wanted: &Token) -> bool {
        let yes = self.peek() == wanted;
        if yes {
            self.next += 1;
        }
        yes
    }

    fn error(&self, at: usize, expected: &str, found: &Token) -> SelectorError {
        SelectorError::new(self.text, at, expected, found.name())
    }

    fn or(&mut self) -> Result<Expr, SelectorError> {
        self.chain(&Token::Or, Self::and, Expr::Or)
    }

    fn and(&mut self) -> Result<Expr, SelectorError> {
        self.chain(&Token::And, Self::unary, Expr::And)
    }

    /// One or more operands joined by `op`; a single one stays as it is.
    fn chain(
        &mut self,
        op: &Token,
        operand: fn(&mut Self) -> Result<Expr, SelectorError>,
        join: fn(Vec<Expr>) -> Expr,
    ) -> Result<Expr, SelectorError> {
        let first = operand(self)?;
        if self.peek() != op {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.took(op) {
            all.push(operand(self)?);
        }
        Ok(join(all))
    }

    fn unary(&mut self) -> Result<Expr, SelectorError> {
        let mut negate = false;
        while self.took(&Token::Not) {
            negate = !negate;
        }
        let atom = self.atom()?;
        Ok(match atom {
            // `!(!a)` is `a`, too.
            Expr::Not(inner) if negate => *inner,
            atom if negate => Expr::Not(Box::new(atom)),
            atom => atom,
        })
    }

    fn atom(&mut self) -> Result<Expr, SelectorError> {
        match self.take() {
            (_, Token::All) => Ok(Expr::All),
            (_, Token::Global) => Ok(Expr::Global),
            (_, Token::Has(label)) => Ok(Expr::Has(label)),
            (_, Token::Label(label)) => self.comparison(label),
            (at, Token::Open) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    let found = "deeper nesting".into();
                    let expected = format!("at most {MAX_DEPTH} nested parentheses");
                    return Err(SelectorError::new(self.text, at, &expected, found));
                }
                let expr = self.or()?;
                self.depth -= 1;
                match self.take() {
                    (_, Token::Close) => Ok(expr),
                    (at, other) => Err(self.error(at, "\")\", && or ||", &other)),
                }
            }
            (at, other) => {
                Err(self.error(at, "a condition (LABEL == \"VALUE\", has(LABEL), all(), !…, (…))", &other))
            }
        }
    }

    fn comparison(&mut self, label: String) -> Result<Expr, SelectorError> {
        let (at, op) = self.take();
        let build: fn(String, String) -> Expr = match op {
            Token::In => return Ok(Expr::In(label, self.set()?)),
            Token::NotIn => return Ok(Expr::NotIn(label, self.set()?)),
            Token::Equal => Expr::Equal,
            Token::NotEqual => Expr::NotEqual,
            Token::Contains => Expr::Contains,
            Token::StartsWith => Expr::StartsWith,
            Token::EndsWith => Expr::EndsWith,
            other => return Err(self.error(at, OPERATORS, &other)),
        };
        match self.take() {
            (_, Token::Text(value)) => Ok(build(label, value)),
            (at, other) => Err(self.error(at, "a value in quotes", &other)),
        }
    }

    /// `{"a", "b"}`; a comma behind the last value is allowed, an empty set too.
    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let (at, open) = self.take();
        if open != Token::BraceOpen {
            return Err(self.error(at, "a set in braces, {\"a\", \"b\"}", &open));
        }
        let mut values = BTreeSet::new();
        loop {
            match self.take() {
                (_, Token::BraceClose) => return Ok(values),
                (_, Token::Text(value)) => drop(values.insert(value)),
                (at, other) => return Err(self.error(at, "a value in quotes or \"}\"", &other)),
            }
            match self.take() {
                (_, Token::BraceClose) => return Ok(values),
                (_, Token::Comma) => {}
                (at, other) => return Err(self.error(at, "\",\" or \"}\"", &other)),
            }
        }
    }
}
