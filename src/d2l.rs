//! The book's names in one place: what *Dive into Deep Learning* keeps in its package `d2l`.
//!
//! Each function stands beside the book's listing of the same name; the faster way to the same result (`nn::Conv2D`,
//! `nn::MaxPool2D`, `nn::Dropout`) is named in its documentation.

mod corr2d;
mod dropout;
mod pool2d;

pub use corr2d::{comp_conv2d, corr2d, corr2d_multi_in, corr2d_multi_in_out, corr2d_multi_in_out_1x1};

pub use crate::{
    context::try_gpu,
    data::load_data_fashion_mnist,
    models::{DenseBlock, Inception, Residual, conv_block, nin_block, resnet_block, transition_block, vgg_block},
    train::{evaluate_accuracy, sgd, train_ch3, train_ch5},
};
pub use dropout::dropout;
pub use pool2d::{PoolMode, pool2d};
