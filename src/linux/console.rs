//! Lines on the console. The host reads them: nothing secret, and no bytes of the host or a container, goes there.

use core::fmt::{self, Write};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::write;

/// Longest line, in bytes; the rest is cut.
const LINE: usize = 256;

/// A line that is cut where it is full.
struct Line(heapless::Vec<u8, LINE>);

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE - 1 - self.0.len().min(LINE - 1);
        let text = text.as_bytes().get(..room).unwrap_or(text.as_bytes());
        self.0.extend_from_slice(text).map_err(|_| fmt::Error)
    }
}

/// Writes one line, `parma: ` before it. A console that does not work is no reason to stop.
pub fn line(message: fmt::Arguments<'_>) {
    let mut line = Line(heapless::Vec::new());
    let _ = write!(line, "parma: {message}");
    let _ = line.0.push(b'\n');
    if let Ok(console) =
        openat(CWD, c"/dev/console", OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
    {
        let _ = write(console, &line.0);
    }
}
