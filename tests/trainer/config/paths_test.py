"""Paths that users give: literal, absolute, local."""

import pathlib

import pytest

from trainer.config.paths import folder_path, local_path


@pytest.mark.parametrize("text", ["a [x] b", "50%", "a\\b", "star*", "q?", "{a,b}", "a:b", "c:/x"])
def test_a_path_is_literal_and_absolute(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    expected = pathlib.Path(tmp_path / text)
    assert local_path("p", text) == local_path("p", pathlib.Path(text)) == expected
    assert str(local_path("p", tmp_path / text)) == str(expected)


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(local_path("p", "~/x")) == str(local_path("p", pathlib.Path("~/x"))) == "/somewhere/x"
    assert str(local_path("p", "/a/~")) == "/a/~"


@pytest.mark.parametrize(
    "value", ["gs://bucket/run", "s3://b", "hdfs://h/x", "file:///x", "ram://x", pathlib.Path("gs://bucket/run")]
)
def test_another_file_system_is_refused_by_name(value):
    scheme = str(value).partition(":")[0]
    with pytest.raises(
        ValueError, match=f"`p` must be on a file system of this machine, .*{scheme}:// is not supported"
    ):
        local_path("p", value)


@pytest.mark.parametrize("value", ["", "  ", None, 5, b"x", "a\0b"])
def test_an_invalid_path_is_refused(value):
    with pytest.raises(ValueError, match="`p` must be a path"):
        local_path("p", value)


def test_a_folder_is_no_file_and_no_link_to_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    for name in ("there", "link", "link/new", "new", "new/new"):
        assert folder_path("p", tmp_path / name) == tmp_path / name
    for name, what in (
        ("file", "is a file"),
        ("file/x", "is a file"),
        ("dangling", "dangling link"),
        ("dangling/x", "link"),
    ):
        with pytest.raises(ValueError, match=f"`p` must be a folder, .*{what}"):
            folder_path("p", tmp_path / name)
