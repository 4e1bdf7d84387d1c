#!/usr/bin/env python3
"""Makes an image's file system and an OCI layout of it, without a daemon.

build.py coordinator|cpu|gpu --bin DIR --out DIR [--no-oci] [--mirror URL]
         [--libtorch DIR] [--cuda DIR]

OUT/rootfs: Debian packages (mmdebstrap, unpacked only, no shell), the
binaries of DIR in /usr/local/bin, and in /opt/coxswain/lib every shared library
that they need and Debian's packages do not bring. gpu: CUDA's libraries too,
from --cuda (a folder with nvidia/ of the wheels in images/cuda.txt), or fetched
by pip into OUT/cuda; of the driver nothing, which is the node's.
OUT/oci: the same as an OCI image layout of one layer. Equal inputs give equal
bytes.
"""

import argparse
import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

USER = 65532
LIBRARIES = "/opt/coxswain/lib"
PACKAGES = ["base-files", "ca-certificates", "libc6", "libgcc-s1", "libstdc++6",
            "libcpp-httplib0.11", "netbase", "tzdata"]
BINARIES = {
    "coordinator": ["cox", "cox-coordinator"],
    "cpu": ["cox", "cox-coordinator", "cox-actor", "cox-learner", "cox-reward",
            "cox-replay", "cox-logprob", "cox-chat", "cox-group-check",
            "cox-rates", "cox-bench", "cox-bench-collective"],
}
BINARIES["gpu"] = BINARIES["cpu"]
DRIVER = ("libcuda.so.", "libnvidia-")
NAMES = {"coordinator": "coxswain-coordinator", "cpu": "coxswain",
         "gpu": "coxswain-gpu"}


class Failed(Exception):
    pass


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n"
                     f"{done.stderr.strip()}")
    return done.stdout


def unpack_packages(root, mirror):
    if shutil.which("mmdebstrap") is None:
        raise Failed("mmdebstrap is not installed (apt-get install mmdebstrap)")
    command = ["mmdebstrap", "--variant=extract", "--quiet",
               "--include=" + ",".join(PACKAGES),
               "--dpkgopt=path-exclude=/usr/share/doc/*",
               "--dpkgopt=path-exclude=/usr/share/man/*",
               "--dpkgopt=path-exclude=/usr/share/locale/*",
               "bookworm", str(root)]
    if mirror:
        command.append(mirror)
    run(*command)
    for unneeded in ["usr/share/doc", "usr/share/man", "usr/share/locale",
                     "usr/share/lintian", "var/lib/apt", "var/cache"]:
        shutil.rmtree(root / unneeded, ignore_errors=True)
    # The package's script would do this; nothing runs here.
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bytes(b"".join(c.read_bytes() for c in certificates))


def needed_libraries(binary):
    """Path on this machine by name, of all shared libraries."""
    found = {}
    for line in run("ldd", str(binary)).splitlines():
        match = re.match(r"\s*(\S+) => (\S+) \(", line)
        if match:
            found[match[1]] = match[2]
        elif "not found" in line:
            raise Failed(f"{binary}: {line.strip()}")
    return found


def image_has(root, name):
    return any((root / folder / name).exists()
               for folder in ["lib/x86_64-linux-gnu",
                              "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64",
                              "lib/aarch64-linux-gnu",
                              "usr/lib/aarch64-linux-gnu"])


def add_binaries(root, kind, bin_dir):
    target = root / "usr/local/bin"
    libraries = root / LIBRARIES.lstrip("/")
    for folder in [target, libraries]:
        folder.mkdir(parents=True, exist_ok=True)
    for name in BINARIES[kind]:
        source = bin_dir / name
        if not source.exists():
            raise Failed(f"{source}: not built")
        shutil.copyfile(source, target / name)
        run("strip", str(target / name))
        (target / name).chmod(0o755)
        for library, path in needed_libraries(source).items():
            if image_has(root, library) or (libraries / library).exists():
                continue
            shutil.copyfile(os.path.realpath(path), libraries / library)
            (libraries / library).chmod(0o644)


def fetch_cuda(out):
    """Installs the wheels of images/cuda.txt, checked by hash, once."""
    lock = pathlib.Path(__file__).resolve().parent / "cuda.txt"
    folder = out / "cuda"
    if not (folder / "nvidia").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
            "--no-compile", "--require-hashes", "--only-binary=:all:",
            "--target", str(folder) + ".new", "-r", str(lock))
        os.rename(str(folder) + ".new", folder)
    return folder


def needs_of(library):
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]",
                          run("readelf", "-d", str(library))))


def check_cuda(root, folder):
    """Everything that LibTorch's CUDA half and the plugin need is there."""
    plugin = root / "usr/local/lib/libcox_gpu.so"
    queue = [folder / "libtorch_cuda.so", folder / "libtorch_cuda_linalg.so",
             plugin]
    seen, missing = set(), {}
    while queue:
        library = queue.pop()
        for name in needs_of(library) - seen:
            seen.add(name)
            if (folder / name).exists():
                queue.append(folder / name)
            elif not name.startswith(DRIVER) and not image_has(root, name):
                missing[name] = library.name
    if missing:
        raise Failed("the image lacks " + ", ".join(
            f"{name} (for {user})" for name, user in sorted(missing.items())))


