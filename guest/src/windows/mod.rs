//! The guest program on Windows.
