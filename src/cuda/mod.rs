//! The GPU: devices, memory, run-time compilation and launches. The only `unsafe` code and the only user of cudarc.
//!
//! Nothing here needs a toolkit at build time. The driver and NVRTC are opened when first asked for; where one is
//! absent, the error names the library and the folders that were searched.

#![allow(unsafe_code)]

mod cache;
pub(crate) mod capture;
mod device;
mod graph;
mod launch;
mod memory;
mod nvrtc;

pub(crate) use device::{device, device_count};
pub use graph::Graph;
pub(crate) use launch::{Define, Dims, Launch};
pub use memory::DeviceBuffer;

/// The kernel files under `kernels/`, their includes spliced in by `build.rs`.
pub const KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

pub use nvrtc::{Compiler, compiler};
