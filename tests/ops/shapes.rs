//! Cases of the ops that move elements, and values that numpy gives.

use hadal::{
    Array, DType, Element, Error, Layout, Result, Tensor, autograd,
    check::{random, random_indices},
    cpu,
    ops::{BroadcastTo, Concat, OneHot, Pad, Permute, Pick, Reshape, Slice, SliceAssign, Span, Split, Take},
};

use crate::{Case, common};

const ALL: &[DType] = &[DType::F32, DType::F16, DType::BF16];

fn span(start: usize, count: usize, step: usize) -> Span {
    Span { start, count, step }
}

/// The tests' table for this family.
pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for (from, to) in [(&[2usize, 3, 4][..], &[4usize, 6][..]), (&[], &[1, 1]), (&[0, 3], &[3, 0, 7]), (&[2, 3, 2, 2], &[2, 12])]
    {
        all.push(Case::new(Reshape { shape: to.to_vec() }, vec![random(from, 1)?]).both_layouts());
    }
    for (shape, axes) in [
        (&[2usize, 5][..], &[1usize, 0][..]),
        (&[2, 3, 4], &[2, 0, 1]),
        (&[3, 2, 4, 5], &[3, 2, 1, 0]),
        (&[2, 3, 4, 5], &[0, 2, 3, 1]),
        (&[17, 50], &[1, 0]),
        (&[3, 0, 2], &[1, 2, 0]),
        (&[], &[]),
        (&[2, 1, 3, 1, 2, 2, 1, 2, 2], &[8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ] {
        all.push(Case::new(Permute { axes: axes.to_vec() }, vec![random(shape, 2)?]).both_layouts());
    }
    for (from, to) in [
        (&[2usize, 1][..], &[2usize, 3][..]),
        (&[], &[2, 3]),
        (&[3], &[2, 17, 3]),
        (&[1, 3, 1, 1], &[2, 3, 4, 5]),
        (&[1], &[0]),
        (&[1, 1], &[1, 783]),
        (&[2, 3], &[2, 3]),
    ] {
        all.push(Case::new(BroadcastTo { shape: to.to_vec() }, vec![random(from, 3)?]).both_layouts());
    }
    for (shape, spans) in [
        (&[7usize][..], vec![span(2, 3, 1)]),
        (&[3, 17], vec![span(0, 3, 1), span(16, 1, 1)]),
        (&[5, 6], vec![span(1, 2, 3), span(0, 3, 2)]),
        (&[2, 3, 4, 5], vec![span(0, 2, 1), span(1, 2, 1), span(1, 3, 1), span(2, 2, 2)]),
        (&[4, 3], vec![span(4, 0, 1), span(0, 3, 1)]),
        (&[], vec![]),
    ] {
        all.push(Case::new(Slice { spans: spans.clone() }, vec![random(shape, 4)?]).both_layouts());
        let counts: Vec<usize> = spans.iter().map(|s| s.count).collect();
        for value in [counts, vec![]] {
            let inputs = vec![random(shape, 5)?, random(&value, 6)?];
            all.push(Case::new(SliceAssign { spans: spans.clone() }, inputs).both_layouts());
        }
    }
    for (shape, margins) in [
        (&[3usize][..], vec![(1usize, 2usize)]),
        (&[2, 3, 3, 2], vec![(0, 0), (1, 0), (2, 2), (0, 3)]),
        (&[0, 2], vec![(1, 1), (0, 1)]),
        (&[], vec![]),
    ] {
        all.push(Case::new(Pad { margins, value: -1.5 }, vec![random(shape, 7)?]).both_layouts());
    }
    for (axis, shapes) in [
        (0, vec![vec![3usize], vec![1], vec![17]]),
        (1, vec![vec![2, 3], vec![2, 5]]),
        (1, vec![vec![2, 3, 4, 5], vec![2, 1, 4, 5], vec![2, 2, 4, 5]]),
        (3, vec![vec![1, 2, 3, 1], vec![1, 2, 3, 4]]),
        (0, vec![vec![0, 3], vec![2, 3]]),
        (2, vec![vec![2, 2, 2]]),
    ] {
        let inputs: Vec<Array> = shapes.iter().zip(8..).map(|(s, seed)| random(s, seed)).collect::<Result<_>>()?;
        let sizes = shapes.iter().map(|s| s[axis]).collect::<Vec<_>>();
        let mut whole = shapes[0].clone();
        whole[axis] = sizes.iter().sum();
        all.push(Case::new(Concat { axis }, inputs).both_layouts());
        all.push(Case::new(Split { sizes, axis }, vec![random(&whole, 12)?]).both_layouts());
    }
    for (shape, axis, index) in [
        (&[5usize, 3][..], 0, &[7usize][..]),
        (&[2, 4, 3], 1, &[2, 3]),
        (&[17], 0, &[]),
        (&[2, 3, 4, 2], 3, &[5]),
        (&[3, 50], 0, &[0]),
        (&[1, 1], 1, &[783]),
    ] {
        let at = random_indices(index, 13, shape[axis])?;
        all.push(Case::new(Take { axis }, vec![random(shape, 14)?, at.clone()]).both_layouts());
        let bytes = at.to_vec::<i64>()?.into_iter().map(|i| i as u8).collect::<Vec<_>>();
        all.push(Case::new(Take { axis }, vec![random(shape, 14)?, Array::from_vec(bytes, index, &cpu())?]));
    }
    for shape in [&[4usize, 3][..], &[2, 3, 17], &[0, 5], &[1]] {
        let (&classes, lead) = shape.split_last().unwrap();
        let at = random_indices(lead, 15, classes)?;
        all.push(Case::new(Pick, vec![random(shape, 16)?, at.clone()]));
        for dtype in [DType::F32, DType::I64] {
            all.push(Case::new(OneHot { classes, dtype }, vec![at.clone()]).dtypes(ALL));
        }
    }
    Ok(all)
}

fn count(shape: &[usize]) -> Tensor {
    Tensor::new(Array::arange(0.0, shape.iter().product::<usize>() as f64, 1.0, DType::F32, &cpu()).unwrap())
        .reshape_as(shape)
        .unwrap()
}

/// The same call in every dtype, on every context and in both layouts gives the same numbers.
fn everywhere(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f32> {
    fn typed<T: Element>(x: &Tensor) -> Array {
        let v = x.array().to_f64_vec().unwrap().into_iter().map(T::from_f64).collect();
        Array::from_vec::<T>(v, &x.shape(), &cpu()).unwrap()
    }
    let expected = f(x).unwrap();
    let kinds = [typed::<f64>(x), typed::<half::f16>(x), typed::<half::bf16>(x), typed::<u8>(x), typed::<i64>(x)];
    for a in kinds.into_iter().chain([x.array()]) {
        for ctx in common::contexts() {
            for layout in [Layout::RowMajor, Layout::ChannelsLast] {
                if layout == Layout::RowMajor || a.rank() == 4 {
                    let y = f(&Tensor::new(a.to_layout(layout).unwrap().to_context(&ctx).unwrap())).unwrap();
                    assert_eq!((y.dtype(), y.shape()), (a.dtype(), expected.shape()));
                    assert_eq!(y.to_vec().unwrap(), expected.to_vec().unwrap(), "{} on {ctx}, {layout:?}", a.dtype());
                }
            }
        }
    }
    expected.to_vec().unwrap()
}

#[test]
fn values_are_those_of_numpy_in_every_dtype() {
    let m = count(&[2, 3]);
    assert_eq!(everywhere(&m, |x| x.transpose()), [0., 3., 1., 4., 2., 5.]);
    assert_eq!(everywhere(&m, |x| x.reshape(&[-1, 2])), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(everywhere(&m, |x| x.slice(1, 1..3)), [1., 2., 4., 5.]);
    assert_eq!(everywhere(&m, |x| x.slice_step(1, 0..3, 2)), [0., 2., 3., 5.]);
    assert_eq!(everywhere(&m, |x| x.pad(&[(1, 0), (0, 1)], 9.0)), [9., 9., 9., 9., 0., 1., 2., 9., 3., 4., 5., 9.]);
    assert_eq!(everywhere(&m, |x| x.expand_dims(1)?.broadcast_to(&[2, 2, 3])?.slice(0, 1..2)), [3., 4., 5., 3., 4., 5.]);
    assert_eq!(everywhere(&m, |x| Tensor::concat(&[x, x], -1)), [0., 1., 2., 0., 1., 2., 3., 4., 5., 3., 4., 5.]);
    assert_eq!(everywhere(&m, |x| Tensor::stack(&[x, x], 1)), [0., 1., 2., 0., 1., 2., 3., 4., 5., 3., 4., 5.]);
    assert_eq!(everywhere(&m, |x| x.split_sizes(&[1, 2], 1)?.remove(1).slice(0, 0..1)), [1., 2.]);
    assert_eq!(everywhere(&m, |x| x.repeat(2, 1)), [0., 0., 1., 1., 2., 2., 3., 3., 4., 4., 5., 5.]);
    assert_eq!(everywhere(&m, |x| x.tile(&[2, 1, 2])?.at(1)?.at(0)), [0., 1., 2., 0., 1., 2.]);
    let index = |x: &Tensor, v: &[i64]| Tensor::new(Array::from_vec(v.to_vec(), &[v.len()], &x.context()).unwrap());
    assert_eq!(everywhere(&m, |x| x.take(&index(x, &[2, 0, 2]), 1)), [2., 0., 2., 5., 3., 5.]);
    assert_eq!(everywhere(&m, |x| x.pick(&index(x, &[2, 0]))), [2., 3.]);
    // numpy: np.arange(16).reshape(2, 2, 2, 2).transpose(0, 2, 3, 1).ravel()
    let image = count(&[2, 2, 2, 2]);
    let moved = [0., 4., 1., 5., 2., 6., 3., 7., 8., 12., 9., 13., 10., 14., 11., 15.];
    assert_eq!(everywhere(&image, |x| x.permute(&[0, 2, 3, 1])), moved);
    assert_eq!(everywhere(&image, |x| x.slices(&[1..2, 0..2, 1..2])), [10., 11., 14., 15.]);
    assert_eq!(everywhere(&image, |x| x.swap_axes(0, -1)?.at(1)?.at(0)), [1., 9., 3., 11.]);
    let value = |x: &Tensor| x.slices(&[0..1, 0..1, 0..1, 0..1]);
    let assigned = everywhere(&image, |x| x.slice_assign(&[0..2, 0..1], &value(x)?)?.flatten());
    assert_eq!(assigned, [0., 0., 0., 0., 4., 5., 6., 7., 0., 0., 0., 0., 12., 13., 14., 15.]);
    let written = everywhere(&image, |x| {
        let y = x.copy()?;
        y.fill(&[0..2, 1..2, 0..2, 1..2], 7.0)?;
        y.flatten()
    });
    assert_eq!(written, [0., 1., 2., 3., 4., 7., 6., 7., 8., 9., 10., 11., 12., 7., 14., 7.]);
}

#[test]
fn large_arrays_take_the_parallel_paths_to_the_same_values() {
    let x = count(&[3, 200, 170]);
    let v = x.to_vec().unwrap();
    let y = x.permute(&[2, 0, 1]).unwrap().to_vec().unwrap();
    let z = x.permute(&[0, 2, 1]).unwrap().to_vec().unwrap();
    for (a, b, c) in (0..3 * 200 * 170).map(|i| (i / 34000, i / 170 % 200, i % 170)) {
        let e = v[(a * 200 + b) * 170 + c];
        assert_eq!((y[(c * 3 + a) * 200 + b], z[(a * 170 + c) * 200 + b]), (e, e));
    }
    let joined = Tensor::concat(&[&x, &x], 1).unwrap();
    assert_eq!(joined.slice(1, 200..400).unwrap().to_vec().unwrap(), v);
    let rows = Tensor::from_vec((0..600i64).rev().collect(), &[600], &cpu()).unwrap();
    let table = x.reshape(&[600, 170]).unwrap();
    assert_eq!(table.take(&rows, 0).unwrap().take(&rows, 0).unwrap().to_vec().unwrap(), v);
}

#[test]
fn in_place_writes_stay_with_their_tensor() {
    for ctx in common::contexts() {
        let x = Tensor::ones(&[2, 3], &ctx).unwrap();
        let other = x.detach();
        x.write(&[1..2], &Tensor::full(&[3], 5.0, &ctx).unwrap()).unwrap();
        assert_eq!(x.to_vec().unwrap(), [1., 1., 1., 5., 5., 5.]);
        assert_eq!(other.to_vec().unwrap(), [1.; 6], "a sharer of the memory saw the write");
        // From itself: numpy's X[0] = X[1].
        x.write(&[0..1], &x.at(1).unwrap()).unwrap();
        x.write(&[], &x).unwrap();
        assert_eq!(x.to_vec().unwrap(), [5.; 6]);
        let v = x.attach_grad();
        let y = autograd::record(|| v.square()).unwrap();
        assert!(matches!(y.fill(&[0..1], 0.0), Err(Error::Autograd(_))));
    }
}

#[test]
fn an_unused_piece_has_a_gradient_of_zero() {
    for ctx in common::contexts() {
        let x = count(&[4]).array().to_context(&ctx).map(Tensor::new).unwrap().attach_grad();
        let y = autograd::record(|| x.split(2, 0)?.remove(1).square()).unwrap();
        y.backward().unwrap();
        assert_eq!(x.grad().unwrap().to_vec().unwrap(), [0., 0., 4., 6.]);
    }
}

#[test]
fn a_row_that_is_taken_twice_gets_both_gradients() {
    for ctx in common::contexts() {
        let x = Tensor::zeros(&[3, 2], &ctx).unwrap().attach_grad();
        let rows = Tensor::from_vec(vec![2i64, 0, 2], &[3], &ctx).unwrap();
        let y = autograd::record(|| x.take(&rows, 0)).unwrap();
        let dy = Tensor::from_vec(vec![1f32, 2., 3., 4., 5., 6.], &[3, 2], &ctx).unwrap();
        y.backward_from(&dy, false).unwrap();
        assert_eq!(x.grad().unwrap().to_vec().unwrap(), [3., 4., 0., 0., 6., 8.]);
    }
}

#[test]
fn channels_last_inputs_join_without_leaving_their_layout() {
    let x = Tensor::new(count(&[2, 3, 4, 5]).array().to_layout(Layout::ChannelsLast).unwrap());
    assert_eq!(Tensor::concat(&[&x, &x], 1).unwrap().layout(), Layout::ChannelsLast);
    assert_eq!(x.slice(1, 0..2).unwrap().layout(), Layout::ChannelsLast);
    let rm = x.to_vec().unwrap();
    let row_major = Tensor::from_vec(rm, &[2, 3, 4, 5], &cpu()).unwrap();
    assert_eq!(Tensor::concat(&[&x, &row_major], 1).unwrap().slice(1, 3..6).unwrap().to_vec().unwrap(), x.to_vec().unwrap());
}

#[test]
fn an_index_out_of_range_is_an_error_on_the_cpu_and_not_a_number_on_the_gpu() {
    for ctx in common::contexts() {
        let x = Tensor::ones(&[3, 2], &ctx).unwrap();
        for bad in [3i64, -1, i64::MAX, i64::MIN] {
            let rows = Tensor::from_vec(vec![1, bad, 0], &[3], &ctx).unwrap();
            let columns = Tensor::from_vec(vec![1, 0, bad], &[3], &ctx).unwrap();
            if ctx == cpu() {
                let message = x.take(&rows, 0).unwrap_err().to_string();
                assert_eq!(message, format!("take: index {bad} at position 1 is outside of 0..3"));
                assert!(x.pick(&columns).is_err());
            } else {
                let y = x.take(&rows, 0).unwrap().to_vec().unwrap();
                assert!(y[2].is_nan() && y[3].is_nan() && [y[0], y[1], y[4], y[5]] == [1.; 4], "{y:?}");
                let y = x.pick(&columns).unwrap().to_vec().unwrap();
                assert!(y[2].is_nan() && y[..2] == [1.; 2], "{y:?}");
                let bytes = Tensor::from_vec(vec![7u8; 6], &[3, 2], &ctx).unwrap();
                assert_eq!(bytes.take(&rows, 0).unwrap().to_vec().unwrap(), [7., 7., 0., 0., 7., 7.]);
            }
            assert_eq!(rows.one_hot(2).unwrap().to_vec().unwrap(), [0., 1., 0., 0., 1., 0.]);
        }
    }
}

#[test]
fn wrong_arguments_are_errors_that_say_what_is_wrong() {
    let x = count(&[2, 3, 4]);
    let says = |r: Result<Tensor>, what: &str| {
        let e = r.unwrap_err().to_string();
        assert!(e.contains(what), "{e:?} does not say {what:?}");
    };
    says(x.reshape(&[-1, -1]), "-1 stands more than once");
    says(x.reshape(&[5, -1]), "no extent in the place of -1");
    says(x.reshape(&[0, -1]), "no extent in the place of -1");
    says(x.reshape(&[5, 5]), "reshape: (5, 5) does not hold the elements of the input (shapes (2, 3, 4))");
    says(x.reshape(&[-2, 12]), "is no shape");
    says(x.reshape(&[isize::MAX, isize::MAX]), "is no shape");
    says(x.squeeze(&[0]), "another extent than 1");
    says(x.expand_dims(4), "axis 4 is outside of 4 dimensions");
    says(x.permute(&[0, 1, 1]), "not each of the input's once");
    says(x.permute(&[0, 1]), "not each of the input's once");
    says(x.swap_axes(0, 3), "axis 3");
    says(x.broadcast_to(&[2, 3, 5]), "broadcast_to: shapes do not broadcast (shapes (2, 3, 4), (2, 3, 5))");
    says(x.broadcast_to(&[4]), "does not stretch");
    says(x.slice(1, 2..4), "slice: 2..4 is outside of axis 1 with extent 3 (shapes (2, 3, 4))");
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = x.slice(1, 2..1);
    says(backwards, "outside of axis 1");
    says(x.slice_step(0, 0..2, 0), "step of 0");
    says(x.slices(&[0..1, 0..1, 0..1, 0..1]), "4 ranges for 3 dimensions");
    says(x.slice_assign(&[0..1], &count(&[5])), "do not broadcast");
    says(x.slice_assign(&[0..1], &Tensor::from_vec(vec![1i64], &[], &cpu()).unwrap()), "i64");
    assert!(x.write(&[0..1], &count(&[2, 3, 4])).is_err() && x.fill(&[0..3], 0.0).is_err());
    says(x.at(2), "index 2");
    says(x.at(isize::MIN), "index");
    says(count(&[]).reshape(&[]).unwrap().at(0), "a scalar");
    says(x.pad(&[(1, 1)], 0.0), "1 margins for 3 dimensions");
    says(x.pad(&[(usize::MAX, 1), (0, 0), (0, 0)], 0.0), "too wide");
    says(x.pad(&[(usize::MAX / 64, 1), (0, 0), (0, 0)], 0.0), "too many elements");
    says(Tensor::concat(&[], 0), "at least one");
    says(Tensor::concat(&[&x, &count(&[2, 3, 5])], 0), "agree in all axes but axis 0 (shapes (2, 3, 4), (2, 3, 5))");
    says(Tensor::concat(&[&x], 3), "axis 3");
    says(Tensor::stack(&[&x, &count(&[2, 3])], 0), "one shape");
    assert!(x.split(2, 1).is_err() && x.split(0, 1).is_err() && x.split_sizes(&[1, 1], 1).is_err());
    assert!(x.split_sizes(&[usize::MAX, 2], 1).is_err() && x.split_sizes(&[], 1).is_err());
    says(x.take(&count(&[1]), 0), "indices are i64 or u8");
    says(x.take(&Tensor::from_vec(vec![0u8], &[1], &cpu()).unwrap(), 3), "axis 3");
    says(x.pick(&Tensor::from_vec(vec![0u8], &[1], &cpu()).unwrap()), "without its last axis");
    says(x.one_hot(3), "indices are i64 or u8");
    says(x.tile(&[usize::MAX, 2]), "too many");
    says(x.repeat(usize::MAX, 0), "too many");
    // An op that is built by hand is checked as well.
    let run = |op: &dyn autograd::Op, x: &[&Array]| op.forward(x, &mut autograd::Saved::default()).is_err();
    let a = x.array();
    assert!(run(&Slice { spans: vec![span(0, 2, usize::MAX); 3] }, &[&a]));
    assert!(run(&Slice { spans: vec![span(1, 1, 0); 3] }, &[&a]));
    assert!(run(&Take { axis: 7 }, &[&a, &a]) && run(&Concat { axis: 9 }, &[&a]) && run(&Pick, &[&a]));
    assert!(run(&Split { sizes: vec![1], axis: 9 }, &[&a]) && run(&Permute { axes: vec![9; 3] }, &[&a]));
}
