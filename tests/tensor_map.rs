//! Tensor maps through `cuda::Source`: a product by the copy engine and wgmma, and what a map may not be.

mod common;

use hadal::{
    Array, DType, Error, check, cpu,
    cuda::{Define, Kernel, Source, Swizzle, TensorMap},
};

static HOPPER: Source = Source::new("hopper.cu", include_str!("kernels/hopper.cu"));

static CLUSTER: Source = Source::new("cluster.cu", include_str!("kernels/cluster.cu"));

/// A launch of one of the kernels; `None`, and said, on a device that has no wgmma.
fn hopper(name: &'static str, x: &Array) -> Option<Kernel<'static>> {
    launch(&HOPPER, name, x, &[])
}

fn launch(source: &'static Source, name: &'static str, x: &Array, defines: &[(&'static str, Define)]) -> Option<Kernel<'static>> {
    match source.kernel(name, x, defines) {
        Err(Error::Compile { arch, .. }) if !arch.contains("90") => {
            common::say(&format!("{name} is NOT run: the device is {arch}"));
            None
        }
        k => Some(k.unwrap()),
    }
}

/// A matrix with `k` columns in boxes of 64 or 40 rows of 128 bytes.
fn map(rows: usize, k: usize, tile: usize) -> TensorMap {
    TensorMap::tiled(&[k, rows], &[k], &[32, tile]).swizzle(Swizzle::Span128).tf32()
}

#[test]
fn a_product_of_ragged_matrices_by_wgmma() {
    let Some(gpu) = common::gpu() else { return };
    let (m, n, k) = (65, 44, 100);
    let (a, b) = (check::random(&[m, k], 1).unwrap(), check::random(&[n, k], 2).unwrap());
    let [x, y] = [&a, &b].map(|v| check::cast(v, DType::F32).unwrap().to_context(&gpu).unwrap());
    let mut c = Array::full(&[m, n], f64::NAN, DType::F32, &gpu).unwrap();
    let Some(launch) = hopper("gemm_tf32", &x) else { return };
    let launch = launch.tensor(&x, &map(m, k, 64)).tensor(&y, &map(n, k, 40)).array_mut(&mut c);
    let launch = launch.value(m as i32).value(n as i32).value(k as i32);
    // SAFETY: the arguments are those of `gemm_tf32`, which writes elements of c below m and n alone.
    unsafe { launch.run([2, 2, 1], [160, 1, 1], 1024 + 3 * (64 + 40) * 128) }.unwrap();
    let (a, b, c) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap(), c.to_f64_vec().unwrap());
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut size) = (0.0, 0.0);
            for l in 0..k {
                sum += a[i * k + l] * b[j * k + l];
                size += (a[i * k + l] * b[j * k + l]).abs();
            }
            // Both operands rounded to 11 bits.
            assert!((c[i * n + j] - sum).abs() <= size / 1024.0, "c[{i}][{j}] is {}, not {sum}", c[i * n + j]);
        }
    }
}

/// Each block of a cluster loads its part of eight rows for all blocks, and waits until all have read a stage before it writes it anew.
#[test]
fn blocks_of_a_cluster_load_for_each_other() {
    let Some(gpu) = common::gpu() else { return };
    let (blocks, steps) = (8, 7);
    let columns = steps * 32;
    let (own, shared) = (check::random(&[4 * blocks, columns], 1).unwrap(), check::random(&[8, columns], 2).unwrap());
    let [x, s] = [&own, &shared].map(|v| check::cast(v, DType::F32).unwrap().to_context(&gpu).unwrap());
    let plain = |rows: usize, tall| TensorMap::tiled(&[columns, rows], &[columns], &[32, tall]);
    for size in [2, 4, 8] {
        let mut y = Array::full(&[blocks, 4, 32], f64::NAN, DType::F32, &gpu).unwrap();
        let Some(launch) = launch(&CLUSTER, "ring", &x, &[("SIZE", Define::Int(size as i64))]) else { return };
        let launch =
            launch.array_mut(&mut y).tensor(&x, &plain(4 * blocks, 4)).tensor(&s, &plain(8, 8 / size)).value(steps as i32);
        // SAFETY: the arguments are those of `ring`, which writes 128 elements of y for each block.
        unsafe { launch.run([blocks as u32, 1, 1], [160, 1, 1], 0) }.unwrap();
        let (own, shared, y) = (own.to_f64_vec().unwrap(), shared.to_f64_vec().unwrap(), y.to_f64_vec().unwrap());
        for (i, y) in y.iter().enumerate() {
            let column = |row: usize, v: &[f64]| (0..steps).map(|k| v[row * columns + k * 32 + i % 32]).sum::<f64>();
            let sum = column(i / 32, &own) + (0..8).map(|row| column(row, &shared)).sum::<f64>();
            assert!((y - sum).abs() < 1e-4, "clusters of {size}: element {i} is {y}, not {sum}");
        }
    }
}

