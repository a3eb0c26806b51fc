//! Syntax trees to the resolved program.
//!
//! Starts from the entries and resolves what they reach, callees first, so that a function's number
//! is higher than those of all that it calls; a rule that is met again while it is being resolved is
//! recursive and refused. What can be known without a request is worked out on the way: constant
//! rules, parts of constants, and calls of pure functions with constant arguments (by running them on
//! the machine, so that there is one meaning).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use parma_guest::policy::instruction::{Builtin, Relation};

use super::ast::{self, RuleKind, Term, TermKind};
use super::constant::Constant;
use super::error::{Pos, Refusal, Result};
use super::evaluate::{self, Outcome};
use super::hir::{
    Branch, Cause, Chain, Collection, Comprehension, Expr, Function, FunctionId, FunctionKind, Literal,
    LiteralKind, Node, Program, Span, Variable,
};

/// The map of the state that is also `data.pstate`, as policies of other agents call their memory.
const STATE_MAP: &str = "pstate";

/// How many rules may depend on each other in a row.
const MAX_CHAIN: usize = 200;

/// All definitions of one name in one package.
#[derive(Default)]
struct Definitions<'a> {
    rules: Vec<(&'a ast::Rule, usize)>,
    state: Progress,
}

#[derive(Default, Clone, Copy)]
enum Progress {
    #[default]
    New,
    /// Being resolved: to meet it now is recursion.
    Open,
    Done(FunctionId),
}

/// A module's view of the world.
struct Scope<'a> {
    package: &'a [String],
    imports: HashMap<&'a str, &'a ast::Import>,
}

pub(crate) struct Resolver<'a> {
    pub program: Program,
    rules: BTreeMap<(String, String), Definitions<'a>>,
    packages: HashSet<String>,
    scopes: Vec<Scope<'a>>,
    data: &'a Constant,
    pub warnings: Vec<(Pos, String)>,
    depth: usize,
    /// The functions for `data[…].<name>`.
    dispatches: BTreeMap<String, Progress>,
}

/// The names of one body, or of a rule's parameters.
#[derive(Default)]
struct Names {
    known: HashMap<String, Variable>,
    /// Declared further down in this body: to use it before is an error.
    later: HashSet<String>,
}

/// What is known while a definition is being resolved.
struct Frame {
    module: usize,
    names: Vec<Names>,
    variables: usize,
    pure: bool,
    matches_computed: bool,
}

impl Frame {
    fn fresh(&mut self) -> Variable {
        self.variables += 1;
        self.variables - 1
    }

    fn lookup(&self, name: &str) -> Lookup {
        for names in self.names.iter().rev() {
            if let Some(&variable) = names.known.get(name) {
                return Lookup::Known(variable);
            }
            if names.later.contains(name) {
                return Lookup::Later;
            }
        }
        Lookup::None
    }

    fn innermost(&mut self) -> &mut Names {
        if self.names.is_empty() {
            self.names.push(Names::default());
        }
        let last = self.names.len() - 1;
        &mut self.names[last]
    }
}

enum Lookup {
    Known(Variable),
    Later,
    None,
}

