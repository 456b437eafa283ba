"""Configs of runs, installed as `maskgrpo_configs`; Hydra finds them by name."""
