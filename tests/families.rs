//! A tiny model of every family against a transformer written from the families' reference code, in numpy
//! (`tests/fixtures/make_families.py`): the f64 reference must give its logits, the CPU the contract's bits.

use std::path::Path;

use cuckoo_kernels::cpu::Sizes;
use cuckoo_kernels::ops::{Span, StepLayout};
use cuckoo_kernels::reference::Rounding;
use cuckoo_kernels::{Counted, Cpu, Exact, Ops, Reference};
use cuckoo_models::gguf::GgufWriter;
use cuckoo_models::{ArchSpec, GgmlType, ModelFiles};
use cuckoo_runtime::forward::{KvMemory, Model, Workspace, check, kv_shapes};
use serde_json::Value;

/// Numbers between -1 and 1: SplitMix64 of the FNV-1a hash of the name and the index.
pub(crate) fn draw(name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    let seed =
        name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
    (1..=count as u64).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0
    })
}

pub(crate) fn values(name: &str, dims: &[u64]) -> Vec<u8> {
    let count = dims.iter().product::<u64>() as usize;
    let value = |v: f64| match () {
        () if name.contains("norm") => 1.0 + 0.3 * v,
        () if name.ends_with("bias") => 0.3 * v,
        () if name.starts_with("rope_f") => 2.0 + v,
        () if name.contains("sinks") => v,
        () => v * 1.5 / (dims[0] as f64).sqrt(),
    };
    draw(name, count).flat_map(|v| (value(v) as f32).to_le_bytes()).collect()
}

/// The file that a model of the fixture describes.
pub(crate) fn write(model: &Value, path: &Path) {
    let mut writer = GgufWriter::new();
    for (key, entry) in model["metadata"].as_object().unwrap() {
        let value = &entry[1];
        writer = match entry[0].as_str().unwrap() {
            "str" => writer.meta_str(key, value.as_str().unwrap()),
            "u32" => writer.meta_u32(key, value.as_u64().unwrap() as u32),
            "f32" => writer.meta_f32(key, value.as_f64().unwrap() as f32),
            other => panic!("metadata of type {other}"),
        };
    }
    for (name, dims) in model["tensors"].as_object().unwrap() {
        let dims: Vec<u64> = dims.as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        writer = writer.tensor(name, &dims, GgmlType::F32, &values(name, &dims));
    }
    writer.write(path).unwrap();
}

pub(crate) fn integers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

/// The model at `path`, which the engine computes.
pub(crate) fn opened(name: &str, path: &Path) -> (ModelFiles, ArchSpec) {
    let files = ModelFiles::open(path).unwrap();
    let spec = files.spec().unwrap_or_else(|why| panic!("{name}: {why}"));
    check(&spec).unwrap_or_else(|why| panic!("{name}: {why}"));
    (files, spec)
}

/// The squared error, relative to what is expected.
pub(crate) fn nmse(got: impl IntoIterator<Item = f64>, expect: impl IntoIterator<Item = f64>) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (a, b) in got.into_iter().zip(expect) {
        error += (a - b).powi(2);
        norm += b.powi(2);
    }
    error / norm
}

pub(crate) fn wide(v: &[f32]) -> impl Iterator<Item = f64> {
    v.iter().map(|v| f64::from(*v))
}

/// The NMSE of `logits` at the positions that a fixture shows; `expect` are those, a list for each position.
pub(crate) fn error_of_shown(logits: &[f32], shown: &[u32], expect: &Value) -> f64 {
    let expect: Vec<Vec<f64>> = serde_json::from_value(expect.clone()).unwrap();
    assert_eq!(shown.len(), expect.len());
    let vocab = expect[0].len();
    let ours = shown.iter().flat_map(|position| &logits[*position as usize * vocab..][..vocab]);
    nmse(ours.map(|v| f64::from(*v)), expect.into_iter().flatten())
}

pub(crate) fn logits<O: Ops>(
    mut ops: O,
    files: &ModelFiles,
    spec: &ArchSpec,
    tokens: &[u32],
    chunk: usize,
) -> Vec<f32> {
    let model = Model::load(&mut ops, files, spec, |_| ()).unwrap();
    let mut work = Workspace::new(&mut ops, spec, tokens.len(), tokens.len()).unwrap();
    let shapes = kv_shapes(spec, 2);
    let mut cache = KvMemory::new(&mut ops, &shapes).unwrap();
    let mut all = Vec::new();
    for (i, tokens) in tokens.chunks(chunk).enumerate() {
        let spans = [Span { first_row: 0, rows: tokens.len(), first_position: i * chunk, first_block: 0 }];
        let steps = vec![StepLayout { spans: &spans, blocks: &[1, 0] }; shapes.len()];
        let wanted: Vec<usize> = (0..tokens.len()).collect();
        model.forward(&mut ops, &mut work, &mut cache, tokens, &steps, &wanted).unwrap();
        all.extend(ops.read(&work.logits).unwrap());
    }
    all
}

