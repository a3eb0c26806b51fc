//! Fragments in force: the machine and the reference evaluator load them alike and decide alike with them, and what a
//! fragment's patterns mean is its own business.

mod common;

use common::both;
use common::requests::*;
use common::sessions::{Numbers, session};
use parma_policy::fragment::compile_fragment;
use parma_policy::reference::Reference;
use parma_policy::{Evaluation, Inputs, Session, compile};
use serde_json::{Value, json};

fn image(text: &str) -> Vec<u8> {
    compile_fragment("fragment.rego", text).unwrap_or_else(|error| panic!("{error}\n{text}")).image
}

fn fragment(more: &str) -> String {
    format!("package fragment\n\nframework_version := \"0.5.0\"\n{more}\n")
}

/// What a policy says of the fragments of a feed.
fn named(feed: &str, minimum: &str, includes: &[&str], parameters: Option<Value>) -> Value {
    let mut entry =
        json!({"issuer": "did:x509:x", "feed": feed, "minimum_svn": minimum, "includes": includes});
    if let Some(parameters) = parameters {
        entry["parameters"] = parameters;
    }
    entry
}

/// An entry that takes a variable, and a user, by patterns.
fn entry(name: &str, layer: u8, pattern: &str) -> Value {
    let mut entry = container();
    entry["name"] = name.into();
    entry["layers"] = json!([hash(1), hash(layer)]);
    entry["env_rules"] = json!([{"pattern": pattern, "strategy": "re2", "required": false},
        {"pattern": "PATH=/bin", "strategy": "string", "required": true}]);
    entry["user"]["user_idname"] = json!({"pattern": "serve?r?", "strategy": "re2"});
    entry["mounts"] = json!([{"source": "sandbox:///data/[a-z]{2}", "destination": "/mnt/own", "type": "bind", "options": ["rw"]}]);
    entry
}

/// Asks for a container's life up to its creation, with these variables; whether that was allowed.
fn created(guest: &mut Session<'_>, number: u32, layer: u8, id: char, env: &[&str]) -> bool {
    let id = self::id(id);
    let mut allowed =
        |point: &str, request: &Value| match guest.decide(&format!("data.policy.{point}"), Some(request)) {
            Ok(Evaluation::Value(result)) => result["allowed"] == true,
            _ => false,
        };
    assert!(allowed("mount_device", &mount_device(number, &hash(1))));
    assert!(allowed("mount_device", &mount_device(number + 1, &hash(layer))));
    assert!(allowed("mount_overlay", &mount_overlay(&id, &[number + 1, number])));
    allowed("create_container", &with(&create_container(&id), "/envList", json!(env)))
}

#[test]
fn f01_what_a_pattern_means_is_said_by_the_image_that_it_came_with() {
    const PATTERN: &str = "MODE=[a-z]+";
    const WIDE: &str = "MODE=.{0,9}";
    let source = |name: &str, layer: u8, pattern: &str| {
        fragment(&format!("containers := [{}]", entry(name, layer, pattern)))
    };
    let honest = image(&source("honest", 7, PATTERN));
    // Its signer made an image in which the same text stands for another automaton.
    let mut hostile = image(&source("hostile", 8, WIDE));
    let at =
        hostile.windows(WIDE.len()).position(|bytes| bytes == WIDE.as_bytes()).expect("the text is there");
    hostile[at..at + WIDE.len()].copy_from_slice(PATTERN.as_bytes());
    let fragments =
        [named("honest", "1", &["containers"], None), named("hostile", "1", &["containers"], None)];
    let evil = ["PATH=/bin", "MODE=/evil"];
    let fast = ["PATH=/bin", "MODE=fast"];
    for (own, of_the_policy) in [(PATTERN, true), ("OTHER=[a-z]+", false)] {
        let policy = policy(&[entry("own", 2, own)], &json!({"fragments": fragments}));
        let compiled = compile(&Inputs::policy("policy.rego", &policy)).unwrap();
        for order in
            [[("honest", &honest), ("hostile", &hostile)], [("hostile", &hostile), ("honest", &honest)]]
        {
            let mut guest = Session::new(&compiled.image).unwrap();
            for (feed, image) in order {
                assert!(guest.load_fragment(image, "did:x509:x", feed, 1).unwrap(), "{feed}");
            }
            assert!(!created(&mut guest, 0, 2, 'a', &evil), "the policy's own");
            assert!(!created(&mut guest, 2, 7, 'b', &evil), "the honest fragment's");
            assert_eq!(created(&mut guest, 4, 2, 'c', &fast), of_the_policy);
            assert!(created(&mut guest, 6, 7, 'd', &fast));
            // The twin: what it signed for its own entries is its own, unless the policy has the pattern, too.
            assert_eq!(created(&mut guest, 8, 8, 'e', &evil), !of_the_policy);
        }
    }
}

#[test]
fn f02_what_is_no_fragment_or_is_not_welcome_changes_nothing() {
    let policy = policy(&[container()], &json!({"fragments": [named("a", "3", &["containers"], None)]}));
    let compiled = compile(&Inputs::policy("policy.rego", &policy)).unwrap();
    let mut guest = Session::new(&compiled.image).unwrap();
    let before = guest.metadata();
    let good = image(&fragment(&format!("containers := [{}]", entry("own", 7, "A=1"))));
    for (issuer, feed, svn) in [("did:x509:y", "a", 3), ("did:x509:x", "b", 3), ("did:x509:x", "a", 2)] {
        assert!(!guest.load_fragment(&good, issuer, feed, svn).unwrap(), "{issuer} {feed} {svn}");
    }
    for wrong in [&b"no image"[..], &compiled.image] {
        guest.load_fragment(wrong, "did:x509:x", "a", 3).unwrap_err();
        // Not even looked at where the header is not welcome.
        assert!(!guest.load_fragment(wrong, "did:x509:x", "a", 2).unwrap());
    }
    assert_eq!(guest.metadata(), before);
    assert!(guest.load_fragment(&good, "did:x509:x", "a", 3).unwrap());
    assert_ne!(guest.metadata(), before);
}

