//! Whether a device computes what it should, and how fast it copies.

use cuckoo_kernels::check::{Case, wrongs};
use cuckoo_kernels::cuda::Copies;
use cuckoo_kernels::ops::OpsError;
use cuckoo_kernels::{Cpu, Ops};

use crate::device::DeviceKind;
use crate::memory::Room;

/// What was found out about a device.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The backend, as a person would like to read it.
    pub backend: String,
    /// Bytes of memory that models may take.
    pub free_bytes: u64,
    /// How many operations were checked.
    pub checks: usize,
    /// Those that are not as the contract says, and how.
    pub wrong: Vec<(String, String)>,
    /// How fast it copies, where it has memory of its own.
    pub copies: Option<Copies>,
}

/// Has a device do every operation once, and measures it. Takes seconds.
pub fn examine(kind: &DeviceKind) -> Result<Examined, OpsError> {
    let room = Room::on(kind, None)?;
    let mut examined = match kind {
        DeviceKind::Cpu { threads } => checked(&mut Cpu::new(*threads)),
        DeviceKind::Cuda(gpu, _) => on_gpu(gpu)?,
    };
    examined.free_bytes = room.device.bytes;
    Ok(examined)
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &cuckoo_kernels::cuda::Gpu) -> Result<Examined, OpsError> {
    use cuckoo_kernels::cuda::{Cuda, Driver, Replay};
    let mut driver = Driver::new(gpu)?;
    let copies = Some(driver.measure_copies()?);
    Ok(Examined { copies, ..checked(&mut Cuda::new(Replay::new(driver))) })
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &cuckoo_kernels::cuda::Gpu) -> Result<Examined, OpsError> {
    Err(OpsError::Fault(cuckoo_kernels::cuda::NoGpu::NotBuilt.to_string()))
}

fn checked<O: Ops>(ops: &mut O) -> Examined {
    let wrong = wrongs(ops).into_iter().map(|(case, why)| (case.to_string(), why.to_string())).collect();
    Examined { backend: ops.describe(), free_bytes: 0, checks: Case::all().len(), wrong, copies: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn processors_are_sound() {
        let found = examine(&DeviceKind::Cpu { threads: 2 }).unwrap();
        assert!(found.wrong.is_empty() && found.checks > 40 && found.free_bytes > 0, "{found:?}");
        assert!(found.backend.starts_with("cpu "), "{found:?}");
    }
}
