//! Max and average pooling over planes (the batch and the channels are one dimension here).
//!
//! Rows are first split by phase, so that element `j * stride + p` of a padded row is element j of phase p: every tap of every window then reads a contiguous run,
//! and the loops over a row of outputs vectorize for any stride.

use crate::cpu::parallel::Each;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::memory;
use crate::Result;

/// The attributes of a pooling: x is (planes, h, w), y (planes, out_h, out_w).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    pub planes: usize,
    pub h: usize,
    pub w: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Top, left, bottom, right.
    pub padding: [usize; 4],
    /// Round the output size up instead of down; a window that would start in the bottom or right padding is dropped.
    pub ceil_mode: bool,
    /// Average pooling divides by the window's size including padding.
    pub count_include_pad: bool,
}

impl PoolShape {
    pub fn validate(&self) -> std::result::Result<(), String> {
        for (axis, size) in [self.h, self.w].into_iter().enumerate() {
            let (kernel, before, after) = (self.kernel[axis], self.padding[axis], self.padding[axis + 2]);
            if kernel == 0 || self.stride[axis] == 0 {
                return Err(format!("kernel {:?} and stride {:?} must be positive", self.kernel, self.stride));
            }
            if before >= kernel || after >= kernel {
                return Err(format!(
                    "padding {before} and {after} must be smaller than the kernel {kernel}: a window could lie in the padding"
                ));
            }
            if size + before + after < kernel {
                return Err(format!("a window of {kernel} exceeds the padded input of {}", size + before + after));
            }
        }
        Ok(())
    }

    fn out(&self, axis: usize, size: usize) -> usize {
        let (before, after, stride) = (self.padding[axis], self.padding[axis + 2], self.stride[axis]);
        let room = size + before + after - self.kernel[axis];
        if !self.ceil_mode {
            return room / stride + 1;
        }
        let out = room.div_ceil(stride) + 1;
        if (out - 1) * stride >= size + before { out - 1 } else { out }
    }

    pub fn out_h(&self) -> usize {
        self.out(0, self.h)
    }

    pub fn out_w(&self) -> usize {
        self.out(1, self.w)
    }

    pub fn x_len(&self) -> usize {
        self.planes * self.h * self.w
    }

    pub fn y_len(&self) -> usize {
        self.planes * self.out_h() * self.out_w()
    }

    fn check(&self, x: usize, y: usize) {
        if let Err(message) = self.validate() {
            panic!("pool2d: {message}");
        }
        assert_eq!((x, y), (self.x_len(), self.y_len()), "pool2d: slice lengths of x and y do not match {self:?}");
    }

    /// Rows of the input under the window of output row `y`.
    fn rows(&self, y: usize) -> std::ops::Range<usize> {
        let at = y * self.stride[0];
        at.saturating_sub(self.padding[0])..(at + self.kernel[0]).saturating_sub(self.padding[0]).min(self.h)
    }

    /// Elements of one phase of a row, padding included, and of all phases together.
    fn phase_len(&self) -> (usize, usize) {
        let len = self.out_w() + (self.kernel[1] - 1) / self.stride[1];
        (len, len.saturating_mul(self.stride[1].min(self.kernel[1])))
    }

    /// Planes per task.
    fn per_task(&self) -> usize {
        ((1 << 14) / (self.h * self.w).max(1)).max(1)
    }

    /// Elements that a task splits a plane into.
    pub fn scratch(&self) -> usize {
        self.scratch_len().max(self.h.saturating_mul(self.phase_len().1))
    }

    fn is_global(&self) -> bool {
        self.kernel == [self.h, self.w] && self.padding == [0; 4]
    }
}

