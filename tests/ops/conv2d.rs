//! Convolution.

use hadal::{
    Array, DType, Layout, Result, Tensor, autograd,
    check::random,
    cpu,
    ops::{Conv2d, Conv2dOptions, Conv2dPair},
};

use crate::Case;

fn counting(start: f64, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>() as f64;
    Tensor::new(Tensor::arange(start, start + n, 1.0, &cpu()).unwrap().array().reshape(shape).unwrap())
}

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let mut add = |x: [usize; 4], w: [usize; 4], o: Conv2dOptions, bias: bool, smooth: bool| -> Result<()> {
        let mut inputs = vec![random(&x, 1)?, random(&w, 2)?];
        inputs.extend(if bias { Some(random(&w[..1], 3)?) } else { None });
        let case = Case::new(Conv2d(o), inputs).both_layouts();
        all.push(if smooth { case } else { case.rough() });
        Ok(())
    };
    let o = Conv2dOptions::new;
    // The book's: 3x3 on 8x8, the same with stride 2, and a window of (3, 5).
    add([1, 1, 8, 8], [1, 1, 3, 3], o().padding(1), true, true)?;
    add([1, 1, 8, 8], [1, 1, 3, 3], o().padding(1).stride(2), true, true)?;
    add([1, 1, 8, 8], [1, 1, 3, 5], o().padding([0, 1]).stride([3, 4]), true, true)?;
    // Odd sizes and channels.
    add([1, 1, 1, 1], [1, 1, 1, 1], o(), true, true)?;
    add([2, 3, 5, 4], [5, 3, 1, 1], o(), false, true)?;
    add([2, 3, 5, 6], [2, 3, 1, 1], o().stride(2), true, true)?;
    add([2, 3, 6, 5], [4, 3, 2, 3], o(), false, true)?;
    // Asymmetric padding, padding beyond the filter, stride beyond the filter.
    add([1, 2, 5, 4], [3, 2, 3, 2], o().padding([0, 1, 2, 0]).stride([1, 2]), true, true)?;
    add([1, 2, 3, 4], [2, 2, 2, 3], o().padding([4, 5]).stride([1, 2]), true, true)?;
    add([2, 1, 8, 8], [3, 1, 2, 2], o().stride(3), true, true)?;
    add([1, 1, 4, 3], [2, 1, 1, 2], o().stride([i32::MAX as usize, 7]).dilation([5, 1]), true, true)?;
    // A filter larger than the input but for its padding; one output.
    add([1, 2, 2, 2], [3, 2, 5, 5], o().padding(2), true, true)?;
    add([2, 2, 3, 3], [2, 2, 3, 3], o(), true, true)?;
    // Dilation.
    add([1, 2, 7, 6], [2, 2, 3, 2], o().dilation([2, 3]).padding([1, 0]).stride([2, 1]), true, true)?;
    // Groups, depthwise, depthwise with a multiplier.
    add([2, 4, 4, 5], [6, 2, 3, 3], o().groups(2).padding(1), true, true)?;
    add([2, 5, 6, 5], [5, 1, 3, 3], o().groups(5).padding(1).stride(2), true, true)?;
    add([1, 3, 5, 5], [6, 1, 3, 2], o().groups(3).dilation([1, 2]), false, true)?;
    // Depthwise with channels by 16 bytes; with weights for which a block's shared memory is too small.
    add([2, 24, 7, 6], [24, 1, 3, 3], o().groups(24).padding(1).stride([2, 1]), true, true)?;
    add([1, 16, 6, 8], [16, 1, 2, 4], o().groups(16).padding([1, 0, 2, 3]).stride([1, 3]).dilation([2, 1]), false, true)?;
    add([2, 40, 12, 11], [40, 1, 11, 11], o().groups(40).padding(5), true, false)?;
    // No image; no channel in or out.
    add([0, 2, 4, 4], [3, 2, 3, 3], o(), true, true)?;
    add([2, 0, 4, 4], [3, 0, 3, 3], o(), true, true)?;
    add([2, 2, 4, 4], [0, 2, 3, 3], o(), true, true)?;
    // The first layers of LeNet, ResNet and AlexNet with few channels, and enough channels for every fast path.
    add([2, 1, 28, 28], [6, 1, 5, 5], o().padding(2), true, false)?;
    add([1, 3, 24, 23], [5, 3, 7, 7], o().padding(3).stride(2), true, false)?;
    add([1, 2, 35, 35], [4, 2, 11, 11], o().stride(4), true, false)?;
    // With enough to do for the kernels of first layers.
    add([2, 1, 48, 46], [64, 1, 7, 7], o().padding(3).stride(2), false, false)?;
    add([2, 3, 25, 27], [20, 3, 5, 5], o().padding(2), true, false)?;
    add([2, 17, 9, 7], [19, 17, 3, 3], o().padding(1), true, false)?;
    add([3, 16, 3, 3], [32, 16, 3, 3], o().padding(1), true, false)?;
    add([1, 66, 5, 6], [70, 66, 1, 1], o(), true, false)?;
    add([2, 32, 7, 7], [16, 32, 3, 3], o().padding(1).stride(2), false, false)?;
    // Many output pixels and few weights: the weight gradient is cut into parts.
    add([3, 2, 33, 32], [3, 2, 3, 3], o().padding(1), true, false)?;
    all.extend(pairs()?);
    Ok(all)
}

