//! A draft model beside the real one: no bit of the output depends on it, be it the same model or a senseless one.

use cuckoo_kernels::KvKind;
use cuckoo_models::{GgmlType, GgufWriter};
use cuckoo_runtime::{Available, BatchWish, DeviceKind, DraftPlan, Room, plan_on};

use super::*;
use crate::families::values;

/// A draft model's file.
pub(crate) struct DraftFiles {
    pub(super) files: ModelFiles,
    pub(super) spec: ArchSpec,
}

impl DraftFiles {
    pub(super) fn open(path: &Path) -> Self {
        let files = ModelFiles::open(path).unwrap();
        Self { spec: files.spec().unwrap(), files }
    }

    /// What a batch has to know of it.
    pub(super) fn plan(&self, limits: BatchLimits) -> DraftPlan {
        DraftPlan { kv: KvPlan::new(&self.spec, &limits.of_draft()), context_tokens: self.spec.context_tokens as u32 }
    }
}

/// Writes a model of one small layer and random weights that has these tokens.
pub(crate) fn write_tiny(path: &Path, kind: &str, tokens: &[String]) {
    let vocabulary = tokens.len() as u64;
    let mut writer = GgufWriter::new()
        .meta_str("general.architecture", "llama")
        .meta_u32("llama.block_count", 1)
        .meta_u32("llama.embedding_length", 64)
        .meta_u32("llama.context_length", 512)
        .meta_u32("llama.attention.head_count", 4)
        .meta_u32("llama.attention.head_count_kv", 2)
        .meta_u32("llama.attention.key_length", 16)
        .meta_u32("llama.attention.value_length", 16)
        .meta_u32("llama.feed_forward_length", 96)
        .meta_f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .meta_str("tokenizer.ggml.model", kind)
        .meta_strings("tokenizer.ggml.tokens", tokens);
    let tensors: [(&str, &[u64]); 12] = [
        ("token_embd.weight", &[64, vocabulary]),
        ("blk.0.attn_norm.weight", &[64]),
        ("blk.0.attn_q.weight", &[64, 64]),
        ("blk.0.attn_k.weight", &[64, 32]),
        ("blk.0.attn_v.weight", &[64, 32]),
        ("blk.0.attn_output.weight", &[64, 64]),
        ("blk.0.ffn_norm.weight", &[64]),
        ("blk.0.ffn_gate.weight", &[64, 96]),
        ("blk.0.ffn_up.weight", &[64, 96]),
        ("blk.0.ffn_down.weight", &[96, 64]),
        ("output_norm.weight", &[64]),
        ("output.weight", &[64, vocabulary]),
    ];
    for (name, dims) in tensors {
        writer = writer.tensor(name, dims, GgmlType::F32, &values(name, dims));
    }
    writer.write(path).unwrap();
}

/// A senseless model with the tokens of a real one.
fn tiny(folder: &Path, of: &Files) -> DraftFiles {
    let (path, of) = (folder.join("tiny.gguf"), of.files.gguf().unwrap());
    write_tiny(&path, of.str("tokenizer.ggml.model").unwrap(), of.strings("tokenizer.ggml.tokens").unwrap());
    DraftFiles::open(&path)
}

/// Sequences of all kinds: greedy, warm, scored, penalized, with a text that repeats and with one that does not.
fn mixed(files: &Files) -> Vec<Assign> {
    let words = files.tokenizer.encode(&TEXTS.join("\n"), true).unwrap();
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let warm = |seed| Sampling { top_k: 40, min_p: 0.02, min_tokens: 8, ..plain(seed) };
    let kinds = [greedy.clone(), plain(2), plain(3), sampled(4), warm(5), greedy];
    let assign = |(i, sampling): (usize, &Sampling)| {
        let tokens = &words[5 * i..60 + 7 * i];
        Assign { stop_tokens: vec![2], ..assign(i, tokens, tokens.len(), 30 + i as u32, sampling) }
    };
    kinds.iter().enumerate().map(assign).collect()
}

