//! Adapters (LoRA, Hu et al., arXiv 2106.09685): what a file adds to some products of a base model, checked against that
//! model. It computes nothing.
//!
//! ```text
//! PEFT folder ──peft──▶ GGUF adapter (llama.cpp's layout) ──▶ shelf, by hash ──open──▶ Adapter ──read──▶ bytes of A and B
//! ```
//!
//! There is one format from the shelf on, so that an adapter has one hash wherever it is: a folder is converted the same way
//! on every machine. An adapter comes from a stranger as models do. What it would change and this engine does not compute
//! is refused by name.

use std::{collections::BTreeMap, fs::File, io, path::Path, path::PathBuf};

use crate::arch::{ArchError, ArchSpec, Product, ProductSpec};
use crate::gguf::{GgmlType, Gguf, GgufError, TensorInfo};
use crate::safetensors::SafetensorsError;
use crate::shelf::{Origin, Shelf, ShelfError, Shelved, Staging};
use crate::source::{FetchConfig, FetchError, Source};

mod peft;
mod rows;
#[cfg(test)]
mod tests;

/// The highest rank accepted.
pub const RANK_MAX: usize = 1_024;
/// The largest adapter accepted, in bytes of its matrices.
pub const BYTES_MAX: u64 = 4 << 30;

/// Why an adapter was refused. Each message says what was wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum AdapterError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the base model takes no adapter: {0}")]
    Base(#[from] ArchError),
    #[error("not a LoRA adapter: {0}")]
    NoAdapter(String),
    #[error("adapter_config.json cannot be read: {0}")]
    Config(String),
    #[error("the adapter uses {0}, which this engine does not compute: it would give wrong results")]
    Feature(String),
    #[error("the adapter was made for {found:?}, the base model is {base:?}: name the base that it was trained on")]
    OtherBase { found: String, base: String },
    #[error("tensor {tensor:?} changes nothing that an adapter may change in this base model{hint}")]
    Stranger { tensor: String, hint: &'static str },
    #[error("tensor {tensor:?} is there without {missing:?}: the adapter is incomplete, save or download it again")]
    Half { tensor: String, missing: String },
    #[error("tensor {tensor:?} has shape {found:?} where {expected} is needed: it was trained on another base model")]
    Shape { tensor: String, found: Vec<u64>, expected: String },
    #[error("tensor {tensor:?} is of type {kind}: save the adapter as F32, F16 or BF16")]
    Kind { tensor: String, kind: String },
    #[error("tensor {0:?} holds values that are no numbers: the adapter is damaged, save or download it again")]
    NotFinite(String),
    #[error("{what} is {value}: it must be {range}")]
    OutOfRange { what: &'static str, value: String, range: &'static str },
    #[error("the adapter's matrices take {0} bytes, more than the {BYTES_MAX} accepted")]
    TooLarge(u64),
    #[error("the adapter has no tensors: it would change nothing")]
    Empty,
}

/// A checked adapter: every matrix fits the product of the base that it changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    gguf: Gguf,
    changes: Vec<Change>,
}

/// What an adapter adds to one product: `scale * B (A x)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which product.
    pub of: ProductSpec,
    /// The rank.
    pub rank: usize,
    /// What the product is multiplied by.
    pub scale: f32,
    a: TensorInfo,
    b: TensorInfo,
    /// How rows of B get into the order of the base's.
    order: rows::Order,
}

/// The bytes of both matrices, little-endian, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrices {
    /// `[rank, inputs]`.
    pub a: (GgmlType, Vec<u8>),
    /// `[outputs, rank]`, rows in the order of the base's.
    pub b: (GgmlType, Vec<u8>),
}

impl Change {
    /// What [`Adapter::read`] gives, without the bytes.
    pub fn sizes(&self) -> Matrices {
        Matrices { a: (self.a.kind, Vec::new()), b: (self.b.kind, Vec::new()) }
    }

    /// Bytes of both matrices in the file.
    pub fn bytes(&self) -> u64 {
        [&self.a, &self.b].iter().map(|tensor| tensor.bytes.end - tensor.bytes.start).sum()
    }
}