/// Two convolutions of one x.
fn pairs() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let mut add = |x: [usize; 4], w: [[usize; 4]; 2], options: [Conv2dOptions; 2], bias: [bool; 2], smooth: bool| -> Result<()> {
        let mut inputs = vec![random(&x, 1)?];
        for i in 0..2 {
            inputs.push(random(&w[i], 2 + i as u64)?);
            inputs.extend(if bias[i] { Some(random(&w[i][..1], 4 + i as u64)?) } else { None });
        }
        let case = Case::new(Conv2dPair::new(options, bias), inputs).both_layouts();
        all.push(if smooth { case } else { case.rough() });
        Ok(())
    };
    let o = Conv2dOptions::new;
    // A block's 3x3 and the 1x1 of its short cut, at each stride, odd and even.
    for (stride, bias) in [(1, [true, true]), (2, [true, false]), (3, [false, true]), (4, [false, false])] {
        let options = [o().padding(1).stride(stride), o().stride(stride)];
        add([2, 3, 6, 5], [[4, 3, 3, 3], [4, 3, 1, 1]], options, bias, true)?;
    }
    // Neither channels nor sizes of the outputs are alike.
    add([1, 2, 5, 4], [[3, 2, 2, 3], [1, 2, 1, 1]], [o().stride([2, 1]), o().padding(1)], [true, true], true)?;
    // No image; no channel.
    add([0, 2, 4, 4], [[3, 2, 3, 3], [3, 2, 1, 1]], [o().padding(1).stride(2), o().stride(2)], [true, true], true)?;
    add([2, 2, 4, 4], [[3, 2, 3, 3], [0, 2, 1, 1]], [o().padding(1).stride(2), o().stride(2)], [true, true], true)?;
    // Channels enough for every fast path.
    let options = [o().padding(1).stride(2), o().stride(2)];
    add([2, 24, 9, 8], [[40, 24, 3, 3], [40, 24, 1, 1]], options, [true, true], false)?;
    Ok(all)
}

