//! The resolved program to instructions.
//!
//! A literal runs as soon as its variables are bound, in the order of the source otherwise. An
//! unbound variable in a reference is a loop around all that follows, so bodies nest to the right;
//! a loop whose variables nothing else needs is closed at once instead, at its first success.
//!
//! Registers are handed out like a stack: those of a body are free again after it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use parma_guest::policy::builder::{self, Builder, FunctionBuilder, Open, PatternId};
use parma_guest::policy::format::{Class, Const, MAX_NESTING, MAX_REGISTERS, Pattern};
use parma_guest::policy::instruction::{self as code, Args, Builtin, Instruction, Reg, Relation};

use super::automata::Automata;
use super::constant::Constant;
use super::error::{Pos, Refusal, Result};
use super::hir::{
    Cause, Chain, Collection, Expr, Function, FunctionId, FunctionKind, Literal, LiteralKind, Node, Program,
    Span, Variable,
};
use super::order::{Bound, binds, flow, flows, loops, mentioned};
use super::patterns::{Computed, Language, Patterns};
use super::regex;

/// What has been put into an image so far.
pub(crate) struct Image<'a> {
    pub builder: Builder,
    program: &'a Program,
    computed: &'a Computed,
    functions: HashMap<FunctionId, builder::FunctionId>,
    automata: &'a Automata,
    /// The shared automata that are in the image, by their number.
    shared_automata: BTreeMap<usize, builder::DfaId>,
    languages: BTreeMap<Language, Option<PatternId>>,
    /// Functions that are called from more than one place: worth remembering.
    shared: HashSet<FunctionId>,
}

impl<'a> Image<'a> {
    pub fn new(
        compiler: u32,
        program: &'a Program,
        computed: &'a Computed,
        automata: &'a Automata,
    ) -> Image<'a> {
        Image {
            builder: Builder::new(compiler),
            program,
            computed,
            automata,
            shared_automata: BTreeMap::new(),
            functions: HashMap::new(),
            languages: BTreeMap::new(),
            shared: HashSet::new(),
        }
    }

    /// Adds the functions that `roots` reach, callees first.
    pub fn functions(&mut self, roots: &[FunctionId]) -> Result<()> {
        let reached = reached(self.program, roots);
        let mut calls: HashMap<FunctionId, usize> = HashMap::new();
        for &id in &reached {
            self.program.functions[id].walk(&mut |node| {
                if let Expr::Call(callee, _) = node.expr {
                    *calls.entry(callee).or_default() += 1;
                }
            });
        }
        self.shared = calls.into_iter().filter(|&(_, count)| count > 1).map(|(id, _)| id).collect();
        for id in reached {
            self.function(id)?;
        }
        Ok(())
    }

    /// The function's number in the image.
    pub fn number(&self, id: FunctionId) -> Option<builder::FunctionId> {
        self.functions.get(&id).copied()
    }

    /// Where the function with this number in the image is defined.
    pub fn place(&self, number: u32) -> Option<(&'a str, Pos)> {
        let (&id, _) = self.functions.iter().find(|(_, function)| function.0 == number)?;
        let function = &self.program.functions[id];
        Some((&function.name, function.pos))
    }

    /// Adds a function without parameters that returns `node`.
    pub fn expression(&mut self, node: &Node) -> Result<builder::FunctionId> {
        let mut emitter = Emitter::new(self, "expression", 0);
        emitter.body(&mut Vec::new(), &Goal::ReturnLast(node))?;
        let code = emitter.code;
        Ok(self.builder.function(code))
    }

    fn function(&mut self, id: FunctionId) -> Result<()> {
        let program = self.program;
        let function = &*program.functions[id];
        let memo = function.parameters == 0 && self.shared.contains(&id);
        // An `else` ends its own definition only: beside others it is a function of its own.
        let apart = function.chains.len() > 1 && function.chains.iter().any(|chain| chain.branches.len() > 1);
        let mut parts = Vec::new();
        if apart {
            for chain in &function.chains {
                let mut emitter = Emitter::new(self, &function.name, function.parameters);
                emitter.value_function(std::slice::from_ref(chain), None)?;
                let code = emitter.code;
                parts.push(self.builder.function(code));
            }
        }
        let mut emitter = Emitter::new(self, &function.name, function.parameters);
        if memo {
            emitter.code = emitter.code.memo();
        }
        match function.kind {
            FunctionKind::Set => emitter.set_function(function)?,
            FunctionKind::Value if apart => emitter.parts_function(&parts, function)?,
            FunctionKind::Value => emitter.value_function(&function.chains, function.default.as_ref())?,
        }
        let (code, nesting) = (emitter.code, emitter.nesting);
        if nesting > MAX_NESTING {
            let message =
                format!("more than {MAX_NESTING} loops and bodies inside each other; split the rule");
            return Err(Refusal::new(function.pos, "nesting", message));
        }
        let number = self.builder.function(code);
        self.functions.insert(id, number);
        Ok(())
    }

    fn constant(&mut self, value: &Constant) -> Const {
        match value {
            Constant::Null => Const::NULL,
            Constant::Bool(value) => Const::bool(*value),
            Constant::Int(value) => self.builder.int(*value),
            Constant::Str(text) => self.builder.string(text),
            Constant::Array(items) => {
                let items = items.iter().map(|item| self.constant(item)).collect();
                self.builder.array(items)
            }
            Constant::Set(members) => {
                let members = members.iter().map(|member| self.constant(member)).collect();
                self.builder.set(members)
            }
            Constant::Object(fields) => {
                let fields =
                    fields.iter().map(|(key, value)| (self.constant(key), self.constant(value))).collect();
                // Keys of a map are unique, so there is no conflict.
                self.builder.object(fields).unwrap_or(Const::NULL)
            }
        }
    }

    /// The image's DFA of a shared automaton.
    fn shared_automaton(&mut self, number: usize) -> builder::DfaId {
        let (automata, builder) = (self.automata, &mut self.builder);
        *self.shared_automata.entry(number).or_insert_with(|| builder.dfa(automata.bytes(number).to_vec()))
    }

    /// The number of a pattern in the image; `None` if it is no regular expression.
    fn pattern(&mut self, pos: Pos, language: &Language) -> Result<Option<PatternId>> {
        if let Some(&number) = self.languages.get(language) {
            return Ok(number);
        }
        if let Some((automaton, pattern)) = self.automata.place(language) {
            let dfa = self.shared_automaton(automaton).0;
            if dfa < Pattern::MAX_DFAS {
                let number = Some(self.builder.pattern(Pattern::Member { dfa, pattern }));
                self.languages.insert(language.clone(), number);
                return Ok(number);
            }
        }
        if language.span == Span::Find {
            let number = match regex::program(&language.text, Span::Find) {
                Ok(steps) => {
                    let program = self.builder.program(&steps);
                    Some(self.builder.pattern(Pattern::Program(program)))
                }
                Err(regex::Refused::Invalid(_)) => None,
                Err(regex::Refused::Unsupported(why)) => {
                    let message = format!("{:?}: {why}", language.text);
                    return Err(Refusal::new(pos, "regular expression", message));
                }
            };
            self.languages.insert(language.clone(), number);
            return Ok(number);
        }
        let number = match regex::automaton(&language.text, language.span) {
            // Comparing is cheaper than an automaton, and smaller.
            Ok(_) if language.span == Span::Whole && regex::is_literal(&language.text) => {
                let string = self.builder.string(&language.text);
                Some(self.builder.pattern(Pattern::Literal(string.index())))
            }
            Ok(bytes) => {
                let dfa = self.builder.dfa(bytes);
                Some(self.builder.pattern(Pattern::Dfa(dfa.0)))
            }
            Err(regex::Refused::Invalid(_)) => None,
            Err(regex::Refused::Unsupported(why)) => {
                return Err(Refusal::new(pos, "regular expression", format!("{:?}: {why}", language.text)));
            }
        };
        self.languages.insert(language.clone(), number);
        Ok(number)
    }
}

