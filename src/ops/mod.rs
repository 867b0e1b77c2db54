//! The operations: one file for each family with its formulas, reference loops, launches, gradients and [`crate::Tensor`] methods.

pub(crate) mod binary;
pub(crate) mod binary_scalar;
pub(crate) mod broadcast;
pub(crate) mod cast;
pub(crate) mod create;
pub(crate) mod layout;
pub(crate) mod number;
mod operators;
pub(crate) mod reduce;
mod unary;
mod where_;

pub use binary::{AddN, Binary, BinaryKind};
pub use binary_scalar::BinaryScalar;
pub use cast::Cast;
pub use operators::Operand;
pub use reduce::{Arg, ArgKind, Reduce, ReduceKind};
pub use unary::{Unary, UnaryKind};
pub use where_::Where;

/// Every type in this folder with an `impl Op for`, by name: what the gradient check and the parity test have to cover.
pub const OP_TYPES: &[&str] = include!(concat!(env!("OUT_DIR"), "/op_types.rs"));
