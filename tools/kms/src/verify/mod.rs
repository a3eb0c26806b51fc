//! The judgement of a relying party: evidence and expectations in, a checklist out.
//!
//! [`verify`] never stops early: every item of the list is there, in the order of [`Check`], with an outcome and the reason. A
//! report is good if no item failed. An item that rests on one that failed fails too and says so, so the first failed item is
//! the one to look at.
//!
//! Trust starts at AMD's roots, which are pinned by the digests of their keys ([`Roots`]), never at a file or a name. An emulated
//! root is trusted only where the caller says so, and the checklist repeats it ([`Checklist::emulated`]).
//!
//! MEASUREMENT and HOST_DATA are always required: the right guest under any policy, or the right policy in any guest, proves
//! nothing (attack K05). What is only asked for where the caller expects something of it has the outcome
//! [`Outcome::NotAsked`], which the list shows.

mod certificate;
mod endorsement;
mod report;
mod revocation;
mod time;

pub use certificate::Certificate;
pub use endorsement::{Endorsement, Endorser, NoEndorsement};
pub use report::{LENGTH, NoReport, Report, SigningKey, Tcb, TcbLayout};
pub use revocation::RevocationList;
pub use time::Moment;

use crate::history::Demands;
use certificate::Amd;
use serde::Serialize;
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use std::fmt;

/// What is said of a log that is demanded and not there.
pub(crate) const NO_LOG: &str = "no audit log was shown, and one is demanded";

/// Most certificates, and most revocation lists, that are looked at.
pub const MAX_CERTIFICATES: usize = 32;

/// What is checked, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The bytes are a report in a known layout.
    Format,
    /// The chain ends in a root that is trusted.
    Root,
    /// Each certificate is signed by the one above it, and each has the place that its kind has.
    Chain,
    /// No certificate of the chain has expired or is not valid yet.
    Validity,
    /// No certificate of the chain is revoked.
    Revocation,
    /// Report, certificate and root are of one product.
    Product,
    /// The certificate is for the chip that the report names.
    Chip,
    /// The certificate is for the firmware that the report names.
    Firmware,
    /// The certificate's key signed the report.
    Signature,
    /// The chip is one that is expected.
    AllowedChip,
    /// The firmware is not too old.
    MinimumTcb,
    /// The guest asked, at the expected privilege level.
    Vmpl,
    /// The host may not debug the guest.
    Debug,
    /// No migration agent can take the guest along.
    Migration,
    /// The builder's word for what was launched.
    Endorsement,
    /// What was launched.
    Measurement,
    /// Under which policy.
    HostData,
    /// What the guest vouches for.
    ReportData,
    /// The guest's security version number.
    GuestSvn,
    /// Who signed the ID block.
    IdBlock,
    /// The entries of an audit log lead to the head for which the report vouches: see [`crate::history`].
    AuditChain,
    /// Each entry is about the request that is shown with it.
    AuditRequests,
    /// Every decision in the log follows from the policy.
    AuditDecisions,
    /// The log shows what is demanded of it.
    AuditState,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::Format,
        Self::Root,
        Self::Chain,
        Self::Validity,
        Self::Revocation,
        Self::Product,
        Self::Chip,
        Self::Firmware,
        Self::Signature,
        Self::AllowedChip,
        Self::MinimumTcb,
        Self::Vmpl,
        Self::Debug,
        Self::Migration,
        Self::Endorsement,
        Self::Measurement,
        Self::HostData,
        Self::ReportData,
        Self::GuestSvn,
        Self::IdBlock,
        Self::AuditChain,
        Self::AuditRequests,
        Self::AuditDecisions,
        Self::AuditState,
    ];

    /// Those of a log.
    pub const AUDIT: [Self; 4] =
        [Self::AuditChain, Self::AuditRequests, Self::AuditDecisions, Self::AuditState];

    /// Its name in lists.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Root => "root",
            Self::Chain => "chain",
            Self::Validity => "validity",
            Self::Revocation => "revocation",
            Self::Product => "product",
            Self::Chip => "chip",
            Self::Firmware => "firmware",
            Self::Signature => "signature",
            Self::AllowedChip => "allowed-chip",
            Self::MinimumTcb => "minimum-tcb",
            Self::Vmpl => "vmpl",
            Self::Debug => "debug",
            Self::Migration => "migration",
            Self::Measurement => "measurement",
            Self::HostData => "host-data",
            Self::ReportData => "report-data",
            Self::GuestSvn => "guest-svn",
            Self::IdBlock => "id-block",
            Self::AuditChain => "audit-chain",
            Self::AuditRequests => "audit-requests",
            Self::AuditDecisions => "audit-decisions",
            Self::AuditState => "audit-state",
            Self::Endorsement => "endorsement",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Pass,
    /// It does not, or what it rests on does not.
    Fail,
    /// Nothing was expected.
    NotAsked,
}

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What.
    pub check: Check,
    /// Whether it holds.
    pub outcome: Outcome,
    /// What was found, or why not.
    pub detail: String,
}

