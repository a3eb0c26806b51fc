//! What the judgement promises: attacks K01 to K07 and K11, each beside evidence that passes.

mod common;

use common::{Emulated, MEASUREMENT, POLICY, bundle, expected, vectors};
use parma_kms::bundle::Bundle;
use parma_kms::verify::{
    Check, Checklist, Endorser, Evidence, Expected, Moment, Outcome, ReportData, Roots, RuntimeHash, Tcb,
    from_hex, verify,
};
use parma_psp::{Platform, layout};
use sha2::{Digest as _, Sha256};

#[track_caller]
fn fails_first(list: &Checklist, check: Check) {
    let first = list.first_failure().map(|item| (item.check, item.detail.as_str()));
    assert_eq!(first.map(|(check, _)| check), Some(check), "{first:?}");
    assert!(!list.passed());
}

#[test]
fn an_honest_report_passes_and_the_list_says_that_its_root_is_emulated() {
    for platform in [
        Platform::default(),
        Platform { vlek: true, ..Platform::default() },
        Platform { turin: true, ..Platform::default() },
        Platform { turin: true, vlek: true, ..Platform::default() },
    ] {
        let guest = Emulated::new(platform);
        let list = guest.judge(&guest.psp.report(&[7; 64]), &expected());
        assert!(list.passed(), "{platform:?}: {:?}", list.first_failure());
        assert!(list.emulated);
        assert_eq!(list.items.iter().map(|item| item.check).collect::<Vec<_>>(), Check::ALL);
    }
}

#[test]
fn k06_an_emulated_root_is_not_trusted_unless_that_is_asked_for() {
    let guest = Emulated::new(Platform::default());
    let report = guest.psp.report(&[7; 64]);
    let evidence = Evidence { report: &report, certificates: &guest.certificates, ..Evidence::default() };
    let list = verify(&evidence, &expected(), &Roots::amd(), Moment::now());
    fails_first(&list, Check::Root);
    assert_eq!(list.outcome(Check::Signature), Outcome::Fail, "a sound signature of a stranger");
    assert!(!list.emulated);
    // Nor is another emulated one.
    let other = Emulated::new(Platform::default());
    fails_first(&verify(&evidence, &expected(), &other.roots(), Moment::now()), Check::Root);
}

#[test]
fn k04_wrong_lengths_and_versions_are_no_reports() {
    let guest = Emulated::new(Platform::default());
    let report = guest.psp.report(&[7; 64]);
    for length in [0, 1, 1183] {
        fails_first(&guest.judge(&report[..length], &expected()), Check::Format);
    }
    fails_first(&guest.judge(&[&report[..], &[0]].concat(), &expected()), Check::Format);
    for version in [0, 1, 6, u32::MAX] {
        let mut report = report;
        report[..4].copy_from_slice(&version.to_le_bytes());
        guest.psp.sign(&mut report);
        fails_first(&guest.judge(&report, &expected()), Check::Format);
    }
    // Every version that is known is read by its own layout: version 2 says nothing of the processor.
    for version in 2..=5u32 {
        let mut report = report;
        report[..4].copy_from_slice(&version.to_le_bytes());
        if version == 2 {
            report[0x188..0x18b].fill(0);
        }
        guest.psp.sign(&mut report);
        assert!(guest.judge(&report, &expected()).passed(), "version {version}");
    }
    let mut mixed = report;
    mixed[0x188..0x18b].fill(0);
    guest.psp.sign(&mut mixed);
    fails_first(&guest.judge(&mixed, &expected()), Check::Product);
}

#[test]
fn k04_zero_big_endian_and_oversized_signatures_are_refused() {
    let guest = Emulated::new(Platform::default());
    let report = guest.psp.report(&[7; 64]);
    let signature = layout::SIGNATURE_R.start..layout::SIGNATURE_S.end;
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut report = report;
        change(&mut report[signature.clone()]);
        guest.judge(&report, &expected())
    };
    // The order of P-384, little-endian.
    let mut order: [u8; 48] = from_hex(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    )
    .unwrap();
    order.reverse();
    type Change<'a> = &'a dyn Fn(&mut [u8]);
    let changes: [Change<'_>; 8] = [
        &|s| s.fill(0),
        &|s| s[..72].fill(0),
        &|s| s[72..].fill(0),
        &|s| s[..48].copy_from_slice(&order),
        &|s| s[72..120].copy_from_slice(&order),
        &|s| s[48] = 1,
        &|s| s[..48].reverse(),
        &|s| {
            s[..48].reverse();
            s[72..120].reverse();
        },
    ];
    for change in changes {
        fails_first(&with(change), Check::Signature);
    }
    assert!(with(&|_| ()).passed());
}

