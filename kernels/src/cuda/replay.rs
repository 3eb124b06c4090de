//! Launches are gathered until somebody needs what they compute. A sequence of them that comes again is then one graph: a decode
//! step of the same batch differs from the last one only in what was written to memory before, so a device gets a few graphs a
//! step instead of hundreds of launches, each of which costs its processor microseconds.
//!
//! Whoever launches does not know of it: the order of writes, launches and reads stays what it was.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::mem::take;
use std::rc::Rc;

mod timing;

pub use self::timing::{Clock, Replayed};
use super::launches::Launches;
use super::machine::{Extent, Machine, Piece, TiledMatrix};
use crate::ops::OpsError;

/// Shorter sequences are not worth a graph.
const GRAPH_LAUNCHES_MIN: usize = 8;
/// Graphs that are kept; the one that was not used for longest goes first.
const GRAPHS_MAX: usize = 64;
/// Sequences seen once that are remembered, to be known when they come again.
const SEEN_MAX: usize = 256;

/// A machine that can keep launches as one.
pub trait Capture: Machine {
    /// Launches that are kept.
    type Graph;

    /// Keeps them; runs nothing.
    ///
    /// # Safety
    /// As [`Machine::launch`], at every [`Capture::replay`].
    unsafe fn capture(&mut self, launches: &Launches) -> Result<Self::Graph, OpsError>;

    /// Runs what was kept.
    ///
    /// # Safety
    /// As [`Machine::launch`] of each that was kept.
    unsafe fn replay(&mut self, graph: &Self::Graph) -> Result<(), OpsError>;
}

/// `M`, with launches gathered and replayed.
pub struct Replay<M: Capture> {
    machine: M,
    gathered: Launches,
    graphs: HashMap<u64, Known<M::Graph>>,
    /// Fingerprints of sequences that came once.
    seen: VecDeque<u64>,
    flushes: u64,
    replays: u64,
    /// Memory that was dropped while launches that may use it were gathered.
    dropped: Dropped<M>,
}

type Dropped<M> = Rc<RefCell<Vec<<M as Machine>::Memory>>>;

struct Known<G> {
    launches: Launches,
    graph: G,
    last_used: u64,
}

/// Memory of the machine, given back after the launches that were gathered when it was dropped.
pub struct Kept<M: Machine> {
    memory: Option<M::Memory>,
    dropped: Dropped<M>,
}

impl<M: Machine> Kept<M> {
    fn memory(&self) -> &M::Memory {
        self.memory.as_ref().expect("it is there until it is dropped")
    }

    fn memory_mut(&mut self) -> &mut M::Memory {
        self.memory.as_mut().expect("it is there until it is dropped")
    }
}

impl<M: Machine> Piece for Kept<M> {
    fn address(&self) -> u64 {
        self.memory().address()
    }

    fn bytes(&self) -> usize {
        self.memory().bytes()
    }
}

impl<M: Machine> Drop for Kept<M> {
    fn drop(&mut self) {
        self.dropped.borrow_mut().extend(self.memory.take());
    }
}

impl<M: Capture> Replay<M> {
    /// Of `machine`.
    pub fn new(machine: M) -> Self {
        Self {
            machine,
            gathered: Launches::default(),
            graphs: HashMap::new(),
            seen: VecDeque::new(),
            flushes: 0,
            replays: 0,
            dropped: Rc::default(),
        }
    }

    /// How often a graph was run.
    pub fn replays(&self) -> u64 {
        self.replays
    }

    /// Has everything run that was gathered.
    fn flush(&mut self) -> Result<(), OpsError> {
        let launches = take(&mut self.gathered);
        if !launches.is_empty() {
            // SAFETY: who launched promised that memory would be there until now: what was dropped since is kept below.
            unsafe { self.run(launches)? }
        }
        self.dropped.borrow_mut().clear();
        Ok(())
    }

    /// # Safety
    /// As [`Machine::launch`] of each.
    unsafe fn run(&mut self, launches: Launches) -> Result<(), OpsError> {
        if launches.len() < GRAPH_LAUNCHES_MIN {
            // SAFETY: the caller's promise.
            return unsafe { self.run_once(launches) };
        }
        self.flushes += 1;
        let print = launches.fingerprint();
        if let Some(known) = self.graphs.get_mut(&print).filter(|known| known.launches == launches) {
            known.last_used = self.flushes;
            self.replays += 1;
            // SAFETY: these are the launches that were kept; the caller's promise.
            return unsafe { self.machine.replay(&known.graph) };
        }
        if !self.seen.contains(&print) {
            self.seen.push_back(print);
            if self.seen.len() > SEEN_MAX {
                self.seen.pop_front();
            }
            // SAFETY: the caller's promise.
            return unsafe { self.run_once(launches) };
        }
        if self.graphs.len() >= GRAPHS_MAX {
            let oldest = self.graphs.iter().min_by_key(|(_, known)| known.last_used).map(|(print, _)| *print);
            oldest.and_then(|print| self.graphs.remove(&print));
        }
        self.replays += 1;
        // SAFETY: it is run now, by the caller's promise, and later where the same launches are asked for again.
        unsafe {
            let graph = self.machine.capture(&launches)?;
            self.machine.replay(&graph)?;
            self.graphs.insert(print, Known { launches, graph, last_used: self.flushes });
        }
        Ok(())
    }

    /// # Safety
    /// As [`Machine::launch`] of each.
    unsafe fn run_once(&mut self, mut launches: Launches) -> Result<(), OpsError> {
        // SAFETY: the caller's promise.
        let done = unsafe { launches.run(&mut self.machine) };
        launches.clear();
        self.gathered = launches; // for its memory
        done
    }
}

impl<M: Capture> Machine for Replay<M> {
    type Memory = Kept<M>;
    type Pending = M::Pending;

    fn describe(&self) -> String {
        self.machine.describe()
    }

    fn architecture(&self) -> u32 {
        self.machine.architecture()
    }

    fn multiprocessors(&self) -> u32 {
        self.machine.multiprocessors()
    }

    fn tensor_map(&self, of: &TiledMatrix) -> Result<[u64; 16], OpsError> {
        self.machine.tensor_map(of)
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Kept<M>, OpsError> {
        self.flush()?;
        let memory = Some(self.machine.allocate(bytes, what)?);
        Ok(Kept { memory, dropped: self.dropped.clone() })
    }

    fn write(&mut self, to: &mut Kept<M>, at: usize, bytes: &[u8]) -> Result<(), OpsError> {
        self.flush()?;
        self.machine.write(to.memory_mut(), at, bytes)
    }

    fn zero(&mut self, of: &mut Kept<M>, bytes: usize) -> Result<(), OpsError> {
        self.flush()?;
        self.machine.zero(of.memory_mut(), bytes)
    }

    fn read(&mut self, from: &Kept<M>, at: usize, to: &mut [u8]) -> Result<(), OpsError> {
        self.flush()?;
        self.machine.read(from.memory(), at, to)
    }

    fn read_ahead(&mut self, from: &Kept<M>, bytes: usize) -> Result<M::Pending, OpsError> {
        self.flush()?;
        self.machine.read_ahead(from.memory(), bytes)
    }

    fn finish(&mut self, pending: M::Pending, to: &mut [u8]) -> Result<(), OpsError> {
        self.machine.finish(pending, to)
    }

    fn wait(&mut self) -> Result<(), OpsError> {
        self.flush()?;
        self.machine.wait()
    }

    unsafe fn launch(&mut self, kernel: &'static CStr, extent: Extent, args: &[u8]) -> Result<(), OpsError> {
        self.gathered.push(kernel, extent, args);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
