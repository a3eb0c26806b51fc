//! Profiles of system calls, as container engines write them in JSON, to filters that a policy carries.
//!
//! The file is either what the OCI runtime specification calls `linux.seccomp`, or the form of Docker and the CRI, whose
//! rules may depend on capabilities, architecture and kernel. The second is [resolved](Profile::read) to the first, as the
//! engine does it before it starts a container, and the first is what policies hash. It means this, for a call on x86-64:
//!
//! * Of the rules that name it, those of which every condition on arguments holds give the action, which is the same for all
//!   rules that name it; where there are none it is the default action.
//! * A call newer than all that the profile names fails with `ENOSYS` where the default action is another error: then C
//!   libraries use an older call. So does runc.
//!
//! What the guest's own filter denies (docs/containers.md) stays denied, whatever a profile says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use parma_guest::filter::{self, ARCHITECTURE, ARGUMENTS, Filter, Instruction, NUMBER, X86_64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use syscalls::{x86, x86_64};

/// The kernel that guests have, for rules that ask for a version.
const KERNEL: (u32, u32) = (6, 12);
/// The architecture's name in rules that ask for one.
const ARCH: &str = "amd64";
/// The same among a profile's architectures.
const NATIVE: &str = "SCMP_ARCH_X86_64";
/// What a call fails with where a profile does not say it.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Most arguments of a call.
const ARGS: u8 = 6;

/// A profile, for containers of certain capabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    resolved: Resolved,
}

/// `LinuxSeccomp` of the OCI runtime specification, with its fields in the order in which Go writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Resolved {
    default_action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    architectures: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Condition>,
}

/// A condition on an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    index: u8,
    value: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    value_two: u64,
    op: Operator,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// The bits of `value` are those of `value_two`.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A file, in either form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architecture>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<WrittenRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenRule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Condition>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    includes: Option<Circumstances>,
    excludes: Option<Circumstances>,
}

/// When a rule is there.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Circumstances {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    /// The profile in this file, for containers that can have these capabilities.
    ///
    /// # Errors
    /// It is none, or asks for something that the guest does not do; the error names it.
    pub fn read(json: &[u8], capabilities: &[String]) -> Result<Self> {
        let Written { default_action, default_errno_ret, architectures, arch_map, flags, syscalls } =
            serde_json::from_slice(json).context("no profile of system calls")?;
        let (mut architectures, arch_map) = (architectures.unwrap_or_default(), arch_map.unwrap_or_default());
        ensure!(
            architectures.is_empty() || arch_map.is_empty(),
            "it has `architectures` and `archMap`: one of them says the same"
        );
        if let Some(own) = arch_map.into_iter().find(|map| map.architecture == NATIVE) {
            architectures = vec![own.architecture];
            architectures.extend(own.sub_architectures.unwrap_or_default());
        }
        let flags = flags.unwrap_or_default();
        // The guest logs nothing for containers, and has one thread when it takes a filter on.
        let unknown = flags
            .iter()
            .find(|flag| !["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"].contains(&flag.as_str()));
        ensure!(unknown.is_none(), "flags: {unknown:?} is not supported");
        let mut rules = Vec::new();
        for rule in syscalls.unwrap_or_default() {
            let WrittenRule { name, names, action, errno_ret, args, includes, excludes, .. } = rule;
            let names = match (name, names.unwrap_or_default()) {
                (Some(name), names) if names.is_empty() => vec![name],
                (None, names) => names,
                (Some(name), _) => bail!("syscalls: a rule has `name` {name:?} and `names`"),
            };
            if applies(&includes.unwrap_or_default(), &excludes.unwrap_or_default(), capabilities)? {
                rules.push(Rule { names, action, errno_ret, args: args.unwrap_or_default() });
            }
        }
        let resolved = Resolved { default_action, default_errno_ret, architectures, flags, syscalls: rules };
        let profile = Self { resolved };
        // Whatever is wrong with it is known at once.
        profile.filter()?;
        Ok(profile)
    }

    /// What policies name it by: SHA-256 of its resolved form, as Go's `json.Marshal` writes it.
    ///
    /// # Errors
    /// There is none.
    pub fn hash(&self) -> Result<[u8; 32]> {
        Ok(Sha256::digest(serde_json::to_vec(&self.resolved)?).into())
    }

    /// The filter, as a policy carries it: [`Instruction::word`] of each instruction.
    ///
    /// # Errors
    /// An action, name or error number that the guest cannot have, rules that contradict each other, or too many.
    pub fn words(&self) -> Result<Vec<i64>> {
        Ok(self.filter()?.into_iter().map(Instruction::word).collect())
    }

    fn filter(&self) -> Result<Vec<Instruction>> {
        let calls = self.calls()?;
        let default = self.default()?;
        // The answers in their order: each from a number up to the next.
        let mut ranges = vec![(0, Leaf::Answer(default))];
        for (&number, call) in &calls {
            append(&mut ranges, number, call.leaf());
            append(&mut ranges, number + 1, Leaf::Answer(default));
        }
        if let Some((&last, _)) = calls.last_key_value() {
            append(&mut ranges, last + 1, Leaf::Answer(newer(default)));
        }
        let mut code = vec![
            Instruction::load(ARCHITECTURE),
            Instruction::if_equal(X86_64, 1, 0),
            Instruction::answer(filter::KILL_PROCESS),
            Instruction::load(NUMBER),
        ];
        code.extend(tree(&ranges, default)?);
        let words: Vec<i64> = code.iter().map(|instruction| instruction.word()).collect();
        ensure!(
            Filter::new(&words).is_some(),
            "its filter has {} instructions: more than a kernel takes",
            words.len()
        );
        Ok(code)
    }

    fn default(&self) -> Result<u32> {
        let Resolved { default_action, default_errno_ret, .. } = &self.resolved;
        answer(default_action, *default_errno_ret).context("defaultAction")
    }

    /// The calls that are not answered by default, by their numbers.
    fn calls(&self) -> Result<BTreeMap<u32, Call>> {
        let default = self.default()?;
        let mut calls = BTreeMap::<u32, Call>::new();
        for Rule { names, action, errno_ret, args } in &self.resolved.syscalls {
            let answer = answer(action, *errno_ret).with_context(|| format!("syscalls: {names:?}"))?;
            for condition in args {
                ensure!(
                    condition.index < ARGS,
                    "syscalls: {names:?}: a call has no argument {}",
                    condition.index
                );
            }
            // What is the default anyway says nothing.
            for name in names.iter().filter(|_| answer != default) {
                let Ok(number) = name.parse::<x86_64::Sysno>() else {
                    // Profiles are for several architectures and kernels.
                    let elsewhere = name.parse::<x86::Sysno>().is_ok() || weaker(answer, default);
                    ensure!(elsewhere, "syscalls: {name:?} is not known, and is to be restricted");
                    continue;
                };
                let number = u32::try_from(number.id()).context("a system call's number")?;
                let call = calls.entry(number).or_insert_with(|| Call { answer, ways: Vec::new() });
                ensure!(call.answer == answer, "syscalls: {name:?} has rules of different actions");
                call.ways.extend(ways(args));
            }
        }
        Ok(calls)
    }
}

