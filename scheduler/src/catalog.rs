//! The models that can be asked for: manifests on the shelf, with what the edge needs of their weights files: the
//! tokenizer, the template and the sizes. New manifests are picked up while running.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cuckoo_models::{
    Adapter, ArchSpec, Base, ChatTemplate, Constrainer, ConstraintError, Gguf, Shelf, SignedManifest, Tokenizer,
};
use cuckoo_wire::limits::{STOP_TOKENS_ASKED_MAX, STOP_TOKENS_MAX};
use cuckoo_wire::message::{ModelInfo, Prompt, Refusal, WeightsHash};
use cuckoo_wire::{PeerId, PublicKey};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use crate::dispatcher::{Computes, Quote};
use crate::ledger::{ROYALTY_BPS_MAX, Royalty};

/// How often the shelf is looked through for new manifests.
const RESCAN_INTERVAL: Duration = Duration::from_secs(2);

/// A model that can be asked for: weights, or an adapter of some.
pub(crate) struct Model {
    manifest: SignedManifest,
    /// Where it is an adapter: the model that it changes.
    base: Option<Arc<Model>>,
    edge: Arc<Edge>,
}

/// What the edge needs of weights; an adapter has its base's.
struct Edge {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    context_tokens: u32,
    /// Made when the first constraint is met.
    constrainer: OnceLock<Result<Constrainer, ConstraintError>>,
    /// Found when the first request wants DRY and does not say what ends a repetition.
    dry_breakers: OnceLock<Result<Vec<u32>, Refusal>>,
}

type Models = BTreeMap<String, Arc<Model>>;

/// Messages of the catalog.
pub(crate) enum CatalogMsg {
    /// Look through the shelf.
    Rescan,
}

pub(crate) struct Catalog;

pub(crate) struct State {
    shelf: PathBuf,
    models: watch::Sender<Arc<Models>>,
    /// Manifests that could not be served, so that each is reported once.
    refused: BTreeMap<String, String>,
}

/// Read access to the catalog.
#[derive(Clone)]
pub(crate) struct CatalogHandle(watch::Receiver<Arc<Models>>);

impl CatalogHandle {
    /// Reads the shelf in `dir` and goes on watching it.
    pub(crate) async fn start(dir: PathBuf, supervisor: ActorCell) -> Result<Self, ractor::SpawnErr> {
        let (models_in, models) = watch::channel(Arc::new(Models::new()));
        Actor::spawn_linked(None, Catalog, (dir, models_in), supervisor).await?;
        Ok(Self(models))
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Model>> {
        self.0.borrow().get(name).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Model>> {
        self.0.borrow().values().cloned().collect()
    }
}

impl Actor for Catalog {
    type Msg = CatalogMsg;
    type State = State;
    type Arguments = (PathBuf, watch::Sender<Arc<Models>>);

    async fn pre_start(
        &self,
        me: ActorRef<CatalogMsg>,
        (shelf, models): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let mut state = State { shelf, models, refused: BTreeMap::new() };
        state.rescan().await?;
        me.send_interval(RESCAN_INTERVAL, || CatalogMsg::Rescan);
        Ok(state)
    }

    async fn handle(
        &self,
        _me: ActorRef<CatalogMsg>,
        message: CatalogMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let CatalogMsg::Rescan = message;
        state.rescan().await
    }
}

impl State {
    /// Loads what is new on the shelf, on a thread that may block.
    async fn rescan(&mut self) -> Result<(), ActorProcessingErr> {
        let (dir, known) = (self.shelf.clone(), self.models.borrow().clone());
        let mut refused = std::mem::take(&mut self.refused);
        let (models, refused) = tokio::task::spawn_blocking(move || {
            let models = scan(&dir, &known, &mut refused);
            (models, refused)
        })
        .await?;
        self.refused = refused;
        if let Some(models) = models {
            self.models.send_replace(Arc::new(models));
        }
        Ok(())
    }
}

/// The catalog as the shelf has it now, or `None` if nothing changed.
fn scan(dir: &PathBuf, known: &Models, refused: &mut BTreeMap<String, String>) -> Option<Models> {
    let opened = Shelf::open(dir).and_then(|shelf| Ok((shelf.manifests()?, shelf)));
    let (manifests, shelf) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(%error, "the shelf of models cannot be read");
            return None;
        }
    };
    let mut models = known.clone();
    // Adapters after the models that they change.
    let (adapters, weights): (Vec<_>, Vec<_>) = manifests.into_iter().partition(|m| m.manifest.base.is_some());
    for manifest in weights.into_iter().chain(adapters) {
        let name = manifest.manifest.name.clone();
        if models.contains_key(&name) {
            continue;
        }
        let loaded = match manifest.manifest.base.clone() {
            None => Model::load(&shelf, manifest),
            Some(base) => Model::load_adapter(&shelf, manifest, &base, &models),
        };
        match loaded {
            Ok(model) => {
                tracing::info!(name, "model in the catalog");
                refused.remove(&name);
                models.insert(name, Arc::new(model));
            }
            Err(why) => {
                if refused.insert(name.clone(), why.clone()).as_ref() != Some(&why) {
                    tracing::warn!(name, why, "a model on the shelf cannot be served");
                }
            }
        }
    }
    (models.len() != known.len()).then_some(models)
}

