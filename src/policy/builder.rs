//! The one encoder of images: collects constants, automata and code, and lays them out canonically.
//!
//! Constants get provisional numbers as they come; [`Builder::finish`] drops the unused, sorts the
//! rest and renumbers the code. The same content gives the same bytes, whatever the order of the
//! calls that made its constants. Functions, DFAs and patterns keep the order in which they were made.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::format::{
    Class, Const, FORMAT_VERSION, FunctionRecord, HEADER_SIZE, Image, ImageError, Kind, MAGIC, MAX_IMAGE,
    Pattern, Section, Step, WORD,
};
use super::instruction::{Instruction, Reg};

/// A function that was added; callees are added before their callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u32);

/// A DFA that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DfaId(pub u32);

/// A pattern that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatternId(pub u32);

/// Why an image cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// An object literal has one key twice with different values.
    KeyConflict,
    /// Two sources or two entries have this name.
    Duplicate(String),
    /// The image would exceed this limit of the format.
    Limit(&'static str),
    /// The result does not verify: the caller emitted code that breaks a rule.
    Image(ImageError),
}

/// A body that was opened and must be closed.
#[derive(Debug)]
#[must_use = "an open body must be closed"]
pub struct Open {
    /// Where it starts in the code, in bytes; its length is the last word before.
    at: usize,
}

/// The code of one function.
///
/// ```
/// # use parma_guest::policy::builder::*;
/// # use parma_guest::policy::instruction::*;
/// # let mut builder = Builder::new(1);
/// # let field = builder.string("target");
/// // { "is_mounted": not input.target }  as a function of no arguments
/// let mut code = FunctionBuilder::new("is_free", 0);
/// let (input, target, result) = (code.register(), code.register(), code.register());
/// code.emit(Instruction::Input { dst: input });
/// let not = code.open(Instruction::Not { body: 0 });
/// code.emit(Instruction::GetConst { dst: target, from: input, key: field });
/// code.emit(Instruction::Test { value: target });
/// code.close(not);
/// code.emit(Instruction::Const { dst: result, value: builder.bool(true) });
/// code.emit(Instruction::ReturnLast { value: result });
/// builder.function(code);
/// ```
#[derive(Debug)]
pub struct FunctionBuilder {
    name: String,
    arity: u8,
    registers: usize,
    memo: bool,
    nesting: usize,
    controls: usize,
    code: Vec<u8>,
}

impl FunctionBuilder {
    /// A function with `arity` arguments in the registers `0..arity`.
    pub fn new(name: &str, arity: u8) -> FunctionBuilder {
        FunctionBuilder {
            name: name.to_string(),
            arity,
            registers: usize::from(arity),
            memo: false,
            nesting: 0,
            controls: 0,
            code: Vec::new(),
        }
    }

    /// Remember the result during one decision. Only for functions without arguments.
    pub fn memo(mut self) -> FunctionBuilder {
        self.memo = true;
        self
    }

    /// A register not handed out before. Registers may be chosen by hand as well; they are counted
    /// by use. Beyond the limit the same one comes again, and `finish` says so.
    pub fn register(&mut self) -> Reg {
        let register = self.registers;
        self.registers += 1;
        u8::try_from(register).unwrap_or(254).min(254)
    }

    /// Appends an instruction without a body.
    ///
    /// # Panics
    /// If it has a body: that is [`open`](Self::open)'s.
    pub fn emit(&mut self, instruction: Instruction<'_>) {
        assert!(instruction.body().is_none(), "an instruction with a body is opened");
        instruction.encode(&mut self.code);
    }

    /// Appends an instruction with a body, whose length given is ignored: what follows until
    /// [`close`](Self::close) is its body.
    ///
    /// # Panics
    /// If it has no body.
    pub fn open(&mut self, instruction: Instruction<'_>) -> Open {
        assert!(instruction.body().is_some(), "only an instruction with a body is opened");
        instruction.encode(&mut self.code);
        let at = self.code.len();
        self.nesting += 1;
        self.controls = self.controls.max(self.nesting);
        Open { at }
    }

