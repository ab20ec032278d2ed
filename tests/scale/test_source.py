"""Where examples come from: what each kind of source gives, by what is written out here; pixels read late, and what tells two examples apart."""

import contextlib
import csv
import io
import itertools
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zeroline.errors import InputError, LoadError, NotFoundError, UsageError, ZerolineError
from zeroline.scale.source import Example, Source, chunks, content_hash


def png(colour="red", size=(4, 3)):
    """The bytes of a small picture."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


COLOURS = ("red", "green", "blue", "white", "black", "cyan", "gray")
PNGS = {colour: png(colour) for colour in COLOURS}


def folder_of(path, files):
    """A folder of files: name -> bytes or text."""
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content) if isinstance(content, bytes) else file.write_text(content, newline="")
    return path


def all_of(source):
    return source.examples(0, len(source))


def columns_of(source, role):
    return [getattr(example, role) for example in all_of(source)]


# --- a folder of images ----------------------------------------------------------------------------------------------------------


def test_subfolders_are_labels_and_files_come_in_the_order_of_their_paths(tmp_path):
    names = ["b/2.png", "b/10.png", "a/deep/er/1.jpg", "a/z.PNG", "top.webp", "a/notes.txt", "b/.hidden/x.png", "c.png/inside.png"]
    source = Source.open(folder_of(tmp_path / "photos", {name: name.encode() for name in names}))
    expected = [
        ("a/deep/er/1.jpg", "a/deep/er"),
        ("a/z.PNG", "a"),
        ("b/.hidden/x.png", "b/.hidden"),
        ("b/10.png", "b"),
        ("b/2.png", "b"),
        ("c.png/inside.png", "c.png"),
        ("top.webp", None),
    ]
    assert [(one.id, one.label) for one in all_of(source)] == expected
    assert [(one.number, one.image) for one in all_of(source)] == list(enumerate(source.ids))
    assert [source.pixels(one) for one in all_of(source)] == [one.id.encode() for one in all_of(source)]
    assert not source.has_places
    assert source.kind == "folder"


def test_a_flat_folder_has_no_labels(tmp_path):
    source = Source.open(folder_of(tmp_path, {"b.png": b"b", "a.png": b"a"}))
    assert source.rows.column_names == ["id", "image"]
    assert [(one.id, one.label, one.text, one.box) for one in all_of(source)] == [("a.png", None, None, None), ("b.png", None, None, None)]


@pytest.mark.parametrize("listed", ["labels.csv", "metadata.csv"])
def test_a_list_in_the_folder_says_what_the_images_are(tmp_path, listed):
    files = {"x/1.png": b"one", "x/2.png": b"two", "x/3.png": b"three", listed: "file_name,label\nx/2.png,cat\nx/1.png,dog\n"}
    source = Source.open(folder_of(tmp_path, files))
    assert [(one.id, one.label, source.pixels(one)) for one in all_of(source)] == [("x/2.png", "cat", b"two"), ("x/1.png", "dog", b"one")]


def test_labels_csv_goes_before_metadata_csv(tmp_path):
    files = {"1.png": b"", "labels.csv": "image,label\n1.png,right\n", "metadata.csv": "image,label\n1.png,wrong\n"}
    assert columns_of(Source.open(folder_of(tmp_path, files)), "label") == ["right"]


def test_a_file_whose_name_is_no_unicode_is_no_crash(tmp_path):
    folder_of(tmp_path, {"a.png": b"a"})
    try:
        with open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("no such names here")
    with contextlib.suppress(ZerolineError):
        assert len(Source.open(tmp_path)) in (1, 2)


@pytest.mark.parametrize(("files", "said"), [({}, "holds no image"), ({"a.txt": "x"}, "holds no image"), ({"sub/a.gif.txt": "x"}, "holds no image")])
def test_a_folder_without_images_is_refused(tmp_path, files, said):
    with pytest.raises(UsageError, match=said):
        Source.open(folder_of(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "asked", "kind", "said"),
    [
        ("none", {}, NotFoundError, "no source"),
        ("notes.txt", {}, UsageError, r"notes.txt' is no source: it is a folder of images, a .csv, .tsv or .parquet file"),
        ("photos", {"columns": {"image": "x"}}, UsageError, r"has no columns \(image asked\)"),
        ("photos", {"split": "train"}, UsageError, r"a split \('train'\) belongs to a saved"),
        ("list.csv", {"split": "train"}, UsageError, r"a split \('train'\) belongs to a saved"),
        ("list.csv", {"columns": {"imagine": "x"}}, NotFoundError, "no role of a column 'imagine'; nearest: image"),
    ],
)
def test_what_is_no_source_says_what_one_is(tmp_path, name, asked, kind, said):
    folder_of(tmp_path, {"notes.txt": "x", "photos/a.png": b"", "list.csv": "image\na.png\n"})
    with pytest.raises(kind, match=said):
        Source.open(tmp_path / name, **asked)


# --- CSV -------------------------------------------------------------------------------------------------------------------------


def test_what_the_csv_module_writes_is_read(tmp_path):
    rows = [
        ("007", 'she said "no, never"', "a, b", "1"),
        ("08", "two\nlines\n\nand a third", "", "01"),
        ("1e5", "  spaces ", "NA", "true"),
        ("null", "naïve 漢字", "null", "nan"),
        ("-0", "tab\there", "None", "1.50"),
    ]
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "text", "passage", "label"), *rows])
    found = [(one.id, one.text, one.passage, one.label) for one in all_of(Source.open(tmp_path / "t.csv"))]
    assert found == [tuple(cell or None for cell in row) for row in rows]


def test_a_long_csv_of_cells_with_newlines_is_read_whole(tmp_path):
    """Far more than one block of a reader: it may not be cut within a cell."""
    rows = [(str(n), f'line {n}\n"{n}",\n' * 40) for n in range(4000)]
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *rows])
    assert (tmp_path / "t.csv").stat().st_size > 2**21
    assert [(one.id, one.text) for one in all_of(Source.open(tmp_path / "t.csv"))] == rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffid,text\n007,seven\n", [("007", "seven")]),
        ("id,text\r\na,x\r\nb,y\r\n", [("a", "x"), ("b", "y")]),
        ("id,text\na,x", [("a", "x")]),
        ("id,text\na,\nb,y\n", [("a", None), ("b", "y")]),
        ('id,text\na,""\n', [("a", None)]),
        ('"id","text"\n"a","x,\n""y"""\n', [("a", 'x,\n"y"')]),
        ("text\nseven\neight\n", [("0", "seven"), ("1", "eight")]),
        ("id,other,text\na,b,c\n", [("a", "c")]),
    ],
)
def test_a_csv_is_read_as_text(tmp_path, text, expected):
    (tmp_path / "t.csv").write_text(text, newline="")
    assert [(one.id, one.text) for one in all_of(Source.open(tmp_path / "t.csv"))] == expected


