#![allow(clippy::unwrap_used)]

use cuckoo_models::GgmlType;
use cuckoo_models::gguf::GgufWriter;

use super::*;

const MIB: u64 = 1 << 20;
const WISH: BatchWish = BatchWish {
    sequences_max: 16,
    step_tokens_max: 32,
    step_target: Duration::MAX,
    drafts_max: 2,
    kv_bytes_max: 64 * MIB,
    kv_kind: KvKind::F16,
    spill_bytes: 0,
    context_tokens_max: None,
};

/// A small llama whose weights are zeros.
fn header() -> (ModelFiles, ArchSpec) {
    let (hidden, ffn, vocab, layers) = (256u64, 512u64, 1_000u64, 3);
    let mut writer = GgufWriter::new().meta_str("general.architecture", "llama");
    let numbers = [
        ("context_length", 2_048),
        ("embedding_length", hidden as u32),
        ("block_count", layers),
        ("feed_forward_length", ffn as u32),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 64),
        ("vocab_size", vocab as u32),
    ];
    for (key, value) in numbers {
        writer = writer.meta_u32(&format!("llama.{key}"), value);
    }
    writer = writer.meta_f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let mut tensors = vec![("token_embd".to_owned(), vec![hidden, vocab]), ("output_norm".to_owned(), vec![hidden])];
    for layer in 0..layers {
        let of_layer = [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, 256]),
            ("attn_k", vec![hidden, 128]),
            ("attn_v", vec![hidden, 128]),
            ("attn_output", vec![256, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![hidden, ffn]),
            ("ffn_up", vec![hidden, ffn]),
            ("ffn_down", vec![ffn, hidden]),
        ];
        tensors.extend(of_layer.map(|(name, dims)| (format!("blk.{layer}.{name}"), dims)));
    }
    for (name, dims) in tensors {
        let (kind, bytes) = match dims.len() {
            1 => (GgmlType::F32, dims[0] * 4),
            _ => (GgmlType::Q8_0, dims[0] * dims[1] / 32 * 34),
        };
        writer = writer.tensor(&format!("{name}.weight"), &dims, kind, &vec![0; bytes as usize]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    writer.write(&path).unwrap();
    let files = ModelFiles::open(&path).unwrap();
    let spec = files.spec().unwrap();
    (files, spec)
}

const CPU: DeviceKind = DeviceKind::Cpu { threads: 2 };

fn of(bytes: u64) -> Available {
    Available { bytes, limit: "a test" }
}

#[test]
fn keys_and_values_get_what_is_asked_or_what_is_left() {
    let (files, spec) = header();
    let (limits, roomy) = plan_on(&CPU, ((&files, &spec), None, &[]), &WISH, Room::shared(Available::UNKNOWN)).unwrap();
    // Sixteen sequences of 2,048 tokens.
    assert_eq!((limits.kv_blocks, limits.context_tokens), (2_048, 2_048));
    // Gate and up are read together, after a norm.
    assert_eq!(roomy.reading, 2 * 256 * 512 / 32 * 34 + 256 * 4);
    let (exact, same) = plan_on(&CPU, ((&files, &spec), None, &[]), &WISH, Room::shared(of(roomy.peak()))).unwrap();
    assert_eq!((exact, same), (limits, roomy), "exactly enough is enough");
    let (less, plan) = plan_on(&CPU, ((&files, &spec), None, &[]), &WISH, Room::shared(of(roomy.peak() - 1))).unwrap();
    assert!(less.kv_blocks < limits.kv_blocks && plan.peak() < roomy.peak(), "{plan:?}");
    let (asked, _) = plan_on(
        &CPU,
        ((&files, &spec), None, &[]),
        &BatchWish { kv_bytes_max: 100 * 24_576, ..WISH },
        Room::shared(of(1 << 40)),
    )
    .unwrap();
    assert_eq!(asked.kv_blocks, 100);
    assert_eq!(asked.context_tokens, 1_600, "no sequence is longer than all blocks");
    let short = BatchWish { context_tokens_max: Some(100), ..WISH };
    let (short, _) = plan_on(&CPU, ((&files, &spec), None, &[]), &short, Room::shared(of(1 << 40))).unwrap();
    assert_eq!((short.kv_blocks, short.context_tokens), (16 * 7, 100));
    let q8 = BatchWish { kv_kind: KvKind::Q8_0, kv_bytes_max: 100 * 24_576, ..WISH };
    let (q8, _) = plan_on(&CPU, ((&files, &spec), None, &[]), &q8, Room::shared(of(1 << 40))).unwrap();
    assert_eq!(q8.kv_blocks, 100 * 128 / 68, "68 bytes where f16 takes 128");
    let spilling = BatchWish { spill_bytes: 48 * MIB, ..WISH };
    let (_, spilling) = plan_on(&CPU, ((&files, &spec), None, &[]), &spilling, Room::shared(of(1 << 40))).unwrap();
    assert!(spilling.spill >= 47 * MIB && spilling.peak() > roomy.peak());
}

#[test]
fn too_little_is_refused_with_its_sums() {
    let (files, spec) = header();
    // Room is mapped by 32 MiB: one such piece holds weights and the keys and values of some sequences.
    let refused = plan_on(&CPU, ((&files, &spec), None, &[]), &WISH, Room::shared(of(20 * MIB))).unwrap_err();
    let MemoryError::Short(shortage) = refused else { panic!("{refused}") };
    assert_eq!(shortage.context_tokens, 512);
    assert!(shortage.least.peak() > 20 * MIB && shortage.least.weights >= 32 * MIB);
    let text = shortage.to_string();
    for part in ["20.0 MiB are there (a test)", "32.6 MiB for weights", "--memory-mib", "--context", "smaller model"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let least = plan_on(&CPU, ((&files, &spec), None, &[]), &WISH, Room::shared(of(shortage.least.peak())));
    assert!(least.is_ok(), "what it says is needed is enough: {least:?}");
    let kv = BatchWish { kv_bytes_max: 1_000, ..WISH };
    let error = plan_on(&CPU, ((&files, &spec), None, &[]), &kv, Room::shared(Available::UNKNOWN)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "1000 bytes for keys and values hold no sequence: at least 24576 are needed (--kv-mib)"
    );
    // Numbers that are no sizes are too much, not a panic.
    let huge = BatchWish { step_tokens_max: u32::MAX, drafts_max: u32::MAX / 2, ..WISH };
    assert!(matches!(
        plan_on(&CPU, ((&files, &spec), None, &[]), &huge, Room::shared(of(1 << 40))),
        Err(MemoryError::Short(_))
    ));
}

fn gpu(gib: u64) -> DeviceKind {
    let gpu = cuda::Gpu {
        ordinal: 0,
        name: "a card".to_owned(),
        capability: (8, 6),
        multiprocessors: 28,
        memory_bytes: gib << 30,
        driver: 13_000,
    };
    DeviceKind::Cuda(gpu, cuda::Profile::Exact)
}

#[test]
fn gpus_of_unequal_size_each_get_what_fits_them() {
    let (files, spec) = header();
    let models = ((&files, &spec), None, &[][..]);
    let wish = BatchWish { kv_bytes_max: u64::MAX, ..WISH };
    let room = |device: u64, host: u64| Room { device: of(device), host: Some(of(host)) };
    let blocks = |device: u64| {
        let (limits, plan) = plan_on(&gpu(8), models, &wish, room(device, 1 << 40)).unwrap();
        assert!(plan.on_device() <= device, "{plan:?}");
        limits.kv_blocks
    };
    let (large, middle, small) = (blocks(1 << 30), blocks(24 * MIB), blocks(16 * MIB));
    assert_eq!(large, 2_048, "all that sixteen sequences can use");
    assert!(large > middle && middle > small && small > 32, "{middle} {small}");
    // Weights are packed as they are, not mapped by 32 MiB.
    let (_, plan) = plan_on(&gpu(8), models, &wish, room(1 << 30, 1 << 40)).unwrap();
    assert!(plan.weights < 4 * MIB, "{plan:?}");
}

#[test]
fn what_is_spilled_from_a_gpu_is_the_hosts() {
    let (files, spec) = header();
    let models = ((&files, &spec), None, &[][..]);
    let wish = BatchWish { spill_bytes: 48 * MIB, ..WISH };
    let room = |device: u64, host: u64| Room { device: of(device), host: Some(of(host)) };
    let (_, plan) = plan_on(&gpu(8), models, &wish, room(1 << 30, 48 * MIB)).unwrap();
    assert!(plan.spill >= 47 * MIB && plan.on_host() == plan.spill, "{plan:?}");
    let (_, without) = plan_on(&gpu(8), models, &WISH, room(1 << 30, 48 * MIB)).unwrap();
    assert_eq!(plan.on_device(), without.on_device());
    let refused = plan_on(&gpu(8), models, &wish, room(1 << 30, 40 * MIB)).unwrap_err().to_string();
    assert!(refused.contains("40.0 MiB are there (a test)"), "{refused}");
    let refused = plan_on(&gpu(8), models, &wish, room(3 * MIB, 1 << 40)).unwrap_err().to_string();
    assert!(refused.contains("3.0 MiB are there (a test)"), "{refused}");
}
