//! Devices and the driver: found once, kept for the life of the process.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::{
    CudaContext, CudaStream, DriverError,
    result::{self},
    sys::{self, CUdevice_attribute_enum as Attribute},
};

use super::{backlog::Backlog, capture, memory::Pool, program::Programs, tune::Tuner};
use crate::{Context, Error, Result, context::MemoryStats};

/// One GPU: its primary context, the stream on which everything is ordered, its pool and its kernels.
pub(crate) struct Device {
    pub(crate) ordinal: usize,
    pub(crate) name: String,
    /// Compute capability, such as (9, 0).
    pub(crate) capability: (i32, i32),
    pub(crate) multiprocessors: u32,
    pub(super) pool: Mutex<Pool>,
    pub(super) programs: Programs,
    pub(super) backlog: Backlog,
    pub(super) tuner: Tuner,
    pub(super) stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gpu({}) {}", self.ordinal, self.name)
    }
}

/// Names of the driver's functions without which nothing works; cudarc would panic where one is absent.
const NEEDED: &[&str] = &[
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuModuleLoadData",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
];

/// Opens the driver's library once; `Err` holds the sentence for the user.
fn driver() -> Result<(), String> {
    static DRIVER: OnceLock<Result<(), String>> = OnceLock::new();
    let open = || {
        // SAFETY: loading the driver runs its initializers, which is what a CUDA program asks for.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "no NVIDIA driver (libcuda.so.1 is not on the loader's path); use try_gpu to fall back to cpu()".to_owned()
            );
        }
        // SAFETY: the library is present, so this does not panic; symbols are only looked up, not called.
        let lib = unsafe { sys::culib() };
        for name in NEEDED {
            // SAFETY: the type is not used; only the presence of the symbol is asked for.
            if unsafe { lib.get::<*const ()>(name.as_bytes()) }.is_err() {
                return Err(format!("the NVIDIA driver is too old: it has no {name}; update it to 470 or later"));
            }
        }
        result::init().map_err(|e| format!("the NVIDIA driver does not start: {}", words(&e)))
    };
    DRIVER.get_or_init(open).clone()
}

/// How many devices the driver shows.
pub(crate) fn device_count() -> Result<usize> {
    driver().map_err(|reason| Error::Device { context: Context::Gpu(0), reason })?;
    let n = result::device::get_count().map_err(|e| Error::Device { context: Context::Gpu(0), reason: words(&e) })?;
    Ok(n.max(0) as usize)
}

/// The device with that ordinal, opened at the first call.
pub(crate) fn device(ordinal: usize) -> Result<Arc<Device>> {
    static DEVICES: Mutex<Vec<Arc<Device>>> = Mutex::new(Vec::new());
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(d) = devices.iter().find(|d| d.ordinal == ordinal) {
        return Ok(d.clone());
    }
    let d = Arc::new(Device::open(ordinal)?);
    devices.push(d.clone());
    Ok(d)
}

impl Device {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let context = Context::Gpu(ordinal);
        let refuse = |reason: String| Error::Device { context, reason };
        let count = driver().and_then(|()| result::device::get_count().map_err(|e| words(&e))).map_err(refuse)?;
        if ordinal >= count.max(0) as usize {
            return Err(refuse(format!("the driver shows {count} device(s)")));
        }
        crate::settings::check()?;
        // Without NVRTC no kernel could run: say so now rather than at the first operation.
        super::nvrtc::compiler().map_err(refuse)?;
        let fail = |e: DriverError| refuse(words(&e));
        let cuda = CudaContext::new(ordinal).map_err(fail)?;
        // SAFETY: hadal orders all work on one stream itself, so cudarc's events would only cost time.
        unsafe { cuda.disable_event_tracking() };
        let stream = cuda.new_stream().map_err(fail)?;
        let attribute = |a| cuda.attribute(a).map_err(fail);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(Device {
            ordinal,
            name: cuda.name().map_err(fail)?,
            capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32,
            pool: Mutex::default(),
            programs: Programs::default(),
            backlog: Backlog::default(),
            tuner: Tuner::default(),
            stream,
            context: cuda,
        })
    }

    /// The architecture for NVRTC: `sm_90a`, `sm_80`, …
    pub(crate) fn arch(&self) -> String {
        let (major, minor) = self.capability;
        // From Hopper on, the instructions that matter need the architecture-specific target.
        format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
    }

    /// Makes the device's context current on this thread; before every driver call.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| self.failed("cuCtxSetCurrent", &e))
    }

    /// Waits for all work on the device's stream.
    pub(crate) fn synchronize(&self) -> Result<()> {
        capture::refuse("nothing runs yet that could be waited for: synchronize after Graph::replay")?;
        self.wait()
    }

    /// [`Device::synchronize`] also while this thread captures, which it does on another stream.
    pub(super) fn wait(&self) -> Result<()> {
        self.flush()?;
        self.bind()?;
        self.stream.synchronize().map_err(|e| self.failed("cuStreamSynchronize", &e))
    }

    /// Counters of the pool.
    pub(crate) fn memory_stats(&self) -> MemoryStats {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).stats
    }

    /// The error of a driver call.
    pub(super) fn failed(&self, call: &str, e: &DriverError) -> Error {
        Error::Cuda { context: Context::Gpu(self.ordinal), call: call.to_owned(), reason: words(e) }
    }
}

/// The driver's name and sentence for an error.
pub(super) fn words(e: &DriverError) -> String {
    let text =
        |r: Result<&std::ffi::CStr, DriverError>| r.map_or_else(|_| "unknown".into(), |s| s.to_string_lossy().into_owned());
    format!("{}: {}", text(e.error_name()), text(e.error_string()))
}
