//! Modes, times and names as text, as ls(1) and stat(1) show them.

use ext4_core::Timestamp;
use ext4_core::format::inode::FileType;
use jiff::tz::TimeZone;

/// `-rwxr-xr-x`: type and mode as ls(1) shows them.
#[must_use]
pub fn mode_string(file_type: FileType, mode: u16) -> String {
    let mut text = String::with_capacity(10);
    text.push(type_letter(file_type));
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = (mode >> shift) & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn type_letter(file_type: FileType) -> char {
    match file_type {
        FileType::Fifo => 'p',
        FileType::CharacterDevice => 'c',
        FileType::Directory => 'd',
        FileType::BlockDevice => 'b',
        FileType::Regular => '-',
        FileType::Symlink => 'l',
        FileType::Socket => 's',
    }
}

/// The name of a file type as stat(1) gives it. `size` in bytes: an empty regular file has a name of its own.
#[must_use]
pub fn type_name(file_type: FileType, size: u64) -> &'static str {
    match file_type {
        FileType::Fifo => "fifo",
        FileType::CharacterDevice => "character special file",
        FileType::Directory => "directory",
        FileType::BlockDevice => "block special file",
        FileType::Regular if size == 0 => "regular empty file",
        FileType::Regular => "regular file",
        FileType::Symlink => "symbolic link",
        FileType::Socket => "socket",
    }
}

/// The name of a file type in JSON.
#[must_use]
pub fn type_word(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "fifo",
        FileType::CharacterDevice => "character-device",
        FileType::Directory => "directory",
        FileType::BlockDevice => "block-device",
        FileType::Regular => "file",
        FileType::Symlink => "symlink",
        FileType::Socket => "socket",
    }
}

/// `2026-11-23 10:07:48.770206821 +0000` in the local time zone, as stat(1) shows a time.
#[must_use]
pub fn full_time(time: Timestamp) -> String {
    local(time, "%Y-%m-%d %H:%M:%S.%9f %z")
}

/// `2026-11-23 10:07` in the local time zone, as `ls -l --time-style=long-iso`.
#[must_use]
pub fn short_time(time: Timestamp) -> String {
    local(time, "%Y-%m-%d %H:%M")
}

/// `Mon Nov 23 10:07:48 2026` in the local time zone, as ctime(3). `seconds` since 1970.
#[must_use]
pub fn ctime(seconds: i64) -> String {
    local(Timestamp { seconds, nanoseconds: 0 }, "%a %b %e %H:%M:%S %Y")
}

fn local(time: Timestamp, format: &str) -> String {
    match jiff::Timestamp::from_second(time.seconds)
        .and_then(|at| at.checked_add(jiff::SignedDuration::new(0, time.nanoseconds.cast_signed())))
    {
        Ok(at) => at.to_zoned(TimeZone::system()).strftime(format).to_string(),
        Err(_) => exact_time(time),
    }
}

/// `1795428468.770206821`: seconds since 1970, exact to the nanosecond.
#[must_use]
pub fn exact_time(time: Timestamp) -> String {
    format!("{}.{:09}", time.seconds, time.nanoseconds)
}

/// `name` for a terminal: control characters and bytes that are not UTF-8 are shown as `\ooo`, in octal.
#[must_use]
pub fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    text.push_str(&format!("\\{byte:03o}"));
                }
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\{byte:03o}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        assert_eq!(mode_string(FileType::Regular, 0o755), "-rwxr-xr-x");
        assert_eq!(mode_string(FileType::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode_string(FileType::Regular, 0o6644), "-rwSr-Sr--");
    }

    #[test]
    fn control_bytes_and_odd_bytes_are_escaped() {
        assert_eq!(escaped("é\u{1b}[1m".as_bytes()), "é\\033[1m");
        assert_eq!(escaped(b"a\xffb\n"), "a\\377b\\012");
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        let before = Timestamp { seconds: -1, nanoseconds: 500_000_000 };
        assert!(full_time(before).contains(".500000000 "), "{}", full_time(before));
        assert_eq!(exact_time(before), "-1.500000000");
    }
}
