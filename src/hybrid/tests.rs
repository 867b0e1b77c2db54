//! Each rewrite where it fires and where it must not; nets replayed against eager ones; what cannot be replayed.

use std::collections::HashSet;

use super::{fuse, graph::Graph, trace};
use crate::{
    Array, DType, Error, Result, Tensor, autograd, check, cpu,
    cpu::parallel::Waiting,
    init,
    nn::{
        Activation, AvgPool2D, BatchNorm, Block, Conv2D, Dense, Dropout, Flatten, Forward, GlobalAvgPool2D, Hybridize, MaxPool2D,
        Sequential,
    },
    random,
};

fn input(shape: &[usize], seed: u64) -> Result<Tensor> {
    Ok(Tensor::new(check::cast(&check::random(shape, seed)?, DType::F32)?))
}

fn traced(x: &Tensor, off: &[&str], f: impl FnOnce() -> Result<Tensor>) -> Result<Graph> {
    let mut graph = trace::trace(&[x], f)?.map_err(|(reason, _)| Error::Autograd(reason))?;
    fuse::rewrite_without(&mut graph, &[x], &off.iter().copied().collect::<HashSet<_>>())?;
    Ok(graph)
}

fn names(graph: &Graph) -> Vec<&'static str> {
    graph.nodes.iter().flatten().map(|n| n.op.name()).collect()
}

/// The ops of `f` in training after fusion.
fn ops(x: &Tensor, off: &[&str], f: impl FnOnce() -> Result<Tensor>) -> Result<Vec<&'static str>> {
    Ok(names(&traced(x, off, || autograd::record(f))?))
}

fn norm() -> Result<BatchNorm> {
    let norm = BatchNorm::new();
    norm.initialize(init::One, &cpu())?;
    Ok(norm)
}

#[test]
fn bn_relu_fires_where_nothing_else_reads_the_normalized_values() -> Result<()> {
    let (x, bn) = (input(&[2, 3, 4, 4], 1)?, norm()?);
    assert_eq!(ops(&x, &[], || bn.forward(&x)?.relu())?, ["batch_norm_relu"]);
    assert_eq!(names(&traced(&x, &[], || bn.forward(&x)?.relu())?), ["batch_norm_inference_relu"]);
    assert_eq!(ops(&x, &["bn_relu"], || bn.forward(&x)?.relu())?, ["batch_norm", "relu"], "switched off");
    assert_eq!(ops(&x, &[], || bn.forward(&x)?.tanh())?, ["batch_norm", "tanh"], "another function");
    let twice = || {
        let y = bn.forward(&x)?;
        y.relu()?.mul(&y)
    };
    assert_eq!(ops(&x, &[], twice)?, ["batch_norm", "relu", "mul"], "two uses");
    Ok(())
}

/// A thread that waits for the end of a loop may take up a task of the user's, which may compute, draw and trace.
#[test]
fn what_a_waiting_thread_takes_up_is_no_part_of_the_block() -> Result<()> {
    let (x, net) = (input(&[2, 3], 1)?, Sequential::new().add(Dense::new(3)));
    net.initialize(init::One, &cpu())?;
    net.hybridize();
    let graph = traced(&x, &[], || {
        let y = x.relu()?;
        let waiting = Waiting::new();
        x.exp()?.sum(&[])?;
        Tensor::uniform(0.0, 1.0, &[2], &cpu())?;
        net.forward(&x)?;
        drop(waiting);
        y.tanh()
    })?;
    assert_eq!(names(&graph), ["relu", "tanh"]);
    assert!(!trace::is_active());
    // Also where that task panics.
    let graph = traced(&x, &[], || {
        let taken = std::panic::catch_unwind(|| {
            let _waiting = Waiting::new();
            panic!("on purpose");
        });
        assert!(taken.is_err());
        x.tanh()
    })?;
    assert_eq!(names(&graph), ["tanh"]);
    Ok(())
}

