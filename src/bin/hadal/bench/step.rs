//! Whole training steps of the book's nets.

use std::time::Instant;

use hadal::{
    Context, DType, Layout, Result, Tensor, Trainer, autograd,
    cuda::Graph,
    eprintln, init,
    loss::SoftmaxCrossEntropy,
    models,
    nn::Sequential,
    optim::{LossScale, Sgd},
    precision, println,
};

use super::{Numbers, Options};

/// A net, its learning rate, and the side of its images.
pub struct Net {
    pub name: &'static str,
    make: fn() -> Sequential,
    lr: f64,
    side: usize,
}

const NETS: &[Net] = &[
    Net { name: "resnet18", make: || models::resnet18(10), lr: 0.05, side: 96 },
    Net { name: "lenet_relu", make: || models::lenet_relu(10), lr: 0.1, side: 28 },
    Net { name: "lenet_sigmoid", make: || models::lenet(10), lr: 0.9, side: 28 },
    Net { name: "mlp", make: || models::dropout_mlp(10), lr: 0.5, side: 28 },
];

/// The nets that the options ask for.
pub fn nets(o: &Options) -> impl Iterator<Item = &'static Net> {
    NETS.iter().filter(|n| n.name.contains(&o.only))
}

/// A net in training, with one batch of random images.
pub struct Training {
    net: Sequential,
    trainer: Trainer,
    x: Tensor,
    y: Tensor,
    numbers: Numbers,
}

impl Training {
    pub fn new(net: &Net, numbers: Numbers, o: &Options) -> Result<Self> {
        let (batch, side) = if o.quick { (o.batch.unwrap_or(2), net.side.min(32)) } else { (o.batch.unwrap_or(256), net.side) };
        let (made, dtype) = ((net.make)(), numbers.0);
        made.initialize(init::Xavier::new(), &o.ctx)?;
        made.cast(dtype)?;
        if !o.eager {
            made.hybridize();
        }
        let mut trainer = Trainer::new(made.parameters(), Sgd::new(net.lr));
        if dtype == DType::F16 {
            trainer = trainer.loss_scale(LossScale::dynamic());
        }
        let x = Tensor::uniform(0.0, 1.0, &[batch, 1, side, side], &o.ctx)?.cast(dtype)?;
        let layout = if o.channels_last { Layout::ChannelsLast } else { Layout::RowMajor };
        let x = Tensor::new(x.array().to_layout(layout)?);
        let y = Tensor::uniform(0.0, 10.0, &[batch], &o.ctx)?.cast(DType::I64)?;
        Ok(Training { net: made, trainer, x, y, numbers })
    }

    pub fn step(&mut self) -> Result<()> {
        let Training { net, trainer, x, y, numbers } = self;
        precision::with(numbers.1, || {
            let l = autograd::record(|| SoftmaxCrossEntropy::new().forward(&net.forward(x)?, y))?;
            trainer.backward(&l)?;
            trainer.step(x.len())
        })
    }
}

pub fn run(o: &Options) -> Result<()> {
    if o.graph && !o.ctx.is_gpu() {
        eprintln!("--graph: {} has no graphs; eager steps only", o.ctx);
    }
    if !o.json && nets(o).next().is_some() {
        println!(
            "\n{:<18}{:<6}{:<8}{:>10}{:>14}{:>14}{:>14}{:>12}",
            "training step", "", "", "ms", "images/s", "(median)", "first step s", "peak MiB"
        );
    }
    for net in nets(o) {
        o.dtypes.iter().try_for_each(|&numbers| measure(net, numbers, o))?;
    }
    Ok(())
}

fn measure(net: &Net, numbers: Numbers, o: &Options) -> Result<()> {
    let mut training = Training::new(net, numbers, o)?;
    let first = Instant::now();
    training.step()?;
    o.ctx.synchronize()?;
    let first = first.elapsed().as_secs_f64();
    let batch = training.x.len();
    let print = |mode: &str, blocks: Vec<f64>| print(net, numbers, mode, batch, first, &blocks, o);
    print(if o.eager { "eager" } else { "hybrid" }, blocks(&o.ctx, o.quick, &mut || training.step())?)?;
    if o.graph && o.ctx.is_gpu() {
        let (graph, ()) = Graph::capture(&o.ctx, || training.step())?;
        print("graph", blocks(&o.ctx, o.quick, &mut || graph.replay())?)?;
    }
    Ok(())
}

fn print(net: &Net, numbers: Numbers, mode: &str, batch: usize, first: f64, blocks: &[f64], o: &Options) -> Result<()> {
    let (best, median) = (blocks[0], blocks[blocks.len() / 2]);
    let (ctx, name, n, peak) = (o.ctx, net.name, batch as f64, o.ctx.memory()?.peak >> 20);
    if o.json {
        println!(
            "{{\"engine\": \"hadal\", \"context\": \"{ctx}\", \"model\": \"{name}\", \"what\": \"train\", \"dtype\": \"{numbers}\", \
             \"mode\": \"{mode}\", \"channels_last\": {}, \"batch\": {batch}, \"first_step_s\": {first:.3}, \"best_ms\": {:.3}, \
             \"best_img_s\": {:.1}, \"median_ms\": {:.3}, \"median_img_s\": {:.1}, \"peak_mib\": {peak}}}",
            o.channels_last,
            best * 1e3,
            n / best,
            median * 1e3,
            n / median
        );
    } else {
        let numbers = numbers.to_string();
        let (best_rate, rate) = (n / best, n / median);
        println!("{name:<18}{numbers:<6}{mode:<8}{:>10.3}{best_rate:>14.0}{rate:>14.0}{first:>14.3}{peak:>12}", best * 1e3);
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
