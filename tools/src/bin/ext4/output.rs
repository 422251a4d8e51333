//! Standard output: buffered, names escaped for terminals, a closed pipe recognized.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, StdoutLock, Write};

use ext4_core::Errno;
use serde::Serialize;

/// Standard output, locked and buffered.
pub fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 << 10, io::stdout().lock())
}

/// Prints `value` as JSON, indented, with a newline.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// Prints one line.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// `name` as it is printed: unchanged into a pipe or file, with control characters escaped on a terminal, so
/// that a name in an untrusted image cannot send commands to the terminal.
pub fn shown(name: &[u8]) -> Vec<u8> {
    if io::stdout().is_terminal() { ext4_tools::display::escaped(name).into_bytes() } else { name.to_vec() }
}

/// Returns true if the error is a closed pipe: the reader of standard output has gone away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|error| error.io_error_kind() == Some(ErrorKind::BrokenPipe))
            || cause.downcast_ref::<ext4_core::Error>().is_some_and(|error| error.errno() == Errno::EPIPE)
    })
}
