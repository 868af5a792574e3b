"""The settings of a segmentation: weights, windows and averaging, post-processing, and the files to write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from drunet_cli.brats import CHANNELS, Labels, Modality
from drunet_cli.errors import MisuseError
from drunet_cli.host import check_device_name
from drunet_cli.network.engine import EngineName, Precision, WindowMode
from drunet_cli.weights.checkpoint import Metadata, Postprocessing
from drunet_cli.weights.registry import DEFAULT

PREVIEWED: Final = (Modality.FLAIR, Modality.T1CE)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one run: built once, handed down whole, written into the sidecar, and compared when a run resumes.

    Raises ValueError for an impossible number or word, and MisuseError for settings that exclude one another.
    """

    weights: tuple[str, ...] = (DEFAULT,)
    """Sets of weights, by registered name or by file. The probabilities of several are averaged."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    precision: Precision = Precision.AUTO
    """Number format of the network's arithmetic."""

    engine: EngineName = EngineName.AUTO
    """The library that computes."""

    window: WindowMode | None = None
    """The part of a slice that the network sees; None: as the weights were trained."""

    fast: bool = False
    """Compute by windows, and in bfloat16 on a CPU that has it: for a look. The sidecar says what ran."""

    deterministic: bool = False
    """Compute equal bytes from run to run, on a GPU too."""

    batch_size: int | None = None
    """Slices computed at once; None: by the device."""

    threads: int | None = None
    """CPU threads that compute; None: those that are granted."""

    flips: bool = False
    """Average the probabilities over the four in-plane flips of a slice."""

    mc_samples: int = 0
    """Average the probabilities over this many samples with dropout on; 0: one pass without dropout."""

    dropout: float | None = None
    """Dropout rate of the samples; None: as the weights record."""

    seed: int = 0
    """Seed of the samples."""

    within_brain: bool = False
    """Labels where none of the four images is above 0 become background."""

    min_volume_ml: float | tuple[float, float, float] = 0.0
    """Connected parts of the whole tumour below this volume become background; 0: none does. Or three volumes, by region: parts
    of the whole tumour below the first become background, those of the tumour core below the second oedema, and those of
    enhancing tumour below the third necrotic core."""

    min_enhancing_ml: float = 0.0
    """Enhancing tumour that is less than this in all becomes necrotic core; 0: it never does.

    Source: Isensee et al., nnU-Net for Brain Tumor Segmentation (BrainLes 2020, arXiv:2011.00848). In a case without any
    enhancing tumour, a single false voxel makes BraTS' Dice 0.
    """

    recommended_postprocessing: bool = False
    """Take the volumes that the weights recommend for the two steps above, which are then not given."""

    probabilities: bool = False
    """Keep the probabilities of the classes, and write them beside the label map."""

    uncertainty: bool = False
    """Keep the uncertainty of the regions and the entropy of the classes, and write them beside the label map."""

    preview: bool = False
    """Draw a picture beside the label map."""

    shows_preparation: bool = False
    """Put the picture of the preparation beside the label map; for raw scans, which are prepared with a picture."""

    viewer: bool = False
    """Write a page beside the label map that shows the case in a browser."""

    in_space: tuple[Modality, ...] = ()
    """Raw scans on whose own grids the labels are written too; for cases that drunet has prepared."""

    dicom_seg: bool = False
    """Write a DICOM segmentation object on the series of the raw scans in `in_space`, else on that of T1ce; for cases that
    drunet prepares from DICOM in the same run."""

    sidecar: bool = True
    """Write the JSON file beside the label map, which says what it was made of."""

    bids: bool = False
    """Lay the outputs out as a BIDS derivatives data set."""

    labels: Labels = Labels.BRATS2020
    """The convention of the label map: enhancing tumour is 4 or 3."""

    strict: bool = False
    """Let a case fail that has a warning which says that its label map is likely wrong."""

    overwrite: bool = False
    """Replace outputs that are there."""

    skip_existing: bool = False
    """Leave out cases whose outputs are complete and were made of the same files with the same settings."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights: name at least one set")
        check_device_name(self.device)
        for least, names in _LEAST.items():
            for name in names:
                number = getattr(self, name)
                if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
                    raise ValueError(f"{name}={number}: must be a whole number")
                if number is not None and number < least:
                    raise ValueError(f"{name}={number}: must be {least} or more")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: a rate is 0 or more, and below 1")
        if self.dropout == 0:
            raise MisuseError("dropout=0: samples differ only with a rate above 0")
        _ = self._postprocessing
        if (self.dropout is not None or self.seed) and self.mc_samples == 0:
            raise MisuseError("dropout=P and seed=N are for samples; give mc_samples=N too")
        if self.fast and (self.window is not None or self.precision is not Precision.AUTO):
            raise MisuseError("fast=True chooses window and precision itself; leave them out")
        if self.recommended_postprocessing and self._postprocessing.does_anything:
            raise MisuseError("recommended_postprocessing=True chooses min_volume_ml=N and min_enhancing_ml=N; leave them out")
        if self.skip_existing and self.overwrite:
            raise MisuseError("skip_existing=True and overwrite=True exclude one another")
        if self.skip_existing and not self.sidecar:
            raise MisuseError("skip_existing=True needs the sidecars; leave sidecar=False out")
        if self.bids and not self.sidecar:
            raise MisuseError("bids=True needs the sidecars; leave sidecar=False out")
        if self.preview:
            from drunet_cli.io.png import check_drawable  # Pillow: not for runs without a picture

            check_drawable()

    @property
    def _postprocessing(self) -> Postprocessing:
        """The changes that are asked for by number. Raises ValueError for a volume below 0, or not finite."""
        return Postprocessing(min_volume_ml=self.min_volume_ml, min_enhancing_ml=self.min_enhancing_ml)

    @property
    def shown(self) -> tuple[Modality, ...]:
        """The images that the files beside the label map show."""
        return CHANNELS if self.viewer else PREVIEWED if self.preview else ()

    @property
    def carried_to(self) -> tuple[Modality, ...]:
        """The raw scans that the labels are carried back to."""
        return self.in_space or ((Modality.T1CE,) if self.dicom_seg else ())

    @property
    def cleans_up(self) -> bool:
        """Whether anything is to be changed in the label map that the network gives."""
        return self.within_brain or self.recommended_postprocessing or self._postprocessing.does_anything

    def check_for(self, weights: Sequence[Metadata]) -> None:
        """Raise MisuseError for weights that lack a value which the settings leave to them, or differ in such a value."""
        self.window_for(weights)
        self.dropout_rates(weights)
        self.postprocessing_for(weights)

    def window_for(self, weights: Sequence[Metadata]) -> WindowMode:
        """The part of a slice that the network sees: as asked for, else as the weights were trained.

        Raises MisuseError for weights that were trained on different windows.
        """
        if self.fast or self.window is not None:
            return self.window or WindowMode.AUTO
        trained = {metadata.window for metadata in weights}
        if len(trained) > 1:
            raise MisuseError("the weights were trained on different windows of the frame; choose window=full or window=auto")
        return WindowMode(trained.pop())

    def dropout_rates(self, weights: Sequence[Metadata]) -> list[float]:
        """The dropout rate of each set of weights, 0 without samples. Raises MisuseError for weights that record none."""
        if self.mc_samples == 0:
            return [0.0 for _ in weights]
        if self.dropout is not None:
            return [self.dropout for _ in weights]
        return [_recorded_dropout(metadata) for metadata in weights]

    def postprocessing_for(self, weights: Sequence[Metadata]) -> Postprocessing:
        """The changes to the label map: as given, else as the weights recommend.

        Raises MisuseError for weights that recommend nothing, or different things.
        """
        if not self.recommended_postprocessing:
            return self._postprocessing
        recommended = [(metadata.name, metadata.postprocessing) for metadata in weights]
        for name, postprocessing in recommended:
            if postprocessing is None:
                raise MisuseError(
                    f"recommended_postprocessing=True: the weights {name} recommend none; give min_volume_ml=N or "
                    "min_enhancing_ml=N, or leave both out"
                )
            if postprocessing != recommended[0][1]:
                raise MisuseError(
                    f"recommended_postprocessing=True: the weights {recommended[0][0]} and {name} recommend different volumes; "
                    "give min_volume_ml=N and min_enhancing_ml=N"
                )
        return recommended[0][1] or Postprocessing()

    def recorded(self, weights: Sequence[Metadata]) -> dict[str, Any]:
        """The settings that may change a voxel, as the sidecar has them, without weights, label values and engine.

        weights: the metadata of the weights, which decide what was not asked for.
        """
        rates, postprocessing = self.dropout_rates(weights), self.postprocessing_for(weights)
        least = postprocessing.min_volume_ml
        source = "recorded in the weights" if self.dropout is None else "given"
        rate: Any = rates[0] if len(set(rates)) == 1 else rates
        return {
            "window": self.window_for(weights).value,
            "tta": "flips" if self.flips else "none",
            "mc_samples": self.mc_samples,
            "dropout": {"rate": rate, "source": source} if self.mc_samples else None,
            "seed": self.seed if self.mc_samples else None,
            "within_brain": self.within_brain,
            "min_volume_ml": list(least) if isinstance(least, tuple) else least,
            "min_enhancing_ml": postprocessing.min_enhancing_ml,
            "deterministic": self.deterministic,
        }

    def compared(self, weights: Sequence[Metadata]) -> dict[str, Any]:
        """The recorded settings that two runs must share to make the same label map.

        Left out are `deterministic`, an engine that nobody named, and the precision of a fast run.
        """
        settings = {name: value for name, value in self.recorded(weights).items() if name != "deterministic"}
        if not self.fast:
            settings["precision"] = Precision.FLOAT32.value if self.precision is Precision.AUTO else self.precision.value
        return settings if self.engine is EngineName.AUTO else {**settings, "engine": self.engine.value}


_LEAST: Final = {
    1: ("batch_size", "threads"),
    0: ("mc_samples", "seed"),
}


def _recorded_dropout(weights: Metadata) -> float:
    if not weights.dropout:
        reason = "were trained without dropout" if weights.dropout == 0 else "do not record their dropout rate"
        raise MisuseError(f"mc_samples=N: the weights {weights.name} {reason}; name one by dropout=P")
    return weights.dropout
