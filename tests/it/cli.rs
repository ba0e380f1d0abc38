//! The command as a user runs it: arguments, output, exit codes.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use lvolfs::control::Server;

use crate::control::echo;

fn run(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lvolfs"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn succeeds(arguments: &[&str], folder: &Path) -> String {
    let output = run(arguments, folder);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {out}{err}");
    assert_eq!(err, "", "{arguments:?}");
    out.into_owned()
}

/// Standard error of a command that ends with `code`; nothing is on standard output.
#[track_caller]
fn fails(arguments: &[&str], folder: &Path, code: i32) -> String {
    let output = run(arguments, folder);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    err.into_owned()
}

/// A folder in which a control socket that is not a daemon's is served at the usual place.
fn served() -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("var/lvolfs.sock"), echo()).unwrap();
    (server, folder)
}

#[test]
fn help_names_every_verb_and_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let help = succeeds(&["--help"], folder.path());
    let verbs = [
        "serve",
        "check-config",
        "status",
        "pool",
        "volume",
        "reservation",
        "rpc",
        "completions",
        "man",
    ];
    for word in verbs.into_iter().chain(["--socket", "--json", "--config", "Exit codes"]) {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
    let help = succeeds(&["volume", "--help"], folder.path());
    for word in ["create", "list", "show", "resize", "rename", "delete"] {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
    let version = succeeds(&["--version"], folder.path());
    assert_eq!(version, format!("lvolfs {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&["volume", "create", "v", "1MiB"], "pool/volume"),
        (&["volume", "create", "p/v", "1MB"], "KiB, MiB, GiB"),
        (&["serve"], "serve needs --config FILE"),
        (&["rpc", "m", "{"], "the parameters are not JSON"),
    ];
    for (arguments, part) in cases {
        let message = fails(arguments, folder.path(), 2);
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}

#[test]
fn no_daemon_is_code_3_and_says_where_it_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["status"][..], &["volume", "list"], &["rpc", "m"]] {
        let message = fails(arguments, folder.path(), 3);
        assert!(message.contains("cannot reach a daemon at var/lvolfs.sock"), "{message}");
        assert!(message.contains("No such file"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let message = fails(&["status", "--socket", "elsewhere"], folder.path(), 3);
    assert!(message.contains("elsewhere"), "{message}");
    std::fs::write(
        folder.path().join("c.toml"),
        "[mount]\npath = \"m\"\n[control]\nsocket = \"k\"",
    )
    .unwrap();
    let message = fails(&["status", "--config", "c.toml"], folder.path(), 3);
    assert!(message.contains("at k;"), "{message}");
}

#[test]
fn configurations_are_checked_and_refused_with_code_4() {
    let folder = tempfile::tempdir().unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml.example");
    let text = succeeds(&["check-config", example], folder.path());
    assert!(text.ends_with("is valid; devices: 1, pools: 1, volumes: 1\n"), "{text}");
    let text = succeeds(&["check-config", example, "--json"], folder.path());
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["pools"], 1);
    let nothing: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(nothing.is_empty(), "checking touches nothing: {nothing:?}");

    let message = fails(&["check-config", "c.toml"], folder.path(), 4);
    assert!(message.contains("c.toml") && message.contains("No such file"), "{message}");
    std::fs::write(folder.path().join("c.toml"), "[mount]\npath = 5").unwrap();
    for arguments in [&["check-config", "c.toml"][..], &["serve", "--config", "c.toml"]] {
        let message = fails(arguments, folder.path(), 4);
        assert!(message.contains("c.toml:2: mount.path = 5: "), "{message}");
    }
}

#[test]
fn tables_for_people() {
    let (_server, folder) = served();
    let status = succeeds(&["status"], folder.path());
    assert!(status.contains("ready for 1 h 2 min"), "{status}");
    assert!(status.contains("pool p is poisoned: a flush failed"), "{status}");
    assert!(!status.contains("commits"), "{status}");
    let status = succeeds(&["status", "--counters"], folder.path());
    assert!(status.contains("pool p  commits  5"), "{status}");
    assert_eq!(
        succeeds(&["pool", "list"], folder.path()),
        "POOL  STATE     DEVICE  CLUSTER  SIZE      FREE     VOLUMES\n\
         p     poisoned  d       1 MiB    1000 MiB  999 MiB  1\n"
    );
    assert_eq!(
        succeeds(&["volume", "list", "p"], folder.path()),
        "VOLUME  STATE  SIZE   ALLOCATED  KIND\n\
         p/v     ok     4 MiB  1 MiB      thin\n"
    );
    assert!(succeeds(&["pool", "show", "p"], folder.path()).contains("a flush failed"));
    assert!(succeeds(&["volume", "show", "p/v"], folder.path()).contains("4194304 bytes"));
}

#[test]
fn json_for_machines() {
    let (_server, folder) = served();
    let ask = |arguments: &[&str]| -> serde_json::Value {
        let arguments = [arguments, &["--json"]].concat();
        serde_json::from_str(&succeeds(&arguments, folder.path())).unwrap()
    };
    assert_eq!(ask(&["status"])["pid"], std::process::id());
    assert_eq!(ask(&["pool", "list"])[0]["state"], "poisoned");
    assert_eq!(ask(&["pool", "show", "p"])["free_clusters"], 999);
    let volumes = ask(&["volume", "list"]);
    assert_eq!((&volumes[0]["pool"], &volumes[0]["size"]), (&"p".into(), &(4 << 20).into()));
    assert_eq!(ask(&["volume", "show", "p/v"])["state"], "ok");
    let created = ask(&["volume", "create", "p/w", "16MiB"]);
    assert_eq!(created["uuid"], "00000000-0000-0000-0000-000001000000");
    assert_eq!(ask(&["volume", "delete", "p/w"]), true);
    assert!(ask(&["rpc", "rpc_get_methods"]).as_array().unwrap().len() > 10);
    assert_eq!(ask(&["rpc", "bdev_get_bdevs", r#"{"name":"p/v"}"#])[0]["num_blocks"], 1024);
}

#[test]
fn volumes_are_changed() {
    let (_server, folder) = served();
    let done = |arguments: &[&str]| succeeds(arguments, folder.path());
    assert!(done(&["volume", "create", "p/w", "16MiB"]).starts_with("p/w is there: 16MiB, thin, "));
    assert!(done(&["volume", "create", "p/w", "16MiB", "--thick"]).contains("thick"));
    assert_eq!(done(&["volume", "resize", "p/v", "8MiB"]), "p/v has 8MiB now\n");
    assert_eq!(done(&["volume", "resize", "p/v", "1MiB", "--shrink"]), "p/v has 1MiB now\n");
    assert_eq!(done(&["volume", "rename", "p/v", "w"]), "p/v is p/w now\n");
    assert_eq!(done(&["volume", "rename", "p/v", "p/w"]), "p/v is p/w now\n");
    assert_eq!(done(&["volume", "delete", "p/v"]), "p/v is deleted\n");
}

#[test]
fn what_the_daemon_refuses_is_code_1() {
    let (_server, folder) = served();
    let cases: &[(&[&str], &str)] = &[
        (&["volume", "create", "p/w", "2GiB"], "No space left on device"),
        (&["volume", "show", "p/nothing"], "no such volume: p/nothing"),
        (&["volume", "list", "q"], "no such pool: q"),
        (&["volume", "resize", "p/v", "1MiB"], "say --shrink"),
        (&["rpc", "no_such_method"], "no_such_method: Method not found (code -32601)"),
    ];
    for (arguments, part) in cases {
        let message = fails(arguments, folder.path(), 1);
        assert!(message.contains(part), "{arguments:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let message = fails(&["volume", "rename", "p/v", "q/v"], folder.path(), 2);
    assert!(message.contains("a volume stays in its pool"), "{message}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = succeeds(&["completions", shell], folder.path());
        assert!(script.contains("check-config"), "{shell}");
    }
    succeeds(&["man", "."], folder.path());
    for page in ["lvolfs.1", "lvolfs-serve.1", "lvolfs-volume-create.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    let message = fails(&["man", "missing"], folder.path(), 1);
    assert!(message.contains("missing"), "{message}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lvolfs"))
        .args(["completions", "zsh"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
