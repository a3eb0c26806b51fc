//! A refusal as a line for the operator: whose fault, what is wrong, what to do.

use parma_guest::wire::{Culprit, Denied, Excerpt, Field, Phase, Reason, Refusal, Rule, Step};
use std::fmt;

/// What the guest answered to a request that it did not grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Refusal);

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let culprit = match self.0.culprit {
            Culprit::Host => "host",
            Culprit::Policy => "policy",
            Culprit::Image => "image",
            Culprit::Guest => "guest",
        };
        write!(f, "refused ({culprit}): ")?;
        match &self.0.reason {
            Reason::Malformed => f.write_str("the request is not in canonical form; use a client of the guest's version"),
            Reason::OutOfSequence { expected } => {
                write!(f, "the request's number is not {expected}; send one request at a time")
            }
            Reason::WrongPhase { phase } => f.write_str(match phase {
                Phase::AwaitPolicy => "the guest has no policy yet; set it first",
                Phase::Running => "the guest has its policy already; start another guest for another policy",
                Phase::Poisoned => "the guest's state is unknown; power it off",
                Phase::Stopping => "the guest is powering off",
            }),
            Reason::Invalid { field, rule, value } => {
                write!(f, "the {} must be {}", field_name(*field), rule_name(*rule))?;
                got(f, value)
            }
            Reason::NotHostData => f.write_str(
                "the policy is not the one in HOST_DATA; launch the guest with this policy's digest (`parma policy compile`)",
            ),
            Reason::PolicyInvalid => {
                f.write_str("the policy is no valid bytecode; compile it with the guest's version of `parma policy compile`")
            }
            Reason::Denied { point, how, failed, value } => {
                let point = point.name();
                match how {
                    Denied::Undefined => write!(f, "the policy has no answer for {point}; add a rule for it")?,
                    Denied::No => write!(f, "the policy does not allow {point}")?,
                    Denied::Fault => write!(f, "the policy's rule for {point} failed to evaluate; simplify it")?,
                }
                for (index, check) in failed.iter().enumerate() {
                    write!(f, "{}{}", if index == 0 { ": " } else { ", " }, check.text())?;
                }
                got(f, value)
            }
            Reason::Unknown { field } => write!(f, "there is no such {}", field_name(*field)),
            Reason::InUse { field } => {
                write!(f, "the {} is in use, or was used before; take another one", field_name(*field))
            }
            Reason::Limit { field } => write!(f, "a limit of the guest is reached: {}", field_name(*field)),
            Reason::Failed { step, errno } => {
                write!(f, "{} failed", step_name(*step))?;
                if *errno != 0 {
                    write!(f, ": {}", std::io::Error::from_raw_os_error(i32::from(*errno)))?;
                }
                Ok(())
            }
            Reason::Poisoned => f.write_str("a failed step could not be undone; power the guest off"),
            Reason::Fragment { problem } => write!(f, "the fragment {}", problem.explained()),
        }
    }
}

fn got(f: &mut fmt::Formatter<'_>, value: &Excerpt) -> fmt::Result {
    if value.as_str().is_empty() { Ok(()) } else { write!(f, "; got {:?}", value.as_str()) }
}

fn field_name(field: Field) -> &'static str {
    match field {
        Field::Policy => "policy",
        Field::Container => "container",
        Field::Device => "device",
        Field::RootHash => "root hash",
        Field::DataBlocks => "device size",
        Field::Layers => "layers",
        Field::Command => "command",
        Field::Environment => "environment",
        Field::WorkingDir => "working directory",
        Field::User => "user",
        Field::Umask => "umask",
        Field::Capabilities => "capabilities",
        Field::NoNewPrivileges => "no-new-privileges flag",
        Field::Privileged => "privileged flag",
        Field::Mounts => "mounts",
        Field::Seccomp => "seccomp profile",
        Field::Stdio => "standard stream",
        Field::Process => "process",
        Field::Signal => "signal",
        Field::Scratch => "scratch space",
        Field::Volume => "data volume",
        Field::Fragment => "fragment",
        Field::Network => "network",
        Field::Resources => "resources",
        Field::Channel => "sealed channel",
        Field::Point => "enforcement point behind which there is nothing",
        Field::Endorsement => "endorsement or certificates",
        Field::Secret => "secret",
    }
}

