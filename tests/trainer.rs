//! What a training step and its bookkeeping promise: losses and metrics, which parameters move, what a file of states holds.

use hadal::{
    Array, Context, DType, Error, Result, Tensor, Trainer,
    autograd::{self, GradReq},
    cpu,
    cuda::Graph,
    data::{DataLoader, ImageSet, LastBatch},
    init,
    loss::{L1, L2, SigmoidBinaryCrossEntropy, SoftmaxCrossEntropy},
    models,
    nn::{BatchNorm, Block, Dense, Forward, Parameter, Sequential},
    optim::{Adam, Lars, LossScale, Optimizer, Sgd, Step, Update, clip_grad_norm},
    train::{correct, evaluate_with, sgd},
};

#[path = "common/mod.rs"]
mod common;

fn tensor(values: &[f32], shape: &[usize], ctx: &Context) -> Result<Tensor> {
    Tensor::from_vec(values.to_vec(), shape, ctx)
}

#[track_caller]
fn says<T>(result: Result<T>, part: &str) {
    let Err(e) = result else { panic!("no error, {part:?} expected") };
    assert!(e.to_string().contains(part), "{e} does not say {part:?}");
}

#[test]
fn a_metric_takes_the_shapes_of_the_loss_and_nothing_is_broadcast() -> Result<()> {
    for ctx in common::contexts() {
        let logits = tensor(&[0., 1., 2., 0., 0., 3.], &[3, 2], &ctx)?;
        let loss = |labels: &Tensor| SoftmaxCrossEntropy::new().forward(&logits, labels);
        for shape in [&[3][..], &[3, 1]] {
            for dtype in [DType::I64, DType::U8, DType::F32, DType::F16] {
                let labels = tensor(&[1., 0., 0.], shape, &ctx)?.cast(dtype)?;
                assert_eq!(loss(&labels)?.shape(), [3]);
                assert_eq!(correct(&logits, &labels)?.item()?, 2.0, "{shape:?} {dtype} on {ctx}");
            }
        }
        for shape in [&[1, 3][..], &[3, 3], &[1], &[]] {
            let labels = Tensor::zeros(shape, &ctx)?.cast(DType::I64)?;
            assert!(matches!(loss(&labels), Err(Error::Shape { .. })), "{shape:?}");
            assert!(matches!(correct(&logits, &labels), Err(Error::Shape { .. })), "{shape:?}");
        }
        // Distributions, as sparse_label(false) takes them.
        let soft = tensor(&[0.1, 0.9, 0.2, 0.8, 0.4, 0.6], &[3, 2], &ctx)?;
        assert_eq!(SoftmaxCrossEntropy::new().sparse_label(false).forward(&logits, &soft)?.shape(), [3]);
        assert_eq!(correct(&logits, &soft)?.item()?, 2.0);
        // Several predictions a sample; of one class the label is a number, not a distribution; 0.5 is no class.
        let many = Tensor::zeros(&[2, 3, 4], &ctx)?;
        assert_eq!(correct(&many, &tensor(&[0., 1., 0., 0., 2., 0.], &[2, 3, 1], &ctx)?)?.item()?, 4.0);
        assert_eq!(correct(&Tensor::zeros(&[3, 1], &ctx)?, &tensor(&[0., 1., 0.5], &[3, 1], &ctx)?)?.item()?, 1.0);

        let pred = tensor(&[1., 2., 3., 4., 5., 6.], &[2, 3], &ctx)?;
        for label in [Tensor::zeros(&[3, 2], &ctx)?, Tensor::zeros(&[6], &ctx)?, Tensor::zeros(&[6, 1], &ctx)?] {
            says(L2::new().forward(&pred, &label), "as many samples");
            says(L1::new().forward(&pred, &label), "as many samples");
            says(SigmoidBinaryCrossEntropy::new().forward(&pred, &label), "as many samples");
        }
        let column = tensor(&[1., 2.], &[2, 1], &ctx)?;
        assert_eq!(L2::new().forward(&column, &tensor(&[1., 0.], &[2], &ctx)?)?.to_vec()?, [0., 2.]);
        assert_eq!(L2::new().forward(&pred, &Tensor::zeros(&[2, 3, 1], &ctx)?)?.shape(), [2]);
    }
    Ok(())
}

