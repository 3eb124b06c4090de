//! One run: requests come, are placed, computed, lost, placed again and paid, in the order of a virtual clock.

mod accounts;
mod events;
mod losses;
mod ours;
mod rivals;
mod scenario;
mod stream;
mod summary;
mod watch;

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cuckoo_scheduler::mixed;
use cuckoo_wire::message::{Assign, End, KvFormat, Numerics, ReplicaId, SequenceId};

use accounts::Accounts;
use events::{Event, Events};
use ours::Ours;
use rivals::Rivals;
use stream::{Place, Stage, Stream};
use watch::Watch;

pub use scenario::{Faults, Scenario, Violation};

use super::chance::Chance;
use super::fleet::{Frame, SimMiner};
use super::recording::Recording;
use super::report::Report;
use super::rival::Rule;
use super::workload::STOP;

/// A miner that is silent is found out after so long.
const DETECTION_US: u64 = 300_000;
/// How often waiting requests are looked through.
const EXPIRY_US: u64 = 500_000;
/// A scheduler that was killed is back after so long.
const RESTART_US: u64 = 1_000_000;
/// A run whose last request has not ended so long after it came never ends.
const END_US: u64 = 86_400_000_000;

/// Runs to the end.
///
/// # Errors
/// With the first thing that must never be.
pub fn run(scenario: &Scenario) -> Result<Report, Violation> {
    played(scenario, false).map(|(report, _)| report)
}

/// Runs to the end, and records what pictures are drawn from. The report is the same.
///
/// # Errors
/// With the first thing that must never be.
pub fn record(scenario: &Scenario) -> Result<(Report, Recording), Violation> {
    played(scenario, true).map(|(report, recording)| (report, recording.unwrap_or_default()))
}

fn played(scenario: &Scenario, is_recorded: bool) -> Result<(Report, Option<Recording>), Violation> {
    let mut market = Market::new(scenario, is_recorded);
    // Whatever is asserted on the way must always hold, too.
    let outcome = catch_unwind(AssertUnwindSafe(|| market.run())).unwrap_or_else(|why| Err(said(&*why)));
    outcome.map_err(|what| Violation { seed: scenario.seed, at_us: market.events.now(), what })?;
    Ok(market.summary())
}

/// What somebody who panicked said.
fn said(why: &(dyn Any + Send)) -> String {
    let words = why.downcast_ref::<String>().map(String::as_str).or_else(|| why.downcast_ref::<&str>().copied());
    format!("a panic: {}", words.unwrap_or("without a word"))
}

/// Who places requests.
enum Placing {
    Ours(Box<Ours>),
    Rivals(Box<Rivals>),
}

struct Market<'a> {
    scenario: &'a Scenario,
    events: Events,
    chance: Chance,
    miners: Vec<SimMiner>,
    /// The connection of each miner as the scheduler knows it.
    links: Vec<Option<u64>>,
    links_made: u64,
    sequences_made: u64,
    streams: Vec<Stream>,
    /// Which request a sequence is, while it is placed.
    placed: HashMap<SequenceId, usize>,
    left: usize,
    placing: Placing,
    accounts: Accounts,
    watch: Watch,
    /// Whether the scheduler runs.
    is_up: bool,
    recoveries: Vec<f64>,
    digest: u64,
}

impl<'a> Market<'a> {
    fn new(scenario: &'a Scenario, is_recorded: bool) -> Self {
        let chance = Chance::new(scenario.seed);
        let mut latencies = chance.fork(2);
        let miners: Vec<SimMiner> = (0..)
            .zip(&scenario.miners)
            .map(|(link, hardware)| {
                let contract = 1 + (link % u64::from(scenario.numerics.max(1))) as u16;
                let numerics = Numerics::exact(contract, KvFormat::F16);
                SimMiner::new(*hardware, numerics, 2_000 + latencies.below(40_000), link)
            })
            .collect();
        let placing = match scenario.rule {
            Rule::Cuckoo => Placing::Ours(Box::new(Ours::new(scenario.seed))),
            rule => Placing::Rivals(Box::new(Rivals::new(rule, &scenario.miners, chance.fork(3)))),
        };
        let mut market = Self {
            scenario,
            events: Events::default(),
            chance: chance.fork(4),
            links: vec![None; miners.len()],
            links_made: miners.len() as u64,
            miners,
            sequences_made: 0,
            placed: HashMap::new(),
            streams: scenario.jobs.iter().map(|_| Stream::default()).collect(),
            left: scenario.jobs.len(),
            placing,
            accounts: Accounts::new(&scenario.jobs),
            watch: Watch::new(&scenario.jobs, scenario.miners.len(), is_recorded),
            is_up: true,
            recoveries: Vec::new(),
            digest: mixed(scenario.seed),
        };
        market.begin(&mut chance.fork(5));
        market
    }

