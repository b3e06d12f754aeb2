"""What a structuring run carries along: the problems found, the environment for `${…}`, where secrets are."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any, Final

from deia_hardening.settings.fields import FieldSpec, Secret
from deia_hardening.settings.files import read_bounded
from deia_hardening.settings.limits import DocumentLimits
from deia_hardening.settings.nodes import Node, Place, Scalar, Sequence, Source
from deia_hardening.settings.problems import Problems, nearest

_REFERENCE = re.compile(r"\$(\$)?\{([^{}]*)\}")
_MASK = "***"


class _Failed:
    def __repr__(self) -> str:
        return "<failed>"


FAILED: Final = _Failed()
"""What a reader returns after it noted why."""

Reader = Callable[[Node, str, "Gather", FieldSpec], Any]


class Gather:
    """One run of structuring. Not shared between threads."""

    __slots__ = ("environment", "hidden", "limits", "problems", "secrets")

    def __init__(self, problems: Problems, environment: MappingType[str, str], limits: DocumentLimits) -> None:
        self.problems = problems
        self.environment = environment
        self.limits = limits
        self.hidden: dict[str, str] = {}
        """Key paths whose value must never be shown -> what to show instead (the reference, or a mask)."""
        self.secrets: dict[str, str] = {}
        """Key paths -> the secret texts themselves, to notice that one was rotated."""

    def add(self, node: Node | Place, key: str, message: str, allowed: str = "", suggestion: str = "") -> None:
        place = node if isinstance(node, Place) else node.place
        self.problems.add(place, key, message, allowed, suggestion)

    def trial(self) -> Gather:
        """A run beside this one, whose problems and secrets may be thrown away."""
        return Gather(Problems(), self.environment, self.limits)

    def accept(self, trial: Gather) -> None:
        self.problems.extend(trial.problems)
        self.hidden.update(trial.hidden)
        self.secrets.update(trial.secrets)

    def scrubbed(self, text: str) -> str:
        """What somebody's validator said, without the secrets that it may repeat."""
        for secret in self.secrets.values():
            if secret and secret in text:
                text = text.replace(secret, _MASK)
        return text

    @staticmethod
    def raw_text(node: Scalar) -> bool:
        """Whether a field of text takes what was written rather than its YAML value: for the environment."""
        return node.place.source is Source.ENVIRONMENT

    def expand(self, text: str, node: Scalar, key: str, spec: FieldSpec) -> Any:
        """Text with its `${env:NAME}` and `${file:PATH}` replaced; `$${` stands for itself."""
        if spec.secret:
            self.hidden[key] = _MASK
            self.secrets[key] = text
        if "${" not in text:
            return Secret(text) if spec.secret else text
        if node.place.source not in (Source.FILE, Source.MAPPING):
            self.add(node, key, "a reference ${…} works in settings files only", "the value itself")
            return FAILED
        failed = False
        referred = False

        def replace(match: re.Match[str]) -> str:
            nonlocal failed, referred
            if match.group(1):
                return match.group()[1:]
            referred = True
            value = self._referred(match.group(2), node, key)
            failed = failed or value is None
            return value or ""

        expanded = _REFERENCE.sub(replace, text)
        if failed:
            return FAILED
        if referred:
            self.hidden[key] = text
            self.secrets[key] = expanded
            return Secret(expanded)
        return Secret(expanded) if spec.secret else expanded

    def _referred(self, reference: str, node: Scalar, key: str) -> str | None:
        scheme, separator, name = reference.partition(":")
        if not separator or scheme not in ("env", "file") or not name:
            close = nearest(scheme, ("env", "file")) if separator else ""
            suggestion = (
                f"${{{close}:{name}}}"
                if close and name
                else f"${{env:{reference[:80]}}}"
                if reference and not separator
                else ""
            )
            self.add(
                node,
                key,
                f"unknown reference ${{{reference[:80]}}}",
                "${env:NAME} or ${file:PATH}; $${ for itself",
                suggestion,
            )
            return None
        if scheme == "env":
            value = self.environment.get(name)
            if value is None:
                close = nearest(name, self.environment)
                self.add(
                    node,
                    key,
                    f"the environment has no {name[:80]}",
                    "a variable that is set",
                    f"${{env:{close}}}" if close else "",
                )
            return value
        return self._from_file(name, node, key)

    def _from_file(self, name: str, node: Scalar, key: str) -> str | None:
        path = Path(name)
        if not path.is_absolute() and node.place.source is Source.FILE:
            path = Path(node.place.file).parent / path
        try:
            return read_bounded(path, self.limits.secret_size).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            self.add(node, key, f"the file {name[:200]} is not UTF-8", "UTF-8 text")
        except ValueError as error:
            self.add(
                node,
                key,
                f"the file {name[:200]}: {error}",
                f"a regular file of at most {self.limits.secret_size}",
            )
        except OSError as error:
            self.add(
                node,
                key,
                f"the file {name[:200]} can't be read: {error.strerror or error}",
                "a readable file",
            )
        return None

    def plain(self, node: Node, key: str, spec: FieldSpec) -> Any:
        """The plain value of a node for a field of no particular type, references replaced."""
        if isinstance(node, Scalar):
            return self.expand(node.value, node, key, spec) if isinstance(node.value, str) else node.value
        if isinstance(node, Sequence):
            items = [self.plain(item, f"{key}[{index}]", spec) for index, item in enumerate(node.items)]
            return FAILED if FAILED in items else items
        values = {name: self.plain(entry.node, f"{key}.{name}", spec) for name, entry in node.entries.items()}
        return FAILED if FAILED in values.values() else values