#[test]
fn an_accuracy_is_a_share_of_what_was_seen() -> Result<()> {
    for ctx in common::contexts() {
        let set = ImageSet::new(vec![7; 28], vec![0; 7], 2, 2)?;
        let loader = |size| Ok::<_, Error>(DataLoader::new(&set, size, &ctx)?.last_batch(LastBatch::Discard));
        // Class 0 always wins, which is right.
        let net = |x: &Tensor| tensor(&[2., 1.].repeat(x.len()), &[x.len(), 2], &x.context());
        assert_eq!(evaluate_with(net, &loader(4)?)?, 1.0, "4 of 7 are seen");
        assert_eq!(evaluate_with(net, &DataLoader::new(&set, 4, &ctx)?)?, 1.0);
        assert!(evaluate_with(net, &loader(8)?)?.is_nan(), "none is seen");
    }
    Ok(())
}

#[test]
fn what_is_listed_twice_counts_once_outside_of_a_trainer() -> Result<()> {
    for ctx in common::contexts() {
        let w = tensor(&[3., 4.], &[2], &ctx)?.attach_grad();
        autograd::record(|| w.square()?.sum(&[]))?.backward()?;
        assert_eq!(clip_grad_norm(&[w.clone(), w.clone()], 1e9)?.item()?, 10.0);
        sgd(&[w.clone(), w.clone()], 0.25, 1)?;
        assert_eq!(w.to_vec()?, [1.5, 2.]);
        clip_grad_norm(&[w.clone(), w.clone()], 5.0)?;
        assert!((w.grad()?.to_vec()?[0] - 3.0).abs() < 1e-5);
        // Everything is checked before anything changes.
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            says(sgd(std::slice::from_ref(&w), bad, 1), "the learning rate is");
        }
        says(sgd(std::slice::from_ref(&w), 0.1, 0), "a batch size of 0");
        assert!(sgd(&[w.clone(), Tensor::ones(&[1], &cpu())?], 0.1, 1).is_err());
        assert_eq!(w.to_vec()?, [1.5, 2.]);
    }
    Ok(())
}

/// A net of one weight of 1 whose gradient is `g`, whatever the weight is.
fn one_weight(ctx: &Context, dtype: DType) -> Result<Dense> {
    let net = Dense::new(1).no_bias().in_units(1);
    net.initialize(init::One, ctx)?;
    net.cast(dtype)?;
    Ok(net)
}

fn backward(net: &Dense, trainer: &mut Trainer, g: f64) -> Result<()> {
    let w = net.weight().data()?;
    let x = Tensor::full(&[1, 1], g, &w.context())?.cast(w.dtype())?;
    let l = autograd::record(|| net.forward(&x))?;
    trainer.backward(&l)
}

fn value(net: &Dense) -> Result<f64> {
    net.weight().data()?.item()
}

type Make = fn() -> Box<dyn Optimizer>;

/// So that a table of rules can be given to a trainer.
struct Boxed(Box<dyn Optimizer>);

impl Optimizer for Boxed {
    fn update(&mut self, i: usize, w: &mut Array, grad: &Array, step: &Step) -> Result<()> {
        self.0.update(i, w, grad, step)
    }
    fn update_all(&mut self, updates: &mut [Update]) -> Result<()> {
        self.0.update_all(updates)
    }
    fn update_all_scaled(&mut self, updates: &mut [Update], unscale: &Array) -> Result<()> {
        self.0.update_all_scaled(updates, unscale)
    }
    fn check_updates(&self, updates: &[Update]) -> Result<()> {
        self.0.check_updates(updates)
    }
    fn learning_rate(&self) -> f64 {
        self.0.learning_rate()
    }
    fn set_learning_rate(&mut self, lr: f64) {
        self.0.set_learning_rate(lr);
    }
    fn state(&self) -> Result<Vec<(String, Array)>> {
        self.0.state()
    }
    fn check_state(&self, arrays: &[(String, Array)], parameters: &[Parameter]) -> Result<()> {
        self.0.check_state(arrays, parameters)
    }
    fn load_state(&mut self, arrays: &[(String, Array)]) -> Result<()> {
        self.0.load_state(arrays)
    }
}

const RULES: [Make; 5] = [
    || Box::new(Sgd::new(0.1)),
    || Box::new(Sgd::new(0.1).momentum(0.9).weight_decay(0.01)),
    || Box::new(Adam::new(0.1).weight_decay(0.01)),
    || Box::new(Adam::adamw(0.1)),
    || Box::new(Lars::new(0.5).trust(0.1).vectors(true).weight_decay(0.01)),
];

