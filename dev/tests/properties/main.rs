//! Properties over random shapes, attributes, layouts and dtypes: the CPU's fast paths against the f64 reference, the GPU against
//! the CPU, both with gradients, and gradients of small cases by finite differences. What the formulas exclude is an `Err`.
//!
//! The cases are the same in every run; `PROPTEST_CASES=10000` tries more of them, `PROPTEST_RNG_SEED=7` others.

#[path = "../../../tests/common/mod.rs"]
mod common;

mod binary;
mod conv2d;
mod matmul;
mod pool;
mod reduce;
mod shapes;

use hadal::{Array, DType, Layout, Tensor, autograd, autograd::Op, check, cpu};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestCaseError},
};

/// `cases` cases from a fixed seed, unless the environment says otherwise.
pub fn config(cases: u32) -> Config {
    let set = |name: &str| std::env::var_os(name).is_some();
    let env = Config::default();
    Config {
        cases: if set("PROPTEST_CASES") { env.cases } else { cases },
        rng_seed: if set("PROPTEST_RNG_SEED") { env.rng_seed } else { RngSeed::Fixed(1) },
        failure_persistence: None,
        ..env
    }
}

/// A float dtype that has kernels of its own.
pub fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![3 => Just(DType::F32), 1 => Just(DType::F16), 1 => Just(DType::BF16)]
}

/// A size: mostly a few, sometimes none, sometimes beyond a tile of the kernels.
pub fn size() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0usize), 20 => 1usize..8, 4 => prop_oneof![Just(17usize), Just(33), Just(66)]]
}

/// A size or attribute that may be wrong or absurd.
pub fn attribute() -> impl Strategy<Value = usize> {
    let absurd = prop_oneof![Just(1usize << 31), Just(1 << 40), Just(isize::MAX as usize), Just(usize::MAX)];
    prop_oneof![12 => 0usize..4, 1 => absurd]
}

/// `x` in channels-last memory if `last` says so and it can be.
pub fn laid(x: Array, last: bool) -> hadal::Result<Array> {
    if last && x.rank() == 4 { x.to_layout(Layout::ChannelsLast) } else { Ok(x) }
}

/// Distinct values in random order, further apart than the steps of finite differences.
pub fn distinct(shape: &[usize], seed: u64) -> hadal::Result<Array> {
    let draws = check::random_in(shape, seed, 0.0, 1.0)?.to_vec::<f64>()?;
    let mut order: Vec<usize> = (0..draws.len()).collect();
    order.sort_by(|&a, &b| draws[a].total_cmp(&draws[b]));
    let mut values = vec![0.0; order.len()];
    for (rank, i) in order.into_iter().enumerate() {
        values[i] = rank as f64 / 64.0 - 1.0;
    }
    Array::from_vec(values, shape, &cpu())
}

/// All paths agree on this op, forward and backward.
///
/// The bounds are loose against `check::bound`, which the table of `tests/ops` keeps: here a lone output's terms may cancel to
/// next to nothing. A wrong index, window or axis gives differences near 1.
pub fn agrees(op: &dyn Op, x: &[Array], dtype: DType) -> Result<(), TestCaseError> {
    let bound = (16.0 * check::bound(dtype)).max(2e-3);
    let fail = |e: hadal::Error| TestCaseError::fail(e.to_string());
    check::reference_within(op, x, dtype, bound).map_err(fail)?;
    if x.iter().map(Array::len).sum::<usize>() <= 48 {
        check::gradients(op, x).map_err(fail)?;
    }
    if let Some(gpu) = common::gpu() {
        let own: hadal::Result<Vec<Array>> = x.iter().map(|a| check::cast(a, dtype)?.to_layout(a.layout())).collect();
        check::parity_within(op, &own.map_err(fail)?, &gpu, &cpu(), bound).map_err(fail)?;
    }
    Ok(())
}

/// `f` succeeds, with its gradients, exactly when the arguments are `valid`; on the GPU it may refuse what is too large for it.
pub fn accepts(valid: bool, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> hadal::Result<Tensor>) -> Result<(), TestCaseError> {
    for ctx in common::contexts() {
        let whole = || -> hadal::Result<()> {
            let x: hadal::Result<Vec<Tensor>> = shapes.iter().map(|s| Ok(Tensor::ones(s, &ctx)?.attach_grad())).collect();
            autograd::record(|| f(&x?))?.backward()?;
            ctx.synchronize()
        };
        match whole() {
            Ok(()) => prop_assert!(valid, "{ctx}: accepted"),
            Err(e) if ctx.is_gpu() && e.to_string().contains("too large for the GPU") => {}
            Err(e) => prop_assert!(!valid, "{ctx}: refused: {e}"),
        }
    }
    Ok(())
}

/// Numpy's rule, written once more: the shape that `a` and `b` stretch to.
pub fn stretched(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], d: usize| (d + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    let one = |d: usize| match (at(a, d), at(b, d)) {
        (x, y) if x == y || y == 1 => Some(x),
        (1, y) => Some(y),
        _ => None,
    };
    (0..rank).map(one).collect()
}

/// `shape` as an operand that is stretched to it: extents of 1 where `ones` has a bit, the first axes absent.
pub fn shrunk(shape: &[usize], ones: u8, absent: usize) -> Vec<usize> {
    let short = |(d, &e): (usize, &usize)| if ones >> d & 1 == 1 { 1 } else { e };
    shape.iter().enumerate().map(short).skip(absent.min(shape.len())).collect()
}