/// The rule of a policy that carries these profiles' filters, by their hashes: Rego.
///
/// # Errors
/// As [`Profile::words`].
pub fn rule(profiles: &[Profile]) -> Result<String> {
    let mut filters = BTreeMap::new();
    for profile in profiles {
        let hash: String = profile.hash()?.iter().map(|byte| format!("{byte:02x}")).collect();
        filters.insert(hash, profile.words()?);
    }
    let lines = filters.iter().map(|(hash, words)| {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        format!("  {hash:?}: [{}],\n", words.join(", "))
    });
    Ok(format!("seccomp := {{\n{}}}\n", lines.collect::<String>()))
}

/// Whether the first answer allows more.
fn weaker(answer: u32, than: u32) -> bool {
    // As the kernel orders actions: as signed numbers (seccomp(2), SECCOMP_RET_*).
    (answer as i32) > (than as i32)
}

/// What calls newer than the profile are answered, where others are answered with `default`.
fn newer(default: u32) -> u32 {
    if default & 0xffff_0000 == filter::ERRNO { filter::ERRNO | ENOSYS } else { default }
}

/// The conditions of a rule. Several on one argument are rules of their own, since runc takes them so.
fn ways(args: &[Condition]) -> Vec<Vec<Condition>> {
    let repeated =
        |condition: &Condition| args.iter().filter(|other| other.index == condition.index).count() > 1;
    if args.iter().any(repeated) {
        args.iter().map(|condition| vec![condition.clone()]).collect()
    } else {
        vec![args.to_vec()]
    }
}

/// Whether a rule is there in these circumstances.
fn applies(includes: &Circumstances, excludes: &Circumstances, capabilities: &[String]) -> Result<bool> {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let held = |capability: &String| capabilities.contains(capability);
    let (arches, never) = (list(&includes.arches), list(&excludes.arches));
    let here = |arches: &[String]| arches.iter().any(|arch| arch == ARCH);
    let new = |version: &Option<String>| version.as_deref().map(at_least).transpose();
    Ok((arches.is_empty() || here(&arches))
        && !here(&never)
        && list(&includes.caps).iter().all(held)
        && !list(&excludes.caps).iter().any(held)
        && new(&includes.min_kernel)? != Some(false)
        && new(&excludes.min_kernel)? != Some(true))
}

