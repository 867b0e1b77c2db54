//! Binary ops, where and cast against values worked out by hand, on every context.

mod common;

use hadal::{Array, Context, DType, Element, Layout, Tensor, autograd, cpu};
use half::{bf16, f16};

fn tensor<T: Element>(v: &[T], shape: &[usize], ctx: &Context) -> Tensor {
    Tensor::from_vec(v.to_vec(), shape, ctx).unwrap()
}

fn floats(v: &[f32], ctx: &Context) -> Tensor {
    tensor(v, &[v.len()], ctx)
}

fn values<T: Element>(t: &Tensor) -> Vec<T> {
    t.array().to_vec::<T>().unwrap()
}

#[test]
fn broadcasting_pairs_the_right_elements() {
    // Each element of a is 100·(its index), each of b its own: the sum names both.
    let shapes: &[(&[usize], &[usize], &[usize])] = &[
        (&[2, 3], &[2, 3], &[2, 3]),
        (&[2, 3, 2, 2], &[1, 3, 1, 1], &[2, 3, 2, 2]),
        (&[4, 1], &[3], &[4, 3]),
        (&[2, 1, 3], &[4, 1], &[2, 4, 3]),
        (&[], &[2, 2], &[2, 2]),
        (&[2, 1, 2, 1, 2], &[3, 1, 2, 1], &[2, 3, 2, 2, 2]),
    ];
    for ctx in common::contexts() {
        for &(a, b, y) in shapes {
            let count = |s: &[usize]| s.iter().product::<usize>();
            let x: Vec<f32> = (0..count(a)).map(|i| 100.0 * i as f32).collect();
            let z: Vec<f32> = (0..count(b)).map(|i| i as f32).collect();
            // Index by index, without strides.
            let at = |shape: &[usize], index: &[usize]| {
                shape.iter().zip(&index[index.len() - shape.len()..]).fold(0, |p, (&e, &i)| p * e + if e == 1 { 0 } else { i })
            };
            let mut expected = Vec::new();
            for i in 0..count(y) {
                let mut index = vec![0; y.len()];
                let mut rest = i;
                for d in (0..y.len()).rev() {
                    (index[d], rest) = (rest % y[d], rest / y[d]);
                }
                expected.push(x[at(a, &index)] + z[at(b, &index)]);
            }
            for layout in [Layout::RowMajor, Layout::ChannelsLast] {
                let (x, z) = (tensor(&x, a, &ctx), tensor(&z, b, &ctx));
                let x = if a.len() == 4 { Tensor::new(x.array().to_layout(layout).unwrap()) } else { x };
                let sum = (&x + &z).unwrap();
                assert_eq!((sum.shape(), sum.to_vec().unwrap()), (y.to_vec(), expected.clone()), "{a:?} {b:?}");
                if a.len() == 4 {
                    assert_eq!(sum.layout(), layout);
                }
            }
        }
    }
}

#[test]
fn operators_in_all_forms() {
    for ctx in common::contexts() {
        let (x, y) = (floats(&[1., 2.], &ctx), floats(&[4., 8.], &ctx));
        let v = |t: hadal::Result<Tensor>| t.unwrap().to_vec().unwrap();
        assert_eq!(v(&x + &y), [5., 10.]);
        assert_eq!(v(x.clone() + &y), [5., 10.]);
        assert_eq!(v(&x - y.clone()), [-3., -6.]);
        assert_eq!(v(x.clone() * y.clone()), [4., 16.]);
        assert_eq!(v(&y / &x), [4., 4.]);
        assert_eq!(v(&x + 1.0), [2., 3.]);
        assert_eq!(v(x.clone() - 1.0), [0., 1.]);
        assert_eq!(v(1.0 - &x), [0., -1.]);
        assert_eq!(v(2.0 / x.clone()), [2., 1.]);
        assert_eq!(v(3.0 * &x), [3., 6.]);
        assert_eq!(v(-&x), [-1., -2.]);
        assert_eq!(v(-x.clone()), [-1., -2.]);
        assert_eq!(v((&x + &y).unwrap().relu()), [5., 10.]);
        assert_eq!(v(x.maximum(1.5)), [1.5, 2.]);
        assert_eq!(v(x.minimum(&y)), [1., 2.]);
        assert_eq!(v(y.power(&x)), [4., 64.]);
        let negated: Vec<i64> = values(&(-tensor(&[5i64, -7], &[2], &ctx)).unwrap());
        assert_eq!(negated, [-5, 7]);
    }
}

