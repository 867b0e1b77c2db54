//! Reductions against values worked out by hand or by numpy, on every context.

mod common;

use hadal::{Array, Context, DType, Element, Layout, Tensor, autograd};

fn tensor<T: Element>(v: &[T], shape: &[usize], ctx: &Context) -> Tensor {
    Tensor::from_vec(v.to_vec(), shape, ctx).unwrap()
}

fn v(t: hadal::Result<Tensor>) -> Vec<f32> {
    t.unwrap().to_vec().unwrap()
}

#[test]
fn sums_over_any_axes() {
    for ctx in common::contexts() {
        let x: Vec<f32> = (0..24u8).map(f32::from).collect();
        let x = tensor(&x, &[2, 3, 4], &ctx);
        assert_eq!(v(x.sum(&[])), [276.]);
        assert_eq!(v(x.sum(&[0])), [12., 14., 16., 18., 20., 22., 24., 26., 28., 30., 32., 34.]);
        assert_eq!(v(x.sum(&[1])), [12., 15., 18., 21., 48., 51., 54., 57.]);
        assert_eq!(v(x.sum(&[-1])), [6., 22., 38., 54., 70., 86.]);
        assert_eq!(v(x.sum(&[2, 0])), [60., 92., 124.]);
        assert_eq!(v(x.mean(&[0, 2])), [7.5, 11.5, 15.5]);
        assert_eq!(v(x.max(&[1])), [8., 9., 10., 11., 20., 21., 22., 23.]);
        assert_eq!(v(x.min(&[0, 1])), [0., 1., 2., 3.]);
        assert_eq!(v(x.prod(&[0, 1])), [0., 208_845., 665_280., 1_514_205.]);
        assert_eq!(x.sum_keepdims(&[0, 2]).unwrap().shape(), [1, 3, 1]);
        assert_eq!(x.sum(&[]).unwrap().shape(), [] as [usize; 0]);
        assert_eq!(x.mean_keepdims(&[]).unwrap().shape(), [1, 1, 1]);
        assert_eq!(v(x.norm(&[])), [(0..24).map(|i| (i * i) as f32).sum::<f32>().sqrt()]);
        let four = x.array().reshape(&[2, 3, 2, 2]).unwrap().to_layout(Layout::ChannelsLast).unwrap();
        let y = Tensor::new(four);
        assert_eq!(v(y.sum(&[1])), [12., 15., 18., 21., 48., 51., 54., 57.]);
        assert_eq!(v(y.max(&[0, 2, 3])), [15., 19., 23.]);
        let kept = y.sum_keepdims(&[0]).unwrap();
        assert_eq!((kept.layout(), kept.to_vec().unwrap()), (Layout::ChannelsLast, v(x.sum(&[0]))));
    }
}

#[test]
fn no_elements() {
    for ctx in common::contexts() {
        let x = Tensor::zeros(&[2, 0], &ctx).unwrap();
        assert_eq!(v(x.sum(&[1])), [0., 0.]);
        assert_eq!(v(x.prod(&[1])), [1., 1.]);
        assert!(v(x.mean(&[1])).iter().all(|x| x.is_nan()));
        assert_eq!(x.sum(&[0]).unwrap().shape(), [0]);
        assert_eq!(x.max(&[0]).unwrap().shape(), [0]);
        let e = x.max(&[1]).unwrap_err().to_string();
        assert!(e.starts_with("max") && e.contains("(2, 0)"), "{e}");
        assert!(x.argmin(None).is_err());
    }
}

#[test]
fn a_long_f32_sum_is_exact_to_the_last_digits() {
    // 0.1 in f32 is 0.100000001490116…; a million of them. Plain f32 addition gives 100958.
    let n = 1_000_000;
    let exact = f64::from(0.1f32) * f64::from(n);
    for ctx in common::contexts() {
        for shape in [&[1_000_000][..], &[1000, 1000], &[20, 50_000]] {
            let x = Tensor::full(shape, 0.1, &ctx).unwrap();
            for (sum, count) in [(x.sum(&[]).unwrap(), 1), (x.sum(&[0]).unwrap(), shape[0]), (x.sum(&[-1]).unwrap(), 0)] {
                let share = match count {
                    1 => exact,
                    0 => f64::from(0.1f32) * shape[shape.len() - 1] as f64,
                    n => f64::from(0.1f32) * n as f64,
                };
                for y in sum.to_vec().unwrap() {
                    let error = (f64::from(y) / share - 1.0).abs();
                    assert!(error < 2e-7, "{shape:?}: {y} for {share}");
                }
            }
        }
    }
}

#[test]
fn infinities_and_nan() {
    for ctx in common::contexts() {
        let inf = f32::INFINITY;
        let mut x = vec![1f32; 300];
        x[7] = inf;
        x[200] = inf;
        assert_eq!(v(tensor(&x, &[300], &ctx).sum(&[])), [inf]);
        x[9] = -inf;
        assert!(v(tensor(&x, &[300], &ctx).sum(&[]))[0].is_nan());
        x[123] = f32::NAN;
        let x = tensor(&x, &[300], &ctx);
        assert!(v(x.max(&[]))[0].is_nan() && v(x.min(&[]))[0].is_nan());
        assert_eq!(x.argmax(None).unwrap().item().unwrap(), 123.0);
        assert_eq!(x.argmin(0).unwrap().item().unwrap(), 123.0);
        let low = Tensor::full(&[40], f64::NEG_INFINITY, &ctx).unwrap();
        assert_eq!((v(low.max(&[])), v(low.argmax(None))), (vec![-inf], vec![0.]));
    }
}

