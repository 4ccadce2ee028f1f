//! What can be said of a camera beside its address.

use super::RawFormat;
use crate::metadata::{Preprocess, Resize};
use std::io;

/// How a camera is opened.
#[derive(Debug, Clone, Default)]
pub struct CameraOptions {
    /// Deliver every frame: a sender faster than the taker is made to wait.
    pub every_frame: bool,
    /// Smallest width and height that feed the network; 0 is any.
    pub least: (u32, u32),
    /// The network takes luma: a device that gives luma alone is as good as any.
    pub gray: bool,
    /// What `exec:` writes to its standard output: raw frames of this format, or JPEG files.
    pub frame_format: Option<FrameFormat>,
    /// Controls of the camera and their values, such as `exposure`.
    pub controls: Vec<(String, String)>,
    /// Value of HTTP's `Authorization`.
    pub authorization: Option<String>,
}

/// A stream of frames without headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameFormat {
    /// JPEG files, one after the other, whatever is between them.
    Mjpeg,
    /// Pixels, every frame as long as the one before.
    Raw(RawFormat),
}

impl std::str::FromStr for FrameFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "mjpeg" { Ok(FrameFormat::Mjpeg) } else { text.parse().map(FrameFormat::Raw) }
    }
}

impl CameraOptions {
    /// Smallest picture that preprocessing need not enlarge.
    pub fn feeding(p: &Preprocess) -> (u32, u32) {
        match p.resize {
            Resize::Stretch | Resize::Letterbox { .. } => (p.width, p.height),
            Resize::ShortSide(side) => (side, side),
        }
    }

    /// `USER:PASSWORD` or a token → the value of HTTP's `Authorization`.
    pub fn authorization(secret: &str) -> Result<String, String> {
        super::http::authorization(secret)
    }

    pub(super) fn without_format(&self, why: &str) -> io::Result<()> {
        if self.frame_format.is_some() { Err(usage(format!("--frame-format is for exec: only; {why}"))) } else { Ok(()) }
    }

    pub(super) fn without_controls(&self, why: &str) -> io::Result<()> {
        if self.controls.is_empty() { Ok(()) } else { Err(usage(format!("--set is for v4l2: and libcamera: only; {why}"))) }
    }

    pub(super) fn without_authorization(&self, why: &str) -> io::Result<()> {
        if self.authorization.is_some() { Err(usage(format!("--camera-auth is for http: only; {why}"))) } else { Ok(()) }
    }
}

/// What will not go away by waiting.
pub(super) fn usage(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
