//! Writes GGUF files (version 3): for publishing tools and for tests that need a small model. It never quantizes.

use std::{fs::File, io, io::Write as _, path::Path};

use super::{ALIGNMENT_BYTES_DEFAULT, GgmlType};

/// Collects metadata and tensors, then writes them. Methods chain: `GgufWriter::new().meta_u32("k", 1).write(path)`.
#[derive(Debug, Clone, Default)]
pub struct GgufWriter {
    keys: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
    /// Tensors whose data come when the file is written, and how many bytes that will be.
    promised: Vec<(String, GgmlType, u64)>,
    promised_bytes: u64,
}

impl GgufWriter {
    /// A file without metadata or tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a string.
    pub fn meta_str(self, key: &str, value: &str) -> Self {
        self.meta(key, 8, &string(value))
    }

    /// Adds a 32-bit unsigned integer.
    pub fn meta_u32(self, key: &str, value: u32) -> Self {
        self.meta(key, 4, &value.to_le_bytes())
    }

    /// Adds a 64-bit unsigned integer.
    pub fn meta_u64(self, key: &str, value: u64) -> Self {
        self.meta(key, 10, &value.to_le_bytes())
    }

    /// Adds a 32-bit float.
    pub fn meta_f32(self, key: &str, value: f32) -> Self {
        self.meta(key, 6, &value.to_le_bytes())
    }

    /// Adds a boolean.
    pub fn meta_bool(self, key: &str, value: bool) -> Self {
        self.meta(key, 7, &[u8::from(value)])
    }

    /// Adds an array of strings.
    pub fn meta_strings<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let mut payload = array(8, values.len());
        values.iter().for_each(|value| payload.extend(string(value.as_ref())));
        self.meta(key, 9, &payload)
    }

    /// Adds an array of 32-bit floats.
    pub fn meta_f32s(self, key: &str, values: &[f32]) -> Self {
        let mut payload = array(6, values.len());
        values.iter().for_each(|value| payload.extend(value.to_le_bytes()));
        self.meta(key, 9, &payload)
    }

    /// Adds an array of 32-bit signed integers.
    pub fn meta_i32s(self, key: &str, values: &[i32]) -> Self {
        let mut payload = array(5, values.len());
        values.iter().for_each(|value| payload.extend(value.to_le_bytes()));
        self.meta(key, 9, &payload)
    }

    fn meta(mut self, key: &str, kind: u32, payload: &[u8]) -> Self {
        self.keys += 1;
        self.metadata.extend(string(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(payload);
        self
    }

    /// Adds a tensor: `dims` in GGUF order (`dims[0]` contiguous), `data` already in the layout of `kind`.
    ///
    /// # Panics
    /// When `data` is not as long as the shape asks: that is the caller's mistake, not the world's.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: GgmlType, data: &[u8]) -> Self {
        assert_eq!(kind.tensor_bytes(dims), Some(data.len() as u64), "tensor {name} {dims:?} of type {kind}");
        assert!(self.promised.is_empty(), "tensor {name} comes before those whose data come later");
        self.info(name, dims, kind, self.data.len() as u64);
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT_BYTES_DEFAULT as usize), 0);
        self
    }

    /// Adds a tensor whose data [`GgufWriter::write_filling`] asks for: for models that do not fit in memory twice.
    ///
    /// # Panics
    /// When the shape is none that the type can have.
    pub fn promise(mut self, name: &str, dims: &[u64], kind: GgmlType) -> Self {
        let bytes = kind.tensor_bytes(dims).unwrap_or_else(|| panic!("tensor {name} {dims:?} of type {kind}"));
        self.info(name, dims, kind, self.data.len() as u64 + self.promised_bytes);
        self.promised.push((name.to_owned(), kind, bytes));
        self.promised_bytes += bytes.next_multiple_of(ALIGNMENT_BYTES_DEFAULT);
        self
    }

    fn info(&mut self, name: &str, dims: &[u64], kind: GgmlType, offset: u64) {
        self.tensors += 1;
        self.infos.extend(string(name));
        self.infos.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.infos.extend(dim.to_le_bytes()));
        self.infos.extend(kind.code().to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
    }

    /// The file's bytes, without those of promised tensors.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.infos);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_BYTES_DEFAULT as usize), 0);
        bytes.extend(&self.data);
        bytes
    }

    /// Writes the file, replacing what was at `path`.
    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&self.to_bytes())?;
        file.sync_all()
    }
}

impl GgufWriter {
    /// Writes the file and has `fill` write exactly so many bytes for each promised tensor, by its name and type, in order.
    pub fn write_filling(
        &self,
        path: impl AsRef<Path>,
        mut fill: impl FnMut(&str, GgmlType, u64, &mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut file = io::BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&self.to_bytes())?;
        for (name, kind, bytes) in &self.promised {
            let mut counted = Counted { to: &mut file, bytes: 0 };
            fill(name, *kind, *bytes, &mut counted)?;
            if counted.bytes != *bytes {
                return Err(io::Error::other(format!("{name} has {bytes} bytes and {} came", counted.bytes)));
            }
            let padding = bytes.next_multiple_of(ALIGNMENT_BYTES_DEFAULT) - bytes;
            file.write_all(&vec![0; padding as usize])?;
        }
        file.flush()
    }
}

/// Counts what is written through it.
struct Counted<W> {
    to: W,
    bytes: u64,
}

impl<W: io::Write> io::Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn array(kind: u32, len: usize) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((len as u64).to_le_bytes());
    bytes
}
