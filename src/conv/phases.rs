//! Where the pixels that a pass writes, and those under its taps, lie along an axis. A strided dgrad has phases: pixels with the same
//! remainder by the stride meet the same taps.

use super::problem::ConvProblem;

/// The `Axis` of `conv2d_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Axis {
    pub(super) count: i32,
    start: i32,
    stride: i32,
    pub(super) lower: i32,
    pub(super) step: i32,
    pub(super) taps: i32,
    hop: i32,
    first: i32,
    jump: i32,
}

impl Axis {
    /// From x to y.
    pub(super) fn fprop(s: &ConvProblem, axis: usize) -> Self {
        let count = [s.out_h(), s.out_w()][axis] as i32;
        let (lower, step) = (-(s.padding[axis] as i32), s.stride[axis] as i32);
        Axis {
            count,
            start: 0,
            stride: 1,
            lower,
            step,
            taps: s.kernel[axis] as i32,
            hop: s.dilation[axis] as i32,
            first: 0,
            jump: 1,
        }
    }

    /// From dy to the pixels start, start + stride, … of dx: `phase_of` of `conv2d_mma.cu`, its taps backwards, so that their
    /// places in dy rise.
    pub(super) fn dgrad(s: &ConvProblem, axis: usize, start: usize) -> Self {
        let (size, pad, stride) = ([s.h, s.w][axis], s.padding[axis], s.stride[axis]);
        let (kernel, dilation) = (s.kernel[axis], s.dilation[axis]);
        let rest = (start + pad) % stride;
        let first = (0..kernel).find(|t| t * dilation % stride == rest).unwrap_or(kernel);
        let period = (1..=kernel).find(|t| t * dilation % stride == 0).unwrap_or(kernel);
        let taps = (kernel - first).div_ceil(period);
        let last = first + taps.saturating_sub(1) * period;
        let up = if taps > 0 { (last * dilation - rest) / stride } else { 0 };
        Axis {
            count: (size - start).div_ceil(stride) as i32,
            start: start as i32,
            stride: stride as i32,
            lower: ((start + pad - rest) / stride) as i32 - up as i32,
            step: 1,
            taps: taps as i32,
            hop: (period * dilation / stride) as i32,
            first: last as i32,
            jump: -(period as i32),
        }
    }

    /// The same for filters whose `kernel` taps are stored from the last to the first.
    pub(super) fn flipped(self, kernel: usize) -> Self {
        Axis { first: kernel as i32 - 1 - self.first, jump: -self.jump, ..self }
    }

    /// The upper corner of im2col's bounding box in images of `size` pixels: behind the last pixel read at the first tap.
    pub(super) fn upper(&self, size: usize) -> i32 {
        self.lower + (self.count - 1) * self.step - (size as i32 - 1)
    }

    /// Whether im2col's corners, offsets and steps can say it.
    pub(super) fn fits(&self, size: usize) -> bool {
        let corner = |c: i32| (-128..128).contains(&c);
        corner(self.lower) && corner(self.upper(size)) && self.step <= 8 && (self.taps - 1) * self.hop < 256
    }
}

/// How many pixels an axis pair writes in each image.
pub(super) fn plane(axes: &[Axis; 2]) -> usize {
    (axes[0].count * axes[1].count) as usize
}

pub(super) fn taps(axes: &[Axis; 2]) -> usize {
    (axes[0].taps * axes[1].taps) as usize
}
