//! The guest's kernel: Debian's source in a pinned version, our patches, our configuration.
//!
//! The result depends on the source package's hash, the configuration, the patches, the compiler and the
//! steps below, and on nothing else; a hash of these names the place in the cache. `boot/kernel/` holds the
//! inputs:
//!
//! - `source.json`: package, version and SHA-256. Another version is never taken silently.
//! - `config`: every symbol that is on; what is not named is off, what does not survive is an error.
//! - `patches/`: applied in the order of their names.

use crate::process::{self, Step};
use crate::{apt, cache, setup};
use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the guest's kernel, or finds it in the cache; prints the bzImage's path.
#[derive(clap::Args)]
pub struct Arguments {
    /// Move boot/kernel/source.json to the newest version that Debian stable has, then build
    #[arg(long)]
    update_pin: bool,
    /// Build even if the cache has the result, and fail if the two differ
    #[arg(long)]
    rebuild: bool,
    /// Print what is chosen, why, and against which attack, as docs/kernel.md has it, and build nothing
    #[arg(long, conflicts_with_all = ["update_pin", "rebuild"])]
    explain: bool,
}

/// The attacks against which the configuration is chosen, by their names in brackets in `boot/kernel/config`.
const ATTACKS: [(&str, &str); 9] = [
    ("B01", "the host's ACPI tables are code that the kernel runs"),
    ("B02", "the host adds to what boots: a command line, an initrd, boot parameters"),
    ("B03", "the guest runs with a debugger or a migration agent, or at another privilege level"),
    ("B04", "a module, a console or a debugger is a way in"),
    ("B05", "a device does not behave as its driver expects, or is one that nobody asked for"),
    ("B06", "the host injects interrupts and exceptions"),
    ("B07", "the host sets the clock"),
    ("B08", "the host takes memory away, or adds some"),
    ("B09", "the host supplies the randomness, or withholds it"),
];

/// Changes whenever the steps in this file change the result.
const RECIPE: u32 = 1;
/// Lines that a build prints, for the progress bar.
const LINES: u64 = 1770;
/// Everything about the build that could carry a date, a name or a machine.
const FIXED: [(&str, &str); 6] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "parma"),
    ("KBUILD_BUILD_HOST", "parma"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
];
/// What the caller's environment could add to the build.
const FOREIGN: [&str; 9] =
    ["MAKEFLAGS", "MFLAGS", "CFLAGS", "KCFLAGS", "KAFLAGS", "CC", "ARCH", "CROSS_COMPILE", "KBUILD_OUTPUT"];

/// The pinned source package.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    package: String,
    version: String,
    sha256: String,
}

/// A built kernel.
pub struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    pub fn bzimage(&self) -> PathBuf {
        self.dir.join("bzImage")
    }

    /// Release, package version and compiler, for the manifest.
    pub fn version(&self) -> Result<String> {
        Ok(String::from_utf8(cache::read(&self.dir.join("version"))?)?.trim_end().to_string())
    }
}

pub fn main(arguments: Arguments) -> Result<()> {
    if arguments.update_pin {
        update_pin()?;
    }
    if arguments.explain {
        print!("{}", Fragment::read()?.explain());
        return Ok(());
    }
    let kernel = if arguments.rebuild { rebuild()? } else { build()? };
    println!("{}", kernel.bzimage().display());
    Ok(())
}

/// Builds the kernel, or finds it in the cache.
pub fn build() -> Result<Kernel> {
    let inputs = Inputs::read()?;
    let dir = cache::dir("kernel")?.join(inputs.key());
    if dir.join("bzImage").exists() {
        return Ok(Kernel { dir });
    }
    let _lock = cache::lock(&dir)?;
    if !dir.join("bzImage").exists() {
        make(&inputs, &dir)?;
    }
    Ok(Kernel { dir })
}

/// Builds again, elsewhere, and compares.
fn rebuild() -> Result<Kernel> {
    let kernel = build()?;
    let again = cache::dir("kernel")?.join("again");
    let _lock = cache::lock(&again)?;
    make(&Inputs::read()?, &again)?;
    let same = cache::read(&again.join("bzImage"))? == cache::read(&kernel.bzimage())?;
    if !same {
        bail!("{} and {} differ: the build is not reproducible", again.display(), kernel.dir.display());
    }
    fs::remove_dir_all(&again)?;
    Ok(kernel)
}

