//! Kernels: compiled for a dtype (and, where it pays, a layer's shape) at first use, then launched with checked arguments.

use std::{
    ffi::{CString, c_void},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{result, sys};
use once_cell::sync::Lazy;

use super::{KERNELS, cache, capture, device::Device, nvrtc};
use crate::{Array, Context, DType, Error, Result, Storage, random::Draw, shape::numel};

/// The value of a `-D` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Define {
    /// A dtype by its name in kernel sources.
    Type(DType),
    /// An integer.
    Int(i64),
    /// A word.
    Word(&'static str),
}

impl From<DType> for Define {
    fn from(d: DType) -> Self {
        Define::Type(d)
    }
}

/// What a module is compiled from: a kernel file and its options.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spec {
    file: &'static str,
    defines: Vec<(&'static str, Define)>,
}

/// A compiled kernel file on one device. Never unloaded: functions are kept for the life of the process.
pub(super) struct Module {
    module: sys::CUmodule,
    functions: Mutex<Vec<(&'static str, usize)>>,
}

// SAFETY: a CUmodule is a handle that the driver allows any thread to use.
unsafe impl Send for Module {}
// SAFETY: as above; the list of functions is behind a lock.
unsafe impl Sync for Module {}

/// `HADAL_SYNC=1` waits after each launch, so that a failing kernel is named.
pub(super) static SYNC: Lazy<bool> = Lazy::new(|| std::env::var("HADAL_SYNC").is_ok_and(|v| v == "1"));

impl Device {
    fn module(&self, spec: &Spec) -> Result<Arc<Module>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(m) = modules.get(spec) {
            return Ok(m.clone());
        }
        let module = Arc::new(self.load(spec)?);
        modules.insert(spec.clone(), module.clone());
        Ok(module)
    }

    /// Loads the spec's module from the cache on disk, or compiles it. A bad entry is compiled again.
    fn load(&self, spec: &Spec) -> Result<Module> {
        let context = Context::Gpu(self.ordinal);
        let compiler = nvrtc::compiler().map_err(|reason| Error::Device { context, reason })?;
        let source = KERNELS.iter().find(|(name, _)| *name == spec.file).map(|(_, text)| *text);
        let source = source.ok_or_else(|| Error::invalid("kernel", format!("there is no kernel file {}", spec.file)))?;
        let options = options(&spec.defines);
        let target = compiler.target(&self.arch(), self.capability);
        let version = format!("nvrtc {:?} on {}", compiler.version, self.name);
        let key = cache::key(&[source, &options.join(" "), &target, &version]);
        if let Some(module) = cache::read(&key).and_then(|image| self.load_image(&image).ok()) {
            return Ok(module);
        }
        let image = compiler.compile(spec.file, source, &target, &options)?;
        cache::write(&key, &image);
        self.load_image(&image)
    }

    fn load_image(&self, image: &[u8]) -> Result<Module> {
        self.bind()?;
        // SAFETY: the image came whole from NVRTC (the cache checks its sum) and is read during the call only.
        let module =
            unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| self.failed("cuModuleLoadData", &e))?;
        Ok(Module { module, functions: Mutex::default() })
    }
}

/// `-Dname=value` for each define.
pub(super) fn options(defines: &[(&'static str, Define)]) -> Vec<String> {
    let value = |d: &Define| match d {
        Define::Type(t) => t.cuda_name().to_owned(),
        Define::Int(i) => i.to_string(),
        Define::Word(w) => (*w).to_owned(),
    };
    defines.iter().map(|(name, d)| format!("-D{name}={}", value(d))).collect()
}

impl Module {
    fn function(&self, device: &Device, name: &'static str) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, f)) = functions.iter().find(|(n, _)| *n == name) {
            return Ok(*f as sys::CUfunction);
        }
        let symbol = CString::new(name).map_err(|_| Error::invalid("kernel", "a name with a NUL byte"))?;
        // SAFETY: the module is loaded and never unloaded.
        let f = unsafe { result::module::get_function(self.module, symbol) }.map_err(|e| device.failed(name, &e))?;
        functions.push((name, f as usize));
        Ok(f)
    }
}

/// The `Index` of `kernels/common.cuh`: extents and strides by value, unused axes 1 and 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Dims {
    extent: [i64; Dims::MAX],
    stride: [i64; Dims::MAX],
}

impl Dims {
    /// The most axes that kernels know.
    pub(crate) const MAX: usize = 8;

    /// Extents and strides of up to 8 axes.
    pub(crate) fn new(op: &'static str, extent: &[usize], stride: &[usize]) -> Result<Self> {
        if extent.len() > Self::MAX {
            return Err(Error::shape(op, format!("kernels know at most {} dimensions", Self::MAX), &[extent]));
        }
        let mut d = Dims { extent: [1; Self::MAX], stride: [0; Self::MAX] };
        for (i, (&e, &s)) in extent.iter().zip(stride).enumerate() {
            (d.extent[i], d.stride[i]) = (e as i64, s as i64);
        }
        Ok(d)
    }
}

