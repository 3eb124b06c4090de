//! GGUF files, versions 2 and 3: the header, checked against the file it heads. It never maps or dequantizes weights.
//!
//! A GGUF file comes from a stranger, so every count is bounded before anything is allocated for it, every sum and
//! product is checked, and every tensor must lie inside the file, aligned and apart from all others. What survives
//! [`Gguf::parse`] can be trusted to be *well formed*; whether it is a usable model is `arch.rs`'s question.

use std::{collections::BTreeMap, fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path, path::PathBuf};

mod kind;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use kind::GgmlType;
pub use write::GgufWriter;

/// The longest header accepted, in bytes. The largest real ones (262 k tokens with scores) are below 16 MiB.
pub const HEADER_BYTES_MAX: u64 = 64 << 20;
/// The most metadata keys accepted.
pub const KEYS_MAX: u64 = 65_536;
/// The most tensors accepted.
pub const TENSORS_MAX: u64 = 65_536;
/// The longest key, tensor name or string value accepted, in bytes.
pub const STRING_BYTES_MAX: u64 = 1 << 20;
/// The most array elements accepted, over all arrays of a header. The largest real vocabularies need 1.3 million.
pub const ARRAY_ELEMENTS_MAX: u64 = 1 << 22;
/// The most dimensions a tensor may have.
pub const DIMS_MAX: u32 = 4;
/// The largest `general.alignment` accepted, in bytes.
pub const ALIGNMENT_BYTES_MAX: u64 = 1 << 16;

/// The alignment of tensor data where the file names none, in bytes (from the GGUF specification).
const ALIGNMENT_BYTES_DEFAULT: u64 = 32;

/// Why a GGUF file was refused. Each message says what was wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum GgufError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("not a GGUF file: it begins with {found:02x?} instead of \"GGUF\"; give a .gguf file")]
    Magic { found: [u8; 4] },
    #[error("GGUF version {0} is not supported (2 and 3 are): convert the model again with a current converter")]
    Version(u32),
    #[error("a big-endian GGUF file: convert it again for little-endian machines")]
    BigEndian,
    #[error("truncated: {what} ends at byte {end}, the file has {have}: download it again")]
    Truncated { what: String, end: u64, have: u64 },
    #[error("the header is longer than {HEADER_BYTES_MAX} bytes (at {what}): damaged or hostile, do not use this file")]
    HeaderTooLong { what: String },
    #[error("{what}: {count} is more than the {max} accepted: damaged or hostile, do not use this file")]
    TooMany { what: String, count: u64, max: u64 },
    #[error("{what} is not UTF-8: damaged, download it again or convert the model again")]
    NotUtf8 { what: String },
    #[error("metadata key {0:?} appears twice: convert the model again")]
    DuplicateKey(String),
    #[error("tensor {0:?} appears twice: convert the model again")]
    DuplicateTensor(String),
    #[error("metadata key {key:?} has unknown value type {kind}: convert the model again with a current converter")]
    ValueType { key: String, kind: u32 },
    #[error("metadata key {key:?} is an array of arrays, which no model needs: convert the model again")]
    NestedArray { key: String },
    #[error("metadata key {key:?} holds the boolean {value}, neither 0 nor 1: damaged, download it again")]
    Boolean { key: String, value: u8 },
    #[error("general.alignment must be a power of two up to {ALIGNMENT_BYTES_MAX}, not {0}: convert the model again")]
    Alignment(String),
    #[error("tensor {tensor:?} has {dims} dimensions (1 to {DIMS_MAX} are possible): damaged, download it again")]
    Dimensions { tensor: String, dims: u32 },
    #[error("tensor {tensor:?} has type {kind}, which is unknown or withdrawn: quantize the model to a current type")]
    TensorType { tensor: String, kind: u32 },
    #[error("tensor {tensor:?} has an impossible shape {dims:?} for type {kind}: damaged, download it again")]
    Shape { tensor: String, dims: Vec<u64>, kind: GgmlType },
    #[error("tensor {tensor:?} starts at offset {offset}, no multiple of {alignment}: damaged, download it again")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("tensors {first:?} and {second:?} overlap in the file: damaged or hostile, do not use this file")]
    Overlap { first: String, second: String },
}

/// One metadata value. Integers of all widths are widened; arrays of numbers and booleans become `f64`s.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    Numbers(Vec<f64>),
}

/// Where a tensor lies in the file and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name, unique in its file.
    pub name: String,
    /// Shape in GGUF order: `dims[0]` is the number of columns (the contiguous dimension). 1 to 4 entries, each >= 1.
    pub dims: Vec<u64>,
    /// How elements are stored.
    pub kind: GgmlType,
    /// The tensor's bytes: absolute offsets in the file, inside it and apart from every other tensor's.
    pub bytes: Range<u64>,
}

impl TensorInfo {
    /// The number of elements. It cannot overflow: the shape was checked against the file's size.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// A parsed and checked header.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: BTreeMap<String, usize>,
    header_bytes: u64,
}

impl Gguf {
    /// Reads the header of the file at `path`, and no more of it. At most [`HEADER_BYTES_MAX`] bytes are read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| GgufError::Io { path: path.to_owned(), source })?;
        Self::from_file(&file, path)
    }

    /// The same of an open file, from its cursor on; `path` is what errors say.
    pub(crate) fn from_file(file: &File, path: &Path) -> Result<Self, GgufError> {
        let failed = |source| GgufError::Io { path: path.to_owned(), source };
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        read::header(io::BufReader::with_capacity(1 << 16, file), facts.len(), path)
    }

    /// Parses a header from `bytes`, the beginning (or all) of a file of `file_bytes` bytes.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Self, GgufError> {
        read::header(bytes, file_bytes.max(bytes.len() as u64), Path::new("<memory>"))
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes in front of the first tensor: the length of the header, padded to the alignment.
    pub fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// The metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The string at `key`; `None` when it is absent or something else.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The non-negative integer at `key`, of whatever width; `None` when it is absent, negative or something else.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The floating-point number at `key`; `None` when it is absent or something else.
    pub fn f32(&self, key: &str) -> Option<f32> {
        match self.metadata.get(key)? {
            Value::Float(number) => Some(*number as f32),
            _ => None,
        }
    }

    /// The boolean at `key`; `None` when it is absent or something else.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The array of strings at `key`; `None` when it is absent or something else.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key)? {
            Value::Strings(values) => Some(values),
            _ => None,
        }
    }

    /// The array of numbers at `key`, whatever their type (64-bit integers above 2^53 are rounded); `None` when it is
    /// absent or something else.
    pub fn numbers(&self, key: &str) -> Option<&[f64]> {
        match self.metadata.get(key)? {
            Value::Numbers(values) => Some(values),
            _ => None,
        }
    }

    /// The tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    /// Reads one tensor's bytes by positioned reads, so several threads may share `file`. Fails with `UnexpectedEof`
    /// when the file has shrunk since its header was read.
    pub fn read_tensor(&self, file: &File, tensor: &TensorInfo) -> io::Result<Vec<u8>> {
        let len = usize::try_from(tensor.bytes.end - tensor.bytes.start).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|why| io::Error::new(io::ErrorKind::OutOfMemory, why))?;
        bytes.resize(len, 0);
        file.read_exact_at(&mut bytes, tensor.bytes.start)?;
        Ok(bytes)
    }
}