#[test]
fn bn_add_relu_fires_for_a_residual_of_the_same_shape() -> Result<()> {
    let (x, bn, other) = (input(&[2, 3, 4, 4], 1)?, norm()?, norm()?);
    assert_eq!(ops(&x, &[], || (bn.forward(&x)? + &x)?.relu())?, ["batch_norm_relu"]);
    assert_eq!(ops(&x, &[], || (&x + bn.forward(&x)?)?.relu())?, ["batch_norm_relu"]);
    // The later one of two takes the sum; the other one is the residual.
    let both = || (other.forward(&x)? + bn.forward(&x)?)?.relu();
    assert_eq!(ops(&x, &[], both)?, ["batch_norm", "batch_norm_relu"]);
    let row = input(&[1, 3, 1, 1], 2)?;
    assert_eq!(ops(&x, &[], || (bn.forward(&x)? + &row)?.relu())?, ["batch_norm", "add", "relu"], "a residual that broadcasts");
    assert_eq!(ops(&x, &[], || (bn.forward(&x)? - &x)?.relu())?, ["batch_norm", "sub", "relu"]);
    let sum_is_used = || {
        let sum = (bn.forward(&x)? + &x)?;
        sum.relu()?.add(&sum)
    };
    assert_eq!(ops(&x, &[], sum_is_used)?, ["batch_norm", "add", "relu", "add"]);
    Ok(())
}

#[test]
fn conv_dual_fires_for_the_entry_of_a_residual_block() -> Result<()> {
    let x = input(&[2, 3, 6, 6], 1)?;
    let conv = |channels, kernel, stride, padding| -> Result<Conv2D> {
        let conv = Conv2D::new(channels, kernel).stride(stride).padding(padding);
        conv.initialize(init::Xavier::new(), &cpu())?;
        conv.forward(&x)?;
        Ok(conv)
    };
    let (main, short) = (conv(4, 3, 2, 1)?, conv(4, 1, 2, 0)?);
    assert_eq!(ops(&x, &[], || main.forward(&x)?.relu()? + short.forward(&x)?)?, ["conv2d_pair", "relu", "add"]);
    let other = x.square()?;
    assert_eq!(ops(&x, &[], || main.forward(&x)? + short.forward(&other)?)?, ["conv2d", "conv2d", "add"], "two inputs");
    let (one, wide, more) = (conv(4, 1, 1, 0)?, conv(4, 3, 1, 1)?, conv(4, 1, 1, 0)?);
    assert_eq!(ops(&x, &[], || one.forward(&x)? + more.forward(&x)?)?.len(), 3, "two 1x1");
    assert_eq!(ops(&x, &[], || wide.forward(&x)? + one.forward(&x)?)?, ["conv2d_pair", "add"]);
    Ok(())
}

#[test]
fn dense_activation_fires_for_what_a_product_ends_with() -> Result<()> {
    let (x, dense) = (input(&[2, 3], 1)?, Dense::new(4));
    dense.initialize(init::Xavier::new(), &cpu())?;
    for f in [Tensor::relu, Tensor::sigmoid, Tensor::tanh] {
        assert_eq!(ops(&x, &[], || f(&dense.forward(&x)?))?, ["dense"]);
        assert_eq!(traced(&x, &[], || f(&dense.forward(&x)?))?.nodes.iter().flatten().count(), 1);
    }
    assert_eq!(ops(&x, &[], || dense.forward(&x)?.gelu())?, ["dense", "gelu"]);
    Ok(())
}

/// Two copies of a net, one of them hybridized, trained side by side on batches of changing size: the same losses, gradients and statistics, bit
/// for bit where no arithmetic is reordered.
fn side_by_side(make: &dyn Fn() -> Sequential, shape: &[usize], seed: u64) -> Result<String> {
    let net = || -> Result<Sequential> {
        random::seed(seed);
        let net = make();
        net.initialize(init::Xavier::new(), &cpu())?;
        Ok(net)
    };
    let (eager, hybrid) = (net()?, net()?);
    hybrid.hybridize_as(Hybridize::Strict);
    for step in 0..6 {
        let mut shape = shape.to_vec();
        shape[0] += step % 2;
        let x = input(&shape, 10 * seed + step as u64)?;
        let pass = |net: &Sequential| -> Result<Vec<Vec<f32>>> {
            random::seed(100 + step as u64);
            let y = autograd::record(|| net.forward(&x))?;
            autograd::record(|| y.square())?.backward().or_else(|_| y.backward())?;
            let mut all = vec![y.to_vec()?, net.forward(&x)?.to_vec()?, vec![random::state().1 as f32]];
            for (_, p) in net.collect() {
                all.push(p.data()?.to_vec()?);
                if p.is_trainable() {
                    let grad = p.grad()?;
                    all.push(grad.to_vec()?);
                    p.data()?.update(|w| w.copy_from(&(p_step(w, &grad.array())?)))?;
                }
            }
            Ok(all)
        };
        let (a, b) = (pass(&eager)?, pass(&hybrid)?);
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            let scale = a.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
            let worst = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(
                a.len() == b.len() && worst <= 2e-5 * scale,
                "seed {seed}, step {step}, array {i}: {worst} of {scale}\n{eager}"
            );
        }
    }
    Ok(hybrid.explain())
}

