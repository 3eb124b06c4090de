//! Folders packed and not, archives good and bad, and what is read from them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;

use proptest::prelude::*;

use super::*;
use crate::shelf::Shelf;
use crate::source::{FetchConfig, FetchError, Source};

const TENSORS: &[(&str, &[u64])] = &[
    ("model.embed_tokens.weight", &[40, 32]),
    ("model.norm.weight", &[32]),
    ("model.layers.0.input_layernorm.weight", &[32]),
    ("model.layers.0.post_attention_layernorm.weight", &[32]),
    ("model.layers.0.self_attn.q_proj.weight", &[32, 32]),
    ("model.layers.0.self_attn.k_proj.weight", &[16, 32]),
    ("model.layers.0.self_attn.v_proj.weight", &[16, 32]),
    ("model.layers.0.self_attn.o_proj.weight", &[32, 32]),
    ("model.layers.0.mlp.gate_proj.weight", &[64, 32]),
    ("model.layers.0.mlp.up_proj.weight", &[64, 32]),
    ("model.layers.0.mlp.down_proj.weight", &[32, 64]),
];

/// A file in BF16 whose every tensor counts its elements.
fn safetensors(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        (0..shape.iter().product::<u64>()).for_each(|i| data.extend((i as u16).to_le_bytes()));
        let end = data.len();
        entries.push(format!("{name:?}:{{\"dtype\":\"BF16\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}"));
    }
    let json = format!("{{{}}}", entries.join(","));
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat()
}

fn tokenizer_json() -> String {
    let letters = ('a'..='z').chain(['Ġ']).enumerate().map(|(id, c)| format!("{:?}:{id}", c.to_string()));
    let vocab: Vec<String> = letters.collect();
    format!(
        r#"{{"added_tokens":[{{"id":27,"content":"<s>","special":true}},{{"id":28,"content":"<end>","special":true}}],
        "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}},
        "model":{{"type":"BPE","vocab":{{{},"ab":29}},"merges":["a b"]}}}}"#,
        vocab.join(",")
    )
}

/// A tiny llama, in two shards.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    put(
        "config.json",
        br#"{"model_type":"llama","num_hidden_layers":1,"hidden_size":32,"num_attention_heads":2,
        "num_key_value_heads":1,"intermediate_size":64,"max_position_embeddings":64,"vocab_size":40,
        "rms_norm_eps":1e-5,"tie_word_embeddings":true}"#,
    );
    put("tokenizer.json", tokenizer_json().as_bytes());
    put("tokenizer_config.json", br#"{"bos_token":"<s>","chat_template":"{{ bos_token }}{{ messages[0].content }}"}"#);
    put("generation_config.json", br#"{"eos_token_id":[28]}"#);
    put("README.md", b"not part of the model");
    put("model-1.safetensors", &safetensors(&TENSORS[..4]));
    put("model-2.safetensors", &safetensors(&TENSORS[4..]));
    let shard = |(i, (name, _)): (usize, &(&str, _))| format!("{name:?}:\"model-{}.safetensors\"", 1 + i / 4 - i / 8);
    let map: Vec<String> = TENSORS.iter().enumerate().map(shard).collect();
    put("model.safetensors.index.json", format!("{{\"weight_map\":{{{}}}}}", map.join(",")).as_bytes());
    folder
}

fn pack(folder: &Path) -> Vec<u8> {
    let (mut bytes, mut packer) = (Vec::new(), Packer::new(folder).unwrap());
    let expected = packer.archive_bytes();
    packer.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, expected);
    bytes
}

fn open(bytes: &[u8]) -> Result<ModelFiles, FilesError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    ModelFiles::open(file.path())
}

fn text(files: &ModelFiles, name: &str) -> Option<String> {
    let Format::Folder(folder) = &files.format else { panic!("a folder's files") };
    folder.text(&files.files, name).unwrap()
}

