//! The measured image: the ROM that starts the rest, kernel, initrd with our init as its only file, and command line.
//!
//! The same tree gives the same bytes, wherever it lies: the kernel is built reproducibly, the init's build
//! has every path of the machine mapped away, the archive has no dates. `manifest.json` lists what is in it.

use crate::process::{self, Step};
use crate::{cache, cpio, firmware, igvm, kernel, measure};
use anyhow::{Context, Result, bail};
use parma_vmm::CPU;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the utility VM's image: rom, bzImage, initrd, cmdline, igvm, manifest.json.
#[derive(clap::Args)]
pub struct Arguments {
    /// Take reports from an emulated PSP: for machines without SNP, never for confidential data
    #[arg(long)]
    emulated: bool,
    /// Where to put it [default: target/image, or target/image-emulated]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// An image on disk.
pub struct ImageDir {
    pub dir: PathBuf,
}

impl ImageDir {
    /// The firmware, with the digests of kernel, initrd and command line.
    pub fn rom(&self) -> PathBuf {
        self.dir.join("rom")
    }

    pub fn kernel(&self) -> PathBuf {
        self.dir.join("bzImage")
    }

    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// The init by itself, for readers and figures; the VM gets it in the initrd.
    pub fn init(&self) -> PathBuf {
        self.dir.join("init")
    }

    pub fn cmdline(&self) -> PathBuf {
        self.dir.join("cmdline")
    }

    pub fn manifest(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }
}

/// What `manifest.json` holds.
#[derive(Serialize)]
struct Manifest {
    /// Whether the init believes an emulated PSP.
    emulated: bool,
    components: Vec<Component>,
    /// The launch digests, by processor model and number of processors.
    measurements: BTreeMap<&'static str, BTreeMap<u32, String>>,
    /// The launch digest of the IGVM file.
    igvm_measurement: String,
}

/// The models and numbers of processors whose launch digests the manifest lists.
const CPUS: [&str; 4] = ["EPYC-v4", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin"];
const VCPUS: RangeInclusive<u32> = 1..=8;

#[derive(Serialize)]
struct Component {
    component: &'static str,
    file: &'static str,
    bytes: usize,
    sha256: String,
    version: String,
}

pub fn main(arguments: Arguments) -> Result<()> {
    let image = build_into(arguments.emulated, arguments.out)?;
    print!("{}", String::from_utf8(cache::read(&image.manifest())?)?);
    eprintln!("image: {}", image.dir.display());
    Ok(())
}

/// Builds an image in its usual place.
pub fn build(emulated: bool) -> Result<ImageDir> {
    build_into(emulated, None)
}

fn build_into(emulated: bool, out: Option<PathBuf>) -> Result<ImageDir> {
    let usual = if emulated { "target/image-emulated" } else { "target/image" };
    let out = std::path::absolute(out.unwrap_or_else(|| cache::root().join(usual)))?;
    if out.exists()
        && fs::read_dir(&out).is_ok_and(|mut d| d.next().is_some())
        && !out.join("manifest.json").exists()
    {
        bail!("{} exists and is no image: choose another --out, or remove it", out.display());
    }
    let writable = || format!("no image can be written to {}: choose another --out", out.display());
    let _lock = cache::lock(&out).with_context(writable)?;
    let staging = cache::Staging::new(&out).with_context(writable)?;
    let kernel = kernel::build()?;
    let (init, compiler) = init(&cache::root(), emulated)?;
    let initrd = cpio::archive(&[("init", 0o755, &init)])?;
    let bzimage = cache::read(&kernel.bzimage())?;
    let cmdline = cmdline()?;
    let rom = firmware::build(&cache::root(), &compiler_flags(&cache::root())?)?;
    let rom = firmware::patch(rom, &bzimage, &initrd, &cmdline)?;

    let igvm = igvm::file(&rom, measure::signature(CPU)?)?;
    let igvm_measurement = measure::igvm_digest(&rom, CPU)?;

    let ours = env!("CARGO_PKG_VERSION");
    let mut components = Vec::new();
    for (component, file, content, version) in [
        ("firmware", "rom", &rom, format!("{ours} ({compiler})")),
        ("kernel", "bzImage", &bzimage, kernel.version()?),
        ("initrd", "initrd", &initrd, ours.to_string()),
        ("init", "init", &init, format!("{ours} ({compiler})")),
        ("command line", "cmdline", &cmdline, ours.to_string()),
        ("IGVM", "igvm", &igvm, format!("{ours} (1 processor, {CPU})")),
    ] {
        cache::write(&staging.path().join(file), content)?;
        components.push(Component {
            component,
            file,
            bytes: content.len(),
            sha256: cache::sha256(content),
            version,
        });
    }
    fs::set_permissions(staging.path().join("init"), fs::Permissions::from_mode(0o755))?;
    let measurements = measurements(&rom)?;
    let manifest =
        serde_json::to_string_pretty(&Manifest { emulated, components, measurements, igvm_measurement })?
            + "\n";
    cache::write(&staging.path().join("manifest.json"), manifest.as_bytes())?;
    Ok(ImageDir { dir: staging.publish()? })
}

/// The launch digests of a ROM.
fn measurements(rom: &[u8]) -> Result<BTreeMap<&'static str, BTreeMap<u32, String>>> {
    let of = |cpu| VCPUS.map(|vcpus| Ok((vcpus, measure::digest(rom, cpu, vcpus)?))).collect::<Result<_>>();
    CPUS.into_iter().map(|cpu| Ok((cpu, of(cpu)?))).collect()
}

/// The fixed command line of `boot/cmdline`, without the newline that ends the file.
fn cmdline() -> Result<Vec<u8>> {
    let path = cache::root().join("boot/cmdline");
    let text = String::from_utf8(cache::read(&path)?).context("boot/cmdline is not text")?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    if line.is_empty() || !line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        bail!("{} must be one line of printable ASCII", path.display());
    }
    Ok(line.as_bytes().to_vec())
}

