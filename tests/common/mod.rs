//! Shared by all test programs: the contexts to run on, and the count of what ran on a GPU.
#![allow(dead_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use hadal::{Context, cpu};

/// Checks that ran on a GPU in this process.
pub static GPU_CHECKS: AtomicUsize = AtomicUsize::new(0);

/// `gpu(0)` if there is one. With `HADAL_REQUIRE_GPU=1` its absence is a failure, else it is said once.
pub fn gpu() -> Option<Context> {
    match hadal::gpu(0) {
        Ok(ctx) => {
            GPU_CHECKS.fetch_add(1, Ordering::Relaxed);
            Some(ctx)
        }
        Err(e) if std::env::var("HADAL_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("HADAL_REQUIRE_GPU is set: {e}"),
        Err(e) => {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| eprintln!("GPU checks are NOT run: {e}"));
            None
        }
    }
}

/// The CPU, and the GPU if there is one.
pub fn contexts() -> Vec<Context> {
    std::iter::once(cpu()).chain(gpu()).collect()
}
