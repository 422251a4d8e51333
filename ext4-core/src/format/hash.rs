//! The hashes of names by which a directory is indexed.
//!
//! A name has a *major* hash, which orders the leaves of the index, and a *minor* one that only breaks ties
//! for a caller that wants a position between names. The lowest bit of the major hash is always 0: the index
//! uses that bit of its keys to say "more names with this very hash lie in the leaf before".
//!
//! Invariant: a name is hashed the way the root of its directory says, never the way the superblock would
//! choose today; were this wrong, a name that was added before would be looked for in another leaf and not be
//! found.
//!
//! Source: kernel documentation, "Directory Entries", Hash Tree Directories (dx_root, hash_version); RFC 1320
//! (MD4) and Wheeler and Needham's TEA for the two transforms, of which ext4 uses cut-down forms.

use core::cmp::Ordering;

/// A key that is behind all hashes; no name hashes to it (kernel: `EXT4_HTREE_EOF_32BIT << 1`).
const END: u32 = 0x7fff_ffff << 1;

/// What is mixed in with names if the superblock's seed is all zeros: the initial state of MD4.
const DEFAULT_SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// How names become numbers. The values are those in a dx_root's hash_version and the superblock's
/// s_def_hash_version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum HashVersion {
    /// The first hash of ext3's directories, bytes signed.
    Legacy = 0,
    /// A cut-down MD4, bytes signed.
    HalfMd4 = 1,
    /// TEA, bytes signed.
    Tea = 2,
    /// [`HashVersion::Legacy`] with bytes unsigned.
    LegacyUnsigned = 3,
    /// [`HashVersion::HalfMd4`] with bytes unsigned.
    HalfMd4Unsigned = 4,
    /// [`HashVersion::Tea`] with bytes unsigned.
    TeaUnsigned = 5,
}

impl HashVersion {
    /// From the number in a dx_root or superblock; `None` for SipHash (6, encrypted directories) and unknown
    /// ones.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Legacy,
            1 => Self::HalfMd4,
            2 => Self::Tea,
            3 => Self::LegacyUnsigned,
            4 => Self::HalfMd4Unsigned,
            5 => Self::TeaUnsigned,
            _ => return None,
        })
    }

    /// The number on the device.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Legacy => 0,
            Self::HalfMd4 => 1,
            Self::Tea => 2,
            Self::LegacyUnsigned => 3,
            Self::HalfMd4Unsigned => 4,
            Self::TeaUnsigned => 5,
        }
    }

    /// The variant with unsigned bytes if `unsigned` (the superblock's s_flags say that names are hashed so:
    /// 0x2) and this is one of the first three; directories made on machines with unsigned `char` hash so.
    #[must_use]
    pub fn with_unsigned(self, unsigned: bool) -> Self {
        match self {
            Self::Legacy if unsigned => Self::LegacyUnsigned,
            Self::HalfMd4 if unsigned => Self::HalfMd4Unsigned,
            Self::Tea if unsigned => Self::TeaUnsigned,
            same => same,
        }
    }

    fn is_unsigned(self) -> bool {
        matches!(self, Self::LegacyUnsigned | Self::HalfMd4Unsigned | Self::TeaUnsigned)
    }
}

/// The hashes of one name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct NameHash {
    /// Orders the index; its lowest bit is 0.
    pub major: u32,
    /// Tells names with the same major hash apart, mostly; 0 for the legacy hash.
    pub minor: u32,
}

impl Ord for NameHash {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.major, self.minor).cmp(&(other.major, other.minor))
    }
}

impl PartialOrd for NameHash {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Everything that decides a name's hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Hasher {
    version: HashVersion,
    seed: [u32; 4],
}

impl Hasher {
    /// A hasher with the superblock's s_hash_seed; all zeros stands for the default.
    #[must_use]
    pub fn new(version: HashVersion, seed: [u32; 4]) -> Self {
        Self { version, seed: if seed == [0; 4] { DEFAULT_SEED } else { seed } }
    }

    /// Which hash this is.
    #[must_use]
    pub fn version(&self) -> HashVersion {
        self.version
    }