/// The judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checklist {
    /// Whether an emulated root was accepted because the caller asked for it: no hardware vouches for anything then.
    pub emulated: bool,
    /// A line for each of [`Check::ALL`].
    pub items: Vec<Item>,
}

impl Checklist {
    /// Whether nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.items.len() == Check::ALL.len() && self.first_failure().is_none()
    }

    /// The first item that failed: the cause.
    #[must_use]
    pub fn first_failure(&self) -> Option<&Item> {
        self.items.iter().find(|item| item.outcome == Outcome::Fail)
    }

    /// The outcome of one check.
    #[must_use]
    pub fn outcome(&self, check: Check) -> Outcome {
        self.items.iter().find(|item| item.check == check).map_or(Outcome::Fail, |item| item.outcome)
    }
}

/// The makers whose roots there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004, 8004.
    Genoa,
    /// EPYC 9005.
    Turin,
    /// None: a process that plays a PSP.
    Emulated,
}

impl Product {
    const ALL: [Self; 4] = [Self::Milan, Self::Genoa, Self::Turin, Self::Emulated];

    /// As certificates name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
            Self::Emulated => "EMULATED",
        }
    }

    const fn tcb_layout(self) -> TcbLayout {
        match self {
            Self::Turin => TcbLayout::Zen5,
            _ => TcbLayout::Zen3And4,
        }
    }

    /// Whether a processor of this CPUID family and model is one (the emulated one says that it is a Genoa).
    const fn has(self, family: u8, model: u8) -> bool {
        match self {
            Self::Milan => matches!((family, model), (0x19, 0x00..=0x0f)),
            Self::Genoa | Self::Emulated => matches!((family, model), (0x19, 0x10..=0x1f | 0xa0..=0xaf)),
            Self::Turin => matches!((family, model), (0x1a, 0x00..=0x11)),
        }
    }
}

/// SHA-256 of the SubjectPublicKeyInfo of AMD's roots, from `kdsintf.amd.com/vcek/v1/<product>/cert_chain`.
const AMD_ROOTS: [(Product, &str); 3] = [
    (Product::Milan, "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"),
    (Product::Genoa, "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"),
    (Product::Turin, "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"),
];

/// Where trust starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    pinned: Vec<([u8; 32], Option<Product>)>,
}

impl Default for Roots {
    fn default() -> Self {
        Self::amd()
    }
}

impl Roots {
    /// AMD's.
    #[must_use]
    pub fn amd() -> Self {
        let pinned =
            AMD_ROOTS.iter().filter_map(|(product, digest)| Some((from_hex(digest)?, Some(*product))));
        Self { pinned: pinned.collect() }
    }

    /// These, and one that no hardware stands behind. `None` if `root` is no certificate.
    #[must_use]
    pub fn with_emulated(mut self, root: &[u8]) -> Option<Self> {
        self.pinned.push((Certificate::read(root).ok()?.key_digest(), None));
        Some(self)
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn trusts(&self, root: &Certificate<'_>) -> bool {
        self.find(root).is_some()
    }

    /// `Some(None)`: an emulated one.
    fn find(&self, root: &Certificate<'_>) -> Option<Option<Product>> {
        let digest = root.key_digest();
        self.pinned.iter().find(|(own, _)| *own == digest).map(|(_, product)| *product)
    }
}

/// What a guest shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// The report.
    pub report: &'a [u8],
    /// Certificates as DER, in any order, with any others among them.
    pub certificates: &'a [Vec<u8>],
    /// Revocation lists as DER.
    pub revocation_lists: &'a [Vec<u8>],
    /// The builder's endorsement.
    pub endorsement: Option<&'a [u8]>,
}

