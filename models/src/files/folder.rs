//! A folder in the layout of Hugging Face, packed or not: its small files by name, and the tensors of its shards.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::pack::{
    self, CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, MODULES, POOLING, SMALL_FILES, TOKENIZER, TOKENIZER_CONFIG,
    check_length,
};
use super::{FilesError, Tensor, TensorKind, archive, read_at};
use crate::arch::{ArchError, ArchSpec, HfQuantization};
use crate::safetensors::{INDEX, SafeTensor, SafeTensors};
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// The most tokens that end a generation.
const EOS_MAX: usize = 64;

/// Where the bytes of one of its files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    file: usize,
    at: u64,
    len: u64,
}

/// An open folder. The open files themselves are beside it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    members: BTreeMap<String, Place>,
    tensors: SafeTensors,
    /// Of each shard of `tensors`.
    shards: Vec<Place>,
    config: String,
    pooling: Option<String>,
    modules: Option<String>,
}

impl Folder {
    /// The folder at `path`, as it lies there.
    pub(super) fn unpacked(path: &Path) -> Result<(Self, Vec<File>), FilesError> {
        let (mut members, mut files) = (BTreeMap::new(), Vec::new());
        for chosen in pack::choose(path)? {
            let failed = |source| FilesError::Io { path: chosen.path.clone(), source };
            let file = File::open(&chosen.path).map_err(failed)?;
            let len = file.metadata().map_err(failed)?.len();
            members.insert(chosen.name, Place { file: files.len(), at: 0, len });
            files.push(file);
        }
        Ok((Self::new(path, members, &files)?, files))
    }

    /// The folder that was packed as `file`.
    pub(super) fn packed(path: &Path, file: File) -> Result<(Self, File), FilesError> {
        let bytes = file.metadata().map_err(|source| FilesError::Io { path: path.to_owned(), source })?.len();
        let mut members = BTreeMap::new();
        for member in archive::members(&file, bytes)? {
            let known = SMALL_FILES.iter().find(|(name, _)| *name == member.name);
            match known {
                Some((name, max)) => check_length(name, member.len, *max)?,
                None if SafeTensors::is_shard_name(&member.name) => {}
                None => return Err(FilesError::Archive("it holds a file that no model needs")),
            }
            members.insert(member.name, Place { file: 0, at: member.at, len: member.len });
        }
        let files = [file];
        let folder = Self::new(path, members, &files)?;
        let [file] = files;
        Ok((folder, file))
    }

