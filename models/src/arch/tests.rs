//! Sizes from small files, and files that do not add up.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::gguf::{GgmlType, GgufWriter};

mod families;

/// What a test file differs in from a good one.
#[derive(Clone)]
struct Model {
    architecture: &'static str,
    layers: u32,
    hidden: u32,
    heads: u32,
    kv_heads: u32,
    tied: bool,
    without: &'static str,
    extra: Option<(&'static str, u64)>,
    epsilon: f32,
}

const GOOD: Model = Model {
    architecture: "llama",
    layers: 2,
    hidden: 64,
    heads: 4,
    kv_heads: 2,
    tied: true,
    without: "",
    extra: None,
    epsilon: 1e-5,
};

fn file(model: &Model) -> GgufWriter {
    let (hidden, kv) = (u64::from(model.hidden), u64::from(model.hidden / model.heads.max(1) * model.kv_heads));
    let mut file = GgufWriter::new()
        .meta_str("general.architecture", model.architecture)
        .meta_u32("llama.block_count", model.layers)
        .meta_u32("llama.embedding_length", model.hidden)
        .meta_u32("llama.attention.head_count", model.heads)
        .meta_u32("llama.attention.head_count_kv", model.kv_heads)
        .meta_u32("llama.feed_forward_length", 96)
        .meta_u32("llama.context_length", 256)
        .meta_f32("llama.attention.layer_norm_rms_epsilon", model.epsilon);
    let mut names =
        vec![("token_embd.weight".to_owned(), vec![hidden, 40]), ("output_norm.weight".to_owned(), vec![hidden])];
    if !model.tied {
        names.push(("output.weight".to_owned(), vec![hidden, 40]));
    }
    for layer in 0..GOOD.layers {
        let block = [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, hidden]),
            ("attn_k", vec![hidden, kv]),
            ("attn_v", vec![hidden, kv]),
            ("attn_output", vec![hidden, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![hidden, 96]),
            ("ffn_up", vec![hidden, 96]),
            ("ffn_down", vec![96, hidden]),
        ];
        names.extend(block.map(|(name, dims)| (format!("blk.{layer}.{name}.weight"), dims)));
    }
    names.extend(model.extra.map(|(name, dim)| (name.to_owned(), vec![dim])));
    for (name, dims) in names.iter().filter(|(name, dims)| name != model.without && !dims.contains(&0)) {
        let bytes = GgmlType::F32.tensor_bytes(dims).unwrap();
        file = file.tensor(name, dims, GgmlType::F32, &vec![0; bytes as usize]);
    }
    file
}

fn load(file: &GgufWriter) -> Result<ArchSpec, ArchError> {
    let bytes = file.to_bytes();
    ArchSpec::from_gguf(&Gguf::parse(&bytes, bytes.len() as u64).unwrap())
}

#[test]
fn sizes_are_read() {
    let spec = load(&file(&GOOD)).unwrap();
    assert_eq!((spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim), (2, 64, 4, 2, 16));
    assert_eq!((spec.ffn, spec.vocab, spec.context_tokens, spec.rope_dims), (96, 40, 256, 16));
    assert_eq!((spec.norm_epsilon, spec.rope_base, spec.rope_freqs, spec.tied_head), (1e-5, 10_000.0, false, true));
    assert_eq!((spec.query_width(), spec.kv_width()), (64, 32));
    let spec = load(&file(&Model { tied: false, extra: Some(("rope_freqs.weight", 8)), ..GOOD })).unwrap();
    assert!(!spec.tied_head && spec.rope_freqs);
}

