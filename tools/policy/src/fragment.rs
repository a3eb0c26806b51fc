//! Compiling fragments: Rego in, an image of data out.
//!
//! A fragment's source is a module of any package with rules named as [`RULES`] says, as `az confcom acifragmentgen`
//! writes it. The image has these as entries, alone: none of the framework, no rule that decides anything. In values
//! `parameter("name").value` stands for what the policy gives the fragment (or for `parameters_api[name]["default"]`).
//!
//! Patterns have to be automata before the guest sees them, so the image also names every pattern that the fragment's
//! data holds as one. A pattern that is put together from a parameter is not among them: a decision that has to match
//! it is a denial.

use anyhow::{Result, anyhow};
use parma_guest::gate::ARENA;
use parma_guest::point::Point;
use parma_guest::policy::fragment::{Fragment, PACKAGE, PATTERNS, RULES};
use parma_guest::policy::{Arena, Engine, Refusal, Value};
use serde_json::{Value as Json, json};

use crate::compile::{CompileError, Compiled, Inputs, compile, package, rules};
use crate::{from_json, to_json};

/// A function that asks for a pattern: one for each place that patterns come from, so that what the compiler cannot
/// tell of one place does not keep it from naming the patterns of another.
fn probe(name: &str, parameter: &str, condition: &str, pattern: &str) -> String {
    format!(
        "\n{name}({parameter}) if {{\n\t{condition}\n\tpattern := {pattern}\n\tregex.match(pattern, \"\") in {{true, false}}\n\tregex.match(concat(\"\", [\"^(?:\", pattern, \")$\"]), input.text)\n}}\n"
    )
}

/// The places of a fragment's data where patterns are.
fn probes() -> String {
    [
        probe("variable", "rule", "rule.strategy == \"re2\"", "rule.pattern"),
        probe("variable_name", "rule", "rule.name_strategy == \"re2\"", "rule.name"),
        probe("variable_value", "rule", "rule.value_strategy == \"re2\"", "rule.value"),
        probe("identity", "name", "name.strategy == \"re2\"", "name.pattern"),
        probe(
            "sandbox",
            "mount",
            "startswith(mount.source, \"sandbox://\")",
            "substring(mount.source, 10, -1)",
        ),
        probe(
            "huge_pages",
            "mount",
            "startswith(mount.source, \"hugepages://\")",
            "substring(mount.source, 12, -1)",
        ),
    ]
    .concat()
}

/// Asks them all, for each kind of entries.
fn places(kind: &str) -> String {
    let variables = ["variable", "variable_name", "variable_value"];
    let each = |list: &str, functions: &[&str]| -> String {
        let ask = |function: &&str| {
            format!(
                "\npatterns if {{\n\tsome entry in {kind}\n\tsome item in {list}\n\t{function}(item)\n}}\n"
            )
        };
        functions.iter().map(ask).collect()
    };
    let mounts = each("entry.mounts", &["sandbox", "huge_pages"]);
    let environment = each("entry.env_rules", &variables);
    match kind {
        "containers" => {
            let user = "\npatterns if {\n\tsome entry in containers\n\tidentity(entry.user.user_idname)\n}\n";
            environment + &mounts + &each("entry.user.group_idnames", &["identity"]) + user
        }
        "external_processes" => environment,
        "platform_rules" => environment + &mounts,
        _ => String::new(),
    }
}

