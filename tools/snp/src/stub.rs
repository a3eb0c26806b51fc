//! The part of GDB's remote protocol that this needs. Source: GDB manual, appendix E.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, ChildStdout};

/// A register, by its number in QEMU's description of the processor.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Register {
    Rax = 0,
    Rcx = 2,
    Rdx = 3,
    Rsi = 4,
    Rip = 16,
    Flags = 17,
    Cr3 = 29,
}

/// The debugger stub of a stopped machine.
pub struct Stub {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Stub {
    /// Connects: the machine must have been started stopped.
    pub fn new(to: ChildStdin, from: ChildStdout) -> Result<Self> {
        let mut stub = Self { to, from: BufReader::new(from) };
        // QEMU takes registers only from those who have asked what there are.
        stub.call("qXfer:features:read:target.xml:0,fff")?;
        Ok(stub)
    }

    pub fn register(&mut self, register: Register) -> Result<u64> {
        let text = self.call(&format!("p{:x}", register as u32))?;
        let mut value = 0;
        for (index, pair) in text.as_bytes().chunks(2).take(8).enumerate() {
            let byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16).context("a register")?;
            value |= u64::from(byte) << (8 * index);
        }
        Ok(value)
    }

    pub fn set(&mut self, register: Register, value: u64) -> Result<()> {
        let size = if matches!(register, Register::Flags) { 4 } else { 8 };
        let text: String = value.to_le_bytes()[..size].iter().map(|byte| format!("{byte:02x}")).collect();
        self.ok(&format!("P{:x}={text}", register as u32))
    }

    /// Stops the machine before the instruction at this address.
    pub fn watch(&mut self, address: u64) -> Result<()> {
        self.ok(&format!("Z0,{address:x},1"))
    }

    /// Lets the machine run until it stops; `false` if it has ended.
    pub fn resume(&mut self) -> Result<bool> {
        self.send("c")?;
        Ok(self.receive()?.is_some_and(|stop| stop.starts_with('T') || stop.starts_with('S')))
    }

    /// Lets the machine run, and forgets it.
    pub fn detach(&mut self) -> Result<()> {
        self.ok("D")
    }

    fn ok(&mut self, packet: &str) -> Result<()> {
        let reply = self.call(packet)?;
        ensure!(reply == "OK", "the stub answers {reply:?} to {packet:?}");
        Ok(())
    }

    fn call(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        self.receive()?.context("the machine ended")
    }

    /// Sends a packet. QEMU takes the next one as the acknowledgement of its reply.
    fn send(&mut self, packet: &str) -> Result<()> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.to.write_all(format!("${packet}#{sum:02x}").as_bytes()).context("the stub")?;
        Ok(self.to.flush()?)
    }

    /// The next packet; `None` at the end.
    fn receive(&mut self) -> Result<Option<String>> {
        let mut skipped = Vec::new();
        self.from.read_until(b'$', &mut skipped)?;
        if skipped.last() != Some(&b'$') {
            return Ok(None);
        }
        let mut packet = Vec::new();
        self.from.read_until(b'#', &mut packet)?;
        let mut sum = [0; 2];
        if packet.pop() != Some(b'#') || self.from.read_exact(&mut sum).is_err() {
            bail!("the stub hung up inside a packet");
        }
        Ok(Some(String::from_utf8_lossy(&packet).into_owned()))
    }
}
