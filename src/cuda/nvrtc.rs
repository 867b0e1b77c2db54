//! NVRTC, the compiler that the driver's users carry: found, opened, and asked for cubins.

use std::{
    env,
    ffi::{CStr, CString},
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use cudarc::nvrtc::{result, sys};

use crate::{Error, Result};

/// The NVRTC that this process uses.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Its version, such as (12, 9).
    pub version: (i32, i32),
    /// The file it was opened from, when it was not on the loader's path.
    pub file: Option<PathBuf>,
    /// The architectures it makes code for, such as 90 for sm_90.
    archs: Vec<i32>,
}

/// Finds and opens NVRTC once; `Err` is the sentence for the user.
///
/// Looked for in `$HADAL_NVRTC` (a file or folder), on the loader's path, in CUDA's usual folders and in the
/// `nvidia/*/lib` folders of Python's packages.
pub fn compiler() -> Result<&'static Compiler, String> {
    static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
    COMPILER.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Compiler, String> {
    let explicit = env::var_os("HADAL_NVRTC").map(PathBuf::from);
    let mut file = None;
    if let Some(path) = &explicit {
        let folder = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(path) };
        file = preload(folder);
        if file.is_none() {
            return Err(format!("no libnvrtc could be opened in {} ($HADAL_NVRTC)", folder.display()));
        }
    }
    // SAFETY: loading NVRTC runs its initializers only.
    let present = || unsafe { sys::is_culib_present() };
    if !present() {
        let folders = folders();
        file = folders.iter().find_map(|f| preload(f));
        if !present() {
            let searched: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            return Err(format!(
                "no NVRTC: libnvrtc.so.13 or .12 is neither on the loader's path nor in [{}]; \
                 install CUDA's nvrtc, or `pip install nvidia-cuda-nvrtc`, or set HADAL_NVRTC to its folder",
                searched.join(", ")
            ));
        }
    }
    let (mut major, mut minor, mut count) = (0, 0, 0);
    // SAFETY: the library is present (cudarc would panic otherwise), and the pointers are to live locals.
    let archs = unsafe {
        sys::nvrtcVersion(&mut major, &mut minor).result().map_err(|e| format!("NVRTC does not answer: {e:?}"))?;
        sys::nvrtcGetNumSupportedArchs(&mut count).result().map_err(|e| format!("NVRTC does not answer: {e:?}"))?;
        let mut archs = vec![0; count.max(0) as usize];
        sys::nvrtcGetSupportedArchs(archs.as_mut_ptr()).result().map_err(|e| format!("NVRTC does not answer: {e:?}"))?;
        archs
    };
    Ok(Compiler { version: (major, minor), file, archs })
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
    out.sort_by(|a, b| b.cmp(a));
    out
}

/// Opens NVRTC and its builtins from `folder`, so that a later look-up by name finds them loaded.
#[cfg(unix)]
fn preload(folder: &Path) -> Option<PathBuf> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let load = |path: &PathBuf| {
        // SAFETY: running the initializers of NVIDIA's libraries is what the caller asks for; the handle is never closed.
        let lib = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok()?;
        std::mem::forget(lib);
        Some(path.clone())
    };
    // NVRTC 13 looks its builtins up by name only, so they have to be there first.
    for builtins in children(folder, "libnvrtc-builtins.so") {
        load(&builtins);
    }
    children(folder, "libnvrtc.so").iter().find_map(load)
}

#[cfg(not(unix))]
fn preload(_folder: &Path) -> Option<PathBuf> {
    None
}

impl Compiler {
    /// The architectures that it makes code for, such as 90 for sm_90 and sm_90a.
    pub fn archs(&self) -> &[i32] {
        &self.archs
    }

    /// The `--gpu-architecture` for a device: its own when NVRTC knows it, else the newest virtual one, as PTX for the driver.
    pub(super) fn target(&self, arch: &str, capability: (i32, i32)) -> String {
        let own = capability.0 * 10 + capability.1;
        if self.archs.contains(&own) {
            return arch.to_owned();
        }
        let newest = self.archs.iter().filter(|a| **a < own).max().copied().unwrap_or(own);
        format!("compute_{newest}")
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
        let program = Program(result::create_program(&text, Some(&name)).map_err(|e| refuse(format!("{e:?}")))?);
        // SAFETY: the program is alive until the end of this function.
        let done = unsafe { result::compile_program(program.0, &all) };
        // SAFETY: as above; NVRTC ends the log with a NUL byte.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.iter().map(|&c| c as u8).collect();
        let log = CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned());
        if let Err(e) = done {
            return Err(refuse(if log.trim().is_empty() { format!("{e:?}") } else { log }));
        }
        let image = program.image(target.starts_with("compute")).map_err(|e| refuse(format!("{e:?}")))?;
        Ok((image, log))
    }
}

/// An NVRTC program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    /// The compiled image: a cubin, or PTX text with its NUL.
    fn image(&self, ptx: bool) -> Result<Vec<u8>, result::NvrtcError> {
        let mut size = 0;
        // SAFETY: the program is alive and compiled; the buffer has the size that NVRTC asked for.
        unsafe {
            if ptx {
                sys::nvrtcGetPTXSize(self.0, &mut size).result()?;
            } else {
                sys::nvrtcGetCUBINSize(self.0, &mut size).result()?;
            }
            let mut image = vec![0u8; size];
            if ptx {
                sys::nvrtcGetPTX(self.0, image.as_mut_ptr().cast()).result()?;
            } else {
                sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()).result()?;
            }
            Ok(image)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by create_program and destroyed once; a failure would leak a few bytes.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
