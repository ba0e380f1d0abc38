//! Connect with every refusal, properties, reset, shutdown, keep alive.

use std::time::Duration;

use lvolfs::nvmf::model::{Listener, NewSubsystem};
use lvolfs::nvmf::pdu::Digests;
use lvolfs::spec::command::{AdminOpcode, Feature, SubmissionEntry};
use lvolfs::spec::fabrics::{DISCOVERY_NQN, DYNAMIC_CONTROLLER};
use lvolfs::spec::register;
use lvolfs::spec::status::StatusCode;
use lvolfs::units::QueueId;
use zerocopy::IntoBytes;

use super::exported;
use super::host::{Host, Identity};
use super::rig::{HOST, ONE, STRANGER, SUBSYSTEM, local, with_rig};

/// Tries to connect; status code, dword 0, and whether trying again makes sense.
macro_rules! refused {
    ($rig:expr, $entry:expr, $data:expr) => {{
        let mut host = $rig.initialized().await;
        let answer = host.run($entry, $data, 0).await;
        (answer.status().code().0, answer.result(), answer.status().is_final())
    }};
}

#[test]
fn connect_is_refused_for_every_reason() {
    with_rig(async |rig| {
        let identity = rig.identity();
        let admin =
            |entries, keep_alive| SubmissionEntry::connect(QueueId(0), entries, 0, keep_alive);
        let good = identity.data(DYNAMIC_CONTROLLER);
        let mut format = admin(32, 0);
        format.dword10.set(1);
        assert_eq!(refused!(rig, format, good.as_bytes()), (0x180, 0, true));
        assert_eq!(refused!(rig, admin(32, 0), &good.as_bytes()[..1020]), (0x00f, 0, true));
        assert_eq!(refused!(rig, admin(32, 0), &[]), (0x00f, 0, true));
        let change = |change: &dyn Fn(&mut lvolfs::spec::fabrics::ConnectData)| {
            let mut data = good;
            change(&mut data);
            data
        };
        let data = |offset: u32| (0x182, offset | 1 << 16, true);
        let unended = change(&|data| data.subsystem_nqn.fill(b'n'));
        assert_eq!(refused!(rig, admin(32, 0), unended.as_bytes()), data(256));
        let unended = change(&|data| data.host_nqn.fill(b'n'));
        assert_eq!(refused!(rig, admin(32, 0), unended.as_bytes()), data(512));
        let nobody = change(&|data| data.host_id.fill(0));
        assert_eq!(refused!(rig, admin(32, 0), nobody.as_bytes()), data(0));
        let unknown = Identity::new("nqn.2026-11.io.lvolfs:none", HOST).data(DYNAMIC_CONTROLLER);
        assert_eq!(refused!(rig, admin(32, 0), unknown.as_bytes()), data(256));
        let stranger = Identity::new(SUBSYSTEM, STRANGER).data(DYNAMIC_CONTROLLER);
        assert_eq!(refused!(rig, admin(32, 0), stranger.as_bytes()), (0x184, 0, true));
        for entries in [1, 129, 65_536] {
            assert_eq!(refused!(rig, admin(entries, 0), good.as_bytes()), (0x182, 44, true));
        }
        assert_eq!(refused!(rig, admin(32, 0), identity.data(7).as_bytes()), data(16));

        let mut connected = rig.connect().await;
        let io = |queue| SubmissionEntry::connect(QueueId(queue), 128, 0, 0);
        let id = connected.id;
        let join = identity.data(id);
        assert_eq!(refused!(rig, io(2), identity.data(id + 1).as_bytes()), data(16));
        let other = Identity::new(DISCOVERY_NQN, HOST).data(id);
        assert_eq!(refused!(rig, io(2), other.as_bytes()), data(16));
        let other = Identity::new(SUBSYSTEM, STRANGER).data(id);
        assert_eq!(refused!(rig, io(2), other.as_bytes()), data(512));
        let other = Identity { id: [8; 16], ..identity.clone() }.data(id);
        assert_eq!(refused!(rig, io(2), other.as_bytes()), data(0));
        assert_eq!(refused!(rig, io(65), join.as_bytes()), (0x182, 42, true));
        assert_eq!(refused!(rig, io(1), join.as_bytes()), (0x101, 0, false));
        // A queue is connected once.
        let again = connected.io.run(io(2), join.as_bytes(), 0).await;
        again.is(StatusCode::COMMAND_SEQUENCE_ERROR);
        connected.admin.set_configuration(0).await;
        assert_eq!(refused!(rig, io(2), join.as_bytes()), (0x182, 42, true));
        let mut discovery = rig.initialized().await;
        let to_discovery = Identity::new(DISCOVERY_NQN, HOST);
        let id = discovery.connect_admin(&to_discovery, 0).await;
        assert_eq!(refused!(rig, io(1), to_discovery.data(id).as_bytes()), (0x182, 42, true));
    });
}

