//! Names of full KV blocks: what a block holds is decided by everything before and in it, so a hash of that names it,
//! on this miner and on any other.

use std::fmt;

/// Separates these hashes from every other use of BLAKE3, and one layout of them from the next.
const CONTEXT: &str = "cuckoo 2026 kv block v1";

/// The content of one full block and of all blocks before it: 128 bits of BLAKE3.
///
/// A chain: `root(model, adapter, salt)`, then `next` for each block's tokens. The root holds what the whole chain depends on, so
/// two models, two adapters or two tenants never share a name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(u128);

impl BlockHash {
    /// A block without a name. No chain ever reaches it.
    pub const NONE: Self = Self(0);

    /// Before the first block: what computes (weights, and the adapter if there is one), and who may share with whom.
    pub fn root(model: &[u8; 32], adapter: Option<&[u8; 32]>, salt: &[u8; 16]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(model);
        hasher.update(salt);
        // Fields of fixed lengths, so what is absent cannot be taken for something else.
        adapter.into_iter().for_each(|adapter| _ = hasher.update(adapter));
        Self::truncated(&hasher)
    }

    /// After one more block of tokens.
    pub fn next(self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0.to_le_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self::truncated(&hasher)
    }

    fn truncated(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        // Zero means "no name"; giving it up costs nothing.
        Self(u128::from_le_bytes(bytes).max(1))
    }

    /// What stands for it in a replica's news and in a scheduler's index: its first 64 bits.
    pub fn short(self) -> u64 {
        self.0 as u64
    }

    /// Names of all full blocks of `tokens`, in order.
    pub fn chain(root: Self, tokens: &[u32], block_tokens: usize) -> impl Iterator<Item = Self> {
        tokens.chunks_exact(block_tokens).scan(root, |name, block| {
            *name = name.next(block);
            Some(*name)
        })
    }

    /// The name of this number, for tests of what does not care what names stand for.
    pub fn of(value: u128) -> Self {
        Self(value.max(1))
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHash({:032x})", self.0)
    }
}
