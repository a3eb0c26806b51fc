//! An image as text, for people: sources, entries, and each function's instructions.

use std::fmt::Write;

use anyhow::{Context, Result, anyhow};
use parma_guest::policy::format::{Class, Const, Image, Kind, Pattern, Section};
use parma_guest::policy::instruction::{Args, Instruction, Reg, Relation, Target};
use parma_guest::policy::verify;

/// How much of a constant is shown.
const MAX_SHOWN: usize = 120;

/// Shows an image. It is verified first.
///
/// # Errors
/// If it is not a valid image.
pub fn disassemble(bytes: &[u8]) -> Result<String> {
    let invalid = |error| anyhow!("not a valid policy image: {error:?}");
    let image = Image::read(bytes).map_err(invalid)?;
    verify::verify(&image).map_err(invalid)?;
    text(&image).context("the image contradicts itself")
}

fn text(image: &Image<'_>) -> Option<String> {
    let mut out = String::new();
    let mut line = |indent: usize, text: String| {
        let _ = writeln!(out, "{:1$}{text}", "", 2 * indent);
    };
    line(0, format!("compiler {}", image.compiler));
    for (name, hash) in image.sources() {
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        line(0, format!("source {hash} {}", string(image, name)?));
    }
    let dfas = image.words(Section::DfaEnds);
    let constants = image.words(Section::Nodes);
    let sizes = [("strings", Section::StringBytes), ("automata", Section::DfaBytes), ("code", Section::Code)]
        .map(|(name, section)| format!("{name} {} B", image.section(section).len()));
    line(0, format!("{constants} composite constants, {dfas} automata; {}", sizes.join(", ")));
    for number in 0..u32::try_from(image.words(Section::Patterns)).ok()? {
        let pattern = match image.pattern(number)? {
            Pattern::Dfa(dfa) => format!("dfa {dfa} ({} B)", image.dfa_bytes(dfa)?.len()),
            Pattern::Program(program) => {
                format!("program {program} ({} steps)", image.program(program)?.steps.len())
            }
            Pattern::Literal(text) => format!("{:?}", string(image, text)?),
            Pattern::Member { dfa, pattern } => format!("pattern {pattern} of dfa {dfa}"),
        };
        line(0, format!("pattern {number}: {pattern}"));
    }
    let mut name = 0;
    while let Some((text, class, pattern)) = image.name(name) {
        let text = string(image, text)?.replace(Class::HOLE, "{}");
        let pattern = pattern.map_or("no regular expression".into(), |pattern| format!("pattern {pattern}"));
        line(0, format!("{class:?} {text:?}: {pattern}"));
        name += 1;
    }
    for (name, function) in image.entries() {
        line(0, format!("entry {} = f{function}", string(image, name)?));
    }
    for number in 0..image.functions() {
        let record = image.function(number)?;
        let name = string(image, record.name)?;
        let memo = if record.memo { ", remembered" } else { "" };
        line(0, String::new());
        line(
            0,
            format!("f{number} {name} ({} arguments, {} registers{memo})", record.arity, record.registers),
        );
        let code = image.section(Section::Code).get(image.code_range(number)?)?;
        let mut rest = code;
        let mut ends: Vec<usize> = Vec::new();
        while !rest.is_empty() {
            let (instruction, after) = Instruction::decode(rest)?;
            let at = code.len() - after.len();
            line(1 + ends.len(), instruction_text(image, &instruction));
            if let Some((_, body)) = instruction.body() {
                ends.push(at + body as usize);
            }
            while ends.last().is_some_and(|&end| end <= at) {
                ends.pop();
            }
            rest = after;
        }
    }
    Some(out)
}

fn string<'p>(image: &Image<'p>, number: u32) -> Option<&'p str> {
    std::str::from_utf8(image.string(number)?).ok()
}

/// A constant in Rego's syntax, cut off where it is long.
fn constant(image: &Image<'_>, value: Const) -> String {
    let mut out = String::new();
    write_constant(image, value, &mut out);
    if let Some((end, _)) = out.char_indices().nth(MAX_SHOWN) {
        out.truncate(end);
        out.push('…');
    }
    out
}

fn write_constant(image: &Image<'_>, value: Const, out: &mut String) {
    // What is beyond the part that is shown is not written at all.
    if out.len() > 4 * MAX_SHOWN {
        return;
    }
    let shown = match value.kind() {
        Some(Kind::Null) => Some("null".into()),
        Some(Kind::Bool) => Some((value == Const::TRUE).to_string()),
        Some(Kind::Int) => image.int(value.index()).map(|value| value.to_string()),
        Some(Kind::String) => string(image, value.index()).map(|text| format!("{text:?}")),
        Some(Kind::Array | Kind::Object | Kind::Set) => {
            if write_collection(image, value.index(), out).is_some() {
                return;
            }
            None
        }
        None => None,
    };
    out.push_str(shown.as_deref().unwrap_or("?"));
}

