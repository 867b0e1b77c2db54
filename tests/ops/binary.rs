use hadal::{
    Array, DType, Result,
    check::{random, random_in},
    cpu,
    ops::{AddN, Binary, BinaryKind, BinaryKind::*, BinaryScalar, Where},
};

use crate::Case;

/// Pairs of shapes that broadcast: equal, a bias, a scalar, both stretched, empty, more axes than the other.
const SHAPES: &[(&[usize], &[usize])] = &[
    (&[3, 17], &[3, 17]),
    (&[2, 3, 4, 5], &[2, 3, 4, 5]),
    (&[2, 3, 4, 5], &[1, 3, 1, 1]),
    (&[2, 3, 4, 5], &[3, 1, 1]),
    (&[2, 3, 4, 5], &[5]),
    (&[1, 3, 1, 1], &[2, 3, 4, 5]),
    (&[50, 7], &[7]),
    (&[4, 1], &[1, 7]),
    (&[2, 1, 3], &[4, 1]),
    (&[3, 5, 2], &[]),
    (&[], &[3]),
    (&[], &[]),
    (&[1], &[1]),
    (&[1, 1, 1], &[3, 2, 5]),
    (&[0, 3], &[3]),
    (&[2, 0, 1], &[1, 4]),
    (&[2, 1, 3, 1, 2], &[3, 1, 4, 1]),
    // Whole packs along the innermost axis: biases in both layouts, other strides beside them.
    (&[2, 16, 3, 16], &[1, 16, 1, 1]),
    (&[3, 32], &[32]),
    (&[3, 1], &[5, 1, 16]),
    (&[2, 8, 16], &[2, 1, 16]),
    (&[35, 9], &[35, 9]),
];

const KINDS: &[BinaryKind] = &[Add, Sub, Mul, Div, Power, Maximum, Minimum, Eq, Ne, Lt, Le, Gt, Ge];

/// Rounded to a half, two values may become equal and the gradient of an extremum change sides.
const SINGLE: &[DType] = &[DType::F32];

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for &kind in KINDS {
        for (i, &(a, b)) in SHAPES.iter().enumerate() {
            // The kinds share the broadcasting: all shapes for one of each sort, some for the rest.
            if !matches!(kind, Add | Mul | Div | Maximum | Gt) && i % 3 != 0 {
                continue;
            }
            let (lo, hi) = if kind == Power { (0.3, 2.0) } else { (0.5, 1.5) };
            let a = if matches!(kind, Power) { random_in(a, 1, lo, hi)? } else { random(a, 1)? };
            let b = random_in(b, 2, lo, hi)?;
            let case = Case::new(Binary(kind), vec![a, b]).both_layouts();
            all.push(match kind {
                Maximum | Minimum | Eq | Ne | Lt | Le | Gt | Ge => case.dtypes(SINGLE),
                Power | Div => case.slack(4.0),
                _ => case,
            });
        }
        for flipped in [false, true] {
            for shape in [&[3, 17][..], &[2, 3, 5, 4], &[], &[0]] {
                let op = BinaryScalar { kind, scalar: 0.77, flipped };
                let case = Case::new(op, vec![random_in(shape, 3, 0.3, 2.0)?]).both_layouts().slack(4.0);
                all.push(if matches!(kind, Add | Sub | Mul | Div | Power) { case } else { case.dtypes(SINGLE) });
            }
        }
    }
    // More elements than one task, and a bias in each position.
    for (a, b) in [(&[3, 17, 50, 31][..], &[1, 17, 1, 1][..]), (&[783, 101], &[101]), (&[783, 101], &[783, 1])] {
        all.push(Case::new(Binary(Mul), vec![random(a, 4)?, random(b, 5)?]).rough().both_layouts());
        all.push(Case::new(Binary(Div), vec![random(a, 4)?, random_in(b, 5, 0.5, 1.5)?]).rough().both_layouts().slack(4.0));
    }
    for n in [1, 2, 5] {
        let x = (0..n).map(|i| random(&[2, 3, 4, 5], 10 + i)).collect::<Result<Vec<_>>>()?;
        all.push(Case::new(AddN, x).both_layouts().slack(2.0));
    }
    for (cond, a, b) in [
        (&[3, 17][..], &[3, 17][..], &[3, 17][..]),
        (&[2, 3, 4, 5], &[2, 3, 4, 5], &[1, 3, 1, 1]),
        (&[2, 1, 4, 5], &[], &[2, 3, 4, 5]),
        (&[4, 1], &[1, 7], &[]),
        (&[0], &[1], &[0]),
    ] {
        let n: usize = cond.iter().product();
        let bytes = Array::from_vec((0..n).map(|i| (i * i % 3) as u8).collect(), cond, &cpu())?;
        let float = Array::from_vec((0..n).map(|i| (i * i % 3) as f64).collect(), cond, &cpu())?;
        all.push(Case::new(Where, vec![bytes, random(a, 6)?, random(b, 7)?]).both_layouts());
        all.push(Case::new(Where, vec![float, random(a, 6)?, random(b, 7)?]).rough().both_layouts());
    }
    Ok(all)
}
