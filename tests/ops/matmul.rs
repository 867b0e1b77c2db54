//! Matrix products and the fully connected layer.

use hadal::{
    Array, DType, Result, Tensor, autograd,
    check::{random, random_in},
    cpu, ops,
    ops::{Dense, DenseActivation, MatMul, UnaryKind},
};

use crate::Case;

/// `count` numbers start, start + 1, … of `shape`.
fn counting(start: f64, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>() as f64;
    Tensor::new(Tensor::arange(start, start + n, 1.0, &cpu()).unwrap().array().reshape(shape).unwrap())
}

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let mut add = |ta: bool, tb: bool, a: &[usize], b: &[usize], smooth: bool| -> Result<()> {
        let op = MatMul { transpose_a: ta, transpose_b: tb };
        let case = Case::new(op, vec![random(a, 1)?, random(b, 2)?]);
        all.push(if smooth { case } else { case.rough() });
        Ok(())
    };
    // All transposes of odd sizes, of sizes beyond a tile, and of batches.
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let swap = |flip: bool, [r, c]: [usize; 2]| if flip { [c, r] } else { [r, c] };
        for ([m, n, k], smooth) in [([1, 1, 1], true), ([3, 5, 7], true), ([65, 67, 50], false), ([17, 130, 33], false)] {
            add(ta, tb, &swap(ta, [m, k]), &swap(tb, [k, n]), smooth)?;
        }
        let ([ar, ac], [br, bc]) = (swap(ta, [3, 4]), swap(tb, [4, 2]));
        add(ta, tb, &[2, ar, ac], &[2, br, bc], true)?;
        // Broadcasting: one side 2-D, an extent of 1, both sides stretched.
        add(ta, tb, &[3, ar, ac], &[br, bc], true)?;
        add(ta, tb, &[ar, ac], &[3, br, bc], true)?;
        add(ta, tb, &[2, 1, ar, ac], &[3, br, bc], true)?;
        add(ta, tb, &[1, ar, ac], &[1, br, bc], true)?;
        // Vectors, which a transpose leaves alone.
        add(ta, tb, &[4], &[4], true)?;
        add(ta, tb, &[ar, ac], &[4], true)?;
        add(ta, tb, &[4], &[2, br, bc], true)?;
        // Empty sums and empty results.
        let ([ar, ac], [br, bc]) = (swap(ta, [3, 0]), swap(tb, [0, 2]));
        add(ta, tb, &[ar, ac], &[br, bc], true)?;
        let ([ar, ac], [br, bc]) = (swap(ta, [0, 4]), swap(tb, [4, 2]));
        add(ta, tb, &[ar, ac], &[br, bc], true)?;
        add(ta, tb, &[0, ar, ac], &[br, bc], true)?;
    }
    // A long sum with a single tile is cut into parts.
    add(false, false, &[1, 783], &[783, 1], false)?;
    add(false, false, &[2, 5000], &[5000, 3], false)?;
    for (x, w) in
        [(&[1, 1][..], [1, 1]), (&[3, 7], [5, 7]), (&[2, 3, 4], [3, 4]), (&[4], [2, 4]), (&[0, 3], [2, 3]), (&[2, 0], [3, 0])]
    {
        all.push(Case::new(Dense, vec![random(x, 3)?, random(&w, 4)?]));
        all.push(Case::new(Dense, vec![random(x, 3)?, random(&w, 4)?, random(&w[..1], 5)?]));
    }
    all.push(Case::new(Dense, vec![random(&[2, 3, 4, 5], 3)?, random(&[2, 5], 4)?, random(&[2], 5)?]).both_layouts());
    all.push(Case::new(Dense, vec![random(&[70, 783], 6)?, random(&[10, 783], 7)?, random(&[10], 8)?]).rough());
    all.push(Case::new(Dense, vec![random(&[1100, 3], 6)?, random(&[66, 3], 7)?, random(&[66], 8)?]).rough());
    for (i, f) in ACTIVATIONS.into_iter().enumerate() {
        let op = DenseActivation(f);
        all.push(Case::new(op, vec![random(&[3, 7], 3)?, random(&[5, 7], 4)?, random(&[5], 5)?]));
        all.push(Case::new(op, vec![random(&[2, 3, 4], 3)?, random(&[3, 4], 4)?]));
        all.push(Case::new(op, vec![random(&[0, 4], 3)?, random(&[3, 4], 4)?]));
        // Tiles, and parts of a long sum.
        all.push(Case::new(op, vec![random(&[70, 200], 6)?, random(&[64 + i, 200], 7)?, random(&[64 + i], 8)?]).rough());
        // Sums of about 1: those of 40 would be compared where tanh is 1 whatever they are, and those near 0 by the rounding of 40.
        let w = random_in(&[3, 5000], 7, -0.04, 0.04)?;
        all.push(Case::new(op, vec![random(&[2, 5000], 6)?, w, random(&[3], 8)?]).rough());
    }
    Ok(all)
}

