//! The configuration file, accepted and refused.

use std::path::Path;
use std::time::Duration;

use lvolfs::config::{
    Cache, Config, ConfigError, Cores, Driver, Image, LogFormat, LogLevel, PciAddress, Wait,
};
use lvolfs::units::{BlockSize, ByteCount, NamespaceId};

const EXAMPLE: &str = include_str!("../../config.toml.example");

/// A valid file; the cases below change it.
const BASE: &str = r#"[mount]
path = "mnt"
[[device]]
name = "disk0"
driver = "file"
path = "disk0.img"
size = "1GiB"
[[device]]
name = "ram"
driver = "memory"
size = "64MiB"
[[pool]]
name = "pool0"
device = "disk0"
[[volume]]
name = "pool0/a"
size = "1MiB"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("c.toml"))
}

fn refusal(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("accepted: {config:?}\n{text}"),
        Err(error) => error.to_string(),
    }
}

/// Applies `from` -> `to` to the base and compares the whole message.
#[track_caller]
fn check(from: &str, to: &str, expected: &str) {
    assert!(BASE.contains(from), "{from:?} is not in the base");
    let message = refusal(&BASE.replacen(from, to, 1));
    assert_eq!(message, expected, "{from:?} -> {to:?}");
}

#[test]
fn the_example_is_the_quick_start() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.mount.path.as_deref(), Some(Path::new("mount/volumes")));
    assert_eq!(config.control.socket, Path::new("var/lvolfs.sock"));
    let [device] = config.devices.as_slice() else { panic!("{:?}", config.devices) };
    let image = Image {
        path: "var/disk0.img".into(),
        size: Some(ByteCount::GIB),
        block_size: BlockSize::B4096,
        create: true,
    };
    assert_eq!((device.name.as_str(), &device.driver), ("disk0", &Driver::NvmeEmulated(image)));
    let [pool] = config.pools.as_slice() else { panic!("{:?}", config.pools) };
    assert_eq!((pool.name.as_str(), pool.device.as_str()), ("pool0", "disk0"));
    assert_eq!((pool.cluster_size, pool.create), (ByteCount::MIB, true));
    let [volume] = config.volumes.as_slice() else { panic!("{:?}", config.volumes) };
    assert_eq!((volume.name.pool(), volume.name.volume()), ("pool0", "demo"));
    assert_eq!((volume.size, volume.thin), (ByteCount(256 << 20), true));
    let target = config.target.unwrap();
    assert_eq!(target.listen, ["127.0.0.1:4420".parse().unwrap()]);
    let [subsystem] = target.subsystems.as_slice() else { panic!("{:?}", target.subsystems) };
    assert_eq!(subsystem.nqn, "nqn.2026-11.io.lvolfs:demo");
    assert!(!subsystem.allow_any_host && subsystem.hosts.is_empty(), "closed until it is opened");
    let [namespace] = subsystem.namespaces.as_slice() else { panic!("{subsystem:?}") };
    assert_eq!((namespace.volume.to_string().as_str(), namespace.nsid), ("pool0/demo", 1));
}

/// The example with every `#key = value` line in force, other comments left alone.
fn example_with_defaults() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_defaults_that_the_example_documents_are_those_of_the_code() {
    let explicit = example_with_defaults();
    assert_ne!(explicit, EXAMPLE);
    assert_eq!(parse(&explicit).unwrap(), parse(EXAMPLE).unwrap());
    // Keys that the example sets: their documented default is the value they get when left out.
    let documented = |key: &str| {
        let line = EXAMPLE.lines().find(|line| line.starts_with(key)).unwrap();
        line.rsplit_once("default: ").unwrap().1.trim_end().to_owned()
    };
    let config = parse(BASE).unwrap();
    assert_eq!(documented("cluster_size"), format!("{:?}", config.pools[0].cluster_size.human()));
    assert_eq!(documented("create"), config.pools[0].create.to_string());
    assert_eq!(documented("thin"), config.volumes[0].thin.to_string());
    let Driver::File(image) = &config.devices[0].driver else { panic!("{config:?}") };
    assert_eq!(documented("create"), image.create.to_string());
    let example_block_size = "block_size = 4096";
    assert!(EXAMPLE.contains(example_block_size) && image.block_size == BlockSize::B4096);
    assert_eq!(config.control.socket, parse(EXAMPLE).unwrap().control.socket);
}