#[test]
fn k04_a_report_that_the_host_asked_for_or_another_level_is_refused() {
    let guest = Emulated::new(Platform::default());
    for vmpl in [1u32, 2, 3, 4, u32::MAX] {
        let mut report = guest.psp.report(&[7; 64]);
        report[layout::VMPL..layout::VMPL + 4].copy_from_slice(&vmpl.to_le_bytes());
        guest.psp.sign(&mut report);
        fails_first(&guest.judge(&report, &expected()), Check::Vmpl);
        let under_a_paravisor = Expected { vmpl, ..expected() };
        assert_eq!(guest.judge(&report, &under_a_paravisor).passed(), vmpl <= 3, "{vmpl}");
    }
}

#[test]
fn k05_neither_the_right_guest_nor_the_right_policy_is_enough_alone() {
    let guest = Emulated::new(Platform::default());
    let report = guest.psp.report(&[7; 64]);
    let with = |measurements: &[[u8; 48]], policies: &[[u8; 32]]| {
        let expected = Expected {
            measurements: measurements.to_vec(),
            policies: policies.to_vec(),
            ..Expected::default()
        };
        guest.judge(&report, &expected)
    };
    assert!(with(&[MEASUREMENT], &[POLICY]).passed());
    fails_first(&with(&[[0; 48]], &[POLICY]), Check::Measurement);
    fails_first(&with(&[], &[POLICY]), Check::Measurement);
    fails_first(&with(&[MEASUREMENT], &[[0; 32]]), Check::HostData);
    fails_first(&with(&[MEASUREMENT], &[]), Check::HostData);
}

#[test]
fn a_guest_that_can_be_debugged_or_taken_along_is_refused() {
    for (bit, check) in [(19, Check::Debug), (18, Check::Migration)] {
        let guest =
            Emulated::new(Platform { policy: layout::LAUNCH_POLICY | 1 << bit, ..Platform::default() });
        fails_first(&guest.judge(&guest.psp.report(&[7; 64]), &expected()), check);
    }
    let guest = Emulated::new(Platform::default());
    let mut report = guest.psp.report(&[7; 64]);
    report[layout::REPORT_ID_MA.start] = 0;
    guest.psp.sign(&mut report);
    fails_first(&guest.judge(&report, &expected()), Check::Migration);
}

#[test]
fn k01_a_report_of_a_machine_that_is_not_listed_is_refused() {
    let (guest, other) = (Emulated::new(Platform::default()), Emulated::new(Platform::default()));
    let report = guest.psp.report(&[7; 64]);
    let chip = |report: &[u8]| <[u8; 64]>::try_from(&report[layout::CHIP_ID]).unwrap();
    let only = |chips: Vec<[u8; 64]>| Expected { chips: Some(chips), ..expected() };
    let others = chip(&other.psp.report(&[7; 64]));
    assert!(guest.judge(&report, &only(vec![others, chip(&report)])).passed());
    fails_first(&guest.judge(&report, &only(vec![others])), Check::AllowedChip);
    fails_first(&guest.judge(&report, &only(vec![])), Check::AllowedChip);
}

