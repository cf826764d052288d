//! The placeholder in other sizes, and what must not be taken for it.

use image::Rgb;

use super::*;

fn text(index: usize) -> RgbImage {
    image::load_from_memory(PLACEHOLDERS[index]).unwrap().into_rgb8()
}

/// QEMU's text in the middle of a screen, in QEMU's grey.
fn screen(index: usize, width: u32, height: u32) -> RgbImage {
    let text = text(index);
    let mut picture = RgbImage::new(width, height);
    let (left, top) = ((width - text.width()) / 2, (height - text.height()) / 2);
    for (x, y, pixel) in text.enumerate_pixels() {
        if pixel.0 != [0, 0, 0] {
            picture.put_pixel(left + x, top + y, Rgb([0xaa, 0xaa, 0xaa]));
        }
    }
    picture
}

#[test]
fn it_is_known_in_every_size() {
    for index in 0..PLACEHOLDERS.len() {
        for (width, height) in [(640, 480), (1280, 800), (1920, 1080)] {
            assert!(is_placeholder(&screen(index, width, height)), "{index} in {width}x{height}");
        }
    }
}

#[test]
fn one_dot_more_or_less_is_something_else() {
    let mut picture = screen(0, 640, 480);
    picture.put_pixel(3, 3, Rgb([0xaa, 0xaa, 0xaa]));
    assert!(!is_placeholder(&picture));
    let mut picture = screen(0, 640, 480);
    picture.put_pixel(3, 3, Rgb([1, 2, 3]));
    assert!(!is_placeholder(&picture));
}

#[test]
fn black_white_and_nothing_are_not_it() {
    assert!(!is_placeholder(&RgbImage::new(640, 480)));
    assert!(!is_placeholder(&RgbImage::new(0, 0)));
    assert!(!is_placeholder(&RgbImage::from_pixel(8, 8, Rgb([255, 255, 255]))));
}
