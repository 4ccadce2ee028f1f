//! Which processors threads run on.

use super::{Board, parse_list};
use crate::{Error, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps this thread, and those it starts, to some processors, until dropped.
pub struct Pinned(Option<CpuSet>);

impl Pinned {
    /// To `cpus`; to none in particular if there are none.
    pub fn to(cpus: &[usize]) -> Result<Self> {
        if cpus.is_empty() {
            return Ok(Pinned(None));
        }
        let refused = |e| Error::Usage(format!("cannot keep to processors {cpus:?}: {}", std::io::Error::from(e)));
        let before = sched_getaffinity(None).map_err(refused)?;
        let mut set = CpuSet::new();
        cpus.iter().filter(|c| **c < CpuSet::MAX_CPU).for_each(|&c| set.set(c));
        sched_setaffinity(None, &set).map_err(refused)?;
        Ok(Pinned(Some(before)))
    }

    /// For good.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // They were allowed before.
        let _ = self.0.as_ref().map(|set| sched_setaffinity(None, set));
    }
}

/// Reads `0-3,6`, as `/sys` and taskset write it.
pub fn parse_cpus(text: &str) -> Result<Vec<usize>> {
    let cpus = parse_list(text);
    if cpus.is_empty() { Err(Error::Usage(format!("{text:?} is no list of processors such as 0-3,6"))) } else { Ok(cpus) }
}

impl Board {
    /// The fastest kind of processors where there are several (big.LITTLE): a slow one in the team holds up all others.
    pub fn big_cluster(&self) -> Option<Vec<usize>> {
        match &self.clusters()[..] {
            [first, second, ..] if first.capacity > second.capacity => Some(first.cpus.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::tree;

    #[test]
    fn lists_are_read_as_taskset_writes_them() {
        assert_eq!(parse_cpus("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert!(["", "a", "3-1", "1,,2", "0-99999999"].iter().all(|text| parse_cpus(text).is_err()));
    }

    #[test]
    fn the_big_cluster_is_the_one_of_most_capacity() {
        let files: Vec<(String, &str)> =
            (0..6).map(|cpu| (format!("devices/system/cpu/cpu{cpu}/cpu_capacity"), if cpu < 4 { "446" } else { "1024" })).collect();
        let mut files: Vec<(&str, &str)> = files.iter().map(|(path, value)| (path.as_str(), *value)).collect();
        files.push(("devices/system/cpu/online", "0-5"));
        assert_eq!(Board::at(tree(&files).path()).big_cluster(), Some(vec![4, 5]));
        files.retain(|(_, value)| *value != "446");
        files[2].1 = "4-5";
        assert_eq!(Board::at(tree(&files).path()).big_cluster(), None);
    }
}
