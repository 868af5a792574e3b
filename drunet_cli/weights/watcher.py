"""Who is told how a download of weights goes."""

import logging
from pathlib import Path
from typing import Final

from drunet_cli.weights.registry import Entry

_LOG: Final = logging.getLogger("drunet_cli")


class Watcher:
    """Told how a download goes; does nothing with it. The command line draws it in a class of its own."""

    def announce_download(self, entry: Entry, url: str, cache: Path) -> None:
        """A download is about to begin."""

    def downloaded(self, n_bytes: int, n_total: int | None) -> None:
        """So many bytes have arrived, of so many if that is known."""

    def retrying(self, reason: str, delay_s: float) -> None:
        """An attempt failed; another follows after so many seconds."""

    def importing(self, path: Path) -> None:
        """The file is complete and is now verified and converted."""

    def waiting_for_other(self, name: str) -> None:
        """Another process is fetching the same weights."""


class LoggingWatcher(Watcher):
    """Tells the logger "drunet_cli" why a program waits: as warnings, which Python shows where nothing else is configured."""

    def announce_download(self, entry: Entry, url: str, cache: Path) -> None:
        """Size, source, folder and licence."""
        _LOG.warning("downloading weights %s, about %d MB, from %s into %s", entry.name, entry.megabytes, url, cache)
        _LOG.warning("licence of %s: %s", entry.name, entry.licence)

    def retrying(self, reason: str, delay_s: float) -> None:
        """Why it takes longer."""
        _LOG.warning("download: %s; trying again in %.0f s", reason, delay_s)

    def waiting_for_other(self, name: str) -> None:
        """Why nothing happens."""
        _LOG.warning("another process is downloading the weights %s: waiting for it", name)