def test_a_tsv_is_cut_at_tabs_alone(tmp_path):
    (tmp_path / "t.TSV").write_text("id\ttext\n1,5\ta, b\n")
    assert [(one.id, one.text) for one in all_of(Source.open(tmp_path / "t.TSV"))] == [("1,5", "a, b")]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("id,text\n", InputError, "has no rows"),
        ("id,text", LoadError, "cannot read .* as CSV"),
        ("", InputError, "has the columns none; which is the image, or the text"),
        ("id,text,text\na,b,c\n", InputError, "two columns of one name: id, text, text"),
        ("a,b\n1,2\n", InputError, r"has the columns a, b; which is the image, or the text\? say columns image=NAME"),
        ("id,text\na,x\n,y\n", InputError, "row 1 of .* has no id"),
        ("id,text\na,x,more\n", LoadError, "cannot read .* as CSV"),
        ("id,text\na\n", LoadError, "cannot read .* as CSV"),
        (b"id,text\na,\xff\xfe\n", LoadError, "cannot read .* as CSV"),
        (b"id,text\n" + b"a,x\n" * 40000 + b"b,\xff\n", LoadError, "cannot read .* as CSV"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path, text, kind, said):
    folder_of(tmp_path, {"t.csv": text})
    with pytest.raises(kind, match=said):
        Source.open(tmp_path / "t.csv")


