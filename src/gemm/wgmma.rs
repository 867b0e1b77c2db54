//! GEMM by wgmma: launches of `kernels/matmul_wgmma.cu`.

use super::{
    GemmCall,
    model::{
        wgmma::{GemmShape, GroupedGemm, WgmmaPlan, plans, steps},
        wgmma_tile::WgmmaTile,
    },
    operand::{Matrices, lines},
    select::{Algorithm, Rank},
    split_k::{split_k_reduce, workspace},
};
use crate::{Array, DType, Result, cuda::Launch, ops::UnaryKind};

/// The `Product` of `matmul_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct WgmmaGemmParams {
    m: i32,
    n: i32,
    /// Steps of the main loop, and those of a split.
    steps: i32,
    steps_per_split: i32,
    splits: i32,
    outer: i32,
    inner: i32,
    /// Tiles of clusters along M and N, and of all splits and batches.
    tiles_m: i32,
    tiles_n: i32,
    tiles: i32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Wgmma;

/// The operands as matrices that TMA reads; `None` where it cannot.
pub(super) fn matrices(call: &GemmCall, read_as: DType) -> Option<[Matrices; 2]> {
    let g = call.gemm;
    let batches = [&g.outer[..], &g.inner[..]];
    let (a, b) = (lines(g.a.rows, g.a.cols)?, lines(g.b.cols, g.b.rows)?);
    if call.batches()[1] == 0 || g.k == 0 {
        return None;
    }
    Some([Matrices::new(&g.a, a, batches, read_as)?, Matrices::new(&g.b, b, batches, read_as)?])
}

impl Wgmma {
    fn matrices(call: &GemmCall) -> Option<[Matrices; 2]> {
        let of = matrices(call, call.dtype()).filter(|_| call.arch.wgmma_multiplies(call.dtype(), call.precision))?;
        // wgmma transposes 16-bit operands only.
        (call.dtype() != DType::F32 || of.iter().all(|m| m.lines.k_major)).then_some(of)
    }

    /// Gives `f` the GEMM as a group of one.
    fn group<T>(call: &GemmCall, f: impl FnOnce(&GroupedGemm) -> T) -> T {
        let (g, [outer, inner]) = (call.gemm, call.batches());
        let shapes = [GemmShape { m: g.m, n: g.n, k_steps: steps(call.dtype(), g.k) * inner }];
        // A split is of one product's k.
        f(&GroupedGemm { shapes: &shapes, batch: outer, macs: call.macs(), can_split_k: inner == 1, products: 1.0 })
    }
}

impl Algorithm for Wgmma {
    type Call<'a> = GemmCall<'a>;
    type Output = Array;
    type Plan = WgmmaPlan;
    const NAME: &'static str = "wgmma";

    fn supports(call: &GemmCall) -> Result<Option<Rank>> {
        Ok(Self::matrices(call).map(|_| Rank::Wgmma))
    }

    fn plans(call: &GemmCall, offer: &mut dyn FnMut(f64, WgmmaPlan)) -> Result<()> {
        Self::group(call, |group| plans(call.arch.num_sms, call.dtype().size(), WgmmaTile::GEMM, group, offer));
        Ok(())
    }

    fn numbers(plan: &WgmmaPlan) -> [u32; 4] {
        plan.numbers()
    }

    #[cfg(test)]
    fn forced(call: &GemmCall, force: &crate::testing::Force) -> Result<Option<WgmmaPlan>> {
        Ok(Some(Self::group(call, |group| WgmmaPlan::forced(force, WgmmaTile::GEMM, group, call.arch.num_sms))))
    }

    fn launch(call: &GemmCall, plan: &WgmmaPlan) -> Result<Array> {
        let Some([of_a, of_b]) = Self::matrices(call) else { return Err(super::unsupported(call)) };
        let (g, op, [outer, inner], y) = (call.gemm, call.op, call.batches(), call.uninit_y()?);
        let (dtype, steps, mut plan) = (y.dtype(), steps(y.dtype(), g.k), *plan);
        if g.activation == Some(UnaryKind::Sigmoid) && plan.splits == 1 && plan.tile.rows() > 64 {
            // Two CTAs per SM would leave sigmoid too few registers beside the accumulators.
            plan.ctas_per_sm = 1;
        }
        let [tiles_m, tiles_n] = [g.m.div_ceil(plan.tile.cluster_rows()), g.n.div_ceil(plan.tile.columns())];
        let tiles = tiles_m * tiles_n * plan.splits * outer;
        let int = |v: usize| v as i32;
        let params = WgmmaGemmParams {
            m: int(g.m),
            n: int(g.n),
            steps: int(steps),
            steps_per_split: int(if inner == 1 { plan.steps_per_split } else { steps }),
            splits: int(plan.splits),
            outer: int(outer),
            inner: int(inner),
            tiles_m: int(tiles_m),
            tiles_n: int(tiles_n),
            tiles: int(tiles),
        };
        let partials = workspace(&y, plan.splits)?;
        let define = plan.defines(dtype, &[("A_K", of_a.lines.k_major.into()), ("B_K", of_b.lines.k_major.into())]);
        let define = if partials.is_some() { define } else { call.with_activation(define) };
        Launch::new(&y, "matmul_wgmma.cu", "matmul_wgmma", &define)?
            .tensor(call.a, &of_a.map(g.m, g.k, plan.tile.rows(), dtype))
            .tensor(call.b, &of_b.map(g.n, g.k, plan.tile.loaded_columns(), dtype))
            .array(&y)
            .optional(partials.as_ref())
            .optional(call.bias.filter(|_| partials.is_none()))
            .value(params)
            .value(of_a.index(op, &g.a, &g.outer)?)
            .value(of_b.index(op, &g.b, &g.outer)?)
            .value(of_a.index(op, &g.a, &g.inner)?)
            .value(of_b.index(op, &g.b, &g.inner)?)
            .run(plan.grid(tiles), plan.threads(), plan.smem_bytes())?;
        if let Some(partials) = partials {
            let define = call.with_activation(vec![("scalar_t", dtype.into())]);
            split_k_reduce(&y, &partials, call.bias, plan.splits, g.n, "sum_parts.cu", &define)?;
        }
        Ok(y)
    }
}
