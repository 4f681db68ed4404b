"""The config files of a run folder: each start writes them, and no file of the user's is written over."""

import pytest

from trainer.config.run_folder import command_of, config_of, save

COMMAND = "python -m trainer.main --gin_file=a.gin"


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _bindings(path):
    return [line for line in path.read_text().splitlines() if line[:1] != "#"]


def test_a_later_start_replaces_what_an_earlier_one_wrote(tmp_path):
    for number in (1, 2):
        save(tmp_path / "run", f"a.b = {number}\n", f"a.b = {number}\na.c = 0\n", COMMAND)
    assert _names(tmp_path / "run") == ["command.txt", "config.gin", "operative_config.gin"]
    assert config_of(tmp_path / "run") == tmp_path / "run" / "config.gin"
    assert _bindings(tmp_path / "run" / "config.gin") == ["a.b = 2"]
    assert _bindings(tmp_path / "run" / "operative_config.gin") == ["a.b = 2", "a.c = 0"]
    assert COMMAND in command_of(tmp_path / "run")


def test_a_start_from_python_has_no_command(tmp_path):
    save(tmp_path, "", "", "")
    assert command_of(tmp_path) == ""


@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin", "command.txt"])
def test_a_file_of_the_user_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine = 1\n")
    for number in (1, 2):
        save(tmp_path, f"a.b = {number}\n", "", COMMAND)
        assert (tmp_path / name).read_text() == "mine = 1\n"
    assert _names(tmp_path) == sorted(["command.txt", "config.gin", "operative_config.gin", f"run_{name}"])
    assert _bindings(config_of(tmp_path)) == ["a.b = 2"] and COMMAND in command_of(tmp_path)
    (tmp_path / name).unlink()
    save(tmp_path, "a.b = 3\n", "", COMMAND)
    assert _names(tmp_path) == ["command.txt", "config.gin", "operative_config.gin"]
    assert _bindings(config_of(tmp_path)) == ["a.b = 3"]


def test_a_file_that_the_user_changed_is_the_users(tmp_path):
    save(tmp_path, "a.b = 1\n", "", COMMAND)
    edited = (tmp_path / "config.gin").read_text().replace("a.b = 1", "a.b = 7")
    (tmp_path / "config.gin").write_text(edited)
    save(tmp_path, "a.b = 7\n", "", COMMAND)
    assert (tmp_path / "config.gin").read_text() == edited and config_of(tmp_path).name == "run_config.gin"


def test_a_folder_of_a_version_that_marked_nothing_is_taken_over(tmp_path):
    for name in ("config.gin", "operative_config.gin"):
        (tmp_path / name).write_text("a.b = 1\n")
    (tmp_path / "command.txt").write_text(COMMAND + "\n")
    save(tmp_path, "a.b = 2\n", "", COMMAND)
    assert _names(tmp_path) == ["command.txt", "config.gin", "operative_config.gin"]
    (tmp_path / "config.gin").write_text("mine = 1\n")
    save(tmp_path, "a.b = 3\n", "", COMMAND)
    assert (tmp_path / "config.gin").read_text() == "mine = 1\n"
