//! The codec: offsets by number, every fragmentation, every fault of a header.

use zerocopy::FromBytes;

use super::*;
use crate::spec::status::Status;
use crate::units::{CommandId, Lba, NamespaceId};

const LIMITS: Limits = Limits { in_capsule: 8192, data: 1 << 20 };

/// What a decoder said, with the pieces of data joined.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Pdu(Pdu),
    Data(Vec<u8>),
    End(Data),
}

fn decoder(role: Role, digests: Digests, alignment: u8) -> Decoder {
    let mut decoder = Decoder::new(role, LIMITS);
    let hello = match role {
        Role::Controller => request(0),
        Role::Host => Pdu::InitializeResponse { alignment: 0, digests, max_data: 1 << 20 },
    };
    let mut bytes = Vec::new();
    Encoder::default().header(&hello, &mut bytes);
    assert_eq!(decoder.feed(&mut &*bytes).unwrap(), Some(Event::Header(hello)));
    decoder.agree(digests, alignment);
    decoder
}

fn request(alignment: u8) -> Pdu {
    Pdu::InitializeRequest { alignment, digests: Digests::default(), max_r2t: 1 }
}

fn read(decoder: &mut Decoder, pieces: &[&[u8]]) -> Result<Vec<Seen>, Fault> {
    let mut seen: Vec<Seen> = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        while let Some(event) = decoder.feed(&mut input)? {
            match (event, seen.last_mut()) {
                (Event::Data(data), Some(Seen::Data(before))) => before.extend_from_slice(data),
                (Event::Data(data), _) => seen.push(Seen::Data(data.to_vec())),
                (Event::Header(pdu), _) => seen.push(Seen::Pdu(pdu)),
                (Event::End(data), _) => seen.push(Seen::End(data)),
            }
        }
        assert!(input.is_empty(), "what is not needed yet is kept");
    }
    Ok(seen)
}

fn write(encoder: Encoder, pdu: Pdu, data: &[u8], out: &mut Vec<u8>) {
    encoder.header(&pdu, out);
    out.extend_from_slice(data);
    if !data.is_empty() && encoder.digests.data {
        out.extend(data_digest(&[data]).to_le_bytes());
    }
}

fn command(length: u32) -> Pdu {
    let force = crate::spec::command::ForceUnitAccess::No;
    let entry = SubmissionEntry::write(NamespaceId(1), Lba(7), 8, force);
    Pdu::Command { entry: entry.with_command_id(CommandId(9)), length }
}

fn host_data(offset: u32, length: u32) -> Pdu {
    Pdu::HostData { command: 9, tag: 3, offset, length, last: true }
}

fn controller_data(length: u32) -> Pdu {
    Pdu::ControllerData { command: 4, offset: 8, length, last: true, success: true }
}

/// Every PDU that `role` may read after the first, with data, one after the other.
fn stream(role: Role, encoder: Encoder) -> (Vec<u8>, Vec<Seen>) {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    let data = |length: u32| (0..length).map(|at| at as u8 ^ 0x5a).collect::<Vec<u8>>();
    let entry = CompletionEntry::new(CommandId(4), Status::SUCCESS, 77).with_queue(1, 5);
    let pdus = match role {
        Role::Controller => vec![command(0), command(37), host_data(4, 13), command(64)],
        Role::Host => vec![
            Pdu::Response(entry),
            Pdu::ReadyToTransfer { command: 9, tag: 3, offset: 0, length: 4096 },
            controller_data(50),
            Pdu::Response(entry),
        ],
    };
    for pdu in pdus {
        let data = data(pdu.data_length());
        write(encoder, pdu, &data, &mut bytes);
        expected.push(Seen::Pdu(pdu));
        if !data.is_empty() {
            expected.push(Seen::Data(data));
            expected.push(Seen::End(Data::Intact));
        }
    }
    (bytes, expected)
}

