//! The tape: flags, accumulation, freeing, errors.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hadal::{
    Array, Error, Result, Tensor,
    autograd::{self, GradReq, Op, Saved, apply1},
    check, cpu,
};

fn x() -> Result<Tensor> {
    Ok(Tensor::from_vec(vec![1f32, -2., 3.], &[3], &cpu())?.attach_grad())
}

#[test]
fn flags_are_set_inside_and_restored_after_a_panic() {
    assert!(!autograd::is_recording() && !autograd::is_training());
    autograd::record(|| {
        assert!(autograd::is_recording() && autograd::is_training());
        autograd::pause(|| assert!(!autograd::is_recording() && !autograd::is_training()));
        autograd::predict_mode(|| assert!(autograd::is_recording() && !autograd::is_training()));
        assert!(autograd::is_recording() && autograd::is_training());
    });
    let _ = std::panic::catch_unwind(|| autograd::record(|| panic!("on purpose")));
    assert!(!autograd::is_recording() && !autograd::is_training());
    autograd::train_mode(|| assert!(!autograd::is_recording() && autograd::is_training()));
}

#[test]
fn gradients_add_up_where_a_tensor_is_used_twice() -> Result<()> {
    let x = x()?;
    // y = x·x + 3x, dy/dx = 2x + 3
    let y = autograd::record(|| (&x * &x)? + x.affine(3.0, 0.0)?)?;
    y.backward()?;
    assert_eq!(x.grad()?.to_vec()?, [5., -1., 9.]);
    Ok(())
}

#[test]
fn grad_req_writes_adds_or_does_nothing() -> Result<()> {
    for (req, want) in [(GradReq::Write, [2., -4., 6.]), (GradReq::Add, [4., -8., 12.])] {
        let x = x()?.attach_grad_with(req);
        for _ in 0..2 {
            autograd::record(|| x.square())?.backward()?;
        }
        assert_eq!(x.grad()?.to_vec()?, want, "{req:?}");
        x.zero_grad()?;
        assert_eq!(x.grad()?.to_vec()?, [0.; 3]);
    }
    let frozen = x()?.attach_grad_with(GradReq::Null);
    let e = autograd::record(|| frozen.square())?.backward().unwrap_err();
    assert!(e.to_string().contains("leads to no variable"), "{e}");
    Ok(())
}

#[test]
fn what_is_paused_or_detached_is_a_constant() -> Result<()> {
    let x = x()?;
    let y = autograd::record(|| &x * autograd::pause(|| x.square())?)?;
    y.backward()?;
    assert_eq!(x.grad()?.to_vec()?, [1., 4., 9.]);
    let y = autograd::record(|| &x * x.detach())?;
    y.backward()?;
    assert_eq!(x.grad()?.to_vec()?, [1., -2., 3.]);
    Ok(())
}

#[test]
fn a_second_backward_needs_retain() -> Result<()> {
    let x = x()?;
    let y = autograd::record(|| x.exp())?;
    y.backward_retain()?;
    let first = x.grad()?.to_vec()?;
    y.backward()?;
    assert_eq!(first, x.grad()?.to_vec()?);
    let e = y.backward().unwrap_err();
    assert!(matches!(e, Error::Autograd(_)) && e.to_string().contains("exp"), "{e}");
    Ok(())
}

#[test]
fn a_head_gradient_weighs_the_outputs() -> Result<()> {
    let x = x()?;
    let y = autograd::record(|| x.square())?;
    y.backward_from(&Tensor::from_vec(vec![1f32, 0., -1.], &[3], &cpu())?, false)?;
    assert_eq!(x.grad()?.to_vec()?, [2., 0., -6.]);
    let y = autograd::record(|| x.square())?;
    assert!(matches!(y.backward_from(&Tensor::ones(&[4], &cpu())?, false), Err(Error::Shape { .. })));
    Ok(())
}

#[test]
fn tensors_without_attach_grad_have_no_gradient() -> Result<()> {
    let e = Tensor::ones(&[2], &cpu())?.grad().unwrap_err();
    assert!(e.to_string().contains("attach_grad"), "{e}");
    Ok(())
}

