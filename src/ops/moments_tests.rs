//! What convolutions note of their outputs, against sums in f64 over the values that they stored; that batch normalization takes it,
//! and that nobody takes it for other values. Plans are forced, as in the tests of the kernels.

use std::{cell::Cell, sync::Arc};

use super::{
    BatchNorm, BatchNormRelu, Binary, BinaryKind,
    mma_tests::{Math, TF32, gpu},
};
use crate::{
    Array, Context, DType, Layout, Result, Tensor, autograd,
    autograd::{Op, Saved},
    check::{cast, random, random_in},
    cuda::Graph,
    data::{DataLoader, FashionMnist},
    gemm::{
        bn_stats::{BnPartials, BufferStats, ChannelSums},
        model::wgmma_tile::{WgmmaTile, tile},
    },
    init,
    loss::SoftmaxCrossEntropy,
    models,
    ops::{Conv2d, Conv2dOptions},
    precision::{self, Precision},
    testing::{Force, with_forced},
};

const HALF: Math = Math(DType::F16, Precision::F32, 0.0);
const BRAIN: Math = Math(DType::BF16, Precision::F32, 0.0);
const EXACT: Math = Math(DType::F32, Precision::F32, 0.0);

thread_local! {
    /// Passes over inputs for their moments, by batch normalization on this thread.
    static PASSES: Cell<usize> = const { Cell::new(0) };
    /// Whether convolutions are not to note anything.
    static OFF: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn pass() {
    PASSES.set(PASSES.get() + 1);
}

pub(crate) fn off() -> bool {
    OFF.get()
}

fn outputs(op: &dyn Op, x: &[&Array]) -> Result<Vec<Array>> {
    op.forward(x, &mut Saved::new(x, vec![false; x.len()]))
}

/// A channels-last convolution in training.
pub(super) fn convolve(math: Math, [x, w, b]: [&Array; 3], options: Conv2dOptions, gpu: &Context) -> Result<Array> {
    let own = |a: &Array| cast(a, math.0)?.to_context(gpu);
    let (x, w, b) = (own(x)?.to_layout(Layout::ChannelsLast)?, own(w)?, own(b)?);
    let y = precision::with(math.1, || autograd::train_mode(|| outputs(&Conv2d(options), &[&x, &w, &b])))?.remove(0);
    assert_eq!(y.layout(), Layout::ChannelsLast);
    Ok(y)
}

/// [y, μ, σ²] of `x` by batch normalization.
fn normalize(x: &Array) -> Result<Vec<Array>> {
    let row = |v| Array::full(&x.shape()[1..2], v, DType::F32, &x.context());
    outputs(&BatchNorm { eps: 1e-5 }, &[x, &row(1.0)?, &row(0.0)?])
}

/// The same values, of which nothing is known.
fn plain(x: &Array) -> Result<Array> {
    let mut copy = x.clone();
    copy.make_unique()?;
    assert!(!noted(&copy)?);
    Ok(copy)
}

fn noted(x: &Array) -> Result<bool> {
    let pixels = x.len() / x.shape()[1];
    Ok(BnPartials::of(x, x.shape()[1], pixels)?.is_some())
}

/// `y` has a note of every pixel, and statistics from it are those of its values, as are those of the slow twin.
pub(super) fn check(y: &Array, what: &dyn std::fmt::Debug) -> Result<()> {
    let (shape, channels) = (y.shape(), y.shape()[1]);
    let pixels = y.len() / channels;
    let (sums, parts) = BnPartials::of(y, channels, pixels)?.unwrap_or_else(|| panic!("{what:?}: nothing is noted"));
    let counts = &sums.to_vec::<f32>()?[parts * 2 * channels..];
    assert_eq!((counts.len(), counts.iter().sum::<f32>()), (parts, pixels as f32), "{what:?}: {counts:?}");
    let passes = PASSES.get();
    let fast = normalize(y)?;
    assert_eq!(PASSES.get(), passes, "{what:?}: the values were read once more");
    let slow = normalize(&plain(y)?)?;
    assert_eq!(PASSES.get(), passes + 1, "{what:?}");
    let values = y.to_f64_vec()?;
    let plane = shape[2] * shape[3];
    for c in 0..channels {
        let of = |i: usize| &values[(i * channels + c) * plane..][..plane];
        let all = || (0..shape[0]).flat_map(of);
        let mean = all().sum::<f64>() / pixels as f64;
        let var = all().map(|v| (v - mean).powi(2)).sum::<f64>() / pixels as f64;
        for (which, twin) in [("fast", &fast), ("slow", &slow)] {
            let (m, v) = (twin[1].to_f64_vec()?[c], twin[2].to_f64_vec()?[c]);
            assert!((m - mean).abs() <= 2e-7 * mean.abs() + 1e-6 * var.sqrt(), "{what:?} {which} {c}: mean {m}, {mean}");
            assert!((v - var).abs() <= 1e-5 * var + (3e-7 * mean).powi(2), "{what:?} {which} {c}: variance {v}, {var}");
        }
    }
    Ok(())
}

pub(super) type Geometry = ([usize; 4], [usize; 4], Conv2dOptions);

/// x, w, and a bias far from 0.
pub(super) fn inputs((x, w, _): &Geometry, far: f64) -> Result<[Array; 3]> {
    Ok([random(x, 1)?, random(w, 2)?, random_in(&w[..1], 3, far - 1.0, far + 1.0)?])
}

#[test]
fn every_tile_notes_what_it_stores() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let o = Conv2dOptions::new;
    let image: [Geometry; 4] = [
        ([2, 24, 9, 11], [136, 24, 3, 3], o().stride(2).padding(1)),
        ([3, 8, 12, 17], [8, 8, 1, 1], o()),
        ([1, 8, 1, 1], [72, 8, 1, 1], o()),
        ([1, 16, 25, 16], [24, 16, 2, 3], o()),
    ];
    let halo: [Geometry; 7] = [
        ([3, 16, 24, 25], [136, 16, 3, 3], o().padding(1)),
        ([5, 8, 6, 6], [8, 8, 3, 3], o().padding(1)),
        ([23, 16, 3, 3], [24, 16, 3, 3], o().padding(1)),
        ([1, 8, 5, 130], [64, 8, 3, 3], o().padding(1)),
        ([1, 8, 1, 1], [8, 8, 3, 3], o().padding(1)),
        ([17, 8, 3, 3], [72, 8, 3, 3], o().padding(1)),
        ([1, 24, 13, 24], [8, 24, 3, 3], o().padding(1)),
    ];
    let run = |tile, halo, geometry: &Geometry, math: Math, far| {
        let [x, w, b] = &inputs(geometry, far)?;
        let y = with_forced(Force::wgmma(tile, 1, halo), || convolve(math, [x, w, b], geometry.2, &gpu))?;
        check(&y, &(math, tile, halo, geometry, far))
    };
    // Means of a thousand deviations, where the dtype has such numbers.
    let maths = [(BRAIN, 0.0), (TF32, 1000.0), (HALF, 30.0)];
    for (i, geometry) in image.iter().enumerate() {
        for place in 0..WgmmaTile::IM2COL.len() {
            let (math, far) = maths[(place + i) % 3];
            // Two CTAs of f32 with 128 columns have no registers for it.
            if math.0 == DType::F32 && WgmmaTile::IM2COL[place] == tile(2, 1, 128) {
                continue;
            }
            run(place, false, geometry, math, far)?;
        }
    }
    for (i, geometry) in halo.iter().enumerate() {
        for tile in [i, i + 3] {
            let (math, far) = maths[(tile + i) % 3];
            run(tile, true, geometry, math, far)?;
        }
    }
    Ok(())
}

