//! The lvolstore: operations, and power cuts in the middle of them.