/// The values and gradients of a pair are those of its slow twin, two convolutions of which autograd adds the gradients up.
#[test]
fn a_pair_is_two_convolutions() -> Result<()> {
    let f32s = |shape: &[usize], seed| hadal::check::cast(&random(shape, seed)?, DType::F32);
    let o = Conv2dOptions::new().stride(2);
    let mut contexts = vec![cpu()];
    contexts.extend(crate::common::gpu());
    for ctx in &contexts {
        // Whose gradient is wanted, and whether each output is used.
        for (wanted, used) in [
            ([true; 5], [true, true]),
            ([true, false, false, false, false], [true, true]),
            ([false, true, false, true, false], [true, true]),
            ([false, true, false, false, true], [true, true]),
            ([true, false, true, true, false], [true, true]),
            ([true; 5], [true, false]),
            ([true; 5], [false, true]),
        ] {
            let run = |pair: bool| -> Result<Vec<Vec<f64>>> {
                let shapes: [&[usize]; 5] = [&[2, 8, 7, 6], &[16, 8, 3, 3], &[16], &[16, 8, 1, 1], &[16]];
                let mut inputs = Vec::new();
                for (i, shape) in shapes.into_iter().enumerate() {
                    let t = Tensor::new(f32s(shape, i as u64)?.to_context(ctx)?);
                    inputs.push(if wanted[i] { t.attach_grad() } else { t });
                }
                let [x, w1, b1, w2, b2] = &inputs[..] else { unreachable!() };
                let (first, second) = ((w1, Some(b1), o.padding(1)), (w2, Some(b2), o));
                let (y1, y2, loss) = autograd::record(|| {
                    let (y1, y2) = if pair {
                        x.conv2d_pair(first, second)?
                    } else {
                        (x.conv2d(first.0, first.1, first.2)?, x.conv2d(second.0, second.1, second.2)?)
                    };
                    let loss = match used {
                        [true, true] => y1.square()?.sum(&[])?.add(&y2.square()?.sum(&[])?)?,
                        [true, false] => y1.square()?.sum(&[])?,
                        _ => y2.square()?.sum(&[])?,
                    };
                    Ok::<_, hadal::Error>((y1, y2, loss))
                })?;
                loss.backward()?;
                let mut all = vec![y1.array().to_f64_vec()?, y2.array().to_f64_vec()?];
                for i in (0..5).filter(|&i| wanted[i]) {
                    // What leads to no used output has no gradient in one form and zeros in the other.
                    let grad = inputs[i].grad().map(|g| g.array().to_f64_vec());
                    all.push(grad.unwrap_or_else(|_| Ok(vec![0.0; inputs[i].array().len()]))?);
                }
                Ok(all)
            };
            let (fast, slow) = (run(true)?, run(false)?);
            assert_eq!(fast.len(), slow.len());
            for (a, b) in fast.iter().flatten().zip(slow.iter().flatten()) {
                assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{ctx}, wanted {wanted:?}, used {used:?}: {a} and {b}");
            }
        }
    }
    Ok(())
}

/// The book's corr2d: 0…8 with 0…3, its two-channel and its many-filter versions.
#[test]
fn the_book_s_values() -> Result<()> {
    let o = Conv2dOptions::new();
    let y = counting(0.0, &[1, 1, 3, 3]).conv2d(&counting(0.0, &[1, 1, 2, 2]), None, o)?;
    assert_eq!((y.shape(), y.to_vec()?), (vec![1, 1, 2, 2], vec![19., 25., 37., 43.]));
    let x: Vec<f32> = (0..9).chain(1..10).map(|v| v as f32).collect();
    let k: Vec<f32> = (0..4).chain(1..5).map(|v| v as f32).collect();
    let x = Tensor::from_vec(x, &[1, 2, 3, 3], &cpu())?;
    let y = x.conv2d(&Tensor::from_vec(k.clone(), &[1, 2, 2, 2], &cpu())?, None, o)?;
    assert_eq!(y.to_vec()?, [56., 72., 104., 120.]);
    let many: Vec<f32> = (0..3).flat_map(|i| k.iter().map(move |v| v + i as f32)).collect();
    let y = x.conv2d(&Tensor::from_vec(many, &[3, 2, 2, 2], &cpu())?, None, o)?;
    assert_eq!(y.to_vec()?, [56., 72., 104., 120., 76., 100., 148., 172., 96., 128., 192., 224.]);
    // The edge detector on its image of two edges.
    let edge = |row: [f32; 8]| Tensor::from_vec(row.to_vec(), &[1, 1, 1, 8], &cpu());
    let y =
        edge([1., 1., 0., 0., 0., 0., 1., 1.])?.conv2d(&Tensor::from_vec(vec![1f32, -1.], &[1, 1, 1, 2], &cpu())?, None, o)?;
    assert_eq!(y.to_vec()?, [0., 1., 0., 0., 0., -1., 0.]);
    // Shapes.
    let x = Tensor::zeros(&[1, 1, 8, 8], &cpu())?;
    let shape = |kernel: [usize; 2], o| {
        Ok::<_, hadal::Error>(x.conv2d(&Tensor::zeros(&[1, 1, kernel[0], kernel[1]], &cpu())?, None, o)?.shape())
    };
    assert_eq!(shape([3, 3], o.padding(1))?, [1, 1, 8, 8]);
    assert_eq!(shape([5, 3], o.padding([2, 1]))?, [1, 1, 8, 8]);
    assert_eq!(shape([3, 3], o.padding(1).stride(2))?, [1, 1, 4, 4]);
    assert_eq!(shape([3, 5], o.padding([0, 1]).stride([3, 4]))?, [1, 1, 2, 2]);
    Ok(())
}

