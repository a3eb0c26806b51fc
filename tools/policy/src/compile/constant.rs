//! Values known at compile time, in the order that Rego gives them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A value. The derived order is Rego's: null < boolean < number < string < array < object < set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Str(Rc<str>),
    Array(Rc<Vec<Constant>>),
    Object(Rc<BTreeMap<Constant, Constant>>),
    Set(Rc<BTreeSet<Constant>>),
}

impl Constant {
    pub fn string(text: &str) -> Constant {
        Constant::Str(Rc::from(text))
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Constant::Str(text) => Some(text),
            _ => None,
        }
    }

    /// What `self[key]` is; `None` is undefined.
    pub fn get(&self, key: &Constant) -> Option<&Constant> {
        match (self, key) {
            (Constant::Array(items), Constant::Int(index)) => {
                usize::try_from(*index).ok().and_then(|index| items.get(index))
            }
            (Constant::Object(fields), key) => fields.get(key),
            (Constant::Set(members), key) => members.get(key),
            _ => None,
        }
    }
}

/// JSON as a constant. A number that is not a 64-bit integer is an error that names it.
pub(crate) fn from_json(value: &serde_json::Value) -> Result<Constant, String> {
    Ok(match value {
        serde_json::Value::Null => Constant::Null,
        serde_json::Value::Bool(value) => Constant::Bool(*value),
        serde_json::Value::Number(number) => match crate::value::integer(number) {
            Some(value) => Constant::Int(value),
            None => return Err(format!("the number {number} is not a 64-bit integer")),
        },
        serde_json::Value::String(text) => Constant::string(text),
        serde_json::Value::Array(items) => {
            Constant::Array(Rc::new(items.iter().map(from_json).collect::<Result<_, _>>()?))
        }
        serde_json::Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| Ok((Constant::string(key), from_json(value)?)))
                .collect::<Result<_, String>>()?;
            Constant::Object(Rc::new(fields))
        }
    })
}
