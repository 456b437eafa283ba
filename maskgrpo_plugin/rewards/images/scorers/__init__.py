"""The package's image rewards, a file per scorer; importing this package registers all of them and loads none.

A library that a scorer needs is imported where the scorer is made.
"""

from maskgrpo_plugin.imports import import_modules_of

import_modules_of(__name__, __path__)
