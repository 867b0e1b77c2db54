//! The stem kernels at the edges of their tiles, against the f64 reference, where there is a GPU. The plan is forced: the rule leaves
//! small images to others.

use super::{Conv2d, Conv2dOptions};
use crate::{
    Array, Context, DType, Layout, Result,
    autograd::{Op, Saved},
    check::{cast, difference, parity_within, random},
    cpu,
    gemm::bn_stats::BnPartials,
    ops::{
        mma_tests::{BRAIN, EXACT, HALF, Math, TF32, gpu},
        moments_tests::{self, Geometry},
    },
    precision::{self, Precision},
    testing::{Force, count_selected, with_forced},
};

/// At most so many rows and groups of a band, and so many CTAs.
#[derive(Clone, Copy, Debug)]
struct Bands {
    rows: usize,
    groups: usize,
    ctas: usize,
}

const FIRST_LAYER: &[&str] = &["first_layer"];

fn forced<T>(Bands { rows, groups, ctas }: Bands, f: impl FnOnce() -> Result<T>) -> Result<T> {
    with_forced(Force::bands(FIRST_LAYER, rows, groups, ctas), f)
}

fn least(math: &Math) -> (i32, i32) {
    if math.0 == DType::F16 { (7, 5) } else { (8, 0) }
}

fn splits() -> Result<bool> {
    Ok(matches!(crate::cuda::device(0)?.capability, (8, 0) | (9..=11, _)))
}

/// Forward and both gradients, of which two are these kernels'.
fn agrees(math: Math, force: Bands, op: &Conv2d, inputs: &[Array], gpu: &Context) -> Result<()> {
    let Math(dtype, precision, bound) = math;
    let own = inputs.iter().map(|a| cast(a, dtype)?.to_layout(a.layout())).collect::<Result<Vec<_>>>()?;
    let run = || parity_within(op, &own, gpu, &cpu(), bound);
    let (out, taken) = count_selected(FIRST_LAYER, || forced(force, || precision::with(precision, run)));
    let out = out.map_err(|e| {
        let shapes: Vec<_> = inputs.iter().map(|a| (a.shape(), a.layout())).collect();
        crate::Error::Check(format!("{math:?} {force:?} {op:?} {shapes:?}: {e}"))
    });
    // dw in f32 belongs to others where tensor cores do not split.
    let least = if dtype == DType::F32 && precision == Precision::F32 && !splits()? { 1 } else { 2 };
    assert!(out.is_err() || taken >= least, "{math:?} {op:?}: selected {taken} times");
    out
}

/// The first layers of ResNet, LeNet, AlexNet and VGG, and what is odd in every way.
fn geometries() -> Vec<Geometry> {
    let o = Conv2dOptions::new;
    vec![
        ([2, 1, 23, 40], [64, 1, 7, 7], o().stride(2).padding(3)),
        ([1, 3, 22, 21], [40, 3, 7, 7], o().stride(2).padding(3)),
        ([2, 1, 12, 14], [6, 1, 5, 5], o().padding(2)),
        ([1, 1, 51, 60], [96, 1, 11, 11], o().stride(4)),
        ([1, 3, 27, 30], [33, 3, 11, 11], o().stride(4).padding(1)),
        ([2, 3, 9, 17], [72, 3, 3, 3], o().padding(1)),
        ([1, 4, 8, 9], [8, 4, 3, 2], o().stride([1, 3]).padding([0, 2, 1, 0])),
        ([2, 2, 13, 11], [12, 2, 2, 5], o().dilation([3, 2]).padding(4)),
        ([1, 1, 14, 40], [5, 1, 3, 4], o().dilation([1, 3]).stride([2, 5]).padding([1, 6])),
        ([3, 3, 6, 5], [16, 3, 1, 1], o().stride(3)),
        ([1, 1, 1, 70], [1, 1, 1, 3], o().padding([0, 1])),
        ([1, 3, 9, 20], [9, 3, 2, 2], o().stride(3).padding([5, 7])),
        ([2, 4, 5, 6], [4, 4, 11, 11], o().padding(5)),
    ]
}

#[test]
fn stems_agree_at_every_edge() -> Result<()> {
    for (i, math) in [BRAIN, HALF, TF32, EXACT].into_iter().enumerate() {
        let Some(gpu) = gpu(least(&math)) else { continue };
        for (j, (x, w, options)) in geometries().into_iter().enumerate() {
            for layout in [Layout::ChannelsLast, Layout::RowMajor] {
                // Bands of one row, of some, of all; blocks with several bands; groups that a block does not have.
                let force = Bands { rows: [1, 3, 100][(i + j) % 3], groups: 1 + j % 3, ctas: [1, 2, 5][j / 2 % 3] };
                let mut inputs = vec![random(&x, 1)?.to_layout(layout)?, random(&w, 2)?];
                inputs.extend((j % 2 == 0).then(|| random(&w[..1], 3)).transpose()?);
                if j % 3 == 0 {
                    inputs[1] = inputs[1].to_layout(Layout::ChannelsLast)?;
                }
                agrees(math, force, &Conv2d(options), &inputs, &gpu)?;
            }
        }
    }
    Ok(())
}

