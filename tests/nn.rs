//! Layers, parameters, names, files.

use hadal::{
    DType, Error, Layout, Result, Tensor, autograd, check, cpu, init, models,
    models::Residual,
    nn::{self, Block, Forward},
};

#[path = "common/mod.rs"]
mod common;

#[test]
fn resnet18_has_the_books_shapes_names_and_parameters() -> Result<()> {
    // The book's cells before this one make two Residuals, so its counters start at conv5 and batchnorm4.
    let (_first, _second) = (Residual::new(3, false, 1), Residual::new(6, true, 2));
    for ctx in common::contexts() {
        let net = models::resnet18(10);
        net.initialize(init::Xavier::new(), &ctx)?;
        // The names count up, so only the first net has the book's.
        let names = !ctx.is_gpu();
        // A sixteenth of the book's area on the emulated GPU, which computes a layer in seconds otherwise.
        let side = if names { 224 } else { 64 };
        let mut x = Tensor::uniform(0.0, 1.0, &[1, 1, side, side], &ctx)?;
        let mut lines = Vec::new();
        for layer in net.iter() {
            x = layer.forward(&x)?;
            lines.push(format!("{} output shape: {:?}", layer.name(), x.shape()));
        }
        let s = |d: usize| side / d;
        let want = [
            ("conv5", vec![1, 64, s(2), s(2)]),
            ("batchnorm4", vec![1, 64, s(2), s(2)]),
            ("relu0", vec![1, 64, s(2), s(2)]),
            ("pool0", vec![1, 64, s(4), s(4)]),
            ("sequential1", vec![1, 64, s(4), s(4)]),
            ("sequential2", vec![1, 128, s(8), s(8)]),
            ("sequential3", vec![1, 256, s(16), s(16)]),
            ("sequential4", vec![1, 512, s(32), s(32)]),
            ("pool1", vec![1, 512, 1, 1]),
            ("dense0", vec![1, 10]),
        ];
        for (line, (name, shape)) in lines.iter().zip(&want) {
            if names {
                assert_eq!(*line, format!("{name} output shape: {shape:?}"));
            } else {
                assert!(line.ends_with(&format!("{shape:?}")), "{line}");
            }
        }
        assert_eq!(lines.len(), want.len());
        assert_eq!(net.parameter_count()?, 11_178_378);
    }
    Ok(())
}

#[test]
fn an_error_names_the_layer_the_op_and_both_shapes() -> Result<()> {
    let net = models::resnet18(10);
    net.initialize(init::Xavier::new(), &cpu())?;
    net.forward(&Tensor::ones(&[1, 1, 32, 32], &cpu())?)?;
    let e = net.forward(&Tensor::ones(&[1, 3, 32, 32], &cpu())?).unwrap_err().to_string();
    assert!(e.starts_with("net[0]: conv2d") && e.contains("(1, 3, 32, 32)") && e.contains("(64, 1, 7, 7)"), "{e}");
    let stage = net.get(5).unwrap();
    let e = stage.forward(&Tensor::ones(&[1, 32, 8, 8], &cpu())?).unwrap_err().to_string();
    assert!(e.starts_with("net[5][0].conv1: conv2d"), "{e}");
    Ok(())
}

#[test]
fn a_net_without_values_says_so() -> Result<()> {
    let net = nn::Sequential::new().add(nn::Dense::new(3));
    let e = net.forward(&Tensor::ones(&[1, 2], &cpu())?).unwrap_err().to_string();
    assert!(e.contains("initialize"), "{e}");
    net.initialize(init::Zero, &cpu())?;
    let e = net.parameters()[0].data().unwrap_err().to_string();
    assert!(e.contains("net[0].weight") && e.contains("first forward"), "{e}");
    assert!(matches!(net.save("never.safetensors"), Err(Error::Parameter { .. })));
    assert!(!std::path::Path::new("never.safetensors").exists());
    Ok(())
}

#[test]
fn values_stay_unless_reinitialized() -> Result<()> {
    let net = nn::Dense::new(4).in_units(5);
    net.initialize(init::Constant(1.0), &cpu())?;
    net.initialize(init::Constant(2.0), &cpu())?;
    assert_eq!(net.weight().data()?.to_vec()?, [1.0; 20]);
    net.reinitialize(init::Constant(2.0), &cpu())?;
    assert_eq!(net.weight().data()?.to_vec()?, [2.0; 20]);
    assert_eq!(net.bias().unwrap().data()?.to_vec()?, [0.0; 4]);
    let own = nn::Dense::new(2).in_units(1).weight_init(init::Constant(7.0));
    own.initialize(init::Zero, &cpu())?;
    assert_eq!(own.weight().data()?.to_vec()?, [7.0; 2]);
    Ok(())
}

