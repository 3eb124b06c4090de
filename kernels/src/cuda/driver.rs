//! A GPU through its driver, which is looked for when the program runs: the same binary starts without one. Knows no kernel.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::result::{DriverError, launch_kernel};
use cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUfunction_attribute, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode,
    CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle, cuFuncGetAttribute, cuTensorMapEncodeTiled,
};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice,
};
use cudarc::nvrtc::Ptx;

use super::gpu::{Copies, Gpu};
use super::launches::Launches;
use super::machine::{Extent, Machine, Narrow, Piece, TiledMatrix};
use super::replay::{Capture, Clock};
use crate::ops::OpsError;

/// All kernels, for all architectures, compressed.
static FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// A context, a stream and the kernels on one GPU. Used by one thread.
pub struct Driver {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    kernels: HashMap<&'static CStr, Kernel>,
    description: String,
    architecture: u32,
    multiprocessors: u32,
    /// Where copies went that are done; as many as were on their way at once.
    done: Vec<HostCopy>,
}

struct Kernel {
    function: CudaFunction,
    /// Bytes of shared memory that it may ask for.
    shared_bytes: u32,
}

/// What a launch may ask for without a word beforehand.
const SHARED_BYTES: u32 = 48 << 10;

/// What is copied to measure how fast that goes: more than a cache holds.
const COPY_BYTES: usize = 1 << 30;
/// Of the host, whose memory has to be paged in.
const COPY_BYTES_OF_HOST: usize = 64 << 20;
const COPY_ROUNDS: usize = 7;

/// Memory of a GPU.
pub struct DeviceMemory {
    slice: CudaSlice<u8>,
    address: u64,
    bytes: usize,
}

impl Piece for DeviceMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A copy to locked memory of the host that nobody waited for yet. The event that such memory brings along is recorded only by
/// those who track events, so it has one of its own.
pub struct HostCopy {
    to: PinnedHostSlice<u8>,
    arrived: CudaEvent,
}

impl Drop for HostCopy {
    fn drop(&mut self) {
        // Memory is not given back while something is copied to it. After an error nothing is.
        let _ = self.arrived.synchronize();
    }
}

/// An error of the driver in words.
pub(super) fn told(error: DriverError) -> String {
    let name = error.error_name().ok().and_then(|name| name.to_str().ok());
    let text = error.error_string().ok().and_then(|text| text.to_str().ok());
    format!("{} ({})", text.unwrap_or("unknown error"), name.unwrap_or("no name"))
}

/// Errors after which this process gets nothing more from the GPU: a context that met one answers with it ever after.
const FATAL: [CUresult; 12] = [
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUresult::CUDA_ERROR_EXTERNAL_DEVICE,
];

fn failed(what: &str) -> impl Fn(DriverError) -> OpsError {
    move |error| match FATAL.contains(&error.0) {
        true => OpsError::Lost(format!("{what}: {}", told(error))),
        false => OpsError::Fault(format!("{what}: {}", told(error))),
    }
}

impl Driver {
    /// A context of its own thread on `gpu`, with the kernels that suit it.
    pub fn new(gpu: &Gpu) -> Result<Self, OpsError> {
        let context = CudaContext::new(gpu.ordinal).map_err(failed("a context"))?;
        // SAFETY: everything happens on one stream, in order, so there is nothing for events to wait for; nothing is allocated
        // yet that would have some.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("a stream"))?;
        let module = context.load_module(Ptx::from_binary(FATBIN.to_vec())).map_err(failed("loading the kernels"))?;
        let (major, minor) = gpu.capability;
        let description = format!("cuda {}, {} (sm_{major}{minor})", gpu.ordinal, gpu.name);
        let (architecture, multiprocessors) = (10 * major + minor, gpu.multiprocessors);
        let (kernels, done) = (HashMap::new(), Vec::new());
        let mut driver = Self { stream, module, kernels, description, architecture, multiprocessors, done };
        let translated = driver.is_translated(c"cuckoo_norm_rows")?;
        if translated {
            driver.description += ", translated by the driver";
        }
        Ok(driver)
    }

    /// Bytes of memory that are free now.
    pub fn free_bytes(&self) -> Result<u64, OpsError> {
        let (free, _) = self.stream.context().mem_get_info().map_err(failed("asking for free memory"))?;
        Ok(free as u64)
    }

