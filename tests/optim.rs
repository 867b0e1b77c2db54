//! Optimizers: values by hand, state, master copies, norms; on every context that is here.

mod common;

use hadal::{
    Array, Context, DType, Layout, Result, Tensor, autograd, check, cpu,
    optim::{Adam, Convention, Lars, Optimizer, Sgd, Step, Update, clip_global_norm, clip_grad_norm},
};

fn array(v: &[f64], dtype: DType, ctx: &Context) -> Array {
    check::cast(&Array::from_vec(v.to_vec(), &[v.len()], &cpu()).unwrap(), dtype).unwrap().to_context(ctx).unwrap()
}

/// w after updates with these gradients, one weight.
fn run(mut o: impl Optimizer, w: f64, steps: &[(f64, f64)], step: Step, ctx: &Context) -> Result<Vec<f64>> {
    let mut w = array(&[w], DType::F64, ctx);
    let mut out = Vec::new();
    for &(lr, g) in steps {
        o.set_learning_rate(lr);
        assert_eq!(o.learning_rate(), lr);
        o.update(0, &mut w, &array(&[g], DType::F64, ctx), &step)?;
        out.push(w.item()?);
    }
    Ok(out)
}

#[track_caller]
fn close(a: &[f64], b: &[f64]) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12), "{a:?} against {b:?}");
}

#[test]
fn sgd_by_hand() -> Result<()> {
    for ctx in common::contexts() {
        let (one, steps) = (Step::default(), [(0.5, 1.0), (0.25, 2.0)]);
        close(&run(Sgd::new(9.0), 1.0, &steps, one, &ctx)?, &[0.5, 0.0]);
        // g = 1 + 0.5·1 = 1.5, then 2 + 0.5·0.25
        close(&run(Sgd::new(9.0).weight_decay(0.5), 1.0, &steps, one, &ctx)?, &[0.25, -0.28125]);
        // m = −0.5, then 0.5·−0.5 − 0.25·2 = −0.75
        let sgd = || Sgd::new(9.0).momentum(0.5);
        close(&run(sgd(), 1.0, &steps, one, &ctx)?, &[0.5, -0.25]);
        // m = 1, then 0.5 + 2 = 2.5
        close(&run(sgd().convention(Convention::PyTorch), 1.0, &steps, one, &ctx)?, &[0.5, -0.125]);
        // Nesterov: m as before, w moves by 0.5·m − lr·g and by −lr·(g + 0.5·m)
        close(&run(sgd().nesterov(true), 1.0, &steps, one, &ctx)?, &[0.25, -0.625]);
        close(&run(sgd().nesterov(true).convention(Convention::PyTorch), 1.0, &steps, one, &ctx)?, &[0.25, -0.5625]);
        // The gradient is halved, then limited; rates and decay have factors of their own.
        let step = Step { rescale: 0.5, lr_mult: 2.0, wd_mult: 0.5 };
        let sgd = Sgd::new(9.0).weight_decay(1.0).clip_gradient(0.75);
        // g = 0.5 + 0.5·1 at lr 1; then 0.75 + 0.5·0 at lr 0.5
        close(&run(sgd, 1.0, &steps, step, &ctx)?, &[0.0, -0.375]);
    }
    Ok(())
}

#[test]
fn adam_by_hand() -> Result<()> {
    for ctx in common::contexts() {
        let adam = || Adam::new(9.0).betas(0.5, 0.75).eps(1.0);
        let steps = [(0.5, 2.0)];
        // m = 1, v = 1; MXNet: 0.5·√0.25/0.5 · 1/(1 + 1); PyTorch: 0.5/0.5 · 1/(√(1/0.25) + 1)
        close(&run(adam(), 1.0, &steps, Step::default(), &ctx)?, &[0.75]);
        close(&run(adam().convention(Convention::PyTorch), 1.0, &steps, Step::default(), &ctx)?, &[1.0 - 1.0 / 3.0]);
        // AdamW: first w ← (1 − 0.5·0.4)·1
        close(&run(adam().decoupled(true).weight_decay(0.4), 1.0, &steps, Step::default(), &ctx)?, &[0.55]);
        // Adam: g = 1 + 1·1 = 2 again
        close(&run(adam().weight_decay(1.0), 1.0, &[(0.5, 1.0)], Step::default(), &ctx)?, &[0.75]);
        // Second step: m = 0.5 + 1 = 1.5, v = 0.75 + 1 = 1.75; corrections 0.75 and 0.4375
        let second = 0.75 - 0.5 * 0.4375f64.sqrt() / 0.75 * 1.5 / (1.75f64.sqrt() + 1.0);
        close(&run(adam(), 1.0, &[(0.5, 2.0), (0.5, 2.0)], Step::default(), &ctx)?, &[0.75, second]);
    }
    Ok(())
}

