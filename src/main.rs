//! PID 1 of the utility VM.
#![no_std]
#![no_main]

mod start;

use parma_guest::linux::{console, power};

extern "C" fn main() -> ! {
    start::heap();
    console::line(format_args!("started"));
    power::off()
}