/// The functions that `roots` reach, ascending.
pub(crate) fn reached(program: &Program, roots: &[FunctionId]) -> Vec<FunctionId> {
    let mut seen: HashSet<FunctionId> = roots.iter().copied().collect();
    let mut open: Vec<FunctionId> = roots.to_vec();
    while let Some(id) = open.pop() {
        program.functions[id].walk(&mut |node| {
            if let Expr::Call(callee, _) = node.expr
                && seen.insert(callee)
            {
                open.push(callee);
            }
        });
    }
    let mut reached: Vec<FunctionId> = seen.into_iter().collect();
    reached.sort_unstable();
    reached
}

/// What a body is for.
enum Goal<'a> {
    /// The function returns this; `last` if no other way can return anything else.
    Return(&'a Node),
    ReturnLast(&'a Node),
    /// A comprehension gets this.
    Yield {
        key: Option<&'a Node>,
        value: &'a Node,
        kind: Collection,
    },
    /// That there is a solution is enough.
    Succeed,
}

impl Goal<'_> {
    fn nodes(&self) -> Vec<&Node> {
        match self {
            Goal::Return(value) | Goal::ReturnLast(value) => vec![value],
            Goal::Yield { key, value, .. } => key.iter().copied().chain([*value]).collect(),
            Goal::Succeed => Vec::new(),
        }
    }

    /// Whether a solution that is found twice is the same as found once.
    fn ignores_repetition(&self) -> bool {
        !matches!(self, Goal::Yield { kind: Collection::Array, .. })
    }
}

struct Opened {
    open: Open,
    next: usize,
}

struct Emitter<'i, 'a> {
    image: &'i mut Image<'a>,
    code: FunctionBuilder,
    /// The next free register.
    next: usize,
    /// The first register that was never used since the innermost `Some` was opened.
    high: usize,
    /// The most bodies inside each other so far.
    nesting: usize,
    variables: Vec<Option<Reg>>,
    /// How often each variable is mentioned: once means that nothing reads it.
    mentions: Vec<usize>,
    /// Loops that are open in the current body.
    loops: Vec<Opened>,
    /// Values that were evaluated ahead, outside of a `not`.
    ahead: HashMap<*const Node, Reg>,
    /// The function has one definition only: outside of loops a result is the last.
    single: bool,
    /// There may be a result at this point, and the function goes on.
    may_have_result: bool,
}

impl<'i, 'a> Emitter<'i, 'a> {
    fn new(image: &'i mut Image<'a>, name: &str, parameters: usize) -> Self {
        // A number of parameters beyond the limit is refused where registers are counted.
        let arity = u8::try_from(parameters).unwrap_or(u8::MAX);
        Emitter {
            image,
            code: FunctionBuilder::new(name, arity),
            next: parameters,
            high: parameters,
            nesting: 0,
            variables: Vec::new(),
            mentions: Vec::new(),
            loops: Vec::new(),
            ahead: HashMap::new(),
            single: false,
            may_have_result: false,
        }
    }

    // Functions

    fn value_function(&mut self, chains: &[Chain], default: Option<&Constant>) -> Result<()> {
        let mut branches = chains.iter().flat_map(|chain| &chain.branches);
        let first = branches.next().and_then(|branch| branch.value.as_constant());
        let one_value = first.is_some() && branches.all(|branch| branch.value.as_constant() == first);
        let count: usize = chains.iter().map(|chain| chain.branches.len()).sum();
        let mut done = 0;
        self.single = chains.len() == 1;
        for chain in chains {
            self.enter_chain(chain);
            for (number, branch) in chain.branches.iter().enumerate() {
                if number > 0 {
                    self.leave();
                }
                done += 1;
                let alone = done == count && default.is_none();
                let goal =
                    if one_value { Goal::ReturnLast(&branch.value) } else { Goal::Return(&branch.value) };
                let body = (!alone).then(|| self.open(Instruction::Block { body: 0 }));
                let before = self.variables.clone();
                let mut literals: Vec<&Literal> = branch.body.iter().collect();
                self.parameters(chain)?;
                self.body(&mut literals, &goal)?;
                self.variables = before;
                if let Some(body) = body {
                    self.close(body);
                }
            }
        }
        self.default_value(default, chains.is_empty())
    }

