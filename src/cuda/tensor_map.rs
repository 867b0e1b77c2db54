//! Tensor maps: what Hopper's copy engine has to know of an array, as an argument of a kernel.

use std::ffi::c_uint;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType_enum as Kind, CUtensorMapFloatOOBfill_enum as Fill, CUtensorMapInterleave_enum,
    CUtensorMapL2promotion_enum, CUtensorMapSwizzle_enum,
};

use super::{device::Device, driver::checked};
use crate::{Array, DType, Error, Result};

/// How a box's rows lie in shared memory: 16-byte pieces exchanged within spans of that many bytes, by the address's bits
/// from 7 on, so that a column of pieces falls into different banks. wgmma's descriptors name the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// As they come.
    #[default]
    None,
    /// Within 32 bytes.
    Span32,
    /// Within 64 bytes.
    Span64,
    /// Within 128 bytes.
    Span128,
}

impl Swizzle {
    fn span(self) -> usize {
        match self {
            Swizzle::None => usize::MAX,
            Swizzle::Span32 => 32,
            Swizzle::Span64 => 64,
            Swizzle::Span128 => 128,
        }
    }
}

#[derive(Clone, Debug)]
enum Region {
    Tiled { extent: Vec<usize> },
    Im2col { lower: Vec<i32>, upper: Vec<i32>, channels: usize, pixels: usize },
}

/// How the copy engine of a GPU of compute capability 9.0 or newer sees an array: a tensor of up to five axes, the innermost
/// first, and the box of it that one copy moves.
///
/// A kernel takes it as `const __grid_constant__ TensorMap map` (`ptx_hopper.cuh`) where the launch has
/// [`Kernel::tensor`](super::Kernel::tensor) or [`tensor_mut`](super::Kernel::tensor_mut), which add the address. What lies outside of
/// the tensor is loaded as zeros and not stored, so a kernel needs no edges, and cannot leave the array.
///
/// Rules of the hardware: addresses and strides at multiples of 16 bytes, boxes of at most 256 along each axis, their rows a
/// multiple of 16 bytes and no longer than the swizzle's span. CUDA driver API, "Tensor Map Object Management".
///
/// ```
/// use hadal::cuda::{Swizzle, TensorMap};
/// // A matrix of 100 rows of 72 numbers, in boxes of 32 rows and 64 columns.
/// let map = TensorMap::tiled(&[72, 100], &[72], &[64, 32]).swizzle(Swizzle::Span128);
/// // Images [n][h][w][c] of 8 by 8 pixels with 64 channels: 48 pixels, 64 channels each, that a 3x3 convolution of stride 2
/// // and padding 1 reads at one tap.
/// let (c, w, h, n) = (64, 8, 8, 4);
/// let columns = TensorMap::im2col(&[c, w, h, n], &[c, w * c, h * w * c], &[-1, -1], &[-1, -1], 64, 48).steps(&[1, 2, 2, 1]);
/// # let _ = (map, columns);
/// ```
#[derive(Clone, Debug)]
pub struct TensorMap {
    extent: Vec<usize>,
    stride: Vec<usize>,
    region: Region,
    steps: Vec<usize>,
    swizzle: Swizzle,
    tf32: bool,
    nan: bool,
}

impl TensorMap {
    /// A tensor of these extents, innermost first, `stride` elements from one to the next along the second axis and on, and a
    /// box of it. Elements are the array's in the order of its memory.
    pub fn tiled(extent: &[usize], stride: &[usize], tile: &[usize]) -> Self {
        Self::of(extent, stride, Region::Tiled { extent: tile.to_vec() })
    }

    /// A tensor (C, W, N), (C, W, H, N) or (C, W, H, D, N) from which a copy takes `pixels` pixels of `channels` channels: from its
    /// coordinates on along W, H, D, N, within the bounding box that begins `lower` after the first pixel of W, H, D and ends
    /// `upper` after the last, each moved by the copy's offsets. For a convolution with kernel k and padding p they are -p and
    /// p - (k - 1); its stride goes into [`TensorMap::steps`].
    pub fn im2col(extent: &[usize], stride: &[usize], lower: &[i32], upper: &[i32], channels: usize, pixels: usize) -> Self {
        Self::of(extent, stride, Region::Im2col { lower: lower.to_vec(), upper: upper.to_vec(), channels, pixels })
    }

