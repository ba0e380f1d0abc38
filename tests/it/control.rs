//! The control plane over a real socket, with a service that is not a daemon.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use lvolfs::control::codec::REQUEST_BYTES_LIMIT;
use lvolfs::control::server::CONNECTIONS_LIMIT;
use lvolfs::control::status::{Counters, Health, PoolStatus, Status, VolumeStatus};
use lvolfs::control::types::{
    Bdev, BdevIostat, CreateLvol, CreateLvstore, GetBdevs, GetIostat, GetLvols, Iostat,
    KillInstance, Lvol, LvolPool, Lvstore, NoParameters, PoolSelector, RenameLvol, RenameLvstore,
    ResizeLvol, SelectLvol, SelectLvstore,
};
use lvolfs::control::{
    BdevMethods, Client, ClientError, LvolMethods, LvstoreMethods, ProcessMethods, RpcError,
    Server, Service, SocketError,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// Answers with what it was asked.
struct Echo {
    /// Two requests must be in progress at a time for `bdev_lvol_set_read_only` to be answered.
    together: Barrier,
}

/// One volume, `p/v`, in one pool.
#[must_use]
pub(crate) fn echo() -> Arc<dyn Service> {
    Arc::new(Echo { together: Barrier::new(2) })
}

fn no_such_device() -> RpcError {
    RpcError::errno(libc::ENODEV)
}

impl Service for Echo {
    fn bdev(&self) -> Option<&dyn BdevMethods> {
        Some(self)
    }

    fn lvol(&self) -> Option<&dyn LvolMethods> {
        Some(self)
    }

    fn lvstore(&self) -> Option<&dyn LvstoreMethods> {
        Some(self)
    }

    fn process(&self) -> Option<&dyn ProcessMethods> {
        Some(self)
    }
}

impl BdevMethods for Echo {
    fn bdev_get_bdevs(&self, parameters: GetBdevs) -> Result<Vec<Bdev>, RpcError> {
        let bdev = Bdev {
            name: Uuid::from_u128(2).to_string(),
            aliases: vec!["p/v".to_owned()],
            product_name: "Logical Volume".to_owned(),
            block_size: 4096,
            num_blocks: 1024,
            uuid: Uuid::from_u128(2),
            ..Default::default()
        };
        match parameters.name.as_deref() {
            None | Some("p/v") => Ok(vec![bdev]),
            Some(_) => Err(no_such_device()),
        }
    }

    fn bdev_get_iostat(&self, _: GetIostat) -> Result<Iostat, RpcError> {
        let bdevs = vec![BdevIostat { num_flush_ops: 3, ..Default::default() }];
        Ok(Iostat { tick_rate: 1_000_000_000, ticks: 1, bdevs })
    }
}

impl LvolMethods for Echo {
    fn bdev_lvol_get_lvstores(&self, parameters: SelectLvstore) -> Result<Vec<Lvstore>, RpcError> {
        match parameters.at_most_one()? {
            Some(PoolSelector::Name(name)) if name != "p" => Err(no_such_device()),
            _ => Ok(vec![Lvstore {
                name: "p".to_owned(),
                base_bdev: "d".to_owned(),
                total_data_clusters: 1000,
                free_clusters: 999,
                block_size: 4096,
                cluster_size: 1 << 20,
                max_growable_size: 1 << 40,
                uuid: Uuid::from_u128(1),
            }]),
        }
    }

    fn bdev_lvol_create(&self, parameters: CreateLvol) -> Result<Uuid, RpcError> {
        parameters.pool()?;
        let size = parameters.size()?;
        if size.get() > 1 << 30 {
            return Err(RpcError::operation_failed(libc::ENOSPC));
        }
        Ok(Uuid::from_u128(size.get().into()))
    }

    fn bdev_lvol_rename(&self, _: RenameLvol) -> Result<bool, RpcError> {
        Ok(true)
    }

    fn bdev_lvol_resize(&self, parameters: ResizeLvol) -> Result<bool, RpcError> {
        parameters.size().map(|_| true)
    }

    fn bdev_lvol_set_read_only(&self, _: SelectLvol) -> Result<bool, RpcError> {
        self.together.wait();
        Ok(true)
    }

    fn bdev_lvol_delete(&self, parameters: SelectLvol) -> Result<bool, RpcError> {
        assert_ne!(parameters.name, "panic", "a request that panics");
        Ok(true)
    }

    fn bdev_lvol_get_lvols(&self, parameters: GetLvols) -> Result<Vec<Lvol>, RpcError> {
        parameters.pool()?;
        Ok(vec![Lvol {
            alias: "p/v".to_owned(),
            name: "v".to_owned(),
            is_thin_provisioned: true,
            num_allocated_clusters: 1,
            lvs: LvolPool { name: "p".to_owned(), uuid: Uuid::from_u128(1) },
            uuid: Uuid::from_u128(2),
            ..Default::default()
        }])
    }
}

impl LvstoreMethods for Echo {
    fn bdev_lvol_create_lvstore(&self, parameters: CreateLvstore) -> Result<Uuid, RpcError> {
        Ok(Uuid::from_u128(parameters.cluster_sz.unwrap_or_default().into()))
    }

    fn bdev_lvol_rename_lvstore(&self, _: RenameLvstore) -> Result<bool, RpcError> {
        Ok(true)
    }

    fn bdev_lvol_grow_lvstore(&self, parameters: SelectLvstore) -> Result<bool, RpcError> {
        parameters.exactly_one().map(|_| true)
    }

    fn bdev_lvol_delete_lvstore(&self, parameters: SelectLvstore) -> Result<bool, RpcError> {
        parameters.exactly_one().map(|_| true)
    }
}

impl ProcessMethods for Echo {
    fn spdk_kill_instance(&self, _: KillInstance) -> Result<bool, RpcError> {
        Ok(true)
    }

    fn lvolfs_status(&self, _: NoParameters) -> Result<Status, RpcError> {
        Ok(Status {
            version: "0".to_owned(),
            pid: std::process::id(),
            uptime_seconds: 3723,
            reactors: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            pools: vec![PoolStatus {
                name: "p".to_owned(),
                uuid: Uuid::from_u128(1),
                device: "d".to_owned(),
                health: Health::Poisoned { reason: "a flush failed".to_owned() },
                cluster_size: 1 << 20,
                total_clusters: 1000,
                free_clusters: 999,
                space: "ok".to_owned(),
                allocated: 1 << 20,
                provisioned: 4 << 20,
                reserved: 0,
                torn_writes: "journal".to_owned(),
                counters: [("commits".to_owned(), 5)].into(),
                volumes: vec![VolumeStatus {
                    name: "v".to_owned(),
                    uuid: Uuid::from_u128(2),
                    health: Health::Ok,
                    size: 4 << 20,
                    allocated: 1 << 20,
                    thin: true,
                    reserve: 0,
                    waits_for_space: false,
                    read_only: false,
                    parent: None,
                    external_parent: Some("golden/base".to_owned()),
                    counters: Counters::default(),
                }],
            }],
        })
    }
}

struct Running {
    server: Server,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.sock");
    let server = Server::start(&path, echo()).unwrap();
    Running { server, path, _folder: folder }
}

impl Running {
    fn connect(&self) -> Connection {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Connection(BufReader::new(stream))
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }
}

struct Connection(BufReader<UnixStream>);

impl Connection {
    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, text: &str) -> Value {
        self.send(text);
        self.answer()
    }

    fn closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn error(id: impl Into<Value>, code: i64, message: &str) -> Value {
    let id: Value = id.into();
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

#[test]
fn requests_are_answered_as_spdk_does() {
    let running = start();
    let mut connection = running.connect();
    let answer = connection.ask(r#"{"jsonrpc":"2.0","id":1,"method":"bdev_lvol_get_lvstores"}"#);
    assert_eq!(answer["result"][0]["total_data_clusters"], 1000);
    assert_eq!((&answer["id"], &answer["jsonrpc"]), (&json!(1), &json!("2.0")));
    // What spdk-csi and Cinder send.
    let answer = connection.ask(
        r#"{"id":2,"method":"bdev_lvol_create","params":{"lvol_name":"v","size":4096,
           "lvs_name":"p","clear_method":"unmap","thin_provision":true}}"#,
    );
    assert_eq!(answer["result"], "00000000-0000-0000-0000-000000001000");
    let answer = connection.ask(
        r#"{"id":3,"method":"bdev_lvol_create","params":{"lvol_name":"v","size_in_mib":2048,
           "lvs_name":"p"}}"#,
    );
    assert_eq!(answer, error(3, -32602, "No space left on device"));
    let answer = connection.ask(r#"{"id":"x","method":"bdev_get_bdevs","params":{"name":"q"}}"#);
    assert_eq!(answer, error("x", -19, "No such device"));
    let answer = connection
        .ask(r#"{"id":4,"method":"bdev_lvol_create","params":{"lvol_name":"v","size":1}}"#);
    assert_eq!(answer, error(4, -22, "Invalid argument: one of uuid and lvs_name"));
    // No identity is answered too, with none.
    let answer = connection.ask(
        r#"{"method":"bdev_lvol_rename",
        "params":{"old_name":"p/v","new_name":"w"}}"#,
    );
    assert_eq!(answer, json!({"jsonrpc": "2.0", "id": null, "result": true}));
}

