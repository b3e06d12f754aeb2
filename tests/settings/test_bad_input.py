# ruff: noqa: E501
"""Everything that people and accidents put into a settings folder: refused with place and reason, in one report."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_hardening.errors import SettingsError
from deia_hardening.settings import Bytes, Seconds, load, setting


@attrs.frozen
class App:
    max_bots: int = setting(10, "bots", ge=1, le=64)
    min_bots: int = setting(1, "bots", ge=1, le=64)
    pause: Seconds = setting(Seconds("5s"), "a pause", ge=1)
    size: Bytes = setting(Bytes("1MiB"), "a size")
    label: str = setting("x", "a label")
    folder: str = setting("a", "a path", file_only=True)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        if self.min_bots > self.max_bots:
            yield "min_bots", f"is above max_bots ({self.max_bots})"


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


def test_all_of_it_comes_in_one_report(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (tmp_path / "outside.yaml").write_text("app: {}\n")
    (folder / "a.yaml").write_text("app:\n  max_bost: 3\n  pause: 5\n  size: 5MB/s\n  label: 7\n  max_bots: 99\n")
    (folder / "b.yaml").write_bytes(b"app:\n  label: caf\xe9\n")
    (folder / "c.yaml").mkdir()
    with (folder / "d.yaml").open("wb") as huge:
        huge.truncate(100 * 1024 * 1024)
    (folder / "e.yaml").write_text(bomb())
    (folder / "f.yaml").symlink_to(tmp_path / "outside.yaml")
    (folder / "g.yaml").symlink_to("gone.yaml")
    os.mkfifo(folder / "h.yaml")
    (folder / "i.json").write_text('{"app": {"min_bots": 2, "min_bots": 3}}')
    (folder / "j.yaml").write_text("app: [\n")
    (folder / "k.yaml").write_text("confg: {}\n")
    with pytest.raises(SettingsError) as caught:
        load(
            folder,
            {},
            app=App,
            env={"DEIA__APP__MIN_BOTS": "0"},
            overrides={"app": {"folder": "/etc"}},
            known=["config"],
        )
    told = {str(problem).replace(str(folder), "") for problem in caught.value.problems}
    for place, words in (
        ("/a.yaml:2:3", "did you mean max_bots?"), ("/a.yaml:3:10", "did you mean 5s?"), ("/a.yaml:4:9", "5MB"),
        ("/a.yaml:5:10", '"7"'), ("/a.yaml:6:13", "1 to 64"), ("/b.yaml:2:13", "not UTF-8"), ("/c.yaml", "a folder"),
        ("/d.yaml", "larger than"), ("/e.yaml:", "too many values"), ("/f.yaml", "a link out of"), ("/g.yaml", "a link to nothing"),
        ("/h.yaml", "not a regular file"), ("/i.json:1:25", "twice"), ("/j.yaml:1:6", "not valid YAML"), ("DEIA__APP__MIN_BOTS", "1 to 64"),
        ("<overrides>", "can't be set at run time"), ("/k.yaml:1:1", "did you mean config?"),
    ):  # fmt: skip
        assert any(each.startswith(place) and words in each for each in told), (place, words, told)


def test_a_contradiction_is_told_beside_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("app:\n  max_bots: 2\n")
    (tmp_path / "b.yaml").write_text("app:\n  min_bots: 3\n")
    with pytest.raises(SettingsError, match=r"b\.yaml:2:13  app\.min_bots: is above max_bots \(2\)"):
        load(tmp_path, {}, app=App, env={})


def test_a_folder_that_never_stands_still_is_read_or_refused(tmp_path: Path) -> None:
    """Files come and go while they are read: a whole document or a located problem, and nothing else."""
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            beside = tmp_path / ".tmp"
            beside.write_text(f"app: {{max_bots: {number % 64 + 1}}}\n")
            beside.replace(tmp_path / f"{number % 5}.yaml")
            (tmp_path / f"{(number + 2) % 5}.yaml").unlink(missing_ok=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            try:
                assert 1 <= load(tmp_path, {}, app=App, env={}).app.max_bots <= 64
            except SettingsError as error:
                assert "vanished" in str(error) or "no settings" in str(error), error
    finally:
        stop.set()
        thread.join()


def test_nothing_in_a_file_steers_the_terminal_that_shows_what_is_wrong(write: Any) -> None:
    text = '"\\e[31mred\\n\u202e": 1\ns: {"\\e]0;x\\a": 1}\n'
    with pytest.raises(SettingsError) as caught:
        load(write(text), {}, env={})
    told = "\n".join(map(str, caught.value.problems))
    assert "\\x1b[31mred\\n\\u202e" in told
    assert all(line.isprintable() for line in told.split("\n")) and len(told.split("\n")) == len(caught.value.problems)
