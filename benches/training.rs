//! One training step of the book's nets at batch 256: images per second, best of several blocks of about a second.
//!
//!     cargo bench --bench training -- resnet18 lenet_relu lenet_sigmoid mlp [gpu]
//!
//! Prints one JSON line for each, in the form of the other engines' scripts, for ratios within one run.

use std::time::Instant;

use hadal::{
    Context, Result, Tensor, Trainer, autograd, cpu,
    data::{DataLoader, FashionMnist, fashion_mnist::Download},
    init,
    loss::SoftmaxCrossEntropy,
    models,
    nn::Sequential,
    optim::Sgd,
};

const BATCH: usize = 256;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let ctx = if args.iter().any(|a| a == "gpu") { hadal::gpu(0)? } else { cpu() };
    let all = ["resnet18", "lenet_relu", "lenet_sigmoid", "mlp"];
    let chosen: Vec<&str> = all.into_iter().filter(|m| args.iter().any(|a| a == m)).collect();
    for model in if chosen.is_empty() { all.to_vec() } else { chosen } {
        measure(model, &ctx)?;
    }
    Ok(())
}

fn make(model: &str) -> (Sequential, f64, usize) {
    match model {
        "resnet18" => (models::resnet18(10), 0.05, 96),
        "lenet_relu" => (models::lenet_relu(10), 0.1, 28),
        "lenet_sigmoid" => (models::lenet(10), 0.9, 28),
        _ => (models::dropout_mlp(10), 0.5, 28),
    }
}

fn measure(model: &str, ctx: &Context) -> Result<()> {
    let (net, lr, side) = make(model);
    net.initialize(init::Xavier::new(), ctx)?;
    let set = FashionMnist::options().download(Download::Never).load()?.train.take(4 * BATCH);
    let batches: Vec<(Tensor, Tensor)> =
        DataLoader::new(&set, BATCH, ctx)?.resize(side, side)?.epoch(0)?.collect::<Result<_>>()?;
    let loss = SoftmaxCrossEntropy::new();
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(lr));
    let mut step = |i: usize| -> Result<f64> {
        let (x, y) = &batches[i % batches.len()];
        let l = autograd::record(|| loss.forward(&net.forward(x)?, y))?;
        l.backward()?;
        trainer.step(BATCH)?;
        l.mean(&[])?.item()
    };
    let first = Instant::now();
    step(0)?;
    let first = first.elapsed().as_secs_f64();
    for i in 0..3 {
        step(i)?;
    }
    let once = Instant::now();
    step(0)?;
    let per_block = (1.0 / once.elapsed().as_secs_f64()).ceil().max(1.0) as usize;
    let mut blocks = Vec::new();
    for _ in 0..7 {
        let t = Instant::now();
        for i in 0..per_block {
            step(i)?;
        }
        blocks.push(t.elapsed().as_secs_f64() / per_block as f64);
    }
    blocks.sort_by(f64::total_cmp);
    let (best, median) = (blocks[0], blocks[blocks.len() / 2]);
    println!(
        "RESULT {{\"eng\": \"hadal\", \"context\": \"{ctx}\", \"model\": \"{model}\", \"what\": \"train\", \"first_step_s\": {first:.3}, \
         \"best_ms\": {:.2}, \"best_img_s\": {:.1}, \"median_ms\": {:.2}, \"median_img_s\": {:.1}, \"peak_mib\": {}}}",
        best * 1e3,
        BATCH as f64 / best,
        median * 1e3,
        BATCH as f64 / median,
        ctx.memory()?.peak >> 20,
    );
    Ok(())
}
