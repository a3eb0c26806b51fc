//! Reads a tar stream as Go's `archive/tar` does, since what that reader makes of an archive decides the bytes
//! of a layer's image: V7, ustar, star, GNU and PAX headers, long names, and the sparse formats of GNU tar,
//! whose holes are read as zeros.
//!
//! Names and links are bytes, uncleaned. Archives are read front to back; nothing is seeked.

use std::collections::BTreeMap;
use std::io::{self, Read};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::content::{Content, Region};
use crate::time::Time;

const BLOCK: usize = 512;
/// Largest PAX header, long name or sparse map, in bytes: the limit of Go and of libarchive.
pub const MAX_SPECIAL: u64 = 1 << 20;

/// Type flags as ustar and PAX define them.
pub mod flag {
    /// A regular file.
    pub const REGULAR: u8 = b'0';
    /// A hard link.
    pub const LINK: u8 = b'1';
    /// A symbolic link.
    pub const SYMLINK: u8 = b'2';
    /// A character device.
    pub const CHARACTER: u8 = b'3';
    /// A block device.
    pub const BLOCK: u8 = b'4';
    /// A directory.
    pub const DIRECTORY: u8 = b'5';
    /// A FIFO.
    pub const FIFO: u8 = b'6';
    pub(super) const OLD_REGULAR: u8 = 0;
    pub(super) const PAX: u8 = b'x';
    pub(super) const PAX_GLOBAL: u8 = b'g';
    pub(super) const GNU_LONG_NAME: u8 = b'L';
    pub(super) const GNU_LONG_LINK: u8 = b'K';
    pub(super) const GNU_SPARSE: u8 = b'S';
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the archive says of one file.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Path, as written.
    pub name: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Type flag, see [`flag`]; unknown ones are kept.
    pub flag: u8,
    /// Permission bits, and whatever else the field holds.
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Bytes of the content, holes included.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Option<Time>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of the inode.
    pub ctime: Option<Time>,
    /// Device number.
    pub major: i64,
    /// Device number.
    pub minor: i64,
    /// The PAX records that apply.
    pub pax: Records,
}

/// Whether an archive must end with its end marker, a block of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It must: an archive without one was cut off.
    Marked,
    /// It may end at any header, as Go allows: for input whose completeness a digest proves.
    Anywhere,
}

/// A tar archive being read.
pub struct Reader<R> {
    input: R,
    end: End,
    /// Stored bytes of the current entry's content not read yet, and padding after them.
    left: u64,
    pad: u64,
    sparse: Option<Sparse>,
    /// The last entry, for messages.
    last: Vec<u8>,
}

/// Where the stored bytes of a sparse file belong.
struct Sparse {
    /// (offset, length) in order, without overlap, within `size`, none empty.
    fragments: std::vec::IntoIter<(u64, u64)>,
    /// The fragment at or after `position`.
    current: Option<(u64, u64)>,
    position: u64,
    size: u64,
}

impl<R: Read> Reader<R> {
    /// A reader at the archive's start.
    pub fn new(input: R, end: End) -> Self {
        Self { input, end, left: 0, pad: 0, sparse: None, last: Vec::new() }
    }

