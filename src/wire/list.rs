//! A list with a named limit that is refused, not truncated, and whose memory is asked for, not assumed.

use alloc::vec::Vec;
use core::{fmt, marker::PhantomData, ops::Deref};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// At most `N` elements. A longer one is refused before anything of its size is allocated.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct List<T, const N: usize>(Vec<T>);

impl<T, const N: usize> List<T, N> {
    /// An empty list.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The list of these elements, or `None` if there are more than `N` of them.
    pub fn from_vec(elements: Vec<T>) -> Option<Self> {
        (elements.len() <= N).then_some(Self(elements))
    }

    /// Adds an element; gives it back where the limit or the memory is reached.
    pub fn push(&mut self, element: T) -> Result<(), T> {
        if self.0.len() >= N || self.0.try_reserve(1).is_err() {
            return Err(element);
        }
        self.0.push(element);
        Ok(())
    }

    /// The elements, without the limit.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: fmt::Debug, const N: usize> fmt::Debug for List<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Serialize, const N: usize> Serialize for List<T, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Elements<T, N> {
            type Value = List<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {N} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                // SECURITY (T01): a length prefix costs its sender five bytes; the elements are read one by one, so
                // memory grows only with bytes that really arrived.
                if seq.size_hint().is_some_and(|claimed| claimed > N) {
                    return Err(A::Error::custom("list over its limit"));
                }
                let mut list = List::new();
                while let Some(element) = seq.next_element()? {
                    list.push(element).map_err(|_| A::Error::custom("list over its limit"))?;
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}