/// What a kernel is made from.
struct Inputs {
    source: Source,
    config: Fragment,
    patches: BTreeMap<PathBuf, Vec<u8>>,
    tools: String,
}

impl Inputs {
    fn read() -> Result<Self> {
        setup::ensure(&[setup::KERNEL])?;
        let mut patches = BTreeMap::new();
        for entry in fs::read_dir(directory().join("patches")).context("cannot list boot/kernel/patches")? {
            let path = entry?.path();
            patches.insert(path.clone(), cache::read(&path)?);
        }
        let first = |tool: &str| -> Result<String> {
            let text = process::output(Command::new(tool).arg("--version"))?;
            Ok(text.lines().next().unwrap_or_default().trim_matches(['*', ' ']).to_string())
        };
        Ok(Self {
            source: Source::read()?,
            config: Fragment::read()?,
            patches,
            tools: [first("gcc")?, first("ld")?, first("zstd")?].join(", "),
        })
    }

    fn key(&self) -> String {
        let mut text = format!("{RECIPE}\n{}\n{}\n{}\n", self.source.sha256, self.tools, self.config.text());
        for patch in self.patches.values() {
            text += &cache::sha256(patch);
        }
        cache::sha256(text.as_bytes())[..16].to_string()
    }
}

impl Source {
    fn path() -> PathBuf {
        directory().join("source.json")
    }

    fn read() -> Result<Self> {
        serde_json::from_slice(&cache::read(&Self::path())?)
            .with_context(|| format!("{} is not a pin", Self::path().display()))
    }

    /// The pinned package file, from the cache or from Debian.
    fn fetch(&self) -> Result<PathBuf> {
        let cached = apt::cached(&self.sha256)?;
        if cached.exists() {
            apt::check(&cached, &self.sha256)?;
            return Ok(cached);
        }
        let move_pin = || {
            format!(
                "{} {} is pinned in boot/kernel/source.json, and Debian no longer has it in this form. \
                 Move the pin with `cargo xtask kernel --update-pin` (that changes the measurement)",
                self.package, self.version
            )
        };
        let package = apt::Root::open()?.exactly(&self.package, &self.version).with_context(move_pin)?;
        if package.sha256 != self.sha256 {
            return Err(anyhow!("the archive's file has SHA-256 {}", package.sha256)).with_context(move_pin);
        }
        let step = Step::new(&format!("downloading {} {}", self.package, self.version), None);
        let path = apt::fetch(&package)?;
        step.done();
        Ok(path)
    }
}

fn directory() -> PathBuf {
    cache::root().join("boot/kernel")
}

/// Pins the newest version that Debian has.
fn update_pin() -> Result<()> {
    let root = apt::Root::open()?;
    let package = root.first_dependency("linux-source")?;
    let version = root.newest(&package)?;
    let sha256 = root.exactly(&package, &version)?.sha256;
    let old = Source::read()?;
    let new = Source { package, version, sha256 };
    cache::write(&Source::path(), format!("{}\n", serde_json::to_string_pretty(&new)?).as_bytes())?;
    eprintln!("pinned {} {} (was {} {})", new.package, new.version, old.package, old.version);
    Ok(())
}

/// Extract, patch, configure, verify, compile.
fn make(inputs: &Inputs, target: &Path) -> Result<()> {
    let deb = inputs.source.fetch()?;
    let staging = cache::Staging::new(&target.with_extension("tree"))?;
    let tree = staging.path().join("tree");
    extract(&deb, &inputs.source.package, &tree)?;
    for (path, text) in &inputs.patches {
        let copy = staging.path().join("patch");
        cache::write(&copy, text)?;
        process::run(
            Command::new("patch").args(["-p1", "--forward", "--input"]).arg(&copy).current_dir(&tree),
        )
        .with_context(|| format!("{} does not apply to {}", path.display(), inputs.source.version))?;
        fs::remove_file(&copy)?;
    }
    let fragment = staging.path().join("fragment");
    cache::write(&fragment, inputs.config.text().as_bytes())?;
    let make = || {
        let mut command = Command::new("make");
        command.envs(FIXED).current_dir(&tree);
        FOREIGN.iter().for_each(|name| {
            command.env_remove(name);
        });
        command
    };
    process::run(make().env("KCONFIG_ALLCONFIG", &fragment).arg("allnoconfig"))?;
    inputs.config.verify(&String::from_utf8(cache::read(&tree.join(".config"))?)?, &symbols(&tree)?)?;

    let cores = std::thread::available_parallelism()?.get();
    let step = Step::new("building the kernel (some six minutes on two cores)", Some(LINES));
    process::run_with(make().args([&format!("-j{cores}"), "bzImage"]), |_| step.tick())?;
    step.done();

    let release = String::from_utf8(cache::read(&tree.join("include/config/kernel.release"))?)?;
    let Source { package, version, .. } = &inputs.source;
    let version = format!("{} ({package} {version}; {})\n", release.trim_end(), inputs.tools);
    let result = cache::Staging::new(target)?;
    for (from, to) in
        [("arch/x86/boot/bzImage", "bzImage"), ("System.map", "System.map"), (".config", "config")]
    {
        fs::copy(tree.join(from), result.path().join(to))
            .with_context(|| format!("the build made no {from}"))?;
    }
    cache::write(&result.path().join("version"), version.as_bytes())?;
    result.publish()?;
    Ok(())
}

