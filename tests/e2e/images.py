"""Images of deploy/docker for the tests, built by deploy/docker/build_image: buildah's storage, the files of an image.

T6_IMAGE_WORK is where the build keeps base and layers (default /var/tmp/t6d-image), T6_IMAGE_CCACHE a compiler cache for
it. With T6_IMAGE, an image that is there already is taken instead. Needs root for the chroot.
"""

import contextlib
import json
import os
import pathlib
import subprocess

from conftest import ROOT

WORK = pathlib.Path(os.environ.get("T6_IMAGE_WORK", "/var/tmp/t6d-image"))
CACHE = os.environ.get("T6_IMAGE_CCACHE")
BASE = "docker.io/library/debian:12-slim"


def buildah(*arguments):
    command = ["buildah", "--root", WORK / "storage", "--runroot", WORK / "run", *arguments]
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def build(target, anew=False):
    """The image's name. Unless `anew`, one that was built from this commit serves."""
    if name := os.environ.get("T6_IMAGE"):
        return name
    name = f"t6d:{target}"
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if anew or revision_of(name) != head:
        more = ["--ccache", CACHE] if CACHE else []
        subprocess.run([ROOT / "deploy/docker/build_image", "--target", target, "--work", WORK, *more], check=True)
    return name


def revision_of(image):
    """The commit that the image was built from; None where there is no such image."""
    try:
        settings = json.loads(buildah("inspect", "--type", "image", image))
    except (OSError, subprocess.CalledProcessError):
        return None
    return settings["OCIv1"]["config"].get("Labels", {}).get("org.opencontainers.image.revision")


@contextlib.contextmanager
def container_of(image):
    """(container, the folder of its files), which are gone afterwards."""
    container = buildah("from", "--pull-never", image)
    try:
        yield container, pathlib.Path(buildah("mount", container))
    finally:
        buildah("rm", container)
