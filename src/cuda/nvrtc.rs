//! NVRTC, the compiler that the driver's users carry: found, opened by its full path, and asked for cubins.
//!
//! Which library it is, is decided here and not by the loader: a driver loads no cubin of a newer major version of CUDA (R535, CUDA
//! 12.2, loads those of NVRTC 12.9 but not of 13.0; CUDA Compatibility, "Minor Version Compatibility"), and within a major version a newer
//! compiler is the better one. So a handle of one's own, and no look-up of symbols by bare name, which another library may answer.

use std::{
    env,
    ffi::{CString, c_char, c_int, c_void},
    fs,
    path::{Path, PathBuf},
    ptr,
    sync::OnceLock,
};

use super::{driver, exit};
use crate::{Error, Result};

/// The NVRTC that this process uses.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Its version, such as (12, 9).
    pub version: (i32, i32),
    /// The file it was opened from; `None` where the loader found it and does not say where.
    pub file: Option<PathBuf>,
    /// The architectures it makes code for, such as 90 for sm_90.
    archs: Vec<i32>,
    library: Library,
}

/// Finds and opens NVRTC once; `Err` is the sentence for the user.
///
/// `$HADAL_NVRTC` names a file, or a folder with one, and nothing else is looked at then. Otherwise the folders of `LD_LIBRARY_PATH` come
/// first, then, newest version first, the loader's other folders, CUDA's usual ones and the `nvidia/*/lib` of Python's packages. With a
/// driver, only a library whose code it can load is taken.
pub fn compiler() -> Result<&'static Compiler, String> {
    static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
    COMPILER.get_or_init(|| find(driver::version())).as_ref().map_err(Clone::clone)
}

/// What to install for a driver of that CUDA version.
fn package(driver: Option<(i32, i32)>) -> &'static str {
    match driver {
        Some((major, _)) if major >= 13 => "`pip install nvidia-cuda-nvrtc`",
        _ => "`pip install nvidia-cuda-nvrtc-cu12`",
    }
}

/// The best library for a driver of that CUDA version.
fn find(driver: Option<(i32, i32)>) -> Result<Compiler, String> {
    let mut newer = None;
    let mut take = |c: Compiler| match driver {
        Some((major, minor)) if c.version.0 > major => {
            let file = c.file.as_ref().map_or_else(String::new, |f| format!(" ({})", f.display()));
            let (least, pip) = (if c.version.0 == 13 { "580" } else { "a newer one" }, package(driver));
            newer.get_or_insert(format!(
                "the NVIDIA driver is for CUDA {major}.{minor} and loads no code of NVRTC {}.{}{file}: {pip}, or update the driver to \
                 {least}",
                c.version.0, c.version.1
            ));
            None
        }
        _ => Some(c),
    };
    if let Some(path) = env::var_os("HADAL_NVRTC").map(PathBuf::from) {
        let path = std::path::absolute(&path).unwrap_or(path);
        let files = if path.is_dir() { libraries(&path) } else { vec![path.clone()] };
        let found = files.iter().filter_map(|f| open(f, true)).find_map(&mut take);
        let none = || format!("no NVRTC could be opened from {} ($HADAL_NVRTC)", path.display());
        return found.ok_or_else(|| newer.unwrap_or_else(none));
    }
    let asked: Vec<PathBuf> = env::var_os("LD_LIBRARY_PATH").map(|v| env::split_paths(&v).collect()).unwrap_or_default();
    for folder in asked.iter().filter(|f| f.is_absolute()) {
        if let Some(c) = libraries(folder).iter().filter_map(|f| open(f, true)).find_map(&mut take) {
            return Ok(c);
        }
    }
    let folders = folders();
    let mut files: Vec<PathBuf> = folders.iter().flat_map(|f| libraries(f)).collect();
    files.sort_by_key(|f| std::cmp::Reverse(version_of(f)));
    let mut best = files.iter().filter_map(|f| open(f, true)).find_map(&mut take);
    for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"] {
        let older = |c: &Compiler| best.as_ref().is_none_or(|b| b.version < c.version);
        if let Some(c) = open(name.as_ref(), false).and_then(&mut take).filter(older) {
            best = Some(c);
        }
    }
    best.ok_or_else(|| {
        newer.unwrap_or_else(|| {
            let searched: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            format!(
                "no NVRTC: libnvrtc.so.13 or .12 is neither on the loader's path nor in [{}]; install CUDA's nvrtc, or {}, or set \
                 HADAL_NVRTC to its file or folder",
                searched.join(", "),
                package(driver)
            )
        })
    })
}

