//! 'picture': what the guest paints on the card's own connector is, pixel by pixel, on the card's own output.
//!
//! The emulated screen cannot prove this, and the guest's word proves nothing: the picture is taken from outside, and its seed is new in every round, so
//! neither a placeholder nor a picture of before can pass.

use super::{Answer, Asking, Capability, Subject};
use crate::diagnosis::Mark;
use crate::verdict::FailureKind;
use anyhow::{Context as _, Result, ensure};
use image::{Rgb, RgbImage};
use no43_guest::pattern::{Difference, Pattern};
use no43_guest::protocol::Painted;
use std::time::Instant;

/// No output is larger than this in either direction; a guest that says so is wrong.
const MAX_SIDE: u32 = 8192;

pub(super) fn ask(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let expected = "the pattern painted in the guest is on the card's own output, equal in every pixel";
    if asking.eye.is_none() {
        let reason = "no eye outside the guest (capability card-capture): a lab has one, a real host needs a capture card";
        return if asking.required.contains(&Capability::CardCapture) {
            Answer::broken(expected, "the run requires card-capture, and nobody here sees the card's output")
                .blame(FailureKind::Lab)
        } else {
            Answer::skipped(expected, reason)
        };
    }
    let seed = crate::evidence::random();
    let painted = match paint(asking, card, seed) {
        Ok(painted) => painted,
        Err(error) => return Answer::broken(expected, format!("the guest did not paint: {error:#}")),
    };
    let pattern = Pattern::new(seed, painted.width, painted.height);
    let earlier = asking.seeds.insert(card.slot.clone(), seed);
    let answer = watch(asking, card, &pattern, earlier, expected);
    if let Err(error) = asking.guest.unpaint() {
        asking.recorder.note(format!("the pattern stays on {}: {error:#}", card.slot), false);
    }
    answer
}

/// Paints, and believes the guest's answer only as far as it can be true.
fn paint(asking: &mut Asking<'_, '_>, card: &Subject, seed: u64) -> Result<Painted> {
    let painted = asking.guest.paint(&card.video().guest, seed)?;
    ensure!(
        (1..=MAX_SIDE).contains(&painted.width) && (1..=MAX_SIDE).contains(&painted.height),
        "it says that its picture has {}x{} pixels",
        painted.width,
        painted.height
    );
    ensure!(painted.seed == seed, "it painted another seed than it was given");
    Ok(painted)
}

/// What is on the output.
enum Seen {
    Equal,
    Placeholder,
    Stale,
    Blank([u8; 3]),
    Other(Difference),
}

/// Takes pictures until one is equal or the limit is over: the frame reaches the output a little after the guest has painted it.
fn watch(
    asking: &mut Asking<'_, '_>,
    card: &Subject,
    pattern: &Pattern,
    earlier: Option<u64>,
    expected: &str,
) -> Answer {
    let began = Instant::now();
    loop {
        let picture = match capture(asking, card) {
            Ok(picture) => picture,
            Err(error) => {
                return Answer::broken(
                    expected,
                    format!("no picture of the output could be taken: {error:#}"),
                )
                .blame(FailureKind::Lab);
            }
        };
        let seen = look(&picture, pattern, earlier);
        let over =
            began.elapsed() >= asking.limits.picture || asking.stop.is_set() || asking.guest.gone().is_some();
        if matches!(seen, Seen::Equal) || over {
            return judge(asking, card, pattern, &picture, &seen, expected);
        }
        std::thread::sleep(asking.limits.pause.min(asking.limits.picture / 8));
    }
}

fn capture(asking: &mut Asking<'_, '_>, card: &Subject) -> Result<RgbImage> {
    let eye = asking.eye.as_deref_mut().context("nobody sees the card's output")?;
    let picture = eye.capture(&card.video().host)?;
    ensure!(
        picture.width() <= MAX_SIDE && picture.height() <= MAX_SIDE,
        "it has {}x{} pixels",
        picture.width(),
        picture.height()
    );
    Ok(picture)
}

