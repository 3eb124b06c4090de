//! What is CUDA's alone; that operations compute the contract is tested with those of the CPU backend (`cpu/tests.rs`).

#![allow(clippy::unwrap_used)]

mod rounding;
mod routing;
mod sampling;

use std::ffi::CStr;

use super::*;
use crate::check::Case;

/// Whoever adds a kernel to a header and forgets the emulator's registry finds out here.
#[test]
fn every_kernel_of_a_format_can_be_launched() {
    let names: Vec<_> = Emulator::kernels().collect();
    assert!(names.iter().all(|name| name.to_string_lossy().starts_with("cuckoo_")), "{names:?}");
    for kind in &matrix::KINDS {
        assert!(names.contains(&kind.linear) && names.contains(&kind.embed), "{kind:?}");
    }
}

#[test]
fn a_fault_says_what_where() {
    let Some(mut machine) = Emulator::new(0, 1) else { return };
    let extent = machine::Extent { grid: [1; 3], threads: 32, shared_bytes: 0 };
    // SAFETY: a kernel that does not exist runs nothing, and arguments of another size are refused.
    let (none, short) = unsafe {
        (machine.launch(c"cuckoo_none", extent, &[0; 8]), machine.launch(c"cuckoo_norm_rows", extent, &[0; 8]))
    };
    assert_eq!(none.unwrap_err().to_string(), "device fault: cuckoo_none: there is no such kernel");
    assert_eq!(short.unwrap_err().to_string(), "device fault: cuckoo_norm_rows: arguments of another size");
}

/// What `cuckoo doctor` runs on a GPU is right on the emulator, and leaves out no kernel that computes the contract.
#[test]
fn the_self_check_runs_every_kernel_of_the_contract() {
    for order in [7, 0] {
        let Some(emulator) = Emulator::new(order, 2) else { return };
        let mut cuda = Cuda::new(emulator);
        // Large ones take their time, and are the same tiles many times.
        for case in Case::all().into_iter().filter(|case| order == 0 || !matches!(case, Case::Wide(_))) {
            case.check(&mut cuda).unwrap_or_else(|wrong| panic!("{case}: {wrong}"));
        }
        if order != 0 {
            continue;
        }
        let fast = |name: &CStr| {
            let name = name.to_string_lossy();
            [
                "cuckoo_narrow_",
                "cuckoo_gemm_wide_f16",
                "cuckoo_gemm_wide_bf16",
                "cuckoo_gemm_skinny_",
                "cuckoo_gemm_hopper_",
            ]
            .iter()
            .any(|of| name.starts_with(of))
        };
        let missed: Vec<_> =
            Emulator::kernels().filter(|name| !fast(name) && !cuda.machine.launched.contains(name)).collect();
        assert!(missed.is_empty(), "never launched: {missed:?}");
    }
}
