//! Where pictures come from when they are not files: frames of a camera's link (`edge-wire`).

pub mod frames;
pub mod pixels;