#[test]
fn a_draft_model_changes_no_bit() {
    let (files, folder) = (files(), tempfile::tempdir().unwrap());
    let (itself, tiny) = (DraftFiles::open(&weights()), tiny(folder.path(), &files));
    let assigns = mixed(&files);
    let alone = generate(&files, ALONE, assigns.clone());
    for (name, draft) in [("itself", &itself), ("a tiny one", &tiny)] {
        for (batch, kv_blocks) in [(1, 512), (4, 512), (4, 14)] {
            let shape = Shape { batch, step_tokens: 96, kv_blocks, drafts: 8, ..ALONE };
            let (outputs, stats, _) = generate_beside(&files, Some(draft), shape, assigns.clone());
            println!("{name}, {batch} together, {kv_blocks} blocks: {stats:?}");
            assert_eq!(alone, outputs, "{name}, {batch} together, {kv_blocks} blocks");
            assert_eq!(stats.preemptions > 0, kv_blocks == 14, "{stats:?}");
            let (asked, right) = (stats.drafts_asked, stats.drafts_asked_accepted);
            // Where somebody always waits for blocks, the rows are his.
            assert!(asked > if kv_blocks == 14 { 5 } else { 50 }, "{stats:?}");
            match name {
                // It draws what the target draws, so only guesses after the end of a sequence may count as wrong.
                "itself" => assert!(asked - right <= 8 * assigns.len() as u64, "{stats:?}"),
                _ => assert!(right * 20 < asked, "{stats:?}"),
            }
        }
    }
}

#[test]
fn a_draft_model_halves_the_blocks_that_fit() {
    let files = files();
    let wish = BatchWish {
        sequences_max: 4,
        step_tokens_max: 64,
        step_target: Duration::MAX,
        drafts_max: 8,
        kv_bytes_max: 100 << 20,
        kv_kind: KvKind::F16,
        spill_bytes: 0,
        context_tokens_max: None,
    };
    let target = (&files.files, &files.spec);
    let (one, alone) =
        plan_on(&DeviceKind::Cpu { threads: 2 }, (target, None, &[]), &wish, Room::shared(Available::UNKNOWN)).unwrap();
    let (two, both) =
        plan_on(&DeviceKind::Cpu { threads: 2 }, (target, Some(target), &[]), &wish, Room::shared(Available::UNKNOWN))
            .unwrap();
    assert!(one.kv_blocks > 100 && two.kv_blocks == one.kv_blocks / 2, "{one:?} and {two:?}");
    // Room is mapped in pieces that both share.
    assert!(both.weights > alone.weights && both.peak() < 2 * alone.peak(), "{both:?}");
    assert!(both.kv >= 2 * KvPlan::new(&files.spec, &two).device_bytes());
}

#[test]
fn a_broken_draft_model_is_let_go() {
    let (files, folder) = (files(), tempfile::tempdir().unwrap());
    let whole = tiny(folder.path(), &files);
    let mut bytes = std::fs::read(folder.path().join("tiny.gguf")).unwrap();
    let head = whole.files.gguf().unwrap().tensor("output.weight").unwrap().bytes.clone();
    bytes[head.start as usize..head.end as usize].fill(0xFF); // NaN
    let path = folder.path().join("broken.gguf");
    std::fs::write(&path, bytes).unwrap();
    let shape = Shape { batch: 4, step_tokens: 96, drafts: 8, ..ALONE };
    let assigns = mixed(&files);
    let (outputs, stats, _) = generate_beside(&files, Some(&DraftFiles::open(&path)), shape, assigns.clone());
    assert_eq!(generate(&files, ALONE, assigns), outputs);
    assert!(stats.draft_model_rows > 0 && stats.drafts_asked == 0, "it failed when it was asked first: {stats:?}");
}
