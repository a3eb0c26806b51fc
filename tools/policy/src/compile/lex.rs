//! Text to tokens.
//!
//! Rego needs two things of white space: a reference or call continues only where its `.`, `[` or
//! `(` follows at once, and a new line separates the literals of a body. Both are kept with each token.

use std::rc::Rc;

use super::error::{Pos, Refusal, Result};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Name(Rc<str>),
    Int(i64),
    /// A number that is not supported: refused where it is used, not where it is written.
    OtherNumber(&'static str),
    Str(Rc<str>),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub kind: Kind,
    pub pos: Pos,
    /// No white space or comment between this token and the one before.
    pub joined: bool,
    /// On a later line than the end of the token before.
    pub new_line: bool,
}

/// Longest first, so that `:=` is not read as `:` and `=`.
const SIGNS: [&str; 26] = [
    ":=", "==", "!=", "<=", ">=", "<", ">", "=", "+", "-", "*", "/", "%", "|", "&", ":", ",", ";", ".", "(",
    ")", "[", "]", "{", "}", "$",
];

struct Lexer<'a> {
    rest: &'a str,
    pos: Pos,
}

/// The tokens of a module, the last of them `End`.
pub(crate) fn tokens(text: &str, file: u32) -> Result<Vec<Token>> {
    let mut lexer = Lexer { rest: text, pos: Pos { file, line: 1, column: 1 } };
    let mut tokens = Vec::new();
    let mut last_line = 0;
    loop {
        let before = lexer.rest.len();
        lexer.skip_blanks()?;
        let joined = lexer.rest.len() == before && !tokens.is_empty();
        let pos = lexer.pos;
        let kind = lexer.token()?;
        let end = kind == Kind::End;
        tokens.push(Token { kind, pos, joined, new_line: pos.line > last_line });
        last_line = lexer.pos.line;
        if end {
            return Ok(tokens);
        }
    }
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.pos.line += 1;
            self.pos.column = 1;
        } else {
            self.pos.column += 1;
        }
        Some(c)
    }

    fn skip_blanks(&mut self) -> Result<()> {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\n' | '\r') => {
                    self.next();
                }
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.next();
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn token(&mut self) -> Result<Kind> {
        let pos = self.pos;
        let Some(c) = self.peek() else { return Ok(Kind::End) };
        match c {
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = self
                    .rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(self.rest.len());
                let name = Rc::from(&self.rest[..length]);
                (0..length).for_each(|_| {
                    self.next();
                });
                Ok(Kind::Name(name))
            }
            '0'..='9' => self.number(),
            '"' => self.string(),
            '`' => {
                self.next();
                let Some(length) = self.rest.find('`') else {
                    return Err(Refusal::new(pos, "raw string", "the closing ` is missing"));
                };
                let text: Rc<str> = Rc::from(&self.rest[..length]);
                while self.next() != Some('`') {}
                Ok(Kind::Str(text))
            }
            _ => {
                let Some(sign) = SIGNS.iter().find(|sign| self.rest.starts_with(**sign)) else {
                    return Err(Refusal::new(pos, "character", format!("{c:?} has no meaning here")));
                };
                sign.chars().for_each(|_| {
                    self.next();
                });
                Ok(Kind::Sign(sign))
            }
        }
    }

    fn number(&mut self) -> Result<Kind> {
        let pos = self.pos;
        let length = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let digits = &self.rest[..length];
        let mut tail = self.rest[length..].chars();
        let fraction = match tail.next() {
            Some('.') => tail.next().is_some_and(|c| c.is_ascii_digit()),
            Some(c) => c.is_ascii_alphanumeric() || c == '_',
            None => false,
        };
        if fraction {
            let end = |c: char| !c.is_ascii_alphanumeric() && !['.', '+', '-'].contains(&c);
            let length = self.rest.find(end).unwrap_or(self.rest.len());
            (0..length).for_each(|_| {
                self.next();
            });
            return Ok(Kind::OtherNumber("only integers in decimal notation are supported"));
        }
        if length > 1 && digits.starts_with('0') {
            return Err(Refusal::new(pos, "number", "a number does not start with 0"));
        }
        let value = digits.parse();
        (0..length).for_each(|_| {
            self.next();
        });
        Ok(value.map_or(Kind::OtherNumber("does not fit a signed 64-bit integer"), Kind::Int))
    }

    fn string(&mut self) -> Result<Kind> {
        let start = self.pos;
        self.next();
        let mut text = String::new();
        loop {
            let pos = self.pos;
            match self.next() {
                Some('"') => return Ok(Kind::Str(Rc::from(text))),
                Some('\\') => text.push(self.escape(pos)?),
                None | Some('\n') => return Err(Refusal::new(start, "string", "the closing \" is missing")),
                Some(c) if c < ' ' => {
                    return Err(Refusal::new(pos, "string", "control characters are written as \\u00XX"));
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, pos: Pos) -> Result<char> {
        Ok(match self.next() {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let high = self.hex4(pos)?;
                let code = if (0xd800..0xdc00).contains(&high) && self.rest.starts_with("\\u") {
                    self.next();
                    self.next();
                    let low = self.hex4(pos)?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(Refusal::new(pos, "string", "half of a surrogate pair"));
                    }
                    0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    high
                };
                char::from_u32(code).ok_or_else(|| Refusal::new(pos, "string", "half of a surrogate pair"))?
            }
            _ => {
                return Err(Refusal::new(
                    pos,
                    "string",
                    "unknown escape; known are \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX",
                ));
            }
        })
    }

    fn hex4(&mut self, pos: Pos) -> Result<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.next().and_then(|c| c.to_digit(16));
            code = code * 16
                + digit.ok_or_else(|| Refusal::new(pos, "string", "\\u takes four hexadecimal digits"))?;
        }
        Ok(code)
    }
}
