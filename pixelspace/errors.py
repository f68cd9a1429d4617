"""What can go wrong, by kind. Each kind has its exit code; the command line prints one line and no traceback.

A message says where, what was expected, what was found and what to do.
"""


class PixelspaceError(Exception):
    """Any fault that pixelspace foresees. `exit_code` is what the command line returns."""

    exit_code = 70
    told = False  # whether another process of the run has said the same line already


class UserError(PixelspaceError, ValueError):
    """A setting, argument or command that cannot be meant."""

    exit_code = 2


class DataError(PixelspaceError, ValueError):
    """Images, labels or captions that cannot be used."""

    exit_code = 3


class CheckpointError(PixelspaceError, RuntimeError):
    """A checkpoint or weights file that is absent, damaged, hostile or of something else."""

    exit_code = 4


class NumericalError(PixelspaceError, RuntimeError):
    """Losses, gradients or weights that are not finite."""

    exit_code = 5


class ResourceError(PixelspaceError, RuntimeError):
    """The machine said no: disk full, folder not writable, package absent."""

    exit_code = 6


class PeerError(PixelspaceError, RuntimeError):
    """Another process of the same run has failed, died or hangs."""

    exit_code = 7


class Stopped(PixelspaceError, RuntimeError):
    """The run stopped on request, with a checkpoint of this very step."""

    exit_code = 75