#[test]
fn the_example_documents_every_key() {
    // The refusal of an unknown key lists all that a section has.
    for section in [
        "mount",
        "control",
        "device",
        "pool",
        "volume",
        "target",
        "target.subsystem",
        "reservations",
        "reactor",
        "log",
    ] {
        let repeated = ["device", "pool", "volume", "target.subsystem"].contains(&section);
        let header = if repeated { format!("[[{section}]]") } else { format!("[{section}]") };
        let message = refusal(&format!("{header}\nzzzzzzzz = 1\n"));
        let keys: Vec<&str> = message.split('"').skip(3).step_by(2).collect();
        assert!(!keys.is_empty(), "{message}");
        let after = EXAMPLE.split(&format!("\n{header}")).nth(1).unwrap();
        let end = after.find("\n[").unwrap_or(after.len());
        // Sections of their own are no keys.
        for key in keys.into_iter().filter(|key| *key != "subsystem") {
            let documented = after[..end]
                .lines()
                .any(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key} = ")));
            assert!(documented, "the example does not show {section}.{key}");
        }
    }
}

#[test]
fn every_key_is_taken() {
    let text = r#"
[mount]
path = "/srv/volumes"
allow_other = true
owner = 1000
group = 100
mode = 0o640
cache = "writeback"
[control]
socket = "/run/lvolfs.sock"
[[device]]
name = "nvme0"
driver = "nvme"
pci = "0000:01:00.0"
namespace = 2
io_timeout = "5s"
unsafe_no_iommu = true
[[device]]
name = "ram"
driver = "memory"
size = 67108864
block_size = 512
[[device]]
name = "image"
driver = "file"
path = "/dev/sdz"
[[pool]]
name = "fast"
device = "nvme0"
commit_interval = "250ms"
[[pool]]
name = "slow"
device = "ram"
cluster_size = "68KiB"
create = true
[[volume]]
name = "slow/one"
size = "10MiB"
thin = false
cache = "direct"
[reactor]
cores = [2, 3]
wait = "busy"
dma_memory = "1GiB"
huge_pages = false
[log]
level = "trace"
format = "json"
"#;
    let config = parse(text).unwrap();
    let mount = &config.mount;
    assert!(mount.allow_other && mount.path.as_deref() == Some(Path::new("/srv/volumes")));
    assert_eq!((mount.owner, mount.group, mount.mode), (Some(1000), Some(100), 0o640));
    let address: PciAddress = "0000:01:00.0".parse().unwrap();
    let expected = [
        Driver::Nvme {
            address,
            namespace: NamespaceId(2),
            io_timeout: Duration::from_secs(5),
            unsafe_no_iommu: true,
        },
        Driver::Memory { size: ByteCount(64 << 20), block_size: BlockSize::B512 },
        Driver::File(Image {
            path: "/dev/sdz".into(),
            size: None,
            block_size: BlockSize::B4096,
            create: false,
        }),
    ];
    assert_eq!(
        config.devices.iter().map(|device| &device.driver).cloned().collect::<Vec<_>>(),
        expected
    );
    assert_eq!(config.pools[0].commit_interval, Duration::from_millis(250));
    assert_eq!(config.pools[0].cluster_size, ByteCount(4 << 20));
    assert_eq!(config.pools[1].commit_interval, Duration::from_secs(5));
    assert_eq!(config.pools[1].cluster_size, ByteCount(68 << 10));
    assert!(!config.volumes[0].thin);
    assert_eq!((mount.cache, config.volumes[0].cache), (Cache::Writeback, Cache::Direct));
    assert_eq!(config.reactor.cores, Cores::Cpus(vec![2, 3]));
    assert_eq!((config.reactor.wait, config.reactor.huge_pages), (Wait::Busy, false));
    assert_eq!((config.log.level, config.log.format), (LogLevel::Trace, LogFormat::Json));
}

