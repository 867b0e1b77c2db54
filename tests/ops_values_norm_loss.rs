//! Values and errors of normalization, softmax, losses, dropout and random arrays, on every context that is here.

mod common;

use hadal::{
    Array, Context, DType, Error, Layout, Result, Tensor, autograd, check, cpu,
    loss::{L1, L2, SigmoidBinaryCrossEntropy, SoftmaxCrossEntropy},
    ops::Dropout,
    random::{self, Draw},
};

fn tensor(v: &[f32], shape: &[usize], ctx: &Context) -> Tensor {
    Tensor::from_vec(v.to_vec(), shape, ctx).unwrap()
}

fn labels(v: &[i64], shape: &[usize], ctx: &Context) -> Tensor {
    Tensor::from_vec(v.to_vec(), shape, ctx).unwrap()
}

#[track_caller]
fn close(a: &[f32], b: &[f32], bound: f32) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= bound * y.abs().max(1.0) || x == y, "{a:?} against {b:?}");
    }
}

#[track_caller]
fn message<T: std::fmt::Debug>(r: Result<T>, part: &str) {
    let text = r.unwrap_err().to_string();
    assert!(text.contains(part), "{text:?} does not say {part:?}");
}

#[test]
fn softmax_holds_at_the_extremes() -> Result<()> {
    for ctx in common::contexts() {
        let inf = f32::INFINITY;
        let x = tensor(&[1., 2., 3., 1e4, -1e4, 1e4, -inf, 0., 3f32.ln()], &[3, 3], &ctx);
        let y = x.softmax(-1)?.to_vec()?;
        close(&y, &[0.090_030_57, 0.244_728_47, 0.665_240_96, 0.5, 0., 0.5, 0., 0.25, 0.75], 1e-6);
        let y = x.log_softmax(1)?.to_vec()?;
        let half = -(2f32.ln());
        let expected = [-2.407_606, -1.407_606, -0.407_606, half, -2e4 + half, half, -inf, -(4f32.ln()), 0.75f32.ln()];
        close(&y, &expected, 1e-6);
        // A row of −∞ alone has no distribution, and NaN does not stay hidden.
        let y = tensor(&[-inf, -inf, f32::NAN, 0.], &[2, 2], &ctx).softmax(1)?.to_vec()?;
        assert!(y.iter().all(|v| v.is_nan()), "{y:?}");
        message(x.softmax(2), "softmax: axis 2 is outside of 2 dimensions");
        message(labels(&[1], &[1], &ctx).softmax(0), "softmax: i64");
    }
    Ok(())
}

#[test]
fn the_gradient_of_an_impossible_class_is_zero() -> Result<()> {
    for ctx in common::contexts() {
        let x = tensor(&[f32::NEG_INFINITY, 0., 0.], &[1, 3], &ctx).attach_grad();
        autograd::record(|| SoftmaxCrossEntropy::new().forward(&x, &labels(&[1], &[1], &ctx)))?.backward()?;
        assert_eq!(x.grad()?.to_vec()?, [0., -0.5, 0.5]);
    }
    Ok(())
}

#[test]
fn cross_entropy_is_that_of_the_book() -> Result<()> {
    for ctx in common::contexts() {
        // The book's example: probabilities 0.3 and 0.5 for the labels 0 and 2.
        let p = [0.1f32, 0.3, 0.6, 0.3, 0.2, 0.5];
        let logits = tensor(&p.map(f32::ln), &[2, 3], &ctx);
        let label = labels(&[0, 2], &[2], &ctx);
        let expected = [-(0.1f32.ln()), -(0.5f32.ln())];
        close(&SoftmaxCrossEntropy::new().forward(&logits, &label)?.to_vec()?, &expected, 1e-6);
        close(&SoftmaxCrossEntropy::new().from_logits(true).forward(&logits, &label)?.to_vec()?, &expected, 1e-6);
        close(&SoftmaxCrossEntropy::new().weight(2.0).forward(&logits, &label)?.to_vec()?, &expected.map(|l| 2.0 * l), 1e-6);
        let float = tensor(&[0., 2.], &[2], &ctx);
        close(&SoftmaxCrossEntropy::new().forward(&logits, &float)?.to_vec()?, &expected, 1e-6);
        let onehot = tensor(&[1., 0., 0., 0., 0., 1.], &[2, 3], &ctx);
        close(&SoftmaxCrossEntropy::new().sparse_label(false).forward(&logits, &onehot)?.to_vec()?, &expected, 1e-6);
        let loss = logits.softmax_cross_entropy(&label)?;
        assert_eq!((loss.shape(), loss.dtype()), (vec![2], DType::F32));
        // Large logits: ln(1 + e⁻¹) and 2·10⁴ without overflow.
        let large = tensor(&[1e4, 1e4 - 1.0, -1e4, 1e4], &[2, 2], &ctx);
        close(&large.softmax_cross_entropy(&labels(&[0, 0], &[2], &ctx))?.to_vec()?, &[0.313_261_7, 2e4], 1e-6);
    }
    Ok(())
}