#[test]
fn results_on_the_tape_cannot_be_changed_in_place() -> Result<()> {
    let x = x()?;
    let y = autograd::record(|| x.square())?;
    assert!(y.set_array(y.array()).is_err());
    assert!(x.set_array(Array::zeros(&[2], hadal::DType::F32, &cpu())?).is_err());
    Ok(())
}

#[test]
fn a_long_chain_is_freed_without_overflowing_the_stack() -> Result<()> {
    let x = x()?;
    let mut y = x.clone();
    for _ in 0..100_000 {
        y = autograd::record(|| y.neg())?;
    }
    drop(y);
    let mut y = x.clone();
    for _ in 0..50_000 {
        y = autograd::record(|| y.neg())?;
    }
    y.backward()?;
    assert_eq!(x.grad()?.to_vec()?, [1.; 3]);
    Ok(())
}

/// An op of a user's whose backward is wrong in several ways.
#[derive(Debug)]
struct Wrong(usize);

impl Op for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }
    fn forward(&self, x: &[&Array], _: &mut Saved) -> Result<Vec<Array>> {
        Ok(vec![x[0].clone()])
    }
    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        Ok(match self.0 {
            0 => vec![],
            1 => vec![Some(dy[0].reshape(&[1, 3])?)],
            _ => vec![Some(saved.get(0)?.clone())],
        })
    }
}

#[test]
fn a_wrong_backward_is_an_error_not_a_panic() -> Result<()> {
    for (kind, words) in [(0, "0 gradients"), (1, "another shape"), (2, "kept 0 arrays")] {
        let x = x()?;
        let e = autograd::record(|| apply1(Wrong(kind), &[&x]))?.backward().unwrap_err().to_string();
        assert!(e.contains(words), "{e}");
    }
    Ok(())
}

/// y = the sum of all inputs, whose gradient of each one is added to what has arrived, unless there is `none`; `seen` counts arrivals.
#[derive(Debug)]
struct Sum {
    none: bool,
    seen: Arc<AtomicUsize>,
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum_of_inputs"
    }
    fn forward(&self, x: &[&Array], _saved: &mut Saved) -> Result<Vec<Array>> {
        let mut y = x[0].clone();
        x[1..].iter().try_for_each(|x| y.add_assign(x))?;
        Ok(vec![y])
    }
    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let of = |i: usize| {
            let mut dx = dy[0].clone();
            if let Some(sum) = saved.arrived(i) {
                self.seen.fetch_add(1, Ordering::Relaxed);
                dx.add_assign(sum)?;
            }
            Ok((!self.none).then_some(dx))
        };
        (0..saved.inputs()).map(of).collect()
    }
    fn adds(&self, _i: usize) -> bool {
        true
    }
}

#[test]
fn an_op_may_add_to_what_has_arrived() -> Result<()> {
    for (none, inputs, first, arrivals) in [
        // Created before the other uses of h it is visited after them; created last, nothing has arrived yet.
        (false, 1, true, 1),
        (false, 1, false, 0),
        // Of two inputs that are the same, one gets what has arrived.
        (false, 2, true, 1),
        (false, 2, false, 0),
        // Without a gradient, what has arrived stays.
        (true, 1, true, 1),
        (true, 2, true, 1),
    ] {
        let (x, seen) = (x()?, Arc::new(AtomicUsize::new(0)));
        let y = autograd::record(|| {
            let h = x.affine(1.0, 0.0)?;
            let sum = || apply1(Sum { none, seen: seen.clone() }, &[&h, &h][..inputs]);
            let early = if first { Some(sum()?) } else { None };
            let others = (&h.square()? + &h)?;
            let sum = early.map_or_else(sum, Ok)?;
            &sum + &others
        })?;
        for _ in 0..2 {
            seen.store(0, Ordering::Relaxed);
            y.backward_retain()?;
            let own = if none { 0.0 } else { inputs as f32 };
            assert_eq!(x.grad()?.to_vec()?, [1f32, -2., 3.].map(|h| 2.0 * h + 1.0 + own), "{inputs} inputs, first {first}");
            assert_eq!(seen.load(Ordering::Relaxed), arrivals, "{inputs} inputs, first {first}");
        }
    }
    // A variable's gradient is the engine's to add up.
    let (x, seen) = (x()?, Arc::new(AtomicUsize::new(0)));
    let y = autograd::record(|| &apply1(Sum { none: false, seen: seen.clone() }, &[&x])? + &x.square()?)?;
    y.backward()?;
    assert_eq!((x.grad()?.to_vec()?, seen.load(Ordering::Relaxed)), (vec![3., -3., 7.], 0));
    Ok(())
}

