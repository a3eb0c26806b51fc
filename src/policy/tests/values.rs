//! Values against a model of them: wherever their content is, they answer the same.

use alloc::collections::{BTreeMap, BTreeSet};
use core::cmp::Ordering;
use proptest::prelude::*;

use super::super::state::Action;
use super::*;

/// A value, ordered as in Rego: by its kind, then by its content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Model {
    Null,
    Bool(bool),
    Int(i64),
    String(String),
    Array(Vec<Model>),
    Object(BTreeMap<Model, Model>),
    Set(BTreeSet<Model>),
}

use Model as M;

/// Reads values from text: as in Rego, but strings are between single quotes and have no escapes.
pub(super) fn models(text: &str) -> Vec<Model> {
    let mut reader = Reader(text);
    let models = reader.list("").into_iter().map(|(model, _)| model).collect();
    assert_eq!(reader.0, "", "{text}");
    models
}

struct Reader<'t>(&'t str);

impl Reader<'_> {
    fn skip(&mut self, token: &str) -> bool {
        self.0 = self.0.trim_start();
        self.0.strip_prefix(token).is_some_and(|rest| {
            self.0 = rest;
            true
        })
    }

    fn list(&mut self, end: &str) -> Vec<(Model, Option<Model>)> {
        let mut list = Vec::new();
        while !(end.is_empty() && self.0.trim().is_empty() || !end.is_empty() && self.skip(end)) {
            let first = self.model();
            let second = self.skip(":").then(|| self.model());
            list.push((first, second));
            self.skip(",");
        }
        list
    }

    fn model(&mut self) -> Model {
        let words = [("null", M::Null), ("true", M::Bool(true)), ("false", M::Bool(false))];
        if let Some((_, model)) = words.into_iter().find(|(word, _)| self.skip(word)) {
            return model;
        }
        if self.skip("set()") {
            return M::Set(BTreeSet::new());
        }
        if self.skip("'") {
            let (text, rest) = self.0.split_once('\'').unwrap();
            self.0 = rest;
            return M::String(text.into());
        }
        if self.skip("[") {
            return M::Array(self.list("]").into_iter().map(|(item, _)| item).collect());
        }
        if self.skip("{") {
            let list = self.list("}");
            if list.iter().all(|(_, value)| value.is_some()) {
                return M::Object(list.into_iter().map(|(key, value)| (key, value.unwrap())).collect());
            }
            return M::Set(list.into_iter().map(|(member, _)| member).collect());
        }
        let end = self.0.find(|c: char| c != '-' && !c.is_ascii_digit()).unwrap_or(self.0.len());
        let (number, rest) = self.0.split_at(end);
        self.0 = rest;
        M::Int(number.parse().unwrap_or_else(|_| panic!("no value: {number}{rest}")))
    }
}

impl Model {
    pub(super) fn constant(&self, b: &mut Builder) -> Const {
        let all = |b: &mut Builder, items: &mut dyn Iterator<Item = &Model>| -> Vec<Const> {
            items.map(|item| item.constant(b)).collect()
        };
        match self {
            M::Null => Const::NULL,
            M::Bool(value) => Const::bool(*value),
            M::Int(value) => b.int(*value),
            M::String(text) => b.string(text),
            M::Array(items) => {
                let items = all(b, &mut items.iter());
                b.array(items)
            }
            M::Set(items) => {
                let items = all(b, &mut items.iter());
                b.set(items)
            }
            M::Object(pairs) => {
                let (keys, values) = (all(b, &mut pairs.keys()), all(b, &mut pairs.values()));
                b.object(keys.into_iter().zip(values).collect()).unwrap()
            }
        }
    }

    /// The value with all that it has in the arena.
    pub(super) fn in_arena(&self, arena: &mut Arena<'_>) -> Value {
        let (kind, cells): (Collection, Vec<Value>) = match self {
            M::Null => return Value::Null,
            M::Bool(value) => return Value::bool(*value),
            M::Int(value) => return Value::Int(*value),
            M::String(text) => return arena.string(text).unwrap(),
            M::Array(items) => (Collection::Array, items.iter().map(|item| item.in_arena(arena)).collect()),
            M::Set(items) => (Collection::Set, items.iter().map(|item| item.in_arena(arena)).collect()),
            M::Object(pairs) => {
                let cells =
                    pairs.iter().flat_map(|(key, value)| [key.in_arena(arena), value.in_arena(arena)]);
                (Collection::Object, cells.collect())
            }
        };
        collection(arena, kind, &cells)
    }

