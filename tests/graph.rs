//! CUDA graphs: captured training steps against eager ones, what a capture refuses, memory, threads.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Barrier, Mutex, MutexGuard, PoisonError},
    thread,
};

use hadal::{
    Context, Error, Result, Tensor, Trainer, autograd, cpu,
    cuda::Graph,
    data::{DataLoader, FashionMnist},
    init,
    loss::SoftmaxCrossEntropy,
    models,
    nn::{BatchNorm, Conv2D, Dense, Dropout, Flatten, Parameter, Sequential},
    optim::{Adam, Lars, Optimizer, Sgd},
    random,
};

#[path = "common/mod.rs"]
mod common;

/// The GPU for one test at a time, since the memory counters are the device's.
fn gpu() -> Option<(Context, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    common::gpu().map(|ctx| (ctx, guard))
}

/// All values of a net: weights, biases, running statistics.
fn values(net: &Sequential) -> Result<Vec<Vec<f32>>> {
    net.collect().iter().map(|(_, p): &(String, Parameter)| p.data()?.to_vec()).collect()
}

/// The bits that a run left: the losses of each step, the net's values, gradients, the optimizer's state, other random
/// numbers, the random state.
type Bits = (Vec<Vec<f32>>, Vec<Vec<f32>>, Vec<Vec<f32>>, Vec<(String, Vec<f64>)>, Vec<Vec<f32>>, (u64, u64));

/// Seven steps of a net with different batches, at a learning rate that changes; all but the first by a graph when `graph` is
/// set. The net is a new one, since it draws its first values at its first forward pass.
fn train(net: &Sequential, ctx: &Context, optimizer: impl Optimizer + 'static, graph: bool) -> Result<Bits> {
    const BATCH: usize = 32;
    random::seed(3);
    net.initialize(init::Xavier::new(), ctx)?;
    let set = FashionMnist::sample("a test")?.train.take(BATCH * 7);
    let batches: Vec<(Tensor, Tensor)> =
        DataLoader::new(&set, BATCH, ctx)?.resize(14, 14)?.workers(0).epoch(0)?.collect::<Result<_>>()?;
    let loss = SoftmaxCrossEntropy::new();
    let rate = optimizer.learning_rate();
    let mut trainer = Trainer::new(net.parameters(), optimizer);
    let step = |trainer: &mut Trainer, x: &Tensor, y: &Tensor| -> Result<Tensor> {
        let l = autograd::record(|| loss.forward(&net.forward(x)?, y))?;
        l.backward()?;
        trainer.step(BATCH)?;
        Ok(l.detach())
    };
    let (mut losses, mut noise) = (vec![step(&mut trainer, &batches[0].0, &batches[0].1)?.to_vec()?], Vec::new());
    let (x, y) = (batches[0].0.copy()?, batches[0].1.copy()?);
    let captured = if graph { Some(Graph::capture(ctx, || step(&mut trainer, &x, &y))?) } else { None };
    for (i, (xi, yi)) in batches[1..].iter().enumerate() {
        trainer.set_learning_rate(if i < 2 { rate } else { rate / i as f64 });
        losses.push(match &captured {
            Some((graph, l)) => {
                x.copy_from(xi)?;
                y.copy_from(yi)?;
                graph.replay()?;
                l.to_vec()?
            }
            None => step(&mut trainer, xi, yi)?.to_vec()?,
        });
        // Draws of others between the steps, and a seed set anew.
        noise.push(Tensor::normal(0.0, 1.0, &[5], ctx)?.to_vec()?);
        if i == 3 {
            random::seed(11);
        }
    }
    let grads = net.parameters().iter().map(|p| p.grad()?.to_vec()).collect::<Result<_>>()?;
    let states = trainer.optimizer().state()?.into_iter().map(|(name, a)| Ok((name, a.to_f64_vec()?))).collect::<Result<_>>()?;
    Ok((losses, values(net)?, grads, states, noise, random::state()))
}

fn sgd() -> Sgd {
    Sgd::new(0.1).momentum(0.9).weight_decay(1e-4)
}

#[test]
fn captured_steps_measure_the_norms_for_lars_anew() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let net = || Sequential::new().add(Dense::new(16).relu()).add(Dense::new(10));
    let lars = || Lars::new(0.5).trust(0.1).weight_decay(1e-4);
    assert!(train(&net(), &ctx, lars(), true)? == train(&net(), &ctx, lars(), false)?);
    Ok(())
}

