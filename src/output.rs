//! `println!` and the like for programs whose reader may leave: `program | head` closes the pipe after ten lines.

use std::{
    fmt,
    io::{self, Write},
};

/// Std's `println!`, but a standard output that was closed is no panic: the line is lost, and the program goes on.
///
/// A training run ends with what it saves, whoever has stopped reading its lines. Std's macro would end it in the middle, since Rust's
/// programs ignore SIGPIPE and get the error of each write instead.
///
/// ```
/// use hadal::println; // takes the place of std's in this file
/// println!("epoch {}, loss {:.3}", 1, 0.25);
/// ```
#[macro_export]
macro_rules! println {
    () => { $crate::output::out(::core::format_args!("\n")) };
    ($($arg:tt)*) => { $crate::output::out(::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}

/// Std's `print!`, in the same way as [`println!`](crate::println).
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::output::out(::core::format_args!($($arg)*)) };
}

/// Std's `eprint!`, in the same way as [`println!`](crate::println).
#[macro_export]
macro_rules! eprint {
    ($($arg:tt)*) => { $crate::output::err(::core::format_args!($($arg)*)) };
}

/// Std's `eprintln!`, in the same way as [`println!`](crate::println).
#[macro_export]
macro_rules! eprintln {
    () => { $crate::output::err(::core::format_args!("\n")) };
    ($($arg:tt)*) => { $crate::output::err(::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}

/// Writes to the standard output.
#[doc(hidden)]
pub fn out(text: fmt::Arguments<'_>) {
    let _ = io::stdout().lock().write_fmt(text);
}

/// Writes to the standard error output.
#[doc(hidden)]
pub fn err(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}