#[test]
fn a_parameter_is_frozen_or_not_at_the_step() -> Result<()> {
    for ctx in common::contexts() {
        let net = one_weight(&ctx, DType::F32)?;
        net.weight().set_grad_req(GradReq::Null);
        let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.5));
        trainer.step(1)?;
        net.weight().set_grad_req(GradReq::Write);
        backward(&net, &mut trainer, 1.0)?;
        // Said again, it loses nothing.
        net.weight().set_grad_req(GradReq::Write);
        trainer.step(1)?;
        assert_eq!(value(&net)?, 0.5, "{ctx}");
        net.weight().set_grad_req(GradReq::Null);
        trainer.step(1)?;
        assert_eq!((value(&net)?, net.parameter_count()?), (0.5, 0));
    }
    let norm = BatchNorm::new();
    norm.initialize(init::One, &cpu())?;
    assert_eq!(norm.parameters().len(), 2, "running statistics are no optimizer's");
    Ok(())
}

#[test]
fn a_parameter_that_is_listed_twice_is_stepped_once() -> Result<()> {
    for (ctx, make) in common::contexts().into_iter().flat_map(|c| RULES.map(|m| (c, m))) {
        let nets = [one_weight(&ctx, DType::F32)?, one_weight(&ctx, DType::F32)?];
        let lists = [nets[0].parameters(), [nets[1].parameters(), nets[1].parameters()].concat()];
        for (net, list) in nets.iter().zip(lists) {
            let mut trainer = Trainer::new(list, Boxed(make()));
            assert_eq!(trainer.parameters().len(), 1);
            backward(net, &mut trainer, 1.0)?;
            trainer.step(1)?;
        }
        assert_eq!(value(&nets[0])?, value(&nets[1])?);
    }
    Ok(())
}

#[test]
fn a_skipped_step_changes_nothing() -> Result<()> {
    for (ctx, dtype, rule) in common::contexts()
        .into_iter()
        .flat_map(|c| [DType::F32, DType::F16].map(|d| (c, d)))
        .flat_map(|(c, d)| (0..5).map(move |r| (c, d, r)))
    {
        let make = RULES[rule];
        for graph in [false, true] {
            // Lars waits for the unscaling number, which no graph can.
            if graph && (!ctx.is_gpu() || rule == 4) {
                continue;
            }
            let run = |gradients: &[f64]| -> Result<(f64, Vec<f64>)> {
                let net = one_weight(&ctx, dtype)?;
                let mut trainer = Trainer::new(net.parameters(), Boxed(make())).loss_scale(LossScale::fixed(8.0));
                let x = Tensor::zeros(&[1, 1], &ctx)?.cast(dtype)?;
                let mut captured = None;
                for (i, g) in gradients.iter().enumerate() {
                    x.copy_from(&Tensor::full(&[1, 1], *g, &ctx)?.cast(dtype)?)?;
                    let mut one = || {
                        let l = autograd::record(|| net.forward(&x))?;
                        trainer.backward(&l)?;
                        trainer.step(1)
                    };
                    if graph && i == 1 {
                        captured = Some(Graph::capture(&ctx, &mut one)?.0);
                    }
                    match &captured {
                        Some(g) => g.replay()?,
                        None => one()?,
                    }
                }
                drop(captured);
                let counts = trainer.optimizer().state()?.into_iter().filter(|(n, _)| n.ends_with(".t"));
                Ok((value(&net)?, counts.map(|(_, a)| a.item()).collect::<Result<_>>()?))
            };
            let bad = f64::INFINITY;
            let with = run(&[0.5, bad, bad, 0.25, bad, 1.0])?;
            let without = run(&[0.5, 0.25, 1.0])?;
            assert_eq!(with, without, "{ctx} {dtype} rule {rule} graph {graph}");
            assert_eq!(with.1, [3.0]);
            // From the first step on.
            let with = run(&[bad, bad, bad, 0.5])?;
            assert_eq!(with, run(&[0.5])?, "{ctx} {dtype} rule {rule} graph {graph}");
        }
    }
    Ok(())
}

