//! A network of our own for real processes: each host is a network namespace, and a cable leads from each to one switch,
//! which is another. Nothing of the machine's own network is touched, and all of it is gone with its handle.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the names of our namespaces begin with; the number of the process that made them follows.
const OURS: &str = "cuckoo-test-";
/// Set by those who want a failure where there can be no network, rather than a test that does nothing.
const REQUIRE: &str = "CUCKOO_REQUIRE_NETNS";
/// Nobody's.
const WRONG_MAC: &str = "02:00:00:00:00:01";

/// Hosts on a switch. Each has an IPv4 and an IPv6 address.
pub(super) struct Network {
    /// The name of every namespace of it begins with this.
    name: String,
    hosts: Vec<Host>,
}

struct Host {
    name: &'static str,
    namespace: File,
}

impl Network {
    /// One of these hosts. `None`, with a reason on standard error, where this machine lets us make none.
    pub(super) fn of(hosts: &[&'static str]) -> Option<Self> {
        // One at a time: whoever is first on a machine makes the folder that namespaces are in.
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        remove_leftovers();
        let why = match Self::make(hosts) {
            Ok(network) => return Some(network),
            Err(why) => why,
        };
        drop(turn);
        let required = std::env::var(REQUIRE).is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
        assert!(!required, "{REQUIRE} is set, and there can be no network of namespaces here: {why}");
        // Past the harness, which keeps to itself what a test prints that does not fail.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: a test of network namespaces, which needs root and Debian's package 'iproute2': {why}"
        );
        None
    }

