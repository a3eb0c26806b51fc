//! Running other programs: quietly, with progress, and with their last words when they fail.

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// How many of a failed program's lines are shown.
const LAST_WORDS: usize = 25;

/// A step that takes more than a second: a bar on a terminal, two plain lines elsewhere.
pub struct Step {
    bar: ProgressBar,
    what: String,
    start: Instant,
}

impl Step {
    /// `total`: the expected number of [`Step::tick`]s, where it is known.
    pub fn new(what: &str, total: Option<u64>) -> Self {
        let (bar, template) = match total {
            Some(total) => (ProgressBar::new(total), "{spinner} {msg} {wide_bar} {percent:>3}% {elapsed}"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}"),
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is fixed"));
        bar.set_message(what.to_string());
        if std::io::stderr().is_terminal() {
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
        } else {
            eprintln!("{what} …");
        }
        Self { bar, what: what.to_string(), start: Instant::now() }
    }

    pub fn tick(&self) {
        if self.bar.length().is_none_or(|total| self.bar.position() < total) {
            self.bar.inc(1);
        }
    }

    pub fn done(self) {
        self.bar.finish_and_clear();
        eprintln!("{}: done in {:.0?} s", self.what, self.start.elapsed().as_secs_f32());
    }
}

/// Runs a program to its end. `line` sees what it prints; when it fails, the error holds its last lines.
pub fn run_with(command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}: is it installed?"))?;
    // The command keeps the writing ends open; the pipe ends only when they are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut last = VecDeque::with_capacity(LAST_WORDS);
    for bytes in BufReader::new(reader).split(b'\n') {
        let text = String::from_utf8_lossy(&bytes?).into_owned();
        line(&text);
        if last.len() == LAST_WORDS {
            last.pop_front();
        }
        last.push_back(text);
    }
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
    if !status.success() {
        let words: Vec<_> = last.into_iter().collect();
        bail!("{} failed ({status}); its last lines:\n{}", shown(command), words.join("\n"));
    }
    Ok(())
}

/// Runs a program to its end, showing nothing of it unless it fails.
pub fn run(command: &mut Command) -> Result<()> {
    run_with(command, |_| {})
}

/// Runs a program with the terminal as its own.
pub fn run_visibly(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Builds a binary of the image, [package, binary, features], with these flags of the compiler and no other; its path.
pub fn bare_metal(
    root: &Path,
    target: &Path,
    profile: &str,
    [package, binary, features]: [&str; 3],
    flags: &[String],
) -> Result<PathBuf> {
    run(Command::new("cargo")
        .current_dir(root)
        .args(["build", "--locked", "--package", package, "--bin", binary])
        .args(["--features", features, "--profile", profile, "--target-dir"])
        .arg(target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET"))?;
    Ok(target.join(profile).join(binary))
}

/// What a program prints on its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", shown(command), output.status, words.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", shown(command)))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_programs_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo first; echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("first\nwhy") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program-here"));
    }
}
