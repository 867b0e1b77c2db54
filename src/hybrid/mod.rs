//! [`hybridize`](crate::nn::Sequential::hybridize): a block is traced once for each signature, its graph is fused, and later passes replay the
//! fused graph.
//!
//! Before the first pass with a signature the block runs eagerly once, which records the ops that it applies ([`trace`]). The graph is rewritten by
//! the patterns of [`fuse`]. All passes with that signature apply the graph's ops, on the same tape and with the same random draws and running
//! statistics as the eager block ([`Graph::run`]). A signature is what the ops depend on beside values: shapes, dtypes, layouts, device, precision,
//! recording, training, and what needs gradients.
//!
//! A block whose forward pass depends on values (it reads a tensor, draws random numbers without an op, writes in place) cannot be replayed. It
//! stays eager, with one warning, or fails where [`strict`](crate::nn::Sequential::hybridize_strict) was asked for.

mod cache;
mod fuse;
mod graph;
mod run;
#[cfg(test)]
mod tests;
pub(crate) mod trace;

pub(crate) use cache::Hybrid;