def test_columns_are_as_asked_before_their_usual_names(tmp_path):
    (tmp_path / "t.csv").write_text("uid,id,image,picture,caption,label,answer\nu1,i1,a.png,b.png,words,cat,dog\n")
    usual = all_of(Source.open(tmp_path / "t.csv"))[0]
    assert (usual.id, usual.image, usual.text, usual.label) == ("i1", "a.png", "words", "cat")
    source = Source.open(tmp_path / "t.csv", columns={"id": "uid", "image": "picture", "label": "answer", "passage": "id"})
    asked = all_of(source)[0]
    assert (asked.id, asked.image, asked.text, asked.label, asked.passage) == ("u1", "b.png", "words", "dog", "i1")
    assert dict(source.columns) == {"id": "uid", "image": "picture", "text": "caption", "passage": "id", "label": "answer"}


@pytest.mark.parametrize("kind", ["csv", "parquet", "dataset"])
def test_one_column_may_have_two_roles(tmp_path, kind):
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"]})
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        pa.csv.write_csv(table, path)
    elif kind == "parquet":
        pq.write_table(table, path)
    else:
        datasets().Dataset(table).save_to_disk(str(path))
    source = Source.open(path, columns={"id": "text", "passage": "label"})
    assert [(one.id, one.text, one.passage, one.label) for one in all_of(source)] == [("a", "a", "x", "x"), ("b", "b", "y", "y")]


@pytest.mark.parametrize(
    ("names", "image"),
    [("path,image", "image"), ("img,path", "path"), ("filename,file_name", "file_name"), ("image_path,file", "file"), ("img,other", "img")],
)
def test_of_several_usual_names_the_first_is_meant(tmp_path, names, image):
    (tmp_path / "t.csv").write_text(f"{names}\n1,2\n")
    assert Source.open(tmp_path / "t.csv").columns["image"] == image


def test_a_column_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "t.csv").write_text("image,answer\na.png,cat\n")
    with pytest.raises(NotFoundError, match=r"no column 'awnser'; nearest: answer; in 't.csv'"):
        Source.open(tmp_path / "t.csv", columns={"label": "awnser"})


def test_paths_lie_beside_the_list_wherever_one_stands(tmp_path, monkeypatch):
    folder_of(
        tmp_path,
        {"data/x/a.png": b"here", "data/t.csv": f"image,mask\nx/a.png,x/m.png\n{tmp_path}/b.png,\n ,\n", "b.png": b"there", "data/x/m.png": b"m"},
    )
    monkeypatch.chdir(tmp_path / "data")
    source = Source.open("t.csv")
    monkeypatch.chdir(tmp_path.parent)
    relative, absolute, blank = all_of(source)
    assert [source.pixels(one) for one in (relative, absolute, blank)] == [b"here", b"there", None]
    assert [source.pixels(one, "mask") for one in (relative, absolute)] == [b"m", None]
    assert source.has_places


def test_a_file_that_is_not_there_is_one_clear_error_when_its_turn_comes(tmp_path):
    (tmp_path / "t.csv").write_text("image\ngone.png\n.\n")
    source = Source.open(tmp_path / "t.csv")
    for example, said in zip(all_of(source), ("cannot read 'gone.png': No such file or directory", "cannot read '.': Is a directory")):
        with pytest.raises(LoadError, match=re.escape(said)):
            source.pixels(example)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("image\na.png\nb.png\n", ["a.png", "b.png"]),
        ("image\na.png\na.png\n", ["0", "1"]),
        ("image,text\na.png,x\n,y\n", ["0", "1"]),
        ("image,id\na.png,7\nb.png,x\n", ["7", "x"]),
    ],
)
def test_ids_are_given_or_paths_where_they_tell_apart_else_numbers(tmp_path, text, ids):
    (tmp_path / "t.csv").write_text(text)
    assert Source.open(tmp_path / "t.csv").ids == ids


@pytest.mark.parametrize("kind", ["csv", "parquet", "dataset"])
def test_ids_that_are_there_twice_are_refused_with_both_rows(tmp_path, kind):
    table = pa.table({"id": ["a", "b", "c", "b", "c"], "text": ["v", "w", "x", "y", "z"]})
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        pa.csv.write_csv(table, path)
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        datasets().Dataset(table).save_to_disk(str(path))
    with pytest.raises(InputError, match=r"the id 'b' is in rows 1 and 3 of .*ids tell examples apart"):
        Source.open(path)


