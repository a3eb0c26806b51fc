//! An attestation report's fields (AMD SEV-SNP ABI 56860, table "ATTESTATION_REPORT Structure", versions 2 to 5).

use p384::ecdsa::Signature;
use p384::ecdsa::signature::Verifier as _;
use serde::Serialize;
use std::fmt;

/// Bytes of a report.
pub const LENGTH: usize = 1184;
/// Bytes that are signed.
const SIGNED: usize = 0x2a0;
/// Bytes of R and of S, of which the upper 24 are zero.
const SCALAR: usize = 72;
/// After the signature.
const RESERVED: usize = SIGNED + 2 * SCALAR;

/// Bits of the launch policy.
const POLICY_MIGRATION_AGENT: u64 = 1 << 18;
const POLICY_DEBUG: u64 = 1 << 19;

/// Why bytes are no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReport {
    /// Not [`LENGTH`] bytes.
    Length(usize),
    /// A version whose layout is not known.
    Version(u32),
    /// Another algorithm than ECDSA P-384 with SHA-384.
    Algorithm(u32),
    /// Bytes that nobody signed and that have to be zero are not.
    Reserved,
}

impl fmt::Display for NoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "{length} bytes instead of {LENGTH}"),
            Self::Version(version) => write!(f, "version {version}: 2 to 5 are known"),
            Self::Algorithm(algorithm) => {
                write!(f, "signature algorithm {algorithm}: only 1, ECDSA P-384 with SHA-384, is known")
            }
            Self::Reserved => f.write_str("bytes behind the signature are not zero"),
        }
    }
}

/// The key that signed, as the report says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningKey {
    /// The chip's.
    Vcek,
    /// The cloud provider's.
    Vlek,
    /// None: the platform masks the key.
    None,
    /// Reserved.
    Unknown,
}

/// Where versions stand in a TCB_VERSION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcbLayout {
    /// Milan and Genoa.
    Zen3And4,
    /// Turin.
    Zen5,
}

/// The versions of the firmware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tcb {
    /// FMC, which only Turin has.
    pub fmc: u8,
    /// Boot loader.
    pub bootloader: u8,
    /// TEE operating system.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

impl Tcb {
    fn read(bytes: [u8; 8], layout: TcbLayout) -> Self {
        let [a, b, c, d, _, _, g, microcode] = bytes;
        match layout {
            TcbLayout::Zen3And4 => Self { fmc: 0, bootloader: a, tee: b, snp: g, microcode },
            TcbLayout::Zen5 => Self { fmc: a, bootloader: b, tee: c, snp: d, microcode },
        }
    }

    const fn parts(self) -> [(&'static str, u8); 5] {
        [
            ("fmc", self.fmc),
            ("bootloader", self.bootloader),
            ("tee", self.tee),
            ("snp", self.snp),
            ("microcode", self.microcode),
        ]
    }

    /// The first part in which it is older than `least`.
    #[must_use]
    pub fn older_than(self, least: Self) -> Option<&'static str> {
        self.parts()
            .iter()
            .zip(least.parts())
            .find(|((_, own), (_, least))| own < least)
            .map(|((name, _), _)| *name)
    }

    /// Reads `bootloader=3,tee=0,snp=8,microcode=115`, in any order; what is not named is 0.
    ///
    /// # Errors
    /// It is not of that form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tcb = Self::default();
        for part in text.split(',') {
            let (name, number) =
                part.split_once('=').ok_or("a list like bootloader=3,tee=0,snp=8,microcode=115")?;
            let place = match name {
                "fmc" => &mut tcb.fmc,
                "bootloader" => &mut tcb.bootloader,
                "tee" => &mut tcb.tee,
                "snp" => &mut tcb.snp,
                "microcode" => &mut tcb.microcode,
                _ => return Err(format!("{name} is none of fmc, bootloader, tee, snp, microcode")),
            };
            *place = number.parse().map_err(|_| format!("{number} is no number from 0 to 255"))?;
        }
        Ok(tcb)
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fmc != 0 {
            write!(f, "fmc={},", self.fmc)?;
        }
        let Self { bootloader, tee, snp, microcode, .. } = self;
        write!(f, "bootloader={bootloader},tee={tee},snp={snp},microcode={microcode}")
    }
}

/// A report in a known layout. Nothing says yet that a PSP made it.
#[derive(Clone, PartialEq, Eq)]
pub struct Report([u8; LENGTH]);

