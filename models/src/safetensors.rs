//! Safetensors files, one or a set of shards: headers, checked against the files they head. It never maps or converts.
//!
//! ```text
//! length u64 | {"name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}, ...} | bytes
//! ```
//!
//! As with GGUF, a file comes from a stranger: the header is bounded before it is read, every product is checked, and
//! the tensors must cover the bytes after the header exactly, each byte once.

use std::{collections::BTreeMap, fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path, path::PathBuf};

use crate::arch::Tensors;

mod header;
mod shards;
#[cfg(test)]
mod tests;

pub(crate) use shards::OpenShard;

/// The file that lists which tensor is in which shard.
pub(crate) const INDEX: &str = shards::INDEX;
/// The file of a model that has one.
pub(crate) const SINGLE: &str = shards::SINGLE;

/// The longest header accepted, in bytes, and the longest index.
pub const HEADER_BYTES_MAX: u64 = 64 << 20;
/// The most tensors accepted, over all shards. The largest mixtures have some hundred thousand.
pub const TENSORS_MAX: usize = 1 << 18;
/// The most dimensions a tensor may have.
pub const DIMS_MAX: usize = 8;
/// The most shards accepted.
pub const SHARDS_MAX: usize = 1_024;
/// The longest name of a tensor, in bytes.
pub const NAME_BYTES_MAX: usize = 4_096;

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)] // The format's own spelling, which says all.
pub enum Dtype {
    F32,
    F16,
    BF16,
    F8_E4M3,
    F8_E5M2,
    I8,
    U8,
    I32,
    I64,
}

impl Dtype {
    /// Every type.
    pub const ALL: &[Self] =
        &[Self::F32, Self::F16, Self::BF16, Self::F8_E4M3, Self::F8_E5M2, Self::I8, Self::U8, Self::I32, Self::I64];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8_E4M3 => "F8_E4M3",
            Self::F8_E5M2 => "F8_E5M2",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::I32 => "I32",
            Self::I64 => "I64",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F8_E4M3 | Self::F8_E5M2 | Self::I8 | Self::U8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// Why a safetensors file was refused. Each message says what was wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum SafetensorsError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("truncated: {what} ends at byte {end}, the file has {have}: download it again")]
    Truncated { what: String, end: u64, have: u64 },
    #[error("a header of {0} bytes (at most {HEADER_BYTES_MAX}): no safetensors file, or a hostile one")]
    HeaderLength(u64),
    #[error("the header is no safetensors header: {0}")]
    Header(String),
    #[error(
        "tensor {tensor:?} has an impossible shape {shape:?} for {bytes} bytes of {dtype}: damaged, download it again"
    )]
    Shape { tensor: String, shape: Vec<u64>, dtype: &'static str, bytes: u64 },
    #[error("tensors overlap, or leave a hole, at byte {at} ({tensor:?}): damaged or hostile, do not use this file")]
    Layout { tensor: String, at: u64 },
    #[error("{count} {what} are more than the {max} accepted: damaged or hostile, do not use these files")]
    TooMany { what: &'static str, count: usize, max: usize },
    #[error("the index names the file {0:?}, which is no plain file name: hostile, do not use these files")]
    ShardName(String),
    #[error("tensor {tensor:?} is not in {shard:?}, where the index says it is: download the files again")]
    NotInShard { tensor: String, shard: String },
    #[error("tensor {0:?} is in two shards: damaged, download the files again")]
    Duplicate(String),
}

/// Where a tensor lies and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafeTensor {
    /// The tensor's name, unique among all shards.
    pub name: String,
    /// Shape as in the file: the *last* dimension is contiguous.
    pub shape: Vec<u64>,
    /// How elements are stored.
    pub dtype: Dtype,
    /// Index into [`SafeTensors::shards`].
    pub shard: usize,
    /// The tensor's bytes: absolute offsets in its file.
    pub bytes: Range<u64>,
}

/// The checked headers of a model's files.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SafeTensors {
    shards: Vec<PathBuf>,
    tensors: Vec<SafeTensor>,
    by_name: BTreeMap<String, usize>,
}

impl SafeTensors {
    /// Reads the headers of the model at `path`: a `.safetensors` file, a `.safetensors.index.json` file, or a folder
    /// that holds `model.safetensors` or `model.safetensors.index.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SafetensorsError> {
        shards::open(path.as_ref())
    }

    /// Reads the headers of a model whose files `open` opens by name, with or without an index.
    pub(crate) fn join(has_index: bool, open: &mut OpenShard<'_>) -> Result<Self, SafetensorsError> {
        shards::join(has_index, open)
    }

    /// The names of the files that an index of this text names, sorted; none leaves the folder.
    pub(crate) fn shard_names(index: &[u8]) -> Result<Vec<String>, SafetensorsError> {
        shards::names(index)
    }

    /// Whether `name` is a name that a shard may have.
    pub(crate) fn is_shard_name(name: &str) -> bool {
        shards::is_plain(name)
    }

    /// Parses one file's header from `bytes`, the beginning (or all) of a file of `file_bytes` bytes.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Self, SafetensorsError> {
        let mut all = Self::default();
        all.add(Path::new("<memory>"), bytes, file_bytes.max(bytes.len() as u64))?;
        Ok(all)
    }

    fn add(&mut self, path: &Path, source: impl io::Read, file_bytes: u64) -> Result<(), SafetensorsError> {
        let shard = self.shards.len();
        for tensor in header::read(source, file_bytes, path, shard)? {
            if self.by_name.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(SafetensorsError::Duplicate(tensor.name));
            }
            self.tensors.push(tensor);
        }
        if self.tensors.len() > TENSORS_MAX {
            return Err(SafetensorsError::TooMany { what: "tensors", count: self.tensors.len(), max: TENSORS_MAX });
        }
        self.shards.push(path.to_owned());
        Ok(())
    }

    /// The files, in the order in which they were read.
    pub fn shards(&self) -> &[PathBuf] {
        &self.shards
    }

    /// The tensors, shard by shard, in the order of their bytes.
    pub fn tensors(&self) -> &[SafeTensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&SafeTensor> {
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    /// Reads one tensor's bytes from `file`, its shard, by positioned reads, so several threads may share it.
    pub fn read_tensor(&self, file: &File, tensor: &SafeTensor) -> io::Result<Vec<u8>> {
        let len = usize::try_from(tensor.bytes.end - tensor.bytes.start).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|why| io::Error::new(io::ErrorKind::OutOfMemory, why))?;
        bytes.resize(len, 0);
        file.read_exact_at(&mut bytes, tensor.bytes.start)?;
        Ok(bytes)
    }
}

impl Tensors for SafeTensors {
    fn dims(&self, name: &str) -> Option<Vec<u64>> {
        self.tensor(name).map(|tensor| tensor.shape.iter().rev().copied().collect())
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.iter().map(|tensor| tensor.name.as_str()))
    }
}
