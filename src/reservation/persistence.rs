//! The stored form of a state: the JSON that SPDK keeps for a namespace with `ptpl_file`, read
//! strictly and written so that SPDK reads it.
//!
//! Invariants: [`decode`] accepts only what means one state that [`super::Reservations`] can be
//! in; everything else is a [`Damage`] and fences the namespace. [`encode`] writes the eight keys
//! that SPDK knows, in its order, and what it writes decodes to the same state with generation 0.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use uuid::Uuid;

use super::command::{Key, Persistence};
use super::state::{
    Holder, MAX_REGISTRANTS, Registrant, Reservation, ReservationType, Reservations,
};
use crate::spec::reservation::HostId;

/// The largest stored state that is read: room for [`MAX_REGISTRANTS`] with generous white space.
pub const MAX_BYTES: usize = 256 << 10;

/// The most characters of a parser's message that are kept.
pub const MAX_DETAIL: usize = 200;

/// Why a stored state is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The system does not let us read it.
    #[error("it cannot be read: {kind}")]
    Unreadable {
        /// The system's reason.
        kind: io::ErrorKind,
    },
    /// The folder that should hold it does not exist: it may be on a file system that is not
    /// mounted.
    #[error("its folder does not exist")]
    FolderMissing,
    /// It is a symbolic link to nothing.
    #[error("it is a symbolic link to a file that does not exist")]
    DanglingLink,
    /// It is a directory, a device or the like.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is longer than any that is ours.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// It is not JSON, or not of SPDK's shape.
    #[error("{detail}")]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's words, with the place, and with at most [`MAX_DETAIL`] characters.
        detail: String,
    },
    /// A field is not a UUID in its hyphenated form, or is a host identifier of zeros.
    #[error("{field} is not a valid UUID")]
    BadIdentifier {
        /// The JSON key.
        field: &'static str,
    },
    /// It belongs to another volume.
    #[error("it belongs to volume {found}, not to this one, {expected}")]
    OtherVolume {
        /// The UUID in it.
        found: Uuid,
        /// The volume's.
        expected: Uuid,
    },
    /// The type of the reservation is none.
    #[error("rtype {value} is no type of reservation")]
    ReservationType {
        /// The number.
        value: u32,
    },
    /// More registrants than a namespace can have.
    #[error("it has {count} registrants, more than {MAX_REGISTRANTS}")]
    TooManyRegistrants {
        /// How many.
        count: usize,
    },
    /// A registrant with key zero.
    #[error("host {host} is registered with key 0")]
    ZeroKey {
        /// The registrant.
        host: HostId,
    },
    /// A host registered twice.
    #[error("host {host} is registered twice")]
    RegisteredTwice {
        /// The registrant.
        host: HostId,
    },
    /// A reservation that nobody holds.
    #[error("nobody holds the reservation of rtype {}", reservation_type.wire())]
    NoHolder {
        /// Its type.
        reservation_type: ReservationType,
    },
    /// A holder that is not registered.
    #[error("holder {holder} is not a registrant")]
    HolderNotRegistered {
        /// The holder.
        holder: HostId,
    },
    /// A holder or its key where the type of the reservation leaves no place for one.
    #[error("it names a holder, which rtype {value} does not have")]
    UnexpectedHolder {
        /// The type, 0 if there is no reservation.
        value: u32,
    },
    /// The holder's key is not the key with which it is registered.
    #[error("crkey is {found}, but the holder is registered with {expected}")]
    HolderKey {
        /// The key in it.
        found: Key,
        /// The registrant's.
        expected: Key,
    },
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    ptpl: bool,
    #[serde(default)]
    rtype: u32,
    #[serde(default)]
    crkey: u64,
    bdev_uuid: String,
    #[serde(default)]
    holder_uuid: String,
    registrants: Vec<Object<Entry>>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    rkey: u64,
    host_uuid: String,
}

/// A `T` that is a JSON object: what is derived for a struct would take an array too.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

/// The stored form of `state`, of the volume `volume`. A state that does not persist is stored as
/// one without registrants: that is what it is after a restart. The fence is not stored.
#[must_use]
pub fn encode(state: &Reservations, volume: Uuid) -> Vec<u8> {
    let persists = state.persistence == Persistence::ThroughPowerLoss;
    let registrants = if persists { state.registrants() } else { &[] };
    let entries = registrants.iter().map(|&Registrant { host, key }| {
        Object(Entry { rkey: key.get(), host_uuid: host.to_string() })
    });
    let held = state.reservation().filter(|_| persists);
    let (crkey, holder_uuid) = match held.map(Reservation::holder) {
        None => (0, String::new()),
        Some(Holder::Host(host)) => (state.key_of(host).map_or(0, Key::get), host.to_string()),
        // SPDK wants the key of a registrant here.
        Some(Holder::AllRegistrants) => {
            (registrants.first().map_or(0, |one| one.key.get()), String::new())
        }
    };
    let document = Document {
        ptpl: persists,
        rtype: held.map_or(0, |held| u32::from(held.reservation_type().wire())),
        crkey,
        bdev_uuid: volume.to_string(),
        holder_uuid,
        registrants: entries.collect(),
    };
    let Ok(mut bytes) = serde_json::to_vec(&document) else {
        unreachable!("a structure of strings and integers has a JSON form");
    };
    bytes.push(b'\n');
    bytes
}

