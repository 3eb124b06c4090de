//! Headers good and bad, files in shards, and configurations of models in this layout.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::arch::{ArchError, ArchSpec, HfQuantization, NormKind, Packed, Pooling, Qkv, RopePairing, RopeScaling};

/// A file of zeros; dims in the file's order.
fn file(tensors: &[(&str, &str, &[u64])]) -> Vec<u8> {
    let (mut entries, mut at) = (Vec::new(), 0);
    for (name, dtype, shape) in tensors {
        let size = Dtype::ALL.iter().find(|kind| kind.name() == *dtype).map_or(4, |kind| kind.bytes());
        let end = at + shape.iter().product::<u64>() * size;
        entries.push(format!("{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"));
        at = end;
    }
    raw(&format!("{{{}}}", entries.join(",")), at as usize)
}

fn raw(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

fn parse(bytes: &[u8]) -> Result<SafeTensors, SafetensorsError> {
    SafeTensors::parse(bytes, bytes.len() as u64)
}

const GOOD: &[(&str, &str, &[u64])] =
    &[("a", "F32", &[2, 3]), ("b.weight", "BF16", &[5]), ("c", "F8_E4M3", &[4, 4]), ("d", "I64", &[])];

#[test]
fn what_is_written_is_read() {
    let bytes = file(GOOD);
    let read = parse(&bytes).unwrap();
    assert_eq!(read.tensors().len(), 4);
    let tensor = read.tensor("a").unwrap();
    assert_eq!((tensor.dtype, tensor.shape.as_slice(), read.dims("a")), (Dtype::F32, &[2, 3][..], Some(vec![3, 2])));
    assert_eq!(read.tensor("d").unwrap().bytes.end, bytes.len() as u64);
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len}");
    }
    let with_metadata = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}  "#;
    assert_eq!(parse(&raw(with_metadata, 1)).unwrap().tensors().len(), 1);
}

