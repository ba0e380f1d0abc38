//! Identify, log pages, features, events, abort, discovery.

use lvolfs::nvmf::model::{AnaState, NewNamespace};
use lvolfs::spec::command::{AdminOpcode, Feature, IdentifyKind, QueueCounts, SubmissionEntry};
use lvolfs::spec::fabrics::{DISCOVERY_NQN, SglDescriptor, SglKind};
use lvolfs::spec::identify::{
    IdentifyController, IdentifyNamespace, NamespaceIdType, ascii, namespace_descriptors,
};
use lvolfs::spec::log::{LogPage, SmartLog};
use lvolfs::spec::status::StatusCode;
use lvolfs::units::{NamespaceId, QueueId};
use zerocopy::FromBytes;

use super::host::{Answer, Host, Identity};
use super::io::{pattern, read, write};
use super::pipe::Pipe;
use super::rig::{BLOCK, BLOCKS, HOST, ONE, SUBSYSTEM, TWO, local, with_rig};

fn identify(kind: u8, id: u32) -> SubmissionEntry {
    SubmissionEntry::identify(IdentifyKind(kind), NamespaceId(id))
}

async fn page(admin: &mut Host<Pipe>, kind: u8, id: u32) -> Vec<u8> {
    let answer = admin.run(identify(kind, id), &[], 4096).await.ok();
    assert_eq!(answer.data.len(), 4096);
    answer.data
}

async fn log(admin: &mut Host<Pipe>, page: LogPage, length: u32) -> Answer {
    admin.run(SubmissionEntry::get_log_page(page, NamespaceId(0), length), &[], length).await
}

/// The words of a page up to the first zero.
fn words(page: &[u8]) -> Vec<u32> {
    let words = page.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    words.take_while(|word| *word != 0).collect()
}

#[test]
fn the_controller_says_what_hosts_insist_on() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let bytes = page(&mut connected.admin, 1, 0).await;
        let controller = IdentifyController::read_from_bytes(&bytes).unwrap();
        assert_eq!(controller.controller_id.get(), connected.id);
        assert_eq!(ascii(&controller.model), "lvolfs");
        assert_eq!(controller.version.get(), 0x0002_0000);
        assert_eq!((bytes[111], bytes[512], bytes[513]), (1, 0x66, 0x44));
        assert_eq!(bytes[1792..1804], [4, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], "516 * 16 - 64 = 8192");
        assert_ne!(controller.keep_alive.get(), 0);
        assert_eq!(controller.sgl_support.get() & (1 | 1 << 20), 1 | 1 << 20);
        assert_eq!(&bytes[768..768 + SUBSYSTEM.len()], SUBSYSTEM.as_bytes());
        assert_eq!(bytes[525] & 1, 1, "a mapping that was not committed is volatile");
        assert_eq!(bytes[76] & 8, 8);
        let groups = u32::from_le_bytes(bytes[344..348].try_into().unwrap());
        assert_eq!((groups, controller.max_allowed_namespaces.get()), (32, 32));
        assert!(16 + groups * 32 + 32 * 4 <= 4096 << bytes[77], "the ANA log fits a transfer");
    });
}

