//! Pulling images: from Debian's docker-registry, from registries that lie, and from archives.
//!
//! Without docker-registry (`cargo xtask setup`) the tests that need it say that they are skipped.

#[allow(dead_code)]
mod common;

use common::*;
use parma_layer::oci::{Digest, Image, Reference};
use parma_layer::pull::{Access, From, Pulled, pull};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Larger than every buffer on the way, so that an interruption leaves a part of it.
const LARGE: usize = 8 << 20;
/// More than all documents and headers of a pull.
const SMALL: u64 = 64 << 10;
const USER: &str = "alice:open sesame";
/// The same for docker-registry: `htpasswd -nbB`.
const HTPASSWD: &str = "alice:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

/// An image of two layers, one large, as its layout.
fn image() -> (Layout, [Value; 2]) {
    let mut layout = Layout::new();
    // Nothing that could be compressed on the way.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(LARGE as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "noise", &noise.take(LARGE).collect::<Vec<u8>>()[..]).unwrap();
    let large = archive.into_inner().unwrap();
    let layers = [layout.blob(LAYER, &large), layout.blob(LAYER_GZIP, &gzip(&tar()))];
    let diff_ids = [Digest::of(&large).to_string(), Digest::of(&tar()).to_string()];
    let ours = layout.image(layers.to_vec(), &diff_ids);
    layout.tag(ours, Some("latest"));
    (layout, layers)
}

fn bytes_of(layout: &Layout, descriptor: &Value) -> Vec<u8> {
    fs::read(layout.blob_path(descriptor["digest"].as_str().unwrap())).unwrap()
}

