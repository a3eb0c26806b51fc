//! The resolved program: every name is a variable, a function, the input, the state or a constant.
//!
//! A rule without arguments is a function without parameters. Functions are numbered so that
//! each calls only lower numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use parma_guest::policy::instruction::{Builtin, Relation};

pub(crate) use super::ast::Collection;
use super::constant::Constant;
use super::error::Pos;

/// A variable of one [`Chain`].
pub(crate) type Variable = usize;
/// An index into [`Program::functions`].
pub(crate) type FunctionId = usize;

#[derive(Default)]
pub(crate) struct Program {
    pub functions: Vec<Rc<Function>>,
}

pub(crate) struct Function {
    /// As in `data.policy.create_container`.
    pub name: String,
    pub pos: Pos,
    pub parameters: usize,
    /// Written with parentheses, perhaps with nothing in them: it is called, not referred to.
    pub called: bool,
    pub kind: FunctionKind,
    /// The definitions; each may return, and a second, different value is a fault.
    pub chains: Vec<Chain>,
    /// The value if no definition returns.
    pub default: Option<Constant>,
    /// Neither input nor state has a part in it.
    pub pure: bool,
    /// There is a match against a pattern that is not in the source, here or in a callee.
    pub matches_computed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FunctionKind {
    Value,
    /// Definitions do not return but contribute members.
    Set,
}

/// One definition with its `else` branches: the first branch that succeeds gives the value.
#[derive(Clone)]
pub(crate) struct Chain {
    pub parameters: Vec<Node>,
    pub branches: Vec<Branch>,
    /// The number of variables in parameters and branches.
    pub variables: usize,
}

#[derive(Clone)]
pub(crate) struct Branch {
    pub body: Vec<Literal>,
    pub value: Node,
}

#[derive(Clone)]
pub(crate) struct Literal {
    pub pos: Pos,
    pub kind: LiteralKind,
}

#[derive(Clone)]
pub(crate) enum LiteralKind {
    Test(Node),
    /// Both sides are equal; either may be a pattern that binds variables.
    Unify(Node, Node),
    /// For each element of `collection` that the patterns fit.
    Some {
        key: Option<Node>,
        value: Node,
        collection: Node,
    },
    Every {
        key: Option<Variable>,
        value: Variable,
        domain: Node,
        body: Vec<Literal>,
        inner: Range<Variable>,
    },
    Not(Box<Literal>),
}

#[derive(Clone)]
pub(crate) struct Node {
    pub pos: Pos,
    pub expr: Expr,
}

#[derive(Clone)]
pub(crate) enum Expr {
    Constant(Constant),
    /// Known to have no value.
    Undefined(Cause),
    Variable(Variable),
    Input,
    State,
    Ref(Box<Node>, Vec<Node>),
    Call(FunctionId, Vec<Node>),
    Builtin(Builtin, Vec<Node>),
    Compare(Relation, Box<[Node; 2]>),
    Match {
        pattern: Box<Node>,
        text: Box<Node>,
        span: Span,
    },
    /// `regex.find_all_string_submatch_n`: pattern, text, limit.
    Submatches(Box<[Node; 3]>),
    /// Whether what a table says of a list accepts a text; undefined for a list that it does not have.
    Find {
        table: Rc<Index>,
        list: Box<Node>,
        text: Box<Node>,
    },
    Array(Vec<Node>),
    Set(Vec<Node>),
    Object(Vec<(Node, Node)>),
    Comprehension(Box<Comprehension>),
}

/// What texts each of some lists accepts.
pub(crate) type Index = BTreeMap<Constant, Accepted>;

/// Strings, and regular expressions that match whole strings.
pub(crate) struct Accepted {
    pub strings: BTreeSet<Constant>,
    pub patterns: BTreeSet<Rc<str>>,
}

/// What turned out to have no value. A `not` tells them apart: calls are evaluated outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Reference,
    Call,
}

/// How much of the text a pattern has to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Span {
    /// Some part, as `regex.match` does.
    Part,
    /// All of it: the pattern stands between `^(?:` and `)$`.
    Whole,
    /// Matches are looked for, with their groups.
    Find,
}

