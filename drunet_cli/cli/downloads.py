"""How a download of weights is told to a person."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drunet_cli.cli.console import DownloadBar, Screen
from drunet_cli.weights.cache import Watcher, open_weights
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.download import shown_url
from drunet_cli.weights.registry import Entry, cache_folder, source_url


def opener(screen: Screen) -> Callable[[str], Checkpoint]:
    """What opens weights by name and shows their download."""

    def opened(weights: str) -> Checkpoint:
        with DownloadWatcher(screen).shown() as watcher:
            return open_weights(weights, watcher=watcher)

    return opened


def would_download(entry: Entry) -> str:
    """What a dry run says of weights that are not there."""
    return (
        f"Weights {entry.name} are not in the cache: about {entry.megabytes} MB would be downloaded from "
        f"{shown_url(source_url(entry))} into {cache_folder()}"
    )


class DownloadWatcher(Watcher):
    """Announces a download and draws its bar."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bar: DownloadBar | None = None

    @contextmanager
    def shown(self) -> Iterator["DownloadWatcher"]:
        """End the bar when the block ends, however it ends."""
        try:
            yield self
        finally:
            self._stop()

    def announce_download(self, entry: Entry, url: str, cache: Path) -> None:
        """Say what will be fetched, how much, from where, to where, on what terms; then draw the bar, on a terminal only."""
        self._screen.note(f"Weights {entry.name} are not in the cache: downloading about {entry.megabytes} MB")
        for what, words in (("from", url), ("into", cache), ("licence:", entry.licence)):
            self._screen.note(f"  {what} {words}")
        if self._screen.draws:
            self._bar = DownloadBar(self._screen, entry.name, entry.megabytes * 1e6)

    def downloaded(self, n_bytes: int, n_total: int | None) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.move(n_bytes, n_total)

    def retrying(self, reason: str, delay_s: float) -> None:
        """Why the bar stands still."""
        self._screen.note(f"Download: {reason}; trying again in {delay_s:.0f} s")

    def importing(self, path: Path) -> None:
        """The last step, which takes some seconds."""
        self._stop()
        self._screen.note(f"Verifying and converting {path.stat().st_size / 1e6:.0f} MB")

    def waiting_for_other(self, name: str) -> None:
        """Why nothing seems to happen."""
        self._screen.note(f"Another process is downloading the weights {name}: waiting for it")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