#[test]
fn axis_and_mean_follow_gluon() -> Result<()> {
    for ctx in common::contexts() {
        // (N, C, W) = (1, 2, 3), classes on axis 1; probabilities of class 1: 3/4, 1/2, 1/4.
        let l = 3f32.ln();
        let x = tensor(&[0., 0., l, l, 0., 0.], &[1, 2, 3], &ctx);
        let loss = SoftmaxCrossEntropy::new().axis(1).forward(&x, &labels(&[1, 1, 1], &[1, 3], &ctx))?;
        close(&loss.to_vec()?, &[-((0.75f32 * 0.5 * 0.25).ln()) / 3.0], 1e-6);
    }
    Ok(())
}

#[test]
fn a_label_out_of_range_is_named_or_nan() -> Result<()> {
    let x = tensor(&[0.; 6], &[2, 3], &cpu());
    message(x.softmax_cross_entropy(&labels(&[0, 3], &[2], &cpu())), "sample 1 has label 3, the classes are 0 to 2");
    message(x.softmax_cross_entropy(&labels(&[-1, 0], &[2], &cpu())), "sample 0 has label -1");
    message(x.softmax_cross_entropy(&tensor(&[0.5, 0.], &[2], &cpu())), "sample 0 has label 0.5");
    message(x.softmax_cross_entropy(&tensor(&[f32::NAN, 0.], &[2], &cpu())), "sample 0 has label NaN");
    message(x.softmax_cross_entropy(&labels(&[0, 1, 2], &[3], &cpu())), "(shapes (2, 3), (3,))");
    message(
        SoftmaxCrossEntropy::new().sparse_label(false).forward(&x, &labels(&[0; 6], &[2, 3], &cpu())),
        "softmax_cross_entropy: i64",
    );
    message(Tensor::zeros(&[], &cpu())?.softmax_cross_entropy(&labels(&[0], &[], &cpu())), "axis -1");
    if let Some(gpu) = common::gpu() {
        for bad in [3, -1, i64::MAX, i64::MIN] {
            let x = tensor(&[0.; 6], &[2, 3], &gpu).attach_grad();
            let loss = autograd::record(|| x.softmax_cross_entropy(&labels(&[0, bad], &[2], &gpu)))?;
            loss.backward()?;
            let (loss, dx) = (loss.to_vec()?, x.grad()?.to_vec()?);
            assert!((loss[0] - 3f32.ln()).abs() < 1e-6 && loss[1].is_nan(), "{loss:?}");
            assert!(dx[..3].iter().all(|v| v.is_finite()) && dx[3..].iter().all(|v| v.is_nan()), "{dx:?}");
        }
        for bad in [0.5, f32::NAN, f32::INFINITY, 1e30, -1.0] {
            let loss = tensor(&[0.; 6], &[2, 3], &gpu).softmax_cross_entropy(&tensor(&[bad, 0.], &[2], &gpu))?.to_vec()?;
            assert!(loss[0].is_nan() && loss[1].is_finite(), "{bad}: {loss:?}");
        }
    }
    Ok(())
}

#[test]
fn pair_losses_have_gluons_values() -> Result<()> {
    for ctx in common::contexts() {
        let (x, z) = (tensor(&[1., 2., -3., 0.], &[2, 2], &ctx), tensor(&[0., 4., 1., 1.], &[2, 2], &ctx));
        assert_eq!(L2::new().forward(&x, &z)?.to_vec()?, [1.25, 4.25]);
        assert_eq!(L2::new().weight(4.0).forward(&x, &z)?.to_vec()?, [5., 17.]);
        assert_eq!(L1::new().forward(&x, &z)?.to_vec()?, [1.5, 2.5]);
        // ln(1 + e⁻ˣ) for z = 1, ln(1 + eˣ) for z = 0
        let x = tensor(&[2., 2., -200., 200.], &[4], &ctx);
        let z = tensor(&[1., 0., 1., 1.], &[4], &ctx);
        let loss = SigmoidBinaryCrossEntropy::new().forward(&x, &z)?.to_vec()?;
        close(&loss, &[0.126_928, 2.126_928, 200., 0.], 1e-6);
        let loss = SigmoidBinaryCrossEntropy::new().from_sigmoid(true);
        let loss = loss.forward(&tensor(&[0.25, 0.25], &[2], &ctx), &tensor(&[1., 0.], &[2], &ctx))?.to_vec()?;
        close(&loss, &[4f32.ln(), -(0.75f32.ln())], 1e-6);
        message(L2::new().forward(&x, &tensor(&[1.], &[1], &ctx)), "l2_loss: a label needs as many elements");
        message(L2::new().forward(&x, &labels(&[0; 4], &[4], &ctx)), "l2_loss: i64");
    }
    Ok(())
}