/// Folders outside of the loader's path where NVRTC is usually installed.
fn folders() -> Vec<PathBuf> {
    let mut out = Vec::new();
    for var in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        out.extend(env::var_os(var).map(|p| PathBuf::from(p).join("lib64")));
    }
    out.push("/usr/local/cuda/lib64".into());
    out.push("/opt/cuda/lib64".into());
    out.extend(children("/usr/local".as_ref(), "cuda-").into_iter().map(|p| p.join("lib64")));
    out.extend(env::var_os("CONDA_PREFIX").map(|p| PathBuf::from(p).join("lib")));
    // Python's: <prefix>/lib/python3.x/{site,dist}-packages/nvidia/<package>/lib
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|v| env::var_os(v).map(PathBuf::from)).collect();
    prefixes.extend(env::var_os("HOME").map(|h| PathBuf::from(h).join(".local")));
    prefixes.extend(["/usr/local".into(), "/usr".into()]);
    for prefix in prefixes {
        for python in children(&prefix.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                out.extend(children(&python.join(packages).join("nvidia"), "c").into_iter().map(|p| p.join("lib")));
            }
        }
    }
    out
}

/// Entries of `folder` whose name starts with `prefix`, newest name first.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut out: Vec<PathBuf> =
        entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect();
    out.sort_by_key(|p| std::cmp::Reverse(numbers(p)));
    out
}

/// The numbers in a name: 12.10 is newer than 12.9.
fn numbers(path: &Path) -> Vec<u32> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

/// The NVRTC libraries in a folder, each file once, the newest first.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let mut files = children(folder, "libnvrtc.so");
    files.retain(|f| fs::canonicalize(f).is_ok_and(|real| !seen.contains(&real) && (seen.push(real), true).1));
    files.sort_by_key(|f| std::cmp::Reverse(version_of(f)));
    files
}

/// The version that a library's names tell without opening it: of the file itself, or of the builtins of its major version beside it.
fn version_of(file: &Path) -> Vec<u32> {
    let own = numbers(&fs::canonicalize(file).unwrap_or_else(|_| file.to_owned()));
    let beside = file.parent().map(|f| children(f, "libnvrtc-builtins.so")).unwrap_or_default();
    let beside = beside.iter().map(|b| numbers(b)).find(|v| own.first().is_none_or(|major| v.first() == Some(major)));
    beside.into_iter().chain([own]).max().unwrap_or_default()
}

/// NVRTC's functions; a result is a number, 0 for success.
#[derive(Clone, Copy)]
struct Library {
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    arch_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut *mut c_void,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    compile: unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int,
    log: Text,
    ptx: Text,
    cubin: Text,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("libnvrtc")
    }
}

/// A pair of functions: how many bytes, and the bytes.
type Text = (unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int, unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int);

/// Opens the library in that file (or with `beside` unset of that name, wherever the loader finds it) and asks what it is. A library
/// that was opened stays so.
#[cfg(unix)]
fn open(file: &Path, beside: bool) -> Option<Compiler> {
    use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: running the initializers of NVIDIA's libraries is what the caller asks for.
    let load = |path: &Path| unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.ok();
    let lib: &'static Handle = Box::leak(Box::new(load(file)?));
    let compiler = Compiler::of(lib, beside.then(|| file.to_owned()))?;
    // NVRTC 13 looks its builtins up by name alone when it compiles, so they have to be loaded by then.
    let (major, minor) = compiler.version;
    let folder = beside.then(|| fs::canonicalize(file).ok()).flatten().and_then(|f| f.parent().map(Path::to_owned));
    for folder in [file.parent().map(Path::to_owned), folder].into_iter().flatten().filter(|_| beside) {
        for builtins in children(&folder, "libnvrtc-builtins.so") {
            if numbers(&builtins).starts_with(&[major as u32, minor as u32]) {
                std::mem::forget(load(&builtins));
            }
        }
    }
    Some(compiler)
}

