"""Makes stock Transformers know Arlow without an `import arlow`.

`arlow.pth`, installed beside this module, calls `install()` whenever Python starts. Nothing is imported then: one
finder is put in front of `sys.meta_path` that waits for `transformers`, registers Arlow's names right after it, and
leaves. So this file stands outside the package, imports `sys` only, and never raises. `ARLOW_NO_AUTOLOAD=1` switches
it off, `ARLOW_DEBUG=1` shows what went wrong.
"""

from __future__ import annotations

import sys


TYPE_CHECKING = False  # importing typing would cost more than this whole file
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class AfterImport:
    """A finder for `sys.meta_path` that calls `then[name](name)` once, right after module `name` was imported.

    It finds nothing itself: it asks the finders behind it and wraps the loader they give. A name is dropped when its
    module was really executed, since `importlib.util.find_spec` asks without importing; with the last name the finder
    leaves `sys.meta_path`.
    """

    def __init__(self, then: dict[str, Callable[[str], None]]) -> None:
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the finders behind this one give for a name waited for, None for any other."""
        if name not in self.then:
            return None
        finders = iter(tuple(sys.meta_path))
        for finder in finders:  # those in front have been asked already, and another AfterImport may be among them
            if finder is self:
                break
        for finder in finders:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]  # a loader by its methods
                return spec
        return None

    def done(self, name: str) -> None:
        """Called when module `name` has been executed."""
        then = self.then.pop(name, None)
        if not self.then and self in sys.meta_path:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
        if then is not None:
            then(name)


class _Loader:
    """The loader of one module, and a call afterwards. Everything else is answered by the loader itself."""

    def __init__(self, loader: Any, finder: AfterImport) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._finder.done(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def register_arlow(_: str = "transformers") -> None:
    """Register Arlow with Transformers; without a working Arlow, Transformers simply goes on without it."""
    try:
        from arlow.registration import register

        register()
    except Exception:
        import os

        if os.environ.get("ARLOW_DEBUG"):
            import traceback

            traceback.print_exc()


def install() -> None:
    """Wait for `transformers`. Called by `arlow.pth` at interpreter start-up, so it does next to nothing."""
    if "transformers" in sys.modules:
        register_arlow()
    else:
        sys.meta_path.insert(0, AfterImport({"transformers": register_arlow}))  # type: ignore[arg-type]
