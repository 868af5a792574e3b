"""Which cases folders and tables hold, and what is said of those that cannot be used."""

import json
import os
import string
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.io.discovery import Cohort, find_cases
from drunet_cli.io.folders import Folder, folders_from, identity_of
from drunet_cli.io.naming import WORDS, Naming
from tests.support import unprivileged

FLAIR, T1CE, T1, T2 = CHANNELS
BRATS_2021: Final = ("flair", "t1ce", "t1", "t2")
BRATS_2023: Final = ("t2f", "t1c", "t1n", "t2w")
NNUNET: Final = ("0000", "0001", "0002", "0003")
NNUNET_ORDER: Final = (T1, T1CE, T2, FLAIR)
BY_NUMBER: Final = Naming(channels=NNUNET_ORDER)
DATASET: Final = {"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}, "file_ending": ".nii.gz"}
OTHER_NAMES: Final = "--pattern names others, and the network needs all four"


def images(prefix: str, words: Iterable[str] = BRATS_2021, *, suffix: str = ".nii.gz") -> list[str]:
    return [f"{prefix}{word}{suffix}" for word in words]


def tree(top: Path, *names: str) -> Path:
    """A folder of empty files; a name that ends in / is a folder."""
    for name in names:
        path = top / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return top


def names_of(cohort: Cohort) -> list[str]:
    return [case.name for case in cohort.cases]


def refusals(top: Path, cohort: Cohort) -> list[str]:
    """What is said of the broken cases, paths from the top."""
    return [str(case.error).replace(f"{top}/", "").replace(str(top), "TOP") for case in cohort.broken]


def only_refusal(top: Path, *sources: Path, naming: Naming | None = None) -> str:
    cohort = find_cases(sources or [top], naming or Naming())
    assert cohort.cases == ()
    [words] = refusals(top, cohort)
    return words


def file_names(cohort: Cohort) -> Mapping[Modality, str]:
    (case,) = cohort.cases
    return {modality: path.name for modality, path in case.images.items()}


def table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("case,t1,t1ce,t2,flair", *rows)) + "\n")
    return path


@contextmanager
def refusing(*folders: Path) -> Iterator[None]:
    """As a user who may not enter these; the one above is a temporary folder that everybody may enter."""
    for folder in folders:
        folder.chmod(0)
    try:
        with unprivileged():
            yield
    finally:
        for folder in folders:
            folder.chmod(0o700)


# --- what makes a case: files of a folder -> names of cases

