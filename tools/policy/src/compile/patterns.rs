//! Which patterns a computed pattern can be.
//!
//! `regex.match(rule.pattern, text)` is asked with patterns that are somewhere in the policy's data.
//! Automata have to be made of all of them, so this finds, for such an expression, a set of strings
//! that contains every pattern it can have. It follows variables, parameters and builtins; a field
//! of something unknown is taken to be any value of a field of that name in the policy. It heeds what
//! was checked before, so that `rule.strategy == "re2"` leaves out the rules that are no patterns. Should
//! a pattern come up at run time that is not in the set, that is a fault, never a mismatch.
//!
//! A string of a request that is put into a pattern, as in `replace(rule.source, "$(id)", input.id)`, is a
//! *hole* in it: it is followed as a character of a private use area that stands for it, and what comes of
//! that is a template. At run time the pattern has to be a template with the string in its hole,
//! exactly, so what is guessed here decides what can be answered, never what the answer is.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::constant::Constant;
use super::emit::reached;
use super::evaluate::{self, Outcome};
use super::regex;
use parma_guest::policy::format::{Class, MAX_HOLES};
use parma_guest::policy::instruction::Relation;

use super::hir::{Cause, Expr, FunctionId, Literal, LiteralKind, Node, Program, Span, Variable};
use super::tabulate;

/// The most values that one expression may have, and steps of following where they come from: one after another, and in
/// all for one question.
const MAX_VALUES: usize = 20_000;
const MAX_STEPS: usize = 40;
const MAX_WORK: usize = 1 << 18;

/// How far into the state names are those of the state and not of the policy's data: the map, the entry.
const STATE_LEVELS: usize = 2;

/// What a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Language {
    pub span: Span,
    pub text: Rc<str>,
}

/// What one computed pattern can be.
#[derive(Clone, Default)]
pub(crate) struct Patterns {
    /// Whole patterns.
    pub texts: BTreeSet<Rc<str>>,
    /// Patterns into which run-time strings are put: those of `holes`, whose places have the characters from
    /// [`Class::HOLE`] on.
    pub templates: BTreeSet<Rc<str>>,
    pub holes: Vec<Node>,
}

impl Patterns {
    /// A pattern that is known.
    pub fn one(pattern: &Constant) -> Patterns {
        let texts = pattern.as_str().map(Rc::from).into_iter().collect();
        Patterns { texts, ..Patterns::default() }
    }
}

/// The possible patterns of each computed pattern, by the expression's address.
#[derive(Default)]
pub(crate) struct Computed {
    /// What texts of requests are matched against.
    pub languages: BTreeSet<Language>,
    found: HashMap<*const Node, Patterns>,
}

/// Values of fields of requests that are known before: by the field's name.
pub(crate) type KnownInputs = BTreeMap<String, BTreeSet<Constant>>;

/// Fields that the guest itself fills, always with the same patterns, whatever the host asks.
pub(crate) const KNOWN_INPUTS: [(&str, &[&str]); 3] = [
    ("mountPathRegex", &["/run/mounts/scsi/m[0-9]+", "/run/gcs/c/[0-9a-fA-F]{64}"]),
    ("mountPathPrefix", &["/mounts/m[0-9]+"]),
    ("rootPrefix", &["/run/gcs/c"]),
];

