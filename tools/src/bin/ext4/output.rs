//! Standard output: buffered, and quiet when its reader goes away.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, StdoutLock, Write};

use ext4_core::Errno;
use serde::Serialize;

/// Standard output for the length of one command.
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

/// Prints one line: what a command has done.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// `name` as it is printed: as it is into a pipe or file, without control bytes on a terminal, which an image that
/// nobody trusts could otherwise command.
pub fn shown(name: &[u8]) -> Vec<u8> {
    if io::stdout().is_terminal() { ext4_tools::display::escaped(name).into_bytes() } else { name.to_vec() }
}

/// True where the error is that nobody reads our output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|error| error.io_error_kind() == Some(ErrorKind::BrokenPipe))
            || cause.downcast_ref::<ext4_core::Error>().is_some_and(|error| error.errno() == Errno::EPIPE)
    })
}
