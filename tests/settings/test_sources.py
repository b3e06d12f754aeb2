from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.errors import SettingsError
from deia_hardening.settings import Source, load, read, take_snapshot

Write = Callable[..., Path]


def told(config: Any, sections: dict[str, type], **more: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, sections, **{"env": {}, **more})
    return str(caught.value)


def test_files_merge_in_lexical_order_and_blame_knows_what_is_shadowed(everything: Any, write: Write) -> None:
    write("s:\n  count: 1\n  name: a\n", "10-base.yaml")
    write('{"s": {"count": 2}}', "20-more.json")
    folder = write("s: {count: 3}\n", "30-last.yml")
    document = read(folder, env={"DEIA__S__COUNT": "4"}, overrides={"s": {"count": 5}})
    blame = document.blame("s.count")
    assert [value for _, value in blame] == [5, 4, 3, 2, 1]
    assert [place.source for place, _ in blame][:3] == [Source.OVERRIDE, Source.ENVIRONMENT, Source.FILE]
    assert str(blame[-1][0]).endswith("10-base.yaml:2:10")


def test_an_empty_section_in_another_file_takes_nothing_away(everything: Any, write: Write) -> None:
    write("s: {count: 3}\n", "a.yaml")
    folder = write("s:\n", "b.yaml")
    assert load(folder, {"s": everything}, env={}).sections["s"].count == 3


def test_the_environment_gives_core_scalars_and_raw_text_to_text(everything: Any) -> None:
    env = {"DEIA__S__COUNT": "7", "DEIA__S__NAME": "7", "DEIA__S__ON": "false", "DEIA__S__INNER__RETRIES": "2"}
    made = load({"s": {}}, {"s": everything}, env=env).sections["s"]
    assert (made.count, made.name, made.on, made.inner.retries) == (7, "7", False, 2)


def test_only_enabled_true_makes_a_section(everything: Any) -> None:
    assert load({}, {"s": everything}, env={"DEIA__S__ENABLED": "true"}).enabled == ("s",)
    assert "no source has a section 's'" in told({}, {"s": everything}, env={"DEIA__S__COUNT": "3"})
    both = {"DEIA__S__COUNT": "3", "DEIA__S__ENABLED": "true"}
    assert load({}, {"s": everything}, env=both).sections["s"].count == 3
    assert "did you mean DEIA__AUDIT__X" in told({"audit": {}}, {"audit": everything}, env={"DEIA__AUDTI__X": "3"})


def test_a_section_may_be_off(everything: Any) -> None:
    loaded = load({"s": {"enabled": False, "anything": 1}}, {}, env={}, known=("s",))
    assert loaded.enabled == ()
    assert load({"s": {}}, {"s": everything}, env={"DEIA__S__ENABLED": "false"}).enabled == ()


def test_the_whole_may_be_off() -> None:
    assert read({}, env={"DEIA__ENABLED": "false"}).enabled is False
    assert read({"enabled": False}, env={}).enabled is False
    assert read({}, env={}).enabled is True
    assert "did you mean false" in told({"enabled": "off"}, {})


def test_unknown_sections_are_told_with_the_nearest(everything: Any) -> None:
    assert "did you mean audit?" in told({"audti": {}}, {}, known=("audit", "config"))
    assert read({"mine": {"use": "pkg.mod:Plugin"}}, env={}).sections_named()["mine"].use == "pkg.mod:Plugin"
    assert "import string" in told({"mine": {"use": "pkg.mod"}}, {"mine": everything})


def test_home(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write("s: {}\n")
    assert read(folder, env={}).home == tmp_path / ".deia"
    assert read(folder / "a.yaml", env={}).home == tmp_path / ".deia"
    assert read({}, env={}).home == tmp_path / ".deia"
    assert read({"home": "/srv/x"}, env={}).home == Path("/srv/x")
    assert read({"home": "/srv/x"}, env={"DEIA_HOME": "/srv/y"}).home == Path("/srv/y")
    assert "not a path" in told({"home": 3}, {})
    assert "at run time" in told({}, {}, overrides={"home": "/x"})


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    assert "no such file or folder" in told(tmp_path / "nope", {})
    assert "nope" in told(tmp_path / "nope", {})


def test_an_empty_folder_is_an_empty_document(tmp_path: Path) -> None:
    assert load(tmp_path, {}, env={}).enabled == ()


def test_what_is_no_regular_file_is_refused(write: Write) -> None:
    folder = write("s: {}\n")
    (folder / "b.yaml").mkdir()
    os.mkfifo(folder / "c.yaml")
    (folder / "d.yaml").symlink_to("nowhere.yaml")
    (folder / "e.yaml").symlink_to("e.yaml")
    text = told(folder, {})
    assert "b.yaml  a folder, where a file is expected" in text
    assert "c.yaml  not a regular file" in text
    assert "d.yaml  a link to nothing" in text
    assert "e.yaml  " in text


def test_a_link_out_of_the_folder_is_refused(write: Write, tmp_path: Path) -> None:
    folder = write("s: {}\n")
    (tmp_path / "out.yaml").write_text("s: {}\n")
    (folder / "b.yaml").symlink_to(tmp_path / "out.yaml")
    assert "link out of the settings folder" in told(folder, {})


def test_a_config_map_folder_is_read_through_its_links(everything: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cm"
    (folder / "..2024").mkdir(parents=True)
    (folder / "..2024" / "a.yaml").write_text("s: {count: 9}\n")
    (folder / "..data").symlink_to("..2024")
    (folder / "a.yaml").symlink_to("..data/a.yaml")
    assert load(folder, {"s": everything}, env={}).sections["s"].count == 9


def test_a_huge_file_is_refused_without_being_read(write: Write) -> None:
    folder = write("s: {}\n")
    with (folder / "b.yaml").open("wb") as file:
        file.truncate(100 << 20)
    assert "larger than 1MiB" in told(folder, {})


def test_an_unreadable_file_is_told(write: Write) -> None:
    folder = write("s: {}\n")
    (folder / "a.yaml").chmod(0)
    if os.access(folder / "a.yaml", os.R_OK):
        pytest.skip("this user may read everything")
    assert "can't be read: Permission denied" in told(folder, {})


def test_a_file_that_vanishes_while_read_is_told(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("s: {}\n")
    real = os.open

    def vanish(path: Any, flags: int, *rest: Any) -> int:
        if str(path).endswith("a.yaml"):
            raise FileNotFoundError(2, "No such file or directory")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", vanish)
    assert "vanished while it was read" in told(folder, {})


def test_a_snapshot_tells_one_save_from_another(write: Write) -> None:
    folder = write("s: {}\n")
    one = take_snapshot(folder)
    assert one.digest == take_snapshot(folder).digest
    write("s: {a: 1}\n")
    assert one.digest != take_snapshot(folder).digest
    assert read(one, env={}).section("s") is not None


def test_a_file_that_is_a_list_is_refused(write: Write) -> None:
    assert "holds no sections" in told(write("- a\n"), {})


def test_a_mapping_that_holds_itself_or_odd_keys_is_refused() -> None:
    value: dict[str, Any] = {}
    value["a"] = value
    assert "in itself" in told(value, {})
    assert "not text" in told({"a": {1: 2}}, {})
