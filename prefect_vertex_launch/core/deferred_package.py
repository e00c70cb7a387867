"""Packages whose `__init__` does not run before somebody needs it.

Importing anything below `google.cloud.aiplatform_v1` first runs that package's `__init__`, which
imports every service of Vertex AI: more than twice the time that the job service's client needs alone,
ten times that of a job's types, and 50 MB (`make bench` prints them). So the package is entered through a
module that has its path but whose `__init__` runs only when somebody asks for a name that is not
there yet. Other users of the SDK in the same process, `prefect-gcp` or a user's own code, see the
complete package.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


class _DeferredPackage(ModuleType):
    """A package whose `__init__` runs on the first name that is not one of its submodules."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name != "__all__":  # `import *` asks for __all__
            raise AttributeError(name)
        submodule = f"{self.__name__}.{name}"
        if importlib.util.find_spec(submodule) is not None:
            return importlib.import_module(submodule)
        self.__class__ = ModuleType  # pyright: ignore[reportAttributeAccessIssue]  # from here on an ordinary module
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)


def defer_package(name: str) -> None:
    """Put package `name` into `sys.modules` without running it, unless it has been imported already.

    Its `__init__` runs on the first attribute that is asked of it. A package that is not installed
    is left alone, so that the import that follows raises its ordinary ModuleNotFoundError.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _DeferredPackage
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