/// A docker-registry of this test.
struct Server {
    child: Child,
    dir: tempfile::TempDir,
    host: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one; `None` after saying that there is none.
    fn start(with_users: bool) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name).display().to_string();
        let mut config = json!({
            "version": 0.1, "log": {"level": "info", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": place("storage")}},
            "http": {"addr": "127.0.0.1:0", "secret": "of this test"},
        });
        if with_users {
            fs::write(place("htpasswd"), HTPASSWD).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": place("htpasswd")}});
        }
        // JSON is YAML.
        fs::write(place("config.yml"), config.to_string()).unwrap();
        let started = Command::new("docker-registry")
            .args(["serve", &place("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = started else {
            eprintln!("skipped: it needs docker-registry; run `cargo xtask setup`");
            return None;
        };
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let host = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry does not listen");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
            }
        };
        // It must not wait for somebody to read what it says.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self { child, dir, host })
    }

    /// Puts a layout's image there, under `team/app:1`.
    fn push(&self, layout: &Layout, user: Option<&str>) {
        let image = layout.open(Some("latest")).unwrap();
        let manifest = fs::read(layout.blob_path(&image.manifest.to_string())).unwrap();
        let parsed: Value = serde_json::from_slice(&manifest).unwrap();
        let authorization = user.map(|user| format!("Basic {}", base64(user)));
        let url = |path: &str| format!("http://{}/v2/team/app/{path}", self.host);
        for descriptor in parsed["layers"].as_array().unwrap().iter().chain([&parsed["config"]]) {
            let mut begin = ureq::post(&url("blobs/uploads/"));
            let end_at = |location: &str| {
                let digest = descriptor["digest"].as_str().unwrap();
                let mut end = ureq::put(&format!("{location}&digest={digest}"));
                if let Some(authorization) = &authorization {
                    end = end.header("authorization", authorization);
                }
                end.header("content-type", "application/octet-stream")
                    .send(&bytes_of(layout, descriptor)[..])
                    .unwrap()
            };
            if let Some(authorization) = &authorization {
                begin = begin.header("authorization", authorization);
            }
            let begun = begin.send_empty().unwrap();
            end_at(begun.headers()["location"].to_str().unwrap());
        }
        let mut put = ureq::put(&url("manifests/1")).header("content-type", MANIFEST);
        if let Some(authorization) = &authorization {
            put = put.header("authorization", authorization);
        }
        put.send(&manifest[..]).unwrap();
    }

    /// The file that holds a blob.
    fn stored(&self, descriptor: &Value) -> PathBuf {
        let hex = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        self.dir.path().join("storage/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// A directory to pull into.
struct Target(tempfile::TempDir);

impl Target {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn layout(&self) -> PathBuf {
        self.0.path().join("layout")
    }

    fn reference(&self) -> Reference {
        Reference { dir: self.layout(), tag: Some("mine".into()) }
    }

    /// A file of credentials.
    fn login(&self, entries: &[(&str, &str)]) -> Access {
        let auths: BTreeMap<_, _> =
            entries.iter().map(|(key, user)| (key, json!({"auth": base64(user)}))).collect();
        let file = self.0.path().join("auth.json");
        fs::write(&file, json!({"auths": auths}).to_string()).unwrap();
        Access { files: vec![file], ..Access::default() }
    }

    fn pull(&self, from: &str, access: Access) -> anyhow::Result<Pulled> {
        pull(&From::parse(from)?, &self.reference(), access, &mut |_| {})
    }

    /// The blobs in the layout.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.layout().join("blobs/sha256")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The image is there, whole, and the same.
    fn assert_is(&self, layout: &Layout) {
        let (pulled, original) =
            (Image::open(&self.reference()).unwrap(), layout.open(Some("latest")).unwrap());
        assert_eq!((&pulled.config, &pulled.layers), (&original.config, &original.layers));
        for index in 0..pulled.layers.len() {
            pulled.open_layer(index).unwrap().finish().unwrap();
        }
        assert!(self.blobs().iter().all(|name| name.len() == 64), "{:?}", self.blobs());
    }

    /// Nothing is called so, or the layout was not made.
    fn assert_unnamed(&self) {
        assert!(Image::open(&self.reference()).is_err());
    }
}

#[test]
fn an_image_of_a_registry_is_pulled_once() {
    let Some(server) = Server::start(false) else { return };
    let (layout, _) = image();
    server.push(&layout, None);
    let target = Target::new();
    let from = format!("docker://{}/team/app:1", server.host);
    let first = target.pull(&from, Access::default()).unwrap();
    target.assert_is(&layout);
    assert_eq!(first.present, 0);
    let again = target.pull(&from, Access::default()).unwrap();
    assert_eq!((again.fetched, again.present), (0, first.fetched));

    // By its digest; and by another's.
    let digest = first.image.manifest;
    let other = Target::new();
    other.pull(&format!("docker://{}/team/app@{digest}", server.host), Access::default()).unwrap();
    other.assert_is(&layout);
    let none = Digest::of(b"another");
    let refused = Target::new();
    let error =
        message(refused.pull(&format!("docker://{}/team/app@{none}", server.host), Access::default()));
    assert!(error.contains("has none"), "{error}");
    assert!(!refused.layout().exists());
}

#[test]
fn a_registry_with_users_gives_an_image_to_who_has_logged_in_and_to_no_one_else() {
    let Some(server) = Server::start(true) else { return };
    let (layout, _) = image();
    server.push(&layout, Some(USER));
    let from = format!("docker://{}/team/app:1", server.host);
    let target = Target::new();
    let error = message(target.pull(&from, Access::default()));
    assert!(error.contains(&format!("podman login {}", server.host)), "{error}");
    let error = message(target.pull(&from, target.login(&[(&server.host, "alice:wrong")])));
    assert!(
        error.contains("refuses the user") && error.contains("auth.json") && !error.contains("wrong"),
        "{error}"
    );
    assert!(!target.layout().exists());
    target.pull(&from, target.login(&[(&server.host, USER)])).unwrap();
    target.assert_is(&layout);
}

/// Passes on what a registry says, until it has said so many bytes.
fn wire_to(host: &str, budget: u64) -> (String, Arc<AtomicU64>) {
    let (listener, host) = (TcpListener::bind("127.0.0.1:0").unwrap(), host.to_owned());
    let address = listener.local_addr().unwrap().to_string();
    let passed = Arc::new(AtomicU64::new(0));
    let counter = passed.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), Ok(mut server)) = (client, TcpStream::connect(&host)) else { return };
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let counter = counter.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                while let Ok(count @ 1..) = server.read(&mut buffer) {
                    let before = counter.fetch_add(count as u64, Ordering::SeqCst);
                    let left = budget.saturating_sub(before).min(count as u64) as usize;
                    if client.write_all(&buffer[..left]).is_err() || left < count {
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    (address, passed)
}

#[test]
fn an_interrupted_pull_goes_on_where_it_stopped_and_fetches_only_the_rest() {
    let Some(server) = Server::start(false) else { return };
    let (layout, layers) = image();
    server.push(&layout, None);
    let target = Target::new();
    let half = LARGE as u64 / 2;
    let (host, _) = wire_to(&server.host, half);
    let error = message(target.pull(&format!("docker://{host}/team/app:1"), Access::default()));
    assert!(error.contains("again"), "{error}");
    target.assert_unnamed();
    let hex = layers[0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let partial = target.layout().join("blobs/sha256").join(format!("{hex}.partial"));
    let have = fs::metadata(&partial).unwrap().len();
    assert!((half - SMALL..=half).contains(&have), "{have}");
    assert!(!partial.with_extension("").exists());

    let (host, passed) = wire_to(&server.host, u64::MAX);
    let pulled = target.pull(&format!("docker://{host}/team/app:1"), Access::default()).unwrap();
    target.assert_is(&layout);
    let rest = layers[0]["size"].as_u64().unwrap() - have;
    let passed = passed.load(Ordering::SeqCst);
    assert!((rest..rest + SMALL).contains(&passed), "{passed} for {rest}");
    assert!(pulled.fetched < rest + SMALL);
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_refused_and_leaves_nothing() {
    let Some(server) = Server::start(false) else { return };
    let (layout, layers) = image();
    server.push(&layout, None);
    let from = format!("docker://{}/team/app:1", server.host);
    let stored = server.stored(&layers[0]);
    let target = Target::new();
    for change in [|bytes: &mut Vec<u8>| bytes[100] ^= 1, |bytes: &mut Vec<u8>| bytes.push(0)] {
        let honest = fs::read(&stored).unwrap();
        replace(&stored, change);
        let error = message(target.pull(&from, Access::default()));
        assert!(error.contains(layers[0]["digest"].as_str().unwrap()), "{error}");
        target.assert_unnamed();
        let hex = layers[0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        assert!(!target.blobs().iter().any(|name| name.starts_with(hex)), "{:?}", target.blobs());
        fs::write(&stored, honest).unwrap();
    }
    // Nor is what an earlier run left believed.
    let hex = layers[0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    fs::write(target.layout().join("blobs/sha256").join(format!("{hex}.partial")), b"evil").unwrap();
    assert!(message(target.pull(&from, Access::default())).contains("damaged"));
    target.pull(&from, Access::default()).unwrap();
    target.assert_is(&layout);
}

/// The lines of a request's head.
type Head = Vec<String>;

/// A server that answers each request as it is told, and remembers them.
struct Fake {
    host: String,
    heads: Arc<Mutex<Vec<Head>>>,
}

impl Fake {
    fn start(answer: impl Fn(&str) -> (&'static str, String, Vec<u8>) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let head: Head = lines.take_while(|line| !line.is_empty()).collect();
                let path =
                    head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
                seen.lock().unwrap().push(head);
                let (status, headers, body) = answer(&path);
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        Self { host, heads }
    }

    /// Paths that were asked for, and whether with a header `Authorization`.
    fn asked(&self) -> Vec<(String, bool)> {
        let heads = self.heads.lock().unwrap();
        let of = |head: &Head| {
            let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
            (path, head.iter().any(|line| line.to_ascii_lowercase().starts_with("authorization:")))
        };
        heads.iter().map(of).collect()
    }

    fn assert_never_told(&self) {
        assert!(self.asked().iter().all(|(_, told)| !told), "{:?}", self.asked());
    }
}

const BASIC: &str = "www-authenticate: Basic realm=\"x\"\r\n";

fn unauthorized(challenge: &str) -> (&'static str, String, Vec<u8>) {
    ("401 Unauthorized", challenge.to_owned(), Vec::new())
}

#[test]
fn k12_a_host_that_only_resembles_one_with_credentials_is_never_told_them() {
    let fake = Fake::start(|_| unauthorized(BASIC));
    let (name, port) = fake.host.split_once(':').unwrap();
    let target = Target::new();
    let resembling = [
        format!("localhost:{port}"),
        name.to_owned(),
        format!("{name}:{}", &port[..port.len() - 1]),
        format!("{name}:{port}0"),
        format!("7.0.0.1:{port}"),
        format!("1127.0.0.1:{port}"),
        format!("{name}:{port}/team/ap"),
        format!("{name}:{port}/team/app/x"),
        format!("https://x{name}:{port}/v1/"),
        format!("https://{name}:{port}.evil.com/"),
    ];
    let entries: Vec<_> = resembling.iter().map(|key| (key.as_str(), USER)).collect();
    assert!(target.pull(&format!("docker://{}/team/app:1", fake.host), target.login(&entries)).is_err());
    assert!(!fake.asked().is_empty());
    fake.assert_never_told();
}

#[test]
fn k12_credentials_follow_no_redirection() {
    let (layout, layers) = image();
    let manifest = layout.open(Some("latest")).unwrap().manifest.to_string();
    let manifest = fs::read(layout.blob_path(&manifest)).unwrap();
    let directory = layout.dir.path().join("blobs/sha256");
    let store = Fake::start(move |path| {
        let hex = path.rsplit(':').next().unwrap();
        ("200 OK", String::new(), fs::read(directory.join(hex)).unwrap_or_default())
    });
    let elsewhere = store.host.clone();
    let asked = AtomicU64::new(0);
    let registry = Fake::start(move |path| {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            unauthorized(BASIC)
        } else if path.contains("/manifests/") {
            ("200 OK", format!("content-type: {MANIFEST}\r\n"), manifest.clone())
        } else {
            ("307 Temporary Redirect", format!("location: http://{elsewhere}{path}\r\n"), Vec::new())
        }
    });
    let target = Target::new();
    let access = target.login(&[(&registry.host, USER)]);
    target.pull(&format!("docker://{}/team/app:1", registry.host), access).unwrap();
    target.assert_is(&layout);
    assert!(registry.asked().iter().skip(1).all(|(_, told)| *told), "{:?}", registry.asked());
    assert_eq!(store.asked().len(), layers.len() + 1);
    store.assert_never_told();
}

#[test]
fn k12_only_the_registry_says_where_its_password_goes_and_not_to_a_stranger() {
    let thief = Fake::start(|_| ("200 OK", String::new(), br#"{"token": "x"}"#.to_vec()));
    let (_, port) = thief.host.split_once(':').unwrap();
    // 127.0.0.1 names localhost, which is another host.
    let challenge = |realm: &str| format!("www-authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n");
    for realm in [format!("http://localhost:{port}/token"), format!("https://localhost:{port}/token")] {
        let challenge = challenge(&realm);
        let registry = Fake::start(move |_| unauthorized(&challenge));
        let target = Target::new();
        let access = target.login(&[(&registry.host, USER)]);
        let error = message(target.pull(&format!("docker://{}/team/app:1", registry.host), access));
        assert!(error.contains("localhost") && error.contains("token server"), "{error}");
    }
    // Nor does whoever the registry redirects to.
    let redirecting = Fake::start({
        let challenge = challenge(&format!("http://{}/token", thief.host));
        move |_| unauthorized(&challenge)
    });
    let to = redirecting.host.clone();
    let registry = Fake::start(move |path| {
        ("307 Temporary Redirect", format!("location: http://{to}{path}\r\n"), Vec::new())
    });
    let target = Target::new();
    let access = target.login(&[(&registry.host, USER)]);
    let error = message(target.pull(&format!("docker://{}/team/app:1", registry.host), access));
    assert!(error.contains("redirects"), "{error}");
    assert_eq!(thief.asked(), []);
    redirecting.assert_never_told();
}

#[test]
fn a_token_server_beside_the_registry_is_told_the_user_and_the_registry_the_token() {
    let (layout, _) = image();
    let manifest = layout.open(Some("latest")).unwrap().manifest.to_string();
    let manifest = fs::read(layout.blob_path(&manifest)).unwrap();
    let directory = layout.dir.path().join("blobs/sha256");
    let server = Fake::start(|_| ("200 OK", String::new(), br#"{"access_token": "t0ken"}"#.to_vec()));
    let realm = format!("http://{}/token", server.host);
    let asked = AtomicU64::new(0);
    let registry = Fake::start(move |path| match path {
        _ if asked.fetch_add(1, Ordering::SeqCst) == 0 => {
            unauthorized(&format!("www-authenticate: Bearer realm=\"{realm}\",service=\"a b&c\"\r\n"))
        }
        path if path.contains("/manifests/") => {
            ("200 OK", format!("content-type: {MANIFEST}\r\n"), manifest.clone())
        }
        path => (
            "200 OK",
            String::new(),
            fs::read(directory.join(path.rsplit(':').next().unwrap())).unwrap_or_default(),
        ),
    });
    let target = Target::new();
    let access = target.login(&[(&registry.host, USER)]);
    target.pull(&format!("docker://{}/team/app:1", registry.host), access).unwrap();
    target.assert_is(&layout);
    let [(path, true)] = &server.asked()[..] else { panic!("{:?}", server.asked()) };
    assert!(path.contains("team") && path.contains("service=a%20b%26c"), "{path}");
    let heads = registry.heads.lock().unwrap();
    assert!(
        heads[1..].iter().all(|head| head.iter().any(|line| line.ends_with("Bearer t0ken"))),
        "{heads:?}"
    );
}

#[test]
fn a_registry_that_lies_about_sizes_and_kinds_costs_neither_memory_nor_disk() {
    let refused = |media_type: &'static str, body: Vec<u8>| {
        let registry =
            Fake::start(move |_| ("200 OK", format!("content-type: {media_type}\r\n"), body.clone()));
        let target = Target::new();
        let error =
            message(target.pull(&format!("docker://{}/team/app:1", registry.host), Access::default()));
        let blobs = target.layout().join("blobs/sha256");
        let large = |path: &Path| {
            fs::read_dir(path).into_iter().flatten().flatten().any(|e| e.metadata().unwrap().len() > SMALL)
        };
        assert!(!large(&blobs));
        target.assert_unnamed();
        error
    };
    assert!(refused(MANIFEST, vec![b' '; (4 << 20) + 1]).contains("at most"));
    assert!(refused("text/html", b"<html>".to_vec()).contains("text/html"));
    assert!(refused(MANIFEST, b"{}".to_vec()).contains("malformed"));
    let of = |config_size: u64, layer_size: u64| {
        let descriptor = |kind: &str, size: u64| json!({"mediaType": kind, "digest": Digest::of(b"x").to_string(), "size": size});
        manifest(&descriptor(CONFIG, config_size), &[descriptor(LAYER, layer_size)]).to_string().into_bytes()
    };
    assert!(refused(MANIFEST, of(u64::MAX, 1)).contains("limit"));
    assert!(refused(MANIFEST, of(1, 1)).contains("longer than"));
}

/// A tar as `docker save` writes it: the second layer is a link to the first.
fn archive(tags: &[&str], layers: &[&str]) -> (tempfile::NamedTempFile, Vec<u8>) {
    let layer = tar();
    let digest = Digest::of(&layer);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": vec![digest.to_string(); layers.len()]},
    });
    let list = json!([{"Config": "config.json", "RepoTags": tags, "Layers": layers}]);
    let mut builder = tar::Builder::new(tempfile::NamedTempFile::new().unwrap());
    let mut file = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    file("a/layer.tar", &layer);
    file("config.json", config.to_string().as_bytes());
    file("manifest.json", list.to_string().as_bytes());
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "b/layer.tar", "../a/layer.tar").unwrap();
    builder.append_link(&mut link, "c/layer.tar", "../../../../../../etc/passwd").unwrap();
    builder.append_link(&mut link, "d/layer.tar", "../d/layer.tar").unwrap();
    (builder.into_inner().unwrap(), layer)
}

#[test]
fn what_docker_saves_becomes_a_layout() {
    let (file, layer) = archive(&["app:1"], &["a/layer.tar", "b/layer.tar"]);
    for name in ["", ":app:1", ":docker.io/library/app:1"] {
        let target = Target::new();
        let from = format!("docker-archive:{}{name}", file.path().display());
        let pulled = target.pull(&from, Access::default()).unwrap();
        let digest = Digest::of(&layer);
        assert!(pulled.image.layers.iter().all(|found| (found.digest, found.diff_id) == (digest, digest)));
        assert_eq!(pulled.image.layers.len(), 2);
        let image = Image::open(&target.reference()).unwrap();
        image.open_layer(1).unwrap().finish().unwrap();
    }
    let target = Target::new();
    let error =
        message(target.pull(&format!("docker-archive:{}:other:1", file.path().display()), Access::default()));
    assert!(error.contains("app:1"), "{error}");
}

#[test]
fn names_in_an_archive_lead_nowhere_else() {
    for name in ["/etc/passwd", "../../../etc/passwd", "c/layer.tar", "d/layer.tar", "none"] {
        let (file, _) = archive(&["app:1"], &[name]);
        let target = Target::new();
        let error =
            message(target.pull(&format!("docker-archive:{}", file.path().display()), Access::default()));
        assert!(error.contains(&format!("{name:?}")), "{error}");
        assert!(!target.layout().exists());
    }
}

#[test]
fn a_layout_keeps_its_other_images_and_is_made_nowhere_else() {
    let (layout, _) = image();
    let from = format!("oci:{}:latest", layout.dir.path().display());
    let target = Target::new();
    target.pull(&from, Access::default()).unwrap();
    target.assert_is(&layout);
    let other = Reference { tag: Some("other".into()), ..target.reference() };
    let again = pull(&From::parse(&from).unwrap(), &other, Access::default(), &mut |_| {}).unwrap();
    assert_eq!(again.fetched, 0);
    assert!(Image::open(&other).is_ok());
    target.assert_is(&layout);

    let strange = tempfile::tempdir().unwrap();
    fs::write(strange.path().join("file"), b"").unwrap();
    let to = Reference { dir: strange.path().into(), tag: Some("x".into()) };
    let error = message(pull(&From::parse(&from).unwrap(), &to, Access::default(), &mut |_| {}));
    assert!(error.contains("something else"), "{error}");
    assert_eq!(fs::read_dir(strange.path()).unwrap().count(), 1);
}

#[test]
fn of_several_platforms_ours_is_pulled_and_no_other() {
    let (mut layout, layers) = image();
    let ours = layout.open(Some("latest")).unwrap().manifest.to_string();
    let bytes = fs::read(layout.blob_path(&ours)).unwrap();
    let mut ours = json!({"mediaType": MANIFEST, "digest": ours, "size": bytes.len()});
    ours["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let absent = json!({
        "mediaType": MANIFEST, "digest": Digest::of(b"absent").to_string(), "size": 6,
        "platform": {"os": "linux", "architecture": "arm64"},
    });
    let index = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": [absent, ours]}));
    layout.tag(index, Some("several"));
    let target = Target::new();
    let pulled =
        target.pull(&format!("oci:{}:several", layout.dir.path().display()), Access::default()).unwrap();
    assert_eq!(pulled.image.layers.len(), layers.len());
    target.assert_is(&layout);
}

#[test]
fn an_image_has_a_usual_place_by_its_name() {
    let place =
        |text: &str| From::parse(text).and_then(|from| from.usual_place()).map(|place| place.to_string());
    assert_eq!(place("docker://ghcr.io/team/app:1.2").unwrap(), "oci:app:1.2");
    assert_eq!(place("docker://python").unwrap(), "oci:python:latest");
    let digest = Digest::of(b"x");
    assert_eq!(
        place(&format!("docker://r.example/app@{digest}")).unwrap(),
        format!("oci:app:{}", &digest.hex()[..12])
    );
    assert_eq!(place("docker-archive:x.tar:team/app:1").unwrap(), "oci:app:1");
    for nameless in ["oci:dir:tag", "docker-archive:x.tar"] {
        assert!(message(place(nameless)).contains("--to"));
    }
    for wrong in [
        "",
        "python",
        "docker:python",
        "docker://",
        "docker:///x",
        "docker://r.example/UPPER",
        "docker-archive:",
        "oci:",
        "docker://a@sha512:00",
        "docker://user@evil.com/x",
    ] {
        assert!(From::parse(wrong).is_err(), "{wrong}");
    }
}