impl Report {
    /// The report in these bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn read(bytes: &[u8]) -> Result<Self, NoReport> {
        let report = Self(bytes.try_into().map_err(|_| NoReport::Length(bytes.len()))?);
        match report.version() {
            2..=5 => {}
            version => return Err(NoReport::Version(version)),
        }
        match report.u32_at(0x34) {
            1 => {}
            algorithm => return Err(NoReport::Algorithm(algorithm)),
        }
        if report.0[RESERVED..].iter().any(|&byte| byte != 0) {
            return Err(NoReport::Reserved);
        }
        Ok(report)
    }

    fn at<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[at + i])
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.at(at))
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// Version of the layout.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.u32_at(0x00)
    }

    /// Security version of the guest, from its ID block.
    #[must_use]
    pub fn guest_svn(&self) -> u32 {
        self.u32_at(0x04)
    }

    /// The launch policy.
    #[must_use]
    pub fn policy(&self) -> u64 {
        u64::from_le_bytes(self.at(0x08))
    }

    /// Whether the host may read the guest's memory.
    #[must_use]
    pub fn is_debuggable(&self) -> bool {
        self.policy() & POLICY_DEBUG != 0
    }

    /// Whether a migration agent may take the guest along, or one is bound to it.
    #[must_use]
    pub fn is_migratable(&self) -> bool {
        self.policy() & POLICY_MIGRATION_AGENT != 0 || self.at::<32>(0x160) != [0xff; 32]
    }

    /// The privilege level that asked; all ones: the host did.
    #[must_use]
    pub fn vmpl(&self) -> u32 {
        self.u32_at(0x30)
    }

    /// Which key signed.
    #[must_use]
    pub fn signing_key(&self) -> SigningKey {
        match self.u32_at(0x48) >> 2 & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            _ => SigningKey::Unknown,
        }
    }

    /// Whether [`Self::author_key_digest`] means something.
    #[must_use]
    pub fn has_author_key(&self) -> bool {
        self.u32_at(0x48) & 1 != 0
    }

    /// What the guest put in.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        self.at(0x50)
    }

    /// The launch digest.
    #[must_use]
    pub fn measurement(&self) -> [u8; 48] {
        self.at(0x90)
    }

    /// What was fixed at launch: the SHA-256 of the policy.
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        self.at(0xc0)
    }

    /// SHA-384 of the key that signed the ID block; zeros without one.
    #[must_use]
    pub fn id_key_digest(&self) -> [u8; 48] {
        self.at(0xe0)
    }

    /// SHA-384 of the key that signed that key.
    #[must_use]
    pub fn author_key_digest(&self) -> [u8; 48] {
        self.at(0x110)
    }

    /// Identity of this guest while it runs.
    #[must_use]
    pub fn report_id(&self) -> [u8; 32] {
        self.at(0x140)
    }

    /// CPUID family and model; reports of version 2 do not say.
    #[must_use]
    pub fn family_and_model(&self) -> Option<(u8, u8)> {
        (self.version() >= 3).then(|| (self.0[0x188], self.0[0x189]))
    }

    /// The chip; zeros where it is masked.
    #[must_use]
    pub fn chip_id(&self) -> [u8; 64] {
        self.at(0x1a0)
    }

    /// The versions that the signing key is derived from.
    #[must_use]
    pub fn reported_tcb(&self, layout: TcbLayout) -> Tcb {
        Tcb::read(self.at(0x180), layout)
    }

    /// All versions that the report names, with what they are called: reported, current, committed, at launch.
    #[must_use]
    pub fn tcbs(&self, layout: TcbLayout) -> [(&'static str, Tcb); 4] {
        [("reported", 0x180), ("current", 0x38), ("committed", 0x1e0), ("launch", 0x1f0)]
            .map(|(name, at)| (name, Tcb::read(self.at(at), layout)))
    }

    /// Whether this key signed it.
    ///
    /// SECURITY (K04): R and S are little-endian and at most 48 bytes long; zero and whatever is not below the curve's order are
    /// refused.
    #[must_use]
    pub fn is_signed_by(&self, key: &p384::ecdsa::VerifyingKey) -> bool {
        let scalar = |at: usize| {
            let field: [u8; SCALAR] = self.at(at);
            let big: [u8; 48] = std::array::from_fn(|i| field[47 - i]);
            field[48..].iter().all(|&byte| byte == 0).then_some(big)
        };
        let (Some(r), Some(s)) = (scalar(SIGNED), scalar(SIGNED + SCALAR)) else { return false };
        Signature::from_scalars(r, s).is_ok_and(|signature| key.verify(&self.0[..SIGNED], &signature).is_ok())
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").field("version", &self.version()).finish_non_exhaustive()
    }
}