/// Splits a row into its phases of `len` elements; what lies in the padding is `fill`.
#[inline(always)]
fn split_row(row: &[f32], s: &PoolShape, len: usize, fill: f32, phases: &mut [f32]) {
    let (stride, pad) = (s.stride[1], s.padding[1]);
    for (p, phase) in phases.chunks_exact_mut(len).enumerate() {
        // Element j of the phase is row[j * stride + p - pad].
        let lo = pad.saturating_sub(p).div_ceil(stride).min(len);
        let hi = (row.len() + pad).saturating_sub(p).div_ceil(stride).clamp(lo, len);
        phase[..lo].fill(fill);
        phase[hi..].fill(fill);
        if lo == hi {
            continue;
        }
        let source = &row[lo * stride + p - pad..];
        let out = &mut phase[lo..hi];
        match stride {
            1 => out.copy_from_slice(&source[..out.len()]),
            2 => {
                let (pairs, rest) = source.as_chunks::<2>();
                let whole = out.len().min(pairs.len());
                out.iter_mut().zip(pairs).for_each(|(o, pair)| *o = pair[0]);
                if whole < out.len() {
                    out[whole] = rest[0];
                }
            }
            _ => out.iter_mut().zip(source.iter().step_by(stride)).for_each(|(o, v)| *o = *v),
        }
    }
}

/// y = the maximum of each window; `argmax`, if given, its place in the plane (h * w + w). The first of equals wins, and a NaN wins over everything.
pub fn max_pool_forward(x: &[f32], y: &mut [f32], argmax: Option<&mut [i32]>, s: &PoolShape) -> Result<()> {
    s.check(x.len(), y.len());
    if y.is_empty() {
        return Ok(());
    }
    let (plane, p, tasks) = (s.h * s.w, s.out_h() * s.out_w(), s.per_task());
    let run = |y: &mut [f32], places: &mut [i32], x: &[f32]| -> Result<()> {
        let mut scratch = memory::filled(s.scratch_len(), 0.0)?;
        let mut place_row = memory::filled(s.out_w().next_multiple_of(WIDEST), 0)?;
        for (i, (y, x)) in y.chunks_exact_mut(p).zip(x.chunks_exact(plane)).enumerate() {
            let places = if places.is_empty() { &mut [] } else { &mut places[i * p..(i + 1) * p] };
            crate::cpu::simd::dispatch(MaxPlane { x, y, places, scratch: &mut scratch, place_row: &mut place_row, s });
        }
        Ok(())
    };
    match argmax {
        Some(argmax) => {
            assert_eq!(argmax.len(), y.len(), "max_pool: one place per output");
            let tasks = y.par_chunks_mut(tasks * p).zip(argmax.par_chunks_mut(tasks * p)).zip(x.par_chunks(tasks * plane));
            tasks.try_each(|((y, places), x)| run(y, places, x))?;
        }
        None => y.par_chunks_mut(tasks * p).zip(x.par_chunks(tasks * plane)).try_each(|(y, x)| run(y, &mut [], x))?,
    }
    Ok(())
}

/// One plane; no places are recorded when `places` is empty.
struct MaxPlane<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    places: &'a mut [i32],
    /// (h, phases) and, behind it, one row of maxima; `scratch_len` elements.
    scratch: &'a mut [f32],
    /// One row of the places of the maxima.
    place_row: &'a mut [i32],
    s: &'a PoolShape,
}

/// Vectors are at most this long; rows of maxima are rounded up to it.
const WIDEST: usize = 16;

impl PoolShape {
    /// Elements of one phase for [`MaxPlane`]: whole vectors may be loaded from any tap.
    fn wide_phase_len(&self) -> usize {
        self.out_w().next_multiple_of(WIDEST) + (self.kernel[1] - 1) / self.stride[1]
    }

    fn scratch_len(&self) -> usize {
        let phases = self.wide_phase_len().saturating_mul(self.stride[1].min(self.kernel[1]));
        self.h.saturating_mul(phases).saturating_add(self.out_w().next_multiple_of(WIDEST))
    }
}

