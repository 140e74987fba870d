"""Collects a net's features: the channel means of its stem and of its blocks, in the pass that gives the logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MOST_FEATURES = 1024  # of wider nets evenly spaced channels are taken: a covariance is fitted to them


class FeatureNet(nn.Module):
    """A net that returns features as well as logits."""

    def __init__(self, net: nn.Module, *, side: int) -> None:
        super().__init__()
        self.net = net
        self.layers = find_maps(net, side=side)
        self.step, self.width = 1, 0
        with torch.inference_mode():
            found = self._features(_blank(net, side))[1].shape[1]
        self.step = -(-found // MOST_FEATURES) or 1
        self.width = len(range(0, found, self.step))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw pixels (B, 1, S, S) to logits (B,) and features (B, D); D is 0 for a net without maps."""
        return self._features(image)

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        means: list[Tensor] = []
        layers = [self.net.get_submodule(name) for name in self.layers]
        with _watching(layers, lambda _, output: means.append(output.mean((2, 3)))):
            logits = self.net(image)
        return logits, torch.cat(means, dim=1)[:, :: self.step] if means else logits[:, None][:, :0]


def find_maps(net: nn.Module, *, side: int) -> list[str]:
    """Name the stem and the blocks of a net: the outermost composed layers whose output is a map, (B, C, h, w).

    A sequence of composed layers is not one of them, its parts are.
    """
    maps: set[nn.Module] = set()

    def look(layer: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            maps.add(layer)

    with torch.inference_mode(), _watching(list(net.modules()), look):
        net.eval()(_blank(net, side))
    return list(_outermost(net, maps, ""))


def _outermost(layer: nn.Module, maps: set[nn.Module], prefix: str) -> Iterator[str]:
    for name, child in layer.named_children():
        inner = list(child.children())
        if child in maps and inner and not (isinstance(child, nn.Sequential) and any(map(_is_composed, inner))):
            yield f"{prefix}{name}"
        else:
            yield from _outermost(child, maps, f"{prefix}{name}.")


def _is_composed(layer: nn.Module) -> bool:
    return any(True for _ in layer.children())


def _blank(net: nn.Module, side: int) -> Tensor:
    return torch.zeros(2, 1, side, side, dtype=torch.uint8, device=next(net.parameters()).device)


@contextmanager
def _watching(layers: list[nn.Module], look: Callable[[nn.Module, Tensor], object]) -> Iterator[None]:
    """Show each layer's output to `look`."""

    def hook(layer: nn.Module, _: object, output: Tensor) -> None:
        look(layer, output)

    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