#[test]
fn comparisons_answer_in_the_operands_dtype() {
    for ctx in common::contexts() {
        let (a, b) = (floats(&[1., 2., 3., f32::NAN], &ctx), floats(&[2., 2., 2., f32::NAN], &ctx));
        let v = |t: hadal::Result<Tensor>| t.unwrap().to_vec().unwrap();
        assert_eq!(v(a.eq(&b)), [0., 1., 0., 0.]);
        assert_eq!(v(a.ne(&b)), [1., 0., 1., 1.]);
        assert_eq!(v(a.lt(&b)), [1., 0., 0., 0.]);
        assert_eq!(v(a.le(&b)), [1., 1., 0., 0.]);
        assert_eq!(v(a.gt(&b)), [0., 0., 1., 0.]);
        assert_eq!(v(a.ge(&b)), [0., 1., 1., 0.]);
        assert_eq!(v(a.ge(2.0)), [0., 1., 1., 0.]);
        let bytes = tensor(&[0u8, 7, 255], &[3], &ctx).gt(6.0).unwrap();
        assert_eq!((bytes.dtype(), values::<u8>(&bytes)), (DType::U8, vec![0, 1, 1]));
        // No f64 tells these two apart.
        let big = tensor(&[9_007_199_254_740_993i64], &[1], &ctx);
        let other = tensor(&[9_007_199_254_740_992i64], &[1], &ctx);
        assert_eq!(values::<i64>(&big.eq(&other).unwrap()), [0]);
    }
}

#[test]
fn integers_wrap_and_their_quotients_are_cut() {
    for ctx in common::contexts() {
        let (a, b) = (tensor(&[250u8, 3, 7], &[3], &ctx), tensor(&[10u8, 5, 0], &[3], &ctx));
        assert_eq!(values::<u8>(&(&a + &b).unwrap()), [4, 8, 7]);
        assert_eq!(values::<u8>(&(&a - &b).unwrap()), [240, 254, 7]);
        assert_eq!(values::<u8>(&(&a * &b).unwrap()), [196, 15, 0]);
        assert_eq!(values::<u8>(&(&a / &b).unwrap()), [25, 0, 0]);
        let (a, b) = (tensor(&[-7i64, i64::MIN, i64::MAX, 9], &[4], &ctx), tensor(&[2i64, -1, 1, 0], &[4], &ctx));
        assert_eq!(values::<i64>(&(&a / &b).unwrap()), [-3, i64::MIN, i64::MAX, 0]);
        assert_eq!(values::<i64>(&(&a + &b).unwrap()), [-5, i64::MAX, i64::MIN, 9]);
        assert_eq!(values::<i64>(&a.maximum(&b).unwrap()), [2, -1, i64::MAX, 9]);
        assert_eq!(values::<i64>(&(&a * 2.0).unwrap())[0], -14);
    }
}

#[test]
fn ties_send_their_gradient_to_the_first_operand_and_nan_wins() {
    for ctx in common::contexts() {
        let (a, b) = (floats(&[1., 2., 3.], &ctx).attach_grad(), floats(&[2., 2., 2.], &ctx).attach_grad());
        autograd::record(|| a.maximum(&b)).unwrap().backward().unwrap();
        assert_eq!(
            (a.grad().unwrap().to_vec().unwrap(), b.grad().unwrap().to_vec().unwrap()),
            (vec![0., 1., 1.], vec![1., 0., 0.])
        );
        autograd::record(|| a.minimum(&b)).unwrap().backward().unwrap();
        assert_eq!(
            (a.grad().unwrap().to_vec().unwrap(), b.grad().unwrap().to_vec().unwrap()),
            (vec![1., 1., 0.], vec![0., 0., 1.])
        );
        let nan = floats(&[f32::NAN, 1.], &ctx);
        for y in
            [nan.maximum(0.0), nan.minimum(0.0), floats(&[0., 0.], &ctx).maximum(&nan), floats(&[0., 0.], &ctx).minimum(&nan)]
        {
            assert!(y.unwrap().to_vec().unwrap()[0].is_nan());
        }
        // 0 to any power ≥ 0, and any number to the power 0: finite gradients.
        let (x, p) = (floats(&[0., 0., 2.], &ctx).attach_grad(), floats(&[0., 2., 0.], &ctx).attach_grad());
        autograd::record(|| x.power(&p)).unwrap().backward().unwrap();
        assert_eq!(x.grad().unwrap().to_vec().unwrap(), [0., 0., 0.]);
        let dp = p.grad().unwrap().to_vec().unwrap();
        assert_eq!((dp[0], dp[1]), (0., 0.));
        assert!((dp[2] - 2f32.ln()).abs() < 1e-6);
    }
}

