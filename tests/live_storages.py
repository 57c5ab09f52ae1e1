"""Storages of torch that are alive: what is made inside `live_storages` counts until it is freed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Live:
    """Bytes of storages by their keys, and the most that were alive at once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.peak_bytes = 0

    @property
    def bytes(self) -> int:
        """Return what is alive now."""
        return sum(self.sizes.values())


@contextmanager
def live_storages() -> Iterator[Live]:
    """Count the storages of all tensors that operators make inside."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    live = Live()

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for t in tree_leaves(out):
                if hasattr(t, "untyped_storage") and (key := t.untyped_storage()._cdata) not in live.sizes:
                    live.sizes[key] = t.untyped_storage().nbytes()
                    weakref.finalize(t.untyped_storage(), live.sizes.pop, key, None)
            live.peak_bytes = max(live.peak_bytes, live.bytes)
            return out

    with Count():  # type: ignore[no-untyped-call]
        yield live
