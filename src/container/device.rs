//! The devices of a container: a fixed list, and the program that keeps it to them (C02).
//!
//! A device node that is not on the list can be neither made nor opened in a container, whoever made it and whatever
//! capabilities the container has: the kernel asks the program, attached to the container's control group.

use alloc::vec::Vec;
use core::ffi::CStr;

/// A character device that every container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its node in `/dev`, where it has one of its own.
    pub name: Option<&'static CStr>,
    /// Its major number.
    pub major: u32,
    /// Its minor number, or all of them.
    pub minor: Option<u32>,
}

const fn device(name: &'static CStr, major: u32, minor: u32) -> Device {
    Device { name: Some(name), major, minor: Some(minor) }
}

/// The list of the OCI runtime specification ("Default Devices"), and what pseudoterminals need.
pub const DEVICES: [Device; 8] = [
    device(c"null", 1, 3),
    device(c"zero", 1, 5),
    device(c"full", 1, 7),
    device(c"random", 1, 8),
    device(c"urandom", 1, 9),
    device(c"tty", 5, 0),
    // /dev/pts/ptmx and /dev/pts/<n>, which devpts makes.
    Device { name: None, major: 5, minor: Some(2) },
    Device { name: None, major: 136, minor: None },
];

/// The type of a character device in the program's context (`BPF_DEVCG_DEV_CHAR`).
const CHARACTER: i32 = 2;

// eBPF instructions (kernel documentation, "BPF Instruction Set Architecture").
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (to as u64 | (from as u64) << 4) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}
/// `to = *(u32 *)(r1 + offset)`
const fn load(to: u8, offset: i16) -> u64 {
    instruction(0x61, to, 1, offset, 0)
}
/// `if register != value, skip`
const fn unless(register: u8, value: i32, skip: i16) -> u64 {
    instruction(0x55, register, 0, skip, value)
}
const fn and(register: u8, value: i32) -> u64 {
    instruction(0x54, register, 0, 0, value)
}
/// `r0 = value`
const fn result(value: i32) -> u64 {
    instruction(0xb7, 0, 0, 0, value)
}
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// The program that allows reading, writing and making exactly these devices.
///
/// Its context is three 32-bit words: access in the upper and type in the lower half of the first, major, minor.
pub fn program(devices: &[Device]) -> Vec<u64> {
    let mut program = Vec::from([load(2, 0), and(2, 0xffff), load(3, 4), load(4, 8)]);
    program.extend([unless(2, CHARACTER, 1), instruction(0x05, 0, 0, 2, 0), result(0), EXIT]);
    for device in devices {
        // Device numbers fit: 12 bits and 20 bits.
        match device.minor {
            Some(minor) => program.extend([unless(3, device.major as i32, 3), unless(4, minor as i32, 2)]),
            None => program.push(unless(3, device.major as i32, 2)),
        }
        program.extend([result(1), EXIT]);
    }
    program.extend([result(0), EXIT]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few instructions that the program uses.
    fn run(program: &[u64], context: [u32; 3]) -> u32 {
        let mut registers = [0u32; 11];
        let mut at = 0;
        loop {
            let word = program[at];
            let (code, to) = (word as u8, (word >> 8 & 0xf) as usize);
            let (offset, immediate) = ((word >> 16) as u16 as i16, (word >> 32) as u32);
            at += 1;
            match code {
                0x61 => registers[to] = context[offset as usize / 4],
                0x54 => registers[to] &= immediate,
                0xb7 => registers[to] = immediate,
                0x05 => at += offset as usize,
                0x55 if registers[to] != immediate => at += offset as usize,
                0x55 => {}
                0x95 => return registers[0],
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    fn allowed(kind: u32, access: u32, major: u32, minor: u32) -> bool {
        run(&program(&DEVICES), [access << 16 | kind, major, minor]) == 1
    }

    #[test]
    fn the_listed_devices_can_be_made_read_and_written() {
        for device in DEVICES {
            for access in 1..=7 {
                assert!(allowed(2, access, device.major, device.minor.unwrap_or(77)));
            }
        }
    }

    #[test]
    fn c02_no_other_device_can_be_made_or_opened() {
        let others = [
            (1, 1),    // mem
            (1, 2),    // kmem
            (1, 4),    // port
            (1, 11),   // kmsg
            (4, 64),   // ttyS0
            (5, 1),    // console
            (10, 126), // sev-guest, a misc device
            (10, 236), // device-mapper control
            (10, 241), // vsock
            (254, 0),
        ];
        for (major, minor) in others {
            for access in 1..=7 {
                assert!(!allowed(2, access, major, minor), "{major}:{minor}");
            }
        }
        // No block device, even one with the numbers of a listed character device.
        for major in 0..260 {
            for minor in 0..10 {
                assert!(!allowed(1, 2, major, minor));
            }
        }
        assert!(!allowed(0, 2, 1, 3));
        assert!(!allowed(3, 2, 1, 3));
    }
}
