//! What leaves this program.

use anyhow::{Context as _, Result};
use parma_vmm::escape;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes a file so that it appears whole or not at all; a file that was there before is replaced or left as it was.
///
/// # Errors
/// The directory cannot be written to.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let failed =
        || format!("cannot write {}: does its directory exist, and may you write there?", path.display());
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(dir)
        .with_context(failed)?;
    file.write_all(content).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A writer that escapes what could steer a terminal (T09); see [`escape`]. Carriage returns go with the rest: they
/// overwrite what stands on the line.
#[derive(Debug)]
pub struct Escaping<W: Write> {
    out: W,
    /// The start of a character whose end has not come yet.
    pending: Vec<u8>,
}

impl<W: Write> Escaping<W> {
    /// Escapes what is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, pending: Vec::new() }
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.pending) {
            // Only an end that may still become a character has no length of the error.
            Err(error) => unfinished(&self.pending, error),
            Ok(text) => text.len(),
        };
        self.out.write_all(escape(&self.pending[..whole]).as_bytes())?;
        self.pending.drain(..whole);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Drop for Escaping<W> {
    fn drop(&mut self) {
        // Half a character at the end of a stream; where it cannot be written, nothing could be.
        let _ = self.out.write_all(escape(&self.pending).as_bytes());
    }
}

/// How many bytes stand before a character that has only begun.
fn unfinished(bytes: &[u8], first: std::str::Utf8Error) -> usize {
    let (mut error, mut base) = (first, 0);
    loop {
        let valid = base + error.valid_up_to();
        let Some(length) = error.error_len() else { return valid };
        base = valid + length;
        match std::str::from_utf8(&bytes[base..]) {
            Ok(_) => return bytes.len(),
            Err(next) => error = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write(&dir.path().join("no/such/out"), b"").unwrap_err().to_string();
        assert!(error.contains("no/such/out"), "{error}");
    }

    #[test]
    fn t09_a_character_cut_in_two_arrives_and_a_control_sequence_does_not() {
        let mut shown = Vec::new();
        let mut writer = Escaping::new(&mut shown);
        for part in
            ["gr\u{fc}n \x1b[2J\n".as_bytes().split_at(3).0, "gr\u{fc}n \x1b[2J\n".as_bytes().split_at(3).1]
        {
            assert_eq!(writer.write(part).unwrap(), part.len());
        }
        writer.write_all(b"\xff\xff x \xe2\x82").unwrap();
        writer.write_all(b"\xac").unwrap();
        drop(writer);
        assert_eq!(String::from_utf8(shown).unwrap(), "grün \\u{1b}[2J\n\\xff\\xff x €");
    }
}
