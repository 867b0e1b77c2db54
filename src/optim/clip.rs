//! Limiting the norm of all gradients together.

use crate::{
    Array, Context, DType, Error, Layout, Result, Tensor,
    cpu::{memory, parallel},
    cuda::Launch,
    dtype::real_type,
};

const OP: &str = "clip_global_norm";
/// Added to the norm before the division, as MXNet has it.
const EPS: f64 = 1e-8;
/// Elements whose squares one block adds up; the CPU keeps the same order of magnitude.
const CHUNK: usize = 4096;

/// Scales all arrays in place by min(1, max_norm / (‖a‖ + 10⁻⁸)), where ‖a‖² is the sum of all their squares; gives ‖a‖.
///
/// The norm is a scalar array on their device (f32, or f64 for f64 arrays); the host does not wait for it. Sums are taken in
/// f64 and in a fixed order. A norm that is not finite leaves no useful number: NaN where an array has NaN or ∞.
///
/// ```
/// use hadal::{Array, cpu, optim::clip_global_norm};
/// let mut g = [Array::from_vec(vec![3f64], &[1], &cpu())?, Array::from_vec(vec![4f64], &[1], &cpu())?];
/// assert_eq!(clip_global_norm(&mut g, 1.0)?.item()?, 5.0);
/// assert!((g[1].item()? - 0.8).abs() < 1e-8);
/// # Ok::<(), hadal::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] unless `max_norm` > 0 and there is an array, [`Error::Context`] when they are not on one device,
/// [`Error::DType`] for integers.
pub fn clip_global_norm(arrays: &mut [Array], max_norm: f64) -> Result<Array> {
    let norm = global_norm(arrays, max_norm)?;
    for a in arrays {
        scale(a, &norm, max_norm)?;
    }
    Ok(norm)
}

/// [`clip_global_norm`] of the gradients of `params`; those without a gradient count as 0, one that is listed twice counts once.
/// Gives the norm as a tensor.
///
/// # Errors
/// [`Error::Autograd`] for a tensor without `attach_grad`, else as [`clip_global_norm`].
#[doc(alias = "clip_grad_norm_")]
pub fn clip_grad_norm(params: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let params = Tensor::distinct(params);
    let grads = params.iter().map(|p| p.grad().map(|g| g.array())).collect::<Result<Vec<_>>>()?;
    let norm = global_norm(&grads, max_norm)?;
    drop(grads);
    for p in params {
        p.update_grad(|g| scale(g, &norm, max_norm))?;
    }
    Ok(Tensor::new(norm))
}

/// The norm of all arrays as a scalar on their device.
fn global_norm(arrays: &[Array], max_norm: f64) -> Result<Array> {
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::invalid(OP, format!("the largest norm is {max_norm}, it has to be positive")));
    }
    let Some(first) = arrays.first() else { return Err(Error::invalid(OP, "there are no arrays")) };
    for a in arrays {
        first.context().same(OP, &a.context())?;
        if !a.dtype().is_float() {
            return Err(Error::DType { op: OP, dtype: a.dtype(), hint: "gradients have a float type" });
        }
    }
    let dtype = if first.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let ctx = first.context();
    if ctx == Context::Cpu {
        let mut sum = 0.0;
        for a in arrays {
            sum += real_type!(OP, a.dtype(), F => sum_of_squares(&a.real::<F>(OP)?))?;
        }
        return Array::full(&[], sum.sqrt(), dtype, &ctx);
    }
    let partial = sums_of_squares(&arrays.iter().collect::<Vec<_>>())?;
    let norm = Array::uninit(&[], dtype, Layout::RowMajor, &ctx)?;
    launch("norm_of", &norm, DType::F64)?.array(&norm).array(&partial).value(partial.len() as i64).run(
        [1, 1, 1],
        [256, 1, 1],
        0,
    )?;
    Ok(norm)
}

/// How many sums [`sums_of_squares`] has for an array.
pub(super) fn blocks(a: &Array) -> usize {
    a.len().div_ceil(CHUNK)
}

/// On their GPU, Σ a² of each block of each array, one after the other; adding them up in order gives the square of a norm.
pub(super) fn sums_of_squares(arrays: &[&Array]) -> Result<Array> {
    let Some(first) = arrays.first() else { return Err(Error::invalid(OP, "there are no arrays")) };
    let total = arrays.iter().map(|a| blocks(a)).sum();
    let partial = Array::uninit(&[total], DType::F64, Layout::RowMajor, &first.context())?;
    let mut start = 0;
    for &a in arrays {
        let grid = u32::try_from(blocks(a)).map_err(|_| Error::shape(OP, "too many elements", &[a.shape()]))?;
        launch("sum_of_squares", a, DType::F64)?.array(&partial).array(a).value(start as i64).value(a.len() as i64).run(
            [grid, 1, 1],
            [256, 1, 1],
            0,
        )?;
        start += blocks(a);
    }
    Ok(partial)
}

/// In chunks of a fixed length, whose sums are added in order.
pub(super) fn sum_of_squares<F: crate::Element>(x: &[F]) -> Result<f64> {
    let mut sums = memory::filled(x.len().div_ceil(CHUNK), 0.0)?;
    // One sum for each chunk is little work to share out unless there are many.
    parallel::chunks(&mut sums, |start, sums| {
        for (sum, c) in sums.iter_mut().zip(x[start * CHUNK..].chunks(CHUNK)) {
            *sum = c.iter().map(|v| v.to_f64() * v.to_f64()).sum();
        }
    });
    Ok(sums.into_iter().sum())
}

/// a ← a·min(1, max_norm / (norm + ε))
fn scale(a: &mut Array, norm: &Array, max_norm: f64) -> Result<()> {
    if a.context().is_gpu() {
        a.make_unique()?;
        return launch("clip_by_norm", a, norm.dtype())?
            .array(a)
            .array(norm)
            .value(max_norm)
            .value(EPS)
            .value(a.len() as i64)
            .run_1d(a.len());
    }
    let factor = max_norm / (norm.item()? + EPS);
    if factor >= 1.0 {
        return Ok(());
    }
    *a = real_type!(OP, a.dtype(), F => {
        let x = a.real::<F>(OP)?;
        let mut y = crate::cpu::buffers::Buffer::<F>::stale(x.len())?;
        parallel::map(&mut y, &x, |x| x * (factor as F));
        Ok(Array::from_real(y, a.shape(), a.dtype())?.with_layout(a.layout()))
    })?;
    Ok(())
}

fn launch(kernel: &'static str, a: &Array, norm: DType) -> Result<Launch> {
    Launch::new(a, "optim.cu", kernel, &[("scalar_t", a.dtype().into()), ("norm_t", norm.into())])
}