impl<'a> Resolver<'a> {
    pub fn new(modules: &'a [ast::Module], data: &'a Constant) -> Result<Resolver<'a>> {
        let mut rules: BTreeMap<(String, String), Definitions<'a>> = BTreeMap::new();
        let mut packages = HashSet::new();
        let mut scopes = Vec::new();
        for (number, module) in modules.iter().enumerate() {
            let package = module.package.join(".");
            let mut imports: HashMap<&str, &ast::Import> = HashMap::new();
            for import in &module.imports {
                if let Some(other) = imports.insert(&import.name, import)
                    && other.path != import.path
                {
                    return Err(Refusal::new(
                        import.pos,
                        "import",
                        format!("{} is imported twice", import.name),
                    ));
                }
            }
            for rule in &module.rules {
                if ["input", "data"].contains(&&*rule.name) {
                    return Err(Refusal::new(
                        rule.pos,
                        "rule",
                        format!("a rule cannot be named {}", rule.name),
                    ));
                }
                rules.entry((package.clone(), rule.name.clone())).or_default().rules.push((rule, number));
            }
            packages.insert(package);
            scopes.push(Scope { package: &module.package, imports });
        }
        Ok(Resolver {
            program: Program::default(),
            rules,
            packages,
            scopes,
            data,
            warnings: Vec::new(),
            depth: 0,
            dispatches: BTreeMap::new(),
        })
    }

    /// Whether `data.<package>.<name>` has a definition.
    pub fn defines(&self, package: &str, name: &str) -> bool {
        self.rules.contains_key(&(package.to_string(), name.to_string()))
    }

    /// Resolves `data.<path>` as an entry: a function without parameters, or `None` if it has no
    /// definition.
    pub fn entry(&mut self, path: &[String]) -> Result<Option<FunctionId>> {
        let Some((name, package)) = path.split_last() else { return Ok(None) };
        let key = (package.join("."), name.clone());
        let Some(rule) = self.rules.get(&key).and_then(|it| it.rules.first()) else { return Ok(None) };
        let pos = rule.0.pos;
        let function = self.function(&key, pos)?;
        if self.program.functions[function].called {
            return Err(Refusal::new(pos, "entry", format!("data.{} is a function", path.join("."))));
        }
        Ok(Some(function))
    }

    // Functions

    /// The function of a name that is known to have definitions.
    fn function(&mut self, key: &(String, String), at: Pos) -> Result<FunctionId> {
        let Some(definitions) = self.rules.get_mut(key) else {
            return Err(Refusal::new(at, "rule", format!("data.{}.{} is not defined", key.0, key.1)));
        };
        match definitions.state {
            Progress::Done(id) => return Ok(id),
            Progress::Open => {
                return Err(Refusal::new(
                    at,
                    "recursion",
                    format!("data.{}.{} depends on itself", key.0, key.1),
                ));
            }
            Progress::New => definitions.state = Progress::Open,
        }
        let rules = definitions.rules.clone();
        if self.depth == MAX_CHAIN {
            return Err(Refusal::new(
                at,
                "nesting",
                format!("more than {MAX_CHAIN} rules use each other in a row"),
            ));
        }
        self.depth += 1;
        let function = self.resolve_function(format!("data.{}.{}", key.0, key.1), &rules)?;
        self.depth -= 1;
        let id = self.program.functions.len();
        self.program.functions.push(Rc::new(function));
        if let Some(definitions) = self.rules.get_mut(key) {
            definitions.state = Progress::Done(id);
        }
        self.fold_function(id);
        Ok(id)
    }

    /// Replaces a pure function without parameters by its value, if it has one.
    fn fold_function(&mut self, id: FunctionId) {
        let function = &self.program.functions[id];
        if function.parameters > 0
            || !function.pure
            || function.matches_computed
            || is_constant(function).is_some()
        {
            return;
        }
        let pos = function.pos;
        let chains = match evaluate::call(&self.program, id, &[]) {
            Outcome::Value(value) => vec![Chain {
                parameters: Vec::new(),
                branches: vec![Branch { body: Vec::new(), value: Node::constant(pos, value) }],
                variables: 0,
            }],
            Outcome::Undefined => Vec::new(),
            Outcome::Unsupported | Outcome::Unknown => return,
        };
        self.program.functions[id] = Rc::new(Function {
            name: function.name.clone(),
            pos,
            parameters: 0,
            called: function.called,
            kind: FunctionKind::Value,
            chains,
            default: None,
            pure: true,
            matches_computed: false,
        });
    }

    fn resolve_function(&mut self, name: String, rules: &[(&'a ast::Rule, usize)]) -> Result<Function> {
        let first = rules[0].0;
        let parameters = first.parameters.as_ref().map(Vec::len);
        let set = rules.iter().any(|(rule, _)| rule.kind == RuleKind::PartialSet);
        let mut function = Function {
            name,
            pos: first.pos,
            parameters: parameters.unwrap_or(0),
            called: parameters.is_some(),
            kind: if set { FunctionKind::Set } else { FunctionKind::Value },
            chains: Vec::new(),
            default: None,
            pure: true,
            matches_computed: false,
        };
        for &(rule, module) in rules {
            if rule.parameters.as_ref().map(Vec::len) != parameters {
                return Err(Refusal::new(
                    rule.pos,
                    "rule",
                    format!("{} is defined with different numbers of arguments", rule.name),
                ));
            }
            if set && rule.kind != RuleKind::PartialSet {
                return Err(Refusal::new(
                    rule.pos,
                    "rule",
                    format!("{} is both a set and a value", rule.name),
                ));
            }
            let mut frame = Frame {
                module,
                names: vec![Names::default()],
                variables: 0,
                pure: true,
                matches_computed: false,
            };
            if rule.kind == RuleKind::Default {
                if function.default.is_some() {
                    return Err(Refusal::new(rule.pos, "default", format!("{} has two defaults", rule.name)));
                }
                for parameter in rule.parameters.iter().flatten() {
                    if !matches!(parameter.kind, TermKind::Name(_)) {
                        return Err(Refusal::new(parameter.pos, "default", "takes names as arguments only"));
                    }
                }
                let value = self.term(&rule.branches[0].value, &mut frame)?;
                let Expr::Constant(value) = value.expr else {
                    return Err(Refusal::new(value.pos, "default", "the value is not a constant"));
                };
                function.default = Some(value);
                continue;
            }
            if let Some(chain) = self.chain(rule, &mut frame)? {
                function.pure &= frame.pure;
                function.matches_computed |= frame.matches_computed;
                function.chains.push(chain);
            }
        }
        Ok(function)
    }

    /// A definition; `None` if it can never succeed.
    fn chain(&mut self, rule: &'a ast::Rule, frame: &mut Frame) -> Result<Option<Chain>> {
        let mut parameters = Vec::new();
        for parameter in rule.parameters.iter().flatten() {
            self.declare(parameter, frame, true)?;
            parameters.push(self.term(parameter, frame)?);
        }
        let mut branches = Vec::new();
        for branch in &rule.branches {
            let mut value = None;
            let body = self.body(&branch.body, &[&branch.value], frame, &mut |this, frame| {
                value = Some(this.term(&branch.value, frame)?);
                Ok(())
            })?;
            let (Some(body), Some(value)) = (body, value) else { continue };
            if contains_undefined(&value) {
                continue;
            }
            let certain = body.is_empty() && value.as_constant().is_some();
            branches.push(Branch { body, value });
            if certain {
                break;
            }
        }
        if branches.is_empty() {
            return Ok(None);
        }
        Ok(Some(Chain { parameters, branches, variables: frame.variables }))
    }

    // Bodies

    /// Resolves a body in a new scope and, in that scope, what `finish` resolves: the terms `head`.
    /// `None` if the body can never succeed.
    fn body(
        &mut self,
        literals: &'a [ast::Literal],
        head: &[&'a Term],
        frame: &mut Frame,
        finish: &mut dyn FnMut(&mut Self, &mut Frame) -> Result<()>,
    ) -> Result<Option<Vec<Literal>>> {
        let mut names = Names::default();
        for literal in literals {
            match &literal.kind {
                ast::LiteralKind::Declare(declared) => {
                    names.later.extend(declared.iter().map(|(name, _)| name.clone()));
                }
                ast::LiteralKind::SomeIn { key, value, .. } => {
                    key.iter().chain([value]).for_each(|term| pattern_names(term, &mut names.later));
                }
                ast::LiteralKind::Assign(left, _) => pattern_names(left, &mut names.later),
                _ => {}
            }
        }
        frame.names.push(names);
        // Names that nothing declares belong to the outermost body that mentions them.
        let mut mentioned = BTreeSet::new();
        literals.iter().for_each(|literal| literal_names(literal, &mut mentioned));
        head.iter().for_each(|term| term_names(term, &mut mentioned));
        for name in mentioned {
            if matches!(frame.lookup(&name), Lookup::None) && !self.is_global(&name, frame) {
                let variable = frame.fresh();
                frame.innermost().known.insert(name, variable);
            }
        }
        let mut body = Some(Vec::new());
        for literal in literals {
            match self.literal(literal, frame)? {
                Resolved::Holds => {}
                Resolved::Fails => body = None,
                Resolved::Open(literal) => {
                    let negated = matches!(literal.kind, LiteralKind::Not(_));
                    if !negated && literal.nodes().into_iter().any(contains_undefined) {
                        body = None;
                    }
                    if let Some(body) = &mut body {
                        body.push(literal);
                    }
                }
            }
        }
        finish(self, frame)?;
        frame.names.pop();
        Ok(body)
    }

    fn literal(&mut self, literal: &'a ast::Literal, frame: &mut Frame) -> Result<Resolved> {
        let pos = literal.pos;
        let kind = match &literal.kind {
            ast::LiteralKind::Declare(names) => {
                for (name, pos) in names {
                    self.declare_name(name, *pos, frame)?;
                }
                return Ok(Resolved::Holds);
            }
            ast::LiteralKind::SomeIn { key, value, collection } => {
                let collection = self.term(collection, frame)?;
                for term in key.iter().chain([value]) {
                    self.declare(term, frame, false)?;
                }
                let key = key.as_ref().map(|key| self.term(key, frame)).transpose()?;
                let value = self.term(value, frame)?;
                if is_undefined(&collection) || is_empty(&collection) || is_scalar(&collection) {
                    return Ok(Resolved::Fails);
                }
                LiteralKind::Some { key, value, collection }
            }
            ast::LiteralKind::Every { key, value, domain, body } => {
                let domain = self.term(domain, frame)?;
                let start = frame.variables;
                frame.names.push(Names::default());
                let mut declare = |name: &String| {
                    let variable = frame.fresh();
                    if name != "_" {
                        frame.innermost().known.insert(name.clone(), variable);
                    }
                    variable
                };
                let key = key.as_ref().map(&mut declare);
                let value = declare(value);
                let body = self.body(body, &[], frame, &mut |_, _| Ok(()))?;
                frame.names.pop();
                if is_undefined(&domain) || is_scalar(&domain) {
                    return Ok(Resolved::Fails);
                }
                if is_empty(&domain) {
                    return Ok(Resolved::Holds);
                }
                // A body that can never succeed still holds for an empty domain.
                let body = body.unwrap_or_else(|| vec![never(pos)]);
                LiteralKind::Every { key, value, domain, body, inner: start..frame.variables }
            }
            ast::LiteralKind::Not(inner) => {
                return Ok(match self.literal(inner, frame)? {
                    Resolved::Holds => Resolved::Fails,
                    // Undefined arguments of a call are outside the `not`; `Test` of the undefined
                    // node keeps the difference until here.
                    Resolved::Fails => Resolved::Holds,
                    Resolved::Open(inner) => {
                        if undefined_outside_not(&inner) {
                            Resolved::Fails
                        } else {
                            Resolved::Open(Literal { pos, kind: LiteralKind::Not(Box::new(inner)) })
                        }
                    }
                });
            }
            ast::LiteralKind::Test(term) => {
                if let TermKind::Call(name, _) = &term.kind
                    && name.as_slice() == ["print"]
                    && !self.is_local_function("print", frame)
                {
                    return Ok(Resolved::Holds);
                }
                let node = self.term(term, frame)?;
                match &node.expr {
                    Expr::Constant(Constant::Bool(false)) => return Ok(Resolved::Fails),
                    Expr::Constant(_) => return Ok(Resolved::Holds),
                    _ => LiteralKind::Test(node),
                }
            }
            ast::LiteralKind::Assign(left, right) => {
                let right = self.term(right, frame)?;
                if !is_pattern(left) {
                    return Err(Refusal::new(
                        left.pos,
                        ":=",
                        "assigns to names, or arrays and objects of names",
                    ));
                }
                self.declare(left, frame, false)?;
                let left = self.term(left, frame)?;
                LiteralKind::Unify(left, right)
            }
            ast::LiteralKind::Unify(left, right) => {
                LiteralKind::Unify(self.term(left, frame)?, self.term(right, frame)?)
            }
        };
        Ok(Resolved::Open(Literal { pos, kind }))
    }

    /// Declares the names of a pattern.
    fn declare(&mut self, term: &Term, frame: &mut Frame, parameter: bool) -> Result<()> {
        match &term.kind {
            TermKind::Name(name) if name == "_" => Ok(()),
            TermKind::Name(name) if parameter => {
                // The same name twice is the same argument twice.
                if !matches!(frame.lookup(name), Lookup::Known(_)) {
                    self.declare_name(name, term.pos, frame)?;
                }
                Ok(())
            }
            TermKind::Name(name) => self.declare_name(name, term.pos, frame),
            TermKind::Array(items) => items.iter().try_for_each(|item| self.declare(item, frame, parameter)),
            TermKind::Object(fields) => {
                fields.iter().try_for_each(|(_, value)| self.declare(value, frame, parameter))
            }
            TermKind::Constant(_) | TermKind::OtherNumber(_) => Ok(()),
            TermKind::Set(_) | TermKind::Ref(..) | TermKind::Call(..) | TermKind::Comprehension { .. } => {
                if parameter {
                    return Err(Refusal::new(term.pos, "function argument", "neither a name nor a constant"));
                }
                Ok(())
            }
        }
    }

    fn declare_name(&mut self, name: &str, pos: Pos, frame: &mut Frame) -> Result<()> {
        if name == "_" {
            return Ok(());
        }
        if ["input", "data"].contains(&name) {
            return Err(Refusal::new(pos, "variable", format!("{name} cannot be a variable")));
        }
        let variable = frame.fresh();
        let parameters = frame.names.len() == 2 && frame.names[0].known.contains_key(name);
        let names = frame.innermost();
        names.later.remove(name);
        if names.known.insert(name.to_string(), variable).is_some() || parameters {
            return Err(Refusal::new(pos, "variable", format!("{name} is declared twice")));
        }
        Ok(())
    }

    // Names

    fn package(&self, frame: &Frame) -> String {
        self.scopes[frame.module].package.join(".")
    }

    fn is_local_function(&self, name: &str, frame: &Frame) -> bool {
        self.defines(&self.package(frame), name)
    }

    fn is_global(&self, name: &str, frame: &Frame) -> bool {
        ["input", "data", "_"].contains(&name)
            || self.scopes[frame.module].imports.contains_key(name)
            || self.is_local_function(name, frame)
    }

    // Terms

    fn terms(&mut self, terms: &'a [Term], frame: &mut Frame) -> Result<Vec<Node>> {
        terms.iter().map(|term| self.term(term, frame)).collect()
    }

    fn term(&mut self, term: &'a Term, frame: &mut Frame) -> Result<Node> {
        let pos = term.pos;
        match &term.kind {
            TermKind::Constant(value) => Ok(Node::constant(pos, value.clone())),
            TermKind::OtherNumber(why) => Err(Refusal::new(pos, "number", *why)),
            TermKind::Name(_) => self.reference(pos, term, &[], frame),
            TermKind::Ref(base, path) => self.reference(pos, base, path, frame),
            TermKind::Call(name, arguments) => self.call(pos, name, arguments, frame),
            TermKind::Array(items) => {
                let items = self.terms(items, frame)?;
                Ok(array(pos, items))
            }
            TermKind::Set(items) => {
                let items = self.terms(items, frame)?;
                if let Some(constants) = constants(&items) {
                    return Ok(Node::constant(pos, Constant::Set(Rc::new(constants.into_iter().collect()))));
                }
                Ok(Node::new(pos, Expr::Set(items)))
            }
            TermKind::Object(fields) => self.object(pos, fields, frame),
            TermKind::Comprehension { kind, key, value, body } => {
                let start = frame.variables;
                let mut head: Vec<&Term> = vec![value];
                head.extend(key.as_deref());
                let mut nodes = None;
                let body = self.body(body, &head, frame, &mut |this, frame| {
                    let key = key.as_ref().map(|key| this.term(key, frame)).transpose()?;
                    nodes = Some((key, this.term(value, frame)?));
                    Ok(())
                })?;
                let empty = match kind {
                    Collection::Array => Constant::Array(Rc::default()),
                    Collection::Set => Constant::Set(Rc::default()),
                    Collection::Object => Constant::Object(Rc::default()),
                };
                let (Some(body), Some((key, value))) = (body, nodes) else {
                    return Ok(Node::constant(pos, empty));
                };
                if is_undefined(&value) || key.as_ref().is_some_and(is_undefined) {
                    return Ok(Node::constant(pos, empty));
                }
                let inner = start..frame.variables;
                Ok(Node::new(
                    pos,
                    Expr::Comprehension(Box::new(Comprehension { kind: *kind, key, value, body, inner })),
                ))
            }
        }
    }

    fn object(&mut self, pos: Pos, fields: &'a [(Term, Term)], frame: &mut Frame) -> Result<Node> {
        let mut nodes = Vec::new();
        for (key, value) in fields {
            nodes.push((self.term(key, frame)?, self.term(value, frame)?));
        }
        let constant: Option<BTreeMap<_, _>> = nodes
            .iter()
            .map(|(key, value)| Some((key.as_constant()?.clone(), value.as_constant()?.clone())))
            .collect();
        if let Some(fields) = constant {
            // Of a key that is written twice, the last counts.
            return Ok(Node::constant(pos, Constant::Object(Rc::new(fields))));
        }
        let mut seen = BTreeSet::new();
        for (key, _) in &nodes {
            if let Some(value) = key.as_constant()
                && !seen.insert(value)
            {
                return Err(Refusal::new(key.pos, "object", "this key is written twice"));
            }
        }
        Ok(Node::new(pos, Expr::Object(nodes)))
    }

    /// `base[path…]`, where the base is a name or a term.
    fn reference(&mut self, pos: Pos, base: &'a Term, path: &'a [Term], frame: &mut Frame) -> Result<Node> {
        let TermKind::Name(name) = &base.kind else {
            let base = self.term(base, frame)?;
            let path = self.terms(path, frame)?;
            return Ok(subscript(base, path));
        };
        if name == "_" {
            let variable = frame.fresh();
            let base = Node::new(pos, Expr::Variable(variable));
            if !path.is_empty() {
                return Err(Refusal::new(pos, "reference", "`_` has no parts"));
            }
            return Ok(base);
        }
        match frame.lookup(name) {
            Lookup::Known(variable) => {
                let path = self.terms(path, frame)?;
                return Ok(subscript(Node::new(base.pos, Expr::Variable(variable)), path));
            }
            Lookup::Later => {
                return Err(Refusal::new(
                    base.pos,
                    "variable",
                    format!("{name} is used before it is declared"),
                ));
            }
            Lookup::None => {}
        }
        let path = self.terms(path, frame)?;
        match name.as_str() {
            "input" => {
                frame.pure = false;
                return Ok(subscript(Node::new(pos, Expr::Input), path));
            }
            "data" => return self.data_reference(pos, path, frame),
            _ => {}
        }
        let package = self.package(frame);
        if self.defines(&package, name) {
            return self.rule_reference(pos, &(package, name.clone()), path, frame);
        }
        if let Some(import) = self.scopes[frame.module].imports.get(name.as_str()) {
            let prefix = import.path[1..].iter().map(|part| Node::constant(pos, Constant::string(part)));
            let full: Vec<Node> = prefix.chain(path).collect();
            if import.path[0] == "input" {
                frame.pure = false;
                return Ok(subscript(Node::new(pos, Expr::Input), full));
            }
            return self.data_reference(pos, full, frame);
        }
        Err(Refusal::new(base.pos, "variable", format!("{name} is not defined")))
    }

    /// The value of a rule, then its parts.
    fn rule_reference(
        &mut self,
        pos: Pos,
        key: &(String, String),
        path: Vec<Node>,
        frame: &mut Frame,
    ) -> Result<Node> {
        let id = self.function(key, pos)?;
        if self.program.functions[id].called {
            return Err(Refusal::new(pos, "function", format!("{} is called with arguments", key.1)));
        }
        let value = self.call_node(pos, id, Vec::new(), frame);
        Ok(subscript(value, path))
    }

    /// `data[path…]`: a rule, the state, or static data.
    fn data_reference(&mut self, pos: Pos, path: Vec<Node>, frame: &mut Frame) -> Result<Node> {
        let names: Vec<String> =
            path.iter().map_while(|node| node.as_constant()?.as_str().map(str::to_string)).collect();
        for length in 1..names.len() {
            let key = (names[..length].join("."), names[length].clone());
            if self.rules.contains_key(&key) {
                let rest = path.into_iter().skip(length + 1).collect();
                return self.rule_reference(pos, &key, rest, frame);
            }
        }
        if names.first().is_some_and(|name| name == "metadata") {
            frame.pure = false;
            let rest = path.into_iter().skip(1).collect();
            return Ok(subscript(Node::new(pos, Expr::State), rest));
        }
        if names.first().is_some_and(|name| name == STATE_MAP) && !self.packages.contains(STATE_MAP) {
            frame.pure = false;
            // Empty at first, unlike the maps of `data.metadata`, which are not there at first.
            let nothing = Node::constant(pos, Constant::Object(Rc::default()));
            let arguments =
                vec![Node::new(pos, Expr::State), Node::constant(pos, Constant::string(STATE_MAP)), nothing];
            let map = Node::new(pos, Expr::Builtin(Builtin::ObjectGet, arguments));
            return Ok(subscript(map, path.into_iter().skip(1).collect()));
        }
        if names.is_empty()
            && let [_, field, ..] = path.as_slice()
            && let Some(field) = field.as_constant().and_then(Constant::as_str)
        {
            let id = self.dispatch(pos, field, frame)?;
            let mut path = path.into_iter();
            let value = self.call_node(pos, id, path.next().into_iter().collect(), frame);
            return Ok(subscript(value, path.skip(1).collect()));
        }
        let here = names.join(".");
        let within = |package: &String| *package == here || package.starts_with(&format!("{here}."));
        if names.is_empty() || (names.len() <= path.len() && self.packages.iter().any(within)) {
            return Err(Refusal::new(
                pos,
                "package as a value",
                "a reference to data names a rule; the package or the rule cannot be chosen at run time",
            ));
        }
        let mut value = self.data;
        for (length, name) in names.iter().enumerate() {
            match value.get(&Constant::string(name)) {
                Some(part) => value = part,
                None => {
                    let package = names[..length].join(".");
                    if self.packages.contains(&package) {
                        self.warnings.push((pos, format!("data.{here} is not defined anywhere")));
                    }
                    return Ok(Node::undefined(pos));
                }
            }
        }
        let rest = path.into_iter().skip(names.len()).collect();
        Ok(subscript(Node::constant(pos, value.clone()), rest))
    }

    /// The function of a package's name that gives `data[<package>].<field>`: one definition for each package, map of
    /// the state and object of the static data that has the field.
    fn dispatch(&mut self, pos: Pos, field: &str, frame: &Frame) -> Result<FunctionId> {
        match self.dispatches.get(field) {
            Some(Progress::Done(id)) => return Ok(*id),
            Some(Progress::Open) => {
                return Err(Refusal::new(pos, "recursion", format!("data[…].{field} depends on itself")));
            }
            Some(Progress::New) | None => {}
        }
        self.dispatches.insert(field.to_string(), Progress::Open);
        let mut names: BTreeSet<String> = ["metadata", STATE_MAP].map(str::to_string).into();
        names
            .extend(self.packages.iter().filter_map(|package| package.split('.').next()).map(str::to_string));
        if let Constant::Object(data) = self.data {
            names.extend(data.keys().filter_map(|key| key.as_str().map(str::to_string)));
        }
        let mut function = Function {
            name: format!("data[_].{field}"),
            pos,
            parameters: 1,
            called: false,
            kind: FunctionKind::Value,
            chains: Vec::new(),
            default: None,
            pure: true,
            matches_computed: false,
        };
        for name in names {
            let inside = format!("{name}.{field}");
            let is_package = self.packages.contains(&name)
                || self.packages.iter().any(|package| package.starts_with(&format!("{name}.")));
            let within = |package: &String| *package == inside || package.starts_with(&format!("{inside}."));
            if is_package && !self.defines(&name, field) && !self.packages.iter().any(within) {
                continue;
            }
            let mut frame = Frame {
                module: frame.module,
                names: vec![Names::default()],
                variables: 0,
                pure: true,
                matches_computed: false,
            };
            let path = [name.as_str(), field].map(|part| Node::constant(pos, Constant::string(part)));
            let value = self.data_reference(pos, path.into(), &mut frame)?;
            if is_undefined(&value) {
                continue;
            }
            function.pure &= frame.pure;
            function.matches_computed |= frame.matches_computed;
            function.chains.push(Chain {
                parameters: vec![Node::constant(pos, Constant::string(&name))],
                branches: vec![Branch { body: Vec::new(), value }],
                variables: 0,
            });
        }
        let id = self.program.functions.len();
        self.program.functions.push(Rc::new(function));
        self.dispatches.insert(field.to_string(), Progress::Done(id));
        Ok(id)
    }

    fn call(&mut self, pos: Pos, name: &[String], arguments: &'a [Term], frame: &mut Frame) -> Result<Node> {
        let arguments = self.terms(arguments, frame)?;
        let dotted = name.join(".");
        if let Some(key) = self.user_function(name, frame) {
            let id = self.function(&key, pos)?;
            let (called, wanted) = (self.program.functions[id].called, self.program.functions[id].parameters);
            if !called {
                return Err(Refusal::new(pos, "call", format!("{dotted} is a rule, not a function")));
            }
            if arguments.len() != wanted {
                return Err(Refusal::new(pos, "call", format!("{dotted} takes {wanted} arguments")));
            }
            return Ok(self.call_node(pos, id, arguments, frame));
        }
        let arity = |wanted: usize| {
            if arguments.len() == wanted {
                return Ok(());
            }
            Err(Refusal::new(pos, "call", format!("{dotted} takes {wanted} arguments")))
        };
        let relation = match dotted.as_str() {
            "equal" => Some(Relation::Equal),
            "neq" => Some(Relation::NotEqual),
            "lt" => Some(Relation::Less),
            "lte" => Some(Relation::LessOrEqual),
            "gt" => Some(Relation::Greater),
            "gte" => Some(Relation::GreaterOrEqual),
            _ => None,
        };
        if let Some(relation) = relation {
            arity(2)?;
            let mut sides = arguments.into_iter();
            let (Some(left), Some(right)) = (sides.next(), sides.next()) else {
                return Ok(Node::undefined(pos));
            };
            if let (Some(left), Some(right)) = (left.as_constant(), right.as_constant()) {
                return Ok(Node::constant(pos, Constant::Bool(relation.holds(left.cmp(right)))));
            }
            return Ok(Node::new(pos, Expr::Compare(relation, Box::new([left, right]))));
        }
        if dotted == "regex.match" {
            arity(2)?;
            let mut sides = arguments.into_iter();
            let (Some(pattern), Some(text)) = (sides.next(), sides.next()) else {
                return Ok(Node::undefined(pos));
            };
            let (pattern, span) = whole_pattern(pattern);
            frame.matches_computed |= pattern.as_constant().is_none();
            let node = Node::new(pos, Expr::Match { pattern: Box::new(pattern), text: Box::new(text), span });
            return self.folded(node);
        }
        if dotted == "regex.find_all_string_submatch_n" {
            arity(3)?;
            frame.matches_computed |= arguments[0].as_constant().is_none();
            let Ok(parts) = <[Node; 3]>::try_from(arguments) else { return Ok(Node::undefined(pos)) };
            return self.folded(Node::new(pos, Expr::Submatches(Box::new(parts))));
        }
        let Some(&builtin) = Builtin::ALL.iter().find(|builtin| builtin.name() == dotted) else {
            return Err(Refusal::new(
                pos,
                "call",
                format!("{dotted} is neither a function nor a supported builtin"),
            ));
        };
        arity(builtin.arity())?;
        self.folded(Node::new(pos, Expr::Builtin(builtin, arguments)))
    }

    /// The definitions that a called name means, if it is not a builtin.
    fn user_function(&self, name: &[String], frame: &Frame) -> Option<(String, String)> {
        let (last, path) = name.split_last()?;
        let key = match path.split_first() {
            None => (self.package(frame), last.clone()),
            Some((first, rest)) if first == "data" => (rest.join("."), last.clone()),
            Some((first, rest)) => {
                let import = self.scopes[frame.module].imports.get(first.as_str())?;
                let full: Vec<String> = import.path[1..].iter().chain(rest).cloned().collect();
                (full.join("."), last.clone())
            }
        };
        self.rules.contains_key(&key).then_some(key)
    }

    fn call_node(&mut self, pos: Pos, id: FunctionId, arguments: Vec<Node>, frame: &mut Frame) -> Node {
        let function = self.program.functions[id].clone();
        if function.parameters == 0
            && let Some(constant) = is_constant(&function)
        {
            return match constant {
                Some(value) => Node::constant(pos, value.clone()),
                None if function.called => Node::undefined_call(pos),
                None => Node::undefined(pos),
            };
        }
        frame.pure &= function.pure;
        frame.matches_computed |= function.matches_computed;
        if function.pure
            && !function.matches_computed
            && let Some(arguments) = constants(&arguments)
        {
            match evaluate::call(&self.program, id, &arguments) {
                Outcome::Value(value) => return Node::constant(pos, value),
                Outcome::Undefined if function.called => return Node::undefined_call(pos),
                Outcome::Undefined => return Node::undefined(pos),
                Outcome::Unsupported | Outcome::Unknown => {}
            }
        }
        Node::new(pos, Expr::Call(id, arguments))
    }

    /// The node's value, if its parts are constants.
    fn folded(&self, node: Node) -> Result<Node> {
        if !node.children().iter().all(|child| child.as_constant().is_some()) {
            return Ok(node);
        }
        match evaluate::node(&self.program, &node) {
            Outcome::Value(value) => Ok(Node::constant(node.pos, value)),
            Outcome::Undefined => Ok(Node::undefined_call(node.pos)),
            Outcome::Unsupported => {
                let message = "its value is not supported: not a 64-bit integer, or text of another form";
                Err(Refusal::new(node.pos, "call", message))
            }
            Outcome::Unknown => Ok(node),
        }
    }
}

/// What is known of a literal.
enum Resolved {
    Holds,
    Fails,
    Open(Literal),
}

fn never(pos: Pos) -> Literal {
    Literal { pos, kind: LiteralKind::Test(Node::constant(pos, Constant::Bool(false))) }
}

/// The function's value if it is always the same: `Some(None)` is undefined.
pub(crate) fn is_constant(function: &Function) -> Option<Option<&Constant>> {
    if function.parameters > 0 || function.kind == FunctionKind::Set {
        return None;
    }
    match function.chains.as_slice() {
        [] => Some(function.default.as_ref()),
        [chain] => match chain.branches.as_slice() {
            [branch] if branch.body.is_empty() => branch.value.as_constant().map(Some),
            _ => None,
        },
        _ => None,
    }
}

fn is_undefined(node: &Node) -> bool {
    matches!(node.expr, Expr::Undefined(_))
}

fn is_empty(node: &Node) -> bool {
    match node.as_constant() {
        Some(Constant::Array(items)) => items.is_empty(),
        Some(Constant::Object(fields)) => fields.is_empty(),
        Some(Constant::Set(members)) => members.is_empty(),
        _ => false,
    }
}

fn is_scalar(node: &Node) -> bool {
    node.as_constant().is_some_and(|value| *value < Constant::Array(Rc::default()))
}

fn constants(nodes: &[Node]) -> Option<Vec<Constant>> {
    nodes.iter().map(|node| node.as_constant().cloned()).collect()
}

fn array(pos: Pos, items: Vec<Node>) -> Node {
    match constants(&items) {
        Some(items) => Node::constant(pos, Constant::Array(Rc::new(items))),
        None => Node::new(pos, Expr::Array(items)),
    }
}

/// `base[path…]` with the constant front of the path followed.
fn subscript(mut base: Node, path: Vec<Node>) -> Node {
    let pos = base.pos;
    let mut path = path.into_iter().peekable();
    while let (Some(value), Some(key)) = (base.as_constant(), path.peek().and_then(Node::as_constant)) {
        base = match value.get(key) {
            Some(part) => Node::constant(pos, part.clone()),
            None => Node::undefined(pos),
        };
        path.next();
    }
    let path: Vec<Node> = path.collect();
    let undefined = matches!(base.expr, Expr::Undefined(Cause::Reference));
    if path.is_empty() || undefined && constants(&path).is_some() {
        return base;
    }
    if let Expr::Ref(inner, mut front) = base.expr {
        front.extend(path);
        return Node::new(pos, Expr::Ref(inner, front));
    }
    Node::new(pos, Expr::Ref(Box::new(base), path))
}

/// Whether a negated literal is undefined for a reason that lies outside the `not`: an undefined
/// argument of a call, an undefined member, an undefined domain.
fn undefined_outside_not(literal: &Literal) -> bool {
    let inside = |node: &Node| node.children().into_iter().any(contains_undefined);
    let side = |node: &Node| matches!(node.expr, Expr::Undefined(Cause::Call)) || inside(node);
    match &literal.kind {
        LiteralKind::Test(node) => match &node.expr {
            // `==` is no call: its sides are inside the `not`.
            Expr::Compare(Relation::Equal, sides) => sides.iter().any(side),
            _ => inside(node),
        },
        LiteralKind::Unify(left, right) => side(left) || side(right),
        _ => false,
    }
}

fn contains_undefined(node: &Node) -> bool {
    is_undefined(node) || node.children().into_iter().any(contains_undefined)
}

/// Recognises `concat("", ["^(?:", p, ")$"])`, which anchors `p`.
fn whole_pattern(pattern: Node) -> (Node, Span) {
    let is = |node: &Node, text: &str| node.as_constant().and_then(Constant::as_str) == Some(text);
    let Expr::Builtin(Builtin::Concat, arguments) = pattern.expr else { return (pattern, Span::Part) };
    let mut parts = arguments.into_iter();
    let (separator, list) = (parts.next(), parts.next());
    match (separator, list) {
        (Some(separator), Some(Node { expr: Expr::Array(mut items), .. }))
            if is(&separator, "") && items.len() == 3 && is(&items[0], "^(?:") && is(&items[2], ")$") =>
        {
            (items.swap_remove(1), Span::Whole)
        }
        (separator, list) => {
            let arguments = separator.into_iter().chain(list).collect();
            (Node::new(pattern.pos, Expr::Builtin(Builtin::Concat, arguments)), Span::Part)
        }
    }
}

// Names that a term mentions, closures left out.

fn is_pattern(term: &Term) -> bool {
    match &term.kind {
        TermKind::Name(_) | TermKind::Constant(_) => true,
        TermKind::Array(items) => items.iter().all(is_pattern),
        TermKind::Object(fields) => {
            fields.iter().all(|(key, value)| matches!(key.kind, TermKind::Constant(_)) && is_pattern(value))
        }
        _ => false,
    }
}

/// The names that a pattern declares.
fn pattern_names(term: &Term, names: &mut HashSet<String>) {
    match &term.kind {
        TermKind::Name(name) if name != "_" => {
            names.insert(name.clone());
        }
        TermKind::Array(items) => items.iter().for_each(|item| pattern_names(item, names)),
        TermKind::Object(fields) => fields.iter().for_each(|(_, value)| pattern_names(value, names)),
        _ => {}
    }
}

fn literal_names(literal: &ast::Literal, names: &mut BTreeSet<String>) {
    match &literal.kind {
        ast::LiteralKind::Declare(_) => {}
        ast::LiteralKind::SomeIn { key, value, collection } => {
            key.iter().chain([value, collection]).for_each(|term| term_names(term, names));
        }
        ast::LiteralKind::Every { domain, .. } => term_names(domain, names),
        ast::LiteralKind::Not(inner) => literal_names(inner, names),
        ast::LiteralKind::Test(term) => term_names(term, names),
        ast::LiteralKind::Assign(left, right) | ast::LiteralKind::Unify(left, right) => {
            term_names(left, names);
            term_names(right, names);
        }
    }
}

fn term_names(term: &Term, names: &mut BTreeSet<String>) {
    match &term.kind {
        TermKind::Constant(_) | TermKind::OtherNumber(_) | TermKind::Comprehension { .. } => {}
        TermKind::Name(name) => {
            names.insert(name.clone());
        }
        TermKind::Ref(base, path) => {
            term_names(base, names);
            path.iter().for_each(|part| term_names(part, names));
        }
        TermKind::Call(_, items) | TermKind::Array(items) | TermKind::Set(items) => {
            items.iter().for_each(|item| term_names(item, names));
        }
        TermKind::Object(fields) => fields.iter().for_each(|(key, value)| {
            term_names(key, names);
            term_names(value, names);
        }),
    }
}
