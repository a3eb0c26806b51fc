//! Policies: from Rego to the guest's bytecode, and from an image to its policy.
//!
//! * [`generate`] writes the strict policy of one OCI image.

pub mod generate;
