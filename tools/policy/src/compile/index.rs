//! Searches through lists of the policy become look-ups.
//!
//! A function such as
//!
//! ```rego
//! allowed(rules, text) if { some rule in rules; matches(rule, text) }
//! ```
//!
//! costs a call for each rule. Which lists of rules there are is known when the policy is compiled, and
//! so is, for most rules, what texts they match: one string, or those of a regular expression. The function
//! gets a table from each known list to the set of its strings and its patterns, and one to the rules that are
//! neither. A list that is not in the table takes the old way:
//! what is found out here decides how fast an answer is, never what it is.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use parma_guest::policy::instruction::{Builtin, Relation};

use super::automata::Automata;
use super::constant::Constant;
use super::emit::reached;
use super::hir::{
    Accepted, Branch, Chain, Expr, Function, FunctionId, FunctionKind, Index, Literal, LiteralKind, Node,
    Program, Span, Variable,
};
use super::patterns::{self, Language};
use super::regex;

/// Lists with fewer elements that can be looked up are searched.
const MIN_INDEXED: usize = 2;
/// Calls inside each other that are followed.
const MAX_DEPTH: usize = 16;

/// Rewrites the functions that `roots` reach.
pub(crate) fn optimise(program: &mut Program, roots: &[FunctionId], automata: &Automata) {
    let searches: Vec<(FunctionId, Search)> = reached(program, roots)
        .into_iter()
        .filter_map(|id| Some((id, Search::of(&program.functions[id])?)))
        .collect();
    let wanted: Vec<(FunctionId, usize)> = searches.iter().map(|(id, search)| (*id, search.list)).collect();
    let lists = patterns::arguments(program, roots, &wanted);
    let mut rewritten = Vec::new();
    {
        let classifier = Classifier { program, automata, known: RefCell::default() };
        for ((id, search), lists) in searches.iter().zip(lists) {
            let function = &*program.functions[*id];
            if let Some(chain) = lists.and_then(|lists| search.indexed(function, &lists, &classifier)) {
                rewritten.push((*id, chain));
            }
        }
    }
    let tables: HashMap<FunctionId, Searched> = rewritten
        .iter()
        .filter_map(|(id, chain)| {
            Some((*id, Searched::of(chain, &searches.iter().find(|(of, _)| of == id)?.1)?))
        })
        .collect();
    for (id, chain) in rewritten {
        replace(program, id, chain);
    }
    for id in reached(program, roots) {
        if let Some(chain) = all_searched(&program.functions[id], &tables) {
            replace(program, id, chain);
        }
    }
}

/// Gives a function another definition.
fn replace(program: &mut Program, id: FunctionId, chain: Chain) {
    let old = &program.functions[id];
    program.functions[id] = Rc::new(Function {
        name: old.name.clone(),
        pos: old.pos,
        parameters: old.parameters,
        called: old.called,
        kind: old.kind,
        chains: vec![chain],
        default: None,
        pure: old.pure,
        matches_computed: old.matches_computed,
    });
}

/// A function that has become a look-up, if its list is in the table.
struct Searched {
    table: Rc<Index>,
    /// The parameters' positions.
    list: usize,
    text: usize,
    parameters: usize,
}

impl Searched {
    fn of(chain: &Chain, search: &Search) -> Option<Searched> {
        let [Literal { kind: LiteralKind::Test(test), .. }] = chain.branches.first()?.body.as_slice() else {
            return None;
        };
        let Expr::Find { table, .. } = &test.expr else { return None };
        let text = chain.parameters.iter().position(|it| variable(it) == Some(search.text_variable))?;
        Some(Searched { table: table.clone(), list: search.list, text, parameters: chain.parameters.len() })
    }
}