#[test]
fn batch_norm_keeps_its_digits_far_from_zero() -> Result<()> {
    for ctx in common::contexts() {
        let ones = |c: usize| Tensor::ones(&[c], &ctx);
        for mean in [1000f32, -1000., 0.] {
            // ±¼ around the mean, exact in f32; once the first sample lies far away.
            let mut v: Vec<f32> = (0..4096).map(|i| mean + if i % 2 == 0 { 0.25 } else { -0.25 }).collect();
            let x = tensor(&v, &[4, 1, 32, 32], &ctx);
            let (y, mu, var) = x.batch_norm(&ones(1)?, &Tensor::zeros(&[1], &ctx)?, 0.0)?;
            close(&mu.to_vec()?, &[mean], 1e-7);
            close(&var.to_vec()?, &[0.0625], 1e-6);
            close(&y.to_vec()?, &v.iter().map(|x| (x - mean) * 4.0).collect::<Vec<_>>(), 1e-5);
            v[..1024].fill(mean + 64.0);
            let exact_mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / 4096.0;
            let exact = v.iter().map(|&x| (f64::from(x) - exact_mean).powi(2)).sum::<f64>() / 4096.0;
            let (_, mu, var) = tensor(&v, &[4, 1, 32, 32], &ctx).batch_norm(&ones(1)?, &Tensor::zeros(&[1], &ctx)?, 0.0)?;
            close(&mu.to_vec()?, &[exact_mean as f32], 1e-6);
            close(&var.to_vec()?, &[exact as f32], 1e-6);
        }
        // Equal values: the variance is 0, the output β, and ε keeps the gradient finite.
        let x = tensor(&[1000.; 6], &[3, 2], &ctx).attach_grad();
        let y = autograd::record(|| x.batch_norm(&ones(2)?, &tensor(&[5., 6.], &[2], &ctx), 1e-5))?.0;
        assert_eq!(y.to_vec()?, [5., 6., 5., 6., 5., 6.]);
        y.backward()?;
        assert_eq!(x.grad()?.to_vec()?, [0.; 6]);
        // NaN is not lost.
        let y = tensor(&[f32::NAN, 1., 2., 3.], &[2, 2], &ctx).batch_norm(&ones(2)?, &ones(2)?, 1e-5)?;
        assert!(y.1.to_vec()?[0].is_nan() && y.2.to_vec()?[0].is_nan() && !y.2.to_vec()?[1].is_nan());
    }
    Ok(())
}

#[test]
fn batch_norm_of_half_precision_has_f32_statistics() -> Result<()> {
    for ctx in common::contexts() {
        for dtype in [DType::F16, DType::BF16] {
            let x = check::cast(&check::random(&[4, 3, 5, 5], 1)?, dtype)?.to_context(&ctx)?;
            let (gamma, beta) = (Tensor::ones(&[3], &ctx)?.attach_grad(), Tensor::zeros(&[3], &ctx)?);
            let x = Tensor::new(x.to_layout(Layout::ChannelsLast)?).attach_grad();
            let (y, mean, var) = autograd::record(|| x.batch_norm(&gamma, &beta, 1e-5))?;
            assert_eq!((y.dtype(), mean.dtype(), var.dtype()), (dtype, DType::F32, DType::F32));
            assert_eq!(y.layout(), Layout::ChannelsLast);
            y.backward()?;
            assert_eq!((x.grad()?.dtype(), gamma.grad()?.dtype()), (dtype, DType::F32));
        }
    }
    Ok(())
}

