"""Fixtures of the sandbox's tests."""

import pytest
from sandbox_programs import ISOLATIONS, QUICK

from maskgrpo_plugin.sandbox import SandboxConfig


@pytest.fixture(params=ISOLATIONS)
def quick(request):
    """Short limits under each isolation that works here."""
    return SandboxConfig(isolation=request.param, **QUICK)
