//! Compiling fragments: Rego in, an image of data out.
//!
//! A fragment's source is a module of any package with rules named as [`RULES`] says, as `az confcom acifragmentgen`
//! writes it. The image has these as entries, alone: none of the framework, no rule that decides anything. In values
//! `parameter("name").value` stands for what the policy gives the fragment (or for `parameters_api[name]["default"]`).
//!
//! Patterns have to be automata before the guest sees them, so the image also names every pattern that the fragment's
//! data holds as one. A pattern that is put together from a parameter is not among them: a decision that has to match
//! it is a denial.

use parma_guest::policy::fragment::{PACKAGE, PATTERNS, RULES};

use crate::compile::{CompileError, Compiled, Inputs, compile, package, rules};

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
