//! Moves of elements: each agrees on all paths, and undone gives what was there before.

use hadal::{
    Array, DType, Tensor,
    check::{random, random_indices},
    ops::{BroadcastTo, Concat, Pad, Permute, Reshape, Slice, Span, Split},
};
use proptest::{collection::vec, prelude::*};

use crate::{accepts, agrees, attribute, common, config, dtype, laid, shrunk, stretched};

/// Tests a round trip on each context, for floats and integers.
fn returns(x: &Array, f: impl Fn(&Tensor) -> hadal::Result<Tensor>) -> Result<(), TestCaseError> {
    let integers = random_indices(x.shape(), 5, 100)?;
    for ctx in common::contexts() {
        for x in [hadal::check::cast(x, DType::F32)?.to_layout(x.layout())?, integers.clone(), x.clone()] {
            let y = f(&Tensor::new(x.to_context(&ctx)?))?.array();
            prop_assert_eq!((y.shape(), y.dtype(), y.to_f64_vec()?), (x.shape(), x.dtype(), x.to_f64_vec()?), "on {}", ctx);
        }
    }
    Ok(())
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1 => Just(0usize), 12 => 1usize..6], 1..6)
}

fn permutation() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    shape().prop_flat_map(|s| (Just((0..s.len()).collect::<Vec<_>>()).prop_shuffle(), Just(s)))
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn permuted_and_back((axes, shape) in permutation(), (last, seed, dtype) in (any::<bool>(), any::<u64>(), dtype())) {
        let x = laid(random(&shape, seed)?, last)?;
        agrees(&Permute { axes: axes.clone() }, std::slice::from_ref(&x), dtype)?;
        let mut back = vec![0; axes.len()];
        axes.iter().enumerate().for_each(|(to, &from)| back[from] = to as isize);
        let axes: Vec<isize> = axes.iter().map(|&a| a as isize).collect();
        returns(&x, |x| x.permute(&axes)?.permute(&back))?;
        returns(&x, |x| x.reshape(&[-1])?.reshape_as(&x.shape()).or_else(|e| if x.size() == 0 { Ok(x.clone()) } else { Err(e) }))?;
        agrees(&Reshape { shape: shape.iter().rev().copied().collect() }, &[x], dtype)?;
    }

    #[test]
    fn divided_and_joined(
        (shape, axis, cuts) in (shape(), any::<usize>(), vec(any::<usize>(), 0..3)),
        (last, seed, dtype) in (any::<bool>(), any::<u64>(), dtype()),
    ) {
        let (axis, x) = (axis % shape.len(), laid(random(&shape, seed)?, last)?);
        let extent = shape[axis];
        let mut ends: Vec<usize> = cuts.iter().map(|c| c % (extent + 1)).chain([0, extent]).collect();
        ends.sort();
        let sizes: Vec<usize> = ends.windows(2).map(|w| w[1] - w[0]).collect();
        agrees(&Split { sizes: sizes.clone(), axis }, std::slice::from_ref(&x), dtype)?;
        let piece = |n: usize| { let mut s = shape.clone(); s[axis] = n; s };
        let pieces: hadal::Result<Vec<Array>> =
            sizes.iter().enumerate().map(|(i, &n)| laid(random(&piece(n), seed ^ i as u64)?, last)).collect();
        agrees(&Concat { axis }, &pieces?, dtype)?;
        returns(&x, |x| {
            let parts: hadal::Result<Vec<Tensor>> = ends.windows(2).map(|w| x.slice(axis as isize, w[0]..w[1])).collect();
            Tensor::concat(&parts?.iter().collect::<Vec<_>>(), axis as isize)
        })?;
    }

    #[test]
    fn boxes_and_margins(
        (shape, picks) in (shape(), vec((any::<usize>(), any::<usize>(), 1usize..4), 5)),
        (margins, last, seed, dtype) in (vec((0usize..4, 0usize..4), 5), any::<bool>(), any::<u64>(), dtype()),
    ) {
        let x = laid(random(&shape, seed)?, last)?;
        let span = |(&extent, &(start, count, step)): (&usize, &(usize, usize, usize))| {
            let start = start % (extent + 1);
            Span { start, count: count % ((extent - start).div_ceil(step) + 1), step }
        };
        agrees(&Slice { spans: shape.iter().zip(&picks).map(span).collect() }, std::slice::from_ref(&x), dtype)?;
        let margins = &margins[..shape.len()];
        agrees(&Pad { margins: margins.to_vec(), value: 0.5 }, std::slice::from_ref(&x), dtype)?;
        let inner: Vec<_> = margins.iter().zip(&shape).map(|(m, &e)| m.0..m.0 + e).collect();
        returns(&x, |x| x.pad(margins, 7.0)?.slices(&inner))?;
    }

    #[test]
    fn stretched_to_a_shape(
        (shape, ones, absent) in (shape(), any::<u8>(), 0usize..3),
        (seed, dtype) in (any::<u64>(), dtype()),
    ) {
        let x = random(&shrunk(&shape, ones, absent), seed)?;
        agrees(&BroadcastTo { shape }, &[x], dtype)?;
    }

    #[test]
    fn wrong_sizes_are_refused(
        (a, b) in (vec(0usize..4, 0..4), vec(0usize..4, 0..4)),
        sizes in vec(prop_oneof![9 => 0isize..5, 1 => Just(-1isize), 1 => Just(-2), 1 => Just(isize::MAX)], 0..4),
    ) {
        // The product of the known extents; one that cannot be counted is refused, even beside an extent of 0.
        let extents = sizes.iter().filter(|&&s| s != -1);
        let known = extents.map(|&s| usize::try_from(s).ok()).try_fold(1usize, |n, s| n.checked_mul(s?));
        // The others are bounded beside a 0 as well.
        let known = known.filter(|_| !sizes.contains(&isize::MAX));
        let total = a.iter().product::<usize>();
        let fits = match (known, sizes.iter().filter(|&&s| s == -1).count()) {
            (Some(known), 0) => known == total,
            (Some(known), 1) => known > 0 && total % known == 0,
            _ => false,
        };
        accepts(fits, &[&a], |t| t[0].reshape(&sizes))?;
        accepts(stretched(&a, &b).is_some_and(|s| s == b), &[&a], |t| t[0].broadcast_to(&b))?;
    }

    #[test]
    fn wrong_axes_and_ranges_are_refused(
        (a, b, axis) in (vec(0usize..4, 0..4), vec(0usize..4, 0..4), -5isize..5),
        (axes, start, end, step) in (vec(-1isize..4, 0..4), 0usize..5, 0usize..5, attribute()),
    ) {
        let rank = a.len();
        let own = |axis: isize| if axis < 0 { axis + rank as isize } else { axis };
        let at = usize::try_from(own(axis)).ok().filter(|&d| d < rank);
        let mut named: Vec<isize> = axes.iter().map(|&d| own(d)).collect();
        named.sort();
        accepts(named.into_iter().eq(0..rank as isize), &[&a], |t| t[0].permute(&axes))?;
        let inside = at.is_some_and(|d| step > 0 && start <= end && end <= a[d]);
        accepts(inside, &[&a], |t| t[0].slice_step(axis, start..end, step))?;
        let alike = at.is_some_and(|at| b.len() == rank && (0..rank).all(|d| d == at || a[d] == b[d]));
        accepts(alike, &[&a, &b], |t| Tensor::concat(&[&t[0], &t[1]], axis))?;
        accepts(a.first().is_some_and(|&e| own_index(axis, e)), &[&a], |t| t[0].at(axis))?;
        let after = if step < 4 { step } else { usize::MAX / 2 };
        let margins: Vec<(usize, usize)> = (0..end).map(|_| (start, after)).collect();
        accepts(end == rank && (rank == 0 || step < 4), &[&a], |t| t[0].pad(&margins, 0.0))?;
    }
}

/// Index `i` is one of `extent`, counted from either end.
fn own_index(i: isize, extent: usize) -> bool {
    (-(extent as isize)..extent as isize).contains(&i)
}