    /// The hashes of `name`.
    #[must_use]
    pub fn hash(&self, name: &[u8]) -> NameHash {
        let unsigned = self.version.is_unsigned();
        let (major, minor) = match self.version {
            HashVersion::Legacy | HashVersion::LegacyUnsigned => (legacy(name, unsigned), 0),
            HashVersion::HalfMd4 | HashVersion::HalfMd4Unsigned => {
                let mut state = self.seed;
                for_each_block::<8>(name, unsigned, |block| state = half_md4(state, block));
                let [_, major, minor, _] = state;
                (major, minor)
            }
            HashVersion::Tea | HashVersion::TeaUnsigned => {
                let mut state = self.seed;
                for_each_block::<4>(name, unsigned, |block| state = tea(state, block));
                let [major, minor, ..] = state;
                (major, minor)
            }
        };
        let major = match major & !1 {
            END => END.wrapping_sub(2),
            major => major,
        };
        NameHash { major, minor }
    }
}

/// A byte as the C `char` of either kind of machine, widened.
fn widen(byte: u8, unsigned: bool) -> u32 {
    if unsigned { u32::from(byte) } else { i32::from(byte.cast_signed()).cast_unsigned() }
}

fn legacy(name: &[u8], unsigned: bool) -> u32 {
    let (mut newer, mut older) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
    for byte in name {
        let mut hash = older.wrapping_add(newer ^ widen(*byte, unsigned).wrapping_mul(7_152_373));
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7fff_ffff);
        }
        (newer, older) = (hash, newer);
    }
    newer << 1
}

/// Gives `f` the name as blocks of `WORDS` big-endian words. What a word lacks at the end of the name is
/// filled, from the top, with the number of bytes that were left when the block began.
fn for_each_block<const WORDS: usize>(name: &[u8], unsigned: bool, mut f: impl FnMut(&[u32; WORDS])) {
    let bytes_per_block = WORDS.saturating_mul(4);
    let mut rest = name;
    while !rest.is_empty() {
        let pad = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let pad = pad | (pad << 8);
        let pad = pad | (pad << 16);
        let (head, tail) = rest.split_at(rest.len().min(bytes_per_block));
        let mut block = [pad; WORDS];
        for (word, bytes) in block.iter_mut().zip(head.chunks(4)) {
            *word = bytes.iter().fold(pad, |word, byte| widen(*byte, unsigned).wrapping_add(word << 8));
        }
        f(&block);
        rest = tail;
    }
}

fn half_md4(state: [u32; 4], block: &[u32; 8]) -> [u32; 4] {
    type Mix = fn(u32, u32, u32) -> u32;
    /// The mixing function of a round, its constant, the shifts of four steps, and the words in the order of
    /// use.
    const ROUNDS: [(Mix, u32, [u32; 4], [usize; 8]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [3, 7, 11, 19], [0, 1, 2, 3, 4, 5, 6, 7]),
        (|x, y, z| (x & y).wrapping_add((x ^ y) & z), 0x5a82_7999, [3, 5, 9, 13], [1, 3, 5, 7, 0, 2, 4, 6]),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 9, 11, 15], [3, 7, 2, 6, 1, 5, 0, 4]),
    ];
    let [mut a, mut b, mut c, mut d] = state;
    for (mix, constant, shifts, order) in ROUNDS {
        for (index, shift) in order.iter().zip(shifts.iter().cycle()) {
            let word = block.get(*index).copied().unwrap_or(0).wrapping_add(constant);
            let step = a.wrapping_add(mix(b, c, d)).wrapping_add(word).rotate_left(*shift);
            // The four variables change places after each step, so that the next one changes the next of
            // them.
            (a, b, c, d) = (d, step, b, c);
        }
    }
    let [s0, s1, s2, s3] = state;
    [s0.wrapping_add(a), s1.wrapping_add(b), s2.wrapping_add(c), s3.wrapping_add(d)]
}

