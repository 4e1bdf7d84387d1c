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
# Any Go will do: tests/k8s/testbed/prepare.sh has it fetch a newer one.
command -v go >/dev/null || missing+=(golang-go)
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends "${missing[@]}" > /dev/null
else
  say "Debian packages: all present"
fi
pip=$(command -v pip3 || command -v pip)

# --- Wheels ----------------------------------------------------------------
# fetch_wheel NAME VERSION SHA256: the file's path in $wheel.
fetch_wheel() {
  local name=$1 version=$2 sum=$3 stem=${1//-/_}
  find_wheel() {
    ls "$cache/wheels/$stem-$version-"*.whl 2>/dev/null | head -n1
  }
  wheel=$(find_wheel || true)
  if [ -z "$wheel" ]; then
    say "downloading $name $version"
    "$pip" download -q --no-deps --only-binary=:all: \
      --python-version 3.11 --implementation cp \
      --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
      --platform manylinux_2_18_x86_64 --platform manylinux_2_17_x86_64 \
      --platform manylinux2014_x86_64 \
      -d "$cache/wheels" "$name==$version"
    wheel=$(find_wheel)
  fi
  echo "$sum  $wheel" | sha256sum -c --quiet - ||
    die "$wheel: SHA-256 differs from tools/dependencies.lock"
}

# unpack_wheels KIND FOLDER: all wheels of that kind, once.
unpack_wheels() {
  local kind=$1 folder=$2 k name version sum unwanted
  mkdir -p "$cache/wheels"
  staging=$(mktemp -d "$cache/unpack.XXXXXX")
  trap 'rm -rf "$staging"' EXIT
  while read -r k name version sum; do
    [ "$k" = "$kind" ] || continue
    fetch_wheel "$name" "$version" "$sum"
    # Headers, libraries and licences only: no Python is needed to run.
    unwanted=()
    [ "$name" != torch ] || unwanted=(-x 'torch/*.py' 'torch/bin/*'
      'torch/test/*' 'torch/lib/libtorch_python.so')
    unzip -q -o "$wheel" -d "$staging" "${unwanted[@]}" ||
      die "$wheel: cannot be unpacked into $staging (disk full?)"
  done < "$here/dependencies.lock"
  # The torch wheel carries protobuf 3.13 headers that would shadow Debian's.
  rm -rf "$staging/torch/include/google" "$staging/torch/include/pybind11"
  # Wheels do not keep that a file may be run.
  chmod -f +x "$staging"/nvidia/cu13/bin/* "$staging"/nvidia/cu13/nvvm/bin/* ||
    true
  touch "$staging/.complete"
  rm -rf "$folder"
  mv "$staging" "$folder"
  trap - EXIT
}
fingerprint_of() {
  grep "^$1 " "$here/dependencies.lock" | sha256sum | cut -c1-16
}

# --- LibTorch --------------------------------------------------------------
libtorch=$cache/libtorch-$(fingerprint_of wheel)
if [ -f "$libtorch/.complete" ]; then
  say "LibTorch: present in $libtorch"
else
  unpack_wheels wheel "$libtorch"
  # A wheel serves only this unpacking; the folder replaces it.
  rm -f "$cache/wheels/torch-"*.whl
  say "LibTorch: unpacked into $libtorch"
fi
ln -sfn "$libtorch" "$cache/libtorch"

# --- With --gpu: nvcc and NCCL, to build libcox_gpu.so ----------------------
if [ "${1:-}" = --gpu ]; then
  toolkit=$cache/libtorch-gpu-$(fingerprint_of wheel-gpu)
  if [ -f "$toolkit/.complete" ]; then
    say "nvcc and NCCL: present in $toolkit"
  else
    unpack_wheels wheel-gpu "$toolkit"
    rm -f "$cache/wheels/nvidia_"{nccl,nvvm,cuda_nvcc}*.whl
    say "nvcc and NCCL: unpacked into $toolkit"
  fi
  ln -sfn "$toolkit" "$cache/libtorch-gpu"
fi

# --- Rust crates (network only here; the build runs --offline --locked) -----
crate=$here/../lib/data/tokenizer_rs
if [ -f "$crate/Cargo.lock" ]; then
  cargo=cargo
  cargo_ok cargo || cargo=/usr/bin/cargo
  say "fetching the tokenizer's crates"
  (cd "$crate" && "$cargo" fetch --locked -q)
fi
say "done in $(($(date +%s) - started)) s"
