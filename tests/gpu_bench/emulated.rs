//! Every kind of row as it runs on a GPU, at shapes that the emulator computes in no time.

use std::time::Duration;

use cuckoo_kernels::cuda::{Copies, Cuda, DataSheet, Emulator, Profile, Replay};
use cuckoo_kernels::ops::Heads;
use cuckoo_kernels::{KvKind, Ops, Quant};

use super::contract::{Checked, check, expected};
use super::measure::{Card, Effort, measure};
use super::models::{self, Ceilings, Plan, Shape};
use super::op::Op;
use super::run::{self, Record};
use super::table::Row;
use super::work::{Numbers, Work};

const HEADS: Heads = Heads { query: 4, kv: 2, dim: 32 };

fn card() -> Option<Card<Emulator>> {
    let emulator = Emulator::new(2, 1);
    if emulator.is_none() {
        println!("skipped: this processor cannot run the emulator");
    }
    Some(Cuda::new(Replay::new(emulator?)))
}

/// A cache that holds little, so that there are two sets of each.
fn effort(op: &Op) -> Effort {
    Effort { l2_bytes: op.cost().bytes * 2 / 3, samples: 3, row: Duration::from_millis(1) }
}

fn tiny() -> Vec<Op> {
    let linear = |quant, tokens| Op::Linear { quant, tokens, outputs: 40, inputs: 256 };
    vec![
        Op::Norm { rows: 5, cols: 64 },
        Op::RopeStore { sequences: 1, rows: 20, heads: HEADS, kind: KvKind::BF16 },
        Op::RopeStore { sequences: 3, rows: 1, heads: HEADS, kind: KvKind::Q8_0 },
        Op::Gate { rows: 3, cols: 96 },
        linear(Quant::BF16, 1),
        linear(Quant::BF16, 5),
        linear(Quant::Q4_0, 1),
        linear(Quant::Q4_K, 5),
        linear(Quant::FP8, 2),
        Op::Attention { sequences: 3, rows: 1, depth: 40, heads: HEADS, kind: KvKind::BF16 },
        Op::Attention { sequences: 2, rows: 1, depth: 33, heads: HEADS, kind: KvKind::Q8_0 },
        Op::Attention { sequences: 1, rows: 9, depth: 9, heads: HEADS, kind: KvKind::BF16 },
        Op::Attention { sequences: 1, rows: 5, depth: 37, heads: HEADS, kind: KvKind::BF16 },
        Op::Sample { rows: 3, vocabulary: 256 },
        Op::CopyOut { tokens: 32, layers: 2, heads: HEADS, kind: KvKind::BF16 },
    ]
}

#[test]
fn every_kind_of_row_is_launched_checked_and_timed() {
    let Some(mut card) = card() else { return };
    for op in tiny() {
        let found = measure(&mut card, (&op, 0.0), &effort(&op)).unwrap();
        assert!(found.checked.is_right() && found.checked.compared > 0, "{op:?}: {:?}", found.checked);
        assert_eq!(found.times.us.len(), 3, "{op:?}");
        assert!(found.times.us.windows(2).all(|pair| pair[0] <= pair[1]) && found.times.median() > 0.0, "{op:?}");
        assert_eq!(found.times.launches == 0, op.answers(), "{op:?}");
        assert_ne!(found.stays, Some(false), "{op:?}");
        match op {
            Op::CopyOut { .. } => assert_eq!(found.sets, 1),
            _ => assert_eq!(found.sets, 2, "{op:?}"),
        }
    }
}

#[test]
fn the_fast_profile_is_near_and_nothing_else_is() {
    let Some(emulator) = Emulator::new(1, 1) else { return };
    let mut card = Cuda::with_profile(Replay::new(emulator), Profile::Fast);
    for tokens in [1, 5, 70] {
        let op = Op::Linear { quant: Quant::BF16, tokens, outputs: 128, inputs: 256 };
        let row = |profile| Row { name: String::new(), op, profile, first: None, impossible: None };
        let found = measure(&mut card, (&op, row(Profile::Fast).allowed()), &effort(&op)).unwrap();
        let checked = &found.checked;
        assert!(checked.is_right() && checked.differ > 0 && checked.relative_error < 5e-3, "{tokens}: {checked:?}");
        let asked_for_bits = Checked { allowed: row(Profile::Exact).allowed(), ..checked.clone() };
        assert!(!asked_for_bits.is_right());
    }
}