/// Statistics that a batch normalization behind it takes, of blocks and warps with several tiles, one, or none. Means are a thousand
/// deviations where the dtype has such numbers.
#[test]
fn what_stems_store_is_noted() -> Result<()> {
    for (i, (math, far)) in [(BRAIN, 0.0), (HALF, 30.0), (TF32, 1000.0), (EXACT, 1000.0)].into_iter().enumerate() {
        let Some(gpu) = gpu(least(&math)) else { continue };
        for (j, geometry) in geometries().into_iter().enumerate().filter(|(j, g)| (i + j) % 2 == 0 && g.1[0] > 1) {
            let force = Bands { rows: [100, 3, 1][j % 3], groups: 1 + j % 2, ctas: [1, 2, 7][j % 3] };
            let [x, w, b] = moments_tests::inputs(&geometry, far)?;
            let notes = || -> Result<(Array, Vec<f32>)> {
                let run = || forced(force, || moments_tests::convolve(math, [&x, &w, &b], geometry.2, &gpu));
                let (y, taken) = count_selected(FIRST_LAYER, run);
                let y = y?;
                assert_eq!(taken, 1);
                let (sums, parts) = BnPartials::of(&y, w.shape()[0], y.len() / w.shape()[0])?.expect("a note");
                assert_eq!(parts, force.ctas, "{math:?} {force:?} {geometry:?}");
                Ok((y, sums.to_vec::<f32>()?))
            };
            let (y, numbers) = notes()?;
            moments_tests::check(&y, &(math, force, &geometry))?;
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&numbers), bits(&notes()?.1), "{math:?} {force:?} {geometry:?}");
        }
    }
    Ok(())
}

/// What is stored counts, not what was before it was computed again: infinite pixels that no output reads, beside those that fill k.
#[test]
fn what_is_repaired_is_noted() -> Result<()> {
    for math in [BRAIN, HALF] {
        let Some(gpu) = gpu(least(&math)) else { continue };
        let mut image = random(&[2, 1, 9, 31], 1)?.to_f64_vec()?;
        // Outputs read columns 0, 3, 6, …
        [1, 31 + 7, 9 * 31 + 4, 11 * 31 + 22].into_iter().for_each(|i| image[i] = f64::INFINITY);
        let x = Array::from_vec(image, &[2, 1, 9, 31], &cpu())?;
        let (w, b) = (random(&[40, 1, 1, 1], 2)?, random(&[40], 3)?);
        for (rows, ctas) in [(2, 2), (9, 1)] {
            let force = Bands { rows, groups: 2, ctas };
            let options = Conv2dOptions::new().stride([1, 3]);
            let y = forced(force, || moments_tests::convolve(math, [&x, &w, &b], options, &gpu))?;
            moments_tests::check(&y, &(math, force))?;
        }
    }
    Ok(())
}

fn run(op: &Conv2d, x: &Array, w: &Array, dy: Option<&Array>) -> Result<Array> {
    let mut saved = Saved::new(&[x, w], vec![false, dy.is_some()]);
    let y = op.forward(&[x, w], &mut saved)?.remove(0);
    let Some(dy) = dy else { return Ok(y) };
    Ok(op.backward(&saved, std::slice::from_ref(dy))?.remove(1).expect("dw was asked for"))
}

/// The rule takes these kernels where there is enough to do, the bits are the same each time, and small images are left to others.
#[test]
fn the_rule_takes_first_layers() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
    let on = |shape: &[usize], seed| cast(&random(shape, seed)?, DType::BF16)?.to_context(&gpu);
    let o = Conv2dOptions::new;
    for (x, w, options, times) in [
        ([2, 1, 48, 48], [64, 1, 7, 7], o().stride(2).padding(3), 1),
        ([4, 3, 32, 32], [64, 3, 3, 3], o().padding(1), 1),
        ([16, 1, 28, 28], [6, 1, 5, 5], o().padding(2), 1),
        ([1, 1, 28, 28], [6, 1, 5, 5], o().padding(2), 0),
        ([2, 5, 40, 40], [64, 5, 7, 7], o(), 0),
    ] {
        let (op, x, w) = (Conv2d(options), on(&x, 1)?, on(&w, 2)?);
        let (y, taken) = count_selected(FIRST_LAYER, || run(&op, &x, &w, None));
        let y = y?;
        assert_eq!(taken, times, "{op:?} forward");
        let dy = on(y.shape(), 3)?;
        let (dw, taken) = count_selected(FIRST_LAYER, || run(&op, &x, &w, Some(&dy)));
        let dw = dw?;
        assert_eq!(taken, 2 * times, "{op:?} forward and backward");
        assert_eq!(y.to_f64_vec()?, run(&op, &x, &w, None)?.to_f64_vec()?);
        assert_eq!(dw.to_f64_vec()?, run(&op, &x, &w, Some(&dy))?.to_f64_vec()?);
        let host = |a: &Array| a.to_context(&cpu());
        assert!(difference(&host(&dw)?, &run(&op, &host(&x)?, &host(&w)?, Some(&host(&dy)?))?)?.relative < BRAIN.2);
    }
    Ok(())
}

