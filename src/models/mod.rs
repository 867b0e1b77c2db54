//! The book's networks, one readable file each, and all of them [by name](by_name).
//!
//! | | block | models |
//! | --- | --- | --- |
//! | one layer | | [`linear_regression`], [`softmax_regression`] |
//! | perceptrons | | [`mlp`], [`dropout_mlp`] |
//! | LeNet | | [`lenet`], [`lenet_relu`] |
//! | AlexNet | | [`alexnet`] |
//! | VGG | [`vgg_block`] | [`vgg`] of [`VGG11`], [`VGG13`], [`VGG16`], [`VGG19`] |
//! | NiN | [`nin_block`] | [`nin`] |
//! | GoogLeNet | [`Inception`] | [`googlenet`] |
//! | ResNet | [`Residual`], [`resnet_block`] | [`resnet18`], [`resnet34`] |
//! | deep ResNets | [`Bottleneck`], [`bottleneck_block`] | [`resnet50`], [`resnet101`], [`resnet152`] |
//! | DenseNet | [`conv_block`], [`DenseBlock`], [`transition_block`] | [`densenet`], [`densenet121`] |
//!
//! An empty batch shows a model's shapes and parameters without computing anything:
//!
//! ```
//! use hadal::{cpu, init, models, nn::Block};
//! let net = models::resnet50(1000);
//! net.initialize(init::Zero, &cpu())?;
//! println!("{}", net.summary(&[0, 3, 224, 224], &cpu())?);
//! assert_eq!(net.parameter_count()?, 25_557_032);
//! # Ok::<(), hadal::Error>(())
//! ```

mod alexnet;
mod bottleneck;
mod densenet;
mod googlenet;
mod lenet;
mod linear;
mod mlp;
mod nin;
mod registry;
mod resnet;
mod vgg;

pub use alexnet::alexnet;
pub use bottleneck::{Bottleneck, bottleneck_block, resnet50, resnet101, resnet152};
pub use densenet::{DenseBlock, bottleneck_conv_block, conv_block, densenet, densenet121, transition_block};
pub use googlenet::{Inception, googlenet};
pub use lenet::{lenet, lenet_relu};
pub use linear::{linear_regression, softmax_regression};
pub use mlp::{dropout_mlp, mlp};
pub use nin::{nin, nin_block};
pub use registry::{CARDS, Card, Options, by_name, card, names};
pub use resnet::{Residual, resnet_block, resnet18, resnet34};
pub use vgg::{VGG11, VGG13, VGG16, VGG19, vgg, vgg_block};