#[test]
fn bad_headers_are_refused() {
    let one = |entry: &str, data| parse(&raw(&format!("{{\"a\":{entry}}}"), data)).unwrap_err();
    let entry = |shape: &str, offsets: &str| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#);
    assert!(matches!(one(&entry("[2]", "[0,4]"), 4), SafetensorsError::Shape { .. }));
    assert!(matches!(one(&entry("[2]", "[8,0]"), 8), SafetensorsError::Shape { .. }));
    assert!(matches!(one(&entry("[4611686018427387905]", "[0,4]"), 4), SafetensorsError::Shape { .. }));
    assert!(matches!(one(&entry("[0,4294967296,4294967296]", "[0,0]"), 0), SafetensorsError::Shape { .. }));
    assert!(matches!(one(&entry("[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), SafetensorsError::Shape { .. }));
    assert!(matches!(one(&entry("[1]", "[0,4]"), 3), SafetensorsError::Truncated { .. }));
    let far = entry("[1]", "[18446744073709551608,18446744073709551612]");
    assert!(matches!(one(&far, 3), SafetensorsError::Truncated { .. }));
    assert!(matches!(one(&entry("[1]", "[0,4]"), 5), SafetensorsError::Layout { .. }));
    assert!(matches!(one(&entry("[1]", "[4,8]"), 8), SafetensorsError::Layout { .. }));
    for entry in ["1", "{}", r#"{"dtype":"F4","shape":[],"data_offsets":[0,0]}"#, r#"{"dtype":"F32","shape":[-1]}"#] {
        assert!(matches!(one(entry, 0), SafetensorsError::Header(_)), "{entry}");
    }
    let same = entry("[1]", "[0,4]");
    let twice = parse(&raw(&format!("{{\"a\":{same},\"a\":{same}}}"), 4)).unwrap_err();
    assert!(twice.to_string().contains("twice"), "{twice}");
    let over = parse(&raw(&format!("{{\"a\":{same},\"b\":{same}}}"), 4)).unwrap_err();
    assert!(matches!(over, SafetensorsError::Layout { .. }));
    assert!(matches!(parse(&raw(" {}", 0)), Err(SafetensorsError::Header(_))));
    assert!(matches!(parse(&u64::MAX.to_le_bytes()), Err(SafetensorsError::HeaderLength(_))));
    let deep = format!("{{\"__metadata__\":{}", "[".repeat(100_000));
    assert!(matches!(parse(&raw(&deep, 0)), Err(SafetensorsError::Header(_))));
}

#[test]
fn shards_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("m-1.safetensors"), file(&GOOD[..2])).unwrap();
    std::fs::write(at("m-2.safetensors"), file(&GOOD[2..])).unwrap();
    let index =
        |map: &str| std::fs::write(at("model.safetensors.index.json"), format!("{{\"weight_map\":{map}}}")).unwrap();
    index(r#"{"a":"m-1.safetensors","b.weight":"m-1.safetensors","c":"m-2.safetensors","d":"m-2.safetensors"}"#);
    let all = SafeTensors::open(folder.path()).unwrap();
    assert_eq!((all.shards().len(), all.tensors().len(), all.tensor("c").unwrap().shard), (2, 4, 1));
    let handle = File::open(&all.shards()[1]).unwrap();
    assert_eq!(all.read_tensor(&handle, all.tensor("c").unwrap()).unwrap(), [0; 16]);
    index(r#"{"a":"m-2.safetensors"}"#);
    assert!(matches!(SafeTensors::open(folder.path()), Err(SafetensorsError::NotInShard { .. })));
    for name in ["../m-1.safetensors", "/etc/passwd", "m-1.gguf", ".safetensors", "a/b.safetensors", ""] {
        index(&format!("{{\"a\":{name:?}}}"));
        assert!(matches!(SafeTensors::open(folder.path()), Err(SafetensorsError::ShardName(_))), "{name}");
    }
    std::fs::copy(at("m-1.safetensors"), at("m-3.safetensors")).unwrap();
    index(r#"{"a":"m-1.safetensors","b.weight":"m-3.safetensors"}"#);
    assert!(matches!(SafeTensors::open(folder.path()), Err(SafetensorsError::Duplicate(_))));
}

#[test]
fn minilm_is_read() {
    let Some(home) = std::env::home_dir() else { return };
    let folder = home.join(".cache/cuckoo-test-models/all-minilm-l6-v2");
    if !folder.exists() {
        return println!("skipped: {} is absent", folder.display());
    }
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let tensors = SafeTensors::open(&folder).unwrap();
    let spec = ArchSpec::from_hf_config(&text("config.json"), &tensors).unwrap();
    let spec = spec.with_pooling_config(&text("1_Pooling/config.json")).unwrap();
    assert_eq!((spec.layers, spec.hidden, spec.heads, spec.ffn, spec.vocab), (6, 384, 12, 1_536, 30_522));
    assert_eq!(
        (spec.norm, spec.norm_epsilon, spec.pooling, spec.causal),
        (NormKind::Layer, 1e-12, Pooling::Mean, false)
    );
    let Qkv::Separate { q, .. } = &spec.blocks[5].attention.qkv else { panic!("three matrices") };
    assert_eq!(q.bias.as_ref().unwrap().name, "encoder.layer.5.attention.self.query.bias");
    assert!(spec.ropes.is_empty() && spec.input.positions.is_some() && spec.output.head.is_none());
}

/// Grows a file from the reader's refusals, as in the tests of `arch`.
fn grown(config: &str, quantized: &[&str]) -> Result<ArchSpec, ArchError> {
    let mut tensors: Vec<(String, Vec<u64>)> = quantized.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
    for _ in 0..2_000 {
        let listed: Vec<(&str, &str, &[u64])> =
            tensors.iter().map(|(name, shape)| (name.as_str(), "U8", shape.as_slice())).collect();
        match ArchSpec::from_hf_config(config, &parse(&file(&listed)).unwrap()) {
            Err(ArchError::MissingTensor(name)) => tensors.push((name, vec![1])),
            Err(ArchError::Shape { tensor, expected, .. }) => {
                let shape = expected.into_iter().rev().collect();
                tensors.iter_mut().find(|(name, _)| *name == tensor).unwrap().1 = shape;
            }
            other => return other,
        }
    }
    panic!("never satisfied");
}

fn config(model_type: &str, more: &str) -> String {
    format!(
        r#"{{"model_type":"{model_type}","num_hidden_layers":2,"hidden_size":64,"num_attention_heads":4,
        "num_key_value_heads":2,"intermediate_size":96,"vocab_size":40,"max_position_embeddings":256,
        "rms_norm_eps":1e-5,"layer_norm_eps":1e-12{more}}}"#
    )
}

#[test]
fn configurations_of_every_family_are_read() {
    let experts = r#","num_experts":4,"num_experts_per_tok":2,"num_local_experts":4"#;
    for (model_type, more) in [
        (
            "llama",
            r#","rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
            "original_max_position_embeddings":128}"#,
        ),
        ("mistral", r#","sliding_window":32"#),
        ("mixtral", experts),
        ("qwen2", ""),
        ("qwen2_moe", experts),
        ("qwen3", r#","head_dim":32"#),
        ("qwen3_moe", experts),
        ("gemma2", r#","query_pre_attn_scalar":16,"sliding_window":32,"attn_logit_softcapping":50.0"#),
        ("gemma3_text", r#","sliding_window":32"#),
        ("phi3", ""),
        ("granite", r#","logits_scaling":8.0"#),
        ("granitemoe", experts),
        ("smollm3", ""),
        ("gpt_oss", &format!(r#"{experts},"sliding_window":32,"quantization_config":{{"quant_method":"mxfp4"}}"#)),
        ("bert", ""),
    ] {
        let spec = grown(&config(model_type, more), &[]).unwrap_or_else(|why| panic!("{model_type}: {why}"));
        assert_eq!(spec.blocks.len(), 2, "{model_type}");
        assert!(spec.ropes.iter().all(|rope| rope.pairs == RopePairing::Halves));
        match model_type {
            "llama" => assert!(matches!(spec.ropes[0].scaling, RopeScaling::Llama3 { .. })),
            "mistral" => assert_eq!(spec.blocks[1].attention.window, Some(32)),
            "gemma2" => assert_eq!((spec.attention_scale, spec.norm_weight_offset), (0.25, 1.0)),
            "gemma3_text" => assert_eq!(spec.ropes.len(), 2),
            "granite" => assert_eq!(spec.logit_scale, 0.125),
            _ => {}
        }
    }
}

/// Configurations since version 5 of the transformers library have all of a rotation in one place.
#[test]
fn rotations_are_read_in_the_newer_form_too() {
    let of = |model_type, more| grown(&config(model_type, more), &[]).unwrap().ropes;
    let old = r#","rope_theta":5e5,"rope_scaling":{"rope_type":"linear","factor":4.0}"#;
    let new = r#","rope_parameters":{"rope_theta":5e5,"rope_type":"linear","factor":4.0}"#;
    assert_eq!(of("llama", old), of("llama", new));
    assert!(matches!(of("llama", new)[0].scaling, RopeScaling::Linear { factor: 4.0 }));
    let old = r#","sliding_window":32,"rope_theta":1e6,"rope_local_base_freq":2e4"#;
    let new = r#","sliding_window":32,"rope_parameters":{"full_attention":{"rope_theta":1e6,"rope_type":"default"},
        "sliding_attention":{"rope_theta":2e4,"rope_type":"default"}}"#;
    assert_eq!(of("gemma3_text", old), of("gemma3_text", new));
    assert_eq!(of("gemma3_text", new)[1].base, 2e4);
}

#[test]
fn quantized_matrices_are_described() {
    let first = |spec: &ArchSpec| match &spec.blocks[0].attention.qkv {
        Qkv::Separate { q, .. } => q.packed.as_deref().cloned(),
        Qkv::Fused(_) => None,
    };
    let q = "model.layers.0.self_attn.q_proj";
    let awq = r#","quantization_config":{"quant_method":"awq","bits":4,"group_size":32,"zero_point":true}"#;
    let spec = grown(&config("llama", awq), &[&format!("{q}.qweight")]).unwrap();
    let Some(Packed::Awq { group: 32, qweight, scales, .. }) = first(&spec) else { panic!("{:?}", first(&spec)) };
    assert_eq!((qweight.dims.as_slice(), scales.dims.as_slice()), (&[8, 64][..], &[64, 2][..]));
    let gptq = r#","quantization_config":{"quant_method":"gptq","bits":4,"group_size":-1,"desc_act":true}"#;
    let spec = grown(&config("llama", gptq), &[&format!("{q}.qweight"), &format!("{q}.g_idx")]).unwrap();
    let Some(Packed::Gptq { group: 64, qweight, g_idx: Some(_), .. }) = first(&spec) else { panic!("gptq") };
    assert_eq!(qweight.dims, [64, 8]);
    let fp8 = r#","quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}"#;
    let spec = grown(&config("llama", fp8), &[&format!("{q}.weight_scale_inv")]).unwrap();
    assert!(matches!(first(&spec), Some(Packed::Fp8 { block: [128, 128], .. })));
    let fp8 = r#","quantization_config":{"quant_method":"fp8","activation_scheme":"static"}"#;
    let spec = grown(&config("llama", fp8), &[&format!("{q}.weight_scale"), &format!("{q}.input_scale")]).unwrap();
    assert!(matches!(first(&spec), Some(Packed::Fp8 { block: [64, 64], .. })));
    let second = gptq.replace("\"bits\"", "\"checkpoint_format\":\"gptq_v2\",\"bits\"");
    let spec = grown(&config("llama", &second), &[&format!("{q}.qweight")]).unwrap();
    assert!(matches!(first(&spec), Some(Packed::Gptq { zero_offset: 0, .. })));
    assert!(first(&grown(&config("llama", ""), &[]).unwrap()).is_none());
    let bits = |bits| {
        HfQuantization::from_hf_config(&format!(r#"{{"quantization_config":{{"quant_method":"gptq","bits":{bits}}}}}"#))
    };
    assert!(matches!(bits(3), Err(ArchError::Feature(_))));
}

/// Whatever is accepted is safe to use.
fn accepted_is_sound(bytes: &[u8]) {
    let Ok(all) = parse(bytes) else { return };
    let mut at = None;
    for tensor in all.tensors() {
        assert!(at.is_none_or(|at| at == tensor.bytes.start) && tensor.bytes.end <= bytes.len() as u64);
        let elements: u64 = tensor.shape.iter().product();
        assert_eq!(elements * tensor.dtype.bytes(), tensor.bytes.end - tensor.bytes.start);
        at = Some(tensor.bytes.end);
    }
    let _ = ArchSpec::from_hf_config(&config("llama", ""), &all);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn flipped_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = file(GOOD);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        accepted_is_sound(&bytes);
    }

    #[test]
    fn digits_changed_in_the_header_never_panic(at in any::<prop::sample::Index>(), digits in "[0-9]{1,20}|-1|1e9|null|\\[\\]") {
        let bytes = file(GOOD);
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json = std::str::from_utf8(&bytes[8..8 + len]).unwrap();
        let places: Vec<usize> = json.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
        let place = places[at.index(places.len())];
        let changed = format!("{}{digits}{}", &json[..place], &json[place + 1..]);
        accepted_is_sound(&raw(&changed, bytes.len() - 8 - len));
    }
}