    /// Ends a body.
    pub fn close(&mut self, open: Open) {
        self.nesting -= 1;
        let length = u32::try_from(self.code.len() - open.at).unwrap_or(u32::MAX);
        self.code[open.at - WORD..open.at].copy_from_slice(&word(length));
    }

    /// How many bodies are open: `Done { depth: nesting() - n }` for the `n`th opened.
    pub fn nesting(&self) -> usize {
        self.nesting
    }
}

/// A finished function, its code with provisional constants.
#[derive(Debug)]
struct Function {
    name: Const,
    record: FunctionRecord,
    code: Vec<u8>,
}

/// Collects what goes into an image.
#[derive(Debug, Default)]
pub struct Builder {
    compiler: u32,
    sources: BTreeMap<String, [u8; 32]>,
    entries: BTreeMap<String, FunctionId>,
    strings: Table<String>,
    ints: Table<i64>,
    nodes: Table<(Kind, Vec<Const>)>,
    dfas: Table<Vec<u8>>,
    programs: Table<Vec<u8>>,
    patterns: Table<u32>,
    named: BTreeMap<(Class, String), Option<PatternId>>,
    functions: Vec<Function>,
}

/// Values by number, each once.
#[derive(Debug)]
struct Table<T> {
    numbers: BTreeMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { numbers: BTreeMap::new(), values: Vec::new() }
    }
}

impl<T: Ord + Clone> Table<T> {
    fn number(&mut self, value: T) -> u32 {
        if let Some(&number) = self.numbers.get(&value) {
            return number;
        }
        let number = u32::try_from(self.values.len()).expect("fewer than 2^32 values");
        self.values.push(value.clone());
        self.numbers.insert(value, number);
        number
    }
}

impl Builder {
    /// An empty image by this version of the compiler.
    pub fn new(compiler: u32) -> Builder {
        Builder { compiler, ..Builder::default() }
    }

    /// Names a source and its SHA-256 in the header.
    pub fn source(&mut self, name: &str, sha256: [u8; 32]) -> Result<(), BuildError> {
        match self.sources.insert(name.to_string(), sha256) {
            None => Ok(()),
            Some(_) => Err(BuildError::Duplicate(name.to_string())),
        }
    }

    /// `null`
    pub fn null(&self) -> Const {
        Const::NULL
    }

    /// A boolean.
    pub fn bool(&self, value: bool) -> Const {
        Const::bool(value)
    }

    /// An integer.
    pub fn int(&mut self, value: i64) -> Const {
        Const::new(Kind::Int, self.ints.number(value))
    }

    /// A string.
    pub fn string(&mut self, value: &str) -> Const {
        Const::new(Kind::String, self.strings.number(value.to_string()))
    }

    /// An array.
    pub fn array(&mut self, items: Vec<Const>) -> Const {
        Const::new(Kind::Array, self.nodes.number((Kind::Array, items)))
    }

    /// A set; order and repetition do not matter.
    pub fn set(&mut self, mut items: Vec<Const>) -> Const {
        items.sort_by(|&a, &b| self.compare(a, b));
        items.dedup();
        Const::new(Kind::Set, self.nodes.number((Kind::Set, items)))
    }

