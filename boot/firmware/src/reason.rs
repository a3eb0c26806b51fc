//! Every reason for which the firmware ends the machine: a number, which an SNP guest tells the hypervisor, and a text for
//! the console. Neither contains a byte of the host.

use crate::accept;

/// Declares the reasons: a documentation comment, a name, a number, a text.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why the firmware ends the machine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $name = $number,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What the console says.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// The firmware is at fault.
    Bug = 0, "a bug";
    /// The hypervisor speaks no GHCB version 2, or names another C-bit.
    Protocol = 1, "the hypervisor does not speak version 2 of the GHCB protocol";
    /// The hypervisor cannot run SNP guests.
    Features = 2, "the hypervisor does not support SEV-SNP";
    /// The hypervisor does not take the GHCB.
    Register = 3, "the hypervisor does not take the GHCB";
    /// An exit was not done.
    Exit = 4, "the hypervisor refuses an exit";
    /// Memory is not given, or not shared.
    Denied = 5, "the hypervisor does not change the state of a page";
    /// Memory was valid before.
    AlreadyValid = 6, "a page is valid before it is validated";
    /// Memory cannot be validated.
    Invalid = 7, "a page cannot be validated";
    /// The configuration device says that a transfer failed.
    Device = 8, "the configuration device fails";
    /// The directory of files is too long.
    Directory = 9, "the directory of files is too long";
    /// A file is not there, or twice.
    Missing = 10, "a file is missing";
    /// The memory map is too long.
    MapSize = 11, "the memory map is too long";
    /// The memory map is not one of our machines.
    Map = 12, "the memory map is refused";
    /// The kernel is larger than its place.
    KernelSize = 13, "the kernel is too large";
    /// The kernel's digest.
    Kernel = 14, "the kernel's digest is not the ROM's";
    /// The initrd's digest.
    Initrd = 15, "the initrd's digest is not the ROM's";
    /// The command line's digest.
    CommandLine = 16, "the command line's digest is not the ROM's";
    /// The verified kernel cannot be started.
    KernelEntry = 17, "the kernel has no 64-bit entry";
    /// The verified kernel does not fit.
    KernelPlace = 18, "the kernel has no place";
    /// The initrd does not fit.
    InitrdPlace = 19, "the initrd has no place";
    /// The command line is too long.
    CommandLineSize = 20, "the command line is too long";
    /// The number of processors is none that can be.
    Processors = 21, "the number of processors is refused";
    /// The processor is older than the instructions of this ROM.
    Processor = 22, "the processor has no BMI2: it is older than Haswell or Zen, or its model hides it";
}

impl From<accept::Error> for Reason {
    fn from(error: accept::Error) -> Self {
        match error {
            accept::Error::Denied => Self::Denied,
            accept::Error::AlreadyValid => Self::AlreadyValid,
            accept::Error::Invalid => Self::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_number_and_a_text_of_its_own() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.text().bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
            assert!(Reason::ALL[..index].iter().all(|other| other.text() != reason.text()));
        }
    }
}
