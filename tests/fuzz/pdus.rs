//! PDUs, fuzzed: bytes for either end of a connection, in pieces of any size.
//!
//! Whatever the pieces, the same is read: the same PDUs with the same data, or the same fault at
//! the same place. No PDU has more data than its limit, and one that was read is written and read
//! again as what it was. Bytes are read as they come, and once more with every digest made right,
//! since no fuzzer finds a checksum.

use lvolfs::nvmf::pdu::{
    COMMON_HEADER, DIGEST, Data, Decoder, Digests, Encoder, Event, Fault, Limits, MAX_ALIGNMENT,
    MAX_HEADER, Pdu, Role, data_digest, kind, terminate,
};

const LIMITS: Limits = Limits { in_capsule: 8192, data: 1 << 16 };

/// What a decoder said, with the pieces of data joined.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Pdu(Pdu),
    Data(Vec<u8>),
    End(Data),
}

/// Which end reads, and what it agrees to. The first byte: its bit 0 is set for a host, bits 1 and
/// 2 are the digests, bit 3 is set if an orderly beginning comes before the bytes. The second byte
/// is the alignment, the third the size of the pieces.
#[derive(Clone, Copy)]
struct Setup {
    role: Role,
    digests: Digests,
    alignment: u8,
    begun: bool,
}

/// Bytes for a decoder.
pub(crate) fn pdu(input: &[u8]) {
    let Some(([first, alignment, piece], bytes)) = input.split_first_chunk::<3>() else { return };
    let setup = Setup {
        role: if first & 1 == 0 { Role::Controller } else { Role::Host },
        digests: Digests::from_bits(first >> 1 & 3),
        alignment: alignment % (MAX_ALIGNMENT + 1),
        begun: first & 8 != 0,
    };
    let mut stream = if setup.begun { beginning(setup) } else { Vec::new() };
    stream.extend_from_slice(bytes);
    for stream in [sealed(&stream), stream] {
        let whole = read(setup, &stream, stream.len(), false);
        let piece = usize::from(*piece).max(1);
        assert_eq!(read(setup, &stream, piece, false), whole, "in pieces of {piece}");
        assert_eq!(read(setup, &stream, piece, true), whole, "past the decoder, {piece} at a time");
        let mut seen = whole.0.iter().peekable();
        while let Some(event) = seen.next() {
            let Seen::Pdu(pdu) = event else { continue };
            // The data of the last PDU may be incomplete.
            match (pdu.data_length(), seen.peek()) {
                (0, _) => written_as_read(setup, *pdu, &[]),
                (length, Some(Seen::Data(data))) if data.len() == length as usize => {
                    written_as_read(setup, *pdu, data);
                }
                _ => {}
            }
        }
    }
}

/// The PDU that has to come first.
fn hello(setup: Setup) -> Pdu {
    let Setup { digests, .. } = setup;
    match setup.role {
        Role::Controller => Pdu::InitializeRequest { alignment: 0, digests, max_r2t: 1 },
        Role::Host => Pdu::InitializeResponse { alignment: 0, digests, max_data: 1 << 16 },
    }
}

fn beginning(setup: Setup) -> Vec<u8> {
    let mut bytes = Vec::new();
    Encoder::default().header(&hello(setup), &mut bytes);
    bytes
}

