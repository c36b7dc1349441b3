"""What trains the fusion methods: `train(method, data, ...)`, see `trainer.train`."""


def __getattr__(name):
    # Late, so that asking for the atlas or a table costs no torch and runs no module twice.
    if name in ("Training", "require_settings", "train"):
        from . import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
