//! The GPU: devices, memory, run-time compilation and launches; [`Source`] for kernels of the user's. All `unsafe` code but that of `cpu/gemm.rs`.
//!
//! Nothing here needs a toolkit at build time. The driver and NVRTC are opened when first asked for; where one is
//! absent, the error names the library and the folders that were searched.

#![allow(unsafe_code)]

mod backlog;
#[cfg(test)]
mod backlog_tests;
mod cache;
pub(crate) mod capture;
mod device;
mod driver;
mod exit;
mod graph;
mod kept;
mod kernel;
mod launch;
mod memory;
mod nvrtc;
mod program;
mod source;
mod splice;
mod staging;
mod tensor_map;
pub(crate) mod tune;
#[cfg(test)]
mod tune_conv_tests;
#[cfg(test)]
mod tune_tests;

pub(crate) use device::{Device, device, device_count, driver_version};
pub use graph::Graph;
pub use kernel::Kernel;
pub(crate) use launch::{Dims, Launch};
pub use memory::DeviceBuffer;
pub(crate) use memory::poisoned;
pub use source::{Define, Source};
pub use tensor_map::{Swizzle, TensorMap};

/// The kernel files under `kernels/`, their includes spliced in by `build.rs`.
pub const KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The headers under `kernels/`, for [`Source`]s: `common.cuh` (`scalar_t`, `acc_t`, `load`, `store`, `GRID_STRIDE`, sums over
/// a warp and a block), `ptx.cuh` and `ptx_hopper.cuh` (inline PTX), `philox.cuh` (random numbers), and what hadal's own kernels share.
pub const HEADERS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/headers.rs"));

pub use nvrtc::{Compiler, compiler};
