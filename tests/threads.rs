//! Tensors, nets, trainers and random numbers as tasks of rayon's pools: no task waits for good, and none sees another's state.
//!
//! A thread that waits for the end of a loop takes up other tasks of its pool. The elements are more than a loop keeps on its thread.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use hadal::{
    Array, DType, Result, Tensor, Trainer,
    autograd::{self, GradReq},
    cpu,
    data::Prefetch,
    init::{self, Init},
    loss::SoftmaxCrossEntropy,
    nn::{BatchNorm, Block, Dense, Dropout, Forward, Parameter, Role, Sequential},
    optim::{Adam, Lars, Sgd, clip_grad_norm},
    random,
};
use rayon::prelude::*;

const N: usize = 200_000;

/// Runs `tasks` copies of `task` in pools of 1, 2 and 4 threads; fails where they do not come to an end.
fn in_pools(name: &str, tasks: usize, task: impl Fn(usize) -> Result<()> + Send + Sync + 'static) {
    let task = Arc::new(task);
    for threads in [1, 2, 4] {
        let (done, end) = mpsc::channel();
        let task = task.clone();
        thread::spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let run = || (0..tasks).into_par_iter().with_max_len(1).try_for_each(|i| task(i));
            let _ = done.send(pool.install(run));
        });
        match end.recv_timeout(Duration::from_secs(100)) {
            Ok(result) => result.unwrap_or_else(|e| panic!("{name}, {threads} threads: {e}")),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name}: {threads} threads stand still"),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{name}, {threads} threads: a task panicked"),
        }
    }
}

#[test]
fn one_tensor_is_written_and_read_by_many_tasks() {
    let x = Tensor::zeros(&[N], &cpu()).unwrap();
    let (shared, rounds) = (x.clone(), 40);
    in_pools("add_", rounds, move |i| {
        shared.add_(1.0)?;
        let y = match i % 4 {
            0 => shared.array().cast(DType::F16)?.len(),
            1 => shared.square()?.size(),
            2 => shared.update(|a| a.add_assign(&Array::zeros(&[N], DType::F32, &cpu())?)).map(|()| N)?,
            _ => shared.write(std::slice::from_ref(&(0..N)), &shared.detach()).map(|()| N)?,
        };
        assert_eq!(y, N);
        // A value, not a mixture of two.
        let v = shared.to_vec()?;
        assert!(v.iter().all(|x| *x == v[0]));
        Ok(())
    });
}

#[test]
fn no_addition_is_lost() {
    for n in [N, 3_000_000] {
        let x = Tensor::zeros(&[n], &cpu()).unwrap();
        let shared = x.clone();
        in_pools("add_", 20, move |_| shared.add_(1.0));
        assert!(x.to_vec().unwrap().iter().all(|x| *x == 60.0));
    }
}

#[test]
fn gradients_are_added_up_and_read_by_many_tasks() {
    let x = Tensor::ones(&[N], &cpu()).unwrap().attach_grad_with(GradReq::Add);
    let shared = x.clone();
    in_pools("backward", 12, move |_| {
        autograd::record(|| shared.mul(3.0))?.backward()?;
        shared.grad()?.to_vec().map(|_| ())
    });
    assert!(x.grad().unwrap().to_vec().unwrap().iter().all(|x| *x == 3.0 * 36.0));
}

fn net() -> Sequential {
    let net = Sequential::new()
        .add(Dense::new(300).relu())
        .add(BatchNorm::new())
        .add(Dropout::new(0.5))
        .add(Dense::new(200).relu())
        .add(Dense::new(10));
    net.initialize(init::Xavier::new(), &cpu()).unwrap();
    net
}

#[test]
fn a_training_step_beside_an_evaluation() {
    type Make = fn(Vec<Parameter>) -> Trainer;
    let makes: [Make; 3] = [
        |p| Trainer::new(p, Sgd::new(0.01).momentum(0.9)),
        |p| Trainer::new(p, Adam::new(0.01)),
        |p| Trainer::new(p, Lars::new(0.01)),
    ];
    for make in makes {
        let net = net();
        let x = Tensor::uniform(0.0, 1.0, &[256, 400], &cpu()).unwrap();
        let y = Tensor::from_vec((0..256).map(|i| i % 10).collect::<Vec<i64>>(), &[256], &cpu()).unwrap();
        net.forward(&x).unwrap();
        let trainer = Mutex::new(make(net.parameters()));
        in_pools("training and evaluation", 24, move |i| {
            // One of the tasks trains; a lock of the user's is not held by two tasks of a thread.
            match trainer.try_lock() {
                Ok(mut trainer) if i % 3 == 0 => {
                    let l = autograd::record(|| SoftmaxCrossEntropy::new().forward(&net.forward(&x)?, &y))?;
                    l.backward()?;
                    let values = trainer.parameters().iter().map(Parameter::data).collect::<Result<Vec<_>>>()?;
                    clip_grad_norm(&values, 1.0)?;
                    trainer.step(256)
                }
                _ => {
                    // Nothing of a step that waits for this task is seen here: dropout keeps all, and nothing is recorded.
                    assert!(!autograd::is_training() && !autograd::is_recording());
                    let a = net.forward(&x)?;
                    assert!(a.backward().is_err(), "an evaluation was recorded");
                    net.collect().iter().try_for_each(|(_, p)| p.data()?.to_vec().map(|_| ()))
                }
            }
        });
    }
}

