//! The fixed vocabulary in which a policy may tell the host why it denies.
//!
//! SECURITY (D11): a denial carries no content of the policy. So what `data.policy.reason` answers is only
//! compared with these texts, which are those of our framework; anything else is dropped.

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($variant:ident $text:literal),* $(,)?) => {
        /// A reason of a denial.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the text is the documentation")]
        #[repr(u8)]
        pub enum Reason { $(#[doc = $text] $variant),* }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Reason] = &[$(Reason::$variant),*];

            /// The text in the framework.
            pub const fn text(self) -> &'static str {
                match self { $(Reason::$variant => $text),* }
            }
        }
    };
}

reasons! {
    EarlierNotRunning "an earlier container is not running",
    ApiVersionMissing "api_version is missing",
    ContainerAlreadyStarted "container already started",
    ContainerHasNoOverlay "container has no overlay",
    ContainerIdUsed "container id already used",
    ContainerNotStarted "container not started",
    DeviceAlreadyMounted "device already mounted",
    DeviceNotMounted "device not mounted",
    DevicesNotAllowed "devices not allowed",
    FilesystemNotEnsured "filesystem not ensured",
    FrameworkVersionMissing "framework_version is missing",
    FrameworkVersionNewer "framework_version is newer than the framework",
    HostNetworkNotAllowed "host network not allowed",
    InvalidCapabilities "invalid capabilities",
    InvalidCommand "invalid command",
    InvalidDeviceHash "invalid device hash",
    InvalidDevicePath "invalid device path",
    InvalidEnvironment "invalid environment",
    InvalidFilesystem "invalid filesystem",
    InvalidFragmentFeed "invalid fragment feed",
    InvalidFragmentIssuer "invalid fragment issuer",
    InvalidFragmentSvn "invalid fragment svn",
    InvalidFragmentVersion "invalid fragment version",
    InvalidLayers "invalid layers",
    InvalidMounts "invalid mount list",
    InvalidSeccompProfile "invalid seccomp profile",
    InvalidSharePath "invalid share path",
    InvalidSignal "invalid signal",
    InvalidUmask "invalid umask",
    InvalidUser "invalid user",
    InvalidWorkingDirectory "invalid working directory",
    LoggingNotAllowed "logging not allowed",
    NoNewPrivilegesRequired "no_new_privileges is required",
    NotSupported "not supported",
    ObligationsNotInPolicy "obligations not in the policy",
    OverlayAlreadyMounted "overlay already mounted",
    OverlayNotMounted "overlay not mounted",
    PauseNotAllowed "pause not allowed",
    PrivilegedNotAllowed "privileged container not allowed",
    PropertiesNotAllowed "properties not allowed",
    ReceiptMissing "receipt is missing",
    ResourcesNotAllowed "resources not allowed",
    ScratchAlreadyMounted "scratch already mounted",
    ScratchInMemory "scratch in memory not allowed",
    ScratchNotMounted "scratch not mounted",
    ScratchTooLarge "scratch too large",
    ScratchUnprotected "scratch without rollback protection not allowed",
    ShareAlreadyMounted "share already mounted",
    ShareNotMounted "share not mounted",
    StacksNotAllowed "stacks not allowed",
    StdioNotAllowed "standard streams not allowed",
    TerminalNotAllowed "terminal not allowed",
    TooManyInstances "too many instances",
    UnencryptedScratch "unencrypted scratch not allowed",
    VolumeNotAllowed "volume not allowed",
}

impl Reason {
    /// The reason with this text.
    pub fn from_text(text: &str) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| reason.text() == text)
    }
}

/// A set of reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons(u64);

const _: () = assert!(Reason::ALL.len() <= 64);

impl Reasons {
    /// Adds a reason.
    pub fn insert(&mut self, reason: Reason) {
        self.0 |= 1 << reason as u8;
    }

    /// The reasons, in the order of their texts.
    pub fn iter(self) -> impl Iterator<Item = Reason> {
        Reason::ALL.iter().copied().filter(move |&reason| self.0 >> reason as u8 & 1 == 1)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}
