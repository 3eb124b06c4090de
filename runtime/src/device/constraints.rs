//! The constraints of one replica's sequences: compiled off the step's path, kept while their sequences live.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};

use cuckoo_models::{CallGrammar, Constrainer, Grammar, Matcher, Syntax, Tokenizer};
use cuckoo_wire::limits::REPLICA_SEQUENCES_MAX;
use cuckoo_wire::message::{Assign, CallConstraint, Constraint, SequenceId};
use ractor::ActorRef;

use super::batch::StepPlan;
use super::batcher::BatcherMsg;
use super::masks::{MaskWorkers, PendingMask, SharedMatcher};

/// Constraints that may wait to be compiled: one for each sequence that may be here.
const COMPILATIONS_MAX: usize = REPLICA_SEQUENCES_MAX;

/// Reads the model's vocabulary, which is done only if somebody sends a constraint.
pub(super) type ReadTokenizer = Arc<dyn Fn() -> Result<Tokenizer, String> + Send + Sync>;

/// See the module.
pub(super) struct Constraints {
    compiler: Arc<Compiler>,
    mask_threads: usize,
    /// Started by the first constraint.
    workers: Option<Workers>,
    matchers: HashMap<SequenceId, SharedMatcher>,
}

/// A constraint that was compiled, or could not be.
pub(crate) struct Compiled {
    pub(super) sequence: SequenceId,
    outcome: Result<SharedMatcher, String>,
}

struct Workers {
    compilations: SyncSender<Compilation>,
    masks: MaskWorkers,
}

/// A constraint that is to be compiled.
pub(super) struct Compilation {
    sequence: SequenceId,
    constraint: Constraint,
    /// Output that an earlier miner has produced.
    accepted: Vec<u32>,
    reply_to: ActorRef<BatcherMsg>,
}

struct Compiler {
    read_tokenizer: ReadTokenizer,
    constrainer: OnceLock<Result<Constrainer, String>>,
}

impl Constraints {
    /// None yet.
    pub(super) fn new(read_tokenizer: ReadTokenizer, mask_threads: usize) -> Self {
        Self {
            compiler: Arc::new(Compiler { read_tokenizer, constrainer: OnceLock::new() }),
            mask_threads,
            workers: None,
            matchers: HashMap::new(),
        }
    }

    /// Forgets a sequence that has ended.
    pub(super) fn remove(&mut self, sequence: SequenceId) {
        self.matchers.remove(&sequence);
    }

    /// What is to be compiled for a sequence, if anything is.
    pub(super) fn compilation(&self, assign: &Assign, reply_to: &ActorRef<BatcherMsg>) -> Option<Compilation> {
        Some(Compilation {
            sequence: assign.sequence,
            constraint: assign.constraint.clone()?,
            accepted: assign.tokens.get(assign.prompt_tokens as usize..).unwrap_or_default().to_vec(),
            reply_to: reply_to.clone(),
        })
    }

    /// Has a sequence's constraint compiled; the answer is [`BatcherMsg::Compiled`].
    pub(super) fn compile(&mut self, compilation: Compilation) -> Result<(), String> {
        self.workers()?.compilations.try_send(compilation).map_err(|e| match e {
            TrySendError::Full(_) => "too many constraints wait to be compiled".to_owned(),
            TrySendError::Disconnected(_) => "the thread that compiles constraints has died".to_owned(),
        })
    }

    /// Takes in what was compiled, for a sequence that waits for it.
    pub(super) fn compiled(&mut self, compiled: Compiled) -> Result<(), String> {
        self.matchers.insert(compiled.sequence, compiled.outcome?);
        Ok(())
    }

    /// Begins to compute the masks of a plan: one for each draw that needs one.
    pub(super) fn masks(&mut self, plan: &StepPlan) -> Vec<Option<PendingMask>> {
        let pending = plan.draws.iter().map(|draw| {
            let untold = draw.untold.clone()?;
            Some(match (self.matchers.get(&draw.sequence), &self.workers) {
                (Some(matcher), Some(workers)) => workers.masks.mask(matcher, untold),
                _ => PendingMask::failed("its constraint was lost"),
            })
        });
        pending.collect()
    }

    fn workers(&mut self) -> Result<&Workers, String> {
        let workers = match self.workers.take() {
            Some(workers) => workers,
            None => Workers::start(self.compiler.clone(), self.mask_threads)
                .map_err(|e| format!("no thread for constraints: {e}"))?,
        };
        Ok(self.workers.insert(workers))
    }
}

impl Workers {
    fn start(compiler: Arc<Compiler>, mask_threads: usize) -> std::io::Result<Self> {
        let (compilations, waiting) = sync_channel(COMPILATIONS_MAX);
        let thread = std::thread::Builder::new().name("constraints".to_owned());
        thread.spawn(move || compiler.work(&waiting))?;
        Ok(Self { compilations, masks: MaskWorkers::start(mask_threads)? })
    }
}

impl Compiler {
    fn work(&self, waiting: &Receiver<Compilation>) {
        while let Ok(Compilation { sequence, constraint, accepted, reply_to }) = waiting.recv() {
            let outcome = self.compile(constraint, &accepted).map(|matcher| Arc::new(Mutex::new(matcher)));
            // A batcher that is gone has nobody to tell.
            let _ = reply_to.cast(BatcherMsg::Compiled(Compiled { sequence, outcome }));
        }
    }

    fn compile(&self, constraint: Constraint, accepted: &[u32]) -> Result<Matcher, String> {
        let constrainer = self.constrainer.get_or_init(|| {
            let tokenizer = (self.read_tokenizer)()?;
            Constrainer::new(&tokenizer).map_err(|e| e.to_string())
        });
        let mut matcher = constrainer.as_ref()?.compile(&grammar(constraint)?).map_err(|e| e.to_string())?;
        matcher.accept(accepted).map_err(|e| e.to_string())?;
        Ok(matcher)
    }
}

fn grammar(constraint: Constraint) -> Result<Grammar, String> {
    Ok(match constraint {
        Constraint::JsonObject => Grammar::JsonObject,
        Constraint::JsonSchema(text) => Grammar::JsonSchema(text),
        Constraint::Regex(text) => Grammar::Regex(text),
        Constraint::Choice(choices) => Grammar::Choice(choices),
        Constraint::Grammar(text) => Grammar::Lark(text),
        Constraint::Calls(CallConstraint { syntax, functions, text, many }) => {
            let syntax =
                Syntax::named(&syntax).ok_or_else(|| format!("there is no syntax of calls '{syntax}' here"))?;
            Grammar::Calls(CallGrammar { syntax, functions, text, many })
        }
    })
}
