//! Nets in bf16 and f16: casts, files, master copies, loss scaling; their losses beside those of f32.

use hadal::{
    Array, Context, DType, Result, Tensor, Trainer, autograd, cpu,
    cuda::Graph,
    data::{DataLoader, FashionMnist},
    init,
    loss::SoftmaxCrossEntropy,
    models::{self, Options},
    nn::{BatchNorm, Block, Conv2D, Dense, Flatten, Sequential},
    optim::{Adam, Lars, LossScale, Optimizer, Sgd, Step, Update},
    random,
};

#[path = "common/mod.rs"]
mod common;

const HALVES: [DType; 2] = [DType::BF16, DType::F16];

fn small_net() -> Sequential {
    Sequential::new()
        .add(Conv2D::new(4, 3).stride(2))
        .add(BatchNorm::new())
        .add(Flatten::new())
        .add(Dense::new(6).relu())
        .add(Dense::new(10))
}

fn batch(ctx: &Context, dtype: DType) -> Result<(Tensor, Tensor)> {
    let set = FashionMnist::sample("a test")?.train.take(8);
    let (x, y) = DataLoader::new(&set, 8, ctx)?.resize(9, 9)?.workers(0).epoch(0)?.next().unwrap()?;
    Ok((x.cast(dtype)?, y))
}

fn step(net: &Sequential, trainer: &mut Trainer, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let l = autograd::record(|| SoftmaxCrossEntropy::new().forward(&net.forward(x)?, y))?;
    trainer.backward(&l)?;
    trainer.step(x.len())?;
    Ok(l.detach())
}

fn values(net: &Sequential) -> Result<Vec<Vec<f64>>> {
    net.collect().iter().map(|(_, p)| p.data()?.array().to_f64_vec()).collect()
}

fn path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("hadal-mixed-{}-{name}.safetensors", std::process::id()))
}

#[test]
fn a_cast_net_starts_with_the_roundings_of_the_f32_net() -> Result<()> {
    for (ctx, half) in common::contexts().into_iter().flat_map(|c| HALVES.map(|h| (c, h))) {
        // Before it is initialized, while shapes are not known, and with values.
        let mut nets = Vec::new();
        for order in 0..4 {
            random::seed(7);
            let net = small_net();
            assert_eq!(net.dtype(), DType::F32);
            if order == 1 {
                net.cast(half)?;
            }
            net.initialize(init::Xavier::new(), &ctx)?;
            if order == 2 {
                net.cast(half)?;
            }
            let (x, _) = batch(&ctx, if order == 1 || order == 2 { half } else { DType::F32 })?;
            let y = net.forward(&x)?;
            if order == 3 {
                net.cast(half)?;
                assert_eq!(net.forward(&x.cast(half)?)?.dtype(), half);
            } else {
                assert_eq!(y.dtype(), x.dtype());
            }
            nets.push(net);
        }
        for net in &nets[1..] {
            assert_eq!(net.dtype(), half);
            for ((name, own), (_, p)) in net.collect().iter().zip(nets[0].collect()) {
                let norm = name.starts_with("1.");
                let want = if norm { DType::F32 } else { half };
                assert_eq!((own.dtype(), own.data()?.dtype()), (want, want), "{name}");
                assert_eq!(own.data()?.to_vec()?, p.data()?.cast(want)?.to_vec()?, "{name}");
            }
        }
        assert!(nets[1].summary(&[2, 1, 9, 9], &ctx)?.contains("total"));
        assert!(nets[1].cast(DType::I64).is_err());
        nets[1].cast(DType::F64)?;
        assert_eq!(nets[1].forward(&batch(&ctx, DType::F64)?.0)?.dtype(), DType::F64);
    }
    Ok(())
}