    fn make(hosts: &[&'static str]) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("{OURS}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        // From here on, what was made goes with it.
        let mut network = Self { name, hosts: Vec::new() };
        let switch = network.namespace("switch");
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for &host in hosts {
            network.plug_in(host)?;
        }
        Ok(network)
    }

    /// Adds a host, by a cable that has the host's name at the switch.
    fn plug_in(&mut self, host: &'static str) -> Result<(), String> {
        let (switch, own, number) = (self.namespace("switch"), self.namespace(host), self.hosts.len() as u8 + 1);
        ip(&["netns", "add", &own])?;
        let namespace = File::open(format!("/run/netns/{own}")).map_err(|e| format!("/run/netns/{own}: {e}"))?;
        self.hosts.push(Host { name: host, namespace });
        ip(&["link", "add", host, "netns", &switch, "type", "veth", "peer", "name", "eth0", "netns", &own])?;
        ip(&["-n", &switch, "link", "set", host, "master", "bridge"])?;
        // Datagrams go through a cable one by one, as through a real one: a bundle of them would pass where none may.
        ip(&["-n", &switch, "link", "set", host, "up", "gso_max_segs", "1"])?;
        ip(&["-n", &own, "link", "set", "eth0", "up", "gso_max_segs", "1"])?;
        ip(&["-n", &own, "link", "set", "lo", "up"])?;
        ip(&["-n", &own, "addr", "add", &format!("{}/24", v4(number)), "dev", "eth0"])?;
        ip(&["-n", &own, "addr", "add", &format!("{}/64", v6(number)), "dev", "eth0", "nodad"])
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    fn number(&self, host: &str) -> u8 {
        self.hosts.iter().position(|known| known.name == host).expect("a host") as u8 + 1
    }

    /// Where a host can be reached until it is renumbered.
    pub(super) fn addresses(&self, host: &str) -> [IpAddr; 2] {
        let number = self.number(host);
        [v4(number).into(), v6(number).into()]
    }

    /// Does something at a host. Sockets that are made and processes that are started meanwhile are there, and stay there.
    pub(super) fn within<T>(&self, host: &str, work: impl FnOnce() -> T) -> T {
        let _back = Back(File::open("/proc/thread-self/ns/net").unwrap());
        enter(&self.hosts[usize::from(self.number(host)) - 1].namespace);
        work()
    }

    /// The same for what takes its time, on threads that are all there.
    pub(super) fn run<T>(&self, host: &str, work: impl Future<Output = T>) -> T {
        let namespace = self.hosts[usize::from(self.number(host)) - 1].namespace.try_clone().unwrap();
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || enter(&namespace))
            .build()
            .unwrap();
        self.within(host, || threads.block_on(work))
    }

    fn at(&self, host: &str, args: &[&str]) {
        ip(&[&["-n", &self.namespace(host)], args].concat()).unwrap();
    }

    /// Pulls a host's cable out of the switch, or puts it back. Nobody is told.
    pub(super) fn plug(&self, host: &str, is_in: bool) {
        self.at("switch", &["link", "set", host, if is_in { "up" } else { "down" }]);
    }

    /// Switches a host's own end off, or on again: what it sends meanwhile is an error.
    pub(super) fn switch(&self, host: &str, is_on: bool) {
        self.at(host, &["link", "set", "eth0", if is_on { "up" } else { "down" }]);
    }

    /// What `from` sends to the IPv4 address of `to` is lost in silence, or no longer.
    pub(super) fn lose(&self, from: &str, to: &str, is_lost: bool) {
        let to = v4(self.number(to)).to_string();
        match is_lost {
            true => self.at(from, &["neigh", "replace", &to, "lladdr", WRONG_MAC, "dev", "eth0", "nud", "permanent"]),
            false => self.at(from, &["neigh", "del", &to, "dev", "eth0"]),
        }
    }

    /// What `from` sends to the IPv4 address of `to` is an error, or no longer.
    pub(super) fn refuse(&self, from: &str, to: &str, is_refused: bool) {
        let change = if is_refused { "add" } else { "del" };
        self.at(from, &["route", change, "blackhole", &v4(self.number(to)).to_string()]);
    }

    /// Takes a host's IPv4 address away, and then gives it another one.
    pub(super) fn renumber(&self, host: &str) {
        let number = self.number(host);
        self.at(host, &["addr", "del", &format!("{}/24", v4(number)), "dev", "eth0"]);
        self.at(host, &["addr", "add", &format!("{}/24", v4(number + 100)), "dev", "eth0"]);
    }

    /// Packets of a host that its cable has not taken so far.
    pub(super) fn lost(&self, host: &str) -> u64 {
        let said = printed_by_ip(&["-n", &self.namespace(host), "-json", "-stats", "link", "show", "eth0"]).unwrap();
        let links: serde_json::Value = serde_json::from_str(&said).unwrap();
        links[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
    }

    /// Longer packets than this are lost at the switch on their way to a host and from it. Neither end knows.
    pub(super) fn limit(&self, host: &str, bytes: u32) {
        self.at("switch", &["link", "set", host, "mtu", &bytes.to_string()]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.iter().map(|host| host.name).chain(["switch"]) {
            let _ = ip(&["netns", "del", &self.namespace(host)]);
        }
    }
}

/// Brings the thread back to where it was.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        enter(&self.0);
    }
}

fn enter(namespace: &File) {
    use std::os::fd::AsFd;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("a namespace can be entered");
}

fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into())
}

/// Runs Linux's own command; its complaint where it fails.
fn ip(args: &[&str]) -> Result<(), String> {
    printed_by_ip(args).map(|_| ())
}

fn printed_by_ip(args: &[&str]) -> Result<String, String> {
    let said = |why: &dyn std::fmt::Display| format!("ip {}: {why}", args.join(" "));
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|e| said(&e))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(said(&String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Removes what a test process left that was killed itself, with the processes that still run there.
fn remove_leftovers() {
    let Ok(list) = printed_by_ip(&["netns", "list"]) else { return };
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let maker = name.strip_prefix(OURS).and_then(|rest| rest.split('-').next());
        if maker.is_none_or(|maker| std::path::Path::new("/proc").join(maker).exists()) {
            continue;
        }
        // Another test process may be at it as well.
        for left in printed_by_ip(&["netns", "pids", name]).unwrap_or_default().lines() {
            let _ = Command::new("kill").args(["-KILL", left]).stderr(Stdio::null()).status();
        }
        let _ = ip(&["netns", "del", name]);
    }
}
