//! Reductions.

use hadal::{
    check::random_in,
    ops::{Arg, ArgKind, Reduce, ReduceKind, ReduceKind::*},
};
use proptest::{collection::vec, prelude::*};

use crate::{accepts, agrees, config, distinct, dtype, laid};

fn kind() -> impl Strategy<Value = ReduceKind> {
    prop_oneof![Just(Sum), Just(Mean), Just(Max), Just(Min), Just(Prod)]
}

/// A shape and some of its axes, in any order and counted from either end.
fn shape_and_axes() -> impl Strategy<Value = (Vec<usize>, Vec<isize>)> {
    let extent = prop_oneof![8 => 1usize..7, 1 => prop_oneof![Just(33usize), Just(130)]];
    let shape = vec(extent, 0..6).prop_filter("of modest size", |s| s.iter().product::<usize>() <= 20_000);
    shape.prop_flat_map(|shape| {
        let all: Vec<isize> = (0..shape.len() as isize).collect();
        let rank = all.len();
        let some = proptest::sample::subsequence(all, 0..=rank).prop_shuffle();
        (Just(shape), some, any::<u8>()).prop_map(|(shape, axes, negative)| {
            let rank = shape.len() as isize;
            let turn = |a: isize| if negative >> a & 1 == 1 { a - rank } else { a };
            (shape, axes.into_iter().map(turn).collect())
        })
    })
}

proptest! {
    #![proptest_config(config(128))]

    #[test]
    fn all_paths_agree(
        (shape, axes) in shape_and_axes(),
        (kind, keepdims, last) in (kind(), any::<bool>(), any::<bool>()),
        (seed, dtype) in (any::<u64>(), dtype()),
    ) {
        let x = match kind {
            Max | Min => distinct(&shape, seed)?,
            // So near to 1 that a product of all stays in f16's range.
            Prod => random_in(&shape, seed, 0.9995, 1.0005)?,
            _ => random_in(&shape, seed, 0.2, 1.0)?,
        };
        let x = laid(x, last)?;
        agrees(&Reduce { kind, axes: axes.clone(), keepdims }, std::slice::from_ref(&x), dtype)?;
        let which = if keepdims { ArgKind::Max } else { ArgKind::Min };
        agrees(&Arg { kind: which, axis: axes.first().copied(), keepdims }, &[laid(distinct(&shape, seed)?, last)?], dtype)?;
    }

    #[test]
    fn wrong_axes_are_refused(
        (shape, axes) in (vec(0usize..4, 0..5), vec(-6isize..6, 0..4)),
        (kind, keepdims) in (kind(), any::<bool>()),
    ) {
        let rank = shape.len() as isize;
        let mut named: Vec<isize> = axes.iter().map(|&a| if a < 0 { a + rank } else { a }).collect();
        let known = named.iter().all(|a| (0..rank).contains(a));
        named.sort();
        let twice = named.windows(2).any(|p| p[0] == p[1]);
        // There is no largest element of none, unless there is nothing to say either.
        let reduced = |d: isize| named.is_empty() || named.contains(&d);
        let count: usize = (0..rank).filter(|&d| reduced(d)).map(|d| shape[d as usize]).product();
        let kept: usize = (0..rank).filter(|&d| !reduced(d)).map(|d| shape[d as usize]).product();
        let valid = known && !twice && (count > 0 || kept == 0 || !matches!(kind, Max | Min));
        let op = Reduce { kind, axes, keepdims };
        accepts(valid, &[&shape], |t| hadal::autograd::apply1(op.clone(), &[&t[0]]))?;
    }
}
