//! Opening files that somebody else named: only regular ones, and without waiting.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Opening a FIFO or a device could wait for ever, or make it do something.
pub(crate) const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens a file that the user named; links are followed, but only regular files are opened.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    regular(rustix::fs::open(path, READ, Mode::empty())?)
}

pub(crate) fn regular(file: OwnedFd) -> io::Result<File> {
    let file = File::from(file);
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}
