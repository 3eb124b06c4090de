//! Everything that is read from a model file before its hash is trusted: header, sizes, vocabulary, template.
#![no_main]

use cuckoo_models::{ArchSpec, ChatTemplate, Gguf, Message, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes, bytes.len() as u64) else { return };
    for tensor in gguf.tensors() {
        assert!(tensor.bytes.start < tensor.bytes.end && tensor.bytes.end <= bytes.len() as u64);
    }
    let _ = ArchSpec::from_gguf(&gguf);
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
        for special in [false, true] {
            // A hostile vocabulary may lack tokens or misspell them, but its ids are always its own.
            if let Ok(tokens) = tokenizer.encode(&text, special) {
                assert!(tokens.iter().all(|token| (*token as usize) < tokenizer.vocab_len()));
                tokenizer.decode(&tokens);
            }
        }
    }
    if gguf.str("tokenizer.chat_template").is_some_and(|source| source.len() < 200)
        && let Ok(template) = ChatTemplate::from_gguf(&gguf)
    {
        let _ = template.render(&[Message::new("user", "hi")], true);
    }
});
