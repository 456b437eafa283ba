"""The registered trainers, their advantage estimators and policy losses.

verl is imported first; see `maskgrpo_plugin.workers`.
"""

import verl  # noqa: F401
