//! Adapters good, foreign and hostile, in both layouts.
#![allow(clippy::unwrap_used)]

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::gguf::GgufWriter;

const HIDDEN: u64 = 64;
const KV: u64 = 32;
const FFN: u64 = 96;

/// Matrices of a layer of the base: name in GGUF files, in files of Hugging Face, inputs, outputs.
const MATRICES: [(&str, &str, u64, u64); 7] = [
    ("attn_q", "self_attn.q_proj", HIDDEN, HIDDEN),
    ("attn_k", "self_attn.k_proj", HIDDEN, KV),
    ("attn_v", "self_attn.v_proj", HIDDEN, KV),
    ("attn_output", "self_attn.o_proj", HIDDEN, HIDDEN),
    ("ffn_gate", "mlp.gate_proj", HIDDEN, FFN),
    ("ffn_up", "mlp.up_proj", HIDDEN, FFN),
    ("ffn_down", "mlp.down_proj", FFN, HIDDEN),
];

/// A llama of two layers: four heads of 16, two of them with keys and values.
fn base() -> ArchSpec {
    let mut file = GgufWriter::new().meta_str("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 2),
        ("embedding_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("feed_forward_length", 96),
        ("context_length", 256),
    ] {
        file = file.meta_u32(&format!("llama.{key}"), value);
    }
    file = file.meta_f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let mut add = |name: String, dims: &[u64]| {
        let data = vec![0; 4 * dims.iter().product::<u64>() as usize];
        file = std::mem::take(&mut file).tensor(&name, dims, GgmlType::F32, &data);
    };
    add("token_embd.weight".to_owned(), &[HIDDEN, 40]);
    add("output_norm.weight".to_owned(), &[HIDDEN]);
    for layer in 0..2 {
        add(format!("blk.{layer}.attn_norm.weight"), &[HIDDEN]);
        add(format!("blk.{layer}.ffn_norm.weight"), &[HIDDEN]);
        for (name, _, inputs, outputs) in MATRICES {
            add(format!("blk.{layer}.{name}.weight"), &[inputs, outputs]);
        }
    }
    let bytes = file.to_bytes();
    ArchSpec::from_gguf(&Gguf::parse(&bytes, bytes.len() as u64).unwrap()).unwrap()
}

/// The same in the layout of Hugging Face: not permuted.
fn base_hf() -> ArchSpec {
    let config = json!({
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256, "vocab_size": 40,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![40, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![HIDDEN]));
        }
        let matrix = |(_, name, inputs, outputs): (_, &str, _, _)| {
            (format!("model.layers.{layer}.{name}.weight"), vec![outputs, inputs])
        };
        tensors.extend(MATRICES.map(matrix));
    }
    let bytes = safetensors(&tensors.iter().map(|(n, s)| (n.as_str(), "F32", s.clone())).collect::<Vec<_>>());
    ArchSpec::from_hf_config(&config.to_string(), &crate::SafeTensors::parse(&bytes, bytes.len() as u64).unwrap())
        .unwrap()
}

type Tensor<'a> = (&'a str, &'a str, Vec<u64>);

/// A file whose values are their places in it, small.
fn safetensors(tensors: &[Tensor<'_>]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape) in tensors {
        let begin = data.len();
        for i in 0..shape.iter().product::<u64>() {
            match *dtype {
                "F32" | "I32" => data.extend((i as f32).to_le_bytes()),
                _ => data.extend((i as u16 % 0x7000).to_le_bytes()),
            }
        }
        header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

fn config() -> Value {
    json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": false, "use_dora": false,
        "target_modules": ["q_proj"], "modules_to_save": null, "lora_dropout": 0.05, "rank_pattern": {},
        "alpha_pattern": {}, "fan_in_fan_out": false, "init_lora_weights": true, "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "a/b", "layers_to_transform": null, "megatron_config": null})
}

const Q: &str = "base_model.model.model.layers.1.self_attn.q_proj.lora_";

fn q_pair(dtype: &str, rank: u64) -> Vec<(String, String, Vec<u64>)> {
    let of = |part: &str, shape| (format!("{Q}{part}.weight"), dtype.to_owned(), shape);
    vec![of("A", vec![rank, HIDDEN]), of("B", vec![HIDDEN, rank])]
}

/// Saves a folder, converts it, and opens it for `base`.
fn through(
    config: &Value,
    tensors: &[(String, String, Vec<u64>)],
    base: &ArchSpec,
) -> Result<(Adapter, Vec<u8>), AdapterError> {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<Tensor<'_>> = tensors.iter().map(|(n, d, s)| (n.as_str(), d.as_str(), s.clone())).collect();
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), safetensors(&tensors)).unwrap();
    let bytes = peft::convert(folder.path(), base)?.to_bytes();
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    Ok((Adapter::from_gguf(gguf, base)?, bytes))
}

/// Bytes as a file.
fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, bytes).unwrap();
    file
}

