//! Constraints at the edge: whoever asks for one that cannot be met hears so before anything is paid, and what a miner
//! sends is held against it.

use std::sync::Arc;

use cuckoo_models::{CallGrammar, ConstraintError, Grammar, Matcher, Syntax};
use cuckoo_wire::message::{Constraint, Refusal, RefusalCode};

use crate::catalog::Model;
use crate::market::Market;

/// Judges an output as it comes, token by token.
#[derive(Debug)]
pub(crate) struct Judge(Matcher);

impl Judge {
    /// Whether this token may come next.
    pub(crate) fn accept(&mut self, token: u32) -> bool {
        self.0.accept(&[token]).is_ok()
    }
}

/// Compiles a request's constraint.
pub(crate) async fn judge(
    market: &Market,
    model: &Arc<Model>,
    constraint: Option<&Constraint>,
) -> Result<Option<Judge>, Refusal> {
    let Some(constraint) = constraint else { return Ok(None) };
    match compile(market, model, constraint).await? {
        Ok(judge) => Ok(Some(judge)),
        Err(why) => Err(Refusal::invalid("constraint", why.to_string())),
    }
}

/// Compiles a constraint, off the threads that do I/O and only a few at a time.
pub(crate) async fn compile(
    market: &Market,
    model: &Arc<Model>,
    constraint: &Constraint,
) -> Result<Result<Judge, ConstraintError>, Refusal> {
    let internal = |why: String| Refusal::new(RefusalCode::Internal, format!("the constraint was not compiled: {why}"));
    let _turn = market.compiling().acquire().await.map_err(|e| internal(e.to_string()))?;
    let (model, grammar) = (model.clone(), grammar(constraint)?);
    let compiled = tokio::task::spawn_blocking(move || {
        model.constrainer().map_err(Clone::clone).and_then(|constrainer| constrainer.compile(&grammar))
    });
    Ok(compiled.await.map_err(|e| internal(e.to_string()))?.map(Judge))
}

fn grammar(constraint: &Constraint) -> Result<Grammar, Refusal> {
    Ok(match constraint {
        Constraint::JsonObject => Grammar::JsonObject,
        Constraint::JsonSchema(text) => Grammar::JsonSchema(text.clone()),
        Constraint::Regex(text) => Grammar::Regex(text.clone()),
        Constraint::Choice(choices) => Grammar::Choice(choices.clone()),
        Constraint::Grammar(text) => Grammar::Lark(text.clone()),
        Constraint::Calls(calls) => {
            let syntax = Syntax::named(&calls.syntax)
                .ok_or_else(|| Refusal::invalid("constraint", "there is no such syntax of calls"))?;
            let functions = calls.functions.clone();
            Grammar::Calls(CallGrammar { syntax, functions, text: calls.text, many: calls.many })
        }
    })
}
