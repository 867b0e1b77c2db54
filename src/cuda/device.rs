//! Devices and the driver: found once, kept for the life of the process.

use std::{
    collections::HashMap,
    ffi::{CStr, c_int, c_uint},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::sys::{CUcontext, CUdevice_attribute_enum as Attribute, CUstream, CUstream_flags_enum};

use super::{
    backlog::Backlog,
    capture,
    driver::{self, Api, Failure, checked},
    memory::{DeviceBuffer, Pool},
    program::Programs,
    staging::Staging,
    tune::Tuner,
};
use crate::{Context, Error, Result, context::MemoryStats};

/// `CU_STREAM_NON_BLOCKING`: the stream does not wait for the legacy one.
const NON_BLOCKING: c_uint = CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;

/// The oldest compute capability that the kernels are written for: Turing's.
const OLDEST: (i32, i32) = (7, 5);

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
    /// Whether memory comes from the driver's stream-ordered pool, which some virtual GPUs do not have.
    pub(super) pools: bool,
    pub(super) staging: Staging,
    /// Small zeros by their bytes, see [`Device::zeros`].
    pub(super) zeros: Mutex<HashMap<usize, Arc<DeviceBuffer>>>,
    pub(super) api: &'static Api,
    stream: Shared<CUstream>,
    context: Shared<CUcontext>,
}

/// A handle of the driver's that all threads may use.
struct Shared<T>(T);

// SAFETY: contexts and streams may be used by any thread at any time (CUDA driver API, "Stream synchronization behavior").
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gpu({}) {}", self.ordinal, self.name)
    }
}

/// How many devices the driver shows; an error as a sentence.
fn count() -> Result<usize, String> {
    let (api, mut n) = (driver::api()?, 0);
    // SAFETY: the pointer is to a live local.
    checked(unsafe { (api.cuDeviceGetCount)(&mut n) }).map_err(Failure::words)?;
    Ok(n.max(0) as usize)
}

/// How many devices the driver shows.
pub(crate) fn device_count() -> Result<usize> {
    count().map_err(|reason| Error::Device { context: Context::Gpu(0), reason })
}

/// The newest CUDA that the driver knows, such as (12, 4); `None` without a driver.
pub(crate) fn driver_version() -> Option<(i32, i32)> {
    driver::version()
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
        let fail = |e: Failure| refuse(e.words());
        let (api, count) = (driver::api().map_err(refuse)?, count().map_err(refuse)?);
        if ordinal >= count {
            return Err(refuse(format!("the driver shows {count} device(s)")));
        }
        crate::settings::check()?;
        // Without NVRTC, or with one whose code this driver cannot load, no kernel could run: say so now rather than at the first operation.
        super::nvrtc::compiler().map_err(refuse)?;
        let (mut device, mut name) = (0, [0; 256]);
        // SAFETY: the pointers are to live locals, and the name has as many bytes as is said.
        unsafe {
            checked((api.cuDeviceGet)(&mut device, ordinal as c_int)).map_err(fail)?;
            checked((api.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int, device)).map_err(fail)?;
        }
        let attribute = |a: Attribute| {
            let mut v = 0;
            // SAFETY: the pointer is to a live local.
            checked(unsafe { (api.cuDeviceGetAttribute)(&mut v, a as c_int, device) }).map(|()| v).map_err(fail)
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let bytes = name.map(|c| c as u8);
        let name = CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned());
        if capability < OLDEST {
            let ((major, minor), (least, of)) = (capability, OLDEST);
            return Err(refuse(format!(
                "{name} has compute capability {major}.{minor}; kernels need {least}.{of} (Turing) or newer"
            )));
        }
        let (mut primary, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointers are to live locals; the primary context is retained for the life of the process, and the stream belongs to it.
        unsafe {
            checked((api.cuDevicePrimaryCtxRetain)(&mut primary, device)).map_err(fail)?;
            checked((api.cuCtxSetCurrent)(primary)).map_err(fail)?;
            checked((api.cuStreamCreate)(&mut stream, NON_BLOCKING)).map_err(fail)?;
        }
        Ok(Device {
            ordinal,
            name,
            capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32,
            pool: Mutex::default(),
            programs: Programs::default(),
            backlog: Backlog::default(),
            tuner: Tuner::default(),
            pools: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? > 0,
            staging: Staging::default(),
            zeros: Mutex::default(),
            api,
            stream: Shared(stream),
            context: Shared(primary),
        })
    }

    /// The architecture for NVRTC: `sm_90a`, `sm_80`, …
    pub(crate) fn arch(&self) -> String {
        let (major, minor) = self.capability;
        // From Hopper on, the instructions that matter need the architecture-specific target.
        format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
    }

    /// Makes the device's context current on this thread; before every driver call. Whether it is already is asked of the driver, which
    /// other libraries in the process use too.
    pub(super) fn bind(&self) -> Result<()> {
        let mut current = std::ptr::null_mut();
        // SAFETY: the pointer is to a live local; the context is never released.
        let bound = unsafe {
            checked((self.api.cuCtxGetCurrent)(&mut current)).and_then(|()| match current == self.context.0 {
                true => Ok(()),
                false => checked((self.api.cuCtxSetCurrent)(self.context.0)),
            })
        };
        bound.map_err(|e| self.failed("cuCtxSetCurrent", e))
    }

    /// The stream on which all work of the device is ordered.
    pub(super) fn stream(&self) -> CUstream {
        self.stream.0
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
        // SAFETY: the stream is the device's, whose context is current.
        checked(unsafe { (self.api.cuStreamSynchronize)(self.stream()) }).map_err(|e| self.failed("cuStreamSynchronize", e))
    }

    /// Counters of the pool.
    pub(crate) fn memory_stats(&self) -> MemoryStats {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).stats
    }

    /// The error of a driver call.
    pub(super) fn failed(&self, call: &str, e: Failure) -> Error {
        Error::Cuda { context: Context::Gpu(self.ordinal), call: call.to_owned(), reason: e.words() }
    }
}