#[test]
fn lars_by_hand() -> Result<()> {
    for ctx in common::contexts() {
        let lars = || Lars::new(9.0).trust(0.25).vectors(true);
        let steps = [(0.5, 2.0), (1.0, -4.0)];
        // g = 2·0.5 = 1, λ = 0.25·1/1, m = 0.5·0.25·1; then g = −2, λ = 0.25·0.875/2, m = 0.5·0.125 − λ·2
        let step = Step { rescale: 0.5, ..Step::default() };
        close(&run(lars().momentum(0.5), 1.0, &steps, step, &ctx)?, &[0.875, 1.03125]);
        // g = 2 + 1·1 at λ = 0.25·1/(2 + 1): the move is 0.5·0.25, then the decay's factor is 0
        let decay = || lars().momentum(0.0).weight_decay(1.0);
        close(&run(decay(), 1.0, &steps[..1], Step::default(), &ctx)?, &[0.875]);
        let none = Step { wd_mult: 0.0, lr_mult: 2.0, ..Step::default() };
        close(&run(decay(), 1.0, &steps[..1], none, &ctx)?, &[0.75]);
        // λ = 1 where there is nothing to compare, and for vectors unless asked for.
        close(&run(lars().momentum(0.0), 0.0, &steps[..1], Step::default(), &ctx)?, &[-1.0]);
        close(&run(lars().momentum(0.0), 1.0, &[(0.5, 0.0)], Step::default(), &ctx)?, &[1.0]);
        close(&run(lars().vectors(false).momentum(0.0), 1.0, &steps[..1], Step::default(), &ctx)?, &[0.0]);
        // A norm over several blocks: a layer moves by lr·η of its norm.
        let w = check::random(&[3, 4099], 7)?.to_context(&ctx)?;
        let mut moved = w.clone();
        lars().momentum(0.0).update(0, &mut moved, &check::random(&[3, 4099], 8)?.to_context(&ctx)?, &Step::default())?;
        let (w, moved) = (w.to_f64_vec()?, moved.to_f64_vec()?);
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let way: Vec<f64> = w.iter().zip(&moved).map(|(a, b)| a - b).collect();
        assert!((norm(&way) / norm(&w) / (9.0 * 0.25) - 1.0).abs() < 1e-9);
    }
    Ok(())
}

/// Several updates of two parameters.
fn train(o: &mut dyn Optimizer, w: &mut [Array; 2], steps: std::ops::Range<u64>, ctx: &Context) -> Result<()> {
    for t in steps {
        for (i, w) in w.iter_mut().enumerate() {
            let g = check::cast(&check::random(w.shape(), 10 * t + i as u64)?, w.dtype())?.to_context(ctx)?;
            o.update(i, w, &g, &Step { rescale: 0.5, ..Step::default() })?;
        }
    }
    Ok(())
}

fn parameters(dtype: DType, ctx: &Context) -> Result<[Array; 2]> {
    let make = |shape: &[usize], seed| check::cast(&check::random(shape, seed)?, dtype)?.to_context(ctx);
    Ok([make(&[2, 3, 3, 5], 1)?.to_layout(Layout::ChannelsLast)?, make(&[783], 2)?])
}

type Make = fn() -> Box<dyn Optimizer>;

const RULES: &[Make] = &[
    || Box::new(Sgd::new(0.1)),
    || Box::new(Sgd::new(0.1).momentum(0.9).weight_decay(0.01)),
    || Box::new(Sgd::new(0.1).momentum(0.9).nesterov(true).convention(Convention::PyTorch).clip_gradient(0.2)),
    || Box::new(Adam::new(0.01).weight_decay(0.01)),
    || Box::new(Adam::adamw(0.01)),
    || Box::new(Lars::new(0.5).trust(0.1).weight_decay(0.01)),
    || Box::new(Lars::new(0.5).trust(0.1).momentum(0.0).vectors(true)),
];

#[test]
fn all_dtypes_and_contexts_agree() -> Result<()> {
    for make in RULES {
        let mut exact = parameters(DType::F64, &cpu())?;
        train(&mut *make(), &mut exact, 0..5, &cpu())?;
        for ctx in common::contexts() {
            // The halves stay near since a master copy in f32 is what moves; gradients are rounded to them, though.
            for (dtype, bound) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::F16, 5e-3), (DType::BF16, 4e-2)] {
                let mut w = parameters(dtype, &ctx)?;
                let shared = w.clone();
                train(&mut *make(), &mut w, 0..5, &ctx)?;
                for (i, (w, exact)) in w.iter().zip(&exact).enumerate() {
                    let d = check::difference(w, exact)?;
                    assert!(d.relative < bound, "{ctx} {dtype} {i}: {d}");
                }
                assert_eq!(w[0].layout(), Layout::ChannelsLast);
                // Whoever shared the memory does not see the update.
                assert_eq!(shared[1].to_f64_vec()?, parameters(dtype, &ctx)?[1].to_f64_vec()?);
            }
        }
    }
    Ok(())
}