def add_cuda(root, libtorch, cuda, bin_dir):
    """LibTorch's CUDA half and what it loads by name while it runs."""
    target = root / LIBRARIES.lstrip("/")
    if libtorch is None or not (libtorch / "torch/lib").is_dir():
        raise Failed("--libtorch: the folder with torch/ and nvidia/ that the "
                     "binaries were linked with is needed for gpu")
    found = list((libtorch / "torch/lib").glob("*.so*"))
    found += sorted((libtorch / "nvidia").rglob("*.so*"))
    found += sorted((cuda / "nvidia").rglob("*.so*"))
    for path in found:
        if (path.is_file() and "python" not in path.name
                and not (target / path.name).exists()):
            shutil.copyfile(path, target / path.name)
    plugin = bin_dir.parent / "lib/libcox_gpu.so"
    if not plugin.exists():
        raise Failed(f"{plugin}: not built (tools/setup.sh --gpu fetches nvcc)")
    (root / "usr/local/lib").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(plugin, root / "usr/local/lib/libcox_gpu.so")
    check_cuda(root, target)


def add_user(root):
    for name, line in [
            ("passwd", f"cox:x:{USER}:{USER}:cox:/nonexistent:/nonexistent\n"),
            ("group", f"cox:x:{USER}:\n")]:
        (root / "etc" / name).write_text(
            "root:x:0:0:root:/nonexistent:/nonexistent\n" + line
            if name == "passwd" else "root:x:0:\n" + line)
    # Where k8s/base mounts its volumes.
    for folder in ["tmp", "data", "checkpoints", "var/lib/cox", "etc/cox/run",
                   "etc/cox/tls", "proc", "dev", "sys"]:
        (root / folder).mkdir(parents=True, exist_ok=True)


def configuration(kind, diff_id):
    environment = ["PATH=/usr/local/bin:/usr/bin:/bin",
                   f"LD_LIBRARY_PATH={LIBRARIES}"]
    if kind == "gpu":
        environment += ["NVIDIA_VISIBLE_DEVICES=all",
                        "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]
    machine = os.uname().machine
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[machine],
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": environment,
            "Entrypoint": ["/usr/local/bin/cox"],
            "WorkingDir": "/tmp",
            "Labels": {"org.opencontainers.image.title": NAMES[kind]},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": f"images/build.py {kind}"}],
    }


class Hashed:
    """A file that is written once, with the SHA-256 and size of its bytes."""

    def __init__(self, file):
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data):
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def write_layer(root, path):
    """A packed tar of `root`: sorted, owned by root, of no time. Returns what
    was written and what went in, for the tar may not fit into memory."""
    with open(path, "wb") as file:
        packed = Hashed(file)
        with gzip.GzipFile(filename="", fileobj=packed, mode="wb",
                           compresslevel=6, mtime=0) as pack:
            plain = Hashed(pack)
            with tarfile.open(fileobj=plain, mode="w|",
                              format=tarfile.PAX_FORMAT) as tar:
                for entry in sorted(root.rglob("*")):
                    info = tar.gettarinfo(str(entry),
                                          str(entry.relative_to(root)))
                    if info is None:  # a socket
                        continue
                    info.uid = info.gid = info.mtime = 0
                    info.uname = info.gname = ""
                    if info.isreg():
                        with open(entry, "rb") as data:
                            tar.addfile(info, data)
                    else:
                        tar.addfile(info)
    return packed, plain


def write_oci(root, kind, out):
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": "sha256:" + digest,
                "size": len(data)}

    def dump(value):
        return json.dumps(value, sort_keys=True,
                          separators=(",", ":")).encode()

    packed, plain = write_layer(root, out / "layer")
    os.rename(out / "layer", blobs / packed.sha256.hexdigest())
    layer_entry = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                   "digest": "sha256:" + packed.sha256.hexdigest(),
                   "size": packed.size}
    config = configuration(kind, "sha256:" + plain.sha256.hexdigest())
    config_entry = put(dump(config),
                       "application/vnd.oci.image.config.v1+json")
    manifest = put(
        dump({"schemaVersion": 2,
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "config": config_entry, "layers": [layer_entry]}),
        "application/vnd.oci.image.manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (out / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (out / "index.json").write_bytes(
        dump({"schemaVersion": 2, "manifests": [manifest]}))
    return packed.size


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.
                                     RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(BINARIES))
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--libtorch", type=pathlib.Path, default=None)
    parser.add_argument("--cuda", type=pathlib.Path, default=None)
    parser.add_argument("--mirror", default="")
    parser.add_argument("--no-oci", action="store_true")
    arguments = parser.parse_args()
    try:
        out = arguments.out
        for part in ["rootfs", "oci"]:
            shutil.rmtree(out / part, ignore_errors=True)
        root = out / "rootfs"
        out.mkdir(parents=True, exist_ok=True)
        unpack_packages(root, arguments.mirror)
        add_binaries(root, arguments.kind, arguments.bin)
        if arguments.kind == "gpu":
            add_cuda(root, arguments.libtorch, arguments.cuda or fetch_cuda(out),
                     arguments.bin)
        add_user(root)
        size = sum(p.lstat().st_size for p in root.rglob("*")
                   if p.is_file() and not p.is_symlink())
        print(f"{root}: {size / 1e6:.0f} MB")
        if not arguments.no_oci:
            packed = write_oci(root, arguments.kind, out / "oci")
            print(f"{out / 'oci'}: {packed / 1e6:.0f} MB compressed")
    except Failed as failed:
        print(f"build.py: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
