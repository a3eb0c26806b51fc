//! What podman and docker know of a registry: user and password, from the files where they keep them.
//!
//! What this module promises (attack K12): credentials are given for the host, with its port, that an entry names, and for
//! repositories below the path that it names; never because one name begins or ends as another does. Names are equal or
//! they are not; there is no pattern.
//!
//! Formats: containers-auth.json(5), and the `auths` of docker's `config.json`.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::oci::open_regular;

/// Largest file of credentials, in bytes.
pub const MAX_FILE: u64 = 1 << 20;
/// What Docker's own registry is called in images' names.
pub(crate) const DOCKER: &str = "docker.io";
/// Its other names, under which its credentials are kept too.
const ALSO_DOCKER: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// User and password. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    encoded: String,
    /// The file that they are from.
    pub file: PathBuf,
}

impl Credentials {
    /// The value of the header `Authorization`.
    #[must_use]
    pub fn basic(&self) -> String {
        format!("Basic {}", self.encoded)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "credentials from {}", self.file.display())
    }
}

/// The fields of either file that mean something here.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// The files to ask, the first that knows the registry counts: `$REGISTRY_AUTH_FILE` alone where that is set, else podman's
/// (`$XDG_RUNTIME_DIR/containers/auth.json`), then docker's (`$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`).
#[must_use]
pub fn files() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let podmans = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let dockers = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
    let dockers = dockers.map(|dir| dir.join("config.json"));
    podmans.into_iter().chain(dockers).filter(|file| file.exists()).collect()
}

