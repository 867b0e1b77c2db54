//! Every template choice of the tensor-core kernels at the edges of its tiles, against the f64 reference, where there is a GPU.
//!
//! The table in `tests/ops` has the ops' own cases; its small shapes would never meet a large tile, so here the plan is forced.

use crate::{
    Array, Context, DType, Layout, Result,
    autograd::Op,
    check::{cast, difference, parity_within, random},
    cpu,
    ops::{Conv2d, Conv2dOptions, Dense, DenseActivation, MatMul, UnaryKind},
    precision::{self, Precision},
    testing::{Force, with_forced},
};

/// `gpu(0)` with tensor cores for bf16 and tf32. Without one this says so, past libtest; `HADAL_REQUIRE_GPU=1` makes its
/// absence a failure.
pub(crate) fn gpu(least: (i32, i32)) -> Option<Context> {
    use std::io::Write;
    let found = crate::gpu(0).and_then(|ctx| {
        let have = crate::cuda::device(0)?.capability;
        Ok((have >= least).then_some(ctx))
    });
    match found {
        Ok(Some(ctx)) => return Some(ctx),
        Err(e) if std::env::var("HADAL_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("HADAL_REQUIRE_GPU is set: {e}"),
        _ => {}
    }
    let _ = writeln!(std::io::stderr(), "the tensor-core kernels are NOT checked: no GPU of compute capability {least:?}");
    None
}

/// A kind of arithmetic, with the bound on the relative difference from the same op on the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Math(pub DType, pub Precision, pub f64);
pub(super) const HALF: Math = Math(DType::F16, Precision::F32, 2e-3);
pub(super) const BRAIN: Math = Math(DType::BF16, Precision::F32, 1.6e-2);
pub(super) const EXACT: Math = Math(DType::F32, Precision::F32, 1e-6);
pub(super) const TF32: Math = Math(DType::F32, Precision::Tf32, 1e-3);

fn agrees(math: Math, force: Force, op: &dyn Op, inputs: &[Array], gpu: &Context) -> Result<()> {
    let Math(dtype, precision, bound) = math;
    let own = inputs.iter().map(|a| cast(a, dtype)?.to_layout(a.layout())).collect::<Result<Vec<_>>>()?;
    let run = || parity_within(op, &own, gpu, &cpu(), bound);
    with_forced(force, || precision::with(precision, run)).map_err(|e| {
        let shapes: Vec<_> = inputs.iter().map(|a| (a.shape(), a.layout())).collect();
        crate::Error::Check(format!("{math:?} {force:?} {op:?} {shapes:?}: {e}"))
    })
}

pub(super) fn matmul(ta: bool, tb: bool, [m, n, k]: [usize; 3]) -> Result<(MatMul, Vec<Array>)> {
    let swap = |flip: bool, r: usize, c: usize| if flip { [c, r] } else { [r, c] };
    Ok((MatMul { transpose_a: ta, transpose_b: tb }, vec![random(&swap(ta, m, k), 1)?, random(&swap(tb, k, n), 2)?]))
}

const TILES: [[usize; 2]; 3] = [[128, 128], [128, 64], [64, 64]];

#[test]
fn products_agree_in_every_tile() -> Result<()> {
    let least = |m: &Math| if m.0 == DType::F16 { (7, 5) } else { (8, 0) };
    for (i, math) in [HALF, BRAIN, EXACT, TF32].into_iter().enumerate() {
        let Some(gpu) = gpu(least(&math)) else { continue };
        let turing = gpu_is_turing();
        for (j, tile) in TILES.into_iter().enumerate().filter(|(_, t)| !turing || t[1] == 64) {
            let stages = if turing { 2 } else { 2 + (i + j) % 2 };
            let force = |parts| Force::mma(tile, stages, parts);
            // Both operands and their gradients: one flag gives three of the four pairs of majors.
            let (ta, tb) = ((i + j) % 2 == 0, (i + j) / 2 % 2 == 0);
            // Aligned: one tile and a little more, a single step of k, several parts.
            for (shape, parts) in [([136, 72, 40], 1), ([8, 136, 8], 1), ([64, 64, 320], 3)] {
                let (op, x) = matmul(ta, tb, shape)?;
                agrees(math, force(parts), &op, &x, &gpu)?;
            }
        }
        // Loads of 8 and 4 bytes and single elements, around a tile, with K from 1 on.
        let force = |parts| Force::mma([64, 64], 2, parts);
        for (j, shape) in [[68, 60, 12], [66, 62, 130], [65, 63, 67], [1, 1, 1], [63, 129, 1]].into_iter().enumerate() {
            let (op, x) = matmul((i + j) % 2 == 1, j % 2 == 0, shape)?;
            agrees(math, force(1 + j % 2), &op, &x, &gpu)?;
        }
        // A batch whose sides are stretched in turn, so that some axes are summed in the gradients; a bias.
        let x = vec![random(&[2, 1, 9, 16], 1)?, random(&[3, 16, 24], 2)?];
        agrees(math, force(1), &MatMul::default(), &x, &gpu)?;
        let x = vec![random(&[70, 72], 1)?, random(&[80, 72], 2)?, random(&[80], 3)?];
        agrees(math, force(1), &Dense, &x, &gpu)?;
        agrees(math, force(2), &Dense, &x, &gpu)?;
        for f in [UnaryKind::Relu, UnaryKind::Sigmoid, UnaryKind::Tanh] {
            agrees(math, force(1), &DenseActivation(f), &x, &gpu)?;
            agrees(math, force(2), &DenseActivation(f), &x, &gpu)?;
        }
    }
    Ok(())
}

fn gpu_is_turing() -> bool {
    crate::cuda::device(0).is_ok_and(|d| d.capability < (8, 0))
}

type Geometry = ([usize; 4], [usize; 4], Conv2dOptions);

/// Convolutions by what bounds the loads: a multiple of 8 channels, of 4, of 2, odd.
fn convolutions() -> Vec<(usize, Vec<Geometry>)> {
    let o = Conv2dOptions::new;
    vec![
        (
            8,
            vec![
                ([2, 16, 9, 8], [72, 16, 3, 3], o().padding(1)),
                ([1, 24, 11, 12], [8, 24, 3, 2], o().stride([2, 3]).padding([0, 1, 2, 0]).dilation([2, 1])),
                ([1, 16, 7, 6], [32, 8, 1, 1], o().groups(2).stride(2)),
            ],
        ),
        (4, vec![([1, 4, 13, 9], [12, 4, 11, 11], o().padding(5).stride(4)), ([2, 12, 5, 6], [20, 12, 2, 3], o())]),
        (2, vec![([1, 6, 9, 9], [10, 6, 3, 3], o().stride(3).padding(1)), ([1, 12, 6, 5], [12, 6, 3, 3], o().groups(2))]),
        (1, vec![([2, 3, 10, 9], [9, 3, 5, 5], o().padding(2).stride(2)), ([1, 17, 8, 9], [67, 17, 1, 1], o())]),
    ]
}

#[test]
fn convolutions_agree_in_every_tile() -> Result<()> {
    for (i, math) in [HALF, BRAIN, EXACT, TF32].into_iter().enumerate() {
        let Some(gpu) = gpu(if math.0 == DType::F16 { (7, 5) } else { (8, 0) }) else { continue };
        let turing = gpu_is_turing();
        for (j, (channels, geometries)) in convolutions().into_iter().enumerate() {
            let tiles = if channels == 8 { vec![TILES[i % 3], TILES[(i + 1) % 3]] } else { vec![[64, 64]] };
            for tile in tiles.into_iter().filter(|t| !turing || t[1] == 64) {
                for (l, (x, w, options)) in geometries.iter().enumerate() {
                    let force = Force::mma(tile, if turing { 2 } else { 3 }, 1 + (i + j + l) % 2);
                    let layout = if (i + l) % 2 == 0 { Layout::ChannelsLast } else { Layout::RowMajor };
                    let mut inputs = vec![random(x, 1)?.to_layout(layout)?, random(w, 2)?];
                    inputs.extend((l % 2 == 0).then(|| random(&w[..1], 3)).transpose()?);
                    agrees(math, force, &Conv2d(*options), &inputs, &gpu)?;
                }
            }
        }
    }
    Ok(())
}

/// Numbers of very different sizes, in f32.
pub(super) fn wide(shape: &[usize], seed: u64, powers: i32) -> Result<Array> {
    let (base, power) = (random(shape, seed)?.to_vec::<f64>()?, random(shape, seed + 9)?.to_vec::<f64>()?);
    let v: Vec<f32> = base.iter().zip(&power).map(|(b, p)| (b * 2f64.powf(p * f64::from(powers))) as f32).collect();
    Array::from_vec(v, shape, &cpu())
}

/// The largest |y − exact| / Σ|a||b|, and the root of the mean square of it.
pub(super) fn errors(y: &Array, a: &Array, b: &Array) -> Result<[f64; 2]> {
    let (y, a64, b64) = (y.to_f64_vec()?, a.to_f64_vec()?, b.to_f64_vec()?);
    let &[m, k] = a.shape() else { unreachable!() };
    let n = b.shape()[1];
    let (mut worst, mut squares) = (0f64, 0.0);
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|l| a64[i * k + l] * b64[l * n + j]);
            let (exact, size) = terms.fold((0.0, 0.0), |(s, t), v| (s + v, t + v.abs()));
            let e = (y[i * n + j] - exact).abs() / size;
            worst = worst.max(e);
            squares += e * e / (m * n) as f64;
        }
    }
    Ok([worst, squares.sqrt()])
}