/// A function that asks one question of every element, such as
///
/// ```rego
/// all_allowed(rules, texts) if { every text in texts { allowed(rules, text) } }
/// ```
///
/// looks them all up first. Only if one is not found that way, each is asked for.
fn all_searched(function: &Function, tables: &HashMap<FunctionId, Searched>) -> Option<Chain> {
    let [chain] = function.chains.as_slice() else { return None };
    let [branch] = chain.branches.as_slice() else { return None };
    let [Literal { kind: LiteralKind::Every { key: None, value, domain, body, inner }, pos }] =
        branch.body.as_slice()
    else {
        return None;
    };
    let [Literal { kind: LiteralKind::Test(Node { expr: Expr::Call(id, arguments), .. }), .. }] =
        body.as_slice()
    else {
        return None;
    };
    let searched = tables.get(id)?;
    let one_value = branch.value.as_constant().is_some_and(|value| *value != Constant::Bool(false));
    let simple = function.kind == FunctionKind::Value && function.default.is_none() && one_value;
    let list = variable(arguments.get(searched.list)?)?;
    let asks = arguments.len() == searched.parameters
        && searched.parameters == 2
        && list != *value
        && variable(arguments.get(searched.text)?) == Some(*value);
    if !simple || !asks || variable(domain).is_none() {
        return None;
    }
    let node = |variable| Box::new(Node::new(*pos, Expr::Variable(variable)));
    let found = Expr::Find { table: searched.table.clone(), list: node(list), text: node(*value) };
    let found = Literal { pos: *pos, kind: LiteralKind::Test(Node::new(*pos, found)) };
    let every = LiteralKind::Every {
        key: None,
        value: *value,
        domain: domain.clone(),
        body: vec![found],
        inner: inner.clone(),
    };
    let first = Branch { body: vec![Literal { pos: *pos, kind: every }], value: branch.value.clone() };
    let branches = vec![first, branch.clone()];
    Some(Chain { parameters: chain.parameters.clone(), branches, variables: chain.variables })
}

/// What is known of a value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Is(Constant),
    /// It is what is asked about.
    Text,
    Undefined,
    /// Nothing.
    Open,
}

/// What texts something accepts.
#[derive(Clone)]
enum Accepts {
    Nothing,
    /// Everything, be it a string or not.
    Everything,
    These(BTreeSet<Atom>),
    /// It has to be tried.
    Open,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    String(Rc<str>),
    /// What this regular expression matches, which has a place in a shared automaton.
    Pattern(Rc<str>),
}

type Environment = HashMap<Variable, Known>;

/// A function that searches a list for an element that accepts a text.
struct Search {
    /// The parameters' positions and variables.
    list: usize,
    list_variable: Variable,
    text_variable: Variable,
    element: Variable,
    /// The literal of the body that goes through the list.
    scan: usize,
}

impl Search {
    fn of(function: &Function) -> Option<Search> {
        let [chain] = function.chains.as_slice() else { return None };
        let [branch] = chain.branches.as_slice() else { return None };
        let simple = function.kind == FunctionKind::Value && function.default.is_none();
        let result = branch.value.as_constant()?;
        if !simple || *result == Constant::Bool(false) {
            return None;
        }
        let mut scans = branch.body.iter().enumerate().filter_map(|(at, literal)| match &literal.kind {
            LiteralKind::Some { key: None, value, collection } => {
                Some((at, variable(value)?, variable(collection)?))
            }
            _ => None,
        });
        let (scan, element, list_variable) = scans.next()?;
        let parameters: Vec<Option<Variable>> = chain.parameters.iter().map(variable).collect();
        let list = parameters.iter().position(|&parameter| parameter == Some(list_variable))?;
        // Of the other parameters the rest of the body has exactly one, and of variables only what it binds.
        let mut others = BTreeSet::new();
        for (at, literal) in branch.body.iter().enumerate() {
            if at != scan {
                literal.walk(&mut |node| others.extend(variable(node)));
            }
        }
        let mut texts = others.iter().filter(|&&other| parameters.contains(&Some(other)));
        let text_variable = *texts.next()?;
        let alone = texts.next().is_none() && text_variable != list_variable;
        (alone && others.contains(&element)).then_some(Search {
            list,
            list_variable,
            text_variable,
            element,
            scan,
        })
    }

