//! `hadal bench`: what each op and each training step takes here, beside the ceilings measured in the same run.

mod clock;
mod first;
mod ops;
mod step;

use std::{fmt, time::Instant};

use hadal::{Context, DType, Error, Result, eprintln, precision::Precision, println};

const HELP: &str = "\
usage: hadal bench [ops|step|first] [options]

ops    convolutions of ResNet-18, matrix products and the memory-bound ops, forward and backward, and a batch from the loader:
       µs, TFLOP/s, GB/s, and the share of the best matrix product and of the copy that this run measured
step   whole training steps of the book's nets: ms, images/s, seconds to the first step
first  seconds from a program's start to the end of its first training step: with an empty cache of kernels, and with that
       cache filled; each in a process of its own

  --context C        cpu, gpu, gpu:1, … or auto (gpu(0) if it can be used, else the CPU)
  --dtypes f32,bf16  of the ops, or what the nets are cast to (f16 with a loss scale) [f32]; tf32 is f32 whose products round
                     their operands to TF32
  --eager            steps op by op instead of by the net's fused graph
  --graph            each step also as a captured graph, on a GPU
  --only TEXT        only what has TEXT in its name
  --batch N          images in a step and in a convolution's input [256; 32 for the ops on a CPU]
  --channels-last    four-dimensional inputs in N,H,W,C memory
  --quick            small and rough: does everything work?
  --json             a JSON object a line instead of tables
  --list             the ops as JSON lines, for other engines' scripts; measures nothing

On a GPU every op's figure is that of a captured graph's replay, so that launches are not counted; the rest is the best of several
blocks. Timings on a machine that does other things are worth little: compare within one run.";

/// What the command line says.
pub struct Options {
    pub ctx: Context,
    pub dtypes: Vec<Numbers>,
    pub only: String,
    pub batch: Option<usize>,
    pub channels_last: bool,
    pub graph: bool,
    pub eager: bool,
    pub quick: bool,
    pub json: bool,
    list: bool,
    /// One first step in this process, for `first`, and when the process began.
    once: bool,
    began: Instant,
}

pub fn run(args: &[String]) -> Result<()> {
    let mut what = None;
    let mut context = "auto".to_owned();
    let mut o = Options {
        ctx: Context::Cpu,
        dtypes: vec![Numbers(DType::F32, Precision::F32)],
        only: String::new(),
        batch: None,
        channels_last: false,
        graph: false,
        eager: false,
        quick: false,
        json: false,
        list: false,
        once: false,
        began: Instant::now(),
    };
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().cloned().ok_or_else(|| Error::invalid("bench", format!("{arg} needs a value")));
        match arg.as_str() {
            "ops" | "step" | "first" if what.is_none() => what = Some(arg.as_str()),
            "--context" => context = value()?,
            "--dtypes" => o.dtypes = value()?.split(',').map(numbers).collect::<Result<_>>()?,
            "--only" => o.only = value()?,
            "--batch" => o.batch = Some(value()?.parse().map_err(|_| Error::invalid("bench", "--batch needs a number"))?),
            "--channels-last" => o.channels_last = true,
            "--graph" => o.graph = true,
            "--eager" => o.eager = true,
            "--once" => o.once = true,
            "--quick" => o.quick = true,
            "--json" => o.json = true,
            "--list" => o.list = true,
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(());
            }
            other if other.starts_with('-') => {
                return Err(Error::invalid("bench", format!("there is no option {other:?}; see hadal bench --help")));
            }
            other => {
                return Err(Error::invalid("bench", format!("{other:?} is none of ops, step, first; see hadal bench --help")));
            }
        }
    }
    if o.batch == Some(0) {
        return Err(Error::invalid("bench", "--batch needs at least 1"));
    }
    o.ctx = context.parse()?;
    if o.list {
        ops::table(&o).iter().for_each(|case| println!("{}", case.json()));
        return Ok(());
    }
    if o.quick && !o.once {
        eprintln!("--quick is a smoke test: it shows that everything runs, and its figures mean nothing");
    }
    match what {
        Some("first") if o.once => first::once(&o),
        Some("first") => first::run(&o),
        Some("ops") => ops::run(&o),
        Some("step") => step::run(&o),
        _ => ops::run(&o).and_then(|()| step::run(&o)),
    }
}

/// What is computed with: the arrays' dtype and the precision of f32 products.
#[derive(Clone, Copy, PartialEq)]
pub struct Numbers(pub DType, pub Precision);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Numbers(DType::F32, Precision::Tf32) => f.write_str("tf32"),
            Numbers(dtype, _) => dtype.fmt(f),
        }
    }
}

fn numbers(name: &str) -> Result<Numbers> {
    let dtypes = [DType::F32, DType::F64, DType::F16, DType::BF16].map(|d| Numbers(d, Precision::F32));
    let mut known = dtypes.into_iter().chain([Numbers(DType::F32, Precision::Tf32)]);
    known
        .find(|n| n.to_string() == name)
        .ok_or_else(|| Error::invalid("bench", format!("{name:?} is none of f32, tf32, f64, f16, bf16")))
}