    /// An object; order does not matter, nor does repetition of a key with the same value.
    pub fn object(&mut self, mut pairs: Vec<(Const, Const)>) -> Result<Const, BuildError> {
        pairs.sort_by(|a, b| self.compare(a.0, b.0).then(a.1.cmp(&b.1)));
        pairs.dedup();
        if pairs.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(BuildError::KeyConflict);
        }
        let shape = self.array(pairs.iter().map(|pair| pair.0).collect());
        let words = core::iter::once(shape).chain(pairs.iter().map(|pair| pair.1)).collect();
        Ok(Const::new(Kind::Object, self.nodes.number((Kind::Object, words))))
    }

    /// A DFA, as [`dfa::encode`](super::dfa::encode) writes it.
    pub fn dfa(&mut self, bytes: Vec<u8>) -> DfaId {
        DfaId(self.dfas.number(bytes))
    }

    /// A program of these steps. The number is what [`Pattern::Program`] takes.
    pub fn program(&mut self, steps: &[Step]) -> u32 {
        let (mut holes, mut slots) = (0, 0);
        for step in steps {
            match step {
                Step::Hole { hole, .. } => holes = holes.max(hole.saturating_add(1)),
                Step::Save { slot, .. } => slots = slots.max((slot | 1).saturating_add(1)),
                _ => {}
            }
        }
        let mut program = alloc::vec![holes, slots, 0, 0, 0, 0, 0, 0];
        steps.iter().for_each(|step| program.extend_from_slice(&step.to_bytes()));
        self.programs.number(program)
    }

    /// A pattern. The number of a [`Pattern::Literal`] is the index of a [`string`](Self::string).
    pub fn pattern(&mut self, pattern: Pattern) -> PatternId {
        PatternId(self.patterns.number(pattern.bits()))
    }

    /// Makes a pattern known by its text; `None` for a text that is no regular expression. A text that has a pattern
    /// of the class already keeps it.
    pub fn named(&mut self, class: Class, text: &str, pattern: Option<PatternId>) {
        self.named.entry((class, text.to_string())).or_insert(pattern);
    }

    /// Adds a function.
    ///
    /// # Panics
    /// If a body is still open.
    pub fn function(&mut self, function: FunctionBuilder) -> FunctionId {
        assert_eq!(function.nesting, 0, "{}: a body is still open", function.name);
        let (mut registers, mut stack, mut frames, mut controls) = (function.registers, 0, 0, 0);
        walk(&function.code, |instruction, nesting| {
            instruction.registers(|register, _| registers = registers.max(usize::from(register) + 1));
            if let Instruction::Call { function: callee, .. } = instruction
                && let Some(callee) = self.functions.get(callee as usize)
            {
                stack = stack.max(callee.record.stack);
                frames = frames.max(callee.record.frames);
                controls = controls.max(callee.record.controls + nesting);
            }
        });
        // A number too large for its field saturates; `finish` then refuses what does not fit.
        let record = FunctionRecord {
            name: 0,
            end: 0,
            arity: function.arity,
            registers: u8::try_from(registers).unwrap_or(u8::MAX),
            memo: function.memo,
            stack: stack.saturating_add(u16::try_from(registers).unwrap_or(u16::MAX)),
            frames: (frames + 1).min(i8::MAX as u8),
            controls: controls.max(u16::try_from(function.controls).unwrap_or(u16::MAX)),
        };
        let name = self.string(&function.name);
        let id = FunctionId(u32::try_from(self.functions.len()).expect("fewer than 2^32 functions"));
        self.functions.push(Function { name, record, code: function.code });
        id
    }

    /// Names a function without arguments, `data.policy.mount_device` for instance.
    pub fn entry(&mut self, name: &str, function: FunctionId) -> Result<(), BuildError> {
        match self.entries.insert(name.to_string(), function) {
            None => Ok(()),
            Some(_) => Err(BuildError::Duplicate(name.to_string())),
        }
    }

    /// The provisional constants' order: OPA's.
    pub fn compare(&self, a: Const, b: Const) -> Ordering {
        if a == b {
            return Ordering::Equal;
        }
        let kind = a.kind();
        let (x, y) = (a.index() as usize, b.index() as usize);
        kind.cmp(&b.kind()).then_with(|| match kind {
            Some(Kind::Int) => self.ints.values[x].cmp(&self.ints.values[y]),
            Some(Kind::String) => self.strings.values[x].cmp(&self.strings.values[y]),
            Some(Kind::Array | Kind::Set | Kind::Object) => {
                let (x, y) = (&self.nodes.values[x].1, &self.nodes.values[y].1);
                self.compare_elements(kind == Some(Kind::Object), x, y)
            }
            _ => x.cmp(&y),
        })
    }

    fn compare_elements(&self, object: bool, x: &[Const], y: &[Const]) -> Ordering {
        if object {
            // Objects compare pair by pair: first the keys, then the values.
            let keys = |words: &[Const]| self.nodes.values[words[0].index() as usize].1.clone();
            let (x_keys, y_keys) = (keys(x), keys(y));
            let pairs = x_keys.iter().zip(&x[1..]).zip(y_keys.iter().zip(&y[1..]));
            pairs
                .map(|((xk, xv), (yk, yv))| self.compare(*xk, *yk).then_with(|| self.compare(*xv, *yv)))
                .find(|order| order.is_ne())
                .unwrap_or(x.len().cmp(&y.len()))
        } else {
            let elements = x.iter().zip(y).map(|(&x, &y)| self.compare(x, y));
            elements.into_iter().find(|order| order.is_ne()).unwrap_or(x.len().cmp(&y.len()))
        }
    }

    /// Lays out the image and verifies it.
    pub fn finish(mut self) -> Result<Vec<u8>, BuildError> {
        let most = self.strings.values.len().max(self.ints.values.len()).max(self.nodes.values.len());
        if most >= 1 << Const::INDEX_BITS {
            return Err(BuildError::Limit("there are more than 2^21 constants of a kind"));
        }
        let source_names = self.names(self.sources.keys().cloned().collect());
        let entry_names = self.names(self.entries.keys().cloned().collect());
        let pattern_names = self.names(self.named.keys().map(|(_, text)| text.clone()).collect());
        let names = source_names.iter().chain(&entry_names).chain(&pattern_names);
        let order = self.order(names.copied());

        let mut sections: [Vec<u8>; Section::COUNT] = Default::default();
        let mut put = |section: Section, bytes: &[u8]| sections[section as usize].extend_from_slice(bytes);
        for (hash, name) in self.sources.values().zip(&source_names) {
            put(Section::Sources, &word(order.of(*name).index()));
            put(Section::Sources, hash);
        }
        let mut end = 0;
        for &string in &order.strings {
            let bytes = self.strings.values[string as usize].as_bytes();
            end += bytes.len() as u32;
            put(Section::StringEnds, &word(end));
            put(Section::StringBytes, bytes);
        }
        for &int in &order.ints {
            put(Section::Ints, &self.ints.values[int as usize].to_le_bytes());
        }
        let mut end = 0;
        for level in &order.levels {
            put(Section::Levels, &word(*level));
        }
        for (kind, words) in &order.nodes {
            end += words.len() as u32;
            put(Section::Nodes, &word(Const::new(*kind, end).bits()));
            for element in words {
                put(Section::Words, &word(element.bits()));
            }
        }
        let mut end = 0;
        for dfa in &self.dfas.values {
            end += dfa.len() as u32;
            put(Section::DfaEnds, &word(end));
            put(Section::DfaBytes, dfa);
        }
        let mut end = 0;
        for program in &self.programs.values {
            end += (program.len() / Step::SIZE) as u32;
            put(Section::ProgramEnds, &word(end));
            put(Section::Programs, program);
        }
        for &pattern in &self.patterns.values {
            let pattern = match Pattern::from_bits(pattern) {
                Pattern::Literal(string) => {
                    Pattern::Literal(order.of(Const::new(Kind::String, string)).index())
                }
                other => other,
            };
            put(Section::Patterns, &word(pattern.bits()));
        }
        // In the order of classes and texts, which is that of the strings' final numbers.
        for (((class, _), pattern), name) in self.named.iter().zip(&pattern_names) {
            put(Section::Named, &word(order.of(*name).index()));
            put(Section::Named, &word(class.bits(pattern.map(|pattern| pattern.0))));
        }
        let mut end = 0;
        for function in &self.functions {
            end += function.code.len() as u32;
            let record = FunctionRecord { name: order.of(function.name).index(), end, ..function.record };
            put(Section::Functions, &record.to_bytes());
            let mut code = Vec::with_capacity(function.code.len());
            walk(&function.code, |instruction, _| {
                map_constant(instruction, |constant| order.of(constant)).encode(&mut code);
            });
            put(Section::Code, &code);
        }
        for (function, name) in self.entries.values().zip(&entry_names) {
            put(Section::Entries, &word(order.of(*name).index()));
            put(Section::Entries, &word(function.0));
        }

        let mut image = Vec::with_capacity(HEADER_SIZE);
        image.extend_from_slice(&MAGIC);
        image.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        image.extend_from_slice(&self.compiler.to_le_bytes());
        for section in &sections {
            image.extend_from_slice(&(section.len() as u32).to_le_bytes());
        }
        sections.iter().for_each(|section| image.extend_from_slice(section));
        if image.len() > MAX_IMAGE {
            return Err(BuildError::Limit("the image is larger than 1 MiB"));
        }
        super::verify::verify(&Image::read(&image).map_err(BuildError::Image)?).map_err(BuildError::Image)?;
        Ok(image)
    }
}