/// f32 on tensor cores against the plain f32 kernel, on inputs that are hard: both errors at most the plain kernel's, and so
/// for one sign, for products that cancel, and for magnitudes 2⁶⁰ apart. (The model adds in f32 within an instruction where the
/// hardware cuts off below 2⁻²⁴ of the largest term: another 2⁻²⁴ at most, since only eight k are added there.)
#[test]
fn split_products_are_as_accurate_as_f32() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
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
            let run = || -> Result<Array> {
                let mut saved = crate::autograd::Saved::new(&[&on_a, &on_b], vec![false; 2]);
                MatMul::default().forward(&[&on_a, &on_b], &mut saved).map(|mut y| y.remove(0))
            };
            let general = Force::simt();
            let plain = errors(&with_forced(general, run)?, &a, &b)?;
            let split = errors(&run()?, &a, &b)?;
            let rounded = errors(&precision::with(Precision::Tf32, run)?, &a, &b)?;
            println!("k {k} {name}: plain {plain:?}, split {split:?}, tf32 {rounded:?}");
            assert!(split[0] <= plain[0] && split[1] <= plain[1], "k {k} {name}: split {split:?}, plain {plain:?}");
            assert!(rounded[1] > 10.0 * split[1] && rounded[0] < 1e-3, "k {k} {name}: tf32 {rounded:?}");
        }
    }
    Ok(())
}

