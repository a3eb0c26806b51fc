//! What the program says to bad input: the file, the remedy, the exit code, and no half-written output.

mod common;

use common::{parma, stderr, stdout};
use std::fs;
use std::path::Path;
use std::process::Output;

const POLICY: &str = "package policy

api_version := \"0.12.0\"
framework_version := \"0.5.0\"

get_properties := {\"allowed\": true}
";

fn run(arguments: &[&str]) -> Output {
    let runtime = tempfile::tempdir().unwrap();
    parma(&runtime).args(arguments).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    for arguments in [
        &["nonsense"][..],
        &["run"],
        &["run", "docker:x"],
        &["run", "oci:"],
        &["run", "oci:x", "--cpus", "0"],
        &["kill", "x", "-s", "NOSUCH"],
        &["exec", "x"],
        &["policy", "generate", "oci:x", "--allow-exec", ""],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    }
    for command in ["run", "exec", "ps", "kill", "stop", "host", "image", "layer", "policy", "volume"] {
        let output = run(&[command, "--help"]);
        assert!(output.status.success() && stdout(&output).contains("Usage:"), "{command}");
    }
}

#[test]
fn a_host_without_snp_is_told_what_it_lacks() {
    let output = run(&["host", "check"]);
    let said = stdout(&output);
    let missing = said.lines().filter(|line| line.starts_with("no ")).count();
    assert_eq!(output.status.code(), Some(i32::from(missing > 0)), "{said}");
    // A remedy for each.
    assert_eq!(said.lines().filter(|line| line.starts_with("     ")).count(), missing, "{said}");
    let output = run(&["host", "check", "--json"]);
    let findings: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(findings.as_array().unwrap().len(), said.lines().count() - missing);
}

#[test]
fn an_image_that_is_not_there_is_named_with_the_remedy() {
    for arguments in [
        &["policy", "generate", "oci:/no/such/layout"][..],
        &["run", "--image", "/no/such/image", "oci:/no/such/layout"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1));
        let error = stderr(&output);
        assert!(error.contains("/no/such/"), "{error}");
        assert!(error.contains("parma image pull") || error.contains("cargo xtask image"), "{error}");
    }
}

