//! f32 by six products of bf16 on Hopper: at the edges of its tiles, and how accurate it is. The plan is forced, as in `wgmma_tests`.

use super::{
    mma_tests::{self, EXACT, errors, gpu, matmul, wide},
    wgmma_tests::{agrees, convolutions, entry, forced, gradients, pairs, unforced},
};
use crate::{
    Array, DType, Layout, Result,
    autograd::{Op, Saved},
    check::{cast, difference, random},
    cpu,
    gemm::model::bf16x6,
    ops::{Conv2d, Conv2dOptions, Conv2dPair, Dense, DenseActivation, MatMul, UnaryKind},
    precision::{self, Precision},
    testing::{Force, with_forced},
};

fn product(a: &Array, b: &Array) -> Result<Array> {
    MatMul::default().forward(&[a, b], &mut Saved::new(&[a, b], vec![false; 2])).map(|mut y| y.remove(0))
}

/// The rule takes it where there is enough to do, and the bits are the same each time; asked for TF32, it leaves f32 to that.
#[test]
fn the_rule_takes_it() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let on = |shape: &[usize], seed| cast(&random(shape, seed)?, DType::F32)?.to_context(&gpu);
    let (a, b) = (on(&[1032, 512], 1)?, on(&[512, 1048], 2)?);
    let y = unforced(1, || product(&a, &b))?;
    assert_eq!(y.to_f64_vec()?, unforced(1, || product(&a, &b))?.to_f64_vec()?);
    assert!(errors(&y, &a, &b)?[1] < 2e-8);
    let tf32 = precision::with(Precision::Tf32, || product(&a, &b))?;
    assert!(errors(&tf32, &a, &b)?[1] > 1e-6);
    Ok(())
}

#[test]
fn products_agree_in_every_tile() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (i, tile) in bf16x6::GEMM.iter().copied().enumerate() {
        let force = |parts| Force::wgmma(i, parts, false);
        let (rows, columns) = (tile.rows(), tile.columns());
        // One product and its gradients have three of the four pairs of majors.
        let (ta, tb) = (i % 2 == 1, i == 0);
        for (shape, parts) in [([rows + 8, columns + 8, 72], 1), ([8, 2 * columns - 8, 8], 1), ([rows - 8, 16, 328], 3)] {
            let (op, x) = matmul(ta, tb, shape)?;
            agrees(EXACT, force(parts), 3, &op, &x, &gpu)?;
        }
        // Rows and columns of the result that are odd.
        for (shape, parts) in [([rows + 1, columns - 1, 40], 1), ([1, 3, 104], 2)] {
            let (op, x) = matmul(false, true, shape)?;
            agrees(EXACT, force(parts), 1, &op, &x, &gpu)?;
        }
    }
    // A batch whose sides are stretched in turn, so that some axes are summed in the gradients; a bias.
    let force = |parts| Force::wgmma(1, parts, false);
    let x = vec![random(&[2, 1, 8, 16], 1)?, random(&[3, 16, 24], 2)?];
    agrees(EXACT, force(1), 3, &MatMul::default(), &x, &gpu)?;
    let x = vec![random(&[72, 136], 1)?, random(&[80, 136], 2)?, random(&[80], 3)?];
    agrees(EXACT, force(1), 3, &Dense, &x, &gpu)?;
    for (f, parts) in [(UnaryKind::Relu, 1), (UnaryKind::Sigmoid, 2), (UnaryKind::Tanh, 1)] {
        agrees(EXACT, force(parts), 3, &DenseActivation(f), &x, &gpu)?;
        agrees(EXACT, force(3 - parts), 3, &DenseActivation(f), &x, &gpu)?;
    }
    Ok(())
}

