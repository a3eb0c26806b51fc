//! Which patterns a computed pattern can be.
//!
//! `regex.match(rule.pattern, text)` is asked with patterns that are somewhere in the policy's data.
//! Automata have to be made of all of them, so this finds, for such an expression, a set of strings
//! that contains every pattern it can have. It follows variables, parameters and builtins; a field
//! of something unknown is taken to be any value of a field of that name in the policy. It heeds what
//! was checked before, so that `rule.strategy == "re2"` leaves out the rules that are no patterns. Should
//! a pattern come up at run time that is not in the set, that is a fault, never a mismatch.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::constant::Constant;
use super::emit::reached;
use super::evaluate::{self, Outcome};
use parma_guest::policy::instruction::Relation;

use super::hir::{Cause, Expr, FunctionId, Literal, LiteralKind, Node, Program, Span, Variable};

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
    /// What texts of requests are matched against.
    pub languages: BTreeSet<Language>,
    found: HashMap<*const Node, BTreeSet<Rc<str>>>,
}

impl Computed {
    /// The patterns that this expression can be; `None` if they cannot be told.
    pub fn of(&self, pattern: &Node) -> Option<BTreeSet<Rc<str>>> {
        self.found.get(&std::ptr::from_ref(pattern)).cloned()
    }
}

/// Every value that callers can give for each parameter of these functions, as far as it can be told. A value
/// that is not among them may come up all the same.
pub(crate) fn arguments(
    program: &Program,
    roots: &[FunctionId],
    wanted: &[(FunctionId, usize)],
) -> Vec<Option<BTreeSet<Constant>>> {
    let search = Search::new(program, roots, &mut Vec::new());
    wanted
        .iter()
        .map(|&(function, index)| {
            search.argument(index, Place { function, chain: 0, branch: 0, literal: 0 }, 0)
        })
        .collect()
}

/// Where an expression stands, to know what its variables are and what was checked before.
#[derive(Clone, Copy)]
struct Place {
    function: FunctionId,
    chain: usize,
    branch: usize,
    /// The literal of the body (all of them for the value of the rule).
    literal: usize,
}

/// Fields that an object must have with these values.
type Fields = BTreeSet<(Rc<str>, Constant)>;