# --- Parquet ---------------------------------------------------------------------------------------------------------------------


def parquet(path, columns, **how):
    pq.write_table(pa.table(columns), path, **how)
    return path


def test_paths_in_parquet_lie_beside_it(tmp_path):
    folder_of(tmp_path, {"x/a.png": b"pixels"})
    source = Source.open(parquet(tmp_path / "t.parquet", {"path": ["x/a.png"], "category": ["cat"]}))
    assert [(one.id, one.label, source.pixels(one)) for one in all_of(source)] == [("x/a.png", "cat", b"pixels")]
    assert source.embedded is None


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])])
def test_pixels_inside_parquet_are_read_whole(tmp_path, kind):
    raw = [PNGS["red"], None, PNGS["blue"], b""]
    values = [None if one is None else {"bytes": one, "path": "red.png"} for one in raw] if pa.types.is_struct(kind) else raw
    source = Source.open(
        parquet(tmp_path / "t.parquet", {"image": pa.array(values, kind), "mask": pa.array(values[::-1], kind), "label": [1, 2, 3, 4]})
    )
    assert [source.pixels(one) for one in all_of(source)] == raw
    assert [source.pixels(one, "mask") for one in all_of(source)] == raw[::-1]
    assert [(one.id, one.image, one.mask, one.label) for one in all_of(source)] == [(str(n), None, None, str(n + 1)) for n in range(4)]
    assert source.has_places


def test_a_struct_without_bytes_names_its_file(tmp_path):
    folder_of(tmp_path, {"a.png": b"outside"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": None, "path": str(tmp_path / "a.png")},
        {"bytes": None, "path": None},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        {"bytes": b"in", "path": str(tmp_path / "a.png")},
    ]
    source = Source.open(parquet(tmp_path / "t.parquet", {"image": pa.array(rows, kind)}))
    outside, none, gone, inside = all_of(source)
    assert [source.pixels(one) for one in (outside, none, inside)] == [b"outside", None, b"in"]
    with pytest.raises(LoadError, match=r"cannot read .*gone.png': No such file"):
        source.pixels(gone)


def test_a_path_in_a_struct_lies_beside_the_file_as_other_paths_do(tmp_path):
    folder_of(tmp_path, {"x/a.png": b"outside"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    source = Source.open(parquet(tmp_path / "t.parquet", {"image": pa.array([{"bytes": None, "path": "x/a.png"}], kind)}))
    assert source.pixels(all_of(source)[0]) == b"outside"


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="two columns of one name"):
        Source.open(tmp_path / "t.parquet")


def test_row_groups_are_read_in_any_order(tmp_path):
    count = 97
    images, masks = ([f"{what} {n}".encode() for n in range(count)] for what in ("image", "mask"))
    path = tmp_path / "t.parquet"
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary()), ("mask", pa.binary())])) as writer:
        for start, stop in itertools.pairwise((0, 1, 8, 8, 40, 96, 97)):
            writer.write_table(pa.table({"image": pa.array(images[start:stop], pa.binary()), "mask": pa.array(masks[start:stop], pa.binary())}))
    source = Source.open(path)
    assert pq.ParquetFile(path).num_row_groups >= 5
    examples = all_of(source)
    for order in (range(count), range(count - 1, -1, -1), [(n * 41) % count for n in range(count)], (0, 96, 0, 39, 40, 7, 8, 95, 96, 1)):
        assert [source.pixels(examples[n]) for n in order] == [images[n] for n in order]
        assert [source.pixels(examples[n], "mask") for n in order] == [masks[n] for n in order]


