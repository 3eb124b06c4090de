//! Finds the files of a model and joins their headers. An index names files; it must not name any outside its folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{HEADER_BYTES_MAX, SHARDS_MAX, SafeTensors, SafetensorsError};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// `model.safetensors.index.json`; what else it holds is of no use.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn open(path: &Path) -> Result<SafeTensors, SafetensorsError> {
    if path.is_dir() {
        let index = path.join(INDEX);
        return if index.is_file() { open_index(&index) } else { open_single(&path.join(SINGLE)) };
    }
    if path.extension().is_some_and(|extension| extension == "json") { open_index(path) } else { open_single(path) }
}

fn open_single(path: &Path) -> Result<SafeTensors, SafetensorsError> {
    let mut all = SafeTensors::default();
    add(&mut all, path)?;
    Ok(all)
}

fn add(all: &mut SafeTensors, path: &Path) -> Result<(), SafetensorsError> {
    let (file, len) = open_file(path)?;
    all.add(path, io::BufReader::with_capacity(1 << 16, file), len)
}

fn open_file(path: &Path) -> Result<(File, u64), SafetensorsError> {
    let failed = |source| SafetensorsError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    Ok((file, facts.len()))
}

fn open_index(path: &Path) -> Result<SafeTensors, SafetensorsError> {
    let (file, len) = open_file(path)?;
    if len > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderLength(len));
    }
    let mut json = Vec::new();
    let read = file.take(HEADER_BYTES_MAX).read_to_end(&mut json);
    read.map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })?;
    let index: Index = serde_json::from_slice(&json).map_err(|why| SafetensorsError::Header(why.to_string()))?;
    let files: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if files.len() > SHARDS_MAX {
        return Err(SafetensorsError::TooMany { what: "shards", count: files.len(), max: SHARDS_MAX });
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut all = SafeTensors::default();
    for file in files {
        if !is_plain(file) {
            return Err(SafetensorsError::ShardName(file.to_owned()));
        }
        add(&mut all, &folder.join(file))?;
    }
    for (tensor, shard) in &index.weight_map {
        let found = all.tensor(tensor).map(|tensor| all.shards[tensor.shard].as_path());
        if found.and_then(Path::file_name).is_none_or(|name| name != shard.as_str()) {
            return Err(SafetensorsError::NotInShard { tensor: tensor.clone(), shard: shard.clone() });
        }
    }
    Ok(all)
}

fn is_plain(file: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    file.ends_with(".safetensors") && !file.starts_with('.') && file.chars().all(allowed)
}
