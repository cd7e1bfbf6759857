"""`python -m tests.rig build | up | image | clean`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time

from tests.rig import debian
from tests.rig.cluster import Rig, prepare
from tests.rig.images import prove_image
from tests.rig.paths import RigUnavailable
from tests.rig.product import install_operator, make_example_claims
from tests.rig.slots import clean_dead_slots
from tests.rig.toolchain import KUBERNETES


def build() -> None:
    """Make and keep everything that a rig needs: packages, binaries, images."""
    began = time.monotonic()
    prepare()
    print(f"rig: packages, binaries and images are there ({time.monotonic() - began:.0f} s)")


def up() -> None:
    """A cluster in the foreground, with the operator and what the example needs, until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), Rig.start() as rig:
        print(f"rig: three nodes are ready ({time.monotonic() - began:.0f} s)", flush=True)
        install_operator(rig)
        make_example_claims(rig, "default")
        print(WELCOME.format(kubeconfig=rig.kubeconfig, binaries=KUBERNETES.folder), flush=True)
        signal.pause()
    print("\nrig: the cluster is gone")


def image() -> None:
    """Build the trainer's image whole, over the rig's base, and run in it what a role imports and compiles."""
    began = time.monotonic()
    debian.ensure_packages(debian.NODE_PACKAGES)
    prove_image("trainer-proof", {"COMPILER": "g++ python3-dev"})
    print(f"rig: the trainer's image does its work ({time.monotonic() - began:.0f} s)")


def clean() -> None:
    """Remove what dead rigs left; running ones are not touched."""
    for slot in clean_dead_slots():
        print(f"rig: removed what was left in {slot.work}")


WELCOME = """
The cluster is up, until Ctrl-C here. In another terminal:

    export KUBECONFIG={kubeconfig}
    export PATH={binaries}:$PATH
    kubectl get nodes -L alignment.run/pool
    kubectl apply -f examples/dpo.yaml
    kubectl get alignmentjobs --watch
"""
COMMANDS = {"build": build, "up": up, "image": image, "clean": clean}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.rig", description="A real Kubernetes on this machine.")
    parser.add_argument("command", choices=COMMANDS, help="; ".join(f"{n}: {c.__doc__}" for n, c in COMMANDS.items()))
    try:
        COMMANDS[parser.parse_args().command]()
    except RigUnavailable as reason:
        sys.exit(f"rig: {reason}")


if __name__ == "__main__":
    main()
