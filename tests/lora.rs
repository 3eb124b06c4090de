//! Adapters: of tiny models against numpy (`tests/fixtures/make_adapters.py`) and against merged weights, of the real model
//! against itself: alone and batched, beside the base and beside each other, cached and cold.

use std::fs::File;
use std::path::{Path, PathBuf};

use cuckoo_kernels::ops::{Span, StepLayout};
use cuckoo_kernels::reference::Rounding;
use cuckoo_kernels::{Cpu, Exact, Ops, Reference};
use cuckoo_models::arch::Product;
use cuckoo_models::{Adapter, ArchSpec, GgmlType, Gguf, GgufWriter, ModelFiles, Shelf, adapter};
use cuckoo_runtime::forward::{self, KvMemory, Model, Use, Workspace, kv_shapes};
use serde_json::{Value, json};

use crate::families::{draw, integers, nmse, wide, write};
use crate::folders;
use crate::model::adapters::save_adapter;

mod served;

/// A folder as PEFT saves it, of `tensors` by name: shape and bytes, all of one type.
pub(crate) fn save_peft(folder: &Path, config: &Value, dtype: &str, tensors: &[(String, Vec<u64>, Vec<u8>)]) {
    std::fs::create_dir_all(folder).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

/// The adapter that an entry of the fixture describes, as a folder.
fn save(entry: &Value, folder: &Path) {
    let tensors = entry["tensors"].as_object().unwrap().iter().map(|(name, shape)| {
        let shape: Vec<u64> = shape.as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        let scale = 1.5 / (shape[1] as f64).sqrt();
        let values = draw(name, (shape[0] * shape[1]) as usize).flat_map(|v| ((v * scale) as f32).to_le_bytes());
        (name.clone(), shape, values.collect())
    });
    save_peft(folder, &entry["config"], "F32", &tensors.collect::<Vec<_>>());
}

/// A tiny base model and its adapter.
struct Tiny {
    gguf: Gguf,
    files: ModelFiles,
    spec: ArchSpec,
    adapter: Adapter,
    adapter_file: File,
}

/// Which adapter the rows of a step use: rows from, rows to, whether one.
type Uses<'a> = &'a [(usize, usize)];

impl Tiny {
    /// Logits of all rows of `spans`: tokens, each a sequence of its own, of which `uses` use the adapter.
    fn logits<O: Ops>(&self, mut ops: O, spans: &[&[u32]], uses: Uses<'_>) -> Vec<f32> {
        let model = Model::load(&mut ops, &self.files, &self.spec, |_| ()).unwrap();
        let loaded = forward::Adapter::load(&mut ops, &self.adapter, &self.adapter_file, &self.spec).unwrap();
        let tokens = spans.concat();
        let mut work = Workspace::new(&mut ops, &self.spec, tokens.len(), tokens.len()).unwrap();
        let shapes = kv_shapes(&self.spec, 2 * spans.len());
        let mut cache = KvMemory::new(&mut ops, &shapes).unwrap();
        let mut first_row = 0;
        let place = |(i, tokens): (usize, &&[u32])| {
            let span = Span { first_row, rows: tokens.len(), first_position: 0, first_block: 2 * i };
            first_row += tokens.len();
            span
        };
        let laid: Vec<Span> = spans.iter().enumerate().map(place).collect();
        let blocks: Vec<u32> = (0..2 * spans.len() as u32).rev().collect();
        let steps = vec![StepLayout { spans: &laid, blocks: &blocks }; shapes.len()];
        let uses: Vec<Use<'_, O>> = uses.iter().map(|(from, to)| Use { rows: *from..*to, adapter: &loaded }).collect();
        model.forward_adapted(&mut ops, &mut work, &mut cache, &tokens, (&steps, &uses)).unwrap();
        model.logits(&mut ops, &mut work, &(0..tokens.len()).collect::<Vec<_>>()).unwrap();
        ops.read(&work.logits).unwrap()
    }

    /// The base model with the adapter's products added to its weights.
    fn merged(&self, folder: &Path) -> Self {
        let path = folder.join("merged.gguf");
        let mut bytes = std::fs::read(folder.join("base.gguf")).unwrap();
        let floats =
            |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect::<Vec<_>>();
        for change in self.adapter.changes() {
            let matrices = self.adapter.read(&self.adapter_file, change).unwrap();
            let (a, b) = (floats(&matrices.a.1), floats(&matrices.b.1));
            let tensor = self.gguf.tensor(&format!("{}.weight", change.of.gguf)).unwrap();
            let at = tensor.bytes.start as usize..tensor.bytes.end as usize;
            let inputs = change.of.inputs;
            let merged: Vec<u8> = floats(&bytes[at.clone()])
                .iter()
                .enumerate()
                .flat_map(|(i, w)| {
                    let (row, col) = (i / inputs, i % inputs);
                    let dot: f64 = (0..change.rank).map(|r| b[row * change.rank + r] * a[r * inputs + col]).sum();
                    ((w + f64::from(change.scale) * dot) as f32).to_le_bytes()
                })
                .collect();
            bytes[at].copy_from_slice(&merged);
        }
        std::fs::write(&path, bytes).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        Self {
            spec: ArchSpec::from_gguf(&gguf).unwrap(),
            files: ModelFiles::open(&path).unwrap(),
            gguf,
            adapter: self.adapter.clone(),
            adapter_file: self.adapter_file.try_clone().unwrap(),
        }
    }
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Every adapter of the fixture, with its tokens.
fn fixture(mut check: impl FnMut(&Value, &Tiny, &Path, &[u32], &[u32])) {
    let text = include_str!("fixtures/adapters.json");
    let (fixture, bases): (Value, Value) =
        (serde_json::from_str(text).unwrap(), serde_json::from_str(include_str!("fixtures/families.json")).unwrap());
    let (tokens, shown) = (integers(&fixture["tokens"]), integers(&fixture["shown"]));
    let entries = fixture["adapters"].as_array().unwrap();
    assert_eq!(entries.len(), 8);
    for entry in entries {
        let folder = tempfile::tempdir().unwrap();
        let base = bases["models"].as_array().unwrap().iter().find(|m| m["name"] == entry["base"]).unwrap();
        let path = folder.path().join("base.gguf");
        write(base, &path);
        let gguf = Gguf::open(&path).unwrap();
        let spec = ArchSpec::from_gguf(&gguf).unwrap();
        let peft = folder.path().join("adapter");
        save(entry, &peft);
        let shelf = Shelf::open(folder.path().join("shelf")).unwrap();
        let shelved = adapter::shelve(&shelf, &peft, &spec).unwrap_or_else(|why| panic!("{}: {why}", entry["base"]));
        let tiny = Tiny {
            adapter: Adapter::open(&shelved.path, &spec).unwrap(),
            adapter_file: File::open(&shelved.path).unwrap(),
            files: ModelFiles::open(&path).unwrap(),
            gguf,
            spec,
        };
        check(entry, &tiny, folder.path(), &tokens, &shown);
    }
}

#[test]
fn adapters_of_tiny_models_give_the_logits_of_numpy() {
    fixture(|entry, tiny, _, tokens, shown| {
        let name = &entry["base"];
        let all = [(0, tokens.len())];
        let reference = tiny.logits(Reference::new(Rounding::None), &[tokens], &all);
        let rows = |logits: &[f32]| {
            shown
                .iter()
                .flat_map(|p| logits[*p as usize * tiny.spec.vocab..][..tiny.spec.vocab].to_vec())
                .collect::<Vec<_>>()
        };
        let expect: Vec<f64> = entry["logits"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap())
            .map(|v| v.as_f64().unwrap())
            .collect();
        let error = nmse(wide(&rows(&reference)), expect.iter().copied());
        assert!(error < 1e-12, "{name}: an NMSE of {error:e} from numpy");
        let base = tiny.logits(Reference::new(Rounding::None), &[tokens], &[]);
        let change = nmse(wide(&base), wide(&reference));
        assert!(change > 1e-3, "{name}: the adapter changes something: {change:e}");
        let exact = tiny.logits(Exact::new(), &[tokens], &all);
        let error = nmse(wide(&exact), wide(&reference));
        // Scores of such weights are large, and the rounding of keys and values with them.
        assert!(error < 1e-5, "{name}: {error:e} from unrounded keys and values");
        for threads in [1, 3] {
            assert_eq!(bits(&tiny.logits(Cpu::new(threads), &[tokens], &all)), bits(&exact), "{name}");
        }
    });
}

#[test]
fn an_adapter_is_what_merging_it_into_the_weights_gives() {
    fixture(|entry, tiny, folder, tokens, _| {
        let adapted = tiny.logits(Reference::new(Rounding::None), &[tokens], &[(0, tokens.len())]);
        let merged = tiny.merged(folder).logits(Reference::new(Rounding::None), &[tokens], &[]);
        // Merged weights are rounded to f32.
        let error = nmse(wide(&merged), wide(&adapted));
        assert!(error < 1e-10, "{}: {error:e}", entry["base"]);
    });
}

#[test]
fn rows_of_a_tiny_batch_are_as_alone() {
    fixture(|entry, tiny, _, tokens, _| {
        let (a, b, c) = (&tokens[..9], &tokens[3..20], &tokens[5..24]);
        let together = tiny.logits(Cpu::new(2), &[a, b, c], &[(0, 9), (26, 45)]);
        let alone = [
            tiny.logits(Cpu::new(2), &[a], &[(0, 9)]),
            tiny.logits(Cpu::new(2), &[b], &[]),
            tiny.logits(Cpu::new(2), &[c], &[(0, 19)]),
        ];
        assert_eq!(bits(&together), bits(&alone.concat()), "{}", entry["base"]);
    });
}

/// Rows of queries and keys of llama are permuted in GGUF files; a folder of PEFT has them as they were trained.
#[test]
fn rows_of_a_peft_adapter_are_permuted_as_llamas_are() {
    fixture(|entry, tiny, _, _, _| {
        let permuted = !matches!(entry["base"].as_str().unwrap(), "qwen2" | "gemma3" | "phi3");
        for change in tiny.adapter.changes() {
            let module = change.of.hf.clone();
            let name = format!("base_model.model.{module}.lora_B.weight");
            let rows: Vec<f32> = draw(&name, change.of.outputs * change.rank)
                .map(|v| (v * 1.5 / (change.rank as f64).sqrt()) as f32)
                .collect();
            let (dim, rank) = (tiny.spec.head_dim, change.rank);
            let rotated = permuted && matches!(change.of.product, Product::Q | Product::K);
            let stored = tiny.adapter.read(&tiny.adapter_file, change).unwrap().b;
            assert_eq!(stored.0, GgmlType::F32);
            for (row, bytes) in stored.1.chunks_exact(4 * rank).enumerate() {
                let (head, i) = (row / dim * dim, row % dim);
                // Neighbours here were half a head apart.
                let from = if rotated { head + i / 2 + i % 2 * (dim / 2) } else { row };
                let expect: Vec<u8> = rows[from * rank..][..rank].iter().flat_map(|v| v.to_le_bytes()).collect();
                assert_eq!(bytes, expect, "{module} row {row}");
            }
        }
    });
}

/// The same folder has the same hash everywhere.
#[test]
fn converting_a_folder_is_the_same_every_time() {
    fixture(|entry, tiny, folder, _, _| {
        let again = Shelf::open(folder.join("another")).unwrap();
        let shelved = adapter::shelve(&again, &folder.join("adapter"), &tiny.spec).unwrap();
        let first: PathBuf = Shelf::open(folder.join("shelf")).unwrap().list().unwrap().remove(0).path;
        assert_eq!(std::fs::read(first).unwrap(), std::fs::read(shelved.path).unwrap(), "{}", entry["base"]);
    });
}

/// Models in folders have all rows as they were trained, and so has an adapter that is loaded for one.
#[test]
fn an_adapter_of_a_folder_has_its_rows_as_they_were_trained() {
    let (fixture, home) = (folders::fixture(), tempfile::tempdir().unwrap());
    for wanted in ["llama", "qwen2"] {
        let model = fixture["models"].as_array().unwrap().iter().find(|model| model["name"] == wanted).unwrap();
        let (folder, peft) = (home.path().join(wanted), home.path().join(format!("{wanted}-adapter")));
        folders::write(model, &folder, 1);
        let spec = ModelFiles::open(&folder).unwrap().spec().unwrap();
        save_adapter(&peft, &spec, wanted, 0.3);
        let shelf = Shelf::open(home.path().join(format!("{wanted}-shelf"))).unwrap();
        let shelved = adapter::shelve(&shelf, &peft, &spec).unwrap();
        let (opened, file) = (Adapter::open(&shelved.path, &spec).unwrap(), File::open(&shelved.path).unwrap());
        let stored = std::fs::read(peft.join("adapter_model.safetensors")).unwrap();
        let header = u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize;
        let tensors: Value = serde_json::from_slice(&stored[8..8 + header]).unwrap();
        assert_eq!(opened.changes().len(), spec.products().unwrap().len());
        for change in opened.changes() {
            let name = format!("base_model.model.{}.lora_B.weight", change.of.hf);
            let at = |i: usize| 8 + header + tensors[&name]["data_offsets"][i].as_u64().unwrap() as usize;
            assert!(opened.read(&file, change).unwrap().b.1 == stored[at(0)..at(1)], "{wanted}: {name}");
        }
    }
}

#[test]
fn an_encoder_takes_no_adapter() {
    let bases: Value = serde_json::from_str(include_str!("fixtures/families.json")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (path, adapter) = (home.path().join("base.gguf"), home.path().join("adapter.gguf"));
    for wanted in ["bert", "nomic-bert"] {
        write(bases["encoders"].as_array().unwrap().iter().find(|m| m["name"] == wanted).unwrap(), &path);
        let spec = ModelFiles::open(&path).unwrap().spec().unwrap();
        let writer = GgufWriter::new().meta_str("general.type", "adapter").meta_str("adapter.type", "lora");
        let writer = writer.meta_str("general.architecture", wanted).meta_f32("adapter.lora.alpha", 1.0);
        writer.write(&adapter).unwrap();
        let why = Adapter::open(&adapter, &spec).unwrap_err().to_string();
        assert!(why.contains("takes no adapter") && why.contains("an encoder"), "{why}");
    }
}
