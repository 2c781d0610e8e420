//! What the kernel says in `/proc`, taken apart. Pure: what is not there, or not understood, is none.

/// The share of memory that is available, in per cent (proc_meminfo(5)).
pub(super) fn available(meminfo: &str) -> Option<f64> {
    let of = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()
    };
    let total = of("MemTotal:")?;
    (total > 0.0).then_some(of("MemAvailable:")? * 100.0 / total)
}

/// The share of the last ten seconds in which everybody, or somebody, waited (`full` or `some`), in per cent (PSI).
pub(super) fn pressure(text: &str, whom: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(whom))?;
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood_and_others_are_not() {
        let meminfo = "MemTotal:       1000 kB\nMemFree:          10 kB\nMemAvailable:    250 kB\n";
        assert_eq!(available(meminfo), Some(25.0));
        assert_eq!(available("MemTotal: 0 kB\nMemAvailable: 0 kB"), None);
        assert_eq!(available("MemTotal: many kB"), None);
        let psi = "some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=3.25 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!((pressure(psi, "some"), pressure(psi, "full")), (Some(12.5), Some(3.25)));
        assert_eq!(pressure("full avg10=x", "full"), None);
    }
}
