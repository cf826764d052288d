//! The scene that Direct3D renders, and the picture that must come out, computed by the processor.
//!
//! Three triangles, each of which shows something that a broken card or driver gets wrong: the first is near and hides a
//! part of the second although that is drawn later (depth); the second lies askew in space (colours between its corners
//! follow the perspective); the third is glass over both and over the background (blending). The pixel shader squares
//! the colours, so a driver that leaves it out is seen.

use super::answer::pattern;

/// Width and height of the picture. A row of it is a multiple of 256 bytes, as Direct3D 12 wants it.
pub(crate) const SIZE: usize = 256;

/// What is where nothing is drawn: red, green, blue, opacity.
pub(crate) const BACKGROUND: [f32; 4] = [0.2, 0.4, 0.6, 1.0];

/// How far a channel of 8 bits may be off: rules of rounding and interpolation leave drivers some freedom.
const TOLERANCE: u8 = 3;

/// Pixels whose centre is nearer to an edge than this are not judged: which side has them may differ.
const EDGE: f64 = 1.0;

/// Place (clip coordinates) and colour of a corner, as they lie in the vertex buffer.
pub(crate) type Vertex = [f32; 8];

/// Corners of the three triangles, clockwise, without their colours; the last number of each is the opacity.
const CORNERS: [([f32; 4], f32); 9] = [
    ([-0.6, -0.7, 0.25, 1.0], 1.0),
    ([-0.2, 0.7, 0.25, 1.0], 1.0),
    ([0.3, -0.5, 0.25, 1.0], 1.0),
    ([-1.7, -1.5, 1.5, 2.0], 1.0), // w differs: askew
    ([-0.3, 0.9, 0.75, 1.0], 1.0),
    ([2.4, -0.6, 2.4, 3.0], 1.0),
    ([-0.9, 0.2, 0.1, 1.0], 0.5),
    ([0.9, 0.8, 0.1, 1.0], 0.5),
    ([0.5, -0.9, 0.1, 1.0], 0.5),
];

/// The corners with colours that `seed` picks.
pub(crate) fn vertices(seed: u32) -> [Vertex; 9] {
    let channel = |corner: usize, n: usize| {
        let byte = pattern((corner * 3 + n) as u64, seed) & 0xff;
        0.3 + 0.7 * byte as f32 / 255.0
    };
    std::array::from_fn(|corner| {
        let ([x, y, z, w], opacity) = CORNERS[corner];
        [x, y, z, w, channel(corner, 0), channel(corner, 1), channel(corner, 2), opacity]
    })
}

/// The picture as it must be, row by row; `None` where it is not judged.
fn expected(vertices: &[Vertex]) -> Vec<Option<[u8; 4]>> {
    let start = (BACKGROUND.map(f64::from).map(stored), 1.0, true);
    let mut pixels = vec![start; SIZE * SIZE];
    for triangle in vertices.chunks_exact(3) {
        draw(triangle, &mut pixels);
    }
    let byte = |channel: f64| (channel * 255.0).round() as u8;
    pixels.into_iter().map(|(color, _, sure)| sure.then(|| color.map(byte))).collect()
}

/// What eight bits keep of a channel.
fn stored(channel: f64) -> f64 {
    (channel.clamp(0.0, 1.0) * 255.0).round() / 255.0
}

/// Draws a triangle over pixels with a colour, a depth, and whether they are judged.
fn draw(triangle: &[Vertex], pixels: &mut [([f64; 4], f64, bool)]) {
    let corner = |n: usize| triangle[n].map(f64::from);
    let corners = [corner(0), corner(1), corner(2)];
    let screen = corners
        .map(|[x, y, _, w, ..]| [(x / w + 1.0) / 2.0 * SIZE as f64, (1.0 - y / w) / 2.0 * SIZE as f64]);
    // Twice the area of the triangle of an edge and a point: positive where the point is inside.
    let side = |n: usize, x: f64, y: f64| {
        let ([ax, ay], [bx, by]) = (screen[(n + 1) % 3], screen[(n + 2) % 3]);
        (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    };
    let lengths: [f64; 3] = std::array::from_fn(|n| {
        let ([ax, ay], [bx, by]) = (screen[(n + 1) % 3], screen[(n + 2) % 3]);
        (bx - ax).hypot(by - ay)
    });
    let area = side(0, screen[0][0], screen[0][1]);
    for (index, (color, depth, sure)) in pixels.iter_mut().enumerate() {
        let (x, y) = ((index % SIZE) as f64 + 0.5, (index / SIZE) as f64 + 0.5);
        let sides: [f64; 3] = std::array::from_fn(|n| side(n, x, y));
        let inside = (0..3).map(|n| sides[n] / lengths[n]).fold(f64::INFINITY, f64::min);
        if inside.abs() < EDGE {
            *sure = false;
        }
        if inside < 0.0 {
            continue;
        }
        let share: [f64; 3] = std::array::from_fn(|n| sides[n] / area);
        let sum =
            |value: &dyn Fn(&[f64; 8]) -> f64| -> f64 { (0..3).map(|n| share[n] * value(&corners[n])).sum() };
        let new_depth = sum(&|corner| corner[2] / corner[3]);
        if new_depth >= *depth {
            continue;
        }
        let whole = sum(&|corner| 1.0 / corner[3]);
        let [red, green, blue, opacity]: [f64; 4] =
            std::array::from_fn(|n| sum(&|corner| corner[4 + n] / corner[3]) / whole);
        let over = [red * red, green * green, blue * blue];
        *color = std::array::from_fn(|n| match over.get(n) {
            Some(new) => stored(new * opacity + color[n] * (1.0 - opacity)),
            None => stored(opacity + color[n] * (1.0 - opacity)),
        });
        *depth = new_depth;
    }
}

/// What a comparison found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Pixels that were compared.
    pub(crate) pixels: usize,
    /// Largest difference of a channel.
    pub(crate) largest: u8,
}