    /// What a view reads.
    pub(super) fn read(view: &View<'_>, value: Value) -> Model {
        let elements = || (0..).map_while(|index| view.element(value, index));
        let model = |value| Model::read(view, value);
        match value {
            Value::Null => M::Null,
            Value::False => M::Bool(false),
            Value::True => M::Bool(true),
            Value::Int(value) => M::Int(value),
            Value::String(text) => M::String(view.text(text).into()),
            Value::Array(_) => M::Array(elements().map(|(_, item)| model(item)).collect()),
            Value::Object(_) => M::Object(elements().map(|(key, item)| (model(key), model(item))).collect()),
            Value::Set(_) => M::Set(elements().map(|(_, item)| model(item)).collect()),
        }
    }

    /// `self[key]`.
    fn get(&self, key: &Model) -> Option<&Model> {
        match (self, key) {
            (M::Array(items), M::Int(index)) => items.get(usize::try_from(*index).ok()?),
            (M::Object(pairs), _) => pairs.get(key),
            (M::Set(members), _) => members.get(key),
            _ => None,
        }
    }

    /// The first and the last few of what is in it.
    fn parts(&self) -> Vec<Model> {
        let all: Vec<Model> = match self {
            M::Array(items) => items.clone(),
            M::Set(items) => items.iter().cloned().collect(),
            M::Object(pairs) => pairs.iter().flat_map(|(key, value)| [key.clone(), value.clone()]).collect(),
            _ => Vec::new(),
        };
        let last = all.len().saturating_sub(2).max(4.min(all.len()));
        [&all[..all.len().min(4)], &all[last..]].concat()
    }
}

/// A collection in the arena of these cells; they are keys and values in turn for an object.
fn collection(arena: &mut Arena<'_>, kind: Collection, cells: &[Value]) -> Value {
    let at = arena.reserve(cells.len()).unwrap();
    cells.iter().enumerate().for_each(|(index, &cell)| arena.set_cell(at + index * CELL, cell));
    match kind {
        Collection::Array => Value::Array(arena.list(at, cells.len())),
        Collection::Set => Value::Set(arena.list(at, cells.len())),
        Collection::Object => Value::Object(arena.list(at, cells.len() / 2)),
    }
}

/// Values, each in several places: a constant of the image, in the state, in the arena, and there with constants or
/// with parts of constants in it.
pub(super) struct World {
    pub engine: Engine<'static>,
    pub models: Vec<Model>,
    constants: Vec<(Const, Value)>,
    kept: Vec<Value>,
}

pub(super) const PLACES: usize = 5;

impl World {
    pub(super) fn new(models: Vec<Model>) -> World {
        let mut all = Const::NULL;
        let image = image(|b, f| {
            let constants = models.iter().map(|model| model.constant(b)).collect();
            all = b.array(constants);
            f.emit(I::ReturnConst { value: all });
        });
        let mut engine = Engine::with_empty_state(image.leak()).unwrap();
        let mut memory = alloc::vec![0; 1 << 20];
        let mut arena = Arena::new(&mut memory);
        for (chunk, models) in models.chunks(16).enumerate() {
            arena.reset();
            let mut delta = super::super::Delta::default();
            for (index, model) in models.iter().enumerate() {
                let key = arena.string(&(chunk * 16 + index).to_string()).unwrap();
                let value = model.in_arena(&mut arena);
                delta.push(&engine.view(&arena), Action::Add, "kept", Some(key), value).unwrap();
            }
            engine.commit(delta).unwrap();
        }
        let Ok(Outcome::Value(all)) = engine.evaluate(&mut arena, "main", NO_INPUT) else { panic!() };
        let words = engine.image().node(all.place().unwrap().1).unwrap().1;
        let view = engine.view(&arena);
        let kept = view.field(engine.metadata(), "kept").unwrap_or(Value::Null);
        let constants = words.map(|word| engine.image().element(word).unwrap());
        let constants = constants.map(|word| (word, view.constant(word))).collect();
        let kept = (0..models.len()).map(|index| view.field(kept, &index.to_string()).unwrap()).collect();
        World { engine, models, constants, kept }
    }

