//! `benches/peers/gpu.py`: one table of two runs, and what it says where something is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/gpu.py")
}

/// Runs it; `None` where there is no Python.
fn run(args: &[&Path]) -> Option<Output> {
    // In this mode it sees no packages but its own, so PyTorch is missing wherever this runs.
    let output = Command::new("python3").args(["-S", "-B"]).arg(script()).args(args).output();
    if output.is_err() {
        println!("skipped: there is no python3");
    }
    output.ok()
}

/// What a run on a card would have written: rows that were measured, that were wrong, and that were not measured.
fn ours() -> Value {
    let target = |first: &str, met: bool| json!({"first": first, "met": met});
    let row = |name: &str, us: f64, bound: &str, first: &Value| {
        json!({
            "name": name, "op": {"kind": "norm", "rows": 8192, "cols": 4096}, "bytes": 268_451_840, "flops": 1_000_000_000_u64,
            "us": {"median": us, "min": us - 1.0, "max": us + 1.0}, "bound": bound, "percent_of_measured": 70.0,
            "percent_of_sheet": 60.0, "percent_of_roofline": 55.0, "first_milestone": first["first"],
            "first_milestone_met": first["met"], "impossible": null, "impossible_met": null,
            "check": {"right": true, "compared": 3, "differ": 0, "not_finite": 0}, "stays": true,
        })
    };
    let mut wrong = row("wrong", 10.0, "memory", &target("75 %", false));
    wrong["check"] = json!({"right": false, "compared": 48, "differ": 2, "not_finite": 5});
    json!({
        "gpu": {"name": "NVIDIA H200"}, "version": "0.1.0", "complete": true, "wrong": 2,
        "checks": {"cases": 45, "wrong": []},
        "limits": {"copy_bytes_per_s": {"within": 4.2e12}, "sheet": {"bytes_per_s": 4.8e12, "bf16_per_s": 9.89e14}},
        "rows": [
            row("norm", 80.0, "memory", &target("75 %", true)),
            row("product", 20.0, "arithmetic", &target("<= 3 us", false)),
            wrong,
            {"name": "late", "op": {"kind": "norm"}, "error": "not measured: no time was left"},
        ],
        "models": [
            {"name": "Llama-3.1-8B BF16", "tests": [
                {"test": "decode, batch 1", "tokens_per_s": 200.0, "step_ms": 5.0, "percent_of_copies": 70.0,
                 "percent_of_sheet_bandwidth": 61.0},
                {"test": "prefill 512", "error": "not measured: no time was left"}]},
            {"name": "Qwen3-8B BF16", "error": "no memory"},
        ],
        "not_covered": [{"name": "llama.cpp", "why": "its build is not carried along"}],
    })
}

fn peers() -> Value {
    let took = |peer: &str, us: f64| json!({"peer": peer, "us": {"median": us, "min": us, "max": us}});
    json!({
        "gpu": {"name": "NVIDIA H200"}, "torch": "2.11.0", "ceilings": {"copy_bytes_per_s": 4.3e12, "bf16_per_s": 8e14},
        "rows": {
            "norm": [took("eager", 160.0), took("compiled", 100.0), {"peer": "other", "error": "RuntimeError: a | b"}],
            "wrong": [{"peer": "other", "error": "RuntimeError: a | b"}],
        },
    })
}

fn cells(table: &str, row: &str) -> Vec<String> {
    let line = table.lines().find(|l| l.starts_with(&format!("| {row} |"))).unwrap_or_else(|| panic!("{row}: {table}"));
    line.split('|').map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn two_runs_become_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("a.json"), ours().to_string()).unwrap();
    std::fs::write(at("b.json"), peers().to_string()).unwrap();
    let [own, others, out] = ["--ours", "--peers", "--out"].map(Path::new);
    let Some(output) = run(&[own, &at("a.json"), others, &at("b.json"), out, &at("out")]) else { return };
    assert_eq!(output.status.code(), Some(1), "something is wrong: {}", String::from_utf8_lossy(&output.stderr));
    let table = std::fs::read_to_string(at("out/table.md")).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), table.trim());
    assert_eq!(
        cells(&table, "norm"),
        ["norm", "80.0", "70", "60", "55", "75 %: yes", "–", "compiled 100.0", "1.25", "equal"]
    );
    // A thousand million operations in 20 us are 50 TFLOP/s of the 800 that were measured.
    assert_eq!(cells(&table, "product")[2..9], ["6", "60", "55", "<= 3 us: no", "–", "not measured", "–"]);
    assert_eq!(cells(&table, "wrong").last().unwrap(), "**WRONG** (2 of 48, 5 not finite)");
    assert_eq!(cells(&table, "wrong")[7], "other: RuntimeError: a / b");
    assert_eq!(cells(&table, "late").last().unwrap(), "not measured: no time was left");
    assert_eq!(
        cells(&table, "Llama-3.1-8B BF16"),
        ["Llama-3.1-8B BF16", "decode, batch 1", "200.0", "5.000", "70", "61"]
    );
    for text in ["4,200 GB/s", "800 TFLOP/s", "45 of 45", "not measured: no memory", "llama.cpp: its build is not"] {
        assert!(table.contains(text), "{text}: {table}");
    }
    assert!(!table.contains("different cards") && !table.contains("not finished"));
    let merged: Value = serde_json::from_str(&std::fs::read_to_string(at("out/merged.json")).unwrap()).unwrap();
    assert_eq!(
        (&merged["rows"][0]["times_as_fast"], &merged["rows"][0]["best_peer"]),
        (&1.25.into(), &"compiled".into())
    );
    assert_eq!(merged["rows"][1]["percent_of_measured"], 6.25);
}

#[test]
fn ratios_between_cards_are_called_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (mut a, mut b) = (ours(), peers());
    (a["complete"], a["wrong"], b["gpu"]["name"]) = (false.into(), 0.into(), "NVIDIA L4".into());
    b["rows"] = json!({});
    std::fs::write(at("a.json"), a.to_string()).unwrap();
    std::fs::write(at("b.json"), b.to_string()).unwrap();
    let [own, others, out] = ["--ours", "--peers", "--out"].map(Path::new);
    let Some(output) = run(&[own, &at("a.json"), others, &at("b.json"), out, folder.path()]) else { return };
    assert_eq!(output.status.code(), Some(0));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("different cards") && table.contains("was not finished"), "{table}");
}

#[test]
fn what_is_missing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let [own, binary, out] = ["--ours", "--binary", "--out"].map(Path::new);
    std::fs::write(at("a.json"), ours().to_string()).unwrap();
    let Some(output) = run(&[own, &at("a.json"), out, &at("out")]) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("PyTorch is missing"), "{said}");
    let table = std::fs::read_to_string(at("out/table.md")).unwrap();
    assert_eq!(cells(&table, "norm")[7..9], ["not measured", "–"], "ours are there all the same");
    for (args, words) in [
        (vec![binary, Path::new("/nowhere/gpu"), out, folder.path()], "cannot be run"),
        (vec![binary, Path::new("/bin/false"), out, folder.path()], "measured nothing"),
        (vec![own, Path::new("/nowhere.json"), out, folder.path()], "cannot be read"),
        (vec![out, folder.path()], "--binary or --ours"),
    ] {
        let output = run(&args).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(words), "{said}");
    }
    std::fs::write(at("empty.json"), "{}").unwrap();
    let said = run(&[own, &at("empty.json"), out, folder.path()]).unwrap().stderr;
    assert!(String::from_utf8_lossy(&said).contains("no rows"));
}