/// What REPORT_DATA has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportData {
    /// These bytes.
    Exactly([u8; 64]),
    /// The hash of these bytes, and zeros behind it. The bytes are hashed as they are: nothing is parsed or written anew before
    /// (attack K03).
    HashOf(RuntimeHash, Vec<u8>),
}

/// How runtime data is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeHash {
    /// As Microsoft's services have it.
    Sha256,
    /// As Confidential Containers has it.
    Sha384,
    /// All 64 bytes.
    Sha512,
}

impl ReportData {
    /// The 64 bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 64] {
        let padded = |hash: &[u8]| std::array::from_fn(|i| hash.get(i).copied().unwrap_or(0));
        match self {
            Self::Exactly(bytes) => *bytes,
            Self::HashOf(RuntimeHash::Sha256, data) => padded(&Sha256::digest(data)),
            Self::HashOf(RuntimeHash::Sha384, data) => padded(&Sha384::digest(data)),
            Self::HashOf(RuntimeHash::Sha512, data) => padded(&Sha512::digest(data)),
        }
    }
}

/// What the relying party accepts.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Launch digests, of which one has to be the report's. Empty: the endorsement has to say it.
    pub measurements: Vec<[u8; 48]>,
    /// SHA-256 of policies, of which one has to be the report's HOST_DATA.
    pub policies: Vec<[u8; 32]>,
    /// What the guest vouches for.
    pub report_data: Option<ReportData>,
    /// The privilege level: 0 unless a paravisor runs below the guest.
    pub vmpl: u32,
    /// The least firmware, for each of the report's four TCB versions.
    pub minimum_tcb: Option<Tcb>,
    /// The least security version number of the guest.
    pub minimum_guest_svn: Option<u32>,
    /// Chips, of which one has to be the report's (attack K01: one broken machine is not every machine).
    pub chips: Option<Vec<[u8; 64]>>,
    /// Accept a report that does not say which chip made it (attack K07). Then a VLEK has to have signed it.
    pub masked_chip: bool,
    /// SHA-384 of the key that signed the ID block.
    pub id_key: Option<[u8; 48]>,
    /// SHA-384 of the key that signed that key.
    pub author_key: Option<[u8; 48]>,
    /// Whose endorsements of measurements count.
    pub endorser: Option<Endorser>,
    /// Revocation lists have to be there: it is not enough that none says anything.
    pub revocation_required: bool,
    /// What the guest's audit log has to show. A log is judged by whoever has one ([`crate::history`]); evidence alone shows none,
    /// so with this it is not good enough.
    pub audit: Option<Demands>,
}

/// A check's result before it is an item: `Ok(None)` where nothing was expected.
type Found = Result<Option<String>, String>;

fn pass(detail: impl Into<String>) -> Found {
    Ok(Some(detail.into()))
}

/// The certificates from the one that signs reports to the root.
struct Chain<'a> {
    leaf: Certificate<'a>,
    /// ASK or ASVK.
    middle: Certificate<'a>,
    root: Certificate<'a>,
    /// Whether the middle signed the leaf, and the root the middle: found out once, since it is what takes the time.
    signed: [bool; 2],
    /// VLEK rather than VCEK, as the leaf's extensions say.
    is_vlek: bool,
}