#[test]
fn skipped_steps_do_not_count_in_adam() -> Result<()> {
    for ctx in common::contexts() {
        let net = one_weight(&ctx, DType::F32)?;
        let mut trainer = Trainer::new(net.parameters(), Adam::new(0.1)).loss_scale(LossScale::fixed(2.0));
        for g in [f64::INFINITY, f64::NAN, f64::INFINITY, 1.0] {
            backward(&net, &mut trainer, g)?;
            trainer.step(1)?;
        }
        assert!((value(&net)? - 0.9).abs() < 1e-6, "{} on {ctx}", value(&net)?);
    }
    Ok(())
}

/// Two weights, of which the second gets the gradient; states for both.
fn two(ctx: &Context) -> Result<[Dense; 2]> {
    Ok([one_weight(ctx, DType::F32)?, one_weight(ctx, DType::F32)?])
}

#[test]
fn a_step_that_fails_has_changed_nothing() -> Result<()> {
    for (ctx, make) in common::contexts().into_iter().flat_map(|c| RULES.map(|m| (c, m))) {
        let nets = two(&ctx)?;
        let list = [nets[0].parameters(), nets[1].parameters()].concat();
        let mut trainer = Trainer::new(list, Boxed(make())).loss_scale(LossScale::dynamic().growth_interval(1));
        let both = |trainer: &mut Trainer| nets.iter().try_for_each(|n| backward(n, trainer, 1.0));
        both(&mut trainer)?;
        trainer.step(1)?;
        let seen = |trainer: &Trainer| -> Result<Vec<f64>> {
            let mut all = vec![value(&nets[0])?, value(&nets[1])?, trainer.scale()?];
            for (_, a) in trainer.optimizer().state()?.iter().filter(|(n, _)| !n.ends_with("learning_rate")) {
                all.extend(a.to_f64_vec()?);
            }
            Ok(all)
        };
        both(&mut trainer)?;
        let before = seen(&trainer)?;
        // The second parameter, or the rule itself.
        nets[1].weight().set_lr_mult(f64::NAN);
        says(trainer.step(1), "parameter 1's factor on the learning rate is NaN");
        nets[1].weight().set_lr_mult(1.0);
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            trainer.set_learning_rate(bad);
            says(trainer.step(1), "the learning rate is");
        }
        trainer.set_learning_rate(0.1);
        says(trainer.step(0), "a batch size of 0");
        assert_eq!(seen(&trainer)?, before, "{ctx}");
        // The gradients are still there.
        trainer.step(1)?;
        assert_ne!(seen(&trainer)?, before);
        // An optimizer by itself, whose second state is for another shape.
        if trainer.optimizer().state()?.iter().any(|(n, _)| n == "1.mom" || n == "1.m") {
            let mut rule = make();
            let array = |n: usize| Array::full(&[n], 1.0, DType::F32, &ctx);
            let (mut a, mut b, g) = (array(1)?, array(2)?, [array(1)?, array(2)?]);
            rule.update(1, &mut array(3)?, &array(3)?, &Step::default())?;
            let mut both =
                [(0, &mut a, &g[0]), (1, &mut b, &g[1])].map(|(index, w, grad)| Update { index, w, grad, step: Step::default() });
            says(rule.update_all(&mut both), "the state of parameter 1");
            assert_eq!(a.item()?, 1.0, "{ctx}");
        }
    }
    for bad in
        [Sgd::new(0.1).momentum(-1.0), Sgd::new(0.1).weight_decay(f64::NAN), Sgd::new(0.1).clip_gradient(-2.0), Sgd::new(-1.0)]
    {
        let w = Array::full(&[1], 1.0, DType::F32, &cpu())?;
        says({ bad }.update(0, &mut w.clone(), &w, &Step::default()), "it has to be");
    }
    let w = Array::full(&[1], 1.0, DType::F32, &cpu())?;
    says(Adam::new(0.1).betas(0.9, 1.0).update(0, &mut w.clone(), &w, &Step::default()), "beta2 is 1");
    Ok(())
}

#[test]
fn a_parameter_that_a_batch_did_not_use_can_be_allowed() -> Result<()> {
    for ctx in common::contexts() {
        let nets = two(&ctx)?;
        let list = [nets[0].parameters(), nets[1].parameters()].concat();
        let mut trainer = Trainer::new(list.clone(), Adam::new(0.1));
        backward(&nets[1], &mut trainer, 1.0)?;
        says(trainer.step(1), "ignore_stale_grad");
        let mut trainer = trainer.ignore_stale_grad(true);
        trainer.step(1)?;
        trainer.step(1)?;
        assert_eq!(value(&nets[0])?, 1.0);
        assert!((value(&nets[1])? - 0.9).abs() < 1e-6);
        // One without values is not used either.
        let later = Dense::new(1);
        later.initialize(init::One, &ctx)?;
        Trainer::new(later.parameters(), Sgd::new(0.1)).ignore_stale_grad(true).step(1)?;
    }
    Ok(())
}