def test_threads_that_read_different_row_groups_read_one_at_a_time_and_do_not_mix_them_up(tmp_path, monkeypatch):
    count = 64
    images = [f"image {n}".encode() for n in range(count)]
    source = Source.open(parquet(tmp_path / "t.parquet", {"image": pa.array(images, pa.binary())}, row_group_size=2))
    examples = all_of(source)
    wrong, within, most = [], [], []
    read_row_group = pq.ParquetFile.read_row_group

    def watched(self, *group, **how):
        within.append(group)
        most.append(len(within))
        time.sleep(0.001)
        try:
            return read_row_group(self, *group, **how)
        finally:
            within.pop()

    def read(step):
        for n in range(60):
            n = n * step % count
            if source.pixels(examples[n]) != images[n]:
                wrong.append(n)

    assert source.pixels(examples[0]) == images[0]  # opened once, before the threads
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    threads = [threading.Thread(target=read, args=(step,)) for step in (3, 29, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(most) > 100
    assert max(most) == 1


LABELS = {
    "integers": (pa.array([0, 7, None], pa.int32()), ["0", "7", None]),
    "words of a dictionary": (pa.array(["cat", "dog", "cat"]).dictionary_encode(), ["cat", "dog", "cat"]),
    "numbers of a dictionary": (pa.DictionaryArray.from_arrays(pa.array([1, 0, None], pa.int8()), pa.array([30, 40])), ["40", "30", None]),
    "large words": (pa.array(["cat", None, "dog"], pa.large_string()), ["cat", None, "dog"]),
    "truths": (pa.array([True, False, None]), ["true", "false", None]),
    "nothing": (pa.nulls(3), [None, None, None]),
    "numbers": (pa.array([0.5, -2.25, None]), ["0.5", "-2.25", None]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_any_type_become_words(tmp_path, name):
    column, expected = LABELS[name]
    source = Source.open(parquet(tmp_path / "t.parquet", {"text": ["a", "b", "c"], "label": column}, row_group_size=2))
    assert columns_of(source, "label") == expected


BOXES = {
    "floats": (pa.array([[1.4, 2.6, 3.0, 1e2], None, [-0.4, 0, 9, 9]], pa.list_(pa.float64())), ["1,3,3,100", None, "0,0,9,9"]),
    "halves": (pa.array([[1.4, 2.6, 3.0, 8]], pa.list_(pa.float32())), ["1,3,3,8"]),
    "integers": (pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], pa.list_(pa.int64())), ["1,2,3,4", "5,6,7,8"]),
    "four of them": (pa.array([[1, 2, 3, 4]], pa.list_(pa.int32(), 4)), ["1,2,3,4"]),
    "words": (pa.array(["1,2,3,4", ""]), ["1,2,3,4", ""]),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_become_what_a_command_line_takes(tmp_path, name):
    column, expected = BOXES[name]
    source = Source.open(parquet(tmp_path / "t.parquet", {"text": [f"t{n}" for n in range(len(column))], "bbox": column}))
    assert columns_of(source, "box") == expected
    assert source.has_places


def test_a_box_as_a_large_list_is_read(tmp_path):
    boxes = pa.array([[1.0, 2.0, 3.0, 4.0]], pa.large_list(pa.float64()))
    assert columns_of(Source.open(parquet(tmp_path / "t.parquet", {"text": ["a"], "box": boxes})), "box") == ["1,2,3,4"]


@pytest.mark.parametrize("box", [[1.0, None, 3.0, 4.0], [1.0, float("nan"), 3.0, 4.0], [1.0, float("inf"), 3.0, 4.0]])
def test_a_box_with_a_gap_is_no_crash_of_the_whole_source(tmp_path, box):
    boxes = pa.array([[1.0, 2.0, 3.0, 4.0], box], pa.list_(pa.float64()))
    source = Source.open(parquet(tmp_path / "t.parquet", {"text": ["a", "b"], "box": boxes}))
    assert columns_of(source, "box")[0] == "1,2,3,4"


@pytest.mark.parametrize(
    ("column", "said"),
    [(pa.array([{"a": 1}]), r"the column 'label' holds struct<a: int64>"), (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "holds map")],
)
def test_a_column_that_is_no_text_is_refused(tmp_path, column, said):
    with pytest.raises(InputError, match=said):
        Source.open(parquet(tmp_path / "t.parquet", {"text": ["a"], "label": column}))


@pytest.mark.parametrize("cut", [0, 3, 4, 60, -1])
def test_a_broken_parquet_file_is_one_clear_error(tmp_path, cut):
    path = parquet(tmp_path / "t.parquet", {"text": ["a", "b"]})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(LoadError, match=r"cannot read .*t.parquet' as Parquet: "):
        Source.open(path)


# --- saved Hugging Face datasets -------------------------------------------------------------------------------------------------


def datasets():
    return pytest.importorskip("datasets")


def pictures(count=3, start=0, **more):
    """A dataset with an Image and a ClassLabel."""
    d = datasets()
    features = d.Features({"picture": d.Image(), "label": d.ClassLabel(names=["zero", "one", "two"]), "note": d.Value("string")})
    rows = [COLOURS[start + n] for n in range(count)]
    raw = {"picture": [{"bytes": PNGS[c], "path": None} for c in rows], "label": [(start + n) % 3 for n in range(count)], "note": rows}
    return d.Dataset.from_dict(raw, features=features, **more)


def test_features_of_a_saved_dataset_say_what_is_an_image_and_a_class(tmp_path):
    pictures().save_to_disk(str(tmp_path / "d"))
    source = Source.open(tmp_path / "d")
    assert [(one.id, one.label, source.pixels(one)) for one in all_of(source)] == [
        ("0", "zero", PNGS["red"]),
        ("1", "one", PNGS["green"]),
        ("2", "two", PNGS["blue"]),
    ]
    assert (source.kind, source.embedded) == ("dataset", "picture")
    noted = Source.open(tmp_path / "d", columns={"id": "note"})
    assert [one.id for one in all_of(noted)] == ["red", "green", "blue"]


def test_a_dataset_of_several_files_and_of_a_selection_keeps_its_order(tmp_path):
    chosen = pictures(5).select([4, 0, 3, 1])
    chosen.save_to_disk(str(tmp_path / "d"), num_shards=2)
    source = Source.open(tmp_path / "d")
    wanted = [COLOURS[n] for n in (4, 0, 3, 1)]
    assert [source.pixels(one) for one in all_of(source)] == [PNGS[c] for c in wanted]
    assert columns_of(source, "label") == ["one", "zero", "zero", "one"]
    assert [source.pixels(source.examples(n, n + 1)[0]) for n in (3, 0, 2)] == [PNGS[wanted[n]] for n in (3, 0, 2)]


def test_of_several_images_one_is_named(tmp_path):
    d = datasets()
    features = d.Features({"left": d.Image(), "right": d.Image()})
    raw = {"left": [{"bytes": PNGS["red"], "path": None}], "right": [{"bytes": PNGS["blue"], "path": None}]}
    d.Dataset.from_dict(raw, features=features).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match="has the columns left, right; which is the image"):
        Source.open(tmp_path / "d")
    source = Source.open(tmp_path / "d", columns={"image": "right", "mask": "left"})
    example = all_of(source)[0]
    assert (source.pixels(example), source.pixels(example, "mask")) == (PNGS["blue"], PNGS["red"])


def test_a_class_of_no_number_is_no_label(tmp_path):
    d = datasets()
    features = d.Features({"text": d.Value("string"), "label": d.ClassLabel(names=["no", "yes"])})
    d.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, None]}, features=features).save_to_disk(str(tmp_path / "d"))
    assert columns_of(Source.open(tmp_path / "d"), "label") == ["yes", None, None]


