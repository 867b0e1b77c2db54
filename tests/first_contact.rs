//! What a first run on a card meets and the emulator's easy driver does not show: another NVRTC than the driver's, no memory pools, copies
//! that are done late, calls on threads without a context, limits of shared memory that other threads change.
//!
//! The emulator reads its settings when it is loaded, so each case runs in a process of its own. On a card they run too, where they say
//! what the card's own driver does; those that choose the driver run in the emulator only.

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use hadal::{
    Array, Context, DType, Result, Tensor, Trainer, autograd,
    cuda::{Graph, Source, Swizzle, TensorMap},
    gpu, init,
    loss::SoftmaxCrossEntropy,
    models,
    optim::Sgd,
};

/// In a child: the case that it runs.
const CASE: &str = "HADAL_TEST_CASE";

fn emulated() -> bool {
    env::var("HADAL_EMULATOR").is_ok_and(|v| v == "1")
}

/// Runs the test `name` in a process with these variables, `None` there.
fn child(name: &str, set: &[(&str, &str)]) -> Option<()> {
    if env::var_os(CASE).is_some() {
        return None;
    }
    let exe = env::current_exe().expect("a test has a file");
    let out = Command::new(exe).args([name, "--exact", "--nocapture"]).env(CASE, name).envs(set.iter().copied()).output();
    let out = out.expect("the test starts");
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{name} {set:?}: {said}{errors}");
    Some(())
}

static KERNELS: Source = Source::new(
    "tests/first_contact.rs",
    r#"#include "common.cuh"
#include "ptx_hopper.cuh"
extern "C" __global__ void count(float* y) {
  extern __shared__ char shared[];
  shared[threadIdx.x] = 1;
  if (threadIdx.x == 0) y[0] += 1;
}
extern "C" __global__ void map(float* y, const __grid_constant__ TensorMap m) {
  if (threadIdx.x == 0) y[0] += 1;
}"#,
);

/// The kernel `count` with so much dynamic shared memory.
fn count(y: &mut Array, shared: u32) -> Result<()> {
    let launch = KERNELS.kernel("count", y, &[("scalar_t", DType::F32.into())])?.array_mut(y);
    // SAFETY: y has one element, which is all that the kernel touches.
    unsafe { launch.run([1; 3], [32, 1, 1], shared) }
}

/// A launch with little shared memory takes nothing from a captured one with much, nor threads from each other.
#[test]
fn limits_of_shared_memory_only_grow() -> Result<()> {
    let Some(ctx) = common::gpu() else { return Ok(()) };
    let mut y = Array::zeros(&[1], DType::F32, &ctx)?;
    count(&mut y, 64 << 10)?;
    let (graph, ()) = Graph::capture(&ctx, || count(&mut y, 64 << 10))?;
    count(&mut y, 50 << 10)?;
    graph.replay()?;
    ctx.synchronize()?;
    let of_threads = || -> Result<()> {
        let mut y = Array::zeros(&[1], DType::F32, &ctx)?;
        (0..200).try_for_each(|i| count(&mut y, if i % 2 == 0 { 52 << 10 } else { 60 << 10 }))?;
        assert_eq!(y.to_vec::<f32>()?, [200.0]);
        Ok(())
    };
    thread::scope(|s| {
        let threads: Vec<_> = (0..4).map(|_| s.spawn(of_threads)).collect();
        threads.into_iter().try_for_each(|t| t.join().expect("no panic"))
    })
}

/// The first thing that a thread does may be to encode a tensor map.
#[test]
fn a_new_thread_encodes_tensor_maps() -> Result<()> {
    let Some(ctx) = common::gpu() else { return Ok(()) };
    let x = Array::zeros(&[32, 64], DType::F32, &ctx)?;
    let run = |y: &mut Array| -> Result<()> {
        let map = TensorMap::tiled(&[64, 32], &[64], &[32, 8]).swizzle(Swizzle::Span128);
        let launch = KERNELS.kernel("map", &x, &[("scalar_t", DType::F32.into())])?.array_mut(y).tensor(&x, &map);
        // SAFETY: y has one element, which is all that the kernel touches.
        unsafe { launch.run([1; 3], [32, 1, 1], 0) }
    };
    let mut y = Array::zeros(&[1], DType::F32, &ctx)?;
    match run(&mut y) {
        Err(e) if e.to_string().contains("compute capability") => return Ok(()),
        other => other?,
    }
    thread::scope(|s| s.spawn(|| run(&mut y)).join().expect("no panic"))?;
    assert_eq!(y.to_vec::<f32>()?, [2.0]);
    Ok(())
}

