//! Values and gradients at the edges of what numbers can say: dead units, kinks, NaN, infinities, sums that overflow on their way, and
//! writes that the tape would miss. The expectations are PyTorch's where nothing else is said. On every context.

#![allow(clippy::single_range_in_vec_init)]

mod common;

use std::slice;

use hadal::{
    Array, Context, DType, Error, Result, Tensor, autograd,
    autograd::{Op, Saved, record},
    cpu,
    ops::{
        BatchNormInferenceRelu, Binary, BinaryKind, Dropout, PairLoss, PairLossKind, PoolOptions, Reduce, ReduceKind, Unary,
        UnaryKind,
    },
    optim::clip_global_norm,
    random::Draw,
};

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;
const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];

fn array(v: &[f64], shape: &[usize], dtype: DType, ctx: &Context) -> Result<Array> {
    hadal::check::cast(&Array::from_vec(v.to_vec(), shape, &cpu())?, dtype)?.to_context(ctx)
}

fn tensor(v: &[f64], dtype: DType, ctx: &Context) -> Result<Tensor> {
    array(v, &[v.len()], dtype, ctx).map(Tensor::new)
}

/// Equal, where NaN equals NaN and −0 equals 0.
fn same(got: &[f64], want: &[f64], what: &str) {
    let equal = |(a, b): (&f64, &f64)| a == b || (a.is_nan() && b.is_nan());
    assert!(got.len() == want.len() && got.iter().zip(want).all(equal), "{what}: {got:?}, expected {want:?}");
}

/// The gradients of `op`'s inputs, all float, for `dy`.
fn gradients(op: &dyn Op, x: &[Array], dy: &[Array]) -> Result<Vec<Vec<f64>>> {
    let refs: Vec<&Array> = x.iter().collect();
    let mut saved = Saved::new(&refs, vec![true; x.len()]);
    op.forward(&refs, &mut saved)?;
    op.backward(&saved, dy)?.into_iter().flatten().map(|g| g.to_f64_vec()).collect()
}

fn everywhere(f: impl Fn(DType, &Context) -> Result<()>) -> Result<()> {
    common::contexts().iter().try_for_each(|ctx| FLOATS.iter().try_for_each(|&dtype| f(dtype, ctx)))
}

#[test]
fn nothing_comes_back_through_a_dead_unit() -> Result<()> {
    use UnaryKind::*;
    everywhere(|dtype, ctx| {
        for dead in [INF, -INF, NAN] {
            // Nine elements: the packs of a kernel and the rest behind them.
            let dy = |alive: usize| (0..9).map(|i| if i == alive { 2.0 } else { dead }).collect::<Vec<f64>>();
            let want = |alive: usize, v: f64| (0..9).map(|i| if i == alive { v } else { 0.0 }).collect::<Vec<f64>>();
            for alive in [3, 8] {
                let x = |on: f64, off: f64| {
                    array(&want(alive, 1.0).iter().map(|&v| if v > 0.0 { on } else { off }).collect::<Vec<_>>(), &[9], dtype, ctx)
                };
                let dy = array(&dy(alive), &[9], dtype, ctx)?;
                for (kind, on, off) in [
                    (Relu, 1.0, -1.0),
                    (Relu, 1.0, 0.0),
                    (LeakyRelu(0.0), 1.0, -1.0),
                    (Clip(-1.0, 1.5), 1.0, 2.0),
                    (Clip(-1.0, 1.5), 1.0, -3.0),
                    (Abs, 1.0, 0.0),
                ] {
                    let dx = gradients(&Unary(kind), &[x(on, off)?], slice::from_ref(&dy))?;
                    same(&dx[0], &want(alive, 2.0), &format!("{kind:?} at {off} in {dtype} on {ctx}, dy {dead}"));
                }
                let dx = gradients(&Unary(Pow(0.0)), &[x(1.0, 0.0)?], slice::from_ref(&dy))?;
                same(&dx[0], &[0.0; 9], &format!("pow(0) in {dtype} on {ctx}"));
                for (kind, off) in [(BinaryKind::Maximum, -1.0), (BinaryKind::Minimum, 1.0)] {
                    let b = array(&[0.0; 9], &[9], dtype, ctx)?;
                    let dx = gradients(&Binary(kind), &[x(-off, off)?, b], slice::from_ref(&dy))?;
                    same(&dx[0], &want(alive, 2.0), &format!("{kind:?} in {dtype} on {ctx}"));
                }
                // |x − z|, a sample for each element.
                let z = array(&[0.5; 9], &[9], dtype, ctx)?;
                let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
                let op = PairLoss { kind: PairLossKind::Absolute, weight: 1.0 };
                let dloss = array(&dy.to_f64_vec()?, &[9], wide, ctx)?;
                same(&gradients(&op, &[x(1.0, 0.5)?, z], &[dloss])?[0], &want(alive, 2.0), &format!("l1 in {dtype} on {ctx}"));
            }
        }
        Ok(())
    })
}

