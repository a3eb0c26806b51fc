//! Fragments as a hostile host may send them: attacks F01 to F06 and F08 on the guest's own gate, with the real
//! framework and real signatures, without a machine around it. `policy_attacks.rs` sends some over the wire.

#[path = "support/signer.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod signer;

use parma::fragment::issuer_of;
use parma_guest::fragment::{CONTENT_TYPE, Problem, verify};
use parma_guest::gate::Gate;
use parma_guest::gate::action::*;
use parma_guest::gate::fields::{ContainerId, UserSpec};
use parma_guest::gate::fragment::{MAX_FRAGMENTS, MAX_PARAMETERS};
use parma_guest::policy::Reason as Check;
use parma_guest::wire::{
    Capabilities, Denied, Field, List, Process, Reason, Refusal, Reply, Request, Stdio, Usage,
};
use parma_policy::fragment::compile_fragment;
use parma_policy::{Inputs, compile};
use signer::*;

const FEED: &str = "example.com/tools";

/// A kernel that does everything.
struct Willing;

impl Actor for Willing {
    fn mount_device(&mut self, _: Permit<MountDevice>) -> Result<(), ActError> {
        Ok(())
    }
    fn unmount_device(&mut self, _: Permit<UnmountDevice>) -> Result<(), ActError> {
        Ok(())
    }
    fn mount_scratch(&mut self, _: Permit<MountScratch>) -> Result<(), ActError> {
        Ok(())
    }
    fn unmount_scratch(&mut self, _: Permit<UnmountScratch>) -> Result<(), ActError> {
        Ok(())
    }
    fn endorse(&mut self, _: Permit<Endorse<'_>>) -> Result<(), ActError> {
        Ok(())
    }
    fn deliver_secret(&mut self, _: Permit<DeliverSecret<'_>>) -> Result<(), ActError> {
        Ok(())
    }
    fn mount_volume(&mut self, _: Permit<MountVolume>) -> Result<u64, ActError> {
        Ok(1)
    }
    fn keep_key(&mut self, _: Permit<KeepKey>) -> Result<(), ActError> {
        Ok(())
    }
    fn random(&self) -> Result<[u8; 32], ActError> {
        Ok([1; 32])
    }
    fn report(&self, _: &[u8; 64]) -> Result<[u8; 1184], ActError> {
        Ok([0; 1184])
    }
    fn unmount_volume(&mut self, _: Permit<UnmountVolume>) -> Result<(), ActError> {
        Ok(())
    }
    fn mount_overlay(&mut self, _: Permit<MountOverlay>) -> Result<(), ActError> {
        Ok(())
    }
    fn unmount_overlay(&mut self, _: Permit<UnmountOverlay>) -> Result<(), ActError> {
        Ok(())
    }
    fn create_container(&mut self, _: Permit<CreateContainer<'_>>) -> Result<(), ActError> {
        Ok(())
    }
    fn exec_in_container(&mut self, _: Permit<ExecInContainer<'_>>) -> Result<(), ActError> {
        Ok(())
    }
    fn signal_process(&mut self, _: Permit<SignalProcess>) -> Result<(), ActError> {
        Ok(())
    }
    fn resize_terminal(&mut self, _: Permit<ResizeTerminal>) -> Result<(), ActError> {
        Ok(())
    }
    fn shutdown_container(&mut self, _: Permit<ShutdownContainer>) -> Result<(), ActError> {
        Ok(())
    }
    fn update_container(&mut self, _: Permit<UpdateContainer>) -> Result<(), ActError> {
        Ok(())
    }
    fn usage(&mut self, _: Permit<GetUsage>) -> Result<Usage, ActError> {
        Ok(Usage::default())
    }
    fn forget(&mut self, _: ProcessId) {}
    fn set_logging(&mut self, _: Permit<SetLogging>) -> Result<(), ActError> {
        Ok(())
    }
    fn set_up_network(&mut self, _: Permit<SetUpNetwork<'_>>) -> Result<(), ActError> {
        Ok(())
    }
    fn exec_external(&mut self, _: Permit<ExecExternal<'_>>) -> Result<(), ActError> {
        Ok(())
    }
    fn dump_stack(&self, _: Permit<DumpStack>) -> Result<Option<u8>, ActError> {
        Ok(None)
    }
    fn resolve_user(&self, _: &ContainerId, _: UserSpec<'_>) -> Result<User, ActError> {
        Ok(User { uid: 0, name: "root".into(), groups: Vec::new() })
    }
}

struct Guest(Gate);

