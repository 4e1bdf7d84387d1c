#!/usr/bin/env python3
"""Builds the coordinator's image and starts its binaries as they run in a pod:
user 65532, nothing writable but /tmp. Exit code 77: this machine cannot."""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

# Root is read-only; /proc and /tmp are what a pod has.
START = r"""
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o size=16m,mode=1777 tmpfs "$1/tmp"
mount -o remount,ro,bind "$1"
root=$1; shift
chroot=$(command -v chroot)
exec env -i PATH=/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/opt/coxswain/lib \
  "$chroot" --userspec=65532:65532 "$root" "$@"
"""


def skip(why):
    print(f"SKIP: {why}")
    sys.exit(77)


def start(root, *command):
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--fork", "sh",
         "-c", START, "sh", str(root), *command],
        capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def expect(condition, what):
    if not condition:
        print(f"FAILED: {what}")
        sys.exit(1)
    print(f"ok: {what}")


def check_layout(oci):
    """The layout's digests hold, and its layer is the file system."""
    index = json.loads((oci / "index.json").read_text())

    def blob(entry):
        data = (oci / "blobs/sha256" / entry["digest"][7:]).read_bytes()
        expect(hashlib.sha256(data).hexdigest() == entry["digest"][7:]
               and len(data) == entry["size"],
               f"blob {entry['mediaType']} is what its digest says")
        return data

    manifest = json.loads(blob(index["manifests"][0]))
    config = json.loads(blob(manifest["config"]))
    expect(config["config"]["User"] == "65532:65532", "image: not root")
    blob(manifest["layers"][0])
    layer = oci / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
    with tarfile.open(layer) as tar:
        names = set(tar.getnames())
    expect("usr/local/bin/cox-coordinator" in names, "layer: the binary")
    expect(not {"bin/sh", "usr/bin/sh", "bin/bash", "usr/bin/bash"} & names,
           "layer: no shell")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    for tool in ["mmdebstrap", "unshare", "chroot", "ldd"]:
        if shutil.which(tool) is None:
            skip(f"{tool} is not installed")
    if os.geteuid() != 0:
        skip("not root: mounts and chroot are needed")
    probe = subprocess.run(["unshare", "--mount", "true"],
                           capture_output=True, text=True)
    if probe.returncode != 0:
        skip(f"no mount namespaces here: {probe.stderr.strip()}")
    out = pathlib.Path(tempfile.mkdtemp(prefix="cox-images-"))
    try:
        build = subprocess.run(
            [str(arguments.source / "images/build.py"), "coordinator", "--bin",
             str(arguments.bin), "--out", str(out)],
            capture_output=True, text=True)
        if build.returncode != 0 and "mmdebstrap" in build.stderr:
            skip(f"Debian's packages cannot be had: {build.stderr.strip()}")
        print(build.stdout, end="")
        expect(build.returncode == 0, f"build.py {build.stderr.strip()}")
        root = out / "rootfs"
        check_layout(out / "oci")
        code, text = start(root, "cox", "--version")
        expect(code == 0 and text.startswith("cox "), f"cox --version: {text}")
        code, text = start(root, "cox-coordinator", "--help")
        expect(code == 0 and "--config" in text, "cox-coordinator --help")
        # The other roles are in another image, which doctor says.
        code, text = start(root, "cox", "doctor")
        expect(code == 1 and "ok   cox-coordinator" in text
               and "MISS cox-learner" in text, "cox doctor")
        code, text = start(root, "cox", "certs", "init", "/var/lib/cox/tls",
                           "--run", "r")
        expect(code != 0 and ("Read-only" in text or "read-only" in text
                              or "cannot" in text or "denied" in text),
               f"the root is read-only: {text.strip()[:200]}")
        code, text = start(root, "cox", "certs", "init", "/tmp/tls", "--run",
                           "r")
        expect(code == 0, f"a mounted volume is writable: {text.strip()}")
    finally:
        shutil.rmtree(out, ignore_errors=True)


main()
