//! Runs the program under test.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output};

/// The program, with a directory of its own for running containers.
pub fn parma(runtime: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parma"));
    command.env("XDG_RUNTIME_DIR", runtime.path());
    command
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The guest's image and the container images; `None`, and a line that says so, where they are not.
pub fn fixtures() -> Option<(OsString, PathBuf)> {
    match (std::env::var_os("PARMA_IMAGE"), std::env::var_os("PARMA_FIXTURES")) {
        (Some(image), Some(fixtures)) => Some((image, fixtures.into())),
        _ => {
            eprintln!("skipped: PARMA_IMAGE and PARMA_FIXTURES name no images; run `cargo xtask test`");
            None
        }
    }
}
