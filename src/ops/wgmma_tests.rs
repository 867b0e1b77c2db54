//! The wgmma kernels at the edges of their tiles, against the f64 reference, where there is a GPU of compute capability 9.0. The plan
//! is forced: the rule leaves small products to others.

use super::mma_tests::{Math, TF32, gpu, matmul};
use crate::{
    Array, Context, DType, Layout, Result,
    autograd::{Op, Saved},
    check::{cast, difference, parity_within, random},
    cpu,
    gemm::model::wgmma_tile::WgmmaTile,
    ops::{Conv2d, Conv2dOptions, Conv2dPair, Dense, DenseActivation, MatMul, UnaryKind},
    precision::{self, Precision},
    testing::{Force, ON_WGMMA, count_selected, with_forced},
};

/// The same sums in another order, rounded alike but for a few: a single wrong element is more than these bounds.
const HALF: Math = Math(DType::F16, Precision::F32, 2e-4);
const BRAIN: Math = Math(DType::BF16, Precision::F32, 1e-3);

/// Runs `f`, in which wgmma has to be selected at least `times`.
pub(super) fn forced<T>(force: Force, times: usize, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let (out, taken) = count_selected(ON_WGMMA, || with_forced(force, f));
    assert!(out.is_err() || taken >= times, "{force:?}: wgmma was selected {taken} times");
    out
}

/// Runs `f`, in which the model has to select wgmma `times`.
pub(super) fn unforced<T>(times: usize, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let (out, taken) = count_selected(ON_WGMMA, f);
    assert!(out.is_err() || taken == times, "wgmma was selected {taken} times");
    out
}

/// `op` and its gradients, which have to take wgmma `times`.
pub(super) fn agrees(math: Math, force: Force, times: usize, op: &dyn Op, inputs: &[Array], gpu: &Context) -> Result<()> {
    let Math(dtype, precision, bound) = math;
    let own = inputs.iter().map(|a| cast(a, dtype)?.to_layout(a.layout())).collect::<Result<Vec<_>>>()?;
    let run = || parity_within(op, &own, gpu, &cpu(), bound);
    forced(force, times, || precision::with(precision, run)).map_err(|e| {
        let shapes: Vec<_> = inputs.iter().map(|a| (a.shape(), a.layout())).collect();
        crate::Error::Check(format!("{math:?} {force:?} {op:?} {shapes:?}: {e}"))
    })
}

/// The rule takes wgmma where there is enough to do, the bits are the same each time, and other kernels give the same sums.
#[test]
fn the_rule_takes_it_for_bf16() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let on = |shape: &[usize], seed| cast(&random(shape, seed)?, DType::BF16)?.to_context(&gpu);
    let image = on(&[4, 64, 24, 24], 1)?.to_layout(Layout::ChannelsLast)?;
    let cases: [(Box<dyn Op>, [Array; 2], usize); 3] = [
        (Box::new(MatMul::default()), [on(&[520, 256], 1)?, on(&[256, 264], 2)?], 1),
        (Box::new(Conv2d(Conv2dOptions::new().padding(1))), [image.clone(), on(&[64, 64, 3, 3], 2)?], 1),
        (Box::new(Conv2d(Conv2dOptions::new().stride(2).padding(1))), [image, on(&[128, 64, 3, 3], 2)?], 1),
    ];
    for (op, [x, w], times) in cases {
        let run = || -> Result<Array> {
            let mut saved = Saved::new(&[&x, &w], vec![false; 2]);
            op.forward(&[&x, &w], &mut saved).map(|mut y| y.remove(0))
        };
        let y = unforced(times, run)?;
        assert_eq!(y.to_f64_vec()?, run()?.to_f64_vec()?, "{op:?}");
        let slow = unforced(0, || with_forced(Force::without_wgmma(), run));
        assert!(difference(&y, &slow?)?.relative < BRAIN.2, "{op:?}");
    }
    Ok(())
}

