//! Batch normalization on the CPU: plain loops in f64, the fast path of `cpu/batch_norm.rs` in f32.

use std::borrow::Cow;

use super::{Behind, Gradients, Incoming};
use crate::{
    Array, DType, Layout, Result,
    cpu::{
        batch_norm::{self as fast, NormShape},
        buffers::Buffer,
        memory,
    },
    dtype::Real,
};

const OP: &str = "batch_norm";

/// The sum over each channel of f(memory index, channel).
fn sums(s: &NormShape, f: impl Fn(usize, usize) -> f64) -> Result<Vec<f64>> {
    let mut out = memory::filled(s.c, 0.0)?;
    for plane in 0..s.n * s.c {
        for i in 0..s.inner {
            out[plane % s.c] += f(plane * s.inner + i, plane % s.c);
        }
    }
    Ok(out)
}

/// y + r, behind ReLU where asked for; at memory index i.
fn behind_it<'a>(residual: Option<&'a [f64]>, relu: bool) -> impl Fn(f64, usize) -> f64 + 'a {
    move |y, i| {
        let y = residual.map_or(y, |r| y + r[i]);
        if relu && y < 0.0 { 0.0 } else { y }
    }
}

/// An array like `x` of f(memory index, channel), x row-major.
fn fill(x: &Array, s: &NormShape, f: impl Fn(usize, usize) -> f64) -> Result<Array> {
    let mut out = Buffer::<f64>::stale(x.len())?;
    for (plane, out) in out.chunks_mut(s.inner.max(1)).enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            *out = f(plane * s.inner + i, plane % s.c);
        }
    }
    Array::from_real(out, x.shape(), x.dtype())
}

fn per_channel(v: Vec<f64>, dtype: DType) -> Result<Array> {
    let shape = [v.len()];
    Array::from_real(Buffer::from_vec(v), &shape, dtype)
}

/// [y, mean, var]
pub(super) fn forward([x, gamma, beta]: [&Array; 3], behind: Behind, eps: f64, s: &NormShape) -> Result<[Array; 3]> {
    let (layout, x) = (x.layout(), x.to_layout(Layout::RowMajor)?);
    let residual = row_major(behind.residual)?;
    if x.dtype() == DType::F64 {
        let m = s.count() as f64;
        let (x_, gamma, beta) = (x.real::<f64>(OP)?, gamma.real::<f64>(OP)?, beta.real::<f64>(OP)?);
        let mean = |mut sums: Vec<f64>| {
            sums.iter_mut().for_each(|sum| *sum /= m);
            sums
        };
        let (each, mean) = (mean, mean(sums(s, |i, _| x_[i])?));
        let var = each(sums(s, |i, c| (x_[i] - mean[c]).powi(2))?);
        let residual = real::<f64>(&residual)?;
        let last = behind_it(residual.as_deref(), behind.relu);
        let y = fill(&x, s, |i, c| last(gamma[c] * (x_[i] - mean[c]) / (var[c] + eps).sqrt() + beta[c], i))?;
        return Ok([y.to_layout(layout)?, per_channel(mean, DType::F64)?, per_channel(var, DType::F64)?]);
    }
    let (x_, gamma, beta) = (x.real::<f32>(OP)?, gamma.real::<f32>(OP)?, beta.real::<f32>(OP)?);
    let mut y = Buffer::<f32>::stale(x.len())?;
    let residual = real::<f32>(&residual)?;
    let last = fast_behind(behind.relu, residual.as_deref());
    let found = fast::batch_norm_forward(&x_, [&gamma, &beta], last, eps, &mut y, s)?;
    let row = |v: Vec<f32>| Array::from_real(Buffer::from_vec(v), &[s.c], DType::F32);
    let y = Array::from_real(y, x.shape(), x.dtype())?.to_layout(layout)?;
    Ok([y, row(found.mean)?, row(found.var)?])
}

/// y from given [γ, β, μ, σ²]
pub(super) fn inference(
    x: &Array,
    [gamma, beta, mean, var]: [&Array; 4],
    behind: Behind,
    eps: f64,
    s: &NormShape,
) -> Result<Array> {
    let (layout, x) = (x.layout(), x.to_layout(Layout::RowMajor)?);
    let residual = row_major(behind.residual)?;
    if x.dtype() == DType::F64 {
        let (x_, gamma, beta) = (x.real::<f64>(OP)?, gamma.real::<f64>(OP)?, beta.real::<f64>(OP)?);
        let (mean, var) = (mean.real::<f64>(OP)?, var.real::<f64>(OP)?);
        let residual = real::<f64>(&residual)?;
        let last = behind_it(residual.as_deref(), behind.relu);
        return fill(&x, s, |i, c| last(gamma[c] * (x_[i] - mean[c]) / (var[c] + eps).sqrt() + beta[c], i))?.to_layout(layout);
    }
    let mut y = Buffer::<f32>::stale(x.len())?;
    let (gamma, beta) = (gamma.real::<f32>(OP)?, beta.real::<f32>(OP)?);
    let (mean, var) = (mean.real::<f32>(OP)?, var.real::<f32>(OP)?);
    let residual = real::<f32>(&residual)?;
    let last = fast_behind(behind.relu, residual.as_deref());
    fast::batch_norm_inference(&x.real::<f32>(OP)?, [&gamma, &beta, &mean, &var], last, eps, &mut y, s)?;
    Array::from_real(y, x.shape(), x.dtype())?.to_layout(layout)
}

