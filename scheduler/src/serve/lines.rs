//! The miners that run a request: the one whose tokens are relayed, and the one that is to go on where it cannot.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cuckoo_wire::message::{Numerics, PromptLogprobs, Refusal, RefusalCode};
use tokio::time::{Instant, Sleep};

use super::handover::{Decision, decide};
use super::{ATTEMPTS_MAX, Ending, Job, Outcome, PROGRESS_MAX, replies};
use crate::dispatcher::{Order, Placed, Whom};
use crate::gateway::miner::{Heard, Running};
use crate::ledger::Attempt;

/// Placements of one request, all together: none is made any more beyond.
const PLACEMENTS_MAX: usize = 32;
/// Of these, those that may be made while somebody still runs it; the others are for when nobody does.
const HEDGES_MAX: usize = PLACEMENTS_MAX / 2;
/// When a successor is looked for again, after none was found or it was no good. Doubled with each false alarm, for where
/// alarms are false everybody has enough to do.
const HEDGE_PAUSE: Duration = Duration::from_secs(1);
/// How often that is doubled.
const PAUSE_DOUBLINGS_MAX: u32 = 5;

type Placing = Pin<Box<dyn Future<Output = Result<Placed, Refusal>> + Send>>;

/// One placement.
struct Line {
    running: Running,
    /// Its number among the attempts.
    attempt: usize,
    /// Position in the output of the next token that it sends.
    at: u32,
    why: Why,
    placed: Instant,
    /// When it last had news; at first, when it was placed.
    heard: Instant,
    /// When its first token came.
    spoke: Option<Instant>,
    /// Whether the log knows that it goes on with the request.
    is_told: bool,
}

/// Why somebody is asked.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// Nobody has it.
    New,
    /// Whoever had it is lost.
    Lost,
    /// Whoever has it should have spoken by now.
    Suspect,
    /// Whoever has it leaves.
    Leaving,
}

/// A request on the board.
struct Asked {
    placing: Placing,
    why: Why,
    /// Tokens of output that the order knows, and how whoever goes on with them must compute.
    accepted: u32,
    numerics: Option<Numerics>,
    /// What the order asks for of the prompt.
    scores: Option<PromptLogprobs>,
}

/// Who runs a request, and who is asked to.
#[derive(Default)]
struct Lines {
    current: Option<Line>,
    successor: Option<Line>,
    asked: Option<Asked>,
    /// Before this nobody is asked to be a successor.
    pause: Option<Instant>,
    /// Since somebody took over.
    false_alarms: u32,
    /// How often a successor was asked to come closer.
    closer: u32,
    /// Losses since the last token.
    losses: usize,
    /// Why the last line was lost.
    why: String,
}

enum Event {
    Gone,
    /// Apart, for it is large and rare.
    Placed(Box<Result<Placed, Refusal>>),
    Current(Heard),
    Successor(Heard),
    /// The current line has said nothing for too long.
    Late,
    /// A pause is over.
    Look,
}

impl Line {
    /// It has news.
    fn hear(&mut self) {
        self.heard = Instant::now();
        if !self.running.news().tokens.is_empty() {
            self.spoke.get_or_insert(self.heard);
        }
    }
}

