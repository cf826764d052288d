//! Whole runs as far as they need no QEMU.
