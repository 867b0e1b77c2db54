//! The book's names in one place: what *Dive into Deep Learning* keeps in its package `d2l`.
//!
//! Each function stands beside the book's listing of the same name; the faster way to the same result (`nn::Conv2D`,
//! `nn::MaxPool2D`, `nn::Dropout`) is named in its documentation.

mod dropout;

pub use crate::{
    context::try_gpu,
    data::load_data_fashion_mnist,
    models::{Residual, resnet_block},
    train::{evaluate_accuracy, sgd, train_ch3, train_ch5},
};
pub use dropout::dropout;
