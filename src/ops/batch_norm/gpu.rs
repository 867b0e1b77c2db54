//! Batch normalization on the GPU: launches of `kernels/batch_norm.cu`.

use super::{Behind, Gradients, Incoming, Running, memory_shape, wide};
use crate::{
    Array, DType, Layout, Result,
    cpu::batch_norm::NormShape,
    cuda::Launch,
    gemm::bn_stats::{BnPartials, ChannelSums},
};

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
        // A chunk is read twice and stays in the cache. For whole packs of channels about two blocks for each multiprocessor of
        // a large GPU are enough (more take longer to merge), whatever this one has: sums do not depend on that.
        let columns = (s.inner == 1).then(|| s.c.div_ceil(8 * pack(x))).filter(|_| s.c.is_multiple_of(pack(x)));
        let (least, most) = match columns {
            Some(groups) => (64, (264 / groups.max(1)).max(1)),
            // 32 neighbouring channels of 8 threads each, or one channel.
            None if s.inner == 1 => (256, 256),
            None => (4096, 128),
        };
        // Whole packs, where runs are.
        let chunk = s.count().div_ceil(most).max(least).next_multiple_of(pack(x));
        let as_i64 = |v: usize| v as i64;
        Plane {
            channels: as_i64(s.c),
            inner: as_i64(s.inner.max(1)),
            count: as_i64(s.count()),
            chunk: as_i64(chunk),
            splits: as_i64(s.count().div_ceil(chunk)),
        }
    }

    /// Whether channels come in whole packs of 16 bytes.
    fn columns(&self, x: &Array) -> bool {
        self.inner == 1 && self.channels % pack(x) as i64 == 0
    }

    /// Queues a kernel with a block for each chunk of a channel, or of 32 channels, or of 8 packs of channels.
    fn run(&self, launch: Launch, x: &Array) -> Result<()> {
        let groups = match self.inner {
            1 if self.columns(x) => (self.channels as usize).div_ceil(8 * pack(x)) as i64,
            1 => (self.channels + 31) / 32,
            _ => self.channels,
        };
        launch.run([(groups * self.splits) as u32, 1, 1], [256, 1, 1], 0)
    }

    /// Queues a kernel with a block for 8 channels.
    fn merge(&self, launch: Launch) -> Result<()> {
        launch.run([(self.channels as u32).div_ceil(8), 1, 1], [1024, 1, 1], 0)
    }

    /// Room for two numbers of each chunk of each channel, and one of each chunk.
    fn partial(&self, x: &Array) -> Result<Array> {
        let numbers = self.splits as usize * (2 * self.channels as usize + 1);
        Array::uninit(&[numbers], wide(x.dtype()), Layout::RowMajor, &x.context())
    }

    /// The moments of chunks of x and how many chunks: a convolution's, or computed here.
    fn moments(&self, x: &Array, param: DType) -> Result<(Array, i64)> {
        if self.inner == 1
            && let Some((noted, parts)) = BnPartials::of(x, self.channels as usize, self.count as usize)?
        {
            return Ok((noted, parts as i64));
        }
        #[cfg(test)]
        crate::ops::moments_tests::pass();
        let (partial, stat) = (self.partial(x)?, wide(x.dtype()));
        let kernel = if self.columns(x) { "column_moments" } else { "chunk_moments" };
        self.run(start(kernel, x, param, stat)?.array(&partial).array(x).value(*self), x)?;
        Ok((partial, self.splits))
    }
}

/// Elements of 16 bytes.
fn pack(x: &Array) -> usize {
    16 / x.dtype().size()
}

fn start(kernel: &'static str, x: &Array, param: DType, stat: DType) -> Result<Launch> {
    let defines = [("scalar_t", x.dtype().into()), ("param_t", param.into()), ("stat_t", stat.into())];
    Launch::new(x, "batch_norm.cu", kernel, &defines)
}

