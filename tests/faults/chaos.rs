//! Chaos: many streams, real miners that are killed, frozen, cut off and sent away, from one seed. After it every answer was
//! whole and the same as without faults, every token was paid once, and nothing is left.
//!
//! A small run is part of the tests. `CUCKOO_CHAOS_KILLS` and `CUCKOO_CHAOS_SEED` ask for another; see docs/FAULTS.md.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cuckoo::{Client, Request, Sampling, Usage};

use super::MINER;
use super::proxy::{Dice, Proxy};
use crate::market::{Market, sum};
use crate::support::{Process, eventually, metric};

const MINERS: usize = 4;
const STREAMS: usize = 6;
/// Requests that differ; each is asked again and again.
const REQUESTS: usize = 6;
const ANSWER: u32 = 80;
/// A token may still come so long after a fault: it was under way.
const AMISS: Duration = Duration::from_millis(50);
/// How long a frozen or cut-off miner stays so.
const AWAY: std::ops::Range<u64> = 200..4_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Fault {
    Kill,
    Freeze,
    Cut,
    Leave,
}

/// A miner and the network before it.
struct Seat {
    proxy: Proxy,
    process: Option<Process>,
    /// What is wrong with it, and until when.
    away: Option<(Fault, Instant)>,
}

/// One answer, as the client saw it.
struct Answer {
    request: String,
    began: Instant,
    /// When each token came.
    arrivals: Vec<Instant>,
    usage: Usage,
}

/// A line of the scheduler's log: a request goes on elsewhere.
struct Move {
    request: String,
    accepted: usize,
    prefill: Duration,
    /// Whether the miner before was asked to leave, and still spoke.
    is_handover: bool,
}

fn wish(market: &Market, which: usize) -> Request {
    let (temperature, seed) = if which.is_multiple_of(2) { (0.0, 0) } else { (0.9, which as u64) };
    let sampling = Sampling { temperature, seed: Some(seed), ..Sampling::default() };
    let question = format!("Tell me a story about the number {which}, and about who found it.");
    market.request(&question, ANSWER).sampling(sampling)
}

/// Runs a request to its end; panics where a token is missing, or comes twice.
async fn answer(client: &Client, request: Request) -> (Vec<u32>, Answer) {
    let began = Instant::now();
    let mut stream = client.generate(request).await.expect("it is taken");
    let (mut tokens, mut arrivals) = (Vec::new(), Vec::new());
    while let Some(delta) = stream.next().await.unwrap_or_else(|why| panic!("after {} tokens: {why}", tokens.len())) {
        assert_eq!(delta.first as usize, tokens.len(), "no token twice or missing");
        arrivals.extend(delta.tokens.iter().map(|_| Instant::now()));
        tokens.extend(delta.tokens);
    }
    let usage = stream.usage().expect("it has ended").clone();
    assert_eq!(usage.completion_tokens as usize, tokens.len(), "paid is what came");
    (tokens, Answer { request: stream.request().to_string(), began, arrivals, usage })
}

/// The number behind `name=` in a line of the log.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn moves(log: &Receiver<String>) -> Vec<Move> {
    let spoken = log.try_iter().filter(|line| line.contains("another miner goes on"));
    let read = |line: String| {
        Some(Move {
            request: field(&line, "request")?.to_owned(),
            accepted: field(&line, "accepted")?.parse().ok()?,
            prefill: Duration::from_millis(field(&line, "prefill_ms")?.parse().ok()?),
            is_handover: field(&line, "why")? == "Leaving",
        })
    };
    spoken.filter_map(read).collect()
}

/// Who breaks what, and when.
struct Breaker {
    dice: Dice,
    seats: Vec<Seat>,
    faults: Vec<(Fault, Instant)>,
}

impl Breaker {
    async fn start(market: &Market, seed: u64) -> Self {
        let mut seats = Vec::new();
        for seat in 0..MINERS {
            let proxy = Proxy::start(&market.join(), seed ^ seat as u64).await;
            let process = market.start_miner(proxy.address(), tempfile::tempdir().unwrap(), MINER);
            process.ready();
            seats.push(Seat { proxy, process: Some(process), away: None });
        }
        Self { dice: Dice(seed), seats, faults: Vec::new() }
    }

