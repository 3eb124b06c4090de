//! Real files of several families, and small made-up ones of the others.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn cached(path: &str) -> Option<PathBuf> {
    let path = std::env::home_dir()?.join(".cache/cuckoo-test-models").join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent", path.display());
    None
}

fn open(path: &str) -> Option<(Gguf, ArchSpec)> {
    let gguf = Gguf::open(cached(path)?).unwrap();
    let spec = ArchSpec::from_gguf(&gguf).unwrap();
    Some((gguf, spec))
}

#[test]
fn smollm2_is_a_llama() {
    let Some((_, spec)) = open("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    assert_eq!((spec.layers, spec.heads, spec.kv_heads, spec.head_dim), (30, 9, 3, 64));
}

#[test]
fn qwen2_has_biases() {
    let Some((_, spec)) = open("Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf") else { return };
    assert_eq!((spec.architecture.as_str(), spec.layers, spec.hidden, spec.heads), ("qwen2", 24, 896, 14));
    assert_eq!((spec.kv_heads, spec.head_dim, spec.ffn, spec.rope_base), (2, 64, 4_864, 1e6));
    assert_eq!(spec.ropes[0].pairs, RopePairing::Halves);
    let Qkv::Separate { q, k, .. } = &spec.blocks[3].attention.qkv else { panic!("three matrices") };
    assert_eq!(q.bias.as_ref().unwrap().name, "blk.3.attn_q.bias");
    assert_eq!(k.weight.dims, [896, 128]);
    assert!(spec.blocks[0].attention.output.bias.is_none());
}

#[test]
fn gemma3_has_windows_and_two_ropes() {
    let Some((_, spec)) = open("gemma-3-270m.Q4_K_M.gguf") else { return };
    assert_eq!((spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim), (18, 640, 4, 1, 256));
    assert_eq!((spec.activation, spec.tied_head), (Activation::GeluTanh, true));
    assert_eq!((spec.embedding_scale, spec.attention_scale), (640f32.sqrt(), 1.0 / 16.0));
    let windows: Vec<_> = spec.blocks.iter().map(|block| block.attention.window).collect();
    assert_eq!(windows[..7], [Some(512), Some(512), Some(512), Some(512), Some(512), None, Some(512)]);
    let bases: Vec<f32> = spec.blocks.iter().map(|block| spec.ropes[block.attention.rope.unwrap()].base).collect();
    assert_eq!(bases[4..7], [10_000.0, 1e6, 10_000.0]);
    assert!(spec.blocks[0].attention_norms.after.is_some() && spec.blocks[0].attention.q_norm.is_some());
}

/// Files are made from what the reader asks for: each refusal names the tensor, which is then added.
fn grow(mut metadata: impl FnMut() -> GgufWriter, vocab: u64, hidden: u64) -> (GgufWriter, ArchSpec) {
    let mut tensors: Vec<(String, Vec<u64>)> = vec![("token_embd.weight".to_owned(), vec![hidden, vocab])];
    for _ in 0..1_000 {
        let mut file = metadata();
        for (name, dims) in &tensors {
            let bytes = dims.iter().product::<u64>() * 4;
            file = file.tensor(name, dims, GgmlType::F32, &vec![0; bytes as usize]);
        }
        match load(&file) {
            Ok(spec) => return (file, spec),
            Err(ArchError::MissingTensor(name)) => tensors.push((name, vec![1])),
            Err(ArchError::Shape { tensor, expected, .. }) => {
                tensors.iter_mut().find(|(name, _)| *name == tensor).unwrap().1 = expected;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("never satisfied");
}

fn metadata(family: &str) -> GgufWriter {
    let key = |key: &str| format!("{family}.{key}");
    GgufWriter::new()
        .meta_str("general.architecture", family)
        .meta_u32(&key("block_count"), 2)
        .meta_u32(&key("embedding_length"), 64)
        .meta_u32(&key("attention.head_count"), 4)
        .meta_u32(&key("attention.head_count_kv"), 2)
        .meta_u32(&key("feed_forward_length"), 96)
        .meta_u32(&key("context_length"), 256)
        .meta_f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .meta_f32(&key("attention.layer_norm_epsilon"), 1e-12)
        .meta_f32(&key("logit_scale"), if family.starts_with("granite") { 8.0 } else { 0.0 })
}

fn grown(family: &str, more: impl Fn(GgufWriter) -> GgufWriter) -> ArchSpec {
    grow(|| more(metadata(family)), 40, 64).1
}

#[test]
fn every_family_can_be_read() {
    for family in super::super::family::FAMILIES.iter().filter(|family| !family.gguf.is_empty()) {
        let name = family.gguf;
        let spec = grown(name, |file| match family.experts {
            super::super::family::ExpertsRule::Always => file
                .meta_u32(&format!("{name}.expert_count"), 4)
                .meta_u32(&format!("{name}.expert_used_count"), 2)
                .meta_u32(&format!("{name}.attention.sliding_window"), 32),
            _ => file,
        });
        assert_eq!((spec.architecture.as_str(), spec.blocks.len()), (name, 2));
    }
}

#[test]
fn mixtures_are_read() {
    let spec = grown("qwen3moe", |file| {
        file.meta_u32("qwen3moe.expert_count", 8)
            .meta_u32("qwen3moe.expert_used_count", 2)
            .meta_u32("qwen3moe.expert_feed_forward_length", 32)
    });
    let FeedForward::Experts(experts) = &spec.blocks[1].ffn else { panic!("experts") };
    assert_eq!((experts.count, experts.used, experts.width, experts.normalize), (8, 2, 32, true));
    assert_eq!((experts.gating, experts.shared.is_some(), spec.ffn), (Gating::Softmax, false, 32));
    let ExpertWeights::Stacked { down, .. } = &experts.weights else { panic!("stacked") };
    assert_eq!(
        (down.weight.name.as_str(), down.weight.dims.as_slice()),
        ("blk.1.ffn_down_exps.weight", &[32, 64, 8][..])
    );

    let spec =
        grown("qwen2moe", |file| file.meta_u32("qwen2moe.expert_count", 8).meta_u32("qwen2moe.expert_used_count", 2));
    let FeedForward::Experts(experts) = &spec.blocks[0].ffn else { panic!("experts") };
    assert_eq!((experts.width, experts.normalize), (48, false));
    assert_eq!(experts.shared.as_ref().unwrap().network.width, 96);

    let spec = grown("gpt-oss", |file| {
        file.meta_u32("gpt-oss.expert_count", 8)
            .meta_u32("gpt-oss.expert_used_count", 4)
            .meta_u32("gpt-oss.expert_feed_forward_length", 32)
            .meta_u32("gpt-oss.attention.sliding_window", 128)
            .meta_str("gpt-oss.rope.scaling.type", "yarn")
            .meta_f32("gpt-oss.rope.scaling.factor", 32.0)
            .meta_u32("gpt-oss.rope.scaling.original_context_length", 64)
    });
    let FeedForward::Experts(experts) = &spec.blocks[0].ffn else { panic!("experts") };
    assert_eq!((experts.gating, spec.blocks[0].attention.window), (Gating::SoftmaxOfChosen, Some(128)));
    assert_eq!((spec.blocks[1].attention.window, spec.ropes.len()), (None, 1));
    assert!(spec.blocks[0].attention.sinks.is_some());
    let RopeScaling::Yarn { factor, original_context, attention_factor, .. } = spec.ropes[0].scaling else {
        panic!("yarn")
    };
    assert_eq!((factor, original_context), (32.0, 64));
    assert!((attention_factor - 1.3466).abs() < 1e-4, "{attention_factor}");
}

#[test]
fn scales_caps_and_fused_matrices_are_read() {
    let spec = grown("granite", |file| {
        file.meta_f32("granite.residual_scale", 0.22)
            .meta_f32("granite.embedding_scale", 12.0)
            .meta_f32("granite.attention.scale", 0.015625)
    });
    assert_eq!((spec.logit_scale, spec.residual_scale, spec.embedding_scale), (0.125, 0.22, 12.0));
    assert_eq!(spec.attention_scale, 0.015625);

    let spec = grown("gemma2", |file| file);
    assert_eq!((spec.attention_softcap, spec.final_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((spec.blocks[0].attention.window, spec.blocks[1].attention.window), (Some(4_096), None));

    let spec = grown("phi3", |file| file.meta_u32("phi3.attention.sliding_window", 100));
    let FeedForward::Dense(dense) = &spec.blocks[0].ffn else { panic!("dense") };
    let Up::Fused(up) = &dense.up else { panic!("fused") };
    assert_eq!(up.weight.dims, [64, 192]);
    assert_eq!(spec.blocks[1].attention.window, Some(100));

    let spec = grown("smollm3", |file| file.meta_u32("smollm3.rope.dimension_count", 16));
    assert_eq!(spec.blocks[0].attention.rope, Some(0));

    let spec = grown("bert", |file| file.meta_u32("bert.pooling_type", 2));
    assert_eq!((spec.pooling, spec.causal, spec.norm), (Pooling::First, false, NormKind::Layer));
    assert_eq!(spec.input.positions.as_ref().unwrap().dims, [64, 256]);
    assert!(spec.output.head.is_none() && !spec.tied_head);
    assert!(spec.is_encoder());
}

#[test]
fn a_sentence_encoder_may_pool_and_normalize_and_no_more() {
    let spec = grown("bert", |file| file);
    let modules = |last: &str| {
        let kinds = ["models.Transformer", "models.Pooling", last];
        let module = |kind: &&str| format!(r#"{{"type":"sentence_transformers.{kind}"}}"#);
        format!("[{}]", kinds.iter().map(module).collect::<Vec<_>>().join(","))
    };
    assert!(spec.check_modules(&modules("models.Normalize")).is_ok());
    let dense = spec.check_modules(&modules("models.Dense")).unwrap_err();
    assert!(matches!(&dense, ArchError::Feature(what) if what.contains("models.Dense")), "{dense}");
    assert!(spec.check_modules("[").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Numbers of all sizes and kinds in place of the right ones: an answer or an error, never a panic.
    #[test]
    fn hostile_numbers_never_panic(which in 0usize..16, family in 0usize..16, value in any::<u64>(), small in 0u64..300,
                                   real in any::<f32>(), form in 0usize..4) {
        let families = super::super::family::FAMILIES;
        let name = match families[family].gguf { "" => "llama", name => name };
        let key = ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv",
            "feed_forward_length", "context_length", "attention.key_length", "rope.dimension_count",
            "attention.sliding_window", "attention.sliding_window_pattern", "expert_count", "expert_used_count",
            "rope.freq_base", "attention.scale", "final_logit_softcapping", "rope.scaling.factor"][which];
        let key = format!("{name}.{key}");
        let good = [("block_count", 2u32), ("embedding_length", 64), ("attention.head_count", 4),
            ("feed_forward_length", 96), ("context_length", 256)];
        let mut file = GgufWriter::new().meta_str("general.architecture", name);
        for (other, value) in good.iter().map(|(part, value)| (format!("{name}.{part}"), value)) {
            if other != key {
                file = file.meta_u32(&other, *value);
            }
        }
        file = match form {
            0 => file.meta_u64(&key, value),
            1 => file.meta_u64(&key, small),
            2 => file.meta_f32(&key, real),
            _ => file.meta_f32s(&key, &[real, small as f32]),
        };
        file = file
            .meta_f32(&format!("{name}.attention.layer_norm_rms_epsilon"), 1e-5)
            .meta_f32(&format!("{name}.attention.layer_norm_epsilon"), 1e-5)
            .tensor("token_embd.weight", &[64, 4], GgmlType::F32, &[0; 1024]);
        let _ = load(&file);
    }
}
