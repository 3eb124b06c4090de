//! The models that a miner may serve: opened once, so that what each takes in some room is known at any time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cuckoo_models::{Adapter, ArchSpec, ModelFiles, same_vocabulary};
use cuckoo_wire::limits::ADAPTERS_MAX;
use cuckoo_wire::message::{Loadable, WeightsHash};

use super::{MineConfig, MineError, ModelConfig};
use crate::device::{Adapters, DeviceConfig, DeviceKind, DraftConfig};
use crate::forward;
use crate::memory::{self, BatchWish, MemoryPlan, Room};

/// What a file is thought to be read at, in bytes a second, before it was.
const LOAD_RATE_PRIOR: u64 = 500 << 20;

/// All of them, and how they are to be served.
#[derive(Debug)]
pub(super) struct Stock {
    config: MineConfig,
    models: Vec<Opened>,
}

/// A model whose headers have been read.
#[derive(Debug)]
struct Opened {
    config: ModelConfig,
    files: Arc<ModelFiles>,
    spec: ArchSpec,
    draft: Option<DraftConfig>,
    adapters: Adapters,
}

impl Stock {
    /// Opens all models of `config`.
    pub(super) fn open(config: MineConfig) -> Result<Self, MineError> {
        let models = config.models.iter().map(|model| Opened::open(&config, model)).collect::<Result<_, _>>()?;
        Ok(Self { config, models })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.models.len()
    }

    /// A model's hash.
    pub(super) fn hash(&self, model: usize) -> WeightsHash {
        self.models[model].config.hash
    }

    /// A model on a device of some kind, as far as `room` goes.
    pub(super) fn plan(
        &self,
        model: usize,
        kind: &DeviceKind,
        room: Room,
    ) -> Result<(DeviceConfig, MemoryPlan), MineError> {
        let (opened, config) = (&self.models[model], &self.config);
        let customary = kind.customary();
        let wish = BatchWish {
            sequences_max: config.batch_sequences_max.unwrap_or(customary.sequences_max),
            step_tokens_max: config.step_tokens_max.unwrap_or(customary.step_tokens_max),
            step_target: kind.step_target(),
            drafts_max: config.drafts_max,
            kv_bytes_max: config.kv_bytes_max.unwrap_or(customary.kv_bytes_max),
            kv_kind: config.kv_kind,
            spill_bytes: config.spill_bytes_max,
            context_tokens_max: config.context_tokens_max,
        };
        let Opened { files, spec, draft, adapters, .. } = opened;
        let drafts = draft.as_ref().map(|draft| (&*draft.files, &draft.spec));
        let beside: Vec<&Adapter> = adapters.iter().map(|(.., adapter)| &**adapter).collect();
        let planned = memory::plan_on(kind, ((files, spec), drafts, &beside), &wish, room);
        let (limits, memory) = planned.map_err(|why| MineError::Memory { path: opened.config.path.clone(), why })?;
        let device = DeviceConfig {
            kind: kind.clone(),
            files: files.clone(),
            spec: spec.clone(),
            hash: opened.config.hash,
            draft: draft.clone(),
            ask: config.ask,
            limits,
            adapters: adapters.clone(),
        };
        Ok((device, memory))
    }

    /// What a scheduler is told of a model that takes `alone` in a device's room, and took so long to load, if it has been.
    pub(super) fn loadable(
        &self,
        model: usize,
        (alone, room): (&MemoryPlan, Room),
        took: Option<Duration>,
    ) -> Loadable {
        let took = took.unwrap_or_else(|| Duration::from_millis(alone.weights.saturating_mul(1_000) / LOAD_RATE_PRIOR));
        Loadable {
            weights: self.hash(model),
            memory_bytes: room.takes(alone),
            load_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
            ask: self.config.ask,
        }
    }
}

impl Opened {
    fn open(config: &MineConfig, model: &ModelConfig) -> Result<Self, MineError> {
        let failed = |why: String| MineError::Model { path: model.path.clone(), why };
        let files = ModelFiles::open(&model.path).map_err(|e| failed(e.to_string()))?;
        let spec = files.spec().map_err(|e| failed(e.to_string()))?;
        forward::check(&spec).map_err(|e| failed(e.to_string()))?;
        let adapters = adapters(model, &spec)?;
        let draft = model.draft.as_ref().map(|path| draft_config(config, path, &files)).transpose()?;
        Ok(Self { config: model.clone(), files: Arc::new(files), spec, draft, adapters })
    }
}

/// Opens a model's adapters, as many as may be.
fn adapters(model: &ModelConfig, spec: &ArchSpec) -> Result<Adapters, MineError> {
    let mut opened = Adapters::new();
    for (path, hash) in &model.adapters {
        // Named twice, it is still one.
        if opened.iter().all(|(known, ..)| known != hash) {
            let adapter = Adapter::open(path, spec);
            let adapter = adapter.map_err(|e| MineError::Model { path: path.clone(), why: e.to_string() })?;
            opened.push((*hash, path.clone(), Arc::new(adapter)));
        }
    }
    match opened.len() {
        count if count > ADAPTERS_MAX => Err(MineError::Adapters { path: model.path.clone(), count }),
        _ => Ok(opened),
    }
}

/// A draft model for the model whose files are `target`, if it can be one.
fn draft_config(config: &MineConfig, path: &Path, target: &ModelFiles) -> Result<DraftConfig, MineError> {
    let failed = |why: String| MineError::Draft { path: path.to_owned(), why };
    if config.drafts_max == 0 {
        return Err(failed("there are to be no drafts: allow some, or leave it out".to_owned()));
    }
    let files = ModelFiles::open(path).map_err(|e| failed(e.to_string()))?;
    let spec = files.spec().map_err(|e| failed(e.to_string()))?;
    forward::check(&spec).map_err(|e| failed(e.to_string()))?;
    same_vocabulary(target, &files).map_err(|e| failed(e.to_string()))?;
    Ok(DraftConfig { files: Arc::new(files), spec })
}
