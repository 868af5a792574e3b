"""Make the bundled weights, drunet_cli/weights/compact.safetensors, of a training run.

    python -m tests.benchmarks.compact RUN_OR_FILE [-o FILE] [--min-volume ML[,ML,ML]] [--min-enhancing ML]

Takes RUN/best.safetensors, or the file that is named; rounds it to float16, and adds what the registry says of `compact` to
what the training recorded. The volumes are the post-processing that held-out cases chose (tests/benchmarks/postprocessing.py);
the file recommends it. The same training gives the same bytes. The file is read again and its logits are compared with those of
the training's own before it appears, as `drunet export` does.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from drunet_cli.cli.options import volumes_ml
from drunet_cli.network.engine import Format, Precision
from drunet_cli.network.export import Variant, export
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint, Postprocessing
from drunet_cli.weights.registry import BRATS2021, BUNDLED, COMPACT

ENTRY = BUNDLED[COMPACT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, metavar="RUN_OR_FILE")
    parser.add_argument("-o", dest="output", type=Path, default=ENTRY.path)
    parser.add_argument("--min-volume", type=volumes_ml, default=0.0, metavar="ML[,ML,ML]")
    parser.add_argument("--min-enhancing", type=float, default=0.0, metavar="ML")
    arguments = parser.parse_args()
    chosen = Postprocessing(min_volume_ml=arguments.min_volume, min_enhancing_ml=arguments.min_enhancing)
    trained = arguments.trained / "best.safetensors" if arguments.trained.is_dir() else arguments.trained
    checkpoint = described(open_weights(str(trained)), chosen)
    variant = Variant(format=Format.SAFETENSORS, precision=Precision.FLOAT16)
    exported = export(checkpoint, arguments.output, variant, overwrite=True)
    print(f"{arguments.output}: {exported.n_bytes / 1e6:.2f} MB, SHA-256 {exported.sha256}")
    print(f"{exported.check.measured}: {exported.check.difference:.2g} (allowed {exported.check.tolerance:.2g})")
    print(checkpoint.metadata)


def described(checkpoint: Checkpoint, chosen: Postprocessing) -> Checkpoint:
    metadata = replace(
        checkpoint.metadata,
        name=ENTRY.name,
        origin=f"{ENTRY.description}. {BRATS2021}. Made by {checkpoint.metadata.origin}",
        source_sha256=checkpoint.sha256,
        licence=ENTRY.licence,
        citation=ENTRY.citation,
        postprocessing=chosen if chosen != Postprocessing() else None,
    )
    return replace(checkpoint, metadata=metadata)


if __name__ == "__main__":
    main()
