//! How big this host is: processors that are online and memory in all.

use std::fs;

use crate::Roots;

/// Processors that are online, and memory in MiB; zero for what cannot be read.
pub fn size(roots: &Roots) -> (u32, u64) {
    let online = fs::read_to_string(roots.sys.join("devices/system/cpu/online")).unwrap_or_default();
    let meminfo = fs::read_to_string(roots.proc_.join("meminfo")).unwrap_or_default();
    (count(online.trim()), memory_mib(&meminfo))
}

/// Counts a list of ranges such as `0-3,8`.
fn count(ranges: &str) -> u32 {
    let one = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    ranges.split(',').filter_map(one).fold(0, u32::saturating_add)
}

/// `MemTotal` of `/proc/meminfo`, which is in KiB.
fn memory_mib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_counted_and_nonsense_counts_nothing() {
        assert_eq!(count("0-3,8"), 5);
        assert_eq!(count("0"), 1);
        assert_eq!(count("3-0,x,,4294967295-4294967295"), 1);
    }

    #[test]
    fn memory_is_what_meminfo_says() {
        assert_eq!(memory_mib("MemTotal:       24576000 kB\nMemFree: 1 kB\n"), 24000);
        assert_eq!(memory_mib("nothing"), 0);
    }
}
