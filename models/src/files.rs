//! A model's files, whatever their format: one GGUF file, or a folder in the layout of Hugging Face. All that opens a
//! model goes through [`ModelFiles`]. It computes and converts nothing.
//!
//! ```text
//! model.gguf ──────────────────────────────┐                ┌▶ ArchSpec, Tokenizer, ChatTemplate
//! folder/ {config.json, *.safetensors, …}  ├▶ ModelFiles ───┤
//! <hash>.tar: the same folder, packed  ────┘                └▶ tensors: shape, type, bytes by positioned reads
//! ```
//!
//! On the shelf and on the network a model is one file, named by its hash. A folder is packed for that: an uncompressed
//! archive (ustar) that holds just the files that matter, sorted, without times or owners, so that the same files always
//! have the same hash ([`Packer`]). Tensors are read where they lie in it.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, path::PathBuf};

use crate::arch::{ArchError, ArchSpec};
use crate::gguf::{GgmlType, Gguf, GgufError};
use crate::safetensors::{Dtype, SafetensorsError};
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};

mod archive;
mod folder;
mod pack;
#[cfg(test)]
mod tests;

use folder::Folder;
pub use pack::Packer;
pub(crate) use pack::SMALL_FILES;

/// Why a model's files were refused. Each message says what was wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum FilesError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    #[error("{} has no {name}: {remedy}", folder.display())]
    Missing { folder: PathBuf, name: &'static str, remedy: &'static str },
    #[error("{name} has {bytes} bytes, more than the {max} accepted: damaged or hostile, do not use this model")]
    TooLong { name: String, bytes: u64, max: u64 },
    #[error("{0} is not UTF-8: damaged, download it again")]
    NotUtf8(String),
    #[error("{0} cannot be read: {1}")]
    Json(String, String),
    #[error("the packed folder is not as this program packs it ({0}): damaged or hostile; publish the folder anew")]
    Archive(&'static str),
}

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorKind {
    /// As GGUF files name it.
    Ggml(GgmlType),
    /// As safetensors files name it.
    Safetensors(Dtype),
}

impl std::fmt::Display for TensorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ggml(kind) => kind.fmt(f),
            Self::Safetensors(kind) => f.pad(kind.name()),
        }
    }
}

/// A tensor: its shape, its type, and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, unique in the model.
    pub name: String,
    /// Its shape in GGUF order: `dims[0]` is contiguous.
    pub dims: Vec<u64>,
    /// How elements are stored.
    pub kind: TensorKind,
    /// Which of the model's open files.
    file: usize,
    /// Absolute offset and length in it, inside it.
    at: u64,
    len: u64,
}

impl Tensor {
    /// The number of elements. It cannot overflow: the shape was checked against the file's size.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// The number of its bytes.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// How many of the model's parameters it holds. Scales, zero points and divisors of frequencies are none.
    pub fn weights(&self) -> u64 {
        let name = self.name.as_str();
        let none = [".qzeros", ".scales", ".g_idx", "_scales", "_scale_inv", "_scale", "rotary_emb.inv_freq"];
        match self.kind {
            _ if name.starts_with("rope_f") => 0,
            TensorKind::Safetensors(_) if none.iter().any(|end| name.ends_with(end)) => 0,
            TensorKind::Safetensors(Dtype::I32) if name.ends_with(".qweight") => 8 * self.elements(),
            TensorKind::Safetensors(Dtype::U8) if name.ends_with("_blocks") => 2 * self.elements(),
            _ => self.elements(),
        }
    }
}

/// An open model. Headers were read and checked; weights are read when asked for.
#[derive(Debug)]
pub struct ModelFiles {
    format: Format,
    files: Vec<File>,
}

#[derive(Debug)]
enum Format {
    Gguf(Box<Gguf>),
    Folder(Box<Folder>),
}

