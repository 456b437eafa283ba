"""The command `maskgrpo`. It is apart from `maskgrpo_plugin`, whose import loads torch, so that it starts at once."""