const ACTIVATIONS: [UnaryKind; 3] = [UnaryKind::Relu, UnaryKind::Sigmoid, UnaryKind::Tanh];

/// The product that ends with an activation against the two operations: the same bits, but where halves round twice.
#[test]
fn an_activation_in_the_product_is_its_slow_twin() -> Result<()> {
    for ctx in crate::common::contexts() {
        for (dtype, f) in [DType::F32, DType::F64, DType::F16, DType::BF16].into_iter().flat_map(|d| ACTIVATIONS.map(|f| (d, f)))
        {
            for [m, k, n] in [[5, 7, 3], [72, 144, 80], [2, 6000, 8], [1, 1, 1]] {
                let t = |shape: &[usize], seed| -> Result<Tensor> {
                    Ok(Tensor::new(random(shape, seed)?.to_context(&ctx)?).cast(dtype)?.attach_grad())
                };
                let inputs = [t(&[m, k], 1)?, t(&[n, k], 2)?, t(&[n], 3)?];
                let run = |fused: bool| -> Result<Vec<Vec<f64>>> {
                    let [x, w, b] = &inputs;
                    let y = autograd::record(|| match fused {
                        true => x.dense_activation(w, Some(b), f),
                        false => autograd::apply1(ops::Unary(f), &[&x.dense(w, Some(b))?]),
                    })?;
                    y.backward()?;
                    let grads = inputs.iter().map(|t| t.grad()?.array().to_f64_vec()).collect::<Result<Vec<_>>>()?;
                    Ok([vec![y.array().to_f64_vec()?], grads].concat())
                };
                let (fused, plain) = (run(true)?, run(false)?);
                if matches!(dtype, DType::F32 | DType::F64) || f == UnaryKind::Relu {
                    assert_eq!(fused, plain, "{f:?} of {m}x{k}x{n} in {dtype} on {ctx}");
                    continue;
                }
                let bound = if dtype == DType::F16 { 2e-3 } else { 1.6e-2 };
                for (a, b) in fused.iter().zip(&plain) {
                    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
                    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-9);
                    assert!(difference < bound, "{f:?} of {m}x{k}x{n} in {dtype} on {ctx}: {difference}");
                }
            }
        }
    }
    let ones = |shape: &[usize]| Tensor::ones(shape, &cpu());
    assert!(ones(&[1, 2])?.dense_activation(&ones(&[3, 2])?, None, UnaryKind::Gelu).is_err());
    Ok(())
}

