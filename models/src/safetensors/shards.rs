//! Finds the files of a model and joins their headers. An index names files; it must not name any outside its folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{HEADER_BYTES_MAX, SHARDS_MAX, SafeTensors, SafetensorsError};

pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const SINGLE: &str = "model.safetensors";

/// `model.safetensors.index.json`; what else it holds is of no use.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens a file of a model by its plain name, and says how long it is.
pub(crate) type OpenShard<'a> = dyn FnMut(&str) -> io::Result<(Box<dyn io::Read>, u64)> + 'a;

pub(super) fn open(path: &Path) -> Result<SafeTensors, SafetensorsError> {
    let (folder, name) = match path.is_dir() {
        true if path.join(INDEX).is_file() => (path, INDEX),
        true => (path, SINGLE),
        false => {
            (path.parent().unwrap_or(Path::new("")), path.file_name().and_then(|name| name.to_str()).unwrap_or(""))
        }
    };
    let mut open = |name: &str| open_file(&folder.join(name));
    let whole = |name: &str| folder.join(name);
    let failed = |error| match error {
        SafetensorsError::Io { path, source } => SafetensorsError::Io { path: folder.join(path), source },
        other => other,
    };
    let index = name.ends_with(".json");
    let mut all = match index {
        true => indexed(&read_index(name, &mut open).map_err(failed)?, &mut open),
        false => single(name, &mut open),
    }
    .map_err(failed)?;
    all.shards.iter_mut().for_each(|shard| *shard = whole(&shard.to_string_lossy()));
    Ok(all)
}

/// The model whose files `open` opens: those that an index names, where there is one, or else one file.
pub(super) fn join(has_index: bool, open: &mut OpenShard<'_>) -> Result<SafeTensors, SafetensorsError> {
    match has_index {
        true => indexed(&read_index(INDEX, open)?, open),
        false => single(SINGLE, open),
    }
}

/// The files that an index of this text names, sorted.
pub(super) fn names(index: &[u8]) -> Result<Vec<String>, SafetensorsError> {
    let index: Index = serde_json::from_slice(index).map_err(|why| SafetensorsError::Header(why.to_string()))?;
    index.files()
}

fn single(name: &str, open: &mut OpenShard<'_>) -> Result<SafeTensors, SafetensorsError> {
    let mut all = SafeTensors::default();
    add(&mut all, name, open)?;
    Ok(all)
}

fn add(all: &mut SafeTensors, name: &str, open: &mut OpenShard<'_>) -> Result<(), SafetensorsError> {
    let (file, len) = open(name).map_err(|source| SafetensorsError::Io { path: name.into(), source })?;
    all.add(Path::new(name), io::BufReader::with_capacity(1 << 16, file), len)
}

fn open_file(path: &Path) -> io::Result<(Box<dyn io::Read>, u64)> {
    let file = File::open(path)?;
    let facts = file.metadata()?;
    match facts.is_file() {
        true => Ok((Box::new(file), facts.len())),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn read_index(name: &str, open: &mut OpenShard<'_>) -> Result<Index, SafetensorsError> {
    let failed = |source| SafetensorsError::Io { path: name.into(), source };
    let (file, len) = open(name).map_err(failed)?;
    if len > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderLength(len));
    }
    let mut json = Vec::new();
    file.take(HEADER_BYTES_MAX).read_to_end(&mut json).map_err(failed)?;
    serde_json::from_slice(&json).map_err(|why| SafetensorsError::Header(why.to_string()))
}

fn indexed(index: &Index, open: &mut OpenShard<'_>) -> Result<SafeTensors, SafetensorsError> {
    let mut all = SafeTensors::default();
    for file in index.files()? {
        add(&mut all, &file, open)?;
    }
    for (tensor, shard) in &index.weight_map {
        let found = all.tensor(tensor).map(|tensor| all.shards[tensor.shard].as_path());
        if found.and_then(Path::file_name).is_none_or(|name| name != shard.as_str()) {
            return Err(SafetensorsError::NotInShard { tensor: tensor.clone(), shard: shard.clone() });
        }
    }
    Ok(all)
}

impl Index {
    fn files(&self) -> Result<Vec<String>, SafetensorsError> {
        let files: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        if files.len() > SHARDS_MAX {
            return Err(SafetensorsError::TooMany { what: "shards", count: files.len(), max: SHARDS_MAX });
        }
        match files.iter().find(|file| !is_plain(file)) {
            Some(file) => Err(SafetensorsError::ShardName((*file).to_owned())),
            None => Ok(files.into_iter().map(str::to_owned).collect()),
        }
    }
}

/// A name in a model's own folder.
pub(super) fn is_plain(file: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    file.ends_with(".safetensors") && !file.starts_with('.') && file.chars().all(allowed)
}
