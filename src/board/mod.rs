//! What a computer says of itself: clocks, governor, temperature, throttling, power.
//!
//! Everything is optional: containers and virtual machines show little of it, and what cannot be read is said, not guessed.

mod affinity;
mod power;
mod throttle;

pub use affinity::{Pinned, parse_cpus};
pub use power::Rail;
pub use throttle::Throttled;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Environment variable that names a folder to read instead of `/sys`.
pub const SYSFS_VARIABLE: &str = "EDGE_SYSFS";

/// Reads a computer's sensors.
#[derive(Debug, Clone)]
pub struct Board {
    sysfs: PathBuf,
    /// Whether `sysfs` is this computer's, and programs may be asked too.
    real: bool,
}

/// What does not change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The board's name: device tree's, or DMI's.
    pub model: Option<String>,
    /// `aarch64`, `x86_64`.
    pub arch: String,
    /// Release of the running kernel.
    pub kernel: Option<String>,
    /// Processors that are online, alike ones together, the fastest first.
    pub clusters: Vec<Cluster>,
}

/// Processors of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Their numbers.
    pub cpus: Vec<usize>,
    /// `cpu_capacity`: 1024 is the fastest kind's.
    pub capacity: Option<u64>,
    /// Highest clock, MHz.
    pub max_mhz: Option<f64>,
}

/// What does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Clock of each online processor, MHz; empty where unknown.
    pub mhz: Vec<f64>,
    /// Governor of the first processor.
    pub governor: Option<String>,
    /// Temperatures by zone, °C.
    pub celsius: Vec<Zone>,
    /// A Raspberry Pi's flags.
    pub throttled: Option<Throttled>,
    /// Power rails (INA3221 and kin).
    pub rails: Vec<Rail>,
}

/// A thermal zone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Zone {
    /// The kernel's name of it.
    pub name: String,
    /// °C.
    pub celsius: f64,
}

impl Snapshot {
    /// The hottest zone.
    pub fn hottest(&self) -> Option<f64> {
        self.celsius.iter().map(|z| z.celsius).max_by(f64::total_cmp)
    }
}

impl Default for Board {
    fn default() -> Self {
        Board::new()
    }
}

impl Board {
    /// This computer, or the one that [`SYSFS_VARIABLE`] points to.
    pub fn new() -> Self {
        match std::env::var_os(SYSFS_VARIABLE).filter(|v| !v.is_empty()) {
            Some(folder) => Board::at(folder),
            None => Board { sysfs: "/sys".into(), real: true },
        }
    }

    /// A recorded or made-up `/sys`.
    pub fn at(sysfs: impl Into<PathBuf>) -> Self {
        Board { sysfs: sysfs.into(), real: false }
    }

    /// What does not change.
    pub fn machine(&self) -> Machine {
        let model = ["firmware/devicetree/base/model", "class/dmi/id/product_name"].iter().find_map(|p| text(&self.sysfs.join(p)));
        let kernel = text(Path::new("/proc/sys/kernel/osrelease"));
        Machine { model, arch: std::env::consts::ARCH.into(), kernel, clusters: self.clusters() }
    }

    fn clusters(&self) -> Vec<Cluster> {
        let mut clusters: Vec<Cluster> = Vec::new();
        for cpu in self.online() {
            let capacity = self.cpu(cpu, "cpu_capacity");
            let max_mhz = self.cpu(cpu, "cpufreq/cpuinfo_max_freq").map(mhz);
            match clusters.iter_mut().find(|c| (c.capacity, c.max_mhz) == (capacity, max_mhz)) {
                Some(cluster) => cluster.cpus.push(cpu),
                None => clusters.push(Cluster { cpus: vec![cpu], capacity, max_mhz }),
            }
        }
        let speed = |c: &Cluster| (c.capacity, c.max_mhz.map(|m| m as u64));
        clusters.sort_by_key(|c| std::cmp::Reverse(speed(c)));
        clusters
    }

    /// Now.
    pub fn snapshot(&self) -> Snapshot {
        let online = self.online();
        let governor = online.first().and_then(|cpu| text(&self.cpu_path(*cpu, "cpufreq/scaling_governor")));
        Snapshot {
            mhz: online.iter().filter_map(|&cpu| self.clock(cpu)).collect(),
            governor,
            celsius: self.zones(),
            throttled: throttle::read(&self.sysfs, self.real),
            rails: power::read(&self.sysfs),
        }
    }

    /// A processor's clock, MHz.
    pub fn clock(&self, cpu: usize) -> Option<f64> {
        // The first one is measured where it is there, and root's alone; the second is what was asked for, on some.
        self.cpu(cpu, "cpufreq/cpuinfo_cur_freq").or_else(|| self.cpu(cpu, "cpufreq/scaling_cur_freq")).map(mhz)
    }

