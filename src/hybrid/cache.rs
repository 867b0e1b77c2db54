//! The graphs of one block, by signature.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use super::{
    fuse,
    graph::{Graph, Meta, Mode, Value},
    trace,
};
use crate::{Error, Result, Tensor, autograd, cuda::capture, nn::Hybridize, precision};

/// Signatures that a block keeps; the oldest one is forgotten.
const MOST: usize = 32;

/// What a graph is valid for.
#[derive(Clone, Debug, PartialEq)]
struct Signature {
    x: Meta,
    mode: Mode,
}

impl Signature {
    fn of(x: &Tensor) -> Self {
        let mode = Mode { recording: autograd::is_recording(), training: autograd::is_training(), precision: precision::get() };
        Signature { x: Meta { wants_grad: mode.recording && x.edge().is_some(), ..Meta::of(x) }, mode }
    }
}

/// What became of a signature.
#[derive(Debug)]
enum Entry {
    Graph(Graph, Vec<Vec<Value>>),
    Eager,
}

/// Whether a block is hybridized, and its graphs.
#[derive(Debug, Default)]
pub(crate) struct Hybrid {
    mode: AtomicU8,
    graphs: Mutex<Vec<(Signature, Arc<Entry>)>>,
    warned: AtomicBool,
}

impl Hybrid {
    /// Turns it on or off; graphs so far are forgotten.
    pub(crate) fn set(&self, mode: Hybridize) {
        self.mode.store(mode as u8, Ordering::Relaxed);
        self.lock().clear();
    }

    pub(crate) fn mode(&self) -> Hybridize {
        let all = [Hybridize::Off, Hybridize::On, Hybridize::Strict];
        all.into_iter().find(|&m| m as u8 == self.mode.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// `eager(x)`, by the graph of x's signature where there is one.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        path: impl FnOnce() -> String,
        eager: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mode = self.mode();
        if mode == Hybridize::Off || trace::is_active() {
            return eager(x);
        }
        let signature = Signature::of(x);
        let known = self.lock().iter().find(|(s, _)| *s == signature).map(|(_, e)| e.clone());
        match known.as_deref() {
            Some(Entry::Eager) => return eager(x),
            Some(Entry::Graph(graph, last_uses)) => {
                if let Some(parameters) = graph.parameters()? {
                    return graph.run(&[x], &parameters, last_uses);
                }
            }
            None => {}
        }
        if capture::active() {
            // A trace runs the block once more than a graph may hold.
            return eager(x);
        }
        let traced = trace::trace(&[x], || eager(x))?;
        let (entry, y) = match traced {
            Ok(mut graph) => {
                fuse::rewrite(&mut graph, &[x])?;
                if std::env::var_os("HADAL_EXPLAIN").is_some_and(|v| v != "0") {
                    eprintln!("{}:\n{graph}", path());
                }
                let last_uses = graph.last_uses();
                // Not the trace's output: fused ops may round otherwise, and a resumed run has to go on with the same bits.
                let parameters = graph.parameters()?.unwrap_or_default();
                let y = graph.run(&[x], &parameters, &last_uses)?;
                (Entry::Graph(graph, last_uses), y)
            }
            Err((reason, _)) if mode == Hybridize::Strict => {
                return Err(Error::Autograd(format!("the block cannot be hybridized: {reason}")).at(&path()));
            }
            Err((reason, y)) => {
                self.warn(|| format!("{} stays eager: {reason}", path()));
                (Entry::Eager, y)
            }
        };
        let mut graphs = self.lock();
        graphs.retain(|(s, _)| *s != signature);
        if graphs.len() >= MOST {
            graphs.remove(0);
            self.warn(|| {
                format!("a hybridized block has met more than {MOST} signatures (shapes, dtypes, modes): it traces each anew")
            });
        }
        graphs.push((signature, Arc::new(entry)));
        Ok(y)
    }

    /// All graphs as text.
    pub(crate) fn explain(&self) -> String {
        let entry = |(s, e): &(Signature, Arc<Entry>)| {
            let Signature { x, mode } = s;
            let head = format!("x {} {:?} {:?}, {mode:?}", crate::shape::Display(&x.shape), x.dtype, x.layout);
            match &**e {
                Entry::Graph(g, _) => format!("{head}\n{g}"),
                Entry::Eager => format!("{head}\neager\n"),
            }
        };
        self.lock().iter().map(entry).collect::<Vec<_>>().join("\n")
    }

    fn warn(&self, text: impl FnOnce() -> String) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            eprintln!("hadal: {}", text());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Signature, Arc<Entry>)>> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