#[test]
fn what_does_not_add_up_is_refused() {
    let error = |model: Model| load(&file(&model)).unwrap_err();
    let text = |model: Model| error(model).to_string();
    assert!(matches!(load(&GgufWriter::new()), Err(ArchError::NoArchitecture)));
    assert!(text(Model { architecture: "mamba", ..GOOD }).contains("\"mamba\""));
    assert!(text(Model { layers: 0, ..GOOD }).contains("block_count"));
    assert!(text(Model { layers: 5_000, ..GOOD }).contains("block_count"));
    assert!(matches!(error(Model { layers: 3, ..GOOD }), ArchError::MissingTensor(name) if name.contains("blk.2")));
    assert!(
        matches!(error(Model { layers: 1, ..GOOD }), ArchError::UnknownTensor { tensor: name, .. } if name.contains("blk.1"))
    );
    assert!(matches!(error(Model { kv_heads: 3, ..GOOD }), ArchError::Inconsistent(_)));
    assert!(matches!(error(Model { heads: 0, ..GOOD }), ArchError::OutOfBounds { .. }));
    assert!(matches!(error(Model { kv_heads: 0, ..GOOD }), ArchError::OutOfBounds { .. }));
    assert!(matches!(error(Model { heads: 5, kv_heads: 5, ..GOOD }), ArchError::Inconsistent(_)));
    assert!(matches!(error(Model { heads: 64, kv_heads: 64, ..GOOD }), ArchError::Inconsistent(_)), "odd heads");
    for epsilon in [0.0, -1.0, 1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(error(Model { epsilon, ..GOOD }), ArchError::OutOfBounds { .. }), "{epsilon}");
    }
    for without in ["token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight", "blk.0.attn_q.weight"] {
        assert!(matches!(error(Model { without, ..GOOD }), ArchError::MissingTensor(name) if name == without));
    }
    let biased = load(&file(&Model { extra: Some(("blk.0.attn_q.bias", 64)), ..GOOD })).unwrap();
    let Qkv::Separate { q, .. } = &biased.blocks[0].attention.qkv else { panic!("three matrices") };
    assert!(q.bias.is_some());
    let error = error(Model { extra: Some(("blk.0.attn_q.scale", 64)), ..GOOD });
    assert!(matches!(error, ArchError::UnknownTensor { tensor: name, .. } if name == "blk.0.attn_q.scale"));
    assert!(matches!(
        load(&file(&Model { extra: Some(("rope_freqs.weight", 7)), ..GOOD })),
        Err(ArchError::Shape { .. })
    ));
}

#[test]
fn keys_that_change_results_are_refused() {
    let refused = |file: GgufWriter| load(&file).unwrap_err();
    assert!(matches!(refused(file(&GOOD).meta_u32("llama.expert_count", 8)), ArchError::MissingKey(_)));
    assert!(matches!(refused(file(&GOOD).meta_str("llama.rope.scaling.type", "yarn")), ArchError::Feature(_)));
    let linear = load(&file(&GOOD).meta_f32("llama.rope.scaling.factor", 4.0)).unwrap();
    assert_eq!(linear.ropes[0].scaling, RopeScaling::Linear { factor: 4.0 });
    assert!(matches!(refused(file(&GOOD).meta_f32("llama.logit_scale", 2.0)), ArchError::Feature(_)));
    assert!(matches!(refused(file(&GOOD).meta_u32("llama.attention.key_length", 32)), ArchError::Shape { .. }));
    assert!(matches!(refused(file(&GOOD).meta_u32("llama.attention.value_length", 32)), ArchError::Inconsistent(_)));
    assert!(matches!(refused(file(&GOOD).meta_u32("llama.rope.dimension_count", 18)), ArchError::Inconsistent(_)));
    assert!(matches!(refused(file(&GOOD).meta_u32("llama.rope.freq_base", 5)), ArchError::MissingKey(_)));
    assert!(matches!(refused(file(&GOOD).meta_strings("tokenizer.ggml.tokens", &["a"])), ArchError::Inconsistent(_)));
    assert!(load(&file(&GOOD).meta_str("llama.rope.scaling.type", "none").meta_u32("llama.expert_count", 0)).is_ok());
}