/// A net with a layer used twice: as one block in two places, or as two blocks of the same parameters.
fn shared_net(tied: bool) -> nn::Sequential {
    let shared = std::sync::Arc::new(nn::Dense::new(4).tanh());
    let net = nn::Sequential::new().add(nn::Dense::new(4)).add(shared.clone());
    if tied { net.add(shared.tied().tanh()) } else { net.add(shared) }
}

#[test]
fn a_shared_layer_is_one_set_of_parameters() -> Result<()> {
    for (ctx, tied) in common::contexts().into_iter().flat_map(|ctx| [(ctx, false), (ctx, true)]) {
        let x = Tensor::uniform(-1.0, 1.0, &[2, 3], &ctx)?;
        let net = shared_net(tied);
        net.initialize(init::Uniform(0.5), &ctx)?;
        autograd::record(|| net.forward(&x))?.backward()?;
        let names: Vec<String> = net.collect().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["0.weight", "0.bias", "1.weight", "1.bias"]);
        assert_eq!(net.parameters()[2].name(), "net[1].weight");

        // The gradient is the sum of those of two layers with parameters of their own and the same values.
        let apart = nn::Sequential::new()
            .add(nn::Dense::new(4).in_units(3))
            .add(nn::Dense::new(4).in_units(4).tanh())
            .add(nn::Dense::new(4).in_units(4).tanh());
        apart.initialize(init::Zero, &ctx)?;
        let (shared, own) = (net.parameters(), apart.parameters());
        for (own, i) in own.iter().zip([0, 1, 2, 3, 2, 3]) {
            own.set_data(shared[i].data()?.array())?;
        }
        autograd::record(|| apart.forward(&x))?.backward()?;
        for i in 2..4 {
            let sum = (own[i].grad()? + own[i + 2].grad()?)?.to_vec()?;
            let got = shared[i].grad()?.to_vec()?;
            assert!(got.iter().zip(&sum).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {sum:?}");
            assert!(got.iter().zip(own[i].grad()?.to_vec()?).any(|(a, b)| (a - b).abs() > 1e-3));
        }

        // One step changes both uses; the file has the parameter once, and another net like it can be filled from it.
        let mut trainer = hadal::Trainer::new(net.parameters(), hadal::optim::Sgd::new(0.1).momentum(0.9));
        trainer.step(1)?;
        let file = std::env::temp_dir().join(format!("hadal-shared-{}-{tied}-{ctx}.safetensors", std::process::id()));
        net.save(&file)?;
        let other = shared_net(tied);
        other.load(&file, &ctx)?;
        std::fs::remove_file(&file).map_err(|e| Error::invalid("remove", e.to_string()))?;
        assert_eq!(other.forward(&x)?.to_vec()?, net.forward(&x)?.to_vec()?);
    }
    Ok(())
}