#[test]
fn a_folder_becomes_a_checked_adapter_in_all_types() {
    for (dtype, kind) in [("F32", GgmlType::F32), ("F16", GgmlType::F16), ("BF16", GgmlType::BF16)] {
        let (adapter, bytes) = through(&config(), &q_pair(dtype, 4), &base()).unwrap();
        let [change] = adapter.changes() else { panic!("one change") };
        assert_eq!((change.of.layer, change.of.product, change.rank, change.scale), (1, Product::Q, 4, 2.0));
        assert_eq!((adapter.parameters(), adapter.quantization()), (512, kind.name()));
        let read = adapter.read(&file(&bytes), change).unwrap();
        assert_eq!((read.a.0, read.a.1.len() as u64, read.b.0), (kind, adapter.bytes() / 2, kind));
    }
}

#[test]
fn scales_are_those_of_peft() {
    let with = |key: &str, value: Value| {
        let mut config = config();
        config[key] = value;
        config
    };
    let scale = |config: &Value, rank| through(config, &q_pair("F32", rank), &base()).unwrap().0.changes()[0].scale;
    assert_eq!(scale(&config(), 4), 2.0);
    assert_eq!(scale(&with("use_rslora", json!(true)), 4), 4.0);
    assert_eq!(scale(&with("lora_alpha", json!(2.5)), 4), 0.625);
    // The rank is the tensors', where the pattern says that it may be another.
    assert_eq!(scale(&with("rank_pattern", json!({"q_proj": 2})), 2), 4.0);
    let mixed = through(&config(), &q_pair("F32", 2), &base()).unwrap_err().to_string();
    assert!(mixed.contains("rank 2") && mixed.contains("rank_pattern"), "{mixed}");
    let mut both = with("rank_pattern", json!({"q_proj": 2}));
    both["use_rslora"] = json!(true);
    assert!(matches!(through(&both, &q_pair("F32", 2), &base()), Err(AdapterError::Feature(_))));
}

#[test]
fn rows_of_queries_get_the_order_of_the_base() {
    let rows = |base: &ArchSpec| {
        let (adapter, bytes) = through(&config(), &q_pair("F32", 4), base).unwrap();
        let read = adapter.read(&file(&bytes), &adapter.changes()[0]).unwrap().b.1;
        let first = |row: &[u8]| f32::from_le_bytes(row.as_chunks().0[0]) as u64 / 4;
        (bytes, read.chunks_exact(16).map(first).collect::<Vec<_>>())
    };
    let (bytes, permuted) = rows(&base());
    assert_eq!(permuted[..6], [0, 8, 1, 9, 2, 10]);
    assert_eq!(permuted[16..20], [16, 24, 17, 25], "head by head");
    // The file is the same for a base of Hugging Face, and its rows come back as they were.
    let (same, straight) = rows(&base_hf());
    assert_eq!((same, straight), (bytes, (0..64).collect()));
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["embed_tokens"])),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("layer_replication", json!([[0, 1]])),
        ("trainable_token_indices", json!([1])),
        ("alora_invocation_tokens", json!([1, 2])),
        ("lora_bias", json!(true)),
        ("something_new", json!(1)),
    ] {
        let mut config = config();
        config[key] = value;
        let why = through(&config, &q_pair("F32", 4), &base()).unwrap_err().to_string();
        assert!(why.contains(key), "{key}: {why}");
    }
    for (name, hint) in [
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"),
        ("base_model.model.lm_head.lora_A.weight", "output head"),
        ("base_model.model.model.layers.0.mlp.experts.0.w1.lora_A.weight", "experts"),
        ("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", "layers.2"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "changes nothing"),
    ] {
        let mut tensors = q_pair("F32", 4);
        tensors.push((name.to_owned(), "F32".to_owned(), vec![4, HIDDEN]));
        let why = through(&config(), &tensors, &base()).unwrap_err().to_string();
        assert!(why.contains(hint), "{name}: {why}");
    }
}

#[test]
fn what_does_not_add_up_is_refused() {
    let refused = |config: &Value, tensors: &[_]| through(config, tensors, &base()).unwrap_err();
    assert!(matches!(refused(&config(), &q_pair("F32", 4)[..1]), AdapterError::Half { .. }));
    assert!(matches!(refused(&config(), &[]), AdapterError::Empty));
    assert!(matches!(refused(&config(), &q_pair("I32", 4)), AdapterError::Kind { .. }));
    for (part, shape) in [(0, vec![4, 32]), (0, vec![0, HIDDEN]), (0, vec![4]), (1, vec![KV, 4]), (1, vec![HIDDEN, 5])]
    {
        let mut tensors = q_pair("F32", 4);
        tensors[part].2 = shape;
        assert!(matches!(refused(&config(), &tensors), AdapterError::Shape { .. }));
    }
    let too_thick = RANK_MAX as u64 + 1;
    assert!(matches!(refused(&config(), &q_pair("F16", too_thick)), AdapterError::Shape { .. }));
    for (key, value) in
        [("r", json!(0)), ("r", json!(-1)), ("lora_alpha", json!(0)), ("lora_alpha", json!("8")), ("r", json!(null))]
    {
        let mut config = config();
        config[key] = value;
        assert!(matches!(refused(&config, &q_pair("F32", 4)), AdapterError::OutOfRange { .. }), "{key}");
    }
    let mut other = config();
    other["peft_type"] = json!("LOKR");
    assert!(matches!(refused(&other, &q_pair("F32", 4)), AdapterError::NoAdapter(_)));
}

