//! Places: a path of the host, a path inside an image (`IMAGE:/path`), or a standard stream (`-`).
//!
//! `IMAGE:/path` is a place inside an image or block device, in the form of scp(1). Only a colon before a
//! slash separates, so that `./a:b` and `a:b` are paths of the host.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// One argument of a command that copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A path of the host.
    Host(PathBuf),
    /// A path inside an image.
    Image(ImagePath),
    /// Standard input or output.
    Standard,
}

/// A place inside an image: `IMAGE:/path`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImagePath {
    /// The image file or block device.
    pub image: PathBuf,
    /// The absolute path inside the image; begins with a slash.
    pub path: Vec<u8>,
}

impl Place {
    /// Parses an argument. Every argument is a place.
    #[must_use]
    pub fn parse(argument: &OsStr) -> Self {
        if argument == "-" {
            return Self::Standard;
        }
        ImagePath::parse(argument).map_or_else(|_| Self::Host(argument.into()), Self::Image)
    }
}

impl ImagePath {
    /// Parses `IMAGE:/path`.
    ///
    /// # Errors
    /// A message for a usage error, if the argument has another form.
    pub fn parse(argument: &OsStr) -> Result<Self, String> {
        let bytes = argument.as_bytes();
        match bytes.windows(2).position(|pair| pair == b":/") {
            Some(at) if at > 0 => {
                Ok(Self { image: OsStr::from_bytes(&bytes[..at]).into(), path: bytes[at + 1..].to_vec() })
            }
            _ => Err(format!("'{}' is not a place inside an image: write IMAGE:/path", argument.display())),
        }
    }

    /// A place in the same image with another path.
    #[must_use]
    pub fn with_path(&self, path: Vec<u8>) -> Self {
        Self { image: self.image.clone(), path }
    }
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.image.display(), String::from_utf8_lossy(&self.path))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(path) => path.display().fmt(f),
            Self::Image(path) => path.fmt(f),
            Self::Standard => f.write_str("-"),
        }
    }
}

/// `directory/name`, with exactly one slash between them.
#[must_use]
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() && !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The last component of `path`, trailing slashes ignored; `None` for the root, `.` and `..`.
#[must_use]
pub fn base_name(path: &[u8]) -> Option<&[u8]> {
    path.split(|byte| *byte == b'/')
        .rfind(|part| !part.is_empty())
        .filter(|name| *name != b"." && *name != b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_colon_with_a_slash_separates() {
        let image = |image: &str, path: &str| {
            Place::Image(ImagePath { image: image.into(), path: path.as_bytes().to_vec() })
        };
        for (argument, place) in [
            ("disk.img:/etc/passwd", image("disk.img", "/etc/passwd")),
            ("/dev/loop0:/", image("/dev/loop0", "/")),
            ("./a:b.img:/x:/y", image("./a:b.img", "/x:/y")),
            ("./a:b", Place::Host("./a:b".into())),
            ("a:b", Place::Host("a:b".into())),
            (":/x", Place::Host(":/x".into())),
            ("-", Place::Standard),
            ("./-", Place::Host("./-".into())),
        ] {
            assert_eq!(Place::parse(OsStr::new(argument)), place, "{argument}");
        }
    }

    #[test]
    fn base_names_ignore_trailing_slashes() {
        assert_eq!(base_name(b"/a/b//"), Some(&b"b"[..]));
        assert_eq!(base_name(b"/"), None);
        assert_eq!(base_name(b"/a/.."), None);
    }
}