impl<'a> Chain<'a> {
    /// Finds the leaf that is for this report and the authorities that issued it.
    fn find(evidence: &Evidence<'a>, report: &Report) -> Result<Self, String> {
        if evidence.certificates.len() > MAX_CERTIFICATES {
            return Err(format!("more than {MAX_CERTIFICATES} certificates"));
        }
        let mut authorities = Vec::new();
        let mut leaves = Vec::new();
        for (at, der) in evidence.certificates.iter().enumerate() {
            let certificate =
                Certificate::read(der).map_err(|_| format!("certificate {} is malformed", at + 1))?;
            let is_leaf =
                certificate.amd(Amd::HardwareId).is_some() || certificate.amd(Amd::ProviderId).is_some();
            if is_leaf { leaves.push(certificate) } else { authorities.push(certificate) }
        }
        let wants_vlek = report.signing_key() == SigningKey::Vlek;
        // With leaves of several chips or kinds, the one that fits; with one, that one, so that what is wrong with it shows.
        let fits = |leaf: &Certificate<'_>| {
            let is_vlek = leaf.amd(Amd::ProviderId).is_some();
            let chip = leaf.hardware_id().is_none_or(|id| report.chip_id().starts_with(id));
            is_vlek == wants_vlek && chip
        };
        let at = match leaves.iter().position(fits) {
            Some(at) => at,
            None if leaves.len() == 1 => 0,
            None if leaves.is_empty() => return Err("no VCEK or VLEK certificate is given".into()),
            None => return Err("no VCEK or VLEK certificate fits the report".into()),
        };
        let leaf = leaves.swap_remove(at);
        let mut take = |below: &Certificate<'_>, what: &str| {
            let names = |c: &Certificate<'_>| c.subject == below.issuer;
            // Several certificates of one name: the one that signed.
            let signer = authorities.iter().position(|c| c.issued(below));
            let at = signer
                .or_else(|| authorities.iter().position(names))
                .ok_or_else(|| format!("the certificate of the {what} is not given"))?;
            Ok::<_, String>((authorities.swap_remove(at), signer.is_some()))
        };
        let (middle, signed_leaf) = take(&leaf, "ASK or ASVK")?;
        let (root, signed_middle) = take(&middle, "ARK")?;
        let is_vlek = leaf.amd(Amd::ProviderId).is_some();
        Ok(Self { leaf, middle, root, signed: [signed_leaf, signed_middle], is_vlek })
    }

    fn kind(&self) -> (&'static str, &'static str) {
        if self.is_vlek { ("VLEK", "ASVK") } else { ("VCEK", "ASK") }
    }

    /// The product, of which the leaf has to be and, where it is AMD's, the root.
    fn product(&self, roots: &Roots) -> Result<Product, String> {
        let name = self.leaf.product().ok_or("the certificate does not name its product")?;
        let named = Product::ALL.into_iter().find(|product| name.split('-').next() == Some(product.name()));
        let named = named.ok_or_else(|| format!("the product {} is not known", printable(name)))?;
        match roots.find(&self.root) {
            // What a root without hardware says of products does not matter, as long as it is one thing.
            Some(None) => Ok(named),
            Some(Some(product)) if product == named => Ok(named),
            Some(Some(product)) => {
                Err(format!("the certificate is for {}, its root for {}", named.name(), product.name()))
            }
            None => Err("the root is not trusted".into()),
        }
    }

    /// The signatures, and that each certificate has the place of its kind (attack K06).
    fn check(&self, report: &Report) -> Found {
        let (leaf, middle) = self.kind();
        if !self.root.issued(&self.root) {
            return Err("the ARK has not signed itself".into());
        }
        let [signed_leaf, signed_middle] = self.signed;
        if !signed_middle {
            return Err(format!("the ARK has not signed the {middle}"));
        }
        if !signed_leaf {
            return Err(format!("the {middle} has not signed the {leaf}"));
        }
        if self.leaf.amd(Amd::HardwareId).is_some() && self.is_vlek {
            return Err("the certificate is of a chip and of a provider".into());
        }
        // What kind it is follows from the leaf. The name, which the ARK signed, has to agree with that.
        let name = self.middle.common_name().unwrap_or_default();
        if name.starts_with("SEV-VLEK") != self.is_vlek {
            return Err(format!("a {leaf} that an authority named {} issued", printable(name)));
        }
        match report.signing_key() {
            SigningKey::Vcek if !self.is_vlek => {}
            SigningKey::Vlek if self.is_vlek => {}
            SigningKey::None => return Err("the platform does not sign reports (MASK_CHIP_KEY)".into()),
            _ => return Err(format!("the report says that another key than a {leaf} signed it")),
        }
        pass(format!("{leaf} ← {middle} ← ARK"))
    }

    fn validity(&self, now: Moment) -> Found {
        let (leaf, middle) = self.kind();
        for (name, certificate) in [(leaf, &self.leaf), (middle, &self.middle), ("ARK", &self.root)] {
            let (first, last) = certificate.life;
            if now.digits() < first {
                return Err(format!("the {name} is valid from {} on", Moment::from_digits(first)));
            }
            if now.digits() > last {
                return Err(format!("the {name} expired on {}", Moment::from_digits(last)));
            }
        }
        pass(format!("at {now}"))
    }

    fn revocation(&self, evidence: &Evidence<'_>, expected: &Expected, now: Moment) -> Found {
        let (leaf, middle) = self.kind();
        if evidence.revocation_lists.len() > MAX_CERTIFICATES {
            return Err(format!("more than {MAX_CERTIFICATES} revocation lists"));
        }
        let mut current = 0;
        for (at, der) in evidence.revocation_lists.iter().enumerate() {
            let list =
                RevocationList::read(der).map_err(|_| format!("revocation list {} is malformed", at + 1))?;
            let Some(authority) = [&self.root, &self.middle].into_iter().find(|a| list.is_of(a)) else {
                continue;
            };
            if !list.is_signed_by(authority) {
                return Err(format!("revocation list {} is not signed by its issuer", at + 1));
            }
            for (name, certificate) in [(leaf, &self.leaf), (middle, &self.middle), ("ARK", &self.root)] {
                if list.revokes(certificate) {
                    return Err(format!("the {name} is revoked"));
                }
            }
            // An old list still revokes; it just does not clear anybody.
            if (list.life.0..=list.life.1).contains(&now.digits()) {
                current += 1;
            } else if expected.revocation_required {
                return Err(format!("revocation list {} is not of this time", at + 1));
            }
        }
        match (current, expected.revocation_required) {
            (0, true) => Err("there is no revocation list of this chain".into()),
            (0, false) => Ok(None),
            _ => pass("no certificate of the chain is revoked"),
        }
    }

    fn chip(&self, report: &Report, product: Product, expected: &Expected) -> Found {
        let chip = report.chip_id();
        if chip == [0; 64] {
            // SECURITY (K07): an explicit decision, not what zeros happen to be equal to.
            return match (expected.masked_chip, self.is_vlek) {
                (true, true) => pass("masked, which is accepted"),
                (true, false) => Err("the chip is masked, and only a VLEK can vouch for masked chips".into()),
                (false, _) => Err("the chip is masked".into()),
            };
        }
        if self.is_vlek {
            return pass(format!("{}…; a VLEK does not say which", &hex(&chip)[..16]));
        }
        let id = self.leaf.hardware_id().unwrap_or_default();
        let fits = match (product, id.len()) {
            (Product::Turin, 8) => chip[..8] == *id && chip[8..].iter().all(|&byte| byte == 0),
            (Product::Turin, _) => false,
            _ => chip == *id,
        };
        if fits {
            pass(format!("{}…", &hex(&chip)[..16]))
        } else {
            Err(format!("the certificate is for chip {:.16}…, the report for {:.16}…", hex(id), hex(&chip)))
        }
    }

    fn firmware(&self, report: &Report, product: Product) -> Found {
        let version = |which: Amd| {
            self.leaf.version(which).ok_or_else(|| format!("the certificate has no version of {which:?}"))
        };
        let certified = Tcb {
            fmc: if product == Product::Turin { version(Amd::Fmc)? } else { 0 },
            bootloader: version(Amd::BootLoader)?,
            tee: version(Amd::Tee)?,
            snp: version(Amd::Snp)?,
            microcode: version(Amd::Microcode)?,
        };
        let reported = report.reported_tcb(product.tcb_layout());
        if certified == reported {
            pass(reported.to_string())
        } else {
            Err(format!("the certificate is for {certified}, the report for {reported}"))
        }
    }
}

