#!/usr/bin/env python3
"""Every manifest against strict schemas, and broken copies refused.

Needs COX_BIN_DIR (the build's bin folder). Skips where prepare.sh can't build.
"""
import os
import subprocess
import sys

import manifests


def main():
    root = manifests.prepare("api")
    cox = os.path.join(os.environ["COX_BIN_DIR"], "cox")
    location = (root + "/schemas/"
                "{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json")

    def refusal(text):
        """"" when all is well, else what kubeconform says."""
        done = subprocess.run(
            [root + "/bin/kubeconform", "-strict", "-summary",
             "-schema-location", location, "-"],
            input=text, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False)
        return done.stdout if done.returncode != 0 else ""

    failures = 0
    with manifests.scratch() as scratch:
        texts = manifests.render_all(root + "/bin/kubectl", cox, scratch)
    objects = 0
    for name, text in texts.items():
        count = len(manifests.load(text))
        objects += count
        said = refusal(text)
        if said:
            failures += 1
            print(f"FAILED {name}: {said}")
        else:
            print(f"ok     {name}: {count} objects")
    refused = 0
    for title, damaged, field in manifests.broken_copies(
            texts, manifests.BROKEN):
        said = refusal(manifests.dump(damaged))
        if field in said:
            refused += 1
            print(f"ok     refused {title}")
        else:
            failures += 1
            print(f"FAILED {title}: '{field}' not in: {said or 'accepted'}")
    print(f"{objects} objects of {len(texts)} folders accepted, "
          f"{refused} broken copies refused, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
