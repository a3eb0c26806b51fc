//! Container images for tests and the demo, made from real Debian packages.
//!
//! Each is an OCI image layout as skopeo or umoci would leave it: several gzip'd layers, a configuration, one
//! manifest tagged `latest`. The layers hold the files of Debian packages as they are unpacked, without
//! documentation; no maintainer script runs, so what a script would have created is written down in
//! [`IMAGES`]. Debian's day decides the versions; the same packages give the same bytes.

use crate::process::{self, Step};
use crate::{apt, cache};
use anyhow::{Context, Result, anyhow, bail};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tar::{EntryType, Header};

/// Makes container images (OCI layouts) from Debian packages; prints the directory that holds them.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print this image's layout instead: busybox, runtimes, python, nginx, redis, sqlite, node, cpython or postgres
    #[arg(value_name = "IMAGE", conflicts_with = "out")]
    name: Option<String>,
    /// Copy them there: one directory an image
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Make them again from Debian's packages of today
    #[arg(long)]
    refresh: bool,
}

/// Changes whenever this file makes other bytes from the same packages.
const RECIPE: u32 = 1;

/// An image: layers from the bottom, and what its configuration says.
struct Image {
    name: &'static str,
    layers: &'static [Layer],
    command: &'static [&'static str],
    environment: &'static [&'static str],
    directory: &'static str,
    user: &'static str,
}

/// A layer: packages with all they depend on (less what lower layers have), and files beside them.
struct Layer {
    packages: &'static [&'static str],
    /// Of what they depend on, packages that only their scripts or what is turned off need.
    without: &'static [&'static str],
    extra: &'static [Extra],
}

/// What no package holds.
enum Extra {
    /// Path, permissions, owner (user and group).
    Directory(&'static str, u32, u64),
    /// Path, content; readable by all.
    File(&'static str, &'static str),
    /// Path, target.
    Link(&'static str, &'static str),
    /// Path of the busybox binary: one link beside it for each of its applets.
    Applets(&'static str),
}

/// `base-passwd` and `base-files` have templates of these, which their scripts copy.
const PASSWD: Extra = Extra::File(
    "etc/passwd",
    "root:x:0:0:root:/root:/bin/sh\n\
     daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
     www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
     app:x:1000:1000:an ordinary user:/home/app:/bin/sh\n\
     nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
);
const GROUP: Extra = Extra::File(
    "etc/group",
    "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:app\napp:x:1000:\nnogroup:x:65534:\n",
);
const HOME: Extra = Extra::Directory("home/app", 0o755, 1000);

/// C library, shell, the usual directories and users.
const BASE: Layer = Layer { packages: &["base-files", "dash"], without: &[], extra: &[PASSWD, GROUP, HOME] };

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const IMAGES: &[Image] = &[
    Image {
        name: "busybox",
        layers: &[
            Layer {
                packages: &[],
                without: &[],
                extra: &[
                    Extra::Directory("dev", 0o755, 0),
                    Extra::Directory("etc", 0o755, 0),
                    Extra::Directory("home", 0o755, 0),
                    Extra::Directory("proc", 0o755, 0),
                    Extra::Directory("root", 0o700, 0),
                    Extra::Directory("sys", 0o755, 0),
                    Extra::Directory("tmp", 0o1777, 0),
                    Extra::Directory("usr", 0o755, 0),
                    Extra::Directory("usr/bin", 0o755, 0),
                    Extra::Directory("var", 0o755, 0),
                    Extra::Directory("var/tmp", 0o1777, 0),
                    Extra::Link("bin", "usr/bin"),
                    Extra::Link("sbin", "usr/bin"),
                    PASSWD,
                    GROUP,
                    HOME,
                ],
            },
            Layer {
                packages: &["busybox-static"],
                without: &[],
                extra: &[Extra::Applets("usr/bin/busybox")],
            },
        ],
        command: &["sh"],
        environment: &[PATH],
        directory: "/",
        user: "",
    },
    Image {
        // The peers of `cargo xtask bench`.
        name: "runtimes",
        layers: &[BASE, Layer { packages: &["coreutils", "crun", "runc", "sed"], without: &[], extra: &[] }],
        command: &["busybox", "date", "+%s%N"],
        environment: &[PATH],
        directory: "/",
        user: "",
    },
    Image {
        name: "python",
        layers: &[BASE, Layer { packages: &["python3-minimal"], without: &[], extra: &[] }],
        command: &["python3"],
        environment: &[PATH, "LANG=C.UTF-8", "PYTHONUNBUFFERED=1"],
        directory: "/home/app",
        user: "app",
    },
    Image {
        name: "nginx",
        layers: &[
            BASE,
            Layer { packages: &["nginx"], without: &[], extra: &[] },
            Layer {
                // With a client: `busybox wget`.
                packages: &["busybox-static"],
                without: &[],
                extra: &[
                    Extra::File("etc/nginx/nginx.conf", NGINX),
                    Extra::Directory("srv/www", 0o755, 33),
                    Extra::File("srv/www/index.html", "<!doctype html><title>Parma</title><p>It works.\n"),
                ],
            },
        ],
        command: &["nginx", "-e", "stderr", "-g", "daemon off;"],
        environment: &[PATH],
        directory: "/srv/www",
        user: "www-data:www-data",
    },
    Image {
        name: "redis",
        layers: &[BASE, Layer { packages: &["redis-server"], without: &[], extra: &[] }],
        command: &["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"],
        environment: &[PATH],
        directory: "/home/app",
        user: "app",
    },
    Image {
        name: "sqlite",
        layers: &[BASE, Layer { packages: &["sqlite3"], without: &[], extra: &[] }],
        command: &["sqlite3"],
        environment: &[PATH],
        directory: "/home/app",
        user: "app",
    },
    Image {
        name: "node",
        layers: &[BASE, Layer { packages: &["nodejs"], without: &[], extra: &[] }],
        command: &["node"],
        environment: &[PATH],
        directory: "/home/app",
        user: "app",
    },
    Image {
        name: "cpython",
        layers: &[
            BASE,
            Layer { packages: &["python3-minimal"], without: &[], extra: &[] },
            Layer { packages: &["python3", "libpython3.13-testsuite"], without: &[], extra: &[] },
        ],
        command: &["python3"],
        environment: &[PATH, "LANG=C.UTF-8"],
        directory: "/home/app",
        user: "app",
    },
    Image {
        name: "postgres",
        layers: &[
            BASE,
            Layer {
                packages: &["postgresql-17"],
                // Its compiler of expressions is turned off; the rest administers clusters.
                without: &[
                    "libllvm19",
                    "libz3-4",
                    "postgresql-common",
                    "locales",
                    "ssl-cert",
                    "perl",
                    "openssl",
                ],
                extra: &[],
            },
        ],
        command: &["postgres"],
        environment: &["PATH=/usr/lib/postgresql/17/bin:/usr/bin:/bin"],
        directory: "/home/app",
        user: "app",
    },
];

const NGINX: &str = "\
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
    include mime.types;
    access_log /dev/stdout;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 8080;
        root /srv/www;
    }
}
";

