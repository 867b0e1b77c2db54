//! Building blocks of the CPU's fast path: recycled buffers, gemm, convolution, pooling, normalization on slices.

pub(crate) mod batch_norm;
pub(crate) mod buffers;
pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod memory;
mod opt_level;
pub(crate) mod parallel;
pub(crate) mod pooling;
pub(crate) mod simd;
