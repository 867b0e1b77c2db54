//! The time to the first step: a program starts, finds the device, compiles or loads its kernels, and trains one batch.

use std::{env, fs, path::Path, process::Command};

use hadal::{Error, Result, println};

use super::{
    Numbers, Options,
    step::{Net, Training, nets},
};

/// The first step of the only net and dtype asked for, in this process; prints its seconds.
pub fn once(o: &Options) -> Result<()> {
    for net in nets(o) {
        for &numbers in &o.dtypes {
            Training::new(net, numbers, o)?.step()?;
        }
    }
    o.ctx.synchronize()?;
    println!("{}", o.began.elapsed().as_secs_f64());
    Ok(())
}

pub fn run(o: &Options) -> Result<()> {
    let cache = env::temp_dir().join(format!("hadal-bench-{}", std::process::id()));
    if !o.json {
        println!("{:<18}{:<6}{:>22}{:>22}", "first step", "", "empty cache, s", "filled cache, s");
    }
    for net in nets(o) {
        for &numbers in &o.dtypes {
            let both = in_a_process(net, numbers, o, &cache).and_then(|cold| Ok([cold, in_a_process(net, numbers, o, &cache)?]));
            // Whatever happened, nothing stays behind.
            let _ = fs::remove_dir_all(&cache);
            let ([cold, warm], ctx, name) = (both?, o.ctx, net.name);
            if o.json {
                println!(
                    "{{\"engine\": \"hadal\", \"context\": \"{ctx}\", \"model\": \"{name}\", \"what\": \"first\", \
                     \"dtype\": \"{numbers}\", \"cold_s\": {cold:.3}, \"warm_s\": {warm:.3}}}"
                );
            } else {
                println!("{name:<18}{:<6}{cold:>22.3}{warm:>22.3}", numbers.to_string());
            }
        }
    }
    Ok(())
}

/// Seconds that a new process with this cache needs.
fn in_a_process(net: &Net, numbers: Numbers, o: &Options, cache: &Path) -> Result<f64> {
    let program = env::current_exe().map_err(|e| Error::io("hadal", e))?;
    let mut command = Command::new(&program);
    command.args(["bench", "first", "--once", "--only", net.name]).env("HADAL_CACHE", cache);
    command.args(["--dtypes", &numbers.to_string(), "--context", &o.ctx.to_string()]);
    command.args(o.batch.iter().flat_map(|n| ["--batch".to_owned(), n.to_string()]));
    command.args(o.channels_last.then_some("--channels-last")).args(o.quick.then_some("--quick"));
    let out = command.output().map_err(|e| Error::io(&program, e))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let seconds = text.trim().parse().ok().filter(|_| out.status.success());
    seconds.ok_or_else(|| Error::invalid("bench first", String::from_utf8_lossy(&out.stderr).trim()))
}
