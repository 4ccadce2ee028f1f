//! Where a stream of frames comes from, as a command line names it, and how it is opened.

pub use super::http::Url;
use super::v4l2;
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
    /// `v4l2:/dev/video0[:WIDTHxHEIGHT[@FPS][:FORMAT]]`, or just `/dev/video0…`.
    V4l2(VideoDevice),
    /// `libcamera:` and the number of a camera, where there are several.
    Libcamera(String),
    /// `exec:COMMAND`; frames come from its standard output.
    Exec(String),
    /// `http://[USER:PASSWORD@]HOST[:PORT]/PATH`: a stream of JPEG files.
    Http(Url),
}

/// A Video4Linux2 device, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoDevice {
    /// Its node; it may come and go.
    pub path: PathBuf,
    /// Width and height.
    pub size: Option<(u32, u32)>,
    /// Frames a second.
    pub rate: Option<u32>,
    /// Name of a format.
    pub format: Option<&'static str>,
}

impl VideoDevice {
    fn parse(text: &str) -> Result<Self, String> {
        let usage = || "v4l2:DEVICE[:WIDTHxHEIGHT[@FPS][:FORMAT]], for example v4l2:/dev/video0:640x480@30:mjpeg".to_string();
        let mut device = VideoDevice { path: text.into(), size: None, rate: None, format: None };
        let mut rest = text;
        if let Some((before, name)) = rest.rsplit_once(':')
            && let Some(format) = v4l2::format_name(name)
        {
            (rest, device.format) = (before, Some(format));
        }
        // Names under /dev/v4l/by-path have colons.
        if let Some((before, size)) = rest.rsplit_once(':')
            && let Some((size, rate)) = parse_size(size)
        {
            (rest, device.size, device.rate) = (before, Some(size), rate);
        }
        device.path = rest.into();
        let may_have_colons = rest.starts_with("/dev/v4l/") || device.path.exists();
        if rest.is_empty() || (rest.contains(':') && !may_have_colons) { Err(usage()) } else { Ok(device) }
    }
}

/// `WIDTHxHEIGHT` or `WIDTHxHEIGHT@FPS`.
fn parse_size(text: &str) -> Option<((u32, u32), Option<u32>)> {
    let (size, rate) = text.split_once('@').map_or((text, None), |(size, rate)| (size, Some(rate)));
    let side = |text: &str| text.parse().ok().filter(|v| (1..=65_535).contains(v));
    let (width, height) = size.split_once('x')?;
    let rate = match rate {
        None => None,
        Some(rate) => Some(rate.parse().ok().filter(|v| (1..=1000).contains(v))?),
    };
    Some(((side(width)?, side(height)?), rate))
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
        if let Some(device) = text.strip_prefix("v4l2:") {
            return VideoDevice::parse(device).map(Address::V4l2);
        }
        if text.starts_with("/dev/video") || text.starts_with("/dev/v4l/") {
            return VideoDevice::parse(text).map(Address::V4l2);
        }
        if let Some(id) = text.strip_prefix("libcamera:") {
            let good = id.is_empty() || id.parse::<u8>().is_ok();
            return if good {
                Ok(Address::Libcamera(id.into()))
            } else {
                Err("libcamera: or libcamera:NUMBER; rpicam-vid --list-cameras shows them".into())
            };
        }
        if let Some(line) = text.strip_prefix("exec:") {
            return if line.trim().is_empty() {
                Err("exec:COMMAND, for example \"exec:ffmpeg -i rtsp://… -f mjpeg -\"".into())
            } else {
                Ok(Address::Exec(line.into()))
            };
        }
        if text.starts_with("http:") || text.starts_with("https:") {
            return text.parse().map(Address::Http);
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
            "" => Err("v4l2:DEVICE, libcamera:, http://HOST/PATH, exec:COMMAND, a serial device, tcp:HOST:PORT, unix:PATH, a file, or - for standard input".into()),
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
            Address::V4l2(device) => device.path.display().fmt(f),
            Address::Libcamera(id) => write!(f, "libcamera:{id}"),
            Address::Exec(line) => write!(f, "exec:{line}"),
            Address::Http(url) => url.fmt(f),
        }
    }
}

impl Address {
    /// Whether it is waited for when it goes away: devices and sockets.
    pub fn comes_back(&self) -> bool {
        !matches!(self, Address::Stdin | Address::File(_))
    }

    /// Opens what carries the frame link; for reading only, but for devices.
    pub(super) fn open(&self) -> io::Result<Connection> {
        let fd: OwnedFd = match self {
            Address::Stdin => io::stdin().as_fd().try_clone_to_owned()?,
            Address::File(path) => std::fs::File::open(path)?.into(),
            Address::Device { path, baud } => open_device(path, *baud)?,
            Address::Tcp(peer) => connect(peer)?.into(),
            Address::Unix(path) => UnixStream::connect(path)?.into(),
            Address::V4l2(_) | Address::Libcamera(_) | Address::Exec(_) | Address::Http(_) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "it carries no frame link"));
            }
        };
        let regular = rustix::fs::fstat(&fd).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_file());
        Ok(Connection { fd, regular })
    }
}

/// Open bytes.
#[derive(Debug)]
pub(super) struct Connection {
    fd: OwnedFd,
    regular: bool,
}

impl Connection {
    /// A pipe's end.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Connection { fd, regular: false }
    }

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

/// Connects to `HOST:PORT`.
pub(super) fn connect(peer: &str) -> io::Result<TcpStream> {
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
        let video = |path: &str, size, rate, format| Ok(Address::V4l2(VideoDevice { path: path.into(), size, rate, format }));
        assert_eq!(parse("v4l2:/dev/video7"), video("/dev/video7", None, None, None));
        assert_eq!(parse("/dev/video7:640x480@30:MJPEG"), video("/dev/video7", Some((640, 480)), Some(30), Some("mjpeg")));
        assert_eq!(parse("v4l2:/dev/video7:yuyv"), video("/dev/video7", None, None, Some("yuyv")));
        assert_eq!(parse("v4l2:/dev/v4l/by-path/a:1.0-x:64x48"), video("/dev/v4l/by-path/a:1.0-x", Some((64, 48)), None, None));
        assert_eq!(parse("libcamera:1"), Ok(Address::Libcamera("1".into())));
        assert_eq!(parse("exec:a | b"), Ok(Address::Exec("a | b".into())));
        for bad in [
            "v4l2:",
            "/dev/video7:640x",
            "v4l2:/dev/video7:640x480@0",
            "/dev/video7:h264",
            "libcamera:x",
            "exec: ",
            "http://",
            "https://a/",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "tcp:", "tcp:host", "tcp::5", "tcp:host:0", "tcp:host:70000", "unix:", "/dev/ttyNONE0:fast", "/dev/ttyNONE0:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