/// Not needed to run anything, and most of the size.
const LEFT_OUT: [&str; 5] =
    ["usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/"];

pub fn main(arguments: Arguments) -> Result<()> {
    if arguments.refresh {
        let dir = place()?;
        let _lock = cache::lock(&dir)?;
        make_all(&dir)?;
    }
    let mut dir = match &arguments.name {
        Some(name) => image(name)?,
        None => all()?,
    };
    if let Some(out) = arguments.out {
        let _lock = cache::lock(&out)?;
        if out.exists() && !IMAGES.iter().all(|i| out.join(i.name).join("oci-layout").exists()) {
            bail!("{} exists and holds no fixtures: choose another --out, or remove it", out.display());
        }
        let staging = cache::Staging::new(&out)?;
        process::run(Command::new("cp").arg("-r").arg(dir.join(".")).arg(staging.path()))?;
        dir = staging.publish()?;
    }
    println!("{}", dir.display());
    Ok(())
}

/// The directory with every image, made on first use.
pub fn all() -> Result<PathBuf> {
    let dir = place()?;
    let _lock = cache::lock(&dir)?;
    if !dir.exists() {
        make_all(&dir)?;
    }
    Ok(dir)
}

/// One image's layout: what `oci:DIR:latest` names.
pub fn image(name: &str) -> Result<PathBuf> {
    if !IMAGES.iter().any(|image| image.name == name) {
        let names: Vec<_> = IMAGES.iter().map(|image| image.name).collect();
        bail!("there is no fixture {name}; there are {}", names.join(", "));
    }
    Ok(all()?.join(name))
}