#[test]
fn another_dtype_is_named_with_its_layer() -> Result<()> {
    for ctx in common::contexts() {
        let net = small_net();
        net.initialize(init::Xavier::new(), &ctx)?;
        net.cast(DType::BF16)?;
        let (x, _) = batch(&ctx, DType::F32)?;
        let e = net.forward(&x).unwrap_err().to_string();
        assert!(e.starts_with("net[0]: conv2d") && e.contains("f32") && e.contains("bf16") && e.contains("cast"), "{e}");
        net.forward(&x.cast(DType::BF16)?)?;
        let e = net.get(3).unwrap().forward(&Tensor::ones(&[2, 64], &ctx)?.cast(DType::F16)?).unwrap_err().to_string();
        assert!(e.starts_with("net[3]: dense") && e.contains("f16") && e.contains("bf16"), "{e}");
        let e = net.get(1).unwrap().forward(&Tensor::ones(&[2, 4, 3, 3], &ctx)?.cast(DType::F64)?).unwrap_err().to_string();
        assert!(e.starts_with("net[1]: batch_norm") && e.contains("f64") && e.contains("f32"), "{e}");
    }
    Ok(())
}

#[test]
fn files_keep_their_dtypes_and_loading_converts() -> Result<()> {
    let file = path("convert");
    for half in HALVES {
        let (net, other) = (small_net(), small_net());
        net.initialize(init::Xavier::new(), &cpu())?;
        net.forward(&batch(&cpu(), DType::F32)?.0)?;
        net.save(&file)?;
        other.cast(half)?;
        other.load(&file, &cpu())?;
        for ((name, from), (_, to)) in net.collect().iter().zip(other.collect()) {
            let want = if name.starts_with("1.") { DType::F32 } else { half };
            assert_eq!(to.data()?.dtype(), want, "{name}");
            assert_eq!(to.data()?.to_vec()?, from.data()?.cast(want)?.to_vec()?, "{name}");
        }
        // Back into an f32 net: the halves, exactly; and into itself.
        other.save(&file)?;
        net.load(&file, &cpu())?;
        assert!(net.collect().iter().all(|(_, p)| p.dtype() == DType::F32));
        assert_eq!(values(&net)?, values(&other)?);
        // Values set by hand take the parameter's dtype, too.
        other.parameters()[0].set_data(Array::full(&[4, 1, 3, 3], 0.1, DType::F32, &cpu())?)?;
        assert_eq!(other.parameters()[0].data()?.dtype(), half);
    }
    std::fs::remove_file(file).unwrap();
    Ok(())
}

/// The losses of each step, the net's values, the loss scale.
type Bits = (Vec<Vec<f32>>, Vec<Vec<f64>>, f64);

/// Losses and last values of six steps; before step `resume` everything is saved and read into a new net and trainer.
fn six_steps<O: Optimizer + 'static>(
    optimizer: impl Fn() -> O,
    ctx: &Context,
    half: DType,
    resume: Option<usize>,
) -> Result<Bits> {
    let (weights, states) = (path(&format!("weights-{ctx}-{half}")), path(&format!("states-{ctx}-{half}")));
    let scale = LossScale::dynamic().initial(64.0).growth_interval(4);
    let trainer_of = |net: &Sequential| Trainer::new(net.parameters(), optimizer()).loss_scale(scale);
    random::seed(5);
    let mut net = small_net();
    net.cast(half)?;
    net.initialize(init::Xavier::new(), ctx)?;
    let (x, y) = batch(ctx, half)?;
    let (mut losses, mut trainer) = (Vec::new(), trainer_of(&net));
    for i in 0..6 {
        if resume == Some(i) {
            net.save(&weights)?;
            trainer.save_states(&states)?;
            net = small_net();
            net.cast(half)?;
            net.load(&weights, ctx)?;
            trainer = trainer_of(&net);
            trainer.load_states(&states)?;
            std::fs::remove_file(&weights).unwrap();
            std::fs::remove_file(&states).unwrap();
        }
        losses.push(step(&net, &mut trainer, &x, &y)?.to_vec()?);
    }
    Ok((losses, values(&net)?, trainer.scale()?))
}