#[test]
fn headers_are_where_the_specification_has_them() {
    let plain = Encoder::default();
    let with = |pdu: Pdu, encoder: Encoder| {
        let mut out = Vec::new();
        encoder.header(&pdu, &mut out);
        out
    };
    let digests = Digests { header: true, data: true };
    let bytes = with(Pdu::InitializeRequest { alignment: 1, digests, max_r2t: 4 }, plain);
    assert_eq!(bytes[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 1, 3, 3, 0, 0, 0]);
    assert_eq!(bytes.len(), 128);
    let bytes = with(Pdu::InitializeResponse { alignment: 0, digests, max_data: 0x2_0000 }, plain);
    assert_eq!(bytes[..16], [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3, 0, 0, 2, 0]);
    let bytes = with(command(0), plain);
    assert_eq!(bytes[..12], [4, 0, 72, 0, 72, 0, 0, 0, 1, 0, 9, 0]);
    let bytes = with(command(512), Encoder { digests, alignment: 7 });
    assert_eq!(bytes[..8], [4, 3, 72, 96, 100, 2, 0, 0], "76 bytes, rounded up to 32");
    assert_eq!(bytes.len(), 96);
    let entry = CompletionEntry::new(CommandId(0x1234), Status::SUCCESS, 7);
    let bytes = with(Pdu::Response(entry), plain);
    assert_eq!(bytes[..12], [5, 0, 24, 0, 24, 0, 0, 0, 7, 0, 0, 0]);
    assert_eq!(bytes[20..22], [0x34, 0x12]);
    let bytes = with(host_data(0x100, 8), plain);
    assert_eq!(bytes[..8], [6, 4, 24, 24, 32, 0, 0, 0]);
    assert_eq!(bytes[8..24], [9, 0, 3, 0, 0, 1, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    let bytes = with(controller_data(8), plain);
    assert_eq!(bytes[..8], [7, 12, 24, 24, 32, 0, 0, 0]);
    assert_eq!(bytes[8..24], [4, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    let r2t = Pdu::ReadyToTransfer { command: 9, tag: 3, offset: 16, length: 32 };
    let bytes = with(r2t, plain);
    assert_eq!(bytes[..8], [9, 0, 24, 0, 24, 0, 0, 0]);
    assert_eq!(bytes[8..24], [9, 0, 3, 0, 16, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0]);
    let mut bytes = Vec::new();
    terminate(Role::Controller, 1, 0x0201, &[7; 200], &mut bytes);
    assert_eq!(bytes.len(), MAX_TERMINATE);
    assert_eq!(bytes[..8], [3, 0, 24, 0, 152, 0, 0, 0]);
    assert_eq!(bytes[8..14], [1, 0, 1, 2, 0, 0]);
    assert_eq!(bytes[14..25], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
}

#[test]
fn digests_are_crc_32c_with_padded_data() {
    assert_eq!(data_digest(&[b"123456789"]), crc32c::crc32c(b"123456789\0\0\0"));
    assert_eq!(data_digest(&[b"1234", b"5678"]), crc32c::crc32c(b"12345678"));
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
}

#[test]
fn streams_are_read_in_whatever_pieces_they_come() {
    for role in [Role::Controller, Role::Host] {
        for bits in 0..4 {
            for alignment in [0, 3, 31] {
                let digests = Digests::from_bits(bits);
                let encoder = Encoder { digests, alignment };
                let (bytes, expected) = stream(role, encoder);
                for cut in 0..=bytes.len() {
                    let mut decoder = decoder(role, digests, alignment);
                    let (head, tail) = bytes.split_at(cut);
                    assert_eq!(read(&mut decoder, &[head, tail]).unwrap(), expected, "{cut}");
                }
                let mut one_by_one = decoder(role, digests, alignment);
                let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
                assert_eq!(read(&mut one_by_one, &pieces).unwrap(), expected);
            }
        }
    }
}

#[test]
fn data_may_be_received_past_the_decoder() {
    for digest in [false, true] {
        let digests = Digests { header: false, data: digest };
        let mut bytes = Vec::new();
        let data = [7_u8; 4096];
        write(Encoder { digests, alignment: 0 }, host_data(0, 4096), &data, &mut bytes);
        let mut decoder = decoder(Role::Controller, digests, 0);
        assert_eq!(read(&mut decoder, &[&bytes[..124]]).unwrap().len(), 2);
        assert_eq!(decoder.data_left(), 3996);
        assert_eq!(decoder.received(&data[..1000]), None);
        let end = decoder.received(&data[..2996]);
        assert_eq!(decoder.data_left(), 0);
        if digest {
            assert_eq!(end, None);
            let seen = read(&mut decoder, &[&bytes[4120..]]).unwrap();
            assert_eq!(seen, [Seen::End(Data::Intact)]);
        } else {
            assert_eq!(end, Some(Data::Intact));
        }
    }
}

#[test]
fn a_wrong_data_digest_is_no_fault() {
    let digests = Digests { header: true, data: true };
    let encoder = Encoder { digests, alignment: 0 };
    let mut bytes = Vec::new();
    write(encoder, command(5), b"abcde", &mut bytes);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    write(encoder, command(0), b"", &mut bytes);
    let seen = read(&mut decoder(Role::Controller, digests, 0), &[&bytes]).unwrap();
    assert_eq!(seen[2], Seen::End(Data::Corrupt));
    assert_eq!(seen[3], Seen::Pdu(command(0)));
}

/// Feeds a PDU that was changed in one place.
fn fault(digests: Digests, pdu: Pdu, change: impl Fn(&mut Vec<u8>)) -> Fault {
    let mut bytes = Vec::new();
    let data = vec![1; pdu.data_length() as usize];
    write(Encoder { digests, alignment: 0 }, pdu, &data, &mut bytes);
    change(&mut bytes);
    read(&mut decoder(Role::Controller, digests, 0), &[&bytes]).unwrap_err()
}

#[test]
fn every_malformed_header_is_named() {
    let none = Digests::default();
    let header = Digests { header: true, data: false };
    let both = Digests { header: true, data: true };
    let field = |fault: Fault| (fault.status as u16, fault.information);
    // A type that does not exist, or that only controllers send.
    for kind in [3, 5, 7, 8, 9, 10, 255] {
        assert_eq!(field(fault(none, command(0), |bytes| bytes[0] = kind)), (1, 0));
    }
    assert_eq!(field(fault(none, command(0), |bytes| bytes[2] = 71)), (1, 2));
    assert_eq!(field(fault(none, command(0), |bytes| bytes[4] = 71)), (1, 4));
    assert_eq!(field(fault(none, command(8), |bytes| bytes[3] = 71)), (1, 3));
    assert_eq!(field(fault(none, command(8), |bytes| bytes[3] = 74)), (1, 3));
    assert_eq!(field(fault(none, command(8), |bytes| bytes[3] = 0)), (1, 3));
    assert_eq!(field(fault(none, command(8), |bytes| bytes[3] = 80)), (1, 4), "no data left");
    assert_eq!(field(fault(none, host_data(0, 8), |bytes| bytes[4] = 24)), (1, 4));
    assert_eq!(field(fault(none, host_data(0, 8), |bytes| bytes[16] = 9)), (1, 16));
    assert_eq!(field(fault(none, command(0), |bytes| bytes[1] = 1)), (1, 1));
    assert_eq!(field(fault(both, command(8), |bytes| bytes[1] = 1)), (1, 1));
    assert_eq!(fault(none, command(8193), |_| {}).status, FatalStatus::DataLimitExceeded);
    assert_eq!(
        fault(none, host_data(0, 8), |bytes| bytes[6] = 0x11).status,
        FatalStatus::DataLimitExceeded
    );
    let wrong = fault(header, command(0), |bytes| bytes[20] ^= 4);
    assert_eq!(wrong.status, FatalStatus::HeaderDigest);
    let mut sent = Vec::new();
    Encoder { digests: header, alignment: 0 }.header(&command(0), &mut sent);
    assert_eq!(wrong.information.to_le_bytes(), sent[72..76], "the digest received");
    assert_eq!(fault(none, request(0), |_| {}).status, FatalStatus::SequenceError);
}

#[test]
fn initialization_comes_first_and_is_checked() {
    let try_first = |pdu: Pdu, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        Encoder::default().header(&pdu, &mut bytes);
        change(&mut bytes);
        let mut decoder = Decoder::new(Role::Controller, LIMITS);
        let fault = read(&mut decoder, &[&bytes]).unwrap_err();
        let length = decoder.last_header().len();
        (fault.status as u16, fault.information, length)
    };
    assert_eq!(try_first(command(0), &|_| {}), (2, 0, 8));
    assert_eq!(try_first(request(0), &|bytes| bytes[8] = 1), (1, 8, 128));
    assert_eq!(try_first(request(32), &|_| {}), (1, 10, 128));
    assert_eq!(try_first(request(0), &|bytes| bytes[4] = 127), (1, 4, 8));
    assert_eq!(try_first(request(0), &|bytes| bytes[2] = 127), (1, 2, 8));
}

#[test]
fn terminating_pdus_are_read_with_what_they_carry() {
    let mut bytes = Vec::new();
    terminate(Role::Host, 4, 0x99, &[1; 72], &mut bytes);
    let mut reader = decoder(Role::Controller, Digests { header: true, data: true }, 0);
    let seen = read(&mut reader, &[&bytes[..30], &bytes[30..]]).unwrap();
    assert_eq!(seen, [Seen::Pdu(Pdu::Terminate { status: 4, information: 0x99 })]);
    bytes[8] = 9;
    let fault = read(&mut decoder(Role::Controller, Digests::default(), 0), &[&bytes]).unwrap_err();
    assert_eq!((fault.status, fault.information), (FatalStatus::InvalidHeaderField, 8));
}

/// Random bytes, and valid streams with random changes: no panic, and no more data than a PDU
/// may have.
#[test]
fn garbage_is_survived() {
    for seed in 0..3000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let digests = Digests::from_bits(random.u8(..4));
        let role = if random.bool() { Role::Controller } else { Role::Host };
        let (mut bytes, _) = stream(role, Encoder { digests, alignment: 0 });
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        let mut reader = decoder(role, digests, 0);
        let mut input = &*bytes;
        while let Ok(Some(event)) = reader.feed(&mut input) {
            if let Event::Header(pdu) = event {
                assert!(pdu.data_length() <= LIMITS.data, "seed {seed}");
            }
        }
        assert!(reader.last_header().len() <= MAX_HEADER, "seed {seed}");
    }
    assert!(CompletionEntry::read_from_bytes(&[0; 15]).is_err());
}
