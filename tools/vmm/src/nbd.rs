//! The server's half of NBD, the Network Block Device protocol (`NetworkBlockDevice/nbd`, `doc/proto.md`).
//!
//! As much of it as QEMU needs: the fixed newstyle handshake with `NBD_OPT_GO`, then requests with simple replies. One
//! export, whatever name is asked for. Lengths are bounded; anything else than the protocol ends the connection.

use std::io::{self, ErrorKind, Read, Write};

/// Most bytes that one request may read or write.
pub const MAX_REQUEST: u32 = 32 << 20;
/// Most bytes of one option of the handshake.
const MAX_OPTION: u32 = 64 << 10;

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags: fixed newstyle, no zeroes.
const HANDSHAKE: u16 = 1 | 2;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// Transmission flags: flags, flush, FUA, trim, write zeroes.
const TRANSMISSION: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;
/// Smallest and preferred unit of requests, in bytes.
const BLOCK_SIZES: [u32; 2] = [512, 4096];

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Make what was written lasting.
    Flush,
    /// Forget content.
    Trim,
    /// Write zeros.
    WriteZeroes,
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// What its reply must carry.
    pub cookie: u64,
    /// What it asks for.
    pub operation: Operation,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
    /// What to write.
    pub data: Vec<u8>,
}

/// The handshake, up to the choice of the export, which has `size` bytes; false if the client only looked.
pub fn handshake(stream: &mut (impl Read + Write), size: u64) -> io::Result<bool> {
    stream.write_all(&[MAGIC, OPTION_MAGIC, &HANDSHAKE.to_be_bytes()[..]].concat())?;
    u32_of(stream)?; // the client's flags: it must have chosen the same
    loop {
        if &array::<8>(stream)? != OPTION_MAGIC {
            return Err(broken("an option"));
        }
        let (option, length) = (u32_of(stream)?, u32_of(stream)?);
        if length > MAX_OPTION {
            return Err(broken("an option's length"));
        }
        stream.read_exact(&mut vec![0; length as usize])?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            for word in [option, kind, data.len() as u32] {
                reply.extend(word.to_be_bytes());
            }
            stream.write_all(&[&reply, data].concat())
        };
        match option {
            OPTION_GO | OPTION_INFO => {
                let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                export.extend(size.to_be_bytes());
                export.extend(TRANSMISSION.to_be_bytes());
                reply(REPLY_INFO, &export)?;
                let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                for bytes in [BLOCK_SIZES[0], BLOCK_SIZES[1], MAX_REQUEST] {
                    sizes.extend(bytes.to_be_bytes());
                }
                reply(REPLY_INFO, &sizes)?;
                reply(REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                reply(REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
    }
}

/// The next request; `None` where the client is done.
pub fn request(stream: &mut impl Read) -> io::Result<Option<Request>> {
    let magic = match u32_of(stream) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    if magic != REQUEST_MAGIC {
        return Err(broken("a request"));
    }
    let [_, _, kind @ ..] = array::<4>(stream)?; // flags: what they ask for is done to every request
    let cookie = u64::from_be_bytes(array(stream)?);
    let (offset, length) = (u64::from_be_bytes(array(stream)?), u32_of(stream)?);
    let operation = match u16::from_be_bytes(kind) {
        0 => Operation::Read,
        1 => Operation::Write,
        2 => return Ok(None),
        3 => Operation::Flush,
        4 => Operation::Trim,
        6 => Operation::WriteZeroes,
        _ => return Err(broken("a request's type")),
    };
    let transfers = matches!(operation, Operation::Read | Operation::Write);
    if transfers && length > MAX_REQUEST || offset.checked_add(length.into()).is_none() {
        return Err(broken("a request's length"));
    }
    let mut data = vec![0; if operation == Operation::Write { length as usize } else { 0 }];
    stream.read_exact(&mut data)?;
    Ok(Some(Request { cookie, operation, offset, length, data }))
}

/// Answers a request: with data, empty but for reads, or with an error's number.
pub fn reply(stream: &mut impl Write, cookie: u64, result: Result<Vec<u8>, u32>) -> io::Result<()> {
    let error = result.as_ref().err().copied().unwrap_or(0);
    let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
    reply.extend(error.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply.extend(result.unwrap_or_default());
    stream.write_all(&reply)
}

fn array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn u32_of(stream: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_be_bytes(array(stream)?))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what} is not what the protocol says"))
}
