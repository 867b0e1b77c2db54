//! Convolution as a matrix product over unrolled patches.
//!
//! A chunk of a few images is unrolled into a matrix `col` of (c / groups * kh * kw) rows and (images * output pixels) columns that stays in the cache, and one
//! product per group does the arithmetic. Chunks depend on the shape only, so results do not depend on the number of threads.

use super::ConvProblem;
use crate::Result;
use crate::cpu::buffers::Buffer;
use crate::cpu::gemm::{Mat, MatMut, Threads, gemm};
use crate::cpu::parallel::Each;
use rayon::prelude::*;

/// Enough columns for the product to run at full speed.
const COLUMNS: usize = 256;
/// Upper bound of the unrolled chunk in elements (4 MiB), unless a single image needs more.
const CHUNK: usize = 1 << 20;
/// Rows of the unrolled matrix should hold whole vectors: the product then reads them in place.
const VECTOR: usize = 16;

/// The sizes that all three directions share.
struct Plan {
    /// Output pixels of one image.
    p: usize,
    /// Rows of the unrolled matrix, per group.
    k: usize,
    cg: usize,
    og: usize,
    /// Images per chunk.
    images: usize,
    /// The image itself is the unrolled matrix.
    pointwise: bool,
}

impl Plan {
    fn new(s: &ConvProblem) -> Self {
        let p = s.out_h() * s.out_w();
        let cg = s.c / s.groups;
        let k = cg * s.kernel[0] * s.kernel[1];
        let whole = VECTOR >> p.trailing_zeros().min(VECTOR.trailing_zeros());
        let wanted = COLUMNS.div_ceil(p);
        let wanted = if wanted > 1 { wanted.next_multiple_of(whole) } else { 1 };
        let images = wanted.min((CHUNK / (k * p)).max(1)).min(s.n);
        let pointwise = s.kernel == [1, 1] && s.stride == [1, 1] && s.padding == [0; 4];
        Self { p, k, cg, og: s.o / s.groups, images, pointwise }
    }
}

/// Where a row of outputs reads, along one axis: the outputs `lo..hi` lie inside and start at input index `first`.
#[derive(Clone, Copy)]
struct Span {
    lo: usize,
    hi: usize,
    first: usize,
}

/// For a tap at offset `tap` (already dilated), the outputs whose input index `out * stride + tap - pad` lies in `0..size`.
fn span(tap: usize, pad: usize, stride: usize, size: usize, out: usize) -> Span {
    let lo = pad.saturating_sub(tap).div_ceil(stride).min(out);
    let hi = (size + pad).saturating_sub(tap).div_ceil(stride).clamp(lo, out);
    Span { lo, hi, first: (lo * stride + tap).saturating_sub(pad) }
}

/// Unrolls the channels `x` (cg, h, w) of one image into the columns `at..at + p` of `col`, whose rows are `ld` long.
fn unroll(x: &[f32], s: &ConvProblem, col: &mut [f32], ld: usize, at: usize) {
    crate::cpu::simd::vectorized(|| unroll_rows(x, s, col, ld, at))
}

#[inline(always)]
fn unroll_rows(x: &[f32], s: &ConvProblem, col: &mut [f32], ld: usize, at: usize) {
    let (oh, ow) = (s.out_h(), s.out_w());
    let taps = s.kernel[0] * s.kernel[1];
    for (row, line) in col.chunks_mut(ld).enumerate() {
        let line = &mut line[at..at + oh * ow];
        let plane = &x[row / taps * s.h * s.w..][..s.h * s.w];
        let (i, j) = (row % taps / s.kernel[1], row % s.kernel[1]);
        let v = span(i * s.dilation[0], s.padding[0], s.stride[0], s.h, oh);
        let u = span(j * s.dilation[1], s.padding[1], s.stride[1], s.w, ow);
        line[..v.lo * ow].fill(0.0);
        line[v.hi * ow..].fill(0.0);
        let line = &mut line[v.lo * ow..v.hi * ow];
        if u.lo > 0 || u.hi < ow {
            for out in line.chunks_exact_mut(ow) {
                out[..u.lo].fill(0.0);
                out[u.hi..].fill(0.0);
            }
        }
        if line.is_empty() || u.lo == u.hi {
            continue;
        }
        let from = &plane[v.first * s.w + u.first..];
        let rows = Rows { len: u.hi - u.lo, count: v.hi - v.lo, to: ow, from: s.stride[0] * s.w };
        copy_rows(from, &mut line[u.lo..], rows, s.stride[1]);
    }
}

