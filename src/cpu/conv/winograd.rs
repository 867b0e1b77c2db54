//! 3x3 convolutions of stride 1 by tiles: forward, and the gradient of the input, which is the same with the kernels rotated and transposed.

use super::ConvProblem;
use super::bilinear::{Bilinear, F2, Row3};
use super::tiles::{Filters, Grid, Place, filter_transform, input_transform, output_transform, xi_stride};
use crate::Result;
use crate::cpu::buffers::Buffer;
use crate::cpu::gemm::{Mat, MatMut, Threads, gemm};
use crate::cpu::memory;
use crate::cpu::parallel::Each;
use rayon::prelude::*;

/// The shape of the correlation behind the forward direction.
pub(super) fn forward_grid(s: &ConvProblem) -> Grid {
    let [top, left, ..] = s.padding;
    Grid {
        n: s.n,
        c: s.c,
        o: s.o,
        h: s.h,
        w: s.w,
        out_h: s.out_h(),
        out_w: s.out_w(),
        top,
        left,
        down: 0,
        across: 0,
        images: 0,
        band: 0,
    }
}

/// Planes of 3x3 with a border of one are a tile of their own.
pub(super) fn is_row3(s: &ConvProblem) -> bool {
    (s.h, s.w, s.padding) == (3, 3, [1; 4])
}

pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], s: &ConvProblem) -> Result<()> {
    let f = Filters { w, rows: s.c, lanes: s.o, row_step: 9, lane_step: 9 * s.c, flip: false };
    run(x, f, bias, y, forward_grid(s), is_row3(s))
}

pub fn backward_data(dy: &[f32], w: &[f32], dx: &mut [f32], s: &ConvProblem) -> Result<()> {
    let f = Filters { w, rows: s.o, lanes: s.c, row_step: 9 * s.c, lane_step: 9, flip: true };
    let [top, left, ..] = s.padding;
    let g = Grid {
        n: s.n,
        c: s.o,
        o: s.c,
        h: s.out_h(),
        w: s.out_w(),
        out_h: s.h,
        out_w: s.w,
        top: 2 - top,
        left: 2 - left,
        down: 0,
        across: 0,
        images: 0,
        band: 0,
    };
    run(dy, f, None, dx, g, is_row3(s))
}

fn run(x: &[f32], f: Filters, bias: Option<&[f32]>, y: &mut [f32], g: Grid, row3: bool) -> Result<()> {
    if row3 {
        correlate::<Row3, 3, 5, 3>(x, f, bias, y, Grid { top: 0, left: 0, ..g }.with_pieces(3, piece_tiles(&g)))
    } else {
        correlate::<F2, 4, 4, 2>(x, f, bias, y, g.with_pieces(2, piece_tiles(&g)))
    }
}

/// Tiles per piece. With few channels a piece's matrices should fit the inner cache; with many, each transformed kernel should be used often once it is there.
pub(super) fn piece_tiles(g: &Grid) -> usize {
    match g.c + g.o {
        0..=128 => 72,
        129..=512 => 144,
        _ => 256,
    }
}

/// All kernels transformed: one matrix (rows, lanes rounded up) per xi, `xi_stride` apart.
fn transform_filters<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    f: Filters,
    lanes: usize,
    u: &mut [f32],
) {
    const ROWS: usize = 16;
    let stride = xi_stride(f.rows, lanes);
    // Task i gets rows i * ROWS.. of every xi.
    let mut tasks: Vec<Vec<&mut [f32]>> = (0..f.rows.div_ceil(ROWS)).map(|_| Vec::with_capacity(MUL * MUL)).collect();
    for matrix in u.chunks_exact_mut(stride) {
        for (task, rows) in tasks.iter_mut().zip(matrix[..f.rows * lanes].chunks_mut(ROWS * lanes)) {
            task.push(rows);
        }
    }
    tasks.par_iter_mut().enumerate().each(|(i, u)| filter_transform::<A, IN, MUL, OUT>(f, i * ROWS, u));
}

fn correlate<A: Bilinear<IN, MUL, OUT>, const IN: usize, const MUL: usize, const OUT: usize>(
    x: &[f32],
    f: Filters,
    bias: Option<&[f32]>,
    y: &mut [f32],
    g: Grid,
) -> Result<()> {
    let (cp, op, products) = (g.cp(), g.op(), MUL * MUL);
    let u_stride = xi_stride(g.c, op);
    let mut u = Buffer::<f32>::stale(products * u_stride)?;
    transform_filters::<A, IN, MUL, OUT>(f, op, &mut u);
    let u = &u[..];
    let (x_len, y_len) = (g.c * g.h * g.w, g.o * g.out_h * g.out_w);
    let (v_stride, m_stride) = (xi_stride(g.tiles(), cp), xi_stride(g.tiles(), op));
    let alone = g.n <= g.images;
    y.par_chunks_mut(g.images * y_len).enumerate().try_each(|(group, y)| {
        let x = &x[group * g.images * x_len..];
        let count = y.len() / y_len;
        let mut v = Buffer::<f32>::stale(products * v_stride)?;
        let mut m = Buffer::<f32>::stale(products * m_stride)?;
        let mut patch = memory::reserved(g.patch_len(IN, OUT))?;
        for band in 0..g.bands() {
            let (row0, rows) = g.band_rows(band);
            let per_image = rows * g.across;
            let place = |i: usize, stride: usize| Place { row0, rows, t0: i * per_image, stride };
            for (i, x) in x.chunks_exact(x_len).take(count).enumerate() {
                input_transform::<A, IN, MUL, OUT>(&g, x, place(i, v_stride), &mut patch, &mut v);
            }
            let product = |xi: usize, m: &mut [f32]| {
                let (v, u) = (Mat::row_major(&v[xi * v_stride..], cp), Mat::row_major(&u[xi * u_stride..], op));
                gemm(count * per_image, g.o, g.c, 1.0, v, u, 0.0, MatMut::row_major(m, op), Threads::One);
            };
            // With a single group the products are what can be shared out.
            if alone {
                m.par_chunks_exact_mut(m_stride).enumerate().each(|(xi, m)| product(xi, m));
            } else {
                m.chunks_exact_mut(m_stride).enumerate().for_each(|(xi, m)| product(xi, m));
            }
            for (i, y) in y.chunks_exact_mut(y_len).enumerate() {
                output_transform::<A, IN, MUL, OUT>(&g, &m, place(i, m_stride), bias, &mut patch, y);
            }
        }
        Ok(())
    })
}