/// Says that it adds to what has arrived, and gives its own gradient alone.
#[derive(Debug)]
struct Forgets;

impl Op for Forgets {
    fn name(&self) -> &'static str {
        "forgets"
    }
    fn forward(&self, x: &[&Array], _: &mut Saved) -> Result<Vec<Array>> {
        Ok(vec![x[0].clone()])
    }
    fn backward(&self, _: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        Ok(vec![Some(dy[0].clone())])
    }
    fn adds(&self, _i: usize) -> bool {
        true
    }
}

#[test]
fn the_check_finds_an_op_that_does_not_add_what_it_says() -> Result<()> {
    let (x, seen) = (x()?.array(), Arc::new(AtomicUsize::new(0)));
    check::parity(&Sum { none: false, seen }, &[x.clone(), x.clone()], &cpu(), &cpu())?;
    let e = check::parity(&Forgets, &[x], &cpu(), &cpu()).unwrap_err().to_string();
    assert!(e.contains("forgets: the gradient of input 0 is not its own and what has arrived"), "{e}");
    Ok(())
}

#[test]
fn clones_share_memory_until_one_is_written() -> Result<()> {
    let a = Tensor::ones(&[3], &cpu())?;
    let b = a.copy()?;
    let before = a.array();
    a.update(|v| v.add_assign(&Array::full(&[3], 2.0, hadal::DType::F32, &cpu())?))?;
    assert_eq!(a.to_vec()?, [3.; 3]);
    assert_eq!(b.to_vec()?, [1.; 3]);
    assert_eq!(before.to_vec::<f32>()?, [1.; 3]);
    Ok(())
}

/// y = x, whose gradient is 2 where dy is known to be 1, else 3 dy.
#[derive(Debug)]
struct Tell {
    outputs: usize,
}

impl Op for Tell {
    fn name(&self) -> &'static str {
        "tell"
    }
    fn forward(&self, x: &[&Array], _: &mut Saved) -> Result<Vec<Array>> {
        Ok(vec![x[0].clone(); self.outputs])
    }
    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let dy = Tensor::new(dy[0].clone());
        Ok(vec![Some(if saved.dy_is_one() { dy.ones_like()?.affine(2.0, 0.0)? } else { dy.affine(3.0, 0.0)? }.array())])
    }
}

#[test]
fn an_op_is_told_of_a_gradient_of_ones_only_where_the_pass_begins() -> Result<()> {
    let x = x()?;
    let tell = |x: &Tensor| apply1(Tell { outputs: 1 }, &[x]);
    let gradient = |y: Tensor| {
        y.backward_retain()?;
        let first = x.grad()?.to_vec()?;
        y.backward()?;
        assert_eq!(first, x.grad()?.to_vec()?);
        Ok::<_, Error>(first)
    };
    assert_eq!(gradient(autograd::record(|| tell(&x))?)?, [2.; 3]);
    // What is before it is multiplied: 2 · 3. An op in between, a sum of two ways, a dy of the caller's and a second output are not told.
    assert_eq!(gradient(autograd::record(|| tell(&tell(&x)?))?)?, [6.; 3]);
    assert_eq!(gradient(autograd::record(|| tell(&x)?.affine(0.5, 0.0))?)?, [1.5; 3]);
    assert_eq!(gradient(autograd::record(|| &tell(&x)? + &tell(&x)?)?)?, [6.; 3]);
    let both = autograd::record(|| {
        let y = tell(&x)?;
        &y + &tell(&y)?
    })?;
    assert_eq!(gradient(both)?, [12.; 3]);
    let y = autograd::record(|| tell(&x))?;
    y.backward_from(&y.ones_like()?, false)?;
    assert_eq!(x.grad()?.to_vec()?, [3.; 3]);
    let y = autograd::record(|| autograd::apply(Tell { outputs: 2 }, &[&x]))?.remove(0);
    y.backward()?;
    assert_eq!(x.grad()?.to_vec()?, [3.; 3]);
    Ok(())
}