    /// Bytes of its second-level cache: what is smaller may be read from there.
    pub fn l2_bytes(&self) -> Result<u64, OpsError> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        let bytes = self.stream.context().attribute(attribute).map_err(failed("asking for the size of a cache"))?;
        Ok(u64::from(bytes.unsigned_abs()))
    }

    /// How fast it copies: the best of a few rounds, because a limit is what was ever reached.
    pub fn measure_copies(&mut self) -> Result<Copies, OpsError> {
        let most = usize::try_from(self.free_bytes()? / 8).unwrap_or(COPY_BYTES);
        let bytes = COPY_BYTES.min(most.max(1 << 20));
        let host_bytes = bytes.min(COPY_BYTES_OF_HOST);
        let (mut a, mut b) = (self.allocate(bytes, "a copy")?, self.allocate(bytes, "a copy")?);
        let mut host = vec![1u8; host_bytes];
        let mut best = Copies { within: 0.0, to: 0.0, from: 0.0 };
        for _ in 0..COPY_ROUNDS {
            let mut timed = |bytes: usize, best: &mut f64, work: &mut dyn FnMut(&mut Self) -> Result<(), OpsError>| {
                let began = Instant::now();
                work(self)?;
                self.wait()?;
                *best = best.max(bytes as f64 / began.elapsed().as_secs_f64());
                Ok::<_, OpsError>(())
            };
            timed(host_bytes, &mut best.to, &mut |driver| driver.write(&mut a, 0, &host))?;
            timed(host_bytes, &mut best.from, &mut |driver| driver.read(&b, 0, &mut host))?;
            let began = self.mark()?;
            self.stream.memcpy_dtod(&a.slice, &mut b.slice).map_err(failed("copying on the GPU"))?;
            let ended = self.mark()?;
            best.within = best.within.max((2 * bytes) as f64 / self.between(&began, &ended)?.as_secs_f64());
        }
        Ok(best)
    }

    /// Whether there was no machine code for this GPU, so that the driver made it from that of an older one.
    fn is_translated(&mut self, kernel: &'static CStr) -> Result<bool, OpsError> {
        let function = self.kernel(kernel)?.function.cu_function();
        let attribute = |of: CUfunction_attribute| {
            let mut value = 0;
            // SAFETY: the function is loaded, and there is a place for the number.
            let done = unsafe { cuFuncGetAttribute(&raw mut value, of, function).result() };
            done.map(|()| value).map_err(failed("asking for a kernel"))
        };
        // Machine code that was compiled here came from code for the same generation.
        Ok(attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)? / 10
            != attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)? / 10)
    }

    /// Room for a copy of so many bytes.
    fn host_copy(&self, bytes: usize) -> Result<HostCopy, OpsError> {
        let context = self.stream.context();
        // SAFETY: it is written by the copy before anybody reads it.
        let to = unsafe { context.alloc_pinned_with_flags(bytes, 0) }.map_err(failed("memory of the host"))?;
        let arrived = context.new_event(None).map_err(failed("an event"))?;
        Ok(HostCopy { to, arrived })
    }

    fn kernel(&mut self, name: &'static CStr) -> Result<&mut Kernel, OpsError> {
        if !self.kernels.contains_key(name) {
            let text = name.to_str().expect("kernels have plain names");
            let function = self.module.load_function(text).map_err(failed(text))?;
            self.kernels.insert(name, Kernel { function, shared_bytes: SHARED_BYTES });
        }
        Ok(self.kernels.get_mut(name).expect("it was put there"))
    }
}