fn fast_behind(relu: bool, residual: Option<&[f32]>) -> fast::Behind<'_> {
    match (relu, residual) {
        (_, Some(r)) => fast::Behind::AddRelu(r),
        (true, None) => fast::Behind::Relu,
        (false, None) => fast::Behind::Nothing,
    }
}

fn row_major(a: Option<&Array>) -> Result<Option<Array>> {
    a.map(|a| a.to_layout(Layout::RowMajor)).transpose()
}

fn real<F: Real>(a: &Option<Array>) -> Result<Option<Cow<'_, [F]>>> {
    a.as_ref().map(|a| a.real::<F>(OP)).transpose()
}

/// Gradients from [x, γ, μ, σ²]; in training `statistics` are the gradients of the outputs μ and σ² and dμ and dσ² are of no use.
pub(super) fn backward(
    [x, gamma, mean, var]: [&Array; 4],
    Incoming { dy, y, dr }: Incoming,
    statistics: Option<(&Array, &Array)>,
    eps: f64,
    s: &NormShape,
) -> Result<Gradients> {
    let (layout, param, stat) = (x.layout(), gamma.dtype(), mean.dtype());
    let (x, dy, y) = (x.to_layout(Layout::RowMajor)?, dy.to_layout(Layout::RowMajor)?, row_major(y)?);
    // g = dy behind ReLU's mask; in f32 the passes mask dy themselves.
    let g = match &y {
        Some(y) if y.dtype() == DType::F64 => {
            let (y, dy_) = (y.real::<f64>(OP)?, dy.real::<f64>(OP)?);
            fill(&x, s, |i, _| if y[i] <= 0.0 { 0.0 } else { dy_[i] })?
        }
        _ => dy,
    };
    let m = s.count() as f64;
    let (gamma, mean, var) = (gamma.to_f64_vec()?, mean.to_f64_vec()?, var.to_f64_vec()?);
    let statistics = match statistics {
        Some((dmean, dvar)) => Some((dmean.to_f64_vec()?, dvar.to_f64_vec()?)),
        None => None,
    };
    // S1 = Σ dy, S2 = Σ dy·(x − μ), and by how much μ was rounded.
    let (s1, s2, drift) = if x.dtype() == DType::F64 {
        let (x, g) = (x.real::<f64>(OP)?, g.real::<f64>(OP)?);
        (sums(s, |i, _| g[i])?, sums(s, |i, c| g[i] * (x[i] - mean[c]))?, memory::filled(s.c, 0.0)?)
    } else {
        let mean = memory::collected(mean.iter().map(|&m| m as f32))?;
        let sums = fast::products(&x.real::<f32>(OP)?, &g.real::<f32>(OP)?, real::<f32>(&y)?.as_deref(), &mean, s)?;
        // A given mean is exact by definition.
        let drift = |p: &[f64; 3]| if statistics.is_some() { p[2] / m } else { 0.0 };
        (
            memory::collected(sums.iter().map(|p| p[0]))?,
            memory::collected(sums.iter().map(|p| p[1] - drift(p) * p[0]))?,
            memory::collected(sums.iter().map(drift))?,
        )
    };
    let (mut dgamma, mut dmean, mut dvar) = {
        let zeros = || memory::filled(s.c, 0.0);
        (zeros()?, zeros()?, zeros()?)
    };
    let mut affine = memory::filled(s.c, [0.0; 4])?;
    for c in 0..s.c {
        let inv = 1.0 / (var[c] + eps).sqrt();
        let a = gamma[c] * inv;
        dgamma[c] = s2[c] * inv;
        (dmean[c], dvar[c]) = (-a * s1[c], -0.5 * a * inv * inv * s2[c]);
        affine[c] = match &statistics {
            Some((dmean, dvar)) => {
                let b = (2.0 * dvar[c] - a * inv * inv * s2[c]) / m;
                [mean[c], a, b, (dmean[c] - a * s1[c]) / m - b * drift[c]]
            }
            None => [mean[c], a, 0.0, 0.0],
        };
    }
    let (dx, dr) = if x.dtype() == DType::F64 {
        let (x_, g_) = (x.real::<f64>(OP)?, g.real::<f64>(OP)?);
        let dx = fill(&x, s, |i, k| {
            let [mean, a, b, c] = affine[k];
            a * g_[i] + b * (x_[i] - mean) + c
        })?;
        drop(g_);
        (dx, dr.then_some(g))
    } else {
        let affine = memory::collected(affine.iter().map(|a: &[f64; 4]| a.map(|v| v as f32)))?;
        let mut dx = Buffer::<f32>::stale(x.len())?;
        let mut masked = if dr { Some(Buffer::<f32>::stale(x.len())?) } else { None };
        let (x_, dy, y) = (x.real::<f32>(OP)?, g.real::<f32>(OP)?, real::<f32>(&y)?);
        fast::combine(&x_, &dy, y.as_deref(), &affine, [&mut dx, masked.as_deref_mut().unwrap_or_default()], s);
        let like_x = |v| Array::from_real(v, x.shape(), x.dtype());
        (like_x(dx)?, masked.map(like_x).transpose()?)
    };
    Ok(Gradients {
        dx: Some(dx.to_layout(layout)?),
        dgamma: Some(per_channel(dgamma, param)?),
        dbeta: Some(per_channel(s1, param)?),
        dmean: Some(per_channel(dmean, stat)?),
        dvar: Some(per_channel(dvar, stat)?),
        dr: dr.map(|dr| dr.to_layout(layout)).transpose()?,
    })
}
