//! Launches that wait for their programs, where there is a GPU (or its emulator).

use std::{cell::Cell, process::Command, sync::Arc};

use super::{
    Graph,
    device::Device,
    launch::Launch,
    memory::EXACT,
    source::{Define, Source},
};
use crate::{Array, DType, Error, Result, Tensor, Trainer, autograd, gpu, init, loss::SoftmaxCrossEntropy, models, optim::Sgd};

thread_local! {
    /// On this thread new programs are not handed to the threads that compile: they wait until somebody needs them.
    pub(super) static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// A device of this test's own, without any program; `None` without a GPU, said past libtest.
pub(super) fn own_device() -> Result<Option<Arc<Device>>> {
    use std::io::Write;
    match Device::open(0) {
        // Memory of each array's own and waiting after each launch leave nothing to wait.
        Ok(_) if *EXACT || *super::launch::SYNC => Ok(None),
        Ok(d) => Ok(Some(Arc::new(d))),
        Err(e) if std::env::var("HADAL_REQUIRE_GPU").is_ok_and(|v| v == "1") => Err(e),
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "launches that wait are NOT checked: {e}");
            Ok(None)
        }
    }
}

fn array(d: &Arc<Device>, n: usize, dtype: DType) -> Result<Array> {
    Ok(Array::device(d.alloc(n * dtype.size())?, &[n], dtype))
}

fn launch(y: &Array, kernel: &'static str, x: Option<&Array>, value: Option<f64>) -> Result<()> {
    let l = Launch::new(y, "create.cu", kernel, &[("scalar_t", y.dtype().into())])?.array(y);
    let l = if let Some(x) = x { l.array(x) } else { l };
    let l = if let Some(v) = value { l.value(v) } else { l };
    l.value(y.len() as i64).run_1d(y.len())
}

fn buffer(a: &Array) -> Result<&super::DeviceBuffer> {
    a.cuda("a test")
}

/// Everything that a stream does keeps its place behind a kernel that is not compiled yet, in memory that is handed on, too.
#[test]
fn work_waits_in_order() -> Result<()> {
    let Some(d) = own_device()? else { return Ok(()) };
    PAUSED.set(true);
    let y = array(&d, 1000, DType::F32)?;
    launch(&y, "fill", None, Some(1.0))?;
    assert_eq!(d.waiting(), 1);
    let x = array(&d, 1000, DType::F32)?;
    buffer(&x)?.write(bytemuck::cast_slice(&[2f32; 1000]))?;
    launch(&y, "accumulate", Some(&x), None)?; // 3
    buffer(&x)?.write(bytemuck::cast_slice(&[10f32; 1000]))?;
    launch(&y, "accumulate", Some(&x), None)?; // 13
    let place = buffer(&x)?.ptr();
    drop(x);
    let z = array(&d, 1000, DType::F32)?;
    assert_eq!(buffer(&z)?.ptr(), place, "the pool hands the block on");
    buffer(&z)?.copy_from(buffer(&y)?)?; // 13
    launch(&z, "fill", None, Some(100.0))?;
    launch(&y, "accumulate", Some(&z), None)?; // 113
    buffer(&z)?.zero()?;
    launch(&y, "accumulate", Some(&z), None)?;
    // A program of another file and dtype does not overtake either.
    let wide = array(&d, 10, DType::F64)?;
    launch(&wide, "fill", None, Some(0.5))?;
    assert_eq!(d.waiting(), 11);
    PAUSED.set(false);
    assert_eq!(y.to_vec::<f32>()?, [113.0; 1000]);
    assert_eq!((d.waiting(), wide.to_vec::<f64>()?), (0, vec![0.5; 10]));
    // With nothing left to wait for, nothing waits.
    launch(&y, "fill", None, Some(7.0))?;
    assert_eq!((d.waiting(), y.to_vec::<f32>()?), (0, vec![7.0; 1000]));
    Ok(())
}

/// Several threads compile, several launch: each finds its own results.
#[test]
fn threads_launch_while_others_compile() -> Result<()> {
    let Some(d) = own_device()? else { return Ok(()) };
    let dtypes = [DType::F32, DType::F64, DType::I64, DType::U8];
    std::thread::scope(|s| {
        let run = |dtype: DType, d: &Arc<Device>| -> Result<()> {
            let (y, x) = (array(d, 77, dtype)?, array(d, 77, dtype)?);
            launch(&x, "fill", None, Some(3.0))?;
            launch(&y, "fill", None, Some(4.0))?;
            (0..10).try_for_each(|_| launch(&y, "accumulate", Some(&x), None))?;
            assert_eq!(y.to_f64_vec()?, [34.0; 77], "{dtype:?}");
            Ok(())
        };
        let threads: Vec<_> = dtypes
            .iter()
            .cycle()
            .take(12)
            .map(|&t| {
                s.spawn({
                    let d = &d;
                    move || run(t, d)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap())
    })
}

/// What could not be compiled is told by every call until one that waits has told it, to each thread; a user's source at its launch.
#[test]
fn failures_are_told() -> Result<()> {
    let Some(d) = own_device()? else { return Ok(()) };
    let y = array(&d, 8, DType::F32)?;
    let of_user = Source::new("broken.cu", "extern \"C\" __global__ void broken(float* y) { y[0] = undeclared; }");
    for _ in 0..2 {
        let e = Launch::of(&of_user, &y, "broken", &[]).err().expect("it does not compile");
        assert!(matches!(&e, Error::Compile { log, .. } if log.contains("undeclared")), "{e}");
    }
    PAUSED.set(true);
    // `create.cu` without its `scalar_t`.
    let launched = Launch::new(&y, "create.cu", "fill", &[("lost", Define::Int(1))])?.array(&y).value(1.0).value(8i64).run_1d(8);
    launched?;
    launch(&y, "fill", None, Some(1.0))?;
    PAUSED.set(false);
    let told = |e: Error| assert!(matches!(&e, Error::Compile { file, .. } if file == "create.cu"), "{e}");
    let (failed, here) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            // This thread has used the device before, so that it may have been what failed.
            let own = array(&d, 8, DType::F32).and_then(|own| buffer(&own)?.zero().map(|()| own));
            here.wait();
            failed.wait();
            (own.map(drop).err(), d.synchronize().err(), d.synchronize().err())
        });
        here.wait();
        told(y.to_vec::<f32>().expect_err("the launch before has failed"));
        failed.wait();
        let (_, first, second) = other.join().unwrap();
        told(first.expect("the other thread is told too"));
        assert!(second.is_none(), "{second:?}");
    });
    works(&d)
}