#[test]
fn k02_k03_report_data_is_the_hash_of_the_very_bytes() {
    let guest = Emulated::new(Platform::default());
    // The same JSON to a parser, other bytes: key order, a blank, an escape.
    let data = br#"{"nonce":"1","key":"a"}"#;
    let others: [&[u8]; 4] = [
        br#"{"key":"a","nonce":"1"}"#,
        br#"{"nonce":"1", "key":"a"}"#,
        br#"{"nonce":"1","key":"\u0061"}"#,
        b"",
    ];
    for hash in [RuntimeHash::Sha256, RuntimeHash::Sha384, RuntimeHash::Sha512] {
        let of = |data: &[u8]| Expected {
            report_data: Some(ReportData::HashOf(hash, data.to_vec())),
            ..expected()
        };
        let report = guest.psp.report(&ReportData::HashOf(hash, data.to_vec()).bytes());
        assert!(guest.judge(&report, &of(data)).passed());
        for other in others {
            fails_first(&guest.judge(&report, &of(other)), Check::ReportData);
        }
    }
    let exactly = Expected { report_data: Some(ReportData::Exactly([8; 64])), ..expected() };
    assert!(guest.judge(&guest.psp.report(&[8; 64]), &exactly).passed());
    fails_first(&guest.judge(&guest.psp.report(&[9; 64]), &exactly), Check::ReportData);
}

#[test]
fn k06_certificates_of_another_chip_firmware_kind_or_root_are_refused() {
    let guest = Emulated::new(Platform::default());
    let report = guest.psp.report(&[7; 64]);
    let judge = |report: &[u8], certificates: &[Vec<u8>]| {
        let evidence = Evidence { report, certificates, ..Evidence::default() };
        verify(&evidence, &expected(), &guest.roots(), Moment::now())
    };
    let with = |change: &dyn Fn(&mut parma_psp::Report)| {
        let mut report = report;
        change(&mut report);
        guest.psp.sign(&mut report);
        judge(&report, &guest.certificates)
    };
    fails_first(&with(&|r| r[layout::CHIP_ID.start + 20] ^= 1), Check::Chip);
    for at in [0, 1, 6, 7] {
        fails_first(&with(&|r| r[layout::REPORTED_TCB.start + at] += 1), Check::Firmware);
    }
    // The report says that another kind of key signed it.
    for info in [1u32 << 2, 2 << 2, 7 << 2] {
        fails_first(&with(&|r| r[layout::KEY_INFO] = info as u8), Check::Chain);
    }
    let other = Emulated::new(Platform::default());
    let [vcek, ask, ark] = &guest.certificates[..] else { panic!() };
    let [other_vcek, other_ask, other_ark] = &other.certificates[..] else { panic!() };
    let mixed = |chain: [&Vec<u8>; 3]| judge(&report, &chain.map(Clone::clone));
    fails_first(&mixed([other_vcek, ask, ark]), Check::Chain);
    fails_first(&mixed([vcek, other_ask, ark]), Check::Chain);
    fails_first(&mixed([vcek, ask, other_ark]), Check::Root);
    fails_first(&judge(&report, &[vcek.clone(), ark.clone()]), Check::Root);
    fails_first(&judge(&report, &[]), Check::Root);
    // In any order, and with strangers among them.
    assert!(judge(&report, &[other_ark, ark, other_ask, other_vcek, ask, vcek].map(Clone::clone)).passed());
}

#[test]
fn k06_a_vlek_under_an_ask_and_a_vcek_under_an_asvk_are_refused() {
    // Each chain is sound by its signatures; what is wrong is who stands where.
    for vlek in [false, true] {
        let guest = Emulated::new(Platform { vlek, misplaced: true, ..Platform::default() });
        fails_first(&guest.judge(&guest.psp.report(&[7; 64]), &expected()), Check::Chain);
    }
}

#[test]
fn k06_a_chain_is_judged_at_the_given_time() {
    let guest = Emulated::new(Platform::default());
    let report = guest.psp.report(&[7; 64]);
    let evidence = Evidence { report: &report, certificates: &guest.certificates, ..Evidence::default() };
    for (moment, good) in [("2020-01-01", false), ("2099-01-01", false)] {
        let list = verify(&evidence, &expected(), &guest.roots(), Moment::parse(moment).unwrap());
        assert_eq!(list.outcome(Check::Validity) == Outcome::Pass, good);
        fails_first(&list, Check::Validity);
    }
}