/// Whether the guest's kernel is at least of this version, such as `4.8`.
fn at_least(version: &str) -> Result<bool> {
    let numbers = version.split_once('.').and_then(|(major, minor)| {
        let minor = minor.split('.').next()?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    Ok(KERNEL >= numbers.with_context(|| format!("minKernel: {version:?} is no version"))?)
}

/// A filter's answer that is this action.
fn answer(action: &str, errno: Option<u32>) -> Result<u32> {
    let errno_of = errno.unwrap_or(EPERM);
    let plain = match action {
        "SCMP_ACT_ERRNO" => {
            ensure!(errno_of <= filter::MAX_ERRNO, "{errno_of} is no error number");
            return Ok(filter::ERRNO | errno_of);
        }
        "SCMP_ACT_ALLOW" => filter::ALLOW,
        "SCMP_ACT_LOG" => filter::LOG,
        "SCMP_ACT_TRAP" => filter::TRAP,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => filter::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => filter::KILL_PROCESS,
        other => bail!("{other:?} is not supported: nobody in the guest is asked"),
    };
    ensure!(errno.is_none(), "{action} has an error number");
    Ok(plain)
}

/// A call that is not answered by default.
struct Call {
    answer: u32,
    /// It is answered so if all conditions of one of these hold.
    ways: Vec<Vec<Condition>>,
}

impl Call {
    fn leaf(&self) -> Leaf<'_> {
        if self.ways.iter().any(Vec::is_empty) { Leaf::Answer(self.answer) } else { Leaf::Depends(self) }
    }
}

/// What is known of a call from its number.
#[derive(Clone, Copy)]
enum Leaf<'c> {
    Answer(u32),
    Depends(&'c Call),
}

impl PartialEq for Leaf<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Leaf::Answer(one), Leaf::Answer(other)) => one == other,
            _ => false,
        }
    }
}

/// Calls from this number on are of this kind, and not of that which the last range says.
fn append<'c>(ranges: &mut Vec<(u32, Leaf<'c>)>, from: u32, leaf: Leaf<'c>) {
    if ranges.last().is_some_and(|last| last.0 == from) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.1 != leaf) {
        ranges.push((from, leaf));
    }
}

/// Finds the range that the number is in, by halves.
fn tree(ranges: &[(u32, Leaf<'_>)], default: u32) -> Result<Vec<Instruction>> {
    match ranges {
        [] => bail!("no range"),
        [(_, Leaf::Answer(answer))] => Ok(vec![Instruction::answer(*answer)]),
        [(_, Leaf::Depends(call))] => depends(call, default),
        _ => {
            let (below, above) = ranges.split_at(ranges.len() / 2);
            let (first, then) = (tree(below, default)?, tree(above, default)?);
            let mut code = match u8::try_from(first.len()) {
                Ok(over) => vec![Instruction::if_at_least(above[0].0, over, 0)],
                Err(_) => vec![
                    Instruction::if_at_least(above[0].0, 0, 1),
                    Instruction::jump(u32::try_from(first.len())?),
                ],
            };
            code.extend(first);
            code.extend(then);
            Ok(code)
        }
    }
}

/// Looks at the arguments.
fn depends(call: &Call, default: u32) -> Result<Vec<Instruction>> {
    let mut code = Vec::new();
    for way in &call.ways {
        // From the end, so that each condition knows how far the end is.
        let mut rest = vec![Instruction::answer(call.answer)];
        for condition in way.iter().rev() {
            let mut all = condition.code(u8::try_from(rest.len()).context("too many conditions")?);
            all.extend(rest);
            rest = all;
        }
        code.extend(rest);
    }
    code.push(Instruction::answer(default));
    Ok(code)
}

impl Condition {
    /// Goes on behind itself if it holds, and skips `rest` instructions there if not.
    fn code(&self, rest: u8) -> Vec<Instruction> {
        let half = |value: u64| ((value >> 32) as u32, value as u32);
        let (high, low) = half(self.value);
        let at = ARGUMENTS + 8 * u32::from(self.index);
        let (load_high, load_low) = (Instruction::load(at + 4), Instruction::load(at));
        // Skipped from the last instruction of the condition, and from those before it.
        let no = |before: u8| before + rest;
        let equal = |value, before| Instruction::if_equal(value, 0, no(before));
        match self.op {
            Operator::Equal => vec![load_high, equal(high, 2), load_low, equal(low, 0)],
            Operator::NotEqual => {
                vec![
                    load_high,
                    Instruction::if_equal(high, 0, 2),
                    load_low,
                    Instruction::if_equal(low, no(0), 0),
                ]
            }
            Operator::Greater | Operator::GreaterOrEqual => {
                let last = match self.op {
                    Operator::Greater => Instruction::if_greater(low, 0, no(0)),
                    _ => Instruction::if_at_least(low, 0, no(0)),
                };
                vec![load_high, Instruction::if_greater(high, 3, 0), equal(high, 2), load_low, last]
            }
            Operator::Less | Operator::LessOrEqual => {
                let last = match self.op {
                    Operator::Less => Instruction::if_at_least(low, no(0), 0),
                    _ => Instruction::if_greater(low, no(0), 0),
                };
                vec![
                    load_high,
                    Instruction::if_greater(high, no(3), 0),
                    Instruction::if_equal(high, 0, 2),
                    load_low,
                    last,
                ]
            }
            Operator::MaskedEqual => {
                let (mask, (high, low)) = ((high, low), half(self.value_two));
                vec![
                    load_high,
                    Instruction::and(mask.0),
                    equal(high, 3),
                    load_low,
                    Instruction::and(mask.1),
                    equal(low, 0),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests;
