//! Every message that may come over the network, from bytes that nobody vouches for.
#![no_main]

use cuckoo_wire::{
    decode, encode,
    message::{Call, FromMiner, Hello, Offer, ReplicaFrame, Reply, Step, ToMiner},
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// Decodes a frame's body; what decodes must survive another round.
fn round<T: Serialize + DeserializeOwned>(body: &[u8]) -> Option<T> {
    let message: T = decode(body).ok()?;
    let again = encode(&message, usize::MAX).expect("a decoded message can be encoded");
    let twice: T = decode(&again).expect("an encoded message can be decoded");
    assert_eq!(encode(&twice, usize::MAX).expect("and encoded again"), again);
    Some(message)
}

fuzz_target!(|body: &[u8]| {
    match round::<Call>(body) {
        Some(Call::Generate(generate)) => _ = generate.check(),
        Some(Call::Embed(embed)) => _ = embed.check(),
        Some(Call::Models | Call::Wallet { .. } | Call::Explain { .. } | Call::Resume { .. }) | None => {}
    }
    round::<Reply>(body);
    round::<Hello>(body);
    round::<FromMiner>(body);
    round::<Offer>(body);
    round::<ReplicaFrame>(body);
    round::<Step>(body);
    round::<ToMiner>(body);
});