#[test]
fn k07_a_masked_chip_is_an_explicit_decision() {
    let masked = Platform { masked: true, ..Platform::default() };
    let accepting = Expected { masked_chip: true, ..expected() };
    let vcek = Emulated::new(masked);
    let report = vcek.psp.report(&[7; 64]);
    fails_first(&vcek.judge(&report, &expected()), Check::Chip);
    fails_first(&vcek.judge(&report, &accepting), Check::Chip);
    let vlek = Emulated::new(Platform { vlek: true, ..masked });
    let report = vlek.psp.report(&[7; 64]);
    fails_first(&vlek.judge(&report, &expected()), Check::Chip);
    assert!(vlek.judge(&report, &accepting).passed());
    // Zeros on a list are no chip.
    let listed = Expected { chips: Some(vec![[0; 64]]), ..accepting };
    fails_first(&vlek.judge(&report, &listed), Check::AllowedChip);
}

#[test]
fn firmware_that_is_too_old_is_refused_in_each_of_its_parts() {
    for turin in [false, true] {
        let guest = Emulated::new(Platform { turin, ..Platform::default() });
        let report = guest.psp.report(&[7; 64]);
        let judge = |least: &str| {
            guest.judge(&report, &Expected { minimum_tcb: Some(Tcb::parse(least).unwrap()), ..expected() })
        };
        assert!(judge("bootloader=10,tee=0,snp=24,microcode=84").passed());
        for least in ["bootloader=11", "tee=1", "snp=25", "microcode=85", "fmc=1"] {
            fails_first(&judge(least), Check::MinimumTcb);
        }
    }
    // The host can lower what is reported, not what was committed, was there at launch, or is.
    let guest = Emulated::new(Platform::default());
    for at in [layout::CURRENT_TCB, layout::COMMITTED_TCB, layout::LAUNCH_TCB] {
        let mut report = guest.psp.report(&[7; 64]);
        report[at.start + 6] = 1;
        guest.psp.sign(&mut report);
        let least = Some(Tcb { snp: 24, ..Tcb::default() });
        fails_first(&guest.judge(&report, &Expected { minimum_tcb: least, ..expected() }), Check::MinimumTcb);
    }
}

#[test]
fn k11_an_old_guest_and_a_foreign_id_block_are_refused() {
    let guest = Emulated::new(Platform::default());
    let mut report = guest.psp.report(&[7; 64]);
    report[4] = 9;
    report[0xe0..0x110].fill(1);
    report[0x110..0x140].fill(2);
    guest.psp.sign(&mut report);
    let with = |change: &dyn Fn(&mut Expected)| {
        let mut expected = expected();
        change(&mut expected);
        guest.judge(&report, &expected)
    };
    assert!(with(&|e| e.minimum_guest_svn = Some(9)).passed());
    fails_first(&with(&|e| e.minimum_guest_svn = Some(10)), Check::GuestSvn);
    assert!(with(&|e| e.id_key = Some([1; 48])).passed());
    fails_first(&with(&|e| e.id_key = Some([3; 48])), Check::IdBlock);
    // AUTHOR_KEY_EN is not set: the field means nothing.
    fails_first(&with(&|e| e.author_key = Some([2; 48])), Check::IdBlock);
}

#[test]
fn k04_k06_every_bit_of_an_emulated_report_and_chain_counts_and_fails_on_its_own_item() {
    let guest = Emulated::new(Platform::default());
    let (report, expected, roots) = (guest.psp.report(&[7; 64]), expected(), guest.roots());
    let judge = |report: &[u8], certificates: &[Vec<u8>]| {
        let evidence = Evidence { report, certificates, ..Evidence::default() };
        first_failure(&verify(&evidence, &expected, &roots, Moment::now()))
    };
    every_bit_falls_on(&report, &guest.certificates, judge, |byte, bit| match byte {
        // Version 5 becomes 4, which is read alike, or one that is not known.
        0 if bit == 0 => Check::Signature,
        // The family, and the part of the model that tells products apart.
        0x188 => Check::Product,
        0x189 if bit >= 4 => Check::Product,
        _ => falls_on(byte, bit),
    });
}

// Real evidence.

const MICROSOFT: &str =
    "did:x509:0:sha256:I__iuL25oXEVFdTP_aBLx_eT1RPHbCQ_ECBQfYZpt9s::eku:1.3.6.1.4.1.311.76.59.1.2";

struct Azure {
    report: Vec<u8>,
    bundle: Bundle,
    endorsement: Vec<u8>,
    policy: Vec<u8>,
}