    fn of(extent: &[usize], stride: &[usize], region: Region) -> Self {
        let steps = vec![1; extent.len()];
        let (extent, stride) = (extent.to_vec(), stride.to_vec());
        TensorMap { extent, stride, region, steps, swizzle: Swizzle::None, tf32: false, nan: false }
    }

    /// Every so many elements along each axis, 1 to 8, the first 1. A tile's extent counts those in between too.
    pub fn steps(self, steps: &[usize]) -> Self {
        TensorMap { steps: steps.to_vec(), ..self }
    }

    /// How the box lies in shared memory.
    pub fn swizzle(self, swizzle: Swizzle) -> Self {
        TensorMap { swizzle, ..self }
    }

    /// Loads f32 rounded to tf32: wgmma itself cuts off.
    pub fn tf32(self) -> Self {
        TensorMap { tf32: true, ..self }
    }

    /// NaN instead of zeros outside of the tensor, for floating-point types.
    pub fn nan(self) -> Self {
        TensorMap { nan: true, ..self }
    }

    fn kind(&self, dtype: DType) -> Result<Kind, String> {
        Ok(match (dtype, self.tf32) {
            (DType::F32, true) => Kind::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
            (_, true) => return Err(format!("only f32 can be rounded to tf32, not {dtype}")),
            (DType::F32, _) => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            (DType::F64, _) => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
            (DType::F16, _) => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            (DType::BF16, _) => Kind::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            (DType::U8 | DType::I64, _) if self.nan => return Err(format!("{dtype} has no NaN")),
            (DType::U8, _) => Kind::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            (DType::I64, _) => Kind::CU_TENSOR_MAP_DATA_TYPE_INT64,
        })
    }

    /// Everything that can be known without the driver, whose refusal gives no reason.
    fn check(&self, elements: usize, size: usize) -> Result<(), String> {
        let (rank, tiled) = (self.extent.len(), matches!(self.region, Region::Tiled { .. }));
        let ranks = if tiled { 1..=5 } else { 3..=5 };
        if !ranks.contains(&rank) || self.stride.len() + 1 != rank || self.steps.len() != rank {
            let (least, most) = ranks.into_inner();
            return Err(format!("extents and steps are of {least} to {most} axes, strides of one less"));
        }
        if self.extent.iter().any(|&e| e == 0 || e > 1 << 32) {
            return Err(format!("extents are 1 to 2^32, not {:?}", self.extent));
        }
        let bytes = |s: usize| s.checked_mul(size).filter(|b| b.is_multiple_of(16) && *b < 1 << 40);
        if self.stride.iter().any(|&s| bytes(s).is_none()) {
            return Err(format!("strides are multiples of 16 bytes below 2^40, not {:?} times {size}", self.stride));
        }
        if self.steps[0] != 1 || self.steps.iter().any(|s| !(1..=8).contains(s)) {
            return Err(format!("steps are 1 to 8, the first 1, not {:?}", self.steps));
        }
        let last = |(&e, &s): (&usize, &usize)| (e as u128 - 1) * s as u128;
        let last: u128 = self.extent[0] as u128 - 1 + self.extent[1..].iter().zip(&self.stride).map(last).sum::<u128>();
        if last >= elements as u128 {
            return Err(format!("the tensor's last element is number {last} of an array of {elements}"));
        }
        let row = match &self.region {
            Region::Tiled { extent } if extent.len() != rank || extent.iter().any(|e| !(1..=256).contains(e)) => {
                return Err(format!("a box has {rank} extents of 1 to 256, not {extent:?}"));
            }
            Region::Tiled { extent } => extent[0] * size,
            Region::Im2col { lower, upper, channels, pixels } => {
                let limit = [1 << 15, 1 << 7, 1 << 4][rank - 3];
                let wrong = |c: &[i32]| c.len() != rank - 2 || c.iter().any(|c| !(-limit..limit).contains(c));
                if wrong(lower) || wrong(upper) {
                    return Err(format!(
                        "corners are of {} axes and -{limit} to {}, not {lower:?} and {upper:?}",
                        rank - 2,
                        limit - 1
                    ));
                }
                if !(1..=256).contains(channels) || !(1..=1024).contains(pixels) {
                    return Err(format!("a column is 1 to 1024 pixels of 1 to 256 channels, not {pixels} of {channels}"));
                }
                channels * size
            }
        };
        if !row.is_multiple_of(16) || row > self.swizzle.span() {
            return Err(format!("a box's rows are multiples of 16 bytes within {:?}, not {row} bytes", self.swizzle));
        }
        Ok(())
    }

