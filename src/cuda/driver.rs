//! The driver's library: opened by its own name, its functions looked up once, each call's answer a number.
//!
//! `libcuda.so.1` is what a driver installs. `libcuda.so` alone may be a toolkit's stub, which answers every call with an error.
//! Types and constants are cudarc's, which are CUDA's header. Its functions are not called: they panic where a symbol is absent, and
//! make an enum of the answer, while a newer driver knows errors that no list here has.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr,
    sync::OnceLock,
};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream, CUtensorMap, cudaError_enum,
};

/// An error of the driver by its number in `CUresult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure(c_int);

impl Failure {
    pub(super) const INVALID_VALUE: Failure = Failure(cudaError_enum::CUDA_ERROR_INVALID_VALUE as c_int);
    pub(super) const OUT_OF_MEMORY: Failure = Failure(cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY as c_int);
    pub(super) const NOT_FOUND: Failure = Failure(cudaError_enum::CUDA_ERROR_NOT_FOUND as c_int);

    /// The driver's name and sentence for it.
    pub(super) fn words(self) -> String {
        let Ok(api) = api() else { return format!("error {}", self.0) };
        let text = |f: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = ptr::null();
            // SAFETY: the driver writes a pointer to a string of its own, which lives as long as the library, or null.
            unsafe {
                f(self.0, &mut text);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        match (text(api.cuGetErrorName), text(api.cuGetErrorString)) {
            (Some(name), Some(sentence)) => format!("{name}: {sentence}"),
            _ => format!("error {}, which this driver does not name", self.0),
        }
    }
}

/// The answer of a call.
pub(super) fn checked(answer: c_int) -> Result<(), Failure> {
    if answer == 0 { Ok(()) } else { Err(Failure(answer)) }
}

macro_rules! functions {
    (
        needed { $($name:ident = $symbol:literal ($($arg:ty),*);)* }
        optional { $($late:ident = $late_symbol:literal ($($late_arg:ty),*);)* }
    ) => {
        /// The functions, under their names in CUDA's documentation. Those under `optional` are of drivers newer than the oldest one
        /// that hadal runs on.
        #[allow(non_snake_case)]
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> c_int,)*
            $(pub(super) $late: Option<unsafe extern "C" fn($($late_arg),*) -> c_int>,)*
        }

        impl Api {
            /// Looks all of them up; `Err` is the name of one that a driver has to have.
            #[allow(non_snake_case)]
            fn find(find: impl Fn(&str) -> *mut c_void) -> Result<Api, &'static str> {
                $(
                    let $name = find($symbol);
                    if $name.is_null() {
                        return Err($symbol);
                    }
                )*
                $(let $late = find($late_symbol);)*
                // SAFETY: the types are those of CUDA's header for these symbols; an address that is null becomes `None` where that may be.
                unsafe {
                    Ok(Api {
                        $($name: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> c_int>($name),)*
                        $($late: std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($late_arg),*) -> c_int>>($late),)*
                    })
                }
            }
        }
    };
}

type Bytes = usize;

