//! Which devices a miner computes on: those that it is told, or the best that there are.

mod examine;

use std::str::FromStr;

use cuckoo_kernels::cuda::{Gpu, NoGpu, Profile, gpus};

pub use self::examine::{Examined, examine};
use crate::device::DeviceKind;

/// Which devices are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// All GPUs, or the processors where there is none.
    #[default]
    Auto,
    /// This machine's processors.
    Cpu,
    /// All GPUs.
    Cuda,
    /// One of them, by its number.
    CudaNumber(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |number: &str| number.parse().ok().map(Self::CudaNumber);
        let choice = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda),
            _ => text.strip_prefix("cuda:").and_then(number),
        };
        choice.ok_or_else(|| "auto, cpu, cuda (all GPUs) or cuda:0 (one of them)".to_owned())
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// What computes; never nothing, and nothing twice.
    pub kinds: Vec<DeviceKind>,
    /// Why no GPU is among them where nobody has said that there should be none.
    pub no_gpu: Option<NoGpu>,
}

/// Why there is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDevice {
    /// GPUs were asked for.
    #[error("no GPU can be used: {0} (--device cpu computes on processors)")]
    Gpu(NoGpu),
    /// One was asked for that there is not.
    #[error("there is no GPU {number}; there are {}", list(.there))]
    Number {
        /// The one that was asked for.
        number: usize,
        /// Those that there are.
        there: Vec<Gpu>,
    },
}

fn list(gpus: &[Gpu]) -> String {
    gpus.iter().map(|gpu| format!("cuda:{} ({})", gpu.ordinal, gpu.name)).collect::<Vec<_>>().join(", ")
}

impl Devices {
    /// Looks for what `choices` want; nothing said is [`DeviceChoice::Auto`]. Processors work with `threads` threads, and GPUs
    /// as `profile` says.
    pub fn survey(choices: &[DeviceChoice], threads: usize, profile: Profile) -> Result<Self, NoDevice> {
        Self::choose(choices, (threads, profile), gpus)
    }

    /// The same with what is `there`, which is only asked where it matters: a driver takes its time.
    fn choose(
        choices: &[DeviceChoice],
        (threads, profile): (usize, Profile),
        there: impl Fn() -> Result<Vec<Gpu>, NoGpu>,
    ) -> Result<Self, NoDevice> {
        let cpu = DeviceKind::Cpu { threads };
        let of_gpu = |gpu| DeviceKind::Cuda(gpu, profile);
        let mut devices = Self { kinds: Vec::new(), no_gpu: None };
        let choices = if choices.is_empty() { &[DeviceChoice::Auto] } else { choices };
        for choice in choices {
            match choice {
                DeviceChoice::Cpu => devices.add([cpu.clone()]),
                DeviceChoice::Cuda => devices.add(there().map_err(NoDevice::Gpu)?.into_iter().map(of_gpu)),
                DeviceChoice::CudaNumber(number) => {
                    let there = there().map_err(NoDevice::Gpu)?;
                    let one = there.iter().find(|gpu| gpu.ordinal == *number).cloned();
                    let one = one.ok_or(NoDevice::Number { number: *number, there })?;
                    devices.add([of_gpu(one)]);
                }
                DeviceChoice::Auto => match there() {
                    Ok(gpus) => devices.add(gpus.into_iter().map(of_gpu)),
                    Err(why) => {
                        devices.no_gpu = Some(why);
                        devices.add([cpu.clone()]);
                    }
                },
            }
        }
        Ok(devices)
    }

    fn add(&mut self, kinds: impl IntoIterator<Item = DeviceKind>) {
        for kind in kinds {
            if !self.kinds.contains(&kind) {
                self.kinds.push(kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CPU: DeviceKind = DeviceKind::Cpu { threads: 3 };

    fn gpu(ordinal: usize, gib: u64) -> Gpu {
        Gpu {
            ordinal,
            name: format!("card of {gib} GiB"),
            capability: (8, 9),
            multiprocessors: 60,
            memory_bytes: gib << 30,
            driver: 13_000,
        }
    }

    fn choose(choices: &[&str], there: Result<&[(usize, u64)], NoGpu>) -> Result<Devices, NoDevice> {
        let choices: Vec<DeviceChoice> = choices.iter().map(|choice| choice.parse().unwrap()).collect();
        let there = there.map(|gpus| gpus.iter().map(|(ordinal, gib)| gpu(*ordinal, *gib)).collect());
        Devices::choose(&choices, (3, Profile::Fast), || there.clone())
    }

    #[test]
    fn gpus_of_any_number_and_size_are_all_used() {
        let three: &[(usize, u64)] = &[(0, 24), (1, 8), (2, 12)];
        let all = Devices {
            kinds: three.iter().map(|(n, gib)| DeviceKind::Cuda(gpu(*n, *gib), Profile::Fast)).collect(),
            no_gpu: None,
        };
        for choices in [&[][..], &["auto"], &["cuda"], &["cuda:0", "cuda:1", "cuda:2", "cuda"], &["auto", "cuda:2"]] {
            assert_eq!(choose(choices, Ok(three)).unwrap(), all, "{choices:?}");
        }
        let two = choose(&["cuda:2", "cpu", "cuda:2"], Ok(three)).unwrap();
        assert_eq!(two.kinds, [DeviceKind::Cuda(gpu(2, 12), Profile::Fast), CPU]);
    }

    #[test]
    fn without_a_gpu_processors_compute_unless_one_was_asked_for() {
        let found = choose(&[], Err(NoGpu::NoDriver)).unwrap();
        assert_eq!(found, Devices { kinds: vec![CPU], no_gpu: Some(NoGpu::NoDriver) });
        // Who has said so need not be told.
        assert_eq!(choose(&["cpu"], Err(NoGpu::NoDriver)).unwrap().no_gpu, None);
        assert_eq!(
            choose(&["cuda"], Err(NoGpu::NoDriver)).unwrap_err().to_string(),
            "no GPU can be used: there is no NVIDIA driver (libcuda.so.1 was not found) (--device cpu computes on processors)"
        );
        assert_eq!(
            choose(&["cuda:3"], Ok(&[(0, 24), (1, 8)])).unwrap_err().to_string(),
            "there is no GPU 3; there are cuda:0 (card of 24 GiB), cuda:1 (card of 8 GiB)"
        );
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
        }
    }
}
