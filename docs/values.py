"""Shows the fields of values: to griffe, which reads code without running it, `@value` is a dataclass from here on."""

from typing import Any

from griffe import Class, ExprName, Extension


class Values(Extension):
    """griffe calls it for each class, and makes the signatures of dataclasses after that."""

    def on_class_instance(self, *, cls: Class, **_: Any) -> None:
        """Puts the standard library's decorator in the place of ours."""
        for decorator in cls.decorators:
            if decorator.callable_path == "pixelspace.config.value":
                decorator.value = ExprName("dataclasses.dataclass")
