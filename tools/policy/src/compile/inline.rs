//! Small rules become a part of the bodies that test them.
//!
//! A call costs more than most of what small rules ask, and what is constant where a rule is tested can be worked
//! out there. A literal that tests a rule with one definition, of which the result is a constant and the body has
//! neither a loop nor an `else`, is replaced by that body. It holds exactly when the rule does: an argument that is
//! undefined still makes it fail, since it is either evaluated first or read by the body.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use parma_guest::policy::instruction::Builtin;

use super::constant::Constant;
use super::emit::reached;
use super::evaluate::{self, Outcome};
use super::hir::{
    Branch, Chain, Comprehension, Expr, Function, FunctionId, FunctionKind, Literal, LiteralKind, Node,
    Program, Span, Variable,
};
use super::order::{Bound, flows, loops};

/// The most literals of a body that is put into more than one place.
const MAX_REPEATED: usize = 5;

/// Rewrites the functions that `roots` reach.
pub(crate) fn optimise(program: &mut Program, roots: &[FunctionId]) {
    let reached = reached(program, roots);
    let mut calls: HashMap<FunctionId, usize> = HashMap::new();
    for &id in &reached {
        program.functions[id].walk(&mut |node| {
            if let Expr::Call(callee, _) = node.expr {
                *calls.entry(callee).or_default() += 1;
            }
        });
    }
    // Callees come before their callers, so what is put in has had its own calls replaced.
    for id in reached {
        let function = program.functions[id].clone();
        let chains = function.chains.iter().map(|chain| {
            let mut inliner = Inliner { program, calls: &calls, variables: chain.variables };
            let branches = chain.branches.iter().map(|branch| Branch {
                body: inliner.body(&branch.body, true),
                value: inliner.closures(&branch.value),
            });
            let branches = branches.collect();
            Chain { parameters: chain.parameters.clone(), branches, variables: inliner.variables }
        });
        let chains = chains.collect();
        program.functions[id] = Rc::new(Function {
            name: function.name.clone(),
            pos: function.pos,
            parameters: function.parameters,
            called: function.called,
            kind: function.kind,
            chains,
            default: function.default.clone(),
            pure: function.pure,
            matches_computed: function.matches_computed,
        });
    }
}

/// Works on one definition.
struct Inliner<'p> {
    program: &'p Program,
    /// How often each function is called.
    calls: &'p HashMap<FunctionId, usize>,
    /// The definition's variables so far.
    variables: usize,
}

