//! Shared by all commands: mounting and unmounting an image, errors with an exit code, interrupts, argument
//! parsers.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::{OsStringValueParser, TypedValueParser};
use ext4_core::Errno;
use ext4_tools::open::{Access, Opener};
use ext4_tools::target::{ImagePath, Place};
use ext4_writeback::Filesystem;

/// The global options.
#[derive(Debug)]
pub struct Context {
    /// How targets are opened.
    pub opener: Opener,
}

/// An error with an exit code of its own; every other error is exit code 1.
#[derive(Debug)]
pub enum ExitReason {
    /// The arguments are invalid or contradict each other: exit code 2.
    Usage(String),
    /// The command is done, but left out damaged parts: exit code 3.
    Salvaged(String),
}

impl ExitReason {
    /// The exit code of the program.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Salvaged(_) => 3,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text) | Self::Salvaged(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for ExitReason {}

/// A usage error with this text.
pub fn usage(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(ExitReason::Usage(text.into()))
}

/// Parses `IMAGE:/path` arguments.
pub fn image_path() -> impl TypedValueParser<Value = ImagePath> {
    OsStringValueParser::new().try_map(|argument| ImagePath::parse(&argument))
}

/// Parses any place.
pub fn place() -> impl TypedValueParser<Value = Place> {
    OsStringValueParser::new().map(|argument| Place::parse(&argument))
}

impl Context {
    /// Mounts `image`, runs `work` and unmounts. Unmounts also if the work fails, so that its changes are
    /// kept.
    pub async fn mounted<T>(
        &self,
        image: &Path,
        access: Access,
        work: impl AsyncFnOnce(&Filesystem) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let filesystem = self.mount(image, access).await?;
        let result = work(&filesystem).await.map_err(|error| naming(image, error));
        finish(filesystem, image, result).await
    }

    /// Mounts `image`. Errors name the image.
    pub async fn mount(&self, image: &Path, access: Access) -> anyhow::Result<Filesystem> {
        match self.opener.mount(image, access).await {
            Ok(filesystem) => Ok(filesystem),
            Err(error) => Err(naming(image, error.into())),
        }
    }
}

/// Adds the name of the image to an error that does not contain it. A usage error stays as it is.
pub fn naming(image: &Path, error: anyhow::Error) -> anyhow::Error {
    let name = image.display().to_string();
    let is_usage = matches!(error.downcast_ref(), Some(ExitReason::Usage(_)));
    if format!("{error:#}").contains(&name) || is_usage { error } else { error.context(name) }
}

/// Unmounts after some work that ended with `result`. An error of the work is returned before one of the
/// unmount.
pub async fn finish<T>(filesystem: Filesystem, image: &Path, result: anyhow::Result<T>) -> anyhow::Result<T> {
    let mut unmounted = filesystem.clone().unmount().await;
    // A reader task of a copy holds its file for a moment after its last chunk was taken, or after the copy
    // failed.
    for _ in 0..100 {
        match &unmounted {
            Err(error) if error.errno() == Errno::EBUSY => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                unmounted = filesystem.clone().unmount().await;
            }
            _ => break,
        }
    }
    let result = result?;
    unmounted.with_context(|| image.display().to_string())?;
    Ok(result)
}

/// Runs `work` until it ends or the process gets SIGINT, SIGTERM or SIGHUP.
pub async fn interruptible<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
        _ = hang_up.recv() => anyhow::bail!("terminated"),
    }
}

/// The caller's umask.
pub fn umask() -> u16 {
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::stat::umask(mask);
    u16::try_from(mask.bits() & 0o777).unwrap_or_default()
}

/// The caller's user and group id: by default the owner of new objects in an image.
pub fn caller() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// Parses `UID:GID`.
pub fn parse_owner(text: &str) -> Result<(u32, u32), String> {
    let pair = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    pair.ok_or_else(|| format!("'{text}' is not UID:GID (numbers)"))
}

/// Parses permission bits in octal.
pub fn parse_mode(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("'{text}' is not an octal mode")),
    }
}
