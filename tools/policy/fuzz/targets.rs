//! What is fuzzed: one function for each kind of bytes that others write. Each takes any bytes, and panics where a
//! promise is broken. cargo-fuzz calls them (`fuzz_targets/`), and so does, with a bounded number of inputs, every
//! `cargo test` (`tests/fuzz.rs`).
#![allow(dead_code, reason = "each binary calls one of them")]

use std::collections::BTreeSet;
use std::io::Cursor;
use std::sync::OnceLock;

use parma_guest::fragment::certificate::Chain;
use parma_guest::fragment::cose::Signed;
use parma_guest::fragment::{did, verify};
use parma_guest::gate::ARENA;
use parma_guest::point::Point;
use parma_guest::policy::format::HEADER_SIZE;
use parma_guest::policy::fragment::Fragment;
use parma_guest::policy::{Arena, Engine, Fault, Refusal, StateError};
use parma_guest::wire::{ToGuest, frame};
use parma_policy::reference::Reference;
use parma_policy::{Evaluation, Inputs, Session, compile, disassemble, from_json, replay, to_json};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// A policy of two containers, with patterns, dropping, and every point.
pub const POLICY: &str = include_str!("policy.rego");
/// A module that uses what the framework does not.
pub const LANGUAGE: &str = include_str!("seeds/source/language.rego");
/// A signed fragment, as `parma fragment sign` made it once: two certificates on P-256, and a payload that is a fragment.
pub const FRAGMENT: &[u8] = include_bytes!("fragment.cose");
/// A whole life of a container under [`POLICY`], a request a line.
pub const LIFE: &str = include_str!("seeds/trace/life.jsonl");

/// Steps of one evaluation of an image that nobody wrote: it may loop as long as it is allowed to.
const FUEL: u64 = 100_000;

fn image_of(inputs: &Inputs) -> Vec<u8> {
    compile(inputs).unwrap_or_else(|error| panic!("{error}")).image
}

/// [`POLICY`], compiled.
pub fn policy_image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| image_of(&Inputs::policy("policy.rego", POLICY)))
}

/// [`LANGUAGE`], compiled without the framework: a small image of many instructions.
pub fn language_image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        image_of(&Inputs {
            framework: false,
            entries: vec!["data.language.all".into()],
            ..Inputs::policy("language.rego", LANGUAGE)
        })
    })
}

/// The requests of [`LIFE`]: rule and input.
fn life() -> &'static [(String, Value)] {
    static LIFE_READ: OnceLock<Vec<(String, Value)>> = OnceLock::new();
    LIFE_READ.get_or_init(|| {
        let request = |line: &str| {
            let request: Value = serde_json::from_str(line).expect("a request");
            (request["rule"].as_str().expect("a rule").to_string(), request["input"].clone())
        };
        LIFE.lines().map(request).collect()
    })
}

/// Policy images: whatever the bytes are, they are refused or run within their limits.
///
/// The first byte says what the others are: 0, an image; 1 or 2, changes to a valid one, four bytes each: where (the
/// low 30 bits of a little-endian number, in the file's length) and how (the two bits above) to put the low byte of
/// the number after it.
///
/// What the host sends must have the hash that was attested. That is checked here too: an image that differs in one
/// bit is another policy, however well it verifies.
pub fn image(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let original = match kind {
        0 => &[],
        1 => language_image(),
        _ => policy_image(),
    };
    let image = if kind == 0 { rest.to_vec() } else { changed(original, rest, HEADER_SIZE) };
    let _ = disassemble(&image);
    let Ok(mut engine) = Engine::new(&image) else { return };
    // P06: bytes that are valid and are not the attested ones have another hash. There is no second spelling.
    if kind != 0 && image != original {
        assert_ne!(parma_policy::host_data(&image), parma_policy::host_data(original));
    }
    engine.set_fuel(FUEL);
    let mut memory = vec![0; ARENA];
    let arena = &mut Arena::new(&mut memory);
    let mut entries = Vec::new();
    for (name, _) in engine.image().entries() {
        let name = engine.image().string(name).expect("a verified entry has a name");
        entries.push(std::str::from_utf8(name).expect("a verified string is UTF-8").to_string());
    }
    for (number, (_, input)) in life().iter().enumerate() {
        if number > 3 && kind != 2 {
            break;
        }
        for entry in &entries {
            let _ = engine.evaluate(arena, entry, |arena| from_json(arena, input).map(Some));
        }
        for &point in Point::ALL {
            if let Ok(decision) = engine.decide(arena, point, |arena| from_json(arena, input))
                && let Ok(undo) = engine.commit(decision.delta)
                && number % 2 == 1
            {
                engine.rollback(undo).expect("the last commit can be taken back");
            }
        }
    }
}

