//! Reads one file's header from bytes that nobody vouches for.

use std::{collections::BTreeSet, fmt, io, path::Path};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{DIMS_MAX, Dtype, HEADER_BYTES_MAX, NAME_BYTES_MAX, SafeTensor, SafetensorsError, TENSORS_MAX};

/// Reads and checks a header; `source` need hold no more than it, `file_bytes` is the whole file's size.
pub(super) fn read(
    mut source: impl io::Read,
    file_bytes: u64,
    path: &Path,
    shard: usize,
) -> Result<Vec<SafeTensor>, SafetensorsError> {
    let failed = |source: io::Error, end| match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            SafetensorsError::Truncated { what: "the header".to_owned(), end, have: file_bytes }
        }
        _ => SafetensorsError::Io { path: path.to_owned(), source },
    };
    let mut len = [0; 8];
    source.read_exact(&mut len).map_err(|why| failed(why, 8))?;
    let len = u64::from_le_bytes(len);
    if len > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderLength(len));
    }
    let start = 8 + len;
    if start > file_bytes {
        return Err(SafetensorsError::Truncated { what: "the header".to_owned(), end: start, have: file_bytes });
    }
    let mut json = vec![0; len as usize];
    source.read_exact(&mut json).map_err(|why| failed(why, start))?;
    if json.first() != Some(&b'{') {
        return Err(SafetensorsError::Header("it does not begin with a brace".to_owned()));
    }
    let Header(entries) = serde_json::from_slice(&json).map_err(|why| SafetensorsError::Header(why.to_string()))?;
    place(entries, start, file_bytes, shard)
}

/// Turns offsets into absolute ranges, and proves that they cover the rest of the file, each byte once.
fn place(
    entries: Vec<(String, Entry)>,
    start: u64,
    file_bytes: u64,
    shard: usize,
) -> Result<Vec<SafeTensor>, SafetensorsError> {
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, Entry { dtype, shape, data_offsets: [begin, end] }) in entries {
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, dim| bytes.checked_mul(*dim));
        // The product of the others must not overflow either where one dimension is zero.
        let elements = shape.iter().try_fold(1u64, |elements, dim| elements.checked_mul((*dim).max(1)));
        let len = end.checked_sub(begin);
        if shape.len() > DIMS_MAX || elements.is_none() || len.is_none() || bytes != len {
            let bytes = len.unwrap_or(0);
            return Err(SafetensorsError::Shape { tensor: name, shape, dtype: dtype.name(), bytes });
        }
        match (start.checked_add(begin), start.checked_add(end)) {
            (Some(begin), Some(end)) if end <= file_bytes => {
                tensors.push(SafeTensor { name, shape, dtype, shard, bytes: begin..end });
            }
            (_, end) => {
                let what = format!("tensor {name:?}");
                return Err(SafetensorsError::Truncated { what, end: end.unwrap_or(u64::MAX), have: file_bytes });
            }
        }
    }
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    let mut at = start;
    for tensor in &tensors {
        if tensor.bytes.start != at {
            return Err(SafetensorsError::Layout { tensor: tensor.name.clone(), at });
        }
        at = tensor.bytes.end;
    }
    if at != file_bytes {
        return Err(SafetensorsError::Layout { tensor: "the end".to_owned(), at });
    }
    Ok(tensors)
}

/// A tensor as the header declares it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(deserialize_with = "dtype")]
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
    let name = String::deserialize(deserializer)?;
    let found = Dtype::ALL.iter().find(|dtype| dtype.name() == name);
    found.copied().ok_or_else(|| {
        let name: String = name.chars().take(20).collect();
        D::Error::custom(format!("the type {name:?} is not supported: convert the model to BF16, F16 or F32"))
    })
}

/// All entries in order; a name that appears twice is an error, not the last one's.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name.len() > NAME_BYTES_MAX || entries.len() >= TENSORS_MAX {
                        return Err(A::Error::custom("too many tensors, or a name too long"));
                    }
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name:?} appears twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
