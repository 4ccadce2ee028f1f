//! Where pictures come from when they are not files: frames of a camera's link (`edge-wire`).

pub mod address;
pub mod camera;
mod clock;
pub mod pixels;