impl Adapter {
    /// Reads the header of the GGUF adapter at `path` and checks it against its base.
    pub fn open(path: impl AsRef<Path>, base: &ArchSpec) -> Result<Self, AdapterError> {
        Self::from_gguf(Gguf::open(path)?, base)
    }

    /// Checks an adapter against its base.
    pub fn from_gguf(gguf: Gguf, base: &ArchSpec) -> Result<Self, AdapterError> {
        check_kind(&gguf, base)?;
        let alpha = gguf.f32("adapter.lora.alpha").unwrap_or(0.0);
        if !(alpha > 0.0 && alpha <= 1e6) {
            let (what, value) = ("adapter.lora.alpha", alpha.to_string());
            return Err(AdapterError::OutOfRange { what, value, range: "above 0 and at most a million" });
        }
        let products: BTreeMap<String, ProductSpec> =
            base.products()?.into_iter().map(|of| (format!("{}.weight", of.gguf), of)).collect();
        let mut changes = Vec::new();
        for a in gguf.tensors() {
            let (of, is_a) = named(&a.name, &products)?;
            let other = tensor_name(of, if is_a { "b" } else { "a" });
            let Some(b) = gguf.tensor(&other) else {
                return Err(AdapterError::Half { tensor: a.name.clone(), missing: other });
            };
            if is_a {
                let rank = check_shapes(of, (&a.name, &a.dims), (&b.name, &b.dims))?;
                [a, b].into_iter().try_for_each(check_type)?;
                let scale = (f64::from(alpha) / rank as f64) as f32;
                let order = rows::Order::of(base, of)?;
                changes.push(Change { of: of.clone(), rank, scale, a: a.clone(), b: b.clone(), order });
            }
        }
        changes.sort_by_key(|change| (change.of.layer, change.of.product));
        if changes.is_empty() {
            return Err(AdapterError::Empty);
        }
        let adapter = Self { gguf, changes };
        match adapter.bytes() {
            bytes if bytes > BYTES_MAX => Err(AdapterError::TooLarge(bytes)),
            _ => Ok(adapter),
        }
    }

    /// What it changes, in order of layers, then of products.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Bytes of all its matrices.
    pub fn bytes(&self) -> u64 {
        self.gguf.tensors().iter().map(|tensor| tensor.bytes.end - tensor.bytes.start).sum()
    }

    /// Its parameters.
    pub fn parameters(&self) -> u64 {
        self.gguf.tensors().iter().map(TensorInfo::elements).sum()
    }

    /// How most of it is stored, such as `F16`.
    pub fn quantization(&self) -> &'static str {
        self.changes.first().map_or("none", |change| change.a.kind.name())
    }

    /// Reads what one change needs from `file`, which the adapter was opened from; refuses what is no number.
    pub fn read(&self, file: &File, change: &Change) -> Result<Matrices, AdapterError> {
        let read = |tensor: &TensorInfo| {
            let failed = |source| AdapterError::Io { path: PathBuf::from(&tensor.name), source };
            let bytes = self.gguf.read_tensor(file, tensor).map_err(failed)?;
            match rows::are_finite(tensor.kind, &bytes) {
                true => Ok((tensor.kind, bytes)),
                false => Err(AdapterError::NotFinite(tensor.name.clone())),
            }
        };
        let (a, mut b) = (read(&change.a)?, read(&change.b)?);
        change.order.apply(&mut b.1, change.of.outputs);
        Ok(Matrices { a, b })
    }
}

/// Brings the adapter at `path`, a folder of PEFT or a GGUF file, onto `shelf`, checked against its base. Blocks.
pub fn shelve(shelf: &Shelf, path: &Path, base: &ArchSpec) -> Result<Shelved, AdapterError> {
    let shelved = match path.is_dir() {
        false => {
            Adapter::open(path, base)?;
            Source::File(path.to_owned()).fetch(shelf, None, &FetchConfig::default(), &mut |_| ())?
        }
        true => {
            let bytes = peft::convert(path, base)?.to_bytes();
            let text = format!("peft:{}", path.display());
            let origin = Origin { text: Some(&text), bytes: Some(bytes.len() as u64), expect: None };
            Staging::new(shelf)?.admit_copy(shelf, bytes.as_slice(), path, &origin, &mut |_| ())?
        }
    };
    Adapter::open(&shelved.path, base)?;
    Ok(shelved)
}

