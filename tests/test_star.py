import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from refmotion_nb.data.schema import InputError
from refmotion_nb.data.star import read_star, table, write_star

SMALL = """
# version 30001

data_general

_rlnImageSizeX      3710
_rlnVoltage   200.000000
_rlnMicrographMovieName   "Movies/a b.tiff"

# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnOddZernike #3
_rlnNote #4
0001            1 [-0.23,0.09] 'two words'
"day 2"         2 [0,0] ""

data_empty

loop_
_rlnCoordinateX #1

data_last
loop_
_rlnOriginXAngst #1
_rlnOriginYAngst #2
 1.5   nan
 -2e-04 7
"""


def write(folder, text, name="a.star"):
    path = folder / name
    path.write_text(text)
    return path


def test_blocks_keep_text_and_numbers(tmp_path):
    blocks = read_star(write(tmp_path, SMALL))
    assert blocks["general"] == {
        "rlnImageSizeX": 3710,
        "rlnVoltage": 200.0,
        "rlnMicrographMovieName": "Movies/a b.tiff",
    }
    optics = blocks["optics"]
    assert optics["rlnOpticsGroupName"].tolist() == ["0001", "day 2"]
    assert optics["rlnOddZernike"].tolist() == ["[-0.23,0.09]", "[0,0]"]
    assert optics["rlnOpticsGroup"].tolist() == [1, 2]
    assert optics["rlnNote"].iloc[0] == "two words"
    assert len(blocks["empty"]) == 0 and list(blocks["empty"].columns) == ["rlnCoordinateX"]
    np.testing.assert_array_equal(blocks["last"].to_numpy(), [[1.5, np.nan], [-2e-4, 7]])


def test_only_the_blocks_asked_for(tmp_path):
    assert list(read_star(write(tmp_path, SMALL), ("last",))) == ["last"]


def test_single_values_are_read_as_those_of_a_loop(tmp_path):
    """Names made of digits and underscores, which Python would take for numbers; quotes of either kind."""
    values = {"rlnOpticsGroupName": "20_01", "rlnMtfFileName": "'a b.star'", "rlnRemark": "1_000", "rlnVoltage": "300",
              "rlnPixel": '"0.5"', "rlnNothing": "nan"}  # fmt: skip
    alone, looped = tmp_path / "alone.star", tmp_path / "looped.star"
    alone.write_text("data_x\n\n" + "".join(f"_{label} {value}\n" for label, value in values.items()))
    looped.write_text(
        "data_x\n\nloop_\n" + "".join(f"_{label}\n" for label in values) + " ".join(values.values()) + "\n"
    )
    found, expected = (table(read_star(path), "x").iloc[0].to_dict() for path in (alone, looped))
    assert found["rlnOpticsGroupName"] == "20_01" and found["rlnRemark"] == "1_000" and found["rlnVoltage"] == 300
    assert str(found) == str(expected)


def test_single_values_as_a_table(tmp_path):
    blocks = read_star(write(tmp_path, SMALL))
    assert table(blocks, "general")["rlnImageSizeX"].tolist() == [3710]
    assert table(blocks, "absent").empty


def test_round_trip(tmp_path):
    blocks = read_star(write(tmp_path, SMALL))
    write_star(tmp_path / "b.star", blocks)
    again = read_star(tmp_path / "b.star")
    assert again["general"] == blocks["general"]
    for name in ("optics", "empty", "last"):
        pd.testing.assert_frame_equal(again[name], blocks[name], check_dtype=False)


@pytest.mark.parametrize("row", ["1.0", "1.0 2.0 3.0"])
def test_a_row_of_another_length_is_named(tmp_path, row):
    text = "data_a\n\nloop_\n_rlnX #1\n_rlnY #2\n1 2\n" + row + "\n3 4\n"
    with pytest.raises(InputError, match=r"a\.star, data_a: row 2 does not have 2 values"):
        read_star(write(tmp_path, text))


