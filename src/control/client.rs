//! The client's end: one request, its answer, the next.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::RpcError;
use super::server::REPLY_BYTES_LIMIT;
use super::types::Event;

/// How long the daemon may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach a daemon at {}; is `lvolfs serve` running?", .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection broke, or the answer did not come in time.
    #[error("the daemon did not answer {method}")]
    NoAnswer {
        /// What was asked.
        method: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The answer is none.
    #[error("the answer to {method} makes no sense")]
    BadAnswer {
        /// What was asked.
        method: String,
        /// Where it makes none.
        source: serde_json::Error,
    },
    /// The daemon refused.
    #[error("{method}: {error}")]
    Refused {
        /// What was asked.
        method: String,
        /// The answer.
        error: RpcError,
    },
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    next_id: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    result: Value,
    error: Option<RpcError>,
}

impl Client {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connected = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream), next_id: 1 }),
            Err(source) => Err(ClientError::Unreachable { path: path.to_owned(), source }),
        }
    }

    /// Calls `method` and reads its result as an `R`.
    ///
    /// # Errors
    /// The daemon's answer, or that there is none.
    pub fn call<P: Serialize, R: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &P,
    ) -> Result<R, ClientError> {
        let bad = |source| ClientError::BadAnswer { method: method.to_owned(), source };
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "jsonrpc": "2.0", "id": id, "method": method });
        let parameters = serde_json::to_value(parameters).map_err(bad)?;
        if !parameters.is_null() {
            request["params"] = parameters;
        }
        let line = self
            .exchange(&request)
            .map_err(|source| ClientError::NoAnswer { method: method.to_owned(), source })?;
        let answer: Answer = serde_json::from_slice(&line).map_err(bad)?;
        match answer.error {
            Some(error) => Err(ClientError::Refused { method: method.to_owned(), error }),
            None if answer.id != id => {
                let source = serde::de::Error::custom("it answers another request");
                Err(bad(source))
            }
            None => serde_json::from_value(answer.result).map_err(bad),
        }
    }

    /// The next event after `lvolfs_watch_events`, whenever it comes; `None` when the daemon has
    /// ended the connection.
    ///
    /// # Errors
    /// [`ClientError::BadAnswer`]; [`ClientError::NoAnswer`] if the connection breaks.
    pub fn next_event(&mut self) -> Result<Option<Event>, ClientError> {
        let method = || super::events::NOTIFICATION.to_owned();
        let mut line = Vec::new();
        let waited = self.stream.get_ref().set_read_timeout(None);
        let limit = REPLY_BYTES_LIMIT as u64;
        let read =
            waited.and_then(|()| (&mut self.stream).take(limit).read_until(b'\n', &mut line));
        match read {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(source) => return Err(ClientError::NoAnswer { method: method(), source }),
        }
        let bad = |source| ClientError::BadAnswer { method: method(), source };
        let notification: Value = serde_json::from_slice(&line).map_err(bad)?;
        serde_json::from_value(notification["params"].clone()).map(Some).map_err(bad)
    }

    /// Sends a request and returns the line that answers it.
    fn exchange(&mut self, request: &Value) -> io::Result<Vec<u8>> {
        let mut text = request.to_string();
        text.push('\n');
        self.stream.get_mut().write_all(text.as_bytes())?;
        let mut line = Vec::new();
        (&mut self.stream).take(REPLY_BYTES_LIMIT as u64 + 1).read_until(b'\n', &mut line)?;
        match line.last() {
            Some(b'\n') => Ok(line),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
