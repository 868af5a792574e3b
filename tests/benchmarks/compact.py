"""Make the bundled weights, drunet_cli/weights/compact.safetensors, of a training run.

    python -m tests.benchmarks.compact RUN_OR_FILE [-o FILE]

Takes RUN/best.safetensors, or the file that is named; rounds it to float16, and adds what the registry says of `compact` to
what the training recorded. The same training gives the same bytes. The file is read again and its logits are compared with
those of the training's own before it appears, as `drunet export` does.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from drunet_cli.network.engine import Format, Precision
from drunet_cli.network.export import Variant, export
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.registry import BRATS2021, BUNDLED, COMPACT

ENTRY = BUNDLED[COMPACT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, metavar="RUN_OR_FILE")
    parser.add_argument("-o", dest="output", type=Path, default=ENTRY.path)
    arguments = parser.parse_args()
    trained = arguments.trained / "best.safetensors" if arguments.trained.is_dir() else arguments.trained
    checkpoint = described(open_weights(str(trained)))
    variant = Variant(format=Format.SAFETENSORS, precision=Precision.FLOAT16)
    exported = export(checkpoint, arguments.output, variant, overwrite=True)
    print(f"{arguments.output}: {exported.n_bytes / 1e6:.2f} MB, SHA-256 {exported.sha256}")
    print(f"{exported.check.measured}: {exported.check.difference:.2g} (allowed {exported.check.tolerance:.2g})")
    print(checkpoint.metadata)


def described(checkpoint: Checkpoint) -> Checkpoint:
    metadata = replace(
        checkpoint.metadata,
        name=ENTRY.name,
        origin=f"{ENTRY.description}. {BRATS2021}. Made by {checkpoint.metadata.origin}",
        source_sha256=checkpoint.sha256,
        licence=ENTRY.licence,
        citation=ENTRY.citation,
    )
    return replace(checkpoint, metadata=metadata)


if __name__ == "__main__":
    main()