/// How `docs/kernel.md` begins.
const EXPLANATION: &str = "\
# The guest's kernel

Debian's `linux-source` in the version of `boot/kernel/source.json`, two patches, and the configuration that is explained here: everything built
in, no modules, no ACPI, no EFI. What is not named is off. `cargo xtask kernel` builds it and fails where a symbol below did not get the value that it should have;
`cargo xtask kernel --explain` prints this page from the comments of `boot/kernel/config`.

What a container finds of it is looked at in a running guest: `tools/parma/tests/kernel_attacks.rs`. `tools/parma/tests/device_attacks.rs`
has a disk that breaks the protocol of virtio (B05).

The attacks that are named in brackets:

| | |
|---|---|
";

fn extract(deb: &Path, package: &str, tree: &Path) -> Result<()> {
    let step = Step::new("unpacking the kernel's source", None);
    fs::create_dir(tree)?;
    let script = "set -o pipefail; dpkg-deb --fsys-tarfile \"$1\" | tar -xO \"./usr/src/$2.tar.xz\" | \
                  tar -xJ --strip-components=1 -C \"$3\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "extract"]).arg(deb).arg(package).arg(tree);
    process::run(&mut command).with_context(|| format!("cannot unpack {}", deb.display()))?;
    step.done();
    Ok(())
}

/// What `boot/kernel/config` asks for, in its order.
struct Fragment(Vec<Setting>);

/// A symbol.
struct Setting {
    symbol: String,
    /// None where it must be off.
    value: Option<String>,
    /// The heading that it is under.
    section: String,
    /// The comment above it.
    reason: String,
}

impl Fragment {
    fn read() -> Result<Self> {
        Self::parse(&String::from_utf8(cache::read(&directory().join("config"))?)?)
    }

    /// Reads settings, each with the comment above it. A line that is neither, a symbol that is named twice, and one without a
    /// reason are refused.
    fn parse(text: &str) -> Result<Self> {
        let mut settings: Vec<Setting> = Vec::new();
        let (mut section, mut reason, mut in_comment) = (String::new(), String::new(), false);
        for line in text.lines() {
            let off = line.strip_prefix("# ").and_then(|l| l.strip_suffix(" is not set"));
            let heading = line.strip_prefix("# --- ").map(|rest| rest.trim_end_matches('-').trim_end());
            let (symbol, value) = match (off, line.split_once('=')) {
                (Some(symbol), _) => (symbol, None),
                _ if line.is_empty() || heading.is_some() => {
                    (reason, in_comment) = (String::new(), false);
                    section = heading.map_or(section, str::to_string);
                    continue;
                }
                _ if line.starts_with('#') => {
                    let before = if in_comment { reason + " " } else { String::new() };
                    (reason, in_comment) = (before + line.trim_start_matches('#').trim_start(), true);
                    continue;
                }
                (None, Some((symbol, value))) => (symbol, Some(value.to_string())),
                (None, None) => bail!("boot/kernel/config: `{line}` is neither a symbol nor a comment"),
            };
            in_comment = false;
            if settings.iter().any(|setting| setting.symbol == symbol) {
                bail!("boot/kernel/config names {symbol} twice");
            }
            if reason.is_empty() {
                bail!("boot/kernel/config gives no reason for {symbol}: write a comment above it");
            }
            let (symbol, section, reason) = (symbol.to_string(), section.clone(), reason.clone());
            settings.push(Setting { symbol, value, section, reason });
        }
        Ok(Self(settings))
    }