/// The state that `bytes` store for the volume `volume`. No bytes store no reservations: that is
/// what SPDK leaves when persistence is switched off.
///
/// # Errors
/// Why the bytes are not believed.
pub fn decode(bytes: &[u8], volume: Uuid) -> Result<Reservations, Damage> {
    if bytes.is_empty() {
        return Ok(Reservations::default());
    }
    if bytes.len() > MAX_BYTES {
        return Err(Damage::TooLarge);
    }
    let document = serde_json::from_slice::<Object<Document>>(bytes);
    let Object(document) = document.map_err(|error| Damage::Malformed {
        line: error.line(),
        column: error.column(),
        // The words may quote the file.
        detail: error.to_string().escape_debug().take(MAX_DETAIL).collect(),
    })?;
    let found = uuid("bdev_uuid", &document.bdev_uuid)?;
    if found != volume {
        return Err(Damage::OtherVolume { found, expected: volume });
    }
    let registrants = registrants(&document)?;
    let reservation = reservation(&document, &registrants)?;
    if !document.ptpl {
        return Ok(Reservations::default());
    }
    let persistence = Persistence::ThroughPowerLoss;
    Ok(Reservations { persistence, registrants, reservation, ..Reservations::default() })
}

fn uuid(field: &'static str, text: &str) -> Result<Uuid, Damage> {
    let hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
    let parsed = Uuid::parse_str(text).ok().filter(|_| hyphenated);
    parsed.ok_or(Damage::BadIdentifier { field })
}

fn host(field: &'static str, text: &str) -> Result<HostId, Damage> {
    HostId::new(uuid(field, text)?.into_bytes()).ok_or(Damage::BadIdentifier { field })
}

fn registrants(document: &Document) -> Result<Vec<Registrant>, Damage> {
    let count = document.registrants.len();
    if count > MAX_REGISTRANTS {
        return Err(Damage::TooManyRegistrants { count });
    }
    let mut registrants: Vec<Registrant> = Vec::with_capacity(count);
    for Object(entry) in &document.registrants {
        let host = host("host_uuid", &entry.host_uuid)?;
        if entry.rkey == 0 {
            return Err(Damage::ZeroKey { host });
        }
        if registrants.iter().any(|known| known.host == host) {
            return Err(Damage::RegisteredTwice { host });
        }
        registrants.push(Registrant { host, key: Key(entry.rkey) });
    }
    Ok(registrants)
}

/// The reservation of a document. What `crkey` says where all registrants hold it is not used:
/// SPDK leaves the key of a holder there that may have gone.
fn reservation(
    document: &Document,
    registrants: &[Registrant],
) -> Result<Option<Reservation>, Damage> {
    let value = document.rtype;
    let reservation_type = u8::try_from(value).ok().and_then(ReservationType::from_wire);
    let named = match document.holder_uuid.as_str() {
        "" => None,
        text => Some(host("holder_uuid", text)?),
    };
    match (reservation_type, named) {
        (None, _) if value != 0 => Err(Damage::ReservationType { value }),
        (None, None) if document.crkey == 0 => Ok(None),
        (None, _) => Err(Damage::UnexpectedHolder { value }),
        (Some(kind), None) if kind.is_all_registrants() => match registrants.first() {
            None => Err(Damage::NoHolder { reservation_type: kind }),
            Some(first) => Ok(Some(Reservation::taken_by(first.host, kind))),
        },
        (Some(kind), Some(_)) if kind.is_all_registrants() => {
            Err(Damage::UnexpectedHolder { value })
        }
        (Some(kind), None) => Err(Damage::NoHolder { reservation_type: kind }),
        (Some(kind), Some(holder)) => {
            let Some(registrant) = registrants.iter().find(|known| known.host == holder) else {
                return Err(Damage::HolderNotRegistered { holder });
            };
            let found = Key(document.crkey);
            if found != registrant.key {
                return Err(Damage::HolderKey { found, expected: registrant.key });
            }
            Ok(Some(Reservation::taken_by(holder, kind)))
        }
    }
}