#[test]
fn batch_norm_says_what_is_wrong() -> Result<()> {
    for ctx in common::contexts() {
        let p = Tensor::ones(&[3], &ctx)?;
        message(Tensor::ones(&[3], &ctx)?.batch_norm(&p, &p, 1e-5), "batch_norm: an input (N, C, …) of 2 to 5 dimensions");
        message(Tensor::ones(&[1; 6], &ctx)?.batch_norm(&p, &p, 1e-5), "2 to 5 dimensions");
        message(Tensor::ones(&[2, 4], &ctx)?.batch_norm(&p, &p, 1e-5), "need shape (4,), one value per channel");
        message(Tensor::ones(&[0, 3], &ctx)?.batch_norm(&p, &p, 1e-5), "an empty batch");
        message(Tensor::ones(&[2, 3], &ctx)?.batch_norm(&p, &p, f64::NAN), "eps is NaN");
        message(labels(&[0; 6], &[2, 3], &ctx).batch_norm(&p, &p, 1e-5), "batch_norm: i64");
        let doubles = Tensor::new(Array::full(&[3], 1.0, DType::F64, &ctx)?);
        message(Tensor::ones(&[2, 3], &ctx)?.batch_norm(&doubles, &doubles, 1e-5), "batch_norm: operands are f32 and f64");
        assert_eq!(Tensor::ones(&[0, 3], &ctx)?.batch_norm_inference(&p, &p, &p, &p, 0.1)?.shape(), [0, 3]);
    }
    Ok(())
}

/// y and the gradients of x, γ, β and r, of the fused operation or of the plain ones.
fn relu_of_batch_norm(all: &[Array], residual: bool, training: bool, fused: bool) -> Result<Vec<Array>> {
    let t: Vec<Tensor> = all.iter().map(|a| Tensor::new(a.clone()).attach_grad()).collect();
    let [x, gamma, beta, mean, var, r, dy] = t.as_slice() else { unreachable!() };
    let r_ = Some(r).filter(|_| residual);
    let add_relu = |y: Tensor| match r_ {
        Some(r) => (y + r)?.relu(),
        None => y.relu(),
    };
    let y = autograd::record(|| match (fused, training) {
        (true, true) => Ok(x.batch_norm_relu(gamma, beta, r_, 1e-5)?.0),
        (true, false) => x.batch_norm_inference_relu(gamma, beta, [mean, var], r_, 1e-5),
        (false, true) => add_relu(x.batch_norm(gamma, beta, 1e-5)?.0),
        (false, false) => add_relu(x.batch_norm_inference(gamma, beta, mean, var, 1e-5)?),
    })?;
    y.backward_from(dy, false)?;
    let grads = [x, gamma, beta].into_iter().chain(r_).map(|t| Ok(t.grad()?.array()));
    std::iter::once(Ok(y.array())).chain(grads).collect()
}

#[test]
fn relu_of_batch_norm_in_one_pass_has_the_bits_of_two_or_three() -> Result<()> {
    for ctx in common::contexts() {
        for (dtype, bound) in [(DType::F32, 0.0), (DType::F64, 0.0), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            for (shape, layout) in [
                (&[5, 3, 7, 5][..], Layout::RowMajor),
                (&[5, 3, 7, 5], Layout::ChannelsLast),
                (&[2, 16, 13, 11], Layout::ChannelsLast),
                (&[2, 72, 3, 1], Layout::ChannelsLast),
                (&[33, 10], Layout::RowMajor),
            ] {
                let c = &shape[1..2];
                // In the halves the plain sum is rounded before ReLU. The residual decides alone which side of 0 it is on.
                let r = check::random(shape, 6)?.to_vec::<f64>()?.iter().map(|v| v + 16.0 * v.signum()).collect();
                let r = Array::from_vec(r, shape, &cpu())?;
                let statistics = [check::random(c, 4)?, check::random_in(c, 5, 0.3, 2.0)?];
                let mut all =
                    vec![check::random_in(shape, 1, -0.5, 2.0)?, check::random_in(c, 2, 0.5, 1.5)?, check::random(c, 3)?];
                all.extend(statistics.into_iter().chain([r, check::random(shape, 7)?]));
                for a in &mut all {
                    let layout = if a.rank() == 4 { layout } else { Layout::RowMajor };
                    *a = check::cast(a, dtype)?.to_layout(layout)?.to_context(&ctx)?;
                }
                for (residual, training) in [(false, false), (false, true), (true, false), (true, true)] {
                    let fused = relu_of_batch_norm(&all, residual, training, true)?;
                    let plain = relu_of_batch_norm(&all, residual, training, false)?;
                    for (i, (a, b)) in fused.iter().zip(&plain).enumerate() {
                        let d = check::difference(a, b)?;
                        let place = format!("{ctx} {dtype} {shape:?} {layout:?} residual {residual} training {training}: {i}");
                        assert!(d.relative <= bound, "{place}: {d}");
                        assert!(a.layout() == b.layout() && a.dtype() == dtype, "{place}");
                    }
                    let zeros = fused[0].to_f64_vec()?.iter().filter(|&&y| y == 0.0).count();
                    assert!(zeros > 0 && zeros < fused[0].len());
                }
            }
        }
        let (x, p) = (Tensor::ones(&[2, 3], &ctx)?, Tensor::ones(&[3], &ctx)?);
        let wrong = |r: &Tensor| x.batch_norm_relu(&p, &p, Some(r), 1e-5);
        message(wrong(&Tensor::ones(&[3, 2], &ctx)?), "batch_norm_relu: the residual has the input's shape");
        message(wrong(&x.cast(DType::F64)?), "batch_norm_relu: f64");
    }
    Ok(())
}

