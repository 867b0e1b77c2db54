//! GEMM of f32 by bf16x6 on wgmma: launches of `kernels/matmul_six.cu`.

use super::{
    GemmCall,
    bf16x3::split_bf16x3,
    model::{
        bf16x6::{self as model, Bf16x6Plan, PLANES, STEP_K, plans},
        mma::{self, GemmSize},
        wgmma::{GemmShape, GroupedGemm},
    },
    operand::Matrices,
    select::{Algorithm, Rank},
    split_k::{split_k_reduce, workspace},
    wgmma::matrices,
};
use crate::{
    Array, DType, Result,
    cuda::{Launch, Swizzle, TensorMap},
};

/// The `Product` of `matmul_six.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Bf16x6GemmParams {
    m: i32,
    n: i32,
    k: i32,
    /// Steps of the main loop, and those of a split.
    steps: i32,
    steps_per_split: i32,
    splits: i32,
    outer: i32,
    inner: i32,
    tiles_m: i32,
    tiles_n: i32,
    tiles: i32,
    /// Elements from one matrix of an operand to the next, and from one line to the next.
    a_matrix: i32,
    b_matrix: i32,
    a_line: i32,
    b_line: i32,
}

impl Matrices {
    /// The map of planes of `stride` elements. A box is a step of k of all three planes and, K-major, `tall` rows.
    fn planes(&self, along: usize, k: usize, tall: usize, stride: usize) -> TensorMap {
        let (extent, tile, swizzle) = if self.lines.k_major {
            ([k, along, self.count, PLANES], [STEP_K, tall, 1, PLANES], Swizzle::Span64)
        } else {
            ([along, k, self.count, PLANES], [64, STEP_K, 1, PLANES], Swizzle::Span128)
        };
        // The distance to a second matrix, where there is none, is never used.
        let size = if self.count > 1 { self.size } else { self.lines.stride };
        TensorMap::tiled(&extent, &[self.lines.stride, size, stride], &tile).swizzle(swizzle)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16x6;

impl Bf16x6 {
    /// Gives `f` the GEMM as a group of one.
    fn group<T>(call: &GemmCall, f: impl FnOnce(&GroupedGemm) -> T) -> T {
        let (g, [outer, inner]) = (call.gemm, call.batches());
        let shapes = [GemmShape { m: g.m, n: g.n, k_steps: g.k.div_ceil(STEP_K) * inner }];
        // A split is of one product's k.
        f(&GroupedGemm { shapes: &shapes, batch: outer, macs: call.macs(), can_split_k: inner == 1, products: 1.0 })
    }
}

impl Algorithm for Bf16x6 {
    type Call<'a> = GemmCall<'a>;
    type Output = Array;
    type Plan = Bf16x6Plan;
    const NAME: &'static str = "bf16x6";

    fn supports(call: &GemmCall) -> Result<Option<Rank>> {
        let has = call.arch.has_bf16x6(call.dtype(), call.precision);
        Ok(matrices(call, DType::BF16).filter(|_| has).map(|_| Rank::TensorCore))
    }

    fn plans(call: &GemmCall, offer: &mut dyn FnMut(f64, Bf16x6Plan)) -> Result<()> {
        // Sums that are too short for 3xTF32 are plain f32's, by the same bound on the error.
        let (g, [outer, _]) = (call.gemm, call.batches());
        let size = GemmSize { m: g.m, n: g.n, k: g.k, batch: outer, load_bytes: 16 };
        if mma::cheapest(call.arch, call.dtype(), call.precision, size).is_some() {
            let elements = call.a.len() + call.b.len();
            Self::group(call, |group| plans(call.arch.num_sms, model::GEMM, group, elements, offer));
        }
        Ok(())
    }

    fn numbers(plan: &Bf16x6Plan) -> [u32; 4] {
        plan.numbers()
    }

    #[cfg(test)]
    fn forced(call: &GemmCall, force: &crate::testing::Force) -> Result<Option<Bf16x6Plan>> {
        Ok(Some(Self::group(call, |group| Bf16x6Plan::forced(force, model::GEMM, group, call.arch.num_sms))))
    }

    fn launch(call: &GemmCall, plan: &Bf16x6Plan) -> Result<Array> {
        let Some([of_a, of_b]) = matrices(call, DType::BF16) else { return Err(super::unsupported(call)) };
        let (g, op, [outer, inner], y) = (call.gemm, call.op, call.batches(), call.uninit_y()?);
        let (planes_a, planes_b) = (split_bf16x3(call.a)?, split_bf16x3(call.b)?);
        let [tiles_m, tiles_n] = [g.m.div_ceil(plan.tile.rows()), g.n.div_ceil(plan.tile.columns())];
        let (tiles, steps) = (tiles_m * tiles_n * plan.splits * outer, g.k.div_ceil(STEP_K));
        let int = |v: usize| v as i32;
        let params = Bf16x6GemmParams {
            m: int(g.m),
            n: int(g.n),
            k: int(g.k),
            steps: int(steps),
            steps_per_split: int(if inner == 1 { plan.steps_per_split } else { steps }),
            splits: int(plan.splits),
            outer: int(outer),
            inner: int(inner),
            tiles_m: int(tiles_m),
            tiles_n: int(tiles_n),
            tiles: int(tiles),
            a_matrix: int(of_a.size),
            b_matrix: int(of_b.size),
            a_line: int(of_a.lines.stride),
            b_line: int(of_b.lines.stride),
        };
        let partials = workspace(&y, plan.splits)?;
        let define = plan.defines(&[("A_K", of_a.lines.k_major.into()), ("B_K", of_b.lines.k_major.into())]);
        let define = if partials.is_some() { define } else { call.with_activation(define) };
        let map = |m: &Matrices, along, tall, planes: &Array| m.planes(along, g.k, tall, planes.len() / PLANES);
        Launch::new(&y, "matmul_six.cu", "matmul_six", &define)?
            .tensor(&planes_a, &map(&of_a, g.m, 64, &planes_a))
            .tensor(&planes_b, &map(&of_b, g.n, plan.tile.columns(), &planes_b))
            .array(call.a)
            .array(call.b)
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
            let define = call.with_activation(vec![("scalar_t", DType::F32.into())]);
            split_k_reduce(&y, &partials, call.bias, plan.splits, g.n, "sum_parts.cu", &define)?;
        }
        Ok(y)
    }
}
