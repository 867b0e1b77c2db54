//! Kernel sources: hadal's own and a user's, compiled for a dtype (and, where it pays, a layer's shape) at first use.

use std::{
    ffi::CString,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{result, sys};

use super::{HEADERS, KERNELS, cache, device::Device, device::words, nvrtc, splice::splice};
use crate::{Context, DType, Error, Result};

/// The value of a `-D` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Define {
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

impl From<i64> for Define {
    fn from(i: i64) -> Self {
        Define::Int(i)
    }
}

impl From<&'static str> for Define {
    fn from(w: &'static str) -> Self {
        Define::Word(w)
    }
}

/// A CUDA source file of the user's, compiled by NVRTC when a kernel of it is first launched.
///
/// `#include "common.cuh"` and hadal's other headers (see [`HEADERS`]) are found, and the user's own that
/// [`Source::with_headers`] gives. Compiled images are kept like those of hadal's own kernels: in the process for each
/// device and set of defines, and on disk (`HADAL_CACHE`). Messages of the compiler name the user's file and line.
///
/// A source is best a `static`: it is known by where its text is.
///
/// ```
/// use hadal::cuda::Source;
/// static TWICE: Source = Source::new(
///     "twice.cu",
///     r#"#include "common.cuh"
/// extern "C" __global__ void twice(scalar_t* y, const scalar_t* x, i64 n) {
///   GRID_STRIDE(i, n) store(y + i, 2 * load(x + i));
/// }"#,
/// );
/// assert!(TWICE.expand()?.contains("#line 2 \"twice.cu\""));
/// # Ok::<(), hadal::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Source {
    file: &'static str,
    /// `None` for a file of `kernels/`.
    text: Option<&'static str>,
    headers: &'static [(&'static str, &'static str)],
}

impl PartialEq for Source {
    /// By place, not by letter: it is looked up at each launch.
    fn eq(&self, other: &Self) -> bool {
        let place = |s: &Self| (s.text.map(|t| (t.as_ptr(), t.len())), s.headers.as_ptr(), s.headers.len());
        self.file == other.file && place(self) == place(other)
    }
}

impl Eq for Source {}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.file.hash(state);
        self.text.map(str::as_ptr).hash(state);
    }
}

impl Source {
    /// The source `text` under the name that messages shall show: `Source::new("swish.cu", include_str!("swish.cu"))`.
    ///
    /// Text made at run time can be had for the life of the process by [`String::leak`].
    pub const fn new(file: &'static str, text: &'static str) -> Self {
        Source { file, text: Some(text), headers: &[] }
    }

    /// The same with headers of its own, as pairs of name and text; they come before hadal's of the same name.
    pub const fn with_headers(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Source { headers, ..self }
    }

    /// The file of that name in `kernels/`.
    pub(super) const fn own(file: &'static str) -> Self {
        Source { file, text: None, headers: &[] }
    }

    /// The name shown in messages.
    pub fn file(&self) -> &'static str {
        self.file
    }

    /// The text that NVRTC gets: included headers in their places, with `#line` for each file.
    ///
    /// # Errors
    /// Never for a source made by [`Source::new`].
    pub fn expand(&self) -> Result<String> {
        let Some(text) = self.text else {
            let own = KERNELS.iter().find(|(name, _)| *name == self.file).map(|(_, text)| (*text).to_owned());
            return own.ok_or_else(|| Error::invalid("kernel", format!("there is no kernel file {}", self.file)));
        };
        let find = |name: &str| {
            let of = |list: &[(&'static str, &'static str)]| list.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
            let own = of(self.headers).map(|text| (name.to_owned(), text));
            own.or_else(|| of(HEADERS).map(|text| (format!("kernels/{name}"), text)))
        };
        Ok(splice(self.file, text, &mut Vec::new(), &find))
    }
}

/// What a module is compiled from: a source and its options.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spec {
    source: Source,
    defines: Vec<(&'static str, Define)>,
}

/// A compiled source on one device. Never unloaded: functions are kept for the life of the process.
pub(super) struct Module {
    module: sys::CUmodule,
    functions: Mutex<Vec<(&'static str, Arc<Function>)>>,
}

/// A kernel of a loaded module.
pub(super) struct Function {
    handle: sys::CUfunction,
    /// Bytes of each parameter, where the driver tells (from 12.4 on).
    parameters: Option<Vec<usize>>,
}

// SAFETY: CUmodule and CUfunction are handles that the driver allows any thread to use; the list of functions is behind a lock.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Device {
    /// The kernel `name` of `source`, compiled and loaded when it is not yet.
    pub(super) fn function(
        &self,
        source: &Source,
        name: &'static str,
        defines: &[(&'static str, Define)],
    ) -> Result<Arc<Function>> {
        self.module(&Spec { source: *source, defines: defines.to_vec() })?.function(self, source, name)
    }

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
        let source = &spec.source.expand()?;
        let options = options(&spec.defines);
        let target = compiler.target(&self.arch(), self.capability);
        let version = format!("nvrtc {:?} on {}", compiler.version, self.name);
        let key = cache::key(&[source, &options.join(" "), &target, &version]);
        if let Some(module) = cache::read(&key).and_then(|image| self.load_image(&image).ok()) {
            return Ok(module);
        }
        let image = compiler.compile(spec.source.file, source, &target, &options)?;
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
    fn function(&self, device: &Device, source: &Source, name: &'static str) -> Result<Arc<Function>> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, f)) = functions.iter().find(|(n, _)| *n == name) {
            return Ok(f.clone());
        }
        let symbol = CString::new(name).map_err(|_| Error::invalid("kernel", "a name with a NUL byte"))?;
        device.bind()?;
        // SAFETY: the module is loaded and never unloaded.
        let handle = unsafe { result::module::get_function(self.module, symbol) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => {
                let hint = "is it spelled so, and extern \"C\" __global__?";
                Error::invalid(name, format!("{} has no kernel of this name ({hint} {})", source.file, words(&e)))
            }
            _ => device.failed(name, &e),
        })?;
        let function = Arc::new(Function { handle, parameters: parameters(handle) });
        functions.push((name, function.clone()));
        Ok(function)
    }
}

/// Bytes of each parameter of a kernel; `None` from a driver that cannot tell.
fn parameters(function: sys::CUfunction) -> Option<Vec<usize>> {
    // SAFETY: the driver is loaded; the type is not used, only the presence of the symbol is asked for.
    unsafe { sys::culib().get::<*const ()>(b"cuFuncGetParamInfo") }.ok()?;
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded and the pointers are to live locals.
        match unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) } {
            sys::CUresult::CUDA_SUCCESS => sizes.push(size),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Some(sizes),
            _ => return None,
        }
    }
}

impl Function {
    pub(super) fn handle(&self) -> sys::CUfunction {
        self.handle
    }

    /// Errs unless arguments of these sizes are what the kernel takes: the driver would read past them.
    pub(super) fn takes(&self, name: &'static str, given: impl ExactSizeIterator<Item = usize>) -> Result<()> {
        let Some(own) = &self.parameters else { return Ok(()) };
        if given.len() != own.len() {
            return Err(Error::invalid(name, format!("the kernel takes {} arguments, {} are given", own.len(), given.len())));
        }
        match given.zip(own).enumerate().find(|(_, (given, own))| given != *own) {
            Some((i, (given, own))) => {
                Err(Error::invalid(name, format!("argument {i} of the kernel has {own} bytes, {given} are given")))
            }
            None => Ok(()),
        }
    }
}
