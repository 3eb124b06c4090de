//! The archive that a folder is packed as: POSIX ustar, in the one form that [`super::Packer`] writes. Anything else is
//! refused, so that no path, link or second copy of a file can be smuggled in, and the same files have the same hash.
//!
//! ```text
//! header 512 | bytes, padded with zeros to 512   for each file, sorted by name
//! zeros 1024
//! ```

use std::{fs::File, io, os::unix::fs::FileExt};

use super::FilesError;

/// The unit of the format, in bytes.
pub(super) const RECORD: u64 = 512;
/// The records of zeros at the end.
pub(super) const END: u64 = 2 * RECORD;
/// The longest name, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 100;
/// The most files accepted: shards, and some small ones.
const MEMBERS_MAX: usize = crate::safetensors::SHARDS_MAX + 32;

/// A file in the archive: its name, where its bytes begin, how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) at: u64,
    pub(super) len: u64,
}

/// Whether the file begins as such an archive does. One that is too short does not.
pub(super) fn is_archive(file: &File) -> io::Result<bool> {
    let mut magic = [0; 8];
    match file.read_exact_at(&mut magic, 257) {
        Ok(()) => Ok(&magic == b"ustar\x0000"),
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(why) => Err(why),
    }
}

/// The header of a file: mode 644, no owner, no time. Sizes of 8 GiB and more are binary, as GNU's are.
pub(super) fn header(name: &str, len: u64) -> [u8; RECORD as usize] {
    assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX, "names were checked");
    let mut header = [0; RECORD as usize];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    match len < 1 << 33 {
        true => put(124, format!("{len:011o}\0").as_bytes()),
        false => {
            put(124, &[0x80, 0, 0, 0]);
            put(128, &len.to_be_bytes());
        }
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The zeros after a file of `len` bytes.
pub(super) fn padding(len: u64) -> u64 {
    len.wrapping_neg() % RECORD
}

/// All members of an archive. Names are sorted, short and plain ASCII; whether they are wanted is the caller's question.
pub(super) fn members(file: &File, bytes: u64) -> Result<Vec<Member>, FilesError> {
    let (mut members, mut at) = (Vec::<Member>::new(), 0u64);
    let mut record = [0; RECORD as usize];
    let ends = || FilesError::Archive("it ends too early");
    loop {
        file.read_exact_at(&mut record, at).map_err(|_| ends())?;
        if record == [0; RECORD as usize] {
            break;
        }
        let (name, len) = name_and_len(&record).ok_or(FilesError::Archive("a header is damaged"))?;
        if header(name, len) != record {
            return Err(FilesError::Archive("a header says more than a name and a size"));
        }
        if members.last().is_some_and(|last| last.name.as_str() >= name) {
            return Err(FilesError::Archive("names are not sorted"));
        }
        if members.len() == MEMBERS_MAX {
            return Err(FilesError::Archive("it has too many files"));
        }
        let start = at + RECORD;
        let end = start.checked_add(len).filter(|end| *end <= bytes).ok_or_else(ends)?;
        at = end + padding(len);
        zeros(file, end, padding(len))?;
        members.push(Member { name: name.to_owned(), at: start, len });
    }
    zeros(file, at, END)?;
    match at + END == bytes {
        true => Ok(members),
        false => Err(FilesError::Archive("something follows its end")),
    }
}

fn name_and_len(record: &[u8; RECORD as usize]) -> Option<(&str, u64)> {
    let name = &record[..NAME_BYTES_MAX];
    let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES_MAX)];
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty() && name.is_ascii())?;
    let size: &[u8; 12] = record[124..136].try_into().ok()?;
    let len = match size[0] {
        0x80 => u64::from_be_bytes(size[4..].try_into().ok()?),
        _ => u64::from_str_radix(std::str::from_utf8(&size[..11]).ok()?, 8).ok()?,
    };
    Some((name, len))
}

fn zeros(file: &File, at: u64, len: u64) -> Result<(), FilesError> {
    let mut bytes = [0; END as usize];
    let bytes = &mut bytes[..len as usize];
    file.read_exact_at(bytes, at).map_err(|_| FilesError::Archive("it ends too early"))?;
    match bytes.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err(FilesError::Archive("there is something between its files")),
    }
}
