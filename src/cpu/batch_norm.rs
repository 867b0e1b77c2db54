//! Batch normalisation over (n, c, inner): statistics per channel, in f32 data with f64 sums.
//!
//! Sums are taken of differences from a sample of the channel, so one pass over the data suffices and a mean of 1000 costs no
//! digits; the rare channel whose sample was far off (measured in its own standard deviations) makes the pass run again with the
//! mean just found.

use crate::cpu::parallel::Each;
use rayon::prelude::*;

use super::memory;
use crate::Result;

/// At most this many partial sums per channel.
const PARTS: usize = 32;
/// Elements per task of the second passes.
const PIECE: usize = 1 << 14;
/// A sample this many standard deviations from the mean costs about that many decimal digits squared; beyond it the sums are
/// taken again.
const FAR: f64 = 8.0;

/// The shape of a normalised array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NormShape {
    pub(crate) n: usize,
    pub(crate) c: usize,
    /// Pixels per channel; 1 for dense layers.
    pub(crate) inner: usize,
}

impl NormShape {
    fn is_empty(&self) -> bool {
        self.n * self.c * self.inner == 0
    }

    /// Elements of a channel.
    pub(crate) fn count(&self) -> usize {
        self.n * self.inner
    }

    /// Planes per task.
    fn planes(&self) -> usize {
        (PIECE / self.inner.max(1)).max(1)
    }
}

/// What the forward pass in training finds per channel: mean and biased variance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moments {
    pub(crate) mean: Vec<f32>,
    pub(crate) var: Vec<f32>,
}

/// Sums K quantities per channel: `run(elements of an image, sums)`, in parts that depend on the shape only.
fn channel_sums<const K: usize>(
    s: &NormShape,
    run: impl Fn(std::ops::Range<usize>, &mut [[f64; K]]) + Sync,
) -> Result<Vec<[f64; K]>> {
    let image = s.c * s.inner;
    let mut total = memory::filled(s.c, [0.0; K])?;
    if s.is_empty() {
        return Ok(total);
    }
    let per_part = s.n.div_ceil(PARTS).max((PIECE / image).max(1));
    let mut parts = memory::filled(s.n.div_ceil(per_part) * s.c, [0.0; K])?;
    parts.par_chunks_mut(s.c).enumerate().each(|(part, sums)| {
        for n in part * per_part..((part + 1) * per_part).min(s.n) {
            run(n * image..(n + 1) * image, sums);
        }
    });
    for part in parts.chunks_exact(s.c) {
        for (t, p) in total.iter_mut().zip(part) {
            for k in 0..K {
                t[k] += p[k];
            }
        }
    }
    Ok(total)
}

const LANES: usize = 16;
/// Elements whose sum may stay in f32 lanes.
const BLOCK: usize = 2048;

/// Folds `f` over blocks of a run: K sums in 16 f32 lanes each, flushed to f64 after every block.
#[inline(always)]
fn lane_sums<const K: usize, const I: usize>(inputs: [&[f32]; I], f: impl Fn([f32; I]) -> [f32; K], out: &mut [f64; K]) {
    let len = inputs[0].len();
    for start in (0..len).step_by(BLOCK) {
        let end = (start + BLOCK).min(len);
        let mut lanes = [[0.0f32; LANES]; K];
        let mut at = start;
        while at < end {
            let width = LANES.min(end - at);
            let values = inputs.map(|x| &x[at..at + width]);
            // A whole group of lanes in a loop of known length becomes vector instructions.
            let mut add = |l: usize| {
                let terms = f(std::array::from_fn(|i| values[i][l]));
                for k in 0..K {
                    lanes[k][l] += terms[k];
                }
            };
            if width == LANES {
                (0..LANES).for_each(&mut add)
            } else {
                (0..width).for_each(&mut add)
            }
            at += width;
        }
        for k in 0..K {
            out[k] += f64::from(fold_lanes(lanes[k]));
        }
    }
}