#[test]
fn selections_choose_gradients_and_do_not_multiply() -> Result<()> {
    everywhere(|dtype, ctx| {
        let what = |name: &str| format!("{name} in {dtype} on {ctx}");
        // where: the side that was not chosen.
        let x = tensor(&[1.0, 2.0], dtype, ctx)?.attach_grad();
        let cond = tensor(&[1.0, 0.0], dtype, ctx)?;
        let zero = x.zeros_like()?;
        let y = record(|| cond.where_(&x, &zero))?;
        y.backward_from(&tensor(&[3.0, NAN], dtype, ctx)?, false)?;
        same(&x.grad()?.array().to_f64_vec()?, &[3.0, 0.0], &what("where"));
        // Dropout: p = 1 drops all, and what is dropped is the same in both passes.
        let v = array(&[1.0; 9], &[9], dtype, ctx)?;
        let all = Dropout { p: 1.0, draw: Draw { seed: 1, number: 0 } };
        same(
            &gradients(&all, slice::from_ref(&v), &[array(&[INF; 9], &[9], dtype, ctx)?])?[0],
            &[0.0; 9],
            &what("dropout of all"),
        );
        let half = Dropout { p: 0.5, draw: Draw { seed: 1, number: 0 } };
        let kept = half.forward(&[&v], &mut Saved::default())?[0].to_f64_vec()?;
        let dx = &gradients(&half, &[v], &[array(&[INF; 9], &[9], dtype, ctx)?])?[0];
        same(dx, &kept.iter().map(|&k| if k == 0.0 { 0.0 } else { INF }).collect::<Vec<_>>(), &what("dropout"));
        // Reductions to one element, and pooling: only the winner's place.
        let v = array(&[3.0, 7.0, 1.0, 2.0], &[1, 1, 2, 2], dtype, ctx)?;
        let top = Reduce { kind: ReduceKind::Max, axes: vec![], keepdims: false };
        same(&gradients(&top, slice::from_ref(&v), &[array(&[INF], &[], dtype, ctx)?])?[0], &[0.0, INF, 0.0, 0.0], &what("max"));
        let pool = hadal::ops::MaxPool2d(PoolOptions::new(2));
        same(
            &gradients(&pool, &[v], &[array(&[INF], &[1, 1, 1, 1], dtype, ctx)?])?[0],
            &[0.0, INF, 0.0, 0.0],
            &what("max_pool2d"),
        );
        // The margin of a pad, the overwritten box of a slice_assign.
        let x = tensor(&[1.0, 2.0], dtype, ctx)?.attach_grad();
        record(|| x.pad(&[(1, 1)], 0.0))?.backward_from(&tensor(&[NAN, 4.0, 5.0, INF], dtype, ctx)?, false)?;
        same(&x.grad()?.array().to_f64_vec()?, &[4.0, 5.0], &what("pad"));
        let one = tensor(&[9.0], dtype, ctx)?;
        record(|| x.slice_assign(&[0..1], &one))?.backward_from(&tensor(&[NAN, 4.0], dtype, ctx)?, false)?;
        same(&x.grad()?.array().to_f64_vec()?, &[0.0, 4.0], &what("slice_assign"));
        // ReLU behind a normalization.
        let channel = |v: f64| array(&[v], &[1], if dtype == DType::F64 { DType::F64 } else { DType::F32 }, ctx);
        let inputs = [array(&[-1.0, 2.0], &[2, 1], dtype, ctx)?, channel(1.0)?, channel(0.0)?, channel(0.0)?, channel(1.0)?];
        let dx = gradients(&BatchNormInferenceRelu { eps: 0.0 }, &inputs, &[array(&[INF, 3.0], &[2, 1], dtype, ctx)?])?;
        same(&dx[0], &[0.0, 3.0], &what("batch_norm_inference_relu"));
        same(&dx[2], &[3.0], &what("its beta"));
        Ok(())
    })
}

