//! Where a stream of frames comes from, as a command line names it, and how it is opened.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{ControlModes, OptionalActions};
use rustix::{io::Errno, net::sockopt, termios};
use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Bits a second of a serial line, unless the address says otherwise. USB devices ignore it.
pub const DEFAULT_BAUD: u32 = 921_600;
/// How long a TCP peer may take to accept, each of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A TCP peer that is silent for so long is asked whether it is there; it is given up after three questions, a second apart.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A source of frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Standard input: `-`.
    Stdin,
    /// A file or a named pipe.
    File(PathBuf),
    /// A device, usually a serial line: a path under `/dev`, with `:BAUD` where [`DEFAULT_BAUD`] is wrong.
    Device {
        /// Its node; it may come and go.
        path: PathBuf,
        /// Bits a second.
        baud: u32,
    },
    /// `tcp:HOST:PORT`; the peer listens.
    Tcp(String),
    /// `unix:PATH`; the peer listens.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Address::Stdin);
        }
        if let Some(peer) = text.strip_prefix("tcp:") {
            let good = peer.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
            return if good { Ok(Address::Tcp(peer.into())) } else { Err("tcp:HOST:PORT, for example tcp:192.168.1.7:5000".into()) };
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("unix:PATH, for example unix:/run/camera.sock".into())
            } else {
                Ok(Address::Unix(path.into()))
            };
        }
        let (path, baud) = match text.rsplit_once(':') {
            Some((path, baud)) if path.starts_with("/dev/") && !Path::new(text).exists() => {
                let baud = baud.parse().ok().filter(|b| (300..=20_000_000).contains(b));
                (path, baud.ok_or_else(|| format!("{path}:BAUD with BAUD from 300 to 20000000, for example {path}:921600"))?)
            }
            _ => (text, DEFAULT_BAUD),
        };
        let device = std::fs::metadata(path).map_or(path.starts_with("/dev/"), |m| m.file_type().is_char_device());
        match path {
            "" => Err("a device, tcp:HOST:PORT, unix:PATH, a file, or - for standard input".into()),
            _ if device => Ok(Address::Device { path: path.into(), baud }),
            _ => Ok(Address::File(path.into())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Address::Stdin => f.write_str("standard input"),
            Address::File(path) | Address::Device { path, .. } => path.display().fmt(f),
            Address::Tcp(peer) => write!(f, "tcp:{peer}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Whether it is waited for when it goes away: devices and sockets.
    pub fn comes_back(&self) -> bool {
        !matches!(self, Address::Stdin | Address::File(_))
    }

    /// Opens it; for reading only, but for devices.
    pub fn open(&self) -> io::Result<Connection> {
        let fd: OwnedFd = match self {
            Address::Stdin => io::stdin().as_fd().try_clone_to_owned()?,
            Address::File(path) => std::fs::File::open(path)?.into(),
            Address::Device { path, baud } => open_device(path, *baud)?,
            Address::Tcp(peer) => connect(peer)?.into(),
            Address::Unix(path) => UnixStream::connect(path)?.into(),
        };
        let regular = rustix::fs::fstat(&fd).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_file());
        Ok(Connection { fd, regular })
    }
}

/// An open source.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    regular: bool,
}

impl Connection {
    /// Whether it is a file on a disk: nothing is lost by reading it slowly.
    pub fn is_regular(&self) -> bool {
        self.regular
    }

    /// Reads what there is, waiting up to `timeout` for it: `None` if nothing came, 0 at the end.
    pub fn read(&self, buffer: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        match rustix::io::read(&self.fd, buffer) {
            Ok(n) => Ok(Some(n)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

fn connect(peer: &str) -> io::Result<TcpStream> {
    let mut last = None;
    for address in peer.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                // A peer whose plug is pulled says nothing, ever.
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(1))?;
                sockopt::set_tcp_keepcnt(&stream, 3)?;
                return Ok(stream);
            }
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address")))
}

/// A terminal becomes a clean 8-bit line at `baud`, ours alone; other devices are read as they are.
fn open_device(path: &Path, baud: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::ACCESS | Errno::ROFS) => rustix::fs::open(path, flags & !OFlags::RDWR, Mode::empty())?,
        opened => opened?,
    };
    if termios::isatty(&fd) {
        let mut settings = termios::tcgetattr(&fd)?;
        settings.make_raw();
        settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        settings.control_modes &= !(ControlModes::CRTSCTS | ControlModes::CSTOPB);
        settings.set_speed(baud)?;
        termios::tcsetattr(&fd, OptionalActions::Now, &settings)?;
        termios::ioctl_tiocexcl(&fd)?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_they_say() {
        let parse = |s: &str| s.parse::<Address>();
        let device = |path: &str, baud| Ok(Address::Device { path: path.into(), baud });
        assert_eq!(parse("-"), Ok(Address::Stdin));
        assert_eq!(parse("a.frames"), Ok(Address::File("a.frames".into())));
        assert_eq!(parse("a:115200"), Ok(Address::File("a:115200".into())));
        assert_eq!(parse("/dev/ttyNONE0"), device("/dev/ttyNONE0", DEFAULT_BAUD));
        assert_eq!(parse("/dev/ttyNONE0:115200"), device("/dev/ttyNONE0", 115_200));
        assert_eq!(parse("/dev/null"), device("/dev/null", DEFAULT_BAUD));
        assert_eq!(parse("tcp:[::1]:5000"), Ok(Address::Tcp("[::1]:5000".into())));
        assert_eq!(parse("unix:/run/x"), Ok(Address::Unix("/run/x".into())));
        for bad in ["", "tcp:", "tcp:host", "tcp::5", "tcp:host:0", "tcp:host:70000", "unix:", "/dev/ttyNONE0:fast", "/dev/ttyNONE0:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