#[test]
fn one_tensor_as_both_operands() {
    for ctx in common::contexts() {
        let x = floats(&[1., -2., 3.], &ctx).attach_grad();
        autograd::record(|| &x * &x).unwrap().backward().unwrap();
        assert_eq!(x.grad().unwrap().to_vec().unwrap(), [2., -4., 6.]);
        autograd::record(|| x.gt(0.0).and_then(|mask| mask * &x)).unwrap().backward().unwrap();
        assert_eq!(x.grad().unwrap().to_vec().unwrap(), [1., 0., 1.]);
        autograd::record(|| Tensor::add_n(&[&x, &x, &x])).unwrap().backward().unwrap();
        assert_eq!(x.grad().unwrap().to_vec().unwrap(), [3., 3., 3.]);
    }
}

#[test]
fn in_place() {
    for ctx in common::contexts() {
        let x = floats(&[1., 2.], &ctx);
        let (same, copy) = (x.clone(), x.detach());
        x.add_(&floats(&[10.], &ctx)).unwrap();
        x.mul_(2.0).unwrap();
        x.sub_(&x).unwrap();
        x.add_(8.0).unwrap();
        x.div_(&floats(&[2., 4.], &ctx)).unwrap();
        assert_eq!(same.to_vec().unwrap(), [4., 2.]);
        assert_eq!(copy.to_vec().unwrap(), [1., 2.], "shared memory must not change");

        let e = x.add_(&Tensor::zeros(&[3, 2], &ctx).unwrap()).unwrap_err().to_string();
        assert!(e.contains("(3, 2)") && e.contains("(2,)"), "{e}");
        let v = x.attach_grad();
        v.add_(1.0).unwrap();
        assert!(autograd::record(|| v.add_(1.0)).unwrap_err().to_string().contains("in place"));
        assert!(autograd::record(|| x.add_(&v)).is_err());
        autograd::record(|| autograd::pause(|| v.add_(1.0))).unwrap();
        assert_eq!(v.to_vec().unwrap(), [6., 4.]);
        let y = autograd::record(|| &v * 2.0).unwrap();
        assert!(y.add_(1.0).is_err(), "a recorded result");
    }
}

#[test]
fn where_chooses() {
    for ctx in common::contexts() {
        let cond = tensor(&[0i64, 5, -1], &[3], &ctx);
        let (a, b) = (floats(&[1., 2., 3.], &ctx).attach_grad(), tensor(&[9f32], &[1], &ctx).attach_grad());
        let y = autograd::record(|| cond.where_(&a, &b)).unwrap();
        assert_eq!(y.to_vec().unwrap(), [9., 2., 3.]);
        y.backward().unwrap();
        assert_eq!(a.grad().unwrap().to_vec().unwrap(), [0., 1., 1.]);
        assert_eq!(b.grad().unwrap().to_vec().unwrap(), [1.]);
        let float = floats(&[0., -0., f32::NAN], &ctx);
        assert_eq!(values::<u8>(&float.where_(&tensor(&[1u8], &[], &ctx), &tensor(&[7u8], &[], &ctx)).unwrap()), [7, 7, 1]);
    }
}