PLAIN: Final = Naming()
FOUND: Final[dict[str, tuple[Sequence[str], list[str], Naming]]] = {
    "BraTS 2021": (images("BraTS2021_01479_"), ["BraTS2021_01479"], PLAIN),
    "BraTS 2023": (images("BraTS-GLI-00005-100-", BRATS_2023, suffix=".nii"), ["BraTS-GLI-00005-100"], PLAIN),
    "TCGA": (images("TCGA-02-0006_1996.08.23_", ("flair", "t1Gd", "t1", "t2")), ["TCGA-02-0006_1996.08.23"], PLAIN),
    "other spellings": (images("p.", ("T2FLAIR", "T1post", "T1pre", "T2"), suffix=".NII.GZ"), ["p"], PLAIN),
    "any letters": (images("étude_Ärztin_患者_"), ["étude_Ärztin_患者"], PLAIN),
    "spaces": (images("sub 7 "), ["sub 7"], PLAIN),
    "separators around": (["a_flair_.nii", "a__t1ce.nii", "_a - t1.nii", "a_t2..nii"], ["a"], PLAIN),
    "the folder's name": (images("p 7/"), ["p 7"], PLAIN),
    "partly the folder's name": ([*images("p7/", ["flair", "t1"]), *images("p7/p7_", ["t1ce", "t2"])], ["p7"], PLAIN),
    "flat": ([name for case in ("b", "a", "a_2", "B") for name in images(f"{case}_")], ["B", "a", "a_2", "b"], PLAIN),
    "compressed and plain": ([*images("a_", ["flair", "t1"]), *images("a_", ["t1ce", "t2"], suffix=".nii")], ["a"], PLAIN),
    "any depth": ([*images("HGG/x/x_"), *images("LGG/site/w/w-", BRATS_2023), *images("y_")], ["w", "x", "y"], PLAIN),
    "modality in the middle": ([*images("p_flair_"), "p_t1_bias.nii.gz", "p_t1ce_brain_mask.nii.gz"], ["p_flair"], PLAIN),
    "hidden": ([*images("a_"), *images("._a_"), *images("__MACOSX/._a_"), *images(".git/b_"), ".a_flair.nii.gz.h.7.tmp"],
               ["a"], PLAIN),
    "other files": ([*images("a_"), "a.nii.gz", "a_entropy.nii.gz", "a_flair.json", "survival_t1.csv", "_.nii",
                     "scan_2019.nii.gz", "x_00000.nii.gz", "b_seg.nii.gz"], ["a"], PLAIN),
    "folders named like images": ([*images("a_"), *images("b_flair.nii/b_"), "a_flair.nii/"], ["a", "b"], PLAIN),
    "a folder named like a table": (images("cases.csv/a_"), ["a"], PLAIN),
    "tables in folders": ([*images("a_"), "cases.csv"], ["a"], PLAIN),
    "numbers": (images("a_", NNUNET), ["a"], BY_NUMBER),
    "four digits alone": (images("a_", [*NNUNET, "001", "00004", "٠٠٠٤"]), ["a"], BY_NUMBER),
    "numbers beside words": (images("a_", [*BRATS_2021, *NNUNET, "2019"]), ["a"], PLAIN),
    "nnU-Net's label maps": ([*images("imagesTr/case_0001_", NNUNET), "labelsTr/case_0001.nii.gz", "labelsTs/x_0002.nii.gz"],
                             ["case_0001"], BY_NUMBER),
    "a pattern for one": (images("p/a_", ["FLAIR", "T1", "T1_contrast", "t1ce", "T2"]), ["a"],
                          Naming({"t1ce": "*_contrast.nii.gz"})),
    "a pattern takes a file": (images("a_", ["FLAIR", "T1", "post_T1", "T2"]), ["a"], Naming({"t1ce": "*_post_T1.nii.gz"})),
    "patterns and hidden files": ([*images("a_"), "a_flair.json", "._a_flair.nii.gz"], ["a"], Naming({"flair": "*flair*"})),
    "a pattern beside built-in names": ([*images("a/a_"), *images("p/", ["FL", "t1", "km_t1", "t2"]), *images("flat/x_"),
                                         *images("flat/y_")], ["a", "p", "x", "y"], Naming({"flair": "FL*"})),
    "patterns make a folder a case": (
        [*images("sub-1/anat/sub-1_", ("FL", "post", "pre", "T2")), "sub-1/anat/truth.nii.gz",
         *images("p7/", ("FL", "post", "pre", "T2"), suffix=".nii"), *images("p8/", ("FL", "T1post", "T1pre", "T2")),
         "p8/x_0001.nii.gz", "p9/other_t1.nii.gz", "p9/scan_0001.nii.gz"],
        ["p7", "p8", "sub-1"],
        Naming({"flair": "*FL*", "t1ce": "*post*", "t1": "*pre*", "t2": "*T2*", "seg": "*truth*"}),
    ),
    "BIDS": (
        ["dataset_description.json", "participants.tsv", "README",
         *images("sub-01/anat/sub-01_", ("FLAIR", "ce-gadolinium_T1w", "T1w", "T2w")),
         *images("sub-02/ses-1/anat/sub-02_ses-1_", ("acq-3D_FLAIR", "acq-mprage_ce-Gd_T1w", "acq-mprage_T1w", "acq-tse_T2w")),
         *images("sub-02/ses-2/anat/sub-02_ses-2_", ("run-1_FLAIR", "acq-post_T1w", "acq-pre_T1w", "T2w", "PDw", "inplaneT2")),
         "sub-02/ses-2/dwi/sub-02_ses-2_dwi.nii.gz", *images("derivatives/prep/sub-01/anat/sub-01_space-x_", BRATS_2021),
         *images("sourcedata/sub-01/")],
        ["sub-01", "sub-02_ses-1", "sub-02_ses-2"],
        PLAIN,
    ),
    "derivatives of no BIDS data set": (images("derivatives/a_"), ["a"], PLAIN),
    "one run of several": (
        images("sub-1/ses-a/anat/sub-1_ses-a_", ("FLAIR", "ce-gd_T1w", "run-1_T1w", "run-2_T1w", "T2w")),
        ["sub-1_ses-a"],
        Naming({"t1": "*run-2_T1w*"}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_cases_are_found_by_the_names_of_their_files(tmp_path: Path, kind: str) -> None:
    names, expected, naming = FOUND[kind]
    cohort = find_cases([tree(tmp_path, *names)], naming)
    assert refusals(tmp_path, cohort) == []
    assert names_of(cohort) == expected


LETTERS: Final = string.ascii_letters + string.digits
SPELLINGS: Final = {modality: [word for word in WORDS if WORDS[word] is modality] for modality in CHANNELS}


@settings(max_examples=20)
@given(
    stem=st.text(LETTERS + "äé患", min_size=1, max_size=12),
    words=st.tuples(*(st.sampled_from(SPELLINGS[modality]) for modality in CHANNELS)),
    separator=st.sampled_from("_-. "),
    suffix=st.sampled_from([".nii", ".nii.gz", ".NII.gz"]),
    upper=st.booleans(),
)
def test_the_last_word_of_any_name_tells_the_modality_and_the_rest_is_the_name(
    stem: str, words: tuple[str, ...], separator: str, suffix: str, upper: bool
) -> None:
    files = [f"{stem}{separator}{word.upper() if upper else word}{suffix}" for word in words]
    with tempfile.TemporaryDirectory() as folder:
        cohort = find_cases([tree(Path(folder), *files)])
    assert names_of(cohort) == [stem]
    assert file_names(cohort) == dict(zip(CHANNELS, files, strict=True))


# FLAIR, T1ce, T1, T2, and the name of the case in the folder "here".
CLINICS: Final = {
    "MPRAGE": ("t2darkfluid", "mprage_post", "mprage", "t2tse", "here"),
    "Siemens": ("p_t2_tirm_tra_dark-fluid", "p_t1_mprage_sag_gd", "p_t1_mprage_sag", "p_t2_tse_tra", "p"),
    "SPACE": ("p 7 t2_spc_da-fl_sag_iso", "p 7 t1_spc_ce", "p 7 t1_spc", "p 7 t2spc", "p 7"),
    "dcm2niix": (
        "p_t2_tirm_tra_dark-fluid_5",
        "p_t1_mprage_sag_p2_iso_1.0_KM_9",
        "p_t1_mprage_sag_p2_iso_1.0_20200101",
        "p_t2_tse_4",
        "p",
    ),
    "GE": ("x_Sag_CUBE_T2_FLAIR", "x_Ax_T1_+C", "x_Ax_T1", "x_Ax_T2_FSE", "x"),
    "Philips": ("3D_FLAIR", "T1W_3D_TFE_KM", "T1_3D_TFE", "T2W_TSE", "here"),
    "German": ("Müller_FLAIR_3D", "Müller_MP-RAGE_mit_KM", "Müller_MPRAGE_ohne_KM", "Müller_T2_TSE", "Müller"),
    "agent first": ("flair", "gd_t1", "t1", "t2", "here"),
    "some as in BraTS": ("a_flair", "a_t1_post", "a_t1", "a_t2", "a"),
    "the agent of a FLAIR": ("flair_km", "t1km", "t1nativ", "t2", "here"),
}


@pytest.mark.parametrize("kind", CLINICS)
def test_names_of_clinics_are_known(tmp_path: Path, kind: str) -> None:
    *stems, name = CLINICS[kind]
    files = [f"{stem}.nii.gz" for stem in stems]
    cohort = find_cases([tree(tmp_path, *(f"here/{file}" for file in files), *images("beside/b_"))])
    assert cohort.broken == ()
    [case] = [case for case in cohort.cases if case.name != "b"]
    assert (case.name, [case.images[modality].name for modality in CHANNELS]) == (name, files)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["mprage", "t1_tse", "mprage_gd", "t2", "flair"], "mprage.nii.gz and t1_tse.nii.gz for T1; keep one, or choose one by "
         "--pattern t1=GLOB"),
        (["mprage", "mprage_2", "mprage_gd", "t2", "flair_3"], "has mprage.nii.gz and mprage_2.nii.gz for T1; keep one, or "),
        (["mprage", "mprage_gd", "t2_tse"], "has no FLAIR: looked for NAME_flair.nii.gz, found"),
        (["spc", "mprage_gd", "mprage", "t1_darkfluid"], "has no FLAIR, T2: "),
    ],
)  # fmt: skip
def test_what_names_of_clinics_leave_open_is_said(tmp_path: Path, files: list[str], words: str) -> None:
    assert words in only_refusal(tree(tmp_path, *images("", files)))


