//! The operations: one file for each family with its formulas, reference loops, launches, gradients and [`crate::Tensor`] methods.

pub(crate) mod create;
pub(crate) mod layout;
mod unary;

pub use unary::{Unary, UnaryKind};

/// Every type in this folder with an `impl Op for`, by name: what the gradient check and the parity test have to cover.
pub const OP_TYPES: &[&str] = include!(concat!(env!("OUT_DIR"), "/op_types.rs"));
