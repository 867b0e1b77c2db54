use hadal::{
    Array, DType, Layout, Result, Tensor, autograd,
    check::{self, cast, random, random_in, random_indices},
    cpu,
    ops::{PairLoss, PairLossKind, SoftmaxCrossEntropy},
};

use crate::Case;

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let op = SoftmaxCrossEntropy::default();
    // (axis, logits, labels)
    for (axis, x, label) in [
        (-1, &[4, 10][..], &[4][..]),
        (1, &[1, 2], &[1, 1]),
        (-1, &[5, 1], &[5]),
        (-1, &[2, 6, 5], &[2, 6]),
        (1, &[2, 5, 3, 4], &[2, 3, 4]),
        (1, &[2, 5, 3, 4], &[2, 1, 3, 4]),
        (2, &[2, 5, 3, 4], &[2, 5, 4]),
        (0, &[5, 3], &[3]),
        (0, &[7], &[]),
        (-1, &[0, 10], &[0]),
        (1, &[3, 783], &[3]),
        // Rows of every kind of tile and team, with tails and beginnings inside of 16 bytes.
        (-1, &[70, 3], &[70]),
        (-1, &[77, 17], &[77]),
        (-1, &[9, 50], &[9]),
        (-1, &[11, 128], &[11]),
        (-1, &[5, 131], &[5]),
        (-1, &[2, 3, 33], &[2, 3]),
    ] {
        let classes = x[if axis < 0 { x.len() - 1 } else { axis as usize }];
        let (x, label) = (random(x, 1)?, random_indices(label, 2, classes)?);
        for from_logits in [false, true] {
            let op = SoftmaxCrossEntropy { axis, from_logits, weight: 1.5, ..op };
            all.push(Case::new(op, vec![x.clone(), label.clone()]).both_layouts().slack(2.0));
            let soft = SoftmaxCrossEntropy { sparse_label: false, ..op };
            all.push(Case::new(soft, vec![x.clone(), random_in(x.shape(), 3, 0.0, 1.0)?]).both_layouts().slack(2.0));
        }
    }
    // Labels of other dtypes, a row for a block, many strided rows.
    let bytes = Array::from_vec(vec![3u8, 0, 9], &[3], &cpu())?;
    all.push(Case::new(op, vec![random(&[3, 10], 1)?, bytes.clone()]));
    let floats = Array::from_vec(vec![3f32, 0., 9.], &[3], &cpu())?;
    all.push(Case::new(op, vec![random(&[3, 10], 1)?, cast(&floats, DType::F64)?]).rough());
    all.push(Case::new(op, vec![random(&[3, 2000], 1)?, random_indices(&[3], 2, 2000)?]).rough().slack(2.0));
    let op = SoftmaxCrossEntropy { axis: 1, ..op };
    all.push(
        Case::new(op, vec![random(&[2, 6, 50, 50], 1)?, random_indices(&[2, 50, 50], 2, 6)?]).both_layouts().rough().slack(2.0),
    );

    for kind in
        [PairLossKind::Squared, PairLossKind::Absolute, PairLossKind::SigmoidCrossEntropy, PairLossKind::ProbabilityCrossEntropy]
    {
        for (x, z) in [
            (&[5, 3][..], &[5, 3][..]),
            (&[5, 1], &[5]),
            (&[4, 2, 3, 2], &[4, 2, 3, 2]),
            (&[], &[]),
            (&[0, 3], &[0, 3]),
            (&[783], &[783]),
            (&[2, 50], &[2, 50]),
        ] {
            let probability = kind == PairLossKind::ProbabilityCrossEntropy;
            let x = if probability { random_in(x, 1, 0.1, 0.9)? } else { random(x, 1)? };
            all.push(Case::new(PairLoss { kind, weight: 0.7 }, vec![x, random_in(z, 2, 0.1, 0.9)?]).both_layouts().slack(2.0));
        }
        let x = vec![random_in(&[2, 3000], 3, 0.1, 0.9)?, random_in(&[2, 3000], 4, 0.1, 0.9)?];
        all.push(Case::new(PairLoss { kind, weight: 1.0 }, x).rough().slack(2.0));
    }
    Ok(all)
}

/// The gradient that the forward pass leaves: the same one that a dy of ones makes of it, multiplied by any other dy; and
/// of 16-bit logits the losses are f32.
#[test]
fn cross_entropy_has_its_gradient_from_the_forward_pass() -> Result<()> {
    let grad = |op: SoftmaxCrossEntropy, x: &Array, label: &Array, dy: Option<f64>| -> Result<(Tensor, Array)> {
        let x = Tensor::new(x.clone()).attach_grad();
        let loss = autograd::record(|| autograd::apply1(op, &[&x, &Tensor::new(label.clone())]))?;
        match dy {
            None => loss.backward_retain()?,
            Some(dy) => loss.backward_from(&loss.ones_like()?.affine(dy, 0.0)?, true)?,
        }
        let first = x.grad()?;
        // Once more from what was kept: nothing has been written into it.
        if dy.is_some() {
            loss.backward_from(&loss.ones_like()?.affine(dy.unwrap_or(1.0), 0.0)?, false)?
        } else {
            loss.backward()?
        }
        assert_eq!(x.grad()?.to_vec()?, first.to_vec()?);
        Ok((loss, first.array()))
    };
    for ctx in crate::common::contexts() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            for (axis, shape) in [(-1, &[7, 10][..]), (-1, &[300, 3]), (-1, &[3, 129]), (-1, &[2, 1500]), (1, &[2, 5, 3, 7])] {
                for sparse_label in [true, false] {
                    let op = SoftmaxCrossEntropy { axis, sparse_label, weight: 1.5, from_logits: false };
                    let mut without = shape.to_vec();
                    let classes = without.remove(if axis < 0 { shape.len() - 1 } else { 1 });
                    let label = match sparse_label {
                        true => random_indices(&without, 2, classes)?,
                        false => cast(&random_in(shape, 3, 0.0, 1.0)?, dtype)?,
                    };
                    let x = cast(&random(shape, 1)?, dtype)?;
                    let (want, dx_want) = grad(op, &x, &label, Some(1.0))?;
                    assert_eq!(want.dtype(), if dtype == DType::F64 { DType::F64 } else { DType::F32 });
                    for layout in [Layout::RowMajor, Layout::ChannelsLast] {
                        let on = |a: &Array| match a.rank() {
                            4 => a.to_layout(layout)?.to_context(&ctx),
                            _ => a.to_context(&ctx),
                        };
                        let (loss, dx) = grad(op, &on(&x)?, &on(&label)?, None)?;
                        let near = |a: &Array, b: &Array, bound: f64| {
                            let d = check::difference(a, b).unwrap();
                            assert!(d.relative <= bound, "{ctx} {dtype} {shape:?} {op:?}: {d}");
                        };
                        near(&loss.array(), &want.array(), 4.0 * check::bound(loss.dtype()));
                        near(&dx, &dx_want, 4.0 * check::bound(dtype));
                        assert_eq!(dx.to_f64_vec()?, grad(op, &on(&x)?, &on(&label)?, Some(1.0))?.1.to_f64_vec()?);
                        let twice: Vec<f64> = dx.to_f64_vec()?.iter().map(|v| v * -4.0).collect();
                        assert_eq!(grad(op, &on(&x)?, &on(&label)?, Some(-4.0))?.1.to_f64_vec()?, twice);
                    }
                }
            }
        }
    }
    Ok(())
}