/// What has to be compiled for the fragment in this module.
///
/// # Errors
/// If it does not parse, or defines nothing that a fragment may.
pub fn inputs(name: &str, text: &str) -> Result<Inputs, CompileError> {
    let mut inputs = Inputs { framework: false, ..Inputs::policy(name, text) };
    let package = package(name, text)?;
    let defined = rules(&inputs)?;
    let defines = |rule: &str| defined.contains(&format!("data.{package}.{rule}"));
    let found: Vec<&str> = RULES.into_iter().filter(|rule| defines(rule)).collect();
    if found.is_empty() {
        return Err(CompileError {
            file: name.into(),
            line: 1,
            column: 1,
            construct: "fragment".into(),
            message: format!("it defines none of {}", RULES.join(", ")),
        });
    }

    let mut helper = format!(
        "package {package}\n\nimport rego.v1\n\nparameter(name) := {{\"value\": input.parameters[name]}} if {{\n\tinput.parameters[name] != null\n}}"
    );
    if defines("parameters_api") {
        helper += " else := {\"value\": parameters_api[name][\"default\"]}";
    }
    helper.push('\n');
    inputs.modules.push(("(parameters)".into(), helper));

    let mut entries = format!("package {PACKAGE}\n\nimport rego.v1\n");
    for rule in &found {
        entries += &format!("\n{rule} := data.{package}.{rule}\n");
        inputs.entries.push(format!("data.{PACKAGE}.{rule}"));
    }
    let places: String = found.iter().map(|kind| places(kind)).collect();
    if !places.is_empty() {
        entries += &places;
        entries += &probes();
        inputs.entries.push(format!("data.{PACKAGE}.{PATTERNS}"));
    }
    inputs.modules.push(("(entries)".into(), entries));
    Ok(inputs)
}

/// Compiles a fragment.
///
/// # Errors
/// The first thing that is refused, with its place.
pub fn compile_fragment(name: &str, text: &str) -> Result<Compiled, CompileError> {
    compile(&inputs(name, text)?)
}

/// What the guest asks the policy about a fragment. The content is asked about only once the header was welcome.
pub(crate) fn request(issuer: &str, feed: &str, svn: u32, loaded: bool) -> Json {
    json!({"issuer": issuer, "feed": feed, "namespace": "fragment", "fragment_loaded": loaded, "has_header_svn": true,
        "header_svn": svn, "receipts": []})
}

/// Puts a fragment in force as the guest's gate does, of which the signature was verified. All of it or nothing: what the
/// policy says, and the content for each set of parameters.
///
/// # Errors
/// It is no fragment, or a limit of the guest is reached. Nothing has changed then.
pub fn load(
    engine: &mut Engine<'_>,
    image: &[u8],
    issuer: &str,
    feed: &str,
    svn: u32,
) -> Result<std::result::Result<(), Refusal>> {
    let before = engine.memory();
    let loaded = load_all(engine, image, issuer, feed, svn);
    if !matches!(loaded, Ok(Ok(()))) {
        engine.set_memory(before);
    }
    loaded
}

fn load_all(
    engine: &mut Engine<'_>,
    image: &[u8],
    issuer: &str,
    feed: &str,
    svn: u32,
) -> Result<std::result::Result<(), Refusal>> {
    let invalid = |error| anyhow!("no fragment that a guest takes: {error:?}");
    let (mut memory, mut given) = (vec![0; ARENA], vec![0; ARENA]);
    let arena = &mut Arena::new(&mut memory);
    let header = request(issuer, feed, svn, false);
    let sets = match engine.decide(arena, Point::LoadFragment, |arena| from_json(arena, &header)) {
        Err(refusal) => return Ok(Err(refusal)),
        Ok(decision) => match decision.parameters.map(|sets| to_json(&engine.view(arena), sets)) {
            Some(Json::Array(sets)) if !sets.is_empty() => sets,
            _ => vec![json!({})],
        },
    };
    let mut content = Fragment::read(image).map_err(invalid)?;
    let mut data = Vec::new();
    for set in sets {
        let parameters = &mut Arena::new(&mut given);
        let set = from_json(parameters, &set).map_err(|fault| invalid(fault.into()))?;
        let worked_out = content.content(arena, Some((&engine.view(parameters), set))).map_err(invalid)?;
        let pinned = engine.pin(worked_out).map_err(|error| invalid(error.into()))?;
        let content = engine.pinned(&pinned);
        let request = request(issuer, feed, svn, true);
        let asked = engine.decide(arena, Point::LoadFragment, |arena| {
            let Json::Object(fields) = &request else { return arena.object(&[]) };
            let mut values: Vec<(&str, Value)> = vec![("fragment", content)];
            for (name, value) in fields {
                values.push((name, from_json(arena, value)?));
            }
            arena.object(&values)
        });
        match asked {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(decision) => drop(engine.commit(decision.delta).map_err(|error| invalid(error.into()))?),
        }
        data.push(pinned);
    }
    engine.attach(image, data.iter()).map_err(|error| invalid(error.into()))?;
    Ok(Ok(()))
}