def test_a_pattern_or_a_number_decides_which_file_is_which(tmp_path: Path) -> None:
    tree(tmp_path / "a", *images("a_", ["FLAIR", "T1", "post_T1", "T2"]))
    cohort = find_cases([tmp_path / "a"], Naming({"t1ce": "*_post_T1.nii.gz"}))
    assert list(file_names(cohort).values()) == images("a_", ["FLAIR", "post_T1", "T1", "T2"])
    cohort = find_cases([tree(tmp_path / "b", *images("b_", NNUNET))], BY_NUMBER)
    assert file_names(cohort) == {modality: f"b_{n}.nii.gz" for modality, n in zip(NNUNET_ORDER, NNUNET, strict=True)}


@pytest.mark.parametrize("word", ["seg", "SEG"])
def test_the_reference_beside_the_images_belongs_to_the_case(tmp_path: Path, word: str) -> None:
    tree(tmp_path, *images("a_", [*BRATS_2021, word]), *images("b_"))
    assert [case.segmentation for case in find_cases([tmp_path]).cases] == [tmp_path / f"a_{word}.nii.gz", None]


@pytest.mark.parametrize("here", [".", "../p7", "below/.."])
def test_a_folder_has_its_name_by_whatever_path_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    tree(tmp_path / "p7", *images(""), "below/")
    monkeypatch.chdir(tmp_path / "p7")
    assert names_of(find_cases([Path(here)])) == ["p7"]