impl Lines {
    /// What happens next, whatever is first in this order. Done twice for each token, so nothing is set up for it anew.
    fn poll_next(
        &mut self,
        gone: Pin<&mut impl Future<Output = ()>>,
        alarm: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Event> {
        if gone.poll(cx).is_ready() {
            return Poll::Ready(Event::Gone);
        }
        if let Some(Poll::Ready(heard)) = self.current.as_mut().map(|line| line.running.poll_heard(cx)) {
            return Poll::Ready(Event::Current(heard));
        }
        if let Some(Poll::Ready(heard)) = self.successor.as_mut().map(|line| line.running.poll_heard(cx)) {
            return Poll::Ready(Event::Successor(heard));
        }
        if let Some(Poll::Ready(placed)) = self.asked.as_mut().map(|asked| asked.placing.as_mut().poll(cx)) {
            return Poll::Ready(Event::Placed(Box::new(placed)));
        }
        self.poll_alarm(alarm, cx)
    }

    /// Waits for deadlines that move with every word, by an alarm that does not: to set one is dear beside a token. It is set
    /// anew when it goes off too soon, or would go off too late.
    fn poll_alarm(&self, mut alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Event> {
        let late = self.current.as_ref().map(|line| line.heard + PROGRESS_MAX);
        let look = self.pause.filter(|pause| *pause > Instant::now());
        let Some(due) = late.into_iter().chain(look).min() else { return Poll::Pending };
        loop {
            if alarm.deadline() > due {
                alarm.as_mut().reset(due);
            }
            ready!(alarm.as_mut().poll(cx));
            match Instant::now() {
                now if late.is_some_and(|late| now >= late) => return Poll::Ready(Event::Late),
                now if now >= due => return Poll::Ready(Event::Look),
                _ => alarm.as_mut().reset(due),
            }
        }
    }

    /// The current line is lost.
    fn lose(&mut self, why: String) {
        if let Some(mut line) = self.current.take() {
            line.running.blame();
        }
        // Who was asked while it ran knows less than there is now.
        self.asked = None;
        self.losses += 1;
        self.why = why;
    }

    /// Gives up the successor; another is looked for after a while.
    fn drop_successor(&mut self) {
        self.successor = None;
        self.asked = None;
        self.pause = Some(Instant::now() + HEDGE_PAUSE * (1 << self.false_alarms.min(PAUSE_DOUBLINGS_MAX)));
    }
}

impl Job {
    /// Has the request run until it ends.
    pub(super) async fn carry(&mut self, replies: &replies::Sender) -> Ending {
        let mut lines = Lines::default();
        let mut gone = std::pin::pin!(replies.closed());
        let mut alarm = std::pin::pin!(tokio::time::sleep(PROGRESS_MAX));
        loop {
            if let Err(refusal) = self.arrange(&mut lines) {
                return Ending::Failed(refusal);
            }
            let outcome = match poll_fn(|cx| lines.poll_next(gone.as_mut(), alarm.as_mut(), cx)).await {
                Event::Gone => return Ending::Gone,
                Event::Placed(placed) => self.placed(&mut lines, *placed),
                Event::Current(heard) => self.hear_current(&mut lines, heard, replies).await,
                Event::Successor(heard) => self.hear_successor(&mut lines, heard, replies).await,
                Event::Late => Some(Outcome::Lost("the miner made no progress".to_owned())),
                Event::Look => None,
            };
            match outcome {
                Some(Outcome::Ended(ending)) => return ending,
                Some(Outcome::Lost(why)) => {
                    tracing::info!(request = %self.hold.request(), accepted = self.accepted(), why, "placement lost");
                    lines.lose(why);
                }
                None => {}
            }
        }
    }

    /// Placements since somebody listens.
    fn placements(&self) -> usize {
        self.attempts.len() - self.made_before
    }

    /// Asks for whom there should be, and for nobody else.
    fn arrange(&mut self, lines: &mut Lines) -> Result<(), Refusal> {
        if lines.successor.as_ref().is_some_and(|line| line.running.standing().is_suspect) {
            // Its replica is not asked again before it has spoken.
            (lines.successor, lines.asked) = (None, None);
        }
        self.leave_others(lines);
        if lines.current.is_none() && lines.successor.is_some() {
            self.take_over(lines);
        }
        let Some(current) = &lines.current else {
            if lines.losses >= ATTEMPTS_MAX || self.placements() >= PLACEMENTS_MAX {
                let why = format!("{} miners failed on this request, the last with: {}", self.placements(), lines.why);
                return Err(Refusal::new(RefusalCode::MinerFailed, why));
            }
            if lines.asked.is_none() {
                let why = if self.attempts.is_empty() { Why::New } else { Why::Lost };
                lines.asked = Some(self.ask(Whom::Any, why));
            }
            return Ok(());
        };
        let standing = current.running.standing();
        let wants = standing.wants_successor();
        if !wants && lines.successor.is_none() {
            // It has spoken before anybody else was found.
            lines.asked = None;
        }
        let is_pausing = lines.pause.is_some_and(|pause| pause > Instant::now());
        if wants && lines.successor.is_none() && lines.asked.is_none() && !is_pausing && self.placements() < HEDGES_MAX
        {
            tracing::debug!(request = %self.hold.request(), accepted = self.accepted(), "looking for a successor");
            let why = if standing.is_suspect { Why::Suspect } else { Why::Leaving };
            lines.asked = Some(self.ask(Whom::Not(current.running.key()), why));
        }
        Ok(())
    }

    /// Whoever was asked before there was anything of the answer, and computes in another way than who made its beginning, is
    /// no good for the rest.
    fn leave_others(&self, lines: &mut Lines) {
        let is_other = |line: &Line| self.numerics.is_some() && self.computed[line.attempt] != self.numerics;
        if lines.successor.as_ref().is_some_and(is_other) {
            (lines.successor, lines.asked) = (None, None);
        }
        if lines.asked.as_ref().is_some_and(|asked| asked.numerics != self.numerics) {
            lines.asked = None;
        }
    }

    /// Puts the rest of the request on the board.
    fn ask(&self, whom: Whom, why: Why) -> Asked {
        let market = self.hold.market().clone();
        let (need, assign) = self.assignment(whom);
        let (scores, numerics) = (assign.prompt_logprobs, need.numerics);
        let (whose, ticket) = ((self.hold.request(), self.client), market.next_ticket());
        let placing = async move { market.dispatcher().place(whose, ticket, need, Order::Assign(assign)).await };
        Asked { placing: Box::pin(placing), why, accepted: self.accepted(), numerics, scores }
    }

    /// The board has answered.
    fn placed(&mut self, lines: &mut Lines, placed: Result<Placed, Refusal>) -> Option<Outcome> {
        let asked = lines.asked.take()?;
        let Placed { running, ask, numerics } = match placed {
            Ok(placed) => placed,
            Err(refusal) if lines.current.is_none() => return Some(Outcome::Ended(Ending::Failed(refusal))),
            Err(_) => {
                match lines.successor.is_some() {
                    // It could not come closer, and is there.
                    true => self.take_over(lines),
                    false => lines.drop_successor(),
                }
                return None;
            }
        };
        self.attempts.push(Attempt::new(running.miner(), ask));
        self.computed.push(Some(numerics));
        let now = Instant::now();
        let (attempt, at) = (self.attempts.len() - 1, asked.accepted);
        let why = asked.why;
        let line = Line { running, attempt, at, why, placed: now, heard: now, spoke: None, is_told: attempt == 0 };
        if lines.current.is_none() {
            self.moves += u32::from(attempt > 0);
            lines.current = Some(line);
        } else if asked.scores.is_some() || self.speller.wanted().1.is_some() {
            // Scores have no positions, so that two cannot give them at a time: the first is fenced, or goes on alone.
            match asked.scores == self.speller.wanted().1 {
                true => {
                    lines.successor = Some(line);
                    self.take_over(lines);
                }
                false => lines.drop_successor(),
            }
        } else {
            lines.successor = Some(line);
        }
        None
    }

    /// The successor goes on. Dropping the other one fences it: nothing of it is heard any more.
    fn take_over(&mut self, lines: &mut Lines) {
        lines.current = lines.successor.take();
        self.moves += 1;
        (lines.asked, lines.pause, lines.false_alarms, lines.closer) = (None, None, 0, 0);
    }

    async fn hear_current(&mut self, lines: &mut Lines, heard: Heard, replies: &replies::Sender) -> Option<Outcome> {
        match heard {
            Heard::News => {}
            Heard::Standing => return None,
            Heard::Lost => return Some(Outcome::Lost("the miner was lost".to_owned())),
        }
        let before = self.accepted();
        let line = lines.current.as_mut()?;
        line.hear();
        if let (false, Some(spoke)) = (line.is_told, line.spoke) {
            line.is_told = true;
            let (request, prefill_ms) = (self.hold.request(), spoke.duration_since(line.placed).as_millis() as u64);
            tracing::info!(%request, accepted = before, from = line.at, why = ?line.why, prefill_ms, "another miner goes on");
            self.hold.market().metrics().moved(&format!("{:?}", line.why));
        }
        let outcome = self.take_in(line, replies).await;
        if self.accepted() > before {
            lines.losses = 0;
        }
        outcome
    }

    async fn hear_successor(&mut self, lines: &mut Lines, heard: Heard, replies: &replies::Sender) -> Option<Outcome> {
        let (Some(current), Some(successor)) = (&lines.current, &mut lines.successor) else { return None };
        match heard {
            Heard::News => {}
            Heard::Standing => return None,
            Heard::Lost => {
                lines.drop_successor();
                return None;
            }
        }
        if !successor.running.news().tokens.is_empty() {
            let behind = self.accepted().saturating_sub(successor.at);
            match decide(behind, current.running.standing(), lines.asked.is_some(), lines.closer) {
                Decision::TakeOver => {
                    self.take_over(lines);
                    return self.hear_current(lines, Heard::News, replies).await;
                }
                Decision::Closer => {
                    lines.closer += 1;
                    lines.asked = Some(self.ask(Whom::Only(successor.running.key()), Why::Leaving));
                }
                Decision::Drop => {
                    lines.false_alarms += 1;
                    lines.drop_successor();
                    return None;
                }
                Decision::Wait => {}
            }
        }
        successor.hear();
        match self.take_in(successor, replies).await {
            // What it says is no good; the other one goes on.
            Some(Outcome::Lost(why)) => {
                tracing::info!(request = %self.hold.request(), why, "successor lost");
                lines.drop_successor();
                None
            }
            outcome => outcome,
        }
    }

    /// Takes in what a line says, and lets it say more.
    async fn take_in(&mut self, line: &mut Line, replies: &replies::Sender) -> Option<Outcome> {
        let said = line.running.news().tokens.len() as u32;
        let at = line.at;
        line.at += said;
        let outcome = self.accept((line.attempt, at), line.running.news(), replies).await;
        if outcome.is_none() {
            line.running.credit(said);
        }
        outcome
    }
}