    /// The stream behind the archive.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next file, or `None` at the archive's end. What was left of the content before is skipped.
    ///
    /// # Errors
    /// A malformed or truncated archive; the error names the entry before the fault.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        match self.next_inner() {
            Ok(Some(entry)) => {
                self.last.clone_from(&entry.name);
                Ok(Some(entry))
            }
            Ok(None) => Ok(None),
            Err(e) if self.last.is_empty() => Err(e.context("tar: at the first entry")),
            Err(e) => Err(e.context(format!("tar: after the entry {}", show(&self.last)))),
        }
    }

    fn next_inner(&mut self) -> Result<Option<Entry>> {
        let mut pax = Records::new();
        let (mut long_name, mut long_link) = (Vec::new(), Vec::new());
        loop {
            if !self.skip()? {
                return Ok(None);
            }
            let Some(block) = self.header_block()? else { return Ok(None) };
            let mut entry = parse_header(&block)?;
            self.begin(&entry)?;
            match entry.flag {
                flag::PAX => pax = parse_pax(&self.special()?)?,
                flag::PAX_GLOBAL => {
                    let records = parse_pax(&self.special()?)?;
                    merge_pax(&mut entry, records)?;
                    // Go gives such a header to its caller as a file with a name and records, and nothing else.
                    let Entry { name, flag, pax, .. } = entry;
                    return Ok(Some(Entry { name, flag, pax, ..Entry::default() }));
                }
                flag::GNU_LONG_NAME => long_name = until_nul(&self.special()?).to_vec(),
                flag::GNU_LONG_LINK => long_link = until_nul(&self.special()?).to_vec(),
                _ => {
                    merge_pax(&mut entry, pax)?;
                    if !long_name.is_empty() {
                        entry.name = long_name;
                    }
                    if !long_link.is_empty() {
                        entry.link = long_link;
                    }
                    if entry.flag == flag::OLD_REGULAR {
                        let directory = entry.name.ends_with(b"/");
                        entry.flag = if directory { flag::DIRECTORY } else { flag::REGULAR };
                    }
                    self.begin(&entry)?;
                    self.begin_sparse(&mut entry, &block)?;
                    if has_no_content(entry.flag) {
                        entry.size = 0;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Passes over what is left of the current entry. False at an end that is allowed there.
    fn skip(&mut self) -> Result<bool> {
        let skipped = io::copy(&mut (&mut self.input).take(self.left), &mut io::sink())?;
        ensure!(skipped == self.left, "truncated: the content ends {} bytes early", self.left - skipped);
        let padding = io::copy(&mut (&mut self.input).take(self.pad), &mut io::sink())?;
        let complete = padding == self.pad;
        ensure!(complete || self.end == End::Anywhere, "truncated: no end-of-archive marker");
        (self.left, self.pad, self.sparse) = (0, 0, None);
        Ok(complete)
    }

    /// The next header, or `None` at the archive's end.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.block()? else {
            ensure!(self.end == End::Anywhere, "truncated: no end-of-archive marker");
            return Ok(None);
        };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if second != [0; BLOCK] => bail!("malformed: a header after a block of zeros"),
            _ => Ok(None),
        }
    }

    /// A whole block, or `None` where the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => bail!("truncated: a header ends after {filled} bytes"),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Some(block))
    }

    /// Sets the current content to that of `entry`.
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        let size = if has_no_content(entry.flag) { 0 } else { entry.size };
        ensure!(size <= i64::MAX as u64, "malformed: {} has a negative size", show(&entry.name));
        self.left = size;
        self.pad = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// The whole content of an entry that describes another.
    fn special(&mut self) -> Result<Vec<u8>> {
        ensure!(
            self.left <= MAX_SPECIAL,
            "an extended header of {} bytes, the limit is {MAX_SPECIAL}",
            self.left
        );
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn begin_sparse(&mut self, entry: &mut Entry, header: &[u8; BLOCK]) -> Result<()> {
        let fragments = if entry.flag == flag::GNU_SPARSE {
            Some(self.old_sparse_map(entry, header)?)
        } else {
            self.pax_sparse_map(entry)?
        };
        let Some(fragments) = fragments else { return Ok(()) };
        ensure!(
            !has_no_content(entry.flag),
            "malformed: {} is sparse and no regular file",
            show(&entry.name)
        );
        let mut end = 0;
        for &(offset, length) in &fragments {
            let this_end = offset.checked_add(length).filter(|e| *e <= entry.size && end <= offset);
            end = this_end.with_context(|| format!("malformed: sparse map of {}", show(&entry.name)))?;
        }
        let fragments: Vec<_> = fragments.into_iter().filter(|(_, length)| *length > 0).collect();
        let mut fragments = fragments.into_iter();
        let current = fragments.next();
        self.sparse = Some(Sparse { fragments, current, position: 0, size: entry.size });
        Ok(())
    }

    /// The sparse map of the old GNU format: in the header, and in blocks that follow it.
    fn old_sparse_map(&mut self, entry: &mut Entry, header: &[u8; BLOCK]) -> Result<Vec<(u64, u64)>> {
        ensure!(
            Format::of(header) == Format::Gnu,
            "malformed: {} is sparse, but not of GNU tar",
            show(&entry.name)
        );
        entry.size = size(numeric(&header[483..495])?)?;
        let mut map = Vec::new();
        let mut slots = header[386..483].to_vec();
        let mut total = slots.len();
        loop {
            let (entries, extended) = slots.split_at(slots.len() / 24 * 24);
            for slot in entries.chunks_exact(24).take_while(|s| s[0] != 0) {
                map.push((size(numeric(&slot[..12])?)?, size(numeric(&slot[12..])?)?));
            }
            if extended[0] == 0 {
                return Ok(map);
            }
            slots = self.block()?.context("truncated: in a sparse map")?.to_vec();
            total += slots.len();
            ensure!(total < MAX_SPECIAL as usize, "sparse map of {} is too long", show(&entry.name));
        }
    }

    /// The sparse map of GNU tar's PAX formats 0.0, 0.1 and 1.0.
    fn pax_sparse_map(&mut self, entry: &mut Entry) -> Result<Option<Vec<(u64, u64)>>> {
        let record = |key: &str| entry.pax.get(key.as_bytes()).map(Vec::as_slice).unwrap_or_default();
        let first_version = match (record("GNU.sparse.major"), record("GNU.sparse.minor")) {
            (b"0", b"0" | b"1") => true,
            (b"1", b"0") => false,
            (b"", b"") if !record(SPARSE_MAP).is_empty() => true,
            _ => return Ok(None),
        };
        let name = record("GNU.sparse.name").to_vec();
        let real_size = match (record("GNU.sparse.size"), record("GNU.sparse.realsize")) {
            (b"", b"") => None,
            (b"", text) | (text, _) => Some(size(decimal(text)?)?),
        };
        let map = if first_version {
            let count = decimal(record("GNU.sparse.numblocks"))?;
            let map = record(SPARSE_MAP);
            let numbers: Vec<_> = map.split(|c| *c == b',').filter(|_| !map.is_empty()).collect();
            ensure!(
                usize::try_from(count).ok().and_then(|n| n.checked_mul(2)) == Some(numbers.len()),
                "malformed: sparse map of {}",
                show(&entry.name)
            );
            pairs(numbers.into_iter())?
        } else {
            self.sparse_map_in_content()?
        };
        if !name.is_empty() {
            entry.name = name;
        }
        if let Some(real_size) = real_size {
            entry.size = real_size;
        }
        Ok(Some(map))
    }

    /// The sparse map of PAX format 1.0: decimal lines before the content, padded to a block.
    fn sparse_map_in_content(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut text = Vec::new();
        let mut lines = 0;
        let mut feed = |this: &mut Self, wanted: usize, text: &mut Vec<u8>| -> Result<()> {
            while lines < wanted {
                ensure!((text.len() + BLOCK) as u64 <= MAX_SPECIAL, "a sparse map is too long");
                let mut block = [0; BLOCK];
                this.read_exact(&mut block).context("truncated: in a sparse map")?;
                lines += block.iter().filter(|c| **c == b'\n').count();
                text.extend_from_slice(&block);
            }
            Ok(())
        };
        feed(self, 1, &mut text)?;
        let count = decimal(text.split(|c| *c == b'\n').next().unwrap_or_default())?;
        let count = usize::try_from(count)
            .ok()
            .filter(|n| *n as u64 <= MAX_SPECIAL)
            .context("malformed sparse map")?;
        feed(self, 1 + 2 * count, &mut text)?;
        pairs(text.split(|c| *c == b'\n').skip(1).take(2 * count))
    }
}

/// The content of the current entry, holes as zeros.
impl<R: Content> Content for Reader<R> {
    fn region(&mut self, most: usize) -> Option<Region> {
        // The parts of a sparse file are read where they belong.
        if self.sparse.is_some() {
            return None;
        }
        let region = self.input.region(usize::try_from(self.left).unwrap_or(usize::MAX).min(most))?;
        self.left -= region.length() as u64;
        Some(region)
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(sparse) = &mut self.sparse else {
            return read_stored(&mut self.input, &mut self.left, buf);
        };
        let until = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(buf.len());
        let n = match sparse.current {
            Some((offset, length)) if sparse.position >= offset => {
                let n = until(offset + length - sparse.position);
                read_stored(&mut self.input, &mut self.left, &mut buf[..n])
                    .and_then(|n| if n == 0 && !buf.is_empty() { Err(disagree()) } else { Ok(n) })?
            }
            next => {
                let hole_end = next.map_or(sparse.size, |(offset, _)| offset);
                let n = until(hole_end - sparse.position);
                buf[..n].fill(0);
                n
            }
        };
        sparse.position += n as u64;
        if sparse.current.is_some_and(|(offset, length)| sparse.position == offset + length) {
            sparse.current = sparse.fragments.next();
        }
        if sparse.position == sparse.size && self.left > 0 {
            return Err(disagree());
        }
        Ok(n)
    }
}

fn disagree() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed: sparse map and content disagree")
}

