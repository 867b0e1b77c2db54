//! Killed while it saves: a file is the old or the new one, whole, and the next save removes what was left beside it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hadal::{
    Array, cpu, init,
    nn::{Block, Dense},
};

use crate::{
    cases::{self, Rng},
    files::Scratch,
};

const PLACE: &str = "HADAL_HOSTILE_SAVER";
const SIDE: usize = 400;

/// 640 kB of parameters that all have this value.
fn layer(value: f32) -> Dense {
    let layer = Dense::new(SIDE).in_units(SIDE).no_bias();
    layer.initialize(init::Zero, &cpu()).unwrap();
    layer.parameters()[0].set_data(Array::from_vec(vec![value; SIDE * SIDE], &[SIDE, SIDE], &cpu()).unwrap()).unwrap();
    layer
}

/// In a process of its own: saves until it is killed.
#[test]
fn the_saver() {
    let Some(path) = env::var_os(PLACE) else { return };
    let layers = [layer(1.0), layer(2.0)];
    loop {
        layers.iter().for_each(|l| l.save(&path).unwrap());
    }
}

fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    all.filter(|p| p.to_string_lossy().ends_with(".hadal-tmp")).collect()
}

#[test]
fn a_kill_while_saving_leaves_a_whole_file() {
    let folder = Scratch::new("kill");
    let path = folder.0.join("net.safetensors");
    let mut left = 0;
    let numbers = cases::numbers(25);
    let tries = (numbers.end - numbers.start).min(1000);
    for number in numbers.take(1000) {
        let mut saver = Command::new(env::current_exe().unwrap())
            .args(["--exact", "kill::the_saver", "--nocapture"])
            .env(PLACE, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let old = fs::metadata(&path).and_then(|m| m.modified()).ok();
        while fs::metadata(&path).and_then(|m| m.modified()).ok() == old {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing is saved");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(Rng::new(number).below(20_000) as u64));
        saver.kill().unwrap();
        saver.wait().unwrap();

        left += unfinished(&folder.0).len();
        let read = layer(0.0);
        read.load(&path, &cpu()).unwrap_or_else(|e| panic!("kill {number}: {e}"));
        let values = read.parameters()[0].data().unwrap().to_vec().unwrap();
        assert!([1.0, 2.0].contains(&values[0]) && values.iter().all(|v| *v == values[0]), "kill {number}: a mixture");
        read.save(&path).unwrap();
        assert!(unfinished(&folder.0).is_empty(), "kill {number}");
    }
    assert!(left > 0 || tries < 25, "of {tries} kills none came while a file was written");
}