fn look(picture: &RgbImage, pattern: &Pattern, earlier: Option<u64>) -> Seen {
    let (width, height) = picture.dimensions();
    let Some(difference) = pattern.difference(width, height, picture.as_raw()) else { return Seen::Equal };
    let stale = earlier.is_some_and(|seed| {
        Pattern::new(seed, width, height).difference(width, height, picture.as_raw()).is_none()
    });
    match one_colour(picture) {
        _ if is_placeholder(picture) => Seen::Placeholder,
        _ if stale => Seen::Stale,
        Some(colour) => Seen::Blank(colour),
        None => Seen::Other(difference),
    }
}

/// QEMU's own picture for an output that no driver has switched on: 640x480, a few lines of light text on black.
pub fn is_placeholder(picture: &RgbImage) -> bool {
    no43_machine::is_placeholder(picture)
}

fn one_colour(picture: &RgbImage) -> Option<[u8; 3]> {
    let first = picture.pixels().next()?;
    picture.pixels().all(|pixel| pixel == first).then_some(first.0)
}

fn judge(
    asking: &mut Asking<'_, '_>,
    card: &Subject,
    pattern: &Pattern,
    picture: &RgbImage,
    seen: &Seen,
    expected: &str,
) -> Answer {
    let size = format!("{}x{}", pattern.width(), pattern.height());
    let found = format!("{}x{}", picture.width(), picture.height());
    let (sentence, mark) = match seen {
        Seen::Equal => {
            (format!("the pattern painted in the guest is on the card's own output ({size}, equal)"), None)
        }
        Seen::Placeholder => (
            format!("the output shows QEMU's placeholder ({found}): no driver has switched it on"),
            Some(Mark::Placeholder),
        ),
        Seen::Stale => {
            ("the output still shows the pattern of the round before".into(), Some(Mark::StalePicture))
        }
        Seen::Blank([r, g, b]) => (
            format!("the output has one colour only (#{r:02x}{g:02x}{b:02x}, {found})"),
            Some(Mark::BlankPicture),
        ),
        Seen::Other(difference) => (difference.to_string(), None),
    };
    let mut answer = match seen {
        Seen::Equal => Answer::holds(expected, sentence),
        _ => Answer::broken(expected, sentence),
    };
    answer.details = vec![format!(
        "seed {:#018x}, painted by the guest on {} at {size}",
        pattern.seed(),
        card.video().guest
    )];
    answer.marks.extend(mark);
    answer.evidence = keep(asking, card, pattern, picture, matches!(seen, Seen::Equal));
    answer
}

/// Keeps expected, seen and, where they differ, the difference.
fn keep(
    asking: &mut Asking<'_, '_>,
    card: &Subject,
    pattern: &Pattern,
    picture: &RgbImage,
    equal: bool,
) -> Vec<String> {
    let expected = expected_picture(pattern);
    let slot = &card.slot;
    let when = asking.round.suffix();
    let mut files = vec![
        asking.recorder.frame(
            &format!("expected {slot}"),
            &format!("expected: painted in the guest{when}"),
            &expected,
        ),
        asking.recorder.frame(
            &format!("card {slot}"),
            &format!("seen: the card's own output{when}, from outside"),
            picture,
        ),
    ];
    if !equal && picture.dimensions() == expected.dimensions() {
        files.push(asking.recorder.frame(
            &format!("difference {slot}"),
            "difference: wrong pixels in red",
            &difference_picture(&expected, picture),
        ));
    }
    files.into_iter().flatten().collect()
}

fn expected_picture(pattern: &Pattern) -> RgbImage {
    let bytes: Vec<u8> = (0..pattern.height()).flat_map(|y| pattern.row_rgb(y)).collect();
    RgbImage::from_raw(pattern.width(), pattern.height(), bytes).unwrap_or_default()
}

/// Wrong pixels red, right ones dimmed.
fn difference_picture(expected: &RgbImage, seen: &RgbImage) -> RgbImage {
    RgbImage::from_fn(seen.width(), seen.height(), |x, y| {
        match (expected.get_pixel(x, y), seen.get_pixel(x, y)) {
            (a, b) if a == b => Rgb(b.0.map(|c| c / 5)),
            _ => Rgb([255, 32, 32]),
        }
    })
}
