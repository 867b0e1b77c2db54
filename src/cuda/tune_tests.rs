//! The tuner, where there is a GPU (or its emulator), by a clock that the tests set.

use std::{fs, path::PathBuf, thread};

use super::{
    Graph,
    backlog_tests::{ALONE, alone, own_device},
    tune::{self, Choice, Mode, Problem, TEST},
};
use crate::{
    Array, DType, Result, Tensor,
    autograd::{Op, Saved},
    check::{cast, difference, random},
    gpu,
    ops::{Conv2d, Conv2dOptions, MatMul},
    precision::{self, Precision},
};
use std::cell::RefCell;

const ALL: [Choice; 3] = [[1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [3, 0, 0, 0, 0]];

/// The choice for a problem of the tests' own, and which candidates were run for it.
fn ask(d: &std::sync::Arc<super::device::Device>, shape: &[usize]) -> Result<(u32, Vec<u32>)> {
    let problem = Problem { device: d, family: "test", shape };
    let ran = RefCell::new(Vec::new());
    let run = |c: &Choice| {
        ran.borrow_mut().push(c[0]);
        Ok(())
    };
    let choice = tune::choose(&problem, ALL[0], &|| ALL.to_vec(), &run)?;
    Ok((choice[0], ran.into_inner()))
}

/// A new, empty cache folder.
pub(super) fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("hadal-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn third(c: &Choice) -> u64 {
    if c[0] == 3 { 50 } else { 100 }
}

#[test]
fn each_problem_is_timed_once() -> Result<()> {
    let Some(d) = own_device()? else { return Ok(()) };
    // In `force` nothing is read, so that the user's own cache does not matter.
    let set = |clock: fn(&Choice) -> u64| TEST.set(Some((Mode::Force, clock)));
    TEST.set(Some((Mode::Off, third)));
    assert_eq!(ask(&d, &[usize::MAX, 1])?, (1, vec![]));
    if std::env::var_os(ALONE).is_none() {
        let cache = folder("once");
        let env = [("HADAL_CACHE", cache.to_str().expect("a name"))];
        let said = alone("cuda::tune_tests::each_problem_is_timed_once", &env);
        fs::remove_dir_all(cache).expect("it is there");
        assert!(said.is_some());
        return Ok(());
    }
    set(third);
    assert_eq!(ask(&d, &[1])?, (3, vec![1, 2, 3]));
    assert_eq!(ask(&d, &[1])?, (3, vec![]));
    // Equally fast, or nearly: the model's.
    set(|_| 100);
    assert_eq!(ask(&d, &[2])?.0, 1);
    set(|c| if c[0] == 1 { 1000 } else { 990 });
    assert_eq!(ask(&d, &[3])?.0, 1);
    // Of two that are better the faster one, of equal ones the first.
    set(|c| [1000, 800, 700][c[0] as usize - 1]);
    assert_eq!(ask(&d, &[4])?.0, 3);
    set(|c| if c[0] == 1 { 1000 } else { 700 });
    assert_eq!(ask(&d, &[5])?.0, 2);
    // Within a capture what is known is used, and nothing is timed.
    let x = Tensor::ones(&[4], &gpu(0)?)?;
    set(third);
    let (_graph, (old, new)) = Graph::capture(&gpu(0)?, || {
        x.square()?;
        Ok((ask(&d, &[1])?, ask(&d, &[6])?))
    })?;
    assert_eq!((old, new), ((3, vec![]), (1, vec![])));
    assert_eq!(ask(&d, &[6])?.0, 3);
    // Errors of a candidate are the launch's.
    let problem = Problem { device: &d, family: "test", shape: &[7] };
    let fails = |_: &Choice| Err(crate::Error::invalid("test", "on purpose"));
    assert!(tune::choose(&problem, ALL[0], &|| ALL.to_vec(), &fails).is_err());
    assert_eq!(ask(&d, &[7])?.0, 3);
    // Another device object of the process finds the winners on disk; a candidate that is none any more is timed again.
    let Some(other) = own_device()? else { return Ok(()) };
    TEST.set(Some((Mode::On, |_| 1)));
    assert_eq!((ask(&other, &[1])?, ask(&other, &[5])?), ((3, vec![]), (2, vec![])));
    let problem = Problem { device: &other, family: "test", shape: &[4] };
    assert_eq!(tune::choose(&problem, [9; 5], &|| vec![[9; 5], [8; 5]], &|_| Ok(()))?, [9; 5]);
    Ok(())
}

/// What a process of the test below prefers.
const PREFERS: &str = "HADAL_TEST_PREFERS";

fn preferred(c: &Choice) -> u64 {
    let wanted: u32 = std::env::var(PREFERS).ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    if c[0] == wanted { 50 } else { 100 }
}

/// In a process: its choices for two hundred problems, one line.
#[test]
fn choices_of_a_process() -> Result<()> {
    if std::env::var_os(PREFERS).is_none() {
        return Ok(());
    }
    let Some(d) = own_device()? else { return Ok(()) };
    TEST.set(Some((Mode::On, preferred)));
    let (mut choices, mut timed) = (String::new(), 0);
    for i in 0..200 {
        let (choice, ran) = ask(&d, &[i])?;
        choices += &choice.to_string();
        timed += usize::from(!ran.is_empty());
        assert_eq!(ask(&d, &[i])?, (choice, vec![]));
    }
    println!("\nchoices {choices} timed {timed}");
    Ok(())
}

fn process(cache: &str, prefers: &str) -> (String, usize) {
    let said = alone("cuda::tune_tests::choices_of_a_process", &[("HADAL_CACHE", cache), (PREFERS, prefers)]).expect("it ran");
    let line = said.lines().find_map(|l| l.strip_prefix("choices ")).expect("a line").to_owned();
    let (choices, timed) = line.split_once(" timed ").expect("two figures");
    (choices.to_owned(), timed.parse().expect("a figure"))
}

/// Two processes that time the same problems at once, with opposite results, end with the same choices; a third finds them, also
/// after the file was damaged and timed again.
#[test]
fn processes_agree() -> Result<()> {
    if own_device()?.is_none() || std::env::var_os(ALONE).is_some() {
        return Ok(());
    }
    let folder = folder("agree");
    let cache = folder.to_str().expect("a name");
    let ((a, timed_a), (b, timed_b)) = thread::scope(|s| {
        let (a, b) = (s.spawn(|| process(cache, "2")), s.spawn(|| process(cache, "3")));
        (a.join().expect("a process"), b.join().expect("a process"))
    });
    println!("{a}\n{timed_a} and {timed_b} of 200 were timed");
    assert_eq!(a, b);
    assert!(timed_a + timed_b >= 200 && !a.contains('1'), "{a}");
    assert_eq!(process(cache, "1"), (a.clone(), 0));
    let tsv = |e: &fs::DirEntry| e.path().extension().is_some_and(|x| x == "tsv");
    let files: Vec<_> = fs::read_dir(folder.join("tuned")).expect("a folder").flatten().filter(tsv).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let text = fs::read_to_string(file.path()).expect("a file");
    for damaged in [text.replacen("test\t5\t", "test\t6\t", 1), text[..text.len() / 2].to_owned(), String::new()] {
        assert_ne!(damaged, text);
        fs::write(file.path(), damaged).expect("it can be written");
        assert_eq!(process(cache, "3"), ("3".repeat(200), 200), "a damaged file is ignored");
        assert_eq!(process(cache, "2"), ("3".repeat(200), 0), "and rewritten");
    }
    fs::remove_dir_all(folder).expect("it is there");
    Ok(())
}

/// The plan of mma.sync with the longest splits, and of those the one with the largest tile.
fn whole(c: &Choice) -> u64 {
    (1 << 40) / u64::from(c[4].max(1)) - u64::from(c[1] * c[2])
}

/// Ops that are tuned: the right result, inputs and random state as before.
#[test]
fn tuning_changes_nothing_else() -> Result<()> {
    if own_device()?.is_none() || super::device(0)?.capability < (8, 0) {
        return Ok(());
    }
    let ctx = gpu(0)?;
    // In `force` nothing is read, and nothing is written into the user's cache.
    if let Some(_said) = alone("cuda::tune_tests::tuning_changes_nothing_else", &[("HADAL_CACHE", "off")]) {
        return Ok(());
    }
    let run = |op: &dyn Op, x: &[Array]| -> Result<Vec<Array>> {
        let x: Vec<&Array> = x.iter().collect();
        let mut saved = Saved::new(&x, vec![true; x.len()]);
        let y = op.forward(&x, &mut saved)?;
        let dy = y[0].to_layout(y[0].layout())?;
        let mut all = op.backward(&saved, &[dy])?.into_iter().flatten().collect::<Vec<_>>();
        all.extend(y);
        Ok(all)
    };
    let on = |shape: &[usize], seed: u64| cast(&random(shape, seed)?, DType::F32)?.to_context(&ctx);
    let product = (MatMul::default(), vec![on(&[130, 1100], 1)?, on(&[1100, 200], 2)?]);
    let last = on(&[2, 16, 12, 12], 3)?.to_layout(crate::Layout::ChannelsLast)?;
    let conv = Conv2d(Conv2dOptions::new().padding(1));
    let cases: [(&dyn Op, Vec<Array>); 3] = [
        (&product.0, product.1),
        (&conv, vec![last, on(&[24, 16, 3, 3], 4)?]),
        (&conv, vec![on(&[2, 64, 12, 12], 3)?, on(&[24, 64, 3, 3], 4)?, on(&[24], 5)?]),
    ];
    let mut ran = 0;
    for (op, x) in cases {
        let before = x.iter().map(Array::to_f64_vec).collect::<Result<Vec<_>>>()?;
        let state = crate::random::state();
        TEST.set(None);
        let untuned = run(op, &x)?;
        TEST.set(Some((Mode::Force, whole)));
        let tuned = run(op, &x)?;
        assert_eq!(x.iter().map(Array::to_f64_vec).collect::<Result<Vec<_>>>()?, before);
        assert_eq!(crate::random::state(), state);
        for (a, b) in tuned.iter().zip(&untuned) {
            let relative = difference(a, b)?.relative;
            assert!(relative < 1e-5, "{op:?}: {relative}");
            ran += usize::from(relative > 0.0);
        }
        // The same again, from memory.
        let again = run(op, &x)?;
        for (a, b) in tuned.iter().zip(&again) {
            assert_eq!(a.to_f64_vec()?, b.to_f64_vec()?);
        }
    }
    assert!(ran > 0, "no plan was another one than the model's");
    // In the place of wgmma where that is: a product in TF32 with k along both operands' rows.
    let (op, x) = (MatMul { transpose_a: false, transpose_b: true }, [on(&[520, 256], 1)?, on(&[264, 256], 2)?]);
    let forward = || -> Result<Array> {
        let x: Vec<&Array> = x.iter().collect();
        let run = || op.forward(&x, &mut Saved::new(&x, vec![false; 2]));
        Ok(precision::with(Precision::Tf32, run)?.remove(0))
    };
    TEST.set(None);
    let untuned = forward()?;
    TEST.set(Some((Mode::Force, whole)));
    let relative = difference(&forward()?, &untuned)?.relative;
    assert!(relative > 0.0 && relative < 1e-5, "sums in another order, and nothing else: {relative}");
    TEST.set(None);
    Ok(())
}