/// Operands (64, 64) with infinities, NaN, the largest floats and the smallest.
pub(super) fn not_finite(gpu: &Context) -> Result<(Array, Array)> {
    let (mut a, mut b) = (vec![1f32; 64 * 64], vec![1f32; 64 * 64]);
    let special =
        [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, -f32::MAX, f32::MIN_POSITIVE, 0.0, f32::from_bits(0x7fffffff)];
    for (row, v) in special.into_iter().enumerate() {
        a[row * 64..][..64].fill(if v.abs() < 1.0 { v } else { 0.0 });
        a[row * 64 + 5] = v;
    }
    b[5 * 64] = 0.0;
    b[5 * 64 + 1] = 1.5;
    Ok((Array::from_vec(a, &[64, 64], gpu)?, Array::from_vec(b, &[64, 64], gpu)?))
}

/// Whether their product is that of plain f32.
pub(super) fn is_not_finite_as_in_f32(y: &Array) -> Result<()> {
    let y = y.to_vec::<f32>()?;
    let row = |i: usize| &y[i * 64..][..3];
    assert!(row(0)[0].is_nan() && row(0)[1..] == [f32::INFINITY; 2], "{:?}", row(0));
    assert!(row(1)[0].is_nan() && row(1)[1..] == [f32::NEG_INFINITY; 2], "{:?}", row(1));
    assert!(row(2).iter().chain(row(7)).all(|v| v.is_nan()), "{:?} {:?}", row(2), row(7));
    assert_eq!(row(3), [0.0, f32::INFINITY, f32::MAX]);
    assert_eq!(row(4), [0.0, f32::NEG_INFINITY, -f32::MAX]);
    assert_eq!(row(5)[2], 64.0 * f32::MIN_POSITIVE);
    assert_eq!(row(6), [0.0; 3]);
    Ok(())
}