/// Parameters of all dtypes on all contexts, of odd sizes, in both layouts, one without elements.
fn mixture() -> Result<Vec<Array>> {
    let mut all = Vec::new();
    for ctx in common::contexts() {
        for dtype in [DType::F32, DType::BF16, DType::F64, DType::F16] {
            for shape in [&[3][..], &[4097], &[0, 4], &[2, 3, 3, 5], &[91, 101], &[1], &[4096], &[2, 3, 50, 53]] {
                let w = check::cast(&check::random(shape, all.len() as u64)?, dtype)?.to_context(&ctx)?;
                all.push(if all.len() % 16 > 7 && shape.len() == 4 { w.to_layout(Layout::ChannelsLast)? } else { w });
            }
        }
    }
    Ok(all)
}

#[test]
fn all_at_once_has_the_bits_of_one_by_one() -> Result<()> {
    for make in RULES {
        let (mut one, mut all) = (make(), make());
        let (mut a, mut b) = (mixture()?, mixture()?);
        for t in 0..4 {
            one.set_learning_rate(0.1 / (t + 1) as f64);
            all.set_learning_rate(0.1 / (t + 1) as f64);
            let grads = a
                .iter()
                .enumerate()
                .map(|(i, w)| check::cast(&check::random(w.shape(), 1000 * t + i as u64)?, w.dtype())?.to_context(&w.context()));
            let grads = grads.collect::<Result<Vec<_>>>()?;
            let step = |i: usize| Step { rescale: 0.5, lr_mult: 1.0 + (i % 3) as f64, wd_mult: (i % 2) as f64 };
            // The last two are left out at first: their counts differ from the others'.
            let n = if t == 0 { a.len() - 2 } else { a.len() };
            let mut updates = Vec::new();
            for (i, ((a, b), grad)) in a.iter_mut().zip(&mut b).zip(&grads).take(n).enumerate() {
                one.update(i, a, grad, &step(i))?;
                updates.push(Update { index: i, w: b, grad, step: step(i) });
            }
            // In another order, too.
            if t == 2 {
                updates.reverse();
            }
            all.update_all(&mut updates)?;
        }
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            assert_eq!(a.to_f64_vec()?, b.to_f64_vec()?, "{i}: {a:?}");
            assert_eq!((a.layout(), a.context()), (b.layout(), b.context()));
        }
        for ((name, a), (other, b)) in one.state()?.iter().zip(&all.state()?) {
            assert_eq!((name, a.to_f64_vec()?), (other, b.to_f64_vec()?));
        }
        let (mut w, mut other) = (array(&[1.0], DType::F32, &cpu()), array(&[1.0], DType::F32, &cpu()));
        let grad = array(&[1.0], DType::F32, &cpu());
        let twice = [&mut w, &mut other].map(|w| Update { index: 0, w, grad: &grad, step: Step::default() });
        let text = make().update_all(&mut { twice }).unwrap_err().to_string();
        assert!(text.contains("parameter 0 is to be updated twice"), "{text}");
    }
    Ok(())
}

#[test]
fn a_restored_state_goes_on_as_before() -> Result<()> {
    for make in RULES {
        for ctx in common::contexts() {
            for dtype in [DType::F32, DType::BF16] {
                let mut a = make();
                let mut w = parameters(dtype, &ctx)?;
                train(&mut *a, &mut w, 0..3, &ctx)?;
                // The state has been to a file: on the host, row-major.
                let to_host = |(name, a): (String, Array)| -> Result<(String, Array)> {
                    Ok((name, a.to_context(&cpu())?.to_layout(Layout::RowMajor)?))
                };
                let saved = a.state()?.into_iter().map(to_host).collect::<Result<Vec<_>>>()?;
                let mut b = make();
                b.load_state(&saved)?;
                let mut copy = w.clone();
                train(&mut *a, &mut w, 3..6, &ctx)?;
                train(&mut *b, &mut copy, 3..6, &ctx)?;
                for (x, y) in w.iter().zip(&copy) {
                    assert_eq!(x.to_f64_vec()?, y.to_f64_vec()?);
                }
            }
        }
    }
    let mut sgd = Sgd::new(0.1).momentum(0.9);
    train(&mut sgd, &mut parameters(DType::F32, &cpu())?, 0..2, &cpu())?;
    let names: Vec<String> = sgd.state()?.into_iter().map(|(n, _)| n).collect();
    let settings =
        ["sgd.momentum", "sgd.weight_decay", "sgd.clip_gradient", "sgd.nesterov", "sgd.convention", "sgd.learning_rate"];
    assert_eq!(names, [&["0.t", "0.mom", "1.t", "1.mom"][..], &settings].concat());
    assert_eq!(sgd.state()?[0].1.item()?, 2.0);
    Ok(())
}

