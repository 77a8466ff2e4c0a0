"""The results as a chart: for each workload how many times as fast as its peer each mode of sosfs is."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tests.bench.goals import bases
from tests.bench.results import Results, Setting
from tests.bench.systems import FLOOR, SYSTEMS, Role
from tests.bench.workloads import WORKLOADS

WIDTH, LINE = 9.0, 0.24  # inches
MARKERS = "oDs^v<>pX*"


def draw(results: Results, path: Path) -> None:
    """Writes an SVG with one panel for each setting."""
    settings = results.settings()
    heights = [len(results.workloads(setting)) for setting in settings]
    # Text stays text, and equal results give an equal file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sosfs"}):
        figure = Figure((WIDTH, sum(heights) * LINE + 1.4 * len(settings)), layout="constrained")
        panels = figure.subplots(len(settings), 1, squeeze=False, height_ratios=heights)
        for panel, setting in zip(panels.flat, settings, strict=True):
            _panel(panel, results, setting)
        figure.savefig(path, metadata={"Date": None})


def _panel(panel: Axes, results: Results, setting: Setting) -> None:
    names = results.workloads(setting)
    own = [name for name in results.systems() if name != FLOOR and SYSTEMS[name].role is Role.OWN]
    for number, system in enumerate(own):
        ratios = [(results.ratio(setting, name, system, bases(name, system)), row) for row, name in enumerate(names)]
        points = [(found, row) for found, row in ratios if found]
        if points:
            values, rows = [found.value for found, _ in points], [row for _, row in points]
            spread = [
                [found.value - found.least for found, _ in points],
                [found.most - found.value for found, _ in points],
            ]
            panel.errorbar(values, rows, xerr=spread, fmt=MARKERS[number % len(MARKERS)], label=system, alpha=0.8)
    panel.set_xscale("log")
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set_yticks(range(len(names)), [WORKLOADS[name].title for name in names])
    panel.invert_yaxis()
    panel.grid(axis="x", which="both", linewidth=0.3)
    panel.set_title(f"{setting}: speed relative to the peer of the same durability (right is faster)", fontsize=10)
    panel.xaxis.set_major_formatter("{x:g}x")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    if panel.containers:  # without a peer there is no ratio to draw
        panel.legend(fontsize=7, loc="best")
