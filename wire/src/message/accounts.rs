//! What can be bought, and what became of the money: the catalog's and the ledger's messages.

use serde::{Deserialize, Serialize};

use super::{Price, RequestId};
use crate::identity::PeerId;

/// A model that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Prompt and output together.
    pub context_tokens: u32,
    /// As the file says, e.g. `Q4_1`.
    pub quantization: String,
    /// SPDX identifier.
    pub license: String,
    /// Who is paid the royalty.
    pub author: PeerId,
    /// Its share of the cost, in hundredths of a percent.
    pub royalty_bps: u16,
    /// The manifest's time stamp, Unix seconds.
    pub created_unix: u64,
    /// Replicas that serve it now.
    pub replicas: u32,
    /// The lowest ask, if anybody serves it.
    pub lowest_ask: Option<Price>,
    /// Numbers in the vector that it makes of a text; `None` for a model that generates.
    pub embedding_dims: Option<u32>,
    /// The model that it is an adapter of, if it is one.
    pub parent: Option<String>,
}

/// Accounts of one caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wallet {
    /// Name and balance in nano-credits.
    pub balances: Vec<(String, i64)>,
    /// The last entries of those accounts, newest first.
    pub entries: Vec<WalletEntry>,
}

/// One posting, from the side of one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalletEntry {
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// The account.
    pub account: String,
    /// Where it came from or went to.
    pub counterparty: String,
    /// Positive when received.
    pub amount: i64,
    /// What for, e.g. `settle`.
    pub kind: String,
    /// The request it belongs to.
    pub request: Option<RequestId>,
}