def test_a_tree_deeper_than_pythons_stack_is_walked(tmp_path: Path) -> None:
    tree(tmp_path.joinpath(*["d"] * 250), *images("a_"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)  # in place of its 1000, which would need a deeper tree; of the rest pytest takes some 60
    try:
        found = find_cases([tmp_path])
    finally:
        sys.setrecursionlimit(limit)
    assert names_of(found) == ["a"]


def test_links_are_followed_and_those_that_lead_back_end(tmp_path: Path) -> None:
    tree(tmp_path / "store", *images(""), *images("b/b_"))
    top = tree(tmp_path / "tree", *images("HGG/c/c_"))
    for word in BRATS_2021:
        (top / f"a_{word}.nii.gz").symlink_to(tmp_path / "store" / f"{word}.nii.gz")
    (top / "link").symlink_to(tmp_path / "store" / "b")
    (top / "HGG" / "again").symlink_to(top)
    for back in ("back", "again and", "again"):  # three ways to go at each of the 40 steps that Linux follows links for
        (top / back).symlink_to(".")
    (top / "one").symlink_to("other")
    (top / "other").symlink_to("one")
    (top / "gone").symlink_to("nowhere")
    cohort = find_cases([top])
    assert (names_of(cohort), cohort.broken) == (["a", "b", "c"], ())


# --- what is broken: files of a folder -> what is said

LOOKED_FOR: Final = "no case found: looked for files named NAME_flair.nii.gz, NAME_t1ce.nii.gz, NAME_t1.nii.gz, NAME_t2.nii.gz"
NUMBERED: Final = ", or NAME_0000.nii.gz to NAME_0003.nii.gz"
BROKEN: Final[dict[str, tuple[Sequence[str], str, Naming]]] = {
    "two missing": (
        images("x/a_", ["flair", "t2"]),
        "x: a has no T1ce, T1: looked for NAME_t1ce.nii.gz, NAME_t1.nii.gz, found a_flair.nii.gz, a_t2.nii.gz; " + OTHER_NAMES,
        PLAIN,
    ),
    "another name": (
        [*images("a_", ["flair", "t1", "t2"]), "a_T1_special.nii.gz", "notes.txt"],
        "TOP: a has no T1ce: looked for NAME_t1ce.nii.gz, found a_T1_special.nii.gz, a_flair.nii.gz, a_t1.nii.gz, "
        "a_t2.nii.gz; " + OTHER_NAMES,
        PLAIN,
    ),
    "two of one": (
        [*images("a_"), "a_t2f.nii.gz"],
        "TOP: a has a_flair.nii.gz and a_t2f.nii.gz for FLAIR; keep one, or choose one by --pattern flair=GLOB",
        PLAIN,
    ),
    "two references": (
        [*images("a_", [*BRATS_2021, "seg"]), "a_seg.nii"],
        "TOP: a has a_seg.nii and a_seg.nii.gz for segmentation; keep one, or choose one by --pattern seg=GLOB",
        PLAIN,
    ),
    "a hundred of one": (
        [f"p/a{n:03}_t1.nii.gz" for n in range(100)],
        "p: p has a000_t1.nii.gz and a001_t1.nii.gz and 98 more for T1; keep one, or narrow --pattern t1=*_t1.nii.gz",
        Naming({"t1": "*_t1.nii.gz"}),
    ),
    "two runs": (
        images("sub-1/anat/sub-1_", ["FLAIR", "ce-gd_T1w", "T1w", "run-1_T2w", "run-2_T2w"]),
        "sub-1/anat: sub-1 has sub-1_run-1_T2w.nii.gz and sub-1_run-2_T2w.nii.gz for T2; keep one, or choose one by --pattern "
        "t2=GLOB",
        PLAIN,
    ),
    "a subject of BIDS that lacks scans": (
        ["sub-1/anat/sub-1_acq-iso_T1w.nii.gz"],
        "sub-1/anat: sub-1 has no FLAIR, T1ce, T2: looked for sub-1_FLAIR.nii.gz, sub-1_ce-gd_T1w.nii.gz, sub-1_T2w.nii.gz, "
        "found sub-1_acq-iso_T1w.nii.gz; " + OTHER_NAMES,
        PLAIN,
    ),
    "a pattern that none has": (
        images("a_", ["FL", "t1ce", "t1", "t2"]),
        "TOP: a has no FLAIR: looked for *fl.nii.gz, NAME_flair.nii.gz, found a_FL.nii.gz, a_t1.nii.gz, a_t1ce.nii.gz, "
        "a_t2.nii.gz; " + OTHER_NAMES,
        Naming({"flair": "*fl.nii.gz"}),
    ),
    "a number missing": (
        images("a_", ["0000", "0002", "0003"]),
        "TOP: a has no T1ce: looked for NAME_0001.nii.gz, found a_0000.nii.gz, a_0002.nii.gz, a_0003.nii.gz; " + OTHER_NAMES,
        BY_NUMBER,
    ),
    "five numbers": (
        images("a_", [*NNUNET, "0004"]),
        "TOP: a has channels beyond the four of drunet (0004); name its four in a table (case,t1,t1ce,t2,flair[,seg])",
        BY_NUMBER,
    ),
    "numbers unexplained": (
        images("imagesTr/a_", NNUNET),
        "imagesTr: nothing says which modalities _0000 to _0003 are; give --channels with the four in order, such as "
        "t1,t1ce,t2,flair",
        PLAIN,
    ),
    "no case": (["x/scan.nii.gz"], f"TOP: {LOOKED_FOR}{NUMBERED}, found scan.nii.gz; say by --pattern MODALITY=GLOB which are "
                "which, such as t1ce='*_contrast.nii.gz'", PLAIN),
    "DICOM": (["study/IM0001", "study/IM0002"], f"TOP: {LOOKED_FOR}{NUMBERED}, found no .nii.gz or .nii but IM0001, IM0002; "
              "drunet prepare takes DICOM series; or name another folder", PLAIN),
    "empty": ([], f"TOP: {LOOKED_FOR.replace('NAME_t1.', '*T1w*, NAME_t1.')}{NUMBERED}, found no file at all; name another "
              "folder",
              Naming({"t1": "*T1w*"})),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_missing_doubled_or_named_otherwise_is_said_with_the_folder_and_the_remedy(tmp_path: Path, kind: str) -> None:
    names, words, naming = BROKEN[kind]
    assert only_refusal(tree(tmp_path, *names), naming=naming) == words


def test_messages_about_many_files_are_of_bounded_length(tmp_path: Path) -> None:
    tree(tmp_path / "names", *(f"p{n:03}/{'long' * 40}_{n:03}_T1w.nii.gz" for n in range(30)))
    words = only_refusal(tmp_path, tmp_path / "names")
    assert words.count("_T1w.nii.gz") == 6
    assert " and 24 more; say by --pattern" in words
    assert len(words) < 800
    flat = tree(tmp_path / "flat", *(name for n in range(20) for name in images(f"case{n:02}_")))
    (flat / "case07_t1ce.nii.gz").rename(flat / "case07_T1_special.nii.gz")
    [words] = refusals(tmp_path, find_cases([flat]))  # of twenty cases in the folder the broken one's files alone
    assert "found case07_T1_special.nii.gz, case07_flair.nii.gz, case07_t1.nii.gz, case07_t2.nii.gz; " in words


def test_a_broken_case_or_source_leaves_the_others(tmp_path: Path) -> None:
    tree(tmp_path, *images("in/a_"), *images("in/c_"), *images("in/d_", ["t1"]), *images("in/b_", ["t1"]), "empty/", "t.csv")
    cohort = find_cases([tmp_path / "in", tmp_path / "empty", tmp_path / "t.csv", tmp_path / "absent"])
    assert names_of(cohort) == ["a", "c"]
    sources = [str(tmp_path / name) for name in ("absent", "empty", "t.csv")]
    assert [case.name for case in cohort.broken] == [*sources, "b", "d"]
    assert [case.name for case in cohort.broken if case.is_source] == sources


def test_a_source_that_cannot_be_used_is_named_with_what_to_give(tmp_path: Path) -> None:
    tree(tmp_path, "a_flair.nii.gz", "list.xlsx")
    (tmp_path / "link").symlink_to("gone")
    os.mkfifo(tmp_path / "cases.csv")
    for name, words in {
        "absent": "no such file or folder; give the folder of a case or of many, or a table",
        "link": "is a link to a file or folder that is missing; give ",
        "x" * 300: "cannot be read: ",
        "a\0b": "cannot be read: ",
        "a_flair.nii.gz": "is neither a folder nor a table (.csv, .tsv); give the folder of a case",
        "list.xlsx": "is neither a folder nor a table (.csv, .tsv); give ",
        "cases.csv": "is neither a folder nor a table (.csv, .tsv); give ",
    }.items():
        assert f": {words}" in only_refusal(tmp_path, tmp_path / name)


def test_what_is_wrong_with_a_link_or_a_pipe_is_said_of_the_image(tmp_path: Path) -> None:
    image = tree(tmp_path, *images("a_", ["t1ce", "t1", "t2"])) / "a_flair.nii.gz"
    image.symlink_to("annex/missing")
    assert only_refusal(tmp_path) == "a_flair.nii.gz: is a link to a file that is missing (given as FLAIR)"
    image.unlink()
    image.symlink_to(image.name)
    assert only_refusal(tmp_path).startswith("a_flair.nii.gz: cannot be read: ")
    image.unlink()
    os.mkfifo(image)
    assert only_refusal(tmp_path) == "a_flair.nii.gz: is not a regular file (given as FLAIR)"
    image.unlink()
    image.hardlink_to(tmp_path / "a_t1.nii.gz")
    assert "given as FLAIR and as T1" in only_refusal(tmp_path)


def test_a_folder_that_refuses_is_named_and_the_rest_is_found() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in folders that only their owner may enter
        top = tree(Path(name), *images("tree/a/a_"), "tree/locked/", *images("behind/b/c_", ["flair"]))
        tree(top, *images("tree/c/c_", ["t1ce", "t1", "t2"]))
        (top / "tree" / "c" / "c_flair.nii.gz").symlink_to(top / "behind" / "b" / "c_flair.nii.gz")
        (top / "tree" / "link").symlink_to(top / "behind" / "b")
        top.chmod(0o755)
        with refusing(top / "tree" / "locked", top / "behind"):
            cohort, alone = find_cases([top / "tree"]), find_cases([top / "tree" / "locked"])
    refused = "cannot be read: Permission denied; mend its permissions or leave it out"
    assert names_of(cohort) == ["a"]
    assert sorted(refusals(top, cohort)) == [
        "tree/c/c_flair.nii.gz: cannot be read: Permission denied (given as FLAIR)",
        f"tree/link: {refused}",
        f"tree/locked: {refused}",
    ]
    assert refusals(top, alone) == [f"tree/locked: {refused}"]  # and not that it is empty


# --- folders without cases


def test_folders_without_nifti_beside_cases_are_told_in_one_line_of_bounded_length(tmp_path: Path) -> None:
    top = tree(tmp_path / "set", *images("p1/p1_"), "p2/series/IM1.dcm", "p2/series/IM2.dcm", "p3/")
    note = f"2 folders hold no NIfTI and were passed over: {top / 'p2'} (IM1.dcm, ...), {top / 'p3'} (empty)"
    assert find_cases([top, top]).notes == (note,)
    tree(tmp_path / "grade", *images("g/p1/p1_"), *images("g/p2/p2_"), *(f"g/q{n}/{'x' * 200}" for n in range(9)))
    (note,) = find_cases([tmp_path / "grade"]).notes
    assert note.startswith("9 folders hold no NIfTI and were passed over: ")
    assert note.endswith("xxx) and 6 more")
    assert "x" * 61 not in note


def test_folders_with_nifti_but_no_case_beside_cases_are_told_too(tmp_path: Path) -> None:
    tree(tmp_path, *images("p1/p1_"), *images("p2/x/s", "1234"), *images("p3/", ["t1", "foo"]), "p4/IM1")
    cohort = find_cases([tmp_path])
    assert cohort.notes == (
        f"1 folder holds no NIfTI and was passed over: {tmp_path / 'p4'} (IM1)",
        f"1 folder holds NIfTI but no case and was passed over: {tmp_path / 'p2'} (s1.nii.gz, ...); name such files by "
        "--pattern, or in a table",
    )
    assert [each.path.name for each in cohort.folders_without_case] == ["p2", "p4"]
    assert [case.name for case in cohort.broken] == ["p3"]


def test_images_that_less_plainly_named_ones_might_replace_are_told(tmp_path: Path) -> None:
    tree(tmp_path, *images("p1/"), "p1/t2tse.nii.gz", "p1/brainmask.nii.gz", *images("p2/p2_"), "p2/p2_mprage_post.nii.gz")
    cohort = find_cases([tmp_path])
    named = f"{tmp_path}/p1/t2tse.nii.gz, {tmp_path}/p2/p2_mprage_post.nii.gz"
    assert cohort.notes == (f"2 images left aside, since others have plainer names: {named}; --pattern t2=GLOB chooses",)
    assert [case.images[Modality.T2].name for case in cohort.cases] == ["t2.nii.gz", "p2_t2.nii.gz"]


def test_ordinary_side_folders_of_a_data_set_are_not_told(tmp_path: Path) -> None:
    for case in ("p1", "p2"):
        tree(tmp_path / case, *images(f"nifti/{case}_"), "dicom/IM1.dcm", "nifti/empty/", "derived/mask.nii.gz")
    tree(tmp_path, *images("others/p3/p3_", ["t1"]), "code/run.py", "code/__pycache__/run.pyc", "labelsTr/a.mha")
    tree(tmp_path, ".git/config", "labelsTr/a.nii.gz", "others/x/mni.nii.gz")
    assert find_cases([tmp_path]).notes == ()


# --- one name, one case


TOLD_APART: Final[dict[str, tuple[Sequence[str], Sequence[str], list[str]]]] = {
    "patients": (["P01/MR/", "P02/MR/", "P03/MR/"], ["."], ["P01", "P02", "P03"]),
    "levels below": (["P01/scans/MR/", "P02/scans/MR/"], ["."], ["P01", "P02"]),
    "levels above": (["site/study/P01/MR/", "site/study/P02/MR/"], ["."], ["P01", "P02"]),
    "another level differs too": (["P01/2020/MR/", "P02/2021/MR/"], ["."], ["P01", "P02"]),
    "a level that parts patients": (["HGG/P01/MR/", "HGG/P02/MR/", "LGG/P03/MR/"], ["."], ["P01", "P02", "P03"]),
    "no level alone": (["P01/a/MR/", "P01/b/MR/", "P02/a/MR/"], ["."], ["P01_a", "P01_b", "P02_a"]),
    "levels of any number": (["P01/MR/", "more/P02/MR/", "more/P03/MR/"], ["."], ["P01", "more_P02", "more_P03"]),
    "each a source": (["P01/MR/", "P02/MR/"], ["P01/MR", "P02/MR"], ["P01", "P02"]),
    "sources that hold them": (["x/P01/MR/", "y/z/P02/MR/"], ["x", "y/z"], ["P01", "P02"]),
    "equal trees": (["x/P01/MR/", "y/P01/MR/", "y/P02/MR/"], ["x", "y"], ["x_P01", "y_P01", "y_P02"]),
    "a name that is taken": (["P01/MR/", "P02/MR/", "P01/P01/"], ["."], ["P01", "P01_MR", "P02_MR"]),
    "named by files": (["P01/brain_", "P02/brain_"], ["."], ["P01_brain", "P02_brain"]),
    "named by files and folder": (["one/a/a_", "other/a/a_"], ["."], ["one_a", "other_a"]),
    "names of their own": (["P01/MR/", "P02/CT/", "x/a_"], ["."], ["CT", "MR", "a"]),
}


@pytest.mark.parametrize("kind", TOLD_APART)
def test_cases_of_one_name_are_named_by_the_first_folder_that_tells_them_apart(tmp_path: Path, kind: str) -> None:
    prefixes, sources, names = TOLD_APART[kind]
    tree(tmp_path, *(name for prefix in prefixes for name in images(prefix)))
    cohort = find_cases([tmp_path / source for source in sources])
    assert (names_of(cohort), cohort.broken) == (names, ())
    assert [case.images[T1].parent.name for case in cohort.cases if case.name == "P02"] in ([], ["MR"])
    assert [("are named by their folders" in note) for note in cohort.notes] == [True] * (kind != "names of their own")


def test_a_broken_case_is_told_apart_by_its_folder_too(tmp_path: Path) -> None:
    tree(tmp_path, *images("P01/MR/"), *images("P02/MR/", ["t1", "t2"]), *images("x/a_"), *images("y/a_", ["t1"]))
    cohort = find_cases([tmp_path])
    assert (names_of(cohort), [case.name for case in cohort.broken]) == (["P01", "a"], ["P02", "a"])


def test_cases_of_one_name_are_all_broken_where_a_table_names_one(tmp_path: Path) -> None:
    tree(tmp_path, *images("one/a_"), *images("other/b_"))
    rows = table(tmp_path / "t.csv", "a," + ",".join(images("other/b_", ["t1", "t1ce", "t2", "flair"])))
    remedy = "name them apart in a table (case,t1,t1ce,t2,flair[,seg])"
    assert refusals(tmp_path, find_cases([tmp_path / "one", rows])) == [
        f"one: a is also the name of the case in {tmp_path}/t.csv, line 2; {remedy}".replace(f"{tmp_path}/", ""),
        f"t.csv, line 2: a is also the name of the case in one; {remedy}",
    ]


@pytest.mark.parametrize(
    "sources",
    [["a", "a"], ["a", "."], [".", "a"], ["a", "link"], ["a", "b/../a"], ["flat_link/a", "."], ["a", "a.csv"], ["v", "a"]],
)
def test_a_case_found_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str]) -> None:
    monkeypatch.chdir(tree(tmp_path, *images("a/a_"), "b/", "v/"))
    Path("link").symlink_to("a")
    Path("flat_link").symlink_to(".")
    for name in images("a_"):
        (Path("v") / name).symlink_to(tmp_path / "a" / name)
    table(Path("a.csv"), "a," + ",".join(images("a/a_", ["t1", "t1ce", "t2", "flair"])))
    cohort = find_cases(list(map(Path, sources)))
    assert (names_of(cohort), cohort.broken) == (["a"], ())


