//! Bytes to requests, results to bytes. Nothing here reads or writes a socket.
//!
//! A connection is a stream of JSON values with nothing but optional white space between them.
//! [`Splitter`] finds where a value ends, looking at each byte once however slowly they come;
//! [`Incoming`] says what the value is.

use serde_json::{Map, Value, json};

use super::error::RpcError;

/// The longest request; SPDK's receive buffer.
pub const REQUEST_BYTES_LIMIT: usize = 256 << 10;
/// The most requests in one batch.
pub const BATCH_LIMIT: usize = 256;

/// Cuts a stream into JSON values. It only looks at brackets, quotes and white space; whether a
/// piece is a value at all is for the parser.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: Vec<u8>,
    /// Where the value begins that has no end yet; what is before it has been taken.
    start: usize,
    /// How far the scan has come; what follows is its state there.
    scanned: usize,
    depth: usize,
    scan: Scan,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scan {
    /// Between two values.
    #[default]
    Outside,
    /// In an array or an object, but not in a string.
    Nested,
    /// In a string; `escaped` if the last byte was a backslash that counts.
    String { escaped: bool },
    /// In a number or a word that is not inside of anything.
    Word,
}

/// A value, and possibly others after it, is longer than [`REQUEST_BYTES_LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request is longer than {REQUEST_BYTES_LIMIT} bytes")]
pub struct TooLong;

impl Splitter {
    /// Takes bytes from the stream.
    ///
    /// # Errors
    /// If what has no end yet is longer than a request may be. Take the values first.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if bytes.len() > self.room() {
            return Err(TooLong);
        }
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// How many bytes [`Splitter::push`] would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        REQUEST_BYTES_LIMIT - (self.buffer.len() - self.start)
    }

    /// The text of the next complete value.
    pub fn next_value(&mut self) -> Option<Vec<u8>> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.step(byte) {
                return Some(self.take());
            }
        }
        if self.scan == Scan::Outside {
            self.start = self.scanned;
        }
        None
    }

    /// What is left when the stream has ended: a word that only the end delimits, or half a value.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        let Self { mut buffer, start, .. } = std::mem::take(self);
        let rest = buffer.split_off(start);
        (!rest.trim_ascii().is_empty()).then_some(rest)
    }

    /// Looks at one byte; true if a value ends with what has been scanned.
    fn step(&mut self, byte: u8) -> bool {
        let space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match self.scan {
            Scan::String { escaped: true } => self.scan = Scan::String { escaped: false },
            Scan::String { escaped: false } if byte == b'\\' => {
                self.scan = Scan::String { escaped: true };
            }
            Scan::String { .. } if byte == b'"' => {
                self.scanned += 1;
                self.scan = if self.depth == 0 { Scan::Outside } else { Scan::Nested };
                return self.depth == 0;
            }
            Scan::String { .. } => {}
            // A word ends before what cannot belong to it; that byte is looked at again.
            Scan::Word if space || matches!(byte, b'{' | b'[' | b'"') => {
                self.scan = Scan::Outside;
                return true;
            }
            Scan::Word => {}
            Scan::Outside | Scan::Nested => return self.step_outside_of_strings(byte, space),
        }
        self.scanned += 1;
        false
    }

    fn step_outside_of_strings(&mut self, byte: u8, space: bool) -> bool {
        self.scanned += 1;
        match byte {
            b'"' => self.scan = Scan::String { escaped: false },
            b'{' | b'[' => {
                self.depth += 1;
                self.scan = Scan::Nested;
            }
            b'}' | b']' => {
                // One too many is a piece of its own, which the parser refuses.
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.scan = Scan::Outside;
                    return true;
                }
            }
            _ if self.scan == Scan::Outside && !space => self.scan = Scan::Word,
            _ => {}
        }
        false
    }

    fn take(&mut self) -> Vec<u8> {
        let value = self.buffer[self.start..self.scanned].to_vec();
        self.start = self.scanned;
        value
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Returned with the answer; `Null` if the request has none.
    pub id: Value,
    /// The method's name.
    pub method: String,
    /// An object or an array; `Null` if the request has none.
    pub params: Value,
}

