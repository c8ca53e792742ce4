//! Copies on the wire when 200 listeners miss the same frames: all at once, and spread over the listeners' jitter with a
//! tenth of the repairs lost. Every listener has to have its frame in the end.

use anyhow::{Result, ensure};
use retry_testbed::scene::suppression::{self, Scene};

use crate::bench::{
    contenders::Contenders,
    model::{Measurement, Row, Target},
    options::Settings,
};

const SCENES: [(&str, Scene<'_>, Target); 2] = [
    ("at once", Scene::at_once("native"), Target::AtMost(1.02)),
    ("spread over 200 ms, 10 % of repairs lost", Scene::spread("native"), Target::None),
];

pub(super) fn measure(name: &str, settings: &Settings, _rigs: &mut Contenders) -> Result<Measurement> {
    let mut found = Measurement::default();
    for (how, scene, target) in SCENES {
        let counts = suppression::run(&settings.binary, &scene)?;
        ensure!(counts.complaints.is_empty(), "{how}: {}", counts.complaints.join("; "));
        ensure!(counts.recovered == counts.missed, "{how}: {} of {} recovered", counts.recovered, counts.missed);
        let copies = [counts.copies_per_frame()];
        found.rows.push(Row::alone(format!("{name}, {how}"), "copies a frame", &copies, target));
        found.notes.push(format!(
            "{how}: {} listeners, {} frames, {:.1} NACKs a frame, all recovered",
            counts.listeners,
            counts.frames,
            counts.nacks_per_frame()
        ));
    }
    Ok(found)
}
