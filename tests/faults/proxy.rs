//! A stretch of bad network: a UDP proxy that loses, repeats, delays, reorders and damages datagrams, or lets none through,
//! as told while it runs. What it does to each is drawn from one seed.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cuckoo::Address;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Numbers from a seed: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in so many of 100 cases.
    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What happens to datagrams of one direction; chances are percentages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Path {
    /// Nothing gets through.
    pub(crate) is_cut: bool,
    pub(crate) loss: u64,
    pub(crate) duplicate: u64,
    /// One bit is flipped.
    pub(crate) corrupt: u64,
    /// So many are overtaken by those that come within [`OVERTAKEN`] after them.
    pub(crate) reorder: u64,
    pub(crate) delay: Duration,
    /// Up to so much more.
    pub(crate) jitter: Duration,
    /// Bytes a second; what would wait for more than [`QUEUE_MAX`] is lost.
    pub(crate) rate: Option<u64>,
}

/// How long a datagram that is to be overtaken is held back.
const OVERTAKEN: Duration = Duration::from_millis(15);
/// See [`Path::rate`].
const QUEUE_MAX: Duration = Duration::from_millis(500);

/// One direction as it runs.
struct Way {
    path: Path,
    dice: Dice,
    /// When a path of limited rate has sent what it was given.
    free: Instant,
}

impl Way {
    /// The copies of a datagram that arrive: when, and with which bit flipped.
    fn fate(&mut self, bytes: usize, now: Instant) -> Vec<(Duration, Option<usize>)> {
        let path = self.path;
        if path.is_cut || self.dice.percent(path.loss) {
            return Vec::new();
        }
        let mut queued = Duration::ZERO;
        if let Some(rate) = path.rate {
            queued = self.free.saturating_duration_since(now);
            if queued > QUEUE_MAX {
                return Vec::new();
            }
            self.free = now + queued + Duration::from_secs_f64(bytes as f64 / rate as f64);
        }
        let copies = 1 + usize::from(self.dice.percent(path.duplicate));
        let mut copy = || {
            let overtaken = if self.dice.percent(path.reorder) { OVERTAKEN } else { Duration::ZERO };
            let jitter = path.jitter.mul_f64(self.dice.below(1_000) as f64 / 1_000.0);
            let flipped = self.dice.percent(path.corrupt).then(|| self.dice.below(bytes.max(1) as u64 * 8) as usize);
            (queued + path.delay + jitter + overtaken, flipped)
        };
        (0..copies).map(|_| copy()).collect()
    }
}

/// A proxy in front of one scheduler, for one miner or developer or several.
pub(crate) struct Proxy {
    address: Address,
    /// Towards the scheduler, and away from it.
    ways: [Arc<Mutex<Way>>; 2],
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Lets everything through until told otherwise.
    pub(crate) async fn start(scheduler: &Address, seed: u64) -> Self {
        let to: SocketAddr = scheduler.resolve().await.unwrap();
        let door = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let address = Address::new(scheduler.peer, door.local_addr().unwrap());
        let way = |seed| Arc::new(Mutex::new(Way { path: Path::default(), dice: Dice(seed), free: Instant::now() }));
        let ways = [way(seed), way(!seed)];
        let mut tasks = JoinSet::new();
        tasks.spawn(carry(door, to, ways.clone()));
        Self { address, ways, _tasks: tasks }
    }

    /// Where the scheduler seems to be.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// From now on, datagrams to the scheduler and from it have it so.
    pub(crate) fn set(&self, to_scheduler: Path, from_scheduler: Path) {
        for (way, path) in self.ways.iter().zip([to_scheduler, from_scheduler]) {
            way.lock().unwrap().path = path;
        }
    }

    /// Nothing gets through in either direction, or everything does.
    pub(crate) fn cut(&self, is_cut: bool) {
        let path = Path { is_cut, ..Path::default() };
        self.set(path, path);
    }
}

