//! The syntax tree: what a module says, before any name is resolved.

use super::constant::Constant;
use super::error::Pos;

pub(crate) struct Module {
    pub package: Vec<String>,
    pub imports: Vec<Import>,
    pub rules: Vec<Rule>,
}

/// `import data.a.b as c` or `import input.x`. The keyword imports are dropped by the parser.
pub(crate) struct Import {
    pub path: Vec<String>,
    pub name: String,
    pub pos: Pos,
}

pub(crate) struct Rule {
    pub pos: Pos,
    pub name: String,
    /// The arguments' patterns; `None` for a rule that is not a function.
    pub parameters: Option<Vec<Term>>,
    pub kind: RuleKind,
    /// The rule's own body and value, then each `else`.
    pub branches: Vec<Branch>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleKind {
    /// `default r := v`
    Default,
    /// `r := v if { … }`
    Complete,
    /// `r contains v if { … }`
    PartialSet,
}

pub(crate) struct Branch {
    pub value: Term,
    pub body: Vec<Literal>,
}

pub(crate) struct Literal {
    pub pos: Pos,
    pub kind: LiteralKind,
}

pub(crate) enum LiteralKind {
    /// `some x, y`
    Declare(Vec<(String, Pos)>),
    /// `some k, v in xs`
    SomeIn {
        key: Option<Term>,
        value: Term,
        collection: Term,
    },
    /// `every k, v in xs { … }`
    Every {
        key: Option<String>,
        value: String,
        domain: Term,
        body: Vec<Literal>,
    },
    Not(Box<Literal>),
    Test(Term),
    /// `x := e`
    Assign(Term, Term),
    /// `a = b`
    Unify(Term, Term),
}

pub(crate) struct Term {
    pub pos: Pos,
    pub kind: TermKind,
}

pub(crate) enum TermKind {
    Constant(Constant),
    /// A number that is not supported, and why.
    OtherNumber(&'static str),
    /// A variable, a rule, an import; `_` is a fresh variable each time.
    Name(String),
    /// `base[i][j]…`; `.f` is `["f"]`.
    Ref(Box<Term>, Vec<Term>),
    /// A call by dotted name.
    Call(Vec<String>, Vec<Term>),
    Array(Vec<Term>),
    Set(Vec<Term>),
    Object(Vec<(Term, Term)>),
    Comprehension {
        kind: Collection,
        key: Option<Box<Term>>,
        value: Box<Term>,
        body: Vec<Literal>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collection {
    Array,
    Set,
    Object,
}
