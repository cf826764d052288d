//! Real QEMU under TCG: start, talk, look, stop, save, restore, adopt.

mod real;
