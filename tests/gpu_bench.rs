//! `benches/gpu` and `benches/peers/gpu.py` without a GPU: the table and its arithmetic by hand, every kind of row on the emulator,
//! and what is said where there is nothing to measure.

#![allow(dead_code, reason = "tests use the parts that need no GPU")]

#[path = "../benches/gpu/command.rs"]
mod command;
#[path = "../benches/gpu/contract.rs"]
mod contract;
#[path = "../benches/gpu/cost.rs"]
mod cost;
#[path = "../benches/gpu/data.rs"]
mod data;
#[path = "../benches/gpu/measure.rs"]
mod measure;
#[path = "../benches/gpu/models.rs"]
mod models;
#[path = "../benches/gpu/op.rs"]
mod op;
#[path = "../benches/gpu/report.rs"]
mod report;
#[path = "../src/command/bench/rig.rs"]
mod rig;
#[path = "../benches/gpu/run.rs"]
mod run;
#[path = "../benches/gpu/table.rs"]
mod table;
#[path = "../benches/gpu/work.rs"]
mod work;

mod emulated;
mod peers;

use cuckoo_kernels::cuda::{DataSheet, NoGpu};

use self::cost::{Cost, Rates, Target, Unit};
use self::table::{Row, rows};

fn h200() -> Rates {
    Rates::of(&DataSheet::of("NVIDIA H200").unwrap())
}

fn row(name: &str) -> Row {
    rows().into_iter().find(|row| row.name == name).unwrap_or_else(|| panic!("there is no row {name}"))
}

#[test]
fn rooflines_are_those_of_the_design() {
    // The design's table: microseconds on an H200 at 4.8 TB/s, 989 and 1979 TFLOP/s.
    let table = [
        ("norm 8192x4096", 55.9),
        ("norm 64x4096", 0.4),
        ("rope + KV store, 8192 rows", 41.9),
        ("gate 8192x14336", 146.8),
        ("BF16 28672x4096, M=4096", 973.0),
        ("BF16 8192x8192, M=8192", 1112.0),
        ("FP8 4096x14336, M=4096", 243.0),
        ("BF16 28672x4096, M=1", 49.0),
        ("BF16 4096x14336, M=1", 24.5),
        ("BF16 6144x4096, M=16", 10.6),
        ("BF16 6144x4096, M=64", 10.8),
        ("BF16 24576x4096, M=1", 41.9),
        ("BF16 4096x12288, M=1", 21.0),
        ("BF16 128256x4096, M=1", 219.0),
        ("BF16 151936x4096, M=1", 259.0),
        ("Q4_0 28672x4096, M=1", 13.8),
        ("Q4_K 28672x4096, M=1", 13.8),
        ("Q4_0 4096x14336, M=1", 6.9),
        ("Q4_K 4096x14336, M=1", 6.9),
        ("Q4_K 28672x4096, M=16", 13.8),
        ("FP8 28672x4096, M=1", 24.5),
        ("Q4_K 28672x4096, M=4096", 973.0),
        ("paged decode B=32, KV 4096 bf16", 111.8),
        ("paged decode B=64, KV 8192 q8_0", 223.7),
        ("paged decode B=1, KV 8192 bf16", 7.0),
        ("prefill, causal 8192 bf16", 556.0),
        ("chunk of 2048 in 32768 bf16", 1077.0),
        ("sampling B=64, 128256 tokens, top-k 50, top-p 0.9", 6.8),
        ("KV pack, 4096 tokens bf16, to the host", 224.0),
    ];
    for (name, us) in table {
        let floor = h200().floor_us(&row(name).roofline()).unwrap();
        // Of the smallest the design gives one digit.
        let within = if us < 1.0 { 0.1 } else { 0.015 };
        assert!((floor / us - 1.0).abs() < within, "{name}: {floor:.2} us, the design says {us}");
    }
}

