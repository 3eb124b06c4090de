//! A tiny model of every family, and of every way to pack weights, as a Hugging Face folder: against a transformer in numpy
//! (`tests/fixtures/make_hf_families.py`), and against the same weights in a GGUF file.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use cuckoo_kernels::reference::Rounding;
use cuckoo_kernels::{Cpu, Exact, Reference};
use cuckoo_models::gguf::GgufWriter;
use cuckoo_models::{Dtype, GgmlType, ModelFiles, Packer, TensorKind};
use cuckoo_runtime::forward::{LoadError, Model};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::families::{draw, error_of_shown, integers, logits, opened};

pub(crate) fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/hf_families.json")).unwrap()
}

/// The bytes of a tensor `[type, shape, offset, factor]`: values `offset + factor * v`, or bytes, as the fixture says.
fn bytes(name: &str, tensor: &Value) -> Vec<u8> {
    let count = tensor[1].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product::<u64>() as usize;
    if tensor[2] == "group" {
        let group = tensor[3].as_u64().unwrap() as u32;
        return (0..count as u32).flat_map(|i| (i / group).to_le_bytes()).collect();
    }
    let (offset, factor) = (tensor[2].as_f64().unwrap(), tensor[3].as_f64().unwrap());
    let value = |v: f64| (offset + factor * v) as f32;
    let byte = |v: f64| (offset + ((v + 1.0) * factor).floor()) as u8;
    match tensor[0].as_str().unwrap() {
        "F32" => draw(name, count).flat_map(|v| value(v).to_le_bytes()).collect(),
        "F16" => draw(name, count).flat_map(|v| f16::from_f32(value(v)).to_le_bytes()).collect(),
        "BF16" => draw(name, count).flat_map(|v| bf16::from_f32(value(v)).to_le_bytes()).collect(),
        "I32" => draw(name, 4 * count).map(byte).collect(),
        "U8" => draw(name, count).map(byte).collect(),
        // Without the codes that are no numbers.
        "F8_E4M3" => draw(name, count).map(byte).map(|c| if c & 0x7f == 0x7f { c - 1 } else { c }).collect(),
        other => panic!("a tensor of type {other}"),
    }
}