def test_a_broken_case_found_twice_counts_once(tmp_path: Path) -> None:
    tree(tmp_path, *images("a/a_", ["t1"]), "empty/")
    table(tmp_path / "t.csv", "x,,,,")
    (tmp_path / "link.csv").symlink_to("t.csv")
    sources = [tmp_path / name for name in ("a", ".", "empty", "empty", "t.csv", "link.csv")]
    assert [case.name for case in find_cases(sources).broken] == sorted(["a", str(tmp_path / "empty"), "x"])


def test_rows_of_one_name_count_once_where_they_are_equal_and_are_broken_where_they_differ(tmp_path: Path) -> None:
    tree(tmp_path, *images("a_", [*BRATS_2021, "seg"]), *images("b_"))
    a, b = (",".join(images(f"{name}_", ["t1", "t1ce", "t2", "flair"])) for name in "ab")
    source = table(tmp_path / "cases.csv", f"x,{a}", f"x,{a}", f"y,{a}", f"y,{b}")
    cohort = find_cases([source])
    assert names_of(cohort) == ["x"]
    assert [words.partition(";")[0] for words in refusals(tmp_path, cohort)] == [
        "cases.csv, line 4: y is also the name of the case in cases.csv, line 5",
        "cases.csv, line 5: y is also the name of the case in cases.csv, line 4",
    ]
    # The same images with another reference are another case.
    assert names_of(find_cases([tmp_path, table(tmp_path / "t.csv", f"a,{a}")])) == ["b"]


