"""Says what a measurement was taken on, and prints tables."""

import datetime
import os
import pathlib
import platform
import subprocess


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown CPU"


def memory_gb():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            return round(int(line.split()[1]) / 1e6)
    return 0


def load():
    """Returns the number of processes that wanted a core, averaged over the last minute."""
    return os.getloadavg()[0]


def steal_percent():
    """Returns how much of the machine's time its host gave to others since it started."""
    numbers = [int(number) for number in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return 100 * numbers[7] / sum(numbers)


def describe(load_before):
    root = pathlib.Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False)
    return (
        f"{datetime.date.today()}, {cpu_model()}, {os.cpu_count()} cores, {memory_gb()} GB, {platform.system()} {platform.release()}, "
        f"commit {commit.stdout.strip() or 'unknown'}, load {load_before:.2f} before and {load():.2f} after, steal {steal_percent():.1f} %"
    )


def print_table(head, rows):
    """Prints a table in Markdown; columns after the first are aligned to the right."""
    table = [head, *rows]
    widths = [max(len(str(row[column])) for row in table) for column in range(len(head))]

    def line(row):
        cells = [str(cell).ljust(width) if column == 0 else str(cell).rjust(width) for column, (cell, width) in enumerate(zip(row, widths))]
        return f"| {' | '.join(cells)} |"

    print(line(head))
    print("|" + "|".join(" " + "-" * width + (" " if column == 0 else ":") for column, width in enumerate(widths)) + "|")
    for row in rows:
        print(line(row))
