//! Filters of system calls: programs of classic BPF, as seccomp(2) takes them.
//!
//! The host compiles them, of profiles as container engines have them; a policy carries them, and the guest checks them
//! before it gives one to the kernel, which checks them once more.

use alloc::vec::Vec;

/// `AUDIT_ARCH_X86_64`.
pub const X86_64: u32 = 0xc000_003e;
/// Numbers of system calls from here on are of the x32 interface.
pub const X32: u32 = 0x4000_0000;

// What a filter answers (linux/seccomp.h): the upper half is an action, the lower its data.
/// The call is made.
pub const ALLOW: u32 = 0x7fff_0000;
/// It is made and logged.
pub const LOG: u32 = 0x7ffc_0000;
/// It fails with the error number in the lower half.
pub const ERRNO: u32 = 0x0005_0000;
/// The thread gets SIGSYS.
pub const TRAP: u32 = 0x0003_0000;
/// The thread is killed.
pub const KILL_THREAD: u32 = 0;
/// The process is killed.
pub const KILL_PROCESS: u32 = 0x8000_0000;

// `struct seccomp_data`: number, architecture, address, six 64-bit arguments.
/// Where the number of the call is.
pub const NUMBER: u32 = 0;
/// Where the architecture is.
pub const ARCHITECTURE: u32 = 4;
/// Where the first argument is: its lower half, then the upper.
pub const ARGUMENTS: u32 = 16;
/// Its size.
const DATA: u32 = 64;

// Operations (kernel documentation, "Linux Socket Filtering").
/// A = the word at the operand.
const LOAD: u16 = 0x20;
/// A = A & operand.
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// `struct sock_filter`: one instruction of classic BPF.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip where it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

impl Instruction {
    const fn new(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> Self {
        Self { code, jump_true, jump_false, operand }
    }

    /// Loads a word of the `struct seccomp_data`.
    pub const fn load(offset: u32) -> Self {
        Self::new(LOAD, 0, 0, offset)
    }

    /// Keeps these bits of the word.
    pub const fn and(bits: u32) -> Self {
        Self::new(AND, 0, 0, bits)
    }

    /// Skips `jump_true` instructions if the word is this, else `jump_false`.
    pub const fn if_equal(operand: u32, jump_true: u8, jump_false: u8) -> Self {
        Self::new(IF_EQUAL, jump_true, jump_false, operand)
    }

    /// The same if it is greater.
    pub const fn if_greater(operand: u32, jump_true: u8, jump_false: u8) -> Self {
        Self::new(IF_GREATER, jump_true, jump_false, operand)
    }

    /// The same if it is at least as great.
    pub const fn if_at_least(operand: u32, jump_true: u8, jump_false: u8) -> Self {
        Self::new(IF_AT_LEAST, jump_true, jump_false, operand)
    }

    /// The same if it has any of these bits.
    pub const fn if_any_bit(operand: u32, jump_true: u8, jump_false: u8) -> Self {
        Self::new(IF_ANY_BIT, jump_true, jump_false, operand)
    }

    /// Skips so many instructions.
    pub const fn jump(over: u32) -> Self {
        Self::new(JUMP, 0, 0, over)
    }

    /// Ends with this answer.
    pub const fn answer(answer: u32) -> Self {
        Self::new(RETURN, 0, 0, answer)
    }

    /// As a policy carries it: operation, jumps and operand, from the highest bit on. Not negative, since no operation is
    /// so great.
    pub const fn word(self) -> i64 {
        (self.code as i64) << 48
            | (self.jump_true as i64) << 40
            | (self.jump_false as i64) << 32
            | self.operand as i64
    }

    /// The instruction that a policy carries so.
    const fn of_word(word: i64) -> Self {
        Self::new((word >> 48) as u16, (word >> 40) as u8, (word >> 32) as u8, word as u32)
    }

    /// Whether it may stand where `left` instructions follow. What does not apply to its operation has to be 0.
    fn may_stand(self, left: usize) -> bool {
        let Self { code, jump_true, jump_false, operand } = self;
        let plain = jump_true == 0 && jump_false == 0;
        match code {
            LOAD => plain && operand < DATA && operand.is_multiple_of(4),
            AND => plain,
            JUMP => plain && usize::try_from(operand).is_ok_and(|over| over < left),
            IF_EQUAL | IF_GREATER | IF_AT_LEAST | IF_ANY_BIT => usize::from(jump_true.max(jump_false)) < left,
            RETURN => plain && is_answer(operand),
            _ => false,
        }
    }
}

/// Whether a filter may say this: a tracer or a supervisor is not asked, since there is none.
fn is_answer(answer: u32) -> bool {
    match answer & 0xffff_0000 {
        ALLOW | LOG | KILL_THREAD | KILL_PROCESS | TRAP => answer & 0xffff == 0,
        ERRNO => answer & 0xffff <= MAX_ERRNO,
        _ => false,
    }
}

/// Greatest error number (linux/err.h).
pub const MAX_ERRNO: u32 = 4095;

/// A filter that has been checked: each path through it goes forward and ends with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Vec<Instruction>);

impl Filter {
    /// Most instructions (`BPF_MAXINSNS`).
    pub const MAX: usize = 4096;

