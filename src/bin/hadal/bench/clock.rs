//! Seconds that a piece of work takes.

use std::time::Instant;

use hadal::{Context, Result, cuda::Graph};

/// Runs in a graph, so that starting it costs nothing beside them.
const IN_GRAPH: usize = 10;

/// The seconds of one `work` on `ctx`. On a GPU the work is captured and replayed; what cannot be captured is launched eagerly.
pub fn time(ctx: &Context, quick: bool, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    // Compiles, allocates, warms up.
    work()?;
    work()?;
    ctx.synchronize()?;
    if ctx.is_gpu() {
        let n = if quick { 1 } else { IN_GRAPH };
        if let Ok((graph, ())) = Graph::capture(ctx, || (0..n).try_for_each(|_| work())) {
            let replay = &mut || graph.replay();
            return Ok(best(ctx, quick, replay)? / n as f64);
        }
    }
    best(ctx, quick, work)
}

/// The best mean of several blocks that each last long enough for the clock.
fn best(ctx: &Context, quick: bool, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let (block, blocks) = if quick { (0.0, 1) } else { (0.05, 7) };
    let mut block_of = |n: usize| -> Result<f64> {
        let start = Instant::now();
        (0..n).try_for_each(|_| work())?;
        ctx.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / n as f64)
    };
    let mut least = block_of(1)?;
    let n = (block / least.max(1e-9)).ceil().clamp(1.0, 1e6) as usize;
    for _ in 0..blocks {
        least = least.min(block_of(n)?);
    }
    Ok(least)
}