#[test]
fn captured_steps_of_the_dropout_mlp_are_the_eager_ones_bit_for_bit() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let eager = train(&models::dropout_mlp(10), &ctx, sgd(), false)?;
    let captured = train(&models::dropout_mlp(10), &ctx, sgd(), true)?;
    assert_eq!(captured.0, eager.0, "losses");
    assert!(captured == eager, "values, gradients or random numbers differ");
    assert!(eager.0.windows(2).all(|w| w[0] != w[1]));
    Ok(())
}

#[test]
fn replays_follow_the_learning_rate_and_count_as_updates() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let net = || Sequential::new().add(Flatten::new()).add(Dense::new(7)).add(BatchNorm::new()).add(Dense::new(10));
    assert!(train(&net(), &ctx, Sgd::new(0.1), true)? == train(&net(), &ctx, Sgd::new(0.1), false)?, "SGD");
    for make in [|| Adam::new(0.01), || Adam::adamw(0.01)] {
        let (captured, eager) = (train(&net(), &ctx, make(), true)?, train(&net(), &ctx, make(), false)?);
        assert_eq!(captured.3, eager.3);
        assert!(captured == eager, "Adam");
        assert!(eager.3.contains(&("0.t".to_owned(), vec![7.0])), "{:?}", eager.3);
    }
    Ok(())
}

#[test]
fn eager_steps_between_replays_leave_the_graph_its_own_numbers() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let run = |graph: bool| -> Result<Vec<Vec<f32>>> {
        random::seed(8);
        let (x, net) = (Tensor::ones(&[2, 3], &ctx)?, Sequential::new().add(Dense::new(5)).add(Dense::new(2)));
        net.initialize(init::Xavier::new(), &ctx)?;
        let mut trainer = Trainer::new(net.parameters(), Adam::new(0.1));
        let step = |trainer: &mut Trainer, batch: usize| -> Result<()> {
            autograd::record(|| net.forward(&x)?.square())?.backward()?;
            trainer.step(batch)
        };
        step(&mut trainer, 1)?;
        // Two steps in one graph, and another one for another batch size.
        let twice = |trainer: &mut Trainer| step(trainer, 2).and_then(|()| step(trainer, 3));
        let (two, one) = match graph {
            true => {
                (Some(Graph::capture(&ctx, || twice(&mut trainer))?.0), Some(Graph::capture(&ctx, || step(&mut trainer, 4))?.0))
            }
            false => (None, None),
        };
        for i in 0..4 {
            match &two {
                Some(two) => two.replay()?,
                None => twice(&mut trainer)?,
            }
            step(&mut trainer, 5)?;
            trainer.set_learning_rate(0.1 / f64::from(i + 2));
            match &one {
                Some(one) => one.replay()?,
                None => step(&mut trainer, 4)?,
            }
        }
        values(&net)
    };
    assert_eq!(run(true)?, run(false)?);
    Ok(())
}

#[test]
fn captured_steps_keep_running_statistics() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let net = || {
        let net = Sequential::new().add(Conv2D::new(4, 3)).add(BatchNorm::new());
        net.add(Flatten::new()).add(Dropout::new(0.3)).add(Dense::new(10))
    };
    assert!(train(&net(), &ctx, sgd(), true)? == train(&net(), &ctx, sgd(), false)?);
    Ok(())
}

#[test]
fn replays_draw_as_the_closure_would() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    // One dropout, a uniform and a normal tensor, and dropout with a fixed draw of the user's.
    let x = Tensor::ones(&[4, 3, 2, 3], &ctx)?;
    let last = Tensor::new(x.array().to_layout(hadal::Layout::ChannelsLast)?);
    let fixed = hadal::ops::Dropout { p: 0.5, draw: random::Draw { seed: 77, number: 1 } };
    let f = || -> Result<Vec<Tensor>> {
        autograd::train_mode(|| {
            let (u, n) = (Tensor::uniform(0.0, 1.0, &[9], &ctx)?, Tensor::normal(0.0, 1.0, &[9], &ctx)?);
            Ok(vec![x.dropout(0.5)?, last.dropout(0.5)?, u, n, x.dropout_with(fixed)?])
        })
    };
    let bits = |t: &[Tensor]| t.iter().map(Tensor::to_vec).collect::<Result<Vec<_>>>();
    random::seed(21);
    random::next_draw();
    let before = random::state();
    let (graph, out) = Graph::capture(&ctx, f)?;
    assert_eq!(random::state(), before, "a capture takes no draws");
    let mut seen = Vec::new();
    for seed in [None, None, Some(5), Some(5)] {
        if let Some(seed) = seed {
            random::seed(seed);
        }
        let start = random::state();
        graph.replay()?;
        let (replayed, end) = (bits(&out)?, random::state());
        random::set_state(start);
        assert_eq!(replayed, bits(&f()?)?);
        assert_eq!(end, random::state());
        seen.push(replayed);
    }
    assert!(seen[0][..4].iter().zip(&seen[1]).all(|(a, b)| a != b) && seen[0][4] == seen[1][4]);
    assert_eq!(seen[2], seen[3]);
    Ok(())
}

