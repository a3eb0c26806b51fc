//! What the emulated PSP's reports promise, and that others read them the same way.

use parma_psp::{Chain, HostData, Measurement, Platform, Psp, Report, Root, layout, verify};
use sev::certs::snp::{Certificate, Verifiable as _};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser as _;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use x509_cert::der::Encode as _;

const HOST_DATA: HostData = HostData([0x1D; 32]);
const MEASUREMENT: Measurement = Measurement([0x3E; 48]);

fn psp() -> Psp {
    Psp::new(HOST_DATA, MEASUREMENT).unwrap()
}

#[test]
fn the_sev_crate_reads_every_field_as_it_was_set() {
    let report = psp().report(&[0x5A; 64]);
    let parsed = AttestationReport::from_bytes(&report).unwrap();
    assert_eq!(parsed.version, 5);
    assert_eq!(parsed.report_data, [0x5A; 64]);
    assert_eq!((parsed.host_data, parsed.measurement), (HOST_DATA.0, MEASUREMENT.0));
    assert_eq!((parsed.vmpl, parsed.sig_algo), (0, 1));
    assert!(!parsed.policy.debug_allowed() && !parsed.policy.migrate_ma_allowed());
    assert!(parsed.plat_info.alias_check_complete());
    assert_eq!((parsed.cpuid_fam_id, parsed.cpuid_mod_id), (Some(0x19), Some(0x11)));
    assert!(parsed.chip_id.starts_with(layout::EMULATED));
    assert_eq!(parsed.reported_tcb, parsed.current_tcb);
    assert_eq!((parsed.reported_tcb.snp, parsed.reported_tcb.microcode), (24, 84));
    assert_eq!(parsed.to_bytes().unwrap().as_slice(), &report[..], "no bit outside the fields it knows");
}

#[test]
fn the_sev_crate_accepts_the_signature_and_refuses_a_changed_report() {
    let psp = psp();
    let vcek = Certificate::from_der(&psp.chain().vcek.to_der().unwrap()).unwrap();
    let mut report = psp.report(&[1; 64]);
    (&vcek, &AttestationReport::from_bytes(&report).unwrap()).verify().unwrap();
    report[layout::HOST_DATA.start] ^= 1;
    assert!((&vcek, &AttestationReport::from_bytes(&report).unwrap()).verify().is_err());
}

#[test]
fn a_report_verifies_with_its_own_chain_only() {
    let (ours, other) = (psp(), psp());
    let report = ours.report(&[2; 64]);
    verify(&report, ours.chain()).unwrap();
    assert!(verify(&report, other.chain()).is_err());
}

#[test]
fn a_chain_with_one_foreign_certificate_is_refused() {
    let (ours, other) = (psp(), psp());
    let report = ours.report(&[2; 64]);
    let mixed = |change: fn(&mut Chain, &Chain)| {
        let mut chain = ours.chain().clone();
        change(&mut chain, other.chain());
        verify(&report, &chain).is_err()
    };
    assert!(mixed(|chain, foreign| chain.ark = foreign.ark.clone()));
    assert!(mixed(|chain, foreign| chain.ask = foreign.ask.clone()));
    assert!(mixed(|chain, foreign| chain.vcek = foreign.vcek.clone()));
}

#[test]
fn a_flipped_bit_of_the_signed_part_and_of_the_signature_is_refused() {
    let psp = psp();
    let report = psp.report(&[3; 64]);
    // Not every byte, because each check is slow without optimisation.
    for at in (0..layout::SIGNATURE_S.end).step_by(24) {
        let mut changed: Report = report;
        changed[at] ^= 1 << (at / 24 % 8);
        assert!(verify(&changed, psp.chain()).is_err(), "bit in byte {at:#x}");
    }
}

#[test]
fn every_certificate_says_that_it_is_emulated() {
    let psp = psp();
    let chain = psp.chain();
    for certificate in [&chain.ark, &chain.ask, &chain.vcek] {
        let subject = certificate.tbs_certificate().subject().to_string();
        assert!(subject.contains("EMULATED") && subject.contains("no hardware"), "{subject}");
    }
}

#[test]
fn a_chain_survives_pem() {
    let psp = psp();
    let pem = psp.chain().to_pem().unwrap();
    assert_eq!(&Chain::from_pem(&pem).unwrap(), psp.chain());
    assert!(Chain::from_pem(&pem.repeat(2)).is_err());
    assert!(Chain::from_pem("").is_err());
}

#[test]
fn the_socket_answers_64_bytes_with_a_report_and_survives_a_short_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("psp");
    let listener = UnixListener::bind(&path).unwrap();
    let psp = psp();
    let psp = &psp;
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| psp.serve(&listener, || {}));
        let ask = |request: &[u8]| {
            let mut connection = UnixStream::connect(&path).unwrap();
            connection.write_all(request).unwrap();
            connection.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            connection.read_to_end(&mut answer).unwrap();
            answer
        };
        assert_eq!(ask(&[7; 63]), b"");
        let report: Report = ask(&[7; 64]).try_into().unwrap();
        assert_eq!(report[layout::REPORT_DATA], [7; 64]);
        verify(&report, psp.chain()).unwrap();
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn a_kept_root_is_the_same_for_every_guest_and_its_key_is_its_owners() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("psp");
    let first = Root::kept(&dir).unwrap();
    let second = Root::kept(&dir).unwrap();
    let guest = |root: &Root, host_data| {
        Psp::under(root, &Platform::default(), HostData(host_data), MEASUREMENT).unwrap()
    };
    let (one, other) = (guest(&first, [1; 32]), guest(&second, [2; 32]));
    assert_eq!(one.chain().ark, other.chain().ark);
    let chip = |psp: &Psp| psp.report(&[0; 64])[layout::CHIP_ID].to_vec();
    assert_eq!(chip(&one), chip(&other));
    verify(&other.report(&[5; 64]), other.chain()).unwrap();
    assert!(verify(&other.report(&[5; 64]), one.chain()).is_err(), "each guest has a key of its own");
    // What relying parties are given has no key in it.
    let public = std::fs::read_to_string(dir.join(parma_psp::CERTIFICATE)).unwrap();
    assert_eq!(public, first.certificate_pem().unwrap());
    assert!(!public.contains("KEY"));
    let kept = dir.join("psp.pem");
    let mode = |mode| std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    mode(0o640);
    assert!(Root::kept(&dir).err().unwrap().to_string().contains("chmod 600"));
    mode(0o600);
    // Another root's certificate, or none.
    let text = std::fs::read_to_string(&kept).unwrap();
    let own = Root::new().unwrap().certificate_pem().unwrap();
    let key = text.split_once("-----BEGIN CERTIFICATE").unwrap().0.to_owned();
    for content in [key.clone() + &own, key, own, String::new()] {
        std::fs::write(&kept, content).unwrap();
        assert!(Root::kept(&dir).is_err());
    }
}
