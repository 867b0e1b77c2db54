//! The pools: a training loop reaches a state in which no step asks the system for memory. Alone in its program, since
//! the counters belong to the process.

use hadal::{
    Result, Trainer, autograd,
    data::{DataLoader, FashionMnist},
    init,
    loss::SoftmaxCrossEntropy,
    models,
    optim::Sgd,
};

#[path = "common/mod.rs"]
mod common;

#[test]
fn later_steps_ask_the_system_for_no_memory() -> Result<()> {
    for ctx in common::contexts() {
        let net = models::lenet_relu(10);
        net.initialize(init::Xavier::new(), &ctx)?;
        let (x, y) =
            DataLoader::new(&FashionMnist::sample("a test")?.train.take(64), 64, &ctx)?.workers(0).epoch(0)?.next().unwrap()?;
        let loss = SoftmaxCrossEntropy::new();
        let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.01).momentum(0.9));
        let mut step = || -> Result<u64> {
            let l = autograd::record(|| loss.forward(&net.forward(&x)?, &y))?;
            l.backward()?;
            trainer.step(64)?;
            Ok(ctx.memory()?.system_allocations)
        };
        // Scratch is taken by as many tasks as happen to run at once, so that on the CPU a size may be asked for once more
        // when two threads first meet there; a leak or a pool that thrashes would ask in every step.
        let (warm, steps, late) = if ctx.is_gpu() { (5, 20, 0) } else { (100, 900, 3) };
        for _ in 0..warm {
            step()?;
        }
        let settled = step()?;
        for i in 0..steps {
            let asked = step()? - settled;
            assert!(asked <= late, "{ctx}: {asked} allocations by step {i}");
        }
        let m = ctx.memory()?;
        assert!(m.in_use > 0 && m.in_use + m.cached <= m.peak.max(m.in_use) * 2, "{ctx}: {m:?}");
    }
    Ok(())
}
