//! Where in the sources something is, and the one error type of the compiler.

use std::fmt;

/// A place in one of the modules being compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pos {
    /// Index of the module in the list of inputs.
    pub file: u32,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// The place of what the compiler makes itself.
pub(crate) const NOWHERE: Pos = Pos { file: 0, line: 0, column: 0 };

/// An error before the module's index is turned into its name.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub pos: Pos,
    pub construct: String,
    pub message: String,
}

impl Refusal {
    pub fn new(pos: Pos, construct: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal { pos, construct: construct.into(), message: message.into() }
    }

    /// Attaches the module's name; `names` are those of the inputs in their order.
    pub fn named(self, names: &[String]) -> CompileError {
        CompileError {
            file: names.get(self.pos.file as usize).cloned().unwrap_or_default(),
            line: self.pos.line,
            column: self.pos.column,
            construct: self.construct,
            message: self.message,
        }
    }
}

pub(crate) type Result<T, E = Refusal> = std::result::Result<T, E>;

/// A policy that does not compile: what is refused, where, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileError {
    /// Name of the module, as given in the inputs.
    pub file: String,
    /// Line, from 1; 0 where the error is about the inputs as a whole.
    pub line: u32,
    /// Column in characters, from 1; 0 where the error is about the inputs as a whole.
    pub column: u32,
    /// The construct that is refused, such as `with` or `regex pattern`.
    pub construct: String,
    /// Why, and where possible what to write instead.
    pub message: String,
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        } else if !self.file.is_empty() {
            write!(f, "{}: ", self.file)?;
        }
        write!(f, "{}: {}", self.construct, self.message)
    }
}

impl std::error::Error for CompileError {}

/// Something that compiles and deserves a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Name of the module, or empty where the warning is about the policy as a whole.
    pub file: String,
    /// Line, from 1; 0 where the warning is about the policy as a whole.
    pub line: u32,
    /// What to know.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.file, self.line)?;
        }
        f.write_str(&self.message)
    }
}
