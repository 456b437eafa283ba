"""Whether two LaTeX expressions mean the same, by math-verify, with a time limit that holds in any thread."""

from maskgrpo_plugin.rewards.text.equivalence.pool import Verdict, compare_latex

__all__ = ["Verdict", "compare_latex"]
