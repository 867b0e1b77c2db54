//! The main job and the command as processes: whose reader leaves, and which are told to end.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// The folder of the main job: built from the present sources when cargo runs the tests; in a bundle beside the tests' folder.
fn examples() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let folder = own.parent().unwrap();
        let Some(cargo) = std::env::var_os("CARGO") else { return folder.parent().unwrap().join("bin") };
        let release = if cfg!(debug_assertions) { &[][..] } else { &["--release"] };
        let status = Command::new(cargo).args(["build", "--quiet", "--example", "resnet18_fashion_mnist"]).args(release).status();
        assert!(status.unwrap().success(), "the main job does not build");
        folder.parent().unwrap().join("examples")
    })
}

/// The main job on a few small images; `more` are further options.
fn main_job(more: &[&str]) -> Command {
    let mut job = Command::new(examples().join("resnet18_fashion_mnist"));
    job.args(["--context", "cpu", "--offline", "--resize", "32", "--batch-size", "10"]).args(more);
    job.stdout(Stdio::piped()).stderr(Stdio::piped());
    job
}

fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("hadal-programs-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Ends as it should, and what it said on the standard error output.
fn end(mut child: Child) -> String {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {said}");
    assert!(!said.contains("panic"), "{said}");
    said
}

#[test]
fn a_reader_that_leaves_loses_nothing() {
    let folder = scratch("closed");
    let file = folder.join("net.safetensors");
    let mut job = main_job(&["--epochs", "2", "--limit", "20", "--save", file.to_str().unwrap()]).spawn().unwrap();
    // Before it writes its first line.
    drop(job.stdout.take());
    end(job);
    assert_eq!(hadal::nn::metadata(&file).unwrap()["epoch"], "2");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_commands_lines_may_be_cut_short() {
    // A bundle has the program beside the tests' folder.
    let built = PathBuf::from(env!("CARGO_BIN_EXE_hadal"));
    let program = if built.exists() { built } else { examples().join("hadal") };
    for args in [&["doctor"][..], &["--help"], &["bench", "--help"], &["bench", "ops", "--list"]] {
        let mut child = Command::new(&program).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        end(child);
    }
    // Nobody hears the error, and it is still the status that says so.
    let mut child = Command::new(&program).arg("bensh").stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

/// Tells a process to end, as Slurm and Kubernetes do.
#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn sigterm_ends_with_saving_and_the_run_goes_on_from_there() {
    let folder = scratch("term");
    let file = folder.join("net.safetensors");
    let job = main_job(&["--epochs", "10000", "--limit", "40", "--save", file.to_str().unwrap()]).spawn().unwrap();
    // The first batch's checkpoint.
    let began = Instant::now();
    while !file.exists() {
        assert!(began.elapsed() < Duration::from_secs(120), "nothing is saved");
        thread::sleep(Duration::from_millis(10));
    }
    signal(&job, "-TERM");
    let said = end(job);
    assert!(said.contains("ending after this batch, then the parameters go to"), "{said}");
    let at = hadal::nn::metadata(&file).unwrap();
    let epochs = (at["epoch"].parse::<usize>().unwrap() + 1).to_string();
    let file = file.to_str().unwrap();
    end(main_job(&["--epochs", &epochs, "--limit", "40", "--resume", file, "--save", file]).spawn().unwrap());
    assert_eq!(hadal::nn::metadata(file).unwrap()["epoch"], epochs);
    fs::remove_dir_all(folder).unwrap();
}

#[cfg(unix)]
#[test]
fn without_a_file_to_save_to_it_says_what_is_lost() {
    let mut job = main_job(&["--epochs", "10000", "--limit", "40"]).spawn().unwrap();
    // Its first line of an epoch shows that it trains.
    let (mut out, mut lines) = (job.stdout.take().unwrap(), Vec::new());
    let mut byte = [0];
    while !String::from_utf8_lossy(&lines).contains("epoch 1,") {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "it ended");
        lines.push(byte[0]);
    }
    signal(&job, "-INT");
    let said = end(job);
    assert!(
        said.contains("without --save FILE what was learned is lost") && said.contains("is lost: there was no --save"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_saved_is_told_before_hours_have_passed() {
    let job = main_job(&["--epochs", "10000", "--limit", "40", "--save", "/no/such/folder/net.safetensors"]).spawn().unwrap();
    let out = job.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("/no/such/folder/net.safetensors"), "{said}");
}

#[test]
fn wrong_options_are_named() {
    for (options, words) in [
        (&["--epoch", "1"][..], "there is no option \"--epoch\""),
        (&["--limit"], "--limit needs a value"),
        (&["--lr=fast"], "--lr needs a number, not \"fast\""),
    ] {
        let out = main_job(options).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(words), "{options:?}: {said}");
    }
    let out = main_job(&["--help"]).output().unwrap();
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("--checkpoint"));
}