#[test]
fn running_statistics_move_in_place() -> Result<()> {
    for ctx in common::contexts() {
        let mut running = Array::from_vec(vec![1f32, -2.], &[2], &ctx)?;
        let before = running.clone();
        running.lerp_(&Array::from_vec(vec![11f32, 8.], &[2], &ctx)?, 0.9)?;
        close(&running.to_vec()?, &[2., -1.], 1e-6);
        assert_eq!(before.to_vec::<f32>()?, [1., -2.]);
        message(running.lerp_(&Array::zeros(&[3], DType::F32, &ctx)?, 0.9), "lerp_: the shapes differ");
        message(running.lerp_(&Array::zeros(&[2], DType::F64, &ctx)?, 0.9), "lerp_: f64");
        message(running.lerp_(&Array::zeros(&[2], DType::I64, &ctx)?, 0.9), "lerp_: i64");
    }
    Ok(())
}

#[test]
fn dropout_is_the_same_everywhere() -> Result<()> {
    let drop = Dropout { p: 0.4, draw: Draw { seed: 42, number: 3 } };
    let x = Tensor::full(&[5, 7, 11, 13], 3.0, &cpu())?;
    let expected = x.dropout_with(drop)?.to_vec()?;
    let kept = expected.iter().filter(|&&v| v != 0.0).count() as f64 / 5005.0;
    assert!((kept - 0.6).abs() < 0.03, "{kept}");
    assert!(expected.iter().all(|&v| v == 0.0 || v == 3.0 * (1.0f64 / 0.6) as f32));
    // Element i is kept when its word is at least p: the definition.
    for (i, &y) in expected.iter().enumerate() {
        let word = drop.draw.block(i as u64 / 4)[i % 4];
        assert_eq!(y != 0.0, f64::from(word >> 8) / 16_777_216.0 >= 0.4, "element {i}");
    }
    for ctx in common::contexts() {
        for layout in [Layout::RowMajor, Layout::ChannelsLast] {
            let x = Tensor::new(x.array().to_context(&ctx)?.to_layout(layout)?).attach_grad();
            let y = autograd::record(|| x.dropout_with(drop))?;
            assert_eq!(y.to_vec()?, expected);
            assert_eq!(y.layout(), layout);
            y.backward()?;
            let dx = x.grad()?.to_vec()?;
            assert!(dx.iter().zip(&expected).all(|(d, y)| (*d != 0.0) == (*y != 0.0)));
        }
        let small = tensor(&[1., f32::NAN], &[2], &ctx);
        assert_eq!(autograd::train_mode(|| small.dropout(1.0))?.to_vec()?, [0., 0.]);
        assert_eq!(autograd::train_mode(|| x.dropout(0.0))?.to_vec()?, x.to_vec()?);
        for p in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            message(small.dropout(p), "is outside of [0, 1]");
            message(small.dropout_with(Dropout { p, draw: drop.draw }), "is outside of [0, 1]");
        }
        message(autograd::train_mode(|| labels(&[1], &[1], &ctx).dropout(0.5)), "dropout: i64");
        // Each call in training takes a new draw, and a seed repeats them.
        random::seed(5);
        let y = || autograd::train_mode(|| Tensor::ones(&[100], &ctx)?.dropout(0.5))?.to_vec();
        let (a, b) = (y()?, y()?);
        random::seed(5);
        assert!(a != b && a == y()? && b == y()?);
    }
    Ok(())
}

