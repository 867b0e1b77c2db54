//! Pooling.

use hadal::{
    check::random,
    ops::{AvgPool2d, GlobalAvgPool2d, MaxPool2d, PoolOptions},
};
use proptest::prelude::*;

use crate::{accepts, agrees, attribute, config, distinct, dtype, laid};

/// The options and the input's extent along both axes.
fn geometry() -> impl Strategy<Value = (PoolOptions, [usize; 2])> {
    let each = |to| [1..=to, 1..=to];
    (each(5usize), each(4usize), [0usize..5, 0..5, 0..5, 0..5], [0usize..9, 0..9], any::<[bool; 3]>()).prop_map(
        |(kernel, stride, padding, more, [ceil, count, own])| {
            let padding = [0, 1, 2, 3].map(|side| padding[side] % kernel[side % 2]);
            let extent = [0, 1].map(|i| kernel[i].saturating_sub(padding[i] + padding[i + 2]).max(1) + more[i]);
            let options = PoolOptions::new(kernel).padding(padding).ceil_mode(ceil).count_include_pad(count);
            (if own { options } else { options.stride(stride) }, extent)
        },
    )
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn all_paths_agree(
        (options, [h, w]) in geometry(),
        (n, c) in (1usize..4, prop_oneof![4 => 1usize..5, 1 => Just(17usize)]),
        (last, seed, dtype) in (any::<bool>(), any::<u64>(), dtype()),
    ) {
        agrees(&MaxPool2d(options), &[laid(distinct(&[n, c, h, w], seed)?, last)?], dtype)?;
        let x = laid(random(&[n, c, h, w], seed)?, last)?;
        agrees(&AvgPool2d(options), std::slice::from_ref(&x), dtype)?;
        agrees(&GlobalAvgPool2d, &[x], dtype)?;
    }

    #[test]
    fn what_the_formula_excludes_is_refused(
        (x, kernel) in ([0usize..3, 0..3, 0..5, 0..5], [attribute(), attribute()]),
        (stride, padding) in ([attribute(), attribute()], [attribute(), attribute(), attribute(), attribute()]),
        (ceil, count, largest) in any::<(bool, bool, bool)>(),
    ) {
        let along = |i: usize| {
            let padded = (x[2 + i] as u128) + padding[i] as u128 + padding[i + 2] as u128;
            let fits = kernel[i] as u128 <= padded && padded <= i32::MAX as u128 && stride[i] <= i32::MAX as usize;
            x[2 + i] > 0 && kernel[i] > 0 && stride[i] > 0 && fits && padding[i].max(padding[i + 2]) < kernel[i]
        };
        let options = PoolOptions::new(kernel).stride(stride).padding(padding).ceil_mode(ceil).count_include_pad(count);
        let pool = |t: &[hadal::Tensor]| if largest { t[0].max_pool2d(options) } else { t[0].avg_pool2d(options) };
        accepts(along(0) && along(1), &[&x], pool)?;
    }
}