impl Azure {
    fn read() -> Option<Self> {
        use base64::Engine as _;
        let dir = vectors("azure")?;
        let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
        let policy = base64::engine::general_purpose::STANDARD;
        Some(Self {
            report: read("snp_report.bin"),
            bundle: bundle(&[dir.join("uvm_host_amd_certificate.pem")]),
            endorsement: read("body.uvm_reference_info.bin"),
            policy: policy.decode(read("uvm_security_policy.base64").trim_ascii()).unwrap(),
        })
    }

    fn expected(&self) -> Expected {
        Expected {
            policies: vec![Sha256::digest(&self.policy).into()],
            endorser: Some(Endorser {
                issuer: MICROSOFT.into(),
                feed: "ContainerPlat-AMD-UVM".into(),
                minimum_svn: 22,
            }),
            ..Expected::default()
        }
    }

    fn judge(&self, expected: &Expected) -> Checklist {
        let evidence = Evidence {
            report: &self.report,
            certificates: &self.bundle.certificates,
            revocation_lists: &[],
            endorsement: Some(&self.endorsement),
        };
        verify(&evidence, expected, &Roots::amd(), Moment::parse("2023-06-01").unwrap())
    }
}

#[test]
fn azures_evidence_passes_at_its_time() {
    let Some(azure) = Azure::read() else { return };
    let list = azure.judge(&azure.expected());
    assert!(list.passed(), "{:?}", list.first_failure());
    assert!(!list.emulated);
    // The same certificates in the form in which the host hands them out.
    let json = bundle(&[vectors("azure").unwrap().join("uvm_host_amd_certificate.json")]);
    assert_eq!(json.certificates, azure.bundle.certificates);
}

#[test]
fn azures_evidence_fails_on_the_right_item_for_each_change() {
    let Some(azure) = Azure::read() else { return };
    let with = |change: &dyn Fn(&mut Azure, &mut Expected)| {
        let mut changed = Azure::read().unwrap();
        let mut expected = azure.expected();
        change(&mut changed, &mut expected);
        changed.judge(&expected)
    };
    fails_first(&with(&|azure, _| azure.report[0x50] ^= 1), Check::Signature);
    fails_first(&with(&|azure, _| azure.report[0x90] ^= 1), Check::Signature);
    fails_first(&with(&|azure, _| azure.report[0x1a0] ^= 1), Check::Chip);
    fails_first(&with(&|azure, _| azure.report[0x180] ^= 1), Check::Firmware);
    fails_first(&with(&|azure, _| azure.report[0x49f] ^= 1), Check::Format);
    fails_first(
        &with(&|azure, expected| {
            azure.policy[9] ^= 1;
            *expected = azure.expected();
        }),
        Check::HostData,
    );
    fails_first(
        &with(&|_, expected| {
            expected.report_data = Some(ReportData::HashOf(RuntimeHash::Sha256, b"{}".to_vec()))
        }),
        Check::ReportData,
    );
    fails_first(
        &with(&|_, expected| expected.endorser.as_mut().unwrap().minimum_svn = 23),
        Check::Endorsement,
    );
    fails_first(&with(&|_, expected| expected.endorser.as_mut().unwrap().feed.push('x')), Check::Endorsement);
    fails_first(
        &with(&|_, expected| expected.endorser.as_mut().unwrap().issuer.push('x')),
        Check::Endorsement,
    );
    // The header between these is not signed; a receipt stands in it.
    let unsigned = 5075..10302;
    for byte in (0..azure.endorsement.len()).step_by(101).filter(|byte| !unsigned.contains(byte)) {
        let list = with(&|azure, _| azure.endorsement[byte] ^= 1);
        fails_first(&list, Check::Endorsement);
        assert_eq!(list.outcome(Check::Measurement), Outcome::Fail, "byte {byte}");
    }
}

