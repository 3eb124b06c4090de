//! The way onto the shelf: bytes are hashed while they are copied, checked against what was promised, made to last and
//! renamed into place. A file is never seen before it is verified.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{GGUF, PACKED, Record, Shelf, ShelfError, Shelved, Staging, staging};
use crate::digest::{Sha256Hash, WeightsHash};
use crate::files;

/// How much is copied at a time, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// What a publisher says of a weights file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Its SHA-256.
    pub sha256: Sha256Hash,
    /// Its size, if known.
    pub bytes: Option<u64>,
    /// The size of what must be downloaded for it, if known: an archive is smaller or larger than the file.
    pub download_bytes: Option<u64>,
}

/// How far a fetch has come. Within a phase `done_bytes` only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How much of it is done.
    pub done_bytes: u64,
    /// How much there is to do, if known.
    pub total_bytes: Option<u64>,
}

/// What a fetch is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Bytes come over the network.
    Downloading,
    /// The file is unpacked or copied, and hashed on the way.
    Copying,
    /// The file, already in place, is hashed.
    Verifying,
}

/// What is known of a file before it is admitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The source's text, remembered so that the file is not fetched again.
    pub(crate) text: Option<&'a str>,
    /// Its size, if known, for the progress.
    pub(crate) bytes: Option<u64>,
    /// What was promised.
    pub(crate) expect: Option<Digests>,
}

/// Both hashes of the bytes so far.
#[derive(Default)]
struct Hashes {
    blake3: blake3::Hasher,
    sha256: Sha256,
    bytes: u64,
}

impl Hashes {
    /// Reads `source` to its end, handing every chunk to `sink`; at most `bytes_max` bytes are accepted.
    fn read(
        &mut self,
        mut source: impl Read,
        source_path: &Path,
        bytes_max: u64,
        mut sink: impl FnMut(&[u8], u64) -> Result<(), ShelfError>,
    ) -> Result<(), ShelfError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let len = match source.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(why) if why.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(why) => return Err(ShelfError::reading(source_path, why)),
            };
            self.bytes += len as u64;
            if self.bytes > bytes_max {
                return Err(ShelfError::WrongSize { expected: bytes_max, found: self.bytes });
            }
            self.blake3.update(&chunk[..len]);
            self.sha256.update(&chunk[..len]);
            sink(&chunk[..len], self.bytes)?;
        }
    }

    fn finish(self) -> (WeightsHash, Sha256Hash, u64) {
        (WeightsHash(self.blake3.finalize().into()), Sha256Hash(self.sha256.finalize().into()), self.bytes)
    }
}

/// Hashes a file.
pub(super) fn hash_file(path: &Path) -> Result<(WeightsHash, Sha256Hash), ShelfError> {
    let file = File::open(path).map_err(|source| ShelfError::reading(path, source))?;
    let mut hashes = Hashes::default();
    hashes.read(file, path, u64::MAX, |_, _| Ok(()))?;
    let (blake3, sha256, _) = hashes.finish();
    Ok((blake3, sha256))
}

impl Staging {
    /// Copies `source` (read from `source_path`, for messages) onto the shelf.
    pub(crate) fn admit_copy(
        &self,
        shelf: &Shelf,
        source: impl Read,
        source_path: &Path,
        origin: &Origin<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Shelved, ShelfError> {
        let draft = self.path("weights");
        let failed = |source| ShelfError::writing(&draft, source);
        let mut file = File::create_new(&draft).map_err(failed)?;
        let mut hashes = Hashes::default();
        hashes.read(source, source_path, origin.bytes_max(), |chunk, done_bytes| {
            file.write_all(chunk).map_err(failed)?;
            progress(Progress { phase: Phase::Copying, done_bytes, total_bytes: origin.bytes });
            Ok(())
        })?;
        self.admit(shelf, &draft, &file, hashes, origin)
    }

    /// Moves the file at `draft`, which lies in this staging folder, onto the shelf.
    pub(crate) fn admit_move(
        &self,
        shelf: &Shelf,
        draft: &Path,
        origin: &Origin<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Shelved, ShelfError> {
        let file = File::open(draft).map_err(|source| ShelfError::reading(draft, source))?;
        let mut hashes = Hashes::default();
        hashes.read(&file, draft, origin.bytes_max(), |_, done_bytes| {
            progress(Progress { phase: Phase::Verifying, done_bytes, total_bytes: origin.bytes });
            Ok(())
        })?;
        self.admit(shelf, draft, &file, hashes, origin)
    }

    fn admit(
        &self,
        shelf: &Shelf,
        draft: &Path,
        file: &File,
        hashes: Hashes,
        origin: &Origin<'_>,
    ) -> Result<Shelved, ShelfError> {
        let (hash, sha256, bytes) = hashes.finish();
        if let Some(expected) = origin.bytes_promised().filter(|expected| *expected != bytes) {
            return Err(ShelfError::WrongSize { expected, found: bytes });
        }
        if let Some(Digests { sha256: expected, .. }) = origin.expect.filter(|e| e.sha256 != sha256) {
            return Err(ShelfError::WrongHash { expected, found: sha256 });
        }
        let packed = File::open(draft).and_then(|draft| files::is_packed(&draft));
        let packed = packed.map_err(|source| ShelfError::reading(draft, source))?;
        let path = shelf.weights_path_as(&hash, if packed { PACKED } else { GGUF });
        file.sync_all().map_err(|source| ShelfError::writing(draft, source))?;
        // Also over a file that is there: whatever it holds by now, this one holds what its name says.
        staging::place(draft, &path)?;
        let facts = fs::metadata(&path).map_err(|source| ShelfError::reading(&path, source))?;
        let mut record = Record::load(&path).unwrap_or_default();
        record.sha256 = Some(sha256);
        record.verified(&facts);
        origin.text.into_iter().for_each(|text| record.came_from(text));
        record.store(shelf, &path)?;
        Ok(Shelved { hash, path, bytes, origins: record.origins })
    }
}

impl Origin<'_> {
    /// The size, as the publisher or else the source stated it.
    fn bytes_promised(&self) -> Option<u64> {
        self.expect.and_then(|expect| expect.bytes).or(self.bytes)
    }

    /// More bytes than this are wrong, whatever their hash.
    fn bytes_max(&self) -> u64 {
        self.bytes_promised().unwrap_or(u64::MAX)
    }
}
