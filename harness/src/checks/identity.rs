//! 'version', 'audio' and 'link': the right driver version, a living audio function, a link as wide as on the host.

use super::{Answer, Asking, Subject, forbidden, known_report, look_until};
use crate::diagnosis::driver_version;

pub(super) fn ask_version(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let Some(wanted) = asking.driver_version.clone() else {
        return Answer::skipped("", "the recipe names no driver.version");
    };
    let expected = format!("driver {wanted}, as driver.version says");
    let report = match known_report(asking) {
        Ok(report) => report,
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let video = report.function(&card.video().guest);
    let source = video.and_then(|f| f.node.as_ref());
    let details = source.map(|node| {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        format!(
            "INF {} section {} from {}, dated {}",
            text(&node.inf),
            text(&node.inf_section),
            text(&node.provider),
            text(&node.driver_date)
        )
    });
    let answer = match video.and_then(driver_version) {
        Some(seen) if seen == wanted => Answer::holds(expected, seen),
        Some(seen) => Answer::broken(expected, format!("driver {seen} is installed")),
        None => Answer::broken(expected, "the guest does not say which version its driver has"),
    };
    answer.details(details)
}

pub(super) fn ask_audio(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let left_out = card.left_out.iter().find(|(_, role)| role == "audio");
    let Some(audio) = card.functions.iter().find(|f| f.role == "audio") else {
        return match left_out {
            Some((host, _)) => Answer::broken(
                "the card's audio function works in the guest",
                format!("{host} audio is a part of the card and was not given to the guest"),
            ),
            None if !card.compared => {
                Answer::skipped("", "the guest shows no audio function beside this card")
            }
            None => Answer::skipped("", "this card has no audio function"),
        };
    };
    let expected = format!("a driver has the audio function {}", audio.guest);
    let limit = asking.limits.driver;
    let driver =
        |report: &no43_guest::protocol::Report| report.function(&audio.guest).and_then(|f| f.driver.clone());
    let there = known_report(asking).ok().and_then(|report| driver(&report));
    let there = match there {
        Some(driver) => Ok(Some(driver)),
        // for a function that is not there no driver comes
        None => look_until(asking, limit, |report| {
            driver(report).is_some() || report.function(&audio.guest).is_none()
        })
        .map(|report| driver(&report)),
    };
    match there {
        Ok(Some(name)) => Answer::holds(expected, name),
        Ok(None) => {
            let lines = known_report(asking).map(|report| card.guest_lines(&report)).unwrap_or_default();
            let mut answer =
                Answer::broken(expected, format!("no driver has {} ({})", audio.guest, audio.shown_as))
                    .with_guest_lines(lines);
            answer.noticed = forbidden::look(asking, &audio.guest);
            answer
        }
        Err(error) => Answer::broken(expected, format!("{error:#}")),
    }
}

pub(super) fn ask_link(asking: &mut Asking<'_, '_>, card: &Subject) -> Answer {
    let Some(host) = card.link_width else {
        return Answer::skipped(
            "",
            "this host knows no PCI Express link of this card, so there is nothing to compare with",
        );
    };
    let expected = format!("a link of {host} lanes, as on the host");
    let report = match known_report(asking) {
        Ok(report) => report,
        Err(error) => return Answer::broken(expected, format!("{error:#}")),
    };
    let link = report.function(&card.video().guest).and_then(|f| f.link.clone()).unwrap_or_default();
    let Some(width) = link.width.filter(|width| *width > 0) else {
        return Answer::skipped(expected, "the guest cannot tell how wide the card's link is");
    };
    let speed = link.speed.map_or(String::new(), |speed| format!(", generation {speed} now"));
    let seen = format!("{width} lanes{speed}");
    // an idle card slows down and keeps its lanes, so the generation decides nothing
    if width >= host { Answer::holds(expected, seen) } else { Answer::broken(expected, seen) }
}