/// w − 0.01 dw
fn p_step(w: &Array, dw: &Array) -> Result<Array> {
    Ok(Tensor::new(w.clone()).sub(&Tensor::new(dw.clone()).mul(0.01)?)?.array())
}

#[test]
fn random_nets_are_the_same_hybridized() -> Result<()> {
    let nets: u64 = std::env::var("HADAL_HYBRID_NETS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut fused = 0;
    for seed in 0..nets {
        let build = || {
            // A generator of its own, so that both copies have the same layers.
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
            let mut pick = |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % n
            };
            let mut net = Sequential::new();
            for _ in 0..1 + pick(5) {
                match pick(9) {
                    0 => net.push(Conv2D::new(1 + pick(5) as usize, 3).padding(1)),
                    1 => net.push(Conv2D::new(1 + pick(5) as usize, 1).relu()),
                    2 => net.push(BatchNorm::new()),
                    3 => net.push(Activation::relu()),
                    4 => net.push(crate::models::Residual::new(4, true, 1 + pick(2) as usize)),
                    5 => net.push(MaxPool2D::new(2).stride(1)),
                    6 => net.push(Dropout::new(0.3)),
                    7 => net.push(Sequential::new().add(BatchNorm::new()).add(Activation::relu()).add(Conv2D::new(3, 1))),
                    _ => net.push(AvgPool2D::new(2).stride(1)),
                }
            }
            net.push(BatchNorm::new());
            net.push(Activation::relu());
            net.push(GlobalAvgPool2D::new());
            net.push(Flatten::new());
            net.push(Dense::new(3));
            net.push(Activation::tanh());
            net
        };
        // Rewrites stand in brackets behind the ops.
        fused += side_by_side(&build, &[3, 2, 9, 8], seed)?.matches("  [").count();
    }
    assert!(fused > 0);
    Ok(())
}

crate::block! {
    struct Odd { kind: usize, dense: Dense }
}

impl Forward for Odd {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.dense.forward(x)?;
        match self.kind {
            0 if y.sum(&[])?.item()? > 0.0 => y.relu(),
            1 => y.add(&Tensor::uniform(0.0, 1.0, &y.shape(), &cpu())?),
            2 => y.add(&Tensor::from_vec(vec![1f32, 2.], &[2], &cpu())?),
            3 => {
                let z = Tensor::zeros(&[2], &cpu())?;
                z.copy_from(&Tensor::ones(&[2], &cpu())?)?;
                y.add(&z)
            }
            4 => y.add(&y.detach()),
            5 => y.add(&Tensor::ones(&[2], &cpu())?),
            _ => Ok(y),
        }
    }
}

#[test]
fn what_depends_on_values_stays_eager_or_fails_where_that_was_asked_for() -> Result<()> {
    let x = input(&[4, 3], 7)?;
    for kind in 0..7 {
        let net = || -> Result<Sequential> {
            random::seed(3);
            let net = Sequential::new().add(Odd { kind, dense: Dense::new(2) });
            net.initialize(init::Xavier::new(), &cpu())?;
            Ok(net)
        };
        let (plain, lenient, strict) = (net()?, net()?, net()?);
        lenient.hybridize();
        strict.hybridize_as(Hybridize::Strict);
        let refused = kind < 4;
        for _ in 0..3 {
            let run = |net: &Sequential| -> Result<(Vec<f32>, Vec<f32>)> {
                random::seed(5);
                let y = autograd::record(|| net.forward(&x))?;
                y.backward()?;
                Ok((y.to_vec()?, net.parameters()[0].grad()?.to_vec()?))
            };
            assert_eq!(run(&plain)?, run(&lenient)?, "kind {kind}");
            match run(&strict) {
                Ok(got) => assert!(!refused && got == run(&plain)?, "kind {kind}"),
                Err(e) => assert!(refused && e.to_string().contains("cannot be hybridized: "), "kind {kind}: {e}"),
            }
        }
    }
    Ok(())
}