impl WithSimd for MaxPlane<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, y, places, scratch, place_row, s } = self;
        let (ow, stride, pad, len) = (s.out_w(), s.stride[1], s.padding[1], s.wide_phase_len());
        let row_len = len * stride.min(s.kernel[1]);
        let (phases, best) = scratch.split_at_mut(s.h * row_len);
        for (row, phases) in x.chunks_exact(s.w).zip(phases.chunks_exact_mut(row_len)) {
            split_row(row, s, len, f32::NEG_INFINITY, phases);
        }
        for (oy, y) in y.chunks_exact_mut(ow).enumerate() {
            let rows = s.rows(oy);
            // Places are kept relative to ox * stride, so that a tap has the same value along the row. A window of nothing but -inf keeps its first element.
            if !places.is_empty() {
                for (ox, place) in place_row.iter_mut().enumerate() {
                    *place = (rows.start * s.w + (ox * stride).saturating_sub(pad)) as i32 - (ox * stride) as i32;
                }
            }
            best.fill(f32::NEG_INFINITY);
            let (best_v, _) = S::as_mut_simd_f32s(best);
            let (place_v, _) = S::as_mut_simd_i32s(place_row);
            for row in rows {
                for j in 0..s.kernel[1] {
                    let tap = &phases[row * row_len + j % stride * len + j / stride..][..ow.next_multiple_of(WIDEST)];
                    let here = simd.splat_i32s((row * s.w + j) as i32 - pad as i32);
                    let (tap, _) = S::as_simd_f32s(tap);
                    for ((best, place), &v) in best_v.iter_mut().zip(place_v.iter_mut()).zip(tap) {
                        // v > best or v is NaN, unless best is NaN already.
                        let stay =
                            simd.or_m32s(simd.less_than_or_equal_f32s(v, *best), simd.not_m32s(simd.equal_f32s(*best, *best)));
                        *best = simd.select_f32s(stay, *best, v);
                        *place = simd.select_i32s(stay, *place, here);
                    }
                }
            }
            y.copy_from_slice(&best[..ow]);
            if !places.is_empty() {
                for ((ox, place), relative) in places[oy * ow..][..ow].iter_mut().enumerate().zip(place_row.iter()) {
                    *place = relative + (ox * stride) as i32;
                }
            }
        }
    }
}

/// dx = dy sent to the places of the maxima (overwritten).
pub fn max_pool_backward(dy: &[f32], argmax: &[i32], dx: &mut [f32], s: &PoolShape) {
    s.check(dx.len(), dy.len());
    assert_eq!(argmax.len(), dy.len(), "max_pool: one place per output");
    if dy.is_empty() {
        dx.fill(0.0);
        return;
    }
    let (plane, p, tasks) = (s.h * s.w, s.out_h() * s.out_w(), s.per_task());
    dx.par_chunks_mut(tasks * plane).zip(dy.par_chunks(tasks * p)).zip(argmax.par_chunks(tasks * p)).each(
        |((dx, dy), places)| {
            for ((dx, dy), places) in dx.chunks_exact_mut(plane).zip(dy.chunks_exact(p)).zip(places.chunks_exact(p)) {
                dx.fill(0.0);
                for (&v, &place) in dy.iter().zip(places) {
                    dx[place as usize] += v;
                }
            }
        },
    );
}

/// For each output column or row, one over the number of counted elements along that axis.
fn counts(s: &PoolShape, axis: usize, size: usize, out: usize) -> Result<Vec<f32>> {
    let (before, after) = (s.padding[axis], s.padding[axis + 2]);
    memory::collected((0..out).map(|i| {
        let start = i * s.stride[axis];
        let end = (start + s.kernel[axis]).min(size + before + after);
        let count = if s.count_include_pad { end - start } else { end.min(size + before) - start.max(before) };
        count as f32
    }))
}