impl Computed {
    /// The patterns that this expression can be; `None` if they cannot be told.
    pub fn of(&self, pattern: &Node) -> Option<Patterns> {
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
    let known = KnownInputs::new();
    let search = Search::new(program, roots, &known, &mut Vec::new());
    wanted
        .iter()
        .map(|&(function, index)| {
            search.work.set(MAX_WORK);
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
    /// Fields with a constant value of objects that are none.
    members: Vec<(&'p Constant, &'p Constant)>,
    fields: RefCell<Found>,
    known: &'p KnownInputs,
    /// Run-time strings that are put into patterns, by their number, and where they have a value.
    holes: RefCell<Vec<(Place, &'p Node)>>,
    /// Steps that are left for this question.
    work: Cell<usize>,
    /// What functions return for constants.
    called: RefCell<BTreeMap<(FunctionId, Vec<Constant>), Values>>,
}

type Values = Option<BTreeSet<Constant>>;

/// Finds the patterns of all computed matches in the functions that `roots` reach.
pub(crate) fn computed(program: &Program, roots: &[FunctionId], known: &KnownInputs) -> Computed {
    let mut wanted: Vec<(Place, &Node)> = Vec::new();
    let search = Search::new(program, roots, known, &mut wanted);
    let mut computed = Computed::default();
    for (place, node) in wanted {
        let (pattern, text, span) = match &node.expr {
            Expr::Match { pattern, text, span } => (&**pattern, &**text, *span),
            Expr::Submatches(parts) => (&parts[0], &parts[1], Span::Find),
            _ => continue,
        };
        search.work.set(MAX_WORK);
        // What only the guest's memory has, no automaton can be made of: it would deny whatever it is.
        let unknown = search.values(pattern, place, &Fields::new(), 0).is_none();
        if unknown && !search.requested(pattern, place, 0) {
            continue;
        }
        let Some(values) = search.leaf(pattern, place, 0) else { continue };
        let Some(patterns) = search.patterns(values, place) else { continue };
        if span == Span::Find && patterns.texts.is_empty() && !patterns.templates.is_empty() {
            continue;
        }
        if text.as_constant().is_none() && span != Span::Find {
            let languages = patterns.texts.iter().map(|text| Language { span, text: text.clone() });
            computed.languages.extend(languages);
        }
        computed.found.insert(std::ptr::from_ref(pattern), patterns);
    }
    computed
}

/// The character that stands for hole `number` among those of all expressions.
fn marker(number: usize) -> Option<char> {
    char::from_u32(u32::from(Class::HOLE) + u32::try_from(number).ok()?)
}

fn is_marker(c: char) -> bool {
    c >= Class::HOLE
}

/// Whether a value is a string with a hole in it.
fn is_hole(value: &Constant) -> bool {
    value.as_str().is_some_and(|text| text.contains(is_marker))
}

fn is_scalar(value: &Constant) -> bool {
    !matches!(value, Constant::Array(_) | Constant::Object(_) | Constant::Set(_))
}

/// Whether a value is, or has in it, a hole or what was made of one.
fn has_marker(value: &Constant) -> bool {
    match value {
        Constant::Str(_) => is_hole(value),
        Constant::Array(items) => items.iter().any(has_marker),
        Constant::Set(members) => members.iter().any(has_marker),
        Constant::Object(fields) => fields.iter().any(|(key, value)| has_marker(key) || has_marker(value)),
        _ => false,
    }
}

impl<'p> Search<'p> {
    /// Notes what is in the functions that `roots` reach, and their matches against computed patterns.
    fn new(
        program: &'p Program,
        roots: &[FunctionId],
        known: &'p KnownInputs,
        wanted: &mut Vec<(Place, &'p Node)>,
    ) -> Search<'p> {
        let mut search = Search {
            program,
            bindings: HashMap::new(),
            calls: HashMap::new(),
            constants: Vec::new(),
            members: Vec::new(),
            fields: RefCell::default(),
            known,
            holes: RefCell::default(),
            work: Cell::new(0),
            called: RefCell::default(),
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
            Expr::Object(fields) => {
                let constant = |(key, value): &'p (Node, Node)| key.as_constant().zip(value.as_constant());
                self.members.extend(fields.iter().filter_map(constant));
            }
            Expr::Call(id, arguments) => self.calls.entry(*id).or_default().push((place, arguments)),
            Expr::Match { pattern, .. } if pattern.as_constant().is_none() => wanted.push((place, node)),
            Expr::Submatches(parts) if parts[0].as_constant().is_none() => wanted.push((place, node)),
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

    /// Whether there is work left for this question; takes some.
    fn goes_on(&self) -> bool {
        let left = self.work.get();
        self.work.set(left.saturating_sub(1));
        left > 0
    }

    /// Every value that the expression can have, or `None`. If it is a field of an object, then of one
    /// with these other `fields`.
    fn values(&self, node: &'p Node, place: Place, fields: &Fields, steps: usize) -> Values {
        if steps == MAX_STEPS || !self.goes_on() {
            return None;
        }
        let next = steps + 1;
        let none = Fields::new();
        match &node.expr {
            Expr::Constant(value) => Some(BTreeSet::from([value.clone()])),
            Expr::Undefined(_) => Some(BTreeSet::new()),
            Expr::Variable(variable) => self.variable(*variable, place, fields, next),
            Expr::Ref(base, path) => self.part(base, path, place, fields, next),
            Expr::Call(id, arguments) => {
                let function = &self.program.functions[*id];
                if function.pure
                    && !function.matches_computed
                    && let Some(results) = self.results(*id, arguments, place, next)
                {
                    return Some(results);
                }
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

    /// Where a variable gets its value from: parameters are of all branches, everything else of one. What another branch
    /// goes through says nothing of this one.
    fn sources(&self, variable: Variable, place: Place) -> impl Iterator<Item = (Place, Source<'p>)> {
        let sources = self.bindings.get(&(place.function, place.chain, variable)).map(Vec::as_slice);
        let here = move |(at, source): &&(Place, Source<'p>)| {
            at.branch == place.branch || matches!(source, Source::Parameter(_))
        };
        sources.unwrap_or_default().iter().filter(here).copied()
    }

    fn variable(&self, variable: Variable, place: Place, fields: &Fields, steps: usize) -> Values {
        let none = Fields::new();
        // All of them hold at once, so any one that tells is enough.
        let mut told = None;
        for (place, source) in self.sources(variable, place) {
            let values = match source {
                Source::Is(node) => self.values(node, place, fields, steps),
                Source::ElementOf(node) => self.elements(node, place, steps),
                Source::KeyOf(node) => {
                    let values = self.values(node, place, &none, steps);
                    values.filter(|values| !values.iter().any(is_hole)).and_then(keys)
                }
                Source::Parameter(index) => self.argument(index, place, steps),
            };
            told = values.or(told);
            if told.as_ref().is_some_and(|values| !values.is_empty()) {
                break;
            }
        }
        told
    }

    /// Every value that an element of the expression's value can have. More is known of it than of the whole where the
    /// whole is made of elements at run time.
    fn elements(&self, node: &'p Node, place: Place, steps: usize) -> Values {
        if steps == MAX_STEPS || !self.goes_on() {
            return None;
        }
        let (next, none) = (steps + 1, Fields::new());
        let values = self.values(node, place, &none, steps);
        if let Some(values) = values.filter(|values| !values.iter().any(is_hole)) {
            return elements(values);
        }
        match &node.expr {
            Expr::Comprehension(it) => self.values(&it.value, place, &none, next),
            Expr::Array(items) | Expr::Set(items) => {
                self.union(items.iter().map(|item| self.values(item, place, &none, next)))
            }
            Expr::Variable(variable) => {
                self.sources(*variable, place).find_map(|(place, source)| match source {
                    Source::Is(node) => self.elements(node, place, next),
                    Source::Parameter(index) => {
                        let calls = self.calls.get(&place.function)?;
                        self.union(
                            calls.iter().map(|(caller, arguments)| {
                                self.elements(arguments.get(index)?, *caller, next)
                            }),
                        )
                    }
                    Source::ElementOf(_) | Source::KeyOf(_) => None,
                })
            }
            Expr::Call(id, _) => {
                let function = &self.program.functions[*id];
                let default = function.default.clone().map(|value| elements(BTreeSet::from([value])));
                let chains = function.chains.iter().enumerate();
                let branches = chains.flat_map(|(chain, content)| {
                    content.branches.iter().enumerate().map(move |(at, branch)| {
                        let literal = branch.body.len();
                        (branch, Place { function: *id, chain, branch: at, literal })
                    })
                });
                let values = branches.map(|(branch, place)| self.elements(&branch.value, place, next));
                self.union(values.chain(default))
            }
            _ => None,
        }
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

    /// What is left of the values of a pattern at this place: patterns, and those with holes. `None` if a hole's
    /// string cannot be told here, or there are too many.
    fn patterns(&self, values: BTreeSet<Constant>, place: Place) -> Option<Patterns> {
        let mut patterns = Patterns::default();
        let mut numbers: Vec<usize> = Vec::new();
        for value in values {
            let Constant::Str(text) = value else { continue };
            if !text.contains(is_marker) {
                patterns.texts.insert(text);
                continue;
            }
            let mut template = String::new();
            for c in text.chars() {
                if !is_marker(c) {
                    template.push(c);
                    continue;
                }
                let number = (u32::from(c) - u32::from(Class::HOLE)) as usize;
                let at = numbers.iter().position(|&other| other == number).unwrap_or(numbers.len());
                if at == numbers.len() {
                    numbers.push(number);
                }
                template.push(marker(at).filter(|_| at < MAX_HOLES)?);
            }
            patterns.templates.insert(template.into());
        }
        for number in numbers {
            let (at, node) = *self.holes.borrow().get(number)?;
            let here = (at.function, at.chain, at.branch) == (place.function, place.chain, place.branch);
            let mut local = false;
            node.walk(&mut |node| local |= matches!(node.expr, Expr::Variable(_)));
            if local && !here {
                return None;
            }
            patterns.holes.push(node.clone());
        }
        Some(patterns)
    }

    /// Makes an expression a hole: its value is only known at run time. `None` for what cannot be asked for again
    /// where the pattern is matched.
    fn hole(&self, node: &'p Node, place: Place) -> Values {
        if !matches!(node.expr, Expr::Variable(_) | Expr::Ref(..)) {
            return None;
        }
        let mut holes = self.holes.borrow_mut();
        let is = |(at, other): &(Place, &Node)| {
            (at.function, at.chain, at.branch) == (place.function, place.chain, place.branch)
                && same(other, node)
        };
        let number = holes.iter().position(is).unwrap_or(holes.len());
        if number == holes.len() {
            holes.push((place, node));
        }
        Some(BTreeSet::from([Constant::string(&marker(number)?.to_string())]))
    }

    /// What a function of these arguments alone returns, one after another of their values.
    fn results(&self, id: FunctionId, arguments: &'p [Node], place: Place, steps: usize) -> Values {
        let mut assignments = vec![Vec::new()];
        for argument in arguments {
            let values = self.leaf(argument, place, steps)?;
            if assignments.len().saturating_mul(values.len()) > MAX_VALUES {
                return None;
            }
            let extended = assignments.iter().flat_map(|assignment: &Vec<Constant>| {
                values.iter().map(move |value| assignment.iter().chain([value]).cloned().collect())
            });
            assignments = extended.collect();
        }
        self.union(assignments.into_iter().map(|arguments| {
            if let Some(value) = tabulate::known(&self.program.functions[id], &arguments) {
                return Some(BTreeSet::from([value.clone()]));
            }
            let key = (id, arguments);
            if let Some(values) = self.called.borrow().get(&key) {
                return values.clone();
            }
            let outcome = evaluate::call(self.program, id, &key.1);
            let values = match outcome {
                // A hole stands for whatever it may be, a list for instance: that a function finds no elements in a string
                // does not say that it finds none.
                Outcome::Value(value) if has_marker(&value) || is_scalar(&value) => {
                    Some(BTreeSet::from([value]))
                }
                _ if key.1.iter().any(has_marker) => None,
                Outcome::Value(value) => Some(BTreeSet::from([value])),
                Outcome::Undefined => Some(BTreeSet::new()),
                Outcome::Unsupported | Outcome::Unknown => None,
            };
            self.called.borrow_mut().insert(key, values.clone());
            values
        }))
    }

    /// The values of a part of a computed pattern; one that has none before there is a request is a hole.
    fn leaf(&self, node: &'p Node, place: Place, steps: usize) -> Values {
        match self.values(node, place, &Fields::new(), steps) {
            Some(values) if !values.is_empty() => {
                if !self.requested(node, place, steps) {
                    return Some(values);
                }
                let is_pattern = |value: &Constant| !value.as_str().is_some_and(regex::is_literal);
                let mut values: BTreeSet<Constant> = values.into_iter().filter(is_pattern).collect();
                values.extend(self.hole(node, place)?);
                Some(values)
            }
            _ => self.hole(node, place),
        }
    }

    /// Whether an expression's value comes from the request and nowhere else.
    fn requested(&self, node: &'p Node, place: Place, steps: usize) -> bool {
        if steps == MAX_STEPS || !self.goes_on() {
            return false;
        }
        let next = steps + 1;
        match &node.expr {
            Expr::Input => true,
            Expr::Ref(base, _) => self.requested(base, place, next),
            Expr::Variable(variable) => {
                let mut sources = self.sources(*variable, place).peekable();
                sources.peek().is_some()
                    && sources.all(|(place, source)| match source {
                        Source::Is(node) | Source::ElementOf(node) | Source::KeyOf(node) => {
                            self.requested(node, place, next)
                        }
                        Source::Parameter(index) => {
                            let calls = self.calls.get(&place.function).map_or(&[][..], Vec::as_slice);
                            !calls.is_empty()
                                && calls.iter().all(|(caller, arguments)| {
                                    arguments.get(index).is_some_and(|it| self.requested(it, *caller, next))
                                })
                        }
                    })
            }
            _ => false,
        }
    }

    fn part(&self, base: &'p Node, path: &'p [Node], place: Place, fields: &Fields, steps: usize) -> Values {
        let none = Fields::new();
        let Some((last, front)) = path.split_last() else { return self.values(base, place, &none, steps) };
        match base.expr {
            // The state's maps, and what is in them, have no values before there are decisions.
            Expr::State if path.len() <= STATE_LEVELS => return None,
            _ => {}
        }
        if self.requested(base, place, steps) {
            // What the host sends is no pattern, but for what the guest is known to put there.
            let field = last.as_constant().and_then(Constant::as_str)?;
            return self.known.get(field).cloned();
        }
        // A string has no parts: where a hole is asked for some, it stands for something else.
        let inside = self.part(base, front, place, &none, steps).filter(|values| !values.iter().any(is_hole));
        let field = match last.as_constant() {
            Some(Constant::Str(field)) => field.clone(),
            Some(_) => return elements(inside?),
            // A key that is worked out, and can be a few strings only.
            None => match self.values(last, place, &none, steps) {
                Some(keys) if !keys.is_empty() && keys.iter().all(|key| key.as_str().is_some()) => {
                    let found = |key: &Constant| match &inside {
                        Some(values) => values.iter().filter_map(|value| value.get(key).cloned()).collect(),
                        None => (*self.field(&Rc::from(key.as_str().unwrap_or_default()), fields)).clone(),
                    };
                    return Some(keys.iter().flat_map(found).collect());
                }
                _ if front.is_empty() => return self.elements(base, place, steps),
                _ => return elements(inside?),
            },
        };
        let mut fields = fields.clone();
        self.checked(base, front, place, &mut fields);
        let key = Constant::Str(field.clone());
        match inside {
            Some(values) => {
                let fitting = values.iter().filter(|value| has_fields(value, &fields));
                Some(fitting.filter_map(|value| value.get(&key).cloned()).collect())
            }
            // Of a field that the policy has nowhere, only what decisions put into the guest's memory can tell. A
            // framework puts nothing there but what policies and fragments have: without it, it asks nothing.
            None if self.field(&field, &none).is_empty() && !self.in_framework(place) => None,
            None => Some((*self.field(&field, &fields)).clone()),
        }
    }

    fn in_framework(&self, place: Place) -> bool {
        self.program.functions[place.function].name.starts_with("data.framework.")
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
            let values = self.leaf(leaf, place, steps)?;
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
        let (mut results, mut holes) = (BTreeSet::new(), false);
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
                Outcome::Undefined => {
                    holes |= assignment.iter().any(has_marker);
                    continue;
                }
                Outcome::Unsupported | Outcome::Unknown => return None,
            };
        }
        // That nothing comes of a hole does not say that nothing comes of what it stands for.
        Some(results).filter(|results| !(holes && results.is_empty()))
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
        let members = self.members.iter().filter(|(name, _)| **name == key);
        found.extend(members.map(|(_, value)| (*value).clone()));
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
    if std::ptr::eq(one, other) {
        return true;
    }
    match (&one.expr, &other.expr) {
        (Expr::Variable(one), Expr::Variable(other)) => one == other,
        (Expr::Constant(one), Expr::Constant(other)) => one == other,
        (Expr::State, Expr::State) | (Expr::Input, Expr::Input) => true,
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
        Expr::Variable(_) | Expr::Ref(..) | Expr::Call(..) => {
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