#[test]
fn a_graph_follows_its_parameters() -> Result<()> {
    let net = Sequential::new().add(Dense::new(2)).add(Activation::relu());
    net.initialize(init::One, &cpu())?;
    net.hybridize_as(Hybridize::Strict);
    let x = Tensor::ones(&[1, 3], &cpu())?;
    for _ in 0..2 {
        assert_eq!(net.forward(&x)?.to_vec()?, [3., 3.]);
    }
    let weight = &net.parameters()[0];
    weight.set_data(Array::full(&[2, 3], 2.0, DType::F32, &cpu())?)?;
    assert_eq!(net.forward(&x)?.to_vec()?, [6., 6.]);
    net.reinitialize(init::Constant(0.5), &cpu())?;
    assert_eq!(net.forward(&x)?.to_vec()?, [1.5, 1.5]);
    // Frozen: nothing is recorded for it.
    weight.set_grad_req(autograd::GradReq::Null);
    net.parameters().iter().for_each(|p| p.set_grad_req(autograd::GradReq::Null));
    assert!(autograd::record(|| net.forward(&x))?.backward().is_err());
    net.cast(DType::F64)?;
    assert_eq!(net.forward(&x.cast(DType::F64)?)?.dtype(), DType::F64);
    assert!(net.forward(&x).is_err());
    Ok(())
}

#[test]
fn an_error_in_a_replay_names_the_layer() -> Result<()> {
    let net = Sequential::new().add(Dense::new(2)).add(Sequential::new().add(Dense::new(3)));
    net.initialize(init::One, &cpu())?;
    net.hybridize();
    let x = Tensor::ones(&[1, 3], &cpu())?;
    net.forward(&x)?;
    let graph = net.explain();
    assert!(graph.contains("net[0]\n") && graph.contains("net[1][0]\n"), "{graph}");
    Ok(())
}

/// A net that begins with a stem which is one op at this size is captured: its running statistics are written in place, so no second
/// handle to them may be left.
#[test]
fn a_fused_stem_is_captured() -> Result<()> {
    let ctx = match crate::gpu(0) {
        Ok(ctx) => ctx,
        Err(e) if std::env::var("HADAL_REQUIRE_GPU").is_ok_and(|v| v == "1") => return Err(e),
        Err(_) => return Ok(()),
    };
    let net = Sequential::new()
        .add(Conv2D::new(32, 7).stride(2).padding(3))
        .add(BatchNorm::new())
        .add(Activation::relu())
        .add(MaxPool2D::new(3).stride(2).padding(1))
        .add(Flatten::new())
        .add(Dense::new(10));
    net.initialize(init::Xavier::new(), &ctx)?;
    net.hybridize();
    const BATCH: usize = 8;
    let x = Tensor::uniform(0.0, 1.0, &[BATCH, 1, 48, 48], &ctx)?;
    let x = Tensor::new(x.array().to_layout(crate::Layout::ChannelsLast)?);
    let y = Tensor::uniform(0.0, 10.0, &[BATCH], &ctx)?.cast(DType::I64)?;
    let mut trainer = crate::Trainer::new(net.parameters(), crate::optim::Sgd::new(0.1));
    let mut step = || -> Result<()> {
        let l = autograd::record(|| crate::loss::SoftmaxCrossEntropy::new().forward(&net.forward(&x)?, &y))?;
        trainer.backward(&l)?;
        trainer.step(BATCH)
    };
    step()?;
    assert!(net.explain().contains("stem_block"), "at this size the stem is to be one op: {}", net.explain());
    let (graph, ()) = crate::cuda::Graph::capture(&ctx, &mut step)?;
    graph.replay()?;
    step()?;
    ctx.synchronize()
}