    /// A value in a place.
    pub(super) fn value(&self, index: usize, place: usize, arena: &mut Arena<'_>) -> Value {
        let constant = self.constants[index].1;
        match place {
            0 => constant,
            1 => self.kept[index],
            2 => self.models[index].in_arena(arena),
            _ => self.copy(constant, place == 3, arena),
        }
    }

    /// A copy of a constant, of whose elements only the strings are something else, if at all.
    fn copy(&self, constant: Value, whole: bool, arena: &mut Arena<'_>) -> Value {
        let view = View { image: self.engine.image(), state: &self.engine.state, arena: &[] };
        let part = |value| match value {
            Value::String(text) if !whole => Value::String(view.part(text, 0, text.len())),
            _ => value,
        };
        let elements = || (0..).map_while(|index| view.element(constant, index));
        let items = || elements().map(|(_, item)| part(item)).collect::<Vec<_>>();
        match constant {
            Value::Array(_) => collection(arena, Collection::Array, &items()),
            Value::Set(_) => collection(arena, Collection::Set, &items()),
            Value::Object(_) => {
                let cells: Vec<_> = elements().flat_map(|(key, item)| [part(key), part(item)]).collect();
                collection(arena, Collection::Object, &cells)
            }
            _ => part(constant),
        }
    }
}

/// Compares, equals and looks up all of them, and what is in them, in all places.
fn all_agree_with_the_model(models: &[Model]) {
    let parts: Vec<Model> = models.iter().flat_map(Model::parts).collect();
    let mut models = [models, &parts[..]].concat();
    models.sort();
    models.dedup();
    let world = World::new(models);
    let mut memory = alloc::vec![0; 1 << 20];
    let mut arena = Arena::new(&mut memory);
    let mut placed = Vec::new();
    for index in 0..world.models.len() {
        placed.extend((0..PLACES).map(|place| (index, world.value(index, place, &mut arena))));
    }
    let view = world.engine.view(&arena);
    let fuel = &mut Fuel(u64::MAX);
    for &(a, x) in &placed {
        assert_eq!(Model::read(&view, x), world.models[a]);
        for &(b, y) in &placed {
            let (a, model, key) = (a, &world.models[a], &world.models[b]);
            assert_eq!(view.compare(x, y, fuel), Ok(a.cmp(&b)), "{model:?} {key:?} {x:?} {y:?}");
            assert_eq!(view.equal(x, y, fuel), Ok(a == b), "{model:?} {key:?} {x:?} {y:?}");
            let found = |found: Result<Option<Value>, Fault>| {
                assert!(
                    found.unwrap().map(|found| Model::read(&view, found)).as_ref() == model.get(key),
                    "{model:?} {key:?} {x:?} {y:?}"
                );
            };
            found(view.get(x, y, fuel));
            found(view.get_constant(x, world.constants[b].0, fuel));
        }
    }
}

#[test]
fn values_compare_and_are_found_as_the_model_says_wherever_they_are() {
    let numbered = |count: usize| {
        let pairs: Vec<String> = (0..count).map(|n| alloc::format!("'key{n:02}': {n}")).collect();
        models(&alloc::format!("{{{}}}", pairs.join(","))).remove(0)
    };
    let all = [
        "null, false, true, -1, 0, 1, 9223372036854775807, '', 'a', 'b', 'ab', 'ab1', 'é', 'abcdefgh', 'abcdefgi'",
        "[], [1], [2, 1], [1, 2], ['a'], ['b'], ['a', 'b'], ['ab', [1], {2}], [['ab']], [null, [], {}], [{'a': 2}]",
        "set(), {1}, {1, 2}, {2}, {'a', 'b'}, {'ab'}, {[1], [2, 1], {'a': 1}, {1}}, {null, false, 'b'}, {{1}, {2}}",
        "{}, {'a': 1}, {'a': 2}, {'b': 1}, {'a': 1, 'b': 'a'}, {1: 'a', 'a': 1, [1]: 'b', {2}: 2, {'a': 1}: null}",
        "{'ab': ['a'], 'ac': {'a'}}, {false: 1}, {'a': null}, {1: 2, 3: 4, 5: 6}, {[1]: [1], ['a']: 2, [[]]: 3}",
        // The order of collections is not that of their levels, by which constants are numbered.
        "{[1, [1]]: 1, [2]: 2, [3]: 3}, {{1, [1]}: 1, {2}: 2, {3}: 3}, {{1: [[]]}: 1, {2: 1}: 2, {3: 1}: 3}",
        "{[1, [1]], [2], [3]}, {{1, [1]}, {2}, {3}}, {{1: [[]]}, {2: 1}, {3: 1}}",
    ];
    let mut all: Vec<Model> = all.iter().flat_map(|text| models(text)).collect();
    all.extend([numbered(31), numbered(40)]);
    all_agree_with_the_model(&all);
}