/// Judges evidence at a moment.
#[must_use]
pub fn verify(evidence: &Evidence<'_>, expected: &Expected, roots: &Roots, now: Moment) -> Checklist {
    let mut list = List { items: Vec::with_capacity(Check::ALL.len()) };
    let report = match Report::read(evidence.report) {
        Ok(report) => report,
        Err(why) => {
            list.add(Check::Format, Err(why.to_string()));
            for check in &Check::ALL[1..] {
                list.add(*check, Err("there is no report to look at".into()));
            }
            return Checklist { emulated: false, items: list.items };
        }
    };
    list.add(Check::Format, pass(format!("version {}, ECDSA P-384 with SHA-384", report.version())));
    let mut emulated = false;
    let mut product = Err("there is no chain of certificates".to_owned());
    match Chain::find(evidence, &report) {
        Err(why) => {
            list.add(Check::Root, Err(why));
            for check in [Check::Chain, Check::Validity, Check::Revocation] {
                list.add(check, Err("there is no chain of certificates".into()));
            }
            for check in [Check::Product, Check::Chip, Check::Firmware, Check::Signature] {
                list.add(check, Err("there is no chain of certificates".into()));
            }
        }
        Ok(chain) => {
            let root = roots.find(&chain.root);
            emulated = root == Some(None);
            list.add(
                Check::Root,
                match root {
                    Some(Some(product)) => pass(format!("AMD's ARK of {}", product.name())),
                    Some(None) => pass("an EMULATED root, accepted on request: no hardware vouches for this"),
                    None => Err("the ARK's key is none of AMD's for Milan, Genoa and Turin".into()),
                },
            );
            // SECURITY: what a chain says counts only if the chain holds.
            let sound = chain.check(&report);
            let holds = root.is_some() && sound.is_ok();
            list.add(Check::Chain, sound);
            list.add(Check::Validity, chain.validity(now));
            list.add(Check::Revocation, chain.revocation(evidence, expected, now));
            product = chain.product(roots);
            let of_one = product.clone().and_then(|product| match report.family_and_model() {
                None => pass(format!("{}; reports of version 2 do not say", product.name())),
                Some((family, model)) if product.has(family, model) => {
                    pass(format!("{}, family {family:#x}, model {model:#x}", product.name()))
                }
                Some((family, model)) => Err(format!(
                    "the certificate is for {}, the report for family {family:#x}, model {model:#x}",
                    product.name()
                )),
            });
            list.add(Check::Product, of_one);
            let unknown = || "the product is not known".to_owned();
            let known = product.clone().map_err(|_| unknown());
            list.add(Check::Chip, known.clone().and_then(|product| chain.chip(&report, product, expected)));
            list.add(Check::Firmware, known.and_then(|product| chain.firmware(&report, product)));
            let signed = || chain.leaf.report_key().is_some_and(|key| report.is_signed_by(key));
            list.add(
                Check::Signature,
                if !holds {
                    Err("nobody who is trusted vouches for the key".into())
                } else if signed() {
                    pass(format!("by the {}", chain.kind().0))
                } else {
                    Err(format!("the {} has not signed this report", chain.kind().0))
                },
            );
        }
    }
    let layout = product.map_err(|_| "the product is not known".to_owned()).map(Product::tcb_layout);
    list.add(Check::AllowedChip, allowed_chip(&report, expected));
    list.add(Check::MinimumTcb, minimum_tcb(&report, expected, layout));
    list.guest(&report, expected);
    let endorsement = endorsed(evidence, expected, &report);
    let measured = measurement(&report, expected, &endorsement);
    list.add(Check::Endorsement, endorsement);
    list.add(Check::Measurement, measured);
    list.add(Check::HostData, host_data(&report, expected));
    list.add(Check::ReportData, report_data(&report, expected));
    list.add(
        Check::GuestSvn,
        match expected.minimum_guest_svn {
            None => Ok(None),
            Some(least) if report.guest_svn() < least => {
                Err(format!("{} is less than {least}", report.guest_svn()))
            }
            Some(least) => pass(format!("{}, at least {least}", report.guest_svn())),
        },
    );
    list.add(Check::IdBlock, id_block(&report, expected));
    for check in Check::AUDIT {
        // SECURITY: a log that nobody has looked at shows nothing that is demanded.
        list.add(check, if expected.audit.is_some() { Err(NO_LOG.into()) } else { Ok(None) });
    }
    Checklist { emulated, items: list.items }
}