#[test]
fn namespaces_say_what_they_are() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        connected.io.run(write(0, 3), &pattern(1, 3), 0).await.ok();
        let admin = &mut connected.admin;
        let bytes = page(admin, 0, 1).await;
        let namespace = IdentifyNamespace::read_from_bytes(&bytes).unwrap();
        assert_eq!((namespace.size.get(), namespace.capacity.get()), (BLOCKS, BLOCKS));
        assert_eq!(namespace.utilization.get(), 16, "one cluster of 64 KiB");
        assert_eq!(namespace.features & 1, 1, "thin");
        assert_eq!(namespace.deallocate_features, 0b1001);
        assert_eq!((namespace.format().data_size, namespace.sharing), (12, 1));
        let uuid = rig.volumes[0].uuid();
        assert_eq!(&namespace.nguid, uuid.as_bytes());
        let list = page(admin, 3, 1).await;
        let ids: Vec<_> = namespace_descriptors(&list).collect();
        assert_eq!(
            ids,
            [
                (NamespaceIdType::NGUID, &uuid.as_bytes()[..]),
                (NamespaceIdType::UUID, &uuid.as_bytes()[..]),
                (NamespaceIdType::COMMAND_SET, &[0][..]),
            ]
        );
        for kind in [2, 7, 0x10] {
            assert_eq!(words(&page(admin, kind, 0).await), [1, 2]);
            assert_eq!(words(&page(admin, kind, 1).await), [2]);
            admin.run(identify(kind, u32::MAX), &[], 4096).await.is(StatusCode::INVALID_NAMESPACE);
        }
        let independent = page(admin, 8, 2).await;
        assert_eq!((independent[1], independent[4], independent[14]), (1, 2, 1));
        assert!(page(admin, 6, 0).await[0] > 0);
        assert_eq!(page(admin, 0x1c, 0).await[0], 1);
        assert_eq!(page(admin, 0x13, 0).await[..4], [1, 0, connected.id as u8, 0]);
        assert_eq!(page(admin, 0x12, 1).await[..4], [1, 0, connected.id as u8, 0]);
        // Valid, but no namespace.
        for kind in [0, 5, 8, 0x11] {
            assert!(page(admin, kind, 9).await.iter().all(|byte| *byte == 0));
            for id in [0, 33, u32::MAX] {
                let answer = admin.run(identify(kind, id), &[], 4096).await;
                answer.is(StatusCode::INVALID_NAMESPACE);
            }
        }
        admin.run(identify(3, 9), &[], 4096).await.is(StatusCode::INVALID_FIELD);
        admin.run(identify(0x55, 0), &[], 4096).await.is(StatusCode::INVALID_FIELD);
        admin.run(identify(1, 0), &[], 4092).await.is(StatusCode::INVALID_FIELD);
        let mut zoned = identify(5, 1);
        zoned.dword11.set(2 << 24);
        admin.run(zoned, &[], 4096).await.is(StatusCode::INVALID_FIELD);
    });
}

#[test]
fn log_pages() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        connected.io.run(write(0, 1), &pattern(1, 1), 0).await.ok();
        connected.io.run(read(0, 1), &[], 4096).await.ok();
        connected.io.run(read(BLOCKS, 1), &[], 4096).await.is(StatusCode::LBA_OUT_OF_RANGE);
        let admin = &mut connected.admin;
        let errors = log(admin, LogPage::ERROR, 64).await.ok().data;
        assert_eq!((&errors[16..24], errors[8]), (&BLOCKS.to_le_bytes()[..], 1));
        let supported = log(admin, LogPage::SUPPORTED, 1024).await.ok().data;
        for (id, word) in supported.chunks_exact(4).enumerate() {
            let answer = log(admin, LogPage(id as u8), 64).await;
            assert_eq!(word[0] & 1 == 1, answer.status().is_success(), "page {id:#x}");
        }
        let errors = log(admin, LogPage::ERROR, 64).await.ok().data;
        assert_eq!(errors[24..28], [0; 4], "the newest is a page that there is not");
        let smart = log(admin, LogPage::SMART, 512).await.ok().data;
        let smart = SmartLog::read_from_bytes(&smart).unwrap();
        assert_eq!((smart.available_spare, smart.spare_threshold), (100, 10));
        assert_eq!((smart.host_reads[0].get(), smart.host_writes[0].get()), (1, 1));
        let effects = log(admin, LogPage::COMMAND_EFFECTS, 4096).await.ok().data;
        assert_eq!((effects[4 * 6], effects[1024 + 4], effects[1024 + 4 * 4]), (1, 3, 0));
        let ana = log(admin, LogPage::ANA, 16 + 2 * 36).await.ok().data;
        assert_eq!(ana[8], 2, "groups");
        assert_eq!((ana[16], ana[20], ana[32], ana[48]), (1, 1, 1, 1), "group, count, state, id");
        // What lies behind a page reads as zeros; offsets are checked.
        let mut behind = SubmissionEntry::get_log_page(LogPage::SMART, NamespaceId(0), 64);
        behind.dword12.set(512);
        assert_eq!(admin.run(behind, &[], 64).await.ok().data, [0; 64]);
        for offset in [514, 516] {
            behind.dword12.set(offset);
            admin.run(behind, &[], 64).await.is(StatusCode::INVALID_FIELD);
        }
        let small = SubmissionEntry::get_log_page(LogPage::SMART, NamespaceId(0), 512);
        admin.run(small, &[], 508).await.is(StatusCode::INVALID_FIELD);
        let of_one = SubmissionEntry::get_log_page(LogPage::SMART, ONE, 512);
        admin.run(of_one, &[], 512).await.is(StatusCode::INVALID_FIELD);
        log(admin, LogPage(0x99), 64).await.is(StatusCode::INVALID_LOG_PAGE);
    });
}