#[test]
fn every_tile_of_the_general_family_notes_what_it_stores() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
    let o = Conv2dOptions::new;
    let geometries: [Geometry; 4] = [
        ([2, 24, 9, 11], [136, 24, 3, 3], o().stride(2).padding(1)),
        ([3, 3, 12, 17], [8, 3, 5, 5], o()),
        ([1, 16, 1, 1], [144, 8, 1, 1], o().groups(2)),
        ([1, 24, 25, 16], [48, 12, 2, 3], o().groups(2)),
    ];
    for (i, geometry) in geometries.iter().enumerate() {
        for (j, tile) in [[128, 128], [128, 64], [64, 64]].into_iter().enumerate() {
            let (math, far) = [(BRAIN, 0.0), (EXACT, 1000.0), (HALF, 30.0), (TF32, 1000.0)][(i + j) % 4];
            let [x, w, b] = &inputs(geometry, far)?;
            let y = with_forced(Force::mma(tile, 3, 1), || convolve(math, [x, w, b], geometry.2, &gpu))?;
            check(&y, &(math, tile, geometry, far))?;
        }
    }
    Ok(())
}

const PLAIN: Geometry =
    ([3, 8, 7, 6], [16, 8, 3, 3], Conv2dOptions { stride: [1; 2], padding: [1; 4], dilation: [1; 2], groups: 1 });