/// The same bytes with right digests, as far as they are whole PDUs.
fn sealed(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    // Where the first PDU says which digests there are.
    let digests = Digests::from_bits(stream.get(11).copied().unwrap_or(0));
    let mut start = 0;
    while let Some(common) = stream[start..].first_chunk::<COMMON_HEADER>() {
        let [kind, _, header, offset, total @ ..] = *common;
        let (header, offset) = (usize::from(header), usize::from(offset));
        let total = u32::from_le_bytes(total) as usize;
        let Some(pdu) = stream.get_mut(start..start.saturating_add(total)) else { break };
        if total < COMMON_HEADER {
            break;
        }
        let has_digests = kind >= kind::COMMAND;
        if has_digests && digests.header && header + DIGEST <= total {
            let digest = data_digest(&[&pdu[..header]]);
            pdu[header..header + DIGEST].copy_from_slice(&digest.to_le_bytes());
        }
        if has_digests && digests.data && offset > 0 && offset + DIGEST < total {
            let digest = data_digest(&[&pdu[offset..total - DIGEST]]);
            pdu[total - DIGEST..].copy_from_slice(&digest.to_le_bytes());
        }
        start += total;
    }
    stream
}

/// Reads a stream in pieces of `piece` bytes; data past the decoder's own input if `direct`.
fn read(setup: Setup, stream: &[u8], piece: usize, direct: bool) -> (Vec<Seen>, Option<Fault>) {
    let mut decoder = Decoder::new(setup.role, LIMITS);
    let mut seen: Vec<Seen> = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let now = rest.len().min(piece);
        if direct && decoder.data_left() > 0 {
            let (data, later) = rest.split_at(now.min(decoder.data_left()));
            rest = later;
            let end = decoder.received(data);
            add_data(&mut seen, data);
            seen.extend(end.map(Seen::End));
            continue;
        }
        let (mut input, later) = rest.split_at(now);
        rest = later;
        loop {
            match decoder.feed(&mut input) {
                Ok(None) => break,
                Ok(Some(Event::Header(pdu))) => {
                    let limit = match pdu {
                        Pdu::Command { .. } => LIMITS.in_capsule,
                        _ => LIMITS.data,
                    };
                    assert!(pdu.data_length() <= limit, "{pdu:?}");
                    assert_eq!(decoder.data_left(), pdu.data_length() as usize);
                    if let Pdu::InitializeRequest { digests, .. }
                    | Pdu::InitializeResponse { digests, .. } = pdu
                    {
                        decoder.agree(digests, setup.alignment);
                    }
                    seen.push(Seen::Pdu(pdu));
                }
                Ok(Some(Event::Data(data))) => add_data(&mut seen, data),
                Ok(Some(Event::End(end))) => seen.push(Seen::End(end)),
                Err(fault) => {
                    assert!(decoder.last_header().len() <= MAX_HEADER);
                    return (seen, Some(fault));
                }
            }
        }
        assert!(input.is_empty(), "what is not needed yet is kept");
    }
    (seen, None)
}

fn add_data(seen: &mut Vec<Seen>, data: &[u8]) {
    match seen.last_mut() {
        Some(Seen::Data(before)) => before.extend_from_slice(data),
        _ => seen.push(Seen::Data(data.to_vec())),
    }
}

/// A PDU that was read is written, and read as what it was.
fn written_as_read(setup: Setup, pdu: Pdu, data: &[u8]) {
    let first = matches!(pdu, Pdu::InitializeRequest { .. } | Pdu::InitializeResponse { .. });
    let mut stream = if first { Vec::new() } else { beginning(setup) };
    let mut expected = if first { Vec::new() } else { vec![Seen::Pdu(hello(setup))] };
    let Setup { digests, alignment, .. } = setup;
    match (pdu, setup.role) {
        (Pdu::Terminate { status, information }, role) => {
            let sender = if role == Role::Host { Role::Controller } else { Role::Host };
            terminate(sender, status, information, &[], &mut stream);
        }
        _ => Encoder { digests, alignment }.header(&pdu, &mut stream),
    }
    expected.push(Seen::Pdu(pdu));
    if !data.is_empty() {
        stream.extend_from_slice(data);
        if digests.data {
            stream.extend(data_digest(&[data]).to_le_bytes());
        }
        expected.push(Seen::Data(data.to_vec()));
        expected.push(Seen::End(Data::Intact));
    }
    assert_eq!(read(setup, &stream, stream.len(), false), (expected, None));
}