    /// As Kconfig reads it: comments and order make no difference.
    fn text(&self) -> String {
        let line = |setting: &Setting| match &setting.value {
            Some(value) => format!("{}={value}\n", setting.symbol),
            None => format!("# {} is not set\n", setting.symbol),
        };
        let mut lines: Vec<_> = self.0.iter().map(line).collect();
        lines.sort();
        lines.concat()
    }

    /// `docs/kernel.md`.
    fn explain(&self) -> String {
        let mut text = EXPLANATION.to_string();
        for (name, attack) in ATTACKS {
            text += &format!("| {name} | {attack} |\n");
        }
        let mut section = "";
        for group in self.0.chunk_by(|a, b| (&a.section, &a.reason) == (&b.section, &b.reason)) {
            if group[0].section != section {
                section = &group[0].section;
                text += &format!("\n## {section}\n\n| symbols | why |\n|---|---|\n");
            }
            let shown = |setting: &Setting| {
                let name = setting.symbol.trim_start_matches("CONFIG_");
                match setting.value.as_deref() {
                    Some("y") => name.to_string(),
                    Some(value) => format!("{name}={value}"),
                    None => format!("no {name}"),
                }
            };
            let symbols: Vec<_> = group.iter().map(shown).collect();
            text += &format!("| {} | {} |\n", symbols.join(", "), group[0].reason);
        }
        text
    }

    /// Refuses a configuration that is not what was asked for, naming each symbol.
    ///
    /// A value must be there as it stands; a symbol that must be off must be absent; and every symbol must be one
    /// that this kernel knows, so that a promise cannot be void.
    fn verify(&self, config: &str, known: &BTreeSet<String>) -> Result<()> {
        let found: BTreeMap<_, _> =
            config.lines().filter(|l| l.starts_with("CONFIG_")).filter_map(|l| l.split_once('=')).collect();
        let mut wrong = Vec::new();
        for Setting { symbol, value, .. } in &self.0 {
            let (expected, found) = (value.as_deref(), found.get(symbol.as_str()).copied());
            if !symbol.strip_prefix("CONFIG_").is_some_and(|name| known.contains(name)) {
                wrong.push(format!("{symbol}: this kernel has no such symbol"));
            } else if found != expected {
                let [expected, found] = [expected, found].map(|v| v.unwrap_or("not set"));
                wrong.push(format!("{symbol}: asked for {expected}, got {found}"));
            }
        }
        if !wrong.is_empty() {
            bail!("boot/kernel/config cannot be had as it stands:\n  {}", wrong.join("\n  "));
        }
        Ok(())
    }
}