functions! {
    needed {
        cuInit = "cuInit"(c_uint);
        cuDriverGetVersion = "cuDriverGetVersion"(*mut c_int);
        cuGetErrorName = "cuGetErrorName"(c_int, *mut *const c_char);
        cuGetErrorString = "cuGetErrorString"(c_int, *mut *const c_char);
        cuDeviceGetCount = "cuDeviceGetCount"(*mut c_int);
        cuDeviceGet = "cuDeviceGet"(*mut CUdevice, c_int);
        cuDeviceGetName = "cuDeviceGetName"(*mut c_char, c_int, CUdevice);
        cuDeviceGetAttribute = "cuDeviceGetAttribute"(*mut c_int, c_int, CUdevice);
        cuDevicePrimaryCtxRetain = "cuDevicePrimaryCtxRetain"(*mut CUcontext, CUdevice);
        cuCtxGetCurrent = "cuCtxGetCurrent"(*mut CUcontext);
        cuCtxSetCurrent = "cuCtxSetCurrent"(CUcontext);
        cuMemGetInfo = "cuMemGetInfo_v2"(*mut usize, *mut usize);
        cuMemAlloc = "cuMemAlloc_v2"(*mut CUdeviceptr, Bytes);
        cuMemFree = "cuMemFree_v2"(CUdeviceptr);
        cuMemAllocAsync = "cuMemAllocAsync"(*mut CUdeviceptr, Bytes, CUstream);
        cuMemFreeAsync = "cuMemFreeAsync"(CUdeviceptr, CUstream);
        cuMemHostAlloc = "cuMemHostAlloc"(*mut *mut c_void, Bytes, c_uint);
        cuMemcpyHtoDAsync = "cuMemcpyHtoDAsync_v2"(CUdeviceptr, *const c_void, Bytes, CUstream);
        cuMemcpyDtoHAsync = "cuMemcpyDtoHAsync_v2"(*mut c_void, CUdeviceptr, Bytes, CUstream);
        cuMemcpyDtoDAsync = "cuMemcpyDtoDAsync_v2"(CUdeviceptr, CUdeviceptr, Bytes, CUstream);
        cuMemsetD8Async = "cuMemsetD8Async"(CUdeviceptr, u8, Bytes, CUstream);
        cuModuleLoadData = "cuModuleLoadData"(*mut CUmodule, *const c_void);
        cuModuleGetFunction = "cuModuleGetFunction"(*mut CUfunction, CUmodule, *const c_char);
        cuFuncSetAttribute = "cuFuncSetAttribute"(CUfunction, c_int, c_int);
        cuLaunchKernel = "cuLaunchKernel"(
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void
        );
        cuStreamCreate = "cuStreamCreate"(*mut CUstream, c_uint);
        cuStreamDestroy = "cuStreamDestroy_v2"(CUstream);
        cuStreamSynchronize = "cuStreamSynchronize"(CUstream);
        cuStreamBeginCapture = "cuStreamBeginCapture_v2"(CUstream, c_int);
        cuStreamEndCapture = "cuStreamEndCapture"(CUstream, *mut CUgraph);
        cuEventCreate = "cuEventCreate"(*mut CUevent, c_uint);
        cuEventRecord = "cuEventRecord"(CUevent, CUstream);
        cuEventSynchronize = "cuEventSynchronize"(CUevent);
        cuGraphInstantiate = "cuGraphInstantiateWithFlags"(*mut CUgraphExec, CUgraph, u64);
        cuGraphLaunch = "cuGraphLaunch"(CUgraphExec, CUstream);
        cuGraphDestroy = "cuGraphDestroy"(CUgraph);
        cuGraphExecDestroy = "cuGraphExecDestroy"(CUgraphExec);
        cuTensorMapEncodeTiled = "cuTensorMapEncodeTiled"(
            *mut CUtensorMap, c_uint, c_uint, CUdeviceptr, *const u64, *const u64, *const u32, *const u32, c_uint, c_uint, c_uint, c_uint
        );
        cuTensorMapEncodeIm2col = "cuTensorMapEncodeIm2col"(
            *mut CUtensorMap, c_uint, c_uint, CUdeviceptr, *const u64, *const u64, *const i32, *const i32, c_uint, c_uint, *const u32,
            c_uint, c_uint, c_uint, c_uint
        );
    }
    optional {
        // 12.4
        cuFuncGetParamInfo = "cuFuncGetParamInfo"(CUfunction, usize, *mut usize, *mut usize);
    }
}

/// The newest drivers that cannot run hadal are of CUDA 11: they load no cubin of NVRTC 12, the oldest that knows Hopper.
const OLDEST: (i32, i32) = (12, 0);

/// The driver, opened and started at the first call; `Err` holds the sentence for the user.
pub(super) fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Api, String> {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    // SAFETY: loading the driver runs its initializers, which is what a CUDA program asks for.
    let library = names.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok());
    let Some(library) = library else {
        return Err("no NVIDIA driver (libcuda.so.1 is not on the loader's path); use try_gpu to fall back to cpu()".to_owned());
    };
    // Functions are kept for the life of the process.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let find = |name: &str| {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: only the address is taken here.
        unsafe { library.get::<*mut c_void>(name.as_bytes_with_nul()) }.map_or(ptr::null_mut(), |s| *s)
    };
    let too_old = |what: &str| format!("the NVIDIA driver is too old: {what}; update it to 525 (CUDA 12.0) or later");
    let api = Api::find(find).map_err(|name| too_old(&format!("it has no {name}")))?;
    let words = |f: Failure| {
        let mut name = ptr::null();
        // SAFETY: as in `Failure::words`, which is not to be called before the driver is there.
        let name = unsafe {
            (api.cuGetErrorName)(f.0, &mut name);
            if name.is_null() { format!("error {}", f.0) } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
        };
        format!("the NVIDIA driver does not start: {name}")
    };
    // SAFETY: flags have to be 0; the pointer is to a live local.
    let version = unsafe {
        checked((api.cuInit)(0)).map_err(words)?;
        let mut version = 0;
        checked((api.cuDriverGetVersion)(&mut version)).map_err(words)?;
        version_of(version)
    };
    if version < OLDEST {
        return Err(too_old(&format!("it is for CUDA {}.{}", version.0, version.1)));
    }
    Ok(api)
}

/// (12, 4) of 12040.
fn version_of(v: c_int) -> (i32, i32) {
    (v / 1000, v % 1000 / 10)
}

/// The newest CUDA that the driver knows, such as (12, 4); `None` without a driver.
pub(super) fn version() -> Option<(i32, i32)> {
    let api = api().ok()?;
    let mut version = 0;
    // SAFETY: the pointer is to a live local.
    checked(unsafe { (api.cuDriverGetVersion)(&mut version) }).ok()?;
    Some(version_of(version))
}
