//! Checks of an [`Op`] that anybody can call: gradients against finite differences, one context against another.
//!
//! hadal's own ops all pass both; a user's op gets the same in one line.
//!
//! ```
//! use hadal::{check, cpu, ops::{Unary, UnaryKind}};
//! let x = check::random(&[3, 17], 1)?;
//! check::gradients(&Unary(UnaryKind::Tanh), &[x])?;
//! # Ok::<(), hadal::Error>(())
//! ```

use std::fmt;

use crate::{
    Array, Context, DType, Error, Layout, Result,
    autograd::{Op, Saved},
    cpu, cuda,
    random::{Draw, unit},
    shape::{Display, checked_numel},
};

/// A reproducible f64 array, uniform in (−1, 1) and nowhere near 0 (where kinks are), on the CPU.
pub fn random(shape: &[usize], seed: u64) -> Result<Array> {
    random_in(shape, seed, 0.1, 1.0).and_then(|a| {
        let signs = Draw { seed, number: 1 };
        let mut v = a.to_vec::<f64>()?;
        signs.words(0, a.len(), |i, w| v[i] *= if w & 1 == 0 { 1.0 } else { -1.0 });
        Array::from_vec(v, shape, &cpu())
    })
}

/// A reproducible f64 array, uniform in `lo..hi`, on the CPU.
pub fn random_in(shape: &[usize], seed: u64, lo: f64, hi: f64) -> Result<Array> {
    let mut v = crate::cpu::memory::filled(checked_numel("random", shape)?, 0.0)?;
    let len = v.len();
    Draw { seed, number: 0 }.words(0, len, |i, w| v[i] = lo + (hi - lo) * f64::from(unit(w)));
    Array::from_vec(v, shape, &cpu())
}

/// A reproducible i64 array of indices in `0..bound`, on the CPU.
pub fn random_indices(shape: &[usize], seed: u64, bound: usize) -> Result<Array> {
    let v = random_in(shape, seed, 0.0, bound as f64)?.to_vec::<f64>()?;
    let last = i64::try_from(bound).map_or(i64::MAX, |b| b - 1);
    Array::from_vec(crate::cpu::memory::collected(v.into_iter().map(|x| (x as i64).min(last)))?, shape, &cpu())
}

/// How far two arrays are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// ‖a − b‖ / ‖b‖ (2-norms), or ‖a − b‖ where b is zero.
    pub relative: f64,
    /// The element with the largest |a − b|.
    pub worst: usize,
    /// a and b there.
    pub values: (f64, f64),
    shape: Vec<usize>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut index = vec![0; self.shape.len()];
        let mut rest = self.worst;
        for (i, &e) in index.iter_mut().zip(&self.shape).rev() {
            (*i, rest) = (rest % e.max(1), rest / e.max(1));
        }
        let (a, b) = self.values;
        write!(f, "relative difference {:.3e}, worst at {}: {a} against {b}", self.relative, Display(&index))
    }
}

/// Compares two arrays of one shape; NaN on one side only is an infinite difference.
pub fn difference(a: &Array, b: &Array) -> Result<Difference> {
    if a.shape() != b.shape() {
        return Err(Error::shape("difference", "the shapes differ", &[a.shape(), b.shape()]));
    }
    let (x, y) = (a.to_f64_vec()?, b.to_f64_vec()?);
    let (mut num, mut den, mut worst, mut largest) = (0.0, 0.0, 0, -1.0);
    for (i, (&x, &y)) in x.iter().zip(&y).enumerate() {
        let d = match (x.is_nan(), y.is_nan()) {
            (true, true) => 0.0,
            (false, false) if x == y => 0.0,
            (false, false) => (x - y).abs(),
            _ => f64::INFINITY,
        };
        num += d * d;
        den += if y.is_finite() { y * y } else { 0.0 };
        if d > largest {
            (worst, largest) = (i, d);
        }
    }
    let relative = if den > 0.0 { (num / den).sqrt() } else { num.sqrt() };
    let at = |v: &[f64]| v.get(worst).copied().unwrap_or(0.0);
    Ok(Difference { relative, worst, values: (at(&x), at(&y)), shape: a.shape().to_vec() })
}

/// The bound on [`Difference::relative`] for a dtype: what its rounding allows in a sum of a few thousand terms.
pub fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 2e-6,
        DType::F16 => 2e-3,
        DType::BF16 => 1.6e-2,
        DType::U8 | DType::I64 => 0.0,
    }
}

/// Outputs and input gradients of one forward and backward pass.
struct Pass {
    outputs: Vec<Array>,
    gradients: Vec<Option<Array>>,
}

