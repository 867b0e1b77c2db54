//! Planted faults: wrong kernels and launches, through the public API, each of which the emulator or `check::parity` has to
//! catch; and for each its healthy twin, which has to pass, so that the catch is no false alarm.
//!
//! The emulator reads its modes when it is loaded, so every fault runs in a process of its own. On hardware most of these
//! would go by unseen; there is nothing to run without the emulator.

mod common;

use std::{
    env,
    process::{Command, Stdio},
};

use hadal::{
    Array, DType, Error, Result,
    autograd::{Op, Saved},
    check, cpu,
    cuda::{Define, Kernel, Source},
};

static FAULTS: Source = Source::new("tests/kernels/faults.cu", include_str!("kernels/faults.cu"));
const BLOCK: usize = 64;
/// Not a multiple of the block, nor of the 16 bytes that allocations are aligned to.
const ODD: usize = 2 * BLOCK - 29;

/// The name of the fault that a child process plants.
const FAULT: &str = "HADAL_TEST_FAULT";
/// `1` in a child with the fault, `0` in its twin.
const PLANTED: &str = "HADAL_TEST_PLANTED";

/// An op with or without its fault; the CPU's path is always right.
#[derive(Debug)]
struct Planted {
    fault: &'static str,
    planted: bool,
}

impl Planted {
    fn reference(&self, x: &[&Array]) -> Result<Vec<f32>> {
        let v = x[0].as_slice::<f32>()?;
        let reversed = || v.chunks(BLOCK).flat_map(|c| c.iter().rev().copied()).collect();
        Ok(match self.fault {
            "out of bounds" => (0..v.len()).map(|i| v[(i + 1).min(v.len() - 1)]).collect(),
            "no barrier" | "divergent barrier" => reversed(),
            "no wait 16" | "no wait 8" | "no wait 4" => v.iter().map(|x| 2.0 * x).collect(),
            "grid" | "swapped" | "swapped with a count" => v.iter().zip(x[1].as_slice::<f32>()?).map(|(a, b)| a - b).collect(),
            _ => v.to_vec(),
        })
    }

    fn kernel(&self, name: &'static str, x: &Array) -> Result<Kernel<'static>> {
        let width = self.fault.strip_prefix("no wait ").map_or(16, |w| w.parse().unwrap());
        let defines = [("scalar_t", x.dtype().into()), ("FAULT", i64::from(self.planted).into()), ("WIDTH", Define::Int(width))];
        FAULTS.kernel(name, x, &defines)
    }

    fn device(&self, x: &[&Array]) -> Result<Array> {
        let n = x[0].len();
        let (count, blocks) = (n as i64, [n.div_ceil(BLOCK) as u32, 1, 1]);
        let mut y = x[0].empty_like()?;
        // SAFETY of all launches here: none has to be right. Only the emulator runs them, in a process of their own,
        // and its device memory is apart from the process's.
        let queue = |k: Kernel<'_>, grid: [u32; 3]| unsafe { k.run(grid, [BLOCK as u32, 1, 1], 0) };
        match self.fault {
            "out of bounds" => queue(self.kernel("shift", x[0])?.array_mut(&mut y).array(x[0]).value(count), blocks)?,
            "no barrier" => queue(self.kernel("reverse", x[0])?.array_mut(&mut y).array(x[0]), blocks)?,
            "divergent barrier" => queue(self.kernel("reverse_branches", x[0])?.array_mut(&mut y).array(x[0]), blocks)?,
            "no wait 16" | "no wait 8" | "no wait 4" => {
                queue(self.kernel("staged", x[0])?.array_mut(&mut y).array(x[0]).value(count), blocks)?
            }
            "grid" => {
                let blocks = if self.planted { [(n / BLOCK) as u32, 1, 1] } else { blocks };
                queue(self.kernel("difference", x[0])?.array_mut(&mut y).array(x[0]).array(x[1]).value(count), blocks)?;
            }
            "swapped" => {
                let (a, b) = if self.planted { (x[1], x[0]) } else { (x[0], x[1]) };
                queue(self.kernel("difference", x[0])?.array_mut(&mut y).array(a).array(b).value(count), blocks)?;
            }
            "swapped with a count" => {
                let k = self.kernel("difference", x[0])?.array_mut(&mut y).array(x[0]);
                let k = if self.planted { k.value(count).array(x[1]) } else { k.array(x[1]).value(count) };
                queue(k, blocks)?;
            }
            "unwritten" => queue(self.kernel("copy", x[0])?.array_mut(&mut y).array(x[0]).value(count), blocks)?,
            "use after free" => {
                let mut own = x[0].empty_like()?;
                let right = Planted { fault: self.fault, planted: false };
                queue(right.kernel("copy", x[0])?.array_mut(&mut own).array(x[0]).value(count), blocks)?;
                let mut place = Array::empty(&[1], DType::I64, &x[0].context())?;
                queue(self.kernel("remember", x[0])?.array_mut(&mut place).array(&own), [1, 1, 1])?;
                let kept = if self.planted { None } else { Some(own.clone()) };
                drop(own);
                queue(self.kernel("recall", x[0])?.array_mut(&mut y).array(&place).value(count), blocks)?;
                drop(kept);
            }
            other => return Err(Error::Check(format!("no fault is called {other}"))),
        }
        Ok(y)
    }
}

impl Op for Planted {
    fn name(&self) -> &'static str {
        self.fault
    }
    fn forward(&self, x: &[&Array], _: &mut Saved) -> Result<Vec<Array>> {
        if x[0].context().is_gpu() {
            return Ok(vec![self.device(x)?]);
        }
        Ok(vec![Array::from_vec(self.reference(x)?, x[0].shape(), &cpu())?])
    }
    fn backward(&self, saved: &Saved, _: &[Array]) -> Result<Vec<Option<Array>>> {
        Ok(vec![None; saved.inputs()])
    }
}