/// Panic messages name source files: these flags give every machine the same names.
fn compiler_flags(root: &Path) -> Result<[String; 3]> {
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).map_or_else(
        || {
            Ok(PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
                .join(".cargo"))
        },
        anyhow::Ok,
    )?;
    Ok([(root, "/parma"), (cargo_home.as_path(), "/cargo"), (Path::new(sysroot.trim()), "/rust")]
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())))
}

/// What keeps the init small: the compact SHA-2, AES and GHASH, since it hashes a policy and a few signatures
/// and seals short messages; fewer copies of functions in their callers than the compiler makes for size alone;
/// and one copy of each sequence of instructions that occurs often.
const SMALL: [&str; 12] = [
    "--cfg",
    "sha2_backend=\"soft\"",
    "--cfg",
    "sha2_backend_soft=\"compact\"",
    "--cfg",
    "aes_backend=\"soft\"",
    "--cfg",
    "aes_backend_soft=\"compact\"",
    "--cfg",
    "polyval_backend=\"soft\"",
    "-Cllvm-args=-inline-threshold=20",
    "-Cllvm-args=-enable-machine-outliner=always",
];

/// Builds the init of a tree; returns it and the compiler's version.
fn init(root: &Path, emulated: bool) -> Result<(Vec<u8>, String)> {
    let compiler = process::output(Command::new("rustc").arg("--version"))?.trim().to_string();
    let target = root.join("target/guest");
    let features = if emulated { "guest,emulated" } else { "guest" };
    let flags = [compiler_flags(root)?.as_slice(), &SMALL.map(String::from)].concat();
    let step = Step::new(&format!("building the init ({features})"), None);
    // Cargo's own lock covers the build, not the copy: two features share one file name.
    let _lock = cache::lock(&target)?;
    let built = process::bare_metal(root, &target, "guest", ["parma-guest", "init", features], &flags)?;
    let bytes = cache::read(&built)?;
    step.done();
    Ok((bytes, compiler))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A string that only the emulated transport's code contains.
    const MARKER: &[u8] = b"emulated PSP";

    fn contains(haystack: &[u8], needle: &[u8]) -> bool {
        haystack.windows(needle.len()).any(|w| w == needle)
    }

    /// The images that `cargo xtask test` built, unless this is a plain `cargo test`.
    fn built(variable: &str) -> Option<PathBuf> {
        let dir = std::env::var_os(variable).map(PathBuf::from);
        if dir.is_none() {
            eprintln!("skipped: run `cargo xtask test`");
        }
        dir
    }

    /// What git would check out, copied.
    fn copy_of_the_tree(to: &Path) {
        let files = process::output(
            Command::new("git")
                .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
                .current_dir(cache::root()),
        );
        for file in files.unwrap().split_terminator('\0') {
            let (from, to) = (cache::root().join(file), to.join(file));
            if from.is_file() {
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(from, to).unwrap();
            }
        }
    }

    #[test]
    fn two_builds_in_two_directories_are_byte_identical() {
        let Some(image) = built("PARMA_IMAGE_REAL") else { return };
        let elsewhere = tempfile::tempdir().unwrap();
        let tree = elsewhere.path().join("a-directory-with-another-name");
        copy_of_the_tree(&tree);
        let (again, _) = init(&tree, false).unwrap();
        assert!(again == fs::read(image.join("init")).unwrap(), "the init differs");
        let rom = firmware::build(&tree, &compiler_flags(&tree).unwrap()).unwrap();
        let files = ["bzImage", "initrd", "cmdline"].map(|file| fs::read(image.join(file)).unwrap());
        let rom = firmware::patch(rom, &files[0], &files[1], &files[2]).unwrap();
        assert!(rom == fs::read(image.join("rom")).unwrap(), "the ROM differs");
        let initrd = cpio::archive(&[("init", 0o755, &again)]).unwrap();
        assert!(initrd == fs::read(image.join("initrd")).unwrap(), "the initrd differs");
    }

    #[test]
    fn the_image_names_no_directory_of_this_machine() {
        for variable in ["PARMA_IMAGE", "PARMA_IMAGE_REAL"] {
            let Some(image) = built(variable) else { return };
            let root = cache::root();
            let home = std::env::var("HOME").unwrap();
            for file in ["rom", "bzImage", "initrd"] {
                let bytes = fs::read(image.join(file)).unwrap();
                assert!(!contains(&bytes, root.as_os_str().as_encoded_bytes()), "{file} contains {root:?}");
                assert!(
                    !contains(&bytes, format!("{home}/.cargo").as_bytes()),
                    "{file} contains {home}/.cargo"
                );
            }
        }
    }

    #[test]
    fn the_emulated_psp_is_in_the_emulated_image_only() {
        let (Some(emulated), Some(real)) = (built("PARMA_IMAGE"), built("PARMA_IMAGE_REAL")) else { return };
        assert!(contains(&fs::read(emulated.join("init")).unwrap(), MARKER));
        assert!(!contains(&fs::read(real.join("init")).unwrap(), MARKER));
    }

    #[test]
    fn the_initrd_holds_one_file() {
        let Some(image) = built("PARMA_IMAGE_REAL") else { return };
        let initrd = fs::read(image.join("initrd")).unwrap();
        let entries = initrd.windows(6).filter(|w| w == b"070701").count();
        assert_eq!(entries, 2, "the init and the trailer");
    }

    #[test]
    fn the_init_is_static_without_interpreter_or_library_and_small() {
        for variable in ["PARMA_IMAGE", "PARMA_IMAGE_REAL"] {
            let Some(image) = built(variable) else { return };
            let init = image.join("init");
            let headers = process::output(Command::new("readelf").args(["-hldW"]).arg(&init)).unwrap();
            assert!(headers.contains("EXEC (Executable file)"), "{headers}");
            for dynamic in ["INTERP", "DYNAMIC", "NEEDED", "interpreter", "RWE"] {
                assert!(!headers.contains(dynamic), "{dynamic}: {headers}");
            }
            assert!(fs::metadata(&init).unwrap().len() <= 512 << 10, "the goal of the design");
        }
    }

    #[test]
    fn the_command_line_is_one_line_and_ends_the_vm_on_panic() {
        let line = String::from_utf8(cmdline().unwrap()).unwrap();
        for word in ["panic=-1", "reboot=t", "console=ttyS0"] {
            assert!(line.split(' ').any(|w| w == word), "{word}");
        }
    }

    #[test]
    fn an_unwritable_place_is_named_before_anything_is_built() {
        let error = build_into(false, Some("/proc/image".into())).err().unwrap();
        let text = format!("{error:#}");
        assert!(text.contains("/proc/image") && text.contains("--out"), "{text}");
    }

    #[test]
    fn a_directory_that_is_no_image_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), b"").unwrap();
        let error = build_into(false, Some(dir.path().to_path_buf())).err().unwrap();
        assert!(error.to_string().contains("is no image"));
        assert!(dir.path().join("precious").exists());
    }
}
