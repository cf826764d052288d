# Sourced by demo, test and bench: what must be there before cargo can build the program that does the rest.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
if ! command -v cargo > /dev/null; then
  echo "cargo is not in PATH. no43 is built with Rust 1.95 or newer: install it with rustup (https://rustup.rs)," >&2
  echo "then open a new shell, or run: . \"\$HOME/.cargo/env\"" >&2
  exit 2
fi
# A fresh system with Rust has no linker yet. Everything else that is missing is told, and asked about, by the program.
if ! command -v cc > /dev/null; then
  as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
  if ! command -v apt-get > /dev/null || [[ " $* " == *" --no-install "* ]]; then
    echo "there is no C compiler, which Rust needs for linking: install gcc and the C library's headers" >&2
    exit 2
  fi
  if [[ " $* " != *" --yes "* && -z "${CI:-}" ]]; then
    read -r -p "There is no C compiler, which Rust needs for linking. Install gcc and libc6-dev? [y/N] " answer
    [[ "$answer" == [yY]* ]] || exit 2
  fi
  as_root apt-get update -q
  as_root apt-get install -y --no-install-recommends --no-remove gcc libc6-dev
fi
