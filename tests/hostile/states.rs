//! Damaged files of an optimizer's states: refused with nothing changed, or taken; a step after it then gives finite weights, or
//! errs and has changed nothing.

use hadal::{
    DType, Error, Result, Tensor, Trainer, autograd, cpu, init,
    nn::{Dense, Sequential},
    optim::{Adam, Lars, LossScale, Sgd},
};

use crate::{
    cases::{self, Rng},
    files::{Scratch, bounded, damage},
};

const KINDS: usize = 4;

/// A small net and its trainer, after one step; states of the kinds differ in rule, dtype and loss scale.
fn trained(kind: usize) -> Result<(Sequential, Trainer)> {
    let net = Sequential::new().add(Dense::new(3).in_units(2)).add(Dense::new(1).in_units(3));
    net.initialize(init::Constant(0.5), &cpu())?;
    let trainer = |net: &Sequential| match kind {
        0 => Trainer::new(net.parameters(), Sgd::new(0.01).momentum(0.9)),
        1 => Trainer::new(net.parameters(), Adam::new(0.01)),
        2 => Trainer::new(net.parameters(), Adam::adamw(0.01)).loss_scale(LossScale::dynamic().initial(2.0)),
        _ => Trainer::new(net.parameters(), Lars::new(0.01)),
    };
    if kind == 2 {
        net.cast(DType::BF16)?;
    }
    let mut trainer = trainer(&net);
    backward(&net, &mut trainer)?;
    trainer.step(2)?;
    Ok((net, trainer))
}

fn backward(net: &Sequential, trainer: &mut Trainer) -> Result<()> {
    let x = Tensor::ones(&[2, 2], &cpu())?.cast(net.dtype())?;
    let l = autograd::record(|| net.forward(&x))?;
    trainer.backward(&l)
}

/// All that a step may change, as bits.
fn seen(net: &Sequential, trainer: &Trainer) -> Result<Vec<u64>> {
    let mut all = vec![trainer.scale()?.to_bits(), trainer.learning_rate().to_bits()];
    for p in net.parameters() {
        let (lr, wd) = p.multipliers();
        all.extend([lr.to_bits(), wd.to_bits()]);
        all.extend(p.data()?.to_vec()?.iter().map(|v| u64::from(v.to_bits())));
    }
    for (_, a) in trainer.optimizer().state()? {
        all.extend(a.to_f64_vec()?.iter().map(|v| v.to_bits()));
    }
    Ok(all)
}

/// Damage that a reader of the container does not see: bits of the values and letters of the header.
fn inside(rng: &mut Rng, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for _ in 0..1 + rng.below(3) {
        let at = if rng.one_in(3) { 8 + rng.below(header) } else { 8 + header + rng.below(bytes.len() - 8 - header) };
        match rng.below(3) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = *rng.of(&[0, 0xff, 0x7f, 0x80, b'0', b'1', b'2', b'.', b'm', b't', b'v', b',', b']']),
            _ => {
                let other = 8 + rng.below(bytes.len() - 8);
                bytes[at] = bytes[other];
            }
        }
    }
    bytes
}

#[test]
fn damaged_states_change_nothing_or_can_be_stepped_from() {
    let folder = Scratch::new("states");
    let good: Vec<Vec<u8>> = (0..KINDS)
        .map(|kind| {
            let path = folder.0.join(format!("good{kind}"));
            trained(kind).unwrap().1.save_states(&path).unwrap();
            std::fs::read(path).unwrap()
        })
        .collect();
    cases::run("states", 2000, |rng| {
        let (from, to) = (rng.below(KINDS), rng.below(KINDS));
        // Mostly the right file for the trainer.
        let to = if rng.one_in(8) { to } else { from };
        let bytes = if rng.one_in(4) { damage(rng, &good[from]) } else { inside(rng, &good[from]) };
        let (net, mut trainer) = trained(to).unwrap();
        let before = seen(&net, &trainer).unwrap();
        let file = folder.file(&bytes);
        match bounded(bytes.len(), || trainer.load_states(&file)) {
            Err(Error::Data { path, reason }) => {
                assert!(path.contains("file") && !reason.is_empty());
                assert_eq!(seen(&net, &trainer).unwrap(), before, "{reason}");
            }
            Err(e) => panic!("another kind of error: {e}"),
            Ok(()) => {
                backward(&net, &mut trainer).unwrap();
                let before = seen(&net, &trainer).unwrap();
                if trainer.step(2).is_err() {
                    assert_eq!(seen(&net, &trainer).unwrap(), before);
                }
                trainer.save_states(&file).unwrap();
            }
        }
    });
}
