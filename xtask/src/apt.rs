//! Debian packages without touching the machine's own package manager.
//!
//! A private apt root: own sources (Debian stable and its security updates), own lists, an empty package
//! database. So the machine's release does not matter, nothing is installed, and root is not needed. apt
//! checks the archive's signatures, and each package against the signed lists.

use crate::cache;
use crate::process::{self, Step};
use crate::setup;
use anyhow::{Context, Result, anyhow, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's stable release, from which kernel and fixtures come.
const RELEASE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package file in the archive, as the signed lists describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    uri: String,
    /// Its name in the archive, without the epoch: `name_version_architecture.deb`.
    pub file: String,
    pub sha256: String,
}

impl Package {
    /// Parses a line of `apt-get --print-uris`: `'URI' FILE SIZE SHA256:HEX`.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix('\'')?;
        let (uri, rest) = rest.split_once("' ")?;
        let mut words = rest.split(' ');
        let (_, _, hash) = (words.next()?, words.next()?, words.next()?);
        let sha256 = hash.trim().strip_prefix("SHA256:")?;
        let file = uri.rsplit('/').next()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-._~%".contains(c);
        let sound = file.ends_with(".deb") && file.chars().all(plain) && sha256.len() == 64;
        sound.then(|| Self { uri: uri.into(), file: file.into(), sha256: sha256.into() })
    }
}

/// A private apt root with fresh lists.
pub struct Root {
    dir: PathBuf,
}

impl Root {
    /// Opens the root and fetches the archive's lists.
    pub fn open() -> Result<Self> {
        setup::ensure(&[setup::DEBIAN])?;
        let dir = cache::dir("apt")?;
        let root = Self { dir };
        let _lock = cache::lock(&root.dir)?;
        for part in ["parts", "lists/partial", "archives/partial"] {
            fs::create_dir_all(root.dir.join(part))
                .with_context(|| format!("cannot create {}", root.dir.join(part).display()))?;
        }
        cache::write(&root.dir.join("status"), b"")?;
        let source =
            |path: &str, suite: &str| format!("deb [signed-by={KEYRING}] {MIRROR}/{path} {suite} main\n");
        let sources = source("debian", RELEASE) + &source("debian-security", &format!("{RELEASE}-security"));
        cache::write(&root.dir.join("sources.list"), sources.as_bytes())?;
        let step = Step::new("fetching Debian's package lists", None);
        process::run(root.apt("apt-get").args(["-q", "update", "--error-on=any"])).with_context(|| {
            format!("cannot fetch Debian's package lists from {MIRROR}: is there a network?")
        })?;
        step.done();
        Ok(root)
    }

    /// One package, in a given version.
    pub fn exactly(&self, package: &str, version: &str) -> Result<Package> {
        let _lock = cache::lock(&self.dir)?;
        let wanted = format!("{package}={version}");
        let text = process::output(self.apt("apt-get").args(["--print-uris", "download", &wanted]))?;
        one(&text).with_context(|| format!("apt describes no single file for {wanted}"))
    }

    /// The newest version of a package.
    pub fn newest(&self, package: &str) -> Result<String> {
        let _lock = cache::lock(&self.dir)?;
        let text = process::output(self.apt("apt-cache").args(["policy", package]))?;
        let candidate = text.lines().find_map(|l| l.trim().strip_prefix("Candidate: "));
        candidate
            .filter(|version| *version != "(none)")
            .map(str::to_string)
            .ok_or_else(|| anyhow!("Debian {RELEASE} has no package {package}"))
    }

    /// What a package depends on by name, on the first line `Depends:` of its newest version.
    pub fn first_dependency(&self, package: &str) -> Result<String> {
        let _lock = cache::lock(&self.dir)?;
        let text = process::output(self.apt("apt-cache").args(["depends", package]))?;
        let found = text.lines().find_map(|l| l.trim().strip_prefix("Depends: "));
        found.map(str::to_string).ok_or_else(|| anyhow!("{package} depends on nothing"))
    }

