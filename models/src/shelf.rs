//! Weights on this machine, by the hash of their contents, and the manifests that name them. It fetches nothing.
//!
//! ```text
//! weights/<blake3>.gguf   never written in place: files are admitted whole, by rename
//! weights/<blake3>.tar    a packed folder, see `files.rs`
//! weights/<blake3>.json   what was verified when, and where the file came from
//! manifests/<name>.json   signed manifests
//! staging/<name>/         work in progress, each with a lock held by the process that works in it
//! lock                    taken briefly by whoever makes or cleans staging folders
//! ```
//!
//! Several processes may use one shelf at once: finished files never change, and unfinished ones are nobody else's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    digest::{Sha256Hash, WeightsHash},
    manifest::{JSON_BYTES_MAX, ManifestError, SignedManifest, check_name},
};

mod intake;
mod record;
mod staging;
#[cfg(test)]
mod tests;

pub(crate) use intake::Origin;
pub use intake::{Digests, Phase, Progress};
use record::Record;
pub(crate) use staging::Staging;

/// How the names of GGUF files end here.
const GGUF: &str = ".gguf";
/// How the names of packed folders end here.
const PACKED: &str = ".tar";

/// What went wrong on the shelf. Paths and remedies are in the messages.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum ShelfError {
    #[error("the disk is full while writing {}: free some space or choose another data directory", path.display())]
    Full { path: PathBuf },
    #[error("cannot write {}: {source}; make it writable or choose another data directory", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not what its name says (hash {found}): it was changed or damaged; delete it and fetch it again",
        path.display())]
    Changed { path: PathBuf, found: WeightsHash },
    #[error("wrong hash: SHA-256 {expected} was promised, {found} came: damaged or replaced, nothing was kept")]
    WrongHash { expected: Sha256Hash, found: Sha256Hash },
    #[error("wrong size: {expected} bytes were promised, {found} came: incomplete or replaced, nothing was kept")]
    WrongSize { expected: u64, found: u64 },
    #[error("{}: {source}", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error(transparent)]
    Name(#[from] ManifestError),
}

impl ShelfError {
    /// Classifies an error of writing at `path`.
    pub(crate) fn writing(path: &Path, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let path = path.to_owned();
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::Full { path },
            PermissionDenied | ReadOnlyFilesystem => Self::Unwritable { path, source },
            _ => Self::Io { doing: "cannot write", path, source },
        }
    }

    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        Self::Io { doing: "cannot read", path: path.to_owned(), source }
    }
}

/// A file on the shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelved {
    /// Its name.
    pub hash: WeightsHash,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Where it came from, as far as known.
    pub origins: Vec<String>,
}

/// A folder of weights and manifests.
#[derive(Debug, Clone)]
pub struct Shelf {
    root: PathBuf,
}

