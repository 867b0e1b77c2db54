//! The guide: one page a subject, the files of `docs/guide/`. Their code runs as tests.

#[doc = include_str!("../docs/guide/models.md")]
pub mod models {}

#[doc = include_str!("../docs/guide/precision.md")]
pub mod precision {}

#[doc = include_str!("../docs/guide/contexts.md")]
pub mod contexts {}

#[doc = include_str!("../docs/guide/gpu.md")]
pub mod gpu {}

#[doc = include_str!("../docs/guide/book.md")]
pub mod book {}