#[test]
fn cast_rounds_cuts_and_saturates() {
    for ctx in common::contexts() {
        let x = tensor(&[2.9f64, -2.9, 1e30, -1e30, f64::NAN, 255.5, -0.5, f64::INFINITY], &[8], &ctx);
        let ints: Vec<i64> = values(&x.cast(DType::I64).unwrap());
        assert_eq!(ints, [2, -2, i64::MAX, i64::MIN, 0, 255, 0, i64::MAX]);
        assert_eq!(values::<u8>(&x.cast(DType::U8).unwrap()), [2, 0, 255, 0, 0, 255, 0, 255]);
        assert_eq!(values::<u8>(&tensor(&[300i64, -1, 7], &[3], &ctx).cast(DType::U8).unwrap()), [44, 255, 7]);
        // Ties to even, and a hair above a tie up: rounding twice would lose the hair.
        let (tie, hair) = (1.0 + 2f64.powi(-11), 2f64.powi(-40));
        let x = tensor(&[tie, tie + hair, -tie - hair, 65519.9, 65520.0, 1e-8, 1e300], &[7], &ctx);
        let half: Vec<f64> = values::<f16>(&x.cast(DType::F16).unwrap()).into_iter().map(Element::to_f64).collect();
        let up = 1.0 + 2f64.powi(-10);
        assert_eq!(half, [1.0, up, -up, 65504.0, f64::INFINITY, 0.0, f64::INFINITY]);
        let tie = 1.0 + 2f64.powi(-8);
        let x = tensor(&[tie, tie + hair, 1e39], &[3], &ctx);
        let brain: Vec<f64> = values::<bf16>(&x.cast(DType::BF16).unwrap()).into_iter().map(Element::to_f64).collect();
        assert_eq!(brain, [1.0, 1.0 + 2f64.powi(-7), f64::INFINITY]);
        // A large integer is rounded once: 2⁵³ + 2²⁹ + 1 lies above the middle of two f32 numbers.
        let x = tensor(&[(1i64 << 53) + (1 << 29) + 1], &[1], &ctx);
        assert_eq!(values::<f32>(&x.cast(DType::F32).unwrap()), [((1i64 << 53) + (1 << 30)) as f32]);

        let x = floats(&[1.5, 2.5], &ctx).attach_grad();
        autograd::record(|| x.cast(DType::F16)?.square()).unwrap().backward().unwrap();
        let g = x.grad().unwrap();
        assert_eq!((g.dtype(), g.to_vec().unwrap()), (DType::F32, vec![3., 5.]));
        assert!(autograd::record(|| x.cast(DType::I64)).unwrap().backward().is_err());
    }
}

#[test]
fn errors_name_the_op_and_what_to_do() {
    for ctx in common::contexts() {
        let (x, ints) = (floats(&[1., 2.], &ctx), tensor(&[1i64, 2], &[2], &ctx));
        let text = |r: hadal::Result<Tensor>| r.unwrap_err().to_string();
        let e = text(&x + &ints);
        assert!(e.starts_with("add") && e.contains("f32") && e.contains("i64") && e.contains("cast"), "{e}");
        let e = text(x.mul(&floats(&[1., 2., 3.], &ctx)));
        assert!(e.starts_with("mul") && e.contains("(2,), (3,)"), "{e}");
        let e = text(ints.lt(0.5));
        assert!(e.contains("0.5") && e.contains("i64"), "{e}");
        assert!(ints.add(9.3e18).is_err() && ints.add(f64::NAN).is_err() && tensor(&[1u8], &[1], &ctx).add(-1.0).is_err());
        assert!(text(ints.power(2.0)).contains("i64"));
        assert!(text(x.where_(&x, &ints)).starts_with("where"));
        assert!(text(Tensor::add_n(&[])).contains("one input"));
        assert!(text(Tensor::add_n(&[&x, &floats(&[1.], &ctx)])).contains("(2,), (1,)"));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let x = Tensor::arange(0.0, 300_000.0, 1.0, &cpu()).unwrap().sigmoid().unwrap().reshape_for_test(&[3, 100_000]);
            let y = Tensor::arange(0.0, 3.0, 1.0, &cpu()).unwrap().reshape_for_test(&[3, 1]);
            let z = (&x / &(&y + 0.3).unwrap()).unwrap();
            let sums = [z.sum(&[]).unwrap(), z.sum(&[0]).unwrap(), z.mean(&[1]).unwrap()];
            let all: Vec<Vec<u32>> = sums.iter().map(|t| t.to_vec().unwrap().into_iter().map(f32::to_bits).collect()).collect();
            all
        })
    };
    assert_eq!(run(1), run(4));
}

trait ReshapeForTest {
    fn reshape_for_test(&self, shape: &[usize]) -> Tensor;
}

impl ReshapeForTest for Tensor {
    fn reshape_for_test(&self, shape: &[usize]) -> Tensor {
        let a: Array = self.array().reshape(shape).unwrap();
        Tensor::new(a)
    }
}
