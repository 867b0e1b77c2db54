//! The tuner for convolutions on Hopper's warpgroups, where there is such a GPU (or its emulator), by a clock that the tests set.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};

use super::{
    backlog_tests::{ALONE, alone, own_device},
    tune::{Choice, Mode, TEST},
    tune_tests::folder,
};
use crate::{
    Array, DType, Layout, Result, Tensor, autograd,
    check::{cast, difference, random},
    gpu,
    ops::Conv2dOptions,
    precision::{self, Precision},
};

/// Which algorithms a process of the tests prefers, and its dtype.
const PREFERS: &str = "HADAL_TEST_PREFERS";
const DTYPE: &str = "HADAL_TEST_DTYPE";

thread_local! {
    /// How many candidates were timed.
    static TIMED: Cell<usize> = const { Cell::new(0) };
}

/// The kind of a convolution's algorithm, by its place in the list.
fn kind(c: &[u32]) -> &'static str {
    match c[0] {
        2 => "halo",
        3 => "im2col",
        _ => "otherwise",
    }
}

fn preferred(c: &Choice) -> u64 {
    TIMED.set(TIMED.get() + 1);
    // Among those of a kind another one than the model's: small tiles.
    let own = std::env::var(PREFERS).is_ok_and(|kinds| kinds == kind(c));
    let base = if own { 1 << 10 } else { 1 << 20 };
    base + u64::from(c[1] + c[2] + c[3])
}

/// A block entry, a convolution with a halo to whose x a gradient has arrived, and a batch-norm that reads its moments: all results and
/// gradients.
fn results(dtype: DType) -> Result<Vec<Array>> {
    let ctx = gpu(0)?;
    let on = |shape: &[usize], seed| Ok(Tensor::new(cast(&random(shape, seed)?, dtype)?.to_context(&ctx)?)) as Result<Tensor>;
    let x = Tensor::new(on(&[4, 64, 16, 16], 1)?.array().to_layout(Layout::ChannelsLast)?).attach_grad();
    let w = [on(&[256, 64, 3, 3], 2)?, on(&[256, 64, 1, 1], 3)?, on(&[64, 64, 3, 3], 4)?].map(|w| w.attach_grad());
    let (gamma, beta) = (Tensor::ones(&[64], &ctx)?, Tensor::zeros(&[64], &ctx)?);
    let factors = [on(&[4, 256, 8, 8], 5)?, on(&[4, 256, 8, 8], 6)?, on(&[4, 64, 16, 16], 7)?];
    let o = Conv2dOptions::new();
    let y = autograd::record(|| -> Result<[Tensor; 5]> {
        // A variable's gradient would be added by the engine.
        let x = x.relu()?;
        let (y, short_cut) = x.conv2d_pair((&w[0], None, o.stride(2).padding(1)), (&w[1], None, o.stride(2)))?;
        let z = x.conv2d(&w[2], None, o.padding(1))?;
        let (n, mean, _) = z.batch_norm(&gamma, &beta, 1e-5)?;
        let loss = (y.mul(&factors[0])?.sum(&[])? + short_cut.mul(&factors[1])?.sum(&[])?)?;
        let loss = (loss + n.mul(&factors[2])?.sum(&[])?)?;
        loss.backward()?;
        Ok([y, short_cut, z, n, mean])
    })?;
    let grads = [&x, &w[0], &w[1], &w[2]].map(|t| t.grad().map(|g| g.array()));
    y.iter().map(|t| Ok(t.array())).chain(grads).collect()
}

