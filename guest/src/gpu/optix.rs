//! The piece of work with OptiX: rays through a scene of triangles that tells, as it is made, which of them each ray meets.

use no43_guest::work::{WorkCause, WorkResult};
use std::ffi::CStr;
use std::time::Instant;

use super::cuda::{with_card, wrong};
use super::ptx::ptx;
use super::{Stop, Task, answer, metric};
use crate::native::optix::Tracer;

/// The programs, see `data/optix.ptx`; the compiler in the driver makes them the card's.
const PTX: &CStr = ptx!("optix.ptx");

/// Cells of the scene in a row and in a column; each has a ray.
const SIDE: u32 = 64;

/// From cell to cell: more than rays and triangles lean out of theirs.
const PITCH: u32 = 32;

/// Places for a triangle on the way of a ray, from 4 on, one every 4.
const PLACES: u32 = 4;

/// How far a ray goes: between the second place and the third, or past all.
const REACH: [f32; 2] = [10.0, 100.0];

/// Corners of a triangle about the middle, where a ray meets it.
const CORNERS: [[f32; 3]; 3] = [[-1.5, -1.0, -0.5], [1.5, -1.0, 0.5], [0.0, 2.0, 0.0]];

/// How far beside the ray a triangle is that it passes by.
const BESIDE: f32 = 4.0;

/// Triangles, rays, and what must become of these.
struct Scene {
    /// Three corners of three numbers each.
    vertices: Vec<f32>,
    /// Origin, reach, direction and a number to fill up.
    rays: Vec<f32>,
    /// The triangle that a ray meets first.
    hits: Vec<Option<u32>>,
}

/// Everything in it is a multiple of 1/16 and below 4096, so that no number is rounded on the way to the card, and every ray
/// meets a triangle in its middle or passes it by a triangle's width: whatever a card rounds cannot change the answers.
fn scene(seed: u32) -> Scene {
    let mut scene = Scene { vertices: Vec::new(), rays: Vec::new(), hits: Vec::new() };
    for cell in 0..SIDE * SIDE {
        let mut bits = answer::pattern(u64::from(cell), seed);
        let mut take = |count: u32| {
            let taken = bits & ((1 << count) - 1);
            bits >>= count;
            taken
        };
        let lean = [take(3), take(3)].map(|lean| lean as f32 / 16.0 - 0.25);
        let (reach, turned) = (REACH[take(1) as usize], take(1) * (PLACES - 1));
        let origin = [cell % SIDE * PITCH, cell / SIDE * PITCH].map(|place| place as f32);
        scene.rays.extend([origin[0], origin[1], 0.0, reach, lean[0], lean[1], 1.0, 0.0]);
        let (mut nearest, mut hit) = (reach, None);
        for place in 0..PLACES {
            // every other cell has them from far to near, so that the first in memory is not always the nearest
            let depth = ((place ^ turned) * 4 + 4) as f32;
            let kind = take(2); // nothing, beside the ray, in its way, and so with its back to it
            let aside = if kind == 1 { BESIDE } else { 0.0 };
            if kind >= 2 && depth < nearest {
                (nearest, hit) = (depth, Some(scene.vertices.len() as u32 / 9));
            }
            let middle = [origin[0] + lean[0] * depth + aside, origin[1] + lean[1] * depth, depth];
            let order: [&[usize]; 4] = [&[], &[0, 1, 2], &[0, 1, 2], &[1, 0, 2]];
            for &corner in order[kind as usize] {
                scene.vertices.extend([0, 1, 2].map(|axis| middle[axis] + CORNERS[corner][axis]));
            }
        }
        scene.hits.push(hit);
    }
    scene
}

/// What the programs make of the way of a ray.
fn expected(ray: u32, hit: Option<u32>, seed: u32) -> u32 {
    let payload = ray.wrapping_mul(0x9E37_79B1).wrapping_add(seed);
    (payload ^ hit.map_or(0, |triangle| triangle + 1)).wrapping_mul(0x2C1B_3C6D)
}

/// Every ray's answer is compared.
pub(super) fn trace(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    with_card(task, result, |card, result| {
        if card.capability.0 < 5 {
            let (major, minor) = card.capability;
            let reason =
                format!("OptiX 7 takes compute capability 5.0 and above, this card has {major}.{minor}");
            return Err(Stop::new(WorkCause::NotSupported, reason));
        }
        let names = [c"__raygen__no43", c"__miss__no43", c"__closesthit__no43"];
        let scene = scene(task.seed);
        let count = scene.hits.len();
        let tracer = Tracer::open(card)?;
        let programs = tracer.programs(PTX, c"no43_launch", names)?;
        let geometry = tracer.geometry(&scene.vertices)?;
        let (rays, answers) = (card.allocate(size_of_val(&*scene.rays))?, card.allocate(count * 4)?);
        rays.write(&scene.rays)?;
        let mut found = vec![0; count];
        answers.write(&found)?;
        let start = Instant::now();
        let parameters = [geometry.handle, rays.address(), answers.address(), u64::from(task.seed)];
        tracer.launch(&programs, &parameters, count as u32)?;
        let time = start.elapsed().as_micros() as u64;
        answers.read(&mut found)?;
        let hits = scene.hits.iter().flatten().count() as u64;
        let sum = found.iter().copied().map(u64::from).sum();
        for (name, value) in [("rays", count as u64), ("hits", hits), ("sum", sum)] {
            result.metrics.push(metric(name, value, "count"));
        }
        result.metrics.push(metric("time", time, "us"));
        let wanted = (0..).zip(&scene.hits).map(|(ray, hit)| expected(ray, *hit, task.seed));
        answer::compare(wanted, &found).map_err(|text| wrong(format!("of {count} rays' answers {text}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_have_all_kinds_of_ways_and_only_exact_numbers() {
        for seed in [0, 43, u32::MAX] {
            let scene = scene(seed);
            let (rays, triangles) = (scene.hits.len(), scene.vertices.len() / 9);
            assert_eq!((rays, scene.rays.len()), (4096, 4096 * 8));
            assert!((10_000..14_000).contains(&triangles), "{triangles}");
            let hits = scene.hits.iter().flatten().count();
            assert!((3000..3800).contains(&hits), "{hits}");
            let exact = |n: &f32| *n == (*n * 16.0).round() / 16.0 && n.abs() < 4096.0;
            assert!(scene.rays.iter().chain(&scene.vertices).all(exact));
            // a nearer triangle comes after a farther one, too
            let depth = |n: u32| scene.vertices[n as usize * 9 + 8];
            let later =
                scene.hits.iter().flatten().filter(|n| **n > 0 && depth(**n - 1) > depth(**n)).count();
            assert!(later > 500, "{later}");
        }
        assert_ne!(scene(43).hits, scene(44).hits);
    }

    #[test]
    fn answers_are_fixed() {
        // computed once by a Python program of the same formula
        let answers = [expected(1, None, 0), expected(7, None, 43), expected(7, Some(9), 43)];
        assert_eq!(answers, [0x9fcf_4c5d, 0xc73e_3cda, 0xcfe1_a768]);
    }
}