#[test]
fn bias_groups_and_layout() -> Result<()> {
    // Two groups of one channel: each filter sees its own plane; the bias comes once per output.
    let x = counting(0.0, &[1, 2, 2, 2]);
    let w = Tensor::from_vec(vec![1f32, 10.], &[2, 1, 1, 1], &cpu())?;
    let b = Tensor::from_vec(vec![0.5f32, -1.], &[2], &cpu())?;
    let o = Conv2dOptions::new().groups(2);
    let want = [0.5, 1.5, 2.5, 3.5, 39., 49., 59., 69.];
    assert_eq!(x.conv2d(&w, Some(&b), o)?.to_vec()?, want);
    let last = Tensor::new(x.array().to_layout(Layout::ChannelsLast)?);
    let y = last.conv2d(&w, Some(&b), o)?;
    assert_eq!((y.layout(), y.to_vec()?), (Layout::ChannelsLast, want.to_vec()));
    // Only the bias wants a gradient: nothing else is kept or computed.
    let b = b.attach_grad();
    autograd::record(|| x.conv2d(&w, Some(&b), o))?.backward()?;
    assert_eq!(b.grad()?.to_vec()?, [4., 4.]);
    // An empty batch has zero gradients, not stale ones.
    let w = w.attach_grad();
    autograd::record(|| Tensor::zeros(&[0, 2, 2, 2], &cpu())?.conv2d(&w, None, o))?.backward()?;
    assert_eq!(w.grad()?.to_vec()?, [0., 0.]);
    Ok(())
}