impl Builder {
    fn names(&mut self, names: Vec<String>) -> Vec<Const> {
        names.iter().map(|name| self.string(name)).collect()
    }

    /// Marks `constant` and what it is made of.
    fn mark(&self, constant: Const, used: &mut BTreeSet<Const>) {
        if used.insert(constant) && matches!(constant.kind(), Some(Kind::Array | Kind::Object | Kind::Set)) {
            for &element in &self.nodes.values[constant.index() as usize].1 {
                self.mark(element, used);
            }
        }
    }

    /// The final order of all constants that `names` and the code need.
    fn order(&self, names: impl Iterator<Item = Const>) -> Order {
        let mut used = BTreeSet::new();
        names.for_each(|name| self.mark(name, &mut used));
        for pattern in &self.patterns.values {
            if let Pattern::Literal(string) = Pattern::from_bits(*pattern) {
                self.mark(Const::new(Kind::String, string), &mut used);
            }
        }
        for function in &self.functions {
            self.mark(function.name, &mut used);
            walk(&function.code, |instruction, _| {
                map_constant(instruction, |constant| {
                    self.mark(constant, &mut used);
                    constant
                });
            });
        }
        let of_kind = |kind| used.iter().filter(move |c| c.kind() == Some(kind)).map(|c| c.index());
        let mut order = Order::default();
        order.strings.extend(of_kind(Kind::String));
        order.strings.sort_by_key(|&s| &self.strings.values[s as usize]);
        order.ints.extend(of_kind(Kind::Int));
        order.ints.sort_by_key(|&i| self.ints.values[i as usize]);
        for (new, &old) in order.strings.iter().enumerate() {
            order.renumbered.insert(Const::new(Kind::String, old), new as u32);
        }
        for (new, &old) in order.ints.iter().enumerate() {
            order.renumbered.insert(Const::new(Kind::Int, old), new as u32);
        }
        // Nodes refer to nodes that were made before, so one pass in that order finds the levels.
        let mut levels: Vec<usize> = Vec::new();
        let mut by_level: Vec<Vec<Const>> = Vec::new();
        for (index, (kind, words)) in self.nodes.values.iter().enumerate() {
            let level = |word: &Const| match word.kind() {
                Some(Kind::Array | Kind::Object | Kind::Set) => levels[word.index() as usize],
                _ => 0,
            };
            let level = words.iter().map(level).max().map_or(0, |highest| highest + 1);
            levels.push(level);
            let node = Const::new(*kind, index as u32);
            if used.contains(&node) {
                by_level.resize(by_level.len().max(level + 1), Vec::new());
                by_level[level].push(node);
            }
        }
        for nodes in by_level {
            let words = |node: &Const| self.nodes.values[node.index() as usize].1.iter();
            let renumber = |node: Const| {
                let kind = node.kind().expect("made by this builder");
                (kind, words(&node).map(|&word| order.of(word)).collect::<Vec<_>>(), node)
            };
            let mut level: Vec<_> = nodes.into_iter().map(renumber).collect();
            level.sort();
            for (kind, words, old) in level {
                order.renumbered.insert(old, order.nodes.len() as u32);
                order.nodes.push((kind, words));
            }
            order.levels.push(order.nodes.len() as u32);
        }
        order
    }
}

