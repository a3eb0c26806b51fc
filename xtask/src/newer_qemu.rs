//! A QEMU that knows SNP guests, for tests of the command line only: Debian's stable release has one where this machine's own
//! may be older. Its packages, with every library that they need, are unpacked beside each other; nothing is installed.

use crate::process::{self, Step};
use crate::{apt, cache};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

const PACKAGE: &str = "qemu-system-x86";

/// The program: unpacked on first use, and then kept whatever Debian has by that time.
pub fn program() -> Result<PathBuf> {
    let target = cache::dir("tools")?.join("newer-qemu");
    let program = target.join("qemu");
    let _lock = cache::lock(&target)?;
    if program.exists() {
        return Ok(program);
    }
    let staging = cache::Staging::new(&target)?;
    let root = staging.path().join("root");
    fs::create_dir(&root)?;
    let packages = apt::Root::open()?.closure(&[PACKAGE])?;
    let step = Step::new("unpacking a newer QEMU", Some(packages.len() as u64));
    for package in &packages {
        let deb = apt::fetch(package)?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))
            .with_context(|| format!("cannot unpack {}", package.file))?;
        step.tick();
    }
    // With the loader and the libraries of its own release: this machine's are others.
    let script = "#!/bin/sh\n\
        root=$(dirname \"$0\")/root/usr\n\
        QEMU_MODULE_DIR=$root/lib/x86_64-linux-gnu/qemu exec $root/lib64/ld-linux-x86-64.so.2 \\\n\
        \x20   --library-path $root/lib/x86_64-linux-gnu $root/bin/qemu-system-x86_64 -L $root/share/qemu \"$@\"\n";
    let staged = staging.path().join("qemu");
    cache::write(&staged, script.as_bytes())?;
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))?;
    process::output(Command::new(&staged).arg("--version")).context("the newer QEMU does not run")?;
    staging.publish()?;
    step.done();
    Ok(program)
}