#[test]
fn a_pickle_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), config().to_string()).unwrap();
    fs::write(folder.path().join("adapter_model.bin"), b"cos\nsystem\n").unwrap();
    let why = peft::convert(folder.path(), &base()).unwrap_err().to_string();
    assert!(why.contains("safetensors"), "{why}");
}

/// An adapter as llama.cpp's converter writes it.
fn gguf() -> GgufWriter {
    GgufWriter::new()
        .meta_str("general.type", "adapter")
        .meta_str("general.architecture", "llama")
        .meta_str("adapter.type", "lora")
        .meta_f32("adapter.lora.alpha", 16.0)
}

fn with_q(file: GgufWriter, layer: u32, value: f32) -> GgufWriter {
    let values = value.to_le_bytes().repeat(64 * 8);
    file.tensor(&format!("blk.{layer}.attn_q.weight.lora_a"), &[HIDDEN, 8], GgmlType::F32, &values).tensor(
        &format!("blk.{layer}.attn_q.weight.lora_b"),
        &[8, HIDDEN],
        GgmlType::F32,
        &values,
    )
}

fn open(file: &GgufWriter) -> Result<Adapter, AdapterError> {
    let bytes = file.to_bytes();
    Adapter::from_gguf(Gguf::parse(&bytes, bytes.len() as u64).unwrap(), &base())
}

#[test]
fn a_gguf_adapter_is_read_and_a_foreign_one_refused() {
    let adapter = open(&with_q(with_q(gguf(), 1, 0.5), 0, 0.5)).unwrap();
    let layers: Vec<usize> = adapter.changes().iter().map(|c| c.of.layer).collect();
    assert_eq!((layers, adapter.changes()[0].scale), (vec![0, 1], 2.0));
    let none = GgufWriter::new().meta_str("general.architecture", "llama");
    assert!(matches!(open(&with_q(none, 0, 0.5)), Err(AdapterError::NoAdapter(_))));
    let meta = |kind: &str, architecture: &str, alpha: f32| {
        let file = GgufWriter::new().meta_str("general.type", "adapter").meta_str("general.architecture", architecture);
        open(&with_q(file.meta_str("adapter.type", kind).meta_f32("adapter.lora.alpha", alpha), 0, 0.5))
    };
    assert!(matches!(meta("loha", "llama", 1.0), Err(AdapterError::Feature(_))));
    assert!(matches!(meta("lora", "qwen2", 1.0), Err(AdapterError::OtherBase { .. })));
    for alpha in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e30] {
        assert!(matches!(meta("lora", "llama", alpha), Err(AdapterError::OutOfRange { .. })), "{alpha}");
    }
    assert!(matches!(open(&with_q(gguf(), 2, 0.5)), Err(AdapterError::Stranger { .. })));
    assert!(matches!(open(&gguf()), Err(AdapterError::Empty)));
    let alora = gguf().meta_strings("adapter.alora.invocation_tokens", &["x"]);
    assert!(matches!(open(&with_q(alora, 0, 0.5)), Err(AdapterError::Feature(_))));
    let quantized = gguf().tensor("blk.0.attn_q.weight.lora_a", &[HIDDEN, 8], GgmlType::Q8_0, &[0; 64 * 8 / 32 * 34]);
    let quantized = quantized.tensor("blk.0.attn_q.weight.lora_b", &[8, HIDDEN], GgmlType::F32, &[0; 4 * 8 * 64]);
    assert!(matches!(open(&quantized), Err(AdapterError::Kind { .. })));
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let written = with_q(gguf(), 0, value);
        let adapter = open(&written).unwrap();
        let read = adapter.read(&file(&written.to_bytes()), &adapter.changes()[0]);
        assert!(matches!(read, Err(AdapterError::NotFinite(_))), "{value}");
    }
    for (kind, good, bad) in [(GgmlType::F16, 0x7bffu16, 0x7c00u16), (GgmlType::BF16, 0x7f7f, 0xff80)] {
        assert!(rows::are_finite(kind, &good.to_le_bytes()) && !rows::are_finite(kind, &bad.to_le_bytes()));
    }
}

proptest! {
    #[test]
    fn a_configuration_of_noise_never_panics(text in "[\\[\\]{}:,\"a-z0-9._ -]{0,200}", key in "[a-z_]{1,12}", n in any::<i64>()) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapter_config.json"), &text).unwrap();
        prop_assert!(peft::convert(folder.path(), &base()).is_err());
        let mut config = config();
        config[key] = json!(n);
        let _ = through(&config, &q_pair("F32", 4), &base());
    }

    #[test]
    fn a_damaged_adapter_never_panics(at in 0usize..400, with in any::<u8>()) {
        let mut bytes = with_q(gguf(), 0, 0.5).to_bytes();
        bytes[at] = with;
        if let Ok(gguf) = Gguf::parse(&bytes, bytes.len() as u64) {
            let _ = Adapter::from_gguf(gguf, &base());
        }
    }
}
