//! JSON-RPC over the control socket.