#[test]
fn what_is_wrong_or_unwritten_is_noticed() {
    let Some(mut card) = card() else { return };
    let op = Op::Linear { quant: Quant::BF16, tokens: 5, outputs: 40, inputs: 256 };
    let numbers = Numbers::new(&op);
    let mut work = Work::new(&mut card, op, 1, &numbers).unwrap();
    let (checked, output) = check(&mut card, &mut work, &op, (0, &numbers, 0.0)).unwrap();
    assert!(checked.is_right() && checked.relative_error == 0.0);
    let wanted = expected(&mut cuckoo_kernels::Exact::new(), &op, 0, &numbers).unwrap();
    assert_eq!(wanted.len(), 3 * 16, "rows at both ends and in between, and as many outputs of each");
    let mut wrong = output.clone();
    let at = wanted[7].0;
    wrong[at] = f32::from_bits(wrong[at].to_bits() ^ 1);
    let found = Checked::of(&wrong, &wanted, 0.0);
    assert_eq!((found.differ, found.is_right()), (1, false));
    assert!(found.relative_error > 0.0 && found.relative_error < 1e-6, "{found:?}");
    // A value that nobody compares, but that nobody wrote either.
    let unseen = (0..output.len()).find(|i| wanted.iter().all(|(at, _)| at != i)).unwrap();
    let mut unwritten = output.clone();
    unwritten[unseen] = f32::NAN;
    let found = Checked::of(&unwritten, &wanted, 1e-2);
    assert_eq!((found.differ, found.not_finite, found.is_right()), (0, 1, false));
    assert!(!Checked::of(&[], &wanted, 1e-2).is_right());
    // Poison is there, and no operation but the one that is checked takes it away.
    work.poison(&mut card, 0).unwrap();
    assert!(work.output(&mut card, 0).unwrap().iter().all(|v| v.is_nan()));
    // Other operands have other results.
    let other = expected(&mut cuckoo_kernels::Exact::new(), &op, 1, &numbers).unwrap();
    assert!(!Checked::of(&output, &other, 1e-2).is_right());
}