#[test]
fn mistakes_are_named() {
    let t = |shape: &[usize]| Tensor::zeros(shape, &cpu()).unwrap();
    let o = Conv2dOptions::new;
    let says = |x: &[usize], w: &[usize], o: Conv2dOptions, what: &str| {
        let message = t(x).conv2d(&t(w), None, o).unwrap_err().to_string();
        assert!(message.contains(what), "{message:?} does not say {what:?}");
    };
    let channels = "conv2d: the input has 32 channels, the weight takes 64 (shapes (2, 32, 6, 6), (8, 64, 3, 3)";
    says(&[2, 32, 6, 6], &[8, 64, 3, 3], o(), channels);
    says(&[2, 4, 6, 6], &[8, 4, 3, 3], o().groups(2), "2 channels in each of 2 groups");
    says(&[2, 3, 6, 6], &[8, 1, 3, 3], o().groups(2), "2 groups do not divide 3 input channels and 8 output");
    says(&[2, 3, 6, 6], &[8, 3, 3, 3], o().groups(0), "0 groups");
    says(&[2, 3, 6], &[8, 3, 3, 3], o(), "4 dimensions (N, C, H, W)");
    says(&[2, 3, 6, 6], &[8, 3, 3], o(), "4 dimensions (O, C / groups, kh, kw)");
    says(&[2, 3, 2, 6], &[8, 3, 3, 3], o(), "a window that spans 3 exceeds the padded input's 2");
    says(&[2, 3, 6, 6], &[8, 3, 3, 3], o().stride(0), "stride must be positive");
    says(&[2, 3, 6, 6], &[8, 3, 3, 3], o().dilation(0), "dilation must be positive");
    says(&[2, 3, 6, 6], &[8, 3, 0, 3], o(), "kernel must be positive");
    says(&[2, 3, 6, 6], &[8, 3, 3, 3], o().padding(usize::MAX), "too large");
    says(&[2, 3, 6, 6], &[8, 3, 3, 3], o().padding((1 << 30) - 4), "too many elements");
    says(&[2, 3, 6, 6], &[8, 3, 3, 3], o().dilation(usize::MAX), "too large");
    let second = t(&[2, 3, 6, 6]).conv2d_pair((&t(&[8, 3, 3, 3]), None, o()), (&t(&[8, 2, 1, 1]), None, o())).unwrap_err();
    assert!(second.to_string().contains("the weight takes 2") && second.to_string().contains("(8, 2, 1, 1)"), "{second}");
    let message = t(&[1, 1, 3, 3]).conv2d(&t(&[2, 1, 3, 3]), Some(&t(&[3])), o()).unwrap_err().to_string();
    assert!(message.contains("bias needs 2 elements"), "{message}");
    let half = Tensor::new(Array::zeros(&[1, 1, 3, 3], DType::BF16, &cpu()).unwrap());
    assert!(t(&[1, 1, 3, 3]).conv2d(&half, None, o()).unwrap_err().to_string().contains("same float type"));
}

/// One thread or several: the same bits, forward and backward, on each fast path.
#[test]
fn threads_do_not_change_the_bits() -> Result<()> {
    let run = |threads: usize| -> Result<Vec<Vec<f32>>> {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let f32s = |shape: &[usize], seed| -> hadal::Result<Tensor> {
                Ok(Tensor::new(hadal::check::cast(&random(shape, seed)?, DType::F32)?).attach_grad())
            };
            let mut all = Vec::new();
            for (x, w, o) in [
                ([9, 16, 12, 12], [17, 16, 3, 3], Conv2dOptions::new().padding(1)),
                ([33, 3, 23, 23], [8, 3, 5, 5], Conv2dOptions::new().stride(2)),
                ([5, 24, 20, 20], [24, 1, 3, 3], Conv2dOptions::new().groups(24)),
            ] {
                let (x, w, b) = (f32s(&x, 1)?, f32s(&w, 2)?, f32s(&w[..1], 3)?);
                let y = autograd::record(|| x.conv2d(&w, Some(&b), o))?;
                y.backward()?;
                all.extend([y.to_vec()?, x.grad()?.to_vec()?, w.grad()?.to_vec()?, b.grad()?.to_vec()?]);
            }
            for (a, b) in [(vec![257, 300], vec![300, 131]), (vec![7, 33, 65], vec![65, 40]), (vec![1, 9000], vec![9000, 17])] {
                let (a, b) = (f32s(&a, 4)?, f32s(&b, 5)?);
                let y = autograd::record(|| a.matmul(&b))?;
                y.backward()?;
                all.extend([y.to_vec()?, a.grad()?.to_vec()?, b.grad()?.to_vec()?]);
            }
            Ok(all)
        })
    };
    let one = run(1)?;
    for threads in [2, 5] {
        let same = run(threads)?.iter().zip(&one).map(|(a, b)| a == b).collect::<Vec<_>>();
        assert!(same.iter().all(|&s| s), "with {threads} threads: {same:?}");
    }
    Ok(())
}