/// The credentials in `files` for a repository of the registry `host` (with its port, if it has one). `None`: nobody has
/// logged in there.
///
/// # Errors
/// A file is missing, malformed or larger than [`MAX_FILE`], or has something else than user and password for this registry.
pub fn find(files: &[PathBuf], host: &str, repository: &str) -> Result<Option<Credentials>> {
    for file in files {
        if let Some(found) = in_file(file, host, repository).with_context(|| file.display().to_string())? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn in_file(path: &Path, host: &str, repository: &str) -> Result<Option<Credentials>> {
    let mut text = Vec::new();
    open_regular(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    ensure!(text.len() as u64 <= MAX_FILE, "larger than {MAX_FILE} bytes");
    // serde's message could quote a secret.
    let file: File = serde_json::from_slice(&text)
        .map_err(|error| anyhow::anyhow!("line {}: no JSON of credentials", error.line()))?;
    if let Some((_, helper)) = file.cred_helpers.iter().find(|(key, _)| host_of(key) == canonical(host)) {
        bail!(
            "it refers to the credential helper {helper:?} for {host}, and helpers are not run: log in with podman login \
             --authfile FILE {host}, and set REGISTRY_AUTH_FILE to that file"
        );
    }
    let Some(entry) = entry(&file, host, repository) else { return Ok(None) };
    ensure!(
        entry.identitytoken.is_empty() && entry.registrytoken.is_empty(),
        "it has a token for {host}, and only user and password are understood: log in with podman login {host}"
    );
    if entry.auth.is_empty() {
        // What docker leaves behind where a helper has the rest.
        return Ok(None);
    }
    let decoded = STANDARD.decode(&entry.auth).ok().filter(|pair| pair.contains(&b':'));
    ensure!(decoded.is_some(), "its entry for {host} is not USER:PASSWORD in base64: log in again");
    Ok(Some(Credentials { encoded: entry.auth.clone(), file: path.into() }))
}

/// The entry with the longest key that is the repository, or a whole part of its path from the host on; else docker's for the
/// host, which is an address.
fn entry<'a>(file: &'a File, host: &str, repository: &str) -> Option<&'a Entry> {
    let name = format!("{host}/{repository}");
    let cuts = name.match_indices('/').map(|(at, _)| at);
    let parts = cuts.chain([name.len()]).rev().map(|end| &name[..end]);
    let mut exactly = parts.filter_map(|part| file.auths.get(part));
    let of_host =
        |(key, entry): (&'a String, &'a Entry)| (host_of(key)? == canonical(host)?).then_some(entry);
    exactly.next().or_else(|| file.auths.iter().find_map(of_host))
}

/// The host that a key without a path, or docker's address of a registry, is for.
fn host_of(key: &str) -> Option<&str> {
    let schemeless = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    match schemeless {
        Some(address) => canonical(address.split_once('/').map_or(address, |(host, _)| host)),
        None => canonical(key),
    }
}

/// One name for each registry; `None` for what is no host.
fn canonical(host: &str) -> Option<&str> {
    let host = if ALSO_DOCKER.contains(&host) { DOCKER } else { host };
    (!host.is_empty() && !host.contains('/')).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lookup(config: &Value, host: &str, repository: &str) -> Result<Option<String>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("auth.json");
        std::fs::write(&path, config.to_string())?;
        let found = find(&[path], host, repository)?;
        Ok(found.map(|found| String::from_utf8(STANDARD.decode(&found.encoded).unwrap()).unwrap()))
    }

    fn auth(pair: &str) -> Value {
        json!({ "auth": STANDARD.encode(pair) })
    }

    /// CVE-2026-100837.
    #[test]
    fn k12_credentials_are_for_the_host_that_they_name_and_for_none_that_resembles_it() {
        let config = json!({"auths": {
            "ghcr.io": auth("g:1"), "https://quay.example/v1/": auth("q:1"), "reg.example:5000": auth("r:1"),
        }});
        let of = |host: &str| lookup(&config, host, "a/b").unwrap();
        assert_eq!(of("ghcr.io").as_deref(), Some("g:1"));
        assert_eq!(of("quay.example").as_deref(), Some("q:1"));
        assert_eq!(of("reg.example:5000").as_deref(), Some("r:1"));
        for other in [
            "evilghcr.io",
            "ghcr.io.evil.com",
            "evil.ghcr.io",
            "io",
            "ghcr.i",
            "ghcr.io:443",
            "ghcr.io.",
            "GHCR.io",
            "evilquay.example",
            "quay.example.evil.com",
            "quay.example:5000",
            "reg.example",
            "reg.example:500",
            "reg.example:50000",
            "evilreg.example:5000",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn k12_the_longest_path_counts_and_ends_where_a_part_of_it_ends() {
        let config = json!({"auths": {
            "r.example": auth("host:1"), "r.example/team": auth("team:1"), "r.example/team/app": auth("app:1"),
            "s.example/team": auth("s:1"),
        }});
        let of = |host: &str, repository: &str| lookup(&config, host, repository).unwrap();
        assert_eq!(of("r.example", "team/app").as_deref(), Some("app:1"));
        assert_eq!(of("r.example", "team/app/x").as_deref(), Some("app:1"));
        assert_eq!(of("r.example", "team/apple").as_deref(), Some("team:1"));
        assert_eq!(of("r.example", "teammate/app").as_deref(), Some("host:1"));
        assert_eq!(of("s.example", "team/app").as_deref(), Some("s:1"));
        assert_eq!(of("s.example", "teammate/app"), None);
        assert_eq!(of("team", "app"), None);
    }

    #[test]
    fn dockers_registry_has_one_account_under_all_its_names() {
        for key in ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"] {
            let config = json!({"auths": {key: auth("d:1")}});
            assert_eq!(lookup(&config, "docker.io", "library/x").unwrap().as_deref(), Some("d:1"), "{key}");
            assert_eq!(lookup(&config, "evildocker.io", "library/x").unwrap(), None, "{key}");
        }
    }

    #[test]
    fn what_is_not_user_and_password_is_refused_by_name_and_never_shown() {
        let refused = |config: Value| format!("{:#}", lookup(&config, "r.example", "x").unwrap_err());
        let shown = refused(json!({"credHelpers": {"r.example": "pass"}}));
        assert!(shown.contains("\"pass\"") && shown.contains("REGISTRY_AUTH_FILE"), "{shown}");
        assert!(refused(json!({"auths": {"r.example": {"identitytoken": "s3cret"}}})).contains("token"));
        for config in [
            json!({"auths": {"r.example": {"auth": "s3cret"}}}),
            json!({"auths": {"r.example": {"auth": STANDARD.encode("s3cret")}}}),
            json!({"auths": {"r.example": "s3cret"}}),
        ] {
            let shown = refused(config);
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        let other = json!({"credHelpers": {"other.example": "pass"}, "credsStore": "desktop", "auths": {"r.example": {}}});
        assert_eq!(lookup(&other, "r.example", "x").unwrap(), None);
        assert!(find(&["/no/such/file".into()], "r.example", "x").is_err());
    }

    #[test]
    fn the_first_file_that_knows_the_registry_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, config: Value| {
            let path = dir.path().join(name);
            std::fs::write(&path, config.to_string()).unwrap();
            path
        };
        let files = [
            file("1", json!({"auths": {"a.example": auth("a:1")}})),
            file("2", json!({"auths": {"a.example": auth("a:2"), "b.example": auth("b:2")}})),
        ];
        let of = |host| find(&files, host, "x").unwrap().unwrap();
        assert_eq!((of("a.example").file, of("b.example").file), (files[0].clone(), files[1].clone()));
        assert_eq!(of("a.example").basic(), format!("Basic {}", STANDARD.encode("a:1")));
        assert!(!format!("{:?}", of("a.example")).contains(&STANDARD.encode("a:1")));
    }
}