#[test]
fn wrong_maps_say_what_is_wrong() {
    let Some(gpu) = common::gpu() else { return };
    let x = Array::full(&[64, 64], 1.0, DType::F32, &gpu).unwrap();
    let halves = Array::full(&[64, 64], 1.0, DType::F16, &gpu).unwrap();
    if hopper("gemm_tf32", &x).is_none() {
        return;
    }
    let said = |a: &Array, map: TensorMap| {
        let launch = hopper("gemm_tf32", a).unwrap().tensor(a, &map);
        // SAFETY: the map is refused, so nothing is queued; were it not, the count of arguments would be wrong.
        unsafe { launch.run([1, 1, 1], [160, 1, 1], 0) }.unwrap_err().to_string()
    };
    let plain = |extent: &[usize], tile: &[usize]| TensorMap::tiled(extent, &extent[..extent.len() - 1], tile);
    let columns =
        |lower: &[i32], channels, pixels| TensorMap::im2col(&[16, 4, 4, 4], &[16, 64, 256], lower, &[0, 0], channels, pixels);
    for (map, words) in [
        (plain(&[64, 65], &[32, 8]), "the tensor's last element is number 4159 of an array of 4096"),
        (plain(&[64, 0], &[32, 8]), "extents are 1 to 2^32, not [64, 0]"),
        (plain(&[62, 64], &[32, 8]), "strides are multiples of 16 bytes"),
        (plain(&[64, 64], &[32, 257]), "a box has 2 extents of 1 to 256, not [32, 257]"),
        (plain(&[64, 64], &[32]), "a box has 2 extents"),
        (plain(&[64, 64], &[30, 8]), "multiples of 16 bytes within None, not 120 bytes"),
        (plain(&[64, 64], &[36, 8]).swizzle(Swizzle::Span128), "within Span128, not 144 bytes"),
        (plain(&[64, 64], &[32, 8]).steps(&[1, 9]), "steps are 1 to 8"),
        (plain(&[64, 64], &[32, 8]).steps(&[1]), "extents and steps are of 1 to 5 axes"),
        (columns(&[-129, 0], 16, 8), "corners are of 2 axes and -128 to 127"),
        (columns(&[0], 16, 8), "corners are of 2 axes"),
        (columns(&[0, 0], 16, 1025), "a column is 1 to 1024 pixels"),
    ] {
        let e = said(&x, map);
        assert!(e.starts_with("gemm_tf32: tensor map: ") && e.contains(words), "{e}");
    }
    let e = said(&halves, plain(&[64, 64], &[32, 8]).tf32());
    assert!(e.contains("only f32 can be rounded to tf32, not f16"), "{e}");
    // A right one gets as far as the count of arguments.
    assert_eq!(said(&x, plain(&[64, 64], &[32, 8])), "gemm_tf32: the kernel takes 6 arguments, 1 are given");
    assert_eq!(said(&x, columns(&[-1, -1], 16, 8)), "gemm_tf32: the kernel takes 6 arguments, 1 are given");

    let on_cpu = Array::full(&[64, 64], 1.0, DType::F32, &cpu()).unwrap();
    let launch = hopper("gemm_tf32", &x).unwrap().tensor(&on_cpu, &plain(&[64, 64], &[32, 8]));
    // SAFETY: as above.
    let e = unsafe { launch.run([1, 1, 1], [160, 1, 1], 0) }.unwrap_err();
    assert!(matches!(e, Error::Context { op: "gemm_tf32", .. }), "{e}");
}
