//! The kernels' sources on the CPU (`cuda/emulator/`): slow, deterministic, and strict about what threads may do.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::counting::rounded;
use super::launches::Launches;
use super::machine::{Extent, Machine, Piece, TiledMatrix};
use super::replay::{Capture, Clock};
use crate::ops::OpsError;

unsafe extern "C" {
    fn cuckoo_emulator_launch(
        name: *const c_char,
        grid: *const c_uint,
        threads: c_uint,
        shared_bytes: usize,
        args: *const c_void,
        args_bytes: usize,
        order: c_uint,
        host_threads: c_uint,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    #[cfg(test)]
    fn cuckoo_emulator_kernel(i: usize) -> *const c_char;
    #[cfg(test)]
    fn cuckoo_emulator_libm(x: *const f64, exps: *mut f64, logs: *mut f64, count: usize);
}

/// A machine whose threads are fibers.
pub struct Emulator {
    order: u32,
    host_threads: u32,
    architecture: u32,
    taken: Arc<AtomicU64>,
    /// What it ran.
    #[cfg(test)]
    pub(super) launched: Vec<&'static CStr>,
}

/// Blocks that fill a multiprocessor run one after the other; few, so that each has more than one tile to compute.
const MULTIPROCESSORS: u32 = 3;
/// By which a kernel knows a tensor map of this machine: `TENSOR_MAP_MARK` of `emulator/hopper.h`.
const TENSOR_MAP_MARK: u64 = 0x7061_6d74;

/// Memory of the host, in units that are aligned as a GPU's memory is.
pub struct HostMemory {
    units: Box<[Unit]>,
    bytes: usize,
    /// Of the emulator whose it is.
    taken: Arc<AtomicU64>,
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.taken.fetch_sub(rounded(self.bytes), Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
#[repr(align(256))]
struct Unit(#[allow(dead_code, reason = "only its bytes are used")] [u8; 256]);

impl Piece for HostMemory {
    fn address(&self) -> u64 {
        self.units.as_ptr() as u64
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Emulator {
    /// Threads of a block take turns in an order: 0 by number, 1 backwards, others by a seed; blocks are shared out among so
    /// many threads of the host. `None` where the processor lacks what the kernels were compiled for.
    pub fn new(order: u32, host_threads: u32) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if !(is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2")) {
            return None;
        }
        Some(Self {
            order,
            host_threads,
            architecture: 80,
            taken: Arc::default(),
            #[cfg(test)]
            launched: Vec::new(),
        })
    }

    /// As a machine of that compute capability, e.g. 90: see [`Machine::architecture`].
    #[must_use]
    pub fn with_architecture(self, architecture: u32) -> Self {
        Self { architecture, ..self }
    }

    /// Bytes that are taken of its memory at any time, as a GPU's driver would count them.
    pub fn taken(&self) -> Arc<AtomicU64> {
        self.taken.clone()
    }

    /// `exp` and `log` of numbers, as kernels compute them.
    #[cfg(test)]
    pub(super) fn libm(x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut exps, mut logs) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        // SAFETY: all three are as long as is said.
        unsafe { cuckoo_emulator_libm(x.as_ptr(), exps.as_mut_ptr(), logs.as_mut_ptr(), x.len()) };
        (exps, logs)
    }

    /// The names of all kernels.
    #[cfg(test)]
    pub(super) fn kernels() -> impl Iterator<Item = &'static CStr> {
        // SAFETY: the function takes any number, and answers with null or a string that lives as long as the program.
        let name = |i| unsafe {
            let name = cuckoo_emulator_kernel(i);
            (!name.is_null()).then(|| CStr::from_ptr(name))
        };
        (0..).map_while(name)
    }
}

impl Machine for Emulator {
    type Memory = HostMemory;
    type Pending = Vec<u8>;

    fn describe(&self) -> String {
        format!("cuda emulated, order {}", self.order)
    }

    fn architecture(&self) -> u32 {
        self.architecture
    }

    fn multiprocessors(&self) -> u32 {
        MULTIPROCESSORS
    }

    /// `TensorMap` of `emulator/hopper.h`.
    fn tensor_map(&self, of: &TiledMatrix) -> Result<[u64; 16], OpsError> {
        of.check()?;
        let mut words = [0; 16];
        let boxes = u64::from(of.box_rows) | u64::from(of.box_cols) << 32;
        words[..6].copy_from_slice(&[of.address, of.rows, of.cols, of.row_bytes, boxes, 2 | TENSOR_MAP_MARK << 32]);
        Ok(words)
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<HostMemory, OpsError> {
        let mut units = Vec::new();
        let count = bytes.div_ceil(256).max(1);
        units.try_reserve_exact(count).map_err(|_| OpsError::OutOfMemory { what, bytes })?;
        units.resize(count, Unit([0; 256]));
        self.taken.fetch_add(rounded(bytes), Ordering::Relaxed);
        Ok(HostMemory { units: units.into_boxed_slice(), bytes, taken: self.taken.clone() })
    }

    fn write(&mut self, to: &mut HostMemory, at: usize, bytes: &[u8]) -> Result<(), OpsError> {
        assert!(at <= to.bytes && bytes.len() <= to.bytes - at, "what is written fits");
        // SAFETY: `at + bytes.len()` is within the memory, which is borrowed mutably and overlaps nothing of the caller's.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.units.as_mut_ptr().cast::<u8>().add(at), bytes.len());
        }
        Ok(())
    }

    fn zero(&mut self, of: &mut HostMemory, bytes: usize) -> Result<(), OpsError> {
        assert!(bytes <= of.bytes, "there are as many");
        // SAFETY: `bytes` bytes are within the memory, which is borrowed mutably; zeros are a value of its units.
        unsafe {
            std::ptr::write_bytes(of.units.as_mut_ptr().cast::<u8>(), 0, bytes);
        }
        Ok(())
    }

    fn read(&mut self, from: &HostMemory, at: usize, to: &mut [u8]) -> Result<(), OpsError> {
        assert!(at <= from.bytes && to.len() <= from.bytes - at, "there is as much as is read");
        // SAFETY: `at + to.len()` is within the memory, every byte of which has been written since it was allocated as zeros.
        unsafe {
            std::ptr::copy_nonoverlapping(from.units.as_ptr().cast::<u8>().add(at), to.as_mut_ptr(), to.len());
        }
        Ok(())
    }

    fn read_ahead(&mut self, from: &HostMemory, bytes: usize) -> Result<Vec<u8>, OpsError> {
        let mut to = vec![0; bytes];
        self.read(from, 0, &mut to)?;
        Ok(to)
    }

    fn finish(&mut self, pending: Vec<u8>, to: &mut [u8]) -> Result<(), OpsError> {
        to.copy_from_slice(&pending);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), OpsError> {
        Ok(()) // a launch returns when it is done
    }

    unsafe fn launch(&mut self, kernel: &'static CStr, extent: Extent, args: &[u8]) -> Result<(), OpsError> {
        #[cfg(test)]
        self.launched.push(kernel);
        let mut message = [0u8; 512];
        // SAFETY: name, grid, arguments and message are as long as said and outlive the call, which returns when every block
        // is done; that the arguments fit the kernel is the caller's promise (their size is compared).
        let status = unsafe {
            cuckoo_emulator_launch(
                kernel.as_ptr(),
                extent.grid.as_ptr(),
                extent.threads,
                extent.shared_bytes as usize,
                args.as_ptr().cast(),
                args.len(),
                self.order,
                self.host_threads,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        match (status, CStr::from_bytes_until_nul(&message)) {
            (0, _) => Ok(()),
            (_, Ok(why)) => Err(OpsError::Fault(why.to_string_lossy().into_owned())),
            (_, Err(_)) => Err(OpsError::Fault("a kernel failed".to_owned())),
        }
    }
}

/// Launches are kept as they are.
impl Capture for Emulator {
    type Graph = Launches;

    unsafe fn capture(&mut self, launches: &Launches) -> Result<Launches, OpsError> {
        Ok(launches.clone())
    }

    unsafe fn replay(&mut self, graph: &Launches) -> Result<(), OpsError> {
        // SAFETY: the caller's promise.
        unsafe { graph.run(self) }
    }
}

/// The host's clock: a launch returns when it is done.
impl Clock for Emulator {
    type Mark = Instant;

    fn mark(&mut self) -> Result<Instant, OpsError> {
        Ok(Instant::now())
    }

    fn between(&mut self, from: &Instant, to: &Instant) -> Result<Duration, OpsError> {
        Ok(to.saturating_duration_since(*from))
    }
}
