"""A case in a browser: one page that shows its images and labels in three linked planes, and needs no other file.

The page is `viewer.html.j2` with `viewer.css` and `viewer.js` in it. This module packs the voxels that the script unpacks:
turned to X, Y, Z (L, P, S), cropped to the brain, 8 bits each. No other data of the patient go into the page than these and
the name of the case.

`render_page` makes this page and that of `drunet report`. Such a page NAME is made of three files in the room that fills it:
NAME.html.j2 (a template), NAME.css and NAME.js.
"""

import base64
import hashlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import jinja2
import numpy as np
import numpy.typing as npt

import drunet_cli
from drunet_cli.brats import (
    CLASS_COLOURS,
    CLASS_NAMES,
    REGION_NAMES,
    REGIONS,
    TUMOUR_CLASSES,
    ClassMap,
    Labels,
    Modality,
    TumourClass,
    dice_of,
    label_value,
    volume_digits,
    volumes_ml,
    voxel_counts,
)
from drunet_cli.errors import one_line
from drunet_cli.io.checks import SERIOUS, WarningCode, voxel_litres
from drunet_cli.io.geometry import Box, Turn, spacing_mm
from drunet_cli.segmentation.preview import LETTERS, box_of_all, grey_window

Voxels = npt.NDArray[Any]
Codes = npt.NDArray[np.uint8]

LARGEST_BYTES: Final = 6_000_000  # of a page; 19 BraTS cases take 3.7 to 6.3 MB with 255 greys, and 3 of them had to take 180
_LEVELS: Final = (255, 180, 127)  # greys of a voxel above 0, tried in this order; half as many save a fifth of a page
_LEAST_LEFT: Final = 0.7  # of the bytes of as many voxels, at fewer greys
_PERCENTILES: Final = (0.1, 99.9)  # of the brain: the darkest and the brightest grey; what lies beyond is as dark or as bright
_MOST_SAMPLED: Final = 2**20  # voxels that the percentiles are taken of
_OBLIQUE_DEGREES: Final = 5.0
_MEMORY_LEVEL: Final = 9
_FILE: Final = re.compile(r"(?:.*/[^/]*?|[^/]*?\.nii(?:\.gz)?)(?: \((\w+)\))?: ")  # and the image that it is

# Names of groups of classes, as the table of the page has them.
_GROUPS: Final[dict[str, tuple[TumourClass, ...]]] = {
    **REGIONS,
    **{each.name: (each,) for each in TUMOUR_CLASSES if each.name not in REGIONS},
}
_NAMES: Final = {**REGION_NAMES, **{each.name: CLASS_NAMES[each] for each in TUMOUR_CLASSES}}


@dataclass(frozen=True)
class Labelled:
    """A label map to show. class_map: class indices [I, J, K]. labels: the label values that its file holds."""

    class_map: ClassMap
    labels: Labels


def encode_viewer(
    images: Mapping[Modality, Voxels],
    prediction: Labelled,
    *,
    affine: npt.NDArray[np.float64],
    name: str,
    reference: Labelled | None = None,
    weights: Sequence[str] = (),
    warnings: Sequence[tuple[str, str]] = (),
    side: str = "",
    caveat: str = "",
) -> bytes:
    """The page as UTF-8, of at most 6 MB. Equal arguments give equal bytes.

    images: [I, J, K] in the case's own axes, any type, background 0. affine: voxel indices to RAS millimetres; an oblique one
    goes to the nearest axes. weights: their names. warnings: code and message of each. side: where the tumour lies, in
    words. caveat: what is to be said of the weights.

    Where the page would be larger, the images (never the labels) become coarser: fewer greys, then means of 2, 4 and so on
    voxels, along the axis of the smallest ones first. The page says so.
    """
    turn = Turn.of(affine, prediction.class_map.shape)
    turned = {modality: turn.turned(voxels) for modality, voxels in images.items()}
    label_maps = {"prediction": prediction} if reference is None else {"prediction": prediction, "reference": reference}
    classes = {source: turn.turned(each.class_map) for source, each in label_maps.items()}
    box = box_of_all([*turned.values(), *classes.values()])
    cropped = {modality.value: voxels[box] for modality, voxels in turned.items()}
    packed_labels = {source: _pack(each[box], strategy=zlib.Z_DEFAULT_STRATEGY) for source, each in classes.items()}
    page, share = b"", 1.0
    for levels, step in _finenesses(classes["prediction"][box].shape, spacing_mm(turn.affine)):
        if len(page) / share / math.prod(step) * _LEAST_LEFT > LARGEST_BYTES:
            continue  # a very large case does not try what cannot suffice
        share = 1 / math.prod(step)
        greys = {modality: _quantised(voxels, levels, step) for modality, voxels in cropped.items()}
        packed = {modality: _pack(each.codes, strategy=zlib.Z_RLE) for modality, each in greys.items()}
        page = render_page(
            "drunet_cli.segmentation",
            "viewer",
            name=name,
            weights=weights,
            warnings=[(code, _without_file(message)) for code, message in dict.fromkeys(warnings)],
            serious=any(code in SERIOUS for code, _ in warnings),
            side=side,
            caveat=caveat,
            rows=_rows(label_maps, voxel_ml=voxel_litres(affine) * 1000),
            planes={plane.value: letters for plane, letters in LETTERS.items()},
            sides_known=all(code != WarningCode.NO_ORIENTATION for code, _ in warnings),
            modalities={modality.value: modality.display for modality in images},
            sources=list(label_maps),
            oblique=_oblique_in_words(turn.affine),
            coarse=_in_words(levels, step),
            volumes={key: each.text for key, each in {**packed, **packed_labels}.items()},
            case={
                **_geometry(turn, box, prediction.class_map.shape),
                "modalities": {modality: each.described(packed[modality].stride) for modality, each in greys.items()},
                "labels": {
                    source: {
                        "stride": packed_labels[source].stride,
                        "values": [0, *(label_value(index, each.labels) for index in TUMOUR_CLASSES)],
                    }
                    for source, each in label_maps.items()
                },
                "classes": [f"{index.name} {CLASS_NAMES[index]}" for index in TUMOUR_CLASSES],
                "colours": [list(CLASS_COLOURS[index]) for index in TUMOUR_CLASSES],
                "groups": _GROUPS,
            },
        )
        if len(page) <= LARGEST_BYTES:
            break
    return page


