//! Tiles and cost models of the tensor-core kernels, by instruction: GEMM and implicit-GEMM convolution share them.

pub(crate) mod bf16x6;
pub(crate) mod mma;
pub(crate) mod wgmma;
pub(crate) mod wgmma_tile;