impl Guest {
    /// A guest under a policy.
    fn new(policy: &str) -> Self {
        let compiled =
            compile(&Inputs::policy("policy.rego", policy)).unwrap_or_else(|e| panic!("{e}\n{policy}"));
        let mut gate = Gate::new(compiled.host_data(), b"report");
        gate.serve(&mut Willing, &Request::SetPolicy { image: &compiled.image }, &[]).unwrap();
        Self(gate)
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<(), Reason> {
        self.0
            .serve(&mut Willing, request, &[])
            .map(|_: Reply<'_>| ())
            .map_err(|refusal: Refusal| refusal.reason)
    }

    fn load(&mut self, envelope: &[u8]) -> Result<(), Reason> {
        self.ask(&Request::LoadFragment { envelope })
    }

    fn mount(&mut self, layer: u8) -> Result<(), Reason> {
        let device = format!("disk{layer}");
        self.ask(&Request::MountDevice { device: &device, root_hash: [layer; 32], data_blocks: 10 })
    }

    /// The whole way to a container of one layer.
    fn run(&mut self, layer: u8, id: char, args: &[&str], env: &[&str]) -> Result<(), Reason> {
        self.mount(layer)?;
        self.create(layer, id, args, env)
    }

    fn create(&mut self, layer: u8, id: char, args: &[&str], env: &[&str]) -> Result<(), Reason> {
        let (device, container) = (format!("disk{layer}"), id.to_string().repeat(64));
        let layers = List::from_vec(vec![device.as_str()]).unwrap();
        self.ask(&Request::MountOverlay { container: &container, layers, scratch: None })?;
        let process = Process {
            args: List::from_vec(args.to_vec()).unwrap(),
            env: List::from_vec(env.to_vec()).unwrap(),
            working_dir: "/",
            user: "",
            umask: 0o22,
            capabilities: Capabilities::default(),
            no_new_privileges: true,
            stdio: Stdio::default(),
        };
        self.ask(&Request::CreateContainer {
            container: &container,
            privileged: false,
            mounts: List::new(),
            seccomp: None,
            process,
        })
    }

    fn shut_down(&mut self, id: char) -> Result<(), Reason> {
        self.ask(&Request::ShutdownContainer { container: &id.to_string().repeat(64) })
    }
}

/// An entry of one layer: `/bin/NAME`, and LEVEL as this pattern.
fn container(name: &str, layer: u8, level: &str, more: &str) -> String {
    let hash = format!("{layer:02x}").repeat(32);
    let none = r#"{"bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": []}"#;
    format!(
        r#"{{"name": "{name}", "command": ["/bin/{name}"], "layers": ["{hash}"], "mounts": [], "exec_processes": [],
        "env_rules": [{{"pattern": "LEVEL={level}", "strategy": "re2", "required": false}}], "signals": [15],
        "user": {{"umask": "0022", "user_idname": {{"pattern": "0", "strategy": "id"}}, "group_idnames": []}},
        "capabilities": {none}, "seccomp_profile_sha256": "", "allow_elevated": false, "working_dir": "/",
        "allow_stdio_access": false, "no_new_privileges": true{more}}}"#
    )
}

/// A policy with one container of its own, of layer 1, and these fragments.
fn policy(fragments: &str) -> String {
    policy_of(&container("own", 1, "[0-3]", ""), fragments)
}

fn policy_of(containers: &str, fragments: &str) -> String {
    let points = [
        "load_fragment",
        "mount_device",
        "mount_overlay",
        "create_container",
        "shutdown_container",
        "scratch_mount",
        "scratch_unmount",
    ];
    let aliases: String = points.iter().map(|point| format!("{point} := data.framework.{point}\n")).collect();
    format!(
        "package policy\n\napi_version := \"0.12.0\"\nframework_version := \"0.5.0\"\nallow_memory_scratch := true\ncontainers := [{containers}]\n\
         fragments := [{fragments}]\n{aliases}reason := data.framework.reason\n"
    )
}

/// What a policy says of the honest signer's fragments of this feed.
fn named(feed: &str, minimum: &str, includes: &str) -> String {
    let issuer = issuer();
    format!(
        r#"{{"issuer": "{issuer}", "feed": "{feed}", "minimum_svn": "{minimum}", "includes": {includes}}}"#
    )
}

fn issuer() -> String {
    issuer_of(&chain()).unwrap()
}

/// A fragment with one container, of layer 7.
fn source() -> String {
    fragment(&container("tool", 7, "[4-6]", ""))
}

fn fragment(containers: &str) -> String {
    format!("package fragment\n\nframework_version := \"0.5.0\"\n\ncontainers := [{containers}]\n")
}

fn image(source: &str) -> Vec<u8> {
    compile_fragment("fragment.rego", source).unwrap_or_else(|error| panic!("{error}\n{source}")).image
}

