//! What runs in a Parma guest, and what guest and host must agree on.
#![cfg_attr(not(test), no_std)]
extern crate alloc;