#[test]
fn unknown_keys_are_refused_with_a_hint() {
    check(
        "size = \"1GiB\"",
        "siez = \"1GiB\"",
        "c.toml:7: device.siez: unknown key \"siez\", expected one of \"name\", \"driver\", \
         \"path\", \"size\", \"block_size\", \"create\", \"pci\", \"namespace\", \"uuid\", \
         \"io_timeout\", \"unsafe_no_iommu\"; \
         did you mean \"size\"?",
    );
    check(
        "[mount]",
        "[mout]",
        "c.toml:1: mout: unknown key \"mout\", expected one of \"mount\", \"control\", \
         \"device\", \"pool\", \"volume\", \"target\", \"reservations\", \"reactor\", \"log\"; did you mean \"mount\"?",
    );
    check(
        "path = \"mnt\"",
        "path = \"mnt\"\nxyzzy = 1",
        "c.toml:3: mount.xyzzy: unknown key \"xyzzy\", expected one of \"path\", \
         \"allow_other\", \"owner\", \"group\", \"mode\", \"transport\", \"cache\"",
    );
}

#[test]
fn wrong_types_are_refused() {
    check(
        "path = \"mnt\"",
        "path = 5",
        "c.toml:2: mount.path = 5: invalid type: integer \"5\", expected a string",
    );
    check(
        "path = \"mnt\"",
        "path = \"mnt\"\nallow_other = \"yes\"",
        "c.toml:3: mount.allow_other = \"yes\": invalid type: string \"yes\", \
         expected true or false",
    );
    check(
        "driver = \"file\"",
        "driver = \"file\"\nblock_size = -1",
        "c.toml:6: device.block_size = -1: invalid value: integer \"-1\", \
         expected a whole number from 0 to 4294967295",
    );
    check(
        "driver = \"file\"",
        "driver = \"fil\"",
        "c.toml:5: device.driver = \"fil\": unknown value \"fil\", expected one of \"nvme\", \
         \"nvme-emulated\", \"file\", \"memory\"; did you mean \"file\"?",
    );
    check(
        "[mount]",
        "[reactor]\nwait = \"spin\"\n[mount]",
        "c.toml:2: reactor.wait = \"spin\": unknown value \"spin\", \
         expected one of \"adaptive\", \"busy\", \"sleep\"",
    );
    check(
        "[mount]",
        "[log]\nlevel = \"loud\"\n[mount]",
        "c.toml:2: log.level = \"loud\": unknown value \"loud\", expected one of \"error\", \
         \"warn\", \"info\", \"debug\", \"trace\"",
    );
}

#[test]
fn what_is_not_toml_is_refused() {
    check(
        "path = \"mnt\"",
        "path = ",
        "c.toml:2: mount.path: string values must be quoted, expected literal string",
    );
    check("driver = \"file\"", "name = \"x\"", "c.toml:5: the key \"name\" is there twice");
    check("[mount]", "[[mount]]", "c.toml:1: mount: this section is there once, as [mount]");
    check(
        "[[pool]]",
        "[pool]",
        "c.toml:12: pool: there may be several of these sections, each as [[pool]]",
    );
    assert_eq!(
        refusal("mount = [\"mnt\"]\nvolume = [1]"),
        "c.toml:1: mount: this section is there once, as [mount]\n\
         c.toml:2: volume: there may be several of these sections, each as [[volume]]"
    );
}

#[test]
fn missing_keys_are_named() {
    check(
        "[mount]\npath = \"mnt\"",
        "[mount]",
        "c.toml:1: mount: the key \"path\" is missing: the folder to mount on",
    );
    check(
        "[mount]\npath = \"mnt\"",
        "",
        "c.toml:1: there is neither [mount] nor [target]: nobody could reach a volume",
    );
    check(
        "driver = \"file\"",
        "",
        "c.toml:3: device: the key \"driver\" is missing: \
         one of \"nvme\", \"nvme-emulated\", \"file\", \"memory\"",
    );
    check(
        "size = \"1GiB\"",
        "create = true",
        "c.toml:3: device: the key \"size\" is missing: \
         a file that may have to be created needs a size, such as \"1GiB\"",
    );
    check(
        "size = \"64MiB\"",
        "",
        "c.toml:8: device: the key \"size\" is missing: the size of the memory, such as \"1GiB\"",
    );
    check(
        "driver = \"memory\"\nsize = \"64MiB\"",
        "driver = \"nvme\"",
        "c.toml:8: device: the key \"pci\" is missing: \
         the controller's address, such as \"0000:01:00.0\"",
    );
    check(
        "device = \"disk0\"",
        "",
        "c.toml:12: pool: the key \"device\" is missing: the name of its device",
    );
    check(
        "size = \"1MiB\"",
        "",
        "c.toml:15: volume: the key \"size\" is missing: the volume's size, such as \"256MiB\"",
    );
}