fn tea(state: [u32; 4], key: &[u32; 4]) -> [u32; 4] {
    let [s0, s1, s2, s3] = state;
    let [a, b, c, d] = *key;
    let (mut x, mut y, mut sum) = (s0, s1, 0_u32);
    let mix = |v: u32, k0: u32, k1: u32, sum: u32| {
        (v << 4).wrapping_add(k0) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(k1)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(mix(y, a, b, sum));
        y = y.wrapping_add(mix(x, c, d, sum));
    }
    [s0.wrapping_add(x), s1.wrapping_add(y), s2, s3]
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ext4_test_support::tools::{have, run};

    use super::*;

    /// Asks debugfs for the hashes of many names in one run.
    fn judge(version: &str, seed: Option<&str>, names: &[Vec<u8>]) -> Option<Vec<NameHash>> {
        let mut script = tempfile::NamedTempFile::new().unwrap();
        for name in names {
            let seed = seed.map(|seed| format!("-s {seed} ")).unwrap_or_default();
            write!(script, "dx_hash -h {version} {seed}").unwrap();
            script.write_all(name).unwrap();
            script.write_all(b"\n").unwrap();
        }
        // Not by standard input: readline would take bytes over 127 for keys.
        if !have(&["debugfs"]) {
            return None;
        }
        let output = run("debugfs", ["-f".as_ref(), script.path().as_os_str()]);
        let hashes = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter_map(|line| {
                let line = String::from_utf8_lossy(line);
                let (_, rest) = line.rsplit_once(" is 0x")?;
                let (major, minor) = rest.split_once(" (minor 0x")?;
                Some(NameHash {
                    major: u32::from_str_radix(major, 16).unwrap(),
                    minor: u32::from_str_radix(minor.trim_end_matches(')'), 16).unwrap(),
                })
            })
            .collect();
        Some(hashes)
    }

    #[test]
    fn every_hash_agrees_with_e2fsprogs() {
        let mut random = fastrand::Rng::with_seed(7);
        // debugfs splits its input at blanks and quotes: leave those bytes out.
        let mut byte =
            |ascii: bool| if ascii { random.u8(b'-'..=b'z') } else { random.u8(b'-'..=0xff).max(b'0') };
        let mut names = Vec::new();
        for len in (1..=70).chain([127, 128, 129, 254, 255]) {
            for ascii in [true, false] {
                names.push(
                    (0..len).map(|_| byte(ascii)).filter(|b| !matches!(b, b'\\' | b'`')).collect::<Vec<_>>(),
                );
            }
        }
        names.retain(|name| !name.is_empty() && !name.starts_with(b"-"));
        let seed_text = "7032671b-bb2c-429f-85ae-19745fe1b3fa";
        let seed = u128::from_str_radix(&seed_text.replace('-', ""), 16).unwrap().to_be_bytes();
        let mut words = seed.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        let seed: [u32; 4] = std::array::from_fn(|_| words.next().unwrap());
        for (name, version) in [
            ("legacy", HashVersion::Legacy),
            ("half_md4", HashVersion::HalfMd4),
            ("tea", HashVersion::Tea),
            ("HASHALG_3", HashVersion::LegacyUnsigned),
            ("HASHALG_4", HashVersion::HalfMd4Unsigned),
            ("HASHALG_5", HashVersion::TeaUnsigned),
        ] {
            for (text, bytes) in [(None, [0; 4]), (Some(seed_text), seed)] {
                let Some(expected) = judge(name, text, &names) else { return };
                assert_eq!(expected.len(), names.len(), "debugfs answered every line");
                let hasher = Hasher::new(version, bytes);
                for (file, expected) in names.iter().zip(expected) {
                    assert_eq!(hasher.hash(file), expected, "{name} of {file:x?}");
                }
            }
        }
    }

    #[test]
    fn no_name_hashes_to_the_end_or_an_odd_number() {
        let hasher = Hasher::new(HashVersion::Legacy, [0; 4]);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let name: Vec<u8> = (0..random.usize(0..40)).map(|_| random.u8(..)).collect();
            let hash = hasher.hash(&name);
            assert!(hash.major & 1 == 0 && hash.major < END);
        }
    }
}
