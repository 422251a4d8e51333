//! Sizes in bytes with binary suffixes: `4096`, `64K`, `1.5G`.

/// Parses a size: a number of bytes, or a number with a binary suffix `K`, `M`, `G` or `T` (also `KiB` …).
///
/// # Errors
/// A message for a usage error: no number, an unknown suffix, or 2^64 bytes or more.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().trim_end_matches("ib") {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("unknown suffix '{suffix}' (K, M, G or T)")),
    };
    let unit = 1_u64 << shift;
    let too_large = || format!("{text} is too large");
    let Some((whole, fraction)) = number.split_once('.') else {
        let number: u64 = number.parse().map_err(|_| format!("'{text}' is not a size"))?;
        return number.checked_mul(unit).ok_or_else(too_large);
    };
    let whole: u64 = whole.parse().map_err(|_| format!("'{text}' is not a size"))?;
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("'{text}' is not a size"));
    }
    let numerator: u128 = fraction.parse().map_err(|_| format!("'{text}' is not a size"))?;
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
    let part = u64::try_from(u128::from(unit) * numerator / denominator).map_err(|_| too_large())?;
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or_else(too_large)
}

/// `bytes` in the largest binary unit that leaves at least one: `1.5 GiB`.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    let mut unit = 0;
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut scale = 1_u64;
    while unit + 1 < units.len() && bytes / scale >= 1024 {
        scale <<= 10;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} bytes");
    }
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_with_and_without_suffix() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64K", 65536), ("1.5G", 3 << 29), ("2MiB", 2 << 20), ("1t", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "1.K", "1x", "99999999999T", "1.0000000001G", "18446744073709551616"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        assert_eq!(human_size(1023), "1023 bytes");
        assert_eq!(human_size(3 << 29), "1.5 GiB");
        assert_eq!(human_size(u64::MAX), "15.9 EiB");
    }
}