@pytest.mark.parametrize("row", ["3 4 5", "3 4 5 6 7", "3"])
@pytest.mark.parametrize("at", [0, 300])
def test_a_row_of_another_length_in_a_large_table_is_named_in_one_line(tmp_path, row, at):
    rows = [*at * ["1 2"], row, *(301 - at) * ["1 2"]]
    with pytest.raises(InputError) as error:
        read_star(write(tmp_path, "data_a\n\nloop_\n_rlnX #1\n_rlnY #2\n" + "\n".join(rows) + "\n"))
    assert (
        str(error.value) == f"{tmp_path / 'a.star'}, data_a: row {at + 1} does not have 2 values; is the file complete?"
    )


def test_a_quote_that_does_not_end_in_a_large_table_is_one_line(tmp_path):
    text = "data_a\n\nloop_\n_rlnX #1\n_rlnY #2\n" + 300 * "1 2\n" + '3 "4\n'
    with pytest.raises(InputError, match=r"a\.star, data_a cannot be read [^\n]*; is the file complete\?$"):
        read_star(write(tmp_path, text))


@pytest.mark.parametrize("n", [1, 300])
def test_comments_at_the_ends_of_lines_are_none_of_the_values(tmp_path, n):
    """As RELION reads them; within quotes, and within words, they are no comments."""
    head = "# made by hand\ndata_a\n\nloop_ # of two\n_rlnX #1\n# more\n_rlnY #2 the name\n"
    rows = n * "1 a#b # it's\n  # 0 0\n2 \"c # d\" #\n3 'e # f' # \"g\n"
    found = read_star(write(tmp_path, head + rows))["a"]
    assert found["rlnX"].tolist() == n * [1, 2, 3] and found["rlnY"].tolist() == n * ["a#b", "c # d", "e # f"]
    alone = read_star(write(tmp_path, "data_a\n_rlnX 1 # one\n# _rlnZ 3\n_rlnY # none\n"))["a"]
    assert alone == {"rlnX": 1, "rlnY": ""}
    write_star(tmp_path / "b.star", {"a": pd.DataFrame({"rlnName": ["#1.mrc"], "rlnX": [1]})})
    assert read_star(tmp_path / "b.star")["a"]["rlnName"].tolist() == ["#1.mrc"]


def test_a_mark_of_windows_before_the_text_is_passed_over(tmp_path):
    (tmp_path / "a.star").write_bytes("data_a\r\n\r\n_rlnX 1\r\n".encode("utf-8-sig"))
    assert read_star(tmp_path / "a.star") == {"a": {"rlnX": 1}}


def test_a_block_that_is_there_twice_is_said(tmp_path):
    """As in files put one after the other, of which only some particles would be read."""
    text = "data_a\n\n_rlnX 1\n\ndata_b\n\n_rlnX 2\n\n"
    with pytest.raises(InputError, match=r"a.star, data_a is there twice; join files by relion_star_handler --combine"):
        read_star(write(tmp_path, 2 * text))


def test_a_column_that_is_there_twice_is_said(tmp_path):
    with pytest.raises(InputError, match=r"a.star, data_a has column rlnX twice; take one of them out"):
        read_star(write(tmp_path, "data_a\n\nloop_\n_rlnX #1\n_rlnY #2\n_rlnX #3\n1 2 3\n"))