#[cfg(not(unix))]
fn open(_file: &Path, _beside: bool) -> Option<Compiler> {
    None
}

impl Compiler {
    #[cfg(unix)]
    fn of(lib: &'static libloading::os::unix::Library, file: Option<PathBuf>) -> Option<Compiler> {
        // SAFETY: the types are those of NVRTC's header for these symbols.
        let library = unsafe {
            macro_rules! symbol {
                ($name:literal) => {
                    *lib.get(concat!($name, "\0").as_bytes()).ok()?
                };
            }
            Library {
                error: symbol!("nvrtcGetErrorString"),
                version: symbol!("nvrtcVersion"),
                arch_count: symbol!("nvrtcGetNumSupportedArchs"),
                archs: symbol!("nvrtcGetSupportedArchs"),
                create: symbol!("nvrtcCreateProgram"),
                destroy: symbol!("nvrtcDestroyProgram"),
                compile: symbol!("nvrtcCompileProgram"),
                log: (symbol!("nvrtcGetProgramLogSize"), symbol!("nvrtcGetProgramLog")),
                ptx: (symbol!("nvrtcGetPTXSize"), symbol!("nvrtcGetPTX")),
                cubin: (symbol!("nvrtcGetCUBINSize"), symbol!("nvrtcGetCUBIN")),
            }
        };
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the pointers are to live locals; `archs` has the room that NVRTC asked for.
        let archs = unsafe {
            if (library.version)(&mut major, &mut minor) != 0 || (library.arch_count)(&mut count) != 0 {
                return None;
            }
            let mut archs = vec![0; count.max(0) as usize];
            if (library.archs)(archs.as_mut_ptr()) != 0 {
                return None;
            }
            archs
        };
        Some(Compiler { version: (major, minor), file, archs, library })
    }

    /// The architectures that it makes code for, such as 90 for sm_90 and sm_90a.
    pub fn archs(&self) -> &[i32] {
        &self.archs
    }

    /// How the cache tells one build of NVRTC from another of the same version: by the library's file.
    pub(super) fn build(&self) -> String {
        let file = self.file.as_ref().and_then(|f| fs::metadata(f).ok());
        let written = file.as_ref().and_then(|m| m.modified().ok()).and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        format!("{:?} {} {:?}", self.version, file.as_ref().map_or(0, fs::Metadata::len), written.map(|t| t.as_secs()))
    }

    /// The `--gpu-architecture` for a device, whose own is `arch`.
    pub(super) fn target(&self, arch: &str, capability: (i32, i32)) -> String {
        target(&self.archs, arch, capability)
    }

    /// Compiles `source` for `target` (`sm_90a`, or `compute_90` for PTX) with the given `-D` and other options.
    ///
    /// # Errors
    /// [`Error::Compile`] with NVRTC's log.
    pub fn compile(&self, file: &str, source: &str, target: &str, options: &[String]) -> Result<Vec<u8>> {
        Ok(self.compile_with_log(file, source, target, options)?.0)
    }