#[test]
fn a_count_of_parameters_is_the_nets_or_an_error() -> Result<()> {
    let net = models::lenet(10);
    net.initialize(init::Xavier::new(), &cpu())?;
    says(net.parameter_count(), "net[0].weight: its shape is not known before the first forward pass");
    net.forward(&Tensor::zeros(&[0, 1, 28, 28], &cpu())?)?;
    assert_eq!(net.parameter_count()?, 44_426);
    Ok(())
}

/// A folder of this test's own, gone at its end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hadal-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same rules with other settings, as a program may have them that goes on from a file.
const OTHERS: [Make; 5] = [
    || Box::new(Sgd::new(0.7).momentum(0.3).clip_gradient(0.01)),
    || Box::new(Sgd::new(0.7)),
    || Box::new(Adam::adamw(0.7).betas(0.1, 0.2).eps(1.0)),
    || Box::new(Adam::new(0.7).clip_gradient(0.01)),
    || Box::new(Lars::new(0.7).momentum(0.1)),
];

#[test]
fn a_file_of_states_holds_all_that_changes_the_next_step() -> Result<()> {
    let folder = Folder::new("states");
    for (ctx, dtype) in common::contexts().into_iter().flat_map(|c| [DType::F32, DType::F16, DType::F64].map(|d| (c, d))) {
        for (make, other) in RULES.iter().zip(OTHERS) {
            let file = folder.file("file");
            let first = one_weight(&ctx, dtype)?;
            let scale = LossScale::dynamic().initial(4.0).growth_interval(2);
            let mut trainer = Trainer::new(first.parameters(), Boxed(make())).loss_scale(scale);
            trainer.set_learning_rate(0.03);
            first.weight().set_lr_mult(0.5);
            first.weight().set_wd_mult(2.0);
            for g in [1.0, 0.5, f64::INFINITY, 0.25] {
                backward(&first, &mut trainer, g)?;
                trainer.step(1)?;
            }
            trainer.save_states(&file)?;
            let second = one_weight(&ctx, dtype)?;
            second.weight().set_data(first.weight().data()?.copy()?.array())?;
            let mut restored = Trainer::new(second.parameters(), Boxed(other())).loss_scale(LossScale::fixed(32.0));
            restored.load_states(&file)?;
            assert_eq!((restored.learning_rate(), restored.scale()?), (0.03, trainer.scale()?));
            for g in [1.0, 0.75, 0.5, 0.25] {
                backward(&first, &mut trainer, g)?;
                backward(&second, &mut restored, g)?;
                trainer.step(1)?;
                restored.step(1)?;
                assert_eq!(value(&first)?, value(&second)?, "{dtype} on {ctx}");
                assert_eq!(trainer.scale()?, restored.scale()?);
            }
        }
    }
    Ok(())
}