def test_a_dataset_of_images_alone_has_no_light_column(tmp_path):
    d = datasets()
    only = d.Dataset.from_dict({"image": [{"bytes": PNGS[c], "path": None} for c in ("red", "blue")]}, features=d.Features({"image": d.Image()}))
    only.save_to_disk(str(tmp_path / "d"))
    source = Source.open(tmp_path / "d")
    assert [(one.id, source.pixels(one)) for one in all_of(source)] == [("0", PNGS["red"]), ("1", PNGS["blue"])]


def test_masks_and_boxes_of_a_saved_dataset(tmp_path):
    d = datasets()
    features = d.Features({"image": d.Image(), "mask": d.Image(), "bbox": d.Sequence(d.Value("float32"), length=4)})
    raw = {"image": [{"bytes": PNGS["red"], "path": None}], "mask": [{"bytes": PNGS["white"], "path": None}], "bbox": [[0, 0, 2, 2]]}
    d.Dataset.from_dict(raw, features=features).save_to_disk(str(tmp_path / "d"))
    source = Source.open(tmp_path / "d")
    example = all_of(source)[0]
    assert (source.pixels(example), source.pixels(example, "mask"), example.box) == (PNGS["red"], PNGS["white"], "0,0,2,2")


def test_masks_alone_as_pixels_do_not_take_the_place_of_image_paths(tmp_path):
    d = datasets()
    folder_of(tmp_path, {"a.png": PNGS["red"]})
    features = d.Features({"image": d.Value("string"), "mask": d.Image()})
    raw = {"image": [str(tmp_path / "a.png")], "mask": [{"bytes": PNGS["white"], "path": None}]}
    d.Dataset.from_dict(raw, features=features).save_to_disk(str(tmp_path / "d"))
    source = Source.open(tmp_path / "d")
    example = all_of(source)[0]
    assert (source.pixels(example), source.pixels(example, "mask")) == (PNGS["red"], PNGS["white"])