/// A request that cannot be carried out, with the identity to answer it under.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The request's identity as far as it has one.
    pub id: Value,
    /// Why.
    pub error: RpcError,
}

impl Refusal {
    fn anonymous(error: RpcError) -> Self {
        Self { id: Value::Null, error }
    }
}

/// One value of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A request, or what should have been one.
    Single(Result<Request, Refusal>),
    /// A batch: at least one of them.
    Batch(Vec<Result<Request, Refusal>>),
}

impl Incoming {
    /// Reads one value.
    ///
    /// # Errors
    /// If `text` is not JSON, the error to answer with before the connection is closed: where
    /// the next value would begin cannot be known.
    pub fn parse(text: &[u8]) -> Result<Self, RpcError> {
        let value: Value = serde_json::from_slice(text).map_err(|_| RpcError::parse_error())?;
        Ok(match value {
            Value::Array(batch) if batch.is_empty() => {
                Self::Single(Err(Refusal::anonymous(RpcError::invalid_request())))
            }
            Value::Array(batch) if batch.len() > BATCH_LIMIT => {
                let error = RpcError::invalid_request()
                    .because(format_args!("a batch has at most {BATCH_LIMIT} requests"));
                Self::Single(Err(Refusal::anonymous(error)))
            }
            Value::Array(batch) => Self::Batch(batch.into_iter().map(request).collect()),
            value => Self::Single(request(value)),
        })
    }
}

fn request(value: Value) -> Result<Request, Refusal> {
    let Value::Object(mut members) = value else {
        return Err(Refusal::anonymous(RpcError::invalid_request()));
    };
    let id = match members.remove("id") {
        Some(id @ (Value::String(_) | Value::Number(_))) => id,
        None | Some(Value::Null) => Value::Null,
        Some(_) => return Err(Refusal::anonymous(RpcError::invalid_request())),
    };
    match method_and_params(members) {
        Some((method, params)) => Ok(Request { id, method, params }),
        None => Err(Refusal { id, error: RpcError::invalid_request() }),
    }
}

/// `None` if a member is missing, has the wrong type, or does not belong here.
fn method_and_params(mut members: Map<String, Value>) -> Option<(String, Value)> {
    if members.remove("jsonrpc").is_some_and(|version| version != "2.0") {
        return None;
    }
    let Some(Value::String(method)) = members.remove("method") else { return None };
    let params = members.remove("params").unwrap_or_default();
    let valid = matches!(params, Value::Null | Value::Object(_) | Value::Array(_));
    (valid && members.is_empty()).then_some((method, params))
}

