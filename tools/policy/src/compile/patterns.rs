//! Which patterns a computed pattern can be.
//!
//! `regex.match(rule.pattern, text)` is asked with patterns that are somewhere in the policy's data.
//! Automata have to be made of all of them, so this finds, for such an expression, a set of strings
//! that contains every pattern it can have. It follows variables, parameters and builtins; a field
//! of something unknown is taken to be any value of a field of that name in the policy. Should a
//! pattern come up at run time that is not in the set, that is a fault, never a mismatch.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::constant::Constant;
use super::emit::reached;
use super::evaluate::{self, Outcome};
use super::hir::{Expr, FunctionId, Literal, LiteralKind, Node, Program, Span, Variable};

/// The most values that one expression may have, and steps of following where they come from.
const MAX_VALUES: usize = 20_000;
const MAX_STEPS: usize = 40;

/// How far into the state names are those of the state and not of the policy's data: the map, the entry.
const STATE_LEVELS: usize = 2;

/// What a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Language {
    pub span: Span,
    pub text: Rc<str>,
}

/// The possible patterns of each computed pattern, by the expression's address.
#[derive(Default)]
pub(crate) struct Computed {
    found: HashMap<*const Node, BTreeSet<Rc<str>>>,
}

impl Computed {
    /// The patterns that this expression can be; `None` if they cannot be told.
    pub fn of(&self, pattern: &Node) -> Option<BTreeSet<Rc<str>>> {
        self.found.get(&std::ptr::from_ref(pattern)).cloned()
    }
}

/// Where an expression stands, to know what its variables are.
type Place = (FunctionId, usize);