def test_a_split_is_named_where_there_are_several(tmp_path):
    d = datasets()
    d.DatasetDict({"train": pictures(3), "test": pictures(2, 3)}).save_to_disk(str(tmp_path / "both"))
    d.DatasetDict({"only": pictures(2, 1)}).save_to_disk(str(tmp_path / "one"))
    pictures(1).save_to_disk(str(tmp_path / "plain"))
    source = Source.open(tmp_path / "both", split="test")
    assert [source.pixels(one) for one in all_of(source)] == [PNGS["white"], PNGS["black"]]
    assert len(Source.open(tmp_path / "both", split="train")) == 3
    with pytest.raises(UsageError, match=r"has the splits test, train; name one with split \(--split\)"):
        Source.open(tmp_path / "both")
    with pytest.raises(NotFoundError, match="no split 'tets'; nearest: test"):
        Source.open(tmp_path / "both", split="tets")
    only = Source.open(tmp_path / "one")
    assert [only.pixels(one) for one in all_of(only)] == [PNGS["green"], PNGS["blue"]]
    with pytest.raises(UsageError, match="is one dataset without splits; 'train' was asked"):
        Source.open(tmp_path / "plain", split="train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", "{"),
        ("state.json", "{}"),
        ("dataset_info.json", "no json"),
        ("data-00000-of-00001.arrow", "no arrow"),
        ("data-00000-of-00001.arrow", None),
    ],
)
def test_a_damaged_saved_dataset_is_one_clear_error(tmp_path, name, content):
    pictures(2).save_to_disk(str(tmp_path / "d"))
    (tmp_path / "d" / name).unlink() if content is None else (tmp_path / "d" / name).write_text(content)
    with pytest.raises(LoadError, match=r"cannot read .* as a saved dataset: "):
        Source.open(tmp_path / "d")


# --- it travels ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "csv", "parquet", "dataset"])
def test_a_source_travels_and_opens_its_files_there(tmp_path, kind):
    folder_of(tmp_path / "photos", {f"{n}.png": PNGS[c] for n, c in enumerate(("red", "green"))})
    if kind == "folder":
        path = tmp_path / "photos"
    elif kind == "csv":
        path = tmp_path / "photos" / "t.csv"
        path.write_text("image\n0.png\n1.png\n")
    elif kind == "parquet":
        path = parquet(tmp_path / "t.parquet", {"image": [PNGS["red"], PNGS["green"]]})
    else:
        path = tmp_path / "d"
        pictures(2).save_to_disk(str(path))
    source = Source.open(path)
    before = [source.pixels(one) for one in all_of(source)], source.ids
    raw = pickle.dumps(source)
    assert PNGS["red"] not in raw
    there = pickle.loads(raw)
    assert ([there.pixels(one) for one in all_of(there)], there.ids) == before == ([PNGS["red"], PNGS["green"]], before[1])
    assert all_of(there) == all_of(source)
    assert dict(there.columns) == dict(source.columns)


def test_a_source_is_read_by_another_process_in_another_folder(tmp_path):
    path = parquet(tmp_path / "t.parquet", {"image": [PNGS["red"], PNGS["green"]]})
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        source = Source.open("t.parquet")
    finally:
        os.chdir(here)
    (tmp_path / "s.pickle").write_bytes(pickle.dumps(source))
    code = "import pickle,sys; s=pickle.load(open(sys.argv[1],'rb')); print([s.pixels(e).hex() for e in s.examples(0,2)])"
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.pickle")], capture_output=True, text=True, cwd="/", check=True)
    assert said.stdout.strip() == str([PNGS["red"].hex(), PNGS["green"].hex()])
    assert path.is_file()