/// Two steps of a net, and what they leave.
fn steps(ctx: &Context) -> Result<Vec<f32>> {
    hadal::random::seed(5);
    let net = models::lenet(10);
    net.initialize(init::Xavier::new(), ctx)?;
    let mut trainer = Trainer::new(net.parameters(), Sgd::new(0.1).momentum(0.9));
    for i in 0..2 {
        // Freed as soon as they are on their way.
        let x = Tensor::from_vec((0..4 * 784).map(|k| (k * 7 % 13 + i) as f32 * 0.1).collect(), &[4, 1, 28, 28], ctx)?;
        let y = Tensor::from_vec(vec![1i64, 2, 3, i as i64], &[4], ctx)?;
        let l = autograd::record(|| SoftmaxCrossEntropy::new().forward(&net.forward(&x)?, &y))?;
        l.backward()?;
        trainer.step(4)?;
    }
    let mut all = Vec::new();
    for p in net.parameters() {
        all.extend(p.data()?.to_vec()?);
    }
    Ok(all)
}

/// Host memory is free when an upload returns, however late the driver reads what it was given; larger than the ring of staging memory, too.
#[test]
fn uploads_outlive_their_source() -> Result<()> {
    if child("uploads_outlive_their_source", &[("HADAL_EMU_LATE", "1")]).is_some() {
        return Ok(());
    }
    let Some(ctx) = common::gpu() else { return Ok(()) };
    for n in [1usize, 1000, 50_000, 6_000_000] {
        let (mut all, expected) = (Vec::new(), |k: usize, i: usize| ((i * 31 + k * 7) % 1021) as f32);
        for k in 0..4 {
            all.push(Array::from_vec((0..n).map(|i| expected(k, i)).collect::<Vec<f32>>(), &[n], &ctx)?);
        }
        for (k, a) in all.iter().enumerate() {
            let wrong = a.to_vec::<f32>()?.iter().enumerate().find(|&(i, &v)| v != expected(k, i)).map(|(i, _)| i);
            assert_eq!(wrong, None, "array {k} of {n}");
        }
    }
    let first = steps(&ctx)?;
    assert_eq!(first, steps(&ctx)?);
    Ok(())
}

/// Arrays are allocated and freed, by a whole device's memory too, where the driver has no stream-ordered pools.
#[test]
fn memory_without_pools() -> Result<()> {
    let set = [("HADAL_EMU_POOLS", "0"), ("HADAL_EMU_MEMORY", "64M"), ("HADAL_EMU_LATE", "1")];
    if child("memory_without_pools", &set).is_some() {
        return Ok(());
    }
    let Some(ctx) = common::gpu() else { return Ok(()) };
    assert!(steps(&ctx)?.iter().all(|v| v.is_finite()));
    if emulated() {
        // Other sizes than those that are kept: what is kept goes back first.
        for size in [20, 30, 40, 50] {
            drop(Array::full(&[size << 18], 1.0, DType::F32, &ctx)?);
        }
        let e = Array::full(&[100 << 18], 1.0, DType::F32, &ctx).expect_err("100 of 64 MiB");
        assert!(matches!(e, hadal::Error::OutOfMemory { .. }), "{e}");
    }
    Ok(())
}

/// The gradient of a table takes time for its rows and for its indices, not for their product: here that would be minutes in the emulator
/// and, with an embedding's columns, seconds a step on a card.
#[test]
fn the_gradient_of_a_large_table_is_linear() -> Result<()> {
    let Some(ctx) = common::gpu() else { return Ok(()) };
    let run = |rows: usize, count: usize, ctx: &Context| -> Result<(Vec<f32>, std::time::Duration)> {
        // A row in ten is never chosen, one is chosen by a tenth of all.
        let index: Vec<i64> = (0..count).map(|j| if j % 10 == 3 { 7 } else { (j * 7919 % (rows * 9 / 10)) as i64 }).collect();
        let table = Tensor::ones(&[rows, 1], ctx)?.attach_grad();
        let index = Tensor::from_vec(index, &[count], ctx)?;
        let weight = Tensor::from_vec((0..count).map(|j| (j % 17) as f32 * 0.37 + 0.1).collect::<Vec<f32>>(), &[count, 1], ctx)?;
        let start = std::time::Instant::now();
        let y = autograd::record(|| (table.take(&index, 0)? * &weight)?.sum(&[]))?;
        y.backward()?;
        Ok((table.grad()?.to_vec()?, start.elapsed()))
    };
    // Programs are made first.
    run(3, 5, &ctx)?;
    let (found, time) = run(400_000, 200_000, &ctx)?;
    assert_eq!(found, run(400_000, 200_000, &hadal::cpu())?.0);
    assert!(time.as_secs() < 30, "{time:?}");
    Ok(())
}

