//! Where the fields of an attestation report are: SNP firmware ABI (56860), table 23, version 5 of the report.

use std::ops::Range;

/// Bytes of a report.
pub const LENGTH: usize = 0x4A0;
/// u32: version of the layout.
pub const VERSION: usize = 0x00;
/// u64: the guest's launch policy.
pub const POLICY: usize = 0x08;
/// u32: the privilege level that asked.
pub const VMPL: usize = 0x30;
/// u32: how the report is signed.
pub const SIGNATURE_ALGORITHM: usize = 0x34;
/// The firmware versions in force.
pub const CURRENT_TCB: Range<usize> = 0x38..0x40;
/// u64: what the platform has switched on.
pub const PLATFORM_INFO: usize = 0x40;
/// u32: which key signs: bits 2 to 4, 0 for a VCEK, 1 for a VLEK.
pub const KEY_INFO: usize = 0x48;
/// What the guest put in.
pub const REPORT_DATA: Range<usize> = 0x50..0x90;
/// What was launched.
pub const MEASUREMENT: Range<usize> = 0x90..0xC0;
/// What the host vouched for at launch.
pub const HOST_DATA: Range<usize> = 0xC0..0xE0;
/// Identity of this guest.
pub const REPORT_ID: Range<usize> = 0x140..0x160;
/// Identity of its migration agent; all ones: it has none.
pub const REPORT_ID_MA: Range<usize> = 0x160..0x180;
/// The firmware versions that the signing key is derived from.
pub const REPORTED_TCB: Range<usize> = 0x180..0x188;
/// CPUID family, model and stepping, a byte each.
pub const CPUID: Range<usize> = 0x188..0x18B;
/// Identity of the chip.
pub const CHIP_ID: Range<usize> = 0x1A0..0x1E0;
/// The firmware versions below which it will not go back.
pub const COMMITTED_TCB: Range<usize> = 0x1E0..0x1E8;
/// Build, minor and major of the firmware in force, and a reserved byte.
pub const CURRENT_VERSION: Range<usize> = 0x1E8..0x1EC;
/// The same of the committed firmware.
pub const COMMITTED_VERSION: Range<usize> = 0x1EC..0x1F0;
/// The firmware versions at launch.
pub const LAUNCH_TCB: Range<usize> = 0x1F0..0x1F8;
/// What the signature covers.
pub const SIGNED: Range<usize> = 0..0x2A0;
/// R of the signature, little-endian.
pub const SIGNATURE_R: Range<usize> = 0x2A0..0x2E8;
/// S of the signature, little-endian.
pub const SIGNATURE_S: Range<usize> = 0x2E8..0x330;

/// The version of the reports made here.
pub const REPORT_VERSION: u32 = 5;
/// The value of [`SIGNATURE_ALGORITHM`] for ECDSA P-384 with SHA-384.
pub const ECDSA_P384_SHA384: u32 = 1;
/// What every emulated chip id begins with.
pub const EMULATED: &[u8] = b"PARMA-EMULATED-PSP";

/// SMT allowed (bit 16); bit 17 is reserved and one; no debugging, no migration.
pub const LAUNCH_POLICY: u64 = 0x3_0000;
/// The bit of the launch policy that lets the host debug the guest.
pub const POLICY_DEBUG: u64 = 1 << 19;
/// SMT on (0), ECC memory (2), memory checked for aliases (5).
const PLATFORM: u64 = 0b10_0101;
/// EPYC 9004 ("Genoa"): family 0x19, model 0x11, stepping 1.
const GENOA: [u8; 3] = [0x19, 0x11, 0x01];
/// EPYC 9005 ("Turin").
const TURIN: [u8; 3] = [0x1a, 0x02, 0x01];
/// Firmware 1.58, build 1.
const FIRMWARE: [u8; 4] = [1, 58, 1, 0];

/// The firmware versions of an emulated chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcb {
    /// Boot loader.
    pub bootloader: u8,
    /// TEE operating system.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

/// Numbers as a Genoa of today has them.
pub const TCB: Tcb = Tcb { bootloader: 10, tee: 0, snp: 24, microcode: 84 };

/// What an emulated processor is like, and how it launches its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Its firmware.
    pub tcb: Tcb,
    /// The guest's launch policy.
    pub policy: u64,
    /// It says that it is a Turin, with that layout of versions and an FMC of 0, instead of a Genoa.
    pub turin: bool,
    /// A provider's key (VLEK) signs reports instead of the chip's (VCEK).
    pub vlek: bool,
    /// Reports do not say which chip made them.
    pub masked: bool,
    /// The authority of the other kind of key has issued the key's certificate.
    pub misplaced: bool,
}

impl Default for Platform {
    fn default() -> Self {
        Self { tcb: TCB, policy: LAUNCH_POLICY, turin: false, vlek: false, masked: false, misplaced: false }
    }
}

impl Platform {
    /// TCB_VERSION (56860, table 3).
    fn tcb_bytes(&self) -> [u8; 8] {
        let Tcb { bootloader, tee, snp, microcode } = self.tcb;
        if self.turin {
            [0, bootloader, tee, snp, 0, 0, 0, microcode]
        } else {
            [bootloader, tee, 0, 0, 0, 0, snp, microcode]
        }
    }
}

/// Everything but what differs from launch to launch and from report to report.
pub(crate) fn fill(report: &mut [u8; LENGTH], platform: &Platform, chip_id: &[u8; 64], report_id: &[u8; 32]) {
    let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
    put(VERSION, &REPORT_VERSION.to_le_bytes());
    put(POLICY, &platform.policy.to_le_bytes());
    put(SIGNATURE_ALGORITHM, &ECDSA_P384_SHA384.to_le_bytes());
    put(PLATFORM_INFO, &PLATFORM.to_le_bytes());
    put(KEY_INFO, &(u32::from(platform.vlek) << 2).to_le_bytes());
    put(REPORT_ID.start, report_id);
    put(REPORT_ID_MA.start, &[0xFF; 32]);
    put(CPUID.start, if platform.turin { &TURIN } else { &GENOA });
    if !platform.masked {
        put(CHIP_ID.start, chip_id);
    }
    for field in [CURRENT_TCB, REPORTED_TCB, COMMITTED_TCB, LAUNCH_TCB] {
        put(field.start, &platform.tcb_bytes());
    }
    for field in [CURRENT_VERSION, COMMITTED_VERSION] {
        put(field.start, &FIRMWARE);
    }
}

/// The number at this offset, which lies inside every report.
pub(crate) fn u32_at(report: &[u8; LENGTH], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| report[at + i]))
}

/// The big-endian scalar of a signature's field, if it has no more than 48 bytes.
pub(crate) fn scalar(field: &[u8]) -> Option<[u8; 48]> {
    let (low, high) = field.split_at_checked(48)?;
    let mut scalar: [u8; 48] = low.try_into().ok()?;
    scalar.reverse();
    high.iter().all(|&byte| byte == 0).then_some(scalar)
}