/// What depends on the way, and on what the controller is doing.
#[test]
fn connect_is_refused_for_now_or_through_here() {
    with_rig(async |rig| {
        let good = rig.identity().data(DYNAMIC_CONTROLLER);
        let admin = SubmissionEntry::connect(QueueId(0), 32, 0, 0);
        // Through an address that the subsystem does not listen on.
        let elsewhere = "127.0.0.1:4421".parse().unwrap();
        let stream = exported::connect_through(&rig.service, elsewhere);
        let mut host = Host::initialize(stream, Digests::default(), 0).await;
        let answer = host.run(admin, good.as_bytes(), 0).await;
        answer.is(StatusCode::CONNECT_INVALID_HOST);
        assert!(answer.status().is_final());

        // A subsystem that can have one controller: another may come later.
        let narrow = "nqn.2026-11.io.lvolfs:narrow";
        let new = NewSubsystem { max_cntlid: 1, ..NewSubsystem::named(narrow) };
        rig.model.create_subsystem(new).unwrap();
        rig.model.add_host(narrow, HOST).unwrap();
        let (state, groups) = (Default::default(), Default::default());
        rig.model.add_listener(narrow, Listener { address: local(), state, groups }).unwrap();
        let identity = Identity::new(narrow, HOST);
        let mut first = rig.initialized().await;
        assert_eq!(first.connect_admin(&identity, 0).await, 1);
        let data = identity.data(DYNAMIC_CONTROLLER);
        assert_eq!(refused!(rig, admin, data.as_bytes()), (0x181, 0, false), "busy");
        drop(first);
        let mut next = rig.initialized().await;
        assert_eq!(next.connect_admin(&identity, 0).await, 1);

        // I/O queues of a controller that granted fewer, that shuts down, and that is gone.
        let mut connected = rig.connect().await;
        let io = SubmissionEntry::connect(QueueId(2), 128, 0, 0);
        let join = rig.identity().data(connected.id);
        drop(connected.io);
        rig.served.reactor.sleep(Duration::from_millis(10)).await;
        let one = SubmissionEntry::set_features(Feature::NUMBER_OF_QUEUES, 0);
        connected.admin.plain(one).await.ok();
        assert_eq!(refused!(rig, io, join.as_bytes()), (0x182, 42, true), "one was granted");
        connected.admin.set_configuration(0x0046_4001).await;
        let first = SubmissionEntry::connect(QueueId(1), 128, 0, 0);
        assert_eq!(refused!(rig, first, join.as_bytes()), (0x182, 42, true), "shut down");
        drop(connected.admin);
        rig.served.reactor.sleep(Duration::from_millis(10)).await;
        assert_eq!(refused!(rig, first, join.as_bytes()), (0x182, 16 | 1 << 16, true), "gone");
    });
}

#[test]
fn nothing_but_connect_comes_first() {
    with_rig(async |rig| {
        let first = [
            SubmissionEntry::property_get(register::CAP, true),
            SubmissionEntry::get_features(Feature::KEEP_ALIVE_TIMER),
            SubmissionEntry::flush(ONE),
        ];
        for entry in first {
            let mut host = rig.initialized().await;
            host.plain(entry).await.is(StatusCode::COMMAND_SEQUENCE_ERROR);
        }
        // Connected, but not enabled.
        let mut host = rig.initialized().await;
        let entry = SubmissionEntry::connect(QueueId(0), 32, 0, 0);
        let data = rig.identity().data(DYNAMIC_CONTROLLER);
        host.run(entry, data.as_bytes(), 0).await.ok();
        let mut keep_alive = SubmissionEntry::async_event_request();
        keep_alive.opcode = AdminOpcode::KEEP_ALIVE.0;
        host.plain(keep_alive).await.is(StatusCode::COMMAND_SEQUENCE_ERROR);
    });
}