/// The error of a capture of `f`; after it the device works, and the thread's stream and the memory are as before.
fn refused<T>(ctx: &Context, f: impl FnOnce() -> Result<T>) -> String {
    let (state, in_use) = (random::state(), ctx.memory().unwrap().in_use);
    let e = Graph::capture(ctx, f).map(|_| ()).expect_err("the capture is refused");
    assert_eq!(ctx.memory().unwrap().in_use, in_use, "memory after: {e}");
    assert_eq!(random::state(), state, "random state after: {e}");
    works(ctx).unwrap_or_else(|later| panic!("after `{e}`: {later}"));
    e.to_string()
}

fn works(ctx: &Context) -> Result<()> {
    ctx.synchronize()?;
    let x = Tensor::arange(0.0, 4.0, 1.0, ctx)?;
    assert_eq!((&x + 1.0)?.to_vec()?, [1., 2., 3., 4.]);
    let (graph, y) = Graph::capture(ctx, || x.square())?;
    graph.replay()?;
    assert_eq!(y.to_vec()?, [0., 1., 4., 9.]);
    Ok(())
}

#[test]
fn what_a_graph_cannot_hold_is_refused_and_the_device_works_on() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    works(&ctx)?;
    let x = Tensor::ones(&[3], &ctx)?;
    let (other, _) = Graph::capture(&ctx, || x.square())?;
    let says = |e: String, word: &str| assert!(e.contains("inside Graph::capture") && e.contains(word), "{e}");
    says(refused(&ctx, || x.square()?.sum(&[])?.item()), "item");
    says(refused(&ctx, || x.to_vec()), "to_vec");
    says(refused(&ctx, || &x + &Tensor::from_vec(vec![1f32; 3], &[3], &ctx)?), "copy_from");
    says(refused(&ctx, || x.copy_from(&Tensor::zeros(&[3], &cpu())?)), "copy_from");
    says(refused(&ctx, || ctx.synchronize()), "synchronize");
    says(refused(&ctx, || Graph::capture(&ctx, || x.square())), "other capture");
    says(refused(&ctx, || other.replay()), "replayed");
    says(
        refused(&ctx, || {
            random::seed(1);
            Ok(())
        }),
        "random::seed",
    );
    // The closure's own error comes through as it is, also from the middle of the work.
    let e = refused(&ctx, || x.square()?.reshape(&[7]));
    assert!(e.contains("reshape"), "{e}");
    // A refusal that the closure overlooks does no harm.
    let (graph, y) = Graph::capture(&ctx, || x.item().or(Ok(0.0)).and_then(|_| &x * 3.0))?;
    graph.replay()?;
    assert_eq!(y.to_vec()?, [3.0; 3]);
    drop((graph, y));

    let in_use = ctx.memory()?.in_use;
    let panics = || {
        let _ = Graph::capture(&ctx, || -> Result<()> {
            let _y = x.square()?;
            std::panic::resume_unwind(Box::new("the closure's own"))
        });
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    assert_eq!(ctx.memory()?.in_use, in_use);
    works(&ctx)
}

#[test]
fn a_step_that_needs_a_first_one_is_refused() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let (x, net) = (Tensor::ones(&[2, 3], &ctx)?, Sequential::new().add(Dense::new(2)));
    net.initialize(init::Xavier::new(), &ctx)?;
    let mut sgd = Trainer::new(net.parameters(), Sgd::new(0.1).momentum(0.9));
    let mut adam = Trainer::new(net.parameters(), Adam::new(0.1));
    let step = |trainer: &mut Trainer| -> Result<()> {
        autograd::record(|| net.forward(&x))?.backward()?;
        trainer.step(2)
    };
    let e = Graph::capture(&ctx, || step(&mut sgd)).unwrap_err().to_string();
    assert!(e.contains("host memory"), "the weight does not exist yet: {e}");
    net.forward(&x)?;
    let before = values(&net)?;
    let e = Graph::capture(&ctx, || step(&mut sgd)).unwrap_err().to_string();
    assert!(e.contains("optimizer's state"), "{e}");
    // The gradients of the failed capture have no values, and say so; weights are what they were.
    let e = net.parameters()[0].grad()?.to_vec().unwrap_err().to_string();
    assert!(e.contains("failed"), "{e}");
    assert_eq!(values(&net)?, before);
    let e = Graph::capture(&ctx, || step(&mut adam)).unwrap_err().to_string();
    assert!(e.contains("optimizer's state"), "{e}");
    step(&mut sgd)?;
    Graph::capture(&ctx, || step(&mut sgd))?.0.replay()
}

