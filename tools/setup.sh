#!/usr/bin/env bash
# Installs what a bare Debian 12 lacks to build and test Coxswain.
#
# Idempotent: what is there is used as it is. Needs root (or sudo) only when a
# Debian package is missing. Downloads live outside the tree, in
# ${COX_CACHE:-$HOME/.cache/coxswain}, in folders named after their pins, so a
# second clone fetches nothing. Every wheel is checked against the SHA-256 in
# tools/dependencies.lock before it is unpacked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${COX_CACHE:-$HOME/.cache/coxswain}
started=$(date +%s)
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "need root to run '$*'; run this script as root or install sudo"
  fi
}

# --- Debian packages -------------------------------------------------------
missing=()
while read -r package; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null |
    grep -q 'install ok installed' || missing+=("$package")
done < "$here/debian-packages.txt"
# The tokenizer crates need cargo 1.85; Debian 12 ships one as cargo-web.
cargo_ok() {
  command -v "$1" >/dev/null || return 1
  local v; v=$("$1" --version | awk '{print $2}')
  [ "$(printf '1.85.0\n%s\n' "$v" | sort -V | head -n1)" = 1.85.0 ]
}
cargo_ok cargo || cargo_ok /usr/bin/cargo || missing+=(rustc-web cargo-web)
command -v pip3 >/dev/null || command -v pip >/dev/null ||
  missing+=(python3-pip)
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends "${missing[@]}" > /dev/null
else
  say "Debian packages: all present"
fi
pip=$(command -v pip3 || command -v pip)

# --- LibTorch from the PyPI wheels -----------------------------------------
fingerprint=$(grep '^wheel' "$here/dependencies.lock" | sha256sum | cut -c1-16)
libtorch=$cache/libtorch-$fingerprint
if [ -f "$libtorch/.complete" ]; then
  say "LibTorch: present in $libtorch"
else
  mkdir -p "$cache/wheels"
  staging=$(mktemp -d "$cache/libtorch.XXXXXX")
  trap 'rm -rf "$staging"' EXIT
  while read -r kind name version sum; do
    [ "$kind" = wheel ] || continue
    find_wheel() {
      local stem=${name//-/_}
      ls "$cache/wheels/$stem-$version-"*.whl 2>/dev/null | head -n1
    }
    wheel=$(find_wheel || true)
    if [ -z "$wheel" ]; then
      say "downloading $name $version"
      "$pip" download -q --no-deps --only-binary=:all: \
        --python-version 3.11 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        -d "$cache/wheels" "$name==$version"
      wheel=$(find_wheel)
    fi
    echo "$sum  $wheel" | sha256sum -c --quiet - ||
      die "$wheel: SHA-256 differs from tools/dependencies.lock"
    # Headers, libraries and licences only: no Python is needed to run.
    unwanted=()
    [ "$name" != torch ] || unwanted=(-x 'torch/*.py' 'torch/bin/*'
      'torch/test/*' 'torch/lib/libtorch_python.so')
    unzip -q -o "$wheel" -d "$staging" "${unwanted[@]}" ||
      die "$wheel: cannot be unpacked into $staging (disk full?)"
  done < "$here/dependencies.lock"
  # The wheel carries protobuf 3.13 headers that would shadow Debian's.
  rm -rf "$staging/torch/include/google" "$staging/torch/include/pybind11"
  touch "$staging/.complete"
  rm -rf "$libtorch"
  mv "$staging" "$libtorch"
  trap - EXIT
  # A wheel serves only this unpacking; the folder replaces it.
  rm -f "$cache/wheels/torch-"*.whl
  say "LibTorch: unpacked into $libtorch"
fi
ln -sfn "$libtorch" "$cache/libtorch"

# --- Rust crates (network only here; the build runs --offline --locked) -----
crate=$here/../lib/data/tokenizer_rs
if [ -f "$crate/Cargo.lock" ]; then
  cargo=cargo
  cargo_ok cargo || cargo=/usr/bin/cargo
  say "fetching the tokenizer's crates"
  (cd "$crate" && "$cargo" fetch --locked -q)
fi
say "done in $(($(date +%s) - started)) s"
