//! The machine's values as JSON, and JSON as the machine's values.

use std::rc::Rc;

use parma_guest::policy::value::{Arena, Fault, Value, View};
use serde_json::Value as Json;

use crate::compile::constant::Constant;

/// A value as JSON: a set is a sorted array, and a key that is no string is its JSON text, as in OPA.
pub fn to_json(view: &View<'_>, value: Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::False => Json::Bool(false),
        Value::True => Json::Bool(true),
        Value::Int(value) => Json::from(value),
        Value::String(text) => Json::from(view.text(text)),
        Value::Array(list) | Value::Set(list) => {
            (0..list.len()).map(|index| to_json(view, view.item(list, index))).collect()
        }
        Value::Object(list) => (0..list.len())
            .map(|index| {
                let (key, value) = view.pair(list, index);
                let key = match to_json(view, key) {
                    Json::String(key) => key,
                    other => other.to_string(),
                };
                (key, to_json(view, value))
            })
            .collect(),
    }
}

/// A number that is a 64-bit integer, however it is written: `1.0` and `1e3` are.
pub(crate) fn integer(number: &serde_json::Number) -> Option<i64> {
    // Up to 2^53 a float is exactly the number that was written.
    const EXACT: f64 = (1_u64 << 53) as f64;
    let whole = |float: &f64| float.fract() == 0.0 && float.abs() <= EXACT;
    number.as_i64().or_else(|| number.as_f64().filter(whole).map(|float| float as i64))
}

/// Makes JSON a value in the arena.
///
/// # Errors
/// [`Fault::Unsupported`] for a number that is no 64-bit integer; [`Fault::Arena`] if it is full.
pub fn from_json(arena: &mut Arena<'_>, json: &Json) -> Result<Value, Fault> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::bool(*value),
        Json::Number(number) => Value::Int(integer(number).ok_or(Fault::Unsupported)?),
        Json::String(text) => arena.string(text)?,
        Json::Array(items) => {
            let items = items.iter().map(|item| from_json(arena, item)).collect::<Result<Vec<_>, _>>()?;
            arena.array(&items)?
        }
        Json::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| Ok((key.as_str(), from_json(arena, value)?)))
                .collect::<Result<Vec<_>, Fault>>()?;
            arena.object(&fields)?
        }
    })
}

/// A value as a constant of the compiler.
pub(crate) fn constant(view: &View<'_>, value: Value) -> Option<Constant> {
    Some(match value {
        Value::Null => Constant::Null,
        Value::False => Constant::Bool(false),
        Value::True => Constant::Bool(true),
        Value::Int(value) => Constant::Int(value),
        Value::String(text) => Constant::string(view.text(text)),
        Value::Array(list) => {
            let items = (0..list.len()).map(|index| constant(view, view.item(list, index)));
            Constant::Array(Rc::new(items.collect::<Option<_>>()?))
        }
        Value::Set(list) => {
            let members = (0..list.len()).map(|index| constant(view, view.item(list, index)));
            Constant::Set(Rc::new(members.collect::<Option<_>>()?))
        }
        Value::Object(list) => {
            let fields = (0..list.len()).map(|index| {
                let (key, value) = view.pair(list, index);
                Some((constant(view, key)?, constant(view, value)?))
            });
            Constant::Object(Rc::new(fields.collect::<Option<_>>()?))
        }
    })
}