fn read_stored(input: &mut impl Read, left: &mut u64, buf: &mut [u8]) -> io::Result<usize> {
    let n = input.take(*left).read(buf)?;
    if n == 0 && *left > 0 && !buf.is_empty() {
        let message = format!("truncated: the content ends {left} bytes early");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
    *left -= n as u64;
    Ok(n)
}

/// A name from an archive, for messages.
pub fn show(name: &[u8]) -> String {
    format!("\"{}\"", name.escape_ascii())
}

fn has_no_content(kind: u8) -> bool {
    use flag::{BLOCK, CHARACTER, DIRECTORY, FIFO, LINK, SYMLINK};
    matches!(kind, LINK | SYMLINK | CHARACTER | BLOCK | DIRECTORY | FIFO)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Format {
    fn of(block: &[u8; BLOCK]) -> Self {
        match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..] == b"tar\0" => Self::Star,
            (b"ustar\0", _) => Self::Ustar,
            (b"ustar ", b" \0") => Self::Gnu,
            _ => Self::V7,
        }
    }
}

fn parse_header(block: &[u8; BLOCK]) -> Result<Entry> {
    check_sum(block)?;
    let mut entry = Entry {
        name: until_nul(&block[..100]).to_vec(),
        mode: numeric(&block[100..108])?,
        uid: numeric(&block[108..116])?,
        gid: numeric(&block[116..124])?,
        // A negative size wraps to one that `begin` refuses, unless the type has no content.
        size: numeric(&block[124..136])?.cast_unsigned(),
        mtime: Some(Time::new(numeric(&block[136..148])?, 0)),
        flag: block[156],
        link: until_nul(&block[157..257]).to_vec(),
        ..Entry::default()
    };
    let format = Format::of(block);
    if format == Format::V7 {
        return Ok(entry);
    }
    entry.major = numeric(&block[329..337])?;
    entry.minor = numeric(&block[337..345])?;
    let prefix = match format {
        Format::Star => {
            entry.atime = Some(Time::new(numeric(&block[476..488])?, 0));
            entry.ctime = Some(Time::new(numeric(&block[488..500])?, 0));
            until_nul(&block[345..476])
        }
        Format::Gnu => {
            let time = |field: &[u8]| match field[0] {
                0 => Ok(None),
                _ => numeric(field).map(|seconds| Some(Time::new(seconds, 0))),
            };
            match (time(&block[345..357]), time(&block[357..369])) {
                (Ok(atime), Ok(ctime)) => {
                    (entry.atime, entry.ctime) = (atime, ctime);
                    &[][..]
                }
                // Archives of Go before 1.8 have a prefix here.
                _ => Some(until_nul(&block[345..500])).filter(|p| p.is_ascii()).unwrap_or_default(),
            }
        }
        _ => until_nul(&block[345..500]),
    };
    if !prefix.is_empty() {
        entry.name = [prefix, b"/", &entry.name].concat();
    }
    Ok(entry)
}