/// `count` runs of `len` elements, `to` and `from` elements apart on either side.
#[derive(Clone, Copy)]
struct Rows {
    len: usize,
    count: usize,
    to: usize,
    from: usize,
}

/// Short rows are the rule in the deep layers, and a call of memcpy for each takes longer than the copy: lengths up to 16 have code of their own.
#[inline(always)]
fn copy_rows(from: &[f32], to: &mut [f32], rows: Rows, step: usize) {
    macro_rules! by_length {
        ($($len:literal)*) => {
            match (rows.len, step) {
                $(($len, 1) => copy_short::<$len, 1>(from, to, rows),
                  ($len, 2) => copy_short::<$len, 2>(from, to, rows),)*
                _ => copy_long(from, to, rows, step),
            }
        };
    }
    by_length!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
}

#[inline(always)]
fn copy_short<const LEN: usize, const STEP: usize>(from: &[f32], to: &mut [f32], rows: Rows) {
    for i in 0..rows.count {
        let Some(out) = to[i * rows.to..].first_chunk_mut::<LEN>() else { return };
        let source = &from[i * rows.from..][..(LEN - 1) * STEP + 1];
        for l in 0..LEN {
            out[l] = source[l * STEP];
        }
    }
}

#[inline(always)]
fn copy_long(from: &[f32], to: &mut [f32], rows: Rows, step: usize) {
    for i in 0..rows.count {
        let out = &mut to[i * rows.to..][..rows.len];
        let source = &from[i * rows.from..][..(rows.len - 1) * step + 1];
        match step {
            1 => out.copy_from_slice(source),
            2 => {
                // Whole pairs first, so that the loop vectorizes.
                let (pairs, last) = source.as_chunks::<2>();
                out.iter_mut().zip(pairs).for_each(|(o, pair)| *o = pair[0]);
                out[rows.len - 1] = last[0];
            }
            _ => out.iter_mut().zip(source.iter().step_by(step)).for_each(|(o, v)| *o = *v),
        }
    }
}

/// The adjoint of [`unroll`]: adds the columns to the channels `dx` of one image.
fn roll_add(col: &[f32], ld: usize, at: usize, s: &ConvProblem, dx: &mut [f32]) {
    crate::cpu::simd::vectorized(|| roll_add_rows(col, ld, at, s, dx))
}

#[inline(always)]
fn roll_add_rows(col: &[f32], ld: usize, at: usize, s: &ConvProblem, dx: &mut [f32]) {
    let (oh, ow) = (s.out_h(), s.out_w());
    let taps = s.kernel[0] * s.kernel[1];
    for (row, line) in col.chunks(ld).enumerate() {
        let line = &line[at..at + oh * ow];
        let plane = &mut dx[row / taps * s.h * s.w..][..s.h * s.w];
        let (i, j) = (row % taps / s.kernel[1], row % s.kernel[1]);
        let v = span(i * s.dilation[0], s.padding[0], s.stride[0], s.h, oh);
        let u = span(j * s.dilation[1], s.padding[1], s.stride[1], s.w, ow);
        if v.lo == v.hi || u.lo == u.hi {
            continue;
        }
        let rows = Rows { len: u.hi - u.lo, count: v.hi - v.lo, to: s.stride[0] * s.w, from: ow };
        add_rows(&line[v.lo * ow + u.lo..], &mut plane[v.first * s.w + u.first..], rows, s.stride[1]);
    }
}

/// As [`copy_rows`], but adds, and the step is on the other side.
#[inline(always)]
fn add_rows(from: &[f32], to: &mut [f32], rows: Rows, step: usize) {
    macro_rules! by_length {
        ($($len:literal)*) => {
            match (rows.len, step) {
                $(($len, 1) => add_short::<$len, 1>(from, to, rows),
                  ($len, 2) => add_short::<$len, 2>(from, to, rows),)*
                _ => add_long(from, to, rows, step),
            }
        };
    }
    by_length!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
}

#[inline(always)]
fn add_short<const LEN: usize, const STEP: usize>(from: &[f32], to: &mut [f32], rows: Rows) {
    for i in 0..rows.count {
        let Some(source) = from[i * rows.from..].first_chunk::<LEN>() else { return };
        let out = &mut to[i * rows.to..][..(LEN - 1) * STEP + 1];
        for l in 0..LEN {
            out[l * STEP] += source[l];
        }
    }
}