#[test]
fn a_packed_folder_is_the_folder() {
    let folder = folder();
    let (loose, packed) = (ModelFiles::open(folder.path()).unwrap(), open(&pack(folder.path())).unwrap());
    assert_eq!(loose.spec().unwrap(), packed.spec().unwrap());
    assert_eq!(loose.tensors().count(), TENSORS.len());
    for (name, shape) in TENSORS {
        let (a, b) = (loose.tensor(name).unwrap(), packed.tensor(name).unwrap());
        assert_eq!((&a.dims, a.kind, a.bytes()), (&b.dims, b.kind, b.bytes()));
        assert!(a.dims.iter().rev().eq(shape.iter()) && a.kind == TensorKind::Safetensors(Dtype::BF16));
        let counted: Vec<u8> = (0..a.elements() as u16).flat_map(u16::to_le_bytes).collect();
        assert!(loose.read(&a).unwrap() == counted && packed.read(&b).unwrap() == counted, "{name}");
    }
    for files in [&loose, &packed] {
        let tokenizer = files.tokenizer().unwrap();
        assert_eq!(tokenizer.encode("<s>abba<end>", true).unwrap(), [27, 29, 1, 0, 28]);
        assert_eq!((tokenizer.vocab_len(), tokenizer.eos_ids(), tokenizer.bos()), (40, &[28][..], Some(27)));
        let messages = [crate::template::Message::new("user", "hello")];
        assert_eq!(files.chat_template().unwrap().unwrap().render(&messages, true).unwrap(), "<s>hello");
        assert_eq!(
            (files.parameters(), files.quantization()),
            (40 * 32 + 3 * 32 + 2 * 48 * 32 + 3 * 64 * 32, "BF16".to_owned())
        );
        assert!(files.has_halves());
        assert_eq!((text(files, "README.md"), text(files, "1_Pooling/config.json")), (None, None));
    }
}

#[test]
fn the_same_files_have_the_same_hash_wherever_they_lie() {
    let (a, b) = (folder(), folder());
    fs::write(b.path().join("notes.txt"), "more that does not matter").unwrap();
    assert_eq!(pack(a.path()), pack(b.path()));
    fs::write(b.path().join("chat_template.jinja"), "{{ messages[0].role }}").unwrap();
    let other = pack(b.path());
    assert_ne!(pack(a.path()), other);
    let messages = [crate::template::Message::new("user", "hello")];
    assert_eq!(open(&other).unwrap().chat_template().unwrap().unwrap().render(&messages, true).unwrap(), "user");
}

/// The system's own `tar` lists and extracts what was packed.
#[test]
fn the_archive_is_one_that_tar_reads() {
    let folder = folder();
    let (file, out) = (tempfile::NamedTempFile::new().unwrap(), tempfile::tempdir().unwrap());
    fs::write(file.path(), pack(folder.path())).unwrap();
    let ran = std::process::Command::new("tar").arg("-xf").arg(file.path()).arg("-C").arg(out.path()).status();
    let Ok(status) = ran else { return println!("skipped: there is no tar") };
    assert!(status.success());
    for name in ["config.json", "tokenizer.json", "model-2.safetensors"] {
        assert_eq!(fs::read(folder.path().join(name)).unwrap(), fs::read(out.path().join(name)).unwrap());
    }
    assert!(!out.path().join("README.md").exists());
}

#[test]
fn sizes_of_eight_gibibytes_and_more_are_written_and_read() {
    let file = tempfile::tempfile().unwrap();
    let len = (8u64 << 30) + 5;
    file.write_all_at(&archive::header("model.safetensors", len), 0).unwrap();
    file.set_len(archive::RECORD + len + archive::padding(len) + archive::END).unwrap();
    let members = archive::members(&file, file.metadata().unwrap().len()).unwrap();
    assert_eq!((members.len(), members[0].len, members[0].at), (1, len, 512));
}

