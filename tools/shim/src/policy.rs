//! Where a pod's policy comes from: its annotation [`ANNOTATION`], or the label of that name of its image.
//!
//! The value is the compiled policy in base64, or `sha256:` and its HOST_DATA. Such a reference names a file of
//! [`store`], never a path: an annotation comes from whoever may make pods and must not choose a file of the host
//! (attack T07).

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma::output::hex;
use parma::workload::{ANNOTATION, Policy};
use parma_guest::policy::format::{Image, MAGIC, Section};
use parma_guest::wire::MAX_POLICY;
use parma_layer::oci::Digest;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How to get one.
const REMEDY: &str = "add the annotation that `parma policy generate --annotation` prints";

/// The directory of policies that annotations refer to: `$PARMA_POLICIES`, or `/var/lib/parma/policies`. A policy's file
/// is called as its HOST_DATA, 64 hexadecimal digits.
#[must_use]
pub fn store() -> PathBuf {
    let named = std::env::var_os("PARMA_POLICIES").filter(|value| !value.is_empty());
    named.map_or_else(|| "/var/lib/parma/policies".into(), PathBuf::from)
}

/// The policy of a pod with these annotations and, where it is known already, an image with these labels.
///
/// # Errors
/// There is none, or it is none.
pub fn find(
    annotations: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
    store: &Path,
) -> Result<Policy> {
    let Some(value) = annotations.get(ANNOTATION).or_else(|| labels.get(ANNOTATION)) else {
        bail!("the pod has no policy: {REMEDY}");
    };
    let image = match value.strip_prefix("sha256:") {
        Some(_) => {
            let digest = Digest::parse(value).context(ANNOTATION)?;
            let image = read(&store.join(digest.hex()))
                .with_context(|| format!("{ANNOTATION}: no policy {value} on this node"))?;
            let found = hex(&parma_policy::host_data(&image));
            ensure!(found == digest.hex(), "{ANNOTATION}: the node's file of {value} is sha256:{found}");
            image
        }
        None => STANDARD
            .decode(value)
            .ok()
            .with_context(|| format!("{ANNOTATION}: neither base64 nor sha256:DIGEST: {REMEDY}"))?,
    };
    ensure!(image.starts_with(&MAGIC), "{ANNOTATION}: no compiled policy: {REMEDY}");
    ensure!(image.len() <= MAX_POLICY, "{ANNOTATION}: more than {MAX_POLICY} bytes");
    Ok(Policy { source: None, image, warnings: Vec::new() })
}

/// What the policy alone gives a container, as far as the host can see it: whether it says such a word of any of them.
///
/// # Errors
/// It is no policy.
pub fn says(policy: &Policy, word: &str) -> Result<bool> {
    let image = Image::read(&policy.image).map_err(|error| anyhow!("no valid policy: {error:?}"))?;
    let strings = image.section(Section::StringBytes);
    Ok(strings.windows(word.len()).any(|window| window == word.as_bytes()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_POLICY as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(ANNOTATION.to_owned(), value.to_owned())])
    }

    fn compiled() -> Vec<u8> {
        [&MAGIC[..], b"rest"].concat()
    }

    #[test]
    fn a_policy_is_the_annotations_or_else_the_images() {
        let none = BTreeMap::new();
        let given = of(&STANDARD.encode(compiled()));
        let nowhere = Path::new("/nonexistent");
        assert_eq!(find(&given, &none, nowhere).unwrap().image, compiled());
        assert_eq!(find(&none, &given, nowhere).unwrap().image, compiled());
        assert_eq!(find(&given, &of("bad"), nowhere).unwrap().image, compiled());
        let missing = find(&none, &none, nowhere).unwrap_err().to_string();
        assert!(missing.contains("--annotation"), "{missing}");
    }

    /// CVE-2026-50540: a path in an annotation chose a file of the host.
    #[test]
    fn t07_a_reference_names_a_policy_by_its_digest_and_never_a_path() {
        let store = tempfile::tempdir().unwrap();
        let host_data = hex(&parma_policy::host_data(&compiled()));
        let path = store.path().join(&host_data);
        let reference = of(&format!("sha256:{host_data}"));
        let none = BTreeMap::new();
        assert!(find(&reference, &none, store.path()).is_err());
        std::fs::write(&path, compiled()).unwrap();
        assert_eq!(find(&reference, &none, store.path()).unwrap().image, compiled());
        // A file that is not what it is called, and a link.
        std::fs::write(&path, [compiled(), b"!".to_vec()].concat()).unwrap();
        assert!(find(&reference, &none, store.path()).is_err());
        std::fs::write(store.path().join("other"), compiled()).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(store.path().join("other"), &path).unwrap();
        assert!(find(&reference, &none, store.path()).is_err());
        for path in ["sha256:../../etc/passwd", "/etc/passwd", "sha256:", "", "\u{1b}[2J"] {
            assert!(find(&of(path), &none, store.path()).is_err(), "{path}");
        }
    }

    #[test]
    fn what_a_policy_says_of_containers_can_be_looked_for() {
        let source = "package policy\napi_version := \"0.11.0\"\nmount_device := {\"allowed\": input.target == \"read_only_root\"}\n";
        let policy = Policy::compile("p.rego", source).unwrap();
        assert!(says(&policy, "read_only_root").unwrap());
        assert!(!says(&policy, "read_only_rood").unwrap());
        let none = Policy { image: compiled(), ..policy };
        assert!(says(&none, "rest").is_err());
    }
}
