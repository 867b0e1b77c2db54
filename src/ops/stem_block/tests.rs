//! The block's kernels against the separate ops in f64, where there is a GPU.
//!
//! Images and filters are small integers, so that what the convolution gives is exact in every dtype and equal sums tie everywhere:
//! else a rounding would move a winner, which is a large difference in a gradient.

use super::{StemBlock, StemBlockInference};
use crate::{
    Array, Context, DType, Layout, Result, Tensor,
    autograd::{self, Op, Saved},
    check::{cast, difference, random, random_in, random_indices},
    cpu, cuda, init, models,
    nn::{Activation, BatchNorm, Conv2D, Dense, MaxPool2D, Sequential},
    ops::{
        Conv2dOptions, PoolOptions,
        mma_tests::{BRAIN, EXACT, HALF, Math, TF32, gpu},
    },
    precision,
    testing::{Force, count_selected, selected, with_forced},
};

/// Runs `f` by the model's plan, or by bands of at most so many rows and by so many CTAs.
fn forced<T>(bands: Option<[usize; 2]>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    match bands {
        Some([rows, ctas]) => with_forced(Force::bands(BLOCK, rows, 1, ctas), f),
        None => f(),
    }
}

const BLOCK: &[&str] = &["stem_block"];

/// x, w, and the attributes.
type Geometry = ([usize; 4], [usize; 4], Conv2dOptions, PoolOptions);

/// The first layers of ResNets, and what is odd in every way.
fn geometries() -> Vec<Geometry> {
    let (o, p) = (Conv2dOptions::new, |k: [usize; 2]| PoolOptions::new(k));
    let usual = || p([3, 3]).stride(2).padding(1);
    vec![
        ([2, 1, 23, 40], [64, 1, 7, 7], o().stride(2).padding(3), usual()),
        ([2, 3, 30, 21], [40, 3, 7, 7], o().stride(2).padding(3), usual()),
        ([2, 1, 12, 14], [6, 1, 5, 5], o().padding(2), p([2, 2])),
        ([5, 3, 27, 30], [33, 3, 11, 11], o().stride(4).padding(1), p([3, 3]).stride(2)),
        ([2, 3, 9, 17], [72, 3, 3, 3], o().padding(1), p([2, 3]).stride([3, 2]).padding(1)),
        ([3, 4, 8, 20], [8, 4, 3, 2], o().stride([1, 3]).padding([0, 2, 1, 0]), p([3, 3]).stride(1).padding(1)),
        ([2, 2, 13, 11], [12, 2, 2, 5], o().dilation([3, 2]).padding(4), p([4, 4]).stride(3).padding([1, 2]).ceil_mode(true)),
        ([9, 1, 14, 40], [5, 1, 3, 4], o().dilation([1, 3]).stride([2, 5]).padding([1, 6]), p([3, 2]).stride(1)),
        ([40, 3, 6, 5], [16, 3, 1, 1], o().stride(3), p([2, 2]).stride(1)),
        ([2, 1, 1, 70], [3, 1, 1, 3], o().padding([0, 1]), p([1, 4]).stride([1, 4])),
        ([1, 2, 40, 19], [130, 2, 3, 3], o().padding(1), p([5, 3]).stride([2, 4]).padding([2, 0])),
    ]
}

/// x, w, b, γ and β; filters of whole numbers, b so that μ is far from 0.
fn inputs(&(x, w, ..): &Geometry, bias: bool) -> Result<Vec<Array>> {
    let whole = |shape: &[usize], seed, bound: usize| -> Result<Array> {
        let v = random_indices(shape, seed, 2 * bound + 1)?.to_vec::<i64>()?;
        Array::from_vec(v.into_iter().map(|v| v as f64 - bound as f64).collect(), shape, &cpu())
    };
    let channels = &w[..1];
    let mut all = vec![whole(&x, 1, 2)?, whole(&w, 2, 1)?];
    all.extend(bias.then(|| whole(channels, 3, 9)).transpose()?);
    all.extend([random_in(channels, 4, 0.5, 1.5)?, random(channels, 5)?]);
    Ok(all)
}

