//! Kernels of the user's through `cuda::Source`: what is right runs, what is wrong says so before it reaches the device.

mod common;

use hadal::{
    Array, Context, DType, Error, Result,
    autograd::{Op, Saved},
    check, cpu,
    cuda::Source,
};

static SCALE: Source = Source::new(
    "user/scale.cu",
    r#"// y = a x, but for the last `skip` elements
#include "common.cuh"
#include "factor.cuh"
extern "C" __global__ void scale(scalar_t* y, const scalar_t* x, double a, int skip, i64 n) {
  GRID_STRIDE(i, n - skip) store(y + i, (acc_t)(FACTOR * a) * load(x + i));
}
"#,
)
.with_headers(&[("factor.cuh", "#pragma once\n#define FACTOR 1\n")]);

fn scale(x: &Array, y: &mut Array, a: f64, skip: i32) -> Result<()> {
    let k = SCALE.kernel("scale", x, &[("scalar_t", x.dtype().into())])?;
    let k = k.array_mut(y).array(x).value(a).value(skip).value(x.len() as i64);
    // SAFETY: the arguments are those of `scale`, and x and y have n elements.
    unsafe { k.run_1d(x.len()) }
}

/// y = 3x; its kernel may forget the last elements.
#[derive(Debug)]
struct Scale {
    skip: i32,
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }
    fn forward(&self, x: &[&Array], _: &mut Saved) -> Result<Vec<Array>> {
        let mut y = x[0].empty_like()?;
        if x[0].context().is_gpu() {
            scale(x[0], &mut y, 3.0, self.skip)?;
            return Ok(vec![y]);
        }
        let v = x[0].to_f64_vec()?.into_iter().map(|x| 3.0 * x).collect();
        Ok(vec![check::cast(&Array::from_vec(v, x[0].shape(), &cpu())?, x[0].dtype())?])
    }
    fn backward(&self, saved: &Saved, dy: &[Array]) -> Result<Vec<Option<Array>>> {
        let mut unused = Saved::default();
        Ok(vec![self.forward(&[&dy[0]], &mut unused)?.pop(); saved.inputs()])
    }
}

fn ones(n: usize, ctx: &Context) -> Array {
    Array::full(&[n], 1.0, DType::F32, ctx).unwrap()
}

#[test]
fn headers_are_spliced_and_lines_kept() {
    let text = SCALE.expand().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let at = |s: &str| lines.iter().position(|l| *l == s).unwrap_or_else(|| panic!("no line {s} in\n{text}"));
    assert_eq!((lines[0], lines[1]), ("#line 1 \"user/scale.cu\"", "// y = a x, but for the last `skip` elements"));
    // What common.cuh includes comes where it is included, once, and the user's own line numbers go on after it.
    assert!(at("#line 1 \"kernels/common.cuh\"") < at("#line 1 \"kernels/ptx.cuh\""));
    assert!(at("#line 1 \"factor.cuh\"") < at("#line 4 \"user/scale.cu\""));
    assert!(lines[at("#line 4 \"user/scale.cu\"") + 1].starts_with("extern \"C\""));
    assert!(!text.contains("#include \"common.cuh\"") && text.matches("#line 1 \"kernels/ptx.cuh\"").count() == 1);
    // An include that nobody knows is left to the compiler, which says where it stands.
    static LOST: Source = Source::new("lost.cu", "#include \"nowhere.cuh\"\n");
    assert_eq!(LOST.expand().unwrap(), "#line 1 \"lost.cu\"\n#include \"nowhere.cuh\"\n");
}

#[test]
fn a_launch_on_the_cpu_is_an_error() {
    let x = ones(3, &cpu());
    let e = scale(&x, &mut x.clone(), 1.0, 0).unwrap_err();
    assert!(matches!(e, Error::Context { op: "scale", .. }), "{e}");
}

#[test]
fn it_computes_in_every_float_type_and_leaves_shared_memory_alone() {
    let Some(gpu) = common::gpu() else { return };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        check::parity(&Scale { skip: 0 }, &[check::cast(&check::random(&[783], 7).unwrap(), dtype).unwrap()], &gpu, &cpu())
            .unwrap();
    }
    let x = ones(5, &gpu);
    let (mut y, twin) = (x.clone(), x.clone());
    scale(&twin, &mut y, 2.0, 1).unwrap();
    // y shared its memory with x: it was copied before it was written, so the element skipped is x's.
    assert_eq!(y.to_vec::<f32>().unwrap(), [2., 2., 2., 2., 1.]);
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.; 5]);
}

#[test]
fn parity_sees_an_element_that_is_not_written() {
    let Some(gpu) = common::gpu() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let x = [check::cast(&check::random(&[1000], 3).unwrap(), dtype).unwrap()];
        // Twice right, so that the memory handed out next holds the right answer already.
        check::parity(&Scale { skip: 0 }, &x, &gpu, &cpu()).unwrap();
        check::parity(&Scale { skip: 0 }, &x, &gpu, &cpu()).unwrap();
        let e = check::parity(&Scale { skip: 1 }, &x, &gpu, &cpu()).unwrap_err().to_string();
        assert!(e.contains("output 0") && e.contains("worst at (999,): NaN"), "{e}");
    }
}

#[test]
fn a_source_that_does_not_compile_says_where() {
    let Some(gpu) = common::gpu() else { return };
    static WRONG: Source =
        Source::new("user/wrong.cu", "#include \"common.cuh\"\n\nextern \"C\" __global__ void wrong() { undeclared = 1; }\n");
    let e = WRONG.kernel("wrong", &ones(1, &gpu), &[]).err().expect("it cannot compile");
    assert!(matches!(&e, Error::Compile { file, .. } if file == "user/wrong.cu"), "{e}");
    let log = e.to_string();
    // NVRTC writes file(line), a host compiler file:line.
    assert!(log.contains("undeclared") && (log.contains("user/wrong.cu(3)") || log.contains("user/wrong.cu:3")), "{log}");
}

#[test]
fn wrong_names_arguments_and_places_are_errors() {
    let Some(gpu) = common::gpu() else { return };
    let (x, on_cpu) = (ones(3, &gpu), ones(3, &cpu()));
    let defines = [("scalar_t", DType::F32.into())];
    let e = SCALE.kernel("scales", &x, &defines).err().expect("there is no such kernel").to_string();
    assert!(e.contains("scales") && e.contains("user/scale.cu"), "{e}");

    let e = scale(&on_cpu.to_context(&gpu).unwrap(), &mut on_cpu.clone(), 1.0, 0).unwrap_err();
    assert!(matches!(e, Error::Context { op: "scale", .. }), "{e}");

    // The driver tells what a kernel takes from 12.4 on; the emulator always does.
    let mut y = x.clone();
    let k = SCALE.kernel("scale", &x, &defines).unwrap().array_mut(&mut y).array(&x).value(1f64).value(0i32);
    // SAFETY: refused before it is queued, which is what this test is about; drivers before 12.4 would not.
    let e = unsafe { k.run_1d(3) }.unwrap_err().to_string();
    assert_eq!(e, "scale: the kernel takes 5 arguments, 4 are given");
    let k = SCALE.kernel("scale", &x, &defines).unwrap().array_mut(&mut y).array(&x).value(1f32).value(0i32).value(3i64);
    // SAFETY: as above.
    let e = unsafe { k.run_1d(3) }.unwrap_err().to_string();
    assert_eq!(e, "scale: argument 2 of the kernel has 8 bytes, 4 are given");
}
