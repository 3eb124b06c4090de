//! Which models a miner could have loaded, and which of them are asked for.
//!
//! The miner says what it could serve and loads and unloads; a scheduler only says what it needs. What is needed is a list, not
//! a change: said again, or by another scheduler, it does no harm.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Invalid, Price, WeightsHash};
use crate::limits;

/// Frames of a miner's control stream, after its [`super::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromMiner {
    /// What its devices could serve. Said after the welcome, and again when that has changed; the newest counts.
    Devices(Vec<Capacity>),
}

/// What one device could serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Its number in the miner, which its offers name.
    pub device: u32,
    /// Bytes that models may take together.
    pub memory_bytes: u64,
    /// Models that it could have loaded, each once; at most [`limits::LOADABLE_MAX`].
    pub models: Vec<Loadable>,
}

/// A model that a device could have loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loadable {
    /// Its weights.
    pub weights: WeightsHash,
    /// Bytes that it takes.
    pub memory_bytes: u64,
    /// How long it takes to load, in milliseconds: as it did last, or as is expected.
    pub load_ms: u32,
    /// What the miner will ask for its tokens.
    pub ask: Price,
}

impl FromMiner {
    /// Refuses more than there can be, and what is said twice.
    pub fn check(&self) -> Result<(), Invalid> {
        let Self::Devices(devices) = self;
        if devices.len() > limits::DEVICES_MAX {
            return Err(Invalid(format!("a miner has at most {} devices", limits::DEVICES_MAX)));
        }
        if devices.iter().map(|device| device.device).collect::<BTreeSet<_>>().len() < devices.len() {
            return Err(Invalid("a miner names a device twice".to_owned()));
        }
        devices.iter().try_for_each(Capacity::check)
    }
}

impl Capacity {
    fn check(&self) -> Result<(), Invalid> {
        if self.models.len() > limits::LOADABLE_MAX {
            return Err(Invalid(format!("a device could serve at most {} models", limits::LOADABLE_MAX)));
        }
        if self.models.iter().map(|model| model.weights).collect::<BTreeSet<_>>().len() < self.models.len() {
            return Err(Invalid("a device names a model twice".to_owned()));
        }
        match self.models.iter().all(|model| model.ask.is_sane()) {
            true => Ok(()),
            false => Err(Invalid("the price asked is absurdly high".to_owned())),
        }
    }
}