impl Machine for Driver {
    type Memory = DeviceMemory;
    type Pending = HostCopy;

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn architecture(&self) -> u32 {
        self.architecture
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn tensor_map(&self, of: &TiledMatrix) -> Result<[u64; 16], OpsError> {
        of.check()?;
        let kind = match of.kind {
            Narrow::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Narrow::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let (sizes, strides) = ([of.cols, of.rows], [of.row_bytes]);
        let (tile, apart) = ([of.box_cols, of.box_rows], [1, 1]);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: there is a place for the map, and as many sizes and strides as dimensions; the matrix is looked at by kernels
        // alone.
        let done = unsafe {
            cuTensorMapEncodeTiled(
                &raw mut map,
                kind,
                2,
                of.address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                apart.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        done.result().map_err(failed("a tensor map"))?;
        Ok(map.opaque)
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<DeviceMemory, OpsError> {
        let slice = self.stream.alloc_zeros::<u8>(bytes.max(1)).map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => OpsError::OutOfMemory { what, bytes },
            _ => failed(what)(error),
        })?;
        let (address, _) = slice.device_ptr(&self.stream);
        Ok(DeviceMemory { address, bytes, slice })
    }

    fn write(&mut self, to: &mut DeviceMemory, at: usize, bytes: &[u8]) -> Result<(), OpsError> {
        assert!(at <= to.bytes && bytes.len() <= to.bytes - at, "what is written fits");
        if bytes.is_empty() {
            return Ok(());
        }
        // From memory that is not locked: the driver has copied it when this returns.
        let mut part = to.slice.slice_mut(at..at + bytes.len());
        self.stream.memcpy_htod(bytes, &mut part).map_err(failed("copying to the GPU"))
    }

    fn zero(&mut self, of: &mut DeviceMemory, bytes: usize) -> Result<(), OpsError> {
        assert!(bytes <= of.bytes, "there are as many");
        if bytes == 0 {
            return Ok(());
        }
        self.stream.memset_zeros(&mut of.slice.slice_mut(..bytes)).map_err(failed("zeroing"))
    }

    fn read(&mut self, from: &DeviceMemory, at: usize, to: &mut [u8]) -> Result<(), OpsError> {
        assert!(at <= from.bytes && to.len() <= from.bytes - at, "there is as much as is read");
        if to.is_empty() {
            return Ok(());
        }
        self.stream.memcpy_dtoh(&from.slice.slice(at..at + to.len()), to).map_err(failed("copying from the GPU"))?;
        self.wait()
    }

    fn read_ahead(&mut self, from: &DeviceMemory, bytes: usize) -> Result<HostCopy, OpsError> {
        assert!(bytes <= from.bytes, "there are as many");
        let fits = self.done.iter().position(|copy| copy.to.len() >= bytes);
        let mut copy = match fits {
            Some(at) => self.done.swap_remove(at),
            None => self.host_copy(bytes.next_power_of_two())?,
        };
        self.stream.memcpy_dtoh(&from.slice.slice(..bytes), &mut copy.to).map_err(failed("copying from the GPU"))?;
        copy.arrived.record(&self.stream).map_err(failed("copying from the GPU"))?;
        Ok(copy)
    }

    fn finish(&mut self, pending: HostCopy, to: &mut [u8]) -> Result<(), OpsError> {
        pending.arrived.synchronize().map_err(failed("computing"))?;
        to.copy_from_slice(&pending.to.as_slice().map_err(failed("computing"))?[..to.len()]);
        self.done.push(pending);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), OpsError> {
        self.stream.synchronize().map_err(failed("computing"))
    }

    unsafe fn launch(&mut self, kernel: &'static CStr, extent: Extent, args: &[u8]) -> Result<(), OpsError> {
        let stream = self.stream.cu_stream();
        let name = kernel.to_str().expect("kernels have plain names");
        let kernel = self.kernel(kernel)?;
        if extent.shared_bytes > kernel.shared_bytes {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel.function.set_attribute(most, extent.shared_bytes.cast_signed()).map_err(failed(name))?;
            kernel.shared_bytes = extent.shared_bytes;
        }
        let ([x, y, z], block) = (extent.grid, (extent.threads, 1, 1));
        let (function, mut params) = (kernel.function.cu_function(), [args.as_ptr().cast_mut().cast()]);
        // SAFETY: function and stream are there; the driver reads `args`, the one parameter of the kernel, before this returns.
        // What the kernel then does to which memory is the caller's promise.
        let done = unsafe { launch_kernel(function, (x, y, z), block, extent.shared_bytes, stream, &mut params) };
        done.map_err(failed(name))
    }
}

impl Capture for Driver {
    type Graph = CudaGraph;

    unsafe fn capture(&mut self, launches: &Launches) -> Result<CudaGraph, OpsError> {
        let relaxed = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(relaxed).map_err(failed("keeping launches"))?;
        // SAFETY: nothing runs yet; the caller's promise is about when it does.
        let launched = unsafe { launches.run(self) };
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        let graph = self.stream.end_capture(flags).map_err(failed("keeping launches"));
        launched?;
        graph?.ok_or_else(|| OpsError::Fault("the driver kept no launches".to_owned()))
    }

    unsafe fn replay(&mut self, graph: &CudaGraph) -> Result<(), OpsError> {
        graph.launch().map_err(failed("launches that were kept"))
    }
}

impl Clock for Driver {
    type Mark = CudaEvent;

    fn mark(&mut self) -> Result<CudaEvent, OpsError> {
        let timed = CUevent_flags::CU_EVENT_DEFAULT;
        self.stream.record_event(Some(timed)).map_err(failed("asking for the time"))
    }

    fn between(&mut self, from: &CudaEvent, to: &CudaEvent) -> Result<Duration, OpsError> {
        let ms = from.elapsed_ms(to).map_err(failed("computing"))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}