/// Source: CVE-2026-100837, contrast: credentials for `ghcr.io` went to `evilghcr.io`, which ends like it.
#[test]
fn k12_a_name_that_only_begins_or_ends_like_the_expected_one_is_another() {
    let Some(azure) = Azure::read() else { return };
    let (issuer, feed) = (MICROSOFT.to_owned(), "ContainerPlat-AMD-UVM".to_owned());
    let judge = |issuer: &str, feed: &str| {
        let endorser = Endorser { issuer: issuer.into(), feed: feed.into(), minimum_svn: 22 };
        azure.judge(&Expected { endorser: Some(endorser), ..azure.expected() })
    };
    assert!(judge(&issuer, &feed).passed());
    let others = |name: &str| {
        let upper = name.to_uppercase();
        [&name[1..], &name[..name.len() - 1], "", &upper].map(str::to_owned).into_iter().chain([
            format!("evil{name}"),
            format!("{name}.evil"),
            format!("{name} "),
        ])
    };
    for other in others(&issuer) {
        fails_first(&judge(&other, &feed), Check::Endorsement);
    }
    for other in others(&feed) {
        fails_first(&judge(&issuer, &other), Check::Endorsement);
    }
}

fn first_failure(list: &Checklist) -> Option<Check> {
    list.first_failure().map(|item| item.check)
}

/// What a changed bit of a report fails on first, whatever its version.
fn falls_on(byte: usize, bit: usize) -> Check {
    match byte {
        0..4 | 0x34..0x38 | 0x330.. => Check::Format,
        0x48 if (2..5).contains(&bit) => Check::Chain,
        0x180 | 0x181 | 0x186 | 0x187 => Check::Firmware,
        0x1a0..0x1e0 => Check::Chip,
        _ => Check::Signature,
    }
}

/// Changes each bit of evidence that is good, and sees which check is the first to fail: of the report the one that is told, of a
/// certificate the one of the chain's end (it is none any more, or none of these names) or of its signatures.
fn every_bit_falls_on(
    report: &[u8],
    certificates: &[Vec<u8>],
    judge: impl Fn(&[u8], &[Vec<u8>]) -> Option<Check> + Sync,
    falls_on: impl Fn(usize, usize) -> Check + Sync,
) {
    assert_eq!(judge(report, certificates), None);
    every_bit(report.len(), |bit| {
        let first = judge(&flipped(report, bit), certificates);
        assert_eq!(first, Some(falls_on(bit / 8, bit % 8)), "bit {bit} of the report");
    });
    for (at, certificate) in certificates.iter().enumerate() {
        every_bit(certificate.len(), |bit| {
            let mut changed = certificates.to_vec();
            changed[at] = flipped(certificate, bit);
            let first = judge(report, &changed);
            let right = matches!(first, Some(Check::Root | Check::Chain));
            assert!(right, "bit {bit} of certificate {at}: {first:?}");
        });
    }
}

/// Has every bit of so many bytes looked at, by as many threads as there are processors.
fn every_bit(bytes: usize, look: impl Fn(usize) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let look = &look;
            scope.spawn(move || (first..bytes * 8).step_by(threads).for_each(look));
        }
    });
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[bit / 8] ^= 1 << (bit % 8);
    changed
}

impl Azure {
    /// As [`Azure::expected`], the measurement given instead of endorsed, which has its own test and takes most of the time.
    fn measured(&self) -> Expected {
        let measurements = vec![self.report[0x90..0xc0].try_into().unwrap()];
        Expected { measurements, endorser: None, ..self.expected() }
    }

    /// Judges this in place of its own report and certificates.
    fn judge_with(&self, report: &[u8], certificates: &[Vec<u8>], expected: &Expected) -> Option<Check> {
        let evidence = Evidence { report, certificates, ..Evidence::default() };
        first_failure(&verify(&evidence, expected, &Roots::amd(), Moment::parse("2023-06-01").unwrap()))
    }
}

#[test]
fn k04_k06_every_bit_of_azures_report_and_chain_counts_and_fails_on_its_own_item() {
    let Some(azure) = Azure::read() else { return };
    let (expected, certificates) = (azure.measured(), &azure.bundle.certificates);
    let judge = |report: &[u8], certificates: &[Vec<u8>]| azure.judge_with(report, certificates, &expected);
    every_bit_falls_on(&azure.report, certificates, judge, |byte, bit| match byte {
        // Version 2 becomes 3, which says of which processor it is.
        0 if bit == 0 => Check::Product,
        _ => falls_on(byte, bit),
    });
}

