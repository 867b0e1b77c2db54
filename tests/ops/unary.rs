use hadal::{
    Result,
    check::{random, random_in},
    ops::{Unary, UnaryKind::*},
};

use crate::Case;

pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for kind in [
        Relu,
        LeakyRelu(0.2),
        Elu(1.3),
        Sigmoid,
        Tanh,
        Gelu,
        GeluTanh,
        Softplus,
        Exp,
        Abs,
        Square,
        Neg,
        Affine(2.0, -0.5),
        Clip(-0.55, 0.7),
    ] {
        all.push(Case::new(Unary(kind), vec![random(&[3, 17], 1)?]));
        all.push(Case::new(Unary(kind), vec![random(&[2, 3, 5, 4], 2)?]).both_layouts());
    }
    for kind in [Log, Sqrt, Pow(2.5), Pow(-1.0)] {
        all.push(Case::new(Unary(kind), vec![random_in(&[50], 3, 0.3, 2.0)?]));
    }
    for kind in [Relu, Sigmoid] {
        for shape in [&[][..], &[0], &[1], &[783], &[4, 0, 3]] {
            all.push(Case::new(Unary(kind), vec![random(shape, 4)?]));
        }
    }
    Ok(all)
}
