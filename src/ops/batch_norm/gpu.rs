//! Batch normalization on the GPU: launches of `kernels/batch_norm.cu`.

use super::{memory_shape, wide};
use crate::{Array, DType, Layout, Result, cpu::batch_norm::NormShape, cuda::Launch};

/// The `Plane` of `kernels/batch_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Plane {
    channels: i64,
    inner: i64,
    count: i64,
    chunk: i64,
    splits: i64,
}

impl Plane {
    fn new(x: &Array, s: &NormShape) -> Self {
        let s = memory_shape(x, s);
        // A block has 32 neighbouring channels of 8 threads each, or one channel; its chunk is read twice and stays in the cache.
        let (least, most) = if s.inner == 1 { (256, 256) } else { (4096, 128) };
        let chunk = s.count().div_ceil(most).max(least);
        let as_i64 = |v: usize| v as i64;
        Plane {
            channels: as_i64(s.c),
            inner: as_i64(s.inner.max(1)),
            count: as_i64(s.count()),
            chunk: as_i64(chunk),
            splits: as_i64(s.count().div_ceil(chunk)),
        }
    }

    /// Queues a kernel with a block for each chunk of a channel, or of 32 channels.
    fn run(&self, launch: Launch) -> Result<()> {
        let groups = if self.inner == 1 { (self.channels + 31) / 32 } else { self.channels };
        launch.run([(groups * self.splits) as u32, 1, 1], [256, 1, 1], 0)
    }

    /// Room for two numbers of each chunk of each channel.
    fn partial(&self, x: &Array) -> Result<Array> {
        let shape = [self.splits as usize, 2, self.channels as usize];
        Array::uninit(&shape, wide(x.dtype()), Layout::RowMajor, &x.context())
    }
}

fn start(kernel: &'static str, x: &Array, param: DType, stat: DType) -> Result<Launch> {
    let defines = [("scalar_t", x.dtype().into()), ("param_t", param.into()), ("stat_t", stat.into())];
    Launch::new(x, "batch_norm.cu", kernel, &defines)
}

/// [y, mean, var]
pub(super) fn forward(x: &Array, gamma: &Array, beta: &Array, eps: f64, s: &NormShape) -> Result<[Array; 3]> {
    let (p, stat, param) = (Plane::new(x, s), wide(x.dtype()), gamma.dtype());
    let row = || Array::uninit(&[s.c], stat, Layout::RowMajor, &x.context());
    let (mean, var, partial) = (row()?, row()?, p.partial(x)?);
    p.run(start("chunk_moments", x, param, stat)?.array(&partial).array(x).value(p))?;
    start("merge_moments", x, param, stat)?.array(&mean).array(&var).array(&partial).value(p).run_1d(s.c)?;
    let y = normalize(x, [gamma, beta, &mean, &var], eps, s)?;
    Ok([y, mean, var])
}

/// y from given [γ, β, μ, σ²]
pub(super) fn normalize(x: &Array, [gamma, beta, mean, var]: [&Array; 4], eps: f64, s: &NormShape) -> Result<Array> {
    let y = x.uninit_like()?;
    start("normalize", x, gamma.dtype(), mean.dtype())?
        .array(&y)
        .array(x)
        .array(gamma)
        .array(beta)
        .array(mean)
        .array(var)
        .value(eps)
        .value(Plane::new(x, s))
        .value(x.len() as i64)
        .run_1d(x.len())?;
    Ok(y)
}

/// [dx, dγ, dβ, dμ, dσ²] from [x, γ, μ, σ²] and dy in x's layout; in training `statistics` are the gradients of the outputs μ
/// and σ², which the last two results merely repeat.
pub(super) fn backward(
    [x, gamma, mean, var]: [&Array; 4],
    dy: &Array,
    statistics: Option<(&Array, &Array)>,
    needs_dx: bool,
    eps: f64,
    s: &NormShape,
) -> Result<[Option<Array>; 5]> {
    let (p, param, stat) = (Plane::new(x, s), gamma.dtype(), mean.dtype());
    let row = |dtype| Array::uninit(&[s.c], dtype, Layout::RowMajor, &x.context());
    let (dgamma, dbeta, partial) = (row(param)?, row(param)?, p.partial(x)?);
    let (dmean, dvar) = match statistics {
        Some((dmean, dvar)) => (dmean.clone(), dvar.clone()),
        None => (row(stat)?, row(stat)?),
    };
    let coefficients = Array::uninit(&[3, s.c], wide(x.dtype()), Layout::RowMajor, &x.context())?;
    p.run(start("chunk_products", x, param, stat)?.array(&partial).array(x).array(dy).array(mean).value(p))?;
    start("merge_products", x, param, stat)?
        .array(&coefficients)
        .array(&dgamma)
        .array(&dbeta)
        .array(&dmean)
        .array(&dvar)
        .array(&partial)
        .array(gamma)
        .array(var)
        .value(eps)
        .value(i32::from(statistics.is_some()))
        .value(p)
        .run_1d(s.c)?;
    let dx = if needs_dx { Some(x.uninit_like()?) } else { None };
    if let Some(dx) = &dx {
        start("combine", x, param, stat)?
            .array(dx)
            .array(x)
            .array(dy)
            .array(mean)
            .array(&coefficients)
            .value(p)
            .value(x.len() as i64)
            .run_1d(x.len())?;
    }
    Ok([dx, Some(dgamma), Some(dbeta), Some(dmean), Some(dvar)])
}
