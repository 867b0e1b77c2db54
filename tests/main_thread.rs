//! The program's main thread is a worker of a pool of its own from the first op on; other threads use rayon's global one.
//!
//! Without libtest, whose tests run on threads of their own.

use hadal::{Result, Tensor, cpu};

/// A sum over more elements than one thread is given.
fn sum() -> Result<f64> {
    let x = Tensor::uniform(0.0, 1.0, &[1 << 20], &cpu())?;
    (x.affine(2.0, 0.0)? * &x)?.sum(&[])?.item()
}

/// rayon's number of this thread, the pool's size, and a sum over the same numbers.
fn after_an_op() -> Result<(Option<usize>, usize, f64)> {
    hadal::random::seed(3);
    let sum = sum()?;
    Ok((rayon::current_thread_index(), rayon::current_num_threads(), sum))
}

fn main() -> Result<()> {
    assert_eq!(rayon::current_thread_index(), None);
    let here = after_an_op()?;
    let there = std::thread::spawn(after_an_op).join().expect("the thread ends")?;
    // A pool without the main thread is as large: other threads find all cores while it waits for them.
    assert_eq!(here.1, there.1);
    assert_eq!(here.0, Some(0), "the main thread is no worker");
    assert_eq!(there.0, None, "another thread is a worker");
    assert_eq!(here.2.to_bits(), there.2.to_bits());
    println!("test the_main_thread_is_a_worker_of_its_own_pool ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored");
    Ok(())
}