/// The final constants.
#[derive(Default)]
struct Order {
    /// Old numbers in the new order.
    strings: Vec<u32>,
    /// Old numbers in the new order.
    ints: Vec<u32>,
    /// In the new order, with new numbers in them.
    nodes: Vec<(Kind, Vec<Const>)>,
    levels: Vec<u32>,
    renumbered: BTreeMap<Const, u32>,
}

impl Order {
    /// The final encoding of a provisional constant.
    fn of(&self, constant: Const) -> Const {
        match (self.renumbered.get(&constant), constant.kind()) {
            (Some(&index), Some(kind)) => Const::new(kind, index),
            _ => constant,
        }
    }
}

/// A word's bytes. Numbers that do not fit are of an image that is too large, which is refused.
fn word(number: u32) -> [u8; WORD] {
    let [a, b, c, _] = number.to_le_bytes();
    [a, b, c]
}

/// Visits each instruction with the number of bodies around it.
fn walk(code: &[u8], mut visit: impl FnMut(Instruction<'_>, u16)) {
    let mut ends: Vec<usize> = Vec::new();
    let mut rest = code;
    while let Some((instruction, after)) = Instruction::decode(rest) {
        let at = code.len() - after.len();
        visit(instruction, u16::try_from(ends.len()).unwrap_or(u16::MAX));
        if let Some((_, body)) = instruction.body() {
            ends.push(at + body as usize);
        }
        while ends.last().is_some_and(|&end| end <= at) {
            ends.pop();
        }
        rest = after;
    }
}

/// The instruction with its constant replaced.
fn map_constant<'a>(instruction: Instruction<'a>, mut map: impl FnMut(Const) -> Const) -> Instruction<'a> {
    use Instruction as I;
    match instruction {
        I::Const { dst, value } => I::Const { dst, value: map(value) },
        I::InputGet { dst, key } => I::InputGet { dst, key: map(key) },
        I::StateGet { dst, key } => I::StateGet { dst, key: map(key) },
        I::Record { dst, shape, values } => I::Record { dst, shape: map(shape), values },
        I::Find { dst, text, list, table } => I::Find { dst, text, list, table: map(table) },
        I::GetConst { dst, from, key } => I::GetConst { dst, from, key: map(key) },
        I::Lookup { dst, key, from } => I::Lookup { dst, key, from: map(from) },
        I::ReturnConst { value } => I::ReturnConst { value: map(value) },
        I::CompareConst { relation, dst, left, right } => {
            I::CompareConst { relation, dst, left, right: map(right) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_calls_does_not_show_in_the_image() {
        let build = |reversed: bool| {
            let mut builder = Builder::new(1);
            let mut strings = vec!["b", "a", "unused", "c"];
            if reversed {
                strings.reverse();
            }
            for string in strings {
                builder.string(string);
            }
            let (a, b, c) = (builder.string("a"), builder.string("b"), builder.string("c"));
            let one = builder.int(1);
            let mut pairs = vec![(a, one), (b, c), (c, Const::NULL)];
            if reversed {
                pairs.reverse();
            }
            let object = builder.object(pairs).unwrap();
            let set = builder.set(if reversed { vec![object, a, b] } else { vec![b, a, b, object] });
            let mut code = FunctionBuilder::new("f", 0);
            let r = code.register();
            code.emit(Instruction::Const { dst: r, value: set });
            code.emit(Instruction::ReturnLast { value: r });
            let f = builder.function(code);
            builder.entry("data.policy.f", f).unwrap();
            builder.finish().unwrap()
        };
        let image = build(false);
        assert_eq!(image, build(true));
        assert!(!image.windows(6).any(|w| w == b"unused"));
    }

    #[test]
    fn a_key_with_two_values_is_refused() {
        let mut builder = Builder::new(1);
        let (k, one, two) = (builder.string("k"), builder.int(1), builder.int(2));
        assert!(builder.object(vec![(k, one), (k, one)]).is_ok());
        assert_eq!(builder.object(vec![(k, one), (k, two)]), Err(BuildError::KeyConflict));
    }

    #[test]
    fn a_source_is_in_the_image_and_named_once() {
        let mut builder = Builder::new(1);
        builder.source("b", [2; 32]).unwrap();
        builder.source("a", [1; 32]).unwrap();
        assert_eq!(builder.source("b", [3; 32]), Err(BuildError::Duplicate("b".into())));
        let f = builder.function(FunctionBuilder::new("f", 0));
        builder.entry("e", f).unwrap();
        assert_eq!(builder.entry("e", f), Err(BuildError::Duplicate("e".into())));
        let mut builder = Builder::new(1);
        builder.source("b", [2; 32]).unwrap();
        builder.source("a", [1; 32]).unwrap();
        let image = builder.finish().unwrap();
        let image = Image::read(&image).unwrap();
        let sources = image.sources().map(|(name, hash)| (image.string(name).unwrap(), hash[0]));
        assert!(sources.eq([(&b"a"[..], 1), (b"b", 2)]));
    }

    #[test]
    fn slots_come_in_pairs() {
        for (slot, slots) in [(0, 2), (1, 2), (2, 4), (3, 4), (62, 64), (63, 64)] {
            let mut builder = Builder::new(1);
            builder.program(&[Step::Save { slot, next: 1 }, Step::Match]);
            let image = builder.finish().unwrap();
            assert_eq!(Image::read(&image).unwrap().program(0).unwrap().slots, slots, "{slot}");
        }
    }

    #[test]
    fn bodies_are_counted_where_a_call_is() {
        use crate::policy::instruction::Args;
        let block = Instruction::Block { body: 0 };
        // Of each word: how many bodies are closed, then opened, then whether there is a call.
        for way in
            ["1c", "2c", "1 1", "1 -1c", "2 -2c", "2 -1c", "1c -1 3", "1c -1c 3c", "3 -3 1c", "c 1c 1c"]
        {
            let mut builder = Builder::new(1);
            let mut callee = FunctionBuilder::new("callee", 0);
            let bodies = [callee.open(block), callee.open(block)];
            assert_eq!(callee.nesting(), 2);
            callee.emit(Instruction::Fail);
            bodies.into_iter().rev().for_each(|open| callee.close(open));
            let function = builder.function(callee).0;
            let mut code = FunctionBuilder::new("main", 0);
            let mut open = Vec::new();
            for step in way.split(' ') {
                let count = step.trim_end_matches('c');
                for _ in 0..count.parse().unwrap_or(0).max(0) {
                    open.push(code.open(block));
                }
                for _ in 0..count.strip_prefix('-').map_or(0, |count| count.parse().unwrap()) {
                    code.close(open.pop().unwrap());
                }
                assert_eq!(code.nesting(), open.len());
                if step.ends_with('c') {
                    code.emit(Instruction::Call { dst: None, function, args: Args(&[]) });
                }
            }
            open.into_iter().rev().for_each(|open| code.close(open));
            builder.function(code);
            // The verifier has a count of its own.
            assert_eq!(builder.finish().err(), None, "{way}");
        }
    }

    #[test]
    fn an_image_may_be_as_large_as_the_format_says() {
        let build = |length: usize| {
            let mut builder = Builder::new(1);
            let value = builder.string(&"x".repeat(length));
            let mut code = FunctionBuilder::new("f", 0);
            code.emit(Instruction::ReturnConst { value });
            builder.function(code);
            builder.finish()
        };
        let room = MAX_IMAGE - build(1).unwrap().len();
        assert_eq!(build(1 + room).map(|image| image.len()), Ok(MAX_IMAGE));
        for over in [1, 2] {
            assert!(matches!(build(1 + room + over), Err(BuildError::Limit(_))));
        }
    }

    #[test]
    fn numbers_of_a_set_ascend_whatever_their_order_was() {
        let mut builder = Builder::new(1);
        let numbers = [3, -1, 2].map(|number| builder.int(number)).to_vec();
        let value = builder.set(numbers);
        let mut code = FunctionBuilder::new("f", 0);
        code.emit(Instruction::ReturnConst { value });
        builder.function(code);
        assert!(builder.finish().is_ok());
    }
}
