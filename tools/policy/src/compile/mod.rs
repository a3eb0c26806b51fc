//! Rego to an image of Parma's policy machine.
//!
//! The passes, each in a file: text to tokens (`lex`), tokens to a syntax tree (`parse`), names to
//! variables, functions and constants (`resolve`, which works out what is known before any request by
//! way of `evaluate`), the patterns that regular expressions may be asked with (`patterns`, `regex`,
//! `automata`), searches through lists of the policy made look-ups (`index`), small rules put where they are tested (`inline`),
//! and instructions (`emit`, in the order that `order` finds). What a pass cannot handle it refuses with file, line and construct; nothing is
//! given another meaning than OPA gives it. `docs/policy-language.md` is the page for policy authors.

mod ast;
mod automata;
pub(crate) mod constant;
mod emit;
mod error;
mod evaluate;
mod hir;
mod index;
mod inline;
mod lex;
mod order;
mod parse;
mod patterns;
mod regex;
mod resolve;
mod tabulate;

use std::collections::{BTreeMap, BTreeSet};

use parma_guest::point::Point;
use parma_guest::policy::builder::BuildError;
use parma_guest::policy::format::ImageError;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::seccomp::{self, Profile};
use constant::Constant;
pub use error::{CompileError, Warning};
use error::{Pos, Refusal};

/// The compiler's version, as the image's header has it. It changes when the same sources compile to
/// other bytes.
pub const COMPILER_VERSION: u32 = 3;

/// The enforcement framework that policies alias as `data.framework`.
pub const FRAMEWORK: &str = include_str!("../../framework/framework.rego");
/// The static data that the framework refers to, a JSON object.
pub const FRAMEWORK_DATA: &str = include_str!("../../framework/data.json");
/// The name of the framework among the sources.
pub const FRAMEWORK_NAME: &str = "framework.rego";

/// The package of the framework.
const FRAMEWORK_PACKAGE: &str = "framework";
/// The package of the customer's policy.
const POLICY_PACKAGE: &str = "policy";
/// What tools ask a policy besides the enforcement points.
const INFORMATION: [&str; 5] = ["reason", "api_version", "api_svn", "framework_version", "framework_svn"];

/// The framework's rule for it.
const READY: &str = "ready";

/// The compiler's native stack: nesting is bounded, and this is ample for the bounds.
const STACK: usize = 256 << 20;

/// What to compile.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Name (for messages and the image's list of sources) and text of each module.
    pub modules: Vec<(String, String)>,
    /// Static data, an object: `data.x` where no package defines `x`. Its fields take precedence over
    /// those of the framework's data.
    pub data: Option<Json>,
    /// Rules to be made entries, such as `data.policy.mount_device`. If empty: every enforcement point
    /// that package `policy` defines, and what tools ask of it.
    pub entries: Vec<String>,
    /// Whether to add the framework and its data. A module that is package `framework` takes its place.
    pub framework: bool,
    /// Whether to make the image fast and small. Its meaning is the same without; tests compare.
    pub optimise: bool,
    /// Values that fields of requests may have where patterns are made of them: by the field's name. What the
    /// guest puts into requests is known anyway.
    pub known_inputs: BTreeMap<String, BTreeSet<String>>,
}

impl Inputs {
    /// A policy of one module, compiled with the framework.
    pub fn policy(name: &str, text: &str) -> Inputs {
        Inputs {
            modules: vec![(name.to_string(), text.to_string())],
            data: None,
            entries: Vec::new(),
            framework: true,
            optimise: true,
            known_inputs: BTreeMap::new(),
        }
    }
}

impl Inputs {
    /// Takes note of what the fields of a request have. A policy may make patterns of them; the compiler has to know
    /// them then, unless they are plain text.
    pub fn know(&mut self, input: &Json) {
        match input {
            Json::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Json::String(text) => {
                            self.known_inputs.entry(name.clone()).or_default().insert(text.clone());
                        }
                        other => self.know(other),
                    }
                }
            }
            Json::Array(items) => items.iter().for_each(|item| self.know(item)),
            _ => {}
        }
    }

    /// Adds to a policy, in a module of its own, the filters of these profiles, by the hashes that its containers name. The
    /// module is part of what is measured.
    ///
    /// # Errors
    /// A profile has no filter, which reading it has shown already.
    pub fn with_seccomp(mut self, profiles: &[Profile]) -> anyhow::Result<Inputs> {
        if !profiles.is_empty() {
            let text = format!("package {POLICY_PACKAGE}\n\n{}", seccomp::rule(profiles)?);
            self.modules.push(("seccomp.rego".into(), text));
        }
        Ok(self)
    }

    /// Adds to a policy, in a module of its own, what it lacks: an alias to our framework's rule for each
    /// enforcement point that it does not define. The module is part of what is measured.
    ///
    /// Compiling never does this by itself: a point that a policy does not define is denied, however old
    /// the policy says it is (difference D1).
    ///
    /// # Errors
    /// If a module does not parse.
    pub fn with_missing_points(mut self) -> Result<Inputs, CompileError> {
        let rules = rules(&self)?;
        let mut text = format!("package {POLICY_PACKAGE}\n");
        for point in Point::ALL {
            let framework = format!("data.{FRAMEWORK_PACKAGE}.{}", point.name());
            if !rules.contains(point.entry()) && rules.contains(&framework) {
                text += &format!("\n{} := {framework}\n", point.name());
            }
        }
        self.modules.push(("missing-points.rego".into(), text));
        Ok(self)
    }
}

