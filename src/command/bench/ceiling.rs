//! What a device can do at most, measured where it stands.

use std::fmt;

use anyhow::{anyhow, bail};
use cuckoo_kernels::limits::Limits;
use cuckoo_runtime::{DeviceKind, examine};
use serde_json::{Value, json};

/// Of one device.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ceiling {
    /// Processors, on some number of threads.
    Cpu(Limits),
    /// A GPU.
    Gpu {
        /// Which.
        device: String,
        /// Bytes a second that it copies within its memory, read and written ones counted.
        copy_bytes_per_s: f64,
    },
}

impl Ceiling {
    /// Takes a second or a few.
    pub(super) fn measure(device: &DeviceKind) -> anyhow::Result<Self> {
        match device {
            DeviceKind::Cpu { threads } => Ok(Self::Cpu(Limits::measure(*threads))),
            DeviceKind::Cuda(..) => {
                let examined = examine(device)?;
                if !examined.wrong.is_empty() {
                    bail!("{device} does not compute what it should, so its figures say nothing: see `cuckoo doctor`");
                }
                let copies = examined.copies.ok_or_else(|| anyhow!("{device} did not say how fast it copies"))?;
                Ok(Self::Gpu { device: device.to_string(), copy_bytes_per_s: copies.within })
            }
        }
    }

    /// Bytes a second: read on processors, copied on a GPU.
    pub(super) fn bytes_per_s(&self) -> f64 {
        match self {
            Self::Cpu(limits) => limits.read_bytes_per_s,
            Self::Gpu { copy_bytes_per_s, .. } => *copy_bytes_per_s,
        }
    }

    /// 8-bit multiplications and additions a second, where there is a loop that measures them.
    pub(super) fn int8_ops_per_s(&self) -> Option<f64> {
        match self {
            Self::Cpu(limits) => Some(limits.int8_ops_per_s),
            Self::Gpu { .. } => None,
        }
    }

    pub(super) fn json(&self) -> Value {
        match self {
            Self::Cpu(l) => json!({
                "event": "limits", "n_threads": l.threads, "read_bytes_per_s": l.read_bytes_per_s,
                "int8_ops_per_s": l.int8_ops_per_s, "int8_with": l.int8_with,
            }),
            Self::Gpu { device, copy_bytes_per_s } => {
                json!({"event": "limits", "device": device, "copy_bytes_per_s": copy_bytes_per_s})
            }
        }
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(l) => write!(
                f,
                "limits on {} threads: {:.1} GB/s read, {:.0} GOP/s of 8-bit integers ({})",
                l.threads,
                l.read_bytes_per_s / 1e9,
                l.int8_ops_per_s / 1e9,
                l.int8_with
            ),
            Self::Gpu { device, copy_bytes_per_s } => {
                write!(f, "limits of {device}: {:.1} GB/s copied within its memory", copy_bytes_per_s / 1e9)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_a_bandwidth_and_no_rate_of_integers() {
        let ceiling = Ceiling::Gpu { device: "cuda:0, some card".to_owned(), copy_bytes_per_s: 4.2e12 };
        assert_eq!((ceiling.bytes_per_s(), ceiling.int8_ops_per_s()), (4.2e12, None));
        assert_eq!(ceiling.json()["copy_bytes_per_s"], 4.2e12);
        assert!(ceiling.to_string().contains("4200.0 GB/s"), "{ceiling}");
    }
}
