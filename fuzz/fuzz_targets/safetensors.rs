//! Everything that is read from a safetensors file and its configuration before their hashes are trusted.
#![no_main]

use cuckoo_models::{ArchSpec, SafeTensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The input is a configuration, a NUL, and a file; without a NUL it is only a file.
    let cut = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    let (config, file) = bytes.split_at(cut);
    for file in [bytes, file.strip_prefix(&[0]).unwrap_or(file)] {
        let Ok(tensors) = SafeTensors::parse(file, file.len() as u64) else { continue };
        for tensor in tensors.tensors() {
            assert!(tensor.bytes.start <= tensor.bytes.end && tensor.bytes.end <= file.len() as u64);
        }
        if let Ok(config) = std::str::from_utf8(config) {
            let _ = ArchSpec::from_hf_config(config, &tensors);
        }
    }
    if let Ok(config) = std::str::from_utf8(bytes) {
        let _ = ArchSpec::from_hf_config(config, &SafeTensors::default());
    }
});