def _finenesses(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Levels and steps, from the finest; the last one gives one voxel."""
    step = np.ones(3, dtype=int)
    yield from ((levels, (1, 1, 1)) for levels in _LEVELS)
    while (step < shape).any():
        finest = int(np.argmin(np.where(step < shape, step * spacing, np.inf)))
        step[finest] *= 2
        x, y, z = step.tolist()
        yield _LEVELS[-1], (x, y, z)


@dataclass(frozen=True)
class _Greys:
    """An image in 8 bits.

    codes: [X, Y, Z]; 0 is background, 1 to `levels` go from the intensity `low` to `high` in equal steps.
    step: how many voxels of the case along X, Y and Z one code stands for. window: the intensities shown black and white.
    """

    codes: Codes
    low: float
    high: float
    levels: int
    step: tuple[int, int, int]
    window: tuple[float, float]

    def described(self, stride: int) -> dict[str, Any]:
        """The values that the page's script reads. stride: see `_Packed`."""
        names = ("low", "high", "levels", "step", "window")
        return {"shape": self.codes.shape, "stride": stride, **{name: getattr(self, name) for name in names}}


def _quantised(voxels: Voxels, levels: int, step: tuple[int, int, int]) -> _Greys:
    """An image in grey levels, and their window. voxels: [X, Y, Z]."""
    window = grey_window(voxels)
    sampled = voxels.reshape(-1)[:: max(1, voxels.size // _MOST_SAMPLED)]
    brain = sampled[sampled > 0]
    low, high = (float(value) for value in np.percentile(brain, _PERCENTILES)) if brain.size else (0.0, 1.0)
    if not low < high:
        low, high = window
    codes = np.zeros(voxels.shape, dtype=np.uint8)
    for z in range(voxels.shape[2]):  # a slice at a time: floats of a whole volume would take much memory
        plane = voxels[..., z].astype(np.float64)
        shares = np.clip((plane - low) / (high - low), 0, 1)
        codes[..., z] = np.where(plane > 0, 1 + np.rint(shares * (levels - 1)), 0)
    return _Greys(_averaged(codes, step), low, high, levels, step, window)


def _averaged(codes: Codes, step: tuple[int, int, int]) -> Codes:
    """The mean over blocks of voxels; what is missing in the last blocks counts as background."""
    for axis, n in enumerate(step):
        if n > 1:
            padding = [(0, -codes.shape[axis] % n if each == axis else 0) for each in range(3)]
            padded = np.pad(codes, padding)
            blocks = padded.reshape(*padded.shape[:axis], -1, n, *padded.shape[axis + 1 :])
            codes = np.rint(blocks.mean(axis=axis + 1, dtype=np.float32)).astype(np.uint8)
    return codes


@dataclass(frozen=True)
class _Packed:
    """A volume as text: X runs fastest; every byte less the one `stride` before it (modulo 256); deflated; in base 64."""

    text: str
    stride: int


def _pack(volume: Codes, *, strategy: int) -> _Packed:
    """Compress a volume [X, Y, Z] as differences; the stride is that of the axis along which neighbours differ least.

    Lengths of runs alone compress such differences of images better than whole deflate does, and in a fraction of the time.
    """
    flat = volume.ravel(order="F")
    strides = (1, volume.shape[0], volume.shape[0] * volume.shape[1])
    differences = {stride: np.concatenate((flat[:stride], flat[stride:] - flat[:-stride])) for stride in strides}
    stride = min(strides, key=lambda each: int(np.abs(differences[each].view(np.int8), dtype=np.int16).sum()))
    deflate = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, zlib.MAX_WBITS, _MEMORY_LEVEL, strategy)
    deflated = deflate.compress(differences[stride].tobytes()) + deflate.flush()
    return _Packed(base64.b64encode(deflated).decode(), stride)


def _geometry(turn: Turn, box: Box, shape: tuple[int, ...]) -> dict[str, Any]:
    """The place of the page's voxels in the patient and in the file. shape: I, J, K.

    affine: three rows, from X, Y, Z of the page to RAS millimetres. stored: for I, J, K the axis of the page behind it, the
    index at its first voxel, and 1 or -1 for its direction.
    """
    starts = np.array([extent.start for extent in box])
    affine = turn.affine.copy()
    affine[:, 3] = turn.affine @ [*starts, 1]
    stored: list[Any] = [None, None, None]
    for axis, (behind, flip) in enumerate(zip(turn.axes, turn.flips, strict=True)):
        first = starts[axis] if flip > 0 else shape[behind] - 1 - starts[axis]
        stored[behind] = [axis, int(first), flip]
    return {
        "shape": [extent.stop - extent.start for extent in box],
        "spacing": list(spacing_mm(turn.affine)),
        "affine": affine[:3].tolist(),
        "stored": stored,
    }


def _oblique_in_words(affine: npt.NDArray[np.float64]) -> str:
    """A note on the angle between the axes of a turned volume and the patient's; empty where the angle is small."""
    cosines = np.abs(np.diag(affine[:3, :3])) / np.array(spacing_mm(affine))
    degrees = float(np.degrees(np.arccos(np.clip(cosines, 0, 1))).max())
    return f"{degrees:.0f}\N{DEGREE SIGN}" if degrees > _OBLIQUE_DEGREES else ""


def _rows(label_maps: Mapping[str, Labelled], *, voxel_ml: float) -> list[dict[str, Any]]:
    """The table of regions and classes: name, words, millilitres of each label map, Dice of two."""
    counts = {source: voxel_counts(each.class_map) for source, each in label_maps.items()}
    volumes = {source: volumes_ml(of_source, voxel_ml) for source, of_source in counts.items()}
    maps = [each.class_map for each in label_maps.values()]
    rows = []
    for key, classes in _GROUPS.items():
        dice = None
        if len(maps) > 1:
            common = int(np.count_nonzero(np.logical_and(*(np.isin(each, classes) for each in maps))))
            dice = dice_of(common, *(of_source[key] for of_source in counts.values()))
        ml = {source: of_source[key] for source, of_source in volumes.items()}
        rows.append({"key": key, "words": _NAMES[key], "ml": ml, "dice": dice})
    return rows


def _without_file(message: str) -> str:
    """A message without the file that it begins with, whose name and folders may name the patient."""
    found = _FILE.match(message)
    return message if found is None else f"{found[1]}: {message[found.end() :]}" if found[1] else message[found.end() :]


def _in_words(levels: int, step: tuple[int, int, int]) -> str:
    """A note that names the images which are shown coarser than they are; empty where none is."""
    means = f" and means of {' x '.join(map(str, step))} voxels" if max(step) > 1 else ""
    return f"{levels} greys{means}" if levels < _LEVELS[0] else ""


def render_page(package: str, page: str, /, **values: Any) -> bytes:
    """A page that opens from a file and loads nothing from anywhere, as UTF-8; equal values give equal bytes.

    package: where its three files lie, such as "drunet_cli.report". values: what the template names, beside `style`, `script`,
    their digests for the page's security policy, and the `version` of drunet. Every value is escaped and folded to one line,
    but for those that are marked as HTML.
    """
    folder = files(package)
    template, style, script = (folder.joinpath(f"{page}{suffix}").read_text("utf-8") for suffix in (".html.j2", ".css", ".js"))
    environment = jinja2.Environment(
        autoescape=True, finalize=_folded, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # modalities have an order
    environment.filters["millilitres"] = volume_digits
    environment.filters["fixed"] = lambda number: f"{number:.1f}"
    rendered = environment.from_string(template).render(
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
        version=drunet_cli.__version__,
        **values,
    )
    return rendered.encode()


def _folded(value: object) -> object:
    """A value as one line: names of files may hold anything. Text that is HTML already stays as it is."""
    return value if hasattr(value, "__html__") else one_line(str(value))


def _digest(source: str) -> str:
    """The hash by which the page's security policy allows its one script, or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
