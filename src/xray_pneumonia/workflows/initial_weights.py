"""Finds the weights that a training starts from, for `model.init_from`."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import MAX_BYTES, WEIGHTS, read_bundle, require_plain
from xray_pneumonia.inference.loading import require_fitting
from xray_pneumonia.tracking.store import TrackingSettings
from xray_pneumonia.whole_files import file_sha256
from xray_pneumonia.workflows.find_model import find_model, folder_of

KEY = "model.init_from"


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from: what named them, the hash of their file, the tensors by name."""

    name: str
    sha256: str
    tensors: dict[str, Tensor]

    @property
    def tags(self) -> dict[str, str]:
        """What a run says of them."""
        return {"init.from": self.name, "init.sha256": self.sha256}

    def load_into(self, net: nn.Module) -> None:
        """Set a net's weights; an InputError says that it has others, or of other shapes."""
        try:
            require_fitting(net, self.tensors)
        except ValueError as error:
            raise InputError(
                f"{KEY}={self.name}: its weights do not fit this net: {error}; choose the model.* that they are of"
            ) from error
        net.load_state_dict(self.tensors)


def find_weights(name: str, *, tracking: TrackingSettings, home: Path) -> InitialWeights:
    """Read the weights of a shipped model, a run, a bundle's folder or a `.safetensors` file.

    Raises:
        InputError: there are none, or they are damaged or several nets'.
    """
    path = Path(name).expanduser()
    if path.suffix == ".safetensors":
        try:
            return InitialWeights(name, file_sha256(path), load_file(require_plain(path, most=MAX_BYTES)))
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{KEY}={name}: cannot be read: {error}; name a file that safetensors wrote") from error
    folder = folder_of(find_model(name, tracking=tracking, home=home, key=KEY))
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{KEY}={name}: is no single net with weights of its own; name one, such as final_seed1")
    return InitialWeights(name, file_sha256(folder / WEIGHTS), read_bundle(folder)[1])
