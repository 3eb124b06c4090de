//! What breaks, and what becomes of the requests that were there.

use super::super::chance::Chance;
use super::events::Event;
use super::ours::Ours;
use super::stream::Stage;
use super::{DETECTION_US, EXPIRY_US, Faults, Market, Placing, RESTART_US};

impl Market<'_> {
    /// Everything that is known beforehand: requests, and faults while they come.
    pub(super) fn begin(&mut self, chance: &mut Chance) {
        for (request, job) in self.scenario.jobs.iter().enumerate() {
            self.events.at(job.at_us, Event::Arrives { request });
        }
        for miner in 0..self.miners.len() {
            self.events.after(0, Event::Connects { miner, link: miner as u64 });
        }
        self.events.after(EXPIRY_US, Event::Expires);
        let until_us = self.scenario.jobs.last().map_or(0, |job| job.at_us) as f64;
        let Faults { kills, freezes, partitions, scheduler_kills, departures } = self.scenario.faults;
        for (request, job) in self.scenario.jobs.iter().enumerate() {
            if chance.unit() < departures {
                self.events.at(job.at_us + chance.until_next(3e6) as u64, Event::Leaves { request });
            }
        }
        for (kind, a_minute) in [kills, freezes, partitions, scheduler_kills].into_iter().enumerate() {
            if a_minute <= 0.0 {
                continue;
            }
            let mut at = chance.until_next(60e6 / a_minute);
            while at < until_us {
                let miner = chance.below(self.miners.len() as u64) as usize;
                let for_us = chance.between(50e3, 10e6) as u64;
                let event = match kind {
                    0 => Event::Killed { miner, for_us: for_us + 1_000_000 },
                    1 => Event::Frozen { miner, for_us },
                    2 => Event::CutOff { miner, for_us },
                    _ => Event::SchedulerKilled,
                };
                self.events.at(at as u64, event);
                at += chance.until_next(60e6 / a_minute);
            }
        }
    }

    /// The scheduler will miss a miner, which comes back on another connection.
    pub(super) fn breaks(&mut self, miner: usize, for_us: u64) {
        let link = self.miners[miner].link;
        self.events.after(DETECTION_US, Event::Missed { miner, link });
        self.events.after(for_us.max(DETECTION_US) + 1, Event::Restarts { miner });
    }

    pub(super) fn restarts(&mut self, miner: usize) -> Result<(), String> {
        self.links_made += 1;
        let link = self.links_made;
        self.miners[miner].reset(link);
        let latency = self.miners[miner].latency_us;
        self.events.after(3 * latency, Event::Connects { miner, link });
        Ok(())
    }

    pub(super) fn connects(&mut self, miner: usize, link: u64) -> Result<(), String> {
        if self.miners[miner].link != link {
            return Ok(());
        }
        if !self.is_up {
            self.events.after(200_000, Event::Connects { miner, link });
            return Ok(());
        }
        // A newer connection of a miner takes the place of an older one that nobody has missed yet.
        if let Some(older) = self.links[miner] {
            self.missed(miner, older)?;
        }
        self.links[miner] = Some(link);
        match &mut self.placing {
            Placing::Ours(ours) => ours.offer(link, &self.miners[miner]),
            Placing::Rivals(rivals) => rivals.joins(miner),
        }
        self.place()
    }

    pub(super) fn missed(&mut self, miner: usize, link: u64) -> Result<(), String> {
        if self.links[miner] != Some(link) {
            return Ok(());
        }
        self.links[miner] = None;
        match &mut self.placing {
            Placing::Ours(ours) => ours.lose(link),
            Placing::Rivals(rivals) => rivals.leaves(miner),
        }
        let lost: Vec<usize> = (0..self.streams.len()).filter(|at| self.streams[*at].is_on(miner, link)).collect();
        lost.into_iter().try_for_each(|request| self.lost(request))
    }

    /// A request's placement is over without its end.
    pub(super) fn lost(&mut self, request: usize) -> Result<(), String> {
        let Some(place) = self.streams[request].place.take() else { return Ok(()) };
        self.placed.remove(&place.sequence);
        let now = self.now();
        if let Placing::Ours(ours) = &mut self.placing {
            ours.ended(&place, self.streams[request].since_placed, true, now);
        }
        let stream = &mut self.streams[request];
        stream.moves += 1;
        stream.lost_at.get_or_insert(self.events.now());
        self.watch.waits(self.events.now(), request);
        self.submit(request)
    }

    pub(super) fn scheduler_killed(&mut self) -> Result<(), String> {
        if !self.is_up {
            return Ok(());
        }
        self.placed.clear();
        self.is_up = false;
        self.links.iter_mut().for_each(|link| *link = None);
        for (request, stream) in self.streams.iter_mut().enumerate() {
            // What was accepted is in the journal; where it was is not.
            if stream.place.take().is_some() {
                stream.moves += 1;
                stream.lost_at.get_or_insert(self.events.now());
                self.watch.waits(self.events.now(), request);
            }
        }
        match &mut self.placing {
            Placing::Ours(ours) => **ours = Ours::new(self.chance.number()),
            Placing::Rivals(rivals) => rivals.forget(),
        }
        for miner in 0..self.miners.len() {
            if self.miners[miner].is_up {
                self.events.after(self.miners[miner].latency_us, Event::Restarts { miner });
            }
        }
        self.events.after(RESTART_US, Event::SchedulerBack);
        Ok(())
    }

    pub(super) fn scheduler_back(&mut self) -> Result<(), String> {
        self.is_up = true;
        let open: Vec<usize> = (0..self.streams.len()).filter(|at| self.streams[*at].stage == Stage::Open).collect();
        open.into_iter().try_for_each(|request| self.submit(request))
    }
}