/// Signed fragments: whatever the bytes are, they are refused, or say what was signed.
///
/// The first byte says what the others are: 0, a message; 1, changes to [`FRAGMENT`], as of an image; 2, an issuer, to be
/// held against its chain; 3, changes to its payload, which is then looked at without its signature.
pub fn fragment(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let honest = verify(FRAGMENT).expect("it is what it was");
    match kind {
        0 => {
            let _ = verify(rest);
        }
        1 => {
            let message = changed(FRAGMENT, rest, 0);
            // F05: nobody can sign anything else, so all that may have changed is what is not signed, and counts for nothing.
            if let Ok(said) = verify(&message) {
                let of = |signed: &Signed<'_>| {
                    (signed.svn, [signed.issuer, signed.feed, signed.content_type].map(str::to_string))
                };
                assert_eq!(of(&said), of(&honest));
                assert_eq!(said.payload, honest.payload);
            }
        }
        2 => {
            let Ok(issuer) = std::str::from_utf8(rest) else { return };
            let chain = chain_of(FRAGMENT);
            let chain = Chain::validate(&chain).expect("it is a chain");
            // F04: whatever else it says, an issuer pins a certificate above the leaf.
            if did::check(issuer, &chain).is_ok() {
                let mut pins =
                    chain.authorities().map(|authority| did::base64url(&Sha256::digest(authority.der())));
                assert!(
                    pins.any(|pin| issuer.starts_with(&format!("did:x509:0:sha256:{pin}::"))),
                    "{issuer}"
                );
            }
        }
        _ => {
            let _ = Fragment::read(&changed(honest.payload, rest, HEADER_SIZE));
        }
    }
}

/// The certificates of a message: the byte strings of which each begins as one does.
fn chain_of(message: &[u8]) -> Vec<&[u8]> {
    let starts = (0..message.len())
        .filter(|&at| message[at..].starts_with(&[0x59]) && message.get(at + 3) == Some(&0x30));
    let certificate = |at: usize| {
        let length = usize::from(u16::from_be_bytes([message[at + 1], message[at + 2]]));
        message.get(at + 3..at + 3 + length)
    };
    starts.filter_map(certificate).collect()
}

/// `image` with changes to it; those that stay behind its header begin at `header`.
fn changed(image: &[u8], changes: &[u8], header: usize) -> Vec<u8> {
    let mut image = image.to_vec();
    for change in changes.chunks_exact(5) {
        let word = u32::from_le_bytes([change[0], change[1], change[2], change[3]]);
        let (at, how, byte) = (word as usize & 0x3fff_ffff, word >> 30, change[4]);
        let at = at % image.len();
        match how {
            0 => image[at] = byte,
            1 => image[at] ^= 1 << (byte % 8),
            // Most words of the sections are small.
            2 => {
                let at = at.min(image.len() - 3);
                image[at..at + 3].copy_from_slice(&[byte, 0, 0]);
            }
            // Beyond the header, where nearly every change is fatal.
            _ => {
                let at = header + at % (image.len() - header);
                image[at] = image[at].wrapping_add(byte);
            }
        }
    }
    image
}

