//! What lints cannot enforce: import arrows, where unsafe may be, sizes, paths in documents.