#[test]
fn bad_sizes_are_refused() {
    check(
        "size = \"1GiB\"",
        "size = \"1GB\"",
        "c.toml:7: device.size = \"1GB\": \"GB\" is not a unit of size; \
         write a whole number followed by B, KiB, MiB, GiB or TiB, such as \"256MiB\"",
    );
    check("size = \"1GiB\"", "size = -1", "c.toml:7: device.size = -1: a size is not negative");
    for size in ["0", "\"4097B\""] {
        check(
            "size = \"1GiB\"",
            &format!("size = {size}"),
            &format!(
                "c.toml:7: device.size = {size}: \
                 a device's size is a multiple of its block size, 4096, not 0"
            ),
        );
    }
    check(
        "size = \"1GiB\"",
        "size = \"8388608TiB\"",
        "c.toml:7: device.size = \"8388608TiB\": a size is less than 8388608TiB",
    );
    check(
        "size = \"1GiB\"",
        "block_size = 1024",
        "c.toml:7: device.block_size = 1024: a block size is 512 or 4096",
    );
    check("size = \"1MiB\"", "size = 0", "c.toml:17: volume.size = 0: a volume is larger than 0");
    check(
        "size = \"1MiB\"",
        "size = \"16384TiB\"",
        "c.toml:17: volume.size = \"16384TiB\": \
         a volume has at most 4294967295 clusters of 4MiB",
    );
    check(
        "size = \"1MiB\"",
        "size = \"2GiB\"\nthin = false",
        "c.toml:17: volume.size = \"2GiB\": \
         a volume with thin = false fits its device, which has 1GiB",
    );
}

#[test]
fn bad_cluster_sizes_are_refused() {
    let cases = [
        ("\"4097B\"", "a cluster is a multiple of 4096 bytes, such as \"1MiB\""),
        ("0", "a cluster is a multiple of 4096 bytes, such as \"1MiB\""),
        ("\"4GiB\"", "a cluster is smaller than 4GiB"),
        ("\"2GiB\"", "a cluster of 2GiB does not fit the device's 1GiB"),
    ];
    for (size, rule) in cases {
        check(
            "device = \"disk0\"",
            &format!("device = \"disk0\"\ncluster_size = {size}"),
            &format!("c.toml:15: pool.cluster_size = {size}: {rule}"),
        );
    }
    check(
        "size = \"1GiB\"",
        "size = \"2MiB\"",
        "c.toml:12: pool.cluster_size: a cluster of 4MiB does not fit the device's 2MiB",
    );
}

#[test]
fn bad_names_are_refused() {
    let long = "x".repeat(64);
    let cases = [
        ("", "a name must not be empty"),
        ("..", "a name must not be \".\" or \"..\": volumes and pools are files and folders"),
        ("a/b", "a name must not contain '/' or NUL: volumes and pools are files and folders"),
        ("a\\u0000", "a name must not contain '/' or NUL: volumes and pools are files and folders"),
    ];
    for (name, rule) in cases {
        // The volume refers to the pool by its old name, so two problems are right.
        let message = refusal(&BASE.replace("name = \"pool0\"", &format!("name = \"{name}\"")));
        let first = message.lines().next().unwrap();
        assert_eq!(first, format!("c.toml:13: pool.name = \"{name}\": {rule}"));
    }
    check(
        "name = \"ram\"",
        &format!("name = \"{long}\""),
        &format!(
            "c.toml:9: device.name = \"{}...: a name has at most 63 bytes, this one has 64",
            "x".repeat(59)
        ),
    );
    for name in ["pool0", "pool0/a/b"] {
        check(
            "name = \"pool0/a\"",
            &format!("name = \"{name}\""),
            &format!(
                "c.toml:16: volume.name = \"{name}\": \
                 a volume is named \"pool/volume\", with one '/'"
            ),
        );
    }
    check(
        "name = \"pool0/a\"",
        "name = \"pool0/.\"",
        "c.toml:16: volume.name = \"pool0/.\": \
         a name must not be \".\" or \"..\": volumes and pools are files and folders",
    );
}