    fn default_value(&mut self, default: Option<&Constant>, only: bool) -> Result<()> {
        if let Some(value) = default {
            if !only {
                self.leave();
            }
            let value = self.image.constant(value);
            self.code.emit(Instruction::ReturnConst { value });
        }
        Ok(())
    }

    /// Ends the function if it has a result.
    fn leave(&mut self) {
        if self.may_have_result {
            self.code.emit(Instruction::Leave);
        }
    }

    /// Calls the functions of the definitions one after another.
    fn parts_function(&mut self, parts: &[builder::FunctionId], function: &Function) -> Result<()> {
        let args: Vec<Reg> = (0..function.parameters).map(|n| u8::try_from(n).unwrap_or(u8::MAX)).collect();
        for part in parts {
            let body = self.open(Instruction::Block { body: 0 });
            let dst = self.register(function.pos)?;
            self.code.emit(Instruction::Call { dst: Some(dst), function: part.0, args: Args(&args) });
            self.code.emit(Instruction::Return { value: dst });
            self.may_have_result = true;
            self.close(body);
        }
        self.default_value(function.default.as_ref(), false)
    }

    fn set_function(&mut self, function: &Function) -> Result<()> {
        let dst = self.register(function.pos)?;
        let set = self.open(Instruction::Collect { dst, kind: code::Collection::Set, body: 0 });
        for chain in &function.chains {
            self.enter_chain(chain);
            for branch in &chain.branches {
                let body = self.open(Instruction::Block { body: 0 });
                let goal = Goal::Yield { key: None, value: &branch.value, kind: Collection::Set };
                self.body(&mut branch.body.iter().collect(), &goal)?;
                self.close(body);
            }
        }
        self.close(set);
        self.code.emit(Instruction::ReturnLast { value: dst });
        Ok(())
    }

    fn enter_chain(&mut self, chain: &Chain) {
        self.variables = vec![None; chain.variables];
        self.mentions = vec![0; chain.variables];
        let mentions = &mut self.mentions;
        let mut count = |node: &Node| {
            if let Expr::Variable(variable) = node.expr {
                mentions[variable] += 1;
            }
        };
        chain.parameters.iter().for_each(|node| node.walk(&mut count));
        for branch in &chain.branches {
            branch.body.iter().for_each(|literal| literal.walk(&mut count));
            branch.value.walk(&mut count);
        }
    }

    /// The arguments are in the first registers: binds and compares.
    fn parameters(&mut self, chain: &Chain) -> Result<()> {
        for (number, parameter) in chain.parameters.iter().enumerate() {
            let register = u8::try_from(number)
                .map_err(|_| Refusal::new(parameter.pos, "function", "more than 255 arguments"))?;
            self.bind(parameter, register)?;
        }
        Ok(())
    }

    // Registers and bodies

    fn register(&mut self, pos: Pos) -> Result<Reg> {
        let register = self.next;
        if register >= MAX_REGISTERS {
            return Err(Refusal::new(
                pos,
                "rule",
                format!("needs more than {MAX_REGISTERS} intermediate values; split it into several rules"),
            ));
        }
        self.next += 1;
        self.high = self.high.max(self.next);
        u8::try_from(register).map_err(|_| Refusal::new(pos, "rule", "too many intermediate values"))
    }

    fn open(&mut self, instruction: Instruction<'_>) -> Opened {
        let open = self.code.open(instruction);
        self.nesting = self.nesting.max(self.code.nesting());
        Opened { next: self.next, open }
    }

    fn close(&mut self, opened: Opened) {
        self.code.close(opened.open);
        self.next = opened.next;
    }

    fn open_loop(&mut self, instruction: Instruction<'_>) {
        let opened = self.open(instruction);
        self.loops.push(opened);
    }

    /// Emits the literals in a possible order, then the goal, inside all loops they open.
    fn body(&mut self, literals: &mut Vec<&Literal>, goal: &Goal<'_>) -> Result<()> {
        let outer = self.loops.len();
        while !literals.is_empty() {
            let mut bound = self.bound();
            let ready = literals.iter().position(|literal| {
                let mut trial = bound.clone();
                let ready = flows(literal, &mut trial);
                if ready {
                    bound = trial;
                }
                ready
            });
            let Some(ready) = ready else {
                return Err(Refusal::new(
                    literals[0].pos,
                    "variable",
                    "unsafe: this expression needs a variable that nothing gives a value",
                ));
            };
            let literal = literals.remove(ready);
            let group = self.closed_group(literal, &bound, literals, goal);
            match group {
                Some(group) => {
                    // Nothing else needs these variables: the first solution is enough.
                    let mut inside = vec![literal];
                    literals.retain(|other| {
                        let member = group.contains(&std::ptr::from_ref(*other));
                        if member {
                            inside.push(other);
                        }
                        !member
                    });
                    let before = self.variables.clone();
                    let high = std::mem::replace(&mut self.high, self.next);
                    let some = self.open(Instruction::Some { body: 0 });
                    let loops = std::mem::take(&mut self.loops);
                    self.body(&mut inside, &Goal::Succeed)?;
                    self.loops = loops;
                    self.close(some);
                    // Its registers stay written.
                    self.next = self.high;
                    self.high = self.high.max(high);
                    self.variables = before;
                }
                None => self.literal(literal)?,
            }
        }
        self.goal(goal, outer)?;
        let looped = self.loops.len() > outer;
        while self.loops.len() > outer {
            if let Some(opened) = self.loops.pop() {
                self.close(opened);
            }
        }
        if looped && matches!(goal, Goal::Succeed) {
            self.code.emit(Instruction::Fail);
        }
        Ok(())
    }