struct List {
    items: Vec<Item>,
}

impl List {
    fn add(&mut self, check: Check, found: Found) {
        let (outcome, detail) = match found {
            Ok(Some(detail)) => (Outcome::Pass, detail),
            Ok(None) => (Outcome::NotAsked, "nothing is expected".into()),
            Err(why) => (Outcome::Fail, why),
        };
        self.items.push(Item { check, outcome, detail });
    }

    /// What the report says of how the guest was launched.
    fn guest(&mut self, report: &Report, expected: &Expected) {
        self.add(
            Check::Vmpl,
            match report.vmpl() {
                vmpl if vmpl == expected.vmpl && vmpl <= 3 => pass(vmpl.to_string()),
                // SECURITY (K04): the host can ask for reports, too.
                u32::MAX => Err("the host asked for this report, not the guest".into()),
                vmpl => Err(format!("{vmpl} instead of {}", expected.vmpl)),
            },
        );
        self.add(
            Check::Debug,
            if report.is_debuggable() { Err("the host may debug the guest".into()) } else { pass("off") },
        );
        self.add(
            Check::Migration,
            if report.is_migratable() {
                Err("a migration agent may take the guest along".into())
            } else {
                pass("no agent")
            },
        );
    }
}

fn allowed_chip(report: &Report, expected: &Expected) -> Found {
    match &expected.chips {
        None => Ok(None),
        Some(chips) if chips.contains(&report.chip_id()) && report.chip_id() != [0; 64] => {
            pass(format!("one of {}", chips.len()))
        }
        Some(chips) => Err(format!("none of the {} that are allowed", chips.len())),
    }
}