#[derive(Clone, Copy)]
enum Source<'p> {
    Is(&'p Node),
    ElementOf(&'p Node),
    KeyOf(&'p Node),
    Parameter(usize),
}

/// The values of a field, by its name and what else the object has.
type Found = BTreeMap<(Rc<str>, Fields), Rc<BTreeSet<Constant>>>;

struct Search<'p> {
    program: &'p Program,
    bindings: HashMap<(FunctionId, usize, Variable), Vec<(Place, Source<'p>)>>,
    calls: HashMap<FunctionId, Vec<(Place, &'p [Node])>>,
    constants: Vec<&'p Constant>,
    fields: RefCell<Found>,
}

type Values = Option<BTreeSet<Constant>>;

/// Finds the patterns of all computed matches in the functions that `roots` reach.
pub(crate) fn computed(program: &Program, roots: &[FunctionId]) -> Computed {
    let mut wanted: Vec<(Place, &Node)> = Vec::new();
    let search = Search::new(program, roots, &mut wanted);
    let mut computed = Computed::default();
    for (place, node) in wanted {
        let Expr::Match { pattern, text, span } = &node.expr else { continue };
        let Some(values) = search.values(pattern, place, &Fields::new(), 0) else { continue };
        let texts: BTreeSet<Rc<str>> = values
            .into_iter()
            .filter_map(|value| match value {
                Constant::Str(text) => Some(text),
                _ => None,
            })
            .collect();
        if text.as_constant().is_none() {
            let languages = texts.iter().map(|text| Language { span: *span, text: text.clone() });
            computed.languages.extend(languages);
        }
        computed.found.insert(std::ptr::from_ref(&**pattern), texts);
    }
    computed
}

impl<'p> Search<'p> {
    /// Notes what is in the functions that `roots` reach, and their matches against computed patterns.
    fn new(program: &'p Program, roots: &[FunctionId], wanted: &mut Vec<(Place, &'p Node)>) -> Search<'p> {
        let mut search = Search {
            program,
            bindings: HashMap::new(),
            calls: HashMap::new(),
            constants: Vec::new(),
            fields: RefCell::default(),
        };
        for id in reached(program, roots) {
            let function = &program.functions[id];
            search.constants.extend(&function.default);
            for (number, chain) in function.chains.iter().enumerate() {
                let place = Place { function: id, chain: number, branch: 0, literal: 0 };
                for (index, parameter) in chain.parameters.iter().enumerate() {
                    search.bind(parameter, Source::Parameter(index), place);
                }
                for (number, branch) in chain.branches.iter().enumerate() {
                    let place = Place { branch: number, ..place };
                    for (literal, content) in branch.body.iter().enumerate() {
                        search.literal(content, Place { literal, ..place }, wanted);
                    }
                    let place = Place { literal: branch.body.len(), ..place };
                    search.node(&branch.value, place, wanted);
                }
            }
        }
        search
    }

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
                    self.bind_variable(*key, Source::KeyOf(domain), place);
                }
                self.bind_variable(*value, Source::ElementOf(domain), place);
                body.iter().for_each(|literal| self.literal(literal, place, wanted));
            }
            LiteralKind::Not(inner) => return self.literal(inner, place, wanted),
            LiteralKind::Test(_) => {}
        }
        literal.nodes().into_iter().for_each(|node| self.node(node, place, wanted));
    }

    fn bind_variable(&mut self, variable: Variable, source: Source<'p>, place: Place) {
        self.bindings.entry((place.function, place.chain, variable)).or_default().push((place, source));
    }

    fn bind(&mut self, pattern: &'p Node, source: Source<'p>, place: Place) {
        match (&pattern.expr, source) {
            (Expr::Variable(variable), source) => self.bind_variable(*variable, source, place),
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
            Expr::Match { pattern, .. } if pattern.as_constant().is_none() => wanted.push((place, node)),
            Expr::Ref(base, path) => {
                // An unbound variable in a path takes the keys of what it indexes.
                if let [Node { expr: Expr::Variable(variable), .. }] = path.as_slice() {
                    self.bind_variable(*variable, Source::KeyOf(base), place);
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

    /// Every value that the expression can have, or `None`. If it is a field of an object, then of one
    /// with these other `fields`.
    fn values(&self, node: &'p Node, place: Place, fields: &Fields, steps: usize) -> Values {
        if steps == MAX_STEPS {
            return None;
        }
        let next = steps + 1;
        let none = Fields::new();
        match &node.expr {
            Expr::Constant(value) => Some(BTreeSet::from([value.clone()])),
            Expr::Undefined(_) => Some(BTreeSet::new()),
            Expr::Variable(variable) => self.variable(*variable, place, fields, next),
            Expr::Ref(base, path) => self.part(base, path, place, fields, next),
            Expr::Call(id, _) => {
                let function = &self.program.functions[*id];
                let default = function.default.clone().map(|value| Some(BTreeSet::from([value])));
                let mut values = Vec::new();
                for (number, chain) in function.chains.iter().enumerate() {
                    for (at, branch) in chain.branches.iter().enumerate() {
                        let literal = branch.body.len();
                        let place = Place { function: *id, chain: number, branch: at, literal };
                        values.push(self.values(&branch.value, place, &none, next));
                    }
                }
                self.union(values.into_iter().chain(default))
            }
            Expr::Builtin(..) | Expr::Array(_) => self.computed(node, place, next),
            _ => None,
        }
    }

    fn variable(&self, variable: Variable, place: Place, fields: &Fields, steps: usize) -> Values {
        let none = Fields::new();
        let sources = self.bindings.get(&(place.function, place.chain, variable))?;
        self.union(sources.iter().map(|(place, source)| match source {
            Source::Is(node) => self.values(node, *place, fields, steps),
            Source::ElementOf(node) => elements(self.values(node, *place, &none, steps)?),
            Source::KeyOf(node) => keys(self.values(node, *place, &none, steps)?),
            Source::Parameter(index) => self.argument(*index, *place, steps),
        }))
    }

    /// What callers give for a parameter, as far as that definition accepts their other arguments.
    fn argument(&self, index: usize, place: Place, steps: usize) -> Values {
        let parameters = &self.program.functions[place.function].chains[place.chain].parameters;
        let calls = self.calls.get(&place.function)?;
        self.union(calls.iter().map(|(caller, arguments)| {
            let wanted = arguments.get(index)?;
            let mut fields = Fields::new();
            for (parameter, argument) in parameters.iter().zip(*arguments) {
                let Some(value) = parameter.as_constant() else { continue };
                if argument.as_constant().is_some_and(|argument| argument != value) {
                    return Some(BTreeSet::new());
                }
                fields.extend(sibling(wanted, argument).map(|field| (field, value.clone())));
            }
            self.values(wanted, *caller, &fields, steps)
        }))
    }

    fn part(&self, base: &'p Node, path: &'p [Node], place: Place, fields: &Fields, steps: usize) -> Values {
        let none = Fields::new();
        let Some((last, front)) = path.split_last() else { return self.values(base, place, &none, steps) };
        match base.expr {
            // What the host sends is never a pattern.
            Expr::Input => return None,
            // The state's maps, and what is in them, have no values before there are decisions.
            Expr::State if path.len() <= STATE_LEVELS => return None,
            _ => {}
        }
        let inside = self.part(base, front, place, &none, steps);
        let Some(Constant::Str(field)) = last.as_constant() else { return elements(inside?) };
        let mut fields = fields.clone();
        self.checked(base, front, place, &mut fields);
        let key = Constant::Str(field.clone());
        match inside {
            Some(values) => {
                let fitting = values.iter().filter(|value| has_fields(value, &fields));
                Some(fitting.filter_map(|value| value.get(&key).cloned()).collect())
            }
            None => Some((*self.field(field, &fields)).clone()),
        }
    }

    /// The literals of the body that are evaluated before the one at `place`.
    fn before(&self, place: Place) -> &'p [Literal] {
        let branches = &self.program.functions[place.function].chains[place.chain].branches;
        branches.get(place.branch).and_then(|branch| branch.body.get(..place.literal)).unwrap_or_default()
    }

    /// Adds what was checked of the fields of `base[front…]`.
    fn checked(&self, base: &Node, front: &[Node], place: Place, fields: &mut Fields) {
        for literal in self.before(place) {
            let LiteralKind::Test(Node { expr: Expr::Compare(Relation::Equal, sides), .. }) = &literal.kind
            else {
                continue;
            };
            let (side, value) = match (&sides[0], &sides[1]) {
                (side, Node { expr: Expr::Constant(value), .. }) => (side, value),
                (Node { expr: Expr::Constant(value), .. }, side) => (side, value),
                _ => continue,
            };
            if let Expr::Ref(other, path) = &side.expr
                && let Some((Node { expr: Expr::Constant(Constant::Str(field)), .. }, path)) =
                    path.split_last()
                && same(base, other)
                && front.len() == path.len()
                && front.iter().zip(path).all(|(one, other)| same(one, other))
            {
                fields.insert((field.clone(), value.clone()));
            }
        }
    }

    /// What an expression of builtins comes to, for each assignment of values to its variables and
    /// references that passes the checks before it.
    fn computed(&self, node: &'p Node, place: Place, steps: usize) -> Values {
        let mut leaves = Vec::new();
        if !simple(node, &mut leaves) {
            return None;
        }
        let mut assignments = vec![Vec::new()];
        for leaf in &leaves {
            let values = self.values(leaf, place, &Fields::new(), steps)?;
            if assignments.len().saturating_mul(values.len()) > MAX_VALUES {
                return None;
            }
            let extended = assignments.iter().flat_map(|assignment: &Vec<Constant>| {
                values.iter().map(move |value| assignment.iter().chain([value]).cloned().collect())
            });
            assignments = extended.collect();
        }
        let checks = self.before(place).iter().filter_map(|literal| match &literal.kind {
            LiteralKind::Test(node) => Some(node),
            _ => None,
        });
        let checks: Vec<&Node> = checks
            .filter(|node| {
                let mut all = leaves.clone();
                simple(node, &mut all) && all.len() == leaves.len()
            })
            .collect();
        let mut results = BTreeSet::new();
        for assignment in &assignments {
            let fails = |check: &&Node| {
                let outcome = evaluate::node(self.program, &substituted(check, &leaves, assignment));
                matches!(outcome, Outcome::Undefined | Outcome::Value(Constant::Bool(false)))
            };
            if checks.iter().any(fails) {
                continue;
            }
            match evaluate::node(self.program, &substituted(node, &leaves, assignment)) {
                Outcome::Value(value) => results.insert(value),
                Outcome::Undefined => continue,
                Outcome::Unknown => return None,
            };
        }
        Some(results)
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

    /// Every value under this key in any constant of the program, of objects with these fields.
    fn field(&self, name: &Rc<str>, fields: &Fields) -> Rc<BTreeSet<Constant>> {
        let cached = (name.clone(), fields.clone());
        if let Some(values) = self.fields.borrow().get(&cached) {
            return values.clone();
        }
        fn collect(value: &Constant, key: &Constant, fields: &Fields, found: &mut BTreeSet<Constant>) {
            match value {
                Constant::Array(items) => items.iter().for_each(|item| collect(item, key, fields, found)),
                Constant::Set(members) => {
                    members.iter().for_each(|member| collect(member, key, fields, found))
                }
                Constant::Object(object) => {
                    if has_fields(value, fields) {
                        found.extend(object.get(key).cloned());
                    }
                    object.values().for_each(|field| collect(field, key, fields, found));
                }
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        let key = Constant::Str(name.clone());
        self.constants.iter().for_each(|value| collect(value, &key, fields, &mut found));
        let found = Rc::new(found);
        self.fields.borrow_mut().insert(cached, found.clone());
        found
    }
}

fn has_fields(value: &Constant, fields: &Fields) -> bool {
    fields.iter().all(|(field, wanted)| value.get(&Constant::Str(field.clone())) == Some(wanted))
}

/// Whether two expressions are one and the same, of those that matter here.
fn same(one: &Node, other: &Node) -> bool {
    match (&one.expr, &other.expr) {
        (Expr::Variable(one), Expr::Variable(other)) => one == other,
        (Expr::Constant(one), Expr::Constant(other)) => one == other,
        (Expr::State, Expr::State) => true,
        (Expr::Ref(one, front), Expr::Ref(other, path)) => {
            same(one, other) && front.len() == path.len() && front.iter().zip(path).all(|(a, b)| same(a, b))
        }
        _ => false,
    }
}

/// If both are fields of one object: the name of the second's.
fn sibling(one: &Node, other: &Node) -> Option<Rc<str>> {
    let (Expr::Ref(base, path), Expr::Ref(other, front)) = (&one.expr, &other.expr) else { return None };
    let (_, path) = path.split_last()?;
    let (last, front) = front.split_last()?;
    let Some(Constant::Str(field)) = last.as_constant() else { return None };
    let alike = path.len() == front.len() && path.iter().zip(front).all(|(a, b)| same(a, b));
    (same(base, other) && alike).then(|| field.clone())
}

/// Whether an expression has only builtins, constants, and variables and references, which it collects.
fn simple<'n>(node: &'n Node, leaves: &mut Vec<&'n Node>) -> bool {
    match &node.expr {
        Expr::Constant(_) => true,
        Expr::Variable(_) | Expr::Ref(..) => {
            if !leaves.iter().any(|leaf| same(leaf, node)) {
                leaves.push(node);
            }
            true
        }
        Expr::Builtin(..) | Expr::Array(_) | Expr::Compare(..) => {
            node.children().into_iter().all(|child| simple(child, leaves))
        }
        _ => false,
    }
}

/// A simple expression with values in the place of its leaves.
fn substituted(node: &Node, leaves: &[&Node], values: &[Constant]) -> Node {
    let all = |nodes: &[Node]| nodes.iter().map(|node| substituted(node, leaves, values)).collect::<Vec<_>>();
    let expr = match &node.expr {
        Expr::Constant(value) => Expr::Constant(value.clone()),
        Expr::Builtin(builtin, arguments) => Expr::Builtin(*builtin, all(arguments)),
        Expr::Array(items) => Expr::Array(all(items)),
        Expr::Compare(relation, sides) => Expr::Compare(
            *relation,
            Box::new([substituted(&sides[0], leaves, values), substituted(&sides[1], leaves, values)]),
        ),
        _ => match leaves.iter().zip(values).find(|(leaf, _)| same(leaf, node)) {
            Some((_, value)) => Expr::Constant(value.clone()),
            None => Expr::Undefined(Cause::Reference),
        },
    };
    Node::new(node.pos, expr)
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
