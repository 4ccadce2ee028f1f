//! Answers drawn over their picture.

use super::Answer;
use super::boxes::Detection;
use super::font::{self, glyph};
use super::segment::{ClassMap, UNSEEN};
use crate::image::Picture;
use ::image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

/// Letters of a label; a longer one is cut.
const MOST_LETTERS: usize = 40;

/// The colour of a class in PASCAL VOC's maps: the bits of its number, dealt out to red, green and blue, highest first.
pub fn colour(class: usize) -> [u8; 3] {
    let mut rgb = [0; 3];
    for bit in 0..8 {
        for (channel, value) in rgb.iter_mut().enumerate() {
            *value |= ((class >> (3 * bit + channel) & 1) as u8) << (7 - bit);
        }
    }
    rgb
}

/// The picture with boxes and their labels, or with a class map over it; `None` for answers that have no place in it.
pub fn annotated(picture: &Picture, answer: &Answer) -> Option<Picture> {
    let mut canvas = Canvas::new(picture);
    match answer {
        // The best on top.
        Answer::Boxes { boxes } => boxes.iter().rev().for_each(|b| canvas.detection(b)),
        Answer::Mask { map, .. } => canvas.overlay(map),
        _ => return None,
    }
    Some(canvas.0)
}

/// The numbers of the classes as a grey picture.
pub fn class_picture(map: &ClassMap) -> Picture {
    Picture { width: map.width, height: map.height, data: map.classes.clone(), channels: 1 }
}

/// A PNG file.
///
/// # Errors
/// The encoder's.
pub fn png(picture: &Picture) -> Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let kind = if picture.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    PngEncoder::new(&mut file).write_image(&picture.data, picture.width, picture.height, kind).map_err(|e| e.to_string())?;
    Ok(file)
}

/// A picture in colours that is drawn on.
struct Canvas(Picture);

impl Canvas {
    fn new(picture: &Picture) -> Self {
        let data = match picture.channels {
            1 => picture.data.iter().flat_map(|v| [*v; 3]).collect(),
            _ => picture.data.clone(),
        };
        Canvas(Picture { data, channels: 3, ..*picture })
    }

    /// Fills from `left`, `top` to before `right`, `bottom`, as far as that is in the picture.
    fn fill(&mut self, [left, top, right, bottom]: [i64; 4], rgb: [u8; 3]) {
        let (width, height) = (i64::from(self.0.width), i64::from(self.0.height));
        let (left, right) = (left.clamp(0, width) as usize, right.clamp(0, width) as usize);
        for y in top.clamp(0, height)..bottom.clamp(0, height) {
            let row = &mut self.0.data[y as usize * width as usize * 3..][..width as usize * 3];
            row.as_chunks_mut::<3>().0[left..right.max(left)].fill(rgb);
        }
    }

    fn detection(&mut self, detection: &Detection) {
        let line = i64::from((self.0.width.max(self.0.height) / 320).max(1));
        let rgb = colour(detection.index + 1);
        let [left, top, right, bottom] = detection.corners.map(|v| v.round() as i64);
        for side in [
            [left, top, right, top + line],
            [left, bottom - line, right, bottom],
            [left, top, left + line, bottom],
            [right - line, top, right, bottom],
        ] {
            self.fill(side, rgb);
        }
        let text = format!("{} {:.0}%", detection.label.chars().take(MOST_LETTERS).collect::<String>(), 100.0 * detection.score);
        let advance = i64::from(font::WIDTH + 1) * line;
        let (wide, high) = (advance * text.chars().count() as i64 + line, i64::from(font::HEIGHT + 2) * line);
        // Above the box; inside of it where there is no room.
        let top = if top >= high { top - high } else { top };
        self.fill([left, top, left + wide, top + high], rgb);
        let bright = rgb.iter().map(|v| u32::from(*v)).sum::<u32>() > 3 * 110;
        let ink = if bright { [0; 3] } else { [255; 3] };
        for (i, c) in text.chars().enumerate() {
            self.letter(c, left + line + i as i64 * advance, top + line, line, ink);
        }
    }

    fn letter(&mut self, c: char, left: i64, top: i64, dot: i64, rgb: [u8; 3]) {
        for (y, row) in (0..).zip(glyph(c)) {
            for x in (0..i64::from(font::WIDTH)).filter(|x| row >> (i64::from(font::WIDTH) - 1 - x) & 1 == 1) {
                let (x, y) = (left + x * dot, top + y * dot);
                self.fill([x, y, x + dot, y + dot], rgb);
            }
        }
    }

    /// Half picture, half colour of the class; class 0, the background by custom, and what was not seen stay as they are.
    fn overlay(&mut self, map: &ClassMap) {
        for (pixel, &class) in self.0.data.as_chunks_mut::<3>().0.iter_mut().zip(&map.classes) {
            if class != 0 && class != UNSEEN {
                let over = colour(usize::from(class));
                *pixel = std::array::from_fn(|k| u16::midpoint(pixel[k].into(), over[k].into()) as u8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `VOClabelcolormap.m` of the PASCAL VOC development kit: aeroplane, bicycle, person, tv monitor.
    #[test]
    fn colours_are_those_of_pascal_voc() {
        for (class, rgb) in [(0, [0, 0, 0]), (1, [128, 0, 0]), (2, [0, 128, 0]), (15, [192, 128, 128]), (20, [0, 64, 128])] {
            assert_eq!(colour(class), rgb, "{class}");
        }
    }

    #[test]
    fn boxes_are_drawn_where_they_are() {
        let picture = Picture { width: 60, height: 40, data: vec![9; 60 * 40], channels: 1 };
        let at = |corners| Detection { index: 0, label: "i".into(), score: 0.5, corners };
        let boxes = vec![at([10.0, 20.0, 50.0, 39.0]), at([-5.0, -5.0, 5.0, 900.0])];
        let drawn = annotated(&picture, &Answer::Boxes { boxes }).unwrap();
        let pixel = |x: usize, y: usize| drawn.data[(y * 60 + x) * 3..][..3].to_vec();
        let red = colour(1);
        for (x, y) in [(10, 20), (49, 38), (30, 20), (30, 38), (10, 30), (49, 30), (4, 39)] {
            assert_eq!(pixel(x, y), red, "{x} {y}");
        }
        for (x, y) in [(30, 30), (50, 30), (30, 39), (59, 0)] {
            assert_eq!(pixel(x, y), [9; 3], "{x} {y}");
        }
        // The label stands above: the upper bar of the I, three white dots.
        assert_eq!((11..17).map(|x| pixel(x, 12) == [255; 3]).collect::<Vec<_>>(), [false, true, true, true, false, false]);
        let file = png(&drawn).unwrap();
        assert_eq!(::image::load_from_memory(&file).unwrap().into_rgb8().into_raw(), drawn.data);
    }

    #[test]
    fn maps_tint_what_they_cover() {
        let picture = Picture { width: 3, height: 1, data: vec![100; 9], channels: 3 };
        let map = ClassMap { width: 3, height: 1, classes: vec![0, 1, UNSEEN] };
        let drawn = annotated(&picture, &Answer::Mask { classes: vec![], map: map.clone() }).unwrap();
        assert_eq!(drawn.data, [100, 100, 100, 114, 50, 50, 100, 100, 100]);
        assert_eq!(class_picture(&map).data, [0, 1, 255]);
        assert!(annotated(&picture, &Answer::Top { top: vec![] }).is_none());
    }
}