fn example(gpu: &Context, halo: bool, far: f64) -> Result<Array> {
    let [x, w, b] = &inputs(&PLAIN, far)?;
    with_forced(Force::wgmma(3, 1, halo), || convolve(TF32, [x, w, b], PLAIN.2, gpu))
}

#[test]
fn constants_have_no_variance() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (halo, value) in [(true, 1000.3), (false, -3.0)] {
        let x = Array::zeros(&PLAIN.0, DType::F32, &gpu)?;
        let b = Array::full(&[16], value, DType::F32, &gpu)?;
        let w = random(&PLAIN.1, 2)?;
        let force = Force::wgmma(3, 1, halo);
        let y = with_forced(force, || convolve(TF32, [&x, &w, &b], PLAIN.2, &gpu))?;
        check(&y, &value)?;
        let of = normalize(&y)?;
        assert!(of[1].to_f64_vec()?.iter().all(|m| (m - value).abs() < 1e-7 * value.abs()));
        assert!(of[2].to_f64_vec()?.iter().all(|&v| v < 1e-6));
    }
    Ok(())
}

/// Outside of training nothing is noted, nor for what is turned afterwards, and of predictions nothing is needed.
#[test]
fn only_training_notes() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let [x, w, b] = inputs(&PLAIN, 0.0)?.map(|a| cast(&a, DType::F32)?.to_context(&gpu));
    let (x, w, b) = (x?, w?, b?);
    let op = Conv2d(PLAIN.2);
    let force = Force::wgmma(3, 1, true);
    let run = |x: &Array| with_forced(force, || precision::with(Precision::Tf32, || outputs(&op, &[x, &w, &b])));
    let last = x.to_layout(Layout::ChannelsLast)?;
    assert!(!noted(&run(&last)?[0])?);
    assert!(autograd::train_mode(|| noted(&run(&last)?[0]))?);
    assert!(!autograd::train_mode(|| noted(&run(&x)?[0]))?);
    Ok(())
}

/// Every way to write an array's memory, and what is seen of it then.
#[test]
fn a_note_goes_with_the_values() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let y = example(&gpu, true, 5.0)?;
    let other = Array::full(y.shape(), 2.0, DType::F32, &gpu)?.to_layout(Layout::ChannelsLast)?;
    type Write = fn(&mut Array, &Array) -> Result<()>;
    let writes: [(&str, Write); 7] = [
        ("copy_from", |y, other| y.copy_from(other)),
        ("copy_from the host", |y, other| y.copy_from(&other.to_context(&Context::Cpu)?)),
        ("add_assign", |y, other| y.add_assign(other)),
        ("lerp_", |y, other| y.lerp_(other, 0.5)),
        ("make_unique, before any other kernel", |y, _| y.make_unique()),
        ("in place, as optimizers do", |y, other| y.in_place(|y| y.add_assign(other))),
        ("another array in place", |y, other| {
            y.in_place(|y| {
                *y = other.clone();
                Ok(())
            })
        }),
    ];
    for (name, write) in writes {
        let mut own = example(&gpu, true, 5.0)?;
        assert!(noted(&own)?, "{name}");
        write(&mut own, &other)?;
        assert!(!noted(&own)?, "{name}: the note has outlived the values");
        let same = normalize(&plain(&own)?)?;
        assert_eq!(normalize(&own)?[0].to_f64_vec()?, same[0].to_f64_vec()?, "{name}");
        // The clone is written into memory of its own, and the other one still has its values.
        let mut clone = y.clone();
        assert!(noted(&clone)?);
        write(&mut clone, &other)?;
        assert!(!noted(&clone)?, "{name}: to a clone");
        check(&y, &name)?;
    }
    let sums = outputs(&Binary(BinaryKind::Add), &[&y, &other])?;
    assert!(!noted(&sums[0])? && !noted(&y.to_layout(Layout::RowMajor)?)?);
    // One pixel in each image: the same memory by another name.
    let one = [([5, 8, 1, 1], [16, 8, 1, 1], Conv2dOptions::new())];
    let [x, w, b] = &inputs(&one[0], 1.0)?;
    let y = with_forced(Force::wgmma(0, 1, false), || convolve(TF32, [x, w, b], one[0].2, &gpu))?;
    let rows = y.reshape(&[5, 16])?;
    assert!(noted(&rows)?);
    for (a, b) in normalize(&rows)?.iter().zip(normalize(&plain(&rows)?)?) {
        assert!(crate::check::difference(a, &b)?.relative < 1e-5);
    }
    // Other channels are other sums.
    assert!(!noted(&rows.reshape(&[10, 8])?)?);
    Ok(())
}

