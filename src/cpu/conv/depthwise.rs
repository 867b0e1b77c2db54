//! Depthwise convolution: each output channel reads one input channel, so there is no product to speak of; the loops run along rows.

use super::ConvProblem;
use crate::cpu::parallel::Each;
use crate::{Result, cpu::memory};
use rayon::prelude::*;

/// The outputs `lo..hi` whose input index `out * stride + tap - pad` lies in `0..size`.
fn inside(tap: usize, pad: usize, stride: usize, size: usize, out: usize) -> std::ops::Range<usize> {
    let lo = pad.saturating_sub(tap).div_ceil(stride).min(out);
    lo..(size + pad).saturating_sub(tap).div_ceil(stride).clamp(lo, out)
}

/// Calls `f(tap, y range, x range)` for every tap and output row: the flat ranges of the output row's part that lies inside, and of the input row from the first
/// element that it reads (every `stride`-th from there).
#[inline(always)]
fn for_each_row(s: &ConvProblem, mut f: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>)) {
    let (oh, ow) = (s.out_h(), s.out_w());
    for i in 0..s.kernel[0] {
        let di = i * s.dilation[0];
        for j in 0..s.kernel[1] {
            let dj = j * s.dilation[1];
            let cols = inside(dj, s.padding[1], s.stride[1], s.w, ow);
            if cols.is_empty() {
                continue;
            }
            let first = cols.start * s.stride[1] + dj - s.padding[1];
            for y in inside(di, s.padding[0], s.stride[0], s.h, oh) {
                let row = (y * s.stride[0] + di - s.padding[0]) * s.w;
                f(i * s.kernel[1] + j, y * ow + cols.start..y * ow + cols.end, row + first..row + s.w);
            }
        }
    }
}

pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], s: &ConvProblem) {
    let (plane, p, taps, per) = (s.h * s.w, s.out_h() * s.out_w(), s.kernel[0] * s.kernel[1], s.o / s.c);
    y.par_chunks_mut(per * p).enumerate().each(|(i, y)| {
        let x = &x[i * plane..][..plane];
        for (q, y) in y.chunks_exact_mut(p).enumerate() {
            let o = i % s.c * per + q;
            let w = &w[o * taps..][..taps];
            y.fill(bias.map_or(0.0, |b| b[o]));
            crate::cpu::simd::vectorized(|| {
                for_each_row(s, |tap, to, from| {
                    let (y, x, w) = (&mut y[to], &x[from], w[tap]);
                    match s.stride[1] {
                        1 => y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x),
                        step => y.iter_mut().zip(x.iter().step_by(step)).for_each(|(y, x)| *y += w * x),
                    }
                })
            });
        }
    });
}

pub fn backward_data(dy: &[f32], w: &[f32], dx: &mut [f32], s: &ConvProblem) {
    let (plane, p, taps, per) = (s.h * s.w, s.out_h() * s.out_w(), s.kernel[0] * s.kernel[1], s.o / s.c);
    dx.par_chunks_mut(plane).enumerate().each(|(i, dx)| {
        dx.fill(0.0);
        for (q, dy) in dy[i * per * p..][..per * p].chunks_exact(p).enumerate() {
            let w = &w[(i % s.c * per + q) * taps..][..taps];
            crate::cpu::simd::vectorized(|| {
                for_each_row(s, |tap, from, to| {
                    let (dy, dx, w) = (&dy[from], &mut dx[to], w[tap]);
                    match s.stride[1] {
                        1 => dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += w * dy),
                        step => dx.iter_mut().step_by(step).zip(dy).for_each(|(dx, dy)| *dx += w * dy),
                    }
                })
            });
        }
    });
}

pub fn backward_weight(x: &[f32], dy: &[f32], dw: &mut [f32], s: &ConvProblem) -> Result<()> {
    let (plane, p, taps, per) = (s.h * s.w, s.out_h() * s.out_w(), s.kernel[0] * s.kernel[1], s.o / s.c);
    // Each filter belongs to one task, which goes through the images in order.
    dw.par_chunks_mut(taps).enumerate().try_each(|(o, dw)| {
        let mut sums = memory::filled(taps, 0.0f64)?;
        for n in 0..s.n {
            let x = &x[(n * s.c + o / per) * plane..][..plane];
            let dy = &dy[(n * s.o + o) * p..][..p];
            crate::cpu::simd::vectorized(|| {
                for_each_row(s, |tap, at, from| {
                    sums[tap] += match s.stride[1] {
                        1 => dot(&dy[at], &x[from]),
                        step => dy[at].iter().zip(x[from].iter().step_by(step)).map(|(a, b)| a * b).sum(),
                    } as f64;
                })
            });
        }
        dw.iter_mut().zip(sums).for_each(|(d, s)| *d = s as f32);
        Ok(())
    })
}

/// The dot product over the length of `a`, in interleaved partial sums.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let mut lanes = [0.0f32; 16];
    let ((a16, a_rest), (b16, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a16.iter().zip(b16) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += a * b;
    }
    crate::cpu::elementwise::fold_lanes(lanes)
}