#[inline(always)]
fn add_long(from: &[f32], to: &mut [f32], rows: Rows, step: usize) {
    for i in 0..rows.count {
        let source = &from[i * rows.from..][..rows.len];
        let out = &mut to[i * rows.to..][..(rows.len - 1) * step + 1];
        match step {
            1 => out.iter_mut().zip(source).for_each(|(o, v)| *o += v),
            _ => out.iter_mut().step_by(step).zip(source).for_each(|(o, v)| *o += v),
        }
    }
}

/// One chunk with few images must not leave the other threads idle: its products are then split. The result is the same.
fn inner_threads(chunks: usize) -> Threads {
    if chunks == 1 { Threads::Pool } else { Threads::One }
}

pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], s: &ConvProblem) -> Result<()> {
    let plan = Plan::new(s);
    let Plan { p, k, cg, og, images, pointwise } = plan;
    let image_len = s.c * s.h * s.w;
    let threads = inner_threads(s.n.div_ceil(images));
    y.par_chunks_mut(images * s.o * p).enumerate().try_each(|(chunk, y)| {
        let count = y.len() / (s.o * p);
        let x = &x[chunk * images * image_len..][..count * image_len];
        let ld = count * p;
        // A single image needs neither unrolling (if pointwise) nor a second copy of the result.
        let direct = count == 1;
        let mut col = Buffer::<f32>::stale(if direct && pointwise { 0 } else { k * ld })?;
        let mut out = Buffer::<f32>::stale(if direct { 0 } else { og * ld })?;
        for g in 0..s.groups {
            let weights = Mat::row_major(&w[g * og * k..], k);
            let channels = |i: usize| &x[i * image_len + g * cg * s.h * s.w..][..cg * s.h * s.w];
            if !(direct && pointwise) {
                for i in 0..count {
                    unroll(channels(i), s, &mut col, ld, i * p);
                }
            }
            if direct {
                let patches = if pointwise { channels(0) } else { &col };
                gemm(
                    og,
                    p,
                    k,
                    1.0,
                    weights,
                    Mat::row_major(patches, p),
                    0.0,
                    MatMut::row_major(&mut y[g * og * p..], p),
                    threads,
                );
                if let Some(bias) = bias {
                    for (line, &b) in y[g * og * p..].chunks_exact_mut(p).zip(&bias[g * og..(g + 1) * og]) {
                        line.iter_mut().for_each(|v| *v += b);
                    }
                }
                continue;
            }
            gemm(og, ld, k, 1.0, weights, Mat::row_major(&col, ld), 0.0, MatMut::row_major(&mut out, ld), threads);
            for (i, y) in y.chunks_exact_mut(s.o * p).enumerate() {
                for (o, line) in y[g * og * p..(g + 1) * og * p].chunks_exact_mut(p).enumerate() {
                    let from = &out[o * ld + i * p..][..p];
                    match bias {
                        Some(bias) => line.iter_mut().zip(from).for_each(|(v, f)| *v = f + bias[g * og + o]),
                        None => line.copy_from_slice(from),
                    }
                }
            }
        }
        Ok(())
    })
}

/// Gathers the group's rows of dy of `count` images into (og, count * p).
fn gather_dy(dy: &[f32], out: &mut [f32], o_all: usize, first: usize, p: usize, ld: usize) {
    for (o, line) in out.chunks_exact_mut(ld).enumerate() {
        for (i, part) in line.chunks_exact_mut(p).enumerate() {
            part.copy_from_slice(&dy[(i * o_all + first + o) * p..][..p]);
        }
    }
}

