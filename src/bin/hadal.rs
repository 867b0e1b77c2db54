//! The command `hadal`.

use std::process::ExitCode;

const USAGE: &str = "usage: hadal doctor    says what hadal finds on this machine: driver, NVRTC, devices, data";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("doctor") => print!("{}", hadal::doctor()),
        Some("help" | "--help" | "-h") | None => println!("{USAGE}"),
        Some(other) => {
            eprintln!("hadal: there is no command {other:?}\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
