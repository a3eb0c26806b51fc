//! What has to be trusted, counted: source lines of `src/` and `boot/` and of the crates that are linked into what is built from
//! them, and its bytes. The kernel, and Rust's own `core` and `alloc`, are counted in bytes only.

use crate::{cache, image, process};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

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
    /// Third-party crates of which code is linked into the image, each whole.
    crates: Vec<Source>,
    crates_total: Lines,
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

/// Lines of source files; blank ones count as nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Lines {
    bytes: usize,
    code: usize,
    comments: usize,
    /// Lines of any kind that are built for tests only.
    tests: usize,
    /// Blocks, functions and implementations that are marked `unsafe`, outside tests.
    #[serde(rename = "unsafe")]
    unsafe_marks: usize,
    /// Lines of code that are assembly, in files of their own.
    assembly: usize,
}

impl Lines {
    /// Counts a Rust file, formatted as rustfmt leaves it: an item under `#[cfg(test)]` ends with a line that has
    /// its indentation and a closing brace, or with a semicolon before any brace opens.
    fn of_rust(text: &str) -> Self {
        let mut lines = Self { bytes: text.len(), ..Self::default() };
        let mut in_block = false;
        let mut test_item: Option<TestItem> = None;
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            let bare = line.trim_start();
            let indentation = line.len() - bare.len();
            if test_item.is_none() && (bare.starts_with("#[cfg(test)") || bare.starts_with("#[cfg(all(test"))
            {
                test_item = Some(TestItem { indentation, open: false });
                lines.tests += 1;
                continue;
            }
            if let Some(item) = &mut test_item {
                lines.tests += 1;
                item.open |= bare.ends_with('{');
                let closed = item.open && indentation == item.indentation && bare.starts_with('}');
                if closed || !item.open && bare.ends_with(';') {
                    test_item = None;
                }
                continue;
            }
            let starts_block = bare.starts_with("/*");
            if in_block || starts_block || bare.starts_with("//") {
                lines.comments += 1;
            } else {
                lines.code += 1;
                lines.unsafe_marks += ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                    .map(|mark| bare.matches(mark).count())
                    .iter()
                    .sum::<usize>();
            }
            in_block = (in_block || starts_block) && !bare.contains("*/");
        }
        lines
    }

    /// Counts a file of tests.
    fn of_tests(text: &str) -> Self {
        let tests = text.lines().filter(|line| !line.trim().is_empty()).count();
        Self { bytes: text.len(), tests, ..Self::default() }
    }

    /// Counts a file with `#` comments, among which Kconfig's "is not set" are settings.
    fn of_settings(text: &str) -> Self {
        let mut lines = Self { bytes: text.len(), ..Self::default() };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if line.starts_with('#') && !line.ends_with(" is not set") {
                lines.comments += 1;
            } else {
                lines.code += 1;
            }
        }
        lines
    }

    /// Counts an assembly file.
    fn of_assembly(text: &str) -> Self {
        let lines = Self::of_settings(text);
        Self { assembly: lines.code, ..lines }
    }

    fn add(&mut self, other: Self) {
        self.unsafe_marks += other.unsafe_marks;
        self.assembly += other.assembly;
        self.bytes += other.bytes;
        self.code += other.code;
        self.comments += other.comments;
        self.tests += other.tests;
    }
}

/// An item under `#[cfg(test)]`.
struct TestItem {
    indentation: usize,
    /// Whether its brace has opened.
    open: bool,
}

/// What others trust in the place of our firmware and init.
const PEERS: [(&str, &str); 4] = [
    ("firmware: OVMF", "2-4 MiB"),
    ("firmware: Oak stage0", "512 KiB"),
    ("agent, runtime and policy engine: hcsshim's guest", "about 30.7 MB"),
    ("agent: Kata Containers", "15-30 MB"),
];

/// How cargo names what is built: the init and the firmware.
const PROGRAMS: [[&str; 4]; 2] =
    [["-p", "parma-guest", "--features", "guest"], ["-p", "parma-firmware", "--features", "rom"]];

pub fn main(arguments: Arguments) -> Result<()> {
    let root = cache::root();
    let mut source = Vec::new();
    for directory in ["src", "boot"] {
        count(&root, &root.join(directory), &mut source)?;
    }
    source.sort_by(|a, b| a.file.cmp(&b.file));
    let crates = crates()?;
    let [mut total, mut crates_total] = [Lines::default(); 2];
    source.iter().for_each(|s| total.add(s.lines));
    crates.iter().for_each(|s| crates_total.add(s.lines));
    let mut built = Vec::new();
    if !arguments.source_only {
        let image = image::build(false)?;
        for (component, path) in [
            ("firmware", image.rom()),
            ("kernel", image.kernel()),
            ("initrd", image.initrd()),
            ("init (in the initrd)", image.init()),
            ("command line", image.cmdline()),
        ] {
            let bytes = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
            built.push(Built { component, bytes });
        }
    }
    let tcb = Tcb { source, total, crates, crates_total, image: built };
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
    println!("{:>8} marks of unsafe, {} lines of assembly", tcb.total.unsafe_marks, tcb.total.assembly);
    println!(
        "\n{:>8} {:>8} {:>8} {:>9}  third-party crates of which code is linked in, whole",
        "code", "comments", "tests", "bytes"
    );
    tcb.crates.iter().for_each(|source| row(&source.lines, &source.file));
    row(&tcb.crates_total, "total");
    println!("{:>8} marks of unsafe", tcb.crates_total.unsafe_marks);
    if !tcb.image.is_empty() {
        println!("\n{:>9}  image", "bytes");
        tcb.image.iter().for_each(|built| println!("{:>9}  {}", built.bytes, built.component));
        println!("\npeers, as published");
        PEERS.iter().for_each(|(what, figure)| println!("{figure:>16}  {what}"));
    }
}