/// Images, filters and bias in `dtype`, the others in f32 at most; images channels-last.
fn round(all: &[Array], bias: bool, dtype: DType) -> Result<Vec<Array>> {
    let wide = if dtype == DType::F64 { dtype } else { DType::F32 };
    let one = |(i, a): (usize, &Array)| {
        let a = cast(a, if i < 2 + usize::from(bias) { dtype } else { wide })?;
        if i == 0 { a.to_layout(Layout::ChannelsLast) } else { Ok(a) }
    };
    all.iter().enumerate().map(one).collect()
}

/// Outputs, and the gradients of all inputs but x, for fixed random gradients of the outputs.
fn run(op: &dyn Op, inputs: &[Array], ctx: &Context, dtype: DType) -> Result<Vec<Array>> {
    let inputs = inputs.iter().map(|a| a.to_context(ctx)).collect::<Result<Vec<_>>>()?;
    let refs: Vec<&Array> = inputs.iter().collect();
    let mut saved = Saved::new(&refs, (0..refs.len()).map(|i| i > 0).collect());
    let mut all = cuda::poisoned(|| op.forward(&refs, &mut saved))?;
    let dy = all.iter().enumerate().map(|(i, y)| {
        let rounded = cast(&random(y.shape(), 100 + i as u64)?, if i == 0 { dtype } else { DType::F32 })?;
        cast(&rounded, y.dtype())?.to_context(ctx)?.to_layout(y.layout())
    });
    let dy = dy.collect::<Result<Vec<_>>>()?;
    let gradients = cuda::poisoned(|| op.backward(&saved, &dy))?;
    assert!(gradients[0].is_none(), "nobody asked for the gradient of x");
    all.extend(gradients.into_iter().skip(1).map(|g| g.expect("a gradient")));
    Ok(all)
}

fn least(math: &Math) -> (i32, i32) {
    if math.0 == DType::F16 { (7, 5) } else { (8, 0) }
}

/// f32 without TF32 runs by split operands, where tensor cores do.
fn taken(math: &Math) -> Result<bool> {
    Ok(math.0 != DType::F32
        || math.1 == precision::Precision::Tf32
        || matches!(cuda::device(0)?.capability, (8, 0) | (9..=11, _)))
}

fn block(&(.., conv, pool): &Geometry, bias: bool) -> StemBlock {
    StemBlock::new(conv, bias, 1e-3, pool)
}