/// Requests: frames of the host, and inputs of every shape to every point of a policy, in states that a container
/// meets in its life. Nothing faults for lack of fuel, and a denial changes nothing.
pub fn request(bytes: &[u8]) {
    if let Ok(request) = frame::decode::<ToGuest<'_>>(bytes) {
        // T01: a frame that is accepted is the one frame of its request.
        let encoded = frame::encode(&request).expect("what was received can be sent");
        assert_eq!(&encoded[frame::HEADER..], bytes);
    }
    let mut bytes = Bytes(bytes);
    let mut engine = Engine::new(policy_image()).expect("valid");
    let mut memory = vec![0; ARENA];
    let arena = &mut Arena::new(&mut memory);
    let requests = life();
    let steps = usize::from(bytes.next()) % (requests.len() + 1);
    for (rule, input) in &requests[..steps] {
        let point = Point::from_name(rule.strip_prefix("data.policy.").expect("a point")).expect("a point");
        let decision = engine.decide(arena, point, |arena| from_json(arena, input));
        let decision = decision.unwrap_or_else(|refusal| panic!("{rule}: {refusal:?}"));
        engine.commit(decision.delta).expect("it was checked");
    }
    let rounds = 1 + bytes.next() % 8;
    for _ in 0..rounds {
        let point = Point::ALL[usize::from(bytes.next()) % Point::ALL.len()];
        let input = bytes.input(requests);
        let before = metadata(&engine);
        match engine.decide(arena, point, |arena| from_json(arena, &input)) {
            Ok(decision) => {
                let undo = engine.commit(decision.delta).expect("a decision's delta was checked");
                if bytes.next().is_multiple_of(2) {
                    engine.rollback(undo).expect("the last commit can be taken back");
                    assert_eq!(metadata(&engine), before);
                }
            }
            Err(refusal) => {
                assert_ne!(refusal, Refusal::Fault(Fault::Fuel), "{point:?} {input}");
                assert_ne!(refusal, Refusal::Fault(Fault::State(StateError::Stale)));
                assert_eq!(metadata(&engine), before);
            }
        }
    }
}

fn metadata(engine: &Engine<'_>) -> Value {
    let mut memory = [];
    let arena = Arena::new(&mut memory);
    to_json(&engine.view(&arena), engine.metadata())
}

/// Rego: it is refused or compiles; what compiles can be run, means the same with and without optimisation, and
/// the same to the reference evaluator.
pub fn source(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let framework = text.contains("data.framework");
    let inputs = Inputs { framework, ..Inputs::policy("fuzz.rego", text) };
    // Where there is no enforcement point, the module's rules are asked by name.
    let inputs = match module_rules(text) {
        Some(entries) if !entries.is_empty() => Inputs { entries, ..inputs },
        _ => inputs,
    };
    let Ok(compiled) = compile(&inputs) else {
        // What cannot be compiled cannot be compiled the plain way either, but for a limit of the machine.
        return;
    };
    assert_eq!(compiled.image, image_of(&inputs), "the same source gives the same bytes");
    let Ok(plain) = compile(&Inputs { optimise: false, ..inputs.clone() }) else { return };
    let mut sessions = [&compiled.image, &plain.image].map(|image| Session::new(image).expect("valid"));
    let entries = Engine::new(&compiled.image).map(|engine| {
        let names = engine.image().entries().filter_map(|(name, _)| engine.image().string(name));
        names.map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    });
    for entry in entries.expect("valid") {
        for input in [None, Some(json!({"x": ["a", "b=1", 2], "y": {"z": "a"}})), Some(life()[0].1.clone())] {
            let [fast, plain] = sessions.each_mut().map(|session| session.evaluate(&entry, input.as_ref()));
            // Literals may be evaluated in another order, and then the first thing that faults is another one, or is
            // not reached. Apart from that the answers are the same.
            let faults = |answer: &Evaluation| matches!(answer, Evaluation::Fault(_));
            // The reference evaluator has no limits, so it answers where the machine faults for want of something.
            if !faults(&fast) {
                let again = Reference::new(&compiled.image).expect("valid").evaluate(&entry, input.as_ref());
                let again = match again {
                    Ok(Some(value)) => Evaluation::Value(value),
                    Ok(None) => Evaluation::Undefined,
                    Err(fault) => panic!("{entry} of\n{text}\nmachine {fast:?}\nreference {fault:?}"),
                };
                assert_eq!(fast, again, "{entry} of\n{text}");
            }
            assert!(
                fast == plain || faults(&fast) || faults(&plain),
                "{entry} of\n{text}\noptimised {fast:?}\nplain {plain:?}"
            );
        }
    }
}

/// The rules without arguments of a module, as entries, as far as a line of text shows them.
fn module_rules(text: &str) -> Option<Vec<String>> {
    let package = text.lines().find_map(|line| line.strip_prefix("package "))?.trim();
    if package == "policy" {
        return None;
    }
    let name = |line: &str| {
        let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        let is_rule = !name.is_empty() && !rest.starts_with(['(', '[', '.']);
        let keyword = ["package", "import", "default", "else", "some", "every", "not"].contains(&name);
        (is_rule && !keyword).then(|| format!("data.{package}.{name}"))
    };
    let names: BTreeSet<String> = text.lines().filter_map(name).collect();
    Some(names.into_iter().take(16).collect())
}