impl Inliner<'_> {
    /// A body with the rules that it tests put in. Only an `open` one can have more variables: those of closures
    /// are known by their numbers.
    fn body(&mut self, literals: &[Literal], open: bool) -> Vec<Literal> {
        let mut body = Vec::new();
        for (number, literal) in literals.iter().enumerate() {
            // Whether a text is a pattern need not be asked where it is matched afterwards: that fails, and faults, wherever
            // the question does.
            if let Some(pattern) = asked_to_be_a_pattern(literal)
                && literals[number + 1..].iter().any(|after| matches_all_of_a_text(after, pattern))
            {
                continue;
            }
            match self.tested(literal, open) {
                Some(literals) => body.extend(literals),
                None => body.push(self.literal(literal)),
            }
        }
        body
    }

    /// The same literal, with what closures in it test put in.
    fn literal(&mut self, literal: &Literal) -> Literal {
        let kind = match &literal.kind {
            LiteralKind::Test(node) => LiteralKind::Test(self.closures(node)),
            LiteralKind::Unify(left, right) => LiteralKind::Unify(self.closures(left), self.closures(right)),
            LiteralKind::Some { key, value, collection } => LiteralKind::Some {
                key: key.clone(),
                value: value.clone(),
                collection: self.closures(collection),
            },
            LiteralKind::Every { key, value, domain, body, inner } => LiteralKind::Every {
                key: *key,
                value: *value,
                domain: self.closures(domain),
                body: self.body(body, false),
                inner: inner.clone(),
            },
            // What a `not` evaluates ahead of itself depends on how it is written.
            LiteralKind::Not(_) => return literal.clone(),
        };
        Literal { pos: literal.pos, kind }
    }

    fn closures(&mut self, node: &Node) -> Node {
        let mut node = node.clone();
        if let Expr::Comprehension(it) = &mut node.expr {
            it.body = self.body(&it.body, false);
        }
        node
    }

    /// What a literal that tests a rule is replaced by.
    fn tested(&mut self, literal: &Literal, open: bool) -> Option<Vec<Literal>> {
        let LiteralKind::Test(Node { expr: Expr::Call(id, arguments), .. }) = &literal.kind else {
            return None;
        };
        let function = &*self.program.functions[*id];
        let ([chain], None, FunctionKind::Value) =
            (function.chains.as_slice(), &function.default, function.kind)
        else {
            return None;
        };
        let [branch] = chain.branches.as_slice() else { return None };
        let holds = branch.value.as_constant().is_some_and(|value| *value != Constant::Bool(false));
        let small = self.calls.get(id) == Some(&1) || branch.body.len() <= MAX_REPEATED;
        if !holds || !small || chain.parameters.len() != arguments.len() {
            return None;
        }
        let parameters: Option<Vec<Variable>> = chain
            .parameters
            .iter()
            .map(|parameter| match parameter.expr {
                Expr::Variable(variable) => Some(variable),
                _ => None,
            })
            .collect();
        let parameters = parameters?;
        // In the order in which it is written, and without a loop.
        let mut bound: Bound = vec![false; chain.variables];
        parameters.iter().for_each(|&parameter| bound[parameter] = true);
        for literal in &branch.body {
            if loops(literal, &bound) || !flows(literal, &mut bound) {
                return None;
            }
        }
        let used = mentioned(&branch.body);
        let own = used.iter().any(|variable| !parameters.contains(variable)) || closes(&branch.body);
        let mut renaming =
            Renaming { program: self.program, replaced: HashMap::new(), offset: self.variables };
        let mut literals = Vec::new();
        let mut new = own;
        for (&parameter, argument) in parameters.iter().zip(arguments) {
            let simple = match &argument.expr {
                Expr::Constant(_) | Expr::Variable(_) => true,
                Expr::Ref(base, path) => {
                    matches!(base.expr, Expr::Input)
                        && matches!(path.as_slice(), [Node { expr: Expr::Constant(_), .. }])
                        && used.contains(&parameter)
                }
                _ => false,
            };
            if simple {
                renaming.replaced.insert(parameter, argument.clone());
            } else {
                let variable = Node::new(argument.pos, Expr::Variable(parameter + self.variables));
                literals
                    .push(Literal { pos: literal.pos, kind: LiteralKind::Unify(variable, argument.clone()) });
                new = true;
            }
        }
        if new && !open {
            return None;
        }
        for literal in &branch.body {
            let literal = renaming.literal(literal);
            // What always holds asks nothing.
            match &literal.kind {
                LiteralKind::Test(node)
                    if node.as_constant().is_some_and(|value| *value != Constant::Bool(false)) => {}
                _ => literals.push(literal),
            }
        }
        if new {
            self.variables += chain.variables;
        }
        Some(literals)
    }
}

/// The variable of which a literal asks whether it is a pattern: `regex.match(pattern, "") in {true, false}`.
fn asked_to_be_a_pattern(literal: &Literal) -> Option<Variable> {
    let LiteralKind::Test(Node { expr: Expr::Builtin(Builtin::Member, parts), .. }) = &literal.kind else {
        return None;
    };
    let [Node { expr: Expr::Match { pattern, text, .. }, .. }, any] = parts.as_slice() else { return None };
    let Expr::Variable(pattern) = pattern.expr else { return None };
    let either = BTreeSet::from([Constant::Bool(false), Constant::Bool(true)]);
    let asks = text.as_constant() == Some(&Constant::string(""))
        && any.as_constant() == Some(&Constant::Set(Rc::new(either)));
    asks.then_some(pattern)
}

/// Whether a literal tests that the pattern that a variable is matches all of a text.
fn matches_all_of_a_text(literal: &Literal, wanted: Variable) -> bool {
    let LiteralKind::Test(Node { expr: Expr::Match { pattern, span: Span::Whole, .. }, .. }) = &literal.kind
    else {
        return false;
    };
    matches!(pattern.expr, Expr::Variable(pattern) if pattern == wanted)
}

/// The variables that some literals mention, in closures too.
fn mentioned(body: &[Literal]) -> BTreeSet<Variable> {
    let mut variables = BTreeSet::new();
    for literal in body {
        literal.walk(&mut |node| {
            if let Expr::Variable(variable) = node.expr {
                variables.insert(variable);
            }
        });
    }
    variables
}

