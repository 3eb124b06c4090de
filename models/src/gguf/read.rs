//! Reads a GGUF header from bytes that nobody vouches for. It never allocates more than the bytes still to come allow.

use std::{collections::BTreeMap, io, path::Path};

use super::{
    ALIGNMENT_BYTES_DEFAULT, ALIGNMENT_BYTES_MAX, ARRAY_ELEMENTS_MAX, DIMS_MAX, GgmlType, Gguf, GgufError,
    HEADER_BYTES_MAX, KEYS_MAX, STRING_BYTES_MAX, TENSORS_MAX, TensorInfo, Value,
};

/// Value type codes of the GGUF specification.
mod code {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// A tensor as the header declares it, before its place in the file is known.
struct Declared {
    name: String,
    dims: Vec<u64>,
    kind: GgmlType,
    offset: u64,
    bytes: u64,
}

/// Reads and checks a whole header. `source` need hold no more than the header; `file_bytes` is the whole file's size.
pub(super) fn header(source: impl io::Read, file_bytes: u64, path: &Path) -> Result<Gguf, GgufError> {
    let mut reader = Reader { source, position: 0, file_bytes, elements_left: ARRAY_ELEMENTS_MAX, path };
    let found: [u8; 4] = reader.bytes("the file's magic")?;
    if &found != b"GGUF" {
        return Err(GgufError::Magic { found });
    }
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
        _ => return Err(GgufError::Version(version)),
    }
    let tensor_count = reader.count("the tensor count", TENSORS_MAX)?;
    let key_count = reader.count("the key count", KEYS_MAX)?;
    let metadata = read_metadata(&mut reader, key_count)?;
    let alignment = alignment(&metadata)?;
    let mut declared = Vec::new();
    for _ in 0..tensor_count {
        declared.push(read_tensor(&mut reader, alignment)?);
    }
    let header_bytes = reader.position.next_multiple_of(alignment);
    let tensors = place_tensors(declared, header_bytes, file_bytes)?;
    let mut by_name = BTreeMap::new();
    for (index, tensor) in tensors.iter().enumerate() {
        if by_name.insert(tensor.name.clone(), index).is_some() {
            return Err(GgufError::DuplicateTensor(tensor.name.clone()));
        }
    }
    Ok(Gguf { version, metadata, tensors, by_name, header_bytes })
}

fn read_metadata(reader: &mut Reader<'_, impl io::Read>, count: u64) -> Result<BTreeMap<String, Value>, GgufError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.string("a metadata key")?;
        let kind = reader.u32(&key)?;
        let value = reader.value(&key, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(GgufError::DuplicateKey(key));
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT_BYTES_DEFAULT),
        Some(Value::Unsigned(bytes)) if bytes.is_power_of_two() && *bytes <= ALIGNMENT_BYTES_MAX => Ok(*bytes),
        Some(Value::Unsigned(bytes)) => Err(GgufError::Alignment(bytes.to_string())),
        Some(_) => Err(GgufError::Alignment("something that is no unsigned integer".to_owned())),
    }
}

fn read_tensor(reader: &mut Reader<'_, impl io::Read>, alignment: u64) -> Result<Declared, GgufError> {
    let name = reader.string("a tensor's name")?;
    let dim_count = reader.u32(&name)?;
    if dim_count == 0 || dim_count > DIMS_MAX {
        return Err(GgufError::Dimensions { tensor: name, dims: dim_count });
    }
    let mut dims = Vec::with_capacity(dim_count as usize);
    for _ in 0..dim_count {
        dims.push(reader.u64(&name)?);
    }
    let kind_code = reader.u32(&name)?;
    let offset = reader.u64(&name)?;
    let Some(kind) = GgmlType::from_code(kind_code) else {
        return Err(GgufError::TensorType { tensor: name, kind: kind_code });
    };
    let bytes = kind.tensor_bytes(&dims).filter(|bytes| *bytes > 0 && !dims.contains(&0));
    let Some(bytes) = bytes else {
        return Err(GgufError::Shape { tensor: name, dims, kind });
    };
    if offset % alignment != 0 {
        return Err(GgufError::Misaligned { tensor: name, offset, alignment });
    }
    Ok(Declared { name, dims, kind, offset, bytes })
}

/// Turns offsets into absolute ranges and proves that they lie inside the file and apart from each other.
fn place_tensors(declared: Vec<Declared>, start: u64, file_bytes: u64) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = Vec::with_capacity(declared.len());
    for Declared { name, dims, kind, offset, bytes } in declared {
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= file_bytes => {
                tensors.push(TensorInfo { name, dims, kind, bytes: begin..end });
            }
            _ => {
                let what = format!("tensor {name:?}");
                return Err(GgufError::Truncated { what, end: end.unwrap_or(u64::MAX), have: file_bytes });
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    if let Some(pair) = order.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start) {
        return Err(GgufError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
    }
    Ok(tensors)
}

/// A reader that knows how much may still come.
struct Reader<'a, R> {
    source: R,
    position: u64,
    file_bytes: u64,
    elements_left: u64,
    path: &'a Path,
}