    fn run(&mut self) -> Result<(), String> {
        while self.left > 0 {
            let event = self.events.next().ok_or_else(|| format!("{} requests never end", self.left))?;
            if self.events.now() > END_US + self.scenario.jobs.last().map_or(0, |job| job.at_us) {
                return Err(format!("{} requests have not ended after a day", self.left));
            }
            self.handle(event)?;
        }
        // What is under way arrives, and then nothing may be left anywhere.
        let until = self.events.now() + 20_000_000;
        while let Some(event) = self.events.next_until(until) {
            self.handle(event)?;
        }
        self.accounts.check_closed()?;
        match &self.placing {
            Placing::Ours(ours) => ours.check_idle(),
            Placing::Rivals(_) => Ok(()),
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrives { request } => self.arrives(request),
            Event::Leaves { request } => self.leaves(request),
            Event::Assigned { miner, link, request, assign } => self.assigned(miner, link, request, *assign),
            Event::Cancelled { miner, link, sequence } => {
                if self.miners[miner].link == link {
                    self.miners[miner].cancel(sequence);
                    self.tell(miner);
                    self.launch(miner);
                }
                Ok(())
            }
            Event::Landed { miner, link } => self.landed(miner, link),
            Event::Heard { miner, link, frame } => self.heard(miner, link, *frame),
            Event::Connects { miner, link } => self.connects(miner, link),
            Event::Killed { miner, for_us } => {
                self.miners[miner].is_up = false;
                self.breaks(miner, for_us);
                Ok(())
            }
            Event::Frozen { miner, for_us } => {
                let until = self.events.now() + for_us;
                self.miners[miner].frozen_until_us = until;
                if for_us > DETECTION_US {
                    self.breaks(miner, for_us);
                }
                Ok(())
            }
            Event::CutOff { miner, for_us } => {
                // What is sent meanwhile is sent again when it is over; where that takes too long, the link is given up.
                self.miners[miner].cut_off_until_us = self.events.now() + for_us;
                if for_us > DETECTION_US {
                    self.breaks(miner, for_us);
                }
                Ok(())
            }
            Event::Missed { miner, link } => self.missed(miner, link),
            Event::Restarts { miner } => self.restarts(miner),
            Event::SchedulerKilled => self.scheduler_killed(),
            Event::SchedulerBack => self.scheduler_back(),
            Event::Expires => self.expires(),
        }
    }

    fn arrives(&mut self, request: usize) -> Result<(), String> {
        let stream = &mut self.streams[request];
        stream.last_us = self.events.now();
        stream.stage = Stage::Open;
        self.watch.waits(self.events.now(), request);
        self.accounts.hold(request, &self.scenario.jobs[request])?;
        if self.is_up { self.submit(request) } else { Ok(()) }
    }

    /// Asks for a place for a request, with what it has.
    fn submit(&mut self, request: usize) -> Result<(), String> {
        let (job, stream, now) = (&self.scenario.jobs[request], &self.streams[request], self.now());
        match &mut self.placing {
            Placing::Ours(ours) => {
                if !ours.submit(request, job, stream, now) {
                    return self.turn_away(request);
                }
                self.place()
            }
            Placing::Rivals(rivals) => match rivals.choose(request, job, stream.accepted) {
                Some(miner) => self.assign(request, miner, None),
                None => self.place(),
            },
        }
    }

    fn place(&mut self) -> Result<(), String> {
        let now = self.now();
        match &mut self.placing {
            Placing::Ours(ours) => {
                for (request, link, ticket) in ours.place(now) {
                    let miner = self.links.iter().position(|known| *known == Some(link));
                    let miner = miner.ok_or("a request was placed on a miner that is not there")?;
                    self.assign(request, miner, Some(ticket))?;
                }
            }
            Placing::Rivals(rivals) => {
                for (request, miner) in rivals.polled(&self.links) {
                    self.assign(request, miner, None)?;
                }
            }
        }
        Ok(())
    }

