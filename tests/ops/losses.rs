use hadal::{
    Array, DType, Result,
    check::{cast, random, random_in, random_indices},
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
