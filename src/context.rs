//! Where an array lives and an operation runs: `cpu(0)`, `gpu(0)`, …

use std::{fmt, str::FromStr};

use crate::{Error, Result, cuda};

/// A device: the CPU, or the GPU with that ordinal.
///
/// ```
/// assert_eq!(hadal::cpu().to_string(), "cpu(0)");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Context {
    /// The host's processor; the reference for every kernel.
    #[default]
    Cpu,
    /// The CUDA device with this ordinal.
    Gpu(usize),
}

/// The CPU.
pub fn cpu() -> Context {
    Context::Cpu
}

/// The GPU with ordinal `i`; an error when there is no such device, no driver or no NVRTC.
///
/// ```
/// match hadal::gpu(0) {
///     Ok(ctx) => println!("training on {ctx}"),
///     Err(e) => println!("no GPU here: {e}"),
/// }
/// ```
///
/// # Errors
/// [`Error::Device`] says which library was looked for and where, or how many devices there are.
#[doc(alias("cuda", "device"))]
pub fn gpu(i: usize) -> Result<Context> {
    cuda::device(i)?;
    Ok(Context::Gpu(i))
}

/// The GPU with ordinal `i` if it can be used, else the CPU; the book's `try_gpu`.
///
/// As in the book, an array is allocated on the device to find out.
#[doc(alias = "is_available")]
pub fn try_gpu(i: usize) -> Context {
    let usable = || -> Result<Context> {
        let ctx = gpu(i)?;
        crate::Array::zeros(&[1], crate::DType::F32, &ctx)?;
        Ok(ctx)
    };
    match usable() {
        Ok(ctx) => ctx,
        // A misspelt setting is not a missing GPU: every use of it says so.
        Err(Error::Invalid { .. }) => Context::Gpu(i),
        Err(_) => Context::Cpu,
    }
}

/// How many GPUs the driver shows; 0 without a driver.
#[doc(alias = "device_count")]
pub fn num_gpus() -> usize {
    cuda::device_count().unwrap_or(0)
}

impl Context {
    /// Waits until all work queued on the device has finished; nothing to wait for on the CPU.
    ///
    /// # Errors
    /// [`Error::Cuda`] if a kernel launched earlier has failed.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Context::Cpu => Ok(()),
            Context::Gpu(i) => cuda::device(*i)?.synchronize(),
        }
    }

    /// What the device calls itself, such as `NVIDIA H100 80GB HBM3`; the processor's model and its threads for the CPU.
    pub fn device_name(&self) -> Result<String> {
        match self {
            Context::Gpu(i) => Ok(cuda::device(*i)?.name.clone()),
            Context::Cpu => {
                let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
                    let line = text.lines().find(|l| l.starts_with("model name"))?;
                    Some(line.split_once(':')?.1.trim().to_owned())
                });
                let threads = rayon::current_num_threads();
                Ok(format!("{}, {threads} threads", model.as_deref().unwrap_or(std::env::consts::ARCH)))
            }
        }
    }

    /// True for a GPU.
    pub fn is_gpu(&self) -> bool {
        matches!(self, Context::Gpu(_))
    }

    /// Memory counters of the device's caching pool, or of the CPU's recycled buffers.
    pub fn memory(&self) -> Result<MemoryStats> {
        match self {
            Context::Cpu => Ok(crate::cpu::buffers::stats()),
            Context::Gpu(i) => Ok(cuda::device(*i)?.memory_stats()),
        }
    }

    /// Errs unless `self` and `other` are the same device.
    pub(crate) fn same(&self, op: &'static str, other: &Context) -> Result<()> {
        if self == other { Ok(()) } else { Err(Error::Context { op, left: *self, right: *other }) }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Context::Cpu => write!(f, "cpu(0)"),
            Context::Gpu(i) => write!(f, "gpu({i})"),
        }
    }
}

impl FromStr for Context {
    type Err = Error;

    /// `cpu`, `gpu`, `gpu:1` (or as it is displayed, `gpu(1)`), and `auto` for [`try_gpu`]`(0)`; for command lines.
    ///
    /// ```
    /// assert_eq!("cpu".parse::<hadal::Context>()?, hadal::cpu());
    /// assert_eq!("auto".parse::<hadal::Context>()?, hadal::try_gpu(0));
    /// # Ok::<(), hadal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Device`] when the GPU cannot be used, [`Error::Invalid`] for another word.
    fn from_str(word: &str) -> Result<Self> {
        let ordinal = || word.strip_prefix("gpu:").or_else(|| word.strip_prefix("gpu(")?.strip_suffix(')'))?.parse().ok();
        match word {
            "auto" => Ok(try_gpu(0)),
            "cpu" | "cpu(0)" => Ok(Context::Cpu),
            "gpu" => gpu(0),
            other => match ordinal() {
                Some(i) => gpu(i),
                None => Err(Error::invalid("context", format!("{other:?} is none of auto, cpu, gpu, gpu:1, …"))),
            },
        }
    }
}

/// What a context's memory pool holds, in bytes, and how often it had to ask the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Bytes held by live arrays.
    pub in_use: usize,
    /// The highest `in_use` so far.
    pub peak: usize,
    /// Bytes kept for reuse.
    pub cached: usize,
    /// Allocations asked of the driver (or the host's allocator) so far.
    pub system_allocations: u64,
}