/// The sum of 16 lanes, by halves.
#[inline(always)]
fn fold_lanes(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Sums of x - shift and of its square.
fn shifted_sums(x: &[f32], shift: &[f32], s: &NormShape) -> Result<Vec<[f64; 2]>> {
    channel_sums(s, |range, sums| {
        let image = &x[range];
        if s.inner == 1 {
            for ((sum, &v), &shift) in sums.iter_mut().zip(image).zip(shift) {
                let d = f64::from(v - shift);
                *sum = [sum[0] + d, sum[1] + d * d];
            }
            return;
        }
        for ((plane, sum), &shift) in image.chunks_exact(s.inner).zip(sums).zip(shift) {
            lane_sums([plane], |[v]| [v - shift, (v - shift) * (v - shift)], sum);
        }
    })
}

/// What the pass that normalises does to its result.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behind<'a> {
    Nothing,
    Relu,
    /// Adds this, then ReLU.
    AddRelu(&'a [f32]),
}

/// Normalises with the statistics of the batch: y = (x - mean) / sqrt(var + eps) * gamma + beta, then what comes `behind`. Lengths
/// fit `s`; it has elements.
pub(crate) fn batch_norm_forward(
    x: &[f32],
    [gamma, beta]: [&[f32]; 2],
    behind: Behind,
    eps: f64,
    y: &mut [f32],
    s: &NormShape,
) -> Result<Moments> {
    let count = s.count() as f64;
    let sample = |c: usize| {
        let mut sum = [0.0];
        lane_sums([&x[c * s.inner..(c + 1) * s.inner]], |[v]| [v], &mut sum);
        (sum[0] / s.inner as f64) as f32
    };
    let mut shift = memory::collected((0..s.c).map(sample))?;
    let mut sums = shifted_sums(x, &shift, s)?;
    let moments = |sum: &[f64; 2]| {
        let (offset, square) = (sum[0] / count, sum[1] / count);
        let var = square - offset * offset;
        // Not f64::max, which would turn NaN into 0.
        (offset, if var < 0.0 { 0.0 } else { var })
    };
    let far = |sum: &[f64; 2]| {
        let (offset, var) = moments(sum);
        offset * offset > FAR * FAR * var && offset != 0.0
    };
    if sums.iter().any(far) {
        for (shift, sum) in shift.iter_mut().zip(&sums) {
            *shift = (f64::from(*shift) + moments(sum).0) as f32;
        }
        sums = shifted_sums(x, &shift, s)?;
    }
    let mut found = Moments { mean: memory::reserved(s.c)?, var: memory::reserved(s.c)? };
    // y = (x - shift) * scale + bias: x - shift is exact or nearly so, whatever the mean.
    let mut affine = memory::reserved(s.c)?;
    for c in 0..s.c {
        let (offset, var) = moments(&sums[c]);
        let scale = f64::from(gamma[c]) / (var + eps).sqrt();
        affine.push([shift[c], scale as f32, (f64::from(beta[c]) - offset * scale) as f32]);
        found.mean.push((f64::from(shift[c]) + offset) as f32);
        found.var.push(var as f32);
    }
    apply(x, behind, &affine, y, s);
    Ok(found)
}

/// Normalises with given statistics.
pub(crate) fn batch_norm_inference(
    x: &[f32],
    [gamma, beta, mean, var]: [&[f32]; 4],
    behind: Behind,
    eps: f64,
    y: &mut [f32],
    s: &NormShape,
) -> Result<()> {
    let scale = |c: usize| (f64::from(gamma[c]) / (f64::from(var[c]) + eps).sqrt()) as f32;
    let affine = memory::collected((0..s.c).map(|c| [mean[c], scale(c), beta[c]]))?;
    apply(x, behind, &affine, y, s);
    Ok(())
}

/// y = (x - a) * b + c with [a, b, c] per channel, then what comes `behind`.
fn apply(x: &[f32], behind: Behind, affine: &[[f32; 3]], y: &mut [f32], s: &NormShape) {
    if s.is_empty() {
        return;
    }
    let piece = s.planes() * s.inner;
    y.par_chunks_mut(piece).zip(x.par_chunks(piece)).enumerate().each(|(i, (y, x))| {
        let mut channel = i * s.planes() % s.c;
        for (k, (y, x)) in y.chunks_exact_mut(s.inner).zip(x.chunks_exact(s.inner)).enumerate() {
            let [a, b, c] = affine[channel];
            let start = i * piece + k * s.inner;
            // Each case is a loop of its own, which becomes vector instructions.
            match behind {
                Behind::Nothing => {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = (x - a) * b + c;
                    }
                }
                Behind::Relu => {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = relu((x - a) * b + c);
                    }
                }
                Behind::AddRelu(r) => {
                    for ((y, x), r) in y.iter_mut().zip(x).zip(&r[start..start + s.inner]) {
                        *y = relu((x - a) * b + c + r);
                    }
                }
            }
            channel = if channel + 1 == s.c { 0 } else { channel + 1 };
        }
    });
}