/// Against the plain f32 kernel on inputs that are hard: both errors at most the plain kernel's, for both signs, for one, and for
/// magnitudes 2⁶⁰ apart. (The emulator's tensor cores cut off what they add: without a sum of its own for each step, the errors of the
/// second are dozens of times as large.)
#[test]
fn sums_are_as_accurate_as_plain_f32() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let positive = |a: Array| -> Result<Array> {
        let v: Vec<f32> = a.to_f64_vec()?.iter().map(|v| v.abs() as f32).collect();
        Array::from_vec(v, a.shape(), &cpu())
    };
    for k in [128, 200, 2048] {
        let (a, b) = (wide(&[64, k], 1, 0)?, wide(&[k, 64], 2, 0)?);
        let cases = [
            ("signed", a.clone(), b.clone()),
            ("positive", positive(a)?, positive(b)?),
            ("wide", wide(&[64, k], 3, 15)?, wide(&[k, 64], 4, 15)?),
        ];
        for (name, a, b) in cases {
            let (on_a, on_b) = (a.to_context(&gpu)?, b.to_context(&gpu)?);
            let general = Force::simt();
            let plain = errors(&with_forced(general, || product(&on_a, &on_b))?, &a, &b)?;
            let six = forced(Force::wgmma(1, 1, false), 1, || product(&on_a, &on_b))?;
            let six = errors(&six, &a, &b)?;
            println!("k {k} {name}: plain {plain:?}, six {six:?}");
            assert!(six[0] <= plain[0] && six[1] <= plain[1], "k {k} {name}: six {six:?}, plain {plain:?}");
        }
    }
    Ok(())
}

/// Infinities, NaN, the largest floats and the smallest come out as from plain f32.
#[test]
fn what_is_not_finite_is_kept() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let (a, b) = mma_tests::not_finite(&gpu)?;
    for parts in [1, 2] {
        let y = forced(Force::wgmma(1, parts, false), 1, || product(&a, &b))?;
        mma_tests::is_not_finite_as_in_f32(&y)?;
    }
    Ok(())
}

#[test]
fn convolutions_agree_in_every_tile() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (i, (x, w, options)) in convolutions().iter().enumerate() {
        let layout = if i % 2 == 0 { Layout::ChannelsLast } else { Layout::RowMajor };
        let mut inputs = vec![random(x, 1)?.to_layout(layout)?, random(w, 2)?];
        inputs.extend((i % 2 == 0).then(|| random(&w[..1], 3)).transpose()?);
        let force = Force::wgmma(i, 1 + i % 3, false);
        // A step along k has to be whole within a group.
        let times = 3 - usize::from(options.groups > 1 && w[0] / options.groups % bf16x6::STEP_K > 0);
        agrees(EXACT, force, times, &Conv2d(*options), &inputs, &gpu)?;
    }
    Ok(())
}

#[test]
fn pairs_agree_in_every_tile() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (i, (x, [w1, w2], options)) in pairs().iter().enumerate() {
        let layout = if i % 2 == 0 { Layout::ChannelsLast } else { Layout::RowMajor };
        let (bias, mut inputs) = ([i % 2 == 0, i % 3 == 0], vec![random(x, 1)?.to_layout(layout)?]);
        for (w, bias) in [w1, w2].into_iter().zip(bias) {
            inputs.push(random(w, inputs.len() as u64)?);
            inputs.extend(bias.then(|| random(&w[..1], 9)).transpose()?);
        }
        // Both at once, forward and twice backward, the second time onto a gradient that has arrived.
        agrees(EXACT, Force::wgmma(i, 1 + i % 3, false), 5, &Conv2dPair::new(*options, bias), &inputs, &gpu)?;
    }
    // A stride of 1, where 16-bit images have a halo and run alone.
    let inputs = [random(&[2, 40, 7, 7], 1)?, random(&[16, 40, 3, 3], 2)?, random(&[16, 40, 1, 1], 3)?];
    agrees(EXACT, Force::wgmma(4, 1, true), 5, &Conv2dPair::new(entry(1), [false; 2]), &inputs, &gpu)
}

