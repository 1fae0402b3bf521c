"""The nodes that are measured, how they are asked what they counted, and the order in which measures are taken."""

import statistics
import urllib.request

# A node that has no model itself.
EMPTY = '[[backends]]\nkind = "embedded"\n'


def fake(name, more="", *, reply):
    """Configures a backend that costs hardly any processor time, so that nodes are measured and not models."""
    return f'[[backends]]\nkind = "fake"\nname = "{name}"\nmodels = ["{name}"]\nreply = "{reply}"\n{more}\n'


def netloc(node):
    return node.api.removeprefix("http://")


def metrics(node, name):
    """Returns the values of one of a node's metrics by its labels, as they stand between the braces."""
    with urllib.request.urlopen(f"{node.api}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.removeprefix(f"{name}{{").split("} ", 1) for line in lines if line.startswith(f"{name}{{")]
    return {labels: float(value) for labels, value in found}


def median(values):
    return statistics.median(values)


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def in_turns(rounds, *measures):
    """Takes each measure once a round, in an order that turns around, so that all meet the same machine; returns a list of results for each."""
    results = [[] for _ in measures]
    for number in range(rounds):
        order = list(enumerate(measures))
        for index, measure in order if number % 2 == 0 else reversed(order):
            results[index].append(measure())
    return results