fn minimum_tcb(report: &Report, expected: &Expected, layout: Result<TcbLayout, String>) -> Found {
    let Some(least) = expected.minimum_tcb else { return Ok(None) };
    for (name, tcb) in report.tcbs(layout?) {
        if let Some(part) = tcb.older_than(least) {
            return Err(format!("the {name} firmware, {tcb}, is older than {least}: {part}"));
        }
    }
    pass(format!("at least {least}"))
}

fn measurement(report: &Report, expected: &Expected, endorsement: &Found) -> Found {
    let measurement = report.measurement();
    if expected.measurements.contains(&measurement) {
        return pass(hex(&measurement));
    }
    match (expected.measurements.is_empty(), endorsement) {
        // SECURITY (K05): no expectation is no agreement.
        (true, Ok(None)) => Err("nothing says what it should be".into()),
        (true, Ok(Some(_))) => pass(format!("{}, as endorsed", hex(&measurement))),
        (true, Err(_)) => Err("it is not endorsed".into()),
        (false, _) => Err(format!("{} is not what was expected", hex(&measurement))),
    }
}

fn host_data(report: &Report, expected: &Expected) -> Found {
    let host_data = report.host_data();
    if expected.policies.contains(&host_data) {
        pass(hex(&host_data))
    } else if expected.policies.is_empty() {
        Err("nothing says what it should be".into())
    } else {
        Err(format!("the guest runs under another policy, {}", hex(&host_data)))
    }
}

fn report_data(report: &Report, expected: &Expected) -> Found {
    match &expected.report_data {
        None => Ok(None),
        Some(data) if data.bytes() == report.report_data() => pass("as expected"),
        Some(ReportData::Exactly(_)) => Err("it is not what was expected".into()),
        Some(ReportData::HashOf(..)) => Err("it is not the hash of the runtime data".into()),
    }
}

fn id_block(report: &Report, expected: &Expected) -> Found {
    if let Some(key) = expected.id_key
        && report.id_key_digest() != key
    {
        return Err("another key signed the ID block, or there is none".into());
    }
    if let Some(author) = expected.author_key
        && (!report.has_author_key() || report.author_key_digest() != author)
    {
        return Err("another author signed the ID block's key, or none did".into());
    }
    match (expected.id_key, expected.author_key) {
        (None, None) => Ok(None),
        _ => pass("signed as expected"),
    }
}

fn endorsed(evidence: &Evidence<'_>, expected: &Expected, report: &Report) -> Found {
    let Some(endorser) = &expected.endorser else { return Ok(None) };
    let message = evidence.endorsement.ok_or("there is none")?;
    let endorsement = Endorsement::read(message).map_err(|why| why.to_string())?;
    if endorsement.issuer != endorser.issuer {
        return Err(format!("it is of another issuer, {}", printable(&endorsement.issuer)));
    }
    if endorsement.feed != endorser.feed {
        return Err(format!("it is of another feed, {}", printable(&endorsement.feed)));
    }
    // SECURITY (K11): an old build was genuine, too.
    if endorsement.svn < endorser.minimum_svn {
        return Err(format!("its SVN {} is less than {}", endorsement.svn, endorser.minimum_svn));
    }
    if endorsement.measurement != report.measurement() {
        return Err("it is of another measurement".into());
    }
    pass(format!("{}, SVN {}", printable(&endorsement.feed), endorsement.svn))
}

/// A stranger's text, so that it can stand in a list.
fn printable(text: &str) -> String {
    text.chars().take(160).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `N` bytes in hexadecimal digits.
#[must_use]
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |at: usize| char::from(text.as_bytes()[at]).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(2 * at)? << 4 | digit(2 * at + 1)?;
    }
    Some(bytes)
}
