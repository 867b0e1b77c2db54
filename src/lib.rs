//! A CUDA-backed deep-learning framework: hand-written kernels compiled at run time, a CPU path that checks them.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod array;
pub mod autograd;
pub mod check;
mod context;
pub mod cpu;
pub mod cuda;
mod display;
mod dtype;
mod error;
pub mod loss;
pub mod ops;
pub mod optim;
pub mod random;
pub mod shape;
mod tensor;

pub use array::{Array, Storage};
pub use context::{Context, MemoryStats, cpu, gpu, num_gpus, try_gpu};
pub use dtype::{CpuStorage, DType, Element};
pub use error::{Error, Result};
pub use shape::Layout;
pub use tensor::Tensor;

/// The user's cache folder for hadal.
pub(crate) fn user_cache() -> Option<std::path::PathBuf> {
    let path = |v: &str| std::env::var_os(v).filter(|p| !p.is_empty()).map(std::path::PathBuf::from);
    path("XDG_CACHE_HOME")
        .or_else(|| path("LOCALAPPDATA"))
        .or_else(|| path("HOME").map(|h| h.join(".cache")))
        .map(|c| c.join("hadal"))
}