#[test]
fn every_family_computes_what_its_reference_code_does() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/families.json")).unwrap();
    let (tokens, shown) = (integers(&fixture["tokens"]), integers(&fixture["shown"]));
    let folder = tempfile::tempdir().unwrap();
    let models = fixture["models"].as_array().unwrap();
    assert_eq!(models.len(), 13);
    for model in models {
        let name = model["name"].as_str().unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        write(model, &path);
        let (files, spec) = opened(name, &path);
        let (mut cpu, mut sizes) = (Cpu::new(1), Sizes::default());
        Model::load(&mut cpu, &files, &spec, |_| ()).unwrap();
        Model::survey(&mut sizes, &files, &spec).unwrap();
        assert_eq!(sizes.bytes(), cpu.bytes(), "{name}: what is counted beforehand is what loading takes");
        let reference = logits(Reference::new(Rounding::None), &files, &spec, &tokens, tokens.len());
        let error = error_of_shown(&reference, &shown, &model["logits"]);
        println!("{name}: {error:.1e}");
        assert!(error < 1e-12, "{name}: an NMSE of {error:e} from its reference code");
        let exact = logits(Exact::new(), &files, &spec, &tokens, tokens.len());
        let error = nmse(wide(&exact), wide(&reference));
        assert!(error < 1e-6, "{name}: {error:e} from unrounded keys and values");
        for chunk in [tokens.len(), 7, 1] {
            let cpu = logits(Cpu::new(2), &files, &spec, &tokens, chunk);
            let same = cpu.iter().zip(&exact).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && cpu.len() == exact.len(), "{name} in chunks of {chunk}");
        }
    }
}

/// The vectors of all `texts`, computed in steps of so many texts.
pub(crate) fn vectors<O: Ops>(
    mut ops: O,
    files: &ModelFiles,
    spec: &ArchSpec,
    texts: &[Vec<u32>],
    together: usize,
) -> Vec<f32> {
    let model = Model::load(&mut ops, files, spec, |_| ()).unwrap();
    let rows: usize = texts.iter().map(Vec::len).sum();
    let mut work = Workspace::new(&mut ops, spec, rows, texts.len()).unwrap();
    let all_blocks: usize = texts.iter().map(|text| text.len().div_ceil(16)).sum();
    let shapes = kv_shapes(spec, all_blocks);
    assert!(shapes.len() == 1 && shapes[0].layers == 1, "layers share their keys' place");
    let mut cache = KvMemory::new(&mut ops, &shapes).unwrap();
    let mut all = Vec::new();
    for texts in texts.chunks(together) {
        let (mut spans, mut ranges, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            let first_row = ranges.last().map_or(0, |range: &std::ops::Range<usize>| range.end);
            spans.push(Span { first_row, rows: text.len(), first_position: 0, first_block: blocks.len() });
            ranges.push(first_row..first_row + text.len());
            blocks.extend((blocks.len()..blocks.len() + text.len().div_ceil(16)).map(|b| (all_blocks - 1 - b) as u32));
        }
        let steps = [StepLayout { spans: &spans, blocks: &blocks }];
        model.forward(&mut ops, &mut work, &mut cache, &texts.concat(), &steps, &[]).unwrap();
        model.pool(&mut ops, &mut work, &ranges).unwrap();
        all.extend(ops.read(&work.picked).unwrap());
    }
    all
}

#[test]
fn every_encoder_computes_what_its_reference_code_does() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/families.json")).unwrap();
    let texts: Vec<Vec<u32>> = serde_json::from_value(fixture["texts"].clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let models = fixture["encoders"].as_array().unwrap();
    assert_eq!(models.len(), 4);
    for model in models {
        let name = model["name"].as_str().unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        write(model, &path);
        let (files, spec) = opened(name, &path);
        let reference = vectors(Reference::new(Rounding::None), &files, &spec, &texts, texts.len());
        let expect: Vec<Vec<f64>> = serde_json::from_value(model["vectors"].clone()).unwrap();
        let expect = expect.concat();
        assert_eq!(reference.len(), expect.len());
        let error: f64 = reference.iter().zip(&expect).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        println!("{name}: {:.1e}", error / texts.len() as f64);
        assert!(error / (texts.len() as f64) < 1e-12, "{name}: {error:e} from its reference code");
        let exact = vectors(Exact::new(), &files, &spec, &texts, texts.len());
        let error: f64 = exact.iter().zip(&reference).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        assert!(error / (texts.len() as f64) < 1e-6, "{name}: {error:e} from unrounded keys and values");
        for (threads, together) in [(2, texts.len()), (1, texts.len()), (3, 2), (2, 1)] {
            let cpu = vectors(Cpu::new(threads), &files, &spec, &texts, together);
            let same = cpu.iter().zip(&exact).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && cpu.len() == exact.len(), "{name}, {together} texts a step on {threads} threads");
        }
    }
}