/// The reply to the request `id`.
#[must_use]
pub fn reply(id: &Value, outcome: Result<Value, RpcError>) -> Value {
    match outcome {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => {
            let error = json!({ "code": error.code, "message": error.message });
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut values = Vec::new();
        for piece in pieces {
            splitter.push(piece).unwrap();
            while let Some(value) = splitter.next_value() {
                values.push(value);
            }
        }
        values.extend(splitter.finish());
        let text = |value: Vec<u8>| String::from_utf8_lossy(value.trim_ascii()).into_owned();
        values.into_iter().map(text).collect()
    }

    #[test]
    fn values_are_found_however_they_are_cut() {
        let stream = br#" {"a":"}\"{["} [1,[2]]{"b":{}}
            "word\\" 5 true[]null "#;
        let expected = [
            r#"{"a":"}\"{["}"#,
            "[1,[2]]",
            r#"{"b":{}}"#,
            r#""word\\""#,
            "5",
            "true",
            "[]",
            "null",
        ];
        assert_eq!(split(&[stream]), expected);
        for at in 0..stream.len() {
            assert_eq!(split(&[&stream[..at], &stream[at..]]), expected, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(split(&bytes), expected);
    }

    #[test]
    fn what_is_no_value_is_a_piece_for_the_parser_to_refuse() {
        for (text, first) in [("}", "}"), ("]x", "]"), ("x}", "x}"), ("{]", "{]"), ("\"", "\"")] {
            let pieces = split(&[text.as_bytes()]);
            assert_eq!(pieces[0], first);
            assert_eq!(Incoming::parse(first.as_bytes()).unwrap_err().code, -32700, "{text}");
        }
    }

    #[test]
    fn a_value_has_a_longest_length_and_many_values_do_not() {
        let mut splitter = Splitter::default();
        for _ in 0..1000 {
            splitter.push(&[b' '; 1000]).unwrap();
            assert_eq!(splitter.next_value(), None);
        }
        assert_eq!(splitter.room(), REQUEST_BYTES_LIMIT);
        splitter.push(b"[").unwrap();
        splitter.push(&vec![b' '; REQUEST_BYTES_LIMIT - 1]).unwrap();
        assert_eq!(splitter.next_value(), None);
        assert_eq!((splitter.room(), splitter.push(b"]")), (0, Err(TooLong)));
    }

    fn single(text: &str) -> Result<Request, Refusal> {
        match Incoming::parse(text.as_bytes()).unwrap() {
            Incoming::Single(single) => single,
            Incoming::Batch(batch) => panic!("{batch:?}"),
        }
    }

    #[test]
    fn requests() {
        let request = single(r#"{"jsonrpc":"2.0","method":"m","params":{"a":1},"id":7}"#).unwrap();
        assert_eq!((request.method.as_str(), request.id), ("m", json!(7)));
        assert_eq!(request.params, json!({"a": 1}));
        let request = single(r#"{"method":"m","params":null}"#).unwrap();
        assert_eq!((request.id, request.params), (Value::Null, Value::Null));
    }

    #[test]
    fn what_is_no_request_is_refused_under_its_identity() {
        let cases = [
            (r#"{"id":"x"}"#, json!("x")),
            (r#"{"method":1,"id":2}"#, json!(2)),
            (r#"{"method":"m","jsonrpc":"1.0","id":3}"#, json!(3)),
            (r#"{"method":"m","jsonrpc":2.0,"id":3}"#, json!(3)),
            (r#"{"method":"m","params":5,"id":4}"#, json!(4)),
            (r#"{"method":"m","extra":5,"id":4}"#, json!(4)),
            (r#"{"method":"m","id":[4]}"#, Value::Null),
            ("5", Value::Null),
            ("[]", Value::Null),
        ];
        for (text, id) in cases {
            let refusal = Refusal { id, error: RpcError::invalid_request() };
            assert_eq!(single(text), Err(refusal), "{text}");
        }
    }

    #[test]
    fn batches() {
        let Incoming::Batch(batch) = Incoming::parse(br#"[{"method":"m","id":1},2]"#).unwrap()
        else {
            panic!("no batch")
        };
        assert!(batch[0].is_ok() && batch[1].is_err());
        let long = format!("[{}0]", "0,".repeat(BATCH_LIMIT));
        assert_eq!(single(&long).unwrap_err().error.code, -32600);
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let deep = "[".repeat(100_000);
        assert_eq!(Incoming::parse(deep.as_bytes()).unwrap_err(), RpcError::parse_error());
    }

    #[test]
    fn random_bytes_are_answered() {
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..20_000 {
            let alphabet = br#"{}[]",:\ 0a"#;
            let text: Vec<u8> = (0..random.usize(0..40))
                .map(|_| alphabet[random.usize(..alphabet.len())])
                .collect();
            let whole: Vec<u8> = split(&[&text]).concat().into_bytes();
            let spaceless = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().copied().filter(|byte| *byte != b' ').collect()
            };
            assert_eq!(spaceless(&whole), spaceless(&text), "no byte is lost or made up");
        }
    }
}