#[test]
fn the_health_of_the_drives_reaches_hosts() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let admin = &mut connected.admin;
        admin.plain(SubmissionEntry::set_features(Feature(0x0b), 0b10)).await.ok();
        let waiting = admin.submit(SubmissionEntry::async_event_request(), &[], 0).await;
        let mut drive = rig.target.health();
        drive.temperature.set(360);
        drive.percentage_used = 12;
        drive.critical_warning = SmartLog::WARNING_SPARE;
        // Nobody asked for this warning.
        rig.target.set_health(&[drive]);
        drive.critical_warning |= SmartLog::WARNING_TEMPERATURE;
        rig.target.set_health(&[drive]);
        rig.target.set_health(&[drive]);
        let event = admin.complete().await.unwrap();
        assert_eq!(event.completion.command_id(), waiting);
        assert_eq!(event.result(), 0x0002_0101, "SMART, temperature, the page to read");
        let page = log(admin, LogPage::SMART, 512).await.ok().data;
        let page = SmartLog::read_from_bytes(&page).unwrap();
        assert_eq!((page.critical_warning, page.percentage_used), (0b11, 12));
        assert_eq!(page.temperature.get(), 360);
    });
}

#[test]
fn what_was_served_is_counted() {
    with_rig(async |rig| {
        let before = rig.service.statistics();
        let mut connected = rig.connect().await;
        for block in 0..3 {
            connected.io.run(write(block, 1), &pattern(1, 1), 0).await.ok();
        }
        connected.io.submit(write(7, 1), &pattern(1, 1), 0).await;
        connected.io.complete().await.unwrap().ok();
        let now = rig.service.statistics();
        assert_eq!((now.current_admin_queues, now.current_io_queues, now.pending_io), (1, 1, 0));
        // The Connect of the I/O queue is a command on it.
        assert_eq!(now.completed_io - before.completed_io, 5);
        drop(connected);
        rig.connect().await;
        let later = rig.service.statistics();
        assert_eq!((later.admin_queues, later.io_queues), (2, 2));
    });
}

#[test]
fn features() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let admin = &mut connected.admin;
        let get = SubmissionEntry::get_features;
        let set = SubmissionEntry::set_features;
        for feature in [1, 4, 5, 0x0a] {
            let value = if feature == 5 { 0x55 } else { 1 };
            admin.plain(set(Feature(feature), value)).await.ok();
            assert_eq!(admin.plain(get(Feature(feature))).await.ok().result(), value);
        }
        assert_eq!(admin.plain(get(Feature::VOLATILE_WRITE_CACHE)).await.ok().result(), 1);
        let off = set(Feature::VOLATILE_WRITE_CACHE, 0);
        admin.plain(off).await.is(StatusCode::FEATURE_NOT_CHANGEABLE);
        admin.plain(set(Feature::KEEP_ALIVE_TIMER, 10_001)).await.ok();
        assert_eq!(admin.plain(get(Feature::KEEP_ALIVE_TIMER)).await.ok().result(), 11_000);
        let mut extended = get(Feature::HOST_IDENTIFIER);
        admin.run(extended, &[], 16).await.is(StatusCode::HOST_ID_INCONSISTENT_FORMAT);
        extended.dword11.set(1);
        assert_eq!(admin.run(extended, &[], 16).await.ok().data, [7; 16]);
        admin
            .run(set(Feature::HOST_IDENTIFIER, 1), &[1; 16], 0)
            .await
            .is(StatusCode::COMMAND_SEQUENCE_ERROR);
        let mut behavior = vec![0; 512];
        behavior[0] = 1;
        admin.run(set(Feature::HOST_BEHAVIOR, 0), &behavior, 0).await.ok();
        assert_eq!(admin.run(get(Feature::HOST_BEHAVIOR), &[], 512).await.ok().data, behavior);
        let counts = QueueCounts { submission: 4, completion: 9 }.to_dword();
        // Too late, for there is an I/O queue.
        let queues = set(Feature::NUMBER_OF_QUEUES, counts);
        admin.plain(queues).await.is(StatusCode::COMMAND_SEQUENCE_ERROR);
        admin.set_configuration(0x0046_0000).await;
        assert_eq!(connected.io.end().await, None);
        admin.set_configuration(0x0046_0001).await;
        assert_eq!(admin.plain(queues).await.ok().result(), 0x0003_0003);
        let mut saved = set(Feature::ARBITRATION, 0);
        saved.dword10.set(saved.dword10.get() | 1 << 31);
        admin.plain(saved).await.is(StatusCode::FEATURE_NOT_SAVEABLE);
        let mut of_one = get(Feature::ARBITRATION);
        of_one.namespace.set(1);
        admin.plain(of_one).await.is(StatusCode::FEATURE_NOT_NAMESPACE_SPECIFIC);
        of_one.namespace.set(9);
        admin.plain(of_one).await.is(StatusCode::INVALID_NAMESPACE);
        let mut default = get(Feature::ARBITRATION);
        default.dword10.set(1 | 1 << 8);
        admin.plain(default).await.is(StatusCode::INVALID_FIELD);
        admin.plain(get(Feature(0x70))).await.is(StatusCode::INVALID_FIELD);
    });
}