    /// Does the next thing. At least two miners are always well.
    fn strike(&mut self, market: &Market) {
        let well: Vec<usize> = (0..MINERS).filter(|seat| self.seats[*seat].away.is_none()).collect();
        if well.len() <= 2 {
            return;
        }
        let seat = &mut self.seats[well[self.dice.below(well.len() as u64) as usize]];
        let fault = match self.dice.below(20) {
            0..=12 => Fault::Kill,
            13..=15 => Fault::Freeze,
            16..=18 => Fault::Cut,
            _ => Fault::Leave,
        };
        let until = Instant::now() + Duration::from_millis(AWAY.start + self.dice.below(AWAY.end - AWAY.start));
        let process = seat.process.as_mut().expect("each seat has one");
        self.faults.push((fault, Instant::now()));
        match fault {
            Fault::Kill => {
                process.kill();
                seat.restart(market);
            }
            Fault::Freeze => process.signal("STOP"),
            Fault::Cut => seat.proxy.cut(true),
            Fault::Leave => process.signal("INT"),
        }
        seat.away = Some((fault, until));
    }

    /// Mends what has been broken for long enough.
    fn mend(&mut self, market: &Market, now: Instant) {
        for seat in &mut self.seats {
            let Some((fault, until)) = seat.away else { continue };
            let process = seat.process.as_mut().expect("each seat has one");
            let is_back = match fault {
                Fault::Kill => process.has_line(),
                Fault::Leave if process.is_running() => false,
                Fault::Leave => {
                    seat.restart(market);
                    seat.away = Some((Fault::Kill, until));
                    continue;
                }
                Fault::Freeze | Fault::Cut if now < until => false,
                Fault::Freeze => {
                    process.signal("CONT");
                    true
                }
                Fault::Cut => {
                    seat.proxy.cut(false);
                    true
                }
            };
            if is_back {
                seat.away = None;
            }
        }
    }
}

impl Seat {
    /// The same miner again, as a new process.
    fn restart(&mut self, market: &Market) {
        let home = self.process.take().expect("each seat has one").into_home();
        self.process = Some(market.start_miner(self.proxy.address(), home, MINER));
    }
}

/// Figures of a run.
#[derive(Debug, Default)]
struct Figures {
    /// From a fault to the client's next token, without what the successor computed; sorted.
    stalls: Vec<Duration>,
    /// The same with it.
    pauses: Vec<Duration>,
    /// From the last token of a miner that was asked to leave to the first of its successor.
    handovers: Vec<Duration>,
    /// Of these, those with no fault just before them: false alarms, and sequences given to who had failed before.
    others: usize,
}

impl Figures {
    fn of(answers: &[Answer], moves: &[Move], faults: &[(Fault, Instant)]) -> Self {
        let by_request: HashMap<&str, &Answer> = answers.iter().map(|a| (a.request.as_str(), a)).collect();
        let mut figures = Self::default();
        for moved in moves {
            let Some(answer) = by_request.get(moved.request.as_str()) else { continue };
            let Some(&next) = answer.arrivals.get(moved.accepted) else { continue };
            let last = moved.accepted.checked_sub(1).map_or(answer.began, |before| answer.arrivals[before]);
            if moved.is_handover {
                figures.handovers.push(next.duration_since(last));
                continue;
            }
            // It waited since the newest fault before the token that came after all; or since its last token, where it came to
            // a miner that had failed before, or to one that only seemed to.
            let cause =
                faults.iter().filter(|(fault, at)| *fault != Fault::Leave && *at < next).map(|(_, at)| *at).max();
            let since = cause.filter(|at| *at + AMISS >= last);
            figures.others += usize::from(since.is_none());
            let pause = next.duration_since(since.map_or(last, |at| at.max(last)));
            figures.pauses.push(pause);
            figures.stalls.push(pause.saturating_sub(moved.prefill));
        }
        figures.stalls.sort();
        figures.pauses.sort();
        figures.handovers.sort();
        figures
    }
}

/// In milliseconds.
fn quantile(sorted: &[Duration], share: f64) -> u128 {
    sorted
        .get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)))
        .map_or(0, Duration::as_millis)
}