fn model() -> impl Strategy<Value = Model> {
    let leaf = prop_oneof![
        Just(M::Null),
        any::<bool>().prop_map(M::Bool),
        (-2i64..3).prop_map(M::Int),
        "[ab]{0,3}".prop_map(M::String),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(M::Array),
            prop::collection::btree_map(inner.clone(), inner.clone(), 0..4).prop_map(M::Object),
            prop::collection::btree_set(inner, 0..4).prop_map(M::Set),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_values_compare_and_are_found_as_the_model_says(models in prop::collection::vec(model(), 1..5)) {
        all_agree_with_the_model(&models);
    }
}

/// A value in a collection in a collection in … so many.
fn nested(arena: &mut Arena<'_>, kind: Collection, levels: usize, inner: Value) -> Value {
    (0..levels).fold(inner, |inner, _| collection(arena, kind, &[Value::Null, inner]))
}

#[test]
fn values_that_are_nested_too_deep_do_not_compare() {
    let world = World::new(Vec::new());
    let mut memory = alloc::vec![0; 1 << 16];
    for kind in [Collection::Array, Collection::Set, Collection::Object] {
        for (levels, expected) in [(MAX_DEPTH, Ok(Ordering::Less)), (MAX_DEPTH + 1, Err(Fault::Depth))] {
            let arena = &mut Arena::new(&mut memory);
            let [a, b] = [1, 2].map(|n| nested(arena, kind, levels, Value::Int(n)));
            let view = world.engine.view(arena);
            let fuel = &mut Fuel(1000);
            assert_eq!(view.compare(a, b, fuel), expected, "{kind:?} {levels}");
            assert_eq!(view.equal(a, b, fuel), expected.map(Ordering::is_eq), "{kind:?} {levels}");
            // What is the same place needs no look.
            assert_eq!(view.compare(a, a, &mut Fuel(1)), Ok(Ordering::Equal));
            assert_eq!(view.equal(a, a, &mut Fuel(1)), Ok(true));
        }
        let arena = &mut Arena::new(&mut memory);
        let [a, b] = [1, 2].map(|n| {
            let key = nested(arena, Collection::Array, MAX_DEPTH, Value::Int(n));
            collection(arena, Collection::Object, &[key, Value::Null])
        });
        assert_eq!(world.engine.view(arena).compare(a, b, &mut Fuel(1000)), Err(Fault::Depth), "as keys");
    }
}

#[test]
fn steps_and_bytes_cost_what_they_are() {
    for (given, bytes, left) in
        [(5, 0, Ok(5)), (5, 15, Ok(5)), (5, 16, Ok(4)), (5, 95, Ok(0)), (5, 96, Err(()))]
    {
        let mut fuel = Fuel(given);
        let taken = fuel.bytes(bytes);
        assert_eq!(taken.map(|()| fuel.0), left.map_err(|()| Fault::Fuel), "{bytes}");
        assert!(taken.is_ok() || fuel.0 == 0, "what is left after a fault is nothing");
    }
    // Composite constants are looked for one after another.
    let keys: Vec<String> = (0..100).map(|n| alloc::format!("[{n}]: {n}")).collect();
    let world = World::new(models(&alloc::format!("{{{}}}, [100]", keys.join(","))));
    let view = world.engine.view_of(&[]);
    let mut fuel = Fuel(1000);
    let [(_, object), (key, _)] = world.constants[..] else { panic!() };
    assert!(view.get_constant(object, key, &mut fuel).unwrap().is_none());
    assert_eq!(fuel.0, 1000 - 100 * 3 / 16);
}

#[test]
fn a_field_is_added_in_its_place() {
    let world = World::new(Vec::new());
    let texts = ["a", "b", "bb", "c", "d", "dd"];
    for subset in 0..1 << texts.len() {
        let keys: Vec<&str> = (0..texts.len()).filter(|n| subset >> n & 1 == 1).map(|n| texts[n]).collect();
        for key in texts.into_iter().filter(|text| !keys.contains(text)) {
            let mut memory = [0; 1024];
            let arena = &mut Arena::new(&mut memory);
            let pairs: Vec<_> = keys.iter().map(|key| (*key, Value::Int(key.len() as i64))).collect();
            let object = arena.object(&pairs).unwrap();
            let used = arena.used();
            let with = arena.with_field(object, key, "value").unwrap();
            assert_eq!(arena.used(), used + key.len() + 5 + (keys.len() + 1) * 2 * CELL);
            let before = arena.string("behind").unwrap();
            let mut expected: BTreeMap<Model, Model> =
                keys.iter().map(|key| (M::String((*key).into()), M::Int(key.len() as i64))).collect();
            let view = world.engine.view(arena);
            assert_eq!(Model::read(&view, object), M::Object(expected.clone()));
            expected.insert(M::String(key.into()), M::String("value".into()));
            assert_eq!(Model::read(&view, with), M::Object(expected), "{keys:?} {key}");
            assert_eq!(Model::read(&view, before), M::String("behind".into()));
        }
    }
    // Other keys than strings come before and after.
    let object = models("{null: 1, 2: 3, 'x': 4, [5]: 6}").remove(0);
    for key in ["w", "y"] {
        let mut memory = [0; 1024];
        let arena = &mut Arena::new(&mut memory);
        let value = object.in_arena(arena);
        let with = arena.with_field(value, key, "v").unwrap();
        let M::Object(mut expected) = object.clone() else { panic!() };
        expected.insert(M::String(key.into()), M::String("v".into()));
        let view = world.engine.view(arena);
        let pairs: Vec<_> = (0..5).map(|index| view.element(with, index).unwrap()).collect();
        let pairs =
            pairs.into_iter().map(|(key, value)| (Model::read(&view, key), Model::read(&view, value)));
        assert!(pairs.eq(expected), "{key}");
    }
    let mut memory = [0; 64];
    let arena = &mut Arena::new(&mut memory);
    assert_eq!(arena.with_field(Value::Null, "k", "v").err(), Some(Fault::Input));
    let maps = world.engine.metadata();
    assert_eq!(arena.with_field(maps, "k", "v").err(), Some(Fault::Input));
}

#[test]
fn an_input_with_a_key_twice_is_refused() {
    let mut memory = [0; 1024];
    let arena = &mut Arena::new(&mut memory);
    assert!(arena.object(&[("b", Value::Null), ("a", Value::Null)]).is_ok());
    for pairs in [["a", "a", "b"], ["b", "a", "b"]] {
        let pairs = pairs.map(|key| (key, Value::Null));
        assert_eq!(arena.object(&pairs).err(), Some(Fault::Input));
    }
}

#[test]
fn an_arena_is_used_to_its_last_byte_and_no_further() {
    let mut memory = [0; 2 * CELL + 1];
    let mut arena = Arena::new(&mut memory);
    assert_eq!(arena.reserve(3), Err(Fault::Arena));
    assert_eq!((arena.reserve(2), arena.used()), (Ok(0), 2 * CELL));
    assert_eq!(arena.reserve(1), Err(Fault::Arena));
    assert_eq!(
        (arena.append(b"ab"), arena.append(b"a"), arena.append(b"b")),
        (Err(Fault::Arena), Ok(()), Err(Fault::Arena))
    );
    let mut exact = [0; CELL];
    assert_eq!(Arena::new(&mut exact).reserve(1), Ok(0));

    let mut memory = [0; 10];
    let mut arena = Arena::new(&mut memory);
    arena.append(b"abcd").unwrap();
    assert_eq!(arena.append_within(1, 4), Err(Fault::Arena), "not all of it is there yet");
    assert_eq!(arena.append_within(usize::MAX, 1), Err(Fault::Arena));
    arena.append_within(1, 3).unwrap();
    arena.append_within(2, 2).unwrap();
    assert_eq!(arena.bytes(), b"abcdbcdcd");
    assert_eq!(arena.append_within(0, 2), Err(Fault::Arena));
    arena.append_within(0, 1).unwrap();
    assert_eq!((arena.append_within(0, 1), arena.append_within(10, 0)), (Err(Fault::Arena), Ok(())));
    assert_eq!(arena.bytes(), b"abcdbcdcda");
}