#[test]
fn namespaces_come_and_go_and_hosts_are_told() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let admin = &mut connected.admin;
        let notices = 1 << 8 | 1 << 11;
        admin.plain(SubmissionEntry::set_features(Feature(0x0b), notices)).await.ok();
        let event = admin.submit(SubmissionEntry::async_event_request(), &[], 0).await;
        rig.model.remove_namespace(SUBSYSTEM, TWO).unwrap();
        let told = admin.complete().await.unwrap().ok();
        assert_eq!((told.completion.command_id(), told.result()), (event, 0x0004_0002));
        assert_eq!(words(&page(admin, 2, 0).await), [1]);
        let answer = connected.io.plain(SubmissionEntry::flush(TWO)).await;
        answer.is(StatusCode::INVALID_NAMESPACE);
        // Not told again before the list is read.
        let event = admin.submit(SubmissionEntry::async_event_request(), &[], 0).await;
        let entry = &rig.volumes[1];
        let new = NewNamespace::of("p", entry.uuid(), Some(entry.key()));
        rig.model.add_namespace(SUBSYSTEM, new).unwrap();
        let changed = log(admin, LogPage::CHANGED_NAMESPACES, 4096).await.ok().data;
        assert_eq!(words(&changed), [2]);
        rig.model.volume_changed(rig.volumes[0].key());
        let told = admin.complete().await.unwrap().ok();
        assert_eq!((told.completion.command_id(), told.result()), (event, 0x0004_0002));
        let changed = log(admin, LogPage::CHANGED_NAMESPACES, 4096).await.ok().data;
        assert_eq!(words(&changed), [1]);
        connected.io.plain(SubmissionEntry::flush(TWO)).await.ok();
        // A path that is taken away.
        let event = admin.submit(SubmissionEntry::async_event_request(), &[], 0).await;
        let set = |state| rig.model.set_ana_state(SUBSYSTEM, local(), Some(1), state).unwrap();
        set(AnaState::Inaccessible);
        let told = admin.complete().await.unwrap().ok();
        assert_eq!((told.completion.command_id(), told.result()), (event, 0x000c_0302));
        connected.io.run(read(0, 1), &[], 4096).await.is(StatusCode::ANA_INACCESSIBLE);
        connected.io.plain(SubmissionEntry::flush(TWO)).await.ok();
        let ana = log(admin, LogPage::ANA, 16 + 2 * 36).await.ok().data;
        assert_eq!((ana[0], ana[32]), (1, 3));
        set(AnaState::PersistentLoss);
        connected.io.run(read(0, 1), &[], 4096).await.is(StatusCode::ANA_PERSISTENT_LOSS);
        set(AnaState::Change);
        connected.io.run(read(0, 1), &[], 4096).await.is(StatusCode::ANA_TRANSITION);
        set(AnaState::NonOptimized);
        connected.io.run(read(0, 1), &[], 4096).await.ok();
    });
}

#[test]
fn event_requests_have_a_limit_and_can_be_aborted() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let admin = &mut connected.admin;
        let request = SubmissionEntry::async_event_request();
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(admin.submit(request, &[], 0).await);
        }
        admin.plain(request).await.is(StatusCode::ASYNC_EVENT_LIMIT_EXCEEDED);
        let abort = admin.submit(SubmissionEntry::abort(QueueId(0), waiting[1]), &[], 0).await;
        let aborted = admin.complete().await.unwrap();
        assert_eq!(aborted.completion.command_id(), waiting[1]);
        aborted.is(StatusCode::ABORT_REQUESTED);
        let answer = admin.complete().await.unwrap().ok();
        assert_eq!((answer.completion.command_id(), answer.result()), (abort, 0));
        // What is not there is not aborted.
        let entry = SubmissionEntry::abort(QueueId(0), waiting[1]);
        assert_eq!(admin.plain(entry).await.ok().result(), 1);
        let entry = SubmissionEntry::abort(QueueId(9), waiting[0]);
        assert_eq!(admin.plain(entry).await.ok().result(), 1);
    });
}

