"""Runs beside each other: what is compared (`samples`), the numbers (`estimates`), and what is left of them in a folder
and on the terminal (`tables`, `plots`, `marl_eval`, `files`)."""

from marl_kl.analysis.comparison.estimates import Comparison, compare

__all__ = ["Comparison", "compare"]
