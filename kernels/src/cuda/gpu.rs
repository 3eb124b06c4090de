//! Which GPUs there are, before anything is done with one. Says why there are none.

use crate::ops::OpsError;

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as `CUDA_VISIBLE_DEVICES` leaves it.
    pub ordinal: usize,
    /// What it is called.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The newest CUDA version that the driver knows: 1000 times the major one and 10 times the minor one.
    pub driver: u32,
}

/// Bytes a second that were copied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Copies {
    /// From its memory to its memory; each byte is read and written, and counted once for either.
    pub within: f64,
    /// From the host.
    pub to: f64,
    /// To the host.
    pub from: f64,
}

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGpu {
    /// There are no kernels in this program.
    #[error("this program was built for processors alone: build it with `--features cuda`")]
    NotBuilt,
    /// The driver's library was not found.
    #[error("there is no NVIDIA driver (libcuda.so.1 was not found)")]
    NoDriver,
    /// It is too old for what was compiled.
    #[error("the NVIDIA driver knows CUDA {}.{} and 13.0 is needed: install driver 580 or newer", .0 / 1000, .0 % 1000 / 10)]
    OldDriver(u32),
    /// There is a driver, and nothing for it to drive.
    #[error("there is an NVIDIA driver, but no GPU that it can use")]
    NoDevice,
    /// All are older than what was compiled for.
    #[error("{name} has compute capability {}.{}, and 8.0 (Ampere) is needed", .capability.0, .capability.1)]
    OldDevice {
        /// The first of them.
        name: String,
        /// What it can.
        capability: (u32, u32),
    },
    /// The driver does not work.
    #[error("the NVIDIA driver does not work: {0}")]
    Broken(String),
}

/// The GPUs that kernels can run on, in the driver's order; at least one.
#[cfg(not(feature = "cuda"))]
pub fn gpus() -> Result<Vec<Gpu>, NoGpu> {
    Err(NoGpu::NotBuilt)
}

/// Bytes of memory that are free on a GPU, with its context in place.
#[cfg(not(feature = "cuda"))]
pub fn free_bytes(_: &Gpu) -> Result<u64, OpsError> {
    Err(OpsError::Fault(NoGpu::NotBuilt.to_string()))
}

/// Bytes of memory that are free on a GPU, with its context and the kernels in place.
#[cfg(feature = "cuda")]
pub fn free_bytes(gpu: &Gpu) -> Result<u64, OpsError> {
    super::driver::Driver::new(gpu)?.free_bytes()
}

#[cfg(feature = "cuda")]
pub use self::found::gpus;

#[cfg(feature = "cuda")]
mod found {
    use cudarc::driver::result::{self, DriverError};
    use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

    use super::{Gpu, NoGpu};
    use crate::cuda::driver::told;

    /// The CUDA version of what is compiled here, which drivers know from 580 on.
    const CUDA_MIN: i32 = 13_000;
    /// Compute capability of the oldest GPU that there is code for: Ampere.
    const CAPABILITY_MIN: (u32, u32) = (8, 0);

    /// The GPUs that kernels can run on, in the driver's order; at least one.
    pub fn gpus() -> Result<Vec<Gpu>, NoGpu> {
        // SAFETY: it only tries to open a library; nothing else of the driver may be called before that succeeded.
        if !unsafe { sys::is_culib_present() } {
            return Err(NoGpu::NoDriver);
        }
        let broken = |e: DriverError| match e.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => NoGpu::NoDevice,
            _ => NoGpu::Broken(told(e)),
        };
        let driver = version().map_err(broken)?;
        if driver < CUDA_MIN {
            return Err(NoGpu::OldDriver(driver.unsigned_abs()));
        }
        result::init().map_err(broken)?;
        let count = result::device::get_count().map_err(broken)?;
        let found: Result<Vec<Gpu>, DriverError> = (0..count).map(|ordinal| gpu(ordinal, driver)).collect();
        let (usable, old): (Vec<_>, Vec<_>) =
            found.map_err(broken)?.into_iter().partition(|gpu| gpu.capability >= CAPABILITY_MIN);
        match (usable.is_empty(), old.into_iter().next()) {
            (false, _) => Ok(usable),
            (true, Some(Gpu { name, capability, .. })) => Err(NoGpu::OldDevice { name, capability }),
            (true, None) => Err(NoGpu::NoDevice),
        }
    }

    fn version() -> Result<i32, DriverError> {
        let mut version = 0;
        // SAFETY: the library is there, and the one argument is a place for a number.
        unsafe { sys::cuDriverGetVersion(&raw mut version).result()? };
        Ok(version)
    }

    fn gpu(ordinal: i32, driver: i32) -> Result<Gpu, DriverError> {
        let device = result::device::get(ordinal)?;
        // SAFETY: `device` is one that the driver has just named.
        let attribute = |of| unsafe { result::device::get_attribute(device, of) }.map(i32::unsigned_abs);
        Ok(Gpu {
            ordinal: ordinal.unsigned_abs() as usize,
            name: result::device::get_name(device)?,
            capability: (
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // SAFETY: as above.
            memory_bytes: unsafe { result::device::total_mem(device)? } as u64,
            driver: driver.unsigned_abs(),
        })
    }
}
