//! Errors as they go over the wire: SPDK's codes and texts, which its clients match.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// An error object of JSON-RPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcError {
    /// One of the constants here, or a negative errno.
    pub code: i64,
    /// SPDK's text for the code, followed by what is particular.
    pub message: String,
}

impl RpcError {
    /// The text is not JSON.
    pub const PARSE_ERROR: i64 = -32700;
    /// It is JSON, but no request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are not the method's; also, as in SPDK, an operation on a volume failed.
    pub const INVALID_PARAMETERS: i64 = -32602;
    /// The daemon failed in a way that is not the request's fault.
    pub const INTERNAL_ERROR: i64 = -32603;
    /// The method is not available in the present state.
    pub const INVALID_STATE: i64 = -1;

    fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The text is not JSON.
    #[must_use]
    pub fn parse_error() -> Self {
        Self::new(Self::PARSE_ERROR, "Parse error")
    }

    /// It is JSON, but no request.
    #[must_use]
    pub fn invalid_request() -> Self {
        Self::new(Self::INVALID_REQUEST, "Invalid request")
    }

    /// There is no such method.
    #[must_use]
    pub fn method_not_found() -> Self {
        Self::new(Self::METHOD_NOT_FOUND, "Method not found")
    }

    /// The parameters are not the method's, for the reason given.
    #[must_use]
    pub fn invalid_parameters(reason: impl fmt::Display) -> Self {
        Self::new(Self::INVALID_PARAMETERS, format!("Invalid parameters: {reason}"))
    }

    /// The daemon failed, for the reason given.
    #[must_use]
    pub fn internal(reason: impl fmt::Display) -> Self {
        Self::new(Self::INTERNAL_ERROR, format!("Internal error: {reason}"))
    }

    /// The method is not available now, for the reason given.
    #[must_use]
    pub fn invalid_state(reason: impl fmt::Display) -> Self {
        Self::new(Self::INVALID_STATE, reason.to_string())
    }

    /// The error `errno` (positive) as most of SPDK's handlers report it: its negative, and the
    /// system's text.
    #[must_use]
    pub fn errno(errno: i32) -> Self {
        Self::new(-i64::from(errno), system_text(errno))
    }

    /// The error `errno` (positive) as SPDK's volume operations report it: code -32602, and the
    /// system's text.
    #[must_use]
    pub fn operation_failed(errno: i32) -> Self {
        Self::new(Self::INVALID_PARAMETERS, system_text(errno))
    }

    /// Appends what is particular to this case; what clients match stays in front.
    #[must_use]
    pub fn because(mut self, reason: impl fmt::Display) -> Self {
        self.message = format!("{}: {reason}", self.message);
        self
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

/// The C library's text for an error number.
fn system_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rsplit_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_clients_match() {
        // spdk-csi looks for these.
        assert_eq!(RpcError::errno(libc::ENODEV).message, "No such device");
        assert_eq!(RpcError::errno(libc::ENODEV).code, -19);
        let full = RpcError::operation_failed(libc::ENOSPC).because("pool0 has 3 free clusters");
        assert!(full.message.starts_with("No space left on device: pool0"), "{full}");
        assert_eq!(full.code, -32602);
        assert!(RpcError::invalid_parameters("x").message.starts_with("Invalid parameters"));
        assert_eq!(RpcError::method_not_found().message, "Method not found");
    }
}
