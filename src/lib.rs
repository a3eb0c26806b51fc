//! What runs in a Parma guest, and what guest and host must agree on.
//!
//! Without features this is the part that host tools share: the [`wire`] protocol and the names of the enforcement
//! points. The feature `guest` adds everything that makes system calls.
#![cfg_attr(not(test), no_std)]
extern crate alloc;

pub mod accounts;
pub mod attest;
#[cfg(feature = "guest")]
pub mod boot;
#[cfg(feature = "guest")]
pub mod container;
#[cfg(feature = "guest")]
pub mod control;
#[cfg(feature = "guest")]
pub mod events;
pub mod filter;
pub mod fragment;
pub mod gate;
#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "guest")]
pub mod linux;
#[cfg(feature = "guest")]
pub mod network;
pub mod point;
pub mod policy;
#[cfg(feature = "guest")]
pub mod streams;
pub mod target;
pub mod wire;