fn check_kind(gguf: &Gguf, base: &ArchSpec) -> Result<(), AdapterError> {
    if gguf.str("general.type") != Some("adapter") {
        return Err(AdapterError::NoAdapter("general.type is not \"adapter\": give the adapter's file".to_owned()));
    }
    let kind = gguf.str("adapter.type").unwrap_or("nothing");
    if kind != "lora" {
        return Err(AdapterError::Feature(format!("adapter.type {:?}", kind.chars().take(40).collect::<String>())));
    }
    if gguf.keys().any(|key| key.starts_with("adapter.alora.")) {
        return Err(AdapterError::Feature("activation by tokens (aLoRA)".to_owned()));
    }
    let found = gguf.str("general.architecture").unwrap_or_default();
    if found != base.architecture {
        let found = found.chars().take(40).collect();
        return Err(AdapterError::OtherBase { found, base: base.architecture.clone() });
    }
    Ok(())
}

/// The product that a tensor of a GGUF adapter belongs to, and whether it is its A.
fn named<'a>(
    tensor: &str,
    products: &'a BTreeMap<String, ProductSpec>,
) -> Result<(&'a ProductSpec, bool), AdapterError> {
    let parts = [(".lora_a", true), (".lora_b", false)];
    let found = parts.iter().find_map(|(end, is_a)| Some((products.get(tensor.strip_suffix(end)?)?, *is_a)));
    found.ok_or_else(|| stranger(tensor))
}

fn stranger(tensor: &str) -> AdapterError {
    let has = |parts: &[&str]| parts.iter().any(|part| tensor.contains(part));
    let hint = match () {
        () if has(&["magnitude"]) => ": it is DoRA's, which is not computed here",
        () if has(&["embed", "token_embd"]) => ": embeddings are not adapted here",
        () if has(&["lm_head", "output.weight"]) => ": the output head is not adapted here",
        () if has(&["experts", "_exps", "block_sparse_moe"]) => ": experts are not adapted here",
        () if has(&["modules_to_save", "norm"]) => ": whole modules are not replaced here",
        () => "",
    };
    AdapterError::Stranger { tensor: tensor.chars().take(120).collect(), hint }
}

/// The rank, where both shapes (contiguous dimension first) fit the product and each other.
fn check_shapes(of: &ProductSpec, a: (&str, &[u64]), b: (&str, &[u64])) -> Result<usize, AdapterError> {
    let wrong = |(tensor, dims): (&str, &[u64]), expected| {
        let tensor = tensor.to_owned();
        Err(AdapterError::Shape { tensor, found: dims.to_vec(), expected })
    };
    let (inputs, outputs) = (of.inputs as u64, of.outputs as u64);
    let rank = match *a.1 {
        [cols, rank] if cols == inputs && (1..=RANK_MAX as u64).contains(&rank) => rank,
        _ => return wrong(a, format!("[{inputs}, rank of at most {RANK_MAX}]")),
    };
    match *b.1 == [rank, outputs] {
        true => Ok(rank as usize),
        false => wrong(b, format!("[{rank}, {outputs}]")),
    }
}

fn check_type(tensor: &TensorInfo) -> Result<(), AdapterError> {
    match tensor.kind {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => Ok(()),
        kind => Err(AdapterError::Kind { tensor: tensor.name.clone(), kind: kind.to_string() }),
    }
}

/// The GGUF name of a product's matrix.
fn tensor_name(of: &ProductSpec, part: &str) -> String {
    format!("{}.weight.lora_{part}", of.gguf)
}

/// The product is one whose rows are rotated.
fn is_rotated(product: Product) -> bool {
    matches!(product, Product::Q | Product::K)
}
