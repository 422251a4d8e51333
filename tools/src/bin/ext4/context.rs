//! What commands share: mounting an image for one piece of work, usage errors, interrupts.

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

/// Arguments that contradict each other: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Done, but something that is damaged had to be left out: exit code 3.
#[derive(Debug)]
pub struct Salvaged(pub String);

impl fmt::Display for Salvaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Salvaged {}

/// A usage error.
pub fn usage(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(text.into()))
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
    /// Mounts `image`, runs `work`, unmounts, also where the work failed: what was done before is kept.
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

    /// Mounts `image`; errors name it.
    pub async fn mount(&self, image: &Path, access: Access) -> anyhow::Result<Filesystem> {
        match self.opener.mount(image, access).await {
            Ok(filesystem) => Ok(filesystem),
            Err(error) => Err(naming(image, error.into())),
        }
    }
}

/// Puts the image's name before an error that does not say it.
pub fn naming(image: &Path, error: anyhow::Error) -> anyhow::Error {
    let name = image.display().to_string();
    if format!("{error:#}").contains(&name) || error.is::<Usage>() { error } else { error.context(name) }
}

/// Unmounts after some work; the work's own error comes first.
pub async fn finish<T>(filesystem: Filesystem, image: &Path, result: anyhow::Result<T>) -> anyhow::Result<T> {
    let mut unmounted = filesystem.clone().unmount().await;
    // A reader that ran ahead holds its file for a moment after its last chunk was taken, or after the copy failed.
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

/// Runs `work` until it is done or the user interrupts it.
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

/// The caller's user and group: who owns what is made in an image unless told otherwise.
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
        _ => Err(format!("'{text}' is no octal mode")),
    }
}