#[test]
fn properties() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let admin = &mut connected.admin;
        let cap = admin.plain(SubmissionEntry::property_get(register::CAP, true)).await.ok();
        let value = u64::from(cap.result()) | u64::from(cap.completion.result_high.get()) << 32;
        let capabilities = register::Capabilities(value);
        assert_eq!(capabilities.max_queue_entries(), 128);
        assert!(capabilities.contiguous_queues() && capabilities.command_sets() & 1 == 1);
        assert_eq!(admin.property(register::CAP).await, value as u32);
        assert_eq!(admin.property(4).await, (value >> 32) as u32);
        assert_eq!(admin.property(register::VS).await, 0x0002_0000);
        assert_eq!(admin.property(register::CC).await, 0x0046_0001);
        let refused = [
            SubmissionEntry::property_get(register::VS, true),
            SubmissionEntry::property_get(0x0c, false),
            SubmissionEntry::property_get(0x1000, false),
            SubmissionEntry::property_set(register::CSTS, false, 1),
            SubmissionEntry::property_set(register::CC, true, 0),
            // A page size and entry sizes that there are not.
            SubmissionEntry::property_set(register::CC, false, 0x0046_0081),
        ];
        for entry in refused {
            admin.plain(entry).await.is(StatusCode::INVALID_FIELD);
        }
        let on_io = connected.io.plain(SubmissionEntry::property_get(register::VS, false)).await;
        on_io.is(StatusCode::INVALID_FIELD);
        let mut auth = SubmissionEntry::property_get(0, false);
        auth.namespace.set(6);
        connected.admin.plain(auth).await.is(StatusCode::INVALID_OPCODE);
    });
}

#[test]
fn reset_and_shutdown_drop_io_queues_first() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let admin = &mut connected.admin;
        admin.set_configuration(0x0046_0000).await;
        assert_eq!(connected.io.end().await, None);
        assert_eq!(admin.property(register::CSTS).await, 0);
        admin.set_configuration(0x0046_0001).await;
        assert_eq!(admin.property(register::CSTS).await, 1);
        let mut io = rig.io_queue(connected.id, 1, Digests::default(), 0, true).await;
        io.plain(SubmissionEntry::flush(ONE)).await.ok();
        // SHN normal.
        admin.set_configuration(0x0046_4001).await;
        assert_eq!(io.end().await, None);
        assert_eq!(admin.property(register::CSTS).await, 1 | 2 << 2);
        // The end of the admin queue is the end of the controller.
        assert_eq!(rig.target.controllers().len(), 1);
        drop(connected);
        rig.served.reactor.sleep(Duration::from_millis(300)).await;
        assert!(rig.target.controllers().is_empty());
    });
}

#[test]
fn a_host_that_is_not_heard_of_loses_its_controller() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let sleep = |seconds| rig.served.reactor.sleep(Duration::from_secs(seconds));
        // Any command counts.
        for _ in 0..10 {
            sleep(10).await;
            connected.io.plain(SubmissionEntry::flush(ONE)).await.ok();
        }
        let mut keep_alive = SubmissionEntry::async_event_request();
        keep_alive.opcode = AdminOpcode::KEEP_ALIVE.0;
        connected.admin.plain(keep_alive).await.ok();
        keep_alive.namespace.set(1);
        connected.admin.plain(keep_alive).await.is(StatusCode::INVALID_FIELD);
        sleep(16).await;
        assert_eq!(connected.io.end().await, None);
        assert_eq!(connected.admin.end().await, None);
        assert!(rig.target.controllers().is_empty());
    });
}

#[test]
fn disconnect_ends_an_io_queue() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let mut disconnect = SubmissionEntry::property_get(0, false);
        disconnect.namespace.set(8);
        connected.admin.plain(disconnect).await.is(StatusCode::INVALID_FIELD);
        connected.io.plain(disconnect).await.ok();
        assert_eq!(connected.io.end().await, None);
        let mut io = rig.io_queue(connected.id, 1, Digests::default(), 0, true).await;
        io.plain(SubmissionEntry::flush(ONE)).await.ok();
    });
}

#[test]
fn a_host_that_is_no_longer_allowed_must_go() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        rig.model.remove_host(SUBSYSTEM, HOST).unwrap();
        assert_eq!(connected.io.end().await, None);
        assert_eq!(connected.admin.end().await, None);
        let good = rig.identity().data(DYNAMIC_CONTROLLER);
        let entry = SubmissionEntry::connect(QueueId(0), 32, 0, 0);
        assert_eq!(refused!(rig, entry, good.as_bytes()), (0x184, 0, true));
        rig.model.add_host(SUBSYSTEM, HOST).unwrap();
    });
}
