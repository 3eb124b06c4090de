//! A packed folder: everything that is read from it before its hash is trusted.
#![no_main]

use std::io::Write as _;

use cuckoo_models::ModelFiles;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("there is a temporary folder");
    file.write_all(bytes).expect("it has room");
    let Ok(files) = ModelFiles::open(file.path()) else { return };
    let _ = (files.spec(), files.tokenizer(), files.chat_template(), files.quantization());
    for tensor in files.tensors() {
        assert!(files.read(&tensor).is_ok(), "{} lies in the file", tensor.name);
    }
});
