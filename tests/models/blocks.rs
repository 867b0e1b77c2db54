//! The blocks by themselves: shapes, and where each channel comes from.

use hadal::{
    Result, Tensor, init,
    models::{self, Bottleneck, DenseBlock, Inception, Residual},
    nn::{Block, Forward, Sequential},
};

use crate::common;

#[test]
fn blocks_have_the_books_shapes() -> Result<()> {
    for ctx in common::contexts() {
        let shape = |block: &dyn Fn() -> Box<dyn Forward>, input: &[usize]| -> Result<Vec<usize>> {
            Ok(block().forward(&Tensor::uniform(0.0, 1.0, input, &ctx)?)?.shape())
        };
        macro_rules! of {
            ($block:expr) => {
                &|| {
                    let block = $block;
                    block.initialize(init::Xavier::new(), &ctx).unwrap();
                    Box::new(block)
                }
            };
        }
        assert_eq!(shape(of!(Residual::new(3, false, 1)), &[4, 3, 6, 6])?, [4, 3, 6, 6]);
        assert_eq!(shape(of!(Residual::new(6, true, 2)), &[4, 3, 6, 6])?, [4, 6, 3, 3]);
        assert_eq!(shape(of!(models::resnet_block(6, 2, false)), &[4, 3, 6, 6])?, [4, 6, 3, 3]);
        assert_eq!(shape(of!(Bottleneck::new(3, true, 2)), &[4, 3, 6, 6])?, [4, 12, 3, 3]);
        assert_eq!(shape(of!(models::bottleneck_block(3, 2, true)), &[4, 3, 6, 6])?, [4, 12, 6, 6]);
        assert_eq!(shape(of!(models::vgg_block(2, 5)), &[2, 3, 8, 8])?, [2, 5, 4, 4]);
        assert_eq!(shape(of!(models::nin_block(5, (3, 5), (1, 2), (1, 2))), &[2, 3, 8, 8])?, [2, 5, 8, 4]);
        assert_eq!(shape(of!(Inception::new(2, (3, 4), (5, 6), 7)), &[2, 3, 8, 8])?, [2, 19, 8, 8]);
        assert_eq!(shape(of!(models::conv_block(5)), &[2, 3, 8, 8])?, [2, 5, 8, 8]);
        assert_eq!(shape(of!(DenseBlock::new(2, 10)), &[4, 3, 8, 8])?, [4, 23, 8, 8]);
        assert_eq!(shape(of!(DenseBlock::bottleneck(2, 10)), &[4, 3, 8, 8])?, [4, 23, 8, 8]);
        assert_eq!(shape(of!(models::transition_block(10)), &[4, 23, 8, 8])?, [4, 10, 4, 4]);
    }
    Ok(())
}

/// With every weight 1 and one pixel of value v, each path's channels tell the path: v times the channels between.
#[test]
fn an_inception_joins_its_paths_in_order() -> Result<()> {
    for ctx in common::contexts() {
        let block = Inception::new(1, (2, 2), (3, 1), 1);
        block.initialize(init::One, &ctx)?;
        // In an image of one pixel the pool sees that pixel alone, and windows see zeros around it.
        let y = block.forward(&Tensor::full(&[1, 1, 1, 1], 5.0, &ctx)?)?;
        assert_eq!(y.to_vec()?, [5., 10., 10., 15., 5.]);
        // Relus everywhere: nothing passes for a negative input.
        let y = block.forward(&Tensor::full(&[1, 1, 1, 1], -5.0, &ctx)?)?;
        assert_eq!(y.to_vec()?, [0.; 5]);
    }
    Ok(())
}

/// The input's channels come first, then each layer's, which sees all before it: its batch-norm passes relu(x) (running
/// statistics 0 and 1), its weights of 1 sum the channels up.
#[test]
fn a_dense_block_keeps_what_it_has_seen() -> Result<()> {
    for ctx in common::contexts() {
        let block = DenseBlock::new(2, 1);
        block.initialize(init::One, &ctx)?;
        let x = Tensor::from_vec(vec![-3f32, 4.], &[1, 2, 1, 1], &ctx)?;
        let y = block.forward(&x)?.to_vec()?;
        for (got, want) in y.iter().zip([-3., 4., 4., 8.]) {
            assert!((got - want).abs() < 1e-3, "{y:?}");
        }
        assert_eq!(y.len(), 4);
    }
    Ok(())
}

#[test]
fn a_transition_takes_means_of_sums() -> Result<()> {
    for ctx in common::contexts() {
        let block = models::transition_block(1);
        block.initialize(init::One, &ctx)?;
        let x = Tensor::from_vec(vec![-1f32, 2., 3., 4., 10., 20., 30., -40.], &[1, 2, 2, 2], &ctx)?;
        let y = block.forward(&x)?.to_vec()?;
        assert!(y.len() == 1 && (y[0] - (0. + 2. + 3. + 4. + 10. + 20. + 30. + 0.) / 4.).abs() < 1e-3, "{y:?}");
    }
    Ok(())
}

/// A residual block whose convolutions are 0 passes relu(x); a bottleneck's short cut of weights 1 sums the channels up.
#[test]
fn short_cuts_carry_the_input() -> Result<()> {
    for ctx in common::contexts() {
        let x = Tensor::from_vec(vec![-3f32, 4.], &[1, 2, 1, 1], &ctx)?;
        let same = Residual::new(2, false, 1);
        same.initialize(init::Zero, &ctx)?;
        assert_eq!(same.forward(&x)?.to_vec()?, [0., 4.]);
        let wide = Bottleneck::new(1, true, 2);
        wide.initialize(init::One, &ctx)?;
        // All convolutions are sums here: -3 + 4 = 1 on both ways.
        let y = wide.forward(&x)?.to_vec()?;
        assert!(y.len() == 4 && y.iter().all(|v| (v - 2.0).abs() < 1e-3), "{y:?}");
    }
    Ok(())
}

#[test]
fn parameters_are_named_by_their_path() {
    let names = |net: Sequential| net.collect().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let net = names(models::resnet50(10));
    for name in ["0.weight", "4.0.conv1.weight", "4.0.shortcut.0.weight", "7.2.bn3.running_var", "9.bias"] {
        assert!(net.iter().any(|n| n == name), "{name} is not in {net:?}");
    }
    let net = names(models::densenet(10));
    assert!(net.iter().any(|n| n == "4.net.3.2.weight"), "{net:?}");
}
