use std::sync::OnceLock;

use cuckoo_kernels::Counted;
use cuckoo_models::{Shelf, adapter};
use cuckoo_runtime::{Available, BatchWish, DeviceKind, Room, plan_on};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::families::draw;
use crate::lora::save_peft;

/// A random adapter of the real model, as a folder: all its products, of rank 8, in BF16, of values up to `size`.
pub(crate) fn save_adapter(folder: &Path, spec: &ArchSpec, name: &str, size: f64) {
    let rank = 8;
    let bf16 = |v: f64| (((v as f32).to_bits() >> 16) as u16).to_le_bytes();
    let mut tensors = Vec::new();
    for of in spec.products().unwrap() {
        let (inputs, outputs) = (of.inputs as u64, of.outputs as u64);
        for (part, shape) in [("A", [rank, inputs]), ("B", [outputs, rank])] {
            let tensor = format!("base_model.model.{}.lora_{part}.weight", of.hf);
            let scale = if part == "A" { 1.0 / (inputs as f64).sqrt() } else { size };
            let values = draw(&format!("{name} {tensor}"), (shape[0] * shape[1]) as usize);
            tensors.push((tensor, shape.to_vec(), values.flat_map(|v| bf16(v * scale)).collect()));
        }
    }
    let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none"});
    save_peft(folder, &config, "BF16", &tensors);
}

/// The real model with two adapters, which are only made once.
fn adapted() -> &'static Files {
    static MADE: OnceLock<(TempDir, Files)> = OnceLock::new();
    let (_, files) = MADE.get_or_init(|| {
        let (folder, mut files) = (tempfile::tempdir().unwrap(), files());
        let shelf = Shelf::open(folder.path().join("shelf")).unwrap();
        for name in ["one", "two"] {
            let peft = folder.path().join(name);
            save_adapter(&peft, &files.spec, name, 0.3);
            let shelved = adapter::shelve(&shelf, &peft, &files.spec).unwrap();
            files.adapters.push((WeightsHash(shelved.hash.0), shelved.path));
        }
        (folder, files)
    });
    files
}

/// `assign` with the adapter of that number.
fn with(files: &Files, number: usize, assign: Assign) -> Assign {
    Assign { adapter: Some(files.adapters[number].0), ..assign }
}

#[test]
fn beside_adapters_everybody_computes_what_they_would_alone() {
    let files = adapted();
    let plain_files = super::files();
    let assigns: Vec<Assign> = prompts(files)
        .iter()
        .take(9)
        .enumerate()
        .map(|(i, p)| {
            let assign = assign(i, p, p.len(), 6 + i as u32, &sampled(i as u64));
            match i % 3 {
                0 => assign,
                number => with(files, number - 1, assign),
            }
        })
        .collect();
    let alone = generate(files, ALONE, assigns.clone());
    for shape in [
        Shape { batch: 9, step_tokens: 48, ..ALONE },
        Shape { batch: 4, step_tokens: 7, threads: 1, ..ALONE },
        Shape { batch: 9, step_tokens: 48, threads: 3, drafts: 8, ..ALONE },
    ] {
        assert_eq!(alone, generate(files, shape, assigns.clone()), "{} together", shape.batch);
    }
    // Those without an adapter are as on a miner that has none; those with one are not.
    let base = generate(&plain_files, ALONE, assigns.iter().map(|a| Assign { adapter: None, ..a.clone() }).collect());
    for (i, (ours, base)) in alone.iter().zip(&base).enumerate() {
        assert_eq!(ours == base, i % 3 == 0, "sequence {i}");
    }
}

#[test]
fn a_resumed_sequence_goes_on_with_its_adapter() {
    let files = adapted();
    let prompt = &prompts(files)[4];
    let ask = |tokens: &[u32], new| with(files, 1, assign(0, tokens, prompt.len(), new, &sampled(7)));
    let whole = generate(files, ALONE, vec![ask(prompt, 16)]).remove(0);
    for accepted in [1, 9] {
        let known = [prompt.as_slice(), &whole.tokens[..accepted]].concat();
        let resumed = generate(files, ALONE, vec![ask(&known, 16 - accepted as u32)]).remove(0);
        assert_eq!(resumed.tokens, whole.tokens[accepted..], "after {accepted} tokens");
        assert_eq!(resumed.logits, whole.logits[accepted..]);
    }
}

#[test]
fn adapters_share_no_blocks() {
    let files = adapted();
    let words = files.tokenizer.encode(&TEXTS.join("\n"), true).unwrap();
    let ask = |id, adapter: Option<usize>| {
        let assign = assign(id, &words[..70], 70, 6, &plain(3));
        adapter.map_or(assign.clone(), |number| with(files, number, assign))
    };
    let uses = [None, Some(0), Some(1), Some(0), None, Some(1)];
    let cold: Vec<Output> =
        uses.iter().map(|adapter| generate(files, ALONE, vec![ask(0, *adapter)]).remove(0)).collect();
    let assigns = uses.iter().enumerate().map(|(id, adapter)| ask(id, *adapter)).collect();
    let (warm, stats) = generate_counting(files, ALONE, assigns);
    assert_eq!(cold, warm);
    // The first of each finds nothing, the second four full blocks.
    assert_eq!(stats.prefix_hit_tokens, 3 * 64, "{stats:?}");
}

