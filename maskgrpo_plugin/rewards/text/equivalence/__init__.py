"""Whether two LaTeX expressions mean the same, by math-verify, with a time limit that holds in any thread."""

from maskgrpo_plugin.rewards.text.equivalence.pool import EquivalenceFailure, Verdict, compare_latex

__all__ = ["EquivalenceFailure", "Verdict", "compare_latex"]
