//! The models that can be asked for: manifests on the shelf, with what the edge needs of their weights files: the
//! tokenizer, the template and the sizes. New manifests are picked up while running.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cuckoo_models::{
    Adapter, Base, ChatTemplate, Constrainer, ConstraintError, Dialect, ModelFiles, Shelf, SignedManifest, Tokenizer,
    Tool, ToolChat,
};
use cuckoo_wire::limits::{EMBEDDING_DIMS_MAX, STOP_TOKENS_ASKED_MAX, STOP_TOKENS_MAX};
use cuckoo_wire::message::{ChatMessage, ModelInfo, Prompt, Refusal, Tools, WeightsHash};
use cuckoo_wire::{PeerId, PublicKey};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use crate::dispatcher::{Computes, Quote};
use crate::ledger::{ROYALTY_BPS_MAX, Royalty};
use crate::tools;

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
    /// What its template makes of a chat, and how it speaks of tools; `None` where it has no template.
    chat: Option<(ChatTemplate, Dialect)>,
    /// Control tokens that are parts of calls.
    marks: Vec<(u32, String)>,
    context_tokens: u32,
    /// The width of an encoder's vectors.
    embedding_dims: Option<u32>,
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
        let files = ModelFiles::open(&shelved.path).map_err(|e| e.to_string())?;
        let spec = files.spec().map_err(|e| e.to_string())?;
        let tokenizer = files.tokenizer().map_err(|e| e.to_string())?;
        let template = files.chat_template().map_err(|e| e.to_string())?;
        let chat = template.map(|template| {
            let dialect = Dialect::detect(&template);
            (template, dialect)
        });
        let marks = chat.as_ref().map_or(Vec::new(), |(_, dialect)| dialect.syntax().marks(&tokenizer));
        let context_tokens = u32::try_from(spec.context_tokens).unwrap_or(u32::MAX);
        let dims = u32::try_from(spec.hidden).ok().filter(|dims| *dims as usize <= EMBEDDING_DIMS_MAX);
        let embedding_dims = match (spec.is_encoder(), dims) {
            (true, None) => return Err(format!("its vectors have more than {EMBEDDING_DIMS_MAX} numbers")),
            (is_encoder, dims) => dims.filter(|_| is_encoder),
        };
        let edge = Edge {
            tokenizer,
            chat,
            marks,
            context_tokens,
            embedding_dims,
            constrainer: OnceLock::new(),
            dry_breakers: OnceLock::new(),
        };
        Ok(Self { manifest, base: None, edge: Arc::new(edge) })
    }

    /// An adapter of a model that is in the catalog, checked against it: one that generates. Both authors are paid, so both
    /// royalties together must be what one alone may be.
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
        let files = ModelFiles::open(&path(&base.manifest.manifest.weights)?).map_err(|e| e.to_string())?;
        let spec = files.spec().map_err(|e| e.to_string())?;
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

    /// What its template makes of a chat, and how it speaks of tools.
    pub(crate) fn chat(&self) -> Result<&(ChatTemplate, Dialect), Refusal> {
        let none = || Refusal::invalid("messages", "this model has no chat template: use completions");
        self.edge.chat.as_ref().ok_or_else(none)
    }

    /// Control tokens that are parts of calls, which a text must show to be read.
    pub(crate) fn marks(&self) -> &[(u32, String)] {
        &self.edge.marks
    }

    /// What compiles constraints for this model's vocabulary. The first call takes a fraction of a second.
    pub(crate) fn constrainer(&self) -> Result<&Constrainer, &ConstraintError> {
        self.edge.constrainer.get_or_init(|| Constrainer::new(&self.edge.tokenizer)).as_ref()
    }

    /// Prompt and output together.
    pub(crate) fn context_tokens(&self) -> u32 {
        self.edge.context_tokens.min(cuckoo_wire::limits::PROMPT_TOKENS_MAX as u32)
    }

    /// Numbers in the vectors that it makes of texts; `None` where it generates.
    pub(crate) fn embedding_dims(&self) -> Option<u32> {
        self.edge.embedding_dims
    }

    /// The tokens of a text for an encoder, with those that it wants around it.
    pub(crate) fn text_tokens(&self, text: &str) -> Result<Vec<u32>, String> {
        let tokens = self.tokenizer().encode(text, true).map_err(|e| e.to_string())?;
        let first = self.tokenizer().bos().filter(|_| self.tokenizer().add_bos());
        Ok(first.into_iter().chain(tokens).chain(self.tokenizer().last()).collect())
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
    pub(crate) fn tokens(&self, prompt: &Prompt, tools: Option<&Tools>) -> Result<Vec<u32>, Refusal> {
        let refuse = |param: &str, why: String| Refusal::invalid(param, why);
        match prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text(text) => {
                let tokens = self.tokenizer().encode(text, true).map_err(|e| refuse("prompt", e.to_string()))?;
                Ok(self.with_bos(tokens))
            }
            Prompt::Chat(messages) => {
                let text = self.rendered(messages, tools)?;
                let tokens = self.tokenizer().encode(&text, true).map_err(|e| refuse("messages", e.to_string()))?;
                Ok(self.with_bos(tokens))
            }
        }
    }

    /// A chat by the model's template, in the model's words for tools where it has to do with any.
    fn rendered(&self, messages: &[ChatMessage], tools: Option<&Tools>) -> Result<String, Refusal> {
        let (template, dialect) = self.chat()?;
        let rendered = if tools.is_none() && messages.iter().all(|m| m.calls.is_empty() && m.answers.is_none()) {
            let turn = |m: &ChatMessage| cuckoo_models::Message { role: m.role.clone(), content: m.content.clone() };
            template.render(&messages.iter().map(turn).collect::<Vec<_>>(), true)
        } else {
            let (messages, parameters) = (tools::conversation(messages)?, tools.map(tools::parameters));
            let listed: Vec<Tool<'_>> = tools
                .iter()
                .flat_map(|tools| &tools.tools)
                .zip(parameters.iter().flatten())
                .map(|(tool, parameters)| Tool {
                    name: &tool.name,
                    description: tool.description.as_deref(),
                    parameters: parameters.as_ref(),
                })
                .collect();
            dialect.prompt(template, &ToolChat { messages: &messages, tools: &listed })
        };
        rendered.map_err(|e| Refusal::invalid("messages", e.to_string()))
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
            embedding_dims: self.embedding_dims(),
            parent: self.base.as_ref().map(|base| base.name().to_owned()),
        }
    }
}