#[test]
fn a_compiled_policy_is_written_and_its_host_data_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("p.rego"), dir.path().join("p.bin"));
    fs::write(&source, POLICY).unwrap();
    let output = run(&["policy", "compile", path(&source), "-o", path(&image)]);
    assert!(output.status.success(), "{}", stderr(&output));
    let expected: String =
        parma_policy::host_data(&fs::read(&image).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(stdout(&output), format!("{expected}\n"));
    let json = run(&["policy", "compile", path(&source), "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["host_data"], expected);
    let more = run(&["policy", "compile", path(&source), "--add-missing-points"]);
    assert!(more.status.success() && stdout(&more) != stdout(&output), "{}", stderr(&more));
    let text = run(&["policy", "disasm", path(&image)]);
    assert!(text.status.success() && stdout(&text).contains("get_properties"));
}

#[test]
fn a_policy_that_does_not_compile_is_named_with_its_line_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("broken.rego"), dir.path().join("p.bin"));
    fs::write(&source, "package policy\n\nget_properties := http.send({})\n").unwrap();
    let output = run(&["policy", "compile", path(&source), "-o", path(&image)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("broken.rego:3"), "{}", stderr(&output));
    assert!(!image.exists());
}

#[test]
fn output_that_cannot_be_written_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("p.rego");
    fs::write(&source, POLICY).unwrap();
    let out = dir.path().join("missing/p.bin");
    let output = run(&["policy", "compile", path(&source), "-o", path(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("missing/p.bin"), "{}", stderr(&output));
}

#[test]
fn a_trace_is_replayed_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let (source, trace) = (dir.path().join("p.rego"), dir.path().join("trace.jsonl"));
    fs::write(&source, POLICY).unwrap();
    let request = |rule: &str| format!("{{\"rule\":\"data.policy.{rule}\",\"input\":{{}}}}\n");
    fs::write(&trace, request("get_properties")).unwrap();
    let output = run(&["policy", "replay", path(&source), path(&trace)]);
    assert!(output.status.success(), "{}", stderr(&output));
    let answer: serde_json::Value = serde_json::from_str(stdout(&output).trim()).unwrap();
    assert_eq!((&answer["defined"], &answer["result"]["allowed"]), (&true.into(), &true.into()));
    fs::write(&trace, "{\"rule\":7}\n").unwrap();
    let output = run(&["policy", "replay", path(&source), path(&trace)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 1"), "{}", stderr(&output));
}

#[test]
fn a_run_that_is_not_there_is_named_and_the_list_is_empty() {
    for arguments in [&["exec", "web", "--", "id"][..], &["kill", "web"], &["stop", "web"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("web") && stderr(&output).contains("parma ps"),
            "{}",
            stderr(&output)
        );
    }
    let output = run(&["ps", "--json"]);
    assert_eq!(stdout(&output), "[]\n");
    assert_eq!(run(&["stop", "../x"]).status.code(), Some(1));
}

#[test]
fn a_layer_is_built_and_its_root_hash_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (tar, image) = (dir.path().join("layer.tar"), dir.path().join("layer.img"));
    let mut builder = tar::Builder::new(fs::File::create(&tar).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(6);
    header.set_mode(0o644);
    builder.append_data(&mut header, "etc/motd", &b"hello\n"[..]).unwrap();
    builder.into_inner().unwrap();
    let built = run(&["layer", "build", path(&tar), "-o", path(&image)]);
    assert!(built.status.success(), "{}", stderr(&built));
    let hashed = run(&["layer", "hash", path(&tar)]);
    assert_eq!((stdout(&hashed).len(), stdout(&hashed)), (65, stdout(&built)));
    let other = run(&["layer", "hash", path(&tar), "--max-size", "1G"]);
    assert!(other.status.success() && stdout(&other) != stdout(&built), "the size is part of the hash");
    let json = run(&["layer", "build", path(&tar), "-o", path(&image), "--vhd", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["root_hash"], stdout(&built).trim());
    assert_eq!(json["bytes"], fs::metadata(&image).unwrap().len());
}

#[test]
fn a_layer_that_is_no_tar_leaves_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let (tar, image) = (dir.path().join("layer.tar"), dir.path().join("layer.img"));
    for input in [&b"not a tar"[..], &[0x1f, 0x8b, 8, 0]] {
        fs::write(&tar, input).unwrap();
        let output = run(&["layer", "build", path(&tar), "-o", path(&image)]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("layer.tar"), "{}", stderr(&output));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the input");
    }
    let missing = run(&["layer", "hash", "/no/such.tar"]);
    assert!(stderr(&missing).contains("/no/such.tar"), "{}", stderr(&missing));
}

#[test]
fn a_policy_is_checked_from_its_source_and_from_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("p.rego"), dir.path().join("p.bin"));
    fs::write(&source, POLICY).unwrap();
    let host_data = stdout(&run(&["policy", "compile", path(&source), "-o", path(&image)]));
    for policy in [&source, &image] {
        let output = run(&["policy", "check", path(policy), "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(report["host_data"], host_data.trim());
        assert!(report["denied"].as_array().unwrap().contains(&"create_container".into()));
    }
    let text = run(&["policy", "check", path(&source)]);
    assert!(stdout(&text).contains(host_data.trim()) && stdout(&text).contains("get_properties"));
    fs::write(&source, "package policy\nget_properties := nonsense(1)\n").unwrap();
    let output = run(&["policy", "check", path(&source)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("p.rego:2:"), "{}", stderr(&output));
}

#[test]
fn lint_fails_only_where_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("p.rego"), dir.path().join("p.bin"));
    fs::write(&source, POLICY).unwrap();
    assert!(run(&["policy", "lint", "--deny", path(&source)]).status.success(), "there is nothing to find");
    fs::write(&source, format!("{POLICY}allow_unencrypted_scratch := true\n")).unwrap();
    let output = run(&["policy", "lint", path(&source)]);
    assert!(output.status.success() && stdout(&output).contains("allow_unencrypted_scratch"));
    let output = run(&["policy", "lint", path(&source), "--deny", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let findings: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(findings[0]["check"], "flag");
    run(&["policy", "compile", path(&source), "-o", path(&image)]);
    let output = run(&["policy", "lint", path(&image)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("give the Rego"), "{}", stderr(&output));
}

#[test]
fn a_decision_is_explained_and_a_bad_request_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (source, request) = (dir.path().join("p.rego"), dir.path().join("request.json"));
    fs::write(&source, POLICY).unwrap();
    fs::write(&request, r#"{"point":"get_properties","input":{}}"#).unwrap();
    let output = run(&["policy", "explain", path(&source), path(&request)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("get_properties: allowed\n"), "{}", stdout(&output));
    fs::write(&request, r#"{"rule":"data.policy.dump_stacks","input":{}}"#).unwrap();
    let output = run(&["policy", "explain", path(&source), path(&request), "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["allowed"], false);
    assert!(answer["fault"].as_str().unwrap().contains("does not define"), "{answer}");
    fs::write(&request, "nonsense").unwrap();
    let output = run(&["policy", "explain", path(&source), path(&request)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("request.json"), "{}", stderr(&output));
}