#[test]
fn what_a_graph_writes_has_to_keep_its_memory_for_itself() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let (x, net) = (Tensor::ones(&[2, 3], &ctx)?, Sequential::new().add(Dense::new(2).in_units(3)));
    net.initialize(init::Constant(1.0), &ctx)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1));
    let mut step = || -> Result<()> {
        autograd::record(|| net.forward(&x))?.backward()?;
        trainer.step(2)
    };
    let weight = net.parameters()[0].clone();
    let says = |e: Error, word: &str| {
        let e = e.to_string();
        assert!(e.contains("parameter net[0].weight") && e.contains(word), "{e}");
    };
    let clone = weight.data()?.array();
    says(Graph::capture(&ctx, &mut step).unwrap_err(), "shares its memory");
    drop(clone);
    let (graph, ()) = Graph::capture(&ctx, &mut step)?;
    graph.replay()?;
    let detached = weight.data()?.detach();
    says(graph.replay().unwrap_err(), "shares its memory");
    assert_eq!(detached.to_vec()?, weight.data()?.to_vec()?);
    assert!(weight.data()?.copy_from(&Tensor::zeros(&[2, 3], &ctx)?).is_err());
    drop(detached);
    // New values in the same memory are fine, other memory is not.
    weight.data()?.copy_from(&Tensor::zeros(&[2, 3], &ctx)?)?;
    graph.replay()?;
    assert!(weight.data()?.to_vec()?.iter().all(|w| (w + 0.1).abs() < 1e-6), "{:?}", weight.data()?.to_vec()?);
    weight.set_data(Tensor::ones(&[2, 3], &ctx)?.array())?;
    says(graph.replay().unwrap_err(), "other memory");
    Ok(())
}

#[test]
fn a_rule_written_by_hand_updates_the_same_memory() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    // w ← w − 0.5·2w puts another array in w's place; inside a capture its values come to w's memory.
    let w = Tensor::full(&[3], 8.0, &ctx)?.attach_grad();
    let total = Tensor::zeros(&[3], &ctx)?;
    let step = || -> Result<()> {
        autograd::record(|| (&w * &w)?.mul(0.25))?.backward()?;
        w.sub_(&w.grad()?)?;
        total.set_array((&total + &w)?.array())
    };
    let (graph, ()) = Graph::capture(&ctx, step)?;
    for _ in 0..3 {
        graph.replay()?;
    }
    assert_eq!(w.to_vec()?, [1.0; 3]);
    assert_eq!(total.to_vec()?, [7.0; 3]);
    Ok(())
}

#[test]
fn a_graph_owns_its_memory() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let x = Tensor::full(&[1000], 2.0, &ctx)?;
    let other = Tensor::zeros(&[1000], &ctx)?;
    let before = ctx.memory()?;
    // `a` is dropped within the capture, and its block may serve `b`; `input` and `x` after it.
    let input = Tensor::full(&[1000], 5.0, &ctx)?;
    let (graph, y) = Graph::capture(&ctx, || {
        let a = (&x * &input)?;
        let b = (&a + 1.0)?;
        drop(a);
        b.square()?.add(&x)
    })?;
    drop(input);
    let e = y.to_vec().unwrap_err().to_string();
    assert!(e.contains("before the first Graph::replay"), "{e}");
    assert!((&y + 1.0).is_err());
    let settled = ctx.memory()?;
    for i in 0..10 {
        // Whoever takes memory now does not get the graph's.
        let noise: Vec<Tensor> = (0..8).map(|_| Tensor::full(&[1000], -1.0, &ctx)).collect::<Result<_>>()?;
        let during = ctx.memory()?;
        graph.replay()?;
        assert_eq!(ctx.memory()?, during, "a replay allocated");
        assert!(noise.iter().all(|n| n.to_vec().unwrap() == [-1.0; 1000]));
        assert_eq!(y.to_vec()?, [123.0; 1000], "replay {i}");
    }
    assert_eq!(ctx.memory()?.in_use, settled.in_use);
    assert!(settled.in_use > before.in_use);
    drop(graph);
    // The output outlives its graph; nothing else does.
    let block = ctx.memory()?.in_use - before.in_use;
    assert!((4000..=4096).contains(&block), "{block} bytes are left");
    other.copy_from(&y)?;
    drop(y);
    assert_eq!(ctx.memory()?.in_use, before.in_use);
    assert_eq!(other.to_vec()?, [123.0; 1000]);
    Ok(())
}

