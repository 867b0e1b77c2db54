//! Elementwise functions of two operands that are stretched to one shape.

use hadal::{
    autograd,
    check::random_in,
    ops::{AddN, Binary, BinaryKind, BinaryKind::*, Where},
};
use proptest::{collection::vec, prelude::*};

use crate::{accepts, agrees, config, distinct, dtype, laid, shrunk, stretched};

fn kind() -> impl Strategy<Value = BinaryKind> {
    prop_oneof![Just(Add), Just(Sub), Just(Mul), Just(Div), Just(Power), Just(Maximum), Just(Minimum), Just(Lt), Just(Ge)]
}

proptest! {
    #![proptest_config(config(128))]

    #[test]
    fn all_paths_agree(
        (shape, ones, absent) in (vec(1usize..6, 0..6), any::<[u8; 2]>(), [0usize..3, 0..3]),
        (kind, last) in (kind(), any::<[bool; 2]>()),
        (seed, dtype) in (any::<u64>(), dtype()),
    ) {
        let [a, b] = [0, 1].map(|i| shrunk(&shape, ones[i], absent[i]));
        let operands = match kind {
            // Never equal: the one side's values lie between the other's.
            Maximum | Minimum | Lt | Ge => {
                let b = distinct(&b, seed ^ 1)?.to_f64_vec().and_then(|v| {
                    hadal::Array::from_vec(v.into_iter().map(|v| v + 0.5 / 64.0).collect::<Vec<f64>>(), &b, &hadal::cpu())
                })?;
                vec![laid(distinct(&a, seed)?, last[0])?, laid(b, last[1])?]
            }
            _ => vec![laid(random_in(&a, seed, 0.5, 2.0)?, last[0])?, laid(random_in(&b, seed ^ 1, 0.5, 2.0)?, last[1])?],
        };
        agrees(&Binary(kind), &operands, dtype)?;
        let same = laid(random_in(operands[0].shape(), seed ^ 2, 0.5, 2.0)?, last[1])?;
        agrees(&AddN, &[operands[0].clone(), same], dtype)?;
    }

    #[test]
    fn a_choice_agrees(
        (shape, ones, absent) in (vec(1usize..6, 0..5), any::<[u8; 3]>(), [0usize..3, 0..3, 0..3]),
        (seed, dtype) in (any::<u64>(), dtype()),
    ) {
        let [cond, a, b] = [0, 1, 2].map(|i| shrunk(&shape, ones[i], absent[i]));
        let cond = hadal::check::random_indices(&cond, seed, 2)?;
        agrees(&Where, &[cond, random_in(&a, seed ^ 1, 0.5, 2.0)?, random_in(&b, seed ^ 2, 0.5, 2.0)?], dtype)?;
    }

    #[test]
    fn shapes_that_do_not_stretch_are_refused(
        (a, b) in (vec(0usize..4, 0..5), vec(0usize..4, 0..5)),
        kind in kind(),
    ) {
        accepts(stretched(&a, &b).is_some(), &[&a, &b], |t| autograd::apply1(Binary(kind), &[&t[0], &t[1]]))?;
        accepts(a == b, &[&a, &b], |t| autograd::apply1(AddN, &[&t[0], &t[1]]))?;
    }
}
