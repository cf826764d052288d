//! End-to-end suites on libtest-mimic.