#[test]
fn outputs_and_gradients_are_those_of_the_separate_ops() -> Result<()> {
    for (i, math) in [BRAIN, HALF, TF32, EXACT].into_iter().enumerate() {
        let Some(gpu) = gpu(least(&math)) else { continue };
        for (j, geometry) in geometries().iter().enumerate() {
            let bias = (i + j) % 3 > 0;
            let op = block(geometry, bias);
            let own = round(&inputs(geometry, bias)?, bias, math.0)?;
            let exact = run(&op, &round(&own, bias, DType::F64)?, &cpu(), math.0)?;
            // The model's choice; bands of one row, of some, of all; blocks with several bands.
            for force in [None, Some([[1, 3, 100][(i + j) % 3], [2, 5, 1][j % 3]])] {
                let once = || forced(force, || precision::with(math.1, || run(&op, &own, &gpu, math.0)));
                let (got, reached) = count_selected(BLOCK, once);
                let got = got?;
                // Filters that do not fit into the shared memory of the smaller chips are left to others.
                let large = geometry.1[1..].iter().product::<usize>() > 147 && cuda::device(0)?.capability < (9, 0);
                assert!(large || reached == usize::from(taken(&math)?), "{math:?} {force:?} {geometry:?}");
                assert_eq!(got.len(), exact.len());
                for (k, (a, b)) in got.iter().zip(&exact).enumerate() {
                    let d = difference(a, b)?;
                    // Of y, μ, σ² the last two are f32's; db is dμ, exactly.
                    let bound = match k {
                        1 | 2 => 1e-6,
                        4 if bias && math.0 == DType::F32 => 1e-9,
                        _ => (2.0 * math.2).clamp(4e-6, 5e-3),
                    };
                    assert!(d.relative <= bound, "{math:?} {force:?} {geometry:?}, bias {bias}: array {k}: {d}");
                }
                let again = forced(force, || precision::with(math.1, || run(&op, &own, &gpu, math.0)))?;
                for (a, b) in got.iter().zip(&again) {
                    assert_eq!(a.to_f64_vec()?, b.to_f64_vec()?, "{math:?} {force:?} {geometry:?}: other bits");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn prediction_is_that_of_the_separate_ops() -> Result<()> {
    for (i, math) in [BRAIN, HALF, TF32, EXACT].into_iter().enumerate() {
        let Some(gpu) = gpu(least(&math)) else { continue };
        for (j, geometry) in geometries().iter().enumerate() {
            let bias = (i + j) % 2 > 0;
            let op = StemBlockInference(block(geometry, bias));
            let mut all = inputs(geometry, bias)?;
            all.extend([random(&geometry.1[..1], 6)?, random_in(&geometry.1[..1], 7, 5.0, 90.0)?]);
            let own = round(&all, bias, math.0)?;
            let predict = |x: &[Array], ctx: &Context| -> Result<Array> {
                let x = x.iter().map(|a| a.to_context(ctx)).collect::<Result<Vec<_>>>()?;
                let x: Vec<&Array> = x.iter().collect();
                Ok(cuda::poisoned(|| op.forward(&x, &mut Saved::new(&x, vec![false; x.len()])))?.remove(0))
            };
            let exact = predict(&round(&own, bias, DType::F64)?, &cpu())?;
            let (got, reached) = count_selected(BLOCK, || precision::with(math.1, || predict(&own, &gpu)));
            let got = got?;
            let large = geometry.1[1..].iter().product::<usize>() > 147 && cuda::device(0)?.capability < (9, 0);
            assert!(large || reached == 1, "{math:?} {geometry:?}");
            let d = difference(&got, &exact)?;
            assert!(d.relative <= math.2.min(5e-3), "{math:?} {geometry:?}: {d}");
        }
    }
    Ok(())
}

/// Not theirs: other memory orders and dtypes of parameters, many channels or taps, f64, and a gradient of x that is wanted.
#[test]
fn what_the_kernels_do_not_take_is_done_by_the_separate_ops() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
    let geometry = &geometries()[0];
    let op = block(geometry, true);
    let all = inputs(geometry, true)?;
    let brain = round(&all, true, DType::BF16)?;
    let with = |i: usize, a: Array| -> Vec<Array> {
        brain.iter().enumerate().map(|(k, b)| if k == i { a.clone() } else { b.clone() }).collect()
    };
    let rows = with(0, brain[0].to_layout(Layout::RowMajor)?);
    let halves = [&brain[..3], &[cast(&all[3], DType::BF16)?, cast(&all[4], DType::BF16)?]].concat();
    let window = StemBlock { pool: PoolOptions::new([16, 16]).stride(1).padding(8), ..op };
    let many = inputs(&([2, 5, 23, 40], [64, 5, 7, 7], op.conv, op.pool), true)?;
    let cases = [(op, rows), (op, halves), (window, brain.clone()), (op, round(&many, true, DType::BF16)?)];
    for (i, (op, x)) in cases.into_iter().chain([(op, round(&all, true, DType::F64)?)]).enumerate() {
        let before = selected(BLOCK);
        let (got, exact) = (run(&op, &x, &gpu, DType::BF16)?, run(&op, &round(&x, true, DType::F64)?, &cpu(), DType::BF16)?);
        assert_eq!(selected(BLOCK), before, "case {i}");
        // A rounding between the ops may move a winner in gradients.
        let d = difference(&got[0], &exact[0])?;
        assert!(d.relative < BRAIN.2, "case {i}: {d}");
    }
    let before = selected(BLOCK);
    crate::check::parity_within(&op, &round(&all, true, DType::F32)?, &gpu, &cpu(), 1e-5)?;
    assert_eq!(selected(BLOCK), before);
    Ok(())
}

/// What is not finite stays where it is in prediction, though zeros fill k; of pixels that no output reads, nothing is seen in training.
#[test]
fn what_is_not_finite_spreads_no_further() -> Result<()> {
    for math in [BRAIN, HALF, TF32, EXACT] {
        let Some(gpu) = gpu(least(&math)) else { continue };
        let geometry = ([2, 1, 9, 40], [40, 1, 2, 3], Conv2dOptions::new().stride([2, 4]), PoolOptions::new([2, 2]).stride(1));
        let all = inputs(&geometry, false)?;
        let values = |set: &[(usize, f64)]| -> Result<Array> {
            let mut v = all[0].to_f64_vec()?;
            set.iter().for_each(|&(i, value)| v[i] = value);
            Array::from_vec(v, all[0].shape(), &cpu())
        };
        // Outputs read columns 0, 1, 2, 4, 5, 6, … and rows 0 to 7.
        let hidden = values(&[(3, f64::INFINITY), (8 * 40 + 1, f64::NAN), (360 + 39, f64::NEG_INFINITY)])?;
        let x = round(&[&[hidden], &all[1..]].concat(), false, math.0)?;
        let op = block(&geometry, false);
        if taken(&math)? {
            let run = |x: &[Array], ctx: &Context| precision::with(math.1, || run(&op, x, ctx, math.0));
            let (got, exact) = (run(&x, &gpu)?, run(&round(&x, false, DType::F64)?, &cpu())?);
            for (a, b) in got.iter().zip(&exact) {
                let d = difference(a, b)?;
                assert!(d.relative < 5e-3 && d.values.1.is_finite(), "{math:?}: {d}");
            }
        }
        let seen = values(&[(4, f64::INFINITY), (360 + 41, f64::NAN)])?;
        let statistics = [random(&[40], 6)?, random_in(&[40], 7, 5.0, 90.0)?];
        let x = round(&[&[seen], &all[1..], &statistics].concat(), false, math.0)?;
        let predict = |x: &[Array]| -> Result<Vec<f64>> {
            let x: Vec<&Array> = x.iter().collect();
            StemBlockInference(op).forward(&x, &mut Saved::new(&x, vec![false; 6]))?[0].to_f64_vec()
        };
        let on = x.iter().map(|a| a.to_context(&gpu)).collect::<Result<Vec<_>>>()?;
        let (got, want) = (precision::with(math.1, || predict(&on))?, predict(&round(&x, false, DType::F64)?)?);
        let same = |(a, b): (&f64, &f64)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() < 1e-2 * b.abs().max(0.1);
        assert!(want.iter().any(|v| v.is_nan()) && want.contains(&f64::INFINITY) && want.iter().any(|v| v.is_finite()));
        assert!(got.iter().zip(&want).all(same), "{math:?}: {got:?}, not {want:?}");
    }
    Ok(())
}

/// ResNet's first layers in a net: one op in training and in prediction, with the running statistics and gradients of the layers
/// one by one.
#[test]
fn nets_take_it() -> Result<()> {
    let Some(gpu) = gpu((8, 0)).filter(|_| taken(&EXACT).unwrap_or(false)) else { return Ok(()) };
    let x = Tensor::new(cast(&random(&[3, 1, 26, 30], 1)?, DType::F32)?.to_context(&gpu)?.to_layout(Layout::ChannelsLast)?);
    let net = || -> Result<Sequential> {
        crate::random::seed(5);
        let net = Sequential::new().add(Conv2D::new(64, 7).stride(2).padding(3)).add(BatchNorm::new()).add(Activation::relu());
        let net = net.add(MaxPool2D::new(3).stride(2).padding(1)).add(Dense::new(3));
        net.initialize(init::Xavier::new(), &gpu)?;
        Ok(net)
    };
    let one_by_one = |net: &Sequential| net.iter().try_fold(x.clone(), |x, layer| layer.forward(&x));
    let step = |net: &Sequential, forward: &dyn Fn(&Sequential) -> Result<Tensor>| -> Result<Vec<Array>> {
        let y = autograd::record(|| forward(net))?;
        y.backward()?;
        let gradients = net.parameters().iter().map(|p| Ok(p.data()?.grad()?.array())).collect::<Result<Vec<_>>>()?;
        let all = net.collect().into_iter().map(|(_, p)| Ok(p.data()?.array())).collect::<Result<Vec<_>>>()?;
        Ok([vec![y.array()], gradients, all, vec![forward(net)?.array()]].concat())
    };
    let (fused, separate) = (net()?, net()?);
    fused.hybridize();
    let before = selected(BLOCK);
    let got = step(&fused, &|net| net.forward(&x))?;
    assert_eq!(selected(BLOCK) - before, 2, "in training and in prediction");
    let want = step(&separate, &one_by_one)?;
    assert_eq!(selected(BLOCK) - before, 2);
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        let d = difference(a, b)?;
        // The convolution's bias has the gradient 0 here, and roundings there.
        assert!(d.relative < 2e-5 || (a.to_f64_vec()?.iter().all(|&v| v == 0.0) && i > 0), "array {i}: {d}");
    }
    // Not where x's gradient is wanted, or one through given statistics; and errors name the layer.
    let leaf = Tensor::new(x.array()).attach_grad();
    autograd::record(|| fused.forward(&leaf))?;
    autograd::record(|| autograd::predict_mode(|| fused.forward(&x)))?;
    assert_eq!(selected(BLOCK) - before, 2);
    let wide = Tensor::new(Array::zeros(&[3, 2, 26, 30], DType::F32, &gpu)?.to_layout(Layout::ChannelsLast)?);
    let error = fused.forward(&wide).expect_err("two channels").to_string();
    assert!(error.contains("net[0]"), "{error}");
    Ok(())
}

#[test]
fn resnet_18_takes_it() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
    let net = models::resnet18(10);
    net.initialize(init::Xavier::new(), &gpu)?;
    net.cast(DType::BF16)?;
    let x = cast(&random(&[2, 1, 32, 32], 1)?, DType::BF16)?.to_context(&gpu)?.to_layout(Layout::ChannelsLast)?;
    net.hybridize();
    let x = Tensor::new(x);
    let before = selected(BLOCK);
    let y = autograd::record(|| net.forward(&x))?;
    y.backward()?;
    assert_eq!((selected(BLOCK) - before, y.shape()), (1, vec![2, 10]));
    Ok(())
}

/// dw of images whose mean is many deviations: digits are lost as the square of that, as the documentation of the op says.
#[test]
fn digits_are_lost_where_images_hardly_vary() -> Result<()> {
    let Some(gpu) = gpu((8, 0)).filter(|_| taken(&EXACT).unwrap_or(false)) else { return Ok(()) };
    let geometry = ([4, 1, 40, 40], [32, 1, 7, 7], Conv2dOptions::new().stride(2), PoolOptions::new(3).stride(2));
    let op = block(&geometry, false);
    for far in [0.0, 10.0, 100.0] {
        let image = random(&geometry.0, 1)?.to_f64_vec()?.into_iter().map(|v| v + 0.5 * far).collect();
        let mut all = vec![Array::from_vec(image, &geometry.0, &cpu())?, random(&geometry.1, 2)?];
        all.extend([random_in(&[32], 4, 0.5, 1.5)?, random(&[32], 5)?]);
        let own = round(&all, false, DType::F32)?;
        let (got, exact) = (run(&op, &own, &gpu, DType::F32)?, run(&op, &round(&own, false, DType::F64)?, &cpu(), DType::F32)?);
        let errors = got.iter().zip(&exact).map(|(a, b)| Ok(difference(a, b)?.relative)).collect::<Result<Vec<_>>>()?;
        println!("mean {far} deviations: y, mean, variance, dw, dgamma, dbeta {errors:?}");
        assert!(errors[0] < 2e-6 * (1.0 + far) && errors[3] < 5e-7 * (1.0 + 0.1 * far * far), "{far}: {errors:?}");
    }
    Ok(())
}