#[test]
fn other_threads_use_the_device_while_one_captures() -> Result<()> {
    let Some((ctx, _alone)) = gpu() else { return Ok(()) };
    let (begun, done) = (&Barrier::new(3), &Barrier::new(3));
    let leaked: &Mutex<Option<Tensor>> = &Mutex::new(None);
    thread::scope(|s| -> Result<()> {
        let capture = |value: f64| {
            move || -> Result<Vec<f32>> {
                let x = Tensor::full(&[64], value, &ctx)?;
                let (graph, y) = Graph::capture(&ctx, || {
                    let y = x.square()?;
                    if value == 2.0 {
                        *leaked.lock().unwrap() = Some(y.clone());
                    }
                    begun.wait();
                    done.wait();
                    &y + 1.0
                })?;
                graph.replay()?;
                y.to_vec()
            }
        };
        let two = s.spawn(capture(2.0));
        let three = s.spawn(capture(3.0));
        begun.wait();
        // Eager work of all kinds, reading back included.
        let eager = (0..20).try_for_each(|i| -> Result<()> {
            let x = Tensor::full(&[64], f64::from(i), &ctx)?;
            assert_eq!((&x + &Tensor::ones(&[64], &ctx)?)?.to_vec()?, [i as f32 + 1.0; 64]);
            ctx.synchronize()
        });
        let foreign = leaked.lock().unwrap().take().unwrap();
        let (read, used) = (foreign.to_vec(), &foreign + 1.0);
        done.wait();
        eager?;
        for e in [read.map(|_| ()).unwrap_err(), used.map(|_| ()).unwrap_err()] {
            assert!(e.to_string().contains("another thread"), "{e}");
        }
        assert_eq!(two.join().unwrap()?, [5.0; 64]);
        assert_eq!(three.join().unwrap()?, [10.0; 64]);
        Ok(())
    })?;
    // A graph may go to another thread.
    let x = Tensor::full(&[4], 3.0, &ctx)?;
    let (graph, y) = Graph::capture(&ctx, || x.square())?;
    thread::spawn(move || graph.replay()).join().unwrap()?;
    assert_eq!(y.to_vec()?, [9.0; 4]);
    Ok(())
}

#[test]
fn the_cpu_has_no_graphs_but_copies_in_place() -> Result<()> {
    // This test allocates on the GPU too, while others count.
    let _alone = gpu();
    let e = Graph::capture(&cpu(), || Ok(())).unwrap_err().to_string();
    assert!(e.contains("cpu(0)") && e.contains("GPU"), "{e}");
    for ctx in common::contexts() {
        let x = Tensor::zeros(&[2, 2], &ctx)?;
        let shared = x.detach();
        let source = Tensor::arange(0.0, 4.0, 1.0, &cpu())?.reshape(&[2, 2])?;
        x.copy_from(&source)?;
        x.copy_from(&x)?;
        assert_eq!(x.to_vec()?, [0., 1., 2., 3.], "{ctx}");
        assert_eq!(shared.to_vec()?, [0.; 4], "{ctx}: a clone keeps its values");
        assert!(x.copy_from(&Tensor::zeros(&[4], &ctx)?).is_err());
        assert!(x.copy_from(&source.cast(hadal::DType::F64)?).is_err());
        let image = Tensor::arange(0.0, 16.0, 1.0, &ctx)?.reshape(&[1, 2, 2, 4])?;
        let last = Tensor::new(Tensor::zeros(&[1, 2, 2, 4], &ctx)?.array().to_layout(hadal::Layout::ChannelsLast)?);
        last.copy_from(&image)?;
        assert_eq!((last.layout(), last.to_vec()?), (hadal::Layout::ChannelsLast, image.to_vec()?), "{ctx}");
    }
    Ok(())
}
