//! Whole training steps of the book's nets.

use std::time::Instant;

use hadal::{
    Context, DType, Result, Tensor, Trainer, autograd, init, loss::SoftmaxCrossEntropy, models, nn::Sequential, optim::Sgd,
};

use super::Options;

/// A net, its learning rate, and the side of its images.
type Net = (&'static str, fn() -> Sequential, f64, usize);

const NETS: &[Net] = &[
    ("resnet18", || models::resnet18(10), 0.05, 96),
    ("lenet_relu", || models::lenet_relu(10), 0.1, 28),
    ("lenet_sigmoid", || models::lenet(10), 0.9, 28),
    ("mlp", || models::dropout_mlp(10), 0.5, 28),
];

pub fn run(o: &Options) -> Result<()> {
    let nets: Vec<&Net> = NETS.iter().filter(|n| n.0.contains(&o.only)).collect();
    if !o.json && !nets.is_empty() {
        println!(
            "\n{:<22}{:>12}{:>14}{:>14}{:>14}{:>12}",
            "training step", "ms", "images/s", "(median)", "first step s", "peak MiB"
        );
    }
    nets.into_iter().try_for_each(|net| measure(net, o))
}

fn measure(&(name, make, lr, side): &Net, o: &Options) -> Result<()> {
    let ctx = o.ctx;
    let (batch, side) = if o.quick { (o.batch.unwrap_or(2), side.min(32)) } else { (o.batch.unwrap_or(256), side) };
    let net = make();
    net.initialize(init::Xavier::new(), &ctx)?;
    let loss = SoftmaxCrossEntropy::new();
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(lr));
    let x = Tensor::uniform(0.0, 1.0, &[batch, 1, side, side], &ctx)?;
    let y = Tensor::uniform(0.0, 10.0, &[batch], &ctx)?.cast(DType::I64)?;
    let mut step = || -> Result<()> {
        let l = autograd::record(|| loss.forward(&net.forward(&x)?, &y))?;
        l.backward()?;
        trainer.step(batch)
    };
    let first = Instant::now();
    step()?;
    ctx.synchronize()?;
    let first = first.elapsed().as_secs_f64();
    let blocks = blocks(&ctx, o.quick, &mut step)?;
    let (best, median) = (blocks[0], blocks[blocks.len() / 2]);
    let (n, peak) = (batch as f64, ctx.memory()?.peak >> 20);
    if o.json {
        println!(
            "{{\"engine\": \"hadal\", \"context\": \"{ctx}\", \"model\": \"{name}\", \"what\": \"train\", \"batch\": {batch}, \
             \"first_step_s\": {first:.3}, \"best_ms\": {:.3}, \"best_img_s\": {:.1}, \"median_ms\": {:.3}, \"median_img_s\": {:.1}, \
             \"peak_mib\": {peak}}}",
            best * 1e3,
            n / best,
            median * 1e3,
            n / median
        );
    } else {
        println!("{name:<22}{:>12.2}{:>14.0}{:>14.0}{first:>14.3}{peak:>12}", best * 1e3, n / best, n / median);
    }
    Ok(())
}

/// Seconds a step in each of several blocks of about a second, the least first.
fn blocks(ctx: &Context, quick: bool, step: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut block_of = |n: usize| -> Result<f64> {
        let start = Instant::now();
        (0..n).try_for_each(|_| step())?;
        ctx.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / n as f64)
    };
    if quick {
        return Ok(vec![block_of(1)?]);
    }
    block_of(3)?;
    let n = (1.0 / block_of(1)?).ceil().max(1.0) as usize;
    let mut all = (0..7).map(|_| block_of(n)).collect::<Result<Vec<_>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all)
}