/// Cotangents for the outputs: fixed random numbers, the same on every context, as `rounded` holds them.
fn cotangents(outputs: &[Array], ctx: &Context, rounded: DType) -> Result<Vec<Array>> {
    let cot = |(i, y): (usize, &Array)| {
        let dy = cast(&random(y.shape(), 1000 + i as u64)?, rounded)?;
        let dtype = if y.dtype().is_float() { y.dtype() } else { DType::F32 };
        cast(&dy, dtype)?.to_context(ctx)?.to_layout(y.layout())
    };
    outputs.iter().enumerate().map(cot).collect()
}

fn run(op: &dyn Op, inputs: &[Array], ctx: &Context, rounded: DType) -> Result<Pass> {
    let refs: Vec<&Array> = inputs.iter().collect();
    let mut saved = Saved::new(&refs, inputs.iter().map(|a| a.dtype().is_float()).collect());
    let outputs = op.forward(&refs, &mut saved)?;
    saved.note(op.name(), &outputs);
    let dy = cotangents(&outputs, ctx, rounded)?;
    saved.check(op.name(), &dy)?;
    let gradients = op.backward(&saved, &dy)?;
    saved.takes(op.name(), &gradients)?;
    for i in (0..inputs.len()).filter(|&i| op.adds(i)) {
        added(op, i, &mut saved, &dy, &gradients)?;
    }
    Ok(Pass { outputs, gradients })
}

/// Checks that `op` adds its gradient of input `i` to what has arrived.
fn added(op: &dyn Op, i: usize, saved: &mut Saved, dy: &[Array], gradients: &[Option<Array>]) -> Result<()> {
    let Some(own) = gradients.get(i).and_then(Option::as_ref) else { return Ok(()) };
    let values = own.to_f64_vec()?;
    // As large as the gradient, so that neither is lost in the other's rounding.
    let size = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let other = random(own.shape(), 2000 + i as u64)?.to_vec::<f64>()?.into_iter().map(|v| v * size).collect::<Vec<_>>();
    let other = cast(&Array::from_vec(other, own.shape(), &cpu())?, own.dtype())?;
    let want = values.iter().zip(other.to_f64_vec()?).map(|(a, b)| a + b).collect::<Vec<_>>();
    saved.arrive(i, other.to_context(&own.context())?.to_layout(own.layout())?)?;
    let sum = op.backward(saved, dy)?.swap_remove(i);
    let sum = sum.ok_or_else(|| Error::Check(format!("{}: no gradient of input {i} where another has arrived", op.name())))?;
    let d = difference(&sum, &Array::from_vec(want, own.shape(), &cpu())?)?;
    if d.relative > 2.0 * bound(own.dtype()) {
        let which = "is not its own and what has arrived, as `adds` says";
        return Err(Error::Check(format!("{}: the gradient of input {i} {which}: {d}", op.name())));
    }
    Ok(())
}

/// Rounds a host array to a float dtype; integer arrays stay as they are.
pub fn cast(a: &Array, dtype: DType) -> Result<Array> {
    if !a.dtype().is_float() || a.dtype() == dtype {
        return Ok(a.clone());
    }
    let a = a.to_layout(Layout::RowMajor)?;
    Array::from_real(crate::cpu::buffers::Buffer::from_vec(a.to_f64_vec()?), a.shape(), dtype)
}

/// Checks `backward` against central differences in double precision on the CPU.
///
/// For outputs yⱼ and random cotangents cⱼ, each element of each float input is moved by ±h (h = 10⁻⁵) and
/// (Σ c·y(x + h) − Σ c·y(x − h)) / 2h compared with what `backward` returns; an input whose gradient is `None` must
/// have differences of zero. The bound is a relative difference of 10⁻⁶ (by norm) for each input.
///
/// # Errors
/// [`Error::Check`] names the op, the input and the worst element.
pub fn gradients(op: &dyn Op, inputs: &[Array]) -> Result<()> {
    const STEP: f64 = 1e-5;
    const BOUND: f64 = 1e-6;
    let inputs = inputs.iter().map(|a| cast(&a.to_context(&cpu())?, DType::F64)).collect::<Result<Vec<_>>>()?;
    let pass = run(op, &inputs, &cpu(), DType::F64)?;
    let cots: Vec<Vec<f64>> =
        cotangents(&pass.outputs, &cpu(), DType::F64)?.iter().map(Array::to_f64_vec).collect::<Result<_>>()?;
    let objective = |inputs: &[Array]| -> Result<f64> {
        let refs: Vec<&Array> = inputs.iter().collect();
        let outputs = op.forward(&refs, &mut Saved::new(&refs, vec![false; inputs.len()]))?;
        let mut sum = 0.0;
        for (y, c) in outputs.iter().zip(&cots) {
            // An integer output (an argmax, say) carries no gradient.
            if y.dtype().is_float() {
                sum += y.to_f64_vec()?.iter().zip(c).map(|(y, c)| y * c).sum::<f64>();
            }
        }
        Ok(sum)
    };
    for (i, x) in inputs.iter().enumerate().filter(|(_, x)| x.dtype().is_float()) {
        let values = x.to_vec::<f64>()?;
        let mut numeric = crate::cpu::memory::reserved(values.len())?;
        for e in 0..values.len() {
            let moved = |by: f64| -> Result<f64> {
                let mut v = values.clone();
                v[e] += by;
                let mut all = inputs.clone();
                all[i] = Array::from_vec(v, x.shape(), &cpu())?.to_layout(x.layout())?;
                objective(&all)
            };
            numeric.push((moved(STEP)? - moved(-STEP)?) / (2.0 * STEP));
        }
        let numeric = Array::from_vec(numeric, x.shape(), &cpu())?;
        let own = match &pass.gradients[i] {
            Some(g) => g.clone(),
            None => Array::zeros(x.shape(), DType::F64, &cpu())?,
        };
        let d = difference(&own, &numeric)?;
        if d.relative > BOUND {
            return Err(Error::Check(format!(
                "{}: the gradient of input {i} is not that of its forward pass: {d} (finite difference)",
                op.name()
            )));
        }
    }
    Ok(())
}