#[test]
fn products_agree_in_every_tile() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (i, tile) in WgmmaTile::GEMM.iter().copied().enumerate() {
        let force = |parts| Force::wgmma(i, parts, false);
        let (rows, columns) = (tile.cluster_rows(), tile.columns());
        // One product and its gradients have three of the four pairs of majors.
        let (ta, tb) = (i % 2 == 1, i == 0);
        for (shape, parts) in [([rows + 8, columns + 8, 72], 1), ([8, 2 * columns - 8, 8], 1), ([rows - 8, 16, 648], 3)] {
            let (op, x) = matmul(ta, tb, shape)?;
            agrees(BRAIN, force(parts), 3, &op, &x, &gpu)?;
        }
        // Rows and columns of the result that are odd.
        for (shape, parts) in [([rows + 1, columns - 1, 40], 1), ([1, 3, 104], 2)] {
            let (op, x) = matmul(false, true, shape)?;
            agrees(BRAIN, force(parts), 1, &op, &x, &gpu)?;
            agrees(TF32, force(parts), 1, &op, &x, &gpu)?;
        }
    }
    // A batch whose sides are stretched in turn, so that some axes are summed in the gradients; a bias.
    for tile in [2, 3] {
        let force = |parts| Force::wgmma(tile, parts, false);
        let x = vec![random(&[2, 1, 8, 16], 1)?, random(&[3, 16, 24], 2)?];
        agrees(HALF, force(1), 3, &MatMul::default(), &x, &gpu)?;
        let x = vec![random(&[72, 136], 1)?, random(&[80, 136], 2)?, random(&[80], 3)?];
        agrees(BRAIN, force(1), 3, &Dense, &x, &gpu)?;
        agrees(BRAIN, force(2), 3, &Dense, &x, &gpu)?;
        for (f, parts) in [(UnaryKind::Relu, 1), (UnaryKind::Sigmoid, 2), (UnaryKind::Tanh, 1)] {
            agrees(BRAIN, force(parts), 3, &DenseActivation(f), &x, &gpu)?;
            // The gradients see what TF32 has done to y, too.
            let twice = Math(TF32.0, TF32.1, 2.0 * TF32.2);
            agrees(twice, force(3 - parts), 1, &DenseActivation(f), &x, &gpu)?;
        }
        agrees(TF32, force(1), 1, &Dense, &x, &gpu)?;
    }
    Ok(())
}

/// Pairs of blocks over odd numbers of tiles down: three, of which the last pair's second block has none; in batches, parts and
/// every pair of majors.
#[test]
fn pairs_of_blocks_agree_where_one_has_no_rows() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (i, tile) in WgmmaTile::GEMM.iter().copied().enumerate().filter(|(_, t)| t.cluster > 1) {
        let (rows, columns) = (tile.cluster_rows() + 8, tile.columns() + 8);
        let force = |parts| Force::wgmma(i, parts, false);
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            let (op, x) = matmul(ta, tb, [rows, columns, 200])?;
            agrees(BRAIN, force(1 + usize::from(tb)), 3, &op, &x, &gpu)?;
        }
        let x = vec![random(&[2, 1, rows, 72], 1)?, random(&[1, 2, 72, 24], 2)?];
        agrees(BRAIN, force(1), 3, &MatMul::default(), &x, &gpu)?;
    }
    Ok(())
}

/// x, filters, and how they meet.
pub(super) type Geometry = ([usize; 4], [usize; 4], Conv2dOptions);

pub(super) fn convolutions() -> [Geometry; 8] {
    let o = Conv2dOptions::new;
    [
        ([2, 72, 9, 11], [136, 72, 3, 3], o().padding(1)),
        ([3, 8, 12, 7], [8, 8, 1, 1], o().stride(2)),
        ([1, 16, 13, 9], [24, 16, 3, 3], o().stride(2).padding(1)),
        ([1, 24, 11, 12], [8, 24, 3, 2], o().stride([2, 3]).padding([0, 1, 2, 0]).dilation([2, 1])),
        ([2, 8, 17, 16], [16, 8, 7, 5], o().stride(4).padding(3)),
        ([1, 8, 6, 5], [8, 8, 3, 3], o().padding(4).dilation(2)),
        ([2, 128, 7, 6], [144, 64, 3, 3], o().groups(2).padding(1)),
        ([2, 192, 9, 6], [192, 64, 3, 2], o().groups(3).stride(2).padding(1)),
    ]
}