fn asked_for(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_miners_every_answer_is_whole_and_paid_once() {
    let (kills, seed) = (asked_for("CUCKOO_CHAOS_KILLS", 10), asked_for("CUCKOO_CHAOS_SEED", 1));
    let (log_in, log) = channel();
    let market = Market::logged(log_in);
    let mut breaker = Breaker::start(&market, seed).await;
    let client = market.client().await;
    let wishes: Arc<Vec<Request>> = Arc::new((0..REQUESTS).map(|which| wish(&market, which)).collect());
    let mut expected = Vec::new();
    for wish in &*wishes {
        expected.push(answer(&client, wish.clone()).await.0);
    }
    let (before, expected) = (balances(&market, &breaker), Arc::new(expected));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let answers = Arc::new(Mutex::new(Vec::new()));
    let streams: Vec<_> = (0..STREAMS)
        .map(|stream| {
            let (wishes, client, expected) = (wishes.clone(), client.clone(), expected.clone());
            let (answers, stopped) = (answers.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut which = stream;
                while !*stopped.borrow() {
                    which = (which + 1) % REQUESTS;
                    let (tokens, answer) = answer(&client, wishes[which].clone()).await;
                    assert_eq!(tokens, expected[which], "the same as without faults");
                    answers.lock().unwrap().push(answer);
                }
            })
        })
        .collect();
    let mut moved = Vec::new();
    let killed = |breaker: &Breaker| breaker.faults.iter().filter(|(fault, _)| *fault == Fault::Kill).count() as u64;
    while killed(&breaker) < kills && streams.iter().all(|stream| !stream.is_finished()) {
        tokio::time::sleep(Duration::from_millis(100 + breaker.dice.below(300))).await;
        breaker.mend(&market, Instant::now());
        breaker.strike(&market);
        moved.extend(moves(&log));
    }
    stop.send_replace(true);
    let deadline = Instant::now() + Duration::from_secs(60);
    while breaker.seats.iter().any(|seat| seat.away.is_some()) || streams.iter().any(|stream| !stream.is_finished()) {
        breaker.mend(&market, Instant::now());
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(Instant::now() < deadline, "every stream ends and every miner comes back");
    }
    for stream in streams {
        stream.await.unwrap();
    }
    moved.extend(moves(&log));
    let answers = std::mem::take(&mut *answers.lock().unwrap());
    the_books_balance(&market, &breaker, &before, &answers);
    report(&answers, &moved, &breaker.faults);
    // Nothing is assigned to anybody: who is asked to leave has nothing to wait for.
    eventually("nothing runs or waits", || {
        let of = |name| metric(market.http(), name);
        of("cuckoo_num_requests_running") + of("cuckoo_num_requests_waiting") == 0.0
    });
    for seat in &mut breaker.seats {
        let asked = Instant::now();
        assert!(seat.process.as_mut().unwrap().interrupt().success());
        assert!(asked.elapsed() < Duration::from_secs(10), "it had nothing to finish");
    }
}

fn balances(market: &Market, breaker: &Breaker) -> HashMap<String, i64> {
    market.balances_with(breaker.seats.iter().map(|seat| seat.process.as_ref().unwrap().home.path()))
}

fn the_books_balance(market: &Market, breaker: &Breaker, before: &HashMap<String, i64>, answers: &[Answer]) {
    let after = balances(market, breaker);
    let total = |part: fn(&Usage) -> u64| answers.iter().map(|a| part(&a.usage)).sum::<u64>() as i64;
    assert_eq!(total(|u| u.cost), total(|u| u.miner) + total(|u| u.author) + total(|u| u.network));
    assert_eq!(sum(before, "client:") - sum(&after, "client:"), total(|u| u.cost), "nothing is held any more");
    assert_eq!(sum(&after, "miner:") - sum(before, "miner:"), total(|u| u.miner), "each token was paid once");
    assert_eq!(sum(&after, "author:") - sum(before, "author:"), total(|u| u.author));
}

fn report(answers: &[Answer], moves: &[Move], faults: &[(Fault, Instant)]) {
    let mut counts: Vec<(Fault, usize)> = Vec::new();
    for (fault, _) in faults {
        match counts.iter_mut().find(|(known, _)| known == fault) {
            Some((_, count)) => *count += 1,
            None => counts.push((*fault, 1)),
        }
    }
    counts.sort();
    let tokens: usize = answers.iter().map(|a| a.arrivals.len()).sum();
    let migrations: u32 = answers.iter().map(|a| a.usage.migrations).sum();
    let figures = Figures::of(answers, moves, faults);
    println!("faults {counts:?}; {} answers of {tokens} tokens, all as expected; {migrations} moves", answers.len());
    let all = [
        ("stall without prefill", &figures.stalls),
        ("pause with prefill", &figures.pauses),
        ("handover by a miner that leaves", &figures.handovers),
    ];
    for (name, times) in all {
        let of = |share| quantile(times, share);
        println!("{name}: p50 {} ms, p99 {} ms, longest {} ms, of {}", of(0.5), of(0.99), of(1.0), times.len());
    }
    println!("of these, with no fault just before them: {}", figures.others);
}