def test_what_is_no_star_file_is_said(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_star(tmp_path / "none.star")
    with pytest.raises(InputError, match="is a folder"):
        read_star(tmp_path)
    with pytest.raises(InputError, match="not a STAR file"):
        read_star(write(tmp_path, "hello\n"))
    (tmp_path / "b.star").write_bytes(b"\xff\xfe\x00data_")
    with pytest.raises(InputError, match="not a text file"):
        read_star(tmp_path / "b.star")


def test_where_a_file_is_not_utf8_is_said(tmp_path):
    path = tmp_path / "c.star"
    path.write_bytes("data_a\n\nloop_\n_rlnMicrographName\nMovies/ä.tif\n".encode() + b"Movies/caf\xe9.tif 3\n")
    with pytest.raises(
        InputError, match=r"c.star, line 6: Movies/caf\\xe9.tif is not UTF-8; convert the file .iconv -f latin1"
    ):
        read_star(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.star"
    write_star(path, {"a": {"rlnX": 1}})

    class Unprintable:
        def __str__(self):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_star(path, {"a": {"rlnX": Unprintable()}})
    assert read_star(path) == {"a": {"rlnX": 1}}
    assert [file.name for file in tmp_path.iterdir()] == ["a.star"]


def test_real_particles_round_trip(test_data, tmp_path):
    source = test_data / "relion_tutorial_10204" / "Refine3D" / "job025" / "run_data.star"
    blocks = read_star(source)
    assert blocks["particles"].shape == (4501, 26)
    write_star(tmp_path / "a.star", blocks)
    again = read_star(tmp_path / "a.star")
    for name in blocks:
        pd.testing.assert_frame_equal(again[name], blocks[name], check_exact=True, check_dtype=False)


@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed")
def test_relion_reads_what_is_written(test_data, tmp_path):
    source = test_data / "relion_tutorial_10204" / "Polish" / "job028" / "shiny.star"
    write_star(tmp_path / "a.star", read_star(source))
    command = ["relion_star_handler", "--i", "a.star", "--select", "rlnOpticsGroup", "--minval", "1", "--o", "b.star"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    ours, relions = read_star(source), read_star(tmp_path / "b.star")
    for name in ours:
        pd.testing.assert_frame_equal(relions[name], ours[name], rtol=1e-6, check_dtype=False, check_like=True)


def test_a_table_of_few_rows_is_read_as_pandas_reads_one_of_many(tmp_path, monkeypatch):
    columns = {
        "rlnWhole": ("7", "-12", "+3"), "rlnQuoted": ('"1"', "2", "3"), "rlnReal": ("1.", "-.5e-3", "1E+05"),
        "rlnMissing": ("1", "nan", "-nan"), "rlnInfinite": ("inf", "-Infinity", "2"), "rlnMixed": ("1", "x_1", "<NA>"),
        "rlnEmpty": ('""', "NaN", "4"), "rlnGapped": ('""', "a b", "1"), "rlnUnderscored": ("1_0", "2", "3"),
        "rlnMovieName": ("007", '""', "nan"), "rlnDigits": ("0.513092", "-9999.0", "12345678.123456"),
        "rlnUid": ("12345678901234567890", "9007199254740993", "1"), "rlnSigned": ("9007199254740993", "-1", "2"),
    }  # fmt: skip
    head = "data_a\n\nloop_\n" + "".join(f"_{label}\n" for label in columns)
    quoted = [[f'"{one}"' if " " in one else one for one in row] for row in zip(*columns.values())]
    rows = "".join(" ".join(row) + "\n" for row in quoted)
    many = read_star(write(tmp_path, head + 100 * rows))["a"]
    monkeypatch.setattr(pd, "read_csv", None)  # which takes long to get ready
    few = read_star(write(tmp_path, head + rows))["a"]
    pd.testing.assert_frame_equal(few, many.iloc[:3], check_exact=True)


@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u0085", "\u2028"])
def test_only_ascii_spaces_separate_values_as_in_relion(tmp_path, space, n):
    name = f"Movies/a{space}b.mrc"
    head = "data_a\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n"
    found = read_star(write(tmp_path, head + n * f"{name} 1\n"))["a"]
    assert found["rlnMicrographName"].tolist() == n * [name]
    write_star(tmp_path / "b.star", {"a": found})
    assert f"\n{name} 1\n" in (tmp_path / "b.star").read_text(encoding="utf-8")  # without quotes, as RELION writes it