/// In a process: the results by the model and by the tuner, which tells how many candidates it timed and what came out.
#[test]
fn convolutions_of_a_process() -> Result<()> {
    if std::env::var_os(PREFERS).is_none() {
        return Ok(());
    }
    let dtype = if std::env::var(DTYPE).is_ok_and(|d| d == "f32") { DType::F32 } else { DType::BF16 };
    // What a rounded result is worth, and the differences of what is normalized.
    let bound = if dtype == DType::F32 { 2e-3 } else { 8e-3 };
    precision::with(Precision::Tf32, || {
        let model = results(dtype)?;
        TEST.set(Some((Mode::On, preferred)));
        let tuned = results(dtype)?;
        let timed = TIMED.get();
        for (i, (a, b)) in tuned.iter().zip(&model).enumerate() {
            let relative = difference(a, b)?.relative;
            assert!(relative < bound, "result {i}: {relative}");
        }
        // Known now: nothing is timed, and the bits are the same.
        let bits = |all: Vec<Array>| -> Result<Vec<u64>> {
            let all = all.iter().map(Array::to_f64_vec).collect::<Result<Vec<_>>>()?;
            Ok(all.concat().iter().map(|v| v.to_bits()).collect())
        };
        let (tuned, again) = (bits(tuned)?, bits(results(dtype)?)?);
        assert!(tuned == again && TIMED.get() == timed, "{} more were timed", TIMED.get() - timed);
        let digest = tuned.iter().fold(0u64, |d, v| d.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(*v));
        println!("\ntimed {timed} digest {digest}");
        Ok(())
    })
}

fn process(cache: &Path, prefers: &str, dtype: &str) -> (usize, String) {
    let env = [("HADAL_CACHE", cache.to_str().expect("a name")), (PREFERS, prefers), (DTYPE, dtype)];
    let said = alone("cuda::tune_conv_tests::convolutions_of_a_process", &env).expect("it ran");
    let line = said.lines().find_map(|l| l.strip_prefix("timed ")).expect("a line");
    let (timed, digest) = line.split_once(" digest ").expect("two figures");
    (timed.parse().expect("a figure"), digest.to_owned())
}

/// The file of winners.
fn file(cache: &Path) -> PathBuf {
    let all = fs::read_dir(cache.join("tuned")).expect("a folder").flatten().map(|e| e.path());
    all.into_iter().find(|p| p.extension().is_some_and(|x| x == "tsv")).expect("a file")
}

/// The winners' kinds, sorted.
fn kinds(text: &str) -> Vec<&'static str> {
    let lines = text.lines().filter_map(|l| l.strip_prefix("conv2d\t")?.split_once('\t'));
    let mut all: Vec<_> =
        lines.map(|(_, c)| kind(&c.split(' ').map(|v| v.parse().expect("a number")).collect::<Vec<_>>())).collect();
    all.sort_unstable();
    all
}

/// What the tuner chooses gives the result of the model's choice, in the same bits in every process of a cache, whatever that one would
/// choose; a damaged cache is timed again.
#[test]
fn convolutions_are_tuned_once() -> Result<()> {
    let Some(d) = own_device()?.filter(|d| d.capability == (9, 0)) else { return Ok(()) };
    drop(d);
    if std::env::var_os(ALONE).is_some() {
        return Ok(());
    }
    let cache = folder("convolutions");
    let (timed, digest) = process(&cache, "halo", "bf16");
    let text = fs::read_to_string(file(&cache)).expect("a file");
    // Three passes of the pair, which has no halo, and three of the other one.
    assert_eq!(kinds(&text).iter().filter(|k| **k == "halo").count(), 3, "{text}");
    assert!(kinds(&text).len() == 6 && (18..=6 * 16).contains(&timed), "{timed}: {text}");
    assert!(text.lines().any(|l| l.starts_with("conv2d\t3 0 1 36 ")), "nothing is added to dx: {text}");
    assert_eq!(process(&cache, "otherwise", "bf16"), (0, digest.clone()));
    assert_eq!(fs::read_to_string(file(&cache)).expect("a file"), text);
    fs::write(file(&cache), &text[..text.len() / 2]).expect("it can be written");
    assert!(process(&cache, "otherwise", "bf16").0 > 0, "a damaged file is ignored");
    let others = fs::read_to_string(file(&cache)).expect("a file");
    assert!(kinds(&others).len() >= 6 && kinds(&others)[..] != kinds(&text)[..], "{others}");
    let (timed, other) = process(&cache, "im2col", "f32");
    let both = fs::read_to_string(file(&cache)).expect("a file");
    assert!(timed > 0 && other != digest && kinds(&both).len() > kinds(&others).len(), "{both}");
    println!("{both}");
    fs::remove_dir_all(cache).expect("it is there");
    Ok(())
}
