//! PID 1 of the utility VM: its first instructions, and the order in which it becomes a guest.
//!
//! The machine is prepared, the attestation report is read, and only then is anything from outside listened to. Every
//! step that fails ends the machine.
#![no_std]
#![no_main]

mod start;

use core::convert::Infallible;
use core::fmt::Display;
use core::ops::Range;
use parma_guest::attest::{self, Report};
use parma_guest::boot::{self, Failed};
use parma_guest::events::Events;
use parma_guest::linux::{console, power};

extern "C" fn main() -> ! {
    let heap = start::heap();
    if let Err(failed) = boot::prepare() {
        end(failed)
    }
    match attest::read_report() {
        Ok(report) => match listen(&report, heap) {
            Err(failed) => end(failed),
        },
        Err(error) => end(error),
    }
}

fn listen(report: &Report, heap: Range<usize>) -> Result<Infallible, Failed> {
    let events = Events::new(report, heap)?;
    console::line(format_args!("reports come from {}", attest::SOURCE));
    console::line(format_args!("listening"));
    events.run()
}

/// Says what failed and ends the machine.
fn end(why: impl Display) -> ! {
    console::line(format_args!("fatal: {why}"));
    power::off()
}