/// What drafts knows no adapter, and blocks that were spilled come back to who computed them: neither changes a bit.
#[test]
fn adapters_beside_a_draft_model_and_spilled_blocks_change_no_bit() {
    let (files, draft) = (adapted(), DraftFiles::open(&weights()));
    let words = files.tokenizer.encode(&TEXTS.join("\n").repeat(3), true).unwrap();
    let assigns: Vec<Assign> = (0..8)
        .map(|i| {
            let sampling = if i % 3 == 0 { plain(i as u64) } else { sampled(i as u64) };
            let assign = assign(i, &words[i % 4 * 25..][..90], 90, 14, &sampling);
            if i % 2 == 0 { with(files, i % 4 / 2, assign) } else { assign }
        })
        .collect();
    let alone = |a: &Assign| generate(files, ALONE, vec![Assign { sequence: SequenceId(0), ..a.clone() }]).remove(0);
    let undisturbed: Vec<Output> = assigns.iter().map(alone).collect();
    for (batch, kv_blocks) in [(1, 9), (3, 21)] {
        let shape = Shape { batch, kv_blocks, step_tokens: 64, spill_bytes: 16 << 20, drafts: 8, ..ALONE };
        let (outputs, stats, _) = generate_beside(files, Some(&draft), shape, assigns.clone());
        assert_eq!(undisturbed, outputs, "{batch} together: {stats:?}");
        assert!(stats.drafts_asked > 0 && stats.drafts_asked_accepted > 0 && stats.restored > 0, "{stats:?}");
    }
}

#[test]
fn adapters_are_in_the_plan_of_memory() {
    let files = adapted();
    let adapters: Vec<Adapter> =
        files.adapters.iter().map(|(_, path)| Adapter::open(path, &files.spec).unwrap()).collect();
    let wish = BatchWish {
        sequences_max: 3,
        step_tokens_max: 48,
        step_target: Duration::MAX,
        drafts_max: 2,
        kv_bytes_max: 50 << 20,
        kv_kind: KvKind::F16,
        spill_bytes: 0,
        context_tokens_max: Some(700),
    };
    let plan = |adapters: &[&Adapter]| {
        plan_on(
            &DeviceKind::Cpu { threads: 2 },
            ((&files.files, &files.spec), None, adapters),
            &wish,
            Room::shared(Available::UNKNOWN),
        )
        .unwrap()
    };
    let (_, without) = plan(&[]);
    let (limits, planned) = plan(&adapters.iter().collect::<Vec<_>>());
    assert_eq!((without.adapters, planned.peak() - without.peak()), (0, planned.adapters));
    let mut engine = Engine::new(Cpu::new(2), &files.files, &files.spec, limits).unwrap();
    let before = engine.backend().bytes();
    for ((_, path), adapter) in files.adapters.iter().zip(&adapters) {
        engine.add_adapter(adapter, &File::open(path).unwrap()).unwrap();
    }
    let (loaded, file) = (engine.backend().bytes(), adapters.iter().map(Adapter::bytes).sum::<u64>());
    // Beside it what is held while an adapter is loaded: a part of one.
    let held = planned.adapters - (loaded - before);
    assert!(held > 0 && held < file / 2, "{loaded} after {before}: {planned:?} for {file}");
    let mut batch = Batch::new(limits, WeightsHash([0; 32])).with_adapters(&[files.adapters[0].0, files.adapters[1].0]);
    (0..3).for_each(|id| batch.assign(with(files, id % 2, assign(id, &[7; 200], 200, 4, &sampled(1)))));
    while let Some(step) = batch.plan() {
        let output = engine.step(&step).unwrap();
        batch.apply(step, output, Duration::ZERO);
    }
    assert_eq!(engine.backend().bytes(), loaded, "computing takes no more");
}

/// An adapter that turns everything into what are no numbers ends its own sequence and touches nobody else's.
#[test]
fn an_adapter_that_overflows_breaks_only_its_own_sequence() {
    let (folder, mut files) = (tempfile::tempdir().unwrap(), files());
    let shelf = Shelf::open(folder.path().join("shelf")).unwrap();
    let peft = folder.path().join("hostile");
    save_adapter(&peft, &files.spec, "hostile", 3e38);
    let shelved = adapter::shelve(&shelf, &peft, &files.spec).unwrap();
    files.adapters.push((WeightsHash(shelved.hash.0), shelved.path.clone()));
    let limits = BatchLimits {
        sequences_max: 3,
        step_tokens_max: 128,
        step_target: Duration::MAX,
        drafts_max: 0,
        kv_blocks: 64,
        kv_kind: KvKind::F16,
        spill_bytes: 0,
        context_tokens: 1_024,
    };
    let mut engine = Engine::new(Cpu::new(2), &files.files, &files.spec, limits).unwrap();
    let adapter = Adapter::open(&shelved.path, &files.spec).unwrap();
    engine.add_adapter(&adapter, &File::open(&shelved.path).unwrap()).unwrap();
    let prompts = prompts(&files);
    let ask = |id: usize, hostile: bool| {
        let ask = assign(id, &prompts[id], prompts[id].len(), 4, &plain(1));
        let ask = Assign { logprobs: Some(2), ..ask };
        if hostile { with(&files, 0, ask) } else { ask }
    };
    let mut step = |assigns: Vec<Assign>| {
        let mut batch = Batch::new(limits, WeightsHash([0; 32])).with_adapters(&[files.adapters[0].0]);
        assigns.into_iter().for_each(|assign| batch.assign(assign));
        let plan = batch.plan().unwrap();
        let output = engine.step(&plan).unwrap();
        (plan.owners, output)
    };
    let (owners, together) = step(vec![ask(0, false), ask(1, true), ask(2, false)]);
    assert_eq!((together.broken.as_slice(), owners[1]), (&[1][..], SequenceId(1)));
    assert_eq!(together.logprobs[1], None);
    for (id, at) in [(0, 0), (2, 2)] {
        let (_, alone) = step(vec![ask(id, false)]);
        assert!(alone.broken.is_empty());
        assert_eq!((alone.drawn[0], &alone.logprobs[0]), (together.drawn[at], &together.logprobs[at]));
    }
}
