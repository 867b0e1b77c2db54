//! Matrix products by wgmma: launches of `kernels/matmul_wgmma.cu`.

use super::{
    Product, View,
    mma::{Lines, lines},
    sum_parts,
};
use crate::{
    Array, DType, Layout, Result,
    cuda::{Dims, Launch, TensorMap},
    ops::{
        UnaryKind,
        wgmma::{self, Plan, Span, Tile, Work},
    },
    shape::numel,
};

/// The `Product` of `matmul_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sizes {
    extents: [i32; 2],
    steps: i32,
    chunk: i32,
    parts: i32,
    outer: i32,
    inner: i32,
    /// By clusters.
    tiles: [i32; 2],
    all: i32,
}

/// An operand as matrices of one size, `size` elements from one to the next.
pub(super) struct Matrices {
    pub(super) lines: Lines,
    pub(super) size: usize,
    pub(super) count: usize,
}

impl Matrices {
    /// `along` rows (of a) or columns (of b) and `k` steps, in the batches `outer` and `inner`. `None` where the matrices of a batch
    /// do not lie one after the other, or at places that the copy engine does not read.
    pub(super) fn new(v: &View, lines: Lines, [outer, inner]: [&[usize]; 2], dtype: DType) -> Option<Self> {
        let axes = || v.batch.iter().zip(outer).chain(v.batch.iter().zip(inner)).filter(|(s, e)| **s > 0 && **e > 1);
        let size = axes().map(|(s, _)| *s).min().unwrap_or(0);
        let whole = axes().all(|(s, _)| s.is_multiple_of(size)) && wgmma::aligned(dtype, &[lines.stride, size]);
        let count = 1 + axes().map(|(s, e)| (e - 1) * s / size).sum::<usize>();
        whole.then_some(Matrices { lines, size, count })
    }

    /// The map whose boxes are a step of k and, K-major, `tall` of its rows.
    fn map(&self, along: usize, k: usize, tall: usize, dtype: DType) -> TensorMap {
        let Lines { k_major, stride } = self.lines;
        let (extent, tile) =
            if k_major { ([k, along, self.count], [128 / dtype.size(), tall, 1]) } else { ([along, k, self.count], [64, 64, 1]) };
        // The distance to a second matrix, where there is none, is never used.
        let size = if self.count > 1 { self.size } else { stride };
        wgmma::swizzled(TensorMap::tiled(&extent, &[stride, size], &tile), dtype)
    }

    /// A batch, counted in matrices.
    pub(super) fn index(&self, op: &'static str, v: &View, extents: &[usize]) -> Result<Dims> {
        Dims::new(op, extents, &v.batch.iter().map(|s| s / self.size.max(1)).collect::<Vec<_>>())
    }
}

impl Product {
    /// Computes `y` by wgmma, or answers false where another kernel has to.
    pub(super) fn on_warpgroups(&self, op: &'static str, y: &Array, a: &Array, b: &Array, bias: Option<&Array>) -> Result<bool> {
        let (Some(of_a), Some(of_b)) = (lines(self.a.rows, self.a.cols), lines(self.b.cols, self.b.rows)) else {
            return Ok(false);
        };
        let (dtype, [outer, inner]) = (y.dtype(), [numel(&self.outer), numel(&self.inner)]);
        let transposed = !of_a.k_major || !of_b.k_major;
        if !wgmma::takes(y)? || (dtype == DType::F32 && transposed) || inner == 0 || self.k == 0 {
            return Ok(false);
        }
        let batches = [&self.outer[..], &self.inner[..]];
        let (Some(of_a), Some(of_b)) =
            (Matrices::new(&self.a, of_a, batches, dtype), Matrices::new(&self.b, of_b, batches, dtype))
        else {
            return Ok(false);
        };
        let steps = wgmma::steps(dtype, self.k);
        let spans = [Span { m: self.m, n: self.n, steps: steps * inner }];
        let multiplications = [self.m, self.n, self.k, outer, inner].iter().fold(1usize, |p, &v| p.saturating_mul(v));
        // Parts are of one product's k.
        let work = Work { spans: &spans, batch: outer, multiplications, split: inner == 1, products: 1.0 };
        let Some(plan) = wgmma::plan(y, Tile::PRODUCT, &work)? else { return Ok(false) };
        let launch = |y: &Array, plan: &Plan| -> Result<()> {
            let mut plan = *plan;
            if self.activation == Some(UnaryKind::Sigmoid) && plan.parts == 1 && plan.tile.rows() > 64 {
                // Two blocks would leave it too few registers beside the sums.
                plan.resident = 1;
            }
            let chunk = if inner == 1 { plan.chunk } else { steps };
            let tiles = [self.m.div_ceil(plan.tile.height()), self.n.div_ceil(plan.tile.columns())];
            let all = tiles[0] * tiles[1] * plan.parts * outer;
            let int = |v: usize| v as i32;
            let sizes = Sizes {
                extents: [self.m, self.n].map(int),
                steps: int(steps),
                chunk: int(chunk),
                parts: int(plan.parts),
                outer: int(outer),
                inner: int(inner),
                tiles: tiles.map(int),
                all: int(all),
            };
            let sums = || Array::uninit(&[plan.parts, y.len()], DType::F32, Layout::RowMajor, &y.context());
            let sums = (plan.parts > 1).then(sums).transpose()?;
            let define = plan.defines(dtype, &[("A_K", of_a.lines.k_major.into()), ("B_K", of_b.lines.k_major.into())]);
            let define = if sums.is_some() { define } else { self.with_activation(define) };
            Launch::new(y, "matmul_wgmma.cu", "matmul_wgmma", &define)?
                .tensor(a, &of_a.map(self.m, self.k, plan.tile.rows(), dtype))
                .tensor(b, &of_b.map(self.n, self.k, plan.tile.loads(), dtype))
                .array(y)
                .optional(sums.as_ref())
                .optional(bias.filter(|_| sums.is_none()))
                .value(sizes)
                .value(of_a.index(op, &self.a, &self.outer)?)
                .value(of_b.index(op, &self.b, &self.outer)?)
                .value(of_a.index(op, &self.a, &self.inner)?)
                .value(of_b.index(op, &self.b, &self.inner)?)
                .run(plan.grid(all), plan.threads(), plan.shared())?;
            let define = self.with_activation(vec![("scalar_t", dtype.into())]);
            sums.map_or(Ok(()), |sums| sum_parts(y, &sums, bias, plan.parts, self.n, "sum_parts.cu", &define))
        };
        let flag = usize::from;
        let operand = |m: &Matrices| [flag(m.lines.k_major), m.lines.stride, m.size];
        let ([a0, a1, a2], [b0, b1, b2]) = (operand(&of_a), operand(&of_b));
        let shape =
            [self.m, self.n, self.k, outer, inner, flag(bias.is_some()), flag(self.activation.is_some()), a0, a1, a2, b0, b1, b2];
        let scratch = |p: &Plan| launch(&y.uninit_like()?, p);
        let plan = wgmma::tuned(y, (Tile::PRODUCT, &work), ("matmul_wgmma", &shape), plan, &scratch)?;
        launch(y, &plan)?;
        Ok(true)
    }
}