    /// What a snapshot lacks here, each with the place where it was looked for.
    pub fn unreadable(&self, snapshot: &Snapshot) -> Vec<String> {
        let sysfs = self.sysfs.display();
        let mut lacks = Vec::new();
        if snapshot.mhz.is_empty() {
            lacks.push(format!("clock: no {sysfs}/devices/system/cpu/cpu*/cpufreq; a drop of the clock cannot be seen"));
        }
        if snapshot.governor.is_none() {
            lacks.push(format!("governor: no {sysfs}/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
        }
        if snapshot.celsius.is_empty() {
            lacks.push(format!("temperature: no {sysfs}/class/thermal/thermal_zone*/temp"));
        }
        if snapshot.throttled.is_none() {
            lacks.push("throttling flags: neither the Raspberry Pi's get_throttled in sysfs nor vcgencmd".into());
        }
        if snapshot.rails.is_empty() {
            lacks.push(format!("power: no INA3221 under {sysfs}/class/hwmon"));
        }
        lacks
    }

    fn zones(&self) -> Vec<Zone> {
        let zone = |folder: PathBuf| {
            let millis = text(&folder.join("temp"))?.parse::<f64>().ok()?;
            Some(Zone { name: text(&folder.join("type")).unwrap_or_else(|| "thermal".into()), celsius: millis / 1000.0 })
        };
        // Zones that are switched off say nonsense (Jetson's, −256 °C).
        let sensible = |z: &Zone| (-55.0..200.0).contains(&z.celsius);
        folders(&self.sysfs.join("class/thermal"), "thermal_zone").into_iter().filter_map(zone).filter(sensible).collect()
    }

    fn online(&self) -> Vec<usize> {
        let listed = text(&self.sysfs.join("devices/system/cpu/online")).map(|t| parse_list(&t)).unwrap_or_default();
        if listed.is_empty() { (0..std::thread::available_parallelism().map_or(1, usize::from)).collect() } else { listed }
    }

    fn cpu_path(&self, cpu: usize, file: &str) -> PathBuf {
        self.sysfs.join(format!("devices/system/cpu/cpu{cpu}/{file}"))
    }

    fn cpu(&self, cpu: usize, file: &str) -> Option<u64> {
        number(&self.cpu_path(cpu, file))
    }
}

/// cpufreq speaks kHz.
fn mhz(khz: u64) -> f64 {
    khz as f64 / 1000.0
}

/// A small file's text, trimmed (device tree strings end with a zero); `None` where it is empty.
fn text(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty() && text.len() < 4096).then(|| text.into())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// Entries of a folder whose names begin so, in their numbers' order.
fn folders(of: &Path, prefix: &str) -> Vec<PathBuf> {
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let mut found: Vec<PathBuf> = std::fs::read_dir(of).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    found.retain(|p| number(p).is_some());
    found.sort_by_key(|p| number(p));
    found
}

/// `0-3,6` → 0, 1, 2, 3, 6. What is not such a list gives nothing.
fn parse_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        (from <= to && to < 4096).then_some(from..=to)
    };
    text.split(',').map(range).collect::<Option<Vec<_>>>().unwrap_or_default().into_iter().flatten().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes files into a made-up `/sys`.
    pub fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    #[test]
    fn clusters_are_found_and_the_fastest_comes_first() {
        let sys = tree(&[
            ("devices/system/cpu/online", "0-2,4\n"),
            ("devices/system/cpu/cpu0/cpu_capacity", "446\n"),
            ("devices/system/cpu/cpu1/cpu_capacity", "446\n"),
            ("devices/system/cpu/cpu2/cpu_capacity", "1024\n"),
            ("devices/system/cpu/cpu4/cpu_capacity", "1024\n"),
            ("devices/system/cpu/cpu4/cpufreq/cpuinfo_max_freq", "2400000\n"),
            ("devices/system/cpu/cpu2/cpufreq/cpuinfo_max_freq", "2400000\n"),
            ("firmware/devicetree/base/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
        ]);
        let machine = Board::at(sys.path()).machine();
        assert_eq!(machine.model.as_deref(), Some("Raspberry Pi 5 Model B Rev 1.0"));
        let cpus: Vec<_> = machine.clusters.iter().map(|c| c.cpus.clone()).collect();
        assert_eq!(cpus, [vec![2, 4], vec![0, 1]]);
        assert_eq!(machine.clusters[0].max_mhz, Some(2400.0));
    }

    #[test]
    fn a_snapshot_reads_what_is_there_and_names_what_is_not() {
        let sys = tree(&[
            ("devices/system/cpu/online", "0-1"),
            ("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000"),
            ("devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand"),
            ("class/thermal/thermal_zone0/temp", "61234"),
            ("class/thermal/thermal_zone0/type", "cpu-thermal"),
            ("class/thermal/thermal_zone1/temp", "-256000"),
        ]);
        let board = Board::at(sys.path());
        let now = board.snapshot();
        assert_eq!((now.mhz.as_slice(), now.governor.as_deref(), now.hottest()), (&[1500.0][..], Some("ondemand"), Some(61.234)));
        let lacks = board.unreadable(&now);
        assert!(lacks.len() == 2 && lacks[0].starts_with("throttling") && lacks[1].starts_with("power"), "{lacks:?}");
        let empty = Board::at(sys.path().join("nothing"));
        assert_eq!(empty.unreadable(&empty.snapshot()).len(), 5);
        assert!(!empty.machine().clusters.is_empty());
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0-3,6,8-8"), [0, 1, 2, 3, 6, 8]);
        for bad in ["", "3-1", "a", "0-99999999", "1,,2"] {
            assert!(parse_list(bad).is_empty(), "{bad}");
        }
    }
}
