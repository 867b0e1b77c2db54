//! What a block computes at once: its size, and what it takes.

use crate::{DType, cuda::Define};

/// Bytes of a row of shared memory: a step of the loop along k.
pub(super) const ROW: usize = 128;
/// Bytes in which a warp rearranges its sums.
const PATCH: usize = 1024;
/// Bytes that the L2 cache gives a multiprocessor in a clock when all of them ask.
pub(crate) const BANDWIDTH: f64 = 32.0;
/// Bytes of dynamic shared memory that a block may have beside its barriers, which take up to the next multiple of 1024.
pub(crate) const SHARED: usize = 226 << 10;

/// Warpgroups below and beside each other, and the columns of each; of how many blocks below each other that share what they load
/// for their columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tile {
    pub down: usize,
    pub across: usize,
    pub cols: usize,
    pub cluster: usize,
}

pub(in crate::ops) const fn tile(down: usize, across: usize, cols: usize) -> Tile {
    Tile { down, across, cols, cluster: 1 }
}

/// A tile of each of two blocks.
pub(super) const fn pair(cols: usize) -> Tile {
    Tile { cluster: 2, ..tile(2, 1, cols) }
}

impl Tile {
    /// For products whose result is row-major.
    pub(crate) const PRODUCT: &[Tile] = &[tile(2, 1, 256), tile(2, 1, 128), tile(1, 1, 128), pair(256), pair(128)];
    /// Channels by pixels.
    pub(crate) const IMAGE: &[Tile] = &[
        tile(2, 1, 256),
        tile(2, 1, 192),
        tile(2, 1, 128),
        tile(2, 1, 96),
        tile(1, 2, 192),
        tile(1, 2, 128),
        tile(2, 1, 144),
        tile(1, 1, 72),
    ];
    /// Filters by boxes of 64 channels under one tap.
    pub(crate) const WEIGHT: &[Tile] = &[tile(2, 1, 256), tile(2, 1, 192), tile(1, 2, 192), tile(1, 1, 192)];

    /// Channels by pixels of whole rows, with the rows around them: `kernels/conv3x3_wgmma.cu`. 168 and 2 · 200 are four images of 6
    /// by 6 and a third of two of 24 by 24, a pixel added to each row.
    pub(crate) const HALO: &[Tile] = &[
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
        self.down * 64
    }

    pub(crate) fn columns(self) -> usize {
        self.across * self.cols
    }

    /// Rows of all blocks of a cluster.
    pub(crate) fn height(self) -> usize {
        self.rows() * self.cluster
    }

    /// Columns whose operand a block loads, for itself and the others.
    pub(crate) fn loads(self) -> usize {
        self.columns() / self.cluster
    }

    /// Bytes of a step of both operands.
    pub(super) fn stage(self) -> usize {
        (self.rows() + self.columns()) * ROW
    }

    /// Clocks in which the L2 cache gives what a block asks for in a step.
    pub(super) fn load(self) -> f64 {
        ((self.rows() + self.loads()) * ROW) as f64 / BANDWIDTH
    }

    /// Clocks in which the tensor cores multiply a step: 2048 pairs of 16 bits in one.
    pub(crate) fn multiply(self) -> f64 {
        (self.rows() * self.columns()) as f64 / 32.0
    }

    /// Clocks to begin a tile and to write its sums.
    pub(crate) fn finish(self) -> f64 {
        (self.rows() * self.columns()) as f64 / 16.0 + 1500.0
    }

    /// Dynamic shared memory of a block that keeps so many bytes of operands.
    pub(crate) fn shared(self, operands: usize) -> usize {
        1024 + self.down * self.across * 4 * PATCH + operands
    }

    /// The kernel's `-D`, with its own.
    pub(crate) fn defines(self, dtype: DType, stages: usize, resident: usize, own: &[(&'static str, usize)]) -> Defines {
        let Tile { down, across, cols, cluster } = self;
        let all = [("DOWN", down), ("ACROSS", across), ("COLS", cols), ("STAGES", stages), ("RESIDENT", resident)];
        let cluster = [("CLUSTER", cluster)];
        let numbers =
            all.iter().chain(cluster.iter().filter(|c| c.1 > 1)).chain(own).map(|&(name, v)| (name, Define::Int(v as i64)));
        [("scalar_t", dtype.into())].into_iter().chain(numbers).collect()
    }

    /// Threads of a block.
    pub(crate) fn threads(self) -> [u32; 3] {
        [(self.down * self.across * 128 + 32) as u32, 1, 1]
    }

    /// Blocks on a multiprocessor and stages of each. Two blocks hide each other's beginning and end, where registers allow them
    /// (144 columns need 98, and two blocks of nine warps have 96) and three stages fit.
    pub(super) fn fit(self) -> (usize, usize) {
        let stages = |room: usize| (3..=8).rev().find(|&s| self.shared(s * self.stage()) <= room);
        let registers = self.cols <= 128 || self.down * self.across == 1;
        match stages(112 << 10).filter(|_| registers) {
            Some(stages) => (2, stages),
            None => (1, stages(SHARED).unwrap_or(2)),
        }
    }
}

/// `-D` by name.
pub(super) type Defines = Vec<(&'static str, Define)>;