/// Every symbol that the source's Kconfig files define.
fn symbols(tree: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut directories = vec![tree.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with("Kconfig") {
                let text = cache::read(&entry.path())?;
                for line in String::from_utf8_lossy(&text).lines() {
                    let mut words = line.split_whitespace();
                    if let (Some("config" | "menuconfig"), Some(name)) = (words.next(), words.next()) {
                        found.insert(name.to_string());
                    }
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(fragment: &str, config: &str) -> String {
        let known = ["A", "B", "ON"].map(String::from).into();
        Fragment::parse(fragment)
            .and_then(|fragment| fragment.verify(config, &known))
            .map_or_else(|error| error.to_string(), |()| "accepted".into())
    }

    #[test]
    fn a_configuration_as_asked_for_is_accepted() {
        let fragment = "# why\nCONFIG_A=y\n\n# why\nCONFIG_B=\"x=y\"\n# CONFIG_ON is not set\n";
        assert_eq!(verdict(fragment, "CONFIG_A=y\nCONFIG_B=\"x=y\"\n# CONFIG_ON is not set\n"), "accepted");
    }

    #[test]
    fn a_lost_symbol_is_named() {
        assert!(
            verdict("# why\nCONFIG_A=y\nCONFIG_B=3\n", "CONFIG_A=y\nCONFIG_B=4\n")
                .contains("CONFIG_B: asked for 3, got 4")
        );
        assert!(verdict("# why\nCONFIG_A=y\n", "").contains("CONFIG_A: asked for y, got not set"));
    }

    #[test]
    fn a_symbol_that_must_be_off_and_is_on_is_named() {
        assert!(verdict("# why\n# CONFIG_ON is not set\n", "CONFIG_ON=y\n").contains("CONFIG_ON"));
    }

    #[test]
    fn a_symbol_that_the_kernel_does_not_know_is_named() {
        assert!(verdict("# why\n# CONFIG_TYPO is not set\n", "").contains("no such symbol"));
    }

    #[test]
    fn a_line_that_is_no_setting_is_refused() {
        assert!(verdict("CONFIG_A\n", "").contains("neither"));
    }

    #[test]
    fn a_symbol_that_is_named_twice_is_refused() {
        assert!(verdict("# why\nCONFIG_A=y\n# CONFIG_A is not set\n", "").contains("CONFIG_A twice"));
    }

    #[test]
    fn a_symbol_without_a_reason_is_refused() {
        for text in
            ["CONFIG_A=y\n", "# why\n\nCONFIG_A=y\n", "# why\nCONFIG_B=y\n# --- More ---\nCONFIG_A=y\n"]
        {
            assert!(verdict(text, "").contains("no reason for CONFIG_A"), "{text}");
        }
    }

    #[test]
    fn comments_and_order_do_not_make_another_kernel() {
        let of = |text| Fragment::parse(text).unwrap().text();
        assert_eq!(
            of("# why\nCONFIG_B=y\n# CONFIG_A is not set\n"),
            of("# because\n# CONFIG_A is not set\nCONFIG_B=y\n")
        );
        assert_ne!(of("# why\nCONFIG_A=y\n"), of("# why\n# CONFIG_A is not set\n"));
    }

    #[test]
    fn reasons_of_several_lines_are_one_and_end_where_settings_begin() {
        let fragment = Fragment::parse(
            "# --- One ---\n# first\n# line\nCONFIG_A=y\n# other\nCONFIG_B=3\n# CONFIG_C is not set\n",
        );
        let text = fragment.unwrap().explain();
        assert!(text.ends_with(
            "\n## One\n\n| symbols | why |\n|---|---|\n| A | first line |\n| B=3, no C | other |\n"
        ));
    }

    /// The attacks that a reason names in brackets.
    fn named(reason: &str) -> Vec<&str> {
        reason
            .split('(')
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
            .map(|(name, _)| name)
            .filter(|name| matches!(name.as_bytes(), [b'A'..=b'Z', b'0'..=b'9', b'0'..=b'9']))
            .collect()
    }

    #[test]
    fn the_projects_own_fragment_answers_every_attack_on_the_kernel() {
        let fragment = Fragment::read().unwrap();
        let answered: BTreeSet<_> = fragment.0.iter().flat_map(|setting| named(&setting.reason)).collect();
        assert_eq!(answered, ATTACKS.iter().map(|(name, _)| *name).collect());
        let value = |symbol: &str| {
            let setting = fragment.0.iter().find(|setting| setting.symbol == symbol);
            setting.unwrap_or_else(|| panic!("{symbol}")).value.as_deref()
        };
        assert_eq!(value("CONFIG_DM_VERITY"), Some("y"));
        assert_eq!(value("CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY"), Some("y"));
        for off in [
            "MODULES",
            "ACPI",
            "KEXEC",
            "KEXEC_FILE",
            "DEVMEM",
            "MAGIC_SYSRQ",
            "IA32_EMULATION",
            "VT",
            "VIRTIO_CONSOLE",
            "MEMORY_BALLOON",
            "MEMORY_HOTPLUG",
            "HW_RANDOM",
            "PTP_1588_CLOCK",
        ] {
            assert_eq!(value(&format!("CONFIG_{off}")), None, "{off}");
        }
    }

    #[test]
    fn the_page_is_what_explain_prints() {
        let page = fs::read_to_string(cache::root().join("docs/kernel.md")).unwrap();
        assert!(
            page == Fragment::read().unwrap().explain(),
            "run `cargo xtask kernel --explain > docs/kernel.md`"
        );
    }

    /// The kernel of the image has every symbol that is on, and none that must be off.
    #[test]
    fn the_kernel_that_was_built_has_this_configuration() {
        if std::env::var_os("PARMA_IMAGE").is_none() {
            eprintln!("skipped: run `cargo xtask test`");
            return;
        }
        let kernel = build().unwrap();
        let config = fs::read_to_string(kernel.dir.join("config")).unwrap();
        let fragment = Fragment::read().unwrap();
        let known = fragment
            .0
            .iter()
            .map(|setting| setting.symbol.trim_start_matches("CONFIG_").to_string())
            .collect();
        fragment.verify(&config, &known).unwrap();
        // What can be chosen and was not named is off: the rest is what these and the machine imply.
        assert!(!config.contains("=m\n"));
    }
}