#[test]
fn sqrt_behind_relu_sends_nothing_through_a_dead_unit() -> Result<()> {
    everywhere(|dtype, ctx| {
        let x = tensor(&[-1.0, 4.0], dtype, ctx)?.attach_grad();
        record(|| x.relu()?.sqrt())?.backward()?;
        same(&x.grad()?.array().to_f64_vec()?, &[0.0, 0.25], &format!("{dtype} on {ctx}"));
        Ok(())
    })
}

#[test]
fn nan_goes_through_relu_and_stops_at_clip_and_abs_as_in_pytorch() -> Result<()> {
    everywhere(|dtype, ctx| {
        for (kind, want) in [(UnaryKind::Relu, 2.0), (UnaryKind::Clip(-1.0, 1.0), 0.0), (UnaryKind::Abs, 0.0)] {
            let x = array(&[NAN], &[1], dtype, ctx)?;
            let y = Unary(kind).forward(&[&x], &mut Saved::default())?;
            same(&y[0].to_f64_vec()?, &[NAN], &format!("{kind:?} of NaN in {dtype} on {ctx}"));
            let dx = gradients(&Unary(kind), &[x], &[array(&[2.0], &[1], dtype, ctx)?])?;
            same(&dx[0], &[want], &format!("{kind:?}' at NaN in {dtype} on {ctx}"));
        }
        let channel = |v: f64| array(&[v], &[1], if dtype == DType::F64 { DType::F64 } else { DType::F32 }, ctx);
        let inputs = [array(&[NAN, 2.0], &[2, 1], dtype, ctx)?, channel(1.0)?, channel(0.0)?, channel(0.0)?, channel(1.0)?];
        let dx = gradients(&BatchNormInferenceRelu { eps: 0.0 }, &inputs, &[array(&[5.0, 3.0], &[2, 1], dtype, ctx)?])?;
        same(&dx[2], &[8.0], &format!("beta of batch_norm_inference_relu at NaN in {dtype} on {ctx}"));
        Ok(())
    })
}

#[test]
fn quotients_of_subnormal_numbers_have_finite_gradients() -> Result<()> {
    for ctx in common::contexts() {
        for (dtype, tiny) in [(DType::F32, 1e-40), (DType::F64, 1e-310)] {
            let (a, b) = (tensor(&[0.0], dtype, &ctx)?, tensor(&[tiny], dtype, &ctx)?.attach_grad());
            record(|| a.div(&b))?.backward()?;
            same(&b.grad()?.array().to_f64_vec()?, &[0.0], &format!("a / b in {dtype} on {ctx}"));
            record(|| 0.0 / &b)?.backward()?;
            same(&b.grad()?.array().to_f64_vec()?, &[0.0], &format!("0 / b in {dtype} on {ctx}"));
            record(|| b.log())?.backward_from(&tensor(&[0.0], dtype, &ctx)?, false)?;
            same(&b.grad()?.array().to_f64_vec()?, &[0.0], &format!("ln b in {dtype} on {ctx}"));
        }
    }
    Ok(())
}

