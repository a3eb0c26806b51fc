//! One file for each group of commands.

pub mod attest;
pub mod connect;
mod evidence;
pub mod fragment;
pub mod host;
pub mod image;
pub mod kms;
pub mod layer;
pub mod policy;
pub mod remote;
pub mod run;
mod streams;
mod terminal;
pub mod volume;

use parma_policy::Warning;

/// Shows what the compiler has to say to the policy's author.
fn show_warnings(warnings: &[Warning]) {
    for warning in warnings {
        eprintln!("parma: warning: {warning}");
    }
}

/// A command line in one argument: a JSON array, or words that blanks separate.
fn command_line(text: &str) -> Result<Vec<String>, String> {
    let words: Vec<String> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| format!("a JSON array of strings, or words: {error}"))?
    } else {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    };
    if words.is_empty() { Err("empty".into()) } else { Ok(words) }
}
