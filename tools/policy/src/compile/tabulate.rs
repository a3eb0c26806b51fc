//! Functions of the policy's data become tables.
//!
//! A function such as
//!
//! ```rego
//! required_rules(rules) := [rule | some rule in rules; rule.required]
//! ```
//!
//! depends on nothing but its argument, and what its argument can be is mostly known when the policy is
//! compiled: the lists in the policy. Its results are worked out here. An argument that is not in the table
//! takes the old way: what is found out here decides how fast an answer is, never what it is.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::constant::Constant;
use super::emit::reached;
use super::evaluate::{self, Outcome};
use super::hir::{
    Branch, Chain, Expr, Function, FunctionId, FunctionKind, Literal, LiteralKind, Node, Program,
};
use super::patterns;

/// Rewrites the functions that `roots` reach.
pub(crate) fn optimise(program: &mut Program, roots: &[FunctionId]) {
    let wanted: Vec<(FunctionId, usize)> = reached(program, roots)
        .into_iter()
        .filter(|&id| fits(&program.functions[id]))
        .map(|id| (id, 0))
        .collect();
    let arguments = patterns::arguments(program, roots, &wanted);
    for (&(id, _), values) in wanted.iter().zip(arguments) {
        let mut table = BTreeMap::new();
        for value in values.into_iter().flatten() {
            // What is undefined, `false` or a fault is found out at run time as before.
            match evaluate::call(program, id, std::slice::from_ref(&value)) {
                Outcome::Value(result) if result != Constant::Bool(false) => table.insert(value, result),
                _ => None,
            };
        }
        if !table.is_empty() {
            let function = tabulated(&program.functions[id], table);
            program.functions[id] = Rc::new(function);
        }
    }
}

/// The result of a function that has become a table, if that has it.
pub(crate) fn known<'f>(function: &'f Function, arguments: &[Constant]) -> Option<&'f Constant> {
    let ([chain], [argument]) = (function.chains.as_slice(), arguments) else { return None };
    let branch = chain.branches.first().filter(|branch| branch.body.is_empty())?;
    match &branch.value.expr {
        Expr::Ref(table, path) if path.len() == 1 && matches!(path[0].expr, Expr::Variable(0)) => {
            table.as_constant()?.get(argument)
        }
        _ => None,
    }
}

/// Whether a table is worth it: there is something to go through, in one definition of one parameter.
fn fits(function: &Function) -> bool {
    let [Chain { parameters, branches, .. }] = function.chains.as_slice() else { return false };
    let ([Node { expr: Expr::Variable(0), .. }], [branch]) = (parameters.as_slice(), branches.as_slice())
    else {
        return false;
    };
    let mut loops = branch
        .body
        .iter()
        .any(|literal| matches!(literal.kind, LiteralKind::Some { .. } | LiteralKind::Every { .. }));
    branch.value.walk(&mut |node| loops |= matches!(node.expr, Expr::Comprehension(_)));
    function.pure
        && function.kind == FunctionKind::Value
        && !function.matches_computed
        && function.default.is_none()
        && loops
}

fn tabulated(function: &Function, table: BTreeMap<Constant, Constant>) -> Function {
    let pos = function.pos;
    let chains = function.chains.iter().map(|chain| {
        let table = Node::constant(pos, Constant::Object(Rc::new(table.clone())));
        let entry = || Node::new(pos, Expr::Ref(Box::new(table.clone()), chain.parameters.clone()));
        let known = Branch { body: Vec::new(), value: entry() };
        let test = Box::new(Literal { pos, kind: LiteralKind::Test(entry()) });
        let unknown = Literal { pos, kind: LiteralKind::Not(test) };
        let computed = chain.branches.iter().map(|branch| Branch {
            body: std::iter::once(unknown.clone()).chain(branch.body.iter().cloned()).collect(),
            value: branch.value.clone(),
        });
        let branches = std::iter::once(known).chain(computed).collect();
        Chain { parameters: chain.parameters.clone(), branches, variables: chain.variables }
    });
    Function {
        name: function.name.clone(),
        pos,
        parameters: function.parameters,
        called: function.called,
        kind: function.kind,
        chains: chains.collect(),
        default: None,
        pure: true,
        matches_computed: false,
    }
}