/// The sum is of the bytes as unsigned numbers, or, in archives of old Sun tar, as signed ones.
fn check_sum(block: &[u8; BLOCK]) -> Result<()> {
    let bytes = || block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    let stated = octal(&block[148..156]);
    ensure!(stated == Some(unsigned) || stated == Some(signed), "malformed: header checksum is wrong");
    Ok(())
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn size(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| anyhow!("malformed: a negative size"))
}

/// A number as GNU tar writes it: octal, or base 256 in two's complement where the first bit is set.
fn numeric(field: &[u8]) -> Result<i64> {
    let malformed = || format!("malformed: number \"{}\"", field.escape_ascii());
    if field[0] & 0x80 == 0 {
        return octal(field).with_context(malformed);
    }
    let invert = if field[0] & 0x40 == 0 { 0 } else { 0xff };
    let mut value = 0u64;
    for (i, byte) in field.iter().enumerate() {
        ensure!(value >> 56 == 0, malformed());
        let digit = byte ^ invert;
        value = value << 8 | u64::from(if i == 0 { digit & 0x7f } else { digit });
    }
    let value = i64::try_from(value).ok().with_context(malformed)?;
    Ok(if invert == 0 { value } else { !value })
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    let digits = until_nul(&field[start..end]);
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => Some(value << 3 | i64::from(digit - b'0')), // at most 12 digits
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Result<i64> {
    let number = str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    number.with_context(|| format!("malformed: number {}", show(text)))
}

fn pairs<'a>(mut numbers: impl Iterator<Item = &'a [u8]>) -> Result<Vec<(u64, u64)>> {
    let mut pairs = Vec::new();
    while let (Some(offset), Some(length)) = (numbers.next(), numbers.next()) {
        pairs.push((size(decimal(offset)?)?, size(decimal(length)?)?));
    }
    Ok(pairs)
}

