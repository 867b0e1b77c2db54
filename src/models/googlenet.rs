//! GoogLeNet as the book builds it (Szegedy et al. 2015): without the two auxiliary classifiers and the normalizations.

use super::Options;
use crate::{
    Result, Tensor,
    nn::{Conv2D, Dense, Forward, GlobalAvgPool2D, MaxPool2D, Sequential},
};

crate::block! {
    /// Four paths side by side, joined along the channels: 1x1, 1x1 and 3x3, 1x1 and 5x5, pool and 1x1.
    ///
    /// ```
    /// use hadal::{Tensor, cpu, init, models::Inception, nn::{Block, Forward}};
    /// let block = Inception::new(64, (96, 128), (16, 32), 32);
    /// block.initialize(init::Xavier::new(), &cpu())?;
    /// assert_eq!(block.forward(&Tensor::ones(&[1, 192, 12, 12], &cpu())?)?.shape(), [1, 64 + 128 + 32 + 32, 12, 12]);
    /// # Ok::<(), hadal::Error>(())
    /// ```
    #[derive(Debug)]
    pub struct Inception {
        p1_1: Conv2D,
        p2_1: Conv2D,
        p2_2: Conv2D,
        p3_1: Conv2D,
        p3_2: Conv2D,
        p4_1: MaxPool2D,
        p4_2: Conv2D,
    }
}

impl Inception {
    /// `c1` to `c4` are the channels of each path's layers, in the order of the paper's table.
    pub fn new(c1: usize, c2: (usize, usize), c3: (usize, usize), c4: usize) -> Self {
        Inception {
            p1_1: Conv2D::new(c1, 1).relu(),
            p2_1: Conv2D::new(c2.0, 1).relu(),
            p2_2: Conv2D::new(c2.1, 3).padding(1).relu(),
            p3_1: Conv2D::new(c3.0, 1).relu(),
            p3_2: Conv2D::new(c3.1, 5).padding(2).relu(),
            p4_1: MaxPool2D::new(3).stride(1).padding(1),
            p4_2: Conv2D::new(c4, 1).relu(),
        }
    }
}

impl Forward for Inception {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let p1 = self.p1_1.forward(x)?;
        let p2 = self.p2_2.forward(&self.p2_1.forward(x)?)?;
        let p3 = self.p3_2.forward(&self.p3_1.forward(x)?)?;
        let p4 = self.p4_2.forward(&self.p4_1.forward(x)?)?;
        Tensor::concat(&[&p1, &p2, &p3, &p4], 1)
    }
}

/// GoogLeNet for `classes` classes: two convolutional stages, nine Inception blocks in three stages, global pooling, a dense
/// layer. The book trains it with images of 96x96.
///
/// ```
/// use hadal::models;
/// assert_eq!(models::googlenet(10).len(), 6);
/// ```
pub fn googlenet(classes: usize) -> Sequential {
    googlenet_of(&Options::new(classes))
}

pub(super) fn googlenet_of(o: &Options) -> Sequential {
    let c = |channels| o.channels(channels);
    let pair = |(a, b)| (c(a), c(b));
    let inception = |c1, c2, c3, c4| Inception::new(c(c1), pair(c2), pair(c3), c(c4));
    let pool = || MaxPool2D::new(3).stride(2).padding(1);

    let b1 = Sequential::new().add(Conv2D::new(c(64), 7).stride(2).padding(3).relu()).add(pool());
    let b2 = Sequential::new().add(Conv2D::new(c(64), 1).relu()).add(Conv2D::new(c(192), 3).padding(1).relu()).add(pool());
    let b3 =
        Sequential::new().add(inception(64, (96, 128), (16, 32), 32)).add(inception(128, (128, 192), (32, 96), 64)).add(pool());
    let b4 = Sequential::new()
        .add(inception(192, (96, 208), (16, 48), 64))
        .add(inception(160, (112, 224), (24, 64), 64))
        .add(inception(128, (128, 256), (24, 64), 64))
        .add(inception(112, (144, 288), (32, 64), 64))
        .add(inception(256, (160, 320), (32, 128), 128))
        .add(pool());
    let b5 = Sequential::new()
        .add(inception(256, (160, 320), (32, 128), 128))
        .add(inception(384, (192, 384), (48, 128), 128))
        .add(GlobalAvgPool2D::new());
    Sequential::new().add(b1).add(b2).add(b3).add(b4).add(b5).add(Dense::new(o.classes))
}
