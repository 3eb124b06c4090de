//! What this machine has left: the kernel's estimate, and the limits of the control groups that the process is in; what a GPU
//! has left. Decides nothing.

use std::fs;
use std::path::{Path, PathBuf};

use cuckoo_kernels::cuda;
use cuckoo_kernels::ops::OpsError;

use super::MemoryPlan;
use crate::device::DeviceKind;

/// Left for everything but models: stacks, connections, vocabularies, the program itself.
const OTHERS_BYTES: u64 = 64 << 20;

/// Left on a GPU for what is no model's: graphs, code that is loaded when it is first used, the lists of a step, and what attention
/// and sampling compute in turns of 64 MiB.
const OTHERS_ON_GPU_BYTES: u64 = 512 << 20;

/// Memory that may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    /// How much.
    pub bytes: u64,
    /// What bounds it, in words.
    pub limit: &'static str,
}

/// Where a model's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The memory that the device computes in.
    pub device: Available,
    /// The host's, where that is another.
    pub host: Option<Available>,
}

impl Room {
    /// Memory that device and host share.
    pub const fn shared(device: Available) -> Self {
        Self { device, host: None }
    }

    /// How much `plan` needs of what there is too little of, and how much there is; `None` if it fits.
    pub fn lacks(&self, plan: &MemoryPlan) -> Option<(u64, Available)> {
        let needs = match self.host {
            None => vec![(plan.peak(), self.device)],
            Some(host) => vec![(plan.on_device(), self.device), (plan.on_host(), host)],
        };
        needs.into_iter().find(|(needed, available)| *needed > available.bytes)
    }

    /// Bytes that `plan` takes of the device's memory.
    pub fn takes(&self, plan: &MemoryPlan) -> u64 {
        if self.host.is_none() { plan.peak() } else { plan.on_device() }
    }

    /// After `plan` took its part.
    pub fn without(self, plan: &MemoryPlan) -> Self {
        match self.host {
            None => Self::shared(self.device.without(plan.peak())),
            Some(host) => {
                Self { device: self.device.without(plan.on_device()), host: Some(host.without(plan.on_host())) }
            }
        }
    }

    /// What there is for a device of some kind.
    pub fn on(kind: &DeviceKind, allowed: Option<u64>) -> Result<Self, OpsError> {
        match kind {
            DeviceKind::Cpu { .. } => Ok(Self::shared(Available::survey(allowed))),
            DeviceKind::Cuda(gpu, _) => {
                let free = cuda::free_bytes(gpu)?.saturating_sub(OTHERS_ON_GPU_BYTES);
                let free = Available { bytes: free, limit: "free memory of the GPU" };
                let allowed = allowed.map(|bytes| Available { bytes, limit: "--memory-mib" });
                let device = allowed.into_iter().chain([free]).min_by_key(|a| a.bytes).unwrap_or(free);
                Ok(Self { device, host: Some(Available::survey(None)) })
            }
        }
    }
}

impl Available {
    /// Without a bound that is known.
    pub const UNKNOWN: Self = Self { bytes: u64::MAX, limit: "no limit is known" };

    /// The least of `allowed`, if that is said, of what the kernel thinks is available, and of what is left in the control
    /// groups of this process.
    pub fn survey(allowed: Option<u64>) -> Self {
        Self::survey_in(Path::new("/"), allowed)
    }

    /// The same of the system whose files are below `root`.
    fn survey_in(root: &Path, allowed: Option<u64>) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        let free = read("proc/meminfo").and_then(|text| meminfo(&text));
        let groups = read("proc/self/cgroup").map_or_else(Vec::new, |text| group_folders(&text));
        let left = groups.iter().filter_map(|folder| left_in_group(&root.join(folder))).min();
        let machine = [(free, "free memory"), (left, "the control group's limit")];
        let machine = machine
            .into_iter()
            .filter_map(|(bytes, limit)| Some(Self { bytes: bytes?.saturating_sub(OTHERS_BYTES), limit }));
        let allowed = allowed.map(|bytes| Self { bytes, limit: "--memory-mib" });
        machine.chain(allowed).min_by_key(|a| a.bytes).unwrap_or(Self::UNKNOWN)
    }

    /// After something took its part.
    pub fn without(self, bytes: u64) -> Self {
        Self { bytes: self.bytes.saturating_sub(bytes), ..self }
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The folders of the memory groups that `/proc/self/cgroup` names, and of all around them, whichever may exist.
fn group_folders(text: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let mount = match controllers {
            "" => "sys/fs/cgroup",
            "memory" => "sys/fs/cgroup/memory",
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        // Inside a container the path may be that of the host; the group's own files are then at the mount.
        folders.extend(path.ancestors().map(|group| Path::new(mount).join(group)));
    }
    folders
}

/// What a control group has left, counting what the kernel would give up of the file cache; `None` without a limit.
fn left_in_group(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let of = |limit: &str, used: &str, cache: &str| {
        let (limit, used) = (read(limit).and_then(number)?, read(used).and_then(number)?);
        let stat = read("memory.stat").unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse().ok()).unwrap_or(0u64);
        Some(limit.saturating_sub(used.saturating_sub(cache)))
    };
    of("memory.max", "memory.current", "inactive_file ")
        .or_else(|| of("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: u64 = 1 << 20;

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn survey(files: &[(&str, &str)], allowed: Option<u64>) -> Available {
        Available::survey_in(system(files).path(), allowed)
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  9000000 kB\nMemFree: 7 kB\nMemAvailable:    4194304 kB\n");

    #[test]
    fn the_least_of_all_limits_counts() {
        assert_eq!(survey(&[], None), Available::UNKNOWN);
        let free = Available { bytes: 4096 * MIB - OTHERS_BYTES, limit: "free memory" };
        assert_eq!(survey(&[MEMINFO], None), free);
        assert_eq!(survey(&[MEMINFO], Some(u64::MAX)), free, "nobody is allowed what is not there");
        let allowed = Available { bytes: 100 * MIB, limit: "--memory-mib" };
        assert_eq!(survey(&[MEMINFO], Some(100 * MIB)), allowed);
    }

    #[test]
    fn groups_are_looked_at_up_to_the_root() {
        let group = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "5\n"),
            ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a/memory.current", "536870912\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 268435456\nactive_file 9\n"),
        ];
        let left = Available { bytes: 768 * MIB - OTHERS_BYTES, limit: "the control group's limit" };
        assert_eq!(survey(&group, None), left);
        let older = [
            ("proc/self/cgroup", "3:cpu:/x\n7:memory:/of/the/host\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n"),
        ];
        assert_eq!(survey(&older, None).bytes, 1024 * MIB - OTHERS_BYTES);
        // Used beyond the limit, or nonsense: no number, or none left; never a panic.
        let over = [
            ("proc/self/cgroup", "0::/\nnonsense\n"),
            ("sys/fs/cgroup/memory.max", "10"),
            ("sys/fs/cgroup/memory.current", "20"),
        ];
        assert_eq!(survey(&over, None).bytes, 0);
        let nonsense = [("proc/meminfo", "MemAvailable: much\n"), ("proc/self/cgroup", "0::/\n"), over[1]];
        assert_eq!(survey(&nonsense, None), Available::UNKNOWN);
    }
}
