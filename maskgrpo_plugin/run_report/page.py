"""The page of a report: the data of its runs, and the HTML file that holds it."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskgrpo_plugin.pages import embedded, filled, part
from maskgrpo_plugin.run_report.find import RunFiles
from maskgrpo_plugin.run_report.metrics import read_metrics
from maskgrpo_plugin.run_report.panels import WHOLE_STEP, arrange, stages
from maskgrpo_plugin.run_report.samples import Samples, read_samples
from maskgrpo_plugin.run_report.sheets import Sheets, read_sheets

FILES = "maskgrpo_plugin.run_report"
SCRIPTS = ("page/base.js", "page/charts.js", "page/samples.js", "page/images.js", "page/config.js", "page/main.js")


def report_data(runs: Sequence[RunFiles], *, samples: int, sheets: int) -> dict[str, Any]:
    """What the page shows.

    Args:
        runs: the files of each.
        samples: the most samples of each kind that the page holds of a run.
        sheets: the most contact sheets of a run.
    """
    told = [_run(run, samples, sheets) for run in runs]
    names = list(dict.fromkeys(name for run in told for name in run["metrics"]["values"]))
    return {"runs": told, "panels": arrange(names), "stages": stages(names), "wholeStep": WHOLE_STEP}


def page(data: Mapping[str, Any]) -> str:
    """The page with its data, as JSON in which nothing can end the element that holds it."""
    styles = _shared("uplot.css"), _shared("look.css"), _part("page/report.css")
    scripts = _shared("look.js"), *map(_part, SCRIPTS)
    parts = {
        "@STYLE@": "\n".join(styles),
        "@LICENSE@": _shared("uplot.LICENSE"),
        "@UPLOT@": _shared("uplot.js"),
        "@SCRIPT@": "\n".join(scripts),
        "@DATA@": embedded(data),
    }
    return filled(_part("page/report.html"), parts)


def _run(run: RunFiles, most_samples: int, most_sheets: int) -> dict[str, Any]:
    metrics = read_metrics(run.metrics)
    dumps = [read_samples(folder, kind, most_samples, run.started) for kind, folder in run.samples.items()]
    sheets = Sheets() if run.images is None else read_sheets(run.images, most_sheets, run.started)
    groups = [group for dump in dumps for group in dump.groups]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "started": run.started or None,
        "notes": [*run.notes, *metrics.notes, *_notes(dumps), *sheets.notes],
        "metrics": metrics.columns(),
        "groups": sorted(groups, key=lambda group: (group["kind"], group["step"])),
        "sheets": sheets.sheets,
        "versions": run.versions,
        "config": flat(run.config),
    }


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """A config with one key per value: `{"a": {"b": 1}}` is `{"a.b": 1}`; lists and empty sections are values."""
    if not isinstance(values, Mapping) or (not values and prefix):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _notes(dumps: Sequence[Samples]) -> list[str]:
    return [note for dump in dumps for note in dump.notes]


def _shared(name: str) -> str:
    return part("maskgrpo_plugin.pages", name)


def _part(name: str) -> str:
    return part(FILES, name)
