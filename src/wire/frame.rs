//! Frames: a length and a canonical postcard encoding.
//!
//! ```text
//! u32 little-endian: length of the body in bytes, 1 to MAX_FRAME
//! body: postcard encoding of one value, nothing after it
//! ```
//!
//! [`decode`] accepts exactly the bytes that [`encode`] produces for the decoded value: overlong numbers and trailing
//! bytes are refused (attacks P06, T01), so two frames that mean the same are the same.

use alloc::vec::Vec;
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

/// Bytes before the body.
pub const HEADER: usize = 4;
/// Longest body from host to guest, in bytes: a policy image of [`super::MAX_POLICY`] and its request around it.
pub const MAX_FRAME: usize = super::MAX_POLICY + 64;

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The header promises nothing, or more than [`MAX_FRAME`]. What follows cannot be found: the connection is closed.
    Length,
    /// The body is not the canonical encoding of a value of the expected type.
    Malformed,
    /// There is no memory for it.
    Memory,
}

/// The length of the body that this header announces.
pub fn body_length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    match usize::try_from(u32::from_le_bytes(header)) {
        Ok(length) if (1..=MAX_FRAME).contains(&length) => Ok(length),
        _ => Err(FrameError::Length),
    }
}

/// The value that `body` encodes.
pub fn decode<'a, T: Deserialize<'a> + Serialize>(body: &'a [u8]) -> Result<T, FrameError> {
    let (value, rest) = postcard::take_from_bytes::<T>(body).map_err(|_| FrameError::Malformed)?;
    if !rest.is_empty() {
        return Err(FrameError::Malformed);
    }
    // SECURITY (P06): postcard reads `80 00` as 0; writing the value again and comparing refuses every second spelling.
    match postcard::serialize_with_flavor(&value, Compare { rest: body }) {
        Ok(true) => Ok(value),
        _ => Err(FrameError::Malformed),
    }
}

/// The whole frame, header included.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = Vec::new();
    frame.try_reserve(64).map_err(|_| FrameError::Memory)?;
    frame.extend_from_slice(&[0; HEADER]);
    let mut frame =
        postcard::serialize_with_flavor(value, Append { frame }).map_err(|_| FrameError::Memory)?;
    let length = u32::try_from(frame.len() - HEADER).map_err(|_| FrameError::Length)?;
    if length as usize > MAX_FRAME {
        return Err(FrameError::Length);
    }
    frame[..HEADER].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Compares what is serialised with `rest`; gives whether they are equal.
struct Compare<'a> {
    rest: &'a [u8],
}

impl Flavor for Compare<'_> {
    type Output = bool;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.rest = self.rest.strip_prefix(bytes).ok_or(postcard::Error::SerializeBufferFull)?;
        Ok(())
    }

    fn finalize(self) -> postcard::Result<bool> {
        Ok(self.rest.is_empty())
    }
}

/// Appends to a vector, asking for the memory.
struct Append {
    frame: Vec<u8>,
}

impl Flavor for Append {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.frame.try_reserve(bytes.len()).map_err(|_| postcard::Error::SerializeBufferFull)?;
        self.frame.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Request, ToGuest};
    use proptest::prelude::*;

    fn body(request: Request<'_>) -> Vec<u8> {
        encode(&ToGuest { sequence: 1, request }).unwrap()[HEADER..].to_vec()
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let request = Request::MountOverlay {
            container: "c",
            layers: crate::wire::List::from_vec(alloc::vec!["a", "b"]).unwrap(),
            scratch: Some("s"),
        };
        let body = body(request.clone());
        assert_eq!(decode::<ToGuest>(&body), Ok(ToGuest { sequence: 1, request }));
    }

    #[test]
    fn t01_every_truncation_is_refused() {
        let body = body(Request::MountDevice { device: "layer0", root_hash: [7; 32], data_blocks: 300 });
        for end in 0..body.len() {
            assert_eq!(decode::<ToGuest>(&body[..end]), Err(FrameError::Malformed), "cut at {end}");
        }
    }

    #[test]
    fn t01_trailing_bytes_are_refused() {
        let mut body = body(Request::PowerOff);
        body.push(0);
        assert_eq!(decode::<ToGuest>(&body), Err(FrameError::Malformed));
    }

    #[test]
    fn p06_an_overlong_number_is_refused() {
        let canonical = body(Request::PowerOff);
        assert_eq!(canonical[0], 1, "the sequence number");
        let overlong = [&[0x81, 0x00][..], &canonical[1..]].concat();
        assert!(postcard::take_from_bytes::<ToGuest>(&overlong).is_ok(), "postcard alone accepts it");
        assert_eq!(decode::<ToGuest>(&overlong), Err(FrameError::Malformed));
    }

    #[test]
    fn t01_a_list_that_claims_more_than_its_limit_is_refused() {
        // sequence 1, MountOverlay (3), container "", 4,294,967,295 layers
        let claim = [1, 3, 0, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(decode::<ToGuest>(&claim), Err(FrameError::Malformed));
    }

    #[test]
    fn t01_the_header_bounds_the_body() {
        assert_eq!(body_length([0; 4]), Err(FrameError::Length));
        assert_eq!(body_length([0xff; 4]), Err(FrameError::Length));
        assert_eq!(body_length((MAX_FRAME as u32 + 1).to_le_bytes()), Err(FrameError::Length));
        assert_eq!(body_length((MAX_FRAME as u32).to_le_bytes()), Ok(MAX_FRAME));
    }

    proptest! {
        #[test]
        fn t01_any_bytes_are_refused_or_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = decode::<ToGuest>(&bytes) {
                prop_assert_eq!(&encode(&value).unwrap()[HEADER..], &bytes[..]);
            }
        }
    }
}
