"""The results of a benchmark: one row for each measurement, as JSON and Markdown."""

import logging
import time
from statistics import median
from typing import Any

import torch

from seedling_hf.escaping import format_count
from seedling_hf.machine import device_name

logger = logging.getLogger(__name__)


def row(what: str, seconds: dict[str, list[float]], num_images: int) -> dict[str, Any]:
    """Minimum and median by name in milliseconds, and each median as a multiple of ours.

    `seconds` are those of `time_in_turns`, ours first, each for a run on `num_images`.
    """
    medians = {name: median(values) for name, values in seconds.items()}
    logger.info("%s: %s", what, ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in medians.items()))
    first = next(iter(medians.values()))
    return {
        "what": what,
        "milliseconds_median": {name: 1000 * value for name, value in medians.items()},
        "milliseconds_min": {name: 1000 * min(values) for name, values in seconds.items()},
        "times_ours": {name: value / first for name, value in medians.items()},
        "images_per_second": {name: num_images / value for name, value in medians.items()},
    }


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def format_results(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = results["machine"]
    blocks = [
        f"{machine['device']}, {format_count(machine['threads'], 'thread')}, torch {machine['torch']}, "
        f"{results['dtype']}, {machine['date']}"
    ]
    if results["rows"]:
        blocks.append(_format_rows(results["rows"]))
    if "profile" in results:
        blocks.append(_format_profile(results["profile"]))
    if "memory" in results:
        memory = results["memory"]
        figures = ", ".join(f"{name} {value:,.0f} MB" for name, value in memory["megabytes"].items())
        blocks.append(f"Peak memory, {memory['what']}: {figures}.")
    for axis, lines in results.get("growth", {}).items():
        table = [f"| {axis} | ms per image |", "|--:|--:|"]
        table += [f"| {line['value']} | {line['milliseconds_per_image']:.1f} |" for line in lines]
        blocks.append("\n".join(table))
    return "\n\n".join(blocks)


def _format_profile(profile: dict[str, Any]) -> str:
    """The table as Markdown, with the bounds beneath."""
    lines = [f"| {profile['what']} | ms | share | operations |", "|:--|--:|--:|--:|"]
    lines += [
        f"| {row['name']} | {row['milliseconds']:,.1f} | {row['share']:.1%} | {row['operations']:,} |"
        for row in profile["rows"]
    ]
    overhead = profile["milliseconds_profiled"] / profile["milliseconds"] - 1
    lines += [
        f"| sum, under the profiler ({overhead:+.1%}) | {profile['milliseconds_profiled']:,.1f} | 100.0% | |",
        f"| the step without the profiler | {profile['milliseconds']:,.1f} | | |",
    ]
    if profile["milliseconds_gpu_busy"] is not None:
        lines.append(f"| of it, the GPU is busy | {profile['milliseconds_gpu_busy']:,.1f} | | |")
    lines += [
        f"| bound of the matrix products alone | {profile['milliseconds_products']:,.1f} | | |",
        f"| bound of memory traffic ({profile['traffic_gigabytes']:,.2f} GB at "
        f"{profile['copy_gigabytes_per_second']:,.1f} GB/s) | {profile['milliseconds_traffic']:,.1f} | | |",
        f"| host waits for the device in a step | {profile['milliseconds_host_waits']:,.2f} | | "
        f"{profile['host_waits']:,} |",
    ]
    return "\n".join(lines)


def _format_rows(rows: list[dict[str, Any]]) -> str:
    """A table of medians in milliseconds, with the multiple of ours in parentheses."""
    names = list(dict.fromkeys(name for line in rows for name in line["milliseconds_median"]))
    lines = [f"| median, ms | {' | '.join(names)} |", "|:--|" + "--:|" * len(names)]
    for line in rows:
        medians, times = line["milliseconds_median"], line["times_ours"]
        cells = [f"{medians[name]:.1f} ({times[name]:.2f}×)" if name in medians else "" for name in names]
        lines.append(f"| {line['what']} | {' | '.join(cells)} |")
    return "\n".join(lines)
