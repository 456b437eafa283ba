"""Evaluation of checkpoints through the rollout servers: what `python -m maskgrpo_plugin.evaluate` is made of."""