/// What is not finite stays where it is: zeros that fill k are multiplied by it, and splitting makes NaN of it.
#[test]
fn what_is_not_finite_spreads_no_further() -> Result<()> {
    for math in [BRAIN, HALF, TF32, EXACT] {
        let Some(gpu) = gpu(least(&math)) else { continue };
        let mut image = vec![1f32; 2 * 9 * 20];
        (image[4 * 20 + 6], image[180 + 70], image[180 + 179]) = (f32::INFINITY, f32::NAN, f32::NEG_INFINITY);
        let on = |v: Vec<f32>, shape: &[usize]| cast(&Array::from_vec(v, shape, &cpu())?, math.0);
        let (x, w) = (on(image, &[2, 1, 9, 20])?, on(vec![0.5; 9 * 9], &[9, 1, 3, 3])?);
        for layout in [Layout::ChannelsLast, Layout::RowMajor] {
            let op = Conv2d(Conv2dOptions::new().padding(1).stride([2, 1]));
            let x = x.to_layout(layout)?;
            let dy = on(vec![1.0; 2 * 9 * 5 * 20], &[2, 9, 5, 20])?.to_layout(layout)?;
            let to = |a: &Array| a.to_context(&gpu);
            let force = Bands { rows: 2, groups: 1, ctas: 2 };
            for dy in [None, Some(dy)] {
                let on_gpu = dy.as_ref().map(to).transpose()?;
                let got = forced(force, || precision::with(math.1, || run(&op, &to(&x)?, &to(&w)?, on_gpu.as_ref())))?;
                let (got, want) = (got.to_f64_vec()?, run(&op, &x, &w, dy.as_ref())?.to_f64_vec()?);
                let same = |(a, b): (&f64, &f64)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() < 1e-2 * b.abs();
                assert!(got.iter().zip(&want).all(same), "{math:?} {layout:?}: {got:?}, not {want:?}");
            }
        }
    }
    Ok(())
}

/// f32, from split operands where there are many terms, against the general kernel: both errors at most that one's.
#[test]
fn stems_in_f32_are_as_accurate_as_the_general_kernel() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
    for (channels, kernel, positive) in [(1, 5, false), (1, 7, true), (3, 7, false), (3, 7, true), (4, 6, true)] {
        let sign = |a: Array| -> Result<Array> {
            let v = a.to_f64_vec()?.into_iter().map(|v| if positive { v.abs() } else { v } as f32).collect();
            Array::from_vec(v, a.shape(), &cpu())
        };
        let (x, w) = (sign(random(&[1, channels, 40, 41], 1)?)?, sign(random(&[32, channels, kernel, kernel], 2)?)?);
        let op = Conv2d(Conv2dOptions::new());
        let (wide_x, wide_w) = (cast(&x, DType::F64)?, cast(&w, DType::F64)?);
        let exact = run(&op, &wide_x, &wide_w, None)?.to_f64_vec()?;
        let size = |a: &Array| -> Result<Array> {
            Array::from_vec(a.to_f64_vec()?.into_iter().map(f64::abs).collect(), a.shape(), &cpu())
        };
        let size = run(&op, &size(&wide_x)?, &size(&wide_w)?, None)?.to_f64_vec()?;
        let errors = |ctas: usize| -> Result<[f64; 2]> {
            let (x, w) = (x.to_context(&gpu)?, w.to_context(&gpu)?);
            let (y, taken) = count_selected(FIRST_LAYER, || match ctas {
                0 => with_forced(Force::simt(), || run(&op, &x, &w, None)),
                _ => forced(Bands { rows: 4, groups: 1, ctas }, || run(&op, &x, &w, None)),
            });
            let y = y?;
            assert_eq!(taken, usize::from(ctas > 0));
            let all = y.to_f64_vec()?.into_iter().zip(&exact).zip(&size).map(|((y, e), s)| (y - e).abs() / s).collect::<Vec<_>>();
            Ok([all.iter().fold(0.0, |m, &v| f64::max(m, v)), (all.iter().map(|v| v * v).sum::<f64>() / all.len() as f64).sqrt()])
        };
        let (own, plain) = (errors(3)?, errors(0)?);
        println!("{channels} x {kernel}², positive {positive}: plain {plain:?}, here {own:?}");
        // Without split operands the same terms are added in another order.
        let slack = if splits()? && channels * kernel * kernel >= 128 { 1.0 } else { 1.5 };
        let within = own[0] <= slack * plain[0] && own[1] <= slack * plain[1];
        assert!(within, "{channels} x {kernel}²: {own:?}, plain {plain:?}");
    }
    Ok(())
}