impl Shelf {
    /// Opens the shelf at `dir`, making it where there is none, and removes what dead processes left unfinished.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ShelfError> {
        let shelf = Self { root: dir.into() };
        for folder in [shelf.root.join("weights"), shelf.root.join("manifests"), shelf.root.join("staging")] {
            fs::create_dir_all(&folder).map_err(|source| ShelfError::writing(&folder, source))?;
        }
        staging::clean(&shelf.root)?;
        Ok(shelf)
    }

    /// The folder given to [`Shelf::open`].
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the weights of that hash lie, or would lie. See [`Shelf::find`].
    pub fn weights_path(&self, hash: &WeightsHash) -> PathBuf {
        let packed = self.weights_path_as(hash, PACKED);
        if packed.exists() { packed } else { self.weights_path_as(hash, GGUF) }
    }

    fn weights_path_as(&self, hash: &WeightsHash, suffix: &str) -> PathBuf {
        self.root.join("weights").join(format!("{hash}{suffix}"))
    }

    /// The verified weights of that hash; `None` when they are not here. A file that was not touched since its last
    /// verification is not read again; one that was is hashed, and refused if it changed.
    pub fn find(&self, hash: &WeightsHash) -> Result<Option<Shelved>, ShelfError> {
        let path = self.weights_path(hash);
        let facts = match fs::metadata(&path) {
            Ok(facts) => facts,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ShelfError::reading(&path, source)),
        };
        let mut record = Record::load(&path).unwrap_or_default();
        if !record.covers(&facts) {
            let (found, sha256) = intake::hash_file(&path)?;
            if found != *hash {
                return Err(ShelfError::Changed { path, found });
            }
            record.sha256 = Some(sha256);
            record.verified(&facts);
            // A shelf that cannot be written can still be read: the next start only hashes again.
            if let Err(why) = record.store(self, &path) {
                tracing::warn!("{why}");
            }
        }
        Ok(Some(Shelved { hash: *hash, path, bytes: facts.len(), origins: record.origins }))
    }

    /// The verified weights with that SHA-256, if they are here and were hashed before.
    pub fn find_sha256(&self, sha256: &Sha256Hash) -> Result<Option<Shelved>, ShelfError> {
        self.find_recorded(|record| record.sha256 == Some(*sha256))
    }

    /// The verified weights that came from `origin`, a source as text.
    pub fn find_origin(&self, origin: &str) -> Result<Option<Shelved>, ShelfError> {
        self.find_recorded(|record| record.origins.iter().any(|from| from == origin))
    }

    fn find_recorded(&self, wanted: impl Fn(&Record) -> bool) -> Result<Option<Shelved>, ShelfError> {
        for hash in self.hashes()? {
            if Record::load(&self.weights_path(&hash)).is_some_and(|record| wanted(&record)) {
                return self.find(&hash);
            }
        }
        Ok(None)
    }

    /// Copies the file at `path` onto the shelf and returns its name. Nothing is left behind where it fails.
    pub fn add_file(
        &self,
        path: impl AsRef<Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<WeightsHash, ShelfError> {
        let path = path.as_ref();
        let file = fs::File::open(path).map_err(|source| ShelfError::reading(path, source))?;
        let facts = file.metadata().map_err(|source| ShelfError::reading(path, source))?;
        if !facts.is_file() {
            return Err(ShelfError::reading(path, io::Error::other("not a regular file")));
        }
        let staging = Staging::new(self)?;
        let origin = Origin { text: None, bytes: Some(facts.len()), expect: None };
        Ok(staging.admit_copy(self, file, path, &origin, progress)?.hash)
    }

    /// The weights here, by hash, without verifying them.
    pub fn list(&self) -> Result<Vec<Shelved>, ShelfError> {
        let mut list = Vec::new();
        for hash in self.hashes()? {
            let path = self.weights_path(&hash);
            let bytes = fs::metadata(&path).map_err(|source| ShelfError::reading(&path, source))?.len();
            let origins = Record::load(&path).unwrap_or_default().origins;
            list.push(Shelved { hash, path, bytes, origins });
        }
        Ok(list)
    }

    fn hashes(&self) -> Result<Vec<WeightsHash>, ShelfError> {
        let folder = self.root.join("weights");
        let names = [names(&folder, GGUF)?, names(&folder, PACKED)?].concat();
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Keeps a manifest under its name, replacing an older one. It is verified first.
    pub fn put_manifest(&self, signed: &SignedManifest) -> Result<(), ShelfError> {
        signed.verify()?;
        staging::write_whole(self, &self.manifest_path(&signed.manifest.name), &signed.to_json())
    }

    /// The manifest of that name, verified; `None` when there is none.
    pub fn manifest(&self, name: &str) -> Result<Option<SignedManifest>, ShelfError> {
        check_name(name)?;
        let path = self.manifest_path(name);
        let json = match read_bounded(&path, JSON_BYTES_MAX as u64 + 1) {
            Ok(json) => json,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ShelfError::reading(&path, source)),
        };
        let signed = SignedManifest::from_json(&json);
        let signed = signed.map_err(|source| ShelfError::Manifest { path: path.clone(), source })?;
        if signed.manifest.name != name {
            let source = ManifestError::Name(signed.manifest.name);
            return Err(ShelfError::Manifest { path, source });
        }
        Ok(Some(signed))
    }

    /// All manifests here, by name.
    pub fn manifests(&self) -> Result<Vec<SignedManifest>, ShelfError> {
        let names = names(&self.root.join("manifests"), ".json")?;
        names.iter().filter_map(|name| self.manifest(name).transpose()).collect()
    }

    fn manifest_path(&self, name: &str) -> PathBuf {
        self.root.join("manifests").join(format!("{name}.json"))
    }
}

/// The sorted names in `folder` that end in `suffix`, without it.
fn names(folder: &Path, suffix: &str) -> Result<Vec<String>, ShelfError> {
    let failed = |source| ShelfError::reading(folder, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(suffix)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The file's first `bytes_max` bytes: whole files are expected to be shorter.
fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, bytes_max), &mut bytes)?;
    Ok(bytes)
}
