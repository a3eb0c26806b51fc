//! The system calls that no container may make, whatever its capabilities: a seccomp filter.
//!
//! It is short because it is the floor under the kernel's own checks, not a replacement for them: it holds what no
//! capability guards, or what reaches beyond the container even where a policy grants every capability. A container's
//! own profile comes on top of it.

use crate::filter::{ALLOW, ARCHITECTURE, ARGUMENTS, ERRNO, Instruction, KILL_PROCESS, NUMBER, X32, X86_64};

const AF_VSOCK: u32 = 40;
const CLONE_NEWUSER: u32 = 0x1000_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// System calls that fail, the error they fail with, and when.
const DENIED: [(u32, When, u32); 34] = [
    // The channel to the host is the init's alone (T03).
    (41, When::FirstIs(AF_VSOCK), EAFNOSUPPORT), // socket
    (53, When::FirstIs(AF_VSOCK), EAFNOSUPPORT), // socketpair
    // A user namespace gives every capability over new interfaces of the kernel.
    (56, When::FirstHas(CLONE_NEWUSER), EPERM),  // clone
    (272, When::FirstHas(CLONE_NEWUSER), EPERM), // unshare
    // Its flags are in memory, where no filter can look; C libraries fall back to clone.
    (435, When::Always, ENOSYS), // clone3
    // Makes sockets that no filter sees.
    (425, When::Always, ENOSYS), // io_uring_setup
    (426, When::Always, ENOSYS), // io_uring_enter
    (427, When::Always, ENOSYS), // io_uring_register
    // Code in the kernel.
    (175, When::Always, EPERM), // init_module
    (176, When::Always, EPERM), // delete_module
    (246, When::Always, EPERM), // kexec_load
    (313, When::Always, EPERM), // finit_module
    (320, When::Always, EPERM), // kexec_file_load
    (321, When::Always, EPERM), // bpf
    // Hardware.
    (172, When::Always, EPERM), // iopl
    (173, When::Always, EPERM), // ioperm
    // Files by number instead of by path: out of the container.
    (304, When::Always, EPERM), // open_by_handle_at
    // Keyrings belong to users, not to containers: two containers with a user of the same number would share them.
    (248, When::Always, EPERM), // add_key
    (249, When::Always, EPERM), // request_key
    (250, When::Always, EPERM), // keyctl
    // The whole machine's state, or views of it.
    (163, When::Always, EPERM), // acct
    (103, When::Always, EPERM), // syslog
    (167, When::Always, EPERM), // swapon
    (168, When::Always, EPERM), // swapoff
    (179, When::Always, EPERM), // quotactl
    (298, When::Always, EPERM), // perf_event_open
    (443, When::Always, EPERM), // quotactl_fd
    // Holds the kernel still in the middle of a copy, as exploits like it.
    (323, When::Always, EPERM), // userfaultfd
    // Of no use to anybody.
    (134, When::Always, ENOSYS), // uselib
    (136, When::Always, ENOSYS), // ustat
    (139, When::Always, ENOSYS), // sysfs
    (156, When::Always, ENOSYS), // _sysctl
    (180, When::Always, ENOSYS), // nfsservctl
    (212, When::Always, ENOSYS), // lookup_dcookie
];

/// When a call of a given number is denied.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// The low 32 bits of the first argument, all that the kernel looks at, are this value.
    FirstIs(u32),
    /// They have one of these bits.
    FirstHas(u32),
}

/// A filter, with room for every rule.
pub type Program = heapless::Vec<Instruction, 128>;

/// The filter.
pub fn program() -> Program {
    let mut program = Program::from_iter([
        Instruction::load(ARCHITECTURE),
        Instruction::if_equal(X86_64, 1, 0),
        Instruction::answer(KILL_PROCESS),
        Instruction::load(NUMBER),
        Instruction::if_at_least(X32, 0, 1),
        Instruction::answer(ERRNO | ENOSYS),
    ]);
    for (number, when, errno) in DENIED {
        let denied = Instruction::answer(ERRNO | errno);
        match when {
            When::Always => program.extend([Instruction::if_equal(number, 0, 1), denied]),
            When::FirstIs(value) => {
                program.extend([
                    Instruction::if_equal(number, 0, 4),
                    Instruction::load(ARGUMENTS),
                    Instruction::if_equal(value, 0, 1),
                    denied,
                    Instruction::load(NUMBER),
                ]);
            }
            When::FirstHas(bits) => {
                program.extend([
                    Instruction::if_equal(number, 0, 4),
                    Instruction::load(ARGUMENTS),
                    Instruction::if_any_bit(bits, 0, 1),
                    denied,
                    Instruction::load(NUMBER),
                ]);
            }
        }
    }
    // Without it a program that is too long for its place is not valid, and the kernel refuses it.
    let _ = program.push(Instruction::answer(ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::evaluate;

    fn run(architecture: u32, number: u32, first: u64) -> u32 {
        evaluate(&program(), architecture, number, [first, 0, 0, 0, 0, 0]).expect("an answer")
    }

    #[test]
    fn t03_no_vsock_socket_can_be_made() {
        for number in [41, 53] {
            assert_eq!(run(X86_64, number, 40), ERRNO | EAFNOSUPPORT);
            // The kernel ignores the upper half of the register.
            assert_eq!(run(X86_64, number, 0xdead_beef_0000_0028), ERRNO | EAFNOSUPPORT);
            for family in [1, 2, 10, 16, 17] {
                assert_eq!(run(X86_64, number, family), ALLOW);
            }
        }
        assert_eq!(run(X86_64, 425, 8), ERRNO | ENOSYS);
    }

    #[test]
    fn another_architecture_is_killed_and_x32_is_not_there() {
        assert_eq!(run(0x4000_0003, 1, 0), KILL_PROCESS);
        assert_eq!(run(X86_64, X32 | 41, 40), ERRNO | ENOSYS);
        assert_eq!(run(X86_64, u32::MAX, 0), ERRNO | ENOSYS);
    }

    #[test]
    fn user_namespaces_are_denied_and_threads_are_not() {
        let thread = 0x003d_0f00;
        assert_eq!(run(X86_64, 56, thread), ALLOW);
        assert_eq!(run(X86_64, 56, u64::from(CLONE_NEWUSER) | 17), ERRNO | EPERM);
        assert_eq!(run(X86_64, 272, u64::from(CLONE_NEWUSER)), ERRNO | EPERM);
        assert_eq!(run(X86_64, 272, 0x400), ALLOW);
    }

    #[test]
    fn every_denied_call_is_denied_and_its_neighbours_are_not() {
        let denied = |number| DENIED.iter().any(|&(other, ..)| other == number);
        for number in 0..500 {
            let expected = DENIED.iter().find(|&&(other, ..)| other == number);
            match expected {
                Some(&(_, When::Always, errno)) => assert_eq!(run(X86_64, number, 0), ERRNO | errno),
                _ => assert_eq!(run(X86_64, number, 0), ALLOW, "{number}"),
            }
        }
        // What an ordinary program cannot do without.
        for number in [0, 1, 9, 13, 56, 57, 58, 59, 101, 157, 202, 257, 317, 322, 424, 436] {
            assert!(!denied(number) || matches!(run(X86_64, number, 0), ALLOW));
        }
    }
}
