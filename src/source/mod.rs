//! Where pictures come from when they are not files: cameras, each kind in a file of its own behind one trait.
//!
//! | address | kind | file |
//! |---|---|---|
//! | a device, `tcp:`, `unix:`, a file, `-` | the frame link of our own firmware (`edge-wire`) | `link.rs` |
//! | `v4l2:` | Video4Linux2: USB webcams and the like | `v4l2/` |
//! | `libcamera:`, `exec:` | a program that writes frames to its standard output | `command.rs` |
//! | `http:` | MJPEG over HTTP | `http.rs` |
//!
//! [`camera`] reads any of them; [`address`] names them.

pub mod address;
pub mod camera;
mod clock;
mod command;
mod http;
mod link;
mod mjpeg;
mod options;
pub mod pixels;
mod raw;
mod stream;
mod v4l2;

pub use options::{CameraOptions, FrameFormat};
pub use raw::RawFormat;
