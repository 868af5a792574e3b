"""Which folders of a tree are entered, in what order, and what is told of them."""

import tempfile
from pathlib import Path

from drunet_cli.io.discovery import Folder, folders_from, identity_of
from tests.support import unprivileged


def touched(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_and_their_files_come_sorted_a_folder_before_those_in_it(tmp_path: Path) -> None:
    touched(tmp_path / "b" / "z", tmp_path / "b" / "y", tmp_path / "a" / "c" / "x", tmp_path / "file")
    found = [(folder.path, folder.files) for folder in folders_from(tmp_path) if isinstance(folder, Folder)]
    assert found == [(tmp_path, ["file"]), (tmp_path / "a", []), (tmp_path / "a" / "c", ["x"]), (tmp_path / "b", ["y", "z"])]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touched(tmp_path / ".hidden" / "x", tmp_path / ".y")
    assert list(folders_from(tmp_path)) == [Folder(tmp_path, identity_of(tmp_path.stat()), [])]


def test_a_folder_is_entered_once_by_however_many_links(tmp_path: Path) -> None:
    touched(tmp_path / "a" / "x")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [folder.path for folder in folders_from(tmp_path) if isinstance(folder, Folder)] == [tmp_path, tmp_path / "a"]


def test_a_link_to_itself_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    [folder] = folders_from(tmp_path)
    assert isinstance(folder, Folder)
    assert folder.files == ["self"]


def test_what_is_left_out_is_not_entered(tmp_path: Path) -> None:
    touched(tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "c" / "a" / "x")
    found = folders_from(tmp_path, left_out=identity_of((tmp_path / "b").stat()), names_left_out=("a",))
    assert [folder.path for folder in found if isinstance(folder, Folder)] == [tmp_path, tmp_path / "c"]


def test_a_folder_that_refuses_is_told_and_the_rest_is_entered() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in folders that only their owner may enter
        top = Path(name)
        touched(top / "a" / "x", top / "b" / "x")
        top.chmod(0o755)
        (top / "a").chmod(0)
        with unprivileged():
            whole, refused, other = folders_from(top)
        (top / "a").chmod(0o755)
    assert isinstance(whole, Folder)
    assert isinstance(other, Folder)
    assert not isinstance(refused, Folder)
    path, error = refused
    assert (path, type(error)) == (top / "a", PermissionError)
