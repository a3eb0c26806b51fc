//! Evidence to judge: of an emulated PSP, which can be bent at will, and real one, where the vectors are there.
#![allow(dead_code, reason = "each test file uses its part")]

use parma_kms::bundle::Bundle;
use parma_kms::verify::{Checklist, Evidence, Expected, Moment, Roots, verify};
use parma_psp::{Chain, HostData, Measurement, Platform, Psp};
use std::path::{Path, PathBuf};
use x509_cert::Certificate;
use x509_cert::der::Encode as _;

pub const POLICY: [u8; 32] = [0x1d; 32];
pub const MEASUREMENT: [u8; 48] = [0x3e; 48];

pub struct Emulated {
    pub psp: Psp,
    pub certificates: Vec<Vec<u8>>,
}

pub fn der(certificate: &Certificate) -> Vec<u8> {
    certificate.to_der().unwrap()
}

pub fn chain(chain: &Chain) -> Vec<Vec<u8>> {
    vec![der(&chain.vcek), der(&chain.ask), der(&chain.ark)]
}

impl Emulated {
    pub fn new(platform: Platform) -> Self {
        let psp = Psp::on(&platform, HostData(POLICY), Measurement(MEASUREMENT)).unwrap();
        let certificates = chain(psp.chain());
        Self { psp, certificates }
    }

    pub fn roots(&self) -> Roots {
        Roots::amd().with_emulated(&self.certificates[2]).unwrap()
    }

    pub fn judge(&self, report: &[u8], expected: &Expected) -> Checklist {
        let evidence = Evidence { report, certificates: &self.certificates, ..Evidence::default() };
        verify(&evidence, expected, &self.roots(), Moment::now())
    }
}

pub fn expected() -> Expected {
    Expected { measurements: vec![MEASUREMENT], policies: vec![POLICY], ..Expected::default() }
}

/// The directory of real evidence, if it is there.
pub fn vectors(which: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/snp").join(which);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: no evidence in {}", path.display());
    None
}

pub fn bundle(files: &[PathBuf]) -> Bundle {
    let mut bundle = Bundle::default();
    for file in files {
        bundle.add(&std::fs::read(file).unwrap()).unwrap();
    }
    bundle
}