#[test]
fn training_goes_on_from_files_to_the_same_bits() -> Result<()> {
    fn check<O: Optimizer + 'static>(optimizer: impl Fn() -> O, ctx: &Context, half: DType) -> Result<()> {
        let whole = six_steps(&optimizer, ctx, half, None)?;
        assert_eq!(whole.2, 128.0, "the scale doubles after four steps");
        assert_eq!(whole, six_steps(&optimizer, ctx, half, Some(3))?, "{half} on {ctx}");
        Ok(())
    }
    for (ctx, half) in common::contexts().into_iter().flat_map(|c| HALVES.map(|h| (c, h))) {
        check(|| Sgd::new(0.01).momentum(0.9), &ctx, half)?;
        check(|| Adam::new(0.003), &ctx, half)?;
        check(|| Lars::new(0.1), &ctx, half)?;
    }
    Ok(())
}

/// Steps far below the spacing of bf16 add up in the master copy; a value that somebody sets takes its place.
#[test]
fn small_steps_are_not_lost_and_set_values_count() -> Result<()> {
    for ctx in common::contexts() {
        for rule in 0..3 {
            let all = |v: f64| Array::full(&[11], v, DType::BF16, &ctx);
            let (mut w, g) = (all(1.0)?, all(1.0)?);
            let mut optimizer: Box<dyn Optimizer> = match rule {
                2 => Box::new(Lars::new(1.0 / 1024.0).momentum(0.0)),
                _ => Box::new(Sgd::new(1.0 / 1024.0)),
            };
            let mut steps = |w: &mut Array, n: usize| -> Result<[f64; 2]> {
                for _ in 0..n {
                    let step = Step::default();
                    match rule {
                        1 => optimizer.update_all(&mut [Update { index: 0, w, grad: &g, step }])?,
                        _ => optimizer.update(0, w, &g, &step)?,
                    }
                }
                let values = w.to_f64_vec()?;
                Ok([values[0], values[10]])
            };
            assert_eq!(steps(&mut w, 1)?, [1.0; 2], "a step of 2⁻¹⁰ is below bf16's spacing of 2⁻⁸ below 1");
            assert_eq!(steps(&mut w, 15)?, [1.0 - 16.0 / 1024.0; 2]);
            w = all(2.0)?;
            assert_eq!(steps(&mut w, 32)?, [2.0 - 32.0 / 1024.0; 2], "rule {rule} on {ctx}");
        }
    }
    Ok(())
}

/// What a fixed and a dynamic scale do with gradients that are finite or not, by hand, and the same in a captured graph.
#[test]
fn an_overflow_skips_the_step_and_halves_the_scale() -> Result<()> {
    for (ctx, graph) in common::contexts().into_iter().flat_map(|c| [(c, false), (c, c.is_gpu())]) {
        // More than one chunk of 4096 gradients; only the last one overflows.
        let n = 5001;
        let net = Dense::new(1).no_bias().in_units(n);
        net.initialize(init::Zero, &ctx)?;
        net.cast(DType::F16)?;
        let rule = LossScale::dynamic().initial(16.0).growth_interval(2);
        let mut trainer = Trainer::new(net.parameters(), Sgd::new(1.0).momentum(0.5)).loss_scale(rule);
        let x = Tensor::zeros(&[1, n], &ctx)?.cast(DType::F16)?;
        let set = |last: f64| -> Result<()> {
            let mut values = vec![half::f16::from_f64(0.25); n];
            values[n - 1] = half::f16::from_f64(last);
            x.copy_from(&Tensor::from_vec(values, &[1, n], &ctx)?)
        };
        // L = x·w, so that dL/dw is x and does not depend on w.
        let mut one = || -> Result<()> {
            let l = autograd::record(|| hadal::nn::Forward::forward(&net, &x))?;
            trainer.backward(&l)?;
            trainer.step(1)
        };
        let mut captured = None;
        let mut seen = Vec::new();
        for (i, last) in [1.0, 60000.0, 1.0, 1.0, 60000.0, 1.0, 3000.0].into_iter().enumerate() {
            set(last)?;
            match (&captured, graph && i == 2) {
                (None, true) => {
                    let (g, ()) = Graph::capture(&ctx, &mut one)?;
                    g.replay()?;
                    captured = Some(g);
                }
                (None, false) => one()?,
                (Some(g), _) => g.replay()?,
            }
            let w = net.weight().data()?.to_vec()?;
            assert_eq!(w[0], w[n - 2]);
            seen.push((w[0], w[n - 1]));
        }
        // In halves of 1/8: the momentum is the sum of the gradients, each half of the one before.
        let want = [
            (-0.25, -1.0),
            (-0.25, -1.0),
            (-0.625, -2.5),
            (-1.0625, -4.25),
            (-1.0625, -4.25),
            (-1.53125, -6.125),
            (-2.015625, -3008.0),
        ];
        // Scales: 16, then 8, 8 (one good step), 16 (two), 8 by the second overflow, 8, 16 after the last step.
        assert_eq!(seen, want, "{ctx}, graph {graph}");
        drop(captured);
        assert_eq!(trainer.scale()?, 16.0);
        let l = autograd::record(|| hadal::nn::Forward::forward(&net, &x))?;
        l.backward()?;
        assert!(trainer.step(1).unwrap_err().to_string().contains("trainer.backward"));
    }
    assert!(
        Trainer::new(vec![], Sgd::new(1.0)).loss_scale(LossScale::fixed(0.0)).backward(&Tensor::ones(&[1], &cpu())?).is_err()
    );
    Ok(())
}

