//! The GPU as the cost models see it. All constants that describe a chip stand here, with their units.
//!
//! Costs are in clocks of one SM. Models that were calibrated apart describe the same chip by different numbers; they stand side by
//! side. Making them one changes plans, and with the splits of k the bits of results, so that takes measurements and a commit of its own.

use crate::{Array, DType, Result, precision::Precision};

/// Bytes that the L2 cache gives one SM per clock when all of them ask.
pub(crate) const L2_BYTES_PER_CLOCK: f64 = 32.0;
/// Bytes of device memory per clock of one SM when all of them ask: GEMM and implicit GEMM.
pub(crate) const DRAM_BYTES_PER_CLOCK: f64 = 12.0;
/// The same in the models of [`crate::conv::first_layer`] and the stem block.
pub(crate) const FIRST_LAYER_DRAM_BYTES_PER_CLOCK: f64 = 13.0;

/// Clocks that a launch takes before it does anything: GEMM and implicit GEMM.
pub(crate) const LAUNCH_CLOCKS: f64 = 4000.0;
/// The same in the model of the stem block.
pub(crate) const STEM_BLOCK_LAUNCH_CLOCKS: f64 = 3000.0;

/// Clocks to start a tile and to store it: mma.sync.
pub(crate) const MMA_TILE_CLOCKS: f64 = 2500.0;
/// The same for wgmma, without the store of the accumulators.
pub(crate) const WGMMA_TILE_CLOCKS: f64 = 1500.0;
/// The same for the weight gradient with a halo, whose tiles are pixels.
pub(crate) const HALO_WGRAD_TILE_CLOCKS: f64 = 4000.0;
/// Clocks to start a band of pixels of a first layer, spread over the CTAs that share an SM.
pub(crate) const FIRST_LAYER_BAND_CLOCKS: f64 = 2000.0;

/// Multiply-adds of f16 per clock of one SM: mma.sync, as the model counts them for a 128-byte step.
pub(crate) const MMA_TILE_ELEMENTS_PER_CLOCK: f64 = 16.0;
/// How much longer 3xTF32 takes than TF32 on mma.sync: three products and the splitting of operands.
pub(crate) const TF32X3_COST: f64 = 3.5;
/// Elements of a tile whose 128-byte step wgmma multiplies in a clock.
pub(crate) const WGMMA_TILE_ELEMENTS_PER_CLOCK: f64 = 32.0;
/// Accumulators that a CTA stores per clock.
pub(crate) const ACCUMULATORS_STORED_PER_CLOCK: f64 = 16.0;

/// Dynamic shared memory in bytes that a CTA may have on sm_90, less its mbarriers and the alignment to 1024 bytes.
pub(crate) const SM90_SMEM_PER_CTA: usize = 226 << 10;
/// Half of an SM's shared memory on sm_90 in bytes: what each of two CTAs may have.
pub(crate) const SM90_SMEM_HALF: usize = 112 << 10;
/// Shared memory in bytes that the driver reserves for each CTA, from sm_80 on.
pub(crate) const SMEM_RESERVED_PER_CTA: usize = 1 << 10;

/// Multiply-adds below which a launch on wgmma takes longer than they do, whatever computes them.
pub(crate) const WGMMA_MIN_MACS: usize = 1 << 25;
/// Multiply-adds below which a first layer is left to other kernels: it takes as long as its launch.
pub(crate) const FIRST_LAYER_MIN_MACS: usize = 1 << 20;

/// The largest count and offset in the kernels' 32-bit arithmetic, with room for what lies outside of an image.
pub(crate) const INDEX_LIMIT: usize = 1 << 30;

/// The splits of k that are tried.
pub(crate) const SPLITS: [usize; 14] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];

/// A device: what supports and costs depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arch {
    /// Compute capability, 80 for 8.0.
    pub capability: usize,
    pub num_sms: usize,
}

impl Arch {
    /// That of the array's device.
    pub(crate) fn of(y: &Array) -> Result<Self> {
        let device = y.cuda("gemm")?.owner();
        let (major, minor) = device.capability;
        Ok(Arch { capability: (major * 10 + minor) as usize, num_sms: device.multiprocessors as usize })
    }

    /// Shared memory of an SM in bytes, without what each CTA reserves.
    pub(crate) fn smem_per_sm(&self) -> usize {
        let kib = match self.capability {
            75 => 64,
            80 | 87 => 163,
            90..=119 => 227,
            _ => 99,
        };
        kib << 10
    }

    /// Whether TF32 runs at several times the rate of f32, so that 3xTF32 is faster than plain f32: on data-center chips. On the others
    /// it runs at the same rate.
    fn has_fast_tf32(&self) -> bool {
        matches!(self.capability, 80 | 90..=119)
    }

    /// wgmma and TMA with im2col: sm_90a alone.
    pub(crate) fn has_wgmma(&self) -> bool {
        self.capability == 90
    }

    /// Whether wgmma multiplies this dtype as it is, or rounded to TF32.
    pub(crate) fn wgmma_multiplies(&self, dtype: DType, precision: Precision) -> bool {
        self.has_wgmma()
            && match dtype {
                DType::BF16 | DType::F16 => true,
                DType::F32 => precision == Precision::Tf32,
                _ => false,
            }
    }

    /// Whether f32 may be computed by wgmma as six products of bf16.
    pub(crate) fn has_bf16x6(&self, dtype: DType, precision: Precision) -> bool {
        self.has_wgmma() && dtype == DType::F32 && precision == Precision::F32
    }

    /// How mma.sync computes sums of so many terms; `None` where it cannot.
    pub(crate) fn mma_math(&self, dtype: DType, precision: Precision, terms: usize) -> Option<MmaMath> {
        match (dtype, precision) {
            (DType::F16, _) if self.capability >= 75 => Some(MmaMath::Native),
            (DType::BF16, _) if self.capability >= 80 => Some(MmaMath::Native),
            (DType::F32, Precision::Tf32) if self.capability >= 80 => Some(MmaMath::Native),
            // An operand loses at most 2⁻²³ of itself, and the tensor cores truncate eight terms at 2⁻²³ of the largest. Both together
            // stay below the rounding of a plain f32 sum from about a hundred terms on.
            (DType::F32, Precision::F32) if self.has_fast_tf32() && terms >= 128 => Some(MmaMath::Tf32x3),
            _ => None,
        }
    }
}

/// The arithmetic of mma.sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaMath {
    /// 16-bit operands, or f32 rounded to TF32.
    Native,
    /// 3xTF32: each f32 operand split into two TF32 numbers, three products.
    Tf32x3,
}