# --- nnU-Net's dataset.json


@pytest.mark.parametrize("place", ["dataset.json", "imagesTr/dataset.json"])
@pytest.mark.parametrize(
    ("dataset", "order"),
    [
        (DATASET, NNUNET_ORDER),
        ({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}, (FLAIR, T1, T1CE, T2)),
        ({"channel_names": {"3": "t2-flair", "2": "t1pre", "1": "T1_Gd", "0": "T2 w"}}, (T2, T1CE, T1, FLAIR)),
    ],
)
def test_numbers_are_what_dataset_json_says_unless_channels_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, dataset: object, order: tuple[Modality, ...]
) -> None:
    tree(tmp_path, *images("imagesTr/a_", NNUNET))
    (tmp_path / place).write_text(json.dumps(dataset), encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path / "imagesTr")
    for source in (tmp_path / "imagesTr", tmp_path, Path()):
        assert file_names(find_cases([source])) == {
            modality: f"a_{n}.nii.gz" for modality, n in zip(order, NNUNET, strict=True)
        }
    assert file_names(find_cases([tmp_path], Naming(channels=CHANNELS)))[FLAIR] == "a_0000.nii.gz"


@pytest.mark.parametrize(
    "content",
    [
        *("{", "", "[]", "null", "{}", '"T1, T1ce, T2, FLAIR"', "[" * 100_000, "\xff"),
        '{"channel_names": ["T1", "T1ce", "T2", "FLAIR"]}',
        '{"channel_names": {"0": 1, "1": null, "2": [], "3": {}}}',
        '{"channel_names": {"0": "T1w", "1": "T1w", "2": "T2", "3": "FLAIR"}}',
        '{"channel_names": {"0": "CT", "1": "T1ce", "2": "T2", "3": "FLAIR"}}',
        '{"channel_names": {"1": "T1", "2": "T1ce", "3": "T2", "4": "FLAIR"}}',
        '{"channel_names": {"0": "T1", "1": "T1ce", "2": "T2"}}',
    ],
)
def test_a_dataset_json_that_does_not_help_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    tree(tmp_path, *images("a_", NNUNET))
    (tmp_path / "dataset.json").write_text(content, encoding="latin-1")
    words = only_refusal(tmp_path)
    assert words.startswith("dataset.json: ")
    assert "--channels" in words
    tree(tmp_path, *images("b_"))
    assert names_of(find_cases([tmp_path])) == ["b"]  # whose files are named


