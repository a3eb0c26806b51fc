//! The firmware of the utility VM, as far as it is no instruction of its own: what lies where, what the ROM says to
//! QEMU, what of the host's answers is believed, and what Linux is told. The binary `firmware` adds the instructions.
//!
//! Everything here is free of side effects and of `unsafe`, so all of it is tested on the host. What comes from the
//! host passes one refusing constructor; the binary ends the machine on every refusal.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod accept;
pub mod e820;
pub mod fw_cfg;
pub mod ghcb;
pub mod linux;
pub mod measure;
pub mod processors;
pub mod reason;
pub mod rom;
