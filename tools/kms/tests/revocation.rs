//! Revocation lists (K06): what revokes, what clears, and what does neither. AMD's are of the ARK; those of the ASK are taken, too.

mod common;

use common::{Emulated, expected};
use parma_kms::verify::{Check, Checklist, Evidence, Expected, Moment, Outcome, verify};
use parma_psp::{Link, Platform, Revocations};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

struct Stage {
    guest: Emulated,
    report: parma_psp::Report,
}

impl Stage {
    fn new(platform: Platform) -> Self {
        let guest = Emulated::new(platform);
        let report = guest.psp.report(&[7; 64]);
        Self { guest, report }
    }

    /// A list of today, of and by this authority.
    fn list(&self, authority: Link, revoked: &[Link]) -> Vec<u8> {
        let now = SystemTime::now();
        self.signed(&Revocations {
            issuer: authority,
            signer: authority,
            revoked,
            life: (now - DAY, now + DAY),
        })
    }

    fn signed(&self, revocations: &Revocations<'_>) -> Vec<u8> {
        self.guest.psp.revoke(revocations).unwrap()
    }

    fn judge(&self, lists: &[Vec<u8>], required: bool) -> Checklist {
        let evidence = Evidence {
            report: &self.report,
            certificates: &self.guest.certificates,
            revocation_lists: lists,
            endorsement: None,
        };
        let expected = Expected { revocation_required: required, ..expected() };
        verify(&evidence, &expected, &self.guest.roots(), Moment::now())
    }

    #[track_caller]
    fn fails(&self, lists: &[Vec<u8>], required: bool, why: &str) {
        let list = self.judge(lists, required);
        let first = list.first_failure().unwrap();
        assert_eq!((first.check, first.detail.as_str()), (Check::Revocation, why));
        assert!(!list.passed());
    }
}

#[test]
fn k06_lists_that_name_nobody_of_the_chain_clear_it_and_without_any_that_is_only_enough_if_none_is_required()
{
    let stage = Stage::new(Platform::default());
    for lists in
        [vec![stage.list(Link::Ark, &[])], vec![stage.list(Link::Ark, &[]), stage.list(Link::Ask, &[])]]
    {
        for required in [false, true] {
            let list = stage.judge(&lists, required);
            assert!(list.passed(), "{:?}", list.first_failure());
            assert_eq!(list.outcome(Check::Revocation), Outcome::Pass);
        }
    }
    assert_eq!(stage.judge(&[], false).outcome(Check::Revocation), Outcome::NotAsked);
    stage.fails(&[], true, "there is no revocation list of this chain");
}

#[test]
fn k06_a_revoked_vcek_vlek_ask_or_ark_is_refused_whether_lists_are_required_or_not() {
    for (vlek, leaf, middle) in [(false, "VCEK", "ASK"), (true, "VLEK", "ASVK")] {
        let stage = Stage::new(Platform { vlek, ..Platform::default() });
        for required in [false, true] {
            stage.fails(
                &[stage.list(Link::Ark, &[Link::Ask])],
                required,
                &format!("the {middle} is revoked"),
            );
            stage.fails(&[stage.list(Link::Ask, &[Link::Leaf])], required, &format!("the {leaf} is revoked"));
            stage.fails(&[stage.list(Link::Ark, &[Link::Ark])], required, "the ARK is revoked");
            // Among others that clear it.
            let lists = [stage.list(Link::Ark, &[]), stage.list(Link::Ask, &[Link::Leaf])];
            stage.fails(&lists, required, &format!("the {leaf} is revoked"));
        }
    }
}

#[test]
fn k06_an_authority_revokes_what_it_issued_and_nothing_else() {
    let stage = Stage::new(Platform::default());
    // Serial numbers are each issuer's own.
    let lists = [stage.list(Link::Ark, &[Link::Leaf]), stage.list(Link::Ask, &[Link::Ask, Link::Ark])];
    let list = stage.judge(&lists, true);
    assert!(list.passed(), "{:?}", list.first_failure());
}

#[test]
fn k06_a_list_of_another_time_still_revokes_and_clears_nobody() {
    let stage = Stage::new(Platform::default());
    let now = SystemTime::now();
    for life in [(now - 3 * DAY, now - 2 * DAY), (now + 2 * DAY, now + 3 * DAY)] {
        let list = |revoked: &[Link]| {
            stage.signed(&Revocations { issuer: Link::Ark, signer: Link::Ark, revoked, life })
        };
        stage.fails(&[list(&[])], true, "revocation list 1 is not of this time");
        stage.fails(&[list(&[Link::Ask])], false, "the ASK is revoked");
        assert_eq!(stage.judge(&[list(&[])], false).outcome(Check::Revocation), Outcome::NotAsked);
    }
}

#[test]
fn k06_a_list_of_a_stranger_or_that_its_issuer_did_not_sign_clears_nobody() {
    let (stage, other) = (Stage::new(Platform::default()), Stage::new(Platform::default()));
    let now = SystemTime::now();
    let life = (now - DAY, now + DAY);
    let forged = stage.signed(&Revocations { issuer: Link::Ark, signer: Link::Ask, revoked: &[], life });
    let unsigned = "revocation list 1 is not signed by its issuer";
    stage.fails(&[forged], true, unsigned);
    // A stranger of the same name.
    stage.fails(&[other.list(Link::Ark, &[])], true, unsigned);
    // One of another name says nothing about this chain.
    let vlek = Stage::new(Platform { vlek: true, ..Platform::default() });
    stage.fails(&[vlek.list(Link::Ask, &[])], true, "there is no revocation list of this chain");
    assert_eq!(
        stage.judge(&[vlek.list(Link::Ask, &[])], false).outcome(Check::Revocation),
        Outcome::NotAsked
    );
}

#[test]
fn k06_every_bit_of_a_list_counts_and_none_of_them_takes_a_revocation_away() {
    let stage = Stage::new(Platform::default());
    let list = stage.list(Link::Ark, &[Link::Ask]);
    for bit in 0..list.len() * 8 {
        let mut changed = list.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(!stage.judge(&[changed], true).passed(), "bit {bit}");
    }
    for length in 0..list.len() {
        assert!(!stage.judge(&[list[..length].to_vec()], false).passed(), "{length} bytes");
    }
}
