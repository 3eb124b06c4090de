//! Packs a folder: chooses the files that matter, and streams them as one archive. It changes and checks no file's text.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{FilesError, archive};
use crate::safetensors::{HEADER_BYTES_MAX, INDEX, SINGLE, SafeTensors};

/// What a folder may hold beside its weights, with the longest length accepted of each, in bytes.
pub(crate) const SMALL_FILES: &[(&str, u64)] = &[
    (CONFIG, 1 << 20),
    (TOKENIZER, 64 << 20),
    (TOKENIZER_CONFIG, 64 << 20),
    (CHAT_TEMPLATE, 1 << 20),
    (GENERATION_CONFIG, 1 << 20),
    (POOLING, 1 << 20),
    (MODULES, 1 << 20),
    ("quantize_config.json", 1 << 20),
    ("sentence_bert_config.json", 1 << 20),
    (INDEX, HEADER_BYTES_MAX),
];

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const POOLING: &str = "1_Pooling/config.json";
pub(super) const MODULES: &str = "modules.json";

/// A file of a folder that belongs into its archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Its path in the folder.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) len: u64,
}

/// Reads as the archive of a folder, see the module above. What it reads depends on the files' names and contents alone.
#[derive(Debug)]
pub struct Packer {
    /// Files still to come, the next one last.
    rest: Vec<Chosen>,
    /// What is being read: a header or the end from memory, then a file, then zeros.
    head: io::Cursor<Vec<u8>>,
    file: Option<io::Take<File>>,
    zeros: u64,
    bytes: u64,
    ended: bool,
}

impl Packer {
    /// Chooses the files of `folder`: `config.json`, the tokenizer's, those of `safetensors` weights. Refuses a folder
    /// that lacks what a model needs, and says what it is.
    pub fn new(folder: impl AsRef<Path>) -> Result<Self, FilesError> {
        let mut rest = choose(folder.as_ref())?;
        let padded = |file: &Chosen| archive::RECORD + file.len + archive::padding(file.len);
        let bytes = rest.iter().map(padded).sum::<u64>() + archive::END;
        rest.reverse();
        let head = io::Cursor::default();
        Ok(Self { rest, head, file: None, zeros: 0, bytes, ended: false })
    }

    /// The size of the whole archive.
    pub fn archive_bytes(&self) -> u64 {
        self.bytes
    }

    /// The files that were chosen: the paths at which they lie.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.rest.iter().rev().map(|file| file.path.as_path())
    }

    fn begin_next(&mut self) -> io::Result<()> {
        let Some(next) = self.rest.pop() else {
            self.ended = true;
            self.zeros = archive::END;
            return Ok(());
        };
        let file = File::open(&next.path)?;
        if file.metadata()?.len() != next.len {
            return Err(io::Error::other(format!("{} changed while it was read", next.path.display())));
        }
        self.head = io::Cursor::new(archive::header(&next.name, next.len).to_vec());
        self.file = Some(file.take(next.len));
        self.zeros = archive::padding(next.len);
        Ok(())
    }
}

impl Read for Packer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if out.is_empty() {
                return Ok(0);
            }
            match self.head.read(out)? {
                0 => {}
                len => return Ok(len),
            }
            if let Some(file) = &mut self.file {
                match file.read(out)? {
                    0 if file.limit() > 0 => {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter meanwhile"));
                    }
                    0 => self.file = None,
                    len => return Ok(len),
                }
            }
            if self.zeros > 0 {
                let len = out.len().min(self.zeros as usize);
                out[..len].fill(0);
                self.zeros -= len as u64;
                return Ok(len);
            }
            if self.ended {
                return Ok(0);
            }
            self.begin_next()?;
        }
    }
}

/// The files of `folder` that matter, sorted by name.
pub(super) fn choose(folder: &Path) -> Result<Vec<Chosen>, FilesError> {
    let mut chosen = Vec::new();
    for (name, max) in SMALL_FILES {
        if let Some(file) = find(folder, name)? {
            check_length(name, file.len, *max)?;
            chosen.push(file);
        }
    }
    let has = |name: &str| chosen.iter().any(|file| file.name == name);
    let missing = |name, remedy| Err(FilesError::Missing { folder: folder.to_owned(), name, remedy });
    if !has(CONFIG) {
        return missing(CONFIG, "give a .gguf file, or a folder as Hugging Face has them");
    }
    if !has(TOKENIZER) {
        return missing(
            TOKENIZER,
            "save the model with a fast tokenizer (AutoTokenizer.from_pretrained(…).save_pretrained)",
        );
    }
    let shards = match has(INDEX) {
        true => {
            let index = fs::read(folder.join(INDEX)).map_err(|source| failed(folder, INDEX, source))?;
            SafeTensors::shard_names(&index)?
        }
        false => vec![SINGLE.to_owned()],
    };
    for name in shards {
        match find(folder, &name)? {
            Some(file) if name.len() <= archive::NAME_BYTES_MAX => chosen.push(file),
            Some(file) => {
                let (bytes, max) = (file.name.len() as u64, archive::NAME_BYTES_MAX as u64);
                return Err(FilesError::TooLong { name: "the name of a shard".to_owned(), bytes, max });
            }
            None if name == SINGLE => {
                return missing(SINGLE, "only weights in safetensors files can be used; save_pretrained writes them");
            }
            None => return Err(failed(folder, &name, io::ErrorKind::NotFound.into())),
        }
    }
    chosen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(chosen)
}

pub(super) fn check_length(name: &str, bytes: u64, max: u64) -> Result<(), FilesError> {
    match bytes <= max {
        true => Ok(()),
        false => Err(FilesError::TooLong { name: name.to_owned(), bytes, max }),
    }
}

fn find(folder: &Path, name: &str) -> Result<Option<Chosen>, FilesError> {
    let path = folder.join(name);
    match fs::metadata(&path) {
        Ok(facts) if facts.is_file() => Ok(Some(Chosen { name: name.to_owned(), path, len: facts.len() })),
        Ok(_) => Err(failed(folder, name, io::Error::other("not a regular file"))),
        Err(why) if matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(failed(folder, name, source)),
    }
}

fn failed(folder: &Path, name: &str, source: io::Error) -> FilesError {
    FilesError::Io { path: folder.join(name), source }
}
