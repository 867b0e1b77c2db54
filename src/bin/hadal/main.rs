//! The command `hadal`.

mod bench;

use hadal::{eprintln, print, println};
use std::process::ExitCode;

const USAGE: &str = "usage: hadal doctor             what hadal finds on this machine: driver, NVRTC, devices, data
       hadal bench [ops|step] …  how fast this machine is with it; hadal bench --help";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("doctor") => print!("{}", hadal::doctor()),
        Some("bench") => {
            if let Err(e) = bench::run(&args[1..]) {
                eprintln!("hadal bench: {e}");
                return ExitCode::FAILURE;
            }
        }
        Some("help" | "--help" | "-h") | None => println!("{USAGE}"),
        Some(other) => {
            eprintln!("hadal: there is no command {other:?}\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
