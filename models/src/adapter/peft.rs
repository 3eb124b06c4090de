//! The folder that PEFT saves: `adapter_config.json` and `adapter_model.safetensors`, turned into a GGUF adapter. The same
//! folder gives the same bytes everywhere, so that an adapter has one hash.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::Path};

use serde_json::{Map, Value};

use super::{AdapterError, BYTES_MAX, RANK_MAX, check_shapes, rows::Order, stranger, tensor_name};
use crate::arch::{ArchSpec, ProductSpec};
use crate::gguf::{GgmlType, GgufWriter};
use crate::safetensors::{Dtype, SafeTensor, SafeTensors};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of modules.
const PREFIX: &str = "base_model.model.";
/// The longest configuration accepted, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Keys that say how the adapter was made, or what the tensors say as well.
const HARMLESS: [&str; 22] = [
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "lora_ga_config",
    "monteclora_config",
];
/// Keys that are read.
const READ: [&str; 6] = ["peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"];
/// How matrices may have begun: none of these changes the base model.
const BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Reads the folder and checks it against its base.
pub(super) fn convert(folder: &Path, base: &ArchSpec) -> Result<GgufWriter, AdapterError> {
    let config = Config::read(&folder.join(CONFIG))?;
    let path = folder.join(TENSORS);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        let what = "a pickle (adapter_model.bin), which can hold programs: save it again as safetensors";
        return Err(AdapterError::NoAdapter(what.to_owned()));
    }
    let tensors = SafeTensors::open(&path)?;
    let file = File::open(&path).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
    let pairs = pairs(&tensors, base)?;
    let alpha = config.alpha(pairs.iter().map(|pair| pair.rank))?;
    let mut writer = GgufWriter::new()
        .meta_str("general.type", "adapter")
        .meta_str("general.architecture", &base.architecture)
        .meta_str("adapter.type", "lora")
        .meta_f32("adapter.lora.alpha", alpha);
    for Pair { of, rank, a, b } in &pairs {
        for (tensor, part, dims) in [(a, "a", [of.inputs, *rank]), (b, "b", [*rank, of.outputs])] {
            let kind = kind(tensor)?;
            let read = tensors.read_tensor(&file, tensor);
            let mut bytes = read.map_err(|source| AdapterError::Io { path: path.clone(), source })?;
            if part == "b" {
                Order::from_hf(base, of)?.apply(&mut bytes, of.outputs);
            }
            writer = writer.tensor(&tensor_name(of, part), &dims.map(|dim| dim as u64), kind, &bytes);
        }
    }
    Ok(writer)
}

/// Both matrices of one product.
struct Pair<'a> {
    of: ProductSpec,
    rank: usize,
    a: &'a SafeTensor,
    b: &'a SafeTensor,
}

/// The tensors by product, in order; every one belongs to some, and fits it.
fn pairs<'a>(tensors: &'a SafeTensors, base: &ArchSpec) -> Result<Vec<Pair<'a>>, AdapterError> {
    let bytes = tensors.tensors().iter().map(|tensor| tensor.bytes.end - tensor.bytes.start).sum();
    if bytes > BYTES_MAX {
        return Err(AdapterError::TooLarge(bytes));
    }
    let products: BTreeMap<String, ProductSpec> = base.products()?.into_iter().map(|of| (of.hf.clone(), of)).collect();
    let mut pairs = Vec::new();
    for a in tensors.tensors() {
        let found = a.name.strip_prefix(PREFIX).and_then(|name| {
            let (module, part) = name.rsplit_once(".lora_")?;
            let other = match part {
                "A.weight" => "B.weight",
                "B.weight" => "A.weight",
                _ => return None,
            };
            Some((products.get(module)?, part, format!("{PREFIX}{module}.lora_{other}")))
        });
        let Some((of, part, other)) = found else { return Err(stranger(&a.name)) };
        let Some(b) = tensors.tensor(&other) else {
            return Err(AdapterError::Half { tensor: a.name.clone(), missing: other });
        };
        if part == "A.weight" {
            let dims = |tensor: &SafeTensor| tensor.shape.iter().rev().copied().collect::<Vec<u64>>();
            let rank = check_shapes(of, (&a.name, &dims(a)), (&b.name, &dims(b)))?;
            pairs.push(Pair { of: of.clone(), rank, a, b });
        }
    }
    pairs.sort_by_key(|pair| (pair.of.layer, pair.of.product));
    if pairs.is_empty() { Err(AdapterError::Empty) } else { Ok(pairs) }
}

