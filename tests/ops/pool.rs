//! Pooling.

use hadal::{
    Array, DType, Layout, Result, Tensor, autograd,
    check::{random, random_in},
    cpu,
    ops::{AvgPool2d, GlobalAvgPool2d, MaxPool2d, PoolOptions},
};

use crate::Case;

fn counting(start: f64, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>() as f64;
    Tensor::new(Tensor::arange(start, start + n, 1.0, &cpu()).unwrap().array().reshape(shape).unwrap())
}

pub fn cases() -> Result<Vec<Case>> {
    let p = |kernel: [usize; 2]| PoolOptions::new(kernel);
    let list: Vec<([usize; 4], PoolOptions)> = vec![
        ([1, 1, 1, 1], p([1, 1])),
        ([2, 3, 6, 4], p([2, 2])),
        ([2, 3, 7, 5], p([2, 2])),
        ([2, 3, 7, 5], p([2, 2]).ceil_mode(true)),
        // ResNet's and GoogLeNet's: overlapping, padded.
        ([1, 3, 9, 8], p([3, 3]).stride(2).padding(1)),
        ([1, 3, 8, 8], p([3, 3]).stride(2).padding(1).ceil_mode(true)),
        ([2, 2, 5, 6], p([3, 3]).stride(1).padding(1)),
        ([1, 2, 9, 8], p([5, 3]).stride([3, 2]).padding([2, 1])),
        // Asymmetric padding; a window whose last row would start in the padding; steps beyond the window.
        ([2, 2, 5, 6], p([3, 2]).stride([2, 1]).padding([1, 0, 2, 1])),
        ([1, 2, 4, 4], p([2, 2]).stride(3).padding(1).ceil_mode(true)),
        ([1, 1, 10, 9], p([2, 3]).stride(4)),
        // Padding of more than half the window.
        ([1, 2, 3, 4], p([3, 4]).stride(2).padding([2, 3])),
        ([3, 2, 1, 7], p([1, 3]).stride([1, 2]).padding([0, 1])),
        ([0, 2, 4, 4], p([2, 2])),
        ([2, 0, 4, 4], p([2, 2])),
        // A stride at the end of 32 bits.
        ([1, 2, 3, 4], p([1, 1]).stride(i32::MAX as usize)),
        // Whole packs of channels in every dtype, with windows that kernels are compiled for and others; columns in fours.
        ([2, 8, 6, 4], p([2, 2])),
        ([1, 16, 5, 5], p([2, 2]).padding(1).ceil_mode(true)),
        ([2, 8, 9, 8], p([3, 3]).stride(2).padding(1)),
        ([1, 24, 7, 12], p([3, 3]).stride(2).padding([0, 1, 2, 0]).ceil_mode(true)),
        ([1, 8, 5, 4], p([3, 3]).stride(1).padding(1)),
        ([1, 8, 9, 8], p([5, 3]).stride([3, 2]).padding([2, 1])),
        ([1, 8, 4, 12], p([2, 4]).stride([1, 5])),
        // A window of more than 256 taps.
        ([1, 2, 17, 18], p([17, 16]).stride(1)),
    ];
    let mut all = Vec::new();
    for (i, (shape, o)) in list.into_iter().enumerate() {
        // All negative in every other case: padding must not win.
        let x = if i % 2 == 0 { random(&shape, 1)? } else { random_in(&shape, 1, -2.0, -1.0)? };
        all.push(Case::new(MaxPool2d(o), vec![x.clone()]).both_layouts());
        all.push(Case::new(AvgPool2d(o), vec![x.clone()]).both_layouts());
        all.push(Case::new(AvgPool2d(o.count_include_pad(false)), vec![x]).both_layouts());
    }
    // Small planes in many images: every thread's share.
    all.push(Case::new(MaxPool2d(p([3, 3]).stride(2).padding(1)), vec![random(&[50, 17, 7, 7], 2)?]).both_layouts().rough());
    all.push(Case::new(AvgPool2d(p([3, 3]).stride(2).padding(1)), vec![random(&[50, 17, 7, 7], 2)?]).both_layouts().rough());
    for o in [p([3, 3]).stride(2).padding(1), p([2, 2])] {
        all.push(Case::new(MaxPool2d(o), vec![random(&[9, 40, 12, 12], 2)?]).both_layouts().rough());
        all.push(Case::new(AvgPool2d(o), vec![random(&[9, 40, 12, 12], 2)?]).both_layouts().rough());
    }
    for shape in
        [[1, 1, 1, 1], [2, 17, 7, 5], [3, 5, 1, 3], [0, 3, 2, 2], [2, 0, 2, 2], [1, 2, 17, 50], [2, 8, 4, 4], [1, 40, 3, 3]]
    {
        all.push(Case::new(GlobalAvgPool2d, vec![random(&shape, 3)?]).both_layouts());
    }
    all.push(Case::new(GlobalAvgPool2d, vec![random(&[3, 264, 12, 11], 3)?]).both_layouts().rough());
    Ok(all)
}

