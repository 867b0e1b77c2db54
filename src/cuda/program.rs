//! Programs: a source with its options on one device, compiled and loaded by a pool of threads while the host goes on.

use std::{
    collections::{HashMap, VecDeque},
    ffi::{CString, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use cudarc::driver::sys::{CUfunction, CUfunction_attribute_enum, CUmodule};

use super::{
    cache,
    device::Device,
    driver::{Failure, checked},
    exit, kept, nvrtc,
    source::{Define, Source, options},
};
use crate::{Context, Error, Result};

/// A program on one device. Never unloaded: functions are kept for the life of the process.
pub(super) struct Program {
    source: Source,
    defines: Vec<(&'static str, Define)>,
    module: OnceLock<Module>,
    state: Mutex<State>,
    changed: Condvar,
}

/// How far a program is.
enum State {
    /// Nobody has begun: whoever needs it first may.
    New,
    Begun,
    /// Its module is there.
    Loaded,
    /// With the error for the first who asks; the program is no longer in the list, so a later launch compiles anew.
    Failed(Option<Error>),
}

/// The driver's module, and the kernels that were looked up in it.
struct Module {
    module: CUmodule,
    functions: Mutex<Vec<(&'static str, Arc<Function>)>>,
}

/// A kernel of a loaded program.
pub(super) struct Function {
    handle: CUfunction,
    /// Bytes of each parameter, where the driver tells (from 12.4 on).
    parameters: Option<Vec<usize>>,
    /// Bytes of dynamic shared memory that its launches may ask for, as the driver was told.
    shared: AtomicU32,
    raising: Mutex<()>,
}

// SAFETY: CUmodule and CUfunction are handles that the driver allows any thread to use; the list of functions is behind a lock.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// The programs of a device, by source and then in the order of their first launches. A launch finds its own without
/// allocating: it compares the few variants of its file.
#[derive(Default)]
pub(super) struct Programs(RwLock<HashMap<Source, Vec<Arc<Program>>>>);

impl Programs {
    fn find(&self, source: &Source, defines: &[(&'static str, Define)]) -> Option<Arc<Program>> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.get(source)?.iter().find(|p| p.defines == defines).cloned()
    }

    /// The program of that source and defines, and whether it is new.
    pub(super) fn of(&self, source: &Source, defines: &[(&'static str, Define)]) -> (Arc<Program>, bool) {
        if let Some(p) = self.find(source, defines) {
            return (p, false);
        }
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let list = map.entry(*source).or_default();
        if let Some(p) = list.iter().find(|p| p.defines == defines) {
            return (p.clone(), false);
        }
        let (source, defines) = (*source, defines.to_vec());
        let state = Mutex::new(State::New);
        let program = Arc::new(Program { source, defines, module: OnceLock::new(), state, changed: Condvar::new() });
        list.push(program.clone());
        (program, true)
    }

    /// Files and options of all.
    #[cfg(test)]
    pub(super) fn list(&self) -> Vec<(&'static str, Vec<String>)> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.values().flatten().map(|p| (p.source.file(), options(&p.defines))).collect()
    }

    fn forget(&self, program: &Program) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = map.get_mut(&program.source) {
            list.retain(|p| !std::ptr::eq(&**p, program));
        }
    }
}

impl Program {
    /// True when its kernels can be launched at once, or never: then asking for one gives the error.
    pub(super) fn is_done(&self) -> bool {
        let failed = || matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Failed(_));
        self.module.get().is_some() || failed()
    }

    /// Compiles and loads it unless somebody else does or did.
    fn make(&self, device: &Device) {
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut state = lock();
            if !matches!(*state, State::New) {
                return;
            }
            *state = State::Begun;
        }
        // Whoever waits would wait for good if a panic ended this.
        let made = catch_unwind(AssertUnwindSafe(|| self.load(device))).unwrap_or_else(|_| {
            let (context, reason) = (Context::Gpu(device.ordinal), "the compiler's thread panicked".to_owned());
            Err(Error::Cuda { context, call: self.source.file().to_owned(), reason })
        });
        let state = match made {
            Ok(module) => {
                let _ = self.module.set(module);
                State::Loaded
            }
            Err(e) => {
                device.programs.forget(self);
                State::Failed(Some(e))
            }
        };
        *lock() = state;
        self.changed.notify_all();
    }

    /// The module, waited for, or made here when nobody has begun yet.
    fn module(&self, device: &Device) -> Result<&Module> {
        if let Some(m) = self.module.get() {
            return Ok(m);
        }
        self.make(device);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &mut *state {
                State::New | State::Begun => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                State::Loaded => break,
                State::Failed(e) => {
                    let again = || Error::Cuda {
                        context: Context::Gpu(device.ordinal),
                        call: self.source.file().to_owned(),
                        reason: "it could not be compiled or loaded".into(),
                    };
                    return Err(e.take().unwrap_or_else(again));
                }
            }
        }
        drop(state);
        self.module.get().ok_or_else(|| Error::invalid("kernel", "a loaded program without a module"))
    }

    /// Loads the module from the cache on disk, or compiles it. A bad entry is compiled again.
    fn load(&self, device: &Device) -> Result<Module> {
        let context = Context::Gpu(device.ordinal);
        let compiler = nvrtc::compiler().map_err(|reason| Error::Device { context, reason })?;
        let source = &*self.source.expanded()?;
        let options = options(&self.defines);
        let target = compiler.target(&device.arch(), device.capability);
        let version = format!("nvrtc {} on {}", compiler.build(), device.name);
        let options_: Vec<&str> = options.iter().map(String::as_str).collect();
        let key = kept::key(&[&[source, &target, &version][..], &options_].concat());
        if let Some(module) = cache::read(&key).and_then(|image| device.load_image(&image).ok()) {
            return Ok(module);
        }
        let image = compiler.compile(self.source.file(), source, &target, &options)?;
        cache::write(&key, &image);
        device.load_image(&image)
    }

    /// The kernel `name`; waits for the program.
    pub(super) fn function(&self, device: &Device, name: &'static str) -> Result<Arc<Function>> {
        self.module(device)?.function(device, self.source.file(), name)
    }
}

impl Device {
    fn load_image(&self, image: &[u8]) -> Result<Module> {
        self.bind()?;
        let (_running, mut module) = (exit::running(), ptr::null_mut());
        // SAFETY: the image came whole from NVRTC (the cache checks its sum) and is read during the call only.
        checked(unsafe { (self.api.cuModuleLoadData)(&mut module, image.as_ptr().cast()) })
            .map_err(|e| self.failed("cuModuleLoadData", e))?;
        Ok(Module { module, functions: Mutex::default() })
    }

    /// The program of that source and defines, on its way to being compiled when it is new.
    pub(super) fn program(self: &Arc<Self>, source: &Source, defines: &[(&'static str, Define)]) -> Arc<Program> {
        let (program, new) = self.programs.of(source, defines);
        // What is not hadal's own is waited for at once, by this thread.
        #[cfg(test)]
        let new = new && !super::backlog_tests::PAUSED.get();
        if new && source.is_own() && self.defers() {
            POOL.take(self.clone(), program.clone());
        }
        program
    }
}

/// Threads that compile. NVRTC compiles distinct programs side by side; each of its threads wants a stack like the main one's.
struct Pool(Mutex<Jobs>);

struct Jobs {
    waiting: VecDeque<(Arc<Device>, Arc<Program>)>,
    threads: usize,
}

static POOL: Pool = Pool(Mutex::new(Jobs { waiting: VecDeque::new(), threads: 0 }));

impl Pool {
    /// Hands a program over. Threads are started as they are needed, and end when nothing is left: where none can be started,
    /// whoever needs the program compiles it.
    fn take(&'static self, device: Arc<Device>, program: Arc<Program>) {
        let most = thread::available_parallelism().map_or(1, usize::from);
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.waiting.push_back((device, program));
        if pool.threads < most && thread::Builder::new().name("nvrtc".into()).stack_size(16 << 20).spawn(|| self.work()).is_ok() {
            pool.threads += 1;
        }
    }

    fn work(&self) {
        loop {
            let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // At the process's end nobody is going to use what is left.
            let next = if exit::is_closed() { None } else { pool.waiting.pop_front() };
            let Some((device, program)) = next else {
                pool.threads -= 1;
                return;
            };
            drop(pool);
            program.make(&device);
        }
    }
}

impl Module {
    fn function(&self, device: &Device, file: &'static str, name: &'static str) -> Result<Arc<Function>> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, f)) = functions.iter().find(|(n, _)| *n == name) {
            return Ok(f.clone());
        }
        let symbol = CString::new(name).map_err(|_| Error::invalid("kernel", "a name with a NUL byte"))?;
        device.bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the module is loaded and never unloaded.
        let found = checked(unsafe { (device.api.cuModuleGetFunction)(&mut handle, self.module, symbol.as_ptr()) });
        found.map_err(|e| match e {
            Failure::NOT_FOUND => {
                let hint = "is it spelled so, and extern \"C\" __global__?";
                Error::invalid(name, format!("{file} has no kernel of this name ({hint} {})", e.words()))
            }
            _ => device.failed(name, e),
        })?;
        let parameters = parameters(device, handle);
        let function = Arc::new(Function { handle, parameters, shared: AtomicU32::new(UNASKED), raising: Mutex::new(()) });
        functions.push((name, function.clone()));
        Ok(function)
    }
}

/// Bytes of each parameter of a kernel; `None` from a driver that cannot tell.
fn parameters(device: &Device, function: CUfunction) -> Option<Vec<usize>> {
    let info = device.api.cuFuncGetParamInfo?;
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded and the pointers are to live locals.
        match checked(unsafe { info(function, sizes.len(), &mut offset, &mut size) }) {
            Ok(()) => sizes.push(size),
            Err(Failure::INVALID_VALUE) => return Some(sizes),
            Err(_) => return None,
        }
    }
}

/// Bytes of dynamic shared memory that a launch may have without being asked for.
const UNASKED: u32 = 48 << 10;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as c_int;

impl Function {
    pub(super) fn handle(&self) -> CUfunction {
        self.handle
    }

    /// Lets launches ask for so many bytes of dynamic shared memory. The limit is the function's, whatever thread, shape or captured
    /// graph launches it: so it only grows.
    pub(super) fn allow_shared(&self, device: &Device, bytes: u32) -> Result<(), Failure> {
        if bytes <= self.shared.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = self.raising.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes <= self.shared.load(Ordering::Acquire) {
            return Ok(());
        }
        // SAFETY: the function belongs to a loaded module of the current context.
        checked(unsafe { (device.api.cuFuncSetAttribute)(self.handle, MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes as c_int) })?;
        self.shared.store(bytes, Ordering::Release);
        Ok(())
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