#[test]
fn a_norm_overflows_only_when_its_value_does() -> Result<()> {
    everywhere(|dtype, ctx| {
        let what = |n: &str| format!("{n} in {dtype} on {ctx}");
        let grad_of = |v: &[f64]| -> Result<(f64, Vec<f64>)> {
            let x = tensor(v, dtype, ctx)?.attach_grad();
            let y = record(|| x.norm(&[]))?;
            y.backward()?;
            Ok((y.item()?, x.grad()?.array().to_f64_vec()?))
        };
        let near = |got: &[f64], want: &[f64], name: &str| {
            let bound = 2.0 * hadal::check::bound(dtype);
            let fits = got.iter().zip(want).all(|(a, b)| (a - b).abs() <= bound * b.abs());
            assert!(fits, "{}: {got:?}, expected {want:?}", what(name));
        };
        let (y, dx) = grad_of(&[300.0, 400.0])?;
        near(&[y], &[500.0], "norm");
        near(&dx, &[0.6, 0.8], "its gradient");
        let (y, dx) = grad_of(&[1e-4, 0.0])?;
        near(&[y], &[array(&[1e-4], &[1], dtype, ctx)?.item()?], "small norm");
        near(&dx, &[1.0, 0.0], "its gradient");
        let (y, dx) = grad_of(&[0.0, 0.0])?;
        same(&[y, dx[0], dx[1]], &[0.0; 3], &what("norm of 0"));
        if dtype == DType::F32 {
            let (y, dx) = grad_of(&[3e38, 0.0])?;
            near(&[y], &[3e38], "large norm");
            near(&dx, &[1.0, 0.0], "its gradient");
            let (y, dx) = grad_of(&[1e-40, 0.0])?;
            near(&[y, dx[0]], &[array(&[1e-40], &[1], dtype, ctx)?.item()?, 1.0], "subnormal norm");
        }
        // Along an axis, and behind an infinite gradient.
        let x = Tensor::new(array(&[3.0, 0.0, 4.0, 0.0], &[2, 2], dtype, ctx)?).attach_grad();
        let y = record(|| x.norm(&[0]))?;
        same(&y.array().to_f64_vec()?, &[5.0, 0.0], &what("norm of columns"));
        y.backward_from(&tensor(&[1.0, INF], dtype, ctx)?, false)?;
        let g = x.grad()?.array().to_f64_vec()?;
        near(&[g[0], g[2]], &[0.6, 0.8], "columns");
        same(&[g[1], g[3]], &[0.0, 0.0], &what("a column of zeros"));
        Ok(())
    })
}

#[test]
fn sums_and_products_overflow_only_when_their_value_does() -> Result<()> {
    for ctx in common::contexts() {
        let of = |v: &[f64], kind: ReduceKind, dtype: DType| -> Result<f64> {
            let op = Reduce { kind, axes: vec![], keepdims: false };
            op.forward(&[&array(v, &[v.len()], dtype, &ctx)?], &mut Saved::default())?[0].item()
        };
        use ReduceKind::*;
        let near = |a: f64, b: f64, what: &str| assert!((a - b).abs() <= 2e-2 * b.abs(), "{what} on {ctx}: {a}, expected {b}");
        // Few elements (a thread for each output), many (a block), and so many that there are two passes.
        for n in [4, 300, 20_000] {
            near(of(&vec![3e38; n], Mean, DType::F32)?, 3e38, "mean of 3e38");
            near(of(&vec![60_000.0; n], Mean, DType::F16)?, 60_000.0, "f16 mean");
            near(of(&vec![3e38; n], Mean, DType::BF16)?, 3e38, "bf16 mean");
            let signs: Vec<f64> = (0..n).map(|i| if i < n / 2 { 3e38 } else { -3e38 }).collect();
            same(&[of(&signs, Sum, DType::F32)?], &[0.0], &format!("a sum that cancels on {ctx}"));
        }
        near(of(&[1e30, 1e30, 1e-30], Prod, DType::F32)?, 1e30, "prod");
        // Along the outer axis: neighbouring outputs side by side.
        let x = Tensor::new(array(&vec![3e38; 64 * 64], &[64, 64], DType::F32, &ctx)?);
        assert!(x.mean(&[0])?.to_vec()?.iter().all(|v| (v / 3e38 - 1.0).abs() < 1e-6), "mean of columns on {ctx}");
        assert!(x.reshape(&[64, 1, 8, 8])?.global_avg_pool2d()?.to_vec()?.iter().all(|v| (v / 3e38 - 1.0).abs() < 1e-6), "{ctx}");
    }
    Ok(())
}

