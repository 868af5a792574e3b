"""`drunet export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from drunet_cli.cli import options
from drunet_cli.cli.options import one_of
from drunet_cli.errors import MisuseError, OutputError
from drunet_cli.network.engine import Format, Head, Precision
from drunet_cli.weights.registry import DEFAULT, PUBLISHED_BN_EPSILON

if TYPE_CHECKING:
    from drunet_cli.network.export import Exported, Variant

_SUFFIXES: Final = {".onnx": Format.ONNX, ".h5": Format.KERAS, ".safetensors": Format.SAFETENSORS}
_TORCHSCRIPT: Final = ("torchscript", ".pt")


def export(
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=options.path,
            metavar="FILE",
            help="File to write: .onnx, .h5 or .safetensors. Required.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            autocompletion=one_of(Format),
            help="Kind of file: onnx, keras or safetensors.",
            show_default="by the suffix of FILE",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    weights: options.Weights = DEFAULT,
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="float32|float16",
            help="Number format of the weights, and of what an ONNX file computes; Keras files are float32.",
            rich_help_panel=options.NETWORK,
        ),
    ] = Precision.FLOAT32,
    head: Annotated[
        Head | None,
        typer.Option(
            metavar="OUTPUT",
            help="Output of an ONNX file: logits, softmax (probabilities; both float32) or argmax (class indices, uint8).",
            show_default="logits",
            rich_help_panel=options.NETWORK,
        ),
    ] = None,
) -> None:
    """Write weights in another format, and check the file before it appears.

    onnx: for other programs by ONNX. Its input, "slices", is float32,
    batch x 4 x X x Y, with the channels FLAIR, T1ce, T1, T2: the pixels that
    nii2png writes, divided by 255; X and Y are multiples of 32 plus 16, such as
    240. Its metadata say the rest.
    keras: .h5 in the layout of the authors' weights. safetensors: drunet's own.
    The file is run or read again and compared with the weights; the difference is
    printed on stderr, the path on stdout.

    drunet export --weights run/best.safetensors -o network.onnx
    """
    if output is None:
        raise MisuseError("missing -o: name the file to write")
    variant = _variant(output, format_, precision, head)

    from drunet_cli.cli.console import Screen, result, result_json
    from drunet_cli.cli.weights import opener
    from drunet_cli.host import limit_openmp_spinning
    from drunet_cli.network.export import check_onnx
    from drunet_cli.network.export import export as export_weights

    # Cheap checks first, as in segment.
    if variant.format is Format.ONNX:
        check_onnx()
    _check_output(output, weights, overwrite=overwrite)
    screen = Screen(quiet=quiet)
    limit_openmp_spinning()
    checkpoint = opener(screen)(weights)
    exported = export_weights(checkpoint, output, variant, overwrite=overwrite)
    metadata = checkpoint.metadata
    if variant.format is Format.KERAS and (metadata.bn_epsilon != PUBLISHED_BN_EPSILON or metadata.window == "auto"):
        way = f"epsilon {metadata.bn_epsilon:g} and run on {'windows' if metadata.window == 'auto' else 'whole frames'}"
        screen.warning(f"{output}: a Keras file does not say how it is to be run; these weights need {way}")
    check = exported.check
    screen.note(f"{output}: {check.measured} {check.difference:.2g} (allowed {check.tolerance:.2g})")
    if json:
        result_json(_document(output, variant, exported, name=checkpoint.metadata.name, sha256=checkpoint.sha256))
    else:
        result(str(output))


def _variant(output: Path, format_: str | None, precision: Precision, head: Head | None) -> "Variant":
    """The kind of file that the options ask for. Raises MisuseError for options that do not fit together."""
    suffix = output.suffix.lower()
    if (format_ or suffix) in _TORCHSCRIPT:
        raise MisuseError("TorchScript is not written, as PyTorch gives it up; use --format onnx")
    if format_ is None and suffix not in _SUFFIXES:
        raise MisuseError(f"{output}: ends in none of {', '.join(_SUFFIXES)}; give --format")
    if format_ is not None and format_ not in list(Format):
        raise MisuseError(f"--format {format_}: is none of {', '.join(Format)}")
    file_format = _SUFFIXES[suffix] if format_ is None else Format(format_)
    if _SUFFIXES.get(suffix, file_format) is not file_format:
        raise MisuseError(f"{output}: by its name it would be {_SUFFIXES[suffix]}, not {file_format}; name it otherwise")
    if precision not in (Precision.FLOAT32, Precision.FLOAT16):
        raise MisuseError(f"--precision {precision}: an export is float32 or float16")
    if file_format is Format.KERAS and precision is not Precision.FLOAT32:
        raise MisuseError("--precision float16: Keras files are float32")
    from drunet_cli.network.export import Variant

    if head is None:
        return Variant(format=file_format, precision=precision)
    if file_format is not Format.ONNX:
        raise MisuseError(f"--head {head}: is for ONNX; a {file_format} file holds weights alone")
    return Variant(format=file_format, precision=precision, head=head)


def _check_output(output: Path, weights: str, *, overwrite: bool) -> None:
    from drunet_cli.io.atomic import check_writable, is_same_file
    from drunet_cli.weights.registry import is_file_name, weights_path

    check_writable(output, overwrite=overwrite)
    if is_same_file(output, Path(weights) if is_file_name(weights) else weights_path(weights)):
        raise OutputError(f"{output}: is the file of these weights; name another output")


def _document(output: Path, variant: "Variant", exported: "Exported", *, name: str, sha256: str) -> dict[str, object]:
    return {
        "path": str(output),
        "format": variant.format,
        "precision": variant.precision,
        "head": (variant.head or Head.LOGITS) if variant.format is Format.ONNX else None,
        "sha256": exported.sha256,
        "bytes": exported.n_bytes,
        "difference": exported.check.difference,
        "tolerance": exported.check.tolerance,
        "weights": {"name": name, "sha256": sha256},
    }
