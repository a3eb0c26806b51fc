//! This program's own terminal, while it stands for one in a guest.
//!
//! It is raw then: keys go through unchanged, and what the guest sends steers it, which is what the user asked for. Its
//! settings come back however this program ends, except by SIGKILL.

use anyhow::{Context as _, Result};
use parma_guest::gate::fields;
use parma_guest::wire::WindowSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{stdin, stdout};
use std::sync::{Mutex, PoisonError};

/// The size of a terminal that nobody sees.
const USUAL: WindowSize = WindowSize { rows: 24, columns: 80 };

/// What to come back to.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// As long as this lives, standard input is raw.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Makes standard input raw; nothing is to be done where it is no terminal.
    ///
    /// # Errors
    /// It cannot be changed.
    pub fn new() -> Result<Self> {
        if isatty(stdin()) {
            let before = tcgetattr(stdin()).context("the terminal's settings")?;
            let mut raw = before.clone();
            raw.make_raw();
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            tcsetattr(stdin(), OptionalActions::Drain, &raw).context("cannot make the terminal raw")?;
        }
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its settings back, where they were changed. For whoever ends this program by another way.
pub fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Where it cannot be done, the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// How large this program's terminal is, within what a guest takes.
#[must_use]
pub fn size() -> WindowSize {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin()));
    let size = size.map_or(USUAL, |size| WindowSize { rows: size.ws_row, columns: size.ws_col });
    if fields::WindowSize::new(size).is_ok() { size } else { USUAL }
}

/// Tells of each change of the size from now on, and of the size now, which may have changed before; in a thread that
/// nobody waits for, and that ends at the first error.
///
/// # Errors
/// Signals cannot be received.
pub fn watch(mut resized: impl FnMut(WindowSize) -> Result<()> + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("signals")?;
    let guard = runtime.enter();
    let window_change = tokio::signal::unix::SignalKind::window_change();
    let mut changes = tokio::signal::unix::signal(window_change).context("signals")?;
    drop(guard);
    std::thread::spawn(move || {
        let mut last = None;
        loop {
            let now = size();
            if last != Some(now) && resized(now).is_err() {
                return;
            }
            last = Some(now);
            if runtime.block_on(changes.recv()).is_none() {
                return;
            }
        }
    });
    Ok(())
}