/// Checks that `op` computes the same on two contexts, outputs and gradients, within [`bound`] of the inputs' dtype.
///
/// The inputs are taken as they are (dtype and layout) and moved to each context. What the op allocates on a GPU from this
/// thread begins as 0xFF bytes (NaN, 255, −1), so that an element which no kernel writes is a difference.
///
/// # Errors
/// [`Error::Check`] names the op, what differs, and the worst element.
pub fn parity(op: &dyn Op, inputs: &[Array], a: &Context, b: &Context) -> Result<()> {
    let bound = inputs.iter().map(|x| bound(x.dtype())).fold(0.0, f64::max);
    parity_within(op, inputs, a, b, bound)
}

/// [`parity`] with a bound of the caller's.
pub fn parity_within(op: &dyn Op, inputs: &[Array], a: &Context, b: &Context, bound: f64) -> Result<()> {
    let on = |ctx: &Context| -> Result<Pass> {
        let inputs = inputs.iter().map(|x| x.to_context(ctx)).collect::<Result<Vec<_>>>()?;
        // On recycled memory an element that a kernel forgets would hold an earlier run's answer.
        cuda::poisoned(|| run(op, &inputs, ctx, DType::F64))
    };
    compare(op.name(), &on(a)?, &on(b)?, &format!("{a} against {b}"), bound)
}

/// Checks that the CPU's path for `dtype` (the fast one for f32) agrees with the f64 reference loops.
///
/// # Errors
/// [`Error::Check`] names the op, what differs, and the worst element.
pub fn reference(op: &dyn Op, inputs: &[Array], dtype: DType) -> Result<()> {
    reference_within(op, inputs, dtype, 2.0 * bound(dtype))
}

/// [`reference()`] with a bound of the caller's.
pub fn reference_within(op: &dyn Op, inputs: &[Array], dtype: DType, bound: f64) -> Result<()> {
    // Rounded first, so that both see the same numbers.
    let own = inputs.iter().map(|x| cast(&x.to_context(&cpu())?, dtype)?.to_layout(x.layout())).collect::<Result<Vec<_>>>()?;
    let exact = own.iter().map(|x| cast(x, DType::F64)?.to_layout(x.layout())).collect::<Result<Vec<_>>>()?;
    let run = |x: &[Array]| run(op, x, &cpu(), dtype);
    compare(op.name(), &run(&own)?, &run(&exact)?, &format!("{dtype} against f64"), bound)
}

fn compare(name: &str, a: &Pass, b: &Pass, which: &str, bound: f64) -> Result<()> {
    if a.outputs.len() != b.outputs.len() {
        return Err(Error::Check(format!("{name}: {} and {} outputs, {which}", a.outputs.len(), b.outputs.len())));
    }
    let check = |what: String, x: &Array, y: &Array| -> Result<()> {
        let d = difference(x, y)?;
        if d.relative > bound {
            return Err(Error::Check(format!("{name}: {what}, {which}: {d}, the bound is {bound:.1e}")));
        }
        Ok(())
    };
    for (i, (x, y)) in a.outputs.iter().zip(&b.outputs).enumerate() {
        check(format!("output {i}"), x, y)?;
    }
    for (i, pair) in a.gradients.iter().zip(&b.gradients).enumerate() {
        match pair {
            (Some(x), Some(y)) => check(format!("gradient {i}"), x, y)?,
            (None, None) => {}
            _ => return Err(Error::Check(format!("{name}: gradient {i} exists on one side only, {which}"))),
        }
    }
    Ok(())
}
