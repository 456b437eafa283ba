"""The registered trainers, their advantage estimators and policy losses; for the import see `maskgrpo_plugin.workers`."""

import verl  # noqa: F401