/// A compiled policy.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The image that the machine runs.
    pub image: Vec<u8>,
    /// What its author should know, the enforcement points that it leaves denied first.
    pub warnings: Vec<Warning>,
}

impl Compiled {
    /// What HOST_DATA has to be for a guest to accept the image.
    pub fn host_data(&self) -> [u8; 32] {
        host_data(&self.image)
    }
}

/// SHA-256 of an image: what HOST_DATA has to be for a guest to accept it.
pub fn host_data(image: &[u8]) -> [u8; 32] {
    Sha256::digest(image).into()
}

/// Compiles. The same inputs give the same bytes.
///
/// # Errors
/// The first thing that is refused, with its place.
pub fn compile(inputs: &Inputs) -> Result<Compiled, CompileError> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || compile_here(inputs));
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => Err(whole("compiler", format!("cannot start a thread: {error}"))),
        }
    })
}

/// An error about the inputs as a whole.
fn whole(construct: &str, message: impl Into<String>) -> CompileError {
    CompileError {
        file: String::new(),
        line: 0,
        column: 0,
        construct: construct.into(),
        message: message.into(),
    }
}

fn compile_here(inputs: &Inputs) -> Result<Compiled, CompileError> {
    let mut texts: Vec<(String, &str)> =
        inputs.modules.iter().map(|(name, text)| (name.clone(), text.as_str())).collect();
    let mut modules = parsed(&texts)?;
    let mut warnings = Vec::new();
    if inputs.framework {
        match modules.iter().position(|module| module.package == [FRAMEWORK_PACKAGE]) {
            // The framework is replaced as a whole or not at all: nothing is added to it.
            Some(at) => {
                let message = "takes the place of the framework that is compiled in".to_string();
                warnings.push(Warning { file: texts[at].0.clone(), line: 1, message });
            }
            None => {
                texts.push((FRAMEWORK_NAME.into(), FRAMEWORK));
                modules = parsed(&texts)?;
            }
        }
    }
    let names: Vec<String> = texts.iter().map(|(name, _)| name.clone()).collect();
    let named = |refusal: Refusal| refusal.named(&names);
    let data = data(inputs)?;
    let mut resolver = resolve::Resolver::new(&modules, &data).map_err(named)?;

    let entries = match inputs.entries.as_slice() {
        [] => {
            let readiness = readiness(&mut resolver).map_err(named)?;
            let points = Point::ALL.iter().map(|point| point.name());
            let (defined, undefined): (Vec<&str>, Vec<&str>) =
                points.partition(|name| resolver.defines(POLICY_PACKAGE, name));
            if !undefined.is_empty() {
                let message = format!("not in the policy, so denied: {}", undefined.join(", "));
                warnings.push(Warning { file: String::new(), line: 0, message });
            }
            let information = INFORMATION.into_iter().filter(|name| resolver.defines(POLICY_PACKAGE, name));
            defined
                .into_iter()
                .chain(information)
                .map(|name| format!("data.{POLICY_PACKAGE}.{name}"))
                .chain(readiness)
                .collect()
        }
        entries => entries.to_vec(),
    };
    let mut roots = Vec::new();
    for entry in &entries {
        let path: Vec<String> = entry.split('.').skip(1).map(str::to_string).collect();
        if !entry.starts_with("data.") {
            return Err(whole("entry", format!("{entry} does not start with `data.`")));
        }
        match resolver.entry(&path).map_err(named)? {
            Some(function) => roots.push((entry, function)),
            None => return Err(whole("entry", format!("{entry} is not defined"))),
        }
    }
    if roots.is_empty() {
        return Err(whole("policy", "it defines no enforcement point: everything would be denied"));
    }
    for (Pos { file, line, .. }, message) in std::mem::take(&mut resolver.warnings) {
        let warning = Warning { file: names.get(file as usize).cloned().unwrap_or_default(), line, message };
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    // An entry that is another name of a rule is that rule.
    for (_, id) in &mut roots {
        while let Some(aliased) = resolver.program.functions[*id].alias() {
            *id = aliased;
        }
    }
    let ids: Vec<_> = roots.iter().map(|(_, id)| *id).collect();
    let known = known_inputs(&inputs.known_inputs);
    let automata = if inputs.optimise {
        tabulate::optimise(&mut resolver.program, &ids);
        let computed = patterns::computed(&resolver.program, &ids, &known);
        let automata = automata::Automata::new(&computed.languages);
        index::optimise(&mut resolver.program, &ids, &automata);
        inline::optimise(&mut resolver.program, &ids);
        automata
    } else {
        automata::Automata::default()
    };
    let computed = patterns::computed(&resolver.program, &ids, &known);
    let mut image = emit::Image::new(COMPILER_VERSION, &resolver.program, &computed, &automata);
    let built = |error: BuildError| whole("policy", format!("does not fit an image: {error:?}"));
    for (name, text) in &texts {
        image.builder.source(name, Sha256::digest(text).into()).map_err(built)?;
    }
    if let Some(data) = &inputs.data {
        image.builder.source("data.json", Sha256::digest(data.to_string()).into()).map_err(built)?;
    }
    image.functions(&ids).map_err(named)?;
    for (name, id) in roots {
        if let Some(number) = image.number(id) {
            image.builder.entry(name, number).map_err(built)?;
        }
    }
    let builder = std::mem::take(&mut image.builder);
    let image = builder.finish().map_err(|error| match error {
        BuildError::Image(ImageError::Function { function } | ImageError::Code { function, .. }) => {
            let Some((name, pos)) = image.place(function) else { return built(error) };
            let message = format!("{name} exceeds a limit of the machine: {error:?}; split the rule");
            named(Refusal::new(pos, "rule", message))
        }
        error => built(error),
    })?;
    Ok(Compiled { image, warnings })
}

/// What is known of requests: what the guest fills in, and what `more` says.
fn known_inputs(more: &BTreeMap<String, BTreeSet<String>>) -> patterns::KnownInputs {
    let fixed =
        patterns::KNOWN_INPUTS.iter().flat_map(|(field, texts)| texts.iter().map(|text| (*field, *text)));
    let more =
        more.iter().flat_map(|(field, texts)| texts.iter().map(|text| (field.as_str(), text.as_str())));
    let mut known = patterns::KnownInputs::new();
    for (field, text) in fixed.chain(more) {
        known.entry(field.to_string()).or_default().insert(Constant::string(text));
    }
    known
}

/// The entry that says whether everything runs that the policy requires, where it requires anything.
fn readiness(resolver: &mut resolve::Resolver<'_>) -> Result<Option<String>, Refusal> {
    if !resolver.defines(FRAMEWORK_PACKAGE, READY) {
        return Ok(None);
    }
    let path = [FRAMEWORK_PACKAGE, READY].map(str::to_string);
    let Some(function) = resolver.entry(&path)? else { return Ok(None) };
    let never = resolve::is_constant(&resolver.program.functions[function]) == Some(None);
    Ok((!never).then(|| format!("data.{}", path.join("."))))
}

fn parsed(texts: &[(String, &str)]) -> Result<Vec<ast::Module>, CompileError> {
    let parse = |(file, (name, text)): (u32, &(String, &str))| {
        parse::module(text, file).map_err(|refusal| CompileError { file: name.clone(), ..refusal.named(&[]) })
    };
    (0..).zip(texts).map(parse).collect()
}

/// The package of a module, with dots.
///
/// # Errors
/// If it does not parse.
pub(crate) fn package(name: &str, text: &str) -> Result<String, CompileError> {
    let modules = parsed(&[(name.to_string(), text)])?;
    Ok(modules.into_iter().flat_map(|module| module.package).collect::<Vec<_>>().join("."))
}

/// The paths of all rules in the modules, such as `data.policy.mount_device`, functions included.
///
/// # Errors
/// If a module does not parse.
pub(crate) fn rules(inputs: &Inputs) -> Result<BTreeSet<String>, CompileError> {
    let mut texts: Vec<(String, &str)> =
        inputs.modules.iter().map(|(name, text)| (name.clone(), text.as_str())).collect();
    if inputs.framework {
        texts.push((FRAMEWORK_NAME.into(), FRAMEWORK));
    }
    let paths = parsed(&texts)?.into_iter().flat_map(|module| {
        let package = module.package.join(".");
        module.rules.into_iter().map(move |rule| format!("data.{package}.{}", rule.name))
    });
    Ok(paths.collect())
}

/// The static data: the framework's, overlaid by the inputs'.
fn data(inputs: &Inputs) -> Result<Constant, CompileError> {
    let mut fields = serde_json::Map::new();
    if inputs.framework {
        let framework: Json = serde_json::from_str(FRAMEWORK_DATA)
            .map_err(|error| whole("framework data", error.to_string()))?;
        if let Json::Object(framework) = framework {
            fields.extend(framework);
        }
    }
    match &inputs.data {
        None => {}
        Some(Json::Object(data)) => fields.extend(data.clone()),
        Some(_) => return Err(whole("data", "not a JSON object")),
    }
    constant::from_json(&Json::Object(fields)).map_err(|message| whole("data", message))
}