#[test]
fn the_first_of_equal_elements() {
    for ctx in common::contexts() {
        let x = tensor(&[3f32, 5., 5., 1., 5., 0., 0., 2.], &[2, 2, 2, 1], &ctx);
        for layout in [Layout::RowMajor, Layout::ChannelsLast] {
            let x = Tensor::new(x.array().to_layout(layout).unwrap()).attach_grad();
            assert_eq!(v(x.argmax(None)), [1.]);
            assert_eq!(v(x.argmin(None)), [5.]);
            assert_eq!(v(x.argmax(0)), [1., 0., 0., 1.]);
            assert_eq!(x.argmax(-3).unwrap().array().to_vec::<i64>().unwrap(), [1, 0, 0, 1]);
            let y = autograd::record(|| x.max(&[1, 2])).unwrap();
            assert_eq!(y.to_vec().unwrap(), [5., 5.]);
            y.backward().unwrap();
            assert_eq!(x.grad().unwrap().to_vec().unwrap(), [0., 1., 0., 0., 1., 0., 0., 0.]);
            autograd::record(|| x.min(&[])).unwrap().backward().unwrap();
            assert_eq!(x.grad().unwrap().to_vec().unwrap(), [0., 0., 0., 0., 0., 1., 0., 0.]);
        }
        // Equal ones far apart: in different threads, slices and passes.
        let mut long = vec![0f32; 70_000];
        (long[41_234], long[41_235], long[69_999]) = (2., 2., 2.);
        assert_eq!(v(tensor(&long, &[70_000], &ctx).argmax(0)), [41_234.]);
        assert_eq!(v(tensor(&long, &[70_000], &ctx).argmin(0)), [0.]);
    }
}

#[test]
fn the_gradient_of_a_product_with_zeros() {
    for ctx in common::contexts() {
        let x = tensor(&[2f32, 3., 4., 2., 0., 4., 0., 3., 0.], &[3, 3], &ctx).attach_grad();
        let y = autograd::record(|| x.prod(&[1])).unwrap();
        assert_eq!(y.to_vec().unwrap(), [24., 0., 0.]);
        y.backward().unwrap();
        assert_eq!(x.grad().unwrap().to_vec().unwrap(), [12., 8., 6., 0., 8., 0., 0., 0., 0.]);
    }
}

#[test]
fn the_books_product_underflows() {
    // 784 factors below one: all zero, and 0/0 afterwards.
    for ctx in common::contexts() {
        let p = Tensor::full(&[784, 10], 0.3, &ctx).unwrap().prod(&[0]).unwrap();
        assert_eq!(p.to_vec().unwrap(), [0.; 10]);
        let q = (&p / &p.sum(&[]).unwrap()).unwrap();
        let text = q.to_string();
        assert!(text.starts_with("[nan nan nan nan nan nan nan nan nan nan]\n<Tensor 10 @"), "{text}");
    }
}

#[test]
fn integers() {
    for ctx in common::contexts() {
        let bytes = tensor(&[200u8, 100, 7, 255], &[2, 2], &ctx);
        let sum = bytes.sum(&[1]).unwrap();
        assert_eq!((sum.dtype(), sum.array().to_vec::<i64>().unwrap()), (DType::I64, vec![300, 262]));
        assert_eq!(bytes.prod(&[0]).unwrap().array().to_vec::<i64>().unwrap(), [1400, 25500]);
        let max = bytes.max(&[0]).unwrap();
        assert_eq!((max.dtype(), max.array().to_vec::<u8>().unwrap()), (DType::U8, vec![200, 255]));
        let big = tensor(&[9_007_199_254_740_993i64, 1], &[2], &ctx);
        assert_eq!(big.sum(&[]).unwrap().array().to_vec::<i64>().unwrap(), [9_007_199_254_740_994]);
        assert_eq!(big.max(&[]).unwrap().array().to_vec::<i64>().unwrap(), [9_007_199_254_740_993]);
        assert_eq!(big.argmin(0).unwrap().array().to_vec::<i64>().unwrap(), [1]);
        let e = big.mean(&[]).unwrap_err().to_string();
        assert!(e.starts_with("mean") && e.contains("i64") && e.contains("cast"), "{e}");
    }
}

#[test]
fn wrong_axes() {
    for ctx in common::contexts() {
        let x = Tensor::zeros(&[2, 3], &ctx).unwrap();
        for axes in [&[2][..], &[-3], &[0, 0], &[1, -1]] {
            let e = x.sum(axes).unwrap_err().to_string();
            assert!(e.starts_with("sum"), "{e}");
            assert!(x.max_keepdims(axes).is_err());
        }
        assert!(x.argmax(5).unwrap_err().to_string().starts_with("argmax"));
    }
}

#[test]
fn same_bits_every_time() {
    for ctx in common::contexts() {
        let x: Vec<f32> = (0..90_000u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32).sqrt()).collect();
        let x = Array::from_vec(x, &[300, 300], &ctx).unwrap();
        let bits = |axes: &[isize]| {
            let y = Tensor::new(x.clone()).sum(axes).unwrap().to_vec().unwrap();
            y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        for axes in [&[][..], &[0], &[1]] {
            assert_eq!(bits(axes), bits(axes));
        }
    }
}
