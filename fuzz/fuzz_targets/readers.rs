//! The reader that `FUZZ_TARGET` names. With `FUZZ_SEEDS`, writes the readers' seeds into that folder and ends.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;
use std::{env, fs, process};

use lowrank_fuzz::targets::{TARGETS, Target};

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        if let Some(folder) = env::var_os("FUZZ_SEEDS") {
            for target in TARGETS {
                let folder = Path::new(&folder).join(target.name);
                fs::create_dir_all(&folder).expect("a folder for seeds");
                for (i, seed) in (target.seeds)().iter().enumerate() {
                    fs::write(folder.join(format!("seed{i}")), seed).expect("room for seeds");
                }
            }
            process::exit(0);
        }
        let name = env::var("FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}; it must be one of {}", names.join(", ")))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (target().run)(bytes));
