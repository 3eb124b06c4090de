//! A tiny model of every family against a transformer written from the families' reference code, in numpy
//! (`tests/fixtures/make_families.py`): the f64 reference must give its logits, the CPU the contract's bits.

use std::fs::File;

use cuckoo_kernels::ops::{Span, StepLayout};
use cuckoo_kernels::reference::Rounding;
use cuckoo_kernels::{Cpu, Exact, Ops, Reference};
use cuckoo_models::gguf::GgufWriter;
use cuckoo_models::{ArchSpec, GgmlType, Gguf};
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

fn values(name: &str, dims: &[u64]) -> Vec<u8> {
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
pub(crate) fn write(model: &Value, path: &std::path::Path) {
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

fn logits<O: Ops>(mut ops: O, gguf: &Gguf, file: &File, spec: &ArchSpec, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let model = Model::load(&mut ops, gguf, file, spec, |_| ()).unwrap();
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
    let integers = |v: &Value| v.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let (tokens, shown) = (integers(&fixture["tokens"]), integers(&fixture["shown"]));
    let folder = tempfile::tempdir().unwrap();
    let models = fixture["models"].as_array().unwrap();
    assert_eq!(models.len(), 13);
    for model in models {
        let name = model["name"].as_str().unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        write(model, &path);
        let gguf = Gguf::open(&path).unwrap();
        let spec = ArchSpec::from_gguf(&gguf).unwrap_or_else(|why| panic!("{name}: {why}"));
        check(&spec).unwrap_or_else(|why| panic!("{name}: {why}"));
        let file = File::open(&path).unwrap();
        let reference = logits(Reference::new(Rounding::None), &gguf, &file, &spec, &tokens, tokens.len());
        let (mut error, mut norm) = (0.0, 0.0);
        for (position, expect) in shown.iter().zip(model["logits"].as_array().unwrap()) {
            let ours = &reference[*position as usize * spec.vocab..][..spec.vocab];
            for (a, b) in ours.iter().zip(expect.as_array().unwrap()) {
                error += (f64::from(*a) - b.as_f64().unwrap()).powi(2);
                norm += b.as_f64().unwrap().powi(2);
            }
        }
        let nmse = error / norm;
        println!("{name}: {nmse:.1e}");
        assert!(nmse < 1e-12, "{name}: an NMSE of {nmse:e} from its reference code");
        let exact = logits(Exact::new(), &gguf, &file, &spec, &tokens, tokens.len());
        let error: f64 = exact.iter().zip(&reference).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let norm: f64 = reference.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!(error / norm < 1e-6, "{name}: {:e} from unrounded keys and values", error / norm);
        for chunk in [tokens.len(), 7, 1] {
            let cpu = logits(Cpu::new(2), &gguf, &file, &spec, &tokens, chunk);
            let same = cpu.iter().zip(&exact).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && cpu.len() == exact.len(), "{name} in chunks of {chunk}");
        }
    }
}
