use hadal::{
    Array, DType, Result,
    check::{random, random_in},
    cpu,
    ops::{Arg, ArgKind, Norm, Reduce, ReduceKind::*},
};

use crate::Case;

const SINGLE: &[DType] = &[DType::F32];

/// Shapes and axes: rows, columns, both ends, the middle, everything, nothing, one element.
const AXES: &[(&[usize], &[isize])] = &[
    (&[3, 17], &[]),
    (&[3, 17], &[0]),
    (&[3, 17], &[-1]),
    (&[2, 3, 4], &[1]),
    (&[2, 3, 4], &[0, -1]),
    (&[2, 3, 4, 5], &[0, 2, 3]),
    (&[2, 3, 4, 5], &[1]),
    (&[2, 3, 4, 5], &[2, 3]),
    (&[2, 3, 4, 5], &[0]),
    (&[2, 3, 4, 5], &[]),
    (&[2, 3, 2, 2, 3], &[0, 2, 4]),
    (&[50], &[0]),
    (&[1, 1], &[0]),
    (&[], &[]),
    (&[0, 3], &[1]),
    // dy stretched by whole packs: it goes on along the innermost axis, or stays.
    (&[2, 3, 16], &[1]),
    (&[3, 32], &[-1]),
    (&[2, 16, 3, 16], &[0, 2, 3]),
];

/// Distinct values, at least 0.01 apart, in no order.
fn distinct(shape: &[usize]) -> Result<Array> {
    let n: usize = shape.iter().product();
    let step = if n.is_multiple_of(7) { 11 } else { 7 };
    Array::from_vec((0..n).map(|i| ((i * step + 3) % n.max(1)) as f64 * 0.01 - 0.5).collect(), shape, &cpu())
}

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for &(shape, axes) in AXES {
        for keepdims in [false, true] {
            let op = |kind| Reduce { kind, axes: axes.to_vec(), keepdims };
            // Sums of either sign nearly cancel: rounding the inputs is not the sum's error, but rounding it is.
            for kind in [Sum, Mean] {
                all.push(Case::new(op(kind), vec![random_in(shape, 1, 0.2, 1.0)?]).both_layouts());
            }
            all.push(Case::new(Norm { axes: axes.to_vec(), keepdims }, vec![random(shape, 7)?]).both_layouts());
            for kind in [Max, Min] {
                all.push(Case::new(op(kind), vec![distinct(shape)?]).both_layouts().dtypes(SINGLE));
            }
            all.push(Case::new(op(Prod), vec![random_in(shape, 2, 0.7, 1.4)?]).both_layouts().slack(4.0));
        }
        if axes.len() < 2 {
            for kind in [ArgKind::Max, ArgKind::Min] {
                let op = Arg { kind, axis: axes.first().copied(), keepdims: kind == ArgKind::Min };
                all.push(Case::new(op, vec![distinct(shape)?]).rough().both_layouts().dtypes(SINGLE));
            }
        }
    }
    // No zero, one, and two among the factors.
    let zeros = Array::from_vec(vec![2., 3., 0.5, 2., 0., 3., 0., 3., 0., 1.5, -2., 0.25], &[4, 3], &cpu())?;
    for axes in [&[1][..], &[0], &[]] {
        all.push(Case::new(Reduce { kind: Prod, axes: axes.to_vec(), keepdims: false }, vec![zeros.clone()]));
    }
    // Empty folds.
    for kind in [Sum, Prod, Mean] {
        all.push(Case::new(Reduce { kind, axes: vec![1], keepdims: false }, vec![random(&[3, 0], 1)?]));
    }
    // Large ones: many tasks, slices, two passes; all shares of the work.
    let large: &[(&[usize], &[isize])] = &[
        (&[3, 101, 97], &[1, 2]),
        (&[60_001], &[0]),
        (&[20_011, 3], &[0]),
        (&[1009, 65], &[0]),
        (&[65, 1009], &[1]),
        (&[3, 2, 130, 101], &[0, 2, 3]),
        (&[7, 40, 19, 31], &[0, 2, 3]),
        (&[700, 2, 40], &[0, 2]),
        (&[2, 1031, 33], &[1]),
    ];
    for &(shape, axes) in large {
        for kind in [Sum, Mean, Max, Min, Prod] {
            let x = match kind {
                Max | Min => random(shape, 8)?,
                Prod => random_in(shape, 8, 0.999, 1.001)?,
                _ => random_in(shape, 8, 0.2, 1.0)?,
            };
            let case = Case::new(Reduce { kind, axes: axes.to_vec(), keepdims: false }, vec![x]).rough().both_layouts();
            // The halves' own rounding of a factor is multiplied thousands of times over.
            all.push(if kind == Prod { case.dtypes(SINGLE).slack(20.0) } else { case });
        }
        if let [axis] = *axes {
            let op = Arg { kind: ArgKind::Max, axis: Some(axis), keepdims: false };
            all.push(Case::new(op, vec![random(shape, 9)?]).rough());
        }
    }
    all.push(
        Case::new(Arg { kind: ArgKind::Max, axis: None, keepdims: false }, vec![random(&[2, 9, 71, 33], 9)?])
            .rough()
            .both_layouts(),
    );
    Ok(all)
}
