"""Rewards of texts: a registry of tasks, their scorers, and verl's reward manager over them."""

from maskgrpo_plugin.rewards.text import scorers  # noqa: F401  (importing registers them)
from maskgrpo_plugin.rewards.text.registry import Task, check_weights, get_task, register_task, score, tasks

__all__ = ["Task", "check_weights", "get_task", "register_task", "score", "tasks"]