/// NaN stays NaN.
#[inline(always)]
fn relu(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

/// 0 where ReLU gave y = 0, else dy: also where NaN went through.
#[inline(always)]
fn masked(dy: f32, y: f32) -> f32 {
    if y <= 0.0 { 0.0 } else { dy }
}

/// Sums of g, of g * (x - mean) and of x - mean per channel; g is dy, where `y` is given masked by it.
pub(crate) fn products(x: &[f32], dy: &[f32], y: Option<&[f32]>, mean: &[f32], s: &NormShape) -> Result<Vec<[f64; 3]>> {
    channel_sums(s, |range, sums| {
        // Without a mask dy is its own, which is never looked at.
        let (x, dy, y, relu) = (&x[range.clone()], &dy[range.clone()], &y.unwrap_or(dy)[range], y.is_some());
        if s.inner == 1 {
            for ((((sum, &x), &dy), &y), &mean) in sums.iter_mut().zip(x).zip(dy).zip(y).zip(mean) {
                let (d, g) = (f64::from(x - mean), f64::from(if relu { masked(dy, y) } else { dy }));
                *sum = [sum[0] + g, sum[1] + g * d, sum[2] + d];
            }
            return;
        }
        let planes = x.chunks_exact(s.inner).zip(dy.chunks_exact(s.inner)).zip(y.chunks_exact(s.inner));
        for ((((x, dy), y), sum), &mean) in planes.zip(sums).zip(mean) {
            if relu {
                lane_sums([x, dy, y], |[x, dy, y]| [masked(dy, y), masked(dy, y) * (x - mean), x - mean], sum);
            } else {
                lane_sums([x, dy], |[x, dy]| [dy, dy * (x - mean), x - mean], sum);
            }
        }
    })
}

/// dx = g * a + (x - mean) * b + c with [mean, a, b, c] per channel, and dr = g; g is dy, where `y` is given masked by it.
pub(crate) fn combine(x: &[f32], dy: &[f32], y: Option<&[f32]>, affine: &[[f32; 4]], [dx, dr]: [&mut [f32]; 2], s: &NormShape) {
    if s.is_empty() {
        return;
    }
    let piece = s.planes() * s.inner;
    let work = |i: usize, dx: &mut [f32], dr: &mut [f32]| {
        let mut channel = i * s.planes() % s.c;
        for (k, dx) in dx.chunks_exact_mut(s.inner).enumerate() {
            let plane = i * piece + k * s.inner..i * piece + (k + 1) * s.inner;
            let (x, dy) = (&x[plane.clone()], &dy[plane.clone()]);
            let [mean, a, b, c] = affine[channel];
            match y.map(|y| &y[plane]) {
                None => {
                    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                        *dx = dy * a + ((x - mean) * b + c);
                    }
                }
                Some(y) if dr.is_empty() => {
                    for (((dx, x), &dy), &y) in dx.iter_mut().zip(x).zip(dy).zip(y) {
                        *dx = masked(dy, y) * a + ((x - mean) * b + c);
                    }
                }
                Some(y) => {
                    let dr = &mut dr[k * s.inner..(k + 1) * s.inner];
                    for ((((dx, dr), x), &dy), &y) in dx.iter_mut().zip(dr).zip(x).zip(dy).zip(y) {
                        *dr = masked(dy, y);
                        *dx = *dr * a + ((x - mean) * b + c);
                    }
                }
            }
            channel = if channel + 1 == s.c { 0 } else { channel + 1 };
        }
    };
    if dr.is_empty() {
        dx.par_chunks_mut(piece).enumerate().each(|(i, dx)| work(i, dx, &mut []));
    } else {
        dx.par_chunks_mut(piece).zip(dr.par_chunks_mut(piece)).enumerate().each(|(i, (dx, dr))| work(i, dx, dr));
    }
}