    fn new(path: &Path, members: BTreeMap<String, Place>, files: &[File]) -> Result<Self, FilesError> {
        let mut shards = Vec::new();
        let mut open = |name: &str| {
            let place = *members.get(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            if name != INDEX {
                shards.push(place);
            }
            let file = files[place.file].try_clone()?;
            let reader: Box<dyn io::Read> = Box::new(Reader { file, at: place.at, end: place.at + place.len });
            Ok((reader, place.len))
        };
        let tensors = SafeTensors::join(members.contains_key(INDEX), &mut open)?;
        let strangers = members.keys().filter(|name| SafeTensors::is_shard_name(name)).count() != shards.len();
        if strangers {
            return Err(FilesError::Archive("it holds weights that its index does not name"));
        }
        let (path, config) = (path.to_owned(), String::new());
        let mut folder = Self { path, members, tensors, shards, config, pooling: None, modules: None };
        let missing =
            || FilesError::Missing { folder: folder.path.clone(), name: CONFIG, remedy: "publish the folder anew" };
        folder.config = folder.text(files, CONFIG)?.ok_or_else(missing)?;
        folder.pooling = folder.text(files, POOLING)?;
        folder.modules = folder.text(files, MODULES)?;
        // Old files of GPTQ name their quantization elsewhere.
        if let Some(text) = folder.text(files, "quantize_config.json")? {
            folder.config = with_quantization(folder.config, &text)?;
        }
        Ok(folder)
    }

    pub(super) fn spec(&self) -> Result<ArchSpec, ArchError> {
        let spec = ArchSpec::from_hf_config(&self.config, &self.tensors)?;
        if let Some(modules) = &self.modules {
            spec.check_modules(modules)?;
        }
        match &self.pooling {
            Some(pooling) => spec.with_pooling_config(pooling),
            None => Ok(spec),
        }
    }

    /// The tokenizer, with the ends that the model's configurations name, as large as its rows of logits.
    pub(super) fn tokenizer(&self, files: &[File]) -> Result<Tokenizer, TokenizerError> {
        let text = |name| self.text(files, name).map_err(|why| TokenizerError::Json(why.to_string()));
        let json = text(TOKENIZER)?.ok_or(TokenizerError::Missing("tokenizer.json"))?;
        let tokenizer = Tokenizer::from_hf_json(&json, text(TOKENIZER_CONFIG)?.as_deref())?;
        let unreadable = |why: serde_json::Error| TokenizerError::Json(why.to_string());
        let config: Value = serde_json::from_str(&self.config).map_err(unreadable)?;
        let generation = text(GENERATION_CONFIG)?;
        let generation: Option<Value> =
            generation.as_deref().map(serde_json::from_str).transpose().map_err(unreadable)?;
        let ends = generation.as_ref().map(ends_of).filter(|ends| !ends.is_empty()).unwrap_or_else(|| ends_of(&config));
        let vocab = config.get("vocab_size").and_then(Value::as_u64).unwrap_or(0);
        tokenizer.with_eos_ids(&ends)?.padded_to(usize::try_from(vocab).unwrap_or(usize::MAX))
    }

    pub(super) fn chat_template(&self, files: &[File]) -> Result<Option<ChatTemplate>, TemplateError> {
        let text = |name| self.text(files, name).map_err(|why| TemplateError::Failed(why.to_string()));
        let config = text(TOKENIZER_CONFIG)?;
        let config: Option<Value> = config.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let get = |key: &str| config.as_ref().and_then(|config| config.get(key)).filter(|value| !value.is_null());
        let Some(source) = text(CHAT_TEMPLATE)?.or_else(|| get("chat_template").and_then(template)) else {
            return Ok(None);
        };
        let token = |key| get(key).and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
        ChatTemplate::new(&source, token("bos_token").unwrap_or(""), token("eos_token").unwrap_or("")).map(Some)
    }

    /// The text of a small file; `None` where there is none.
    pub(super) fn text(&self, files: &[File], name: &str) -> Result<Option<String>, FilesError> {
        let is_small = SMALL_FILES.iter().any(|(small, _)| *small == name);
        let Some(place) = self.members.get(name).filter(|_| is_small) else { return Ok(None) };
        let failed = |source| FilesError::Io { path: self.path.join(name), source };
        let bytes = read_at(&files[place.file], place.at, place.len).map_err(failed)?;
        String::from_utf8(bytes).map(Some).map_err(|_| FilesError::NotUtf8(name.to_owned()))
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = Tensor> + '_ {
        self.tensors.tensors().iter().map(|tensor| self.placed(tensor))
    }

    pub(super) fn tensor(&self, name: &str) -> Option<Tensor> {
        self.tensors.tensor(name).map(|tensor| self.placed(tensor))
    }

    fn placed(&self, tensor: &SafeTensor) -> Tensor {
        let shard = self.shards[tensor.shard];
        Tensor {
            name: tensor.name.clone(),
            dims: tensor.shape.iter().rev().copied().collect(),
            kind: TensorKind::Safetensors(tensor.dtype),
            file: shard.file,
            at: shard.at + tensor.bytes.start,
            len: tensor.bytes.end - tensor.bytes.start,
        }
    }

    /// What the packing of weights is called.
    pub(super) fn packing(&self) -> &'static str {
        match HfQuantization::from_hf_config(&self.config) {
            Ok(Some(HfQuantization::Awq { .. })) => "AWQ",
            Ok(Some(HfQuantization::Gptq { .. })) => "GPTQ",
            Ok(Some(HfQuantization::Fp8 { .. })) => "FP8",
            Ok(Some(HfQuantization::Mxfp4)) => "MXFP4",
            _ => "packed",
        }
    }
}

/// Part of a file, from front to back, without moving the file's own cursor.
struct Reader {
    file: File,
    at: u64,
    end: u64,
}

impl io::Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(out.len());
        let len = self.file.read_at(&mut out[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// The default template where there are several.
fn template(value: &Value) -> Option<String> {
    let named = |name: &str| {
        let list = value.as_array()?;
        let one = list.iter().find(|one| one.get("name").and_then(Value::as_str) == Some(name))?;
        one.get("template")?.as_str()
    };
    value.as_str().or_else(|| named("default")).map(str::to_owned)
}

/// `eos_token_id`: a number, or a list of numbers.
fn ends_of(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().take(EOS_MAX).filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// `config` with a `quantization_config` made from the text of `quantize_config.json`, unless it has one.
fn with_quantization(config: String, quantize: &str) -> Result<String, FilesError> {
    let parse = |name: &str, text: &str| {
        serde_json::from_str::<Value>(text).map_err(|why| FilesError::Json(name.to_owned(), why.to_string()))
    };
    let (mut whole, mut own) = (parse(CONFIG, &config)?, parse("quantize_config.json", quantize)?);
    if whole.get("quantization_config").is_some_and(|value| !value.is_null()) {
        return Ok(config);
    }
    if let (Some(whole), Some(own)) = (whole.as_object_mut(), own.as_object_mut()) {
        own.entry("quant_method").or_insert_with(|| "gptq".into());
        whole.insert("quantization_config".to_owned(), Value::Object(own.clone()));
    }
    Ok(whole.to_string())
}