/// An initializer of the user's that hands work to rayon.
#[derive(Debug)]
struct Pooled;

impl Init for Pooled {
    fn values(&self, shape: &[usize]) -> Result<Vec<f32>> {
        Ok((0..shape.iter().product::<usize>()).into_par_iter().map(|i| i as f32).collect())
    }
}

#[test]
fn parameters_come_to_be_in_many_tasks() {
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    let p = Parameter::new(Role::Weight, &[0, 500]);
    let net = Dense::new(500);
    let x = Tensor::ones(&[2, 500], &cpu()).unwrap();
    p.set_init(Pooled);
    in_pools("parameters", 32, move |i| {
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        match i % 4 {
            0 => net.reinitialize(Pooled, &cpu())?,
            1 => net.cast(if round.is_multiple_of(2) { DType::F32 } else { DType::F64 })?,
            2 => net.weight().set_grad_req(if round.is_multiple_of(2) { GradReq::Write } else { GradReq::Add }),
            _ => {}
        }
        // Cast by another task meanwhile: an error that says so, and no wait.
        let _ = net.forward(&x);
        let _ = net.weight().data();
        net.weight().shape();
        Ok(())
    });
}

#[test]
fn a_first_pass_in_many_tasks_gives_one_net() {
    random::seed(5);
    let net = net();
    let x = Tensor::ones(&[64, 400], &cpu()).unwrap();
    let found = Arc::new(Mutex::new(Vec::new()));
    let all = found.clone();
    in_pools("first pass", 16, move |_| {
        let y = net.forward(&x)?.to_vec()?;
        all.lock().unwrap().push(y);
        Ok(())
    });
    let found = found.lock().unwrap();
    assert!(found.iter().all(|y| *y == found[0]));
}

#[test]
fn buffers_are_taken_and_given_back_by_many_tasks() {
    in_pools("buffers", 64, |i| {
        let x = Tensor::full(&[N + i % 7], 2.0, &cpu())?;
        assert_eq!(x.add(&x)?.mul(0.25)?.sum(&[])?.item()?, (N + i % 7) as f64);
        Ok(())
    });
}

/// All threads of rayon's global pool wait for batches whose preparation would like to have its help.
#[test]
fn prefetching_needs_no_thread_of_the_pool() {
    in_pools("prefetch", 8, |_| {
        let items = Prefetch::new(0..4, 2, 2, |i| Tensor::full(&[N], i as f64, &cpu())?.square()?.mean(&[])?.item())?;
        assert_eq!(items.collect::<Result<Vec<f64>>>()?, [0., 1., 4., 9.]);
        Ok(())
    });
    let (done, end) = mpsc::channel();
    thread::spawn(move || {
        let all = (0..4 * rayon::current_num_threads()).into_par_iter().with_max_len(1).try_for_each(|_| {
            let items = Prefetch::new(0..4, 2, 2, |i| Tensor::full(&[N], i as f64, &cpu())?.square()?.mean(&[])?.item())?;
            items.collect::<Result<Vec<f64>>>().map(|_| ())
        });
        let _ = done.send(all);
    });
    end.recv_timeout(Duration::from_secs(100)).expect("the global pool stands still").unwrap();
}

#[test]
fn spawned_threads_draw_numbers_of_their_own_that_the_seed_decides() {
    fn spawned<T: Send + 'static>(f: fn() -> Result<T>) -> T {
        thread::spawn(f).join().unwrap().unwrap()
    }
    let uniform = || Tensor::uniform(0.0, 1.0, &[8], &cpu())?.to_vec();
    let normal = || Tensor::normal(0.0, 1.0, &[8], &cpu())?.to_vec();
    let mask = || autograd::train_mode(|| Tensor::ones(&[64], &cpu())?.dropout(0.5))?.to_vec();
    let weights = || {
        let net = Dense::new(4);
        net.initialize(init::Normal(1.0), &cpu())?;
        net.forward(&Tensor::ones(&[1, 4], &cpu())?)?;
        net.weight().data()?.to_vec()
    };
    for draw in [uniform, normal, mask, weights] as [fn() -> Result<Vec<f32>>; 4] {
        assert_ne!(spawned(draw), spawned(draw));
    }
    // Threads that are at work at the same time.
    let streams: BTreeSet<(u64, u64)> = thread::scope(|s| {
        let all: Vec<_> = (0..16).map(|_| s.spawn(random::state)).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(streams.len(), 16);
}

#[test]
fn numbered_streams_do_not_depend_on_the_thread() {
    let noise = |threads| {
        random::seed(2);
        let streams = random::Streams::next();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let item = |i| streams.with(i, || Tensor::uniform(0.0, 1.0, &[N], &cpu())?.dropout(0.5)?.item_sum());
        pool.install(|| (0..12u64).into_par_iter().map(item).collect::<Result<Vec<f64>>>()).unwrap()
    };
    let all = noise(1);
    assert_eq!(all.iter().map(|x| x.to_bits()).collect::<BTreeSet<_>>().len(), 12);
    for threads in [2, 4] {
        assert_eq!(noise(threads), all);
    }
}

trait Sum {
    fn item_sum(&self) -> Result<f64>;
}

impl Sum for Tensor {
    fn item_sum(&self) -> Result<f64> {
        self.sum(&[])?.item()
    }
}
