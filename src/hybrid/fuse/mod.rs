//! Rewrites of a traced graph, one file each: a pattern, and the op that takes its place.
//!
//! `HADAL_FUSE_OFF=bn_relu,conv_dual` switches rewrites off by name, `HADAL_FUSE_OFF=all` all of them.

mod bn_add_relu;
mod bn_relu;
mod conv_dual;
mod dense_activation;
mod stem_block;

use std::collections::HashSet;

use super::graph::Graph;
use crate::{Result, Tensor};

/// Rewrites the pattern that ends at node `i`, if it is there.
type Apply = fn(&mut Graph, usize, &[&Tensor]) -> Result<bool>;

/// In order: a pattern comes before those that would take a part of it.
const REWRITES: &[(&str, Apply)] = &[
    ("stem_block", stem_block::apply),
    ("bn_add_relu", bn_add_relu::apply),
    ("bn_relu", bn_relu::apply),
    ("conv_dual", conv_dual::apply),
    ("dense_activation", dense_activation::apply),
];

/// Applies all rewrites to `graph`, whose inputs were `x` in the trace.
pub(super) fn rewrite(graph: &mut Graph, x: &[&Tensor]) -> Result<()> {
    let off = std::env::var("HADAL_FUSE_OFF").unwrap_or_default();
    rewrite_without(graph, x, &off.split(',').map(str::trim).collect())
}

/// The same without the rewrites of these names.
pub(super) fn rewrite_without(graph: &mut Graph, x: &[&Tensor], off: &HashSet<&str>) -> Result<()> {
    for (name, apply) in REWRITES.iter().filter(|(name, _)| !off.contains(name) && !off.contains("all")) {
        for i in 0..graph.nodes.len() {
            if graph.nodes[i].is_some() && apply(graph, i, x)? {
                debug_assert!(graph.nodes.iter().flatten().any(|n| n.fused == Some(name)));
            }
        }
    }
    Ok(())
}