fn honest(feed: &str, svn: u32, source: &str) -> Vec<u8> {
    Message::new(&chain(), &issuer(), feed, int(svn.into()), &image(source)).signed()
}

fn problem(problem: Problem) -> Result<(), Reason> {
    Err(Reason::Fragment { problem })
}

/// The checks that a denial names.
fn denied(result: Result<(), Reason>) -> Vec<Check> {
    match result {
        Err(Reason::Denied { how: Denied::No, failed, .. }) => failed.into_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fragments_container_runs_by_its_own_entry_and_its_own_patterns() {
    let mut guest = Guest::new(&policy(&named(FEED, "2", r#"["containers"]"#)));
    assert_eq!(denied(guest.mount(7)), [Check::InvalidDeviceHash]);
    guest.load(&honest(FEED, 2, &source())).unwrap();
    guest.run(7, 'a', &["/bin/tool"], &["LEVEL=5"]).unwrap();
    // The policy's pattern is not the fragment's, nor the reverse.
    assert_eq!(denied(guest.create(7, 'b', &["/bin/tool"], &["LEVEL=2"])), [Check::InvalidEnvironment]);
    guest.run(1, 'c', &["/bin/own"], &["LEVEL=2"]).unwrap();
    assert_eq!(denied(guest.create(1, 'd', &["/bin/own"], &["LEVEL=5"])), [Check::InvalidEnvironment]);
}

#[test]
fn what_parma_fragment_sign_makes_is_accepted() {
    let key = parma::fragment::SigningKey::P256(key(3));
    let envelope = parma::fragment::sign(&image(&source()), &key, &chain(), &issuer(), FEED, 2).unwrap();
    assert_eq!(parma::fragment::check(&envelope).unwrap().1, 2);
    Guest::new(&policy(&named(FEED, "2", r#"["containers"]"#))).load(&envelope).unwrap();
    let stranger = parma::fragment::SigningKey::P256(signer::key(9));
    let error =
        parma::fragment::sign(&image(&source()), &stranger, &chain(), &issuer(), FEED, 2).unwrap_err();
    assert!(error.to_string().contains("give the leaf's key"), "{error}");
}

#[test]
fn f01_a_fragment_cannot_replace_a_rule_only_add_entries_of_the_kinds_it_may() {
    // Rules in a fragment are not in its image.
    let rules =
        "package framework\n\nload_fragment := {\"allowed\": true}\nmount_device := {\"allowed\": true}\n";
    assert!(compile_fragment("fragment.rego", rules).is_err());
    let with_rules =
        source().replace("package fragment", "package framework") + "mount_device := {\"allowed\": true}\n";
    let mut guest = Guest::new(&policy(&named(FEED, "2", r#"["containers"]"#)));
    guest.load(&honest(FEED, 2, &with_rules)).unwrap();
    assert_eq!(denied(guest.mount(8)), [Check::InvalidDeviceHash]);
    guest.mount(7).unwrap();
    // An image with the entries of a policy is no fragment, whoever signs it.
    let open =
        compile(&Inputs::policy("policy.rego", "package policy\nmount_device := {\"allowed\": true}\n"))
            .unwrap();
    let envelope = Message::new(&chain(), &issuer(), FEED, int(3), &open.image).signed();
    assert_eq!(guest.load(&envelope), problem(Problem::Payload));
    // Kinds that are not included are not added.
    let mut guest = Guest::new(&policy(&named(FEED, "2", r#"["external_processes"]"#)));
    guest.load(&honest(FEED, 2, &source())).unwrap();
    assert_eq!(denied(guest.mount(7)), [Check::InvalidDeviceHash]);
}

#[test]
fn f02_the_content_is_not_looked_at_before_signature_and_policy() {
    let mut guest = Guest::new(&policy(&named(FEED, "2", r#"["containers"]"#)));
    let garbage = |feed: &str, svn| Message::new(&chain(), &issuer(), feed, int(svn), b"no image");
    // Not signed by the leaf: refused as such, although the content is none either.
    let forged = Message { signer: 9, ..garbage(FEED, 2) };
    assert_eq!(guest.load(&forged.signed()), problem(Problem::Signature));
    // Signed, but not welcome: denied as such.
    assert_eq!(denied(guest.load(&garbage("example.com/other", 2).signed())), [Check::InvalidFragmentFeed]);
    assert_eq!(denied(guest.load(&garbage(FEED, 1).signed())), [Check::InvalidFragmentSvn]);
    assert_eq!(guest.load(&garbage(FEED, 2).signed()), problem(Problem::Payload));
    // Nothing of all this stays.
    assert_eq!(denied(guest.mount(7)), [Check::InvalidDeviceHash]);
    guest.load(&honest(FEED, 2, &source())).unwrap();
    guest.mount(7).unwrap();
}

#[test]
fn f03_svns_are_numbers_with_a_minimum_and_go_only_forward() {
    let mut guest = Guest::new(&policy(&named(FEED, "9", r#"["containers"]"#)));
    let with_svn = |svn: Vec<u8>| Message::new(&chain(), &issuer(), FEED, svn, &image(&source())).signed();
    for (svn, wrong) in [
        (text("10"), Problem::Svn),
        (int(-1), Problem::Svn),
        (int(1 << 32), Problem::Svn),
        (vec![0xf9, 0x49, 0x00], Problem::Svn), // 10.0
    ] {
        assert_eq!(guest.load(&with_svn(svn)), problem(wrong));
    }
    let mut missing = Message::new(&chain(), &issuer(), FEED, int(10), &image(&source()));
    missing.protected.pop();
    assert_eq!(guest.load(&missing.signed()), problem(Problem::Svn));
    assert_eq!(denied(guest.load(&with_svn(int(8)))), [Check::InvalidFragmentSvn]);
    // As strings, "10" would be less than "9".
    guest.load(&with_svn(int(10))).unwrap();
    // Welcome by itself, but older than what is in force.
    assert_eq!(guest.load(&with_svn(int(9))), problem(Problem::Rollback));
    guest.load(&with_svn(int(11))).unwrap();
    // Another of the same SVN is no step back.
    guest.load(&honest(FEED, 11, &fragment(&container("other", 8, "[4-6]", "")))).unwrap();
    // An SVN in the content is the header's or none.
    let content = format!("{}\nsvn := \"12\"\n", source());
    let envelope = |svn| Message::new(&chain(), &issuer(), FEED, int(svn), &image(&content)).signed();
    assert_eq!(denied(guest.load(&envelope(13))), [Check::InvalidFragmentSvn]);
    guest.load(&envelope(12)).unwrap();
}

/// The chain with one certificate replaced.
fn chain_with(index: usize, certificate: Vec<u8>) -> Vec<Vec<u8>> {
    let mut changed = chain();
    changed[index] = certificate;
    changed
}

#[test]
fn f04_an_issuer_is_a_did_x509_that_describes_a_valid_chain() {
    let honest_issuer = issuer();
    let root = honest_issuer.split_once("::").unwrap().0.to_owned();
    let check = |chain: &[Vec<u8>], issuer: &str| {
        verify(&Message::new(chain, issuer, FEED, int(1), b"").signed()).map(|_| ()).err()
    };
    let did = |predicates: &str| check(&chain(), &format!("{root}::{predicates}"));
    // What holds.
    assert_eq!(check(&chain(), &honest_issuer), None);
    for predicates in [
        "subject:CN:Release%20Engineering",
        "subject:O:Example:C:DE:CN:Release%20Engineering",
        "eku:1.3.6.1.5.5.7.3.3",
        "san:email:release%40example.com",
        "eku:1.3.6.1.5.5.7.3.3::san:email:release%40example.com::subject:C:DE",
    ] {
        assert_eq!(did(predicates), None, "{predicates}");
    }
    // What does not, and what is no did:x509.
    for predicates in [
        "eku:1.3.6.1.5.5.7.3.4",
        "eku:1.3.6.1.5.5.7.3.03",
        "subject:CN:Release",
        "subject:CN:Release Engineering",
        "subject:CN:Release%20Engineering:O:Other",
        "subject:O:Example:O:Example",
        "subject:O",
        "subject:2.5.4.10:Example",
        "subject:O:",
        "san:dns:release%40example.com",
        "san:email:release%40example.org",
        "san:ip:127.0.0.1",
        "fulcio-issuer:example.com",
        "unknown:x",
        "eku:1.3.6.1.5.5.7.3.3::unknown:x",
        "eku:1.3.6.1.5.5.7.3.3#0",
        "eku:1.3.6.1.5.5.7.3.3::",
        "subject:O:Ex%61mple%",
        "subject:O:Example+",
    ] {
        assert_eq!(did(predicates), Some(Problem::Issuer), "{predicates}");
    }
    let leaf_pinned = issuer_of(&chain()[..1]).unwrap();
    for issuer in [
        root.as_str(),
        "did:x509:0:sha256:::subject:O:Example",
        &honest_issuer.replace("x509:0:", "x509:1:"),
        &honest_issuer.replace(":sha256:", ":sha1:"),
        &leaf_pinned,
        "example.com",
    ] {
        assert_eq!(check(&chain(), issuer), Some(Problem::Issuer), "{issuer}");
    }
    // Another root of the same name; its own fingerprint is another issuer's.
    let impostor = vec![
        certificate(&Profile::leaf(LEAF), 3, AUTHORITY, 12),
        certificate(&Profile::authority(AUTHORITY), 12, ROOT, 11),
        certificate(&Profile::authority(ROOT), 11, ROOT, 11),
    ];
    assert_eq!(check(&impostor, &honest_issuer), Some(Problem::Issuer));
    assert_eq!(check(&impostor, &issuer_of(&impostor).unwrap()), None);
    // Chains that are none.
    let leaf = || certificate(&Profile::leaf(LEAF), 3, AUTHORITY, 2);
    let expired = Profile { years: (2020, 2030), ..Profile::authority(AUTHORITY) };
    let no_authority = Profile::leaf(AUTHORITY);
    let narrow = Profile { authority: Some(0), ..Profile::authority(ROOT) };
    let odd = Profile { critical: Some("1.2.3.4"), ..Profile::leaf(LEAF) };
    let mut flipped = leaf();
    *flipped.last_mut().unwrap() ^= 1;
    let mut extra = chain();
    extra.insert(1, certificate(&Profile::authority("CN=Stranger"), 8, ROOT, 1));
    for (what, chain) in [
        ("the leaf alone", vec![leaf()]),
        ("a leaf that is its own authority", vec![leaf(), leaf()]),
        ("the wrong order", chain().into_iter().rev().collect()),
        ("without its authority", vec![chain()[0].clone(), chain()[2].clone()]),
        ("an extra certificate", extra),
        ("a leaf signed by a stranger", chain_with(0, certificate(&Profile::leaf(LEAF), 3, AUTHORITY, 8))),
        ("a leaf with a changed signature", chain_with(0, flipped)),
        ("an authority that is none", chain_with(1, certificate(&no_authority, 2, ROOT, 1))),
        ("an authority gone before its leaf", chain_with(1, certificate(&expired, 2, ROOT, 1))),
        ("a root that allows no authority below", chain_with(2, certificate(&narrow, 1, ROOT, 1))),
        ("an unknown critical extension", chain_with(0, certificate(&odd, 3, AUTHORITY, 2))),
        ("no certificate", chain_with(0, b"no certificate".to_vec())),
    ] {
        assert_eq!(check(&chain, &honest_issuer), Some(Problem::Chain), "{what}");
    }
    // A leaf that ended long ago signed while it was valid: expiry is no event.
    let old = Profile { years: (2021, 2022), ..Profile::leaf(LEAF) };
    assert_eq!(check(&chain_with(0, certificate(&old, 3, AUTHORITY, 2)), &honest_issuer), None);
    // The chain is right, the signature another's.
    let message = Message { signer: 9, ..Message::new(&chain(), &honest_issuer, FEED, int(1), b"") };
    assert_eq!(verify(&message.signed()).err(), Some(Problem::Signature));
}

#[test]
fn f05_only_the_protected_header_of_a_strict_message_counts() {
    let honest = || Message::new(&chain(), &issuer(), FEED, int(1), b"content");
    let signed = honest().signed();
    let said = verify(&signed).unwrap();
    assert_eq!(
        (said.feed, said.svn, said.content_type, said.payload),
        (FEED, Some(1), CONTENT_TYPE, &b"content"[..])
    );

    let checked = |message: Message| verify(&message.signed()).map(|_| ()).err();
    let with = |label: Vec<u8>, value: Vec<u8>| {
        let mut message = honest();
        message.protected.push(pair(label, value));
        message
    };
    let replaced = |index: usize, pair: Vec<u8>| {
        let mut message = honest();
        message.protected[index] = pair;
        message
    };
    let without = |index: usize| {
        let mut message = honest();
        message.protected.remove(index);
        message
    };
    let unprotected = |label: i64, value: Vec<u8>| Message {
        unprotected: [vec![0xa1], int(label), value].concat(),
        ..honest()
    };
    let alg = |number| replaced(0, pair(int(1), int(number)));
    for (what, message, problem) in [
        (
            "the algorithm unprotected only",
            Message { unprotected: [vec![0xa1], int(1), int(-7)].concat(), ..without(0) },
            Problem::Header,
        ),
        ("an algorithm unprotected as well", unprotected(1, int(-7)), Problem::Header),
        ("a chain unprotected", unprotected(33, vec![0x80]), Problem::Header),
        ("no algorithm", without(0), Problem::Header),
        ("algorithm none", alg(0), Problem::Algorithm),
        ("HMAC with the public key", alg(5), Problem::Algorithm),
        ("RS256", alg(-257), Problem::Algorithm),
        ("RSASSA-PSS on a curve", alg(-37), Problem::Algorithm),
        ("ES384 on P-256", alg(-35), Problem::Algorithm),
        ("EdDSA", alg(-8), Problem::Algorithm),
        ("a detached payload", Message { payload: vec![0xf6], ..honest() }, Problem::Envelope),
        ("no tag", Message { tag: vec![], ..honest() }, Problem::Envelope),
        ("another tag", Message { tag: vec![0xd1], ..honest() }, Problem::Envelope),
        ("a byte too many", Message { after: vec![0], ..honest() }, Problem::Envelope),
        ("a label twice", with(text("feed"), text("other")), Problem::Header),
        (
            "an issuer twice, in two ways",
            with(int(15), [vec![0xa1], int(1), text("x")].concat()),
            Problem::Header,
        ),
        ("something critical", with(int(2), vec![0x81, 0x01]), Problem::Header),
        ("a content type by number", replaced(1, pair(int(3), int(60))), Problem::Header),
        ("a chain of one, bare", replaced(2, pair(int(33), bytes(&chain()[0]))), Problem::Chain),
        ("an indefinite chain", replaced(2, pair(int(33), vec![0x9f, 0xff])), Problem::Chain),
        ("a label of another kind", with(bytes(b"x"), int(1)), Problem::Header),
        ("no feed", without(4), Problem::Header),
        ("an empty feed", replaced(4, pair(text("feed"), text(""))), Problem::Header),
        ("a feed with a line break", replaced(4, pair(text("feed"), text("a\nb"))), Problem::Header),
    ] {
        assert_eq!(checked(message), Some(problem), "{what}");
    }
    // Others are passed over, in both headers.
    assert_eq!(checked(with(text("note"), text("hello"))), None);
    assert_eq!(checked(unprotected(394, bytes(b"a receipt"))), None);
    // Every single changed byte is noticed, wherever it is.
    for index in (0..signed.len()).step_by(7) {
        let mut changed = signed.clone();
        changed[index] ^= 0x20;
        assert!(verify(&changed).is_err(), "byte {index}");
    }
    // Another type of content is not taken for a fragment.
    let mut guest = Guest::new(&policy(&named(FEED, "0", r#"["containers"]"#)));
    let other = replaced(1, pair(int(3), text("application/json")));
    assert_eq!(guest.load(&other.signed()), problem(Problem::ContentType));
}

#[test]
fn f04_a_real_message_with_an_rsa_chain_is_verified() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/vectors/snp/azure/body.uvm_reference_info.bin");
    let Ok(message) = std::fs::read(&path) else {
        println!("skipped: {} is not there", path.display());
        return;
    };
    let signed = verify(&message).unwrap();
    assert!(
        signed.issuer.starts_with("did:x509:0:sha256:") && signed.issuer.contains("::eku:"),
        "{signed:?}"
    );
    assert_eq!(signed.content_type, "application/json");
    assert!(signed.payload.starts_with(b"{"));
    // The header between these is not signed; a receipt stands in it.
    let unsigned = 5075..10302;
    for index in (0..message.len()).step_by(501).filter(|index| !unsigned.contains(index)) {
        let mut changed = message.clone();
        changed[index] ^= 1;
        assert!(verify(&changed).is_err(), "byte {index}");
    }
}

#[test]
fn f06_fragments_of_fragments_go_two_levels_down_and_only_where_that_is_stated() {
    let names = |feed: &str, next: &str, includes: &str| {
        format!(
            "package fragment\n\nframework_version := \"0.5.0\"\nfragments := [{}]\n# {feed}\n",
            named(next, "0", includes)
        )
    };
    let both = r#"["containers", "fragments"]"#;
    let mut guest = Guest::new(&policy(&named("a", "0", both)));
    // Not before it was named.
    assert_eq!(denied(guest.load(&honest("b", 1, &names("b", "c", both)))), [Check::InvalidFragmentFeed]);
    guest.load(&honest("a", 1, &names("a", "b", both))).unwrap();
    guest.load(&honest("b", 1, &names("b", "c", both))).unwrap();
    guest.load(&honest("c", 1, &names("c", "d", both))).unwrap();
    assert_eq!(denied(guest.load(&honest("d", 1, &source()))), [Check::InvalidFragmentFeed]);
    // A fragment that names itself gains nothing, and is loaded once.
    let itself = honest("a", 2, &names("a", "a", both));
    guest.load(&itself).unwrap();
    assert_eq!(guest.load(&itself), Err(Reason::InUse { field: Field::Fragment }));
    // Where the policy does not include fragments, those that a fragment names are not named.
    let mut guest = Guest::new(&policy(&named("a", "0", r#"["containers"]"#)));
    guest.load(&honest("a", 1, &names("a", "b", both))).unwrap();
    assert_eq!(denied(guest.load(&honest("b", 1, &source()))), [Check::InvalidFragmentFeed]);
}

#[test]
fn f08_what_needs_a_receipt_is_denied() {
    let with_receipt = named(FEED, "0", r#"["containers"], "required_receipts": ["*"]"#);
    let mut guest = Guest::new(&policy(&with_receipt));
    assert_eq!(denied(guest.load(&honest(FEED, 1, &source()))), [Check::ReceiptMissing]);
    let without = named(FEED, "0", r#"["containers"], "required_receipts": []"#);
    Guest::new(&policy(&without)).load(&honest(FEED, 1, &source())).unwrap();
}

#[test]
fn a_fragment_is_worked_out_for_each_set_of_parameters_or_not_at_all() {
    let source = format!(
        "package fragment\n\nframework_version := \"0.5.0\"\nparameters_api := {{\"layer\": {{\"default\": \"{}\"}}}}\ncontainers := [{}]\n",
        "09".repeat(32),
        container("tool", 7, "[4-6]", "")
            .replace(&format!("\"{}\"", "07".repeat(32)), "parameter(\"layer\").value"),
    );
    let set = |layer: u8| format!(r#", "parameters": {{"layer": "{}"}}"#, format!("{layer:02x}").repeat(32));
    let entry = |more: String| named(FEED, "0", &format!(r#"["containers"]{more}"#));
    let mut guest = Guest::new(&policy(&format!("{}, {}", entry(set(20)), entry(set(21)))));
    guest.load(&honest(FEED, 1, &source)).unwrap();
    guest.mount(20).unwrap();
    guest.run(21, 'a', &["/bin/tool"], &["LEVEL=5"]).unwrap();
    assert_eq!(denied(guest.mount(9)), [Check::InvalidDeviceHash]);
    // Without parameters, what the fragment says itself.
    let mut guest = Guest::new(&policy(&entry(String::new())));
    guest.load(&honest(FEED, 1, &source)).unwrap();
    guest.mount(9).unwrap();
}

#[test]
fn f03_each_feed_goes_forward_by_itself() {
    let other = "example.com/other";
    let kinds = r#"["containers"]"#;
    let mut guest =
        Guest::new(&policy(&format!("{}, {}", named(FEED, "1", kinds), named(other, "1", kinds))));
    guest.load(&honest(FEED, 9, &source())).unwrap();
    guest.load(&honest(other, 2, &source())).unwrap();
    assert_eq!(guest.load(&honest(FEED, 8, &source())), problem(Problem::Rollback));
    assert_eq!(guest.load(&honest(other, 1, &source())), problem(Problem::Rollback));
}

#[test]
fn t06_a_guest_takes_32_fragments_and_each_with_16_sets_of_parameters() {
    let mut guest = Guest::new(&policy(&named(FEED, "0", r#"["containers"]"#)));
    for svn in 0..MAX_FRAGMENTS as u32 {
        guest.load(&honest(FEED, svn, &source())).unwrap();
    }
    let limit = Err(Reason::Limit { field: Field::Fragment });
    assert_eq!(guest.load(&honest(FEED, 99, &source())), limit);

    let entry =
        |set: usize| named(FEED, "0", &format!(r#"["containers"], "parameters": {{"layer": "{set}"}}"#));
    for (sets, loaded) in [(MAX_PARAMETERS, Ok(())), (MAX_PARAMETERS + 1, limit)] {
        let entries: Vec<String> = (0..sets).map(entry).collect();
        assert_eq!(Guest::new(&policy(&entries.join(", "))).load(&honest(FEED, 1, &source())), loaded);
    }
}

#[test]
fn t06_parameters_nest_16_deep() {
    let kinds: [fn(String) -> String; 2] =
        [|inner| format!("[{inner}]"), |inner| format!(r#"{{"in": {inner}}}"#)];
    for kind in kinds {
        let load = |levels: usize| {
            let value = (0..levels).fold("7".to_string(), |inner, _| kind(inner));
            let entry = named(FEED, "0", &format!(r#"["containers"], "parameters": {{"deep": {value}}}"#));
            Guest::new(&policy(&entry)).load(&honest(FEED, 1, &source()))
        };
        // The parameters themselves are one level.
        assert_eq!((load(15), load(16)), (Ok(()), problem(Problem::Payload)));
    }
}

#[test]
fn t06_a_fragment_that_is_refused_leaves_nothing_also_where_a_part_of_it_was_accepted() {
    // Each has a third of what there is room for; the second set of parameters names a version that nobody knows.
    let source = format!(
        "package fragment\n\nparameters_api := {{\"version\": {{}}, \"layer\": {{}}}}\n\
         framework_version := parameter(\"version\").value\ncontainers := [{}]\n",
        container("tool", 7, "[4-6]", &format!(r#", "note": "{}""#, "x".repeat(300 << 10)))
            .replace(&format!("\"{}\"", "07".repeat(32)), "parameter(\"layer\").value"),
    );
    let entry = |layer: u8, version: &str| {
        let layer = format!("{layer:02x}").repeat(32);
        let set = format!(r#"["containers"], "parameters": {{"layer": "{layer}", "version": "{version}"}}"#);
        named(FEED, "0", &set)
    };
    let mut guest = Guest::new(&policy(&format!("{}, {}", entry(20, "0.5.0"), entry(21, "9.0.0"))));
    for _ in 0..4 {
        assert_eq!(denied(guest.load(&honest(FEED, 1, &source))), [Check::InvalidFragmentVersion]);
        assert_eq!(denied(guest.mount(20)), [Check::InvalidDeviceHash]);
    }
    guest.run(1, 'a', &["/bin/own"], &["LEVEL=2"]).unwrap();
}

#[test]
fn a_fragments_version_is_known_and_means_what_it_meant() {
    let mut guest = Guest::new(&policy(&named(FEED, "0", r#"["containers"]"#)));
    for unknown in
        [source().replace("0.5.0", "9.0.0"), source().replace("framework_version := \"0.5.0\"", "")]
    {
        assert_eq!(denied(guest.load(&honest(FEED, 1, &unknown))), [Check::InvalidFragmentVersion]);
    }
    assert_eq!(denied(guest.mount(7)), [Check::InvalidDeviceHash]);
    // Before 0.2.3 there were no seccomp profiles, before 0.2.1 no users.
    let old = source().replace("0.5.0", "0.2.0").replace("\"strategy\": \"id\"", "\"strategy\": \"name\"");
    guest.load(&honest(FEED, 1, &old)).unwrap();
}

#[test]
fn c09_containers_start_in_their_order_and_as_often_as_they_may() {
    let containers = [
        container("mesh", 1, "[0-3]", r#", "required": true"#),
        container("work", 2, "[0-3]", r#", "after": ["mesh"], "required": true, "max_instances": 1"#),
    ]
    .join(", ");
    let mut guest = Guest::new(&policy_of(&containers, ""));
    assert!(!guest.0.ready(), "nothing runs");
    assert_eq!(denied(guest.run(2, 'a', &["/bin/work"], &[])), [Check::EarlierNotRunning]);
    guest.run(1, 'b', &["/bin/mesh"], &[]).unwrap();
    assert!(!guest.0.ready(), "half of it runs");
    guest.shut_down('b').unwrap();
    assert_eq!(denied(guest.create(2, 'c', &["/bin/work"], &[])), [Check::EarlierNotRunning]);
    guest.create(1, 'd', &["/bin/mesh"], &[]).unwrap();
    guest.create(2, 'e', &["/bin/work"], &[]).unwrap();
    assert!(guest.0.ready());
    // Not a second one, and not again after the first.
    assert_eq!(denied(guest.create(2, 'f', &["/bin/work"], &[])), [Check::TooManyInstances]);
    guest.shut_down('e').unwrap();
    assert!(!guest.0.ready(), "what is required must be running");
    assert_eq!(denied(guest.create(2, '0', &["/bin/work"], &[])), [Check::TooManyInstances]);
    // A policy without obligations is always ready.
    assert!(Guest::new(&policy("")).0.ready());
}

#[test]
fn c09_a_fragment_that_obliges_needs_a_policy_that_does() {
    let source = fragment(&container("tool", 7, "[4-6]", r#", "max_instances": 1"#));
    let fragments = named(FEED, "0", r#"["containers"]"#);
    let mut guest = Guest::new(&policy(&fragments));
    assert_eq!(denied(guest.load(&honest(FEED, 1, &source))), [Check::ObligationsNotInPolicy]);
    let mut guest =
        Guest::new(&policy_of(&container("own", 1, "[0-3]", r#", "max_instances": 9"#), &fragments));
    guest.load(&honest(FEED, 1, &source)).unwrap();
    guest.run(7, 'a', &["/bin/tool"], &[]).unwrap();
    assert_eq!(denied(guest.create(7, 'b', &["/bin/tool"], &[])), [Check::TooManyInstances]);
}
