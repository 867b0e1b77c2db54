//! GEMM by mma.sync: launches of `kernels/matmul_mma.cu`.

use super::{
    GemmCall,
    arch::INDEX_LIMIT,
    model::mma::{GemmSize, MmaPlan, load_bytes, plans},
    operand::{Lines, batch_strides, lines},
    select::{Algorithm, Rank},
    split_k::split_k_reduce,
};
use crate::{
    Array, Result,
    cuda::{Dims, Launch},
};

/// The `Product` of `matmul_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct MmaGemmParams {
    m: i32,
    n: i32,
    k: i32,
    /// Elements from one line of an operand to the next.
    a_line: i32,
    b_line: i32,
    k_per_split: i32,
    inner: i32,
    /// Rows of y begin at multiples of 16 bytes.
    vector: i32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Mma;

/// The operands as lines, and the size; `None` where both axes of an operand have strides, or 32 bits do not count elements.
fn size(call: &GemmCall) -> Option<([Lines; 2], GemmSize)> {
    let (g, [outer, inner]) = (call.gemm, call.batches());
    let (a, b) = (lines(g.a.rows, g.a.cols)?, lines(g.b.cols, g.b.rows)?);
    let small =
        [g.m, g.n, g.k, inner].iter().all(|&v| v > 0 && v < INDEX_LIMIT) && g.m.max(g.n).saturating_mul(g.k) < INDEX_LIMIT;
    if !small {
        return None;
    }
    let strides = [a.stride, b.stride].into_iter();
    let batches = [(&g.a, &g.outer), (&g.b, &g.outer), (&g.a, &g.inner), (&g.b, &g.inner)];
    let load_bytes = load_bytes(call.dtype().size(), strides.chain(batches.into_iter().flat_map(|(v, e)| batch_strides(v, e))));
    Some(([a, b], GemmSize { m: g.m, n: g.n, k: g.k, batch: outer, load_bytes }))
}

impl Algorithm for Mma {
    type Call<'a> = GemmCall<'a>;
    type Output = Array;
    type Plan = MmaPlan;
    const NAME: &'static str = "mma";

    fn supports(call: &GemmCall) -> Result<Option<Rank>> {
        Ok(size(call).map(|_| Rank::TensorCore))
    }

    fn plans(call: &GemmCall, offer: &mut dyn FnMut(f64, MmaPlan)) -> Result<()> {
        if let Some((_, size)) = size(call) {
            let inner = call.batches()[1] as f64;
            plans(call.arch, call.dtype(), call.precision, size, &mut |cost, plan| offer(cost * inner, plan));
        }
        Ok(())
    }

    fn numbers(plan: &MmaPlan) -> [u32; 4] {
        plan.numbers()
    }

    #[cfg(test)]
    fn forced(call: &GemmCall, force: &crate::testing::Force) -> Result<Option<MmaPlan>> {
        Ok(size(call).map(|(_, size)| MmaPlan::forced(force, call.dtype(), call.precision, size)))
    }

    fn launch(call: &GemmCall, plan: &MmaPlan) -> Result<Array> {
        let Some(([of_a, of_b], _)) = size(call) else { return Err(super::unsupported(call)) };
        let (g, op, [outer, inner], y) = (call.gemm, call.op, call.batches(), call.uninit_y()?);
        let define = plan.defines(y.dtype(), [("A_K", of_a.k_major.into()), ("B_K", of_b.k_major.into())]);
        let define = if plan.splits > 1 { define } else { call.with_activation(define) };
        let partials = plan.workspace(&y)?;
        let params = MmaGemmParams {
            m: g.m as i32,
            n: g.n as i32,
            k: g.k as i32,
            a_line: of_a.stride as i32,
            b_line: of_b.stride as i32,
            k_per_split: plan.k_per_split as i32,
            inner: inner as i32,
            vector: i32::from((g.n * y.dtype().size()).is_multiple_of(16)),
        };
        Launch::new(&y, "matmul_mma.cu", "matmul_mma", &define)?
            .array(&y)
            .optional(partials.as_ref())
            .array(call.a)
            .array(call.b)
            .optional(call.bias)
            .value(params)
            .value(Dims::new(op, &g.outer, &g.a.batch)?)
            .value(Dims::new(op, &g.outer, &g.b.batch)?)
            .value(Dims::new(op, &g.inner, &g.a.batch)?)
            .value(Dims::new(op, &g.inner, &g.b.batch)?)
            .run([plan.tiles(g.m, g.n) as u32, plan.splits as u32, outer as u32], [plan.threads(), 1, 1], plan.smem_bytes())?;
        if let Some(partials) = partials {
            let define = call.with_activation(vec![("scalar_t", y.dtype().into())]);
            split_k_reduce(&y, &partials, call.bias, plan.splits, g.n, "sum_parts.cu", &define)?;
        }
        Ok(y)
    }
}