/// Gives everybody who comes to the door a socket of their own, so that answers find their way.
async fn carry(door: Arc<UdpSocket>, to: SocketAddr, [there, back]: [Arc<Mutex<Way>>; 2]) {
    let mut sockets: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok((length, from)) = door.recv_from(&mut buffer).await else { continue };
        let socket = match sockets.get(&from) {
            Some(socket) => socket.clone(),
            None => {
                let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
                socket.connect(to).await.unwrap();
                sockets.insert(from, socket.clone());
                tasks.spawn(answers(socket.clone(), (door.clone(), from), back.clone()));
                socket
            }
        };
        send(&mut tasks, &there, &buffer[..length], (&socket, None));
    }
}

/// Carries what the scheduler says to one peer.
async fn answers(socket: Arc<UdpSocket>, (door, to): (Arc<UdpSocket>, SocketAddr), way: Arc<Mutex<Way>>) {
    let (mut tasks, mut buffer) = (JoinSet::new(), vec![0; 65_536]);
    loop {
        while tasks.try_join_next().is_some() {}
        // The scheduler's port may be closed for a while.
        let Ok(length) = socket.recv(&mut buffer).await else { continue };
        send(&mut tasks, &way, &buffer[..length], (&door, Some(to)));
    }
}

fn send(tasks: &mut JoinSet<()>, way: &Mutex<Way>, bytes: &[u8], (socket, to): (&Arc<UdpSocket>, Option<SocketAddr>)) {
    let copies = way.lock().unwrap().fate(bytes.len(), Instant::now());
    for (after, flipped) in copies {
        let mut bytes = bytes.to_vec();
        if let Some(bit) = flipped.filter(|bit| bit / 8 < bytes.len()) {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let socket = socket.clone();
        let arrive = async move {
            if after > Duration::ZERO {
                tokio::time::sleep(after).await;
            }
            let _ = match to {
                Some(to) => socket.send_to(&bytes, to).await,
                None => socket.send(&bytes).await,
            };
        };
        // What comes at once comes in order.
        match after > Duration::ZERO {
            true => _ = tasks.spawn(arrive),
            false => _ = futures_util::FutureExt::now_or_never(arrive),
        }
    }
}

#[test]
fn fates_come_from_the_seed_and_in_the_shares_asked_for() {
    let path = Path {
        loss: 30,
        duplicate: 10,
        corrupt: 5,
        reorder: 20,
        delay: Duration::from_millis(3),
        jitter: Duration::from_millis(4),
        ..Path::default()
    };
    let now = Instant::now();
    let fates = |seed| {
        let mut way = Way { path, dice: Dice(seed), free: now };
        (0..10_000).map(|_| way.fate(100, now)).collect::<Vec<_>>()
    };
    assert_eq!(fates(1), fates(1));
    assert_ne!(fates(1), fates(2));
    let all = fates(1);
    let near = |count: usize, of: usize, percent: usize| (count * 100).abs_diff(of * percent) < of * 2;
    let arrived: Vec<_> = all.iter().flatten().collect();
    assert!(near(all.iter().filter(|copies| copies.is_empty()).count(), 10_000, 30));
    assert!(near(all.iter().filter(|copies| copies.len() == 2).count(), 7_000, 10));
    assert!(near(arrived.iter().filter(|(_, flipped)| flipped.is_some()).count(), arrived.len(), 5));
    assert!(near(arrived.iter().filter(|(after, _)| *after >= OVERTAKEN).count(), arrived.len(), 20));
    assert!(arrived.iter().all(|(after, _)| *after >= path.delay));

    let mut slow = Way { path: Path { rate: Some(10_000), ..Path::default() }, dice: Dice(1), free: now };
    let through: Vec<_> = (0..100).flat_map(|_| slow.fate(100, now)).map(|(after, _)| after).collect();
    assert_eq!(through.len(), 51, "half a second of 10,000 bytes a second, and the one that finds it free");
    assert_eq!(through[50], QUEUE_MAX);
    slow.path = Path { is_cut: true, ..Path::default() };
    assert!(slow.fate(100, now + Duration::from_secs(9)).is_empty());
}