impl ModelFiles {
    /// Opens the model at `path`: a GGUF file, a folder with `config.json`, or such a folder packed by [`Packer`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FilesError> {
        let path = path.as_ref();
        let failed = |source| FilesError::Io { path: path.to_owned(), source };
        if path.is_dir() {
            let (folder, files) = Folder::unpacked(path)?;
            return Ok(Self { format: Format::Folder(Box::new(folder)), files });
        }
        let file = File::open(path).map_err(failed)?;
        if !archive::is_archive(&file).map_err(failed)? {
            let gguf = Box::new(Gguf::from_file(&file, path)?);
            return Ok(Self { format: Format::Gguf(gguf), files: vec![file] });
        }
        let (folder, file) = Folder::packed(path, file)?;
        Ok(Self { format: Format::Folder(Box::new(folder)), files: vec![file] })
    }

    /// What the model computes, proved against its tensors.
    pub fn spec(&self) -> Result<ArchSpec, ArchError> {
        match &self.format {
            Format::Gguf(gguf) => ArchSpec::from_gguf(gguf),
            Format::Folder(folder) => folder.spec(),
        }
    }

    /// Its vocabulary with its rules, no smaller than the model's rows of logits where the format is a folder's.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        match &self.format {
            Format::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            Format::Folder(folder) => folder.tokenizer(&self.files),
        }
    }

    /// Its chat template; `None` where it has none, and completions are all that it can do.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, TemplateError> {
        match &self.format {
            Format::Gguf(gguf) if gguf.str("tokenizer.chat_template").is_none() => Ok(None),
            Format::Gguf(gguf) => ChatTemplate::from_gguf(gguf).map(Some),
            Format::Folder(folder) => folder.chat_template(&self.files),
        }
    }

    /// The GGUF header, where the model is such a file.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.format {
            Format::Gguf(gguf) => Some(gguf),
            Format::Folder(_) => None,
        }
    }

    /// All tensors, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> + '_ {
        let (gguf, folder) = match &self.format {
            Format::Gguf(gguf) => (Some(gguf.tensors().iter().map(of_gguf)), None),
            Format::Folder(folder) => (None, Some(folder.tensors())),
        };
        gguf.into_iter().flatten().chain(folder.into_iter().flatten())
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        match &self.format {
            Format::Gguf(gguf) => gguf.tensor(name).map(of_gguf),
            Format::Folder(folder) => folder.tensor(name),
        }
    }

    /// A tensor's bytes, by positioned reads, so that several threads may read at once. Fails with `UnexpectedEof` when
    /// the file has shrunk since its header was read.
    pub fn read(&self, tensor: &Tensor) -> io::Result<Vec<u8>> {
        read_at(&self.files[tensor.file], tensor.at, tensor.len)
    }

    /// The number of parameters: elements of all tensors that are weights, those of packed ones counted as unpacked.
    pub fn parameters(&self) -> u64 {
        self.tensors().map(|tensor| tensor.weights()).sum()
    }

    /// Whether any matrix is of 16-bit floating-point numbers.
    pub fn has_halves(&self) -> bool {
        let halves = |kind| {
            use TensorKind::{Ggml, Safetensors};
            matches!(kind, Ggml(GgmlType::F16 | GgmlType::BF16) | Safetensors(Dtype::F16 | Dtype::BF16))
        };
        self.tensors().any(|tensor| tensor.dims.len() > 1 && tensor.weights() > 0 && halves(tensor.kind))
    }

    /// How most parameters are stored, such as `Q4_1`, `BF16` or `AWQ`.
    pub fn quantization(&self) -> String {
        let mut counts = std::collections::BTreeMap::<String, u64>::new();
        for tensor in self.tensors() {
            let kind = match &self.format {
                Format::Folder(folder) if holds_packed(&tensor) => folder.packing().to_owned(),
                _ => tensor.kind.to_string(),
            };
            *counts.entry(kind).or_default() += tensor.weights();
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or_else(|| "none".to_owned(), |(kind, _)| kind)
    }
}

/// Whether the file begins as a packed folder does.
pub(crate) fn is_packed(file: &File) -> io::Result<bool> {
    archive::is_archive(file)
}

fn of_gguf(info: &crate::gguf::TensorInfo) -> Tensor {
    Tensor {
        name: info.name.clone(),
        dims: info.dims.clone(),
        kind: TensorKind::Ggml(info.kind),
        file: 0,
        at: info.bytes.start,
        len: info.bytes.end - info.bytes.start,
    }
}

/// Whether the tensor holds weights in less than a byte each, or in bytes that a scale belongs to.
fn holds_packed(tensor: &Tensor) -> bool {
    tensor.name.ends_with(".qweight")
        || tensor.name.ends_with("_blocks")
        || tensor.kind == TensorKind::Safetensors(Dtype::F8_E4M3)
}

/// `len` bytes of `file` from `at` on.
fn read_at(file: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|why| io::Error::new(io::ErrorKind::OutOfMemory, why))?;
    bytes.resize(len, 0);
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}
