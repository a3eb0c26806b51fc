//! A reference relying party.
//!
//! [`verify`] is its judgement: evidence and expectations in, a checklist out. Everything else only asks it.

pub mod bundle;
pub mod channel;
pub mod history;
pub mod rules;
pub mod server;
pub mod service;
pub mod store;
pub mod stream;
pub mod token;
pub mod verify;
