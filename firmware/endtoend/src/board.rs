//! QEMU and the socket that is the board's UART.

use crate::{Error, ensure};
use edge_faults::{Faults, FaultyLink, Tally};
use edge_wire::{Action, CHUNK_BUFFER, Command, Counters, Event, FrameInfo, Message, Parser, Reply, Request, Status};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a frame or a socket.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before a command is sent again. A busy host must not make the log's lines repeat.
const REPLY_WITHIN: Duration = Duration::from_secs(5);
const TRIES: u8 = 5;
/// Bytes that the fault injector treats as one.
const PACKET: usize = 256;
/// Bytes read at a time.
pub const READ: usize = 16 * PACKET;

/// A frame that was accepted.
pub struct Frame {
    pub info: FrameInfo,
    pub payload: Vec<u8>,
}

pub struct Board {
    qemu: Child,
    socket_path: PathBuf,
    log_path: PathBuf,
    socket: UnixStream,
    /// `None`: a clean link.
    faults: Option<FaultyLink>,
    /// Less than a packet, on its way to the faults.
    packet: Vec<u8>,
    parser: Parser<Vec<u8>, Vec<u8>>,
    frames: VecDeque<Frame>,
    messages: Vec<Message>,
    /// What went into the parser, for others.
    raw: Vec<u8>,
    next_command: u32,
    start: Instant,
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Board {
    pub fn start(elf: &Path, folder: &Path) -> Result<Self, Error> {
        let (socket_path, log_path) = (folder.join("uart"), folder.join("log"));
        let mut serial = std::ffi::OsString::from("unix:");
        serial.push(&socket_path);
        serial.push(",server=on,wait=on");
        let mut qemu = std::process::Command::new("qemu-system-arm")
            .args(["-M", "mps2-an385", "-display", "none", "-monitor", "none"])
            .args(["-semihosting-config", "enable=on,target=native", "-serial"])
            .arg(serial)
            .arg("-kernel")
            .arg(elf)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log_path)?)
            .spawn()
            .map_err(|e| format!("qemu-system-arm: {e}"))?;
        let socket = match connect(&socket_path) {
            Ok(socket) => socket,
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                return Err(error);
            }
        };
        Ok(Board {
            qemu,
            socket_path,
            log_path,
            socket,
            faults: None,
            packet: Vec::new(),
            parser: Parser::new(vec![0; CHUNK_BUFFER], vec![0; 1 << 17])?,
            frames: VecDeque::new(),
            messages: Vec::new(),
            raw: Vec::new(),
            next_command: 1,
            start: Instant::now(),
        })
    }

    /// Ends QEMU; gives what the board logged.
    pub fn stop(mut self) -> Result<Vec<u8>, Error> {
        ensure!(self.qemu.try_wait()?.is_none(), "QEMU ended by itself: the board panicked, see its log");
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(std::fs::read(&self.log_path)?)
    }

    pub fn counters(&self) -> Counters {
        self.parser.counters()
    }

    /// From here on, this happens to what comes from the board.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = Some(FaultyLink::new(faults, u64::from(self.next_command)));
    }

    /// From here on, nothing does. Gives what happened so far.
    pub fn clear_faults(&mut self) -> Tally {
        let Some(mut link) = self.faults.take() else { return Tally::default() };
        let mut late = Vec::new();
        link.send(&std::mem::take(&mut self.packet), &mut late);
        link.flush(&mut late);
        self.arrived(&late);
        link.tally()
    }

    /// Breaks the connection and makes it again a little later.
    pub fn reconnect(&mut self) -> Result<(), Error> {
        self.socket.shutdown(std::net::Shutdown::Both)?;
        std::thread::sleep(Duration::from_millis(100));
        self.socket = connect(&self.socket_path)?;
        Ok(())
    }

    /// All bytes that went into the parser since the last call.
    pub fn take_raw(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.raw)
    }

    /// Frames that have arrived already.
    pub fn queued(&mut self) -> Vec<Frame> {
        self.frames.drain(..).collect()
    }

    /// The next frame.
    pub fn frame(&mut self) -> Result<Frame, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            ensure!(Instant::now() < until, "no frame in {PATIENCE:?}: {:?}", self.counters());
            self.pump()?;
        }
    }

    /// Frames until none has come for so long.
    pub fn quiet(&mut self, silence: Duration) -> Result<Vec<Frame>, Error> {
        let mut since = Instant::now();
        while since.elapsed() < silence {
            if self.pump()? {
                since = Instant::now();
            }
        }
        Ok(self.queued())
    }

    pub fn ok(&mut self, command: Command) -> Result<(), Error> {
        let reply = self.command(command)?;
        ensure!(reply.status == Status::Ok, "{command:?}: {}", reply.status);
        Ok(())
    }

    /// Sends a command until it is answered. Frames that come meanwhile are kept.
    pub fn command(&mut self, command: Command) -> Result<Reply, Error> {
        let mut request = Request::new(command, self.next_command, REPLY_WITHIN.as_micros() as u64, TRIES);
        self.next_command += 1;
        loop {
            match request.poll(self.start.elapsed().as_micros() as u64) {
                Action::Send(bytes) => self.socket.write_all(bytes)?,
                Action::WaitUntil(_) => {}
                Action::GiveUp => return Err(format!("no reply to {command:?}").into()),
            }
            self.pump()?;
            if let Some(reply) = self.messages.drain(..).find_map(|m| request.reply(&m)) {
                ensure!(reply.opcode == command.opcode(), "a reply to another command: {reply:?}");
                return Ok(reply);
            }
        }
    }

    /// Reads what is there, or waits a moment for it.
    fn pump(&mut self) -> Result<bool, Error> {
        let mut buffer = [0; READ];
        let length = match self.socket.read(&mut buffer) {
            Ok(0) => return Err("QEMU closed the UART's socket".into()),
            Ok(length) => length,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let Some(link) = &mut self.faults else {
            self.arrived(&buffer[..length]);
            return Ok(true);
        };
        // A UART's bytes come by ones and twos.
        self.packet.extend_from_slice(&buffer[..length]);
        let whole = self.packet.len() - self.packet.len() % PACKET;
        let mut arrived = Vec::new();
        self.packet.drain(..whole).as_slice().chunks(PACKET).for_each(|packet| link.send(packet, &mut arrived));
        self.arrived(&arrived);
        Ok(true)
    }

    fn arrived(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        let mut rest = bytes;
        while let Some(event) = self.parser.push(&mut rest) {
            match event {
                Event::Frame(f) => self.frames.push_back(Frame { info: f.info, payload: f.payload.to_vec() }),
                Event::Message(m) => self.messages.push(m),
                Event::Dropped(_) => {}
            }
        }
    }
}

fn connect(path: &Path) -> Result<UnixStream, Error> {
    let until = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => {
                socket.set_read_timeout(Some(Duration::from_millis(20)))?;
                return Ok(socket);
            }
            Err(e) if Instant::now() > until => return Err(format!("the UART's socket {}: {e}", path.display()).into()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
