//! The book's functions against the layers on odd sizes, their gradients, their errors.

use hadal::{
    Context, DType, Error, Result, Tensor, autograd, check, cpu,
    d2l::{PoolMode, comp_conv2d, corr2d, corr2d_multi_in, corr2d_multi_in_out, corr2d_multi_in_out_1x1, pool2d},
    nn::{self, Block},
    ops::{Conv2dOptions, PoolOptions},
};

#[path = "common/mod.rs"]
mod common;

type F<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

fn random(shapes: &[&[usize]], dtype: DType, ctx: &Context) -> Result<Vec<Tensor>> {
    let one = |(i, s): (usize, &&[usize])| Ok(Tensor::new(check::cast(&check::random(s, i as u64)?, dtype)?.to_context(ctx)?));
    shapes.iter().enumerate().map(one).collect()
}

/// The result of `f`, and the gradient of each input for fixed random cotangents.
fn pass(f: F, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let inputs: Vec<Tensor> = inputs.iter().map(Tensor::attach_grad).collect();
    let y = autograd::record(|| f(&inputs))?;
    y.backward_from(&random(&[&y.shape()], y.dtype(), &y.context())?[0], false)?;
    std::iter::once(Ok(y.detach())).chain(inputs.iter().map(Tensor::grad)).collect()
}

/// Both functions give the same values and gradients on every context; those of `f` are also finite differences.
fn agree(f: F, g: F, shapes: &[&[usize]]) -> Result<()> {
    for ctx in common::contexts() {
        let inputs = random(shapes, DType::F32, &ctx)?;
        for (i, (a, b)) in pass(f, &inputs)?.iter().zip(&pass(g, &inputs)?).enumerate() {
            let d = check::difference(&a.array(), &b.array())?;
            assert!(d.relative < check::bound(DType::F32), "{shapes:?} on {ctx}, value or gradient {i}: {d}");
        }
    }
    let inputs = random(shapes, DType::F64, &cpu())?;
    let found = pass(f, &inputs)?;
    let dy = random(&[&found[0].shape()], DType::F64, &cpu())?;
    for (i, x) in inputs.iter().enumerate() {
        let values = x.array().to_vec::<f64>()?;
        let mut slopes = Vec::new();
        for e in 0..values.len() {
            let moved = |by: f64| -> Result<f64> {
                let (mut v, mut inputs) = (values.clone(), inputs.clone());
                v[e] += by;
                inputs[i] = Tensor::from_vec(v, &x.shape(), &cpu())?;
                (f(&inputs)? * &dy[0])?.sum(&[])?.item()
            };
            slopes.push((moved(1e-5)? - moved(-1e-5)?) / 2e-5);
        }
        let slopes = Tensor::from_vec(slopes, &x.shape(), &cpu())?;
        let d = check::difference(&found[i + 1].array(), &slopes.array())?;
        assert!(d.relative < 1e-6, "{shapes:?}, gradient {i} against finite differences: {d}");
    }
    Ok(())
}

/// The layers' convolution of (C, H, W) with (O, C, h, w).
fn conv(x: &Tensor, k: &Tensor) -> Result<Tensor> {
    x.expand_dims(0)?.conv2d(k, None, Conv2dOptions::new())?.squeeze(&[0])
}

#[test]
fn corr2d_is_a_convolution_of_one_channel() -> Result<()> {
    let layer = |t: &[Tensor]| conv(&t[0].expand_dims(0)?, &t[1].expand_dims(0)?.expand_dims(0)?)?.squeeze(&[0]);
    for shapes in [[[3, 3], [2, 2]], [[7, 5], [3, 1]], [[4, 9], [4, 9]], [[1, 6], [1, 1]], [[5, 6], [2, 5]]] {
        agree(&|t| corr2d(&t[0], &t[1]), &layer, &[&shapes[0], &shapes[1]])?;
    }
    Ok(())
}

#[test]
fn several_channels_add_up() -> Result<()> {
    let layer = |t: &[Tensor]| conv(&t[0], &t[1].expand_dims(0)?)?.squeeze(&[0]);
    for shapes in [[[2, 3, 3], [2, 2, 2]], [[3, 5, 7], [3, 3, 2]], [[1, 2, 5], [1, 2, 1]]] {
        agree(&|t| corr2d_multi_in(&t[0], &t[1]), &layer, &[&shapes[0], &shapes[1]])?;
    }
    for (x, k) in [([2, 3, 3], [3, 2, 2, 2]), ([3, 5, 7], [1, 3, 3, 2]), ([5, 3, 4], [4, 5, 1, 1])] {
        agree(&|t| corr2d_multi_in_out(&t[0], &t[1]), &|t| conv(&t[0], &t[1]), &[&x, &k])?;
    }
    Ok(())
}

#[test]
fn a_1x1_convolution_is_a_dense_layer_on_every_pixel() -> Result<()> {
    for (x, k) in [([3, 3, 3], [2, 3, 1, 1]), ([5, 3, 4], [4, 5, 1, 1]), ([1, 1, 7], [3, 1, 1, 1])] {
        agree(&|t| corr2d_multi_in_out_1x1(&t[0], &t[1]), &|t| corr2d_multi_in_out(&t[0], &t[1]), &[&x, &k])?;
        agree(&|t| corr2d_multi_in_out_1x1(&t[0], &t[1]), &|t| conv(&t[0], &t[1]), &[&x, &k])?;
    }
    Ok(())
}

