//! The interpreter.

use super::format::{Image, ImageError};
use super::state::State;
use super::value::{Arena, Fault, Fuel, Value};

#[derive(Debug)]
pub(super) struct Machine<'p> {
    _image: core::marker::PhantomData<&'p ()>,
}

impl<'p> Machine<'p> {
    pub fn new(_image: &Image<'p>) -> Result<Machine<'p>, ImageError> {
        Ok(Machine { _image: core::marker::PhantomData })
    }

    pub fn run(
        &mut self,
        _image: &Image<'p>,
        _state: &State,
        _arena: &mut Arena<'_>,
        _function: u32,
        _input: Option<Value>,
        _fuel: &mut Fuel,
    ) -> Result<Option<Value>, Fault> {
        Err(Fault::Abort)
    }
}