    fn assign(&mut self, request: usize, miner: usize, ticket: Option<u64>) -> Result<(), String> {
        let (job, stream) = (&self.scenario.jobs[request], &mut self.streams[request]);
        let link = self.links[miner].ok_or("a request goes to a miner that is not there")?;
        self.sequences_made += 1;
        let sequence = SequenceId(self.sequences_made);
        let tokens: Vec<u32> = job.prompt.iter().copied().chain((0..stream.accepted).map(|at| job.token(at))).collect();
        let max_new = job.max_new - stream.accepted;
        let assign = Assign {
            prompt_tokens: job.prompt.len() as u32,
            seed: job.seed,
            stop_tokens: vec![STOP],
            credit: u32::MAX,
            cache_salt: ours::salt(job.tenant),
            ..Assign::new(ReplicaId(1), sequence, tokens, max_new, 16)
        };
        stream.place = Some(Place { miner, link, sequence, ticket });
        self.placed.insert(sequence, request);
        stream.since_placed = 0;
        self.watch.goes(self.events.now(), request);
        self.accounts.attempt(request, miner, self.miners[miner].ask());
        let latency = self.miners[miner].latency_us;
        let assign = Box::new(assign);
        self.events.after(latency, Event::Assigned { miner, link, request, assign });
        Ok(())
    }

    fn assigned(&mut self, miner: usize, link: u64, request: usize, assign: Assign) -> Result<(), String> {
        let there = &mut self.miners[miner];
        if there.link != link || !there.is_up {
            return Ok(());
        }
        match self.placing {
            Placing::Ours(_) => {
                if !there.assign(request, assign) {
                    return Err("a window was overdrawn".to_owned());
                }
                self.enters(miner, request);
            }
            Placing::Rivals(_) => {
                there.waiting.push_back((request, assign));
                if self.streams[request].is_on(miner, link) {
                    self.watch.waits(self.events.now(), request);
                }
            }
        }
        self.launch(miner);
        Ok(())
    }

    /// A request came into a miner's batch; not one that has been given up meanwhile.
    fn enters(&mut self, miner: usize, request: usize) {
        if self.streams[request].is_on(miner, self.miners[miner].link) {
            self.watch.enters(self.events.now(), request, self.scenario.jobs[request].prompt.len());
        }
    }

    fn launch(&mut self, miner: usize) {
        while let Some(request) = self.miners[miner].admit() {
            self.enters(miner, request);
        }
        let there = &mut self.miners[miner];
        if let Some(took_us) = there.launch(&mut self.chance) {
            let link = there.link;
            self.watch.computes(self.events.now(), took_us);
            self.events.after(took_us, Event::Landed { miner, link });
        }
    }

    fn landed(&mut self, miner: usize, link: u64) -> Result<(), String> {
        let there = &mut self.miners[miner];
        if there.link != link || !there.is_up {
            return Ok(());
        }
        if there.frozen_until_us > self.events.now() {
            let until = there.frozen_until_us;
            self.events.at(until, Event::Landed { miner, link });
            return Ok(());
        }
        let jobs = &self.scenario.jobs;
        let frame =
            there.land(|request, position| jobs[request].token((position - jobs[request].prompt.len() as u64) as u32));
        if let Some(frame) = frame {
            self.send(miner, frame);
        }
        self.launch(miner);
        Ok(())
    }

    fn tell(&mut self, miner: usize) {
        if let Some(frame) = self.miners[miner].news() {
            self.send(miner, frame);
        }
    }

    /// Frames of a connection arrive in their order.
    fn send(&mut self, miner: usize, frame: Frame) {
        let there = &mut self.miners[miner];
        let at = (self.events.now() + there.latency_us).max(there.cut_off_until_us).max(there.heard_us);
        there.heard_us = at;
        let link = there.link;
        self.events.at(at, Event::Heard { miner, link, frame: Box::new(frame) });
    }

    fn heard(&mut self, miner: usize, link: u64, frame: Frame) -> Result<(), String> {
        // Whoever is on a connection that was given up is not heard.
        if self.links[miner] != Some(link) {
            return Ok(());
        }
        match &mut self.placing {
            Placing::Ours(ours) => ours.stepped(link, &frame),
            Placing::Rivals(rivals) => rivals.stepped(miner, &frame),
        }
        for item in &frame.items {
            // Those that were given up may still have news under way.
            let Some(request) = self.placed.get(&item.sequence).copied() else { continue };
            self.accept(request, miner, item.first, &item.tokens)?;
            match &item.end {
                None => {}
                Some(End::Stop | End::Length) => self.finish(request)?,
                Some(End::Failed(why)) => return Err(format!("a sequence failed without a fault: {why}")),
                Some(other) => return Err(format!("a sequence ended with {other:?}")),
            }
        }
        self.place()
    }

