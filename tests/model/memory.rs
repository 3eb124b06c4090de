//! What a model takes is known before it is read.

use cuckoo_kernels::Counted;
use cuckoo_runtime::{Available, BatchWish, DeviceKind, Room, plan_on};

use super::*;
use crate::support::{MODEL, cuckoo, shelf};

const MIB: u64 = 1 << 20;

#[test]
fn what_is_planned_is_what_loading_and_computing_take() {
    let others = OTHERS.iter().filter_map(|(_, name, _)| other(name));
    for path in std::iter::once(weights()).chain(others) {
        let files = open(&path);
        let wish = BatchWish {
            sequences_max: 3,
            step_tokens_max: 48,
            step_target: Duration::MAX,
            drafts_max: 2,
            kv_bytes_max: 50 * MIB,
            kv_kind: KvKind::Q8_0,
            spill_bytes: 20 * MIB,
            context_tokens_max: Some(700),
        };
        let (limits, plan) = plan_on(
            &DeviceKind::Cpu { threads: 2 },
            ((&files.files, &files.spec), None, &[]),
            &wish,
            Room::shared(Available::UNKNOWN),
        )
        .unwrap();
        let mut engine = Engine::new(Cpu::new(2), &files.files, &files.spec, limits).unwrap();
        let planned = plan.weights + plan.activations + plan.kv + plan.spill;
        assert_eq!(engine.backend().bytes(), planned, "{}: {plan:?}", path.display());
        let mut batch = Batch::with_kv(limits, WeightsHash([0; 32]), &KvPlan::new(&files.spec, &limits));
        (0..3).for_each(|id| batch.assign(assign(id, &[7; 200], 200, 4, &sampled(1))));
        while let Some(step) = batch.plan() {
            let output = engine.step(&step).unwrap();
            batch.apply(step, output, Duration::ZERO);
        }
        assert_eq!(engine.backend().bytes(), planned, "computing takes no more");
        // The weights' part is about the file's, and what is read at once a part of that.
        let file = std::fs::metadata(&path).unwrap().len();
        assert!(plan.weights > file / 2 && plan.weights < file * 2 && plan.reading < file, "{plan:?} of {file}");
    }
}

#[test]
fn a_miner_without_the_memory_says_what_it_would_take() {
    let home = tempfile::tempdir().unwrap();
    let mut command = cuckoo();
    command.args(["up", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--model", MODEL, "--memory-mib", "60"]);
    let output = command.arg("--home").arg(home.path()).arg("--models-dir").arg(shelf()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for part in
        ["of memory are needed and 60.0 MiB are there (--memory-mib)", "for weights", "keys and values of 512 tokens"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}