fn safetensors(tensors: &[(&String, &Value)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(bytes(name, tensor));
        let entry = json!({"dtype": tensor[0], "shape": tensor[1], "data_offsets": [begin, data.len()]});
        header.insert((*name).clone(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The folder that a model of the fixture describes, its weights in one file or in two.
pub(crate) fn write(model: &Value, folder: &Path, shards: usize) {
    fs::create_dir_all(folder).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    put("config.json", model["config"].to_string().as_bytes());
    put("tokenizer.json", b"{}");
    let tensors: Vec<(&String, &Value)> = model["tensors"].as_object().unwrap().iter().collect();
    if shards == 1 {
        return put("model.safetensors", &safetensors(&tensors));
    }
    let mut map = serde_json::Map::new();
    for (i, tensors) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        put(&file, &safetensors(tensors));
        map.extend(tensors.iter().map(|(name, _)| ((*name).clone(), Value::from(file.as_str()))));
    }
    put("model.safetensors.index.json", json!({"weight_map": map}).to_string().as_bytes());
}

fn packed(folder: &Path, to: &Path) {
    let mut bytes = Vec::new();
    Packer::new(folder).unwrap().read_to_end(&mut bytes).unwrap();
    fs::write(to, bytes).unwrap();
}

#[test]
fn every_family_and_packing_as_a_folder_computes_what_its_reference_code_does() {
    let fixture = fixture();
    let (tokens, shown) = (integers(&fixture["tokens"]), integers(&fixture["shown"]));
    let home = tempfile::tempdir().unwrap();
    let models = fixture["models"].as_array().unwrap();
    assert_eq!(models.len(), 23);
    for (i, model) in models.iter().enumerate() {
        let name = model["name"].as_str().unwrap();
        let (folder, archive) = (home.path().join(name), home.path().join(format!("{name}.tar")));
        write(model, &folder, 1 + i % 2);
        packed(&folder, &archive);
        let (files, spec) = opened(name, &archive);
        let reference = logits(Reference::new(Rounding::None), &files, &spec, &tokens, tokens.len());
        let error = error_of_shown(&reference, &shown, &model["logits"]);
        println!("{name} ({}): {error:.1e}", files.quantization());
        assert!(error < 1e-12, "{name}: an NMSE of {error:e} from its reference code");
        let exact = logits(Exact::new(), &files, &spec, &tokens, tokens.len());
        for chunk in [tokens.len(), 7, 1] {
            let cpu = logits(Cpu::new(2), &files, &spec, &tokens, chunk);
            let same = cpu.iter().zip(&exact).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && cpu.len() == exact.len(), "{name} in chunks of {chunk}");
        }
        let loose = ModelFiles::open(&folder).unwrap();
        assert_eq!(loose.spec().unwrap(), spec);
        assert!(logits(Cpu::new(1), &loose, &spec, &tokens, 24) == exact, "{name}, not packed");
    }
}

/// The name that GGUF files have for a tensor of qwen.
fn name_in_gguf(name: &str) -> String {
    let parts = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("embed_tokens", "token_embd"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("model.norm", "output_norm"),
        ("model.", ""),
    ];
    parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The rest of the path to logits is the same, so where GGUF pairs elements as Hugging Face does, so are the bits.
#[test]
fn the_same_weights_in_a_folder_and_in_a_gguf_file_give_the_same_bits() {
    let fixture = fixture();
    let (tokens, home) = (integers(&fixture["tokens"]), tempfile::tempdir().unwrap());
    for wanted in ["qwen2", "qwen3"] {
        let model = fixture["models"].as_array().unwrap().iter().find(|model| model["name"] == wanted).unwrap();
        let (folder, path) = (home.path().join(wanted), home.path().join(format!("{wanted}.gguf")));
        write(model, &folder, 1);
        let files = ModelFiles::open(&folder).unwrap();
        let config = |key: &str| model["config"][key].as_f64().unwrap();
        let mut writer = GgufWriter::new().meta_str("general.architecture", wanted);
        for (key, of) in [
            ("block_count", "num_hidden_layers"),
            ("embedding_length", "hidden_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("attention.key_length", "head_dim"),
            ("attention.value_length", "head_dim"),
            ("feed_forward_length", "intermediate_size"),
            ("context_length", "max_position_embeddings"),
        ] {
            writer = writer.meta_u32(&format!("{wanted}.{key}"), config(of) as u32);
        }
        for (key, of) in [("attention.layer_norm_rms_epsilon", "rms_norm_eps"), ("rope.freq_base", "rope_theta")] {
            writer = writer.meta_f32(&format!("{wanted}.{key}"), config(of) as f32);
        }
        for tensor in files.tensors() {
            let kind = match tensor.kind {
                TensorKind::Safetensors(Dtype::F32) => GgmlType::F32,
                TensorKind::Safetensors(Dtype::BF16) => GgmlType::BF16,
                other => panic!("{other}"),
            };
            writer = writer.tensor(&name_in_gguf(&tensor.name), &tensor.dims, kind, &files.read(&tensor).unwrap());
        }
        writer.write(&path).unwrap();
        let gguf = ModelFiles::open(&path).unwrap();
        assert_eq!((gguf.parameters(), gguf.quantization()), (files.parameters(), files.quantization()));
        let of = |files: &ModelFiles| logits(Cpu::new(2), files, &files.spec().unwrap(), &tokens, 5);
        let (a, b) = (of(&gguf), of(&files));
        assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()) && a.len() == b.len(), "{wanted}");
    }
}

/// What would be computed wrongly is refused by name, with the tensor in question.
#[test]
fn packed_weights_that_cannot_be_computed_are_refused() {
    let fixture = fixture();
    let home = tempfile::tempdir().unwrap();
    let load = |name: &str, change: &dyn Fn(&mut Value)| {
        let models = fixture["models"].as_array().unwrap();
        let mut model = models.iter().find(|model| model["name"] == name).unwrap().clone();
        change(&mut model);
        write(&model, home.path(), 1);
        let files = ModelFiles::open(home.path()).unwrap();
        let spec = files.spec().map_err(|why| why.to_string())?;
        let loaded = Model::load(&mut Cpu::new(1), &files, &spec, |_| ());
        loaded.map(|_| ()).map_err(|why: LoadError| why.to_string())
    };
    assert_eq!(load("qwen2 gptq", &|_| ()), Ok(()));
    let q = "model.layers.0.self_attn.q_proj";
    let reordered = load("qwen2 gptq", &|model| model["tensors"][format!("{q}.g_idx")][3] = json!(16));
    assert!(reordered.unwrap_err().contains("desc_act"));
    let quantization = |model: &mut Value, key: &str, value: Value| model["config"]["quantization_config"][key] = value;
    let three = load("llama awq", &|model| quantization(model, "bits", json!(3))).unwrap_err();
    assert!(three.contains("awq") && three.contains('3'), "{three}");
    let groups = load("llama awq", &|model| quantization(model, "group_size", json!(16))).unwrap_err();
    assert!(groups.contains("groups of 16"), "{groups}");
    let gemv = load("llama awq", &|model| quantization(model, "version", json!("gemv"))).unwrap_err();
    assert!(gemv.contains("gemv"), "{gemv}");
    let nothing = load("qwen3 fp8", &|model| model["config"]["quantization_config"] = Value::Null).unwrap_err();
    assert!(nothing.contains("weight_scale_inv"), "{nothing}");
    let other = load("qwen3 fp8", &|model| quantization(model, "quant_method", json!("bitsandbytes"))).unwrap_err();
    assert!(other.contains("bitsandbytes"), "{other}");
    let floats = load("llama awq", &|model| model["tensors"][format!("{q}.qweight")][0] = json!("F32")).unwrap_err();
    assert!(floats.contains("F32") && floats.contains("q_proj"), "{floats}");
    fs::write(home.path().join("quantize_config.json"), r#"{"bits":4,"group_size":32,"desc_act":false}"#).unwrap();
    assert_eq!(load("qwen2 gptq", &|model| model["config"]["quantization_config"] = Value::Null), Ok(()));
}