#[test]
fn random_arrays_are_the_same_everywhere() -> Result<()> {
    for n in [0, 1, 3, 4, 1001, 100_003] {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let make = |ctx: &Context| -> Result<(Array, Array)> {
                random::seed(n as u64);
                let u = Array::uniform(-0.3, 1.7, &[n], dtype, ctx)?;
                Ok((u, Array::normal(1.0, 0.5, &[n], dtype, ctx)?))
            };
            let (u, z) = make(&cpu())?;
            assert!(u.to_f64_vec()?.iter().all(|x| (-0.301..=1.71).contains(x)));
            if let Some(gpu) = common::gpu() {
                let (gu, gz) = make(&gpu)?;
                let differ = |(a, b): &(f64, f64)| a != b;
                let first = gu.to_f64_vec()?.into_iter().zip(u.to_f64_vec()?).enumerate().find(|(_, pair)| differ(pair));
                assert_eq!(first, None, "{dtype} {n}");
                let bound = if dtype.size() == 2 { check::bound(dtype) } else { 1e-6 };
                let d = check::difference(&gz, &z)?;
                assert!(d.relative <= bound && (d.values.0 - d.values.1).abs() <= 16.0 * bound, "{dtype} {n}: {d}");
            }
        }
    }
    Ok(())
}

#[test]
fn random_arrays_have_the_right_moments() -> Result<()> {
    for ctx in common::contexts() {
        random::seed(1);
        let moments = |v: Vec<f32>| {
            let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / v.len() as f64;
            (mean, v.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / v.len() as f64)
        };
        let (mean, var) = moments(Tensor::uniform(-1.0, 3.0, &[200, 500], &ctx)?.to_vec()?);
        assert!((mean - 1.0).abs() < 0.02 && (var - 16.0 / 12.0).abs() < 0.02, "{mean} {var}");
        let z = Tensor::normal(2.0, 0.5, &[100_000], &ctx)?.to_vec()?;
        let within = z.iter().filter(|&&x| (x - 2.0).abs() < 0.5).count() as f64 / 1e5;
        let (mean, var) = moments(z);
        assert!(
            (mean - 2.0).abs() < 0.01 && (var - 0.25).abs() < 0.01 && (within - 0.6827).abs() < 0.01,
            "{mean} {var} {within}"
        );
        assert_ne!(Tensor::uniform(0., 1., &[8], &ctx)?.to_vec()?, Tensor::uniform(0., 1., &[8], &ctx)?.to_vec()?);
        message(Tensor::uniform(1.0, 0.0, &[1], &ctx), "uniform: 1 to 0 is no range");
        message(Tensor::uniform(0.0, f64::NAN, &[1], &ctx), "uniform: 0 to NaN");
        message(Tensor::normal(0.0, -1.0, &[1], &ctx), "normal: mean 0 and standard deviation -1");
        message(Array::normal(0.0, 1.0, &[1], DType::I64, &ctx), "normal: i64");
        assert!(matches!(Tensor::uniform(0.0, 1.0, &[usize::MAX, 2], &ctx), Err(Error::Shape { .. })));
    }
    Ok(())
}

#[test]
fn halves_are_rounded_to_nearest() -> Result<()> {
    // Just above the middle of two neighbours: 1 + 2⁻⁸ + 2⁻²³ in bf16, 1 + 2⁻¹¹ + 2⁻²³ in f16; then the ties, to even.
    let v = |tie: i32| vec![1.0 + 2f64.powi(tie) + 2f64.powi(-23), 1.0 + 2f64.powi(tie)];
    for (dtype, tie) in [(DType::BF16, -8), (DType::F16, -11)] {
        let x = check::cast(&Array::from_vec(v(tie), &[2], &cpu())?, dtype)?;
        assert_eq!(x.to_f64_vec()?, [1.0 + 2f64.powi(tie + 1), 1.0]);
    }
    Ok(())
}

#[test]
fn one_seed_gives_known_numbers() -> Result<()> {
    // Philox4x32-10 of the counter 0 and the key 0 is 6627e8d5 e169c58d bc57ac4c 9b00dbd8; the upper 24 bits are used.
    for ctx in common::contexts() {
        random::seed(0);
        let expected = [0x6627e8u32, 0xe169c5, 0xbc57ac, 0x9b00db].map(|w| w as f32 / 16_777_216.0);
        assert_eq!(Tensor::uniform(0.0, 1.0, &[4], &ctx)?.to_vec()?, expected);
    }
    Ok(())
}