    fn goal(&mut self, goal: &Goal<'_>, outer: usize) -> Result<()> {
        let mut bound = self.bound();
        for node in goal.nodes() {
            if !flow(node, &mut bound, true) {
                return Err(unsafe_variable(node.pos));
            }
        }
        match goal {
            Goal::Return(value) | Goal::ReturnLast(value) => {
                // The value's own references may open loops, so it comes first.
                let register = match &value.expr {
                    Expr::Constant(_) => None,
                    _ => Some(self.value(value)?),
                };
                let last = matches!(goal, Goal::ReturnLast(_)) || self.single && self.loops.is_empty();
                match (&value.expr, register) {
                    (Expr::Constant(value), _) if last => {
                        let value = self.image.constant(value);
                        self.code.emit(Instruction::ReturnConst { value });
                    }
                    (_, Some(value)) if last => self.code.emit(Instruction::ReturnLast { value }),
                    _ => {
                        let value = register.map_or_else(|| self.value(value), Ok)?;
                        self.code.emit(Instruction::Return { value });
                    }
                }
                self.may_have_result |= !last;
            }
            Goal::Yield { key: Some(key), value, .. } => {
                let key = self.value(key)?;
                let value = self.value(value)?;
                self.code.emit(Instruction::YieldPair { key, value });
            }
            Goal::Yield { key: None, value, .. } => {
                let value = self.value(value)?;
                self.code.emit(Instruction::Yield { value });
            }
            Goal::Succeed => {
                let depth = self.loops.len() - outer;
                if depth > 0 {
                    let depth = u8::try_from(depth).unwrap_or(u8::MAX);
                    self.code.emit(Instruction::Done { depth });
                }
            }
        }
        Ok(())
    }

    /// If `literal` loops, the literals that have to be inside of its loop, provided that the loop
    /// can be closed after them.
    fn closed_group(
        &self,
        literal: &Literal,
        bound: &Bound,
        others: &[&Literal],
        goal: &Goal<'_>,
    ) -> Option<HashSet<*const Literal>> {
        if !goal.ignores_repetition() || !loops(literal, &self.bound()) {
            return None;
        }
        let mut inside: Bound =
            bound.iter().zip(self.bound()).map(|(after, before)| *after && !before).collect();
        let mut group: HashSet<*const Literal> = HashSet::new();
        let mut grown = true;
        while grown {
            grown = false;
            for other in others {
                if group.contains(&std::ptr::from_ref(*other)) {
                    continue;
                }
                let mentioned = mentioned(other);
                if mentioned.iter().any(|&variable| inside[variable]) {
                    group.insert(std::ptr::from_ref(*other));
                    mentioned
                        .into_iter()
                        .filter(|&v| self.variables[v].is_none())
                        .for_each(|v| inside[v] = true);
                    grown = true;
                }
            }
        }
        let mut needed = false;
        for node in goal.nodes() {
            node.walk(&mut |node| {
                if let Expr::Variable(variable) = node.expr {
                    needed |= inside[variable];
                }
            });
        }
        let rest = others.len() - group.len();
        // With nothing after it, closing the loop gains nothing for a goal that succeeds at once.
        let pointless = rest == 0 && matches!(goal, Goal::Succeed | Goal::ReturnLast(_));
        (!needed && !pointless).then_some(group)
    }