#[derive(Clone, Copy)]
enum Source<'p> {
    Is(&'p Node),
    ElementOf(&'p Node),
    KeyOf(&'p Node),
    Parameter(usize),
}

struct Search<'p> {
    program: &'p Program,
    bindings: HashMap<(Place, Variable), Vec<Source<'p>>>,
    calls: HashMap<FunctionId, Vec<(Place, &'p [Node])>>,
    constants: Vec<&'p Constant>,
    fields: RefCell<HashMap<Rc<str>, Rc<BTreeSet<Constant>>>>,
}

type Values = Option<BTreeSet<Constant>>;

/// Finds the patterns of all computed matches in the functions that `roots` reach.
pub(crate) fn computed(program: &Program, roots: &[FunctionId]) -> Computed {
    let mut search = Search {
        program,
        bindings: HashMap::new(),
        calls: HashMap::new(),
        constants: Vec::new(),
        fields: RefCell::default(),
    };
    let mut wanted: Vec<(Place, &Node)> = Vec::new();
    for id in reached(program, roots) {
        let function = &program.functions[id];
        search.constants.extend(&function.default);
        for (number, chain) in function.chains.iter().enumerate() {
            let place = (id, number);
            for (index, parameter) in chain.parameters.iter().enumerate() {
                if let Expr::Variable(variable) = parameter.expr {
                    search.bindings.entry((place, variable)).or_default().push(Source::Parameter(index));
                }
            }
            for branch in &chain.branches {
                branch.body.iter().for_each(|literal| search.literal(literal, place, &mut wanted));
                search.node(&branch.value, place, &mut wanted);
            }
        }
    }
    let mut found = HashMap::new();
    for (place, node) in wanted {
        if let Some(values) = search.values(node, place, 0) {
            let texts = values.into_iter().filter_map(|value| match value {
                Constant::Str(text) => Some(text),
                _ => None,
            });
            found.insert(std::ptr::from_ref(node), texts.collect());
        }
    }
    Computed { found }
}

impl<'p> Search<'p> {
    fn literal(&mut self, literal: &'p Literal, place: Place, wanted: &mut Vec<(Place, &'p Node)>) {
        match &literal.kind {
            LiteralKind::Unify(left, right) => {
                self.bind(left, Source::Is(right), place);
                self.bind(right, Source::Is(left), place);
            }
            LiteralKind::Some { key, value, collection } => {
                if let Some(key) = key {
                    self.bind(key, Source::KeyOf(collection), place);
                }
                self.bind(value, Source::ElementOf(collection), place);
            }
            LiteralKind::Every { key, value, domain, body, .. } => {
                if let Some(key) = key {
                    self.bindings.entry((place, *key)).or_default().push(Source::KeyOf(domain));
                }
                self.bindings.entry((place, *value)).or_default().push(Source::ElementOf(domain));
                body.iter().for_each(|literal| self.literal(literal, place, wanted));
            }
            LiteralKind::Not(inner) => return self.literal(inner, place, wanted),
            LiteralKind::Test(_) => {}
        }
        literal.nodes().into_iter().for_each(|node| self.node(node, place, wanted));
    }

    fn bind(&mut self, pattern: &'p Node, source: Source<'p>, place: Place) {
        match (&pattern.expr, source) {
            (Expr::Variable(variable), source) => {
                self.bindings.entry((place, *variable)).or_default().push(source);
            }
            (Expr::Array(items), Source::Is(whole)) => {
                items.iter().for_each(|item| self.bind(item, Source::ElementOf(whole), place));
            }
            (Expr::Object(fields), Source::Is(whole)) => {
                fields.iter().for_each(|(_, value)| self.bind(value, Source::ElementOf(whole), place));
            }
            (Expr::Array(_) | Expr::Object(_), _) => {
                // Parts of parts are not followed: the variables inside stay without a source.
            }
            _ => {}
        }
    }

    /// Notes calls, constants and matches in an expression.
    fn node(&mut self, node: &'p Node, place: Place, wanted: &mut Vec<(Place, &'p Node)>) {
        match &node.expr {
            Expr::Constant(value) => self.constants.push(value),
            Expr::Call(id, arguments) => self.calls.entry(*id).or_default().push((place, arguments)),
            Expr::Match { pattern, .. } if pattern.as_constant().is_none() => wanted.push((place, pattern)),
            Expr::Ref(base, path) => {
                // An unbound variable in a path takes the keys of what it indexes.
                if let [Node { expr: Expr::Variable(variable), .. }] = path.as_slice() {
                    self.bindings.entry((place, *variable)).or_default().push(Source::KeyOf(base));
                }
            }
            Expr::Comprehension(it) => {
                it.body.iter().for_each(|literal| self.literal(literal, place, wanted));
                it.key.iter().for_each(|key| self.node(key, place, wanted));
                self.node(&it.value, place, wanted);
            }
            _ => {}
        }
        node.children().into_iter().for_each(|child| self.node(child, place, wanted));
    }

    /// Every value that the expression can have, or `None`.
    fn values(&self, node: &'p Node, place: Place, steps: usize) -> Values {
        if steps == MAX_STEPS {
            return None;
        }
        let next = steps + 1;
        match &node.expr {
            Expr::Constant(value) => Some(BTreeSet::from([value.clone()])),
            Expr::Undefined(_) => Some(BTreeSet::new()),
            Expr::Variable(variable) => {
                let sources = self.bindings.get(&(place, *variable))?;
                self.union(sources.iter().map(|source| {
                    match source {
                        Source::Is(node) => self.values(node, place, next),
                        Source::ElementOf(node) => elements(self.values(node, place, next)?),
                        Source::KeyOf(node) => keys(self.values(node, place, next)?),
                        Source::Parameter(index) => self.union(
                            self.calls
                                .get(&place.0)?
                                .iter()
                                .map(|(place, arguments)| self.values(arguments.get(*index)?, *place, next)),
                        ),
                    }
                }))
            }
            Expr::Ref(base, path) => self.part(base, path, place, next),
            Expr::Call(id, _) => {
                let function = &self.program.functions[*id];
                let default = function.default.clone().map(|value| Some(BTreeSet::from([value])));
                let values = function.chains.iter().enumerate().flat_map(|(number, chain)| {
                    chain.branches.iter().map(move |branch| self.values(&branch.value, (*id, number), next))
                });
                let values: Vec<Values> = values.chain(default).collect();
                self.union(values.into_iter())
            }
            Expr::Builtin(builtin, arguments) => {
                let lists = self.combinations(arguments, place, next)?;
                let mut results = BTreeSet::new();
                for list in lists {
                    let arguments = list.into_iter().map(|value| Node::constant(node.pos, value)).collect();
                    let node = Node::new(node.pos, Expr::Builtin(*builtin, arguments));
                    match evaluate::node(self.program, &node) {
                        Outcome::Value(value) => results.insert(value),
                        Outcome::Undefined => continue,
                        Outcome::Unknown => return None,
                    };
                }
                Some(results)
            }
            Expr::Array(items) => {
                let lists = self.combinations(items, place, next)?;
                Some(lists.into_iter().map(|list| Constant::Array(Rc::new(list))).collect())
            }
            _ => None,
        }
    }

    fn part(&self, base: &'p Node, path: &'p [Node], place: Place, steps: usize) -> Values {
        let Some((last, front)) = path.split_last() else { return self.values(base, place, steps) };
        match base.expr {
            // What the host sends is never a pattern.
            Expr::Input => return None,
            // The state's maps, and what is in them, have no values before there are decisions.
            Expr::State if path.len() <= STATE_LEVELS => return None,
            _ => {}
        }
        if let Some(Constant::Str(field)) = last.as_constant() {
            let inside = self.part(base, front, place, steps);
            return match inside {
                Some(values) => {
                    let key = Constant::Str(field.clone());
                    Some(values.iter().filter_map(|value| value.get(&key).cloned()).collect())
                }
                None => Some((*self.field(field)).clone()),
            };
        }
        elements(self.part(base, front, place, steps)?)
    }

    fn union(&self, values: impl Iterator<Item = Values>) -> Values {
        let mut all = BTreeSet::new();
        for values in values {
            all.extend(values?);
            if all.len() > MAX_VALUES {
                return None;
            }
        }
        Some(all)
    }

    fn combinations(&self, nodes: &'p [Node], place: Place, steps: usize) -> Option<Vec<Vec<Constant>>> {
        let mut lists = vec![Vec::new()];
        for node in nodes {
            let values = self.values(node, place, steps)?;
            if lists.len().saturating_mul(values.len()) > MAX_VALUES {
                return None;
            }
            lists = lists
                .iter()
                .flat_map(|list: &Vec<Constant>| {
                    values.iter().map(move |value| list.iter().chain([value]).cloned().collect())
                })
                .collect();
        }
        Some(lists)
    }

    /// Every value under this key in any constant of the program.
    fn field(&self, name: &Rc<str>) -> Rc<BTreeSet<Constant>> {
        if let Some(values) = self.fields.borrow().get(name) {
            return values.clone();
        }
        fn collect(value: &Constant, key: &Constant, found: &mut BTreeSet<Constant>) {
            match value {
                Constant::Array(items) => items.iter().for_each(|item| collect(item, key, found)),
                Constant::Set(members) => members.iter().for_each(|member| collect(member, key, found)),
                Constant::Object(fields) => {
                    found.extend(fields.get(key).cloned());
                    fields.values().for_each(|field| collect(field, key, found));
                }
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        let key = Constant::Str(name.clone());
        self.constants.iter().for_each(|value| collect(value, &key, &mut found));
        let found = Rc::new(found);
        self.fields.borrow_mut().insert(name.clone(), found.clone());
        found
    }
}

fn elements(values: BTreeSet<Constant>) -> Values {
    let mut found = BTreeSet::new();
    for value in values {
        match value {
            Constant::Array(items) => found.extend(items.iter().cloned()),
            Constant::Set(members) => found.extend(members.iter().cloned()),
            Constant::Object(fields) => found.extend(fields.values().cloned()),
            _ => {}
        }
    }
    Some(found)
}

fn keys(values: BTreeSet<Constant>) -> Values {
    let mut found = BTreeSet::new();
    for value in values {
        match value {
            Constant::Object(fields) => found.extend(fields.keys().cloned()),
            Constant::Set(members) => found.extend(members.iter().cloned()),
            Constant::Array(items) => {
                let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
                found.extend((0..count).map(Constant::Int));
            }
            _ => {}
        }
    }
    Some(found)
}