#[test]
fn convolutions_agree_in_every_tile() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let geometries = convolutions();
    for (i, (x, w, options)) in geometries.iter().enumerate() {
        let layout = if i % 2 == 0 { Layout::ChannelsLast } else { Layout::RowMajor };
        let mut inputs = vec![random(x, 1)?.to_layout(layout)?, random(w, 2)?];
        inputs.extend((i % 2 == 0).then(|| random(&w[..1], 3)).transpose()?);
        let force = Force::wgmma(i, 1 + i % 3, false);
        // A step along k has to be whole within a group; tf32 has none for the gradient of grouped images.
        let (group, times) = (if options.groups > 1 { w[0] / options.groups } else { 64 }, usize::from(options.groups > 1));
        agrees(BRAIN, force, 3 - usize::from(group % 64 > 0), &Conv2d(*options), &inputs, &gpu)?;
        agrees(TF32, force, 3 - times, &Conv2d(*options), &inputs, &gpu)?;
    }
    Ok(())
}

/// Two convolutions with 3x3 and 1x1 filters, as a block that makes images smaller begins with.
pub(super) fn entry(stride: usize) -> [Conv2dOptions; 2] {
    let options = Conv2dOptions::new().stride(stride);
    [options.padding(1), options]
}

/// x, and the filters of two convolutions and how they meet it.
pub(super) type Pair = ([usize; 4], [[usize; 4]; 2], [Conv2dOptions; 2]);

pub(super) fn pairs() -> [Pair; 6] {
    let o = Conv2dOptions::new;
    [
        ([2, 72, 9, 11], [[136, 72, 3, 3], [136, 72, 1, 1]], entry(2)),
        ([3, 8, 12, 7], [[8, 8, 3, 3], [8, 8, 1, 1]], entry(1)),
        ([1, 16, 13, 9], [[24, 16, 3, 3], [72, 16, 1, 1]], entry(3)),
        ([2, 24, 11, 12], [[72, 24, 3, 3], [8, 24, 1, 1]], entry(4)),
        ([1, 40, 17, 16], [[16, 40, 1, 1], [16, 40, 7, 5]], [o().stride(2), o().stride(2).padding([3, 2])]),
        ([2, 8, 6, 15], [[8, 8, 2, 1], [16, 8, 3, 3]], [o().stride([1, 2]), o().stride([1, 2]).padding(2).dilation([2, 3])]),
    ]
}

/// Two convolutions of one x: each pass is one launch with tiles of both, or with sums of both. Strides 1 to 4, of which the last two
/// take several launches; filters that differ in number, size and dilation; a pair of which only one meets some phases.
#[test]
fn pairs_agree_in_every_tile() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let (o, geometries) = (Conv2dOptions::new, pairs());
    for (i, (x, [w1, w2], options)) in geometries.iter().enumerate() {
        let layout = if i % 2 == 0 { Layout::ChannelsLast } else { Layout::RowMajor };
        let (bias, mut inputs) = ([i % 2 == 0, i % 3 == 0], vec![random(x, 1)?.to_layout(layout)?]);
        for (w, bias) in [w1, w2].into_iter().zip(bias) {
            inputs.push(random(w, inputs.len() as u64)?);
            inputs.extend(bias.then(|| random(&w[..1], 9)).transpose()?);
        }
        let op = Conv2dPair::new(*options, bias);
        let force = Force::wgmma(3 * i, 1 + i % 3, false);
        let (agrees_in_five, at_once) = count_selected(ON_WGMMA, || agrees(BRAIN, force, 5, &op, &inputs, &gpu));
        agrees_in_five?;
        // The check goes back twice, the second time onto a gradient that has arrived.
        assert_eq!(at_once, 5, "{op:?}: {at_once} plans for five passes");
        if i == 0 {
            agrees(TF32, Force::wgmma(1, 1, false), 1, &op, &inputs, &gpu)?;
        }
    }
    // Where the larger one has a halo, both run alone; their gradients of x are rounded before they are added.
    let apart = Math(DType::BF16, Precision::F32, 5e-3);
    let inputs = [random(&[2, 40, 7, 7], 1)?, random(&[16, 40, 3, 3], 2)?, random(&[16, 40, 1, 1], 3)?];
    agrees(apart, Force::wgmma(2, 1, true), 3, &Conv2dPair::new(entry(1), [false; 2]), &inputs, &gpu)?;
    // So they do for dx where the strides are not alike.
    let op = Conv2dPair::new([o(), o().stride(2)], [false; 2]);
    let inputs = [random(&[2, 40, 7, 7], 1)?, random(&[16, 40, 1, 1], 2)?, random(&[24, 40, 1, 1], 3)?];
    agrees(apart, Force::wgmma(3, 2, false), 4, &op, &inputs, &gpu)
}

