//! Matrix products.

use hadal::{
    check::{random, random_in},
    ops::{Dense, MatMul},
};
use proptest::{collection::vec, prelude::*};

use crate::{accepts, agrees, config, dtype, shrunk, size, stretched};

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn all_paths_agree(
        (m, n, k) in (size(), size(), size()),
        (transpose_a, transpose_b) in any::<(bool, bool)>(),
        (batch, ones, absent) in (vec(1usize..4, 0..3), any::<[u8; 2]>(), [0usize..3, 0..3]),
        vectors in [prop::bool::weighted(0.1), prop::bool::weighted(0.1)],
        (seed, dtype) in (any::<u64>(), dtype()),
    ) {
        let shape = |i: usize, rows: usize, cols: usize, flip: bool| {
            let matrix = if flip { [cols, rows] } else { [rows, cols] };
            if vectors[i] { vec![k] } else { [shrunk(&batch, ones[i], absent[i]), matrix.to_vec()].concat() }
        };
        let (a, b) = (shape(0, m, k, transpose_a), shape(1, k, n, transpose_b));
        let op = MatMul { transpose_a, transpose_b };
        agrees(&op, &[random_in(&a, seed, 0.2, 1.0)?, random(&b, seed ^ 1)?], dtype)?;
    }

    #[test]
    fn dense_agrees(
        (rows, inputs, units) in (vec(0usize..6, 0..3), size(), size()),
        (bias, seed, dtype) in (any::<bool>(), any::<u64>(), dtype()),
    ) {
        let mut x = vec![random_in(&[rows, vec![inputs]].concat(), seed, 0.2, 1.0)?, random(&[units, inputs], seed ^ 1)?];
        if bias {
            x.push(random(&[units], seed ^ 2)?);
        }
        agrees(&Dense, &x, dtype)?;
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused(
        (a, b) in (vec(0usize..4, 0..4), vec(0usize..4, 0..4)),
        (ta, tb) in any::<(bool, bool)>(),
    ) {
        // The extents that have to be the same: a's columns and b's rows, unless swapped; a vector's only one.
        let inner = |s: &[usize], first: bool| match s {
            [] => None,
            [k] => Some(*k),
            [.., r, c] => Some(if first { *r } else { *c }),
        };
        let fits = matches!((inner(&a, ta), inner(&b, !tb)), (Some(x), Some(y)) if x == y);
        let batch = |s: &[usize]| s[..s.len().saturating_sub(2)].to_vec();
        let valid = fits && stretched(&batch(&a), &batch(&b)).is_some();
        accepts(valid, &[&a, &b], |t| t[0].matmul_t(&t[1], ta, tb))?;
        let dense = b.len() == 2 && a.last() == Some(&b[1]);
        accepts(dense, &[&a, &b], |t| t[0].dense(&t[1], None))?;
    }
}
