//! Whole training steps: losses, reproducibility, contexts against each other, memory.

use std::sync::atomic::AtomicBool;

use hadal::{
    Context, DType, Result, Tensor, Trainer, autograd, check, cpu,
    data::{DataLoader, FashionMnist, Position},
    init,
    loss::SoftmaxCrossEntropy,
    models,
    nn::Sequential,
    optim::Sgd,
    random,
    train::{RunOptions, train_run},
};

#[path = "common/mod.rs"]
mod common;

/// The losses of some steps of `net` on the shipped sample.
fn losses(net: &Sequential, ctx: &Context, side: usize, batch: usize, steps: usize, lr: f64) -> Result<Vec<f64>> {
    random::seed(3);
    net.reinitialize(init::Xavier::new(), ctx)?;
    let train = FashionMnist::sample("a test")?.train.take(batch * steps);
    let loader = DataLoader::new(&train, batch, ctx)?.resize(side, side)?.shuffle(5);
    let loss = SoftmaxCrossEntropy::new();
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(lr).momentum(0.9).weight_decay(1e-4));
    let mut out = Vec::new();
    for b in loader.epoch(0)? {
        let (x, y) = b?;
        let l = autograd::record(|| loss.forward(&net.forward(&x)?, &y))?;
        l.backward()?;
        trainer.step(x.len())?;
        out.push(l.mean(&[])?.item()?);
    }
    Ok(out)
}

#[test]
fn ten_steps_of_resnet18_are_the_same_bits_in_two_runs() -> Result<()> {
    let net = models::resnet18(10);
    for ctx in common::contexts() {
        let first = losses(&net, &ctx, 32, 4, 10, 0.01)?;
        assert!(first.iter().all(|l| l.is_finite()), "{first:?}");
        assert_eq!(first, losses(&net, &ctx, 32, 4, 10, 0.01)?, "two runs on {ctx} differ");
    }
    Ok(())
}

/// Ten steps side by side, each from the CPU's weights. Without that the two runs part after a few steps, as do two runs
/// on the CPU whose images differ by one part in a million: batch-norm over four values amplifies every rounding.
#[test]
fn ten_steps_of_resnet18_agree_between_the_contexts() -> Result<()> {
    const LOSS: f64 = 2e-5;
    const UPDATE: f64 = 1e-2;
    let Some(gpu) = common::gpu() else { return Ok(()) };
    random::seed(3);
    let nets = [models::resnet18(10), models::resnet18(10)];
    let contexts = [cpu(), gpu];
    let set = FashionMnist::sample("a test")?.train.take(40);
    let mut loaders = Vec::new();
    let mut trainers = Vec::new();
    for (net, ctx) in nets.iter().zip(&contexts) {
        net.initialize(init::Xavier::new(), ctx)?;
        let loader = DataLoader::new(&set, 4, ctx)?.resize(32, 32)?;
        net.forward(&loader.epoch(0)?.next().unwrap()?.0)?;
        trainers.push(Trainer::new(net.parameters(), Sgd::new(0.01)));
        loaders.push(loader.epoch(0)?);
    }
    let loss = SoftmaxCrossEntropy::new();
    let (mut worst_loss, mut worst_update) = (0f64, 0f64);
    for step in 0..10 {
        for ((_, host), (_, device)) in nets[0].collect().iter().zip(nets[1].collect()) {
            device.set_data(host.data()?.array())?;
        }
        let mut values = Vec::new();
        let mut weights = Vec::new();
        for i in 0..2 {
            let (x, y) = loaders[i].next().unwrap()?;
            let l = autograd::record(|| loss.forward(&nets[i].forward(&x)?, &y))?;
            l.backward()?;
            let before = nets[i].parameters().iter().map(|p| p.data()?.to_vec()).collect::<Result<Vec<_>>>()?;
            trainers[i].step(4)?;
            let after = nets[i].parameters().iter().map(|p| p.data()?.to_vec()).collect::<Result<Vec<_>>>()?;
            values.push(l.mean(&[])?.item()?);
            let change = before.iter().flatten().zip(after.iter().flatten()).map(|(b, a)| f64::from(a - b)).collect::<Vec<f64>>();
            weights.push(change);
        }
        let difference = (values[1] - values[0]).abs() / values[0].abs();
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let update = norm(&mut weights[0].iter().zip(&weights[1]).map(|(a, b)| a - b)) / norm(&mut weights[0].iter().copied());
        assert!(difference <= LOSS, "step {step}: loss {} on {gpu}, {} on the CPU", values[1], values[0]);
        assert!(update <= UPDATE, "step {step}: the updates differ by {update:.1e}");
        (worst_loss, worst_update) = (worst_loss.max(difference), worst_update.max(update));
    }
    println!("ten steps of ResNet-18, {gpu} against cpu(0): losses within {worst_loss:.1e}, updates within {worst_update:.1e}");
    Ok(())
}

#[test]
fn small_nets_learn_the_sample() -> Result<()> {
    for (net, lr) in [(models::dropout_mlp(10), 0.05), (models::lenet_relu(10), 0.05)] {
        let l = losses(&net, &cpu(), 28, 50, 40, lr)?;
        let (first, last) = (l[..5].iter().sum::<f64>() / 5.0, l[35..].iter().sum::<f64>() / 5.0);
        assert!(last < 0.6 * first, "loss {first} only fell to {last}");
    }
    Ok(())
}