/// A folder for a test.
fn folder(name: &str) -> PathBuf {
    let folder = env::temp_dir().join(format!("hadal-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

/// The emulator's NVRTC, which passes for the version in its name.
fn place(folder: &Path, name: &str) {
    let build = env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let from = env::split_paths(&build).map(|p| p.join("libnvrtc.so.12")).find(|f| f.exists()).expect("emulator/run");
    fs::copy(&from, folder.join(name)).expect("a copy");
    // It compiles with the headers beside it.
    #[cfg(unix)]
    let _ = std::os::unix::fs::symlink(from.with_file_name("include"), folder.join("include"));
}

/// What `hadal doctor` says with a driver of that version.
fn doctor(driver: &str, nvrtc: Option<&Path>, loader: Option<&Path>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadal"));
    command.arg("doctor").env("HADAL_EMU_DRIVER", driver).env_remove("HADAL_NVRTC");
    if let Some(path) = nvrtc {
        command.env("HADAL_NVRTC", path);
    }
    if let Some(first) = loader {
        command.env("LD_LIBRARY_PATH", format!("{}:{}", first.display(), env::var("LD_LIBRARY_PATH").unwrap_or_default()));
    }
    let out = command.output().expect("it starts");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The newest NVRTC whose code the driver loads is taken, and one that is too new is told at once, with what to install.
#[test]
fn nvrtc_is_one_that_the_driver_can_load() {
    if !emulated() {
        return;
    }
    let both = folder("nvrtc");
    for name in ["libnvrtc.so.13.0", "libnvrtc.so.12.4", "libnvrtc.so.12.8"] {
        place(&both, name);
    }
    let said = doctor("12.2", Some(&both), None);
    assert!(
        said.contains("NVRTC      12.8") && said.contains("CUDA 12.2") && said.contains("was compiled, loaded and run"),
        "{said}"
    );
    let said = doctor("13.0", Some(&both), None);
    assert!(said.contains("NVRTC      13.0") && said.contains("was compiled, loaded and run"), "{said}");
    // A file is that file, whatever lies beside it; and what the loader would find first is not asked.
    let said = doctor("13.0", Some(&both.join("libnvrtc.so.12.4")), Some(&both));
    assert!(said.contains("NVRTC      12.4") && said.contains("from") && said.contains("libnvrtc.so.12.4"), "{said}");
    assert!(said.contains("12.6 for a first step"), "{said}");
    let said = doctor("12.2", Some(&both.join("libnvrtc.so.13.0")), None);
    let told = |what: &str| assert!(said.contains(what), "{what}: {said}");
    for what in ["BAD  gpu(0)", "CUDA 12.2", "NVRTC 13.0", "pip install nvidia-cuda-nvrtc-cu12", "580"] {
        told(what);
    }
    // Folders of the loader's path, in its order.
    let said = doctor("12.2", None, Some(&both));
    assert!(said.contains("NVRTC      12.8"), "{said}");
    let old = doctor("11.4", None, None);
    assert!(old.contains("525 (CUDA 12.0) or later") && old.contains("CUDA 11.4"), "{old}");
    let _ = fs::remove_dir_all(both);
}

/// Turing is the oldest.
#[test]
fn older_cards_are_refused() {
    if !emulated() {
        return;
    }
    let out = Command::new(env!("CARGO_BIN_EXE_hadal")).arg("doctor").env("HADAL_EMU_CC", "7.0").output().expect("it starts");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("compute capability 7.0") && said.contains("7.5"), "{said}");
}

/// A process may end while its first step is still being compiled.
#[test]
fn a_process_ends_while_it_compiles() -> Result<()> {
    if child("a_process_ends_while_it_compiles", &[("HADAL_CACHE", "off")]).is_some() {
        return Ok(());
    }
    let Ok(ctx) = gpu(0) else { return Ok(()) };
    let x = Tensor::full(&[4], 2.0, &ctx)?;
    drop([x.exp()?, x.square()?, x.tanh()?, x.sum(&[])?]);
    Ok(())
}