/// Whether this process runs under the emulator; if not, that is said once.
fn emulated() -> bool {
    let yes = env::var("HADAL_EMULATOR").is_ok_and(|v| v == "1");
    static SAID: std::sync::Once = std::sync::Once::new();
    if !yes {
        SAID.call_once(|| common::say("the planted faults are NOT run: they need the emulator (emulator/run)"));
    }
    yes
}

/// Runs the fault and its twin, each in a process with `modes`; the first has to fail with each of `words` in what it says.
fn caught(fault: &str, modes: &[(&str, &str)], words: &[&str]) {
    if !emulated() {
        return;
    }
    common::gpu();
    let run = |planted: &str| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["child", "--exact", "--nocapture"]).stdin(Stdio::null());
        for mode in ["HADAL_EMU_CHECK", "HADAL_EMU_RACE", "HADAL_EMU_SHUFFLE", "HADAL_POOL", "HADAL_POISON", "HADAL_SYNC"] {
            command.env_remove(mode);
        }
        let output = command.envs(modes.iter().copied()).env(FAULT, fault).env(PLANTED, planted).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let twin = run("0");
    assert!(twin.contains("outcome: passed"), "{fault}: the healthy twin does not pass:\n{twin}");
    let said = run("1");
    assert!(said.contains("outcome: caught"), "{fault}: NOT caught:\n{said}");
    for word in words {
        assert!(said.contains(word), "{fault}: caught, but without a word of `{word}`:\n{said}");
    }
}

/// The other side of [`caught`].
#[test]
fn child() {
    let Ok(name) = env::var(FAULT) else { return };
    let planted = env::var(PLANTED).is_ok_and(|v| v == "1");
    let whole = ["no barrier", "divergent barrier"].contains(&name.as_str());
    let n = if whole { 2 * BLOCK } else { ODD };
    let input = |seed| check::cast(&check::random(&[n], seed).unwrap(), DType::F32).unwrap();
    let inputs = [input(1), input(2)];
    let gpu = hadal::gpu(0).unwrap();
    let parity = |planted| check::parity(&Planted { fault: name.clone().leak(), planted }, &inputs, &gpu, &cpu());
    if name == "unwritten" {
        // The pool then holds the right answer, for the faulty kernel to find in its output.
        parity(false).unwrap();
    }
    if name == "forgotten" {
        // No parity: the program itself reads what its kernel forgot, in a block that holds the right answer.
        let last = |planted| {
            let op = Planted { fault: "unwritten", planted };
            let x = inputs[0].to_context(&gpu).unwrap();
            op.device(&[&x]).unwrap().to_vec::<f32>().unwrap()[n - 1]
        };
        last(false);
        let value = last(planted);
        return println!("\noutcome: {}", if value.is_nan() { "caught: NaN" } else { "passed" });
    }
    match parity(planted) {
        Ok(()) => println!("\noutcome: passed"),
        Err(e) => println!("\noutcome: caught: {e}"),
    }
}

const CHECK: &[(&str, &str)] = &[("HADAL_EMU_CHECK", "1"), ("HADAL_POOL", "off")];

#[test]
fn an_out_of_bounds_read_of_one_element() {
    caught("out of bounds", CHECK, &["`shift`", "illegal read of 4 bytes", "0 bytes past the end"]);
}

#[test]
fn a_missing_syncthreads() {
    caught("no barrier", &[("HADAL_EMU_RACE", "1")], &["`reverse`", "race in shared memory", "faults.cu:"]);
}

#[test]
fn a_divergent_barrier() {
    caught("divergent barrier", &[], &["`reverse_branches`", "divergent barrier: this thread is at tests/kernels/faults.cu:"]);
}

#[test]
fn a_missing_wait_for_cp_async() {
    for fault in ["no wait 16", "no wait 8", "no wait 4"] {
        caught(fault, &[], &["relative difference inf, worst at (0,): NaN"]);
    }
}

#[test]
fn a_wrong_grid_size() {
    caught("grid", &[], &["relative difference inf, worst at (64,): NaN"]);
}

#[test]
fn swapped_arguments() {
    caught("swapped", &[], &["relative difference 2.000e0"]);
}

#[test]
fn a_pointer_swapped_with_a_count() {
    caught("swapped with a count", CHECK, &["`difference`", "illegal read of 4 bytes", "a null pointer"]);
}

#[test]
fn an_unwritten_output_element() {
    caught("unwritten", &[], &["relative difference inf, worst at (98,): NaN"]);
}

#[test]
fn a_forgotten_element_in_a_program_with_hadal_poison() {
    caught("forgotten", &[("HADAL_POISON", "1")], &[]);
}

#[test]
fn use_after_free() {
    caught("use after free", CHECK, &["`recall`", "use after free"]);
}
