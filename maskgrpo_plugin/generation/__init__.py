"""Texts and images of a checkpoint at the command line: what `python -m maskgrpo_plugin.generate` is made of."""