/// Compares a picture (four bytes each pixel, rows without gaps) with what must come out of `vertices`.
///
/// # Errors
/// If it has another size, or the first pixel that is off by more than the tolerance, and how many are.
pub(crate) fn compare(vertices: &[Vertex], picture: &[u8]) -> Result<Judged, String> {
    if picture.len() != SIZE * SIZE * 4 {
        return Err(format!("the picture has {} bytes instead of {}", picture.len(), SIZE * SIZE * 4));
    }
    let expected = expected(vertices);
    let (mut judged, mut wrong, mut first) = (Judged { pixels: 0, largest: 0 }, 0, None);
    for (index, (pixel, expected)) in picture.chunks_exact(4).zip(&expected).enumerate() {
        let Some(expected) = expected else { continue };
        let off = pixel.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        judged.pixels += 1;
        judged.largest = judged.largest.max(off);
        if off > TOLERANCE {
            wrong += 1;
            first.get_or_insert((index % SIZE, index / SIZE, pixel, *expected));
        }
    }
    let Some((x, y, pixel, expected)) = first else { return Ok(judged) };
    let words = format!("pixel {x},{y} is {pixel:?} instead of {expected:?}");
    Err(format!("{words}; {wrong} of {} pixels are off by more than {TOLERANCE}", judged.pixels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(vertices: &[Vertex]) -> Vec<u8> {
        expected(vertices).into_iter().flat_map(|pixel| pixel.unwrap_or([255, 0, 255, 0])).collect()
    }

    #[test]
    fn most_pixels_are_judged_and_every_triangle_is_seen() {
        let vertices = vertices(43);
        let whole = picture(&vertices);
        let judged = compare(&vertices, &whole).unwrap();
        assert!(judged.pixels > SIZE * SIZE * 9 / 10 && judged.largest == 0, "{judged:?}");
        // Without any one of them, with the near one drawn last or without depth, with another seed: all are seen.
        for left_out in 0..3 {
            let mut some = vertices.to_vec();
            some.drain(left_out * 3..left_out * 3 + 3);
            let text = compare(&vertices, &picture(&some)).unwrap_err();
            assert!(text.contains("pixels are off"), "{text}");
        }
        let mut flat = vertices;
        flat.iter_mut().for_each(|vertex| {
            let w = std::mem::replace(&mut vertex[3], 1.0);
            vertex[..3].iter_mut().for_each(|place| *place /= w);
        });
        assert!(compare(&vertices, &picture(&flat)).is_err(), "colours without perspective");
        let mut deep = vertices;
        deep[..3].iter_mut().for_each(|vertex| vertex[2] = 0.9);
        assert!(compare(&vertices, &picture(&deep)).is_err(), "depth");
        assert!(compare(&vertices, &picture(&super::vertices(44))).is_err());
        assert!(compare(&vertices, &whole[4..]).is_err());
    }

    #[test]
    fn a_little_off_is_fine_and_more_is_named() {
        let vertices = vertices(7);
        let mut picture = picture(&vertices);
        picture.iter_mut().for_each(|byte| *byte = byte.saturating_add(TOLERANCE));
        assert_eq!(compare(&vertices, &picture).unwrap().largest, TOLERANCE);
        picture[..4].copy_from_slice(&[0, 0, 0, 0]);
        let text = compare(&vertices, &picture).unwrap_err();
        assert!(
            text.starts_with("pixel 0,0 is [0, 0, 0, 0] instead of [51, 102, 153, 255]; 1 of "),
            "{text}"
        );
    }
}