/// Mean and variance from the moments of so many parts, for an input of x's dtype; `running` are f32 or f64 like them, and follow.
pub(crate) fn merge(
    x: &Array,
    param: DType,
    (partial, parts): (&Array, i64),
    channels: usize,
    running: Option<Running>,
) -> Result<[Array; 2]> {
    let stat = wide(x.dtype());
    let row = || Array::uninit(&[channels], stat, Layout::RowMajor, &x.context());
    let (mean, var) = (row()?, row()?);
    let launch = start("merge_moments", x, param, stat)?.array(&mean).array(&var).array(partial).value(parts);
    let launch = launch.value(channels as i64);
    let launch = match running {
        Some(Running { mean, var, momentum }) => {
            mean.make_unique()?;
            var.make_unique()?;
            launch.array(mean).array(var).value(momentum)
        }
        None => launch.optional(None).optional(None).value(0f64),
    };
    launch.run([(channels as u32).div_ceil(8), 1, 1], [1024, 1, 1], 0)?;
    Ok([mean, var])
}

/// [y, mean, var]; `running` are f32 or f64 like them.
pub(super) fn forward(
    [x, gamma, beta]: [&Array; 3],
    behind: Behind,
    eps: f64,
    s: &NormShape,
    running: Option<Running>,
) -> Result<[Array; 3]> {
    let (p, param) = (Plane::new(x, s), gamma.dtype());
    let (partial, splits) = p.moments(x, param)?;
    let [mean, var] = merge(x, param, (&partial, splits), s.c, running)?;
    let y = normalize(x, [gamma, beta, &mean, &var], behind, eps, s)?;
    Ok([y, mean, var])
}

/// y from given [γ, β, μ, σ²]
pub(super) fn normalize(
    x: &Array,
    [gamma, beta, mean, var]: [&Array; 4],
    behind: Behind,
    eps: f64,
    s: &NormShape,
) -> Result<Array> {
    let y = x.uninit_like()?;
    start("normalize", x, gamma.dtype(), mean.dtype())?
        .array(&y)
        .array(x)
        .optional(behind.residual)
        .array(gamma)
        .array(beta)
        .array(mean)
        .array(var)
        .value(eps)
        .value(i32::from(behind.relu))
        .value(Plane::new(x, s))
        .value(x.len() as i64)
        .run_packed(x.len(), x.dtype())?;
    Ok(y)
}

/// Gradients from [x, γ, μ, σ²]; in training `statistics` are the gradients of the outputs μ and σ², which dμ and dσ² merely repeat.
pub(super) fn backward(
    [x, gamma, mean, var]: [&Array; 4],
    Incoming { dy, y, dr }: Incoming,
    statistics: Option<(&Array, &Array)>,
    needs_dx: bool,
    eps: f64,
    s: &NormShape,
) -> Result<Gradients> {
    let (p, param, stat) = (Plane::new(x, s), gamma.dtype(), mean.dtype());
    let row = |dtype| Array::uninit(&[s.c], dtype, Layout::RowMajor, &x.context());
    let (dgamma, dbeta, partial) = (row(param)?, row(param)?, p.partial(x)?);
    let (dmean, dvar) = match statistics {
        Some((dmean, dvar)) => (dmean.clone(), dvar.clone()),
        None => (row(stat)?, row(stat)?),
    };
    let coefficients = Array::uninit(&[3, s.c], wide(x.dtype()), Layout::RowMajor, &x.context())?;
    let kernel = if p.columns(x) { "column_products" } else { "chunk_products" };
    p.run(start(kernel, x, param, stat)?.array(&partial).array(x).array(dy).optional(y).array(mean).value(p), x)?;
    let merge = start("merge_products", x, param, stat)?
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
        .value(p);
    p.merge(merge)?;
    let mut all =
        Gradients { dgamma: Some(dgamma), dbeta: Some(dbeta), dmean: Some(dmean), dvar: Some(dvar), ..Gradients::default() };
    if needs_dx || dr {
        let (dx, dr) = (x.uninit_like()?, if dr { Some(x.uninit_like()?) } else { None });
        start("combine", x, param, stat)?
            .array(&dx)
            .optional(dr.as_ref())
            .array(x)
            .array(dy)
            .optional(y)
            .array(mean)
            .array(&coefficients)
            .value(p)
            .value(x.len() as i64)
            .run_packed(x.len(), x.dtype())?;
        if let Some((dmean, _)) = statistics {
            // The terms of dy and dσ² have no sum.
            ChannelSums::attach(&dx, dmean)?;
        }
        (all.dx, all.dr) = (Some(dx), dr);
    }
    Ok(all)
}
