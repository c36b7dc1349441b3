"""What can go wrong. A message says what is wrong, with which volume, and what to do."""


class MedFusionError(Exception):
    """Base of every error that MedFusion raises on purpose."""


class VolumeError(MedFusionError, ValueError):
    """A volume that cannot be used: empty, constant, not finite, not scalar, the same one twice."""


class GeometryError(VolumeError):
    """Grids that do not go together, or a geometry matrix that is not one."""


class FileError(MedFusionError, OSError):
    """A file that cannot be read or written."""


class RegistrationError(MedFusionError, RuntimeError):
    """A registration that failed or cannot be trusted."""


class MethodError(MedFusionError, ValueError):
    """An unknown method or option, or sources that a method cannot take."""


class WeightsError(MedFusionError, RuntimeError):
    """Weights that are missing, damaged or not those of the registry."""


class DeviceError(MedFusionError, RuntimeError):
    """A compute device that is absent or out of memory."""


class WorkerError(MedFusionError, RuntimeError):
    """A child process that crashed or was ended."""


class Cancelled(MedFusionError):
    """The user cancelled; nothing was changed."""

    def __init__(self, message="Cancelled: nothing was changed."):
        super().__init__(message)


class InstallError(MedFusionError, RuntimeError):
    """Python packages that could not be installed."""
