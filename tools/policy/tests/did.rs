//! did:x509 as its specification means it: the test vectors of the specification's own repository (F04).

use parma_guest::fragment::certificate::Chain;
use parma_guest::fragment::{Problem, did};
use serde_json::Value;

/// What the specification accepts and a guest refuses: the leaf signs here, so it must have the right to; constraints of
/// names are not evaluated, so no chain has any; an issuer is a name without a fragment identifier.
const STRICTER: [(&str, Problem); 3] = [
    ("key-agreement-only-leaf", Problem::Chain),
    ("san-within-permitted-subtree", Problem::Chain),
    ("did-url-fragment-is-removed-from-document-id", Problem::Issuer),
];

/// What the specification refuses and a guest passes over: no predicate can be about an alternative name of a kind that the
/// specification has not, so one beside what the predicates are about makes no difference.
const PASSED_OVER: [&str; 1] = ["unsupported-certificate-san-type"];

fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        _ => 63,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes() {
        bits = bits << 6 | u32::from(digit(byte));
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[test]
fn f04_the_specifications_own_vectors_are_accepted_and_refused_as_it_says() {
    let all: Value = serde_json::from_str(include_str!("did-x509/vectors.json")).unwrap();
    let certificates: Vec<Vec<u8>> =
        all["certificates"].as_array().unwrap().iter().map(|text| decoded(text.as_str().unwrap())).collect();
    let (mut accepted, mut refused, mut stricter, mut looser) = (0, 0, Vec::new(), Vec::new());
    for vector in all["vectors"].as_array().unwrap() {
        let id = vector["id"].as_str().unwrap();
        let chain = vector["chain"].as_array().unwrap().iter();
        let chain: Vec<&[u8]> =
            chain.map(|number| &*certificates[number.as_u64().unwrap() as usize]).collect();
        let ours =
            Chain::validate(&chain).and_then(|chain| did::check(vector["did"].as_str().unwrap(), &chain));
        match (ours, vector["accepted"].as_bool().unwrap()) {
            (Ok(()), true) => accepted += 1,
            (Err(_), false) => refused += 1,
            (Ok(()), false) => looser.push(id),
            (Err(problem), true) => stricter.push((id, problem)),
        }
    }
    assert_eq!(stricter, STRICTER);
    assert_eq!(looser, PASSED_OVER);
    assert_eq!((accepted, refused), (21, 33));
}
