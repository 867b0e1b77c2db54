//! Hostile input, by the thousand: a module for each subject. No input panics, aborts, hangs, or takes memory out of proportion.
//!
//! A run takes seconds; `HADAL_HOSTILE_CASES=1000000 cargo test --release --test hostile` tries as many cases of each test.
//! Cases are decided by their number alone: `HADAL_HOSTILE_FIRST=1234 HADAL_HOSTILE_CASES=1` runs the one that a failure names.

mod calls;
mod calls_api;
mod cases;
mod files;
#[path = "../../src/cuda/kept.rs"]
mod kept;
mod kill;
mod known;
mod memory;
mod states;