/// The book's pool2d on 0…8, its strides and paddings on 0…15.
#[test]
fn the_book_s_values() -> Result<()> {
    let x = counting(0.0, &[1, 1, 3, 3]);
    let two = PoolOptions::new(2).stride(1);
    assert_eq!(x.max_pool2d(two)?.to_vec()?, [4., 5., 7., 8.]);
    assert_eq!(x.avg_pool2d(two)?.to_vec()?, [2., 3., 5., 6.]);
    let x = counting(0.0, &[1, 1, 4, 4]);
    assert_eq!(x.max_pool2d(PoolOptions::new(3))?.to_vec()?, [10.]);
    assert_eq!(x.max_pool2d(PoolOptions::new(3).padding(1).stride(2))?.to_vec()?, [5., 7., 13., 15.]);
    let y = x.max_pool2d(PoolOptions::new([2, 3]).padding([1, 2]).stride([2, 3]))?;
    assert_eq!((y.shape(), y.to_vec()?), (vec![1, 1, 3, 2], vec![0., 3., 8., 11., 12., 15.]));
    let both = Tensor::from_vec((0..16).chain(1..17).map(|v| v as f32).collect(), &[1, 2, 4, 4], &cpu())?;
    let y = both.max_pool2d(PoolOptions::new(3).padding(1).stride(2))?;
    assert_eq!(y.to_vec()?, [5., 7., 13., 15., 6., 8., 14., 16.]);
    assert_eq!(both.global_max_pool2d()?.to_vec()?, [15., 16.]);
    assert_eq!(both.global_avg_pool2d()?.to_vec()?, [7.5, 8.5]);
    assert_eq!(both.global_avg_pool2d()?.shape(), [1, 2, 1, 1]);
    Ok(())
}

#[test]
fn padding_in_means() -> Result<()> {
    let x = counting(1.0, &[1, 1, 2, 2]);
    let o = PoolOptions::new(2).padding(1);
    assert_eq!(x.avg_pool2d(o)?.to_vec()?, [0.25, 0.5, 0.75, 1.]);
    assert_eq!(x.avg_pool2d(o.count_include_pad(false))?.to_vec()?, [1., 2., 3., 4.]);
    // In ceil mode the last window of 3 has 2 columns and 2 rows of the padded input.
    let x = Tensor::ones(&[1, 1, 4, 4], &cpu())?;
    let y = x.avg_pool2d(PoolOptions::new(3).stride(2).padding([0, 0, 0, 0]).ceil_mode(true))?;
    assert_eq!((y.shape(), y.to_vec()?), (vec![1, 1, 2, 2], vec![1.; 4]));
    Ok(())
}

