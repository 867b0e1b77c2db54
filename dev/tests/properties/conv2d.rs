//! Convolution.

use hadal::{
    check::{random, random_in},
    ops::{Conv2d, Conv2dOptions},
};
use proptest::prelude::*;

use crate::{accepts, agrees, attribute, config, dtype, laid};

/// Channels of a group: mostly few, sometimes enough for each fast path.
fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1usize..5, 1 => prop_oneof![Just(16usize), Just(19), Just(33)]]
}

/// The options and the input's extent along both axes, never smaller than the window.
fn geometry() -> impl Strategy<Value = (Conv2dOptions, [usize; 2], [usize; 2])> {
    let each = |to| [1..=to, 1..=to];
    (each(4usize), each(3usize), each(3usize), [0usize..4, 0..4, 0..4, 0..4], [0usize..7, 0..7]).prop_map(
        |(kernel, stride, dilation, padding, more)| {
            let extent = |i: usize| {
                let span = (kernel[i] - 1) * dilation[i] + 1;
                span.saturating_sub(padding[i] + padding[i + 2]).max(1) + more[i]
            };
            (Conv2dOptions::new().stride(stride).dilation(dilation).padding(padding), kernel, [extent(0), extent(1)])
        },
    )
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn all_paths_agree(
        (options, kernel, extent) in geometry(),
        (n, groups, c, o) in (1usize..4, 1usize..4, channels(), channels()),
        (bias, last, seed, dtype) in (any::<bool>(), any::<[bool; 2]>(), any::<u64>(), dtype()),
    ) {
        let x = laid(random_in(&[n, groups * c, extent[0], extent[1]], seed, 0.2, 1.0)?, last[0])?;
        let w = laid(random(&[groups * o, c, kernel[0], kernel[1]], seed ^ 1)?, last[1])?;
        let mut inputs = vec![x, w];
        if bias {
            inputs.push(random(&[groups * o], seed ^ 2)?);
        }
        agrees(&Conv2d(options.groups(groups)), &inputs, dtype)?;
    }

    #[test]
    fn what_the_formula_excludes_is_refused(
        (x, w) in ([0usize..3, 0..5, 0..5, 0..5], [0usize..5, 0..3, 0..4, 0..4]),
        (stride, dilation) in ([attribute(), attribute()], [attribute(), attribute()]),
        (padding, groups) in ([attribute(), attribute(), attribute(), attribute()], 0usize..4),
    ) {
        let along = |i: usize| {
            let padded = (x[2 + i] as u128) + padding[i] as u128 + padding[i + 2] as u128;
            let span = (w[2 + i] as u128).saturating_sub(1) * dilation[i] as u128 + 1;
            let limit = i32::MAX as u128;
            w[2 + i] > 0 && stride[i] > 0 && dilation[i] > 0 && stride[i] as u128 <= limit && padded <= limit && span <= padded
        };
        let grouped = groups > 0 && x[1] == groups * w[1] && w[0].is_multiple_of(groups);
        let options = Conv2dOptions::new().stride(stride).dilation(dilation).padding(padding).groups(groups);
        accepts(grouped && along(0) && along(1), &[&x, &w], |t| t[0].conv2d(&t[1], None, options))?;
    }
}