    /// The function with a table of these lists, if that helps.
    fn indexed(
        &self,
        function: &Function,
        lists: &BTreeSet<Constant>,
        classifier: &Classifier<'_>,
    ) -> Option<Chain> {
        let [chain] = function.chains.as_slice() else { return None };
        let [branch] = chain.branches.as_slice() else { return None };
        let rest: Vec<&Literal> = branch
            .body
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != self.scan)
            .map(|(_, literal)| literal)
            .collect();
        // What is looked for in a list, by the list, and the elements of the list that have to be tried.
        let (mut table, mut all_left) = (Index::new(), BTreeMap::new());
        let mut any_left = false;
        for list in lists {
            let elements: Vec<&Constant> = match list {
                Constant::Array(items) => items.iter().collect(),
                Constant::Set(members) => members.iter().collect(),
                _ => continue,
            };
            let (mut strings, mut patterns, mut left) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
            for element in elements {
                let environment = Environment::from([
                    (self.element, Known::Is(element.clone())),
                    (self.text_variable, Known::Text),
                ]);
                match classifier.body(&rest, environment, 0) {
                    Accepts::Nothing => {}
                    Accepts::These(atoms) => {
                        for atom in atoms {
                            match atom {
                                Atom::String(text) => drop(strings.insert(Constant::Str(text))),
                                Atom::Pattern(text) => drop(patterns.insert(text)),
                            }
                        }
                    }
                    Accepts::Everything | Accepts::Open => left.push(element.clone()),
                }
            }
            if strings.len() + patterns.len() < MIN_INDEXED {
                continue;
            }
            any_left |= !left.is_empty();
            all_left.insert(list.clone(), Constant::Array(Rc::new(left)));
            table.insert(list.clone(), Accepted { strings, patterns });
        }
        if table.is_empty() {
            return None;
        }

        let pos = function.pos;
        let node = |expr| Node::new(pos, expr);
        let variable = |variable| Box::new(node(Expr::Variable(variable)));
        let literal = |kind| Literal { pos, kind };
        let done = |body| Branch { body, value: branch.value.clone() };
        let (list, text) = (variable(self.list_variable), variable(self.text_variable));
        let found = node(Expr::Find { table: Rc::new(table), list: list.clone(), text });
        let mut branches = vec![done(vec![literal(LiteralKind::Test(found))])];
        // Where a list is known, what has to be tried of it is, be it nothing.
        let left = Node::constant(pos, Constant::Object(Rc::new(all_left)));
        let left = node(Expr::Ref(Box::new(left), vec![*list]));
        let searched = |collection: Node| {
            let mut body = branch.body.clone();
            if let LiteralKind::Some { collection: old, .. } = &mut body[self.scan].kind {
                *old = collection;
            }
            body
        };
        if any_left {
            branches.push(done(searched(left.clone())));
        }
        let unknown = literal(LiteralKind::Test(left));
        let mut body = vec![literal(LiteralKind::Not(Box::new(unknown)))];
        body.extend(branch.body.clone());
        branches.push(done(body));
        Some(Chain { parameters: chain.parameters.clone(), branches, variables: chain.variables })
    }
}

fn variable(node: &Node) -> Option<Variable> {
    match node.expr {
        Expr::Variable(variable) => Some(variable),
        _ => None,
    }
}

/// Works out what texts are accepted.
struct Classifier<'p> {
    program: &'p Program,
    automata: &'p Automata,
    known: RefCell<BTreeMap<(FunctionId, Vec<Known>), Accepts>>,
}