pub fn backward_data(dy: &[f32], w: &[f32], dx: &mut [f32], s: &ConvProblem) -> Result<()> {
    let plan = Plan::new(s);
    let Plan { p, k, cg, og, images, pointwise } = plan;
    let image_len = s.c * s.h * s.w;
    let threads = inner_threads(s.n.div_ceil(images));
    dx.par_chunks_mut(images * image_len).enumerate().try_each(|(chunk, dx)| {
        let count = dx.len() / image_len;
        let dy = &dy[chunk * images * s.o * p..][..count * s.o * p];
        let ld = count * p;
        let direct = count == 1;
        let mut col = Buffer::<f32>::stale(if direct && pointwise { 0 } else { k * ld })?;
        let mut rows = Buffer::<f32>::stale(if direct { 0 } else { og * ld })?;
        if !pointwise {
            dx.fill(0.0);
        }
        for g in 0..s.groups {
            let weights = Mat::row_major(&w[g * og * k..], k).t();
            let rows: &[f32] = if direct {
                &dy[g * og * p..]
            } else {
                gather_dy(dy, &mut rows, s.o, g * og, p, ld);
                &rows
            };
            let plane = cg * s.h * s.w;
            if direct && pointwise {
                gemm(k, p, og, 1.0, weights, Mat::row_major(rows, ld), 0.0, MatMut::row_major(&mut dx[g * plane..], p), threads);
                continue;
            }
            gemm(k, ld, og, 1.0, weights, Mat::row_major(rows, ld), 0.0, MatMut::row_major(&mut col, ld), threads);
            for (i, dx) in dx.chunks_exact_mut(image_len).enumerate() {
                let dx = &mut dx[g * plane..(g + 1) * plane];
                if pointwise {
                    for (line, from) in dx.chunks_exact_mut(p).zip(col.chunks_exact(ld)) {
                        line.copy_from_slice(&from[i * p..(i + 1) * p]);
                    }
                } else {
                    roll_add(&col, ld, i * p, s, dx);
                }
            }
        }
        Ok(())
    })
}

/// Partial sums of the weight gradient: at most this many, so that their memory and the final addition stay small.
const PARTS: usize = 8;
/// Elements of all partial sums together (32 MiB); large weights get fewer parts.
const PARTS_LEN: usize = 1 << 23;

pub fn backward_weight(x: &[f32], dy: &[f32], dw: &mut [f32], s: &ConvProblem) -> Result<()> {
    let plan = Plan::new(s);
    let Plan { p, k, cg, og, images, .. } = plan;
    let image_len = s.c * s.h * s.w;
    let chunks = s.n.div_ceil(images);
    let parts = PARTS.min((PARTS_LEN / dw.len()).max(2)).min(chunks);
    let chunks_per_part = chunks.div_ceil(parts);
    let parts = chunks.div_ceil(chunks_per_part);
    let threads = inner_threads(parts);
    let w_len = dw.len();
    // The product repacks the operand along the contiguous side of its result, so that should be the smaller one: sums are kept as (k, og) per group.
    let mut sums = Buffer::<f32>::stale(parts * w_len)?;
    sums.par_chunks_mut(w_len).enumerate().try_each(|(part, sum)| -> Result<()> {
        let mut col = Buffer::<f32>::stale(k * images * p)?;
        let mut rows = Buffer::<f32>::stale(if images == 1 { 0 } else { og * images * p })?;
        for chunk in part * chunks_per_part..((part + 1) * chunks_per_part).min(chunks) {
            let first = chunk * images;
            let count = images.min(s.n - first);
            let ld = count * p;
            let x = &x[first * image_len..][..count * image_len];
            let dy = &dy[first * s.o * p..][..count * s.o * p];
            let beta = if chunk == part * chunks_per_part { 0.0 } else { 1.0 };
            for g in 0..s.groups {
                for i in 0..count {
                    unroll(&x[i * image_len + g * cg * s.h * s.w..][..cg * s.h * s.w], s, &mut col[..k * ld], ld, i * p);
                }
                let rows: &[f32] = if count == 1 {
                    &dy[g * og * p..]
                } else {
                    gather_dy(dy, &mut rows[..og * ld], s.o, g * og, p, ld);
                    &rows
                };
                let sum = MatMut::row_major(&mut sum[g * og * k..(g + 1) * og * k], og);
                gemm(k, og, ld, 1.0, Mat::row_major(&col[..k * ld], ld), Mat::row_major(rows, ld).t(), beta, sum, threads);
            }
        }
        Ok(())
    })?;
    let (total, others) = sums.split_at_mut(w_len);
    const PIECE: usize = 1 << 12;
    total.par_chunks_mut(PIECE).enumerate().each(|(piece, total)| {
        for other in others.chunks_exact(w_len) {
            total.iter_mut().zip(&other[piece * PIECE..]).for_each(|(t, v)| *t += v);
        }
    });
    // Back to (og, k), eight filters at a time so that each line of the sums is used whole.
    const FILTERS: usize = 8;
    let total = &*total;
    dw.par_chunks_mut(og * k).zip(total.par_chunks(og * k)).each(|(dw, total)| {
        dw.par_chunks_mut(FILTERS * k).enumerate().each(|(block, dw)| {
            for (j, line) in total.chunks_exact(og).enumerate() {
                for (o, dw) in dw.chunks_exact_mut(k).enumerate() {
                    dw[j] = line[block * FILTERS + o];
                }
            }
        });
    });
    Ok(())
}