    /// The 128 bytes for `array`, whose elements begin at `address`.
    pub(super) fn encode(&self, op: &'static str, device: &Device, array: &Array, address: u64) -> Result<[u64; 16]> {
        let refuse = |reason: String| Error::invalid(op, format!("tensor map: {reason}"));
        if device.capability < (9, 0) {
            let (major, minor) = device.capability;
            return Err(refuse(format!("gpu({}) has compute capability {major}.{minor}, not 9.0 or newer", device.ordinal)));
        }
        let (kind, size) = (self.kind(array.dtype()).map_err(refuse)? as c_uint, array.dtype().size());
        self.check(array.len(), size).map_err(refuse)?;
        if !address.is_multiple_of(16) {
            return Err(refuse("the array does not begin at a multiple of 16 bytes".into()));
        }
        let extent: Vec<u64> = self.extent.iter().map(|&e| e as u64).collect();
        // One more than there are, so that the pointer is to something for a single axis too.
        let stride: Vec<u64> = self.stride.iter().chain(&[0]).map(|&s| (s * size) as u64).collect();
        let small = |v: &[usize]| v.iter().map(|&e| e as u32).collect::<Vec<u32>>();
        let (rank, steps) = (extent.len() as u32, small(&self.steps));
        let swizzle = match self.swizzle {
            Swizzle::None => CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Span32 => CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Span64 => CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Span128 => CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
        } as c_uint;
        let plain = CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE as c_uint;
        let promotion = CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B as c_uint;
        let fill = if self.nan {
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
        } else {
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
        } as c_uint;
        let (api, mut map) = (device.api, CUtensorMap { opaque: [0; 16] });
        let (out, extent, stride, steps) = (&raw mut map, extent.as_ptr(), stride.as_ptr(), steps.as_ptr());
        // Nothing else in a launch needs the context before it is queued, and this thread may never have had it.
        device.bind()?;
        let done = match &self.region {
            Region::Tiled { extent: tile } => {
                let tile = small(tile);
                let tile = tile.as_ptr();
                // SAFETY: `extent`, `tile` and `steps` have `rank` numbers, `stride` as many, and outlive the call, which writes `map`
                // alone and does not look at what lies at the address.
                unsafe {
                    (api.cuTensorMapEncodeTiled)(
                        out, kind, rank, address, extent, stride, tile, steps, plain, swizzle, promotion, fill,
                    )
                }
            }
            Region::Im2col { lower, upper, channels, pixels } => {
                let (lower, upper, channels, pixels) = (lower.as_ptr(), upper.as_ptr(), *channels as u32, *pixels as u32);
                // SAFETY: as above; the corners have `rank` - 2 numbers.
                unsafe {
                    (api.cuTensorMapEncodeIm2col)(
                        out, kind, rank, address, extent, stride, lower, upper, channels, pixels, steps, plain, swizzle,
                        promotion, fill,
                    )
                }
            }
        };
        checked(done).map_err(|e| refuse(format!("the driver refuses it ({})", e.words())))?;
        Ok(map.opaque)
    }
}