/// The third-party crates that cargo links into the measured programs. Those that run in the compiler are not among them.
fn crates() -> Result<Vec<Source>> {
    let cargo =
        |words: &[&str]| process::output(Command::new("cargo").current_dir(cache::root()).args(words));
    let tree =
        ["tree", "--locked", "--target", "x86_64-unknown-linux-gnu", "--edges", "normal,no-proc-macro"];
    let mut linked = BTreeSet::new();
    for program in PROGRAMS {
        let format = ["--prefix", "none", "--format", "{p}"];
        for line in cargo(&[&tree[..], &format, &program].concat())?.lines() {
            linked.extend(name_and_version(line));
        }
    }
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--locked", "--format-version", "1"])?)
        .context("cargo metadata")?;
    let mut crates = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata")? {
        let text = |field: &str| package[field].as_str().unwrap_or_default();
        if package["source"].is_null()
            || !linked.contains(&(text("name").to_owned(), text("version").to_owned()))
        {
            continue;
        }
        let directory = Path::new(text("manifest_path")).with_file_name("src");
        let mut lines = Lines::default();
        count_rust(&directory, &mut lines)?;
        crates.push(Source { file: format!("{} {}", text("name"), text("version")), lines });
    }
    crates.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(crates)
}

/// Of a line of `cargo tree`, unless it is about a crate of ours: `sha2 v0.11.1 (*)`.
fn name_and_version(line: &str) -> Option<(String, String)> {
    let mut words = line.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let ours = words.next().is_some_and(|word| word.starts_with("(/"));
    (!ours).then(|| (name.to_owned(), version.to_owned()))
}

fn count_rust(directory: &Path, lines: &mut Lines) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            count_rust(&path, lines)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            lines.add(Lines::of_rust(&String::from_utf8_lossy(&cache::read(&path)?)));
        }
    }
    Ok(())
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
            let lines = if path.file_name().is_some_and(|name| name == "tests.rs") {
                Lines::of_tests(&text)
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                Lines::of_rust(&text)
            } else if path.extension().is_some_and(|extension| extension == "s") {
                Lines::of_assembly(&text)
            } else {
                Lines::of_settings(&text)
            };
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
        let text = "//! Module.\n\n#[cfg(test)]\nmod tests;\nfn a() {} // code\n/* one\n two */\n\
                    \u{20}   /// Doc.\nfn b() {}\n#[cfg(test)]\nmod more {\n    // x\n    }\n}\nfn c() {}\n";
        let lines = Lines::of_rust(text);
        assert_eq!(lines, Lines { bytes: text.len(), code: 3, comments: 4, tests: 7, ..Lines::default() });
    }

    #[test]
    fn marks_of_unsafe_are_counted_outside_comments_and_tests() {
        let text = "unsafe extern \"C\" {}\nfn a() {\n    // unsafe {\n    unsafe { b() };\n}\n#[cfg(test)]\nmod tests {\n    unsafe fn c() {}\n}\n";
        assert_eq!(Lines::of_rust(text).unsafe_marks, 2);
        assert_eq!(Lines::of_assembly("# why\n    hlt\n").assembly, 1);
    }

    #[test]
    fn crates_of_others_are_told_from_ours() {
        let sha2 = Some(("sha2".to_owned(), "0.11.1".to_owned()));
        assert_eq!(name_and_version("sha2 v0.11.1"), sha2);
        assert_eq!(name_and_version("sha2 v0.11.1 (*)"), sha2);
        assert_eq!(name_and_version("parma-guest v0.1.0 (/home/parma)"), None);
        assert_eq!(name_and_version(""), None);
        let crates = crates().unwrap();
        let sha2 = crates.iter().find(|found| found.file.starts_with("sha2 ")).expect("it is linked in");
        assert!(sha2.lines.code > 500, "{:?}", sha2.lines);
        assert!(!crates.iter().any(|found| found.file.starts_with("syn ")), "it runs in the compiler");
    }

    #[test]
    fn settings_that_are_off_are_settings() {
        let lines = Lines::of_settings("# why\nCONFIG_A=y\n\n# CONFIG_B is not set\n");
        assert_eq!((lines.code, lines.comments), (2, 1));
    }
}