impl Classifier<'_> {
    /// When these literals all hold.
    fn body(&self, literals: &[&Literal], mut environment: Environment, depth: usize) -> Accepts {
        if depth > MAX_DEPTH {
            return Accepts::Open;
        }
        let mut accepted: Option<BTreeSet<Atom>> = None;
        let mut open = false;
        for (at, literal) in literals.iter().enumerate() {
            let condition = match &literal.kind {
                LiteralKind::Test(node) => self.test(node, &environment, depth),
                LiteralKind::Unify(left, right) => match (variable(left), variable(right)) {
                    (Some(new), _) if !environment.contains_key(&new) => {
                        let value = self.value(right, &environment);
                        bind(&mut environment, new, value)
                    }
                    (_, Some(new)) if !environment.contains_key(&new) => {
                        let value = self.value(left, &environment);
                        bind(&mut environment, new, value)
                    }
                    _ => Accepts::Open,
                },
                LiteralKind::Some { key: None, value, collection } => {
                    let elements: Vec<Constant> = match self.value(collection, &environment) {
                        Known::Is(Constant::Array(items)) => items.iter().cloned().collect(),
                        Known::Is(Constant::Set(members)) => members.iter().cloned().collect(),
                        Known::Undefined => return Accepts::Nothing,
                        _ => return Accepts::Open,
                    };
                    let Some(new) = variable(value).filter(|new| !environment.contains_key(new)) else {
                        return Accepts::Open;
                    };
                    if open || accepted.is_some() {
                        return Accepts::Open;
                    }
                    let each = elements.into_iter().map(|element| {
                        let mut inner = environment.clone();
                        inner.insert(new, Known::Is(element));
                        self.body(&literals[at + 1..], inner, depth + 1)
                    });
                    return any(each);
                }
                _ => Accepts::Open,
            };
            match condition {
                // Whatever the others are, these literals never hold together.
                Accepts::Nothing => return Accepts::Nothing,
                Accepts::Everything => {}
                Accepts::Open => open = true,
                Accepts::These(atoms) => match &accepted {
                    None => accepted = Some(atoms),
                    Some(before) if *before == atoms => {}
                    Some(_) => open = true,
                },
            }
        }
        match accepted {
            _ if open => Accepts::Open,
            Some(atoms) => Accepts::These(atoms),
            None => Accepts::Everything,
        }
    }

    /// When a test holds.
    fn test(&self, node: &Node, environment: &Environment, depth: usize) -> Accepts {
        match &node.expr {
            Expr::Call(id, arguments) => {
                let arguments: Vec<Known> =
                    arguments.iter().map(|argument| self.value(argument, environment)).collect();
                self.call(*id, arguments, depth)
            }
            Expr::Compare(Relation::Equal, sides) => {
                let [left, right] = sides.each_ref().map(|side| self.value(side, environment));
                match (left, right) {
                    (Known::Undefined, _) | (_, Known::Undefined) => Accepts::Nothing,
                    (Known::Is(left), Known::Is(right)) => truth(left == right),
                    (Known::Text, Known::Is(Constant::Str(text)))
                    | (Known::Is(Constant::Str(text)), Known::Text) => {
                        Accepts::These(BTreeSet::from([Atom::String(text)]))
                    }
                    _ => Accepts::Open,
                }
            }
            Expr::Match { pattern, text, span } => {
                let pattern = self.value(pattern, environment);
                match (pattern, self.value(text, environment)) {
                    (Known::Undefined, _) | (_, Known::Undefined) => Accepts::Nothing,
                    (Known::Is(Constant::Str(pattern)), Known::Text) => self.language(pattern, *span),
                    _ => match self.value(node, environment) {
                        Known::Is(value) => truth(value != Constant::Bool(false)),
                        Known::Undefined => Accepts::Nothing,
                        _ => Accepts::Open,
                    },
                }
            }
            _ => match self.value(node, environment) {
                Known::Is(value) => truth(value != Constant::Bool(false)),
                Known::Undefined => Accepts::Nothing,
                Known::Text | Known::Open => Accepts::Open,
            },
        }
    }

    fn language(&self, text: Rc<str>, span: Span) -> Accepts {
        if !regex::is_valid(&text) {
            return Accepts::Open;
        }
        if span == Span::Whole && regex::is_literal(&text) {
            return Accepts::These(BTreeSet::from([Atom::String(text)]));
        }
        let language = Language { span, text };
        match self.automata.place(&language) {
            Some(_) if span == Span::Whole => Accepts::These(BTreeSet::from([Atom::Pattern(language.text)])),
            _ => Accepts::Open,
        }
    }

    /// When a function of which every result passes a test has one.
    fn call(&self, id: FunctionId, arguments: Vec<Known>, depth: usize) -> Accepts {
        if arguments.contains(&Known::Undefined) {
            return Accepts::Nothing;
        }
        let key = (id, arguments);
        if let Some(accepts) = self.known.borrow().get(&key) {
            return accepts.clone();
        }
        let function = &self.program.functions[id];
        let mut values =
            function.chains.iter().flat_map(|chain| &chain.branches).map(|branch| branch.value.as_constant());
        // Two different values would be a fault, not an answer.
        let one = match values.next() {
            Some(Some(first)) => *first != Constant::Bool(false) && values.all(|value| value == Some(first)),
            _ => false,
        };
        let simple = function.kind == FunctionKind::Value && function.default.is_none() && one;
        let accepts = if simple {
            any(function.chains.iter().map(|chain| self.chain(chain, &key.1, depth)))
        } else {
            Accepts::Open
        };
        self.known.borrow_mut().insert(key, accepts.clone());
        accepts
    }

    fn chain(&self, chain: &Chain, arguments: &[Known], depth: usize) -> Accepts {
        let mut environment = Environment::new();
        let mut accepted = None;
        let mut open = chain.parameters.len() != arguments.len();
        for (parameter, argument) in chain.parameters.iter().zip(arguments) {
            match (&parameter.expr, argument) {
                (Expr::Variable(new), _) => {
                    environment.insert(*new, argument.clone());
                }
                (Expr::Constant(wanted), Known::Is(value)) if wanted == value => {}
                (Expr::Constant(_), Known::Is(_)) => return Accepts::Nothing,
                (Expr::Constant(Constant::Str(text)), Known::Text) => accepted = Some(text.clone()),
                _ => open = true,
            }
        }
        let body = any(chain.branches.iter().map(|branch| {
            let literals: Vec<&Literal> = branch.body.iter().collect();
            self.body(&literals, environment.clone(), depth + 1)
        }));
        match (accepted, body) {
            (_, Accepts::Nothing) => Accepts::Nothing,
            _ if open => Accepts::Open,
            (None, body) => body,
            (Some(text), Accepts::Everything) => Accepts::These(BTreeSet::from([Atom::String(text)])),
            (Some(_), _) => Accepts::Open,
        }
    }

    fn value(&self, node: &Node, environment: &Environment) -> Known {
        match &node.expr {
            Expr::Constant(value) => Known::Is(value.clone()),
            Expr::Undefined(_) => Known::Undefined,
            Expr::Variable(variable) => environment.get(variable).cloned().unwrap_or(Known::Open),
            Expr::Ref(base, path) => {
                let mut value = self.value(base, environment);
                for part in path {
                    value = match (value, self.value(part, environment)) {
                        (Known::Undefined, _) => return Known::Undefined,
                        (Known::Is(value), Known::Is(key)) => match value.get(&key) {
                            Some(value) => Known::Is(value.clone()),
                            None => return Known::Undefined,
                        },
                        _ => Known::Open,
                    };
                }
                value
            }
            Expr::Match { pattern, text, span } => {
                match (self.value(pattern, environment), self.value(text, environment)) {
                    (Known::Undefined, _) | (_, Known::Undefined) => Known::Undefined,
                    (Known::Is(Constant::Str(pattern)), Known::Is(Constant::Str(text))) => {
                        match regex::matches(&pattern, *span, &text) {
                            Ok(matches) => Known::Is(Constant::Bool(matches)),
                            Err(regex::Refused::Invalid(_)) => Known::Undefined,
                            Err(regex::Refused::Unsupported(_)) => Known::Open,
                        }
                    }
                    _ => Known::Open,
                }
            }
            Expr::Compare(Relation::Equal, sides) => {
                match sides.each_ref().map(|side| self.value(side, environment)) {
                    [Known::Undefined, _] | [_, Known::Undefined] => Known::Undefined,
                    [Known::Is(left), Known::Is(right)] => Known::Is(Constant::Bool(left == right)),
                    _ => Known::Open,
                }
            }
            Expr::Builtin(Builtin::Member, arguments) => {
                let values: Vec<Known> =
                    arguments.iter().map(|argument| self.value(argument, environment)).collect();
                match values.as_slice() {
                    _ if values.contains(&Known::Undefined) => Known::Undefined,
                    [Known::Is(value), Known::Is(Constant::Set(members))] => {
                        Known::Is(Constant::Bool(members.contains(value)))
                    }
                    _ => Known::Open,
                }
            }
            Expr::Builtin(_, arguments) => {
                let undefined = |argument| self.value(argument, environment) == Known::Undefined;
                if arguments.iter().any(undefined) { Known::Undefined } else { Known::Open }
            }
            _ => Known::Open,
        }
    }
}

fn bind(environment: &mut Environment, new: Variable, value: Known) -> Accepts {
    let open = value == Known::Open;
    if value == Known::Undefined {
        return Accepts::Nothing;
    }
    environment.insert(new, value);
    // Whether it has a value is part of whether the literal holds.
    if open { Accepts::Open } else { Accepts::Everything }
}

fn truth(holds: bool) -> Accepts {
    if holds { Accepts::Everything } else { Accepts::Nothing }
}

/// When one of several does.
fn any(each: impl Iterator<Item = Accepts>) -> Accepts {
    let mut all = BTreeSet::new();
    for accepts in each {
        match accepts {
            Accepts::Nothing => {}
            Accepts::These(atoms) => all.extend(atoms),
            other => return other,
        }
    }
    if all.is_empty() { Accepts::Nothing } else { Accepts::These(all) }
}