#[test]
fn long_sums_in_f64_are_exact_to_a_few_bits() -> Result<()> {
    // 1e6 on the emulator, where each element is a fiber's step.
    for ctx in common::contexts() {
        let n: usize = if ctx.is_gpu() { 200_000 } else { 10_000_000 };
        let exact = n as f64 * 0.1;
        for shape in [vec![n], vec![n / 10, 10], vec![10, n / 10]] {
            let x = Tensor::new(Array::full(&shape, 0.1, DType::F64, &ctx)?);
            let error = (x.sum(&[])?.item()? - exact).abs() / exact;
            assert!(error < 1e-14, "{shape:?} on {ctx}: {error:e}");
            for axis in 0..shape.len() {
                let sums = x.sum(&[axis as isize])?.array().to_f64_vec()?;
                let exact = shape[axis] as f64 * 0.1;
                let error = sums.iter().map(|s| (s - exact).abs() / exact).fold(0.0, f64::max);
                assert!(error < 1e-14, "{shape:?} over axis {axis} on {ctx}: {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn products_with_zeros_and_infinities_have_their_gradients() -> Result<()> {
    everywhere(|dtype, ctx| {
        for (x, want) in [
            (vec![2.0, 3.0, 4.0], vec![12.0, 8.0, 6.0]),
            (vec![2.0, INF, 4.0], vec![INF, 8.0, INF]),
            (vec![2.0, -INF, INF], vec![-INF, INF, -INF]),
            (vec![2.0, 0.0, 4.0], vec![0.0, 8.0, 0.0]),
            (vec![0.0, 0.0, 4.0], vec![0.0; 3]),
            (vec![0.0, INF, 4.0], vec![INF, 0.0, NAN]),
        ] {
            // 300 factors: several runs of a block's threads.
            for n in [3, 300] {
                let of = |v: &[f64], rest: f64| v.iter().copied().chain(std::iter::repeat_n(rest, n - 3)).collect::<Vec<_>>();
                let t = tensor(&of(&x, 1.0), dtype, ctx)?.attach_grad();
                record(|| t.prod(&[]))?.backward()?;
                let dx = t.grad()?.array().to_f64_vec()?;
                same(&dx[..3], &want, &format!("prod of {x:?}, {n} factors, in {dtype} on {ctx}"));
            }
        }
        let t = tensor(&[0.0, 0.0, 4.0], dtype, ctx)?.attach_grad();
        record(|| t.prod(&[]))?.backward_from(&Tensor::new(array(&[INF], &[], dtype, ctx)?), false)?;
        same(&t.grad()?.array().to_f64_vec()?, &[0.0; 3], &format!("two zeros behind an infinite dy in {dtype} on {ctx}"));
        if dtype == DType::F32 {
            let t = tensor(&[1e30, 1e30], dtype, ctx)?.attach_grad();
            record(|| t.prod(&[]))?.backward()?;
            assert!(t.grad()?.to_vec()?.iter().all(|g| (g / 1e30 - 1.0).abs() < 1e-6), "an overflowing product on {ctx}");
        }
        Ok(())
    })
}

#[test]
fn bf16_cross_entropy_rounds_its_gradient_once() -> Result<()> {
    for ctx in common::contexts() {
        let (n, c) = (16, 10);
        let logits: Vec<f64> = (0..n * c).map(|i| f64::from((i * 37 % 101) as u8) / 25.0 - 2.0).collect();
        let logits = array(&logits, &[n, c], DType::BF16, &ctx)?;
        let labels = Tensor::from_vec((0..n).map(|i| (i % c) as i64).collect(), &[n], &ctx)?;
        let gradient = |x: Array| -> Result<Vec<f64>> {
            let x = Tensor::new(x).attach_grad();
            record(|| x.softmax_cross_entropy(&labels)?.mul(0.3)?.mean(&[]))?.backward()?;
            x.grad()?.array().to_f64_vec()
        };
        let exact = gradient(Tensor::new(logits.clone()).cast(DType::F64)?.array())?;
        for (got, want) in gradient(logits)?.iter().zip(exact) {
            // Half a unit in the last of bf16's 8 bits.
            assert!((got - want).abs() <= want.abs() / 256.0 * 1.001, "{got}, exact {want} on {ctx}");
        }
    }
    Ok(())
}

#[test]
fn an_index_is_never_rounded() -> Result<()> {
    let large = (1i64 << 24) + 1;
    for ctx in common::contexts() {
        let x = Tensor::from_vec(vec![large, large - 1, 5], &[3], &ctx)?;
        assert!(matches!(x.to_vec(), Err(Error::DType { .. })));
        assert_eq!(x.array().to_vec::<i64>()?, [large, large - 1, 5]);
        assert_eq!(x.slice(0, 1..3)?.to_vec()?, [16_777_216.0, 5.0]);
        assert_eq!(Tensor::from_vec(vec![i64::MIN], &[1], &ctx)?.to_vec()?, [i64::MIN as f32]);
        assert!(Tensor::from_vec(vec![i64::MAX], &[1], &ctx)?.to_vec().is_err());
    }
    // The largest element lies at 2²⁴ + 1.
    let mut v = vec![0u8; large as usize + 1];
    v[large as usize] = 1;
    let x = Tensor::from_vec(v, &[large as usize + 1], &cpu())?.argmax(None)?;
    assert!(x.to_vec().is_err());
    assert_eq!(x.item()?, large as f64);
    Ok(())
}

#[test]
fn the_norm_of_16_bit_gradients_is_f32() -> Result<()> {
    everywhere(|dtype, ctx| {
        let mut g = [array(&[300.0, 400.0], &[2], dtype, ctx)?, array(&[1200.0], &[1], dtype, ctx)?];
        assert_eq!(clip_global_norm(&mut g, 1.3)?.item()?, 1300.0, "{dtype} on {ctx}");
        // The factor has the 1e-8 of MXNet below the line.
        let bound = hadal::check::bound(dtype).max(1e-8);
        for (got, want) in g[0].to_f64_vec()?.iter().chain(&g[1].to_f64_vec()?).zip([0.3, 0.4, 1.2]) {
            assert!((got / want - 1.0).abs() < bound, "{got}, expected {want}, in {dtype} on {ctx}");
        }
        Ok(())
    })
}

/// What each door says to a write that the tape would miss.
fn refused(what: &str, ctx: &Context, r: Result<()>) {
    match r {
        Err(Error::Autograd(e)) => assert!(e.contains("in place"), "{what} on {ctx}: {e}"),
        other => panic!("{what} on {ctx} passed while recording: {other:?}"),
    }
}

#[test]
fn no_write_is_missed_by_the_tape() -> Result<()> {
    for ctx in common::contexts() {
        let x = Tensor::from_vec(vec![2f32, 3.], &[2], &ctx)?.attach_grad();
        let w = Tensor::ones(&[2], &ctx)?.attach_grad();
        let z = Tensor::zeros(&[2], &ctx)?;
        record(|| -> Result<()> {
            let y = x.square()?;
            // From the tape into a plain tensor.
            refused("write", &ctx, z.write(&[0..2], &y));
            refused("copy_from", &ctx, z.copy_from(&y));
            refused("set_array", &ctx, z.set_array(y.array()));
            refused("set_array of a reshaped array", &ctx, z.set_array(y.array().reshape(&[2, 1])?.reshape(&[2])?));
            refused("add_", &ctx, z.add_(&y));
            refused("mul_", &ctx, z.mul_(&x));
            // Into a variable, and into a result.
            for t in [&w, &y] {
                refused("write", &ctx, t.write(&[0..1], &z.slice(0, 0..1)?));
                refused("fill", &ctx, t.fill(&[0..1], 1.0));
                refused("copy_from", &ctx, t.copy_from(&z));
                refused("set_array", &ctx, t.set_array(z.array()));
                refused("update", &ctx, t.update(|_| Ok(())));
                refused("sub_", &ctx, t.sub_(1.0));
                refused("div_", &ctx, t.div_(&z));
            }
            assert_eq!(z.to_vec()?, [0.0, 0.0]);
            assert_eq!(w.to_vec()?, [1.0, 1.0]);
            // What has nothing to do with the tape is written, also its values off the tape.
            z.write(&[0..1], &Tensor::ones(&[1], &ctx)?)?;
            z.fill(&[1..2], 5.0)?;
            z.add_(1.0)?;
            assert_eq!(z.to_vec()?, [2.0, 6.0]);
            z.copy_from(&y.detach())?;
            z.set_array(y.detach().array())?;
            assert_eq!(z.to_vec()?, [4.0, 9.0]);
            autograd::pause(|| w.set_array(y.array()))?;
            assert_eq!(w.to_vec()?, [4.0, 9.0]);
            Ok(())
        })?;
        // The recorded way gives 4, 6.
        let b = Tensor::ones(&[2], &ctx)?;
        record(|| z.slice_assign(&[0..2], &x.square()?)?.add(&b))?.backward()?;
        assert_eq!(x.grad()?.to_vec()?, [4.0, 6.0]);
    }
    Ok(())
}

/// A write into a tensor.
type Door = fn(&Tensor) -> Result<()>;

#[test]
fn a_write_does_not_change_what_a_node_has_kept() -> Result<()> {
    for ctx in common::contexts() {
        let doors: [(&str, Door); 6] = [
            ("write", |z| z.write(&[0..2], &z.zeros_like()?)),
            ("fill", |z| z.fill(&[0..2], 0.0)),
            ("copy_from", |z| z.copy_from(&z.zeros_like()?)),
            ("set_array", |z| z.set_array(z.zeros_like()?.array())),
            ("mul_", |z| z.mul_(0.0)),
            ("update", |z| {
                let other = z.array();
                z.update(|a| a.add_assign(&other))
            }),
        ];
        for (name, door) in doors {
            let x = Tensor::ones(&[2], &ctx)?.attach_grad();
            let z = Tensor::from_vec(vec![2f32, 3.], &[2], &ctx)?;
            let y = record(|| -> Result<Tensor> {
                let y = x.mul(&z)?;
                door(&z)?;
                Ok(y)
            })?;
            // Once more behind the recording, also on a variable that a node has kept.
            let square = record(|| x.square())?;
            door(&z)?;
            door(&x)?;
            y.backward()?;
            assert_eq!(x.grad()?.to_vec()?, [2.0, 3.0], "{name} on {ctx}");
            square.backward()?;
            assert_eq!(x.grad()?.to_vec()?, [2.0, 2.0], "{name} on {ctx}");
        }
    }
    Ok(())
}