#[test]
fn a_run_is_written_down_row_by_row() {
    let Some(mut card) = card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("found.json");
    let mut record = Record::new(Some(out.clone()), Duration::from_secs(600));
    let sheet = DataSheet::of("NVIDIA H200");
    let effort = Effort { l2_bytes: 4096, samples: 3, row: Duration::from_millis(1) };
    let copies = Copies { within: 1e9, to: 1e8, from: 1e8 };
    let against = run::limits(&mut card, (&copies, sheet.as_ref()), &effort, &mut record).unwrap();
    let row =
        |name: &str, op| Row { name: name.to_owned(), op, profile: Profile::Exact, first: None, impossible: None };
    let rows = [row("norm", Op::Norm { rows: 5, cols: 64 }), row("gate", Op::Gate { rows: 3, cols: 96 })];
    run::kernels(&mut card, &rows[..1], (&effort, &against), &mut record).unwrap();
    let read = || serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let found = read();
    assert_eq!((found["rows"].as_array().unwrap().len(), &found["complete"]), (1, &serde_json::json!(false)));
    let first = &found["rows"][0];
    assert_eq!((&first["check"]["right"], &first["stays"]), (&true.into(), &true.into()));
    let us = first["us"]["median"].as_f64().unwrap();
    let bytes = (8 * 5 * 64 + 4 * 64) as f64;
    assert!((first["gb_per_s"].as_f64().unwrap() - bytes / us / 1e3).abs() < 1e-9);
    assert!((first["percent_of_measured"].as_f64().unwrap() - 100.0 * bytes / 1e9 / (us / 1e6)).abs() < 1e-6);
    assert!(first["percent_of_sheet"].as_f64().unwrap() < first["percent_of_measured"].as_f64().unwrap());
    // What there is no time for is told, and counts.
    let mut late = Record::new(Some(out.clone()), Duration::ZERO);
    run::kernels(&mut card, &rows, (&effort, &against), &mut late).unwrap();
    let found = read();
    assert_eq!((found["rows"].as_array().unwrap().len(), &found["wrong"]), (2, &2.into()));
    assert!(found["rows"][1]["error"].as_str().unwrap().contains("no time was left"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// As small as a model can be that has all that a large one has.
const TINY: Shape = Shape {
    name: "tiny",
    family: "qwen3",
    layers: 2,
    hidden: 64,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    ffn: 256,
    vocabulary: 96,
    tied: false,
    qk_norm: true,
    rope_base: 10_000.0,
};

fn digests<B: super::rig::Backend>(path: &std::path::Path, backend: B) -> Vec<String> {
    let plan = Plan { batches: &[1, 3], depth: 4, generate: 2, prompts: &[6], step_tokens: 8, repetitions: 2 };
    let ceilings = Ceilings { measured_bytes_per_s: 1e9, sheet: None };
    let (costs, found) = models::measure(path, backend, &plan, &ceilings, &|| true).unwrap();
    assert!(costs.weight_bytes > 0 && costs.position_bytes == 2 * 2 * 2 * 16 * 2);
    let tests: Vec<&str> = found.iter().map(|test| test["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["decode, batch 1", "decode, batch 3", "prefill 6"]);
    for test in &found {
        assert!(test["tokens_per_s"].as_f64().unwrap() > 0.0 && test["percent_of_copies"].as_f64().unwrap() > 0.0);
        assert_eq!(test["samples"].as_array().unwrap().len(), 2);
    }
    found.iter().map(|test| test["digest"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn models_with_random_weights_go_through_the_loader_and_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    for (quant, family) in [(Quant::Q4_K, "qwen3"), (Quant::BF16, "llama")] {
        let shape = Shape { family, qk_norm: family == "qwen3", tied: family == "llama", ..TINY };
        let path = folder.path().join("tiny.gguf");
        models::write(&path, &shape, quant).unwrap();
        let files = cuckoo_models::ModelFiles::open(&path).unwrap();
        let spec = files.spec().unwrap();
        assert_eq!((spec.layers, spec.head_dim, spec.vocab, spec.tied_head), (2, 16, 96, shape.tied));
        let kinds = files.quantization();
        // 64 columns are no superblock.
        assert!(if quant == Quant::BF16 { kinds.contains("BF16") } else { kinds.contains("Q4") }, "{kinds}");
        let cpu = digests(&path, cuckoo_kernels::Timed::new(cuckoo_kernels::Cpu::new(1)));
        let Some(card) = card() else { return };
        assert_eq!(digests(&path, card), cpu, "the same tokens on both");
    }
}

#[test]
fn shapes_have_the_parameters_that_their_names_say() {
    // In billions, embedding and head counted.
    for (name, least, most) in [("Llama-3.1-8B", 8.0, 8.1), ("Qwen3-8B", 8.1, 8.3), ("SmolLM2-135M", 0.134, 0.135)] {
        let shape = models::SHAPES.iter().find(|shape| shape.name == name).unwrap();
        let parameters = models::parameters(shape) as f64 / 1e9;
        assert!((least..most).contains(&parameters), "{name}: {parameters}");
    }
}

#[test]
fn checks_are_written_down() {
    let mut record = Record::new(None, Duration::from_secs(1));
    let mut cpu = cuckoo_kernels::Cpu::new(1);
    run::checks(&mut cpu, &mut record).unwrap();
    assert_eq!((record.wrong, record.report["checks"]["wrong"].as_array().unwrap().len()), (0, 0));
    assert_eq!(record.report["checks"]["backend"], cpu.describe());
}
