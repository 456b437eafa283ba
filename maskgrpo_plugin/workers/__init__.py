"""Adapters between the plugin and verl: platform, engines, workers, rollout servers, agent loop.

verl is imported before any of them: importing it registers the plugin, which needs these modules whole.
"""

import verl  # noqa: F401