#[test]
fn batch_norm_keeps_running_statistics_in_training_only() -> Result<()> {
    for ctx in common::contexts() {
        let bn = nn::BatchNorm::new();
        bn.initialize(init::One, &ctx)?;
        let x = Tensor::from_vec(vec![1f32, 2., 3., 6.], &[4, 1], &ctx)?;
        bn.forward(&x)?;
        let get = |i: usize| bn.collect()[i].1.data().unwrap().to_vec().unwrap()[0];
        assert_eq!((get(2), get(3)), (0.0, 1.0));
        let y = autograd::record(|| bn.forward(&x))?;
        // μ = 3, σ² = 3.5; running: 0.1·3 and 0.9 + 0.1·3.5
        assert!((get(2) - 0.3).abs() < 1e-6 && (get(3) - 1.25).abs() < 1e-6);
        let want: Vec<f32> = [1f32, 2., 3., 6.].iter().map(|v| (v - 3.0) / (3.5f32 + 1e-5).sqrt()).collect();
        assert!(y.to_vec()?.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    Ok(())
}

hadal::block! {
    struct Normalized { bn: nn::BatchNorm, last: nn::BatchNorm }
}

impl nn::Forward for Normalized {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.bn.forward(x)?.relu()?;
        (self.last.forward(&y)? + x)?.relu()
    }
}

#[test]
fn fused_batch_norm_is_the_plain_one_and_keeps_running_statistics() -> Result<()> {
    for ctx in common::contexts() {
        let run = |fused: bool| -> Result<Vec<Vec<f32>>> {
            let (bn, last) = (nn::BatchNorm::new(), nn::BatchNorm::new());
            bn.initialize(init::One, &ctx)?;
            last.initialize(init::One, &ctx)?;
            let x = Tensor::new(check::cast(&check::random(&[5, 3, 2, 2], 1)?, DType::F32)?.to_context(&ctx)?);
            let net = nn::Sequential::new().add(Normalized { bn, last });
            if fused {
                net.hybridize();
            }
            let forward = || net.forward(&x);
            let mut all = Vec::new();
            for _ in 0..2 {
                all.extend([autograd::record(forward)?.to_vec()?, forward()?.to_vec()?]);
            }
            for (_, p) in net.collect() {
                all.push(p.data()?.to_vec()?);
            }
            if fused {
                let graphs = net.explain();
                assert_eq!(graphs.matches("[bn_relu]").count(), 2, "{graphs}");
                assert_eq!(graphs.matches("[bn_add_relu]").count(), 2, "{graphs}");
            }
            Ok(all)
        };
        let fused = run(true)?;
        assert_eq!(fused, run(false)?);
        assert!(fused[0] != fused[1] && fused[1] != fused[3] && fused[6] != [0.0; 3] && fused[7] != [1.0; 3]);
    }
    Ok(())
}

/// Running statistics move as `lerp_` moves them on the CPU, bit for bit, whatever kernel does it; what else holds their values keeps them.
#[test]
fn running_statistics_follow_the_same_way_everywhere() -> Result<()> {
    let layouts = [Layout::RowMajor, Layout::ChannelsLast];
    for (ctx, dtype) in common::contexts().iter().flat_map(|ctx| [DType::F32, DType::BF16, DType::F64].map(|d| (ctx, d))) {
        for (i, channels) in [3, 8, 40].into_iter().enumerate() {
            let bn = nn::BatchNorm::new().momentum(0.7);
            bn.initialize(init::One, ctx)?;
            bn.cast(dtype)?;
            let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let of = |v: f64, ctx| hadal::Array::full(&[channels], v, wide, ctx);
            let (gamma, beta) = (Tensor::new(of(1.0, ctx)?), Tensor::new(of(0.0, ctx)?));
            // Learns its shape, and nothing else.
            bn.forward(&Tensor::new(hadal::Array::zeros(&[1, channels], dtype, ctx)?))?;
            let mut want = [of(0.0, &cpu())?, of(1.0, &cpu())?];
            for step in 0..4 {
                let x = check::cast(&check::random(&[5, channels, 3, 2], step)?, dtype)?.to_context(ctx)?;
                let x = Tensor::new(x.to_layout(layouts[(i + step as usize) % 2])?);
                let (_, mean, var) = x.batch_norm(&gamma, &beta, 1e-5)?;
                for (want, batch) in want.iter_mut().zip([mean, var]) {
                    want.lerp_(&batch.array().to_context(&cpu())?, 0.7)?;
                }
                let running = || bn.collect()[2..].iter().map(|(_, p)| Ok(p.data()?.array())).collect::<Result<Vec<_>>>();
                let held = running()?;
                let before = held.iter().map(|a| a.to_f64_vec()).collect::<Result<Vec<_>>>()?;
                autograd::train_mode(|| bn.forward(&x))?;
                assert_eq!(held.iter().map(|a| a.to_f64_vec()).collect::<Result<Vec<_>>>()?, before);
                for (now, want) in running()?.iter().zip(&want) {
                    assert_eq!(now.to_f64_vec()?, want.to_f64_vec()?, "{ctx} {dtype}, {channels} channels, step {step}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn first_values_do_not_depend_on_which_layer_runs_first() -> Result<()> {
    let weights = |last_first: bool| -> Result<Vec<Vec<f32>>> {
        hadal::random::seed(11);
        let net = nn::Sequential::new().add(nn::Dense::new(3)).add(nn::Dropout::new(0.5)).add(nn::Dense::new(2));
        net.initialize(init::Xavier::new(), &cpu())?;
        if last_first {
            net.get(2).unwrap().forward(&Tensor::ones(&[1, 3], &cpu())?)?;
        }
        autograd::train_mode(|| net.forward(&Tensor::ones(&[1, 4], &cpu())?))?;
        net.parameters().iter().map(|p| p.data()?.to_vec()).collect()
    };
    let all = weights(false)?;
    assert_eq!(all, weights(true)?);
    assert!(all[0][..6] != all[2][..], "a stream for each parameter");
    // Nor are they those of a draw that comes after.
    hadal::random::seed(11);
    assert_ne!(all[0], Tensor::uniform(-1.0, 1.0, &[12], &cpu())?.to_vec()?);
    Ok(())
}

#[test]
fn dropout_is_active_in_training_only() -> Result<()> {
    let layer = nn::Dropout::new(0.5);
    let x = Tensor::ones(&[10_000], &cpu())?;
    assert_eq!(layer.forward(&x)?.to_vec()?, x.to_vec()?);
    let y = autograd::train_mode(|| layer.forward(&x))?.to_vec()?;
    assert!(y.iter().all(|&v| v == 0.0 || v == 2.0));
    let kept = y.iter().filter(|&&v| v > 0.0).count();
    assert!((4800..5200).contains(&kept), "{kept}");
    Ok(())
}

#[test]
fn parameters_survive_a_file() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("hadal-nn-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("net.safetensors");
    let x = Tensor::uniform(-1.0, 1.0, &[2, 1, 16, 16], &cpu())?;
    let make = || nn::Sequential::new().add(nn::Conv2D::new(3, 3)).add(Residual::new(3, false, 1)).add(nn::Dense::new(2));
    let net = make();
    net.initialize(init::Xavier::new(), &cpu())?;
    autograd::record(|| net.forward(&x))?;
    net.save_with(&file, &[("epochs", "3")])?;
    assert_eq!(nn::metadata(&file)?["epochs"], "3");
    for ctx in common::contexts() {
        let other = make();
        other.load(&file, &ctx)?;
        let (a, b) = (net.forward(&x)?.to_vec()?, other.forward(&Tensor::new(x.array().to_context(&ctx)?))?.to_vec()?);
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    }
    // Nothing is changed by a file that does not fit, and a damaged one is an error.
    let wrong = nn::Sequential::new().add(nn::Conv2D::new(3, 5));
    let e = wrong.load(&file, &cpu()).unwrap_err().to_string();
    assert!(e.contains("net.safetensors") && e.contains("weight"), "{e}");
    assert!(wrong.collect()[0].1.data().is_err());
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(net.load(&file, &cpu()), Err(Error::Data { .. })));
    std::fs::write(&file, b"").unwrap();
    assert!(matches!(net.load(&file, &cpu()), Err(Error::Data { .. })));
    assert!(matches!(net.load(folder.join("absent"), &cpu()), Err(Error::Io { .. })));
    std::fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

#[test]
fn a_net_prints_as_a_tree() {
    let net = nn::Sequential::new().add(nn::Conv2D::new(6, 5).sigmoid()).add(Residual::new(6, true, 2)).add(nn::Dense::new(10));
    let text = net.to_string();
    for part in ["(0): Conv2D(? -> 6, kernel 5x5", "(1): Residual(", "(conv3): Conv2D", "(2): Dense(? -> 10)"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn an_impossible_size_is_an_error() {
    for shape in [&[1 << 44][..], &[usize::MAX, 2], &[1 << 20, 1 << 20, 1 << 20]] {
        assert!(Tensor::zeros(shape, &cpu()).is_err(), "{shape:?}");
        assert!(Tensor::full(shape, 1.0, &cpu()).is_err(), "{shape:?}");
    }
}

#[test]
fn an_empty_batch_and_not_a_number_are_no_panic() -> Result<()> {
    for ctx in common::contexts() {
        let net = models::resnet18(10);
        net.initialize(init::Xavier::new(), &ctx)?;
        net.forward(&Tensor::ones(&[1, 1, 32, 32], &ctx)?)?;
        assert_eq!(net.forward(&Tensor::zeros(&[0, 1, 32, 32], &ctx)?)?.shape(), [0, 10]);
        // A batch without values has no statistics.
        let e = autograd::record(|| net.forward(&Tensor::zeros(&[0, 1, 32, 32], &ctx)?)).unwrap_err().to_string();
        assert!(e.starts_with("net[1]: batch_norm"), "{e}");
        let y = net.forward(&Tensor::full(&[1, 1, 32, 32], f64::NAN, &ctx)?)?;
        assert!(y.to_vec()?.iter().all(|v| v.is_nan()), "{y}");
        for shape in [&[1, 1, 0, 32][..], &[1, 0, 32, 32], &[32, 32], &[]] {
            assert!(net.forward(&Tensor::zeros(shape, &ctx)?).is_err(), "{shape:?}");
        }
        let lenet = models::lenet(10);
        lenet.initialize(init::Xavier::new(), &ctx)?;
        lenet.forward(&Tensor::ones(&[1, 1, 28, 28], &ctx)?)?;
        autograd::record(|| lenet.forward(&Tensor::zeros(&[0, 1, 28, 28], &ctx)?))?.backward()?;
        assert!(lenet.parameters()[0].grad()?.to_vec()?.iter().all(|&g| g == 0.0));
    }
    Ok(())
}