#[test]
fn a_write_that_waits_for_its_data_can_be_aborted() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        let data = pattern(1, 4);
        let id = connected.io.submit(write(0, 4), &data, 0).await;
        let request = connected.io.receive().await.unwrap().0;
        let lvolfs::nvmf::pdu::Pdu::ReadyToTransfer { command, tag, .. } = request else {
            panic!("{request:?}")
        };
        let abort = SubmissionEntry::abort(QueueId(1), id);
        assert_eq!(connected.admin.plain(abort).await.ok().result(), 0);
        connected.io.complete().await.unwrap().is(StatusCode::ABORT_REQUESTED);
        // The data still comes, and is thrown away.
        let mut bytes = Vec::new();
        let length = data.len() as u32;
        let pdu = lvolfs::nvmf::pdu::Pdu::HostData { command, tag, offset: 0, length, last: true };
        connected.io.encoder.header(&pdu, &mut bytes);
        bytes.extend(&data);
        connected.io.send(&bytes).await;
        let found = connected.io.run(read(0, 4), &[], 4 * BLOCK as u32).await.ok();
        assert!(found.data.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn admin_commands_that_there_are_not() {
    with_rig(async |rig| {
        let mut connected = rig.connect().await;
        for opcode in [0, 1, 4, 5, 0x0d, 0x10, 0x14, 0x15, 0x19, 0x80, 0x84, 0xc0] {
            let mut entry = SubmissionEntry::async_event_request();
            entry.opcode = opcode;
            let answer =
                connected.admin.run(entry, if opcode & 3 == 1 { &[0; 64] } else { &[] }, 64);
            answer.await.is(StatusCode::INVALID_OPCODE);
        }
        let mut fused = identify(1, 0);
        fused.flags = 1;
        connected.admin.run(fused, &[], 4096).await.is(StatusCode::INVALID_FIELD);
        // Data that is not where the transport can take or leave it.
        let data = SglDescriptor { address: 0x1000, length: 4096, kind: SglKind::DATA_BLOCK };
        let id = connected.admin.command_id();
        let entry = identify(1, 0).with_command_id(id).with_sgl(data);
        let mut bytes = Vec::new();
        let pdu = lvolfs::nvmf::pdu::Pdu::Command { entry, length: 0 };
        connected.admin.encoder.header(&pdu, &mut bytes);
        connected.admin.send(&bytes).await;
        let (pdu, ..) = connected.admin.receive().await.unwrap();
        let lvolfs::nvmf::pdu::Pdu::Response(completion) = pdu else { panic!("{pdu:?}") };
        assert!(completion.status().is(StatusCode::SGL_DESCRIPTOR_TYPE_INVALID));
    });
}

#[test]
fn discovery() {
    with_rig(async |rig| {
        let mut admin = rig.initialized().await;
        admin.connect_admin(&Identity::new(DISCOVERY_NQN, HOST), 0).await;
        let identity = page(&mut admin, 1, 0).await;
        assert_eq!((identity[111], &identity[768..772]), (2, b"nqn.".as_slice()));
        admin.run(identify(2, 0), &[], 4096).await.is(StatusCode::INVALID_FIELD);
        let notices = 1 << 31;
        admin.plain(SubmissionEntry::set_features(Feature(0x0b), notices)).await.ok();
        let event = admin.submit(SubmissionEntry::async_event_request(), &[], 0).await;
        let header = log(&mut admin, LogPage::DISCOVERY, 1024).await.ok().data;
        let length = 1024 * (1 + u32::from(header[8]));
        let all = log(&mut admin, LogPage::DISCOVERY, length).await.ok().data;
        let mut entries = all.chunks_exact(1024).skip(1);
        let entry = entries.find(|entry| entry[2] == 2).expect("a subsystem with namespaces");
        assert_eq!((entry[0], entry[1], entry[2]), (3, 1, 2));
        assert_eq!(&entry[256..256 + SUBSYSTEM.len()], SUBSYSTEM.as_bytes());
        rig.model.set_allow_any_host(SUBSYSTEM, true).unwrap();
        let told = admin.complete().await.unwrap().ok();
        assert_eq!((told.completion.command_id(), told.result()), (event, 0x0070_f002));
        let again = log(&mut admin, LogPage::DISCOVERY, 1024).await.ok().data;
        assert_ne!(again[..8], header[..8], "another generation");
        for opcode in [AdminOpcode::ABORT, AdminOpcode::FORMAT_NVM] {
            let mut entry = SubmissionEntry::async_event_request();
            entry.opcode = opcode.0;
            admin.plain(entry).await.is(StatusCode::INVALID_OPCODE);
        }
        log(&mut admin, LogPage::SMART, 512).await.is(StatusCode::INVALID_LOG_PAGE);
    });
}