#[test]
fn k03_k05_every_bit_of_azures_policy_and_of_runtime_data_counts() {
    let Some(azure) = Azure::read() else { return };
    let certificates = &azure.bundle.certificates;
    every_bit(azure.policy.len(), |bit| {
        let policies = vec![Sha256::digest(flipped(&azure.policy, bit)).into()];
        let expected = Expected { policies, ..azure.measured() };
        assert_eq!(
            azure.judge_with(&azure.report, certificates, &expected),
            Some(Check::HostData),
            "bit {bit}"
        );
    });
    // What the runtime data of this report was is not recorded: that the 64 bytes are its hash is for emulated evidence to show.
    let data = &azure.report[0x50..0x90];
    let judge = |data: Vec<u8>| {
        let report_data = Some(ReportData::Exactly(data.try_into().unwrap()));
        azure.judge_with(&azure.report, certificates, &Expected { report_data, ..azure.measured() })
    };
    assert_eq!(judge(data.to_vec()), None);
    every_bit(data.len(), |bit| assert_eq!(judge(flipped(data, bit)), Some(Check::ReportData), "bit {bit}"));
    let guest = Emulated::new(Platform::default());
    let runtime = br#"{"keys":[]}"#;
    let of = |data: &[u8]| ReportData::HashOf(RuntimeHash::Sha256, data.to_vec());
    let report = guest.psp.report(&of(runtime).bytes());
    every_bit(runtime.len(), |bit| {
        let report_data = Some(of(&flipped(runtime, bit)));
        fails_first(&guest.judge(&report, &Expected { report_data, ..expected() }), Check::ReportData);
    });
}

#[test]
fn k06_trustees_report_passes_with_its_certificate_and_with_none_of_the_invalid_ones() {
    use sev::certs::snp::builtin::milan;
    let Some(dir) = vectors("trustee") else { return };
    let report = std::fs::read(dir.join("test-report.bin")).unwrap();
    let authorities = || {
        let mut authorities = Bundle::default();
        authorities.add(milan::ASK).unwrap();
        authorities.add(milan::ARK).unwrap();
        authorities.certificates
    };
    let measurement = report[0x90..0xc0].try_into().unwrap();
    let expected =
        Expected { measurements: vec![measurement], policies: vec![[0; 32]], ..Expected::default() };
    let judge = |name: &str, at: &str| {
        let mut certificates = authorities();
        certificates.push(std::fs::read(dir.join(name)).unwrap());
        let evidence = Evidence { report: &report, certificates: &certificates, ..Evidence::default() };
        verify(&evidence, &expected, &Roots::amd(), Moment::parse(at).unwrap())
    };
    let good = judge("test-vcek.der", "2024-01-01");
    assert!(good.passed(), "{:?}", good.first_failure());
    assert!(!good.emulated);
    fails_first(&judge("test-vcek.der", "2030-02-01"), Check::Validity);
    // Both are certificates of AMD's form that no ASK has signed.
    for invalid in ["test-vcek-invalid-new.der", "test-vcek-invalid-legacy.der"] {
        let list = judge(invalid, "2024-01-01");
        fails_first(&list, Check::Chain);
        assert_eq!(list.outcome(Check::Signature), Outcome::Fail, "{invalid}");
    }
}

#[test]
fn amds_roots_are_those_that_the_sev_crate_has() {
    use sev::certs::snp::builtin::{genoa, milan, turin};
    let guest = Emulated::new(Platform::default());
    let report = guest.psp.report(&[7; 64]);
    for (ark, ask) in [(milan::ARK, milan::ASK), (genoa::ARK, genoa::ASK), (turin::ARK, turin::ASK)] {
        let mut bundle = Bundle::default();
        bundle.add(ark).unwrap();
        bundle.add(ask).unwrap();
        // With a leaf of somebody else's, the chain is found up to the root only if the names fit: here they do not.
        bundle.certificates.push(guest.certificates[0].clone());
        let evidence =
            Evidence { report: &report, certificates: &bundle.certificates, ..Evidence::default() };
        fails_first(&verify(&evidence, &expected(), &Roots::amd(), Moment::now()), Check::Root);
        let [ark, ask] =
            [0, 1].map(|at| parma_kms::verify::Certificate::read(&bundle.certificates[at]).unwrap());
        assert!(ark.issued(&ark) && ark.issued(&ask));
        assert!(Roots::amd().trusts(&ark) && !Roots::amd().trusts(&ask));
    }
}
