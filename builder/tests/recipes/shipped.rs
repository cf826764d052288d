//! Every shipped recipe becomes a plan, and every Windows recipe an answer file without a finding.

use std::fs;
use std::path::{Path, PathBuf};

use no43_builder::plan::Plan;
use no43_builder::{answer, recipe};

use crate::common::{RECIPES, media_for, plan_of};

#[test]
fn every_shipped_recipe_becomes_a_plan() {
    let mut paths: Vec<PathBuf> = fs::read_dir(RECIPES).unwrap().map(|entry| entry.unwrap().path()).collect();
    let windows = |path: &Path| path.to_string_lossy().contains("/windows1");
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && !windows(path));
    paths.sort();
    assert!(paths.len() >= 4);
    for path in paths {
        let plan = plan_of(&recipe::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")));
        let mut shown = format!("{plan}\n");
        for layer in &plan.layers {
            shown += &format!("{}: {}\n", layer.name, serde_json::to_string_pretty(&layer.inputs).unwrap());
        }
        insta::assert_snapshot!(plan.name.clone(), shown);
        let again: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(again, plan, "a plan survives JSON");
    }
}

#[test]
fn every_shipped_windows_recipe_becomes_an_answer_file_without_a_finding() {
    let names = ["windows10-gaming", "windows10-ci", "windows11-gaming", "windows11-ci"];
    for name in names {
        let path = Path::new(RECIPES).join(format!("{name}.toml"));
        let recipe = recipe::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")).recipe;
        let windows = recipe.guest.windows.as_ref().expect("a Windows");
        assert!(recipe.guest.user.as_ref().is_some_and(|user| user.password.is_some()), "{name}");
        let media = media_for(windows);
        for media in [Some(&media), None] {
            let build = answer::BuildOnly::random().unwrap();
            let settings =
                answer::settings_for(&recipe, media, build).unwrap_or_else(|problems| panic!("{problems}"));
            for text in [settings.render(), settings.render_shown()] {
                let findings = answer::lint(&text, media);
                assert!(findings.is_empty(), "{name}: {}", findings[0]);
                // Windows 11 is not told to look away where the machine has what it asks for.
                assert!(!text.contains("LabConfig"), "{name}");
            }
        }
    }
}