fn kind(tensor: &SafeTensor) -> Result<GgmlType, AdapterError> {
    match tensor.dtype {
        Dtype::F32 => Ok(GgmlType::F32),
        Dtype::F16 => Ok(GgmlType::F16),
        Dtype::BF16 => Ok(GgmlType::BF16),
        other => Err(AdapterError::Kind { tensor: tensor.name.clone(), kind: other.name().to_owned() }),
    }
}

/// What the configuration says.
struct Config {
    rank: usize,
    alpha: f64,
    /// Scales are `alpha / sqrt(rank)` (rsLoRA, arXiv 2312.03732), else `alpha / rank`.
    stabilized: bool,
    /// Some products have other ranks.
    mixed: bool,
}

impl Config {
    fn read(path: &Path) -> Result<Self, AdapterError> {
        let failed = |source| AdapterError::Io { path: path.to_owned(), source };
        let mut text = Vec::new();
        File::open(path).and_then(|f| f.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text)).map_err(failed)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(AdapterError::Config(format!("it is longer than {CONFIG_BYTES_MAX} bytes")));
        }
        match serde_json::from_slice(&text) {
            Ok(Value::Object(keys)) => Self::of(&keys),
            Ok(_) => Err(AdapterError::Config("it is no object".to_owned())),
            Err(why) => Err(AdapterError::Config(why.to_string())),
        }
    }

    fn of(keys: &Map<String, Value>) -> Result<Self, AdapterError> {
        let kind = keys.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        if kind != "LORA" {
            return Err(AdapterError::NoAdapter(format!(
                "peft_type is {:?}",
                kind.chars().take(40).collect::<String>()
            )));
        }
        if let Some(bias) = keys.get("bias").filter(|bias| !is_off(bias) && bias.as_str() != Some("none")) {
            return Err(feature("bias", bias));
        }
        let begun = keys.get("init_lora_weights");
        let known = |begun: &Value| begun.is_boolean() || begun.as_str().is_some_and(|b| BEGINNINGS.contains(&b));
        if let Some(begun) = begun.filter(|begun| !begun.is_null() && !known(begun)) {
            // Such a beginning takes something out of the base model's own weights.
            return Err(feature("init_lora_weights", begun));
        }
        let read = |key: &str| HARMLESS.contains(&key) || READ.contains(&key);
        if let Some((key, value)) = keys.iter().find(|(key, value)| !read(key) && !is_off(value)) {
            return Err(feature(key, value));
        }
        let rank = keys.get("r").and_then(Value::as_u64).filter(|r| (1..=RANK_MAX as u64).contains(r));
        let alpha = keys.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| *alpha > 0.0 && *alpha <= 1e6);
        let value =
            |key| keys.get(key).map_or_else(|| "missing".to_owned(), |v| v.to_string().chars().take(40).collect());
        let range = |what, range| AdapterError::OutOfRange { what, value: value(what), range };
        Ok(Self {
            rank: rank.ok_or_else(|| range("r", "from 1 to 1024"))? as usize,
            alpha: alpha.ok_or_else(|| range("lora_alpha", "above 0 and at most a million"))?,
            stabilized: keys.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            mixed: keys.get("rank_pattern").is_some_and(|pattern| !is_off(pattern)),
        })
    }

    /// The number whose quotient by a product's rank is its scale.
    fn alpha(&self, ranks: impl Iterator<Item = usize>) -> Result<f32, AdapterError> {
        let others = ranks.filter(|rank| *rank != self.rank).max();
        match (others, self.mixed, self.stabilized) {
            (Some(other), false, _) => {
                let (r, why) = (self.rank, "as the tensors say, or rank_pattern must name the others");
                Err(AdapterError::OutOfRange { what: "r", value: format!("{r}, a tensor's rank {other}"), range: why })
            }
            (Some(_), true, true) => Err(AdapterError::Feature("use_rslora with ranks that differ".to_owned())),
            (_, _, true) => Ok((self.alpha * (self.rank as f64).sqrt()) as f32),
            (_, _, false) => Ok(self.alpha as f32),
        }
    }
}

/// Values that switch nothing on.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(keys) => keys.is_empty(),
    }
}

fn feature(key: &str, value: &Value) -> AdapterError {
    let short = |text: String| text.chars().take(60).collect::<String>();
    AdapterError::Feature(format!("{} = {} in {CONFIG}", short(key.to_owned()), short(value.to_string())))
}