/// A device that computes what it is asked to.
fn works(d: &Arc<Device>) -> Result<()> {
    let y = array(d, 8, DType::F32)?;
    launch(&y, "fill", None, Some(4.0))?;
    assert_eq!(y.to_vec::<f32>()?, [4.0; 8]);
    d.synchronize()
}

/// A launch that the driver refuses, such as for too much shared memory, is an error of the work behind it, not the device's end.
#[test]
fn a_refused_launch_does_not_end_the_device() -> Result<()> {
    let Some(d) = own_device()? else { return Ok(()) };
    let y = array(&d, 8, DType::F32)?;
    PAUSED.set(true);
    let large = Launch::new(&y, "create.cu", "fill", &[("scalar_t", y.dtype().into())])?.array(&y).value(1.0).value(8i64);
    large.run([1; 3], [32, 1, 1], 1 << 20)?;
    assert_eq!(d.waiting(), 1);
    PAUSED.set(false);
    // Every call until one that waits.
    for _ in 0..2 {
        let e = launch(&y, "fill", None, Some(2.0)).and_then(|()| d.synchronize()).expect_err("a mebibyte of shared memory");
        assert!(matches!(&e, Error::Cuda { call, .. } if call == "fill"), "{e}");
        if d.synchronize().is_ok() {
            break;
        }
    }
    works(&d)
}

/// Set in a process that [`alone`] started.
pub(super) const ALONE: &str = "HADAL_TEST_ALONE";

/// Runs a test of this program once more in a process of its own, where nobody else waits for the device: `None` there, here what it
/// printed.
pub(super) fn alone(test: &str, env: &[(&str, &str)]) -> Option<String> {
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let exe = std::env::current_exe().expect("a test has a file");
    let out = Command::new(exe).args([test, "--exact", "--nocapture"]).env(ALONE, "1").envs(env.iter().copied()).output();
    let out = out.expect("the test starts");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    Some(said)
}

/// Nothing in a training step waits for the device, the first one with its first values included: all of its programs are known,
/// and can be compiled side by side, before the first kernel runs. The step does what it does with its programs there.
#[test]
fn a_first_step_meets_all_programs_before_it_waits() -> Result<()> {
    if own_device()?.is_none() {
        return Ok(());
    }
    if let Some(said) = alone("cuda::backlog_tests::a_first_step_meets_all_programs_before_it_waits", &[]) {
        print!("{said}");
        return Ok(());
    }
    let ctx = gpu(0)?;
    let run = |batch: usize, paused: bool| -> Result<(f64, Vec<f32>)> {
        PAUSED.set(paused);
        crate::random::seed(3);
        let net = models::resnet18(10);
        net.initialize(init::Xavier::new(), &ctx)?;
        let loss = SoftmaxCrossEntropy::new();
        let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.05).momentum(0.9));
        let x = Tensor::uniform(0.0, 1.0, &[batch, 1, 32, 32], &ctx)?;
        let y = Tensor::uniform(0.0, 10.0, &[batch], &ctx)?.cast(DType::I64)?;
        let start = std::time::Instant::now();
        let l = autograd::record(|| loss.forward(&net.forward(&x)?, &y))?;
        let forward = start.elapsed();
        l.backward()?;
        let backward = start.elapsed() - forward;
        trainer.step(batch)?;
        let update = start.elapsed() - forward - backward;
        let d = super::device(0)?;
        println!(
            "the host takes {forward:.0?} for first values and forward, {backward:.0?} for backward, {update:.0?} for the update"
        );
        println!("{} programs, {} pieces of work wait", d.programs.list().len(), d.waiting());
        assert_eq!(d.waiting() > 400, paused);
        PAUSED.set(false);
        let last = net.parameters().last().expect("parameters").data()?.to_vec()?;
        Ok((l.mean(&[])?.item()?, last))
    };
    let first = run(2, true)?;
    assert_eq!(first, run(2, false)?);
    assert!(first.0.is_finite());
    // A graph's replay does not overtake what waits.
    let x = Tensor::ones(&[50], &ctx)?;
    let (graph, y) = Graph::capture(&ctx, || x.square())?;
    PAUSED.set(true);
    x.copy_from(&Tensor::full(&[50], 3.0, &ctx)?.exp()?.log()?)?;
    let d = super::device(0)?;
    assert!(d.waiting() > 0);
    graph.replay()?;
    assert_eq!(d.waiting(), 0);
    let square = y.to_vec()?[0];
    assert!((square - 9.0).abs() < 1e-4, "{square}");
    Ok(())
}
