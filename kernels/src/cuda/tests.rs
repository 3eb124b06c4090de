//! What is CUDA's alone; that operations compute the contract is tested with those of the CPU backend (`cpu/tests.rs`).

#![allow(clippy::unwrap_used)]

mod sampling;

use super::*;

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