    /// The filter that a policy carries as these words, [`Instruction::word`] each. `None` if it is not valid, or there is
    /// no memory.
    pub fn new(words: &[i64]) -> Option<Self> {
        if words.len() > Self::MAX {
            return None;
        }
        let mut instructions = Vec::new();
        instructions.try_reserve_exact(words.len()).ok()?;
        for (at, &word) in words.iter().enumerate() {
            let instruction = Instruction::of_word(word);
            if !instruction.may_stand(words.len() - at - 1) {
                return None;
            }
            instructions.push(instruction);
        }
        // All others are followed by one that can be reached.
        (instructions.last()?.code == RETURN).then_some(Self(instructions))
    }

    /// Its instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }
}

/// What a filter answers to a call, as the kernel would find it; `arguments` are the call's. For tests.
pub fn evaluate(filter: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> Option<u32> {
    let word = |offset: u32| match offset {
        NUMBER => Some(number),
        ARCHITECTURE => Some(architecture),
        8 | 12 => Some(0),
        _ => {
            let at = usize::try_from(offset.checked_sub(ARGUMENTS)? / 4).ok()?;
            let argument = arguments.get(at / 2)?;
            Some((argument >> (32 * (at % 2))) as u32)
        }
    };
    let (mut accumulator, mut at) = (0u32, 0);
    loop {
        let &Instruction { code, jump_true, jump_false, operand } = filter.get(at)?;
        at += 1;
        let branch = |holds| usize::from(if holds { jump_true } else { jump_false });
        match code {
            LOAD => accumulator = word(operand)?,
            AND => accumulator &= operand,
            JUMP => at += usize::try_from(operand).ok()?,
            IF_EQUAL => at += branch(accumulator == operand),
            IF_GREATER => at += branch(accumulator > operand),
            IF_AT_LEAST => at += branch(accumulator >= operand),
            IF_ANY_BIT => at += branch(accumulator & operand != 0),
            RETURN => return Some(operand),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(instructions: &[Instruction]) -> Vec<i64> {
        instructions.iter().map(|instruction| instruction.word()).collect()
    }

    #[test]
    fn a_filter_survives_its_way_through_a_policy() {
        let filter = [
            Instruction::load(NUMBER),
            Instruction::if_equal(83, 0, 1),
            Instruction::answer(ERRNO | 1),
            Instruction::answer(ALLOW),
        ];
        let read = Filter::new(&words(&filter)).expect("valid");
        assert_eq!(read.instructions(), filter);
        assert_eq!(evaluate(read.instructions(), X86_64, 83, [0; 6]), Some(ERRNO | 1));
        assert_eq!(evaluate(read.instructions(), X86_64, 84, [0; 6]), Some(ALLOW));
    }

    #[test]
    fn what_leads_out_of_the_filter_or_asks_somebody_else_is_refused() {
        let allow = Instruction::answer(ALLOW);
        let one = |instruction| Filter::new(&words(&[instruction, allow]));
        assert!(one(Instruction::load(60)).is_some());
        for wrong in [
            // Behind the data, and in the middle of a word.
            Instruction::load(64),
            Instruction::load(2),
            Instruction::jump(1),
            Instruction::jump(u32::MAX),
            Instruction::if_equal(0, 1, 0),
            Instruction::if_any_bit(0, 0, 255),
            // SECCOMP_RET_USER_NOTIF and SECCOMP_RET_TRACE, and no action at all.
            Instruction::answer(0x7fc0_0000),
            Instruction::answer(0x7ff0_0000),
            Instruction::answer(0x1234_0000),
            Instruction::answer(ERRNO | 4096),
            Instruction::answer(ALLOW | 1),
            // Of classic BPF, but not of seccomp's: a half-word, the packet's length, a division, the index register.
            Instruction::new(0x28, 0, 0, 0),
            Instruction::new(0x80, 0, 0, 0),
            Instruction::new(0x34, 0, 0, 0),
            Instruction::new(0x1d, 0, 0, 0),
            Instruction { jump_true: 1, ..Instruction::load(0) },
        ] {
            assert_eq!(one(wrong), None, "{wrong:?}");
        }
        assert_eq!(Filter::new(&[]), None);
        // It would run on behind its end.
        assert_eq!(Filter::new(&words(&[allow, Instruction::load(0)])), None);
        assert!(Filter::new(&vec![allow.word(); Filter::MAX]).is_some());
        assert_eq!(Filter::new(&vec![allow.word(); Filter::MAX + 1]), None);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_ends_with_an_answer(
            words in prop::collection::vec(
                (prop::sample::select(vec![LOAD, AND, JUMP, IF_EQUAL, IF_GREATER, IF_AT_LEAST, IF_ANY_BIT, RETURN, 0x1d]),
                 0..4u8, 0..4u8, prop::sample::select(vec![0, 1, 2, 4, 16, 60, 64, ALLOW, ERRNO | 1]))
                    .prop_map(|(code, yes, no, operand)| Instruction::new(code, yes, no, operand).word()),
                1..12,
            ),
            number in any::<u32>(),
            arguments in any::<[u64; 6]>(),
        ) {
            if let Some(filter) = Filter::new(&words) {
                prop_assert!(evaluate(filter.instructions(), X86_64, number, arguments).is_some_and(is_answer));
            }
        }
    }
}
