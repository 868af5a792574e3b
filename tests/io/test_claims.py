"""Who has claimed a file, and when that counts for nothing."""

import errno
import os
import socket
import time
from pathlib import Path
from typing import Final
from unittest import mock

import pytest

from drunet_cli.io import atomic
from drunet_cli.io.atomic import claim_file, claimant, remove_abandoned_claims
from tests.support import open_to_all, unprivileged

HOST: Final = socket.gethostname()
ENDED: Final = 999_999_999
LIVES: Final = os.getppid()

# What the claim of another process holds, its age, and who has therefore claimed the file.
CLAIMS: Final[dict[str, tuple[str, float, str | None]]] = {
    "lives": (f"{HOST} {LIVES}\n", 3600, f"process {LIVES} on {HOST}"),
    "has ended": (f"{HOST} {ENDED}\n", 0, None),
    "had the number of this process": (f"{HOST} {os.getpid()}\n", 0, None),
    "elsewhere": ("elsewhere 7\n", 300, "process 7 on elsewhere"),
    "elsewhere, long silent": ("elsewhere 7\n", 900, None),
    "not yet signed": ("", 0, "another process"),
    "never signed": ("", 900, None),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_while_its_process_is_known_to_live(name: str, tmp_path: Path) -> None:
    content, age_s, holder = CLAIMS[name]
    target, path = tmp_path / "seg.nii.gz", tmp_path / ".seg.nii.gz.claim"
    path.write_text(content)
    os.utime(path, (time.time() - age_s,) * 2)
    assert claimant(target) == holder
    claim = claim_file(target)
    assert (claim is None) == (holder is not None)
    assert path.read_text() == (content if claim is None else f"{HOST} {os.getpid()}\n")
    if claim is not None:
        claim.release()
        assert list(tmp_path.iterdir()) == []


def test_claims_of_processes_that_have_ended_are_removed_from_a_folder(tmp_path: Path) -> None:
    contents = {name: (tmp_path / f".{name}.claim", content) for name, (content, _, _) in CLAIMS.items()}
    for path, content in contents.values():
        path.write_text(content)
    (tmp_path / ".mine").touch()
    remove_abandoned_claims(tmp_path)
    remove_abandoned_claims(tmp_path / "absent")
    gone = {"has ended", "had the number of this process"}
    assert {path.name for path in tmp_path.iterdir()} == {".mine", *(f".{name}.claim" for name in CLAIMS.keys() - gone)}


def test_a_claim_that_another_process_has_taken_over_is_not_released(tmp_path: Path) -> None:
    claim, path = claim_file(tmp_path / "seg.nii.gz"), tmp_path / ".seg.nii.gz.claim"
    assert claim is not None
    path.write_text(f"{HOST} {LIVES}\n")
    claim.release()
    assert path.exists()


def test_a_claim_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, path = claim_file(tmp_path / "seg.nii.gz"), tmp_path / ".seg.nii.gz.claim"
    assert claim is not None
    os.utime(path, (0, 0))
    claim.renew()  # made just now
    assert path.stat().st_mtime == 0
    monkeypatch.setattr(atomic, "_RENEWED_AFTER_S", 0.0)
    claim.renew()
    assert path.stat().st_mtime > 0


def test_a_claim_is_renewed_while_a_single_step_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_RENEWED_AFTER_S", 0.01)
    claim = claim_file(tmp_path / "p1.nii.gz")
    assert claim is not None
    path = atomic.claim_of(tmp_path / "p1.nii.gz")
    with claim.keep_renewed():
        os.utime(path, (0, 0))
        until = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
    assert path.stat().st_mtime > 0


def test_work_goes_on_where_nothing_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    open_to_all(tmp_path)
    with unprivileged():
        claim = claim_file(tmp_path / "shut/seg.nii.gz")
    assert claim is not None
    claim.renew()
    claim.release()


def test_a_claim_that_cannot_be_signed_is_not_left_for_others_to_wait_for(tmp_path: Path) -> None:
    with mock.patch.object(atomic, "_signature", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        claim = claim_file(tmp_path / "seg.nii.gz")
        assert claim is not None
        assert list(tmp_path.iterdir()) == []
        claim.release()