#[test]
fn what_a_folder_lacks_is_named() {
    for (name, says) in [
        ("config.json", "config.json"),
        ("tokenizer.json", "fast tokenizer"),
        ("model-2.safetensors", "model-2.safetensors"),
        ("model.safetensors.index.json", "model.safetensors"),
    ] {
        let folder = folder();
        fs::remove_file(folder.path().join(name)).unwrap();
        let error = ModelFiles::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(error, Packer::new(folder.path()).unwrap_err().to_string());
    }
    let folder = folder();
    fs::write(folder.path().join("config.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(matches!(ModelFiles::open(folder.path()), Err(FilesError::TooLong { .. })));
    fs::write(folder.path().join("config.json"), br#"{"model_type":"rwkv"}"#).unwrap();
    assert!(ModelFiles::open(folder.path()).unwrap().spec().unwrap_err().to_string().contains("rwkv"));
}

/// Every header that is not the one that we would have written, and everything around the files.
#[test]
fn hostile_archives_are_refused() {
    let good = pack(folder().path());
    assert!(open(&good).is_ok());
    for len in (0..good.len()).step_by(97).chain([good.len() - 1]) {
        assert!(open(&good[..len]).is_err(), "{len}");
    }
    let renamed = |name: &str| {
        let mut bytes = good.clone();
        let len = name_len(&bytes);
        bytes[..512].copy_from_slice(&archive::header(name, len));
        open(&bytes).unwrap_err().to_string()
    };
    for name in ["../config.json", "/etc/passwd", "a/config.json", "config.json ", "aaa.py", "zzz.safetensors"] {
        let error = renamed(name);
        assert!(error.contains("packed folder") || error.contains("config.json"), "{name}: {error}");
    }
    for at in [100, 108, 137, 156, 157, 265, 300, 345, 400, 511] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert!(matches!(open(&bytes), Err(FilesError::Archive(_))), "{at}");
    }
    let mut longer = good.clone();
    longer.extend([0; 512]);
    assert!(matches!(open(&longer), Err(FilesError::Archive(_))));
    let mut padded = good.clone();
    padded[512 + name_len(&good) as usize] = 1;
    assert!(matches!(open(&padded), Err(FilesError::Archive(_))));
    let mut huge = good.clone();
    huge[..512].copy_from_slice(&archive::header("config.json", u64::MAX - 600));
    assert!(matches!(open(&huge), Err(FilesError::Archive(_))));
    // The same file twice: the second header is a copy of the first.
    let twice = [&good[..1024], &good[..]].concat();
    assert!(matches!(open(&twice), Err(FilesError::Archive(_))));
    assert!(matches!(open(b"neither"), Err(FilesError::Gguf(GgufError::Magic { .. }))));
}

/// The size of an archive's first file.
fn name_len(bytes: &[u8]) -> u64 {
    u64::from_str_radix(std::str::from_utf8(&bytes[124..135]).unwrap(), 8).unwrap()
}

#[test]
fn a_vocabulary_larger_than_the_model_or_absurd_is_refused() {
    let folder = folder();
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    for vocab in ["5", "99999999999999"] {
        let config = config.replace("\"vocab_size\":40", &format!("\"vocab_size\":{vocab}"));
        fs::write(folder.path().join("config.json"), config).unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        assert!(files.tokenizer().is_err() && files.spec().is_err(), "{vocab}");
    }
    fs::write(folder.path().join("config.json"), config).unwrap();
    fs::write(folder.path().join("generation_config.json"), br#"{"eos_token_id":4000000000}"#).unwrap();
    assert!(ModelFiles::open(folder.path()).unwrap().tokenizer().is_err());
}

#[test]
fn a_folder_goes_onto_the_shelf_once_and_again_when_it_changes() {
    let (folder, home) = (folder(), tempfile::tempdir().unwrap());
    let shelf = Shelf::open(home.path()).unwrap();
    let source = Source::parse(folder.path().to_str().unwrap()).unwrap();
    let fetch = || source.fetch(&shelf, None, &FetchConfig::default(), &mut |_| ());
    let first = fetch().unwrap();
    assert_eq!(first.hash.0, *blake3::hash(&pack(folder.path())).as_bytes());
    assert_eq!(first.path, shelf.weights_path(&first.hash));
    assert_eq!(first.path.extension().unwrap(), "tar");
    assert_eq!(shelf.find(&first.hash).unwrap().unwrap(), first);
    assert!(source.present(&shelf, None).unwrap().is_some());
    fs::write(folder.path().join("generation_config.json"), "{}").unwrap();
    assert!(source.present(&shelf, None).unwrap().is_none());
    assert_ne!(fetch().unwrap().hash, first.hash);
    assert_eq!(shelf.list().unwrap().len(), 2);
    ModelFiles::open(&first.path).unwrap().spec().unwrap();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(matches!(fetch(), Err(FetchError::Folder(FilesError::Missing { .. }))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_archives_never_panic(at in 0usize..20_000, bit in 0u8..8) {
        let mut bytes = pack(folder().path());
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(files) = open(&bytes) {
            let _ = (files.spec(), files.tokenizer(), files.chat_template());
            files.tensors().for_each(|tensor| assert!(files.read(&tensor).is_ok()));
        }
    }
}