#[test]
fn states_that_do_not_fit_are_refused_before_anything_changes() -> Result<()> {
    let folder = Folder::new("misfits");
    for ctx in common::contexts() {
        let file = folder.file("file");
        let dense = |inputs: usize| -> Result<Sequential> {
            let net = Sequential::new().add(Dense::new(2).in_units(inputs)).add(Dense::new(2).in_units(2));
            net.initialize(init::One, &ctx)?;
            Ok(net)
        };
        let step = |net: &Sequential, trainer: &mut Trainer, inputs: usize| -> Result<()> {
            let l = autograd::record(|| net.forward(&Tensor::ones(&[1, inputs], &ctx)?))?;
            trainer.backward(&l)?;
            trainer.step(1)
        };
        let net = dense(3)?;
        let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1).momentum(0.9));
        // Before the first step a file has settings alone.
        trainer.save_states(&file)?;
        trainer.load_states(&file)?;
        step(&net, &mut trainer, 3)?;
        trainer.save_states(&file)?;

        let refused = |trainer: &mut Trainer, file: &std::path::Path, part: &str| -> Result<()> {
            let seen = |t: &Trainer| -> Result<Vec<(String, Vec<f64>)>> {
                t.optimizer().state()?.into_iter().map(|(n, a)| Ok((n, a.to_f64_vec()?))).collect()
            };
            let before = (seen(trainer)?, trainer.scale()?);
            says(trainer.load_states(file), part);
            says(trainer.load_states(file), &file.display().to_string());
            assert_eq!((seen(trainer)?, trainer.scale()?), before, "{part}");
            Ok(())
        };
        let sgd = || Sgd::new(0.5).momentum(0.9);
        refused(&mut Trainer::new(net.parameters()[..2].to_vec(), sgd()), &file, "those of 4 parameters, the trainer has 2")?;
        let more = [net.parameters(), Dense::new(1).parameters()].concat();
        refused(&mut Trainer::new(more, sgd()), &file, "the trainer has 6")?;
        let mut swapped = net.parameters();
        swapped.swap(1, 3);
        refused(
            &mut Trainer::new(swapped, sgd()),
            &file,
            "state 1 is that of net[0].bias, the trainer's parameter 1 is net[1].bias",
        )?;
        refused(&mut Trainer::new(dense(4)?.parameters(), sgd()), &file, "0.mom")?;
        refused(&mut Trainer::new(net.parameters(), Adam::new(0.1)), &file, "the states are those of sgd")?;
        let wide = dense(3)?;
        wide.cast(DType::F64)?;
        refused(&mut Trainer::new(wide.parameters(), sgd()), &file, "f64 is expected")?;
        let mut scaled = Trainer::new(net.parameters(), sgd()).loss_scale(LossScale::fixed(2.0));
        scaled.load_states(&file)?;
        scaled.save_states(folder.file("scaled"))?;
        refused(&mut trainer, &folder.file("scaled"), "loss_scale")?;

        // Arrays by hand: first as versions without settings wrote them, then with one fault each.
        let write = |arrays: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)]| {
            let views = arrays.iter().map(|(n, d, s, b)| (*n, safetensors::tensor::TensorView::new(*d, s.clone(), b).unwrap()));
            std::fs::write(folder.file("old"), safetensors::serialize(views, None).unwrap()).unwrap();
        };
        use safetensors::Dtype::{F32, I64};
        let f32s = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let t = |i: &'static str, t: i64| (i, I64, vec![], t.to_le_bytes().to_vec());
        let mom = |v: &[f32]| ("0.mom", F32, vec![v.len()], f32s(v));
        let bias = [net.parameters()[1].clone()].to_vec();
        let mut one = Trainer::new(bias, sgd());
        write(&[t("0.t", 3), mom(&[1.0, 2.0])]);
        one.load_states(folder.file("old"))?;
        assert_eq!(one.learning_rate(), 0.5, "an old file has none");
        for (arrays, part) in [
            (vec![t("0.t", 3), mom(&[1.0, f32::NAN])], "0.mom: element 1 of 2 is NaN"),
            (vec![t("0.t", 3), mom(&[f32::NEG_INFINITY, 0.0])], "0.mom: element 0 of 2 is -inf"),
            (vec![t("0.t", 3), mom(&[1.0])], "0.mom"),
            (vec![t("0.t", -1), mom(&[1.0, 2.0])], "0.t: one i64 of at least 0"),
            (vec![t("0.t", 3)], "0.mom: it is missing"),
            (vec![mom(&[1.0, 2.0])], "0.t: it is missing"),
            (vec![t("0.t", 3), mom(&[1.0, 2.0]), t("1.t", 0)], "1.t: the trainer has 1 parameters"),
            (vec![t("0.t", 3), mom(&[1.0, 2.0]), t("00.t", 0)], "00.t"),
            (vec![t("sgd.momentum", 0)], "sgd.momentum: one f64"),
        ] {
            write(&arrays);
            refused(&mut one, &folder.file("old"), part)?;
        }
        write(&[t("0.t", 3), mom(&[1.0, 2.0])]);
        let mut two = Trainer::new(net.parameters()[..2].to_vec(), sgd());
        refused(&mut two, &folder.file("old"), "0.mom")?;
        let biases = vec![net.parameters()[1].clone(), net.parameters()[3].clone()];
        refused(&mut Trainer::new(biases, sgd()), &folder.file("old"), "1.t: it is missing, so net[1].bias would have no state")?;
    }
    Ok(())
}
