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
from pixelspace.evaluation.intervals import repeats
from pixelspace.evaluation.protocols import Protocol, Questions
from pixelspace.files import publish
from pixelspace.types import Number

FILE = "report.json"
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


def fingerprint(protocol: Protocol | Questions) -> str:
    """Twelve hexadecimal digits that any change of a protocol changes."""
    return hashlib.sha256(json.dumps(to_data(protocol), sort_keys=True).encode()).hexdigest()[:12]


def summarised(runs: Sequence[Sequence[Number]], suffix: str) -> list[dict[str, Any]]:
    """Each number over repeated runs: the mean, and of several runs also their values, deviation and least."""
    rows = []
    for same in zip(*runs, strict=True):
        values = [number.value for number in same]
        row: dict[str, Any] = {
            "name": f"{same[0].name}{suffix}",
            "value": repeats(values).mean if len(values) > 1 else values[0],
            "better": "lower" if same[0].lower_is_better else "higher",
            "details": dict(same[0].details),
        }
        if len(values) > 1:
            row["runs"] = {"values": values, **vars(repeats(values))}
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Report:
    """A report as plain data: `protocol`, `images`, `reference`, `networks`, `numbers`, `notes`, `software`."""

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

    def markdown(self) -> str:
        """Tables of the numbers and of what made them."""
        lines = [f"# {self.data['images']['source']}", "", self.line, ""]
        lines += ["| metric | value | better | how sure |", "|---|---|---|---|"]
        for row in self.data["numbers"]:
            details = {key: shown(value) for key, value in row["details"].items()}
            if runs := row.get("runs"):
                details = {"std over seeds": shown(runs["std"]), "minimum": shown(runs["minimum"]), **details}
            said = ", ".join(f"{key} {value}" for key, value in details.items())
            lines.append(f"| {row['name']} | {shown(row['value'])} | {row['better']} | {said} |")
        if self.data["notes"]:
            lines += ["", *(f"- {note}" for note in self.data["notes"])]
        lines += ["", "| made with | |", "|---|---|"]
        for key, entry in (("images", self.data["images"]), ("reference", self.data["reference"] or {})):
            lines += [f"| {key}: {name} | {shown(value)} |" for name, value in entry.items()]
        lines += [f"| network: {net['name']} | {net['sha256']} |" for net in self.data["networks"]]
        lines += [f"| {name} | {value} |" for name, value in self.data["software"].items()]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> Path:
        """Writes `report.json` and `report.md`; returns the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        again = "run the same command again"
        publish(folder / FILE, (json.dumps(self.data, indent=1) + "\n").encode(), again)
        publish(folder / "report.md", self.markdown().encode(), again)
        return folder / "report.md"


def shown(value: Any) -> str:
    """A value as a table has it."""
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    text = json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def read_report(path: Path) -> Report:
    """The report of a folder.

    Raises:
        DataError: it is something else.
    """
    data = read_json(path / FILE if path.is_dir() else path)
    if not isinstance(data, dict) or not {"protocol", "numbers", "images"} <= data.keys():
        raise DataError(f"{path}: is no report of `pixelspace evaluate`")
    return Report(data)