#[test]
fn the_methods_are_listed() {
    let running = start();
    let mut connection = running.connect();
    let answer = connection.ask(r#"{"id":1,"method":"rpc_get_methods","params":{"current":true}}"#);
    let expected = [
        "bdev_get_bdevs",
        "bdev_get_iostat",
        "bdev_lvol_create",
        "bdev_lvol_create_lvstore",
        "bdev_lvol_delete",
        "bdev_lvol_delete_lvstore",
        "bdev_lvol_get_lvols",
        "bdev_lvol_get_lvstores",
        "bdev_lvol_grow_lvstore",
        "bdev_lvol_rename",
        "bdev_lvol_rename_lvstore",
        "bdev_lvol_resize",
        "bdev_lvol_set_read_only",
        "lvolfs_status",
        "rpc_get_methods",
        "spdk_get_version",
        "spdk_kill_instance",
    ];
    assert_eq!(answer["result"], json!(expected));
    let answer = connection.ask(r#"{"id":1,"method":"spdk_get_version"}"#);
    assert!(answer["result"]["version"].as_str().unwrap().starts_with("lvolfs v"));
}

#[test]
fn errors_have_their_codes() {
    let running = start();
    let mut connection = running.connect();
    let answer = connection.ask(r#"{"id":1,"method":"bdev_frobnicate"}"#);
    assert_eq!(answer, error(1, -32601, "Method not found"));
    let answer = connection.ask(r#"{"id":1,"method":"spdk_get_version","params":{"a":1}}"#);
    assert_eq!(answer["error"]["code"], -32602);
    assert_eq!(connection.ask(r#"{"id":1}"#), error(1, -32600, "Invalid request"));
    assert_eq!(connection.ask("[]"), error(Value::Null, -32600, "Invalid request"));
    assert_eq!(connection.ask("5 "), error(Value::Null, -32600, "Invalid request"));
    let answer =
        connection.ask(r#"{"id":1,"method":"bdev_lvol_delete","params":{"name":"panic"}}"#);
    assert_eq!(answer, error(1, -32603, "Internal error: the request ended in a panic"));
    // The connection has survived all of that.
    let answer = connection.ask(r#"{"id":2,"method":"bdev_lvol_delete","params":{"name":"v"}}"#);
    assert_eq!(answer["result"], true);
}

#[test]
fn what_is_not_json_is_answered_and_ends_the_connection() {
    let running = start();
    for text in ["{]", "nonsense ", "\u{0}\u{1} ", "}"] {
        let mut connection = running.connect();
        assert_eq!(connection.ask(text), error(Value::Null, -32700, "Parse error"), "{text:?}");
        assert!(connection.closed(), "{text:?}");
    }
    // Half a request is no JSON either when the client says that there is no more.
    let mut connection = running.connect();
    connection.send(r#"{"id":1,"#);
    connection.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(connection.answer(), error(Value::Null, -32700, "Parse error"));
    assert!(connection.closed());
}

#[test]
fn a_request_that_is_too_long_ends_its_connection_only() {
    let running = start();
    let mut other = running.connect();
    let mut connection = running.connect();
    let text = format!("[\"{}", "x".repeat(REQUEST_BYTES_LIMIT - 2));
    let answer = connection.ask(&text);
    assert_eq!(answer, error(Value::Null, -32600, "Invalid request: it is too long"));
    assert!(connection.closed());
    assert_eq!(other.ask(r#"{"id":1,"method":"nothing"}"#)["error"]["code"], -32601);
    // One that just fits is fine.
    let front = r#"{"id":1,"method":"nothing","params":["#;
    let fill = REQUEST_BYTES_LIMIT - front.len() - 4;
    let text = format!("{front}\"{}\"]}}", "x".repeat(fill));
    assert_eq!(text.len(), REQUEST_BYTES_LIMIT);
    assert_eq!(other.ask(&text)["error"]["code"], -32601);
}

#[test]
fn requests_come_in_any_pieces_and_several_at_once() {
    let running = start();
    let mut connection = running.connect();
    let one = r#"{"id":1,"method":"nothing","params":{"a":"\"}{"}}"#;
    for byte in one.bytes() {
        connection.0.get_mut().write_all(&[byte]).unwrap();
    }
    assert_eq!(connection.answer()["id"], 1);
    let many: String =
        (0..500).map(|id| format!("{{\"id\":{id},\"method\":\"nothing\"}}")).collect();
    connection.send(&many);
    let mut ids: Vec<i64> = (0..500).map(|_| connection.answer()["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..500));
}

#[test]
fn batches_are_answered_by_one_array() {
    let running = start();
    let mut connection = running.connect();
    let answer = connection
        .ask(r#"[{"id":1,"method":"nothing"},{"id":2,"method":"bdev_lvol_get_lvols"},7]"#);
    let mut answers = answer.as_array().unwrap().clone();
    answers.sort_by_key(|answer| answer["id"].as_i64());
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["error"]["code"], -32600);
    assert_eq!(answers[1]["error"]["code"], -32601);
    assert_eq!(answers[2]["result"][0]["alias"], "p/v");
    let answer = connection.ask(r#"[{"id":1,"method":"nothing"}]"#);
    assert_eq!(answer.as_array().map(Vec::len), Some(1));
    let long = format!("[{}0]", "0,".repeat(300));
    assert_eq!(connection.ask(&long)["error"]["code"], -32600);
}

/// Each of the two is answered only when the other one is in progress as well.
#[test]
fn two_requests_of_one_connection_are_in_progress_at_a_time() {
    let running = start();
    let mut connection = running.connect();
    let request = |id| {
        json!({"id": id, "method": "bdev_lvol_set_read_only", "params": {"name": "v"}}).to_string()
    };
    connection.send(&request(1));
    connection.send(&request(2));
    assert_eq!(connection.answer()["result"], true);
    assert_eq!(connection.answer()["result"], true);
}

#[test]
fn many_clients_at_a_time() {
    let running = start();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = running.client();
                for _ in 0..50 {
                    let pools = client.bdev_lvol_get_lvstores(&SelectLvstore::default()).unwrap();
                    assert_eq!(pools[0].name, "p");
                }
            });
        }
    });
}

#[test]
fn connections_have_a_limit_and_are_given_back() {
    let running = start();
    let mut open: Vec<Connection> = (0..CONNECTIONS_LIMIT).map(|_| running.connect()).collect();
    let ask = |connection: &mut Connection| connection.ask(r#"{"id":1,"method":"nothing"}"#);
    for connection in &mut open {
        ask(connection);
    }
    assert!(running.connect().closed());
    // Half of them leave; the server notices in its own time.
    open.truncate(CONNECTIONS_LIMIT / 2);
    let again = (0..10_000).find_map(|_| {
        let mut connection = running.connect();
        connection.0.get_mut().write_all(br#"{"id":1,"method":"nothing"}"#).ok()?;
        let mut line = String::new();
        connection.0.read_line(&mut line).ok().filter(|_| !line.is_empty())
    });
    assert!(again.is_some(), "no room again");
    for connection in &mut open {
        ask(connection);
    }
}

#[test]
fn the_client_tells_what_went_wrong() {
    let running = start();
    let mut client = running.client();
    let status = client.lvolfs_status(&NoParameters {}).unwrap();
    assert_eq!(status.pools[0].health.reason(), Some("a flush failed"));
    let select = GetBdevs { name: Some("q".to_owned()), timeout: None };
    let refused = client.bdev_get_bdevs(&select).unwrap_err();
    assert_eq!(refused.to_string(), "bdev_get_bdevs: No such device (code -19)");
    let raw: Value = client.call("spdk_get_version", &Value::Null).unwrap();
    assert!(raw["fields"]["major"].is_number());
    let wrong = client.call::<_, u64>("spdk_get_version", &Value::Null).unwrap_err();
    assert!(matches!(wrong, ClientError::BadAnswer { .. }), "{wrong}");

    let Running { server, path, _folder } = running;
    server.stop();
    let gone = client.lvolfs_status(&NoParameters {}).unwrap_err();
    assert!(matches!(gone, ClientError::NoAnswer { .. }), "{gone}");
    let unreachable = Client::connect(&path).unwrap_err();
    assert!(unreachable.to_string().contains("c.sock"), "{unreachable}");
}

#[test]
fn stopping_answers_what_is_in_progress_and_removes_the_socket() {
    let running = start();
    let mut connection = running.connect();
    let (sender, stopped) = mpsc::channel();
    let request = |id| {
        json!({"id": id, "method": "bdev_lvol_set_read_only", "params": {"name": "v"}}).to_string()
    };
    // Both requests are in progress or queued before the server is told to stop: an answer to
    // a later request on the same connection says that they have been read.
    connection.send(&request(1));
    assert_eq!(connection.ask(r#"{"id":0,"method":"nothing"}"#)["id"], 0);
    let Running { server, path, _folder } = running;
    connection.send(&request(2));
    assert!(connection.ask(r#"{"id":3,"method":"nothing"}"#)["id"].is_number());
    let stopping = std::thread::spawn(move || {
        server.stop();
        sender.send(()).unwrap();
    });
    stopped.recv_timeout(Duration::from_secs(60)).unwrap();
    stopping.join().unwrap();
    let mut rest = String::new();
    connection.0.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.lines().count(), 2, "{rest}");
    assert!(!path.exists());
}

#[test]
fn a_socket_in_use_is_not_taken() {
    let running = start();
    let second = Server::start(&running.path, echo()).unwrap_err();
    assert!(matches!(second, SocketError::InUse { .. }));
    let message = second.to_string();
    assert!(message.contains("c.sock is in use by another process"), "{message}");
    running.client().lvolfs_status(&NoParameters {}).unwrap();
}

#[test]
fn every_method_is_documented() {
    let page = include_str!("../../docs/operations.md");
    for name in lvolfs::control::methods::SERVICE_METHODS.iter().copied().flatten() {
        assert!(page.contains(&format!("\n| `{name}` | ")), "{name} is not in the table");
    }
}