/// Traces: every line is answered, in order, or the whole is refused.
pub fn trace(bytes: &[u8]) {
    let mut answers = Vec::new();
    if replay(policy_image(), Cursor::new(bytes), &mut answers).is_err() {
        return;
    }
    let text = std::str::from_utf8(bytes).expect("a trace that was read is UTF-8");
    let asked = text.lines().filter(|line| !line.trim().is_empty());
    let mut metadata = Session::new(policy_image()).expect("valid").metadata();
    let mut answers = std::str::from_utf8(&answers).expect("JSON").lines();
    for line in asked {
        let answer: Value = serde_json::from_str(answers.next().expect("an answer a line")).expect("JSON");
        if answer["result"]["allowed"] != true {
            assert_eq!(answer["metadata"], metadata, "denied, and yet remembered: {line}");
        }
        metadata = answer["metadata"].clone();
    }
    assert_eq!(answers.next(), None);
}

/// Bytes that say how to build an input.
struct Bytes<'b>(&'b [u8]);

impl Bytes<'_> {
    /// The next, 0 at the end.
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// An honest input with changes, or any value.
    fn input(&mut self, requests: &[(String, Value)]) -> Value {
        let kind = self.next();
        if kind >= 240 {
            return self.value(0);
        }
        let mut input = requests[usize::from(kind) % requests.len()].1.clone();
        for _ in 0..self.next() % 4 {
            let value = self.value(0);
            change(&mut input, self, value, 0);
        }
        input
    }

    fn text(&mut self) -> String {
        const WORDS: [&str; 24] = [
            "",
            "0",
            "1000",
            "root",
            "/",
            "/srv",
            "/bin/serve",
            "-v",
            "PATH=/bin",
            "PATH=",
            "LEVEL=3",
            "LEVEL=33",
            "ZONE=abc",
            "CAP_KILL",
            "CAP_SYS_ADMIN",
            "0022",
            "ext4",
            "users",
            "/run/mounts/scsi/m0",
            "/run/mounts/scsi/m1",
            "sandbox://",
            "bind",
            "=",
            "é\u{301}\u{0}",
        ];
        match self.next() {
            n if n < 200 => {
                let word = WORDS[usize::from(n) % WORDS.len()].to_string();
                if n < 192 { word } else { word.repeat(usize::from(self.next())) }
            }
            n if n < 230 => ["aa", "bb"][usize::from(n) % 2].repeat(32),
            n => (0..n - 230).map(|_| char::from(self.next() & 0x7f)).collect(),
        }
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.next() % if depth < 6 { 16 } else { 10 } {
            0 => Value::Null,
            1 | 2 => Value::Bool(self.next().is_multiple_of(2)),
            3 => json!(i64::from_le_bytes(std::array::from_fn(|_| self.next()))),
            4 => json!(self.next()),
            5..10 => json!(self.text()),
            10 | 11 | 14 => (0..self.next() % 8).map(|_| self.value(depth + 1)).collect(),
            12 => {
                // Long lists, but not of long lists.
                let value = self.value(6);
                (0..u16::from(self.next()) * 4).map(|_| value.clone()).collect()
            }
            _ => {
                let fields = (0..self.next() % 6).map(|_| (self.text(), self.value(depth + 1)));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }
}

/// Puts `value` at a place in `input` that the bytes choose.
fn change(input: &mut Value, bytes: &mut Bytes<'_>, value: Value, depth: usize) {
    let choice = usize::from(bytes.next());
    let inner = match input {
        Value::Object(fields) if !fields.is_empty() => fields.values_mut().nth(choice % 16),
        Value::Array(items) if !items.is_empty() => {
            let at = choice % (items.len() + 1);
            if at == items.len() {
                items.push(value);
                return;
            }
            items.get_mut(at)
        }
        _ => None,
    };
    match inner {
        Some(inner) if depth < 3 && choice < 192 => change(inner, bytes, value, depth + 1),
        Some(inner) => *inner = value,
        None => *input = value,
    }
}