/// What is not finite comes out as from plain f32.
#[test]
fn split_products_keep_what_is_not_finite() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
    let (a, b) = not_finite(&gpu)?;
    let mut saved = crate::autograd::Saved::new(&[&a, &b], vec![false; 2]);
    for parts in [1, 2] {
        let y = with_forced(Force::mma([64, 64], 2, parts), || MatMul::default().forward(&[&a, &b], &mut saved))?;
        is_not_finite_as_in_f32(&y[0])?;
    }
    Ok(())
}

/// Tile and stages do not change the bits, the number of parts does: what the documents say of the tuner's choice.
#[test]
fn tiles_do_not_change_the_bits() -> Result<()> {
    for math in [HALF, BRAIN, EXACT, TF32] {
        let Some(gpu) = gpu(if math.0 == DType::F16 { (7, 5) } else { (8, 0) }) else { continue };
        let on = |shape: &[usize], seed: u64| cast(&random(shape, seed)?, math.0)?.to_context(&gpu);
        let (a, b) = (on(&[136, 520], 1)?, on(&[520, 72], 2)?);
        let run = |tile: [usize; 2], stages: usize, parts: usize| -> Result<Vec<f64>> {
            let mut saved = crate::autograd::Saved::new(&[&a, &b], vec![false; 2]);
            let product = || MatMul::default().forward(&[&a, &b], &mut saved);
            with_forced(Force::mma(tile, stages, parts), || precision::with(math.1, product))?[0].to_f64_vec()
        };
        for parts in [1, 3] {
            let first = run([64, 64], 2, parts)?;
            for tile in TILES.into_iter().filter(|t| !gpu_is_turing() || t[1] == 64) {
                for stages in if gpu_is_turing() { 2..3 } else { 2..4 } {
                    assert_eq!(run(tile, stages, parts)?, first, "{math:?} {tile:?}, {stages} stages, {parts} parts");
                }
            }
        }
        assert!(math.0 != DType::F32 || run([64, 64], 2, 1)? != run([64, 64], 2, 3)?, "{math:?}");
    }
    Ok(())
}

/// The same bits each time; tf32 only where it is asked for, and only for f32.
#[test]
fn bits_change_by_precision_only() -> Result<()> {
    let Some(gpu) = gpu((8, 0)) else { return Ok(()) };
    let run = |dtype: DType, precision: Option<Precision>| -> Result<Vec<f64>> {
        let (a, b) =
            (cast(&random(&[130, 520], 1)?, dtype)?.to_context(&gpu)?, cast(&random(&[520, 70], 2)?, dtype)?.to_context(&gpu)?);
        let product = || -> Result<Array> {
            let mut saved = crate::autograd::Saved::new(&[&a, &b], vec![false; 2]);
            MatMul::default().forward(&[&a, &b], &mut saved).map(|mut y| y.remove(0))
        };
        precision.map_or_else(product, |p| precision::with(p, product))?.to_f64_vec()
    };
    for dtype in [DType::F32, DType::BF16] {
        let plain = run(dtype, None)?;
        assert_eq!(plain, run(dtype, None)?);
        assert_eq!(plain, run(dtype, Some(Precision::F32))?);
        let tf32 = run(dtype, Some(Precision::Tf32))?;
        assert_eq!(plain == tf32, dtype != DType::F32);
        let host = |v: Vec<f64>| Array::from_vec(v, &[130, 70], &cpu());
        assert!(difference(&host(tf32)?, &host(plain)?)?.relative < 1e-3);
    }
    Ok(())
}
