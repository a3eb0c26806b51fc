//! SHA-256 of dm-verity's blocks: 32 zero bytes of salt, then 4096 bytes.
//!
//! All messages have that one length, so where a processor has instructions for SHA-256 two blocks are hashed at a time: each
//! instruction of a hash waits for the one before, and those of another hash fill the time. Elsewhere the `sha2` crate hashes them
//! one by one. The results are the same, and a test says so.
//!
//! Source: FIPS 180-4, sections 5 and 6.2; Intel's instruction set reference for `SHA256RNDS2`, `SHA256MSG1`, `SHA256MSG2`.

use parma_guest::target::ext4::BLOCK;
use sha2::{Digest as _, Sha256};

/// A SHA-256 value.
pub type Hash = [u8; 32];

/// Hashes two blocks.
type Two = fn(&[[u8; BLOCK]; 2]) -> [Hash; 2];

/// What stands before each block.
pub const SALT: [u8; 32] = [0; 32];

/// The hash of one block, or of a shorter piece.
pub fn hash_block(block: &[u8]) -> Hash {
    Sha256::new().chain_update(SALT).chain_update(block).finalize().into()
}

/// The hashes of all blocks of `bytes`, one after the other; what is no whole block at the end is hashed as it is.
pub fn hash_blocks(bytes: &[u8]) -> Vec<u8> {
    let mut hashes = Vec::with_capacity(bytes.len().div_ceil(BLOCK) * size_of::<Hash>());
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let (pairs, last) = blocks.as_chunks::<2>();
    #[cfg(target_arch = "x86_64")]
    let two = accelerated::two();
    #[cfg(not(target_arch = "x86_64"))]
    let two: Option<Two> = None;
    for pair in pairs {
        let pair = match two {
            Some(two) => two(pair),
            None => [hash_block(&pair[0]), hash_block(&pair[1])],
        };
        hashes.extend_from_slice(pair.as_flattened());
    }
    for block in last.iter().map(<[u8; BLOCK]>::as_slice).chain((!rest.is_empty()).then_some(rest)) {
        hashes.extend_from_slice(&hash_block(block));
    }
    hashes
}

#[cfg(target_arch = "x86_64")]
mod accelerated {
    use super::{BLOCK, Hash, SALT, Two};
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi8, _mm_set_epi32,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32,
    };

    /// Bytes that SHA-256 takes in at a time, and how often for salt, block and padding.
    const STEP: usize = 64;
    const STEPS: usize = (SALT.len() + BLOCK).div_ceil(STEP);
    const BITS: i32 = 8 * (SALT.len() + BLOCK) as i32;

    /// Fractions of the square roots of the first primes.
    const START: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    /// Fractions of the cube roots of the first primes.
    #[rustfmt::skip]
    const ROUNDS: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5], [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3], [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc], [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7], [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13], [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3], [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5], [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208], [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    /// A function that hashes two blocks, if this processor has the instructions.
    #[allow(unsafe_code)]
    pub fn two() -> Option<Two> {
        let there = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
        // SAFETY: the function's features were just found, and what it does is safe.
        there.then_some(|blocks| unsafe { both(blocks) })
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn both(blocks: &[[u8; BLOCK]; 2]) -> [Hash; 2] {
        let word = |index: usize| START[index].cast_signed();
        let mut state = [State {
            abef: _mm_set_epi32(word(0), word(1), word(4), word(5)),
            cdgh: _mm_set_epi32(word(2), word(3), word(6), word(7)),
        }; 2];
        let zero = _mm_setzero_si128();
        let half = |block: &[u8; BLOCK], at: usize| [load(block, at), load(block, at + 16)];
        for step in 0..STEPS {
            let at = (step * STEP).wrapping_sub(SALT.len());
            let words = [0, 1].map(|lane| {
                let block = &blocks[lane];
                let [a, b] = if step == 0 { [zero; 2] } else { half(block, at) };
                let [c, d] = if step + 1 < STEPS {
                    half(block, at.wrapping_add(32))
                } else {
                    // A one, zeros, and the length in bits.
                    [_mm_set_epi32(0, 0, 0, i32::MIN), _mm_set_epi32(BITS, 0, 0, 0)]
                };
                [a, b, c, d]
            });
            take_in(&mut state, words);
        }
        let hash = |words: [i32; 8]| zerocopy::transmute!(words.map(i32::to_be_bytes));
        [hash(state[0].words()), hash(state[1].words())]
    }

    #[derive(Clone, Copy)]
    struct State {
        abef: __m128i,
        cdgh: __m128i,
    }

    impl State {
        #[target_feature(enable = "sse4.1")]
        fn words(self) -> [i32; 8] {
            [
                _mm_extract_epi32::<3>(self.abef),
                _mm_extract_epi32::<2>(self.abef),
                _mm_extract_epi32::<3>(self.cdgh),
                _mm_extract_epi32::<2>(self.cdgh),
                _mm_extract_epi32::<1>(self.abef),
                _mm_extract_epi32::<0>(self.abef),
                _mm_extract_epi32::<1>(self.cdgh),
                _mm_extract_epi32::<0>(self.cdgh),
            ]
        }
    }

    /// Sixteen bytes as four big-endian words.
    #[target_feature(enable = "sse2,ssse3")]
    fn load(block: &[u8; BLOCK], at: usize) -> __m128i {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&block[at..at + 16]);
        let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
        _mm_shuffle_epi8(zerocopy::transmute!(bytes), swap)
    }

    /// 64 rounds for each of the two.
    #[target_feature(enable = "sha,sse2,ssse3")]
    fn take_in(state: &mut [State; 2], mut words: [[__m128i; 4]; 2]) {
        let before = *state;
        for (index, constants) in ROUNDS.iter().enumerate() {
            let [a, b, c, d] = constants.map(u32::cast_signed);
            let constants = _mm_set_epi32(d, c, b, a);
            for (State { abef, cdgh }, words) in state.iter_mut().zip(&mut words) {
                let [w, x, y, z] = *words;
                let sum = _mm_add_epi32(w, constants);
                *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, sum);
                *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32::<0x0e>(sum));
                // The four words behind these: the last rounds need none.
                let next = if index < 12 {
                    let part = _mm_add_epi32(_mm_sha256msg1_epu32(w, x), _mm_alignr_epi8::<4>(z, y));
                    _mm_sha256msg2_epu32(part, z)
                } else {
                    w
                };
                *words = [x, y, z, next];
            }
        }
        for (state, before) in state.iter_mut().zip(before) {
            state.abef = _mm_add_epi32(state.abef, before.abef);
            state.cdgh = _mm_add_epi32(state.cdgh, before.cdgh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that differ in every byte from each other.
    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 + at / 251 + at / BLOCK * 7) as u8).collect()
    }

    #[test]
    fn blocks_in_pairs_have_the_hashes_of_blocks_by_themselves() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 5, 2 * BLOCK, 3 * BLOCK, 64 * BLOCK, 65 * BLOCK + 100]
        {
            for bytes in [bytes(length), vec![0; length], vec![0xff; length]] {
                let expected: Vec<u8> = bytes.chunks(BLOCK).flat_map(hash_block).collect();
                assert!(hash_blocks(&bytes) == expected, "{length}");
            }
        }
        #[cfg(target_arch = "x86_64")]
        if accelerated::two().is_none() {
            eprintln!("skipped: this processor has no instructions for SHA-256");
        }
    }
}
