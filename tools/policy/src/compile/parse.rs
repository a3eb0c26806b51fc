//! Tokens to a syntax tree: Rego v1, and the older syntax without `if` and `contains`.
//!
//! Recursion is bounded by [`MAX_DEPTH`]; the text is only read from left to right, with one
//! token of lookahead beyond the current one.

use super::ast::{Branch, Collection, Import, Literal, LiteralKind, Module, Rule, RuleKind, Term, TermKind};
use super::constant::Constant;
use super::error::{Pos, Refusal, Result};
use super::lex::{self, Kind, Token};

/// How deeply terms, bodies and chains of operators may nest.
const MAX_DEPTH: usize = 100;
/// The longest source of one module, in bytes.
const MAX_SOURCE: usize = 16 << 20;

/// Names that are never variables. `if`, `contains` and `every` are keywords by their place only,
/// since `contains` is also a builtin and old policies may use the others as names.
const RESERVED: [&str; 12] =
    ["package", "import", "default", "else", "as", "some", "in", "with", "not", "true", "false", "null"];

/// Operators between terms, loosest first; each level associates to the left.
const LEVELS: [&[(&str, &str)]; 5] = [
    &[("==", "equal"), ("!=", "neq"), ("<", "lt"), ("<=", "lte"), (">", "gt"), (">=", "gte")],
    &[("|", "or")],
    &[("&", "and")],
    &[("+", "plus"), ("-", "minus")],
    &[("*", "mul"), ("/", "div"), ("%", "rem")],
];
/// The level of `|`, which inside brackets separates a comprehension's head from its body.
const OR_LEVEL: usize = 1;

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    /// `import rego.v1`: the older syntax is refused.
    strict: bool,
    /// `|` ends the term here.
    no_or: bool,
}

/// Parses one module. `file` is its index among the inputs, for error places.
pub(crate) fn module(text: &str, file: u32) -> Result<Module> {
    if text.len() > MAX_SOURCE {
        let pos = Pos { file, line: 1, column: 1 };
        return Err(Refusal::new(pos, "module", format!("longer than {MAX_SOURCE} bytes")));
    }
    let tokens = lex::tokens(text.strip_prefix('\u{feff}').unwrap_or(text), file)?;
    Parser { tokens: &tokens, at: 0, depth: 0, strict: false, no_or: false }.module()
}

