//! Convolution, batch normalization, ReLU and max-pooling in one op. The kernels for GPUs, which give no gradient of x, have their test
//! beside them.

use hadal::{
    Array, DType, Result, Tensor, autograd,
    check::{random, random_in},
    cpu,
    ops::{Conv2dOptions, PoolOptions, StemBlock, StemBlockInference},
};

use crate::Case;

/// x, w, b, γ and β. Every other channel's β is far above 0 and the others' below, so that no output is near ReLU's kink.
fn inputs(x: [usize; 4], w: [usize; 4], bias: bool) -> Result<Vec<Array>> {
    let mut all = vec![random(&x, 1)?, random(&w, 2)?];
    all.extend(bias.then(|| random(&w[..1], 3)).transpose()?);
    let far = (0..w[0]).map(|c| if c % 2 == 0 { 6.0 } else { -6.0 }).collect();
    all.extend([random_in(&w[..1], 4, 0.5, 1.5)?, Array::from_vec(far, &w[..1], &cpu())?]);
    Ok(all)
}

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let (o, p) = (Conv2dOptions::new, |k: usize| PoolOptions::new(k));
    for (x, w, conv, pool, bias) in [
        ([2, 1, 13, 14], [3, 1, 5, 5], o().stride(2).padding(2), p(3).stride(2).padding(1), true),
        ([3, 2, 5, 6], [4, 2, 3, 2], o().padding(1), p(2), false),
        ([1, 4, 6, 5], [2, 2, 2, 2], o().groups(2).dilation([2, 1]), p(2).stride(1).ceil_mode(true), true),
    ] {
        let op = StemBlock::new(conv, bias, 1e-3, pool);
        let x = inputs(x, w, bias)?;
        // In 16 bits roundings tie, and a winner moves.
        all.push(Case::new(op, x.clone()).both_layouts().dtypes(&[DType::F32]).slack(5.0));
        let statistics = vec![random(&w[..1], 5)?, random_in(&w[..1], 6, 0.3, 2.0)?];
        let case = Case::new(StemBlockInference(op), [x, statistics].concat());
        all.push(case.both_layouts().dtypes(&[DType::F32]).slack(5.0));
    }
    Ok(all)
}

/// One op or four: the same values, and the same gradients.
#[test]
fn it_is_its_ops_in_turn() -> Result<()> {
    let leaf = |shape: &[usize], seed| -> Result<Tensor> { Ok(Tensor::new(random(shape, seed)?).attach_grad()) };
    let (conv, pool) = (Conv2dOptions::new().stride(2).padding(3), PoolOptions::new(3).stride(2).padding(1));
    let all = [leaf(&[2, 1, 24, 22], 1)?, leaf(&[5, 1, 7, 7], 2)?, leaf(&[5], 3)?, leaf(&[5], 4)?, leaf(&[5], 5)?];
    let [x, w, b, gamma, beta] = &all;
    let gradients = |y: Tensor| -> Result<Vec<Vec<f32>>> {
        y.backward()?;
        all.iter().map(|t| t.grad()?.to_vec()).collect()
    };
    let (y, mean, var) = autograd::record(|| x.stem_block((w, Some(b)), [gamma, beta], 1e-5, conv, pool))?;
    let (z, batch_mean, batch_var) = autograd::record(|| x.conv2d(w, Some(b), conv)?.batch_norm_relu(gamma, beta, None, 1e-5))?;
    let separate = autograd::record(|| z.max_pool2d(pool))?;
    assert_eq!(y.to_vec()?, separate.to_vec()?);
    assert_eq!((mean.to_vec()?, var.to_vec()?), (batch_mean.to_vec()?, batch_var.to_vec()?));
    assert_eq!(gradients(y)?, gradients(separate)?);
    let given = x.stem_block_inference((w, None), [gamma, beta, &mean, &var], 1e-5, conv, pool)?;
    let separate =
        x.conv2d(w, None, conv)?.batch_norm_inference_relu(gamma, beta, [&mean, &var], None, 1e-5)?.max_pool2d(pool)?;
    assert_eq!(given.to_vec()?, separate.to_vec()?);
    Ok(())
}

#[test]
fn what_does_not_fit_is_told() -> Result<()> {
    let on = |shape: &[usize]| random(shape, 1).map(Tensor::new);
    let (x, w, one) = (on(&[1, 1, 6, 6])?, on(&[2, 1, 3, 3])?, on(&[2])?);
    let (conv, pool) = (Conv2dOptions::new(), PoolOptions::new(2));
    let error = |r: Result<(Tensor, Tensor, Tensor)>| r.map(|_| ()).expect_err("does not fit").to_string();
    assert!(error(x.stem_block((&on(&[2, 3, 3, 3])?, None), [&one, &one], 1e-5, conv, pool)).contains("conv2d"));
    assert!(error(x.stem_block((&w, None), [&one, &on(&[3])?], 1e-5, conv, pool)).contains("batch_norm"));
    assert!(error(x.stem_block((&w, None), [&one, &one], 1e-5, conv, PoolOptions::new(5))).contains("max_pool2d"));
    Ok(())
}