    /// Some packages and all they depend on, sorted by file name.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let _lock = cache::lock(&self.dir)?;
        let mut command = self.apt("apt-get");
        command.args(["-q", "-y", "--no-install-recommends", "--print-uris", "install"]).args(packages);
        let text = process::output(&mut command)?;
        let mut found: Vec<_> = text.lines().filter_map(Package::parse).collect();
        if found.len() < packages.len() {
            bail!("apt found only {} of {}", found.len(), packages.join(", "));
        }
        found.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(found)
    }

    fn apt(&self, program: &str) -> Command {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8").current_dir(&self.dir);
        for (key, value) in [
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", at("parts")),
            ("Dir::Etc::preferences", at("no-preferences")),
            ("Dir::Etc::preferencesparts", at("parts")),
            ("Dir::State", at("")),
            ("Dir::State::lists", at("lists")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("")),
            ("Dir::Cache::archives", at("archives")),
            ("APT::Architecture", "amd64".into()),
            ("APT::Architectures", "amd64".into()),
            ("APT::Sandbox::User", String::new()),
            ("Acquire::Languages", "none".into()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".into()),
            // Without this, `install --print-uris` shows MD5.
            ("Acquire::ForceHash", "sha256".into()),
            ("Acquire::Retries", "3".into()),
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        command
    }
}

/// Where a package file of this hash lies in the cache, whether it is there or not.
pub fn cached(sha256: &str) -> Result<PathBuf> {
    Ok(cache::dir("debs")?.join(format!("{sha256}.deb")))
}

/// Downloads a package into the cache and checks it against its hash.
pub fn fetch(package: &Package) -> Result<PathBuf> {
    let path = cached(&package.sha256)?;
    let _lock = cache::lock(&path)?;
    if path.exists() {
        return Ok(path);
    }
    let staging = cache::Staging::new(&path)?;
    let download = staging.path().join("deb");
    // apt's own transport: it knows the machine's proxies.
    let fetched = process::run(
        Command::new("/usr/lib/apt/apt-helper")
            .args(["-o", "APT::Sandbox::User=", "download-file", &package.uri])
            .arg(&download)
            .arg(format!("SHA256:{}", package.sha256)),
    );
    fetched.with_context(|| format!("cannot download {}", package.uri))?;
    check(&download, &package.sha256)?;
    fs::rename(&download, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Refuses a file that has another hash.
pub fn check(path: &Path, sha256: &str) -> Result<()> {
    let found = cache::sha256_of(path)?;
    if found != sha256 {
        bail!("{} has SHA-256 {found}, expected {sha256}: delete it and try again", path.display());
    }
    Ok(())
}

fn one(text: &str) -> Result<Package> {
    let mut packages = text.lines().filter_map(Package::parse);
    match (packages.next(), packages.next()) {
        (Some(package), None) => Ok(package),
        _ => bail!("expected one line with a file, found: {}", text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "9141325315c7f1eca682113d185a8c77c82814aa6e32f7e127e61d6106403835";

    #[test]
    fn a_line_of_apt_is_read() {
        let line = format!("'http://deb.debian.org/pool/a/a_1%3a2_all.deb' a_1%3a2_all.deb 15 SHA256:{HASH}");
        let package = Package::parse(&line).unwrap();
        assert_eq!((package.file.as_str(), package.sha256.as_str()), ("a_1%3a2_all.deb", HASH));
    }

    #[test]
    fn a_line_without_a_strong_hash_is_no_package() {
        for hash in ["MD5Sum:aa", "SHA256:aa", ""] {
            assert_eq!(Package::parse(&format!("'http://x/a.deb' a.deb 15 {hash}")), None);
        }
    }

    #[test]
    fn two_files_are_not_one() {
        let line = format!("'http://x/a.deb' a.deb 15 SHA256:{HASH}\n");
        assert!(one(&line).is_ok() && one(&format!("{line}{line}")).is_err() && one("").is_err());
    }
}
