//! The fuzz targets (`fuzz/targets.rs`), bounded and the same in every run: the seeds as they are, and each of them
//! changed. What fuzzing found is kept as a seed.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

/// Changed inputs of each seed.
const ROUNDS: usize = 24;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// The seeds of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A seed with some of it replaced, left out, repeated, or taken from another.
fn changed(numbers: &mut Numbers, seed: &[u8], other: &[u8]) -> Vec<u8> {
    const TOKENS: [&[u8]; 14] = [
        b"[", b"]", b"{", b"}", b"\"", b" | ", b" in ", b"not ", b":=", b"input", b"\n", b"_", b"9", b"null",
    ];
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let from = numbers.below(bytes.len() + 1);
        let to = (from + numbers.below(24)).min(bytes.len());
        let new = match numbers.below(5) {
            0 => Vec::new(),
            1 => {
                let count = numbers.below(6);
                numbers.bytes(count)
            }
            2 => bytes[from..to].repeat(2),
            3 => {
                let start = numbers.below(other.len());
                other[start..(start + numbers.below(64)).min(other.len())].to_vec()
            }
            _ => TOKENS[numbers.below(TOKENS.len())].to_vec(),
        };
        bytes.splice(from..to, new);
    }
    bytes
}

/// Runs a target on its seeds and on changed ones.
fn bounded(name: &str, target: fn(&[u8]), rounds: usize) {
    let seeds = seeds(name);
    let mut numbers = Numbers(1);
    for seed in &seeds {
        target(seed);
        for _ in 0..rounds {
            let other = &seeds[numbers.below(seeds.len())];
            target(&changed(&mut numbers, seed, other));
        }
    }
}

#[test]
fn any_rego_is_refused_or_compiles_to_what_it_means() {
    bounded("source", targets::source, ROUNDS);
}

#[test]
fn any_trace_is_refused_or_answered_line_by_line() {
    bounded("trace", targets::trace, ROUNDS);
}

#[test]
fn any_bytes_are_refused_as_an_image_or_run_within_their_limits() {
    bounded("image", targets::image, ROUNDS);
    let mut numbers = Numbers(2);
    for round in 0..400 {
        let mut bytes = vec![1 + u8::from(round % 8 == 0)];
        let changes = 1 + numbers.below(6);
        bytes.extend(numbers.bytes(5 * changes));
        targets::image(&bytes);
    }
}

#[test]
fn any_request_is_decided_within_the_limits_and_a_denial_changes_nothing() {
    bounded("request", targets::request, ROUNDS);
    let mut numbers = Numbers(3);
    for _ in 0..300 {
        let count = 8 + numbers.below(120);
        targets::request(&numbers.bytes(count));
    }
}

#[test]
fn any_fragment_is_refused_or_says_what_was_signed() {
    bounded("fragment", targets::fragment, ROUNDS);
    let mut numbers = Numbers(4);
    for round in 0..300 {
        let mut bytes = vec![1 + 2 * u8::from(round % 3 == 0)];
        let changes = 1 + numbers.below(3);
        bytes.extend(numbers.bytes(5 * changes));
        targets::fragment(&bytes);
    }
}
