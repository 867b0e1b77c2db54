//! GEMM without tensor cores, for every dtype and stride: launches of `kernels/matmul.cu`.

use super::{
    GemmCall,
    select::{Algorithm, Rank},
    split_k::{split_k_reduce, splits, workspace},
};
use crate::{
    Array, Error, Result,
    cuda::{Dims, Launch},
};

/// Rows and columns of a tile.
const TILE: usize = 64;

/// The parameters of `matmul.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SimtGemmParams {
    m: i64,
    n: i64,
    k: i64,
    a_row_stride: i64,
    a_col_stride: i64,
    b_row_stride: i64,
    b_col_stride: i64,
    outer: i64,
    inner: i64,
    k_per_split: i64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Simt;

impl Algorithm for Simt {
    type Call<'a> = GemmCall<'a>;
    type Output = Array;
    type Plan = ();
    const NAME: &'static str = "simt";

    fn supports(_call: &GemmCall) -> Result<Option<Rank>> {
        Ok(Some(Rank::Simt))
    }

    /// Without a model: it is taken where nothing else can be.
    fn plans(_call: &GemmCall, offer: &mut dyn FnMut(f64, ())) -> Result<()> {
        offer(f64::INFINITY, ());
        Ok(())
    }

    fn numbers((): &()) -> [u32; 4] {
        [0; 4]
    }

    #[cfg(test)]
    fn forced(_call: &GemmCall, _force: &crate::testing::Force) -> Result<Option<()>> {
        Ok(Some(()))
    }

    fn launch(call: &GemmCall, (): &()) -> Result<Array> {
        let (g, op, [outer, inner], y) = (call.gemm, call.op, call.batches(), call.uninit_y()?);
        let tiles = g.m.div_ceil(TILE).saturating_mul(g.n.div_ceil(TILE));
        let too_large = || Error::shape(op, "too many tiles for one launch", &[call.a.shape(), call.b.shape()]);
        let grid_x = u32::try_from(tiles).ok().filter(|&t| t <= i32::MAX as u32).ok_or_else(too_large)?;
        let (splits, k_per_split) = splits(g.k, tiles.saturating_mul(outer));
        let define = call.with_activation(vec![("scalar_t", y.dtype().into())]);
        let partials = workspace(&y, splits)?;
        let int = |v: usize| v as i64;
        let params = SimtGemmParams {
            m: int(g.m),
            n: int(g.n),
            k: int(g.k),
            a_row_stride: int(g.a.rows),
            a_col_stride: int(g.a.cols),
            b_row_stride: int(g.b.rows),
            b_col_stride: int(g.b.cols),
            outer: int(outer),
            inner: int(inner),
            k_per_split: int(k_per_split),
        };
        Launch::new(&y, "matmul.cu", "matmul", &define)?
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
            .run([grid_x, splits as u32, outer.min(65535) as u32], [256, 1, 1], 0)?;
        if let Some(partials) = partials {
            split_k_reduce(&y, &partials, call.bias, splits, g.n, "matmul.cu", &define)?;
        }
        Ok(y)
    }
}