const SPARSE_MAP: &str = "GNU.sparse.map";

/// Parses the records of a PAX header: each `LENGTH KEY=VALUE\n`.
fn parse_pax(mut text: &[u8]) -> Result<Records> {
    let mut records = Records::new();
    let mut sparse: Vec<&[u8]> = Vec::new();
    while !text.is_empty() {
        let record = next_record(&mut text).context("malformed: PAX header")?;
        let (key, value) = record;
        match key {
            // Format 0.0 repeats these two keys; they become the map of format 0.1.
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let expected: &[u8] = if sparse.len().is_multiple_of(2) {
                    b"GNU.sparse.offset"
                } else {
                    b"GNU.sparse.numbytes"
                };
                ensure!(key == expected && !value.contains(&b','), "malformed: sparse map in a PAX header");
                sparse.push(value);
            }
            _ => {
                records.insert(key.to_vec(), value.to_vec());
            }
        }
    }
    if !sparse.is_empty() {
        records.insert(SPARSE_MAP.into(), sparse.join(&b','));
    }
    Ok(records)
}

fn next_record<'a>(text: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = text.iter().position(|c| *c == b' ')?;
    let length: usize = str::from_utf8(&text[..space]).ok()?.parse().ok().filter(|n| *n >= 5)?;
    let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|c| *c == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let nul = match key {
        b"path" | b"linkpath" | b"uname" | b"gname" => value.contains(&0),
        _ => key.contains(&0),
    };
    *text = &text[length..];
    (!key.is_empty() && !nul).then_some((key, value))
}

/// Lets the records that are not empty replace the header's fields.
fn merge_pax(entry: &mut Entry, records: Records) -> Result<()> {
    for (key, value) in records.iter().filter(|(_, value)| !value.is_empty()) {
        match key.as_slice() {
            b"path" => entry.name.clone_from(value),
            b"linkpath" => entry.link.clone_from(value),
            b"uid" => entry.uid = decimal(value)?,
            b"gid" => entry.gid = decimal(value)?,
            b"size" => entry.size = decimal(value)?.cast_unsigned(),
            b"mtime" => entry.mtime = Some(Time::parse_pax(value)?),
            b"atime" => entry.atime = Some(Time::parse_pax(value)?),
            b"ctime" => entry.ctime = Some(Time::parse_pax(value)?),
            _ => {}
        }
    }
    entry.pax = records;
    Ok(())
}