    /// [`Compiler::compile`], with what the compilers said of a program that they accept: warnings, and where they had to put
    /// waits between asynchronous instructions.
    ///
    /// # Errors
    /// [`Error::Compile`] with NVRTC's log.
    pub fn compile_with_log(&self, file: &str, source: &str, target: &str, options: &[String]) -> Result<(Vec<u8>, String)> {
        let refuse = |log: String| Error::Compile { file: file.to_owned(), arch: target.to_owned(), log };
        let text = CString::new(source).map_err(|_| refuse("the source holds a NUL byte".into()))?;
        let name = CString::new(file).map_err(|_| refuse("the name holds a NUL byte".into()))?;
        let mut all = vec![format!("--gpu-architecture={target}"), "--std=c++17".into(), "-default-device".into()];
        all.extend_from_slice(options);
        let all: Vec<CString> = all
            .into_iter()
            .map(|o| CString::new(o).map_err(|_| refuse("an option holds a NUL byte".into())))
            .collect::<Result<_>>()?;
        let all: Vec<*const c_char> = all.iter().map(|o| o.as_ptr()).collect();
        // The process does not end before this is over.
        let _running = exit::running();
        let lib = &self.library;
        let words = |code: c_int| {
            // SAFETY: NVRTC has a static string for each number.
            let text = unsafe { (lib.error)(code) };
            // SAFETY: as above.
            if text.is_null() {
                format!("error {code}")
            } else {
                unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into()
            }
        };
        let mut program = Program { lib, handle: ptr::null_mut() };
        // SAFETY: the strings live until the end of this function, and there are no headers.
        let made = unsafe { (lib.create)(&mut program.handle, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()) };
        if made != 0 {
            return Err(refuse(words(made)));
        }
        // SAFETY: the program and the options are alive until the end of this function.
        let done = unsafe { (lib.compile)(program.handle, all.len() as c_int, all.as_ptr()) };
        let log = program.text(lib.log).unwrap_or_default();
        let log = String::from_utf8_lossy(log.split(|&c| c == 0).next().unwrap_or_default()).into_owned();
        if done != 0 {
            return Err(refuse(if log.trim().is_empty() { words(done) } else { log }));
        }
        let image = program.text(if target.starts_with("compute") { lib.ptx } else { lib.cubin });
        Ok((image.map_err(|code| refuse(words(code)))?, log))
    }
}

/// Of these architectures the device's own, else the newest virtual one before it, as PTX for the driver; of the same major version if
/// there is one, since those after it may be of another line of chips (10.1, since renamed to 11.0, is Thor's).
fn target(archs: &[i32], arch: &str, (major, minor): (i32, i32)) -> String {
    let own = major * 10 + minor;
    if archs.contains(&own) {
        return arch.to_owned();
    }
    let before = |a: &&i32| **a < own && (*a % 10 == 0 || **a / 10 == major) && ![101, 110].contains(*a);
    let newest = archs.iter().filter(before).max_by_key(|a| (**a / 10 == major && **a % 10 == 0, **a));
    format!("compute_{}", newest.copied().unwrap_or(own))
}

/// An NVRTC program, destroyed when dropped.
struct Program<'a> {
    lib: &'a Library,
    handle: *mut c_void,
}

impl Program<'_> {
    /// What it has under these functions: a cubin, or PTX text or a log with its NUL.
    fn text(&self, (size, bytes): Text) -> Result<Vec<u8>, c_int> {
        let mut n = 0;
        // SAFETY: the program is alive; the buffer has the size that NVRTC asked for.
        unsafe {
            let ok = |code: c_int| if code == 0 { Ok(()) } else { Err(code) };
            ok(size(self.handle, &mut n))?;
            let mut out = vec![0u8; n];
            ok(bytes(self.handle, out.as_mut_ptr().cast()))?;
            Ok(out)
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created once and destroyed once; a failure would leak a few bytes.
            unsafe { (self.lib.destroy)(&mut self.handle) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that NVRTC does not know gets PTX of its own line, and not of chips that are another's.
    #[test]
    fn ptx_for_devices_that_nvrtc_does_not_know() {
        let known = |archs: &[i32], (major, minor): (i32, i32)| target(archs, &format!("sm_{major}{minor}a"), (major, minor));
        let of_12_8 = [50, 52, 60, 70, 75, 80, 86, 87, 89, 90, 100, 101, 120];
        let of_12_0 = [50, 52, 60, 70, 75, 80, 86, 87, 89, 90];
        assert_eq!(known(&of_12_8, (9, 0)), "sm_90a");
        assert_eq!(known(&of_12_8, (10, 3)), "compute_100", "B300 is not Thor");
        assert_eq!(known(&of_12_8, (12, 1)), "compute_120");
        assert_eq!(known(&of_12_0, (10, 0)), "compute_90");
        assert_eq!(known(&of_12_0, (12, 0)), "compute_90");
    }

    /// 12.10 is newer than 12.9.
    #[test]
    fn versions_in_names_are_numbers() {
        assert!(numbers("libnvrtc.so.12.10.1".as_ref()) > numbers("libnvrtc.so.12.9.86".as_ref()));
        assert!(numbers("libnvrtc.so.13".as_ref()) > numbers("libnvrtc.so.12.10.1".as_ref()));
    }
}