impl Model {
    fn load(shelf: &Shelf, manifest: SignedManifest) -> Result<Self, String> {
        manifest.verify().map_err(|e| e.to_string())?;
        let shelved = shelf.find(&manifest.manifest.weights).map_err(|e| e.to_string())?;
        let shelved = shelved.ok_or("its weights are not on the shelf: pull the model again")?;
        let gguf = Gguf::open(&shelved.path).map_err(|e| e.to_string())?;
        let spec = ArchSpec::from_gguf(&gguf).map_err(|e| e.to_string())?;
        let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|e| e.to_string())?;
        let template = match gguf.str("tokenizer.chat_template") {
            Some(_) => Some(ChatTemplate::from_gguf(&gguf).map_err(|e| e.to_string())?),
            None => None,
        };
        let context_tokens = u32::try_from(spec.context_tokens).unwrap_or(u32::MAX);
        let edge =
            Edge { tokenizer, template, context_tokens, constrainer: OnceLock::new(), dry_breakers: OnceLock::new() };
        Ok(Self { manifest, base: None, edge: Arc::new(edge) })
    }

    /// An adapter of a model that is in the catalog, checked against it. Both authors are paid, so both royalties together
    /// must be what one alone may be.
    fn load_adapter(shelf: &Shelf, manifest: SignedManifest, base: &Base, models: &Models) -> Result<Self, String> {
        manifest.verify().map_err(|e| e.to_string())?;
        let found = models.get(&base.name).filter(|model| model.base.is_none() && model.weights().0 == base.weights.0);
        let base = found.ok_or_else(|| format!("its base {} is not in the catalog with those weights", base.name))?;
        let (own, bases) = (manifest.manifest.royalty_bps, base.manifest.manifest.royalty_bps);
        if u32::from(own) + u32::from(bases) > u32::from(ROYALTY_BPS_MAX) {
            return Err(format!(
                "its royalty of {own} basis points and its base's of {bases} are more than {ROYALTY_BPS_MAX} together: \
                 publish it with a lower one"
            ));
        }
        let path = |hash| match shelf.find(hash) {
            Ok(Some(shelved)) => Ok(shelved.path),
            Ok(None) => Err("its weights are not on the shelf: publish it again".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let gguf = Gguf::open(path(&base.manifest.manifest.weights)?).map_err(|e| e.to_string())?;
        let spec = ArchSpec::from_gguf(&gguf).map_err(|e| e.to_string())?;
        Adapter::open(path(&manifest.manifest.weights)?, &spec).map_err(|e| e.to_string())?;
        Ok(Self { manifest, base: Some(base.clone()), edge: base.edge.clone() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.manifest.manifest.name
    }

    /// What its manifest names: weights, or an adapter.
    fn weights(&self) -> WeightsHash {
        WeightsHash(self.manifest.manifest.weights.0)
    }

    /// What a miner must have loaded.
    pub(crate) fn computes(&self) -> Computes {
        match &self.base {
            None => Computes { weights: self.weights(), adapter: None },
            Some(base) => Computes { weights: base.weights(), adapter: Some(self.weights()) },
        }
    }

    fn author(&self) -> PeerId {
        PublicKey(self.manifest.manifest.author).peer_id()
    }

    /// Who is paid for it: its author, and its base's.
    pub(crate) fn royalties(&self) -> Vec<Royalty> {
        let royalty = |m: &Self| Royalty { author: m.author(), bps: m.manifest.manifest.royalty_bps };
        std::iter::once(self).chain(self.base.as_deref()).map(royalty).collect()
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.edge.tokenizer
    }

    /// What compiles constraints for this model's vocabulary. The first call takes a fraction of a second.
    pub(crate) fn constrainer(&self) -> Result<&Constrainer, &ConstraintError> {
        self.edge.constrainer.get_or_init(|| Constrainer::new(&self.edge.tokenizer)).as_ref()
    }

    /// Prompt and output together.
    pub(crate) fn context_tokens(&self) -> u32 {
        self.edge.context_tokens.min(cuckoo_wire::limits::PROMPT_TOKENS_MAX as u32)
    }

    /// Tokens that end a repetition where a request does not say, found by `find` once: that looks at every token's text.
    pub(crate) fn dry_breakers(&self, find: impl FnOnce() -> Result<Vec<u32>, Refusal>) -> Result<Vec<u32>, Refusal> {
        self.edge.dry_breakers.get_or_init(find).clone()
    }

    /// Tokens that end a sequence, sorted: those `asked` for and, unless they are ignored, the model's own.
    pub(crate) fn stop_tokens(&self, asked: &[u32], ignore_eos: bool) -> Vec<u32> {
        let own = if ignore_eos { &[] } else { self.tokenizer().eos_ids() };
        let mut ids = asked.to_vec();
        ids.extend(own.iter().take(STOP_TOKENS_MAX - STOP_TOKENS_ASKED_MAX));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The tokens of a prompt. Special tokens written out in it count as such, as in the prompts that models train on.
    pub(crate) fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, Refusal> {
        let refuse = |param: &str, why: String| Refusal::invalid(param, why);
        match prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text(text) => {
                let tokens = self.tokenizer().encode(text, true).map_err(|e| refuse("prompt", e.to_string()))?;
                Ok(self.with_bos(tokens))
            }
            Prompt::Chat(messages) => {
                let Some(template) = &self.edge.template else {
                    return Err(refuse("messages", "this model has no chat template: use completions".to_owned()));
                };
                let messages: Vec<cuckoo_models::Message> = messages
                    .iter()
                    .map(|m| cuckoo_models::Message { role: m.role.clone(), content: m.content.clone() })
                    .collect();
                let text = template.render(&messages, true).map_err(|e| refuse("messages", e.to_string()))?;
                let tokens = self.tokenizer().encode(&text, true).map_err(|e| refuse("messages", e.to_string()))?;
                Ok(self.with_bos(tokens))
            }
        }
    }

    /// Adds the beginning-of-sequence token where the model wants one and the template has not written it already.
    fn with_bos(&self, tokens: Vec<u32>) -> Vec<u32> {
        match self.tokenizer().bos() {
            Some(bos) if self.tokenizer().add_bos() && tokens.first() != Some(&bos) => {
                std::iter::once(bos).chain(tokens).collect()
            }
            _ => tokens,
        }
    }

    pub(crate) fn info(&self, quote: &Quote) -> ModelInfo {
        let m = &self.manifest.manifest;
        ModelInfo {
            name: m.name.clone(),
            context_tokens: self.context_tokens(),
            quantization: m.quantization.clone(),
            license: m.license.clone(),
            author: self.author(),
            royalty_bps: m.royalty_bps,
            created_unix: m.created_unix,
            replicas: quote.replicas,
            lowest_ask: quote.lowest_ask,
            parent: self.base.as_ref().map(|base| base.name().to_owned()),
        }
    }
}