/// Tiles of several rows, of several images, of a part of an image; ragged in all of them.
#[test]
fn halos_agree_in_every_tile() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    let geometries = [
        ([3, 72, 24, 25], 136),
        ([5, 8, 6, 6], 8),
        ([2, 64, 5, 130], 64),
        ([23, 16, 3, 3], 24),
        ([2, 72, 13, 24], 8),
        ([1, 8, 1, 90], 72),
        ([17, 136, 3, 3], 72),
        ([2, 8, 23, 24], 8),
    ];
    for (i, (x, o)) in geometries.iter().cycle().enumerate().take(WgmmaTile::HALO.len()) {
        let layout = if i % 2 == 0 { Layout::RowMajor } else { Layout::ChannelsLast };
        let mut inputs = vec![random(x, 1)?.to_layout(layout)?, random(&[*o, x[1], 3, 3], 2)?];
        inputs.extend((i % 2 == 0).then(|| random(&[*o], 3)).transpose()?);
        let op = Conv2d(Conv2dOptions::new().padding(1));
        // Rows of 130 pixels are too long for the gradient of the filters.
        let times = if i == 2 { 2 } else { 3 };
        let force = Force::wgmma(i, 1 + i % 3, true);
        agrees(BRAIN, force, times, &op, &inputs, &gpu)?;
        agrees(TF32, force, times, &op, &inputs, &gpu)?;
    }
    // Channels that are multiples of 4 only.
    let inputs = [random(&[2, 44, 7, 7], 1)?, random(&[20, 44, 3, 3], 2)?.to_layout(Layout::ChannelsLast)?];
    let op = Conv2d(Conv2dOptions::new().padding(1));
    agrees(TF32, Force::wgmma(2, 1, true), 3, &op, &inputs, &gpu)
}

/// dx and dw of a convolution.
pub(super) fn gradients(op: &dyn Op, x: &Array, w: &Array, dy: &Array) -> Result<[Array; 2]> {
    let mut saved = Saved::new(&[x, w], vec![true; 2]);
    op.forward(&[x, w], &mut saved)?;
    match &op.backward(&saved, std::slice::from_ref(dy))?[..] {
        [Some(dx), Some(dw)] => Ok([dx.clone(), dw.clone()]),
        _ => Err(crate::Error::Check("a gradient is missing".into())),
    }
}

/// TF32 against f64: images lose what rounding the operands does, filters hardly anything, since they are split into bf16.
#[test]
fn gradients_in_tf32_are_near_f64() -> Result<()> {
    let Some(gpu) = gpu((9, 0)) else { return Ok(()) };
    for (halo, stride) in [(true, 1), (false, 1), (false, 2)] {
        let op = Conv2d(Conv2dOptions::new().stride(stride).padding(1));
        let side = (13 - 1) / stride + 1;
        let all = [random(&[6, 40, 13, 13], 1)?, random(&[72, 40, 3, 3], 2)?, random(&[6, 72, side, side], 3)?];
        let own = all.iter().map(|a| cast(a, DType::F32)).collect::<Result<Vec<_>>>()?;
        let on = own.iter().map(|a| a.to_context(&gpu)).collect::<Result<Vec<_>>>()?;
        let exact = own.iter().map(|a| cast(a, DType::F64)).collect::<Result<Vec<_>>>()?;
        let exact = gradients(&op, &exact[0], &exact[1], &exact[2])?;
        let run = || precision::with(Precision::Tf32, || gradients(&op, &on[0], &on[1], &on[2]));
        let errors = |own: [Array; 2]| -> Result<[f64; 2]> {
            Ok([difference(&own[0], &exact[0])?.relative, difference(&own[1], &exact[1])?.relative])
        };
        let [dx, dw] = errors(forced(Force::wgmma(1, 2, halo), 3, run)?)?;
        let other = errors(with_forced(Force::without_wgmma(), run)?)?;
        println!("stride {stride}, halo {halo}: dx {dx:.1e}, dw {dw:.1e}; by mma.sync {:.1e}, {:.1e}", other[0], other[1]);
        assert!(dx < 5e-4 && dw < 1e-5 && other[1] > 1e-4, "stride {stride}, halo {halo}: {dx:e}, {dw:e}; {other:?}");
    }
    Ok(())
}
