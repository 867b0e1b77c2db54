//! The operations: one file for each family with its formulas, reference loops, launches, gradients and [`crate::Tensor`] methods.

mod batch_norm;
mod bias_grad;
pub(crate) mod binary;
pub(crate) mod binary_scalar;
pub(crate) mod broadcast;
pub(crate) mod cast;
mod concat;
mod conv2d;
mod conv2d_cpu;
mod conv2d_pair;
pub(crate) mod create;
mod dense;
mod dropout;
mod index;
pub(crate) mod layout;
mod matmul;
#[cfg(test)]
pub(crate) mod mma_tests;
#[cfg(test)]
pub(crate) mod moments_tests;
pub(crate) mod number;
pub(crate) mod operands;
mod operators;
mod pair_loss;
mod pool;
mod random_fill;
pub(crate) mod reduce;
mod rows;
mod shape_ops;
#[cfg(test)]
mod six_tests;
mod slice;
mod softmax;
mod softmax_cross_entropy;
mod stem_block;
#[cfg(test)]
mod stem_tests;
mod unary;
#[cfg(test)]
mod wgmma_tests;
mod where_;
mod window;

pub use batch_norm::{BatchNorm, BatchNormInference, BatchNormInferenceRelu, BatchNormRelu};
pub(crate) use batch_norm::{RunningStats, batch_norm_following};
pub use binary::{AddN, Binary, BinaryKind};
pub use binary_scalar::BinaryScalar;
pub use cast::Cast;
pub use concat::{Concat, Split};
pub use conv2d::{Conv2d, Conv2dOptions};
pub use conv2d_pair::Conv2dPair;
pub use dense::{Dense, DenseActivation};
pub use dropout::Dropout;
pub use index::{OneHot, Pick, Take};
pub use matmul::MatMul;
pub use operators::Operand;
pub use pair_loss::{PairLoss, PairLossKind};
pub use pool::{AvgPool2d, GlobalAvgPool2d, MaxPool2d, PoolOptions};
pub use reduce::{Arg, ArgKind, Norm, Reduce, ReduceKind};
pub use shape_ops::{BroadcastTo, Permute, Reshape};
pub use slice::{Pad, Slice, SliceAssign, Span};
pub use softmax::Softmax;
pub use softmax_cross_entropy::SoftmaxCrossEntropy;
pub use stem_block::{StemBlock, StemBlockInference};
pub use unary::{Unary, UnaryKind};
pub use where_::Where;
pub use window::{Padding, Pair};

/// Every type in this folder with an `impl Op for`, by name: what the gradient check and the parity test have to cover.
pub const OP_TYPES: &[&str] = include!(concat!(env!("OUT_DIR"), "/op_types.rs"));