/// Mean losses of some steps of a net in `dtype`, from the same first values, over a few batches in turn.
fn losses(
    make: fn() -> Sequential,
    ctx: &Context,
    dtype: DType,
    [side, size, batches, steps]: [usize; 4],
    lr: f64,
) -> Result<Vec<f64>> {
    random::seed(3);
    let net = make();
    net.initialize(init::Xavier::new(), ctx)?;
    net.cast(dtype)?;
    let train = FashionMnist::sample("a test")?.train.take(size * batches);
    let loader = DataLoader::new(&train, size, ctx)?.resize(side, side)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(lr).momentum(0.9));
    if dtype == DType::F16 {
        trainer = trainer.loss_scale(LossScale::dynamic().initial(8.0));
    }
    let (mut out, scale) = (Vec::new(), trainer.scale()?);
    let batches: Vec<_> = loader.epoch(0)?.collect::<Result<_>>()?;
    for (x, y) in batches.iter().cycle().take(steps) {
        let l = step(&net, &mut trainer, &x.cast(dtype)?, y)?;
        out.push(l.cast(DType::F64)?.mean(&[])?.item()?);
    }
    assert_eq!(trainer.scale()?, scale, "a step was skipped, so that the losses are those of other weights");
    Ok(out)
}

fn resnet18() -> Sequential {
    models::by_name("resnet18", &Options { ratio: 8, ..Options::default() }).unwrap()
}

#[test]
fn the_books_nets_train_in_halves_as_in_f32() -> Result<()> {
    type Run = (&'static str, fn() -> Sequential, [usize; 4], f64);
    let nets: [Run; 3] = [
        ("dropout mlp", || models::dropout_mlp(10), [28, 32, 12, 12], 0.05),
        ("lenet", || models::lenet_relu(10), [28, 16, 10, 10], 0.05),
        ("resnet18", resnet18, [32, 32, 1, 4], 0.0001),
    ];
    for (ctx, (name, make, sizes, lr)) in common::contexts().into_iter().flat_map(|c| nets.map(|n| (c, n))) {
        let full = losses(make, &ctx, DType::F32, sizes, lr)?;
        for half in HALVES {
            let own = losses(make, &ctx, half, sizes, lr)?;
            let most = own.iter().zip(&full).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
            println!("{name} in {half} on {ctx}: {own:.3?}, in f32 {full:.3?}; within {:.1} %", 100.0 * most);
            assert!(most < 0.1, "{name} in {half} on {ctx}: {own:?}, in f32 {full:?}");
        }
        assert!(full[full.len() - 1] < full[0], "{name} does not learn: {full:?}");
    }
    Ok(())
}