/// The book's x (2, 3) and its products; numpy's `matmul` of counting arrays.
#[test]
fn values() -> Result<()> {
    let (a, b) = (counting(0.0, &[2, 3]), counting(0.0, &[3, 2]));
    assert_eq!(a.matmul(&b)?.to_vec()?, [10., 13., 28., 40.]);
    assert_eq!(a.matmul_t(&b, true, true)?.to_vec()?, [3., 9., 15., 4., 14., 24., 5., 19., 33.]);
    assert_eq!(a.matmul_t(&a, false, true)?.to_vec()?, [5., 14., 14., 50.]);
    assert_eq!(a.matmul_t(&a, true, false)?.to_vec()?, [9., 12., 15., 12., 17., 22., 15., 22., 29.]);
    let batch = counting(0.0, &[2, 1, 3]).matmul(&counting(1.0, &[3, 2]))?;
    assert_eq!((batch.shape(), batch.to_vec()?), (vec![2, 1, 2], vec![13., 16., 40., 52.]));
    let (x, v) = (counting(0.0, &[4]), Tensor::ones(&[4], &cpu())?);
    assert_eq!((x.dot(&v)?.shape(), x.dot(&v)?.item()?), (vec![], 6.0));
    let mv = counting(0.0, &[5, 4]).dot(&x)?;
    assert_eq!((mv.shape(), mv.to_vec()?), (vec![5], vec![14., 38., 62., 86., 110.]));
    let y = counting(1.0, &[1, 2]).dense(&counting(1.0, &[3, 2]), Some(&counting(10.0, &[3])))?;
    assert_eq!(y.to_vec()?, [15., 22., 29.]);
    Ok(())
}

#[test]
fn gradients_reach_each_operand() -> Result<()> {
    let (x, w, b) = (counting(1.0, &[2, 2]), counting(1.0, &[3, 2]).attach_grad(), counting(0.0, &[3]).attach_grad());
    autograd::record(|| x.dense(&w, Some(&b)))?.backward()?;
    assert_eq!(w.grad()?.to_vec()?, [4., 6., 4., 6., 4., 6.]);
    assert_eq!(b.grad()?.to_vec()?, [2., 2., 2.]);
    // The same tensor on both sides: d(xᵀx)/dx = 2x.
    let x = counting(1.0, &[3]).attach_grad();
    autograd::record(|| x.dot(&x))?.backward()?;
    assert_eq!(x.grad()?.to_vec()?, [2., 4., 6.]);
    Ok(())
}

#[test]
fn mistakes_are_named() {
    let t = |shape: &[usize]| Tensor::zeros(shape, &cpu()).unwrap();
    let says = |r: Result<Tensor>, what: &str| {
        let message = r.unwrap_err().to_string();
        assert!(message.contains(what), "{message:?} does not say {what:?}");
    };
    says(
        t(&[2, 3]).matmul(&t(&[2, 3])),
        "matmul: the inner extents of a (…, 2, 3) and b (…, 2, 3) differ (shapes (2, 3), (2, 3))",
    );
    says(t(&[2, 3]).matmul_t(&t(&[2, 3]), true, false).and_then(|y| y.matmul(&t(&[2]))), "inner extents");
    says(t(&[2, 3, 4]).matmul(&t(&[3, 4, 5])), "batch axes do not broadcast");
    says(t(&[]).matmul(&t(&[2])), "scalar");
    says(t(&[2, 3, 4]).dot(&t(&[4])), "dot");
    says(t(&[1 << 31, 0]).matmul(&t(&[0, 1 << 40])), "too many elements");
    says(t(&[2, 3]).dense(&t(&[5, 4]), None), "the input has 3 columns, the weight takes 4");
    says(t(&[2, 3]).dense(&t(&[5, 3]), Some(&t(&[4]))), "bias needs 5");
    says(t(&[]).dense(&t(&[5, 3]), None), "at least 1 dimension");
    says(t(&[2, 3]).dense(&t(&[3]), None), "(units, inputs)");
    let half = Tensor::new(Array::zeros(&[3, 2], DType::F16, &cpu()).unwrap());
    says(t(&[2, 3]).matmul(&half), "same float type");
    let bytes = Tensor::new(Array::zeros(&[3, 2], DType::U8, &cpu()).unwrap());
    says(bytes.matmul(&bytes), "use `cast`");
    assert!(autograd::apply(ops::Dense, &[&t(&[1, 1])]).is_err());
    assert!(autograd::apply(MatMul::default(), &[&t(&[1, 1])]).is_err());
}