/// What a graph reads from outside has other values at each replay; what it computes has its own.
#[test]
fn graphs_take_the_notes_of_their_own() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let x = Tensor::new(example(&gpu, false, 5.0)?);
    let other = plain(&example(&gpu, false, -70.0)?)?;
    let passes = PASSES.get();
    let (graph, y) = Graph::capture(&gpu, || normalize(&x.array()))?;
    assert_eq!(PASSES.get(), passes + 1, "a note from outside was taken");
    x.copy_from(&Tensor::new(other.clone()))?;
    graph.replay()?;
    assert_eq!(y[0].to_f64_vec()?, normalize(&other)?[0].to_f64_vec()?);

    let [image, w, b] = inputs(&PLAIN, 5.0)?.map(|a| cast(&a, DType::F32)?.to_context(&gpu));
    let (image, w, b) = (Tensor::new(image?.to_layout(Layout::ChannelsLast)?), w?, b?);
    let step = || {
        let force = Force::wgmma(3, 1, true);
        let convolve = || autograd::train_mode(|| outputs(&Conv2d(PLAIN.2), &[&image.array(), &w, &b]));
        let y = with_forced(force, || precision::with(Precision::Tf32, convolve))?.remove(0);
        let normal = normalize(&y)?;
        // What is dropped here may be written over by the rest of the graph.
        let more = outputs(&BatchNormRelu { eps: 1e-5 }, &[&normal[0], &normal[2], &normal[1]])?.remove(0);
        Ok((y, normal, more))
    };
    step()?;
    let passes = PASSES.get();
    let (graph, (y, normal, more)) = Graph::capture(&gpu, step)?;
    assert_eq!(PASSES.get(), passes + 1, "of what has no note");
    for seed in [7, 8] {
        image.copy_from(&Tensor::new(cast(&random(&PLAIN.0, seed)?, DType::F32)?))?;
        graph.replay()?;
        let (eager, eager_normal, eager_more) = step()?;
        let same = |a: &Array, b: &Array| -> Result<()> {
            assert_eq!(a.to_f64_vec()?, b.to_f64_vec()?, "replay {seed}");
            Ok(())
        };
        same(&y, &eager)?;
        same(&more, &eager_more)?;
        normal.iter().zip(&eager_normal).try_for_each(|(a, b)| same(a, b))?;
        // Between replays the note is that of the values.
        check(&y, &seed)?;
    }
    Ok(())
}

/// The note is what is read: a wrong one gives wrong statistics.
#[test]
fn a_note_is_believed() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let y = example(&gpu, true, 5.0)?;
    let (sums, parts) = BnPartials::of(&y, 16, 3 * 42)?.unwrap();
    let mut numbers = sums.to_vec::<f32>()?;
    numbers[..parts * 2 * 16].chunks_mut(16).enumerate().for_each(|(i, row)| row.fill([9.0, 0.0][i % 2]));
    let fake = Array::from_vec(numbers, sums.shape(), &gpu)?;
    y.cuda("a test")?.note(BufferStats::Bn(Arc::new(BnPartials::fake(fake, parts, 16, 3 * 42))));
    let wrong = normalize(&y)?;
    assert!(wrong[1].to_f64_vec()?.iter().zip(wrong[2].to_f64_vec()?).all(|(&m, v)| (m, v) == (9.0, 0.0)));
    Ok(())
}

/// A step of ResNet-18, channels-last: loss, gradients, and how many passes batch normalization made over its inputs.
fn step(gpu: &Context, without: bool) -> Result<(f64, Vec<f64>, usize)> {
    crate::random::seed(3);
    let net = models::resnet18(10);
    net.initialize(init::Xavier::new(), gpu)?;
    let set = FashionMnist::sample("a test")?.train.take(8);
    let (x, y) = DataLoader::new(&set, 8, gpu)?.resize(32, 32)?.epoch(0)?.next().unwrap()?;
    let x = Tensor::new(x.array().to_layout(Layout::ChannelsLast)?);
    OFF.set(without);
    PASSES.set(0);
    let loss = autograd::record(|| SoftmaxCrossEntropy::new().forward(&net.forward(&x)?, &y));
    OFF.set(false);
    let loss = loss?;
    loss.backward()?;
    let grads = net.parameters().iter().map(|p| p.grad()?.array().to_f64_vec()).collect::<Result<Vec<_>>>()?.concat();
    Ok((loss.mean(&[])?.item()?, grads, PASSES.get()))
}