    /// Of `{part | some text in list; part := split(text, separator)[0]}`, a set that is only counted: the list, which
    /// has a value here, and the separator. The set need not be made.
    fn parts_counted<'n>(&self, counted: &'n [Node]) -> Option<(&'n Node, &'n Node)> {
        let [Node { expr: Expr::Comprehension(set), .. }] = counted else { return None };
        let [some, part] = set.body.as_slice() else { return None };
        let LiteralKind::Some { key: None, value: text, collection: list } = &some.kind else { return None };
        let LiteralKind::Unify(name, Node { expr: Expr::Ref(split, first), .. }) = &part.kind else {
            return None;
        };
        let (Expr::Builtin(Builtin::Split, arguments), [first]) = (&split.expr, first.as_slice()) else {
            return None;
        };
        let [of, separator] = arguments.as_slice() else { return None };
        let (Expr::Variable(text), Expr::Variable(of)) = (&text.expr, &of.expr) else { return None };
        let (Expr::Variable(name), Expr::Variable(yielded)) = (&name.expr, &set.value.expr) else {
            return None;
        };
        let Expr::Variable(list_variable) = list.expr else { return None };
        let inner = |variable: &Variable| set.inner.contains(variable);
        let fits = set.kind == Collection::Set
            && text == of
            && name == yielded
            && text != name
            && inner(text)
            && inner(name)
            && self.variables[list_variable].is_some()
            && first.as_constant() == Some(&Constant::Int(0))
            && separator.as_constant().and_then(Constant::as_str).is_some_and(|text| !text.is_empty());
        fits.then_some((list, separator))
    }

    fn bound(&self) -> Bound {
        self.variables.iter().map(Option::is_some).collect()
    }

    // Literals

    fn literal(&mut self, literal: &Literal) -> Result<()> {
        match &literal.kind {
            LiteralKind::Test(node) => self.test(node),
            LiteralKind::Unify(left, right) => self.unify(left, right),
            LiteralKind::Some { key, value, collection } => {
                let source = self.value(collection)?;
                self.scan(source, key.as_ref(), Some(value), literal.pos)
            }
            LiteralKind::Every { key, value, domain, body, .. } => {
                let source = self.value(domain)?;
                let target = |this: &mut Self, variable: Variable| -> Result<Option<Reg>> {
                    // A variable of `every` is declared, not mentioned: any mention reads it.
                    if this.mentions[variable] == 0 {
                        return Ok(None);
                    }
                    let register = this.register(literal.pos)?;
                    this.variables[variable] = Some(register);
                    Ok(Some(register))
                };
                let next = self.next;
                let before = self.variables.clone();
                let key = key.map(|key| target(self, key)).transpose()?.flatten();
                let value = target(self, *value)?;
                let mut every = self.open(Instruction::Every { source, key, value, body: 0 });
                every.next = next;
                self.inner_body(body)?;
                self.close(every);
                self.variables = before;
                Ok(())
            }
            // What is known to be undefined is not.
            LiteralKind::Not(inner)
                if matches!(
                    inner.kind,
                    LiteralKind::Test(Node { expr: Expr::Undefined(Cause::Reference), .. })
                ) =>
            {
                Ok(())
            }
            LiteralKind::Not(inner) => {
                match &inner.kind {
                    LiteralKind::Test(node) => match &node.expr {
                        Expr::Compare(Relation::Equal, sides) => {
                            sides.iter().try_for_each(|side| self.ahead_of_side(side))?;
                        }
                        Expr::Ref(..) => self.ahead_of_side(node)?,
                        _ => node.children().into_iter().try_for_each(|child| self.evaluate_ahead(child))?,
                    },
                    LiteralKind::Unify(left, right) => {
                        self.ahead_of_side(left)?;
                        self.ahead_of_side(right)?;
                    }
                    LiteralKind::Every { domain, .. } => self.evaluate_ahead(domain)?,
                    LiteralKind::Some { .. } | LiteralKind::Not(_) => {}
                }
                let not = self.open(Instruction::Not { body: 0 });
                let loops = std::mem::take(&mut self.loops);
                let before = self.variables.clone();
                self.literal(inner)?;
                self.variables = before;
                self.loops = loops;
                self.close(not);
                Ok(())
            }
        }
    }

    /// The body of an `every`: it succeeds or fails.
    fn inner_body(&mut self, body: &[Literal]) -> Result<()> {
        let loops = std::mem::take(&mut self.loops);
        let result = self.body(&mut body.iter().collect(), &Goal::Succeed);
        self.loops = loops;
        result
    }

    fn evaluate_ahead(&mut self, node: &Node) -> Result<()> {
        if !matches!(node.expr, Expr::Constant(_) | Expr::Variable(_)) {
            let register = self.value(node)?;
            self.ahead.insert(std::ptr::from_ref(node), register);
        }
        Ok(())
    }

    /// Of a side of `==` under `not`, a reference itself stays inside, but not what it is made of.
    fn ahead_of_side(&mut self, side: &Node) -> Result<()> {
        let (base, path) = match &side.expr {
            Expr::Ref(base, path) => (&**base, path.as_slice()),
            _ => (side, &[][..]),
        };
        if !self.stays_inside(base) {
            self.evaluate_ahead(base)?;
        } else if let Expr::Call(_, arguments) = &base.expr {
            // Of a package that is chosen at run time, its name.
            arguments.iter().try_for_each(|argument| self.evaluate_ahead(argument))?;
        }
        path.iter().try_for_each(|part| self.evaluate_ahead(part))
    }

    /// What a `not` keeps inside although it stands in an argument's place: references to the input,
    /// the state, rules and variables. Calls, literals and comprehensions are evaluated ahead.
    fn stays_inside(&self, node: &Node) -> bool {
        match &node.expr {
            Expr::Constant(_)
            | Expr::Variable(_)
            | Expr::Input
            | Expr::State
            | Expr::Ref(..)
            | Expr::Undefined(_) => true,
            Expr::Call(id, _) => !self.image.program.functions[*id].called,
            _ => false,
        }
    }

    fn test(&mut self, node: &Node) -> Result<()> {
        match &node.expr {
            Expr::Compare(relation, sides) => self.compare(None, *relation, &sides[0], &sides[1]),
            Expr::Call(id, arguments) => {
                let arguments = self.arguments(arguments)?;
                self.emit_call(None, *id, &arguments, node.pos)
            }
            // `false` is not told apart from what is not there.
            Expr::Builtin(Builtin::Member, arguments)
                if let [item, Node { expr: Expr::Constant(set @ Constant::Set(members)), .. }] =
                    arguments.as_slice()
                    && !members.contains(&Constant::Bool(false)) =>
            {
                let from = self.image.constant(set);
                let key = self.value(item)?;
                self.code.emit(Instruction::Lookup { dst: None, key, from });
                Ok(())
            }
            Expr::Builtin(builtin, arguments) => {
                let arguments = self.arguments(arguments)?;
                self.code.emit(Instruction::Builtin { dst: None, builtin: *builtin, args: Args(&arguments) });
                Ok(())
            }
            Expr::Match { pattern, text, span } => self.regex(None, pattern, text, *span),
            Expr::Find { .. } => self.find(None, node),
            _ => {
                let value = self.value(node)?;
                self.code.emit(Instruction::Test { value });
                Ok(())
            }
        }
    }

    fn unify(&mut self, left: &Node, right: &Node) -> Result<()> {
        let bound = self.bound();
        if binds(left, &bound) {
            let value = self.value(right)?;
            return self.bind(left, value);
        }
        if binds(right, &bound) {
            let value = self.value(left)?;
            return self.bind(right, value);
        }
        self.compare(None, Relation::Equal, left, right)
    }

    /// Loops over a collection and binds what each element gives.
    fn scan(&mut self, source: Reg, key: Option<&Node>, value: Option<&Node>, pos: Pos) -> Result<()> {
        let unread = |this: &Self, node: &Node| match node.expr {
            Expr::Variable(variable) => this.variables[variable].is_none() && this.mentions[variable] <= 1,
            _ => false,
        };
        let key = key.filter(|node| !unread(self, node));
        let value = value.filter(|node| !unread(self, node));
        let next = self.next;
        let key_register = key.map(|_| self.register(pos)).transpose()?;
        let value_register = value.map(|_| self.register(pos)).transpose()?;
        self.open_loop(Instruction::Scan { source, key: key_register, value: value_register, body: 0 });
        if let Some(opened) = self.loops.last_mut() {
            opened.next = next;
        }
        if let (Some(node), Some(register)) = (key, key_register) {
            self.bind(node, register)?;
        }
        if let (Some(node), Some(register)) = (value, value_register) {
            self.bind(node, register)?;
        }
        Ok(())
    }

    /// Gives the unbound variables of a pattern their parts of a value; the rest must be equal.
    fn bind(&mut self, pattern: &Node, value: Reg) -> Result<()> {
        let pos = pattern.pos;
        if !binds(pattern, &self.bound()) {
            return match &pattern.expr {
                Expr::Constant(constant) => {
                    let right = self.image.constant(constant);
                    self.code.emit(Instruction::CompareConst {
                        relation: Relation::Equal,
                        dst: None,
                        left: value,
                        right,
                    });
                    Ok(())
                }
                _ => {
                    let other = self.value(pattern)?;
                    self.code.emit(Instruction::Compare {
                        relation: Relation::Equal,
                        dst: None,
                        left: value,
                        right: other,
                    });
                    Ok(())
                }
            };
        }
        match &pattern.expr {
            Expr::Variable(variable) => {
                self.variables[*variable] = Some(value);
                Ok(())
            }
            Expr::Array(items) => {
                let bounds = (Constant::Array(Default::default()), Constant::Object(Default::default()));
                self.expect_collection(value, &bounds, items.len(), pos)?;
                for (index, item) in items.iter().enumerate() {
                    let index = i64::try_from(index).unwrap_or(i64::MAX);
                    let key = self.image.constant(&Constant::Int(index));
                    let dst = self.register(pos)?;
                    self.code.emit(Instruction::GetConst { dst, from: value, key });
                    self.bind(item, dst)?;
                }
                Ok(())
            }
            Expr::Object(fields) => {
                let bounds = (Constant::Object(Default::default()), Constant::Set(Default::default()));
                self.expect_collection(value, &bounds, fields.len(), pos)?;
                for (key, field) in fields {
                    let dst = self.get(value, key)?;
                    self.bind(field, dst)?;
                }
                Ok(())
            }
            _ => {
                Err(Refusal::new(pos, "pattern", "only names, constants, arrays and objects can be matched"))
            }
        }
    }

    /// Fails unless `value` is of the kind whose smallest value is `bounds.0` (the next kind's is
    /// `bounds.1`), with `length` elements.
    fn expect_collection(
        &mut self,
        value: Reg,
        bounds: &(Constant, Constant),
        length: usize,
        pos: Pos,
    ) -> Result<()> {
        for (relation, constant) in [(Relation::GreaterOrEqual, &bounds.0), (Relation::Less, &bounds.1)] {
            let right = self.image.constant(constant);
            self.code.emit(Instruction::CompareConst { relation, dst: None, left: value, right });
        }
        let count = self.register(pos)?;
        self.code.emit(Instruction::Builtin {
            dst: Some(count),
            builtin: Builtin::Count,
            args: Args(&[value]),
        });
        let right = self.image.constant(&Constant::Int(i64::try_from(length).unwrap_or(i64::MAX)));
        self.code.emit(Instruction::CompareConst {
            relation: Relation::Equal,
            dst: None,
            left: count,
            right,
        });
        Ok(())
    }

    // Values

    fn value(&mut self, node: &Node) -> Result<Reg> {
        if let Some(&register) = self.ahead.get(&std::ptr::from_ref(node)) {
            return Ok(register);
        }
        let pos = node.pos;
        match &node.expr {
            Expr::Builtin(Builtin::Count, counted) if self.parts_counted(counted).is_some() => {
                let Some((list, separator)) = self.parts_counted(counted) else { return self.value(node) };
                let arguments = [self.value(list)?, self.value(separator)?];
                let dst = self.register(pos)?;
                let (builtin, args) = (Builtin::CountBefore, Args(&arguments));
                self.code.emit(Instruction::Builtin { dst: Some(dst), builtin, args });
                Ok(dst)
            }
            Expr::Variable(variable) => self.variables[*variable].ok_or_else(|| unsafe_variable(pos)),
            Expr::Ref(base, path) => {
                let (mut from, path) = match (&base.expr, path.as_slice()) {
                    (Expr::Input, [Node { expr: Expr::Constant(key), .. }, rest @ ..])
                        if !self.ahead.contains_key(&std::ptr::from_ref(&**base)) =>
                    {
                        let key = self.image.constant(key);
                        let dst = self.register(pos)?;
                        self.code.emit(Instruction::InputGet { dst, key });
                        (dst, rest)
                    }
                    (Expr::State, [Node { expr: Expr::Constant(key), .. }, rest @ ..])
                        if !self.ahead.contains_key(&std::ptr::from_ref(&**base)) =>
                    {
                        let key = self.image.constant(key);
                        let dst = self.register(pos)?;
                        self.code.emit(Instruction::StateGet { dst, key });
                        (dst, rest)
                    }
                    // The first part of a text needs no others.
                    (Expr::Builtin(Builtin::Split, parts), [first, rest @ ..])
                        if first.as_constant() == Some(&Constant::Int(0))
                            && parts[1]
                                .as_constant()
                                .and_then(Constant::as_str)
                                .is_some_and(|s| !s.is_empty())
                            && !self.ahead.contains_key(&std::ptr::from_ref(&**base)) =>
                    {
                        let arguments = self.arguments(parts)?;
                        let dst = self.register(pos)?;
                        let (builtin, args) = (Builtin::Before, Args(&arguments));
                        self.code.emit(Instruction::Builtin { dst: Some(dst), builtin, args });
                        (dst, rest)
                    }
                    (Expr::Constant(table), [key, rest @ ..]) if !binds(key, &self.bound()) => {
                        let from = self.image.constant(table);
                        let key = self.value(key)?;
                        let dst = self.register(pos)?;
                        self.code.emit(Instruction::Lookup { dst: Some(dst), key, from });
                        (dst, rest)
                    }
                    _ => (self.value(base)?, path.as_slice()),
                };
                for part in path {
                    if binds(part, &self.bound()) {
                        let dst = self.register(pos)?;
                        let next = dst;
                        let unread = matches!(part.expr, Expr::Variable(v) if self.mentions[v] <= 1);
                        let key = if unread { None } else { Some(self.register(pos)?) };
                        self.open_loop(Instruction::Scan { source: from, key, value: Some(dst), body: 0 });
                        if let Some(opened) = self.loops.last_mut() {
                            opened.next = usize::from(next);
                        }
                        if let Some(key) = key {
                            self.bind(part, key)?;
                        }
                        from = dst;
                    } else {
                        from = self.get(from, part)?;
                    }
                }
                Ok(from)
            }
            Expr::Compare(relation, sides) => {
                let dst = self.register(pos)?;
                self.compare(Some(dst), *relation, &sides[0], &sides[1])?;
                Ok(dst)
            }
            Expr::Call(id, arguments) => {
                let arguments = self.arguments(arguments)?;
                let dst = self.register(pos)?;
                self.emit_call(Some(dst), *id, &arguments, pos)?;
                Ok(dst)
            }
            Expr::Builtin(builtin, arguments) => {
                let arguments = self.arguments(arguments)?;
                let dst = self.register(pos)?;
                let args = Args(&arguments);
                self.code.emit(Instruction::Builtin { dst: Some(dst), builtin: *builtin, args });
                Ok(dst)
            }
            Expr::Match { pattern, text, span } => {
                let dst = self.register(pos)?;
                self.regex(Some(dst), pattern, text, *span)?;
                Ok(dst)
            }
            Expr::Submatches(parts) => {
                let [pattern, text, limit] = &**parts;
                let pattern = self.named(pattern, text, Span::Find)?.0;
                let (text, limit) = (self.value(text)?, self.value(limit)?);
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Submatches { dst, text, pattern, limit });
                Ok(dst)
            }
            Expr::Find { .. } => {
                let dst = self.register(pos)?;
                self.find(Some(dst), node)?;
                Ok(dst)
            }
            Expr::Array(items) => {
                let items = self.arguments(items)?;
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Array { dst, items: Args(&items) });
                Ok(dst)
            }
            Expr::Set(items) => {
                let items = self.arguments(items)?;
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Set { dst, items: Args(&items) });
                Ok(dst)
            }
            Expr::Object(fields) if let Some(keys) = shape(fields) => {
                let mut values: Vec<Reg> = Vec::new();
                for (_, value) in fields {
                    values.push(self.value(value)?);
                }
                let values: Vec<Reg> = keys.values().map(|&place| values[place]).collect();
                let keys = keys.into_keys().map(|key| self.image.constant(key)).collect();
                let shape = self.image.builder.array(keys);
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Record { dst, shape, values: Args(&values) });
                Ok(dst)
            }
            Expr::Object(fields) => {
                let mut pairs = Vec::new();
                for (key, value) in fields {
                    pairs.push(self.value(key)?);
                    pairs.push(self.value(value)?);
                }
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Object { dst, pairs: Args(&pairs) });
                Ok(dst)
            }
            Expr::Comprehension(it) => {
                let dst = self.register(pos)?;
                let kind = match it.kind {
                    Collection::Array => code::Collection::Array,
                    Collection::Set => code::Collection::Set,
                    Collection::Object => code::Collection::Object,
                };
                let collect = self.open(Instruction::Collect { dst, kind, body: 0 });
                let loops = std::mem::take(&mut self.loops);
                let before = self.variables.clone();
                let goal = Goal::Yield { key: it.key.as_ref(), value: &it.value, kind: it.kind };
                self.body(&mut it.body.iter().collect(), &goal)?;
                self.variables = before;
                self.loops = loops;
                self.close(collect);
                Ok(dst)
            }
            Expr::Constant(value) => {
                let value = self.image.constant(value);
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Const { dst, value });
                Ok(dst)
            }
            Expr::Input => {
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Input { dst });
                Ok(dst)
            }
            Expr::State => {
                let dst = self.register(pos)?;
                self.code.emit(Instruction::State { dst });
                Ok(dst)
            }
            Expr::Undefined(_) => {
                self.code.emit(Instruction::Fail);
                let dst = self.register(pos)?;
                self.code.emit(Instruction::Const { dst, value: Const::NULL });
                Ok(dst)
            }
        }
    }

    /// Looks a text up in what a table has for a list.
    fn find(&mut self, dst: Option<Reg>, node: &Node) -> Result<()> {
        let Expr::Find { table, list, text } = &node.expr else { return Ok(()) };
        let mut entries = Vec::new();
        for (list, accepted) in &**table {
            let mut numbers = BTreeSet::new();
            for pattern in &accepted.patterns {
                let language = Language { span: Span::Whole, text: pattern.clone() };
                numbers.extend(self.image.pattern(node.pos, &language)?.map(|pattern| i64::from(pattern.0)));
            }
            let strings = accepted.strings.iter().map(|string| self.image.constant(string)).collect();
            let numbers = numbers.into_iter().map(|number| self.image.builder.int(number)).collect();
            let parts = vec![self.image.builder.set(strings), self.image.builder.array(numbers)];
            entries.push((self.image.constant(list), self.image.builder.array(parts)));
        }
        // Lists are keys of a map, so there is no conflict.
        let table = self.image.builder.object(entries).unwrap_or(Const::NULL);
        let (list, text) = (self.value(list)?, self.value(text)?);
        self.code.emit(Instruction::Find { dst, text, list, table });
        Ok(())
    }

    /// References first, since they may bind what plain variables beside them need.
    fn arguments(&mut self, nodes: &[Node]) -> Result<Vec<Reg>> {
        let mut registers = vec![0; nodes.len()];
        for variables in [false, true] {
            for (node, register) in nodes.iter().zip(&mut registers) {
                if matches!(node.expr, Expr::Variable(_)) == variables {
                    *register = self.value(node)?;
                }
            }
        }
        if let (true, Some(node)) = (registers.len() > MAX_REGISTERS, nodes.first()) {
            return Err(Refusal::new(
                node.pos,
                "literal",
                format!("more than {MAX_REGISTERS} computed parts"),
            ));
        }
        Ok(registers)
    }

    fn emit_call(&mut self, dst: Option<Reg>, id: FunctionId, arguments: &[Reg], pos: Pos) -> Result<()> {
        let Some(function) = self.image.number(id) else {
            return Err(Refusal::new(pos, "call", "of a function that is not compiled"));
        };
        self.code.emit(Instruction::Call { dst, function: function.0, args: Args(arguments) });
        Ok(())
    }

    fn get(&mut self, from: Reg, key: &Node) -> Result<Reg> {
        let pos = key.pos;
        if let Expr::Constant(value) = &key.expr {
            let constant = self.image.constant(value);
            let dst = self.register(pos)?;
            self.code.emit(Instruction::GetConst { dst, from, key: constant });
            return Ok(dst);
        }
        let register = self.value(key)?;
        let dst = self.register(pos)?;
        self.code.emit(Instruction::Get { dst, from, key: register });
        Ok(dst)
    }

    fn compare(&mut self, dst: Option<Reg>, relation: Relation, left: &Node, right: &Node) -> Result<()> {
        let (relation, left, right) = match (&left.expr, &right.expr) {
            (Expr::Constant(_), _) => (mirrored(relation), right, left),
            _ => (relation, left, right),
        };
        if let Expr::Constant(value) = &right.expr {
            let left = self.value(left)?;
            let right = self.image.constant(value);
            self.code.emit(Instruction::CompareConst { relation, dst, left, right });
            return Ok(());
        }
        // A plain variable may be bound by the reference beside it.
        let (left, right) = if matches!(left.expr, Expr::Variable(_)) {
            let right = self.value(right)?;
            (self.value(left)?, right)
        } else {
            (self.value(left)?, self.value(right)?)
        };
        self.code.emit(Instruction::Compare { relation, dst, left, right });
        Ok(())
    }

    fn regex(&mut self, dst: Option<Reg>, pattern: &Node, text: &Node, span: Span) -> Result<()> {
        let pos = pattern.pos;
        if let Some(constant) = pattern.as_constant() {
            let text = self.value(text)?;
            let number = match constant.as_str() {
                Some(pattern) => self.image.pattern(pos, &Language { span, text: pattern.into() })?,
                None => None,
            };
            match number {
                Some(pattern) => self.code.emit(Instruction::Match { dst, text, pattern: pattern.0 }),
                None => {
                    self.code.emit(Instruction::Fail);
                    if let Some(dst) = dst {
                        self.code.emit(Instruction::Const { dst, value: Const::FALSE });
                    }
                }
            }
            return Ok(());
        }
        let (pattern, holes) = self.named(pattern, text, span)?;
        let text = self.value(text)?;
        let part = span == Span::Part;
        self.code.emit(Instruction::MatchBy { dst, text, pattern, part, holes: Args(&holes) });
        Ok(())
    }

    /// The text of a pattern, and the strings for its holes. All patterns that it can be are known by
    /// their texts afterwards.
    fn named(&mut self, pattern: &Node, text: &Node, span: Span) -> Result<(Reg, Vec<Reg>)> {
        let pos = pattern.pos;
        let known = match pattern.as_constant() {
            Some(constant) => Patterns::one(constant),
            None => self.image.computed.of(pattern).ok_or_else(|| {
                let message = "the pattern is only known at run time; patterns are constants of the policy, \
                               with run-time strings put into them at most";
                Refusal::new(pos, "regular expression", message)
            })?,
        };
        let class = match span {
            Span::Whole => Class::Whole,
            Span::Part => Class::Part,
            Span::Find => Class::Find,
        };
        let empty = span != Span::Find && text.as_constant() == Some(&Constant::string(""));
        for text in &known.texts {
            let language = Language { span, text: text.clone() };
            // Whether a pattern matches nothing at all is often asked only to see whether it is one. Unless it is
            // asked about other texts too, no automaton is needed.
            let only_empty = empty && !self.image.computed.languages.contains(&language);
            let pattern = match regex::matches(text, span, "") {
                Ok(matches) if only_empty => {
                    // The empty pattern matches, so a text that does not match is not empty.
                    let accepted = self.image.builder.string(if matches { "" } else { text });
                    Some(self.image.builder.pattern(Pattern::Literal(accepted.index())))
                }
                _ => self.image.pattern(pos, &language)?,
            };
            self.image.builder.named(class, text, pattern);
        }
        if let Some(class) = class.with_holes() {
            for text in &known.templates {
                // One that cannot be compiled is not known: a fault, should it come up.
                if let Ok(program) = regex::program(text, span) {
                    let program = self.image.builder.program(&program);
                    let pattern = self.image.builder.pattern(Pattern::Program(program));
                    self.image.builder.named(class, text, Some(pattern));
                }
            }
        }
        let register = self.value(pattern)?;
        let holes = known.holes.iter().map(|hole| self.hole(hole)).collect::<Result<_>>()?;
        Ok((register, holes))
    }

    /// What a hole is filled with; the empty string, if that is no string or undefined: the pattern has it
    /// nowhere then.
    fn hole(&mut self, node: &Node) -> Result<Reg> {
        let pos = node.pos;
        if let Expr::Variable(variable) = node.expr {
            return self.variables[variable].ok_or_else(|| unsafe_variable(pos));
        }
        if !flow(node, &mut self.bound(), false) {
            return Err(unsafe_variable(pos));
        }
        let list = self.register(pos)?;
        let collect = self.open(Instruction::Collect { dst: list, kind: code::Collection::Array, body: 0 });
        let value = self.value(node)?;
        let strings = [Constant::string(""), Constant::Array(Default::default())];
        for (relation, constant) in [Relation::GreaterOrEqual, Relation::Less].into_iter().zip(&strings) {
            let right = self.image.constant(constant);
            self.code.emit(Instruction::CompareConst { relation, dst: None, left: value, right });
        }
        self.code.emit(Instruction::Yield { value });
        self.close(collect);
        let nothing = self.image.constant(&strings[0]);
        let separator = self.register(pos)?;
        self.code.emit(Instruction::Const { dst: separator, value: nothing });
        let dst = self.register(pos)?;
        let args = Args(&[separator, list]);
        self.code.emit(Instruction::Builtin { dst: Some(dst), builtin: Builtin::Concat, args });
        Ok(dst)
    }
}

/// Where each key of an object stands, if the keys are constants, no collections, and different.
fn shape(fields: &[(Node, Node)]) -> Option<BTreeMap<&Constant, usize>> {
    let simple = |constant: &&Constant| {
        !matches!(constant, Constant::Array(_) | Constant::Object(_) | Constant::Set(_))
    };
    let keys =
        fields.iter().enumerate().map(|(place, (key, _))| Some((key.as_constant().filter(simple)?, place)));
    let keys: BTreeMap<&Constant, usize> = keys.collect::<Option<_>>()?;
    (keys.len() == fields.len() && fields.len() <= MAX_REGISTERS).then_some(keys)
}

fn unsafe_variable(pos: Pos) -> Refusal {
    Refusal::new(pos, "variable", "unsafe: nothing gives this variable a value")
}

fn mirrored(relation: Relation) -> Relation {
    match relation {
        Relation::Less => Relation::Greater,
        Relation::LessOrEqual => Relation::GreaterOrEqual,
        Relation::Greater => Relation::Less,
        Relation::GreaterOrEqual => Relation::LessOrEqual,
        Relation::Equal | Relation::NotEqual => relation,
    }
}
