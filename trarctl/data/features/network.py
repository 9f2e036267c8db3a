"""What extractors with a network in torch share: weights, a copy on each device, batches of one size.

Axes: B images, S cells along one side, N = S * S cells in row-major order, W feature width, R x C cells of a map.
"""

from __future__ import annotations

import copy
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trarctl.data import Progress, batched, no_progress
from trarctl.data.download import Download
from trarctl.data.features.base import Extractor, ExtractorOptions, Float32s
from trarctl.data.features.weights import HINT, digest_of_file, fetch_weights, weights_reader
from trarctl.errors import DataError
from trarctl.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor, nn


_PIXELS_AT_ONCE = 1 << 22  # through a network, so that its maps fit in memory: eight photos, all small pictures


class NetworkExtractor(Extractor):
    """Runs images through a network, each device its own copy; a subclass says which network, and what it sees.

    Images of one size go through together.
    """

    precisions = ("fp32", "bf16")
    published: ClassVar[Download | None] = None  # its weights; None: they have to be named
    weights_hint: ClassVar[str] = HINT  # which file of weights to take

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        self._devices = options.devices
        self._path: Path | None = options.weights
        self._digest: str | None = None
        if options.weights is not None:
            self._digest = digest_of_file(options.weights, self.weights_hint)
        self._idle: SimpleQueue[tuple[str, nn.Module]] | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the network, which turns [B, 3, height, width] into maps [B, W, R, C]; its weights are loaded later."""

    @abstractmethod
    def pixels(self, image: Image) -> Float32s:
        """Turn an image that ``shrink`` gave into the network's input [3, height, width]."""

    def renamed(self, weights: Weights) -> Mapping[str, Tensor]:
        """Give a file's tensors the network's names; others are passed over."""
        return weights.tensors

    def fast(self, network: nn.Module) -> nn.Module:
        """Make a network with its weights faster, if there is a way; it gives the same, but for rounding."""
        return network

    def fetch(self, progress: Progress = no_progress) -> None:
        """Download the published weights where none are named."""
        if self._path is not None:
            return
        if self.published is None:
            raise DataError(f"{self.name} needs weights", self.weights_hint)
        self._path, self._digest = fetch_weights(self.published, progress)

    def identity(self) -> dict[str, Any]:
        """Give what identifies the weights."""
        assert self._digest is not None, "fetch comes first"  # noqa: S101 - a promise of the interface
        return {"weights": self._digest}

    def load(self) -> None:
        """Put one copy of the network on each device, once."""
        if self._idle is not None:
            return
        network = self.build()
        self.fill(network)
        network = self.fast(network.eval().requires_grad_(False))
        idle: SimpleQueue[tuple[str, nn.Module]] = SimpleQueue()
        for device in self._devices:
            idle.put((device, copy.deepcopy(network).to(device)))
        self._idle = idle

    def fill(self, network: nn.Module) -> None:
        """Load the weights into a network that ``build`` made.

        Raises:
            DataError: if the weights are not those of this network.
        """
        assert self._path is not None, "fetch comes first"  # noqa: S101 - a promise of the interface
        reader = weights_reader(self.weights_hint)
        state, given = network.state_dict(), self.renamed(reader.weights(self._path))
        missing = [name for name in state if name not in given and not name.endswith("num_batches_tracked")]
        others = [name for name in state if name in given and given[name].shape != state[name].shape]
        if missing or others:
            first = f"without {missing[0]}" if missing else f"{others[0]} has the shape {list(given[others[0]].shape)}"
            raise DataError(f"{self._path} does not hold the weights of {self.name}: {first}", self.weights_hint)
        reader.refuse_nonfinite(self._path, {name: given[name] for name in state if name in given})
        network.load_state_dict({name: given.get(name, value) for name, value in state.items()})

    def extract(self, images: Sequence[Image]) -> Float32s:
        """Run images through the network, [B, N, W]."""
        import torch

        assert self._idle is not None, "load comes first"  # noqa: S101 - a promise of the interface
        shrunk = [self.shrink(image) for image in images]
        features = np.empty((len(images), self.grid_size**2, self.width), dtype=np.float32)
        device, network = self._idle.get()
        try:
            for size in dict.fromkeys(image.size for image in shrunk):
                same = [row for row, image in enumerate(shrunk) if image.size == size]
                for rows in batched(same, max(_PIXELS_AT_ONCE // (size[0] * size[1]), 1)):
                    batch = torch.from_numpy(np.stack([self.pixels(shrunk[row]) for row in rows]))
                    with torch.inference_mode(), _exact_convolutions(), self._autocast(device):
                        maps = network(batch.to(device)).float().cpu()
                    for row, cells in zip(rows, maps.permute(0, 2, 3, 1).numpy(), strict=True):
                        features[row] = self.geometry(*images[row].size).to_grid(cells)
        finally:
            self._idle.put((device, network))
        return features

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        import torch

        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.partition(":")[0], torch.bfloat16)


class _ExactConvolutions:
    """Keep cuDNN from convolutions of 10 bits, which move values by 1e-3, while any thread extracts.

    The switch is global; it is afterwards what it was.
    """

    def __init__(self) -> None:
        self._lock, self._num_extracting, self._before = threading.Lock(), 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        from torch.backends import cudnn

        with self._lock:
            if self._num_extracting == 0:
                self._before, cudnn.allow_tf32 = cudnn.allow_tf32, False
            self._num_extracting += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_extracting -= 1
                if self._num_extracting == 0:
                    cudnn.allow_tf32 = self._before


_exact_convolutions = _ExactConvolutions()


def standardized(colors: Float32s, mean: Sequence[float], deviation: Sequence[float]) -> Float32s:
    """Subtract and divide, a number for each channel: [height, width, 3] -> [3, height, width]."""
    result: Float32s = colors - np.array(mean, dtype=np.float32)
    result /= np.array(deviation, dtype=np.float32)
    return np.ascontiguousarray(result.transpose(2, 0, 1))