#[test]
fn resnet18_learns_alike_with_notes_and_without() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    type Both = Result<[(f64, Vec<f64>, usize); 2]>;
    let tf32 = || -> Both {
        let force = Force::wgmma(5, 1, false);
        with_forced(force, || precision::with(Precision::Tf32, || Ok([step(&gpu, false)?, step(&gpu, true)?])))
    };
    let exact = || -> Both {
        let both = || precision::with(Precision::F32, || Ok([step(&gpu, false)?, step(&gpu, true)?]));
        with_forced(Force::mma([64, 64], 3, 1), both)
    };
    // What is off by a rounding is rounded to tf32 anew: there the losses tell, and that nothing is read once more.
    for (name, both, of_loss, of_grads) in [("tf32", tf32()?, 5e-3, 0.5), ("f32", exact()?, 2e-5, 1e-3)] {
        let [(loss, grads, passes), (twin_loss, twin_grads, twin_passes)] = both;
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let far = norm(&mut grads.iter().zip(&twin_grads).map(|(a, b)| a - b)) / norm(&mut twin_grads.iter().copied());
        println!("{name}: losses {loss} and {twin_loss}, gradients within {far:.1e}, {passes} and {twin_passes} passes");
        // Op by op: each of the 17 convolutions brings the statistics of the batch-norm behind it.
        assert_eq!((passes, twin_passes), (0, 17), "{name}");
        assert!((loss - twin_loss).abs() <= of_loss * twin_loss && far <= of_grads, "{name}: {loss}, {twin_loss}, {far}");
    }
    Ok(())
}

/// Batch-norm's dx adds up to dμ over each channel, whatever arrives, and a bias before it takes its gradient from there.
#[test]
fn what_batch_norm_sends_back_has_known_sums() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (math, layout, tolerance) in
        [(EXACT, Layout::RowMajor, 1e-6), (EXACT, Layout::ChannelsLast, 1e-6), (BRAIN, Layout::ChannelsLast, 2e-3)]
    {
        let own = |shape: &[usize], seed| -> Result<Array> {
            let a = cast(&random_in(shape, seed, -1.0, 3.0)?, math.0)?.to_context(&gpu)?;
            if shape.len() == 4 { a.to_layout(layout) } else { a.cast(DType::F32) }
        };
        let (shape, c) = ([3, 8, 5, 7], [8]);
        let x = [own(&shape, 1)?, own(&c, 2)?, own(&c, 3)?];
        let x: Vec<&Array> = x.iter().collect();
        for op in [&BatchNorm { eps: 1e-5 } as &dyn Op, &BatchNormRelu { eps: 1e-5 }] {
            let mut saved = Saved::new(&x, vec![true; 3]);
            op.forward(&x, &mut saved)?;
            let dy = [own(&shape, 4)?, own(&c, 5)?, own(&c, 6)?];
            let mut dx = op.backward(&saved, &dy)?.remove(0).unwrap();
            let known = ChannelSums::of(&dx)?.expect("the sums are known");
            let (values, known) = (dx.to_f64_vec()?, known.to_f64_vec()?);
            for (i, known) in known.iter().enumerate() {
                let channel = || values.chunks(35).skip(i).step_by(8).flatten();
                let (sum, size) = (channel().sum::<f64>(), channel().map(|v| v.abs()).sum::<f64>());
                assert!((sum - known).abs() <= tolerance * size, "{}, {layout:?}: {sum}, {known}", op.name());
            }
            assert_eq!(known, dy[1].to_f64_vec()?);
            // The convolution before it believes the note, for this array as it is and no other.
            let conv = Conv2d(Conv2dOptions::new());
            let (image, w, b) = (own(&[3, 4, 5, 7], 7)?, own(&[8, 4, 1, 1], 8)?, own(&c, 9)?.cast(math.0)?);
            let operands = [&image, &w, &b];
            let mut saved = Saved::new(&operands, vec![false, false, true]);
            conv.forward(&operands, &mut saved)?;
            let bias = |dx: &Array| conv.backward(&saved, std::slice::from_ref(dx))?.remove(2).unwrap().to_f64_vec();
            assert_eq!(bias(&dx)?, dy[1].cast(math.0)?.to_f64_vec()?);
            let other = if layout == Layout::RowMajor { Layout::ChannelsLast } else { Layout::RowMajor };
            assert!(ChannelSums::of(&dx.to_layout(other)?)?.is_none() && ChannelSums::of(&dx.reshape(&[3, 8, 35])?)?.is_none());
            dx.add_assign(&dy[0])?;
            assert!(ChannelSums::of(&dx)?.is_none());
            assert!(bias(&dx)? != dy[1].cast(math.0)?.to_f64_vec()?);
        }
    }
    Ok(())
}