/// In all three passes infinities and NaN come out where f64 has them, and all else is finite.
#[test]
fn convolutions_keep_what_is_not_finite() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (tile, stride) in [(0, 1), (1, 2), (4, 2)] {
        let op = Conv2d(Conv2dOptions::new().stride(stride).padding(1));
        let side = 10 / stride + 1;
        let strange = |shape: &[usize], seed: u64, at: [(usize, f32); 2]| -> Result<Array> {
            let mut v: Vec<f32> = random(shape, seed)?.to_f64_vec()?.iter().map(|&v| v as f32).collect();
            at.into_iter().for_each(|(i, value)| v[i] = value);
            Array::from_vec(v, shape, &cpu())
        };
        // In the first image and in the last pixel of the last.
        let x = strange(&[3, 40, 11, 11], 1, [(17, f32::INFINITY), (3 * 40 * 121 - 1, f32::NEG_INFINITY)])?;
        let w = strange(&[72, 40, 3, 3], 2, [(5, f32::INFINITY), (900, f32::NAN)])?;
        let dy = strange(&[3, 72, side, side], 3, [(2, f32::INFINITY), (3 * 72 * side * side - 1, f32::NAN)])?;
        let y = |x: &Array, w: &Array| op.forward(&[x, w], &mut Saved::new(&[x, w], vec![false; 2]));
        let exact = [&x, &w, &dy].map(|a| cast(a, DType::F64)).into_iter().collect::<Result<Vec<_>>>()?;
        let own = [&x, &w, &dy].map(|a| a.to_context(&gpu)).into_iter().collect::<Result<Vec<_>>>()?;
        let mut expected = y(&exact[0], &exact[1])?;
        expected.extend(gradients(&op, &exact[0], &exact[1], &exact[2])?);
        let found = forced(Force::wgmma(tile, 2, false), 4, || {
            let mut found = y(&own[0], &own[1])?;
            found.extend(gradients(&op, &own[0], &own[1], &own[2])?);
            Ok(found)
        })?;
        for (name, (found, expected)) in ["y", "dx", "dw"].iter().zip(found.iter().zip(&expected)) {
            let (found, expected) = (found.to_f64_vec()?, expected.to_f64_vec()?);
            assert!(expected.iter().any(|v| v.is_infinite()) && expected.iter().any(|v| v.is_finite()), "{name}");
            for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                let alike = if e.is_finite() { (f - e).abs() < 1e-4 } else { f == e || (f.is_nan() && e.is_nan()) };
                assert!(alike, "tile {tile}, stride {stride}: {name}[{i}] is {f}, not {e}");
            }
        }
    }
    Ok(())
}

/// Convolutions against f64, beside the plain f32 kernel: forward, dx and dw.
#[test]
fn convolutions_are_as_accurate_as_plain_f32() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let op = Conv2d(Conv2dOptions::new().padding(1));
    // Of one sign, as images behind a ReLU: what is cut off adds up.
    let one_sign = |shape: &[usize], seed: u64| -> Result<Array> {
        let v: Vec<f32> = random(shape, seed)?.to_f64_vec()?.iter().map(|v| v.abs() as f32).collect();
        Array::from_vec(v, shape, &cpu())
    };
    let all = [one_sign(&[6, 40, 13, 13], 1)?, one_sign(&[72, 40, 3, 3], 2)?, one_sign(&[6, 72, 13, 13], 3)?];
    let passes = |[x, w, dy]: [&Array; 3]| -> Result<Vec<Array>> {
        let mut y = op.forward(&[x, w], &mut Saved::new(&[x, w], vec![false; 2]))?;
        y.extend(gradients(&op, x, w, dy)?);
        Ok(y)
    };
    let exact = all.iter().map(|a| cast(a, DType::F64)).collect::<Result<Vec<_>>>()?;
    let exact = passes([&exact[0], &exact[1], &exact[2]])?;
    let own = all.iter().map(|a| a.to_context(&gpu)).collect::<Result<Vec<_>>>()?;
    let run = || passes([&own[0], &own[1], &own[2]]);
    let six = forced(Force::wgmma(0, 2, false), 4, run)?;
    // The same sums one after the other, by the general kernel.
    let plain = with_forced(Force::simt(), run)?;
    for (name, (exact, (six, plain))) in ["y", "dx", "dw"].iter().zip(exact.iter().zip(six.iter().zip(&plain))) {
        let [six, plain] = [difference(six, exact)?.relative, difference(plain, exact)?.relative];
        println!("{name}: six {six:.1e}, plain {plain:.1e}");
        assert!(six <= plain && six < 1e-6, "{name}: six {six:e}, plain {plain:e}");
    }
    Ok(())
}
