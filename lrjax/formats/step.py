"""One product of two labelled arrays: what is summed, and in what order labels come out of it."""

from collections.abc import Set
from typing import NamedTuple

Labels = tuple[int, ...]


class Step(NamedTuple):
    """What `dot_general` is asked for; `swapped` says that the second array goes to the left."""

    batch: Labels
    summed: Labels
    out: Labels
    swapped: bool


def step_of(la: Labels, lb: Labels, keep: Set[int]) -> Step:
    """The step for arrays of these labels, of which those in `keep` stay.

    The first array, the activation, is not to be moved: where what is summed comes first in it, the
    product is from the left.
    """
    both = tuple(k for k in la if k in lb)
    summed = tuple(k for k in both if k not in keep)
    batch = tuple(k for k in both if k in keep)
    swapped = not batch and 0 < len(summed) < len(la) and set(la[: len(summed)]) == set(summed)
    first, second = (lb, la) if swapped else (la, lb)
    free = lambda labels: tuple(k for k in labels if k not in both)
    return Step(batch, summed, (*batch, *free(first), *free(second)), swapped)


def best_layout(labels: Labels, step: Step) -> Labels:
    """The order of the second array's labels in which the step does not transpose it."""
    free = tuple(k for k in labels if k not in step.summed and k not in step.batch)
    inner = (*free, *step.summed) if step.swapped else (*step.summed, *free)
    return (*step.batch, *inner)
