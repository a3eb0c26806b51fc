//! What is in a compiled policy, in figures: what a guest can ask, what it leaves denied, how large it is and what bounds a decision.

use std::fmt;

use anyhow::{Context, Result, anyhow};
use parma_guest::gate::ARENA;
use parma_guest::point::Point;
use parma_guest::policy::engine::DEFAULT_FUEL;
use parma_guest::policy::format::{Image, MAX_CONTROLS, MAX_FRAMES, MAX_IMAGE, MAX_STACK, Section};
use parma_guest::policy::verify;
use serde::Serialize;

use crate::bound::worst;
use crate::{Inputs, Warning, Worst, compile, host_data};

/// A policy in figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What HOST_DATA has to be, in hex.
    pub host_data: String,
    /// The version of the compiler that made the image.
    pub compiler: u32,
    /// Names of what was compiled.
    pub sources: Vec<String>,
    /// What can be asked, `data.policy.mount_device` for instance.
    pub entries: Vec<String>,
    /// Enforcement points that are no entry, so denied (difference D1).
    pub denied: Vec<&'static str>,
    /// The sizes and numbers of its parts.
    pub image: Sizes,
    /// What bounds one decision.
    pub bounds: Bounds,
    /// What the compiler has to say.
    pub warnings: Vec<String>,
}

/// What an image consists of.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Sizes {
    pub bytes: usize,
    pub functions: usize,
    pub code_bytes: usize,
    pub strings: usize,
    pub integers: usize,
    /// Arrays, objects and sets.
    pub composites: usize,
    pub patterns: usize,
    pub dfas: usize,
    pub dfa_bytes: usize,
}

/// What bounds one decision. The verifier proves the first three of the image; the last two are limits that end a
/// decision, as a denial.
#[derive(Debug, Clone, Serialize)]
pub struct Bounds {
    /// Registers in use at once, at most.
    pub registers: usize,
    /// Functions active at once, at most.
    pub frames: usize,
    /// Bodies open at once in them, the function bodies not counted, at most.
    pub bodies: usize,
    /// Steps of one decision: an instruction, an element that a builtin visits, sixteen bytes copied or compared, a
    /// byte matched.
    pub fuel_limit: u64,
    /// Bytes of memory of one decision, its request included.
    pub arena_limit: usize,
    /// The most expensive request that was found; of a source only.
    pub worst: Option<Worst>,
}

/// Compiles, verifies and reports.
///
/// # Errors
/// The policy does not compile.
pub fn check(inputs: &Inputs) -> Result<Report> {
    let compiled = compile(inputs)?;
    let mut report = check_image(&compiled.image, &compiled.warnings)?;
    let worst = worst(inputs, &compiled.image)?;
    if worst.steps > DEFAULT_FUEL {
        report.warnings.push(format!(
            "{}, with {}, takes {} steps: a request like it is denied for its cost, whatever the policy says",
            worst.point, worst.request, worst.steps
        ));
    }
    report.bounds.worst = Some(worst);
    Ok(report)
}

/// Verifies a compiled policy and reports.
///
/// # Errors
/// It is not a valid image.
pub fn check_image(bytes: &[u8], warnings: &[Warning]) -> Result<Report> {
    let invalid = |error| anyhow!("not a valid policy image: {error:?}");
    let image = Image::read(bytes).map_err(invalid)?;
    verify::verify(&image).map_err(invalid)?;
    let text = |number: u32| {
        let bytes = image.string(number).context("the image contradicts itself")?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(bytes).into_owned())
    };
    let sources = image.sources().map(|(name, _)| text(name)).collect::<Result<_>>()?;
    let entries: Vec<String> = image.entries().map(|(name, _)| text(name)).collect::<Result<_>>()?;
    let denied = Point::ALL.iter().filter(|point| !entries.iter().any(|entry| entry == point.entry()));
    let denied = denied.map(|point| point.name()).collect();
    let records = || image.entries().filter_map(|(_, function)| image.function(function));
    Ok(Report {
        host_data: host_data(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        compiler: image.compiler,
        sources,
        entries,
        denied,
        image: Sizes {
            bytes: bytes.len(),
            functions: image.functions() as usize,
            code_bytes: image.section(Section::Code).len(),
            strings: image.words(Section::StringEnds),
            integers: image.section(Section::Ints).len() / size_of::<i64>(),
            composites: image.words(Section::Nodes),
            patterns: image.words(Section::Patterns),
            dfas: image.words(Section::DfaEnds),
            dfa_bytes: image.section(Section::DfaBytes).len(),
        },
        bounds: Bounds {
            registers: records().map(|record| record.stack.into()).max().unwrap_or(0),
            frames: records().map(|record| record.frames.into()).max().unwrap_or(0),
            bodies: records().map(|record| record.controls.into()).max().unwrap_or(0),
            fuel_limit: DEFAULT_FUEL,
            arena_limit: ARENA,
            worst: None,
        },
        warnings: warnings.iter().map(ToString::to_string).collect(),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { image, bounds, .. } = self;
        writeln!(f, "HOST_DATA   {}", self.host_data)?;
        writeln!(f, "compiler    {}", self.compiler)?;
        writeln!(f, "sources     {}", self.sources.join(", "))?;
        writeln!(f, "entries     {}", self.entries.join(", "))?;
        let denied = if self.denied.is_empty() { "none".into() } else { self.denied.join(", ") };
        writeln!(f, "denied      {denied}")?;
        writeln!(f, "image       {} bytes of at most {MAX_IMAGE}", image.bytes)?;
        writeln!(f, "functions   {}, {} bytes of code", image.functions, image.code_bytes)?;
        let Sizes { strings, integers, composites, patterns, dfas, dfa_bytes, .. } = image;
        writeln!(
            f,
            "constants   {strings} strings, {integers} integers, {composites} arrays, objects and sets"
        )?;
        writeln!(f, "patterns    {patterns}, in {dfas} automata of {dfa_bytes} bytes")?;
        let Bounds { registers, frames, bodies, fuel_limit, arena_limit, worst } = bounds;
        writeln!(
            f,
            "stack       {registers} registers of at most {MAX_STACK}, {frames} functions of {MAX_FRAMES}, {bodies} bodies of {MAX_CONTROLS}: proved"
        )?;
        writeln!(
            f,
            "a decision  ends, as a denial, after {fuel_limit} steps or with {arena_limit} bytes of memory in use"
        )?;
        match worst {
            Some(Worst { point, request, steps, memory, asked }) => writeln!(
                f,
                "at worst    {steps} steps and {memory} bytes; measured, not proved: the most of {asked} requests that were made to be expensive:\n            {point}, {request}"
            )?,
            None => writeln!(f, "at worst    not worked out of a compiled policy: give the Rego")?,
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}
