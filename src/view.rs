//! Where in a picture the network looks.

/// The part of a picture that becomes the network's input: input = picture · scale + offset, both from the upper left corner of the first
/// pixel, x then y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Pixels of the input for one of the picture.
    pub scale: [f32; 2],
    /// Pixels of the input; below 0 where the picture is cropped, above where it has a margin.
    pub offset: [f32; 2],
    /// Width and height of the picture.
    pub picture: [u32; 2],
    /// Width and height of the input.
    pub input: [u32; 2],
}

impl View {
    /// Corners in the picture, inside of it.
    pub fn to_picture(&self, corners: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|k| ((corners[k] - self.offset[k % 2]) / self.scale[k % 2]).clamp(0.0, self.picture[k % 2] as f32))
    }
}