/// Whether there are closures, which have variables of their own.
fn closes(body: &[Literal]) -> bool {
    let mut closes = false;
    for literal in body {
        let mut kind = &literal.kind;
        while let LiteralKind::Not(inner) = kind {
            kind = &inner.kind;
        }
        closes |= matches!(kind, LiteralKind::Every { .. });
        literal.walk(&mut |node| closes |= matches!(node.expr, Expr::Comprehension(_)));
    }
    closes
}

/// Puts a body's variables behind those of where it goes, and arguments in the place of its parameters.
struct Renaming<'p> {
    program: &'p Program,
    replaced: HashMap<Variable, Node>,
    offset: usize,
}

impl Renaming<'_> {
    fn literals(&self, body: &[Literal]) -> Vec<Literal> {
        body.iter().map(|literal| self.literal(literal)).collect()
    }

    fn literal(&self, literal: &Literal) -> Literal {
        let kind = match &literal.kind {
            LiteralKind::Test(node) => LiteralKind::Test(self.node(node)),
            LiteralKind::Unify(left, right) => LiteralKind::Unify(self.node(left), self.node(right)),
            LiteralKind::Some { key, value, collection } => LiteralKind::Some {
                key: key.as_ref().map(|key| self.node(key)),
                value: self.node(value),
                collection: self.node(collection),
            },
            LiteralKind::Every { key, value, domain, body, inner } => LiteralKind::Every {
                key: key.map(|key| key + self.offset),
                value: value + self.offset,
                domain: self.node(domain),
                body: self.literals(body),
                inner: inner.start + self.offset..inner.end + self.offset,
            },
            LiteralKind::Not(inner) => LiteralKind::Not(Box::new(self.literal(inner))),
        };
        Literal { pos: literal.pos, kind }
    }

    fn nodes(&self, nodes: &[Node]) -> Vec<Node> {
        nodes.iter().map(|node| self.node(node)).collect()
    }

    fn boxed(&self, node: &Node) -> Box<Node> {
        Box::new(self.node(node))
    }

    fn node(&self, node: &Node) -> Node {
        let expr = match &node.expr {
            Expr::Variable(variable) => {
                return match self.replaced.get(variable) {
                    Some(argument) => argument.clone(),
                    None => Node::new(node.pos, Expr::Variable(variable + self.offset)),
                };
            }
            Expr::Constant(_) | Expr::Undefined(_) | Expr::Input | Expr::State => return node.clone(),
            Expr::Ref(base, path) => Expr::Ref(self.boxed(base), self.nodes(path)),
            Expr::Call(id, arguments) => Expr::Call(*id, self.nodes(arguments)),
            Expr::Builtin(builtin, arguments) => Expr::Builtin(*builtin, self.nodes(arguments)),
            Expr::Compare(relation, sides) => {
                Expr::Compare(*relation, Box::new(sides.each_ref().map(|side| self.node(side))))
            }
            Expr::Match { pattern, text, span } => {
                Expr::Match { pattern: self.boxed(pattern), text: self.boxed(text), span: *span }
            }
            Expr::Submatches(parts) => {
                Expr::Submatches(Box::new(parts.each_ref().map(|part| self.node(part))))
            }
            Expr::Find { table, list, text } => {
                Expr::Find { table: table.clone(), list: self.boxed(list), text: self.boxed(text) }
            }
            Expr::Array(items) => Expr::Array(self.nodes(items)),
            Expr::Set(items) => Expr::Set(self.nodes(items)),
            Expr::Object(fields) => {
                Expr::Object(fields.iter().map(|(key, value)| (self.node(key), self.node(value))).collect())
            }
            Expr::Comprehension(it) => Expr::Comprehension(Box::new(Comprehension {
                kind: it.kind,
                key: it.key.as_ref().map(|key| self.node(key)),
                value: self.node(&it.value),
                body: self.literals(&it.body),
                inner: it.inner.start + self.offset..it.inner.end + self.offset,
            })),
        };
        self.folded(Node::new(node.pos, expr))
    }

    /// The node's value, if its parts are constants and it has one.
    fn folded(&self, node: Node) -> Node {
        let computes =
            matches!(node.expr, Expr::Ref(..) | Expr::Builtin(..) | Expr::Compare(..) | Expr::Match { .. });
        if !computes || !node.children().iter().all(|child| child.as_constant().is_some()) {
            return node;
        }
        match evaluate::node(self.program, &node) {
            Outcome::Value(value) => Node::constant(node.pos, value),
            _ => node,
        }
    }
}