fn write_collection(image: &Image<'_>, number: u32, out: &mut String) -> Option<()> {
    let (kind, words) = image.node(number)?;
    let elements: Vec<Const> = words.map(|word| image.element(word)).collect::<Option<_>>()?;
    let (open, close) = if kind == Kind::Array { ('[', ']') } else { ('{', '}') };
    out.push(open);
    if kind == Kind::Object {
        let (shape, values) = elements.split_first()?;
        let (_, keys) = image.node(shape.index())?;
        for (number, (key, value)) in keys.zip(values).enumerate() {
            out.push_str(if number > 0 { ", " } else { "" });
            write_constant(image, image.element(key)?, out);
            out.push_str(": ");
            write_constant(image, *value, out);
        }
    } else {
        for (number, value) in elements.iter().enumerate() {
            out.push_str(if number > 0 { ", " } else { "" });
            write_constant(image, *value, out);
        }
    }
    out.push(close);
    Some(())
}

fn instruction_text(image: &Image<'_>, instruction: &Instruction<'_>) -> String {
    use Instruction as I;
    let show = |value: Const| constant(image, value);
    let to = |dst: Reg| format!("r{dst} := ");
    // Without a destination the result is tested.
    let into = |dst: Target| dst.map_or("test ".to_string(), to);
    let list = |args: Args<'_>| args.0.iter().map(|arg| format!("r{arg}")).collect::<Vec<_>>().join(", ");
    let each = |key: Target, value: Target| {
        let name = |target: Target| target.map_or("_".to_string(), |register| format!("r{register}"));
        format!("{}, {}", name(key), name(value))
    };
    let symbol = |relation: Relation| relation.symbol();
    match *instruction {
        I::Const { dst, value } => format!("{}{}", to(dst), show(value)),
        I::Input { dst } => format!("{}input", to(dst)),
        I::InputGet { dst, key } => format!("{}input[{}]", to(dst), show(key)),
        I::State { dst } => format!("{}data.metadata", to(dst)),
        I::StateGet { dst, key } => format!("{}data.metadata[{}]", to(dst), show(key)),
        I::Move { dst, src } => format!("{}r{src}", to(dst)),
        I::Get { dst, from, key } => format!("{}r{from}[r{key}]", to(dst)),
        I::GetConst { dst, from, key } => format!("{}r{from}[{}]", to(dst), show(key)),
        I::Lookup { dst, key, from } => format!("{}{}[r{key}]", into(dst), show(from)),
        I::Array { dst, items } => format!("{}[{}]", to(dst), list(items)),
        I::Set { dst, items } => format!("{}set({})", to(dst), list(items)),
        I::Object { dst, pairs } => format!("{}object({})", to(dst), list(pairs)),
        I::Record { dst, shape, values } => format!("{}record({}: {})", to(dst), show(shape), list(values)),
        I::Compare { relation, dst, left, right } => {
            format!("{}r{left} {} r{right}", into(dst), symbol(relation))
        }
        I::CompareConst { relation, dst, left, right } => {
            format!("{}r{left} {} {}", into(dst), symbol(relation), show(right))
        }
        I::Test { value } => format!("test r{value}"),
        I::Call { dst, function, args } => {
            let name = image.function(function).and_then(|record| string(image, record.name)).unwrap_or("?");
            format!("{}f{function}({})  # {name}", into(dst), list(args))
        }
        I::Builtin { dst, builtin, args } => format!("{}{}({})", into(dst), builtin.name(), list(args)),
        I::Match { dst, text, pattern } => format!("{}match(r{text}, pattern {pattern})", into(dst)),
        I::MatchBy { dst, text, pattern, part, holes } => {
            let span = if part { "part of " } else { "" };
            format!("{}match_by({span}r{text}, text r{pattern}, [{}])", into(dst), list(holes))
        }
        I::Submatches { dst, text, pattern, limit } => {
            format!("{}submatches(r{text}, text r{pattern}, r{limit})", to(dst))
        }
        I::Find { dst, text, list, table } => {
            format!("{}find(r{text}, {}[r{list}])", into(dst), show(table))
        }
        I::Block { .. } => "block".into(),
        I::Some { .. } => "some".into(),
        I::Not { .. } => "not".into(),
        I::Scan { source, key, value, .. } => format!("scan {} in r{source}", each(key, value)),
        I::Every { source, key, value, .. } => format!("every {} in r{source}", each(key, value)),
        I::Collect { dst, kind, .. } => format!("{}collect {kind:?}", to(dst)),
        I::Yield { value } => format!("yield r{value}"),
        I::YieldPair { key, value } => format!("yield r{key}: r{value}"),
        I::Fail => "fail".into(),
        I::Done { depth } => format!("done {depth}"),
        I::Return { value } => format!("return r{value}"),
        I::ReturnLast { value } => format!("return r{value} and end"),
        I::ReturnConst { value } => format!("return {} and end", show(value)),
        I::Leave => "leave if returned".into(),
        I::Abort => "abort".into(),
    }
}
