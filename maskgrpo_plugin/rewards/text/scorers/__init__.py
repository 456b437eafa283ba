"""The package's text rewards, a file per task; importing this package registers all of them.

Each is a pure function from a completion and its ground truth to named numbers, with no verl import.
"""

from maskgrpo_plugin.imports import import_modules_of

import_modules_of(__name__, __path__)
