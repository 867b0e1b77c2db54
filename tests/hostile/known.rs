//! Calls that once ended the process, panicked, or ran without an end in sight: each is answered at once.

use hadal::{
    Array, DType, Error, Result, Tensor, autograd, cpu,
    init::{Bilinear, Constant, Identity, Init, Msra, Orthogonal, TruncatedNormal, Xavier},
    nn::{Dense, Sequential},
    ops::{Conv2dOptions, PoolOptions},
};

use crate::cases::Watched;

fn is_out_of_memory<T: std::fmt::Debug>(what: &str, result: Result<T>) {
    let mut e = result.unwrap_err();
    while let Error::Layer { source, .. } = e {
        e = *source;
    }
    assert!(matches!(e, Error::OutOfMemory { .. }), "{what}: {e}");
}

#[test]
fn memory_that_cannot_be_had_is_an_error_of_every_op() {
    let _watched = Watched::new("known: memory", 0);
    let column = Tensor::zeros(&[2_000_000, 1], &cpu()).unwrap();
    let row = Tensor::zeros(&[2_000_000], &cpu()).unwrap();
    let wide = row.reshape(&[1, -1]).unwrap();
    is_out_of_memory("sub", column.sub(&row));
    is_out_of_memory("eq", column.eq(&row));
    is_out_of_memory("where", column.where_(&row, &row));
    is_out_of_memory("broadcast_to", column.broadcast_to(&[2_000_000, 2_000_000]));
    is_out_of_memory("matmul", column.matmul(&wide));
    is_out_of_memory("f64 matmul", column.cast(DType::F64).unwrap().matmul(&wide.cast(DType::F64).unwrap()));
    is_out_of_memory("dense", column.dense(&column, None));
    let (x, w) = (Tensor::zeros(&[2_000_000, 1, 1, 1], &cpu()).unwrap(), Tensor::zeros(&[2_000_000, 1, 1, 1], &cpu()).unwrap());
    is_out_of_memory("conv2d", x.conv2d(&w, None, Conv2dOptions::new()));
    is_out_of_memory("padding", x.conv2d(&w.slice(0, 0..1).unwrap(), None, Conv2dOptions::new().padding(1 << 16)));
    is_out_of_memory("tile", row.tile(&[1 << 20]));
    is_out_of_memory("repeat", row.repeat(1 << 24, 0));
    is_out_of_memory("pad", row.pad(&[(1 << 44, 0)], 0.0));
    is_out_of_memory("one_hot", row.cast(DType::I64).unwrap().one_hot(1 << 22));
    is_out_of_memory("eye", Tensor::eye(1 << 22, &cpu()));
    is_out_of_memory("arange", Tensor::arange(0.0, 9e11, 1.0, &cpu()));
    is_out_of_memory("uniform", Tensor::uniform(0.0, 1.0, &[1 << 42], &cpu()));
    is_out_of_memory("zeros", Tensor::zeros(&[1 << 42], &cpu()));
    let shape = [1 << 21, 1 << 21];
    is_out_of_memory("Xavier", Xavier::new().values(&shape));
    is_out_of_memory("Msra", Msra::new().values(&shape));
    is_out_of_memory("Constant", Constant(1.0).values(&shape));
    is_out_of_memory("TruncatedNormal", TruncatedNormal(1.0).values(&shape));
    is_out_of_memory("Orthogonal", Orthogonal::new().values(&shape));
    is_out_of_memory("Identity", Identity.values(&shape));
    is_out_of_memory("Bilinear", Bilinear.values(&[1 << 11, 1 << 11, 1 << 11, 1 << 11]));
    let net = Sequential::new().add(Dense::new(1 << 40).in_units(1 << 4));
    net.initialize(Xavier::new(), &cpu())
        .and_then(|()| net.forward(&Tensor::zeros(&[1, 16], &cpu())?))
        .map(drop)
        .map_or_else(|e| is_out_of_memory::<()>("Dense", Err(e)), |()| panic!("a layer of 2^40 units has no room"));
}

#[test]
fn sizes_beyond_the_address_space_are_errors_also_beside_a_0() {
    let _watched = Watched::new("known: sizes", 0);
    for shape in [&[0, usize::MAX - 1][..], &[usize::MAX - 1, 2, 0], &[1 << 62, 0, 1 << 62], &[usize::MAX], &[1 << 32, 1 << 32]] {
        let e = Tensor::zeros(shape, &cpu()).unwrap_err().to_string();
        assert!(e.contains("too many elements"), "{shape:?}: {e}");
        assert!(Array::uniform(0.0, 1.0, shape, DType::F32, &cpu()).is_err());
        assert!(Tensor::from_vec(Vec::<f32>::new(), shape, &cpu()).is_err());
        let inits: [&dyn Init; 6] =
            [&Xavier::new(), &Msra::new(), &Constant(0.0), &TruncatedNormal(1.0), &Orthogonal::new(), &Identity];
        inits.iter().for_each(|init| assert!(init.values(shape).is_err(), "{init:?} {shape:?}"));
    }
    // What may be: it is printed, reduced and written at once.
    let x = Tensor::zeros(&[1 << 40, 0], &cpu()).unwrap();
    assert!(x.to_string().starts_with("[]"));
    assert!(x.sum(&[0]).unwrap().is_empty());
    is_out_of_memory("sum", x.sum(&[1]));
    assert!(x.split(1 << 40, 0).is_err());
    assert!(Tensor::eye(usize::MAX, &cpu()).is_err());
    assert!(x.sum(&[isize::MIN]).is_err() && x.expand_dims(isize::MAX).is_err());
}

#[test]
fn work_is_bounded_by_what_is_read_and_written() {
    let _watched = Watched::new("known: work", 0);
    let huge = 1 << 20;
    for dtype in [DType::F32, DType::F64] {
        // Windows and dilations of a million, of which one place meets the image.
        let x = Tensor::ones(&[1, 1, 3, 3], &cpu()).unwrap().cast(dtype).unwrap().attach_grad();
        let w = Tensor::ones(&[1, 1, 1, huge], &cpu()).unwrap().cast(dtype).unwrap().attach_grad();
        let y = autograd::record(|| x.conv2d(&w, None, Conv2dOptions::new().padding([0, huge - 2, 0, huge - 2]))).unwrap();
        y.backward().unwrap();
        assert_eq!((y.shape(), x.grad().unwrap().to_vec().unwrap()[0]), (vec![1, 1, 3, huge], 1048575.0));
        let pool = PoolOptions::new([1, huge]).padding([0, huge - 1]).stride([1, 1]);
        for mean in [false, true] {
            let y = autograd::record(|| if mean { x.avg_pool2d(pool) } else { x.max_pool2d(pool) }).unwrap();
            y.backward().unwrap();
            assert_eq!(y.shape(), [1, 1, 3, huge + 2]);
        }
        let empty = Tensor::zeros(&[0, 4, 0, 0], &cpu()).unwrap().cast(dtype).unwrap();
        let w = Tensor::ones(&[2, 4, 3, 3], &cpu()).unwrap().cast(dtype).unwrap();
        let y = empty.conv2d(&w, None, Conv2dOptions::new().padding(huge)).unwrap();
        assert!(y.is_empty());
        assert_eq!(empty.tile(&[huge, huge, 1, 1]).unwrap().size(), 0);
    }
}
