//! Release policies: which guest gets which key. A JSON file, read strictly; what it does not know is an error.
//!
//! ```json
//! {
//!   "issuer": "https://kms.example.com",
//!   "keys": {
//!     "data": {
//!       "measurements": ["<96 hex digits>"],
//!       "host_data": ["<64 hex digits>"],
//!       "minimum_tcb": "bootloader=3,tee=0,snp=8,microcode=115",
//!       "audit": {"never_asked": ["exec_in_container"], "most_denied": 0},
//!       "least_generation": 0
//!     }
//!   }
//! }
//! ```

use crate::history::Demands;
use crate::verify::{Endorser, Expected, Tcb, from_hex};
use anyhow::{Context as _, Result, anyhow, ensure};
use parma_guest::point::Point;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Longest file, in bytes.
pub const MAX_FILE: usize = 1 << 20;

/// What a service releases, and to whom.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What tokens name as their issuer.
    pub issuer: String,
    /// By the keys' names.
    pub keys: BTreeMap<String, Rule>,
}

/// Who gets a key.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// What the guest's evidence has to be.
    pub expected: Expected,
    /// What is told with a volume's key: an older state of the volume is not to be mounted (attack K09).
    pub least_generation: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRules {
    issuer: String,
    keys: BTreeMap<String, FileRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    #[serde(default)]
    measurements: Vec<String>,
    host_data: Vec<String>,
    #[serde(default)]
    vmpl: u32,
    minimum_tcb: Option<String>,
    minimum_guest_svn: Option<u32>,
    chips: Option<Vec<String>>,
    #[serde(default)]
    masked_chip: bool,
    id_key: Option<String>,
    author_key: Option<String>,
    endorser: Option<FileEndorser>,
    #[serde(default)]
    require_revocation: bool,
    audit: Option<FileDemands>,
    #[serde(default)]
    least_generation: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDemands {
    #[serde(default)]
    never_asked: Vec<String>,
    most_denied: Option<usize>,
}

impl FileDemands {
    fn read(self) -> Result<Demands> {
        let point = |name: &String| {
            Point::from_name(name).with_context(|| format!("audit: {name:?} is no enforcement point"))
        };
        let never_asked = self.never_asked.iter().map(point).collect::<Result<_>>()?;
        Ok(Demands { never_asked, most_denied: self.most_denied })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEndorser {
    issuer: String,
    feed: String,
    minimum_svn: u64,
}

fn digits<const N: usize>(what: &str, text: &str) -> Result<[u8; N]> {
    from_hex(text).with_context(|| format!("{what}: {} hexadecimal digits are needed", 2 * N))
}

impl Rules {
    /// Reads a file's content.
    ///
    /// # Errors
    /// It is no such JSON, or names a key that no guest could get.
    pub fn parse(text: &[u8]) -> Result<Self> {
        ensure!(text.len() <= MAX_FILE, "a release policy has at most {MAX_FILE} bytes");
        let file: FileRules = serde_json::from_slice(text).context("not a release policy")?;
        let keys = file.keys.into_iter().map(|(name, rule)| {
            ensure!(is_name(&name), "{name:?} is no name of a key: {NAMES}");
            let rule = Rule::new(rule).with_context(|| format!("the key {name}"))?;
            Ok((name, rule))
        });
        Ok(Self { issuer: file.issuer, keys: keys.collect::<Result<_>>()? })
    }
}

/// Most characters of a key's name.
pub const MAX_NAME: usize = 3 * 64 + 2;
/// What a key may be called, for those who are told that one is not.
pub const NAMES: &str = "1 to 64 of A-Z a-z 0-9 . _ -, or three of that: REPOSITORY/TYPE/TAG";

/// Whether this may name a key, in URLs and in the store.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        (1..=64).contains(&part.len())
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
            && !part.starts_with('.')
    };
    name.len() <= MAX_NAME && [1, 3].contains(&name.split('/').count()) && name.split('/').all(is_part)
}

impl Rule {
    fn new(file: FileRule) -> Result<Self> {
        // SECURITY (K05): a key for any guest, or for any policy, is a mistake.
        let says_which = !file.measurements.is_empty() || file.endorser.is_some();
        ensure!(
            !file.host_data.is_empty() && says_which,
            "host_data, and measurements or an endorser, have to say which guests get it"
        );
        let list =
            |what, texts: &[String]| texts.iter().map(|text| digits(what, text)).collect::<Result<_>>();
        Ok(Self {
            expected: Expected {
                measurements: file
                    .measurements
                    .iter()
                    .map(|text| digits("measurements", text))
                    .collect::<Result<_>>()?,
                policies: list("host_data", &file.host_data)?,
                report_data: None,
                vmpl: file.vmpl,
                minimum_tcb: file
                    .minimum_tcb
                    .map(|text| Tcb::parse(&text).map_err(|why| anyhow!("minimum_tcb: {why}")))
                    .transpose()?,
                minimum_guest_svn: file.minimum_guest_svn,
                chips: file
                    .chips
                    .map(|chips| chips.iter().map(|text| digits("chips", text)).collect::<Result<_>>())
                    .transpose()?,
                masked_chip: file.masked_chip,
                id_key: file.id_key.map(|text| digits("id_key", &text)).transpose()?,
                author_key: file.author_key.map(|text| digits("author_key", &text)).transpose()?,
                endorser: file.endorser.map(|FileEndorser { issuer, feed, minimum_svn }| Endorser {
                    issuer,
                    feed,
                    minimum_svn,
                }),
                revocation_required: file.require_revocation,
                audit: file.audit.map(FileDemands::read).transpose()?,
            },
            least_generation: file.least_generation,
        })
    }
}