#[derive(Clone)]
pub(crate) struct Comprehension {
    pub kind: Collection,
    pub key: Option<Node>,
    pub value: Node,
    pub body: Vec<Literal>,
    /// The variables that exist only inside.
    pub inner: Range<Variable>,
}

impl Node {
    pub fn new(pos: Pos, expr: Expr) -> Node {
        Node { pos, expr }
    }

    pub fn constant(pos: Pos, value: Constant) -> Node {
        Node { pos, expr: Expr::Constant(value) }
    }

    /// A reference to what does not exist.
    pub fn undefined(pos: Pos) -> Node {
        Node { pos, expr: Expr::Undefined(Cause::Reference) }
    }

    /// A call without a value.
    pub fn undefined_call(pos: Pos) -> Node {
        Node { pos, expr: Expr::Undefined(Cause::Call) }
    }

    pub fn as_constant(&self) -> Option<&Constant> {
        match &self.expr {
            Expr::Constant(value) => Some(value),
            _ => None,
        }
    }

    /// The parts that are evaluated in the same scope (closures' bodies are not).
    pub fn children(&self) -> Vec<&Node> {
        match &self.expr {
            Expr::Constant(_)
            | Expr::Undefined(_)
            | Expr::Variable(_)
            | Expr::Input
            | Expr::State
            | Expr::Comprehension(_) => Vec::new(),
            Expr::Ref(base, path) => std::iter::once(&**base).chain(path).collect(),
            Expr::Call(_, items) | Expr::Builtin(_, items) | Expr::Array(items) | Expr::Set(items) => {
                items.iter().collect()
            }
            Expr::Compare(_, sides) => sides.iter().collect(),
            Expr::Match { pattern, text, .. } => vec![pattern, text],
            Expr::Submatches(parts) => parts.iter().collect(),
            Expr::Find { list, text, .. } => vec![list, text],
            Expr::Object(fields) => fields.iter().flat_map(|(key, value)| [key, value]).collect(),
        }
    }

    /// Calls `visit` for this node and every node in it, closures' included.
    pub fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Node)) {
        visit(self);
        for child in self.children() {
            child.walk(visit);
        }
        if let Expr::Comprehension(it) = &self.expr {
            it.body.iter().for_each(|literal| literal.walk(visit));
            it.key.iter().for_each(|key| key.walk(visit));
            it.value.walk(visit);
        }
    }
}

impl Literal {
    /// The nodes that are evaluated in the literal's own scope.
    pub fn nodes(&self) -> Vec<&Node> {
        match &self.kind {
            LiteralKind::Test(node) => vec![node],
            LiteralKind::Unify(left, right) => vec![left, right],
            LiteralKind::Some { key, value, collection } => key.iter().chain([value, collection]).collect(),
            LiteralKind::Every { domain, .. } => vec![domain],
            LiteralKind::Not(inner) => inner.nodes(),
        }
    }

    /// Calls `visit` for every node in the literal, closures' included.
    pub fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Node)) {
        for node in self.nodes() {
            node.walk(visit);
        }
        let mut kind = &self.kind;
        while let LiteralKind::Not(inner) = kind {
            kind = &inner.kind;
        }
        if let LiteralKind::Every { body, .. } = kind {
            body.iter().for_each(|literal| literal.walk(visit));
        }
    }
}

impl Function {
    /// The rule that this one is another name of: `mount_device := data.framework.mount_device`.
    pub fn alias(&self) -> Option<FunctionId> {
        let ([Chain { branches, .. }], None, 0) = (self.chains.as_slice(), &self.default, self.parameters)
        else {
            return None;
        };
        match branches.as_slice() {
            [Branch { body, value: Node { expr: Expr::Call(id, arguments), .. } }]
                if body.is_empty() && arguments.is_empty() && self.kind == FunctionKind::Value =>
            {
                Some(*id)
            }
            _ => None,
        }
    }

    /// Calls `visit` for every node of the function.
    pub fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Node)) {
        for chain in &self.chains {
            chain.parameters.iter().for_each(|node| node.walk(visit));
            for branch in &chain.branches {
                branch.body.iter().for_each(|literal| literal.walk(visit));
                branch.value.walk(visit);
            }
        }
    }
}