impl<R: io::Read> Reader<'_, R> {
    /// Refuses `len` more bytes where the file or the header's bound ends before them.
    fn expect(&self, len: u64, what: &str) -> Result<(), GgufError> {
        let end = self.position.saturating_add(len);
        if end > self.file_bytes {
            return Err(GgufError::Truncated { what: self.named(what), end, have: self.file_bytes });
        }
        if end > HEADER_BYTES_MAX {
            return Err(GgufError::HeaderTooLong { what: self.named(what) });
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), GgufError> {
        let len = buffer.len() as u64;
        self.expect(len, what)?;
        self.source.read_exact(buffer).map_err(|source| match source.kind() {
            // The file shrank while it was read, or `parse` was given less than the header.
            io::ErrorKind::UnexpectedEof => {
                GgufError::Truncated { what: self.named(what), end: self.position + len, have: self.position }
            }
            _ => GgufError::Io { path: self.path.to_owned(), source },
        })?;
        self.position += len;
        Ok(())
    }

    /// Names a place in messages; hostile names are cut so that an error stays one readable line.
    fn named(&self, what: &str) -> String {
        format!("the header at {:?}", what.chars().take(80).collect::<String>())
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut buffer = [0; N];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, GgufError> {
        let count = self.u64(what)?;
        if count > max { Err(GgufError::TooMany { what: what.to_owned(), count, max }) } else { Ok(count) }
    }

    fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let len = self.u64(what)?;
        if len > STRING_BYTES_MAX {
            let what = format!("bytes of a string in {}", self.named(what));
            return Err(GgufError::TooMany { what, count: len, max: STRING_BYTES_MAX });
        }
        self.expect(len, what)?;
        let mut buffer = vec![0; len as usize];
        self.fill(&mut buffer, what)?;
        String::from_utf8(buffer).map_err(|_| GgufError::NotUtf8 { what: self.named(what) })
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            code::U8 => Value::Unsigned(self.bytes::<1>(key)?[0].into()),
            code::I8 => Value::Signed(i8::from_le_bytes(self.bytes(key)?).into()),
            code::U16 => Value::Unsigned(u16::from_le_bytes(self.bytes(key)?).into()),
            code::I16 => Value::Signed(i16::from_le_bytes(self.bytes(key)?).into()),
            code::U32 => Value::Unsigned(self.u32(key)?.into()),
            code::I32 => Value::Signed(i32::from_le_bytes(self.bytes(key)?).into()),
            code::F32 => Value::Float(f32::from_le_bytes(self.bytes(key)?).into()),
            code::U64 => Value::Unsigned(self.u64(key)?),
            code::I64 => Value::Signed(i64::from_le_bytes(self.bytes(key)?)),
            code::F64 => Value::Float(f64::from_le_bytes(self.bytes(key)?)),
            code::STRING => Value::String(self.string(key)?),
            code::BOOL => match self.bytes::<1>(key)?[0] {
                value @ (0 | 1) => Value::Bool(value == 1),
                value => return Err(GgufError::Boolean { key: key.to_owned(), value }),
            },
            code::ARRAY => self.array(key)?,
            kind => return Err(GgufError::ValueType { key: key.to_owned(), kind }),
        })
    }

    fn array(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        // An element's least size in the file: it bounds what a claimed count can make us allocate.
        let element_bytes = match kind {
            code::U8 | code::I8 | code::BOOL => 1,
            code::U16 | code::I16 => 2,
            code::U32 | code::I32 | code::F32 => 4,
            code::U64 | code::I64 | code::F64 | code::STRING => 8,
            code::ARRAY => return Err(GgufError::NestedArray { key: key.to_owned() }),
            kind => return Err(GgufError::ValueType { key: key.to_owned(), kind }),
        };
        if count > self.elements_left {
            let what = format!("array elements in {}", self.named(key));
            return Err(GgufError::TooMany { what, count, max: self.elements_left });
        }
        self.elements_left -= count;
        self.expect(count.saturating_mul(element_bytes), key)?;
        if kind == code::STRING {
            let mut strings = Vec::with_capacity(count as usize);
            for _ in 0..count {
                strings.push(self.string(key)?);
            }
            return Ok(Value::Strings(strings));
        }
        let mut numbers = Vec::with_capacity(count as usize);
        for _ in 0..count {
            numbers.push(match self.value(key, kind)? {
                Value::Unsigned(number) => number as f64,
                Value::Signed(number) => number as f64,
                Value::Float(number) => number,
                Value::Bool(value) => f64::from(u8::from(value)),
                Value::String(_) | Value::Strings(_) | Value::Numbers(_) => unreachable!("excluded by element_bytes"),
            });
        }
        Ok(Value::Numbers(numbers))
    }
}