#[test]
fn misfits_are_errors() -> Result<()> {
    for ctx in common::contexts() {
        let (mut sgd, step) = (Sgd::new(0.1).momentum(0.9), Step::default());
        let mut w = Array::zeros(&[3], DType::F32, &ctx)?;
        let mut says = |w: &mut Array, g: &Array, part: &str| {
            let text = sgd.update(0, w, g, &step).unwrap_err().to_string();
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        };
        says(&mut w, &Array::zeros(&[4], DType::F32, &ctx)?, "(shapes (3,), (4,))");
        says(&mut w, &Array::zeros(&[3], DType::F64, &ctx)?, "sgd: f64");
        says(&mut Array::zeros(&[3], DType::I64, &ctx)?, &Array::zeros(&[3], DType::I64, &ctx)?, "parameters need a float type");
        sgd.update(0, &mut w, &Array::zeros(&[3], DType::F32, &ctx)?, &step)?;
        let mut other = Array::zeros(&[2], DType::F32, &ctx)?;
        let text = sgd.update(0, &mut other.clone(), &other, &step).unwrap_err().to_string();
        assert!(text.contains("the state of parameter 0"), "{text}");
        sgd.update(1, &mut other, &Array::zeros(&[2], DType::F32, &ctx)?, &step)?;
        // Empty parameters are fine.
        let mut empty = Array::zeros(&[0, 4], DType::F32, &ctx)?;
        sgd.update(2, &mut empty.clone(), &empty, &step)?;
        Adam::new(0.1).update(2, &mut empty.clone(), &empty, &step)?;
        Lars::new(0.1).update(2, &mut empty.clone(), &empty, &step)?;
        clip_global_norm(std::slice::from_mut(&mut empty), 1.0)?;
        for name in ["mom", "x.mom", "0.v", "-1.mom"] {
            let text = sgd.load_state(&[(name.into(), w.clone())]).unwrap_err().to_string();
            assert!(text.contains("<index>.{mom, master}"), "{text}");
        }
    }
    Ok(())
}

#[test]
fn the_global_norm_is_limited() -> Result<()> {
    for ctx in common::contexts() {
        for dtype in [DType::F32, DType::F64, DType::F16] {
            let make = || vec![array(&[3.0, 0.0], dtype, &ctx), array(&[4.0], dtype, &ctx), array(&[], dtype, &ctx)];
            let mut a = make();
            assert_eq!(clip_global_norm(&mut a, 2.5)?.item()?, 5.0);
            assert!((a[0].to_f64_vec()?[0] - 1.5).abs() < 1e-6 && (a[1].item()? - 2.0).abs() < 1e-6);
            let mut a = make();
            assert_eq!(clip_global_norm(&mut a, 5.1)?.item()?, 5.0);
            assert_eq!(a[0].to_f64_vec()?, [3.0, 0.0]);
        }
        // Longer than a chunk, twice with the same bits.
        let long = check::cast(&check::random(&[10_001], 1)?, DType::F32)?;
        let exact = long.to_f64_vec()?.iter().map(|x| x * x).sum::<f64>().sqrt();
        let norm = |a: &Array| clip_global_norm(&mut [a.to_context(&ctx)?], 1.0)?.item();
        assert!((norm(&long)? / exact - 1.0).abs() < 1e-7);
        assert_eq!(norm(&long)?, norm(&long)?);

        let x = Tensor::from_vec(vec![3f32, 4.], &[2], &ctx)?.attach_grad();
        let unused = Tensor::ones(&[5], &ctx)?.attach_grad();
        autograd::record(|| x.square())?.backward()?;
        assert_eq!(clip_grad_norm(&[x.clone(), unused.clone()], 1.0)?.item()?, 10.0);
        let g = x.grad()?.to_vec()?;
        assert!((g[0] - 0.6).abs() < 1e-6 && (g[1] - 0.8).abs() < 1e-6, "{g:?}");
        assert_eq!(unused.grad()?.to_vec()?, [0.; 5]);
        for bad in [0.0, -1.0, f64::NAN] {
            assert!(clip_global_norm(&mut [x.array()], bad).unwrap_err().to_string().contains("has to be positive"));
        }
        assert!(clip_global_norm(&mut [], 1.0).is_err());
        assert!(clip_grad_norm(&[Tensor::ones(&[1], &ctx)?], 1.0).is_err());
    }
    Ok(())
}
