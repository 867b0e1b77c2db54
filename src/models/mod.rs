//! The book's networks, one readable file each.

mod lenet;
mod mlp;
mod resnet;

pub use lenet::{lenet, lenet_relu};
pub use mlp::dropout_mlp;
pub use resnet::{Residual, resnet_block, resnet18};