def test_a_dataset_json_that_is_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tree(tmp_path, *images("a_", NNUNET)) / "dataset.json")
    assert "--channels" in only_refusal(tmp_path)


# --- one case alone


@pytest.mark.parametrize(
    ("sources", "alone"),
    [
        *((["a"], True), (["broken"], True)),
        *((["."], False), (["a", "b"], False), (["flat"], False), (["a", "a"], False), (["a.csv"], False)),
        *((["above"], False), (["mixed"], False), (["empty"], False), (["absent"], False), (["a/a_t1.nii.gz"], False)),
    ],
)
def test_one_case_folder_given_alone_is_alone(tmp_path: Path, sources: list[str], alone: bool) -> None:
    tree(tmp_path, *images("a/a_"), *images("b/b_"), *images("flat/c_"), *images("flat/d_", ["t1"]), *images("above/e/e_"))
    tree(tmp_path, *images("mixed/f_"), *images("mixed/derived/g_", ["t1"]), "empty/", *images("broken/h_", ["flair"]))
    table(tmp_path / "a.csv", "a," + ",".join(images("a/a_", ["t1", "t1ce", "t2", "flair"])))
    assert find_cases([tmp_path / source for source in sources]).alone is alone


# --- the walk


def test_folders_come_sorted_once_each_without_what_is_hidden_or_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "b/z", "b/y", "a/c/x", "file", ".hidden/x", ".y", "out/x", "a/labels/x", "self/")
    (tmp_path / "d").symlink_to("a")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    left_out = identity_of((tmp_path / "out").stat())
    found = list(folders_from(tmp_path, left_out=[left_out], names_left_out=("labels",)))
    assert [(folder.path, folder.files) for folder in found if isinstance(folder, Folder)] == [
        (tmp_path, ["file", "loop"]),
        (tmp_path / "a", []),
        (tmp_path / "a" / "c", ["x"]),
        (tmp_path / "b", ["y", "z"]),
        (tmp_path / "self", []),
    ]


def test_a_folder_of_results_among_the_cases_is_not_entered(tmp_path: Path) -> None:
    tree(tmp_path, *images("a_"), *images("out/b_"))
    assert names_of(find_cases([tmp_path], leave_out=[tmp_path / "out"])) == ["a"]
    assert names_of(find_cases([tmp_path / "out"], leave_out=[tmp_path / "out"])) == ["b"]  # given by name
    assert names_of(find_cases([tmp_path], leave_out=[tmp_path / "absent"])) == ["a", "b"]
    tree(tmp_path, *images("prepared/c_"))
    assert names_of(find_cases([tmp_path], leave_out=[tmp_path / "out", tmp_path / "prepared"])) == ["a"]
