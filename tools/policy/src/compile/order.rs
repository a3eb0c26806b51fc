//! The order of evaluation: when a literal can run, and what it binds.
//!
//! A literal can run once every variable that it needs is bound. `flow` says so for an expression,
//! and marks what evaluating it binds; it goes through the parts in the order in which the emitter
//! does, so what it accepts the emitter can emit.

use std::collections::HashSet;

use super::hir::{Expr, Literal, LiteralKind, Node, Variable};

/// Which variables are bound.
pub(super) type Bound = Vec<bool>;

/// Whether a pattern has unbound variables that a value can be given to.
pub(super) fn binds(node: &Node, bound: &Bound) -> bool {
    match &node.expr {
        Expr::Variable(variable) => !bound[*variable],
        Expr::Array(items) => items.iter().any(|item| binds(item, bound)),
        Expr::Object(fields) => fields.iter().any(|(_, value)| binds(value, bound)),
        _ => false,
    }
}

/// Whether a value can be matched with the pattern; its variables are bound then.
pub(super) fn flow_bind(pattern: &Node, bound: &mut Bound) -> bool {
    if !binds(pattern, bound) {
        return flow(pattern, bound, false);
    }
    match &pattern.expr {
        Expr::Variable(variable) => {
            bound[*variable] = true;
            true
        }
        Expr::Array(items) => items.iter().all(|item| flow_bind(item, bound)),
        Expr::Object(fields) => {
            fields.iter().all(|(key, value)| flow(key, bound, false) && flow_bind(value, bound))
        }
        _ => false,
    }
}

/// Whether an expression can be evaluated. An unbound variable as an index is bound by a loop, if `may_bind`.
pub(super) fn flow(node: &Node, bound: &mut Bound, may_bind: bool) -> bool {
    match &node.expr {
        Expr::Variable(variable) => bound[*variable],
        Expr::Ref(base, path) => {
            flow(base, bound, may_bind)
                && path.iter().all(|part| match part.expr {
                    Expr::Variable(variable) if may_bind => {
                        bound[variable] = true;
                        true
                    }
                    _ => flow(part, bound, may_bind),
                })
        }
        Expr::Comprehension(it) => {
            let mut captured = true;
            node.walk(&mut |node| {
                if let Expr::Variable(variable) = node.expr {
                    captured &= it.inner.contains(&variable) || bound[variable];
                }
            });
            captured
        }
        Expr::Object(fields) => {
            fields.iter().all(|(key, value)| flow(key, bound, may_bind) && flow(value, bound, may_bind))
        }
        _ => {
            let children = node.children();
            let (variables, others): (Vec<&Node>, Vec<&Node>) =
                children.into_iter().partition(|child| matches!(child.expr, Expr::Variable(_)));
            others.into_iter().chain(variables).all(|child| flow(child, bound, may_bind))
        }
    }
}

/// Whether a literal can run.
pub(super) fn flows(literal: &Literal, bound: &mut Bound) -> bool {
    match &literal.kind {
        LiteralKind::Test(node) => flow(node, bound, true),
        LiteralKind::Unify(left, right) => {
            if binds(left, bound) {
                flow(right, bound, true) && flow_bind(left, bound)
            } else if binds(right, bound) {
                flow(left, bound, true) && flow_bind(right, bound)
            } else {
                // As the emitter does: a plain variable last.
                let plain = matches!(left.expr, Expr::Variable(_));
                let (first, second) = if plain { (right, left) } else { (left, right) };
                flow(first, bound, true) && flow(second, bound, true)
            }
        }
        LiteralKind::Some { key, value, collection } => {
            flow(collection, bound, true)
                && key.as_ref().is_none_or(|key| flow_bind(key, bound))
                && flow_bind(value, bound)
        }
        LiteralKind::Every { domain, key, value, body, inner } => {
            let own = |variable: Variable| {
                inner.contains(&variable) || variable == *value || *key == Some(variable)
            };
            let mut captured = true;
            for literal in body {
                literal.walk(&mut |node| {
                    if let Expr::Variable(variable) = node.expr {
                        captured &= own(variable) || bound[variable];
                    }
                });
            }
            captured && flow(domain, bound, true)
        }
        LiteralKind::Not(inner) => {
            let mut all = true;
            for node in inner.nodes() {
                all &= flow(node, bound, false);
            }
            if let LiteralKind::Every { .. } = inner.kind {
                all &= flows(inner, bound);
            }
            all
        }
    }
}

/// Whether evaluating the literal opens a loop.
pub(super) fn loops(literal: &Literal, bound: &Bound) -> bool {
    fn node_loops(node: &Node, bound: &Bound) -> bool {
        if let Expr::Ref(_, path) = &node.expr
            && path.iter().any(|part| matches!(part.expr, Expr::Variable(variable) if !bound[variable]))
        {
            return true;
        }
        node.children().into_iter().any(|child| node_loops(child, bound))
    }
    match &literal.kind {
        LiteralKind::Some { .. } => true,
        LiteralKind::Not(_) => false,
        _ => literal.nodes().into_iter().any(|node| node_loops(node, bound)),
    }
}

/// The variables that the literal mentions, in closures too.
pub(super) fn mentioned(literal: &Literal) -> HashSet<Variable> {
    let mut variables = HashSet::new();
    literal.walk(&mut |node| {
        if let Expr::Variable(variable) = node.expr {
            variables.insert(variable);
        }
    });
    variables
}