#[test]
fn one_batch_can_be_learned_by_heart() -> Result<()> {
    random::seed(1);
    let net = models::lenet_relu(10);
    net.initialize(init::Xavier::new(), &cpu())?;
    let (x, y) = DataLoader::new(&FashionMnist::sample("a test")?.train.take(32), 32, &cpu())?.epoch(0)?.next().unwrap()?;
    let loss = SoftmaxCrossEntropy::new();
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.02).momentum(0.9));
    let mut last = f64::NAN;
    for _ in 0..250 {
        let l = autograd::record(|| loss.forward(&net.forward(&x)?, &y))?;
        l.backward()?;
        trainer.step(32)?;
        last = l.mean(&[])?.item()?;
    }
    assert!(last < 0.02, "{last}");
    assert_eq!(hadal::train::correct(&net.forward(&x)?, &y)?.item()?, 32.0);
    Ok(())
}

#[test]
fn evaluation_does_not_depend_on_the_batch_size() -> Result<()> {
    let net = models::lenet_relu(10);
    net.initialize(init::Xavier::new(), &cpu())?;
    let test = FashionMnist::sample("a test")?.test.take(100);
    let acc = |b| hadal::evaluate_accuracy(&net, &DataLoader::new(&test, b, &cpu())?);
    assert_eq!(acc(100)?, acc(33)?);
    Ok(())
}

#[test]
fn the_gpu_loader_gives_the_cpus_batches() -> Result<()> {
    let Some(gpu) = common::gpu() else { return Ok(()) };
    let set = FashionMnist::sample("a test")?.train.take(70);
    // The last one is too wide for its rows to be kept in shared memory.
    for (h, w) in [(28, 28), (14, 14), (96, 96), (33, 33), (2, 900)] {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let make = |ctx: &Context| -> Result<Vec<(Vec<f64>, Vec<f64>)>> {
                let loader = DataLoader::new(&set, 32, ctx)?.dtype(dtype)?.resize(h, w)?.shuffle(9);
                let values = |(x, y): (Tensor, Tensor)| {
                    assert_eq!((x.dtype(), y.dtype()), (dtype, DType::I64));
                    Ok((x.array().to_f64_vec()?, y.array().to_f64_vec()?))
                };
                loader.epoch(2)?.map(|b| b.and_then(values)).collect()
            };
            let cpu = make(&cpu())?;
            assert_eq!(make(&gpu)?, cpu, "{h}x{w} {dtype}");
            // Every pixel is a byte's.
            let bytes = cpu.iter().flat_map(|b| &b.0).map(|v| v * 255.0);
            let off = bytes.map(|v| (v - v.round()).abs()).fold(0.0, f64::max);
            assert!(off <= 255.0 * check::bound(dtype), "{off}");
        }
    }
    assert!(DataLoader::new(&set, 32, &gpu)?.dtype(DType::U8).is_err());
    Ok(())
}

#[test]
fn a_trainer_refuses_stale_gradients() -> Result<()> {
    let net = models::dropout_mlp(10);
    net.initialize(init::Xavier::new(), &cpu())?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1));
    assert!(trainer.step(1).is_err(), "there are no values yet");
    net.forward(&Tensor::ones(&[1, 784], &cpu())?)?;
    let e = trainer.step(1).unwrap_err().to_string();
    assert!(e.contains("net[0].weight") && e.contains("backward"), "{e}");
    // Nor may one gradient be used twice; a refused step changes nothing.
    autograd::record(|| net.forward(&Tensor::ones(&[1, 784], &cpu())?))?.backward()?;
    trainer.step(1)?;
    let before = net.parameters()[0].data()?.to_vec()?;
    let e = trainer.step(1).unwrap_err().to_string();
    assert!(e.contains("backward"), "{e}");
    assert_eq!(net.parameters()[0].data()?.to_vec()?, before);
    Ok(())
}

#[test]
fn a_run_in_two_parts_ends_with_the_same_bits_as_one() -> Result<()> {
    let set = FashionMnist::sample("a test")?;
    let train = DataLoader::new(&set.train.take(90), 20, &cpu())?.shuffle(3);
    let test = DataLoader::new(&set.test.take(20), 20, &cpu())?;
    let weights = |net: &Sequential| -> Result<Vec<f32>> {
        net.collect().iter().map(|(_, p)| p.data()?.to_vec()).collect::<Result<Vec<_>>>().map(|v| v.concat())
    };
    let start = || -> Result<Sequential> {
        random::seed(4);
        let net = models::lenet_relu(10);
        net.initialize(init::Xavier::new(), &cpu())?;
        Ok(net)
    };
    let run = |net: &Sequential, options: RunOptions<'_>| {
        train_run(
            net,
            &train,
            &test,
            &mut Trainer::new(net.parameters(), Sgd::new(0.1)),
            2,
            RunOptions { quiet: true, ..options },
        )
    };
    let whole = start()?;
    assert_eq!(run(&whole, RunOptions::default())?.end, Position { epoch: 2, batch: 0 });

    let parts = start()?;
    let stop = AtomicBool::new(true);
    let first = run(&parts, RunOptions { stop: Some(&stop), ..Default::default() })?;
    assert_eq!((first.end, first.epochs.len()), (Position { epoch: 0, batch: 1 }, 0));
    assert_ne!(weights(&parts)?, weights(&whole)?);
    let rest = run(&parts, RunOptions { start: first.end, ..Default::default() })?;
    assert_eq!(rest.epochs.iter().map(|e| (e.epoch, e.samples)).collect::<Vec<_>>(), [(1, 70), (2, 90)]);
    assert_eq!(weights(&parts)?, weights(&whole)?);
    Ok(())
}