/// In every dtype, layout and context: the first of equals wins, a NaN wins over all, and −∞ over padding.
#[test]
fn ties_nan_and_infinities() -> Result<()> {
    for ctx in crate::common::contexts() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for layout in [Layout::RowMajor, Layout::ChannelsLast] {
                let on = |v: Vec<f64>| -> Result<Tensor> {
                    let a = hadal::check::cast(&Array::from_vec(v, &[1, 1, 3, 3], &cpu())?, dtype)?;
                    Ok(Tensor::new(a.to_layout(layout)?.to_context(&ctx)?))
                };
                let o = PoolOptions::new(2).stride(1);
                let ties = on(vec![1.; 9])?.attach_grad();
                autograd::record(|| ties.max_pool2d(o))?.backward()?;
                assert_eq!(ties.grad()?.to_vec()?, [1., 1., 0., 1., 1., 0., 0., 0., 0.]);
                let nan = on(vec![1., 2., 3., 4., f64::NAN, 6., 7., 8., 9.])?.attach_grad();
                let y = autograd::record(|| nan.max_pool2d(o))?;
                y.backward()?;
                assert!(y.to_vec()?.iter().all(|v| v.is_nan()));
                assert_eq!(nan.grad()?.to_vec()?, [0., 0., 0., 0., 4., 0., 0., 0., 0.]);
                let low = on(vec![f64::NEG_INFINITY; 9])?.attach_grad();
                let y = autograd::record(|| low.max_pool2d(PoolOptions::new(2).padding(1)))?;
                y.backward()?;
                assert_eq!(y.to_vec()?, [f32::NEG_INFINITY; 4]);
                assert_eq!(low.grad()?.to_vec()?, [1., 1., 0., 1., 1., 0., 0., 0., 0.]);
            }
        }
    }
    Ok(())
}

#[test]
fn mistakes_are_named() -> Result<()> {
    let says = |shape: &[usize], o: PoolOptions, what: &str| {
        let x = Tensor::zeros(shape, &cpu()).unwrap();
        for r in [x.max_pool2d(o), x.avg_pool2d(o)] {
            let message = r.unwrap_err().to_string();
            assert!(message.contains(what), "{message:?} does not say {what:?}");
        }
    };
    says(&[1, 4, 4], PoolOptions::new(2), "4 dimensions (N, C, H, W) is needed (shapes (1, 4, 4))");
    says(&[1, 1, 4, 4], PoolOptions::new(0), "kernel must be positive");
    says(&[1, 1, 4, 4], PoolOptions::new(2).stride([1, 0]), "stride must be positive");
    says(&[1, 1, 4, 4], PoolOptions::new(2).padding(2), "padding must be smaller than the window");
    says(&[1, 1, 4, 4], PoolOptions::new(2).padding([0, 0, 0, 2]), "padding must be smaller than the window");
    says(&[1, 1, 4, 4], PoolOptions::new([5, 1]), "exceeds the padded input's 4");
    says(&[1, 1, 4, 4], PoolOptions::new(usize::MAX).padding(usize::MAX - 1), "too large");
    says(&[1, 1, 0, 4], PoolOptions::new(2).padding(1), "the plane is empty");
    let empty = Tensor::zeros(&[1, 1, 0, 4], &cpu())?;
    assert!(empty.global_avg_pool2d().is_err() && empty.global_max_pool2d().is_err());
    let bytes = Tensor::new(Array::zeros(&[1, 1, 2, 2], DType::U8, &cpu())?);
    assert!(bytes.max_pool2d(PoolOptions::default()).unwrap_err().to_string().contains("use `cast`"));
    // A window far beyond the plane, but for its padding: no memory in proportion to it.
    let o = PoolOptions::new(1 << 20).stride(1 << 20).padding((1 << 20) - 1);
    assert_eq!(Tensor::ones(&[1, 1, 2, 2], &cpu())?.max_pool2d(o)?.to_vec()?, [1.; 4]);
    Ok(())
}