#[test]
fn bytes_and_operations_are_those_that_were_counted_by_hand() {
    let cost = |name: &str| row(name).op.cost();
    let memory = |bytes| Cost { bytes, link_bytes: 0, flops: 0, unit: Unit::Bf16 };
    assert_eq!(cost("norm 64x4096"), memory(64 * 4096 * 4 * 2 + 4096 * 4));
    assert_eq!(cost("gate 8192x14336"), memory(8192 * 14_336 * 4 * 3));
    // One token: 6144 values read, 5120 written, 8 heads of keys and of values kept in two bytes a value.
    assert_eq!(cost("rope + KV store, 1 row"), memory(6144 * 4 + 5120 * 4 + 2 * 8 * 128 * 2));
    // Blocks of 32 weights have 18 bytes, superblocks of 256 have 144.
    let integers = Cost { flops: 2 * 28_672 * 4096, unit: Unit::Int8, ..memory(66_060_288 + 4 * (28_672 + 4096)) };
    assert_eq!(cost("Q4_0 28672x4096, M=1"), integers);
    assert_eq!(cost("Q4_K 28672x4096, M=1"), integers);
    let square = 8192 * 8192;
    assert_eq!(
        cost("BF16 8192x8192, M=8192"),
        Cost { flops: 2 * 8192 * square, ..memory(square * 2 + square * 4 * 2) }
    );
    // Queries and outputs of 32 rows, 4096 positions of 4 KiB for each; 4096 pairs for each of 32 heads of 128, twice.
    assert_eq!(
        cost("paged decode B=32, KV 4096 bf16"),
        Cost { flops: 32 * 4096 * 4 * 4096, ..memory(32 * (4096 * 8 + 4096 * 4096)) }
    );
    // 34 bytes keep 32 values.
    assert_eq!(cost("paged decode B=64, KV 8192 q8_0").bytes, 64 * (4096 * 8 + 8192 * 2 * 8 * 136));
    assert_eq!(cost("prefill, causal 8192 bf16").flops, 4 * 4096 * (8192 * 8193 / 2));
    assert_eq!(cost("chunk of 2048 in 32768 bf16").flops, 4 * 4096 * (2048 * (30_721 + 32_768) / 2));
    let packed = 4096 * 32 * 2 * 8 * 128 * 2;
    assert_eq!(cost("KV pack, 4096 tokens bf16, to the host"), Cost { link_bytes: packed, ..memory(packed) });
}

#[test]
fn floors_are_of_whatever_takes_longest() {
    let rates = Rates {
        bytes_per_s: 1e12,
        link_bytes_per_s: 1e10,
        bf16_per_s: 1e14,
        int8_per_s: 2e14,
        fp8_per_s: f64::INFINITY,
    };
    let cost = |bytes, link_bytes, flops, unit| Cost { bytes, link_bytes, flops, unit };
    assert_eq!(rates.floor_us(&cost(1_000_000, 0, 0, Unit::Bf16)), Some(1.0));
    assert_eq!(rates.floor_us(&cost(1_000_000, 1_000_000, 0, Unit::Bf16)), Some(100.0));
    assert_eq!(rates.floor_us(&cost(1_000_000, 0, 400_000_000, Unit::Bf16)), Some(4.0));
    assert_eq!(rates.floor_us(&cost(1_000_000, 0, 400_000_000, Unit::Int8)), Some(2.0));
    assert_eq!(rates.floor_us(&cost(0, 0, 400_000_000, Unit::Fp8)), None, "nothing known bounds it");
    assert!(rates.is_bound_by_arithmetic(&cost(1_000_000, 0, 400_000_000, Unit::Bf16)));
    assert!(!rates.is_bound_by_arithmetic(&cost(10_000_000, 0, 400_000_000, Unit::Bf16)));
    assert!(Target::Percent(75.0).is_met(4.0, 3.0) && !Target::Percent(75.1).is_met(4.0, 3.0));
    assert!(Target::Micros(3.0).is_met(3.0, 0.4) && !Target::Micros(3.0).is_met(3.1, 0.4));
}

#[test]
fn rows_are_all_different_and_told_to_peers() {
    let list = command::list();
    let names: Vec<&str> = list["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    let different: std::collections::BTreeSet<&&str> = names.iter().collect();
    assert_eq!(names.len(), different.len());
    assert_eq!(list["models"].as_array().unwrap().len(), 9);
    assert_eq!(list["rows"][0]["op"]["kind"], "norm");
    assert!(list["not_covered"].as_array().unwrap().iter().all(|row| row["why"].as_str().unwrap().len() > 20));
}

#[test]
fn without_a_gpu_it_says_why_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("found.json");
    let args = ["gpu", "--out", out.to_str().unwrap()].map(Into::into);
    if cuckoo_kernels::cuda::gpus().is_err() {
        assert_eq!(format!("{:?}", command::main(args)), format!("{:?}", std::process::ExitCode::from(2)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    let why = command::chosen(Err(NoGpu::NoDriver), 0).unwrap_err();
    assert!(why.contains("there is no NVIDIA driver"), "{why}");
    let gpu = cuckoo_kernels::cuda::Gpu {
        ordinal: 1,
        name: "a card".to_owned(),
        capability: (9, 0),
        multiprocessors: 132,
        memory_bytes: 1 << 37,
        driver: 13_000,
    };
    assert_eq!(command::chosen(Ok(vec![gpu.clone()]), 0).unwrap_err(), "there is no GPU 0; there are 1");
    assert_eq!(command::chosen(Ok(vec![gpu.clone()]), 1).unwrap(), gpu);
}