#[test]
fn duplicates_are_refused() {
    let twice = "this is already on line";
    check(
        "name = \"ram\"",
        "name = \"disk0\"",
        &format!("c.toml:9: device.name = \"disk0\": {twice} 4; each must be different"),
    );
    check(
        "driver = \"memory\"",
        "driver = \"file\"\npath = \"disk0.img\"",
        &format!("c.toml:11: device.path = \"disk0.img\": {twice} 6; each must be different"),
    );
    check(
        "[[volume]]",
        "[[pool]]\nname = \"pool0\"\ndevice = \"ram\"\n[[volume]]",
        &format!("c.toml:16: pool.name = \"pool0\": {twice} 13; each must be different"),
    );
    check(
        "[[volume]]",
        "[[volume]]\nname = \"pool0/a\"\nsize = \"1MiB\"\n[[volume]]",
        &format!("c.toml:19: volume.name = \"pool0/a\": {twice} 16; each must be different"),
    );
}

#[test]
fn references_must_lead_somewhere() {
    check(
        "device = \"disk0\"",
        "device = \"disk1\"",
        "c.toml:14: pool.device = \"disk1\": \
         no [[device]] has this name; there is \"disk0\", \"ram\"",
    );
    check(
        "name = \"pool0/a\"",
        "name = \"pool1/a\"",
        "c.toml:16: volume.name = \"pool1/a\": no [[pool]] has this name; there is \"pool0\"",
    );
    check(
        "[[pool]]\nname = \"pool0\"\ndevice = \"disk0\"\n",
        "",
        "c.toml:13: volume.name = \"pool0/a\": there is no [[pool]] in this file",
    );
    check(
        "[[volume]]",
        "[[pool]]\nname = \"pool1\"\ndevice = \"disk0\"\n[[volume]]",
        "c.toml:17: pool.device = \"disk0\": \
         the pool on line 12 is on this device; each needs one of its own",
    );
}

#[test]
fn keys_of_other_drivers_are_refused() {
    check(
        "size = \"64MiB\"",
        "size = \"64MiB\"\npath = \"x\"\nnamespace = 1",
        "c.toml:12: device.path = \"x\": only these drivers have this key: file, nvme-emulated\n\
         c.toml:13: device.namespace = 1: only these drivers have this key: nvme",
    );
    check(
        "driver = \"memory\"",
        "driver = \"nvme\"\npci = \"0000:01:00.0\"",
        "c.toml:12: device.size = \"64MiB\": \
         only these drivers have this key: file, memory, nvme-emulated",
    );
    check(
        "driver = \"memory\"\nsize = \"64MiB\"",
        "driver = \"nvme\"\npci = \"01:00.0\"",
        "c.toml:11: device.pci = \"01:00.0\": not a PCI address; \
         write it as lspci -D does, such as \"0000:01:00.0\"",
    );
    check(
        "driver = \"memory\"\nsize = \"64MiB\"",
        "driver = \"nvme\"\npci = \"0000:01:00.0\"\nnamespace = 0",
        "c.toml:12: device.namespace = 0: a namespace is numbered from 1 to 4294967294",
    );
}