fn rule_name(rule: Rule) -> &'static str {
    match rule {
        Rule::ContainerId => "64 lower-case hexadecimal digits",
        Rule::Serial => "1 to 20 of A-Z a-z 0-9 - _",
        Rule::NotEmpty => "not empty",
        Rule::CString => "without NUL bytes, and its first part not empty",
        Rule::Variable => "NAME=value with a name",
        Rule::UniqueNames => "without a name that comes twice",
        Rule::AbsolutePath => "an absolute path without . and ..",
        Rule::UserSpec => "user[:group], each a name or a number",
        Rule::Range => "within its range",
        Rule::CapabilitySets => "capabilities that exist, in sets that fit together",
        Rule::NoDuplicates => "without duplicates",
        Rule::DirectoryName => "1 to 64 of A-Z a-z 0-9 . _ -, and not begin with a dot",
        Rule::PublicKey => "a point of P-256 in 65 bytes",
        Rule::MountPoint => "an absolute path without . and .., not at or below /dev, /proc or /sys",
        Rule::Address => {
            "made of addresses that machines have, none of them loopback, multicast or reserved, and gateways next door"
        }
        Rule::Domain => "a domain: labels of A-Z a-z 0-9 - between dots",
        Rule::Terminal => "with a terminal standard output, and no standard error",
    }
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::FindDevice => "finding the block device (is a disk of this serial attached?)",
        Step::DeviceSize => "checking the device's size (it is too small for what it should hold)",
        Step::MapDevice => "setting up dm-verity",
        Step::LayerFilesystem => "checking the layer's filesystem (build the layer with `parma layer build`)",
        Step::Mount => "mounting",
        Step::Unmount => "unmounting",
        Step::UnmapDevice => "removing the dm-verity device",
        Step::ResolveUser => "looking up the user in the image's /etc/passwd and /etc/group",
        Step::Cgroup => "setting up the control group",
        Step::Descriptors => "making pipes",
        Step::Clone => "making the process",
        Step::EnterNamespaces => "entering the container",
        Step::Rootfs => "building the container's root filesystem",
        Step::Privileges => "dropping privileges",
        Step::WorkingDir => "changing to the working directory",
        Step::Execute => "executing the program",
        Step::Signal => "sending the signal",
        Step::Reap => "waiting for the container's processes to end",
        Step::Memory => "allocating memory in the guest (give it more with --memory)",
        Step::ReleaseKey => {
            "finding the volume's key (was it released to this guest, through a sealed channel, before?)"
        }
        Step::VolumeContent => {
            "opening the volume (its content is damaged, or an older state than the key's owner knows of)"
        }
        Step::FindInterface => "finding the network interface (does the machine have one?)",
        Step::Network => "setting up the network",
        Step::Report => "having the processor make a report",
        Step::DumpStacks => "looking at the processes",
        Step::Unoffered => "doing it (this guest does not do such things, whatever its policy says)",
        Step::Attestation => {
            "making the attestation directory, or a secret in it (does the container have one, and none of that name yet?)"
        }
        Step::Format => "making the filesystem of the scratch space (does its disk take writes?)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parma_guest::policy;
    use parma_guest::wire::{List, Point};

    fn line(culprit: Culprit, reason: Reason) -> String {
        Refused(Refusal { culprit, reason }).to_string()
    }

    #[test]
    fn a_denial_names_culprit_point_failed_checks_and_value() {
        let failed =
            List::from_vec(vec![policy::Reason::InvalidCommand, policy::Reason::InvalidUser]).unwrap();
        let value = Excerpt::of("rm -rf /\x1b[2J");
        let reason = Reason::Denied { point: Point::CreateContainer, how: Denied::No, failed, value };
        assert_eq!(
            line(Culprit::Policy, reason),
            "refused (policy): the policy does not allow create_container: invalid command, invalid user; \
             got \"rm -rf /?[2J\""
        );
    }

    #[test]
    fn a_failed_step_names_the_system_error() {
        let reason = Reason::Failed { step: Step::Execute, errno: 2 };
        assert_eq!(
            line(Culprit::Image, reason),
            "refused (image): executing the program failed: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn t09_no_refusal_is_more_than_one_line() {
        let value = Excerpt::of("a\nb\r\x1b[1A");
        let reason = Reason::Invalid { field: Field::Container, rule: Rule::ContainerId, value };
        assert!(!line(Culprit::Host, reason).contains(char::is_control));
    }
}