/// One launch: a kernel, its arguments in order, then [`Launch::run`] or [`Launch::run_1d`].
pub(crate) struct Launch {
    device: Arc<Device>,
    module: Arc<Module>,
    name: &'static str,
    /// The arguments' bytes, each at a multiple of 8.
    words: Vec<u64>,
    starts: Vec<usize>,
    wrong: Option<Error>,
}

impl Launch {
    /// The kernel `name` of `kernels/<file>`, compiled with `defines`, on the device of `array`.
    pub(crate) fn new(array: &Array, file: &'static str, name: &'static str, defines: &[(&'static str, Define)]) -> Result<Self> {
        let device = array.cuda(name)?.owner().clone();
        let module = device.module(&Spec { file, defines: defines.to_vec() })?;
        Ok(Launch { device, module, name, words: Vec::with_capacity(32), starts: Vec::with_capacity(16), wrong: None })
    }

    /// A pointer to an array's elements.
    pub(crate) fn array(mut self, a: &Array) -> Self {
        match a.storage() {
            Storage::Cuda(b) if b.ordinal() == self.device.ordinal && b.len() >= numel(a.shape()) * a.dtype().size() => {
                if let Err(e) = capture::hold(b.block()) {
                    self.wrong = Some(e);
                }
                self.starts.push(self.words.len());
                self.words.push(b.ptr());
            }
            _ => self.wrong = Some(Error::Context { op: self.name, left: Context::Gpu(self.device.ordinal), right: a.context() }),
        }
        self
    }

    /// A draw of random numbers: the `Draw` of `kernels/philox.cuh`.
    pub(crate) fn draw(self, draw: Draw) -> Self {
        self.value(capture::draw_words(draw))
    }

    /// A pointer that may be null.
    pub(crate) fn optional(mut self, a: Option<&Array>) -> Self {
        match a {
            Some(a) => self.array(a),
            None => {
                self.starts.push(self.words.len());
                self.words.push(0);
                self
            }
        }
    }

    /// A value: `i32`, `u32`, `i64`, `u64`, `f32`, `f64`, or a `repr(C)` struct such as [`Dims`].
    pub(crate) fn value<T: bytemuck::Pod>(mut self, v: T) -> Self {
        let bytes = bytemuck::bytes_of(&v);
        let start = self.words.len();
        self.starts.push(start);
        self.words.resize(start + bytes.len().div_ceil(8), 0);
        bytemuck::cast_slice_mut(&mut self.words[start..])[..bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Queues the kernel over a grid-stride loop of `n` elements; nothing for `n` = 0.
    pub(crate) fn run_1d(self, n: usize) -> Result<()> {
        // Enough blocks to fill the card several times over; the loop does the rest.
        let blocks = n.div_ceil(256).min(self.device.multiprocessors as usize * 32);
        self.run([blocks as u32, 1, 1], [256, 1, 1], 0)
    }

    /// Queues the kernel; an empty grid is no launch at all.
    pub(crate) fn run(mut self, grid: [u32; 3], block: [u32; 3], shared_bytes: u32) -> Result<()> {
        if let Some(e) = self.wrong.take() {
            return Err(e);
        }
        if grid.contains(&0) {
            return Ok(());
        }
        let fail = |e: &cudarc::driver::DriverError| self.device.failed(self.name, e);
        let stream = capture::stream(&self.device, &[])?;
        let function = self.module.function(&self.device, self.name)?;
        if shared_bytes > 48 << 10 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as i32) }
                .map_err(|e| fail(&e))?;
        }
        let words = self.words.as_mut_ptr();
        // SAFETY: each start lies inside `words`.
        let mut params: Vec<*mut c_void> = self.starts.iter().map(|&i| unsafe { words.add(i) }.cast()).collect();
        let dims = |d: [u32; 3]| (d[0], d[1], d[2]);
        // SAFETY: the function is loaded on the current context; the driver copies the arguments during the call.
        // That their number and types are the kernel's is the op's contract, which the parity test of each op checks;
        // the arrays stay valid since blocks are handed on in stream order only.
        unsafe { result::launch_kernel(function, dims(grid), dims(block), shared_bytes, stream, &mut params) }
            .map_err(|e| fail(&e))?;
        if *SYNC && !capture::active() {
            self.device.synchronize().map_err(|e| match e {
                Error::Cuda { context, reason, .. } => Error::Cuda { context, call: self.name.to_owned(), reason },
                other => other,
            })?;
        }
        Ok(())
    }
}
