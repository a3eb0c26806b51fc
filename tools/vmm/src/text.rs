//! Text from a guest, made safe to show.

use std::fmt::Write as _;

/// The text of these bytes with everything escaped that a terminal or a log could take for more than text (T09):
/// control characters except newline and tab, characters that reorder text, and bytes that are no UTF-8.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let reorders =
                matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            match c {
                '\n' | '\t' => text.push(c),
                c if c.is_control() || reorders => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn t09_terminal_sequences_are_shown_not_sent() {
        assert_eq!(escape(b"ok\x1b[2J\x07\r\n\tend"), "ok\\u{1b}[2J\\u{7}\\u{d}\n\tend");
        assert_eq!(escape("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(escape(b"\xff\xc3"), "\\xff\\xc3");
        assert_eq!(escape("Grüße 你好".as_bytes()), "Grüße 你好");
    }
}
