"""Reads a node's metrics."""

import urllib.request


def read(node):
    """Returns every sample as {"name{labels}": value}."""
    with urllib.request.urlopen(f"{node.api}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def in_flight(node):
    """Returns how many answers are being generated."""
    return read(node)["bombus_answers_running"]
