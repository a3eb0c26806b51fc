//! What has to be trusted, counted: source lines of `src/` and `boot/`, bytes of what is built from them.

use crate::{cache, image};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Counts the trusted base: lines of source, bytes of the image.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Count the source only, without building the image
    #[arg(long)]
    source_only: bool,
}

#[derive(Serialize)]
struct Tcb {
    source: Vec<Source>,
    total: Lines,
    /// Of the image for SNP hardware, not of the emulated one.
    image: Vec<Built>,
}

#[derive(Serialize)]
struct Source {
    file: String,
    #[serde(flatten)]
    lines: Lines,
}

#[derive(Serialize)]
struct Built {
    component: &'static str,
    bytes: u64,
}

/// Lines of source files. Blank ones count as nothing; `tests` are those after `#[cfg(test)]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Lines {
    bytes: usize,
    code: usize,
    comments: usize,
    tests: usize,
}

impl Lines {
    /// Counts a file: `rs` by Rust's rules, anything else with `#` comments.
    fn of(text: &str, rust: bool) -> Self {
        let mut lines = Self { bytes: text.len(), ..Self::default() };
        let (mut in_block, mut in_tests) = (false, false);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            in_tests |= rust && line == "#[cfg(test)]";
            let starts_block = rust && line.starts_with("/*");
            let comment = in_block || starts_block || line.starts_with(if rust { "//" } else { "#" });
            in_block = (in_block || starts_block) && !line.contains("*/");
            match (in_tests, comment) {
                (true, _) => lines.tests += 1,
                (false, true) => lines.comments += 1,
                (false, false) => lines.code += 1,
            }
        }
        lines
    }

    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.code += other.code;
        self.comments += other.comments;
        self.tests += other.tests;
    }
}

pub fn main(arguments: Arguments) -> Result<()> {
    let root = cache::root();
    let mut source = Vec::new();
    for directory in ["src", "boot"] {
        count(&root, &root.join(directory), &mut source)?;
    }
    source.sort_by(|a, b| a.file.cmp(&b.file));
    let mut total = Lines::default();
    source.iter().for_each(|s| total.add(s.lines));
    let mut built = Vec::new();
    if !arguments.source_only {
        let image = image::build(false)?;
        for (component, path) in [
            ("kernel", image.kernel()),
            ("initrd", image.initrd()),
            ("init (in the initrd)", image.init()),
            ("command line", image.cmdline()),
        ] {
            let bytes = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
            built.push(Built { component, bytes });
        }
    }
    let tcb = Tcb { source, total, image: built };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&tcb)?);
    } else {
        print(&tcb);
    }
    Ok(())
}

fn print(tcb: &Tcb) {
    println!("{:>8} {:>8} {:>8} {:>9}  source", "code", "comments", "tests", "bytes");
    let row = |lines: &Lines, name: &str| {
        println!("{:>8} {:>8} {:>8} {:>9}  {name}", lines.code, lines.comments, lines.tests, lines.bytes);
    };
    tcb.source.iter().for_each(|source| row(&source.lines, &source.file));
    row(&tcb.total, "total");
    if !tcb.image.is_empty() {
        println!("\n{:>9}  image", "bytes");
        tcb.image.iter().for_each(|built| println!("{:>9}  {}", built.bytes, built.component));
    }
}

fn count(root: &Path, directory: &Path, source: &mut Vec<Source>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            count(root, &path, source)?;
        } else {
            let text = String::from_utf8(cache::read(&path)?)
                .with_context(|| format!("{} is not text", path.display()))?;
            let lines = Lines::of(&text, path.extension().is_some_and(|e| e == "rs"));
            source.push(Source { file: path.strip_prefix(root)?.display().to_string(), lines });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comments_and_tests_are_told_apart() {
        let text = "//! Module.\n\nfn a() {} // code\n/* one\n two */\n    /// Doc.\nfn b() {}\n#[cfg(test)]\nmod tests {\n// x\n}\n";
        let lines = Lines::of(text, true);
        assert_eq!(lines, Lines { bytes: text.len(), code: 2, comments: 4, tests: 4 });
    }

    #[test]
    fn configuration_has_hash_comments() {
        let lines = Lines::of("# why\nCONFIG_A=y\n\n", false);
        assert_eq!((lines.code, lines.comments), (1, 1));
    }
}
