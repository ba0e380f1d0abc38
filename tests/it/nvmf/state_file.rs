//! What was changed at run time, and what a crash leaves of it: whatever was acknowledged is there,
//! and the change under way is made or not made.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use lvolfs::nvmf::model::state_file::{Damage, FILE_NAME, StateFile};
use lvolfs::nvmf::model::{Error, Exports, Keeper, Model, NewSubsystem};
use lvolfs::reservation::{Injected, Step};

use crate::reservations::files::what_power_cuts_leave;

const FIRST: &str = "nqn.2026-11.io.lvolfs:first";
const SECOND: &str = "nqn.2026-11.io.lvolfs:second";

/// What is exported with these subsystems.
fn exports(names: &[&str]) -> Exports {
    let model = Model::new(1, None);
    for name in names {
        model.create_subsystem(NewSubsystem::named(name)).unwrap();
    }
    (*model.exports()).clone()
}

fn file_in(folder: &Path) -> StateFile {
    StateFile::new(&folder.join("target"), Exports::default())
}

fn kept(file: &StateFile) -> Option<Exports> {
    file.load().unwrap().map(|kept| kept.exports)
}

/// The files beside the state.
fn files(file: &StateFile) -> Vec<String> {
    let folder = fs::read_dir(file.path().parent().unwrap()).unwrap();
    folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_kill_at_each_step_leaves_the_old_state_or_the_new() {
    for old in [None, Some(exports(&[FIRST]))] {
        let new = exports(&[FIRST, SECOND]);
        for (number, killed) in Step::ALL.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let file = file_in(folder.path());
            if let Some(old) = &old {
                file.keep(old).unwrap();
            }
            let hook = |step| if step == killed { Injected::Kill } else { Injected::Nothing };
            file.keep_with(&new, hook).unwrap_err();
            let restarted = file_in(folder.path());
            // The rename is step 4: before it the old state, after it the new one.
            let expected = if number <= 3 { old.clone() } else { Some(new.clone()) };
            assert_eq!(kept(&restarted), expected, "killed before {killed:?}");
            // What the crash has left over does not hinder the next change.
            restarted.keep(&new).unwrap();
            assert_eq!(kept(&restarted), Some(new.clone()));
            assert_eq!(files(&restarted), [FILE_NAME], "no temporary stays");
        }
    }
}

#[test]
fn a_power_cut_at_each_step_leaves_the_old_state_or_the_new() {
    let (old, new) = (exports(&[FIRST]), exports(&[FIRST, SECOND]));
    let bytes = |exports| {
        let folder = tempfile::tempdir().unwrap();
        let file = file_in(folder.path());
        file.keep(exports).unwrap();
        fs::read(file.path()).unwrap()
    };
    let (before, after) = (bytes(&old), bytes(&new));
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(folder.path());
    file.keep(&old).unwrap();
    let left = what_power_cuts_leave(&before, &after);
    assert_eq!(left.last(), Some(&(Step::SyncFolder, Some(after.clone()))), "acknowledged");
    for (step, content) in left {
        fs::write(file.path(), content.unwrap()).unwrap();
        let found = kept(&file).unwrap();
        assert!(found == old || found == new, "cut after {step:?}: {found:?}");
    }
}

/// A state file one step of which fails.
struct Failing {
    file: StateFile,
    step: Mutex<Option<Step>>,
}

/// What a model has of it.
struct Shared(Arc<Failing>);

impl Keeper for Shared {
    fn keep(&self, exports: &Exports) -> Result<(), String> {
        let failing = *self.0.step.lock().unwrap();
        let hook = |step| match Some(step) == failing {
            true => Injected::Error(io::ErrorKind::StorageFull),
            false => Injected::Nothing,
        };
        self.0.file.keep_with(exports, hook).map_err(|error| error.to_string())
    }
}

#[test]
fn a_change_that_could_not_be_kept_is_not_made() {
    for failing in Step::ALL {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Arc::new(Failing { file: file_in(folder.path()), step: Mutex::default() });
        let model = Model::new(1, Some(Box::new(Shared(Arc::clone(&keeper)))));
        let file = &keeper.file;
        model.create_subsystem(NewSubsystem::named(FIRST)).unwrap();
        assert_eq!(kept(file).as_ref(), Some(&*model.exports()), "acknowledged");
        *keeper.step.lock().unwrap() = Some(failing);
        let refused = model.create_subsystem(NewSubsystem::named(SECOND));
        let Err(Error::NotKept { reason }) = refused else { panic!("{refused:?}") };
        assert!(reason.contains(file.path().to_str().unwrap()), "{reason}");
        assert!(model.subsystem(SECOND).is_none(), "{failing:?}");
        // A folder that could not be made durable may already have the new name.
        let expected = if failing == Step::SyncFolder { 2 } else { 1 };
        assert_eq!(kept(file).unwrap().subsystems.len(), expected, "{failing:?}");
        *keeper.step.lock().unwrap() = None;
        model.set_allow_any_host(FIRST, true).unwrap();
        assert_eq!(kept(file).as_ref(), Some(&*model.exports()), "the next change repairs");
        assert_eq!(files(file), [FILE_NAME]);
    }
}

#[test]
fn what_is_no_state_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(folder.path());
    file.keep(&exports(&[FIRST])).unwrap();
    let whole = fs::read(file.path()).unwrap();
    let mut torn = whole.clone();
    let half = torn.len() / 2;
    torn[half..].fill(0);
    for bad in [&b""[..], b"garbage", b"{}", b"null", &torn] {
        fs::write(file.path(), bad).unwrap();
        let refused = file.load();
        assert!(matches!(refused, Err(Damage::Form(_))), "{refused:?}");
        assert_eq!(fs::read(file.path()).unwrap(), bad);
    }
}