#[test]
fn pool2d_is_a_pool_with_stride_1() -> Result<()> {
    let four = |x: &Tensor| x.expand_dims(0)?.expand_dims(0);
    for (shape, window) in [([3, 3], [2, 2]), ([7, 5], [3, 1]), ([4, 9], [4, 9]), ([5, 6], [2, 5]), ([3, 2], [1, 1])] {
        let options = PoolOptions::new(window).stride(1);
        let max = |t: &[Tensor]| four(&t[0])?.max_pool2d(options)?.squeeze(&[0, 1]);
        let avg = |t: &[Tensor]| four(&t[0])?.avg_pool2d(options)?.squeeze(&[0, 1]);
        agree(&|t| pool2d(&t[0], window, PoolMode::Max), &max, &[&shape])?;
        agree(&|t| pool2d(&t[0], window, PoolMode::Avg), &avg, &[&shape])?;
    }
    Ok(())
}

#[test]
fn of_equal_elements_the_first_gets_the_gradient() -> Result<()> {
    for ctx in common::contexts() {
        let x = Tensor::ones(&[3, 3], &ctx)?.attach_grad();
        autograd::record(|| pool2d(&x, (2, 2), PoolMode::Max))?.backward()?;
        assert_eq!(x.grad()?.to_vec()?, [1., 1., 0., 1., 1., 0., 0., 0., 0.], "{ctx}");
    }
    Ok(())
}

#[test]
fn comp_conv2d_initializes_once_and_keeps_two_axes() -> Result<()> {
    for ctx in common::contexts() {
        let x = Tensor::ones(&[5, 7], &ctx)?;
        let layer = nn::Conv2D::new(1, (3, 2)).stride((2, 3));
        let y = comp_conv2d(&layer, &x)?;
        assert_eq!(y.shape(), [2, 2]);
        let w = layer.weight().data()?;
        assert_eq!(w.shape(), [1, 1, 3, 2]);
        assert!(w.to_vec()?.iter().all(|w| w.abs() <= 0.07 && *w != 0.0));
        assert_eq!(comp_conv2d(&layer, &x)?.to_vec()?, y.to_vec()?);
        let sum = w.sum(&[])?.item()?;
        assert!(y.to_vec()?.iter().all(|&y| (f64::from(y) - sum).abs() < 1e-6));
        assert_eq!(layer.parameter_count()?, 7);
    }
    Ok(())
}

#[test]
fn an_error_names_the_function_and_both_shapes() -> Result<()> {
    let t = |shape: &[usize]| Tensor::zeros(shape, &cpu());
    let cases: Vec<(Result<Tensor>, &str, &str)> = vec![
        (corr2d(&t(&[3])?, &t(&[2, 2])?), "corr2d:", "(3,), (2, 2)"),
        (corr2d(&t(&[3, 3])?, &t(&[1, 2, 2])?), "corr2d:", "(3, 3), (1, 2, 2)"),
        (corr2d(&t(&[3, 3])?, &t(&[4, 2])?), "corr2d:", "(3, 3), (4, 2)"),
        (corr2d(&t(&[3, 3])?, &t(&[0, 2])?), "corr2d:", "(3, 3), (0, 2)"),
        (corr2d_multi_in(&t(&[2, 3, 3])?, &t(&[3, 2, 2])?), "corr2d_multi_in:", "(2, 3, 3), (3, 2, 2)"),
        (corr2d_multi_in(&t(&[0, 3, 3])?, &t(&[0, 2, 2])?), "corr2d_multi_in:", "(0, 3, 3), (0, 2, 2)"),
        (corr2d_multi_in(&t(&[2, 3, 3])?, &t(&[2, 2, 5])?), "corr2d_multi_in:", "(2, 3, 3), (2, 2, 5)"),
        (corr2d_multi_in_out(&t(&[2, 3, 3])?, &t(&[2, 2, 2])?), "corr2d_multi_in_out:", "(2, 3, 3), (2, 2, 2)"),
        (corr2d_multi_in_out(&t(&[2, 3, 3])?, &t(&[0, 2, 2, 2])?), "corr2d_multi_in_out:", "(2, 3, 3), (0, 2, 2, 2)"),
        (corr2d_multi_in_out(&t(&[2, 3, 3])?, &t(&[1, 3, 2, 2])?), "corr2d_multi_in_out:", "(2, 3, 3), (1, 3, 2, 2)"),
        (corr2d_multi_in_out_1x1(&t(&[3, 3, 3])?, &t(&[2, 3, 1, 2])?), "corr2d_multi_in_out_1x1:", "(3, 3, 3), (2, 3, 1, 2)"),
        (corr2d_multi_in_out_1x1(&t(&[4, 3, 3])?, &t(&[2, 3, 1, 1])?), "corr2d_multi_in_out_1x1:", "(4, 3, 3), (2, 3, 1, 1)"),
        (pool2d(&t(&[3, 3])?, (4, 1), PoolMode::Max), "pool2d:", "(3, 3), (4, 1)"),
        (pool2d(&t(&[3, 3])?, (1, 0), PoolMode::Avg), "pool2d:", "(3, 3), (1, 0)"),
        (pool2d(&t(&[1, 3, 3])?, (1, 1), PoolMode::Max), "pool2d:", "(1, 3, 3), (1, 1)"),
        (comp_conv2d(&nn::Conv2D::new(1, 3), &t(&[8])?), "comp_conv2d:", "(8,)"),
        (comp_conv2d(&nn::Conv2D::new(2, 3), &t(&[8, 8])?), "comp_conv2d:", "(8, 8), (1, 2, 6, 6)"),
    ];
    for (result, name, shapes) in cases {
        match result {
            Err(e @ Error::Shape { .. }) => {
                let text = e.to_string();
                assert!(text.starts_with(name) && text.contains(shapes), "{text} (wanted {name} {shapes})");
            }
            other => panic!("{name} {shapes}: {other:?}"),
        }
    }
    Ok(())
}
