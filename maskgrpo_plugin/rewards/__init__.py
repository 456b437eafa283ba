"""Rewards of completions: `text/` scores texts in their tasks, `images/` scores images; built alike."""

from maskgrpo_plugin.rewards.text import Task, check_weights, get_task, register_task, score, tasks

__all__ = ["Task", "check_weights", "get_task", "register_task", "score", "tasks"]
