//! CTA tiles of the wgmma kernels: shape, shared memory, and the clocks of a step.

use crate::{
    DType,
    cuda::Define,
    gemm::arch::{
        ACCUMULATORS_STORED_PER_CLOCK, L2_BYTES_PER_CLOCK, SM90_SMEM_HALF, SM90_SMEM_PER_CTA, WGMMA_TILE_CLOCKS,
        WGMMA_TILE_ELEMENTS_PER_CLOCK,
    },
};

/// Bytes of a row of shared memory: one step of the main loop along k.
pub(crate) const STEP_BYTES: usize = 128;
/// Bytes of shared memory in which a warp rearranges its accumulators before it stores them.
const EPILOGUE_BYTES: usize = 1024;

/// The warpgroups of a CTA along M and N, the columns of each, and the CTAs of a cluster along M, which multicast the operand of their
/// columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WgmmaTile {
    /// Warpgroups along M, of 64 rows each.
    pub wg_m: usize,
    /// Warpgroups along N.
    pub wg_n: usize,
    /// Columns of a warpgroup.
    pub wg_tile_n: usize,
    pub cluster: usize,
}

pub(crate) const fn tile(wg_m: usize, wg_n: usize, wg_tile_n: usize) -> WgmmaTile {
    WgmmaTile { wg_m, wg_n, wg_tile_n, cluster: 1 }
}

/// The tile of each of two CTAs of a cluster.
pub(crate) const fn cluster_of_2(wg_tile_n: usize) -> WgmmaTile {
    WgmmaTile { cluster: 2, ..tile(2, 1, wg_tile_n) }
}

impl WgmmaTile {
    /// GEMM with a row-major result.
    pub(crate) const GEMM: &[WgmmaTile] =
        &[tile(2, 1, 256), tile(2, 1, 128), tile(1, 1, 128), cluster_of_2(256), cluster_of_2(128)];
    /// Fprop and dgrad by im2col: channels by pixels.
    pub(crate) const IM2COL: &[WgmmaTile] = &[
        tile(2, 1, 256),
        tile(2, 1, 192),
        tile(2, 1, 128),
        tile(2, 1, 96),
        tile(1, 2, 192),
        tile(1, 2, 128),
        tile(2, 1, 144),
        tile(1, 1, 72),
    ];
    /// Wgrad by im2col: filters by boxes of 64 channels under one tap.
    pub(crate) const IM2COL_WGRAD: &[WgmmaTile] = &[tile(2, 1, 256), tile(2, 1, 192), tile(1, 2, 192), tile(1, 1, 192)];

    /// Fprop and dgrad of 3x3 filters with a halo (`kernels/conv3x3_wgmma.cu`): channels by pixels of whole rows. 168 and 2 · 200 are four
    /// images of 6 by 6 and a third of two of 24 by 24, a pixel added to each row.
    pub(crate) const HALO: &[WgmmaTile] = &[
        tile(2, 1, 256),
        tile(2, 1, 192),
        tile(2, 1, 160),
        tile(1, 2, 224),
        tile(1, 2, 192),
        tile(1, 2, 160),
        tile(1, 2, 96),
        tile(1, 2, 200),
        tile(2, 1, 168),
        tile(1, 2, 48),
    ];

    pub(crate) fn rows(self) -> usize {
        self.wg_m * 64
    }

    pub(crate) fn columns(self) -> usize {
        self.wg_n * self.wg_tile_n
    }

    /// Rows of all CTAs of a cluster.
    pub(crate) fn cluster_rows(self) -> usize {
        self.rows() * self.cluster
    }

    /// Columns whose operand a CTA loads, for itself and its cluster.
    pub(crate) fn loaded_columns(self) -> usize {
        self.columns() / self.cluster
    }

    /// Bytes of a step of both operands.
    pub(super) fn stage_bytes(self) -> usize {
        (self.rows() + self.columns()) * STEP_BYTES
    }

    /// Clocks in which the L2 cache delivers a step of a CTA.
    pub(super) fn load_clocks(self) -> f64 {
        ((self.rows() + self.loaded_columns()) * STEP_BYTES) as f64 / L2_BYTES_PER_CLOCK
    }

    /// Clocks in which the tensor cores multiply a step: 2048 pairs of 16-bit operands per clock.
    pub(crate) fn mma_clocks(self) -> f64 {
        (self.rows() * self.columns()) as f64 / WGMMA_TILE_ELEMENTS_PER_CLOCK
    }

    /// Clocks of the prologue and the epilogue of a tile.
    pub(crate) fn tile_clocks(self) -> f64 {
        (self.rows() * self.columns()) as f64 / ACCUMULATORS_STORED_PER_CLOCK + WGMMA_TILE_CLOCKS
    }

    /// Dynamic shared memory of a CTA that keeps so many bytes of operands.
    pub(crate) fn smem_bytes(self, operands: usize) -> usize {
        1024 + self.wg_m * self.wg_n * 4 * EPILOGUE_BYTES + operands
    }

    /// The kernel's `-D`, with its own.
    pub(crate) fn defines(self, dtype: DType, stages: usize, ctas_per_sm: usize, own: &[(&'static str, usize)]) -> Defines {
        let WgmmaTile { wg_m, wg_n, wg_tile_n, cluster } = self;
        let all = [("DOWN", wg_m), ("ACROSS", wg_n), ("COLS", wg_tile_n), ("STAGES", stages), ("RESIDENT", ctas_per_sm)];
        let cluster = [("CLUSTER", cluster)];
        let numbers =
            all.iter().chain(cluster.iter().filter(|c| c.1 > 1)).chain(own).map(|&(name, v)| (name, Define::Int(v as i64)));
        [("scalar_t", dtype.into())].into_iter().chain(numbers).collect()
    }

    /// Threads of a CTA: consumer warpgroups, and a warp that issues TMA loads.
    pub(crate) fn threads(self) -> [u32; 3] {
        [(self.wg_m * self.wg_n * 128 + 32) as u32, 1, 1]
    }

    /// CTAs per SM and stages of each. Two CTAs hide each other's prologue and epilogue where registers allow two (144 columns need 98,
    /// and two CTAs of nine warps have 96) and three stages fit.
    pub(super) fn occupancy(self) -> (usize, usize) {
        let stages = |room: usize| (3..=8).rev().find(|&s| self.smem_bytes(s * self.stage_bytes()) <= room);
        let registers = self.wg_tile_n <= 128 || self.wg_m * self.wg_n == 1;
        match stages(SM90_SMEM_HALF).filter(|_| registers) {
            Some(stages) => (2, stages),
            None => (1, stages(SM90_SMEM_PER_CTA).unwrap_or(2)),
        }
    }
}

/// `-D` by name.
pub(crate) type Defines = Vec<(&'static str, Define)>;