impl Parser<'_> {
    // Tokens

    fn token(&self) -> &Token {
        // The last token is End and is never passed.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn after(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)]
    }

    fn pos(&self) -> Pos {
        self.token().pos
    }

    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.token().kind, Kind::Sign(s) if s == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.token().kind, Kind::Name(name) if &**name == word)
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        if found {
            self.advance();
        }
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.take(sign) { Ok(()) } else { Err(self.unexpected(&format!("`{sign}`"))) }
    }

    fn unexpected(&self, wanted: &str) -> Refusal {
        let found = match &self.token().kind {
            Kind::Name(name) => format!("`{name}`"),
            Kind::Int(value) => format!("`{value}`"),
            Kind::OtherNumber(_) => "a number".into(),
            Kind::Str(_) => "a string".into(),
            Kind::Sign(sign) => format!("`{sign}`"),
            Kind::End => "the end of the file".into(),
        };
        Refusal::new(self.pos(), "syntax", format!("found {found} where {wanted} is expected"))
    }

    fn name(&mut self, wanted: &str) -> Result<String> {
        match &self.token().kind {
            Kind::Name(name) if !RESERVED.contains(&&**name) => {
                let name = name.to_string();
                self.advance();
                Ok(name)
            }
            _ => Err(self.unexpected(wanted)),
        }
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(Refusal::new(self.pos(), "nesting", format!("deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    // Modules and rules

    fn module(&mut self) -> Result<Module> {
        if !self.take_word("package") {
            return Err(self.unexpected("`package`"));
        }
        let package = self.path()?;
        let mut imports = Vec::new();
        while self.is_word("import") {
            imports.extend(self.import()?);
        }
        let mut rules = Vec::new();
        while self.token().kind != Kind::End {
            if self.is_word("import") {
                imports.extend(self.import()?);
            } else {
                self.rule(&mut rules)?;
            }
        }
        Ok(Module { package, imports, rules })
    }

    /// `a.b["c"]`
    fn path(&mut self) -> Result<Vec<String>> {
        let mut path = vec![self.name("a name")?];
        while self.token().joined {
            if self.take(".") {
                path.push(self.field()?);
            } else if self.take("[") {
                let Kind::Str(part) = &self.token().kind else { return Err(self.unexpected("a string")) };
                path.push(part.to_string());
                self.advance();
                self.expect("]")?;
            } else {
                break;
            }
        }
        Ok(path)
    }

    /// The name after a dot, which may be a keyword.
    fn field(&mut self) -> Result<String> {
        match &self.token().kind {
            Kind::Name(name) => {
                let name = name.to_string();
                self.advance();
                Ok(name)
            }
            _ => Err(self.unexpected("a field's name")),
        }
    }

    fn import(&mut self) -> Result<Option<Import>> {
        self.advance();
        let pos = self.pos();
        let path = self.path()?;
        let alias = if self.take_word("as") { Some(self.name("the import's new name")?) } else { None };
        match path.first().map(String::as_str) {
            Some("rego" | "future") => {
                let known = match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    ["rego", "v1"] => {
                        self.strict = true;
                        true
                    }
                    ["future", "keywords"] => true,
                    ["future", "keywords", word] => ["in", "every", "if", "contains"].contains(&word),
                    _ => false,
                };
                if known && alias.is_none() {
                    return Ok(None);
                }
                Err(Refusal::new(pos, "import", format!("{} is not supported", path.join("."))))
            }
            Some("data" | "input") => {
                let name = alias.or_else(|| path.last().cloned()).unwrap_or_default();
                Ok(Some(Import { path, name, pos }))
            }
            _ => Err(Refusal::new(
                pos,
                "import",
                "only data, input, rego.v1 and future.keywords can be imported",
            )),
        }
    }

    fn rule(&mut self, rules: &mut Vec<Rule>) -> Result<()> {
        if !self.token().new_line {
            return Err(self.unexpected("a new line or `;` before the next rule"));
        }
        let pos = self.pos();
        if self.take_word("default") {
            let name = self.name("the rule's name")?;
            let parameters = self.parameters()?;
            if !self.take(":=") {
                self.expect("=")?;
            }
            let value = self.term()?;
            let branches = vec![Branch { value, body: Vec::new() }];
            rules.push(Rule { pos, name, parameters, kind: RuleKind::Default, branches });
            return Ok(());
        }
        let name = self.name("a rule")?;
        if self.token().joined && self.is(".") {
            return Err(Refusal::new(
                pos,
                "rule with a dotted name",
                "partial objects of rules are not supported",
            ));
        }
        let parameters = self.parameters()?;
        let mut kind = RuleKind::Complete;
        let mut value = None;
        if parameters.is_none() && self.token().joined && self.take("[") {
            let key = self.term()?;
            self.expect("]")?;
            if self.strict
                || self.is_word("if")
                || self.is(":=")
                || self.is("=")
                || (self.is("[") || self.is("."))
            {
                return Err(Refusal::new(
                    pos,
                    "partial object rule",
                    "not supported; a set is written `name contains value if { … }`",
                ));
            }
            kind = RuleKind::PartialSet;
            value = Some(key);
        } else if parameters.is_none() && self.take_word("contains") {
            kind = RuleKind::PartialSet;
            value = Some(self.term()?);
        } else if self.take(":=") || self.take("=") {
            value = Some(self.term()?);
        }
        let has_value = value.is_some();
        let value = value.unwrap_or_else(|| truth(pos));
        let has_body = self.is_word("if") || (self.is("{") && !self.strict);
        if !has_value && !has_body && parameters.is_none() {
            return Err(Refusal::new(pos, "rule", format!("{name} has neither a value nor a body")));
        }
        let old_style = self.is("{");
        let body = self.rule_body()?;
        let mut branches = vec![Branch { value, body }];
        while self.is_word("else") {
            let pos = self.pos();
            if kind == RuleKind::PartialSet {
                return Err(Refusal::new(pos, "else", "a rule that makes a set has no else"));
            }
            if branches.len() >= MAX_DEPTH {
                return Err(Refusal::new(pos, "else", format!("more than {MAX_DEPTH} in one chain")));
            }
            self.advance();
            let value = if self.take(":=") || self.take("=") { self.term()? } else { truth(pos) };
            let body = self.rule_body()?;
            branches.push(Branch { value, body });
        }
        // The older syntax lets more bodies follow the first: each is a definition of its own.
        let mut extra = 0;
        while old_style && branches.len() == 1 && self.is("{") && !self.strict {
            if has_value || parameters.is_some() || kind == RuleKind::PartialSet {
                return Err(Refusal::new(
                    self.pos(),
                    "chained bodies",
                    "write the rule's head before each body",
                ));
            }
            let body = self.rule_body()?;
            let branches = vec![Branch { value: truth(pos), body }];
            rules.push(Rule { pos, name: name.clone(), parameters: None, kind, branches });
            extra += 1;
        }
        let at = rules.len() - extra;
        rules.insert(at, Rule { pos, name, parameters, kind, branches });
        Ok(())
    }

    fn parameters(&mut self) -> Result<Option<Vec<Term>>> {
        if !self.token().joined || !self.take("(") {
            return Ok(None);
        }
        Ok(Some(self.list(")")?))
    }

    fn rule_body(&mut self) -> Result<Vec<Literal>> {
        if self.take_word("if") {
            if self.is("{") {
                return self.braced_body();
            }
            return Ok(vec![self.literal()?]);
        }
        if self.is("{") && !self.strict {
            return self.braced_body();
        }
        Ok(Vec::new())
    }

    // Bodies

    fn braced_body(&mut self) -> Result<Vec<Literal>> {
        self.expect("{")?;
        let no_or = std::mem::replace(&mut self.no_or, false);
        let body = self.body("}")?;
        self.no_or = no_or;
        self.expect("}")?;
        Ok(body)
    }

    /// Literals up to, and not including, `end`. There is at least one.
    fn body(&mut self, end: &str) -> Result<Vec<Literal>> {
        let mut literals = Vec::new();
        loop {
            while self.take(";") {}
            if self.is(end) && !literals.is_empty() {
                return Ok(literals);
            }
            literals.push(self.nested(Self::literal)?);
            if !self.is(end) && !self.is(";") && !self.token().new_line {
                return Err(self.unexpected(&format!("a new line, `;` or `{end}`")));
            }
        }
    }

    fn literal(&mut self) -> Result<Literal> {
        let pos = self.pos();
        let kind = if self.is_word("some") {
            self.advance();
            self.some()?
        } else if self.is_word("every") && matches!(self.after().kind, Kind::Name(_)) {
            self.advance();
            self.every()?
        } else if self.take_word("not") {
            LiteralKind::Not(Box::new(self.nested(|parser| {
                let inner = parser.literal()?;
                match inner.kind {
                    LiteralKind::Test(_) | LiteralKind::Unify(..) | LiteralKind::Every { .. } => Ok(inner),
                    _ => Err(Refusal::new(pos, "not", "stands before an expression or `every`")),
                }
            })?))
        } else {
            self.expression()?
        };
        if self.is_word("with") {
            return Err(Refusal::new(self.pos(), "with", "a policy cannot replace its input or data"));
        }
        Ok(Literal { pos, kind })
    }

    fn some(&mut self) -> Result<LiteralKind> {
        let pos = self.pos();
        let first = self.relation()?;
        let mut terms = vec![first];
        while self.take(",") {
            terms.push(self.relation()?);
        }
        if self.take_word("in") {
            let collection = self.relation()?;
            let mut terms = terms.into_iter();
            return match (terms.next(), terms.next(), terms.next()) {
                (Some(value), None, _) => Ok(LiteralKind::SomeIn { key: None, value, collection }),
                (Some(key), Some(value), None) => {
                    Ok(LiteralKind::SomeIn { key: Some(key), value, collection })
                }
                _ => Err(Refusal::new(pos, "some", "takes one or two terms before `in`")),
            };
        }
        let names = terms.into_iter().map(|term| match term.kind {
            TermKind::Name(name) => Ok((name, term.pos)),
            _ => Err(Refusal::new(term.pos, "some", "declares names only")),
        });
        Ok(LiteralKind::Declare(names.collect::<Result<_>>()?))
    }

    fn every(&mut self) -> Result<LiteralKind> {
        let first = self.name("a variable")?;
        let second = if self.take(",") { Some(self.name("a variable")?) } else { None };
        if !self.take_word("in") {
            return Err(self.unexpected("`in`"));
        }
        let domain = self.relation()?;
        let body = self.nested(Self::braced_body)?;
        let (key, value) = match second {
            Some(value) => (Some(first), value),
            None => (None, first),
        };
        Ok(LiteralKind::Every { key, value, domain, body })
    }

    fn expression(&mut self) -> Result<LiteralKind> {
        let left = self.term()?;
        if self.take(":=") {
            return Ok(LiteralKind::Assign(left, self.term()?));
        }
        if self.take("=") {
            return Ok(LiteralKind::Unify(left, self.term()?));
        }
        if self.is(",") && !self.no_or {
            // `k, v in xs` as a statement.
            let pos = self.pos();
            self.advance();
            let value = self.relation()?;
            if !self.take_word("in") {
                return Err(self.unexpected("`in`"));
            }
            let collection = self.relation()?;
            let kind =
                TermKind::Call(vec!["internal".into(), "member_3".into()], vec![left, value, collection]);
            return Ok(LiteralKind::Test(Term { pos, kind }));
        }
        Ok(LiteralKind::Test(left))
    }

    // Terms

    /// A term with operators, `in` among them.
    fn term(&mut self) -> Result<Term> {
        let mut left = self.relation()?;
        let mut links = 0;
        while self.is_word("in") {
            let pos = self.pos();
            self.chain(&mut links)?;
            self.advance();
            let right = self.relation()?;
            let name = vec!["internal".into(), "member_2".into()];
            left = Term { pos, kind: TermKind::Call(name, vec![left, right]) };
        }
        Ok(left)
    }

    fn relation(&mut self) -> Result<Term> {
        self.nested(|parser| parser.infix(0))
    }

    fn chain(&self, links: &mut usize) -> Result<()> {
        *links += 1;
        if *links > MAX_DEPTH {
            return Err(Refusal::new(
                self.pos(),
                "nesting",
                format!("more than {MAX_DEPTH} operators in a chain"),
            ));
        }
        Ok(())
    }

    fn infix(&mut self, level: usize) -> Result<Term> {
        let Some(operators) = LEVELS.get(level) else { return self.postfix() };
        let mut left = self.infix(level + 1)?;
        let mut links = 0;
        loop {
            let Kind::Sign(sign) = self.token().kind else { return Ok(left) };
            let Some((_, name)) = operators.iter().find(|(operator, _)| *operator == sign) else {
                return Ok(left);
            };
            if level == OR_LEVEL && self.no_or {
                return Ok(left);
            }
            let pos = self.pos();
            self.chain(&mut links)?;
            self.advance();
            let right = self.infix(level + 1)?;
            left = Term { pos, kind: TermKind::Call(vec![(*name).into()], vec![left, right]) };
        }
    }

    /// A primary term and the `.f`, `[i]` and `(…)` that follow it at once.
    fn postfix(&mut self) -> Result<Term> {
        let pos = self.pos();
        let mut base = self.primary()?;
        let mut path: Vec<Term> = Vec::new();
        while self.token().joined {
            if self.is(".") {
                self.advance();
                let pos = self.pos();
                path.push(Term { pos, kind: TermKind::Constant(Constant::string(&self.field()?)) });
            } else if self.is("[") {
                if !subscriptable(&base) {
                    break;
                }
                self.advance();
                let no_or = std::mem::replace(&mut self.no_or, false);
                path.push(self.nested(Self::term)?);
                self.no_or = no_or;
                self.expect("]")?;
            } else if self.is("(") {
                let Some(name) = dotted(&base, &path) else {
                    return Err(Refusal::new(pos, "call", "only a name can be called"));
                };
                self.advance();
                let arguments = self.nested(|parser| parser.list(")"))?;
                base = Term { pos, kind: TermKind::Call(name, arguments) };
                path.clear();
            } else {
                break;
            }
        }
        if path.is_empty() {
            return Ok(base);
        }
        Ok(Term { pos, kind: TermKind::Ref(Box::new(base), path) })
    }

    /// Terms separated by commas up to and including `end`; a comma may follow the last.
    fn list(&mut self, end: &str) -> Result<Vec<Term>> {
        let no_or = std::mem::replace(&mut self.no_or, false);
        let mut terms = Vec::new();
        while !self.take(end) {
            terms.push(self.nested(Self::term)?);
            if !self.take(",") {
                self.expect(end)?;
                break;
            }
        }
        self.no_or = no_or;
        Ok(terms)
    }

    fn primary(&mut self) -> Result<Term> {
        let pos = self.pos();
        let constant = |kind| Ok(Term { pos, kind: TermKind::Constant(kind) });
        match self.token().kind.clone() {
            Kind::Int(value) => {
                self.advance();
                constant(Constant::Int(value))
            }
            Kind::OtherNumber(why) => {
                self.advance();
                Ok(Term { pos, kind: TermKind::OtherNumber(why) })
            }
            Kind::Str(text) => {
                self.advance();
                constant(Constant::Str(text))
            }
            Kind::Sign("-") if self.after().joined => {
                self.advance();
                let Kind::Int(value) = self.token().kind else { return Err(self.unexpected("a number")) };
                self.advance();
                if value == 0 {
                    return Err(Refusal::new(pos, "number", "-0 is not an integer"));
                }
                constant(Constant::Int(-value))
            }
            Kind::Sign("(") => {
                self.advance();
                let no_or = std::mem::replace(&mut self.no_or, false);
                let term = self.nested(Self::term)?;
                self.no_or = no_or;
                self.expect(")")?;
                Ok(term)
            }
            Kind::Sign("[") => self.bracketed(pos),
            Kind::Sign("{") => self.braced(pos),
            Kind::Sign("$") => {
                Err(Refusal::new(pos, "template string", "not supported; use sprintf or concat"))
            }
            Kind::Name(name) => match &*name {
                "true" | "false" => {
                    self.advance();
                    constant(Constant::Bool(&*name == "true"))
                }
                "null" => {
                    self.advance();
                    constant(Constant::Null)
                }
                "set" if self.after().joined && self.after().kind == Kind::Sign("(") => {
                    self.advance();
                    self.advance();
                    self.expect(")")?;
                    Ok(Term { pos, kind: TermKind::Set(Vec::new()) })
                }
                _ => Ok(Term { pos, kind: TermKind::Name(self.name("a term")?) }),
            },
            Kind::Sign(_) | Kind::End => Err(self.unexpected("a term")),
        }
    }

    /// A term that may turn out to be the head of a comprehension.
    fn head(&mut self) -> Result<Term> {
        let no_or = std::mem::replace(&mut self.no_or, true);
        let term = self.nested(Self::term);
        self.no_or = no_or;
        term
    }

    fn comprehension(
        &mut self,
        pos: Pos,
        kind: Collection,
        key: Option<Term>,
        value: Term,
        end: &str,
    ) -> Result<Term> {
        self.expect("|")?;
        let no_or = std::mem::replace(&mut self.no_or, false);
        let body = self.nested(|parser| parser.body(end))?;
        self.no_or = no_or;
        self.expect(end)?;
        let (key, value) = (key.map(Box::new), Box::new(value));
        Ok(Term { pos, kind: TermKind::Comprehension { kind, key, value, body } })
    }

    fn bracketed(&mut self, pos: Pos) -> Result<Term> {
        self.advance();
        let mut items = Vec::new();
        while !self.take("]") {
            let item = self.head()?;
            if items.is_empty() && self.is("|") {
                return self.comprehension(pos, Collection::Array, None, item, "]");
            }
            items.push(item);
            if !self.take(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(Term { pos, kind: TermKind::Array(items) })
    }

    fn braced(&mut self, pos: Pos) -> Result<Term> {
        self.advance();
        if self.take("}") {
            return Ok(Term { pos, kind: TermKind::Object(Vec::new()) });
        }
        let first = self.head()?;
        if self.take(":") {
            let value = self.head()?;
            if self.is("|") {
                return self.comprehension(pos, Collection::Object, Some(first), value, "}");
            }
            let mut fields = vec![(first, value)];
            while !self.take("}") {
                self.expect(",")?;
                if self.take("}") {
                    break;
                }
                let key = self.head()?;
                self.expect(":")?;
                fields.push((key, self.head()?));
            }
            return Ok(Term { pos, kind: TermKind::Object(fields) });
        }
        if self.is("|") {
            return self.comprehension(pos, Collection::Set, None, first, "}");
        }
        let mut members = vec![first];
        while !self.take("}") {
            self.expect(",")?;
            if self.take("}") {
                break;
            }
            members.push(self.head()?);
        }
        Ok(Term { pos, kind: TermKind::Set(members) })
    }
}

fn truth(pos: Pos) -> Term {
    Term { pos, kind: TermKind::Constant(Constant::Bool(true)) }
}

fn subscriptable(base: &Term) -> bool {
    !matches!(base.kind, TermKind::Constant(_) | TermKind::OtherNumber(_))
}

/// The dotted name that a base and the fields after it spell, if they do.
fn dotted(base: &Term, path: &[Term]) -> Option<Vec<String>> {
    let TermKind::Name(first) = &base.kind else { return None };
    let mut name = vec![first.clone()];
    for part in path {
        let TermKind::Constant(Constant::Str(part)) = &part.kind else { return None };
        name.push(part.to_string());
    }
    Some(name)
}
