"""What an evaluation found, with all that a reader needs to repeat it."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pixelspace.config import read_json, to_data
from pixelspace.errors import DataError
from pixelspace.evaluation.features import Extractor
from pixelspace.evaluation.intervals import repeats
from pixelspace.evaluation.protocols import Protocol, Questions
from pixelspace.files import publish
from pixelspace.types import Number

FILE = "report.json"
_HOLDS = {"protocol", "fingerprint", "images", "reference", "networks", "numbers", "notes", "software"}
_PACKAGES = ("pixelspace", "torch", "numpy", "pillow", "transformers")


def software(device: torch.device) -> dict[str, Any]:
    """Versions of what computes, and where."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {**found, "device": f"{device.type} ({name})", "threads": torch.get_num_threads()}


def _extractor(obj: Any) -> dict[str, Any]:
    if not isinstance(obj, Extractor):
        raise TypeError(f"{type(obj).__name__} is neither a value nor an extractor")
    return {"type": type(obj).__name__, "name": obj.name, "outputs": dict(obj.outputs)}


def described(protocol: Protocol | Questions) -> dict[str, Any]:
    """A protocol as plain data; an extractor of one's own, which is no value, by its name and outputs."""
    return to_data(protocol, _extractor)


def fingerprint(protocol: Protocol | Questions) -> str:
    """Twelve hexadecimal digits that any change of a protocol changes."""
    return hashlib.sha256(json.dumps(described(protocol), sort_keys=True).encode()).hexdigest()[:12]


def summarised(runs: Sequence[Sequence[Number]], suffix: str) -> list[dict[str, Any]]:
    """Each number over repeated runs: the mean, and of several runs also their values, deviation and least, and the
    details of each that are not those of all."""
    rows = []
    for same in zip(*runs, strict=True):
        values = [number.value for number in same]
        row: dict[str, Any] = {
            "name": f"{same[0].name}{suffix}",
            "value": repeats(values).mean if len(values) > 1 else values[0],
            "better": "lower" if same[0].lower_is_better else "higher",
            "details": {
                key: detail
                for key, detail in same[0].details.items()
                if all(number.details.get(key) == detail for number in same)
            },
        }
        if len(values) > 1:
            others = [{k: v for k, v in number.details.items() if k not in row["details"]} for number in same]
            row["runs"] = {"values": values, **vars(repeats(values)), "details": others}
        rows.append(row)
    return rows


def shown(value: Any) -> str:
    """A value as text of one line."""
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    text = json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)
    return " ".join(text.splitlines())


def table_row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(shown(cell).replace("|", r"\|") for cell in cells) + " |"


@dataclass(frozen=True)
class Report:
    """A report as plain data: `protocol` and its `fingerprint`, `images`, `reference`, `networks`, `numbers`, `notes`,
    `software`."""

    data: Mapping[str, Any]

    @property
    def numbers(self) -> dict[str, float]:
        """Values by name."""
        return {row["name"]: row["value"] for row in self.data["numbers"]}

    @property
    def line(self) -> str:
        """The protocol in a line, to stand beside a number."""
        images, reference = self.data["images"], self.data["reference"]
        against = f" against {reference['source']}" if reference else ""
        return (
            f"{self.data['protocol']['name']} [{self.data['fingerprint']}], {images['count']:,} images{against}, "
            f"pixelspace {self.data['software'].get('pixelspace', '?')}"
        )

    def summary(self) -> str:
        """The protocol and a table of the numbers, as Markdown."""
        lines = [f"# {shown(self.data['images']['source'])}", "", shown(self.line), ""]
        lines += ["| metric | value | better | how sure |", "|---|---|---|---|"]
        for row in self.data["numbers"]:
            details = row["details"]
            if runs := row.get("runs"):
                details = {"std over seeds": runs["std"], "minimum": runs["minimum"], **details}
            said = ", ".join(f"{key} {shown(value)}" for key, value in details.items())
            lines.append(table_row(row["name"], row["value"], row["better"], said))
        if self.data["notes"]:
            lines += ["", *(f"- {shown(note)}" for note in self.data["notes"])]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """The summary and a table of what made the numbers."""
        lines = [self.summary(), "| made with | |", "|---|---|"]
        for key, entry in (("images", self.data["images"]), ("reference", self.data["reference"] or {})):
            lines += [table_row(f"{key}: {name}", value) for name, value in entry.items()]
        lines += [table_row(f"network: {net['name']}", net["sha256"]) for net in self.data["networks"]]
        lines += [table_row(name, value) for name, value in self.data["software"].items()]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> Path:
        """Writes `report.json` and `report.md`; returns the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        again = "run the same command again"
        publish(folder / FILE, (json.dumps(self.data, indent=1) + "\n").encode(), again)
        publish(folder / "report.md", self.markdown().encode(), again)
        return folder / "report.md"


def read_report(path: Path) -> Report:
    """The report of a folder.

    Raises:
        UserError: there is none, or it is not JSON.
        DataError: it is something else.
    """
    data = read_json(path / FILE if path.is_dir() else path)
    if not isinstance(data, dict) or not data.keys() >= _HOLDS:
        raise DataError(f"{path}: is no report of `pixelspace evaluate`")
    return Report(data)