#[test]
fn made_up_sessions_with_fragments_are_decided_alike() {
    let kinds = ["containers", "external_processes", "platform_rules", "fragments"];
    let text = |value: Value| value.to_string();
    let other = {
        let mut other = entry("other", 2, "EXTRA_[A-Z]+=.*");
        other["command"] = json!(["/bin/serve", "-v"]);
        other
    };
    let by_parameter = text(entry("given", 3, "LEVEL=[0-9]"))
        .replace(&format!("\"{}\"", hash(3)), "parameter(\"layer\").value");
    let images = [
        ("a", image(&fragment(&format!("containers := [{other}, {}]", entry("one", 3, "X=[0-9]+"))))),
        ("a", image(&fragment(&format!("containers := [{}]", entry("two", 2, "X=[a-z]+"))))),
        (
            "b",
            image(&fragment(&format!(
                "external_processes := [{}]\nfragments := [{}]",
                json!({"command": ["/bin/outside"], "working_dir": "/", "allow_stdio_access": true,
                "env_rules": [{"name": "A", "name_strategy": "string", "value": "[0-9]", "value_strategy": "re2"}]}),
                named("c", "1", &["platform_rules"], None),
            ))),
        ),
        (
            "c",
            image(&fragment(&format!(
                "platform_rules := [{}]",
                json!({"env_rules": [{"pattern": "UNKNOWN=[0-9]", "strategy": "re2"}],
                "mounts": [{"source": "sandbox:///plat/[a-z]+", "destination": "/mnt/plat", "type": "bind", "options": ["ro"]}]}),
            ))),
        ),
        (
            "p",
            image(&fragment(&format!(
                "parameters_api := {{\"layer\": {{\"default\": \"{}\"}}}}\ncontainers := [{by_parameter}]",
                hash(2)
            ))),
        ),
        ("p", image(&fragment("containers := [1]"))),
    ];
    let fragments = json!([
        named("a", "2", &kinds[..1], None),
        named("b", "1", &kinds, None),
        named("p", "1", &kinds[..1], Some(json!({"layer": hash(3)}))),
        named("p", "1", &kinds[..1], Some(json!({"layer": hash(2)}))),
    ]);
    let mut numbers = Numbers(23);
    let (mut allowed, mut denied, mut loaded, mut refused) = (0, 0, 0, 0);
    for _ in 0..8 {
        let (policy, requests) = session(&mut numbers, 60);
        let policy = format!("{policy}fragments := {fragments}\n");
        let compiled = compile(&Inputs::policy("policy.rego", &policy)).unwrap();
        let mut machine = Session::new(&compiled.image).unwrap();
        let mut reference = Reference::new(&compiled.image).unwrap();
        for (number, (point, mut request)) in requests.into_iter().enumerate() {
            if number % 4 == 0 {
                let (feed, image) = numbers.pick(&images.each_ref());
                let svn = 1 + numbers.below(3) as u32;
                let ours = machine.load_fragment(image, "did:x509:x", feed, svn);
                let theirs = reference.load_fragment(image, "did:x509:x", feed, svn);
                let ours = ours.unwrap_or(false);
                assert_eq!(ours, theirs.unwrap_or(false), "{feed} {svn}");
                assert_eq!(machine.metadata(), reference.metadata(), "after {feed} {svn}");
                *(if ours { &mut loaded } else { &mut refused }) += 1;
            }
            if point == "create_container" && numbers.below(2) == 0 && request["envList"].is_array() {
                let sandbox = request["sandboxDir"].as_str().unwrap_or_default().to_string();
                let source = numbers.pick(&["/data/ab", "/data/abc", "/plat/abc"]);
                let destination = if source.starts_with("/plat") { "/mnt/plat" } else { "/mnt/own" };
                let options = if source.starts_with("/plat") { "ro" } else { "rw" };
                request["mounts"] = json!([{"source": format!("{sandbox}{source}"), "destination": destination, "type": "bind", "options": [options]}]);
                let extra =
                    numbers.pick(&["X=12", "X=ab", "X=1a", "EXTRA_A=1", "UNKNOWN=1", "UNKNOWN=x", "LEVEL=7"]);
                request["envList"] = json!(["PATH=/bin", extra]);
            }
            match both(&mut machine, &mut reference, &format!("data.policy.{point}"), &request) {
                Evaluation::Value(value) if value["allowed"] == true => allowed += 1,
                _ => {
                    denied += 1;
                    let mut asked = request.clone();
                    asked["rule"] = point.into();
                    both(&mut machine, &mut reference, "data.policy.reason", &asked);
                }
            }
        }
    }
    println!("{allowed} allowed, {denied} denied, {loaded} loaded, {refused} not");
    assert!(
        allowed > 60 && denied > 60 && loaded > 20 && refused > 10,
        "{allowed} {denied} {loaded} {refused}"
    );
}