# --- what tells two examples apart -----------------------------------------------------------------------------------------------

BASE = Example(3, "id", image="a.png", text="ab", passage="c", label="cat", mask="m.png", box="0,0,1,1")
PIXELS = {"image": b"image", "mask": b"mask"}


def test_the_hash_changes_with_everything_that_a_row_depends_on():
    changed = {
        "": (BASE, PIXELS),
        "image": (BASE, {**PIXELS, "image": b"imagf"}),
        "no image": (BASE, {**PIXELS, "image": None}),
        "empty image": (BASE, {**PIXELS, "image": b""}),
        "mask": (BASE, {**PIXELS, "mask": b"masl"}),
        "no mask": (BASE, {**PIXELS, "mask": None}),
        "swapped": (BASE, {"image": b"mask", "mask": b"image"}),
        "text": (replace(BASE, text="ac"), PIXELS),
        "no text": (replace(BASE, text=None), PIXELS),
        "empty text": (replace(BASE, text=""), PIXELS),
        "case": (replace(BASE, text="AB"), PIXELS),
        "passage": (replace(BASE, passage="d"), PIXELS),
        "no passage": (replace(BASE, passage=None), PIXELS),
        "the word none": (replace(BASE, passage="none"), PIXELS),
        "label": (replace(BASE, label="dog"), PIXELS),
        "no label": (replace(BASE, label=None), PIXELS),
        "box": (replace(BASE, box="0,0,1,2"), PIXELS),
        "no box": (replace(BASE, box=None), PIXELS),
        "boundary": (replace(BASE, text="a", passage="bc"), PIXELS),
        "all in one": (replace(BASE, text="abc", passage=""), PIXELS),
        "all in the other": (replace(BASE, text="", passage="abc"), PIXELS),
        "moved to the label": (replace(BASE, text="cat", label="ab"), PIXELS),
        "moved to the image": (BASE, {"image": b"imagemask", "mask": b""}),
    }
    hashes = {name: content_hash(*given) for name, given in changed.items()}
    assert len(set(hashes.values())) == len(changed), [(a, b) for a, b in itertools.combinations(hashes, 2) if hashes[a] == hashes[b]]
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in hashes.values())


@pytest.mark.parametrize("other", [{"number": 4}, {"id": "other"}, {"image": "b.png"}, {"mask": "n.png"}])
def test_the_hash_is_that_of_contents_not_of_names(other):
    assert content_hash(replace(BASE, **other), PIXELS) == content_hash(BASE, PIXELS)


def test_no_text_can_be_written_that_looks_like_two_parts():
    """A text that spells out the next part's heading is still one text."""
    one = replace(BASE, text="x", label="y")
    for text in ("xtext:1;y", "x;label:1;y", "1:x", "ylabel:1;"):
        assert content_hash(replace(BASE, text=text, label=""), PIXELS) != content_hash(one, PIXELS)
        assert content_hash(replace(BASE, passage=None, text=text, label="y"), PIXELS) != content_hash(
            replace(BASE, passage=text, text=None, label="y"), PIXELS
        )


def test_the_hash_is_the_same_in_every_version():
    """Runs of today are resumed tomorrow: the number is written down."""
    import hashlib

    parts = b"box:7;0,0,1,1image:5;imagelabel:3;catmask:4;maskpassage:1;ctext:2;ab"
    assert content_hash(BASE, PIXELS) == hashlib.sha256(parts).hexdigest()[:32]


# --- chunks ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((7, 3), [(0, 3), (3, 6), (6, 7)]),
        ((6, 3), [(0, 3), (3, 6)]),
        ((2, 5), [(0, 2)]),
        ((0, 5), []),
        ((7, 3, 4), [(0, 3), (3, 4)]),
        ((7, 3, 100), [(0, 3), (3, 6), (6, 7)]),
        ((7, 1, 2), [(0, 1), (1, 2)]),
    ],
)
def test_chunks_cut_the_source_from_its_start(asked, expected):
    found = chunks(*asked)
    assert isinstance(found, types.GeneratorType)
    assert list(found) == expected
