//! Tests and benches whose tools take long to build, in a package of their own: `tests/properties`, `benches/ops.rs`.