/// y = the mean of each window.
pub fn avg_pool_forward(x: &[f32], y: &mut [f32], s: &PoolShape) -> Result<()> {
    s.check(x.len(), y.len());
    if y.is_empty() {
        return Ok(());
    }
    let (plane, p, tasks) = (s.h * s.w, s.out_h() * s.out_w(), s.per_task());
    let (len, row_len) = s.phase_len();
    let (ow, stride) = (s.out_w(), s.stride[1]);
    if s.is_global() {
        y.par_chunks_mut(tasks).zip(x.par_chunks(tasks * plane)).each(|(y, x)| {
            for (y, x) in y.iter_mut().zip(x.chunks_exact(plane)) {
                *y = crate::cpu::elementwise::sum(x) / plane as f32;
            }
        });
        return Ok(());
    }
    let (down, across) = (counts(s, 0, s.h, s.out_h())?, counts(s, 1, s.w, ow)?);
    y.par_chunks_mut(tasks * p).zip(x.par_chunks(tasks * plane)).try_each(|(y, x)| {
        let mut phases = memory::filled(s.h * row_len, 0.0)?;
        for (y, x) in y.chunks_exact_mut(p).zip(x.chunks_exact(plane)) {
            crate::cpu::simd::vectorized(|| {
                for (row, phases) in x.chunks_exact(s.w).zip(phases.chunks_exact_mut(row_len)) {
                    split_row(row, s, len, 0.0, phases);
                }
                for (oy, y) in y.chunks_exact_mut(ow).enumerate() {
                    y.fill(0.0);
                    for row in s.rows(oy) {
                        for j in 0..s.kernel[1] {
                            let tap = &phases[row * row_len + j % stride * len + j / stride..][..ow];
                            y.iter_mut().zip(tap).for_each(|(y, v)| *y += v);
                        }
                    }
                    y.iter_mut().zip(&across).for_each(|(y, a)| *y /= a * down[oy]);
                }
            });
        }
        Ok::<(), crate::Error>(())
    })?;
    Ok(())
}

/// dx = dy spread evenly over its window (overwritten).
pub fn avg_pool_backward(dy: &[f32], dx: &mut [f32], s: &PoolShape) -> Result<()> {
    s.check(dx.len(), dy.len());
    if dy.is_empty() {
        dx.fill(0.0);
        return Ok(());
    }
    let (plane, p, tasks) = (s.h * s.w, s.out_h() * s.out_w(), s.per_task());
    let (ow, stride, pad) = (s.out_w(), s.stride[1], s.padding[1]);
    if s.is_global() {
        dx.par_chunks_mut(tasks * plane).zip(dy.par_chunks(tasks)).each(|(dx, dy)| {
            dx.chunks_exact_mut(plane).zip(dy).for_each(|(dx, dy)| dx.fill(dy / plane as f32));
        });
        return Ok(());
    }
    let (down, across) = (counts(s, 0, s.h, s.out_h())?, counts(s, 1, s.w, ow)?);
    dx.par_chunks_mut(tasks * plane).zip(dy.par_chunks(tasks * p)).try_each(|(dx, dy)| {
        let mut share = memory::filled(ow, 0.0)?;
        for (dx, dy) in dx.chunks_exact_mut(plane).zip(dy.chunks_exact(p)) {
            dx.fill(0.0);
            for (oy, dy) in dy.chunks_exact(ow).enumerate() {
                share.iter_mut().zip(dy).zip(&across).for_each(|((share, dy), a)| *share = dy / (a * down[oy]));
                for row in s.rows(oy) {
                    let dx = &mut dx[row * s.w..][..s.w];
                    for j in 0..s.kernel[1] {
                        // The outputs whose tap j lies inside.
                        let lo = pad.saturating_sub(j).div_ceil(stride).min(ow);
                        let hi = (s.w + pad).saturating_sub(j).div_ceil(stride).clamp(lo, ow);
                        if lo < hi {
                            let target = &mut dx[lo * stride + j - pad..];
                            target.iter_mut().step_by(stride).zip(&share[lo..hi]).for_each(|(d, v)| *d += v);
                        }
                    }
                }
            }
        }
        Ok::<(), crate::Error>(())
    })?;
    Ok(())
}
