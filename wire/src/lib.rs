//! What both ends of a link must agree on, and nothing else: no actors, no policy.
//!
//! ```text
//! developer ──(one bidirectional stream a request: Call ▶ Reply…)──▶ scheduler
//! miner     ──(control stream: Hello ▶, ◀ Welcome, Assign, Cancel, Credit)──▶ scheduler
//!           ──(one stream a replica: Offer, then one Step frame a decode step)──▶
//! ```
//!
//! A frame is a length, a version byte and a postcard message; every bound stands in [`limits`]. Peers prove who they
//! are by Ed25519 raw public keys inside the QUIC handshake, and are named by the hash of that key.

#![forbid(unsafe_code)]

pub mod limits;

pub mod message;

mod address;
mod block_hash;
mod frame;
mod identity;
mod quic;
mod verifier;

pub use address::{Address, AddressError};
pub use block_hash::BlockHash;
pub use frame::{FrameError, FrameReader, FrameWriter, decode, encode};
pub use identity::{Identity, IdentityError, PeerId, PublicKey, Signature};
pub use quic::{Admission, Close, QuicError, Role, connect, listen, local_endpoint, peer_of, role_of};