#[test]
fn values_out_of_range_are_refused() {
    let cores = "it is \"all\", a number from 1 to 64, or a list of different CPUs, such as [2, 3]";
    for value in ["0", "65", "-1", "[]", "[1, 1]", "[-1]", "[100000]"] {
        check(
            "[mount]",
            &format!("[reactor]\ncores = {value}\n[mount]"),
            &format!("c.toml:2: reactor.cores = {value}: {cores}"),
        );
    }
    for value in ["\"1MiB\"", "\"65GiB\""] {
        check(
            "[mount]",
            &format!("[reactor]\ndma_memory = {value}\n[mount]"),
            &format!("c.toml:2: reactor.dma_memory = {value}: it is from \"4MiB\" to \"64GiB\""),
        );
    }
    for value in ["\"1ms\"", "\"11min\""] {
        check(
            "device = \"disk0\"",
            &format!("device = \"disk0\"\ncommit_interval = {value}"),
            &format!("c.toml:15: pool.commit_interval = {value}: it is from \"10ms\" to \"10min\""),
        );
    }
    for value in ["\"10ms\"", "\"11min\""] {
        check(
            "[[device]]",
            &format!(
                "[[device]]\nname = \"n\"\ndriver = \"nvme\"\npci = \"0000:01:00.0\"\n\
                 io_timeout = {value}\n[[device]]"
            ),
            &format!("c.toml:7: device.io_timeout = {value}: it is from \"1s\" to \"10min\""),
        );
    }
    check(
        "path = \"mnt\"",
        "path = \"mnt\"\nmode = 0o1777",
        "c.toml:3: mount.mode = 0o1777: permission bits are from 0o000 to 0o777, such as 0o640",
    );
}

#[test]
fn bad_paths_are_refused() {
    check("path = \"mnt\"", "path = \"\"", "c.toml:2: mount.path = \"\": a path must not be empty");
    check(
        "path = \"disk0.img\"",
        "path = \"a\\u0000b\"",
        "c.toml:6: device.path = \"a\\u0000b\": a path must not contain NUL",
    );
    let long = "s".repeat(101);
    let message = refusal(&format!("[control]\nsocket = \"{long}\"\n{BASE}"));
    assert!(message.starts_with("c.toml:2: control.socket = \"sss"), "{message}");
    assert!(message.ends_with("has at most 100 bytes, this one has 101"), "{message}");
}

#[test]
fn all_problems_are_told_at_once_and_in_order() {
    let text = BASE
        .replace("path = \"mnt\"", "path = \"\"")
        .replace("device = \"disk0\"", "device = \"disk9\"")
        .replace("size = \"1MiB\"", "size = 0");
    let lines: Vec<String> =
        refusal(&text).lines().map(|line| line.split(':').nth(1).unwrap().to_owned()).collect();
    assert_eq!(lines, ["2", "14", "17"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let error = Config::load(&path).unwrap_err();
    let expected = format!("cannot read the configuration file {}", path.display());
    assert_eq!(error.to_string(), expected);
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(Config::load(&path).unwrap_err().to_string(), expected);
    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::TooLong { .. })));
    std::fs::write(&path, BASE).unwrap();
    Config::load(&path).unwrap();
}

/// Whatever the text, the answer is a configuration or a list of problems within the text.
#[test]
fn any_damage_is_answered() {
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..3000 {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..128);
        }
        let text = String::from_utf8(bytes).unwrap();
        if let Err(ConfigError::Invalid { problems, .. }) = parse(&text) {
            let lines = text.lines().count();
            assert!(!problems.is_empty(), "round {round}");
            assert!(
                problems.iter().all(|problem| (1..=lines + 1).contains(&problem.line)),
                "round {round}: {problems:?}"
            );
        }
    }
}

/// A target with one subsystem, after the base.
const TARGET: &str = r#"[target]
listen = ["127.0.0.1:4420", "[::1]:4420"]
[[target.subsystem]]
nqn = "nqn.2026-11.io.lvolfs:a"
namespaces = [{ volume = "pool0/a", nsid = 1 }]
"#;

