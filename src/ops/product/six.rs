//! Matrix products of f32 by wgmma in f32's accuracy: launches of `kernels/matmul_six.cu`.

use super::{Product, mma::lines, sum_parts, wgmma::Matrices};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Launch, Swizzle, TensorMap},
    ops::{
        mma,
        six::{self, DEPTH, PLANES, Work},
        wgmma::Span,
    },
    shape::numel,
};

/// The `Product` of `matmul_six.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    extents: [i32; 3],
    steps: i32,
    chunk: i32,
    parts: i32,
    outer: i32,
    inner: i32,
    tiles: [i32; 2],
    all: i32,
    sizes: [i32; 2],
    lines: [i32; 2],
}

impl Matrices {
    /// The map of planes of `stride` elements, whose boxes are a step of k of all three and, K-major, `tall` rows.
    fn planes(&self, along: usize, k: usize, tall: usize, stride: usize) -> TensorMap {
        let (extent, tile, swizzle) = if self.lines.k_major {
            ([k, along, self.count, PLANES], [DEPTH, tall, 1, PLANES], Swizzle::Span64)
        } else {
            ([along, k, self.count, PLANES], [64, DEPTH, 1, PLANES], Swizzle::Span128)
        };
        // The distance to a second matrix, where there is none, is never used.
        let size = if self.count > 1 { self.size } else { self.lines.stride };
        TensorMap::tiled(&extent, &[self.lines.stride, size, stride], &tile).swizzle(swizzle)
    }
}

impl Product {
    /// Computes `y` in f32 by wgmma, or answers false where another kernel has to.
    pub(super) fn on_six(&self, op: &'static str, y: &Array, a: &Array, b: &Array, bias: Option<&Array>) -> Result<bool> {
        let (Some(of_a), Some(of_b)) = (lines(self.a.rows, self.a.cols), lines(self.b.cols, self.b.rows)) else {
            return Ok(false);
        };
        let [outer, inner] = [numel(&self.outer), numel(&self.inner)];
        if !six::takes(y)? || inner == 0 || self.k == 0 {
            return Ok(false);
        }
        let batches = [&self.outer[..], &self.inner[..]];
        let matrices = |v, lines| Matrices::new(v, lines, batches, DType::BF16);
        let (Some(of_a), Some(of_b)) = (matrices(&self.a, of_a), matrices(&self.b, of_b)) else { return Ok(false) };
        let steps = self.k.div_ceil(DEPTH);
        let spans = [Span { m: self.m, n: self.n, steps: steps * inner }];
        let multiplications = [self.m, self.n, self.k, outer, inner].iter().fold(1usize, |p, &v| p.saturating_mul(v));
        let other = mma::Work { m: self.m, n: self.n, k: self.k, batch: outer, width: 16 };
        let work = Work {
            spans: &spans,
            batch: outer,
            multiplications,
            // Parts are of one product's k.
            split: inner == 1,
            elements: a.len() + b.len(),
            other: mma::time(y, other)?.map(|time| time * inner as f64),
        };
        let Some(plan) = six::plan(y, six::PRODUCT, &work)? else { return Ok(false) };
        let (planes_a, planes_b) = (six::split(a)?, six::split(b)?);
        let tiles = [self.m.div_ceil(plan.tile.rows()), self.n.div_ceil(plan.tile.columns())];
        let all = tiles[0] * tiles[1] * plan.parts * outer;
        let int = |v: usize| v as i32;
        let sizes = Sizes {
            extents: [self.m, self.n, self.k].map(int),
            steps: int(steps),
            chunk: int(if inner == 1 { plan.chunk } else { steps }),
            parts: int(plan.parts),
            outer: int(outer),
            inner: int(inner),
            tiles: tiles.map(int),
            all: int(all),
            sizes: [of_a.size, of_b.size].map(int),
            lines: [of_a.lines.stride, of_b.lines.stride].map(int),
        };
        let sums = || Array::uninit(&[plan.parts, y.len()], DType::F32, Layout::RowMajor, &y.context());
        let sums = (plan.parts > 1).then(sums).transpose()?;
        let define = plan.defines(&[("A_K", of_a.lines.k_major.into()), ("B_K", of_b.lines.k_major.into())]);
        let define = if sums.is_some() { define } else { self.with_activation(define) };
        let map = |m: &Matrices, along, tall, planes: &Array| m.planes(along, self.k, tall, planes.len() / PLANES);
        Launch::new(y, "matmul_six.cu", "matmul_six", &define)?
            .tensor(&planes_a, &map(&of_a, self.m, 64, &planes_a))
            .tensor(&planes_b, &map(&of_b, self.n, plan.tile.columns(), &planes_b))
            .array(a)
            .array(b)
            .array(y)
            .optional(sums.as_ref())
            .optional(bias.filter(|_| sums.is_none()))
            .value(sizes)
            .value(of_a.index(op, &self.a, &self.outer)?)
            .value(of_b.index(op, &self.b, &self.outer)?)
            .value(of_a.index(op, &self.a, &self.inner)?)
            .value(of_b.index(op, &self.b, &self.inner)?)
            .run(plan.grid(all), plan.threads(), plan.shared())?;
        let define = self.with_activation(vec![("scalar_t", DType::F32.into())]);
        sums.map_or(Ok(()), |sums| sum_parts(y, &sums, bias, plan.parts, self.n, "sum_parts.cu", &define))?;
        Ok(true)
    }
}