/// Named by all that this file says, so that another version of it makes its own.
fn place() -> Result<PathBuf> {
    let key = cache::sha256(format!("{RECIPE}\n{}", include_str!("fixtures.rs")).as_bytes());
    Ok(cache::dir("fixtures")?.join(&key[..16]))
}

fn make_all(dir: &Path) -> Result<()> {
    let root = apt::Root::open()?;
    let staging = cache::Staging::new(dir)?;
    let step = Step::new("making container images from Debian packages", None);
    for image in IMAGES {
        make(image, &root, &staging.path().join(image.name))
            .with_context(|| format!("image {}", image.name))?;
    }
    staging.publish()?;
    step.done();
    Ok(())
}

/// Writes one image's layout.
fn make(image: &Image, root: &apt::Root, dir: &Path) -> Result<()> {
    let blobs = Blobs::new(dir)?;
    let mut below = BTreeSet::new();
    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for layer in image.layers {
        let (tar, packages) = layer_tar(layer, root, &mut below)?;
        diff_ids.push(format!("sha256:{}", cache::sha256(&tar)));
        history.push(json!({ "created_by": packages.join(" ") }));
        layers.push(blobs.add("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(&tar)?)?);
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": image.environment,
            "Cmd": image.command,
            "WorkingDir": image.directory,
            "User": image.user,
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    let config = blobs.add("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers });
    let mut manifest = blobs.add(manifest_type, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    cache::write(&dir.join("index.json"), index.to_string().as_bytes())?;
    cache::write(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// The blobs of a layout.
struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    fn new(layout: &Path) -> Result<Self> {
        let dir = layout.join("blobs/sha256");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Stores a blob; returns its descriptor.
    fn add(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let hash = cache::sha256(bytes);
        cache::write(&self.dir.join(&hash), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len() }))
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

/// What a layer holds, by path without leading slash or dot.
type Files = BTreeMap<String, File>;

struct File {
    header: Header,
    /// The target of a link.
    target: Option<String>,
    data: Vec<u8>,
}

impl File {
    fn new(kind: EntryType, mode: u32, owner: u64, data: Vec<u8>) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        Self { header, target: None, data }
    }

    fn link(target: &str) -> Self {
        Self { target: Some(target.into()), ..Self::new(EntryType::Symlink, 0o777, 0, Vec::new()) }
    }
}

/// A layer's tar, and the packages in it. `below`: packages that lower layers have; grows.
fn layer_tar(
    layer: &Layer,
    root: &apt::Root,
    below: &mut BTreeSet<String>,
) -> Result<(Vec<u8>, Vec<String>)> {
    let mut files = Files::new();
    let mut names = Vec::new();
    if !layer.packages.is_empty() {
        for package in root.closure(layer.packages)? {
            // A file is called name_version_architecture.
            let name = package.file.split('_').next().unwrap_or_default();
            if !layer.without.contains(&name) && below.insert(package.file.clone()) {
                unpack(&apt::fetch(&package)?, &mut files)
                    .with_context(|| format!("cannot unpack {}", package.file))?;
                names.push(package.file);
            }
        }
    }
    for extra in layer.extra {
        match *extra {
            Extra::Directory(path, mode, owner) => {
                files.insert(path.into(), File::new(EntryType::Directory, mode, owner, Vec::new()));
            }
            Extra::File(path, content) => {
                files.insert(path.into(), File::new(EntryType::Regular, 0o644, 0, content.into()));
            }
            Extra::Link(path, target) => {
                files.insert(path.into(), File::link(target));
            }
            Extra::Applets(path) => add_applets(path, &mut files)?,
        }
    }
    Ok((write_tar(&files)?, names))
}

/// Adds a package's files, with directories that Debian merged into /usr under their true names.
fn unpack(deb: &Path, files: &mut Files) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb: fixtures need a Debian system")?;
    let stream = child.stdout.take().context("dpkg-deb has no output")?;
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = plain(&entry.path_bytes())?;
        if path.is_empty() || LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)) {
            continue;
        }
        let kind = entry.header().entry_type();
        let target = match (kind, entry.link_name_bytes()) {
            (EntryType::Link, Some(name)) => Some(plain(&name)?),
            (EntryType::Symlink, Some(name)) => Some(String::from_utf8(name.into_owned())?),
            (EntryType::Regular | EntryType::Directory, _) => None,
            _ => bail!("{path}: unexpected entry of type {kind:?}"),
        };
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        let header = entry.header();
        let mut file = File::new(kind, header.mode()? & 0o7777, 0, data);
        file.header.set_uid(header.uid()?);
        file.header.set_gid(header.gid()?);
        file.header.set_mtime(header.mtime()?);
        file.target = target;
        files.insert(path, file);
    }
    if !child.wait()?.success() {
        bail!("dpkg-deb failed");
    }
    Ok(())
}

/// `./lib/x` → `usr/lib/x`.
fn plain(path: &[u8]) -> Result<String> {
    let path = std::str::from_utf8(path)?.trim_start_matches("./").trim_matches('/');
    if path.split('/').any(|part| part == "..") {
        bail!("{path} leads upwards");
    }
    let merged = ["bin/", "sbin/", "lib/", "lib64/"].iter().any(|dir| path.starts_with(dir));
    Ok(if merged { format!("usr/{path}") } else { path.into() })
}

fn write_tar(files: &Files) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, file) in files {
        let mut header = file.header.clone();
        if let Some(target) = &file.target {
            header.set_link_name(target).with_context(|| format!("{path} → {target}"))?;
        }
        let suffix = if header.entry_type() == EntryType::Directory { "/" } else { "" };
        header.set_path(format!("{path}{suffix}")).with_context(|| path.clone())?;
        header.set_cksum();
        archive.append(&header, file.data.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

/// Links for each applet, as the binary itself lists them.
fn add_applets(busybox: &str, files: &mut Files) -> Result<()> {
    let (dir, name) = busybox.rsplit_once('/').context("busybox lies in a directory")?;
    let program = files.get(busybox).ok_or_else(|| anyhow!("no package has {busybox}"))?;
    let scratch = tempfile::tempdir()?;
    let copy = scratch.path().join(name);
    fs::write(&copy, &program.data)?;
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    for applet in process::output(Command::new(&copy).arg("--list"))?.lines() {
        if !applet.contains('/') && applet != name {
            files.entry(format!("{dir}/{applet}")).or_insert_with(|| File::link(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain_and_merged_into_usr() {
        for (from, to) in [
            ("./", ""),
            ("./bin", "bin"),
            ("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
            ("./usr/bin/sh", "usr/bin/sh"),
            ("./library/x", "library/x"),
        ] {
            assert_eq!(plain(from.as_bytes()).unwrap(), to);
        }
        assert!(plain(b"./usr/../../etc").is_err());
    }

    #[test]
    fn the_same_files_give_the_same_tar() {
        let files = || {
            let mut files = Files::new();
            files.insert("b".into(), File::link("a"));
            files.insert("a".into(), File::new(EntryType::Regular, 0o644, 7, b"data".to_vec()));
            files
        };
        let tar = write_tar(&files()).unwrap();
        assert_eq!(tar, write_tar(&files()).unwrap());
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("a"), Path::new("b")]);
    }

    #[test]
    fn an_unknown_image_is_refused_with_the_known_ones() {
        let error = image("toy").unwrap_err().to_string();
        assert!(error.contains("toy") && error.contains("busybox, runtimes, python, nginx"), "{error}");
    }

    /// Every blob has the digest and size that its descriptor says, and the layers unpack to their diff IDs.
    #[test]
    fn the_layouts_are_consistent() {
        let Some(dir) = std::env::var_os("PARMA_FIXTURES").map(PathBuf::from) else {
            eprintln!("skipped: run `cargo xtask test`");
            return;
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        for image in IMAGES {
            let layout = dir.join(image.name);
            let blob = |descriptor: &Value| {
                let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
                let bytes = fs::read(layout.join("blobs/sha256").join(hash)).unwrap();
                assert_eq!(cache::sha256(&bytes), hash);
                assert_eq!(descriptor["size"].as_u64().unwrap(), bytes.len() as u64);
                bytes
            };
            let index = parse(&fs::read(layout.join("index.json")).unwrap());
            let manifest = parse(&blob(&index["manifests"][0]));
            let config = parse(&blob(&manifest["config"]));
            let layers = manifest["layers"].as_array().unwrap();
            let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
            assert_eq!((layers.len(), diff_ids.len()), (image.layers.len(), image.layers.len()));
            for (layer, diff_id) in layers.iter().zip(diff_ids) {
                let mut tar = Vec::new();
                flate2::read::GzDecoder::new(blob(layer).as_slice()).read_to_end(&mut tar).unwrap();
                assert_eq!(format!("sha256:{}", cache::sha256(&tar)), diff_id.as_str().unwrap());
            }
        }
    }
}