    fn accept(&mut self, request: usize, miner: usize, first: u32, tokens: &[u32]) -> Result<(), String> {
        let (job, stream, now_us) = (&self.scenario.jobs[request], &mut self.streams[request], self.events.now());
        if first != stream.since_placed {
            return Err(format!("request {request} continues at {first} where {} was expected", stream.since_placed));
        }
        for token in tokens {
            if *token != job.token(stream.accepted) {
                return Err(format!("token {} of request {request} is not the one it always has", stream.accepted));
            }
            stream.accept(now_us);
            self.digest = mixed(self.digest ^ mixed(now_us) ^ (request as u64) << 32 ^ u64::from(*token));
        }
        if tokens.is_empty() {
            return Ok(());
        }
        // Others' rules know of no ways of computing.
        let numerics = self.miners[miner].numerics;
        if *stream.numerics.get_or_insert(numerics) != numerics && matches!(self.placing, Placing::Ours(_)) {
            return Err(format!("request {request} went on in another way of computing than it was begun in"));
        }
        if let Some(lost) = stream.lost_at.take() {
            self.recoveries.push((now_us - lost) as f64 / 1e3);
        }
        self.accounts.delivered(request, tokens.len() as u32);
        self.watch.delivers(now_us, request, tokens.len());
        let is_first = first == 0;
        match &mut self.placing {
            Placing::Ours(ours) if is_first => {
                if let Some(place) = &self.streams[request].place {
                    ours.answered(place, Duration::from_micros(now_us));
                }
            }
            Placing::Rivals(rivals) if is_first => {
                rivals.answered(request, miner, (now_us - job.at_us) as f64 / 1e3);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, request: usize) -> Result<(), String> {
        let now = self.now();
        let stream = &mut self.streams[request];
        let Some(place) = stream.place.take() else { return Err("a request ended that is nowhere".to_owned()) };
        stream.stage = Stage::Done;
        self.placed.remove(&place.sequence);
        if stream.accepted != self.scenario.jobs[request].output {
            return Err(format!("request {request} ended after {} tokens", stream.accepted));
        }
        self.left -= 1;
        stream.cost = self.accounts.settle(request, &self.scenario.jobs[request])?;
        match &mut self.placing {
            Placing::Ours(ours) => ours.ended(&place, stream.since_placed, false, now),
            Placing::Rivals(rivals) => rivals.ended(request, place.miner),
        }
        Ok(())
    }

    /// Its developer is gone: what was delivered is paid, and nothing more is computed.
    fn leaves(&mut self, request: usize) -> Result<(), String> {
        if self.streams[request].stage != Stage::Open {
            return Ok(());
        }
        let now = self.now();
        if let Some(place) = self.streams[request].place.take() {
            self.placed.remove(&place.sequence);
            let Place { miner, link, sequence, .. } = place;
            self.events.after(self.miners[miner].latency_us, Event::Cancelled { miner, link, sequence });
            match &mut self.placing {
                Placing::Ours(ours) => ours.ended(&place, self.streams[request].since_placed, false, now),
                Placing::Rivals(rivals) => rivals.ended(request, miner),
            }
        } else {
            match &mut self.placing {
                Placing::Ours(ours) => ours.withdraw(request),
                Placing::Rivals(rivals) => rivals.withdraw(request),
            }
        }
        self.turn_away(request)
    }

    /// Nobody takes it; what it has is paid.
    fn turn_away(&mut self, request: usize) -> Result<(), String> {
        self.streams[request].stage = Stage::TurnedAway;
        self.watch.goes(self.events.now(), request);
        self.left -= 1;
        self.accounts.settle(request, &self.scenario.jobs[request]).map(|_| ())
    }

    fn expires(&mut self) -> Result<(), String> {
        let now = self.now();
        self.events.after(EXPIRY_US, Event::Expires);
        if let Placing::Ours(ours) = &mut self.placing
            && self.is_up
        {
            for request in ours.expire(now) {
                self.turn_away(request)?;
            }
        }
        if self.is_up { self.place() } else { Ok(()) }
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.events.now())
    }
}
