"""Planning: spectra, budgets and rules to integer ranks, on the host."""

from lrjax.plan.allocation import Absolute, Allocation, Auto, Global, Relative, Scale, Uniform
from lrjax.plan.budget import Budget, Currency
from lrjax.plan.planner import plan
from lrjax.plan.record import Entry, Plan

__all__ = [
    "Absolute",
    "Allocation",
    "Auto",
    "Budget",
    "Currency",
    "Entry",
    "Global",
    "Plan",
    "Relative",
    "Scale",
    "Uniform",
    "plan",
]