#[test]
fn a_target_is_taken() {
    let config = parse(&format!(
        "{BASE}{TARGET}hosts = [\"nqn.2026-11.io.lvolfs:host\"]\nallow_any_host = true\n\
         ana = true\nmax_namespaces = 4\nserial = \"S1\"\nmodel = \"M1\"\n\
         [[target.subsystem]]\nnqn = \"nqn.2026-11.io.lvolfs:b\"\nlisten = []\n\
         namespaces = [{{ volume = \"pool0/b\", nsid = 7, ana_group = 2, hosts = [] }}]\n"
    ));
    let target = config.unwrap().target.unwrap();
    assert_eq!(target.state_dir, Path::new("var/target"));
    let [a, b] = target.subsystems.as_slice() else { panic!("{target:?}") };
    assert_eq!(a.listen, target.listen);
    assert_eq!((a.serial.as_str(), a.model.as_str(), a.max_namespaces), ("S1", "M1", 4));
    assert!(a.ana && a.allow_any_host && a.hosts == ["nqn.2026-11.io.lvolfs:host"]);
    assert_eq!((a.namespaces[0].ana_group, &a.namespaces[0].hosts), (1, &None));
    assert!(b.listen.is_empty() && !b.allow_any_host && !b.ana);
    assert_eq!((b.namespaces[0].ana_group, &b.namespaces[0].hosts), (2, &Some(vec![])));
    assert!(parse(BASE).unwrap().target.is_none(), "no section, no target");
}

#[test]
fn an_exported_volume_is_not_cached() {
    let exported = format!("{BASE}{TARGET}");
    parse(&exported).unwrap();
    let why = "target.subsystem.namespaces.volume = \"pool0/a\": the mount keeps what is written";
    let mount = exported.replacen("path = \"mnt\"", "path = \"mnt\"\ncache = \"writeback\"", 1);
    let message = refusal(&mount);
    assert!(message.contains(why) && message.contains("cache = \"direct\""), "{message}");
    let own = |text: &str, cache| {
        text.replacen("size = \"1MiB\"", &format!("size = \"1MiB\"\ncache = \"{cache}\""), 1)
    };
    parse(&own(&mount, "direct")).unwrap();
    let message = refusal(&own(&exported, "writeback"));
    assert!(message.contains(why), "{message}");
    assert_eq!(parse(&exported).unwrap().mount.cache, Cache::Direct);
}

#[test]
fn a_bad_target_is_refused() {
    let check = |from: &str, to: &str, expected: &str| {
        assert!(TARGET.contains(from), "{from:?} is not in the target");
        let message = refusal(&format!("{BASE}{}", TARGET.replacen(from, to, 1)));
        assert!(message.contains(expected), "{from:?} -> {to:?}: {message}");
    };
    check(
        "127.0.0.1:4420",
        "localhost",
        "c.toml:19: target.listen = \"localhost\": an address and a port",
    );
    check("127.0.0.1:4420", "127.0.0.1:0", "a port is from 1 to 65535");
    check("127.0.0.1:4420", "[::1]:4420", "this address is there twice");
    check(
        "nqn.2026-11.io.lvolfs:a",
        "demo",
        "c.toml:21: target.subsystem.nqn = \"demo\": an NQN begins with",
    );
    check("nqn = \"nqn.2026-11.io.lvolfs:a\"", "", "the key \"nqn\" is missing");
    let discovery = "nqn.2014-08.org.nvmexpress.discovery";
    check("nqn.2026-11.io.lvolfs:a", discovery, "the discovery subsystem is always there");
    check("pool0/a", "pool1/a", "no [[pool]] has this name");
    check("pool0/a", "a", "a volume is named \"pool/volume\"");
    check("nsid = 1", "nsid = 0", "it is from 1 to 32");
    check(", nsid = 1", "", "the key \"nsid\" is missing");
    check("nsid = 1", "nsid = 1, ana_group = 33", "it is from 1 to 32");
    check("nsid = 1 }", "nsid = 1 }, { volume = \"pool0/b\", nsid = 1 }", "has this NSID");
    check("nsid = 1 }", "nsid = 1 }, { volume = \"pool0/a\", nsid = 2 }", "each must be different");
    check("[target]", "[[target]]", "this section is there once");
    check("[[target.subsystem]]", "[[target.subsystem]]\nserial = \"\"", "1 to 20 printable");
    check("[[target.subsystem]]", "[[target.subsystem]]\nmax_namespaces = 1025", "from 1 to 1024");
    check(
        "[[target.subsystem]]",
        "[[target.subsystem]]\nhosts = [\"x\"]",
        "target.subsystem.hosts = \"x\"",
    );
    check(
        "[[target.subsystem]]",
        "[[target.subsystem]]\nnamespace = []",
        "did you mean \"namespaces\"",
    );
}
